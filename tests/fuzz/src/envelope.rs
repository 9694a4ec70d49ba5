//! The JSON-RPC envelope. Input: a body.
//!
//! Oracle: `serde_json`. What is accepted is JSON, and every field says what a full parse reads there; the few bodies that a
//! full parse can't hold (a number out of range, half a surrogate pair) only have to be JSON.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use portcullis::mcp::{Kind, Message, Payload, Reference, parse};
use serde_json::Value;
use serde_json::value::RawValue;

fn agrees(message: &Message, value: &Value) {
    let full = |raw: &[u8]| serde_json::from_slice::<Value>(raw).expect("a part of JSON is JSON");
    assert_eq!(value["jsonrpc"], "2.0");
    assert_eq!(&full(&message.raw), value);
    assert_eq!(message.id.as_ref().map(|id| full(&id.0)).as_ref(), value.get("id"));
    if message.kind == Kind::Response {
        assert!(value.get("method").is_none());
        assert!(value.get("result").is_some() != value.get("error").is_some());
        return;
    }
    assert_eq!(message.kind == Kind::Request, value.get("id").is_some());
    assert_eq!(value["method"], *message.method);
    let params = &value["params"];
    for (key, read) in [
        ("name", &message.name),
        ("uri", &message.uri),
        ("cursor", &message.cursor),
        ("taskId", &message.task_id),
    ] {
        assert_eq!(read.as_deref(), params[key].as_str(), "{key}");
    }
    assert_eq!(message.arguments.as_deref().map(full).as_ref(), params.get("arguments"));
    let version = &params["_meta"]["io.modelcontextprotocol/protocolVersion"];
    assert_eq!(message.meta.protocol_version.as_deref(), version.as_str());
    match &message.reference {
        Some(Reference::Prompt(name)) => assert_eq!(params["ref"]["name"], **name),
        Some(Reference::Resource(uri)) => assert_eq!(params["ref"]["uri"], **uri),
        None => {}
    }
    let listed = &params["notifications"]["resourceSubscriptions"];
    assert!(
        message
            .subscriptions
            .iter()
            .enumerate()
            .all(|(place, uri)| listed[place] == **uri)
    );
}

fuzz_target!(|body: &[u8]| {
    match parse(&Bytes::copy_from_slice(body)) {
        Err(error) => assert!([-32700, -32600].contains(&error.code())),
        Ok(payload) => {
            serde_json::from_slice::<&RawValue>(body).expect("only JSON is accepted");
            let Ok(value) = serde_json::from_slice::<Value>(body) else {
                return;
            };
            match &payload {
                Payload::Single(message) => agrees(message, &value),
                Payload::Batch(messages) => {
                    let members = value.as_array().expect("a batch is an array");
                    assert_eq!(messages.len(), members.len());
                    messages
                        .iter()
                        .zip(members)
                        .for_each(|(message, value)| agrees(message, value));
                }
            }
        }
    }
});
