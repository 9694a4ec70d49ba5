//! What clients ask, for a server of the other era.
//!
//! 1. The protocol's own `_meta` is one era's: it is taken out for a legacy server, and always the gate's own for a modern
//!    one. `progressToken`, trace context and what is not the protocol's stay.
//! 2. `inputResponses` and `requestState` are taken out of the three methods that have them. A legacy client has none to
//!    send; a modern one answers the gate with them.
//! 3. `task` is taken out: nothing is called as a task across eras, and a server must then answer as if it were absent
//!    (MCP 2025-11-25, "Tasks").
//! 4. Methods that one era lacks are not found. Those that the gate answers itself never come here.

use bytes::Bytes;

use super::notification::LogLevel;
use super::{CLIENT_CAPABILITIES, CLIENT_INFO, LOG_LEVEL, MapError, PROTOCOL_VERSION, is_multi_round_trip};
use crate::bridge::opening::MODERN;
use crate::mcp::object::{Object, quoted, unescaped};

/// Answers that one retry may bring.
const MAX_RESPONSES: usize = 64;

/// A modern client's request as a legacy server reads it, and what was said to the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToLegacy {
    /// The `params`, a raw JSON object.
    pub params: Bytes,
    /// What the client declares, raw; not yet [mapped](super::client_capabilities_to_legacy).
    pub client_capabilities: Bytes,
    /// Who the client says it is, raw.
    pub client_info: Option<Bytes>,
    /// `None`: no log messages may reach the client.
    pub log_level: Option<LogLevel>,
    /// Raw; it is still in `params`.
    pub progress_token: Option<Bytes>,
    /// By the keys of the requests that they answer, raw.
    pub input_responses: Vec<(String, Bytes)>,
    /// What the gate gave the client to bring back.
    pub request_state: Option<String>,
}

/// Who asks, for each request to a modern server.
#[derive(Clone, Debug)]
pub struct ClientFacts {
    /// A raw JSON object.
    pub info: Option<Bytes>,
    /// A raw JSON object, [mapped](super::client_capabilities_to_modern).
    pub capabilities: Bytes,
    pub log_level: Option<LogLevel>,
}

/// What a modern server asked for before it answers.
#[derive(Clone, Debug, Default)]
pub struct Retry {
    /// By the server's keys, raw JSON objects.
    pub input_responses: Vec<(String, Bytes)>,
    pub request_state: Option<String>,
}

/// A modern client's request for a legacy server.
///
/// # Errors
/// [`MapError::NotFound`] by rule 4, [`MapError::Params`] when what the gate has to read can't be read.
pub fn request_to_legacy(method: &str, params: &Bytes) -> Result<ToLegacy, MapError> {
    is_carried(method)?;
    let mut all = read(params)?;
    let mut mapped = ToLegacy {
        params: Bytes::new(),
        client_capabilities: Bytes::from_static(b"{}"),
        client_info: None,
        log_level: None,
        progress_token: None,
        input_responses: Vec::new(),
        request_state: None,
    };
    if is_multi_round_trip(method) {
        all.take("task");
        if let Some(responses) = all.take("inputResponses") {
            mapped.input_responses = input_responses(params, responses)?;
        }
        if let Some(state) = all.take("requestState") {
            let state = unescaped(state).ok_or(MapError::Params("requestState must be a string"))?;
            mapped.request_state = Some(state.into_owned());
        }
    }
    if let Some(mut meta) = meta(&all)? {
        mapped.progress_token = meta.get("progressToken").map(|token| part(params, token));
        meta.take(PROTOCOL_VERSION);
        if let Some(capabilities) = meta.take(CLIENT_CAPABILITIES) {
            Object::parse_str(capabilities).map_err(|_| MapError::Params("clientCapabilities must be an object"))?;
            mapped.client_capabilities = part(params, capabilities);
        }
        if let Some(info) = meta.take(CLIENT_INFO) {
            Object::parse_str(info).map_err(|_| MapError::Params("clientInfo must be an object"))?;
            mapped.client_info = Some(part(params, info));
        }
        if let Some(level) = meta.take(LOG_LEVEL) {
            let level = unescaped(level).and_then(|level| LogLevel::parse(&level));
            mapped.log_level = Some(level.ok_or(MapError::Params("logLevel must be a log level"))?);
        }
        put_meta(&mut all, &meta);
    }
    mapped.params = all.into_bytes(params);
    Ok(mapped)
}

/// A legacy client's request for a modern server; `retry` when the server has asked for something.
///
/// # Errors
/// [`MapError::NotFound`] by rule 4, [`MapError::Params`] when what the gate has to read can't be read.
pub fn request_to_modern(
    method: &str,
    params: &Bytes,
    client: &ClientFacts,
    retry: Option<Retry>,
) -> Result<Bytes, MapError> {
    is_carried(method)?;
    let mut all = read(params)?;
    if is_multi_round_trip(method) {
        for name in ["task", "inputResponses", "requestState"] {
            all.take(name);
        }
    }
    let mut meta = meta(&all)?.unwrap_or_else(Object::empty);
    for name in [PROTOCOL_VERSION, CLIENT_CAPABILITIES, CLIENT_INFO, LOG_LEVEL] {
        meta.take(name);
    }
    meta.set(PROTOCOL_VERSION, quoted(MODERN));
    meta.set(CLIENT_CAPABILITIES, json(&client.capabilities));
    if let Some(info) = &client.info {
        meta.set(CLIENT_INFO, json(info));
    }
    if let Some(level) = client.log_level {
        meta.set(LOG_LEVEL, quoted(level.as_str()));
    }
    all.set("_meta", meta.write());
    if let Some(retry) = retry.filter(|_| is_multi_round_trip(method)) {
        if !retry.input_responses.is_empty() {
            let members: Vec<String> = retry
                .input_responses
                .iter()
                .map(|(key, response)| format!("{}:{}", quoted(key), json(response)))
                .collect();
            all.set("inputResponses", format!("{{{}}}", members.join(",")));
        }
        if let Some(state) = &retry.request_state {
            all.set("requestState", quoted(state));
        }
    }
    Ok(all.into_bytes(params))
}

/// What a client answers to a request of the server, for a server of the other era: as it is, but for a `resultType`, which
/// an answer has in neither era.
///
/// # Errors
/// [`MapError::Params`] when it is no object, or repeats a key.
pub fn response(answer: &Bytes) -> Result<Bytes, MapError> {
    let mut all =
        Object::parse(answer).map_err(|_| MapError::Params("an answer must be an object without repeated keys"))?;
    all.take("resultType");
    Ok(all.into_bytes(answer))
}

/// Rule 4.
fn is_carried(method: &str) -> Result<(), MapError> {
    match method {
        "initialize"
        | "ping"
        | "logging/setLevel"
        | "resources/subscribe"
        | "resources/unsubscribe"
        | "server/discover"
        | "subscriptions/listen"
        | "tasks/get"
        | "tasks/result"
        | "tasks/list"
        | "tasks/cancel"
        | "tasks/update" => Err(MapError::NotFound(method.into())),
        _ => Ok(()),
    }
}

fn input_responses(params: &Bytes, responses: &str) -> Result<Vec<(String, Bytes)>, MapError> {
    let broken = MapError::Params("inputResponses must be an object of at most 64 objects");
    let responses = Object::parse_str(responses).map_err(|_| broken.clone())?;
    if responses.names().count() > MAX_RESPONSES {
        return Err(broken);
    }
    responses
        .names()
        .map(|key| {
            let response = responses.get(key).expect("a key has its value");
            Ok((
                key.to_owned(),
                self::response(&part(params, response)).map_err(|_| broken.clone())?,
            ))
        })
        .collect()
}

fn read(params: &[u8]) -> Result<Object<'_>, MapError> {
    Object::parse(params).map_err(|_| MapError::Params("params must be an object without repeated keys"))
}

fn meta<'a>(params: &Object<'a>) -> Result<Option<Object<'a>>, MapError> {
    params
        .object("_meta")
        .map_err(|_| MapError::Params("_meta must be an object without repeated keys"))
}

/// Puts `_meta` back; one that only held the protocol's own goes with it.
fn put_meta<'a>(params: &mut Object<'a>, meta: &Object<'a>) {
    if meta.is_edited() && meta.is_empty() {
        params.retain(|name| name != "_meta");
    } else if meta.is_edited() {
        params.set("_meta", meta.write());
    }
}

/// The part of the bytes that `text` is.
fn part(whole: &Bytes, text: &str) -> Bytes {
    whole.slice_ref(text.as_bytes())
}

/// JSON that somebody has read already.
fn json(raw: &[u8]) -> &str {
    std::str::from_utf8(raw).expect("JSON is text")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to_legacy(method: &str, params: &'static str) -> Result<ToLegacy, MapError> {
        request_to_legacy(method, &Bytes::from_static(params.as_bytes()))
    }

    fn client() -> ClientFacts {
        ClientFacts {
            info: None,
            capabilities: "{}".into(),
            log_level: None,
        }
    }

    fn to_modern(method: &str, params: &'static str) -> Result<Bytes, MapError> {
        request_to_modern(method, &Bytes::from_static(params.as_bytes()), &client(), None)
    }

    #[test]
    fn a_modern_call_is_told_apart_from_what_is_said_to_the_gate() {
        let mapped = to_legacy(
            "tools/call",
            r#"{"name":"t","arguments":{"n":1.50},"task":{},"inputResponses":{"k":{"action":"accept","content":{"a":1.0}}},"requestState":"s\u0031",
            "_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"roots":{}},"io.modelcontextprotocol/clientInfo":{"name":"c"},"io.modelcontextprotocol/logLevel":"error","progressToken": 7,"traceparent":"00"}}"#,
        )
        .expect("a call");
        assert_eq!(
            mapped,
            ToLegacy {
                params: r#"{"name":"t","arguments":{"n":1.50},"_meta":{"progressToken": 7,"traceparent":"00"}}"#.into(),
                client_capabilities: r#"{"roots":{}}"#.into(),
                client_info: Some(r#"{"name":"c"}"#.into()),
                log_level: Some(LogLevel::Error),
                progress_token: Some("7".into()),
                input_responses: vec![("k".into(), r#"{"action":"accept","content":{"a":1.0}}"#.into())],
                request_state: Some("s1".into()),
            }
        );
        let bare = to_legacy(
            "tools/list",
            r#"{"cursor":"c","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}"#,
        );
        assert_eq!(bare.expect("a list").params, r#"{"cursor":"c"}"#);
        // Elsewhere these are nobody's.
        let other = r#"{"task":1,"requestState":2}"#;
        assert_eq!(to_legacy("com.example/x", other).expect("an extension's").params, other);
    }

    #[test]
    fn what_the_gate_cannot_read_is_refused() {
        for params in [
            "[]",
            r#"{"name":"a","name":"b"}"#,
            r#"{"_meta":[]}"#,
            r#"{"_meta":{"progressToken":1,"progressToken":2}}"#,
            r#"{"_meta":{"io.modelcontextprotocol/clientCapabilities":[]}}"#,
            r#"{"_meta":{"io.modelcontextprotocol/clientInfo":"me"}}"#,
            r#"{"_meta":{"io.modelcontextprotocol/logLevel":"loud"}}"#,
            r#"{"_meta":{"io.modelcontextprotocol/logLevel":3}}"#,
            r#"{"inputResponses":[]}"#,
            r#"{"inputResponses":{"k":1}}"#,
            r#"{"inputResponses":{"k":{},"k":{}}}"#,
            r#"{"inputResponses":{"k":{"action":"accept","action":"decline"}}}"#,
            r#"{"requestState":7}"#,
        ] {
            let refused = to_legacy("tools/call", params).expect_err(params);
            assert_eq!(refused.code(), -32602, "{params}");
        }
        let many: Vec<_> = (0..65).map(|n| format!("\"k{n}\":{{}}")).collect();
        let params = Bytes::from(format!("{{\"inputResponses\":{{{}}}}}", many.join(",")));
        assert!(request_to_legacy("tools/call", &params).is_err());
        assert_eq!(
            to_legacy("tasks/get", "{}"),
            Err(MapError::NotFound("tasks/get".into()))
        );
        assert_eq!(to_modern("tasks/get", "{}").expect_err("no tasks").code(), -32601);
    }

    #[test]
    fn a_legacy_call_says_who_asks_and_nothing_that_the_gate_did_not_say() {
        let meta =
            r#""io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}"#;
        for (params, before) in [
            (r#"{"name":"t"}"#, r#"{"name":"t","_meta":{"#),
            // A server that reads names without case must not find answers that the gate has not passed on.
            (
                r#"{"name":"t","inputResponses":{},"REQUESTSTATE":"s","inputre\u017fponses":{},"task":{}}"#,
                r#"{"name":"t","_meta":{"#,
            ),
            (
                r#"{"_meta":{"IO.modelcontextprotocol/clientInfo":{},"io.modelcontextprotocol/logLevel":"debug","io.modelcontextprotocol/protocolVersion":"1","x":1},"name":"t"}"#,
                r#"{"_meta":{"x":1,"#,
            ),
        ] {
            let after = if params.starts_with(r#"{"_meta"#) {
                r#"},"name":"t"}"#
            } else {
                "}}"
            };
            assert_eq!(
                to_modern("tools/call", params).expect("a call"),
                format!("{before}{meta}{after}")
            );
        }
        let facts = ClientFacts {
            info: Some(r#"{"name":"c","version":"1"}"#.into()),
            log_level: Some(LogLevel::Info),
            ..client()
        };
        let retry = Retry {
            input_responses: vec![("k\"".into(), "{}".into())],
            request_state: Some("a\"b".into()),
        };
        let params = Bytes::from_static(b"{}");
        assert_eq!(
            request_to_modern("prompts/get", &params, &facts, Some(retry.clone())).expect("a prompt"),
            format!(
                r#"{{"_meta":{{{meta},"io.modelcontextprotocol/clientInfo":{{"name":"c","version":"1"}},"io.modelcontextprotocol/logLevel":"info"}},"inputResponses":{{"k\"":{{}}}},"requestState":"a\"b"}}"#
            )
        );
        let list = request_to_modern("tools/list", &params, &client(), Some(retry)).expect("a list");
        assert_eq!(list, format!(r#"{{"_meta":{{{meta}}}}}"#));
    }

    #[test]
    fn an_answer_is_the_same_in_both_eras() {
        let same = Bytes::from_static(b"{\"action\" : \"accept\"}");
        assert_eq!(response(&same).expect("an object").as_ptr(), same.as_ptr());
        let typed = Bytes::from_static(br#"{"resultType":"complete","roots":[]}"#);
        assert_eq!(response(&typed).expect("an object"), r#"{"roots":[]}"#);
        assert!(response(&Bytes::from_static(b"null")).is_err());
    }
}
