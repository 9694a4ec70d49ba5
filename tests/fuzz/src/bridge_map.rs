//! Mapping between eras. Input: a line with a method, then parameters or a result in JSON.
//!
//! Oracle, with `serde_json` as the reader: whatever is mapped is an object that repeats no key; a mapped request is one to
//! the envelope's reader, if it was before; a modern result says `complete`, and a legacy one nothing of it; to the modern era
//! and back leaves every member that is not the protocol's as it was; and mapping again changes nothing.
#![no_main]

use std::fmt;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use portcullis::bridge::map::{
    ClientFacts, LogLevel, ToLegacyResult, annotated_tools, asked_to_legacy, asked_to_modern,
    client_capabilities_to_legacy, client_notification, encode_header_value, error_to_modern, mcp_param_values,
    notification_to_modern, param_headers, request_to_legacy, request_to_modern, result_to_legacy, result_to_modern,
};
use portcullis::bridge::message::RpcError;
use portcullis::bridge::peer::Facts;
use portcullis::mcp::parse;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

const OWN: [&str; 10] = [
    "_meta",
    "task",
    "inputResponses",
    "requestState",
    "resultType",
    "inputRequests",
    "ttlMs",
    "cacheScope",
    "tools",
    "structuredContent",
];

/// An object, in which no key stands twice, nor in its `_meta`.
fn read(raw: &[u8]) -> Map<String, Value> {
    let read: Map<String, Value> = serde_json::from_slice(raw).expect("an object");
    let Keys(members) = serde_json::from_slice(raw).expect("an object");
    assert_eq!(members.len(), read.len());
    for (_, meta) in members
        .iter()
        .filter(|(key, meta)| key == "_meta" && meta.get().starts_with('{'))
    {
        let Keys(keys) = serde_json::from_str(meta.get()).expect("an object");
        assert_eq!(keys.len(), read["_meta"].as_object().expect("an object").len());
    }
    read
}

/// Every member, those whose key stands twice as well.
struct Keys(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut all = Vec::new();
                while let Some(member) = map.next_entry()? {
                    all.push(member);
                }
                Ok(Keys(all))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

/// The members that are nobody's but the two sides'.
fn rest(object: &Map<String, Value>) -> Map<String, Value> {
    let mut rest = object.clone();
    let folded = |key: &str| key.replace('\u{17f}', "s").replace('\u{212a}', "k");
    rest.retain(|key, _| !OWN.iter().any(|own| own.eq_ignore_ascii_case(&folded(key))));
    rest
}

fn is_request(params: &[u8]) -> bool {
    let params = String::from_utf8_lossy(params);
    parse(&format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"x\",\"params\":{params}}}").into()).is_ok()
}

fn requests(method: &str, raw: &Bytes) {
    let client = ClientFacts {
        info: Some(Bytes::from_static(b"{\"name\":\"c\",\"version\":\"1\"}")),
        capabilities: client_capabilities_to_legacy(raw),
        log_level: Some(LogLevel::Notice),
    };
    if let Ok(modern) = request_to_modern(method, raw, &client, None) {
        let before: Map<String, Value> = serde_json::from_slice(raw).expect("an object");
        assert_eq!(rest(&read(&modern)), rest(&before));
        assert!(!is_request(raw) || is_request(&modern));
        let back = request_to_legacy(method, &modern).expect("what the gate made");
        assert_eq!(back.client_info, client.info);
        assert_eq!(back.log_level, client.log_level);
        assert_eq!(read(&back.client_capabilities), read(&client.capabilities));
    }
    if let Ok(legacy) = request_to_legacy(method, raw) {
        assert!(!is_request(raw) || is_request(&legacy.params));
        read(&legacy.params);
        let again = request_to_legacy(method, &legacy.params).expect("mapped already");
        assert_eq!(again.params, legacy.params);
    }
}

fn results(method: &str, raw: &Bytes) {
    let facts = Facts {
        version: "2025-06-18".into(),
        capabilities: raw.clone(),
        server_info: Some(raw.clone()),
        instructions: None,
    };
    if let Ok(modern) = result_to_modern(method, raw, &facts) {
        let before: Map<String, Value> = serde_json::from_slice(raw).expect("an object");
        let after = read(&modern);
        assert_eq!(after["resultType"], "complete");
        assert_eq!(rest(&after), rest(&before));
    }
    match result_to_legacy(method, raw) {
        Ok(ToLegacyResult::Complete(legacy)) => {
            let after = read(&legacy);
            assert!(!after.contains_key("resultType"));
            let before: Map<String, Value> = serde_json::from_slice(raw).expect("an object");
            assert_eq!(rest(&after), rest(&before));
            let again = result_to_legacy(method, &legacy);
            assert_eq!(again, Ok(ToLegacyResult::Complete(legacy)));
        }
        Ok(ToLegacyResult::InputRequired { requests, state }) => {
            assert!(state.is_some() || !requests.is_empty());
            for request in requests {
                let _ = asked_to_legacy(&request.method, &request.params, raw);
            }
        }
        Err(_) => {}
    }
    for (_, headers) in annotated_tools(raw) {
        for (header, value) in mcp_param_values(raw, &headers) {
            http::HeaderName::try_from(header).expect("a header's name");
            http::HeaderValue::try_from(value).expect("a header's value");
        }
    }
    let _ = param_headers(raw);
}

fuzz_target!(|input: &str| {
    let Some((method, json)) = input.split_once('\n') else {
        return;
    };
    http::HeaderValue::try_from(encode_header_value(method)).expect("a header's value");
    // Numbers beyond a double and nesting beyond 128 stay unread on their way; the oracle's reader would read them.
    if serde_json::from_str::<&RawValue>(json).is_ok() && serde_json::from_str::<Value>(json).is_err() {
        return;
    }
    let raw = Bytes::copy_from_slice(json.as_bytes());
    requests(method, &raw);
    results(method, &raw);
    if let Ok(asked) = asked_to_modern(method, &raw) {
        let asked = read(&asked);
        assert_eq!(asked["method"], method);
    }
    for carry in [notification_to_modern, client_notification] {
        if let Some(params) = carry(method, &raw) {
            let before: Map<String, Value> = serde_json::from_slice(&raw).expect("an object");
            let after = read(&params);
            assert_eq!(rest(&after), rest(&before));
        }
    }
    let error = RpcError {
        code: -32_042,
        message: String::new(),
        data: Some(raw),
    };
    let _ = error_to_modern(method, &error);
});
