//! `Mcp-*` headers, `=?base64?…?=` included. Input: `MCP-Protocol-Version`, `Mcp-Method` and `Mcp-Name`, a line each and none
//! when it is empty, then the body.
//!
//! Oracle: a modern request that is agreed to has headers that say, decoded by a second reader, what its body says; a decoded
//! sentinel encodes to itself, so that no name has two spellings; and every name survives its encoding.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use portcullis::mcp::{Era, Kind, Payload, agree, decode_value, parse};

fuzz_target!(|input: &[u8]| {
    let parts: Vec<&[u8]> = input.splitn(4, |byte| *byte == b'\n').collect();
    let [version, method, name, body] = *parts else {
        return;
    };
    let mut headers = HeaderMap::new();
    for (key, value) in [
        ("mcp-protocol-version", version),
        ("mcp-method", method),
        ("mcp-name", name),
    ] {
        match HeaderValue::from_bytes(value) {
            Ok(_) if value.is_empty() => {}
            Ok(value) => drop(headers.insert(HeaderName::from_static(key), value)),
            Err(_) => return,
        }
    }
    if let Some(Ok(decoded)) = headers.get("mcp-name").map(decode_value) {
        let encoded = format!("=?base64?{}?=", STANDARD.encode(&decoded));
        assert!(name == decoded.as_bytes() || name == encoded.as_bytes());
        let value = HeaderValue::try_from(encoded).expect("ASCII");
        assert_eq!(decode_value(&value), Ok(decoded));
    }
    let Ok(payload) = parse(&Bytes::copy_from_slice(body)) else {
        return;
    };
    let agreed = agree(&headers, &payload);
    if let Payload::Batch(_) = &payload {
        assert!(agreed != Ok(Era::Modern));
        return;
    }
    let message = &payload.messages()[0];
    if agreed == Ok(Era::Modern) && message.kind == Kind::Request {
        assert_eq!(method, message.method.as_bytes());
        assert_eq!(
            message.meta.protocol_version.as_deref().map(str::as_bytes),
            Some(version)
        );
        let said = headers
            .get("mcp-name")
            .map(|value| decode_value(value).expect("it was agreed to"));
        match &*message.method {
            "tools/call" | "prompts/get" => assert_eq!(said.as_deref(), message.name.as_deref()),
            "resources/read" => assert_eq!(said.as_deref(), message.uri.as_deref()),
            _ => {}
        }
    }
    if agreed == Ok(Era::Legacy) {
        assert!(message.meta.protocol_version.is_none() && version < b"2026-07-28".as_slice());
    }
});
