//! One JSON-RPC message, as much of it as a gate has to know.
//!
//! Texts that policy compares are owned and unescaped; everything else is a slice of the body it came in, so a
//! message costs no copy of its parameters.

use std::sync::Arc;

use bytes::Bytes;

/// What a POST carried. Clones share it.
#[derive(Clone, Debug)]
pub enum Payload {
    Single(Arc<Message>),
    /// Only under 2025-03-26; 1 to 64 members.
    Batch(Arc<[Message]>),
}

impl Payload {
    /// Whether the body was an array.
    pub fn is_batch(&self) -> bool {
        matches!(self, Self::Batch(_))
    }

    /// The messages in order.
    pub fn messages(&self) -> &[Message] {
        match self {
            Self::Single(message) => std::slice::from_ref(message),
            Self::Batch(messages) => messages,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Request,
    Notification,
    /// A client's answer to a server-initiated request: legacy and SSE only.
    Response,
}

/// A request's id as it stood in the body: a JSON string or number, never null.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Id(pub Bytes);

impl Id {
    /// The id as everybody would write it, so that two spellings of one id are equal: strings unescaped as far as they
    /// can be, integers without fraction or exponent. Costs nothing for what is written so already.
    pub fn canonical(&self) -> Self {
        let plain = |text: &[u8]| {
            let string = text.first() == Some(&b'"');
            (string && memchr::memchr(b'\\', text).is_none())
                || (!string && text != b"-0" && memchr::memchr3(b'.', b'e', b'E', text).is_none())
        };
        if plain(&self.0) {
            return self.clone();
        }
        let spelled = match serde_json::from_slice::<serde_json::Value>(&self.0) {
            Ok(serde_json::Value::String(text)) => serde_json::Value::from(text).to_string(),
            // Beyond 2^53 a double is no single integer any more.
            Ok(serde_json::Value::Number(number)) => match number.as_f64() {
                Some(value) if value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0 => format!("{value:.0}"),
                _ => return self.clone(),
            },
            _ => return self.clone(),
        };
        let spelled = if spelled == "-0" { "0".to_owned() } else { spelled };
        Self(spelled.into())
    }
}

/// The envelope of one message.
#[derive(Clone, Debug)]
pub struct Message {
    pub kind: Kind,
    /// Empty for a response.
    pub method: Box<str>,
    pub id: Option<Id>,
    /// `params.name`.
    pub name: Option<Box<str>>,
    /// `params.uri`.
    pub uri: Option<Box<str>>,
    /// `params.arguments`, raw JSON.
    pub arguments: Option<Bytes>,
    /// `params.ref` of `completion/complete`: a prompt's name or a resource's URI.
    pub reference: Option<Reference>,
    /// Resource URIs named by `subscriptions/listen` (`params.notifications.resourceSubscriptions`).
    pub subscriptions: Vec<Box<str>>,
    /// Whether `params.inputResponses` is there: the retry of a modern request.
    pub is_retry: bool,
    /// `params.cursor` of a list.
    pub cursor: Option<Box<str>>,
    /// `params.taskId`.
    pub task_id: Option<Box<str>>,
    /// Fields of `params._meta` that matter here.
    pub meta: Meta,
    /// The whole message, raw JSON.
    pub raw: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    Prompt(Box<str>),
    Resource(Box<str>),
}

/// `params._meta`.
#[derive(Clone, Debug, Default)]
pub struct Meta {
    /// `io.modelcontextprotocol/protocolVersion`: its presence makes a message modern.
    pub protocol_version: Option<Box<str>>,
    /// Whether `io.modelcontextprotocol/clientCapabilities` is there and an object.
    pub has_client_capabilities: bool,
}

/// Which of the protocol's three shapes a request has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Era {
    /// 2026-07-28 and later: stateless, per-request `_meta`.
    Modern,
    /// 2025-03-26 to 2025-11-25: Streamable HTTP with `initialize`.
    Legacy,
    /// 2024-11-05 HTTP+SSE.
    Sse,
}

#[cfg(test)]
mod tests {
    use super::Id;

    #[test]
    fn two_spellings_of_one_id_are_equal() {
        let canonical = |text: &'static str| Id(text.into()).canonical();
        for (one, other) in [
            ("1", "1.0"),
            ("1", "1e0"),
            ("10", "1E+1"),
            ("0", "-0"),
            ("0", "-0.0"),
            ("\"a\"", "\"\\u0061\""),
            ("\"\\/\"", "\"/\""),
            ("\"\\u000a\"", "\"\\n\""),
        ] {
            assert_eq!(canonical(one), canonical(other), "{one} and {other}");
        }
        for (one, other) in [
            ("1", "\"1\""),
            ("1", "1.5"),
            ("9007199254740993", "9007199254740992.0"),
            ("\"a\"", "\"A\""),
        ] {
            assert_ne!(canonical(one), canonical(other), "{one} and {other}");
        }
    }
}
