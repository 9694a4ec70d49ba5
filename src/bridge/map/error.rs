//! JSON-RPC errors of servers, for a client of the other era.
//!
//! 1. To a modern client no code goes that its revision reserves: -32002 and -32042 are retired, and what a legacy server
//!    means by -32020 to -32099 is its own, while a client would take -32022 for a reason to change revisions
//!    (MCP 2026-07-28, "Error Codes").
//! 2. A resource that isn't there is -32002 in one era and -32602 in the other. The latter says so only when it names the
//!    resource in its data; otherwise the parameters were wrong, which is -32602 in both.
//! 3. -32042 names pages that the user must visit first: an interim result in all but its form.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::is_multi_round_trip;
use crate::bridge::message::RpcError;
use crate::mcp::codes;
use crate::mcp::object::Object;

/// Pages that one error may name.
const MAX_ELICITATIONS: usize = 64;

/// A legacy server's error as a modern client may have it.
#[derive(Clone, Debug, PartialEq)]
pub enum ToModernError {
    Error(RpcError),
    /// The `params` of an `elicitation/create` each, raw JSON objects, already mapped; at least one. The request is made anew
    /// when they are answered.
    UrlElicitations(Vec<Bytes>),
}

/// A legacy server's error for a modern client.
pub fn error_to_modern(method: &str, error: &RpcError) -> ToModernError {
    if error.code == codes::URL_ELICITATION_REQUIRED
        && is_multi_round_trip(method)
        && let Some(elicitations) = elicitations(error)
    {
        return ToModernError::UrlElicitations(elicitations);
    }
    let code = match error.code {
        codes::RESOURCE_NOT_FOUND if method.starts_with("resources/") => codes::INVALID_PARAMS,
        codes::RESOURCE_NOT_FOUND | -32_099..=-32_020 => codes::INTERNAL_ERROR,
        code => code,
    };
    ToModernError::Error(RpcError { code, ..error.clone() })
}

/// A modern server's error for a legacy client; `uri` is that of the resource that was asked for.
pub fn error_to_legacy(method: &str, uri: Option<&str>, error: &RpcError) -> RpcError {
    let names = |uri: &str| {
        let data = Object::parse(error.data.as_deref()?).ok()?;
        (data.text("uri")? == uri).then_some(())
    };
    let missing = method == "resources/read" && error.code == codes::INVALID_PARAMS;
    let code = if missing && uri.and_then(names).is_some() {
        codes::RESOURCE_NOT_FOUND
    } else {
        error.code
    };
    RpcError { code, ..error.clone() }
}

/// Rule 3; `None` when what it names can't be read, or is no page.
fn elicitations(error: &RpcError) -> Option<Vec<Bytes>> {
    let data = Object::parse(error.data.as_deref()?).ok()?;
    let all: Vec<&RawValue> = serde_json::from_str(data.get("elicitations")?).ok()?;
    if all.is_empty() || all.len() > MAX_ELICITATIONS {
        return None;
    }
    all.into_iter()
        .map(|params| {
            let params = Object::parse_str(params.get()).ok()?;
            let is_page = params.text("mode").as_deref() == Some("url") && params.text("url").is_some();
            is_page.then(|| super::asked::elicitation(params).into())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: i64, data: Option<&'static str>) -> RpcError {
        RpcError {
            code,
            message: "m".into(),
            data: data.map(Bytes::from),
        }
    }

    #[test]
    fn no_reserved_code_reaches_a_modern_client() {
        for (method, from, to) in [
            ("resources/read", -32002, -32602),
            ("tools/call", -32002, -32603),
            ("tools/call", -32020, -32603),
            ("tools/call", -32022, -32603),
            ("tools/call", -32099, -32603),
            ("tools/call", -32042, -32603),
            ("tools/list", -32042, -32603),
            ("tools/call", -32001, -32001),
            ("tools/call", -32019, -32019),
            ("tools/call", -32100, -32100),
            ("tools/call", -32602, -32602),
            ("tools/call", 7, 7),
        ] {
            let expected = ToModernError::Error(error(to, Some("[1.0]")));
            assert_eq!(
                error_to_modern(method, &error(from, Some("[1.0]"))),
                expected,
                "{method} {from}"
            );
        }
    }

    #[test]
    fn pages_to_visit_are_asked_for() {
        let data = r#"{"elicitations":[{"mode":"url","elicitationId":"e","url":"https://x/","message":"m"}]}"#;
        assert_eq!(
            error_to_modern("tools/call", &error(-32042, Some(data))),
            ToModernError::UrlElicitations(vec![r#"{"mode":"url","url":"https://x/","message":"m"}"#.into()])
        );
        for data in [
            r#"{"elicitations":[]}"#,
            r#"{"elicitations":[{"mode":"form","url":"https://x/"}]}"#,
            r#"{"elicitations":[{"mode":"url"}]}"#,
            r#"{"elicitations":[{"mode":"url","url":"a","url":"b"}]}"#,
            r#"{"elicitations":{}}"#,
            "{}",
            "[]",
        ] {
            let expected = ToModernError::Error(error(-32603, Some(data)));
            assert_eq!(
                error_to_modern("tools/call", &error(-32042, Some(data))),
                expected,
                "{data}"
            );
        }
    }

    #[test]
    fn a_resource_that_is_not_there_has_each_eras_code() {
        let named = Some(r#"{"uri":"a:\/x"}"#);
        for (method, uri, code, data, expected) in [
            ("resources/read", Some("a:/x"), -32602, named, -32002),
            ("resources/read", Some("a:/y"), -32602, named, -32602),
            ("resources/read", Some("a:/x"), -32602, None, -32602),
            ("resources/read", Some("a:/x"), -32602, Some("7"), -32602),
            ("resources/read", None, -32602, named, -32602),
            ("tools/call", Some("a:/x"), -32602, named, -32602),
            ("resources/read", Some("a:/x"), -32603, named, -32603),
        ] {
            let found = error_to_legacy(method, uri, &error(code, data));
            assert_eq!(found, error(expected, data), "{method} {uri:?} {data:?}");
        }
    }
}
