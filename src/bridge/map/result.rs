//! What servers answer, for a client of the other era.
//!
//! 1. A legacy server knows complete results only. Whatever it says of `resultType`, or of the members of an interim result,
//!    is taken out; a client must not be made to answer a `requestState` that the gate has not sealed.
//! 2. What a legacy server says of its freshness is nobody's promise: where a modern result must say (MCP 2026-07-28,
//!    "Caching"), the gate says `ttlMs: 0` and `cacheScope: "private"`.
//! 3. An interim result is no legacy result: it comes out as what the server asks. Only three methods may have one, and any
//!    other `resultType` is an error, as it is to a client that does not know it.
//! 4. Tools that can only be called as tasks are not listed to modern clients; a call of one is the server's to refuse.
//! 5. Tools whose `x-mcp-header` annotations are invalid are not listed to legacy clients: the gate calls them, and a client
//!    must reject these (MCP 2026-07-28, "Schema Extension").
//! 6. A legacy `outputSchema` describes an object, and a legacy `structuredContent` is one. What isn't is taken out, since
//!    legacy clients reject the whole answer for it; `content` says the same.

use bytes::Bytes;
use memchr::memmem;
use serde_json::value::RawValue;

use super::capability::server_info;
use super::{MapError, SERVER_INFO, is_multi_round_trip, param_headers};
use crate::bridge::peer::Facts;
use crate::mcp::is_list;
use crate::mcp::object::Object;

/// Longer than any name and version. What is over it is told by `server/discover` alone: a server with pictures in its name
/// would have them sent with every answer.
const MAX_SERVER_INFO: usize = 4 * 1024;
/// Requests that one interim result may hold.
const MAX_REQUESTS: usize = 64;

/// A modern server's result as a legacy client may have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToLegacyResult {
    /// The result, a raw JSON object.
    Complete(Bytes),
    /// The client must be asked first, and the request made again with what it answers. One of the two is there.
    InputRequired {
        requests: Vec<InputRequest>,
        state: Option<String>,
    },
}

/// One request of an interim result; not yet [mapped](super::asked_to_legacy).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputRequest {
    /// What the answer goes by.
    pub key: String,
    pub method: String,
    /// A raw JSON object.
    pub params: Bytes,
}

/// A legacy server's result for a modern client.
///
/// # Errors
/// [`MapError::Nonsense`] when it is no object, or repeats a key.
pub fn result_to_modern(method: &str, result: &Bytes, facts: &Facts) -> Result<Bytes, MapError> {
    let mut all = read(result)?;
    all.take("resultType");
    if is_multi_round_trip(method) {
        all.take("inputRequests");
        all.take("requestState");
    }
    all.set("resultType", "\"complete\"");
    if is_cacheable(method) {
        all.take("ttlMs");
        all.take("cacheScope");
        all.set("ttlMs", "0");
        all.set("cacheScope", "\"private\"");
    }
    if let Some(info) = server_info(facts).filter(|info| info.len() <= MAX_SERVER_INFO) {
        let mut meta = meta(&all)?.unwrap_or_else(Object::empty);
        meta.take(SERVER_INFO);
        meta.set(SERVER_INFO, info);
        all.set("_meta", meta.write());
    }
    if method == "tools/list" && contains(result, "taskSupport") {
        keep_tools(&mut all, |tool| (!needs_task(tool)).then(|| tool.write().into_owned()))?;
    }
    Ok(all.into_bytes(result))
}

/// A modern server's result for a legacy client.
///
/// # Errors
/// [`MapError::Nonsense`] by rule 3, and when what the gate has to read can't be read.
pub fn result_to_legacy(method: &str, result: &Bytes) -> Result<ToLegacyResult, MapError> {
    let mut all = read(result)?;
    let kind = all.text("resultType");
    match (all.take("resultType"), kind.as_deref()) {
        (None, _) | (_, Some("complete")) => {}
        (_, Some("input_required")) if is_multi_round_trip(method) => return input_required(result, &all),
        _ => return Err(MapError::Nonsense("its result is of a type that was not asked for")),
    }
    if is_cacheable(method) {
        all.take("ttlMs");
        all.take("cacheScope");
    }
    if let Some(mut meta) = meta(&all)?
        && meta.take(SERVER_INFO).is_some()
    {
        if meta.is_empty() {
            all.retain(|name| name != "_meta");
        } else {
            all.set("_meta", meta.write());
        }
    }
    if method == "tools/call"
        && all
            .get("structuredContent")
            .is_some_and(|content| !content.starts_with('{'))
    {
        all.retain(|name| name != "structuredContent");
    }
    if method == "tools/list" && (contains(result, "outputSchema") || contains(result, "x-mcp-header")) {
        keep_tools(&mut all, |tool| {
            param_headers(tool.write().as_bytes()).ok()?;
            if !describes_object(tool) {
                tool.retain(|name| name != "outputSchema");
            }
            Some(tool.write().into_owned())
        })?;
    }
    Ok(ToLegacyResult::Complete(all.into_bytes(result)))
}

/// Rule 2.
fn is_cacheable(method: &str) -> bool {
    is_list(method) || matches!(method, "resources/read" | "server/discover")
}

fn input_required(whole: &Bytes, result: &Object<'_>) -> Result<ToLegacyResult, MapError> {
    let broken = |_| MapError::Nonsense("its inputRequests can't be read");
    let mut requests = Vec::new();
    if let Some(all) = result.object("inputRequests").map_err(broken)? {
        for key in all.names() {
            let value = all.get(key).expect("a key has its value");
            let request = Object::parse_str(value).map_err(broken)?;
            let method = request
                .text("method")
                .ok_or(MapError::Nonsense("one of its inputRequests has no method"))?;
            let params = request.get("params").unwrap_or("{}");
            Object::parse_str(params).map_err(broken)?;
            requests.push(InputRequest {
                key: key.to_owned(),
                method: method.into_owned(),
                params: request.get("params").map_or_else(
                    || Bytes::from_static(b"{}"),
                    |params| whole.slice_ref(params.as_bytes()),
                ),
            });
        }
    }
    if requests.len() > MAX_REQUESTS {
        return Err(MapError::Nonsense("it asks for over 64 inputs at once"));
    }
    let state = match result.get("requestState") {
        None => None,
        Some(_) => Some(
            result
                .text("requestState")
                .ok_or(MapError::Nonsense("its requestState is no text"))?
                .into_owned(),
        ),
    };
    if requests.is_empty() && state.is_none() {
        return Err(MapError::Nonsense("it asks for input without saying which"));
    }
    Ok(ToLegacyResult::InputRequired { requests, state })
}

/// Replaces the tools by what becomes of each, `None` leaving it out. What is no object is left for who filters the list.
fn keep_tools(
    result: &mut Object<'_>,
    mut mapped: impl FnMut(&mut Object<'_>) -> Option<String>,
) -> Result<(), MapError> {
    let Some(list) = result.get("tools") else { return Ok(()) };
    let tools: Vec<&RawValue> = serde_json::from_str(list).map_err(|_| MapError::Nonsense("its tools are no list"))?;
    let mut out = String::with_capacity(list.len());
    out.push('[');
    for tool in tools {
        let text = match Object::parse_str(tool.get()) {
            Ok(mut tool) => mapped(&mut tool),
            Err(_) => Some(tool.get().to_owned()),
        };
        if let Some(text) = text {
            if out.len() > 1 {
                out.push(',');
            }
            out.push_str(&text);
        }
    }
    out.push(']');
    result.set("tools", out);
    Ok(())
}

/// Rule 4.
fn needs_task(tool: &Object<'_>) -> bool {
    let execution = tool.object("execution").ok().flatten();
    execution.is_some_and(|execution| execution.text("taskSupport").as_deref() == Some("required"))
}

/// Rule 6, for a tool.
fn describes_object(tool: &Object<'_>) -> bool {
    let Ok(schema) = tool.object("outputSchema") else {
        return false;
    };
    schema.is_none_or(|schema| schema.text("type").as_deref() == Some("object"))
}

/// Whether a word is in there at all: most lists need not be looked at tool by tool. Whoever hides it behind escapes gets
/// the list as it is, and what that leads to.
fn contains(text: &[u8], word: &str) -> bool {
    memmem::find(text, word.as_bytes()).is_some()
}

fn read(result: &[u8]) -> Result<Object<'_>, MapError> {
    Object::parse(result).map_err(|_| MapError::Nonsense("its result is no object, or repeats a key"))
}

/// `_meta`, which some servers give as null when there is none.
fn meta<'a>(result: &Object<'a>) -> Result<Option<Object<'a>>, MapError> {
    if result.get("_meta") == Some("null") {
        return Ok(None);
    }
    result
        .object("_meta")
        .map_err(|_| MapError::Nonsense("its _meta is no object, or repeats a key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            version: "2025-06-18".into(),
            capabilities: "{}".into(),
            server_info: Some(r#"{"name":"s"}"#.into()),
            instructions: None,
        }
    }

    const META: &str = r#""_meta":{"io.modelcontextprotocol/serverInfo":{"name":"s"}}"#;

    fn to_modern(method: &str, result: &'static str) -> Bytes {
        result_to_modern(method, &Bytes::from_static(result.as_bytes()), &facts()).expect(result)
    }

    fn to_legacy(method: &str, result: &'static str) -> Result<ToLegacyResult, MapError> {
        result_to_legacy(method, &Bytes::from_static(result.as_bytes()))
    }

    fn complete(method: &str, result: &'static str) -> Bytes {
        match to_legacy(method, result) {
            Ok(ToLegacyResult::Complete(result)) => result,
            other => panic!("{result}: {other:?}"),
        }
    }

    #[test]
    fn a_legacy_result_is_complete_and_nobody_elses_to_keep() {
        assert_eq!(
            to_modern("tools/call", r#"{"content":[ {"n":1.0} ], "isError":false}"#),
            format!(r#"{{"content":[ {{"n":1.0}} ],"isError":false,"resultType":"complete",{META}}}"#)
        );
        assert_eq!(
            to_modern("resources/read", r#"{"contents":[],"ttlMs":9,"cacheScope":"public"}"#),
            format!(r#"{{"contents":[],"resultType":"complete","ttlMs":0,"cacheScope":"private",{META}}}"#)
        );
        // The gate sealed none of this, and the client must not bring it back.
        assert_eq!(
            to_modern(
                "tools/call",
                r#"{"resultType":"input_required","inputRequests":{},"requestState":"s","RequestState":"t","content":[]}"#
            ),
            format!(r#"{{"content":[],"resultType":"complete",{META}}}"#)
        );
        assert_eq!(
            to_modern("completion/complete", r#"{"_meta":{"x":1.0},"completion":{}}"#),
            r#"{"_meta":{"x":1.0,"io.modelcontextprotocol/serverInfo":{"name":"s"}},"completion":{},"resultType":"complete"}"#
        );
        assert_eq!(
            to_modern("completion/complete", r#"{"_meta":null}"#),
            format!(r#"{{{META},"resultType":"complete"}}"#)
        );
    }

    #[test]
    fn a_server_with_a_long_name_does_not_send_it_with_every_answer() {
        let facts = Facts {
            server_info: Some(format!(r#"{{"name":"{}"}}"#, "n".repeat(MAX_SERVER_INFO)).into()),
            ..facts()
        };
        let result = result_to_modern("tools/call", &Bytes::from_static(b"{}"), &facts).expect("an object");
        assert_eq!(result, r#"{"resultType":"complete"}"#);
    }

    #[test]
    fn tools_that_only_run_as_tasks_are_not_listed_to_modern_clients() {
        assert_eq!(
            to_modern(
                "tools/list",
                r#"{"tools":[{"name":"a","execution":{"taskSupport":"optional"}},{"name":"b","execution":{"taskSupport":"required"}},7],"nextCursor":"c"}"#
            ),
            format!(
                r#"{{"tools":[{{"name":"a","execution":{{"taskSupport":"optional"}}}},7],"nextCursor":"c","resultType":"complete","ttlMs":0,"cacheScope":"private",{META}}}"#
            )
        );
    }

    #[test]
    fn a_modern_result_loses_what_legacy_clients_do_not_know() {
        for (method, result, expected) in [
            (
                "tools/list",
                r#"{"resultType":"complete","tools":[],"ttlMs":5,"cacheScope":"public","_meta":{"io.modelcontextprotocol/serverInfo":{},"x":1.0}}"#,
                r#"{"tools":[],"_meta":{"x":1.0}}"#,
            ),
            (
                "tools/call",
                r#"{"resultType":"complete","content":[],"ttlMs":5,"_meta":{"io.modelcontextprotocol/serverInfo":{}}}"#,
                r#"{"content":[],"ttlMs":5}"#,
            ),
            (
                "tools/call",
                r#"{"structuredContent":[1],"content":[]}"#,
                r#"{"content":[]}"#,
            ),
            (
                "tools/call",
                r#"{"structuredContent":{"a":1.0},"content":[]}"#,
                r#"{"structuredContent":{"a":1.0},"content":[]}"#,
            ),
            (
                "tools/list",
                r#"{"tools":[{"name":"a","outputSchema":{"type":"array"}},{"name":"b","outputSchema":{"type":"object"}},{"name":"c","outputSchema":true},{"name":"d"}]}"#,
                r#"{"tools":[{"name":"a"},{"name":"b","outputSchema":{"type":"object"}},{"name":"c"},{"name":"d"}]}"#,
            ),
            (
                "tools/list",
                r#"{"tools":[{"name":"a","inputSchema":{"properties":{"x":{"type":"string","x-mcp-header":""}}}},{"name":"b"}]}"#,
                r#"{"tools":[{"name":"b"}]}"#,
            ),
        ] {
            assert_eq!(complete(method, result), expected, "{result}");
        }
    }

    #[test]
    fn an_interim_result_is_what_the_server_asks() {
        let result = r#"{"resultType":"input_required","inputRequests":{"k\"":{"method":"elicitation/create","params":{"n":1.0}},"r":{"method":"roots/list"}},"requestState":"s\u0031"}"#;
        let request = |key: &str, method: &str, params: &'static str| InputRequest {
            key: key.into(),
            method: method.into(),
            params: params.into(),
        };
        let asked = ToLegacyResult::InputRequired {
            requests: vec![
                request("k\"", "elicitation/create", r#"{"n":1.0}"#),
                request("r", "roots/list", "{}"),
            ],
            state: Some("s1".into()),
        };
        assert_eq!(to_legacy("tools/call", result), Ok(asked.clone()));
        assert_eq!(to_legacy("prompts/get", result), Ok(asked));
        let again = ToLegacyResult::InputRequired {
            requests: vec![],
            state: Some("s".into()),
        };
        assert_eq!(
            to_legacy(
                "resources/read",
                r#"{"resultType":"input_required","requestState":"s"}"#
            ),
            Ok(again)
        );
    }

    #[test]
    fn nonsense_is_not_passed_on() {
        for (method, result) in [
            ("tools/list", r#"{"resultType":"input_required","requestState":"s"}"#),
            ("tools/call", r#"{"resultType":"task","task":{}}"#),
            ("tools/call", r#"{"resultType":null}"#),
            ("tools/call", r#"{"resultType":"input_required"}"#),
            ("tools/call", r#"{"resultType":"input_required","inputRequests":{}}"#),
            ("tools/call", r#"{"resultType":"input_required","requestState":7}"#),
            ("tools/call", r#"{"resultType":"input_required","inputRequests":[]}"#),
            (
                "tools/call",
                r#"{"resultType":"input_required","inputRequests":{"k":{}}}"#,
            ),
            (
                "tools/call",
                r#"{"resultType":"input_required","inputRequests":{"k":{"method":"a","method":"b"}}}"#,
            ),
            (
                "tools/call",
                r#"{"resultType":"input_required","inputRequests":{"k":{"method":"a","params":[]}}}"#,
            ),
            ("tools/list", r#"{"tools":{"outputSchema":1}}"#),
            ("tools/call", r#"{"content":[],"content":[]}"#),
            ("tools/call", r#"{"_meta":7}"#),
            ("tools/call", "[]"),
        ] {
            let refused = to_legacy(method, result).expect_err(result);
            assert_eq!(refused.code(), 50_200, "{result}");
        }
        for result in ["null", "[]", "7", r#"{"a":1,"a":2}"#, r#"{"_meta":7}"#] {
            let refused = result_to_modern("tools/call", &Bytes::from_static(result.as_bytes()), &facts());
            assert!(matches!(refused, Err(MapError::Nonsense(_))), "{result}");
        }
        let many: Vec<_> = (0..65)
            .map(|n| format!(r#""k{n}":{{"method":"roots/list"}}"#))
            .collect();
        let result = format!(
            r#"{{"resultType":"input_required","inputRequests":{{{}}}}}"#,
            many.join(",")
        );
        assert!(result_to_legacy("tools/call", &result.into()).is_err());
    }
}
