//! The era of a request, and whether its headers and its body tell the same story.
//!
//! 1. A request is modern when its header or its `_meta` says so; then both must, and say the same version.
//! 2. A modern request mirrors `method` into `Mcp-Method`, and `params.name` or `params.uri` into `Mcp-Name`
//!    (MCP 2026-07-28, "Server Validation"): a gate that trusted one and a server the other would be a bypass (r49).
//!    Notifications need no `Mcp-Method`.
//! 3. Batches exist only under 2025-03-26, whose requests carry no version header or that one.
//! 4. A header that decides something comes once.
//! 5. A request whose header and body name the same version is answered in that version's terms, or, when it is none that
//!    could be ("v9"), with the ones there are (MCP 2026-07-28, "Protocol Version Negotiation").
//! 6. Subscribing to one resource is a method that 2026-07-28 has removed. A server that still knew it would have to be kept
//!    by the rules for resources, which a request without a URI gives nothing to go by; so a modern request can't name it.

use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::errors::codes;
use super::message::{Era, Kind, Message, Payload};

/// The first modern revision; versions are dates and compare as text.
const FIRST_MODERN: &str = "2026-07-28";
/// The only revision with batches.
const BATCHES: &str = "2025-03-26";

const VERSION: &str = "mcp-protocol-version";
const METHOD: &str = "mcp-method";
const NAME: &str = "mcp-name";

/// How headers and body disagree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgreementError {
    #[error("{0} is missing, but this revision requires it")]
    Missing(&'static str),
    #[error("{0} does not match the body")]
    Mismatch(&'static str),
    #[error("{0} holds characters or an encoding that no value of it can have")]
    Undecodable(&'static str),
    #[error("MCP-Protocol-Version is not a protocol version")]
    NoVersion,
    #[error("Unsupported protocol version")]
    Unsupported {
        /// As the request spells it.
        requested: Box<str>,
    },
    #[error("params._meta lacks {0}, which this revision requires")]
    MissingMeta(&'static str),
    #[error("this revision has no such method")]
    Removed,
    #[error("batches exist only in revision 2025-03-26")]
    Batch,
}

impl AgreementError {
    /// The JSON-RPC error code.
    pub fn code(&self) -> i64 {
        match self {
            Self::Missing(_) | Self::Mismatch(_) | Self::Undecodable(_) | Self::NoVersion => codes::HEADER_MISMATCH,
            Self::Unsupported { .. } => codes::UNSUPPORTED_VERSION,
            Self::MissingMeta(_) => codes::INVALID_PARAMS,
            Self::Removed => codes::METHOD_NOT_FOUND,
            Self::Batch => codes::INVALID_REQUEST,
        }
    }
}

/// A header that must come once but came more often.
pub fn repeated(headers: &HeaderMap) -> Option<&'static str> {
    if headers.len() == headers.keys_len() {
        return None;
    }
    for name in [AUTHORIZATION, HOST, CONTENT_TYPE] {
        if headers.get_all(&name).iter().nth(1).is_some() {
            return Some(match name {
                AUTHORIZATION => "Authorization",
                HOST => "Host",
                _ => "Content-Type",
            });
        }
    }
    if headers.get_all("dpop").iter().nth(1).is_some() {
        return Some("DPoP");
    }
    headers
        .keys()
        .any(|name| name.as_str().starts_with("mcp-") && headers.get_all(name).iter().nth(1).is_some())
        .then_some("Mcp-*")
}

/// The era of a request whose headers and body agree.
///
/// # Errors
/// -32020 when they don't, -32022 when they agree on a version that can't be one, -32602 when `_meta` lacks a required field,
/// -32601 for a method that the revision removed, -32600 for a batch outside 2025-03-26.
pub fn agree(headers: &HeaderMap, payload: &Payload) -> Result<Era, AgreementError> {
    let version = match headers.get(VERSION) {
        None => None,
        Some(value) => {
            let version = value.to_str().map_err(|_| AgreementError::NoVersion)?;
            if !is_version(version) {
                return Err(no_version(version, payload));
            }
            Some(version)
        }
    };
    match payload {
        Payload::Batch(messages) => {
            let modern = messages.iter().any(|message| message.meta.protocol_version.is_some());
            if modern || version.is_some_and(|version| version != BATCHES) {
                return Err(AgreementError::Batch);
            }
            Ok(Era::Legacy)
        }
        Payload::Single(message) => {
            let in_body = message.meta.protocol_version.as_deref();
            if version.is_none_or(|version| version < FIRST_MODERN) && in_body.is_none() {
                return Ok(Era::Legacy);
            }
            modern(headers, version, message).map(|()| Era::Modern)
        }
    }
}

fn no_version(in_header: &str, payload: &Payload) -> AgreementError {
    match payload {
        Payload::Single(message) if message.meta.protocol_version.as_deref() == Some(in_header) => {
            AgreementError::Unsupported {
                requested: in_header.into(),
            }
        }
        _ => AgreementError::NoVersion,
    }
}

fn modern(headers: &HeaderMap, version: Option<&str>, message: &Message) -> Result<(), AgreementError> {
    let version = version.ok_or(AgreementError::Missing("MCP-Protocol-Version"))?;
    if message.kind == Kind::Response {
        // A modern client sends no answers.
        return Err(AgreementError::Mismatch("MCP-Protocol-Version"));
    }
    match headers.get(METHOD) {
        Some(method) if method.as_bytes() != message.method.as_bytes() => {
            return Err(AgreementError::Mismatch("Mcp-Method"));
        }
        None if message.kind == Kind::Request => return Err(AgreementError::Missing("Mcp-Method")),
        _ => {}
    }
    let named = match &*message.method {
        "tools/call" | "prompts/get" => message.name.as_deref(),
        "resources/read" => message.uri.as_deref(),
        _ => None,
    };
    match (headers.get(NAME), named) {
        (Some(value), Some(named)) => {
            if decode_value(value)? != named {
                return Err(AgreementError::Mismatch("Mcp-Name"));
            }
        }
        (Some(value), None) => {
            // Not required here, but a server may still route on it.
            let value = decode_value(value)?;
            let known = [&message.name, &message.uri];
            if !known.iter().any(|known| known.as_deref() == Some(&*value)) {
                return Err(AgreementError::Mismatch("Mcp-Name"));
            }
        }
        (None, Some(_)) => return Err(AgreementError::Missing("Mcp-Name")),
        (None, None) => {}
    }
    match message.meta.protocol_version.as_deref() {
        // Notifications carry no per-request fields that this revision would define.
        None if message.kind == Kind::Notification => Ok(()),
        None => Err(AgreementError::MissingMeta("io.modelcontextprotocol/protocolVersion")),
        Some(in_body) if in_body != version => Err(AgreementError::Mismatch("MCP-Protocol-Version")),
        Some(_) if message.kind == Kind::Request && !message.meta.has_client_capabilities => Err(
            AgreementError::MissingMeta("io.modelcontextprotocol/clientCapabilities"),
        ),
        Some(_) if matches!(&*message.method, "resources/subscribe" | "resources/unsubscribe") => {
            Err(AgreementError::Removed)
        }
        Some(_) => Ok(()),
    }
}

/// `YYYY-MM-DD`.
fn is_version(text: &str) -> bool {
    text.len() == 10
        && text.bytes().enumerate().all(|(place, byte)| match place {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

/// A header value that may be in the Base64 sentinel form (MCP 2026-07-28, "Value Encoding").
///
/// # Errors
/// When it is neither visible ASCII nor a well-formed sentinel.
pub fn decode_value(value: &HeaderValue) -> Result<String, AgreementError> {
    let broken = || AgreementError::Undecodable("Mcp-Name");
    let text = value.to_str().map_err(|_| broken())?;
    match text.strip_prefix("=?base64?").and_then(|text| text.strip_suffix("?=")) {
        None => Ok(text.to_owned()),
        Some(encoded) => {
            let bytes = STANDARD.decode(encoded).map_err(|_| broken())?;
            String::from_utf8(bytes).map_err(|_| broken())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::parse;
    use proptest::prelude::*;

    const META: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;

    fn check(headers: &[(&'static str, &str)], body: &str) -> Result<Era, AgreementError> {
        let headers = headers
            .iter()
            .map(|(name, value)| {
                (
                    http::HeaderName::from_static(name),
                    HeaderValue::try_from(*value).expect("a value"),
                )
            })
            .collect();
        agree(&headers, &parse(&body.to_owned().into()).expect("a message"))
    }

    /// Headers, body, and what they come to.
    type Row<'a> = (Vec<(&'static str, &'a str)>, &'a str, Result<Era, AgreementError>);

    fn call(params: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{{params}}}}}"#)
    }

    #[test]
    fn r49_headers_and_body_must_agree() {
        let v = (VERSION, "2026-07-28");
        let m = (METHOD, "tools/call");
        let whole = call(&format!(r#""name":"a",{META}"#));
        let bare = call(r#""name":"a""#);
        let other = call(
            r#""name":"a","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-08-01","io.modelcontextprotocol/clientCapabilities":{}}"#,
        );
        let no_capabilities = call(r#""name":"a","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}"#);
        let none = call(&format!(r#""name":"a",{}"#, META.replace("2026-07-28", "v9")));
        let bare_subscribe = call(r#""uri":"a://b""#).replace("tools/call", "resources/subscribe");
        let subscribe = call(&format!(r#""uri":"a://b",{META}"#)).replace("tools/call", "resources/subscribe");
        let unsubscribe = subscribe.replace("subscribe", "unsubscribe");
        use AgreementError as E;
        let table: Vec<Row<'_>> = vec![
            (vec![v, m, (NAME, "a")], &whole, Ok(Era::Modern)),
            (vec![v, m, (NAME, "=?base64?YQ==?=")], &whole, Ok(Era::Modern)),
            (vec![], &bare, Ok(Era::Legacy)),
            (vec![(VERSION, "2025-11-25")], &bare, Ok(Era::Legacy)),
            (vec![(VERSION, "2025-11-25"), (METHOD, "other")], &bare, Ok(Era::Legacy)),
            (vec![v, m, (NAME, "b")], &whole, Err(E::Mismatch("Mcp-Name"))),
            (
                vec![v, m, (NAME, "=?base64?Yg==?=")],
                &whole,
                Err(E::Mismatch("Mcp-Name")),
            ),
            (
                vec![v, m, (NAME, "=?base64?%%?=")],
                &whole,
                Err(E::Undecodable("Mcp-Name")),
            ),
            (vec![v, m], &whole, Err(E::Missing("Mcp-Name"))),
            (vec![v, (NAME, "a")], &whole, Err(E::Missing("Mcp-Method"))),
            (
                vec![v, (METHOD, "tools/list"), (NAME, "a")],
                &whole,
                Err(E::Mismatch("Mcp-Method")),
            ),
            (vec![m, (NAME, "a")], &whole, Err(E::Missing("MCP-Protocol-Version"))),
            (
                vec![(VERSION, "2025-11-25"), m, (NAME, "a")],
                &whole,
                Err(E::Mismatch("MCP-Protocol-Version")),
            ),
            (
                vec![v, m, (NAME, "a")],
                &other,
                Err(E::Mismatch("MCP-Protocol-Version")),
            ),
            (
                vec![v, m, (NAME, "a")],
                &bare,
                Err(E::MissingMeta("io.modelcontextprotocol/protocolVersion")),
            ),
            (
                vec![v, m, (NAME, "a")],
                &no_capabilities,
                Err(E::MissingMeta("io.modelcontextprotocol/clientCapabilities")),
            ),
            (vec![(VERSION, "latest")], &bare, Err(E::NoVersion)),
            (vec![(VERSION, "latest")], &whole, Err(E::NoVersion)),
            (
                vec![(VERSION, "v9"), m, (NAME, "a")],
                &none,
                Err(E::Unsupported { requested: "v9".into() }),
            ),
            (vec![v, (METHOD, "resources/subscribe")], &subscribe, Err(E::Removed)),
            (
                vec![v, (METHOD, "resources/unsubscribe")],
                &unsubscribe,
                Err(E::Removed),
            ),
            (vec![(VERSION, "2025-11-25")], &bare_subscribe, Ok(Era::Legacy)),
            (vec![v], r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, Err(E::Batch)),
            (
                vec![(VERSION, "2025-06-18")],
                r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#,
                Err(E::Batch),
            ),
            (
                vec![(VERSION, BATCHES)],
                r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#,
                Ok(Era::Legacy),
            ),
            (
                vec![v],
                r#"{"jsonrpc":"2.0","method":"notifications/x"}"#,
                Ok(Era::Modern),
            ),
            (
                vec![v],
                r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
                Err(E::Mismatch("MCP-Protocol-Version")),
            ),
        ];
        for (headers, body, expected) in table {
            assert_eq!(check(&headers, body), expected, "{headers:?} {body}");
        }
    }

    #[test]
    fn repeated_headers_are_found() {
        for (name, found) in [
            ("authorization", Some("Authorization")),
            ("host", Some("Host")),
            ("content-type", Some("Content-Type")),
            ("mcp-name", Some("Mcp-*")),
            ("dpop", Some("DPoP")),
            ("accept", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(name, HeaderValue::from_static("a"));
            assert_eq!(repeated(&headers), None);
            headers.append(name, HeaderValue::from_static("a"));
            assert_eq!(repeated(&headers), found, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_name_survives_its_encoding(name in ".{0,40}") {
            let encoded = format!("=?base64?{}?=", STANDARD.encode(&name));
            let value = HeaderValue::try_from(encoded).expect("ASCII");
            prop_assert_eq!(decode_value(&value).expect("our own"), name);
        }
    }
}
