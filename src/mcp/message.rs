//! One JSON-RPC message, as much of it as a gate has to know.
//!
//! Texts that policy compares are owned and unescaped; everything else is a slice of the body it came in, so a
//! message costs no copy of its parameters.

use bytes::Bytes;

/// What a POST carried.
#[derive(Clone, Debug)]
pub enum Payload {
    Single(Box<Message>),
    /// Only under 2025-03-26; 1 to 64 members.
    Batch(Vec<Message>),
}

impl Payload {
    /// The messages in order.
    pub fn messages(&self) -> &[Message] {
        match self {
            Self::Single(message) => std::slice::from_ref(&**message),
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
    /// `params.protocolVersion` of an `initialize` request: what makes it legacy.
    pub initialize_version: Option<Box<str>>,
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
