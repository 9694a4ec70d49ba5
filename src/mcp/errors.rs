//! JSON-RPC error codes, and the messages that carry them.

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::message::Id;

/// Codes of JSON-RPC 2.0, of MCP, and the gateway's own: those stand outside JSON-RPC's reserved range, as MCP
/// 2026-07-28 "Error Codes" asks, and begin with the HTTP status they go with.
pub mod codes {
    /// JSON-RPC: not JSON.
    pub const PARSE_ERROR: i64 = -32_700;
    /// JSON-RPC: not a request.
    pub const INVALID_REQUEST: i64 = -32_600;
    /// JSON-RPC: not this method's parameters.
    pub const INVALID_PARAMS: i64 = -32_602;
    /// JSON-RPC: no such method.
    pub const METHOD_NOT_FOUND: i64 = -32_601;
    /// JSON-RPC: something broke.
    pub const INTERNAL_ERROR: i64 = -32_603;
    /// MCP up to 2025-11-25: no such resource.
    pub const RESOURCE_NOT_FOUND: i64 = -32_002;
    /// MCP 2025-11-25: the user must visit a page before the request is made again.
    pub const URL_ELICITATION_REQUIRED: i64 = -32_042;
    /// MCP `MissingRequiredClientCapability`.
    pub const MISSING_CAPABILITY: i64 = -32_021;
    /// MCP `UnsupportedProtocolVersion`.
    pub const UNSUPPORTED_VERSION: i64 = -32_022;
    /// MCP `HeaderMismatch`.
    pub const HEADER_MISMATCH: i64 = -32_020;
    /// A role or a rule refuses.
    pub const FORBIDDEN: i64 = 40_300;
    /// Scopes are all that is lacking.
    pub const INSUFFICIENT_SCOPE: i64 = 40_301;
    /// Over a rate or concurrency.
    pub const RATE_LIMITED: i64 = 42_900;
    /// The upstream answers nonsense.
    pub const BAD_GATEWAY: i64 = 50_200;
    /// The upstream refuses the gate's credential, or there is none to be had.
    pub const CREDENTIAL: i64 = 50_201;
    /// The user has not connected the upstream.
    pub const NOT_CONNECTED: i64 = 50_202;
    /// The upstream, or the issuer's keys, can't be reached.
    pub const UNAVAILABLE: i64 = 50_300;
    /// The upstream is too slow.
    pub const TIMEOUT: i64 = 50_400;
}

/// A JSON-RPC error response; an id that could not be read is left out (MCP 2026-07-28, "Error Responses").
pub fn error_response(id: Option<&Id>, code: i64, message: &str, data: Option<&Value>) -> Vec<u8> {
    let mut error = json!({"code": code, "message": message});
    if let Some(data) = data {
        error["data"] = data.clone();
    }
    envelope(id, "error", error)
}

/// A tool's result that says why it was not called: the in-band form of a refusal.
pub fn tool_error_result(id: &Id, message: &str, modern: bool) -> Vec<u8> {
    let mut result = json!({"content": [{"type": "text", "text": message}], "isError": true});
    if modern {
        result["resultType"] = Value::from("complete");
    }
    envelope(Some(id), "result", result)
}

/// A response with this result, raw JSON.
pub fn result_response(id: &Id, result: &str) -> Vec<u8> {
    envelope(Some(id), "result", result)
}

fn envelope(id: Option<&Id>, member: &str, value: impl std::fmt::Display) -> Vec<u8> {
    let id = id
        .and_then(|id| serde_json::from_slice::<&RawValue>(&id.0).ok())
        .map_or_else(String::new, |id| format!("\"id\":{},", id.get()));
    format!("{{\"jsonrpc\":\"2.0\",{id}\"{member}\":{value}}}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unread_id_is_left_out_and_a_read_one_kept_as_it_stood() {
        let text = |id: Option<&Id>| String::from_utf8(error_response(id, 40_300, "no", None)).expect("text");
        assert_eq!(text(None), r#"{"jsonrpc":"2.0","error":{"code":40300,"message":"no"}}"#);
        let id = Id(r#""a\u0062""#.into());
        assert!(text(Some(&id)).contains(r#""id":"a\u0062","#));
    }
}
