//! What servers ask of clients in the middle of a call, for a client of the other era.
//!
//! 1. `elicitation/create`, `sampling/createMessage` and `roots/list` are carried, and nothing else: a modern server has
//!    nothing else to ask, and a legacy one's `ping` is the gate's to answer.
//! 2. `task` and `_meta` are taken out: nothing is asked as a task, and a modern input request has no `_meta`.
//! 3. The page of a URL elicitation has an `elicitationId` in the legacy era only; a modern server's gets a new one.
//! 4. A client is not asked what it has not declared.

use std::fmt::Write;

use aws_lc_rs::rand;
use bytes::Bytes;

use super::lacks;
use crate::bridge::message::RpcError;
use crate::mcp::codes;
use crate::mcp::object::{Object, quoted};

/// A legacy server's request, as the value that it has among a modern result's `inputRequests`.
///
/// # Errors
/// What the server is told when it can't be asked.
pub fn asked_to_modern(method: &str, params: &[u8]) -> Result<Bytes, RpcError> {
    let params = carried(method, params)?;
    Ok(format!(r#"{{"method":{},"params":{params}}}"#, quoted(method)).into())
}

/// A modern server's input request as method and `params` of a request to a legacy client, which has declared
/// `client_capabilities`, mapped or not.
///
/// # Errors
/// What the call that it was asked for comes to.
pub fn asked_to_legacy(method: &str, params: &[u8], client_capabilities: &[u8]) -> Result<(String, Bytes), RpcError> {
    let params = carried(method, params)?;
    if let Some(required) = lacks(client_capabilities, method, params.as_bytes()) {
        return Err(missing_capability(required));
    }
    let mut all = Object::parse_str(&params).expect("it was just written");
    if method == "elicitation/create" && all.text("mode").as_deref() == Some("url") {
        all.set("elicitationId", quoted(&elicitation_id()));
    }
    let params = all.write().into_owned();
    Ok((method.to_owned(), params.into()))
}

/// `MissingRequiredClientCapability` for what [`lacks`] has found.
pub fn missing_capability(required: Bytes) -> RpcError {
    let required = String::from_utf8_lossy(&required);
    RpcError {
        code: codes::MISSING_CAPABILITY,
        message: "the server asks for what the client has not declared".to_owned(),
        data: Some(format!(r#"{{"requiredCapabilities":{required}}}"#).into()),
    }
}

/// An elicitation's `params` as a modern client reads them.
pub(super) fn elicitation(mut params: Object<'_>) -> String {
    for name in ["task", "_meta", "elicitationId"] {
        params.take(name);
    }
    params.write().into_owned()
}

/// Rules 1 and 2.
fn carried(method: &str, params: &[u8]) -> Result<String, RpcError> {
    let invalid = |message: &str| RpcError::new(codes::INVALID_PARAMS, message);
    let read = || Object::parse(params).map_err(|_| invalid("params must be an object without repeated keys"));
    match method {
        "elicitation/create" => {
            let all = read()?;
            let known = match all.get("mode") {
                None => true,
                Some(_) => matches!(all.text("mode").as_deref(), Some("form" | "url")),
            };
            if !known {
                return Err(invalid("mode must be form or url"));
            }
            Ok(elicitation(all))
        }
        "sampling/createMessage" | "roots/list" => {
            let mut all = read()?;
            all.take("task");
            all.take("_meta");
            Ok(all.write().into_owned())
        }
        _ => Err(RpcError::new(
            codes::METHOD_NOT_FOUND,
            "the gate does not carry this request to the client",
        )),
    }
}

/// Rule 3: "unique within the context of the server", and nobody's to guess.
fn elicitation_id() -> String {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).expect("the system's random source works");
    bytes.iter().fold(String::with_capacity(32), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_legacy_servers_request_becomes_an_input_request() {
        for (method, params, expected) in [
            (
                "elicitation/create",
                r#"{"message":"m","requestedSchema":{"type":"object"},"task":{"ttl":1},"_meta":{"progressToken":1}}"#,
                r#"{"method":"elicitation/create","params":{"message":"m","requestedSchema":{"type":"object"}}}"#,
            ),
            (
                "elicitation/create",
                r#"{"mode":"url","elicitationId":"e","url":"https://x/","message":"m"}"#,
                r#"{"method":"elicitation/create","params":{"mode":"url","url":"https://x/","message":"m"}}"#,
            ),
            (
                "sampling/createMessage",
                r#"{"messages":[{"role":"user","content":{"type":"text","text":"x","n":1.0}}],"maxTokens":5}"#,
                r#"{"method":"sampling/createMessage","params":{"messages":[{"role":"user","content":{"type":"text","text":"x","n":1.0}}],"maxTokens":5}}"#,
            ),
            (
                "roots/list",
                r#"{"_meta":{}}"#,
                r#"{"method":"roots/list","params":{}}"#,
            ),
        ] {
            assert_eq!(asked_to_modern(method, params.as_bytes()).expect(method), expected);
        }
    }

    #[test]
    fn what_cannot_be_asked_is_refused() {
        for (method, params, code) in [
            ("elicitation/create", r#"{"mode":"voice"}"#, -32602),
            ("elicitation/create", r#"{"mode":null}"#, -32602),
            ("elicitation/create", r#"{"mode":"url","mode":"form"}"#, -32602),
            ("sampling/createMessage", "[]", -32602),
            ("tasks/get", r#"{"taskId":"t"}"#, -32601),
            ("ping", "{}", -32601),
            ("Roots/list", "{}", -32601),
        ] {
            let error = asked_to_modern(method, params.as_bytes()).expect_err(method);
            assert_eq!(error.code, code, "{method} {params}");
            let all = br#"{"elicitation":{"form":{},"url":{}},"sampling":{},"roots":{}}"#;
            assert_eq!(
                asked_to_legacy(method, params.as_bytes(), all).expect_err(method).code,
                code
            );
        }
    }

    #[test]
    fn a_legacy_client_is_asked_what_it_has_declared() {
        let page = br#"{"mode":"url","url":"https://x/","elicitationId":"the server's"}"#;
        let ask = |capabilities: &[u8]| asked_to_legacy("elicitation/create", page, capabilities);
        let lacking = ask(br#"{"elicitation":{}}"#).expect_err("no pages");
        assert_eq!(lacking.code, -32021);
        assert_eq!(
            lacking.data.as_deref(),
            Some(&br#"{"requiredCapabilities":{"elicitation":{"url":{}}}}"#[..])
        );
        let id = || {
            let (method, params) = ask(br#"{"elicitation":{"url":{}}}"#).expect("pages");
            assert_eq!(method, "elicitation/create");
            let params: serde_json::Value = serde_json::from_slice(&params).expect("JSON");
            assert_eq!(params["url"], "https://x/");
            params["elicitationId"].as_str().expect("an id").to_owned()
        };
        let (one, other) = (id(), id());
        assert_eq!(one.len(), 32);
        assert_ne!(one, other);
        let (_, form) =
            asked_to_legacy("elicitation/create", b"{\"message\":\"m\"}", br#"{"elicitation":{}}"#).expect("a form");
        assert_eq!(form, "{\"message\":\"m\"}");
    }
}
