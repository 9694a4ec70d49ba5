//! What servers write: JSON-RPC messages as they come over a link, read strictly and cheaply.
//!
//! 1. A message is a request, a notification or an answer; anything else is an error, as is a repeated key: two readers
//!    would read two messages.
//! 2. Parameters, results and error data stay the server's own bytes.
//! 3. An array is a batch (2025-03-26), of at most 64 messages.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::mcp::Id;

/// Most messages of a batch.
const MAX_BATCH: usize = 64;

/// One message of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    Request {
        id: Id,
        method: Box<str>,
        /// Raw JSON object; `{}` when there were none.
        params: Bytes,
    },
    Notification {
        method: Box<str>,
        /// Raw JSON object; `{}` when there were none.
        params: Bytes,
    },
    Answer {
        /// `None`: an error to something that the server could not read.
        id: Option<Id>,
        outcome: Answered,
    },
}

/// What a request came to: the raw JSON of its `result`, or its error.
pub type Answered = Result<Bytes, RpcError>;

/// A JSON-RPC error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct RpcError {
    pub code: i64,
    pub message: String,
    /// Raw JSON.
    pub data: Option<Bytes>,
}

impl RpcError {
    /// An error of the gateway's own.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            data: None,
        }
    }
}

/// Why a server's message can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("a message of it is not JSON-RPC")]
    NotJsonRpc,
    #[error("a batch of it is empty or over 64 messages")]
    Batch,
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(default)]
    method: Option<String>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<WireError<'a>>,
}

#[derive(Deserialize)]
struct WireError<'a> {
    code: i64,
    #[serde(default)]
    message: String,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

impl Incoming {
    /// Reads what came as one body, event or line: one message, or a batch.
    ///
    /// # Errors
    /// When it isn't JSON-RPC.
    pub fn read(bytes: &Bytes) -> Result<Vec<Self>, MessageError> {
        let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
        if first != Some(&b'[') {
            return Ok(vec![Self::one(bytes)?]);
        }
        let members: Vec<&RawValue> = serde_json::from_slice(bytes).map_err(|_| MessageError::NotJsonRpc)?;
        if members.is_empty() || members.len() > MAX_BATCH {
            return Err(MessageError::Batch);
        }
        let members = members.into_iter().map(|member| slice(bytes, member));
        members.map(|member| Self::one(&member)).collect()
    }

    fn one(bytes: &Bytes) -> Result<Self, MessageError> {
        let wire: Wire<'_> = serde_json::from_slice(bytes).map_err(|_| MessageError::NotJsonRpc)?;
        let id = wire.id.map(|id| Id(slice(bytes, id)));
        let named = |id: &Id| matches!(id.0.first(), Some(b'"' | b'-' | b'0'..=b'9'));
        if !id.as_ref().is_none_or(named) {
            return Err(MessageError::NotJsonRpc);
        }
        match (wire.method, wire.result, wire.error) {
            (Some(method), None, None) => {
                let params = wire
                    .params
                    .map_or_else(|| Bytes::from_static(b"{}"), |params| slice(bytes, params));
                if params.first() != Some(&b'{') {
                    return Err(MessageError::NotJsonRpc);
                }
                let method = method.into();
                Ok(match id {
                    Some(id) => Self::Request { id, method, params },
                    None => Self::Notification { method, params },
                })
            }
            (None, Some(result), None) if id.is_some() && result.get().starts_with('{') => Ok(Self::Answer {
                id,
                outcome: Ok(slice(bytes, result)),
            }),
            (None, None, Some(error)) => Ok(Self::Answer {
                id,
                outcome: Err(RpcError {
                    code: error.code,
                    message: error.message,
                    data: error.data.map(|data| slice(bytes, data)),
                }),
            }),
            _ => Err(MessageError::NotJsonRpc),
        }
    }
}

/// The raw JSON of a request.
pub fn request(id: &Id, method: &str, params: &[u8]) -> Bytes {
    spell(Some(id), Some(method), &[("params", params)])
}

/// The raw JSON of a notification.
pub fn notification(method: &str, params: &[u8]) -> Bytes {
    spell(None, Some(method), &[("params", params)])
}

/// The raw JSON of an answer.
pub fn answer(id: &Id, outcome: &Answered) -> Bytes {
    match outcome {
        Ok(result) => spell(Some(id), None, &[("result", result)]),
        Err(error) => spell(Some(id), None, &[("error", &spell_error(error))]),
    }
}

fn spell_error(error: &RpcError) -> Bytes {
    let mut out = BytesMut::with_capacity(64 + error.message.len());
    out.put_slice(format!("{{\"code\":{},\"message\":", error.code).as_bytes());
    out.put_slice(&text(&error.message));
    if let Some(data) = &error.data {
        out.put_slice(b",\"data\":");
        out.put_slice(data);
    }
    out.put_u8(b'}');
    out.freeze()
}

fn spell(id: Option<&Id>, method: Option<&str>, members: &[(&str, &[u8])]) -> Bytes {
    let size: usize = members.iter().map(|(_, value)| value.len() + 16).sum();
    let mut out = BytesMut::with_capacity(64 + size);
    out.put_slice(b"{\"jsonrpc\":\"2.0\"");
    if let Some(id) = id {
        out.put_slice(b",\"id\":");
        out.put_slice(&id.0);
    }
    if let Some(method) = method {
        out.put_slice(b",\"method\":");
        out.put_slice(&text(method));
    }
    for (name, value) in members {
        out.put_slice(b",\"");
        out.put_slice(name.as_bytes());
        out.put_slice(b"\":");
        out.put_slice(value);
    }
    out.put_u8(b'}');
    out.freeze()
}

/// A text as JSON.
pub fn text(text: &str) -> Vec<u8> {
    serde_json::to_vec(text).expect("a string is JSON")
}

/// A part of a message as the bytes it stands in.
pub fn slice(bytes: &Bytes, part: &RawValue) -> Bytes {
    bytes.slice_ref(part.get().as_bytes())
}

/// Where under these keys a value stands in a JSON object, if it does: its place in the bytes.
///
/// The last of a repeated key is found, as most readers do; [`replaced`] then changes what they read.
fn place(object: &[u8], path: &[&str]) -> Option<std::ops::Range<usize>> {
    let (first, rest) = path.split_first()?;
    let members: std::collections::HashMap<String, &RawValue> = serde_json::from_slice(object).ok()?;
    let value = members.get(*first)?.get();
    let begin = value.as_ptr() as usize - object.as_ptr() as usize;
    let range = begin..begin + value.len();
    if rest.is_empty() {
        return Some(range);
    }
    let inner = place(value.as_bytes(), rest)?;
    Some(begin + inner.start..begin + inner.end)
}

/// The raw JSON under these keys of an object.
pub fn at(object: &Bytes, path: &[&str]) -> Option<Bytes> {
    place(object, path).map(|range| object.slice(range))
}

/// The object with another value where one stands under these keys, every other byte as it was.
pub fn replaced(object: &Bytes, path: &[&str], value: &[u8]) -> Bytes {
    let Some(range) = place(object, path) else {
        return object.clone();
    };
    let mut out = BytesMut::with_capacity(object.len() + value.len());
    out.put_slice(&object[..range.start]);
    out.put_slice(value);
    out.put_slice(&object[range.end..]);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &'static str) -> Result<Vec<Incoming>, MessageError> {
        Incoming::read(&Bytes::from_static(text.as_bytes()))
    }

    fn id(text: &'static str) -> Id {
        Id(text.into())
    }

    #[test]
    fn messages_are_told_apart() {
        assert_eq!(
            read(r#"{"jsonrpc":"2.0","id":"a","method":"ping"}"#),
            Ok(vec![Incoming::Request {
                id: id("\"a\""),
                method: "ping".into(),
                params: "{}".into()
            }])
        );
        assert_eq!(
            read(r#"{"jsonrpc":"2.0","method":"n","params":{"a": 1.0}}"#),
            Ok(vec![Incoming::Notification {
                method: "n".into(),
                params: r#"{"a": 1.0}"#.into()
            }])
        );
        assert_eq!(
            read(r#" [{"id":1,"result":{ }},{"id":2,"error":{"code":-1,"message":"no","data":[0]}}]"#),
            Ok(vec![
                Incoming::Answer {
                    id: Some(id("1")),
                    outcome: Ok("{ }".into())
                },
                Incoming::Answer {
                    id: Some(id("2")),
                    outcome: Err(RpcError {
                        code: -1,
                        message: "no".into(),
                        data: Some("[0]".into())
                    })
                },
            ])
        );
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for text in [
            "",
            "hello",
            "{}",
            "1",
            r#"{"id":1}"#,
            r#"{"id":{},"method":"a"}"#,
            r#"{"id":true,"result":{}}"#,
            r#"{"id":1,"result":1}"#,
            r#"{"result":{}}"#,
            r#"{"id":1,"result":{},"error":{"code":1,"message":""}}"#,
            r#"{"id":1,"method":"a","result":{}}"#,
            r#"{"id":1,"id":2,"result":{}}"#,
            r#"{"method":"a","method":"b"}"#,
            r#"{"method":"a","params":[]}"#,
            r#"{"id":1,"error":"no"}"#,
            r#"[1]"#,
        ] {
            assert_eq!(read(text), Err(MessageError::NotJsonRpc), "{text}");
        }
        assert_eq!(read("[]"), Err(MessageError::Batch));
        let many = format!("[{}]", vec![r#"{"method":"a"}"#; 65].join(","));
        assert_eq!(Incoming::read(&many.into()), Err(MessageError::Batch));
    }

    #[test]
    fn values_are_replaced_in_place() {
        let object = Bytes::from_static(br#"{ "a":{"token" : "x", "b":1e3},"token":2}"#);
        assert_eq!(at(&object, &["a", "token"]).as_deref(), Some(&b"\"x\""[..]));
        assert_eq!(
            &replaced(&object, &["a", "token"], b"77")[..],
            br#"{ "a":{"token" : 77, "b":1e3},"token":2}"#
        );
        assert_eq!(replaced(&object, &["a", "c"], b"77"), object);
        assert_eq!(at(&object, &["token", "a"]), None);
    }

    #[test]
    fn what_is_written_can_be_read() {
        let asked = request(&id("7"), "a\"b", b"{}");
        assert!(matches!(&Incoming::read(&asked).expect("a message")[0],
            Incoming::Request { method, .. } if &**method == "a\"b"));
        let error = RpcError {
            code: -32_602,
            message: "line\nbreak".to_owned(),
            data: Some("{}".into()),
        };
        let answered = answer(&id("7"), &Err(error.clone()));
        assert_eq!(
            Incoming::read(&answered),
            Ok(vec![Incoming::Answer {
                id: Some(id("7")),
                outcome: Err(error)
            }])
        );
    }
}
