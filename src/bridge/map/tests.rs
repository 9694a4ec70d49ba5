//! The table of the module's documentation against the schemas and the code, and what holds of whatever is mapped.

use proptest::prelude::*;
use serde_json::{Value, json};

use bytes::Bytes;

use super::*;
use crate::bridge::message::RpcError;
use crate::bridge::peer::Facts;
use crate::mcp::object::Object;
use crate::mcp::parse;

const ALL: &str = "all";
const LEGACY: &str = "2024-11-05 to 2025-11-25";
const NOVEMBER: &str = "2025-11-25";
const MODERN_ONLY: &str = "2026-07-28";

/// Every method of every revision's `schema.ts`, by who sends it: `ClientRequest`, `ServerRequest` (`InputRequest` in
/// 2026-07-28), `ClientNotification` and `ServerNotification`.
const SCHEMAS: [(&str, &[(&str, &str)]); 4] = [
    (
        "Requests of clients",
        &[
            ("initialize", LEGACY),
            ("ping", LEGACY),
            ("server/discover", MODERN_ONLY),
            ("logging/setLevel", LEGACY),
            ("tools/list", ALL),
            ("tools/call", ALL),
            ("resources/list", ALL),
            ("resources/templates/list", ALL),
            ("resources/read", ALL),
            ("resources/subscribe", LEGACY),
            ("resources/unsubscribe", LEGACY),
            ("prompts/list", ALL),
            ("prompts/get", ALL),
            ("completion/complete", ALL),
            ("subscriptions/listen", MODERN_ONLY),
            ("tasks/get", NOVEMBER),
            ("tasks/result", NOVEMBER),
            ("tasks/list", NOVEMBER),
            ("tasks/cancel", NOVEMBER),
        ],
    ),
    (
        "Requests of servers",
        &[
            ("ping", LEGACY),
            ("elicitation/create", "from 2025-06-18"),
            ("sampling/createMessage", ALL),
            ("roots/list", ALL),
            ("tasks/get", NOVEMBER),
            ("tasks/result", NOVEMBER),
            ("tasks/list", NOVEMBER),
            ("tasks/cancel", NOVEMBER),
        ],
    ),
    (
        "Notifications of clients",
        &[
            ("notifications/cancelled", ALL),
            ("notifications/initialized", LEGACY),
            ("notifications/progress", LEGACY),
            ("notifications/roots/list_changed", LEGACY),
            ("notifications/tasks/status", NOVEMBER),
        ],
    ),
    (
        "Notifications of servers",
        &[
            ("notifications/cancelled", ALL),
            ("notifications/progress", ALL),
            ("notifications/message", ALL),
            ("notifications/tools/list_changed", ALL),
            ("notifications/prompts/list_changed", ALL),
            ("notifications/resources/list_changed", ALL),
            ("notifications/resources/updated", ALL),
            ("notifications/subscriptions/acknowledged", MODERN_ONLY),
            ("notifications/elicitation/complete", NOVEMBER),
            ("notifications/tasks/status", NOVEMBER),
        ],
    ),
];

/// Method, revisions, and the two verdicts of a row.
fn rows(section: &str) -> Vec<[&'static str; 4]> {
    include_str!("mod.rs")
        .lines()
        .skip_while(|line| *line != format!("//! # {section}"))
        .skip(1)
        .take_while(|line| !line.starts_with("//! #"))
        .filter_map(|line| line.strip_prefix("//! | "))
        .filter(|row| !row.starts_with("method"))
        .map(|row| {
            let cells: Vec<_> = row
                .split('|')
                .map(|cell| cell.trim_matches([' ', '`']))
                .take(4)
                .collect();
            <[&str; 4]>::try_from(cells).expect("a row has four cells")
        })
        .collect()
}

#[test]
fn the_table_names_every_method_of_every_revision() {
    for (section, schema) in SCHEMAS {
        let rows = rows(section);
        let named: Vec<_> = rows
            .iter()
            .map(|row| (row[0], row[1]))
            .filter(|(_, revisions)| !revisions.starts_with("none"))
            .collect();
        assert_eq!(named, schema, "{section}");
        assert!(rows.iter().any(|row| row[0] == "any other"), "{section}");
    }
}

#[test]
fn what_the_table_says_is_what_becomes_of_it() {
    let nothing = Bytes::from_static(b"{}");
    let all = br#"{"elicitation":{},"sampling":{},"roots":{}}"#;
    for (section, _) in SCHEMAS {
        for [method, _, one, other] in rows(section) {
            let method = if method == "any other" {
                "com.example/other"
            } else {
                method
            };
            let carried = match section {
                "Requests of clients" => [
                    request_to_modern(method, &nothing, &client(), None).is_ok(),
                    request_to_legacy(method, &nothing).is_ok(),
                ],
                "Requests of servers" => [
                    asked_to_legacy(method, b"{}", all).is_ok(),
                    asked_to_modern(method, b"{}").is_ok(),
                ],
                "Notifications of clients" => [client_notification(method, &nothing).is_some(); 2],
                _ => [
                    notification_to_legacy(method, &nothing).is_some(),
                    notification_to_modern(method, &nothing).is_some(),
                ],
            };
            for (verdict, carried) in [one, other].into_iter().zip(carried) {
                let word = verdict.split([':', ' ']).next().expect("a verdict");
                assert!(
                    ["carried", "answered", "refused", "taken", "dropped"].contains(&word),
                    "{verdict}"
                );
                assert_eq!(word == "carried", carried, "{section}: {method}: {verdict}");
            }
        }
    }
}

fn client() -> ClientFacts {
    ClientFacts {
        info: Some(r#"{"name":"c","version":"1"}"#.into()),
        capabilities: r#"{"elicitation":{}}"#.into(),
        log_level: Some(LogLevel::Warning),
    }
}

fn facts() -> Facts {
    Facts {
        version: "2025-06-18".into(),
        capabilities: "{}".into(),
        server_info: Some(r#"{"name":"s","version":"1"}"#.into()),
        instructions: None,
    }
}

const METHODS: [&str; 9] = [
    "tools/call",
    "tools/list",
    "resources/read",
    "resources/list",
    "prompts/get",
    "completion/complete",
    "elicitation/create",
    "sampling/createMessage",
    "com.example/x",
];

/// Keys that mean something somewhere, in some spelling, and others.
fn key() -> impl Strategy<Value = String> {
    const KNOWN: &[&str] = &[
        "_meta",
        "resultType",
        "inputRequests",
        "inputResponses",
        "requestState",
        "ttlMs",
        "cacheScope",
        "task",
        "tools",
        "name",
        "mode",
        "elicitationId",
        "structuredContent",
        "outputSchema",
        "inputSchema",
        "properties",
        "type",
        "x-mcp-header",
        "execution",
        "taskSupport",
        "method",
        "params",
        "progressToken",
        PROTOCOL_VERSION,
        CLIENT_CAPABILITIES,
        CLIENT_INFO,
        LOG_LEVEL,
        SERVER_INFO,
        SUBSCRIPTION_ID,
    ];
    prop_oneof![
        4 => prop::sample::select(KNOWN).prop_map(str::to_owned),
        1 => prop::sample::select(KNOWN).prop_map(str::to_uppercase),
        4 => "[a-z\"\\\\é]{0,5}",
    ]
}

fn value() -> impl Strategy<Value = Value> {
    const WORDS: &[&str] = &[
        "complete",
        "input_required",
        "required",
        "object",
        "string",
        "url",
        "form",
        "info",
        "A",
        "roots/list",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::sample::select(WORDS).prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key(), inner, 0..5).prop_map(|map| json!(map)),
        ]
    })
}

fn object() -> impl Strategy<Value = Value> {
    prop::collection::btree_map(key(), value(), 0..7).prop_map(|map| json!(map))
}

/// Written with spaces or without.
fn written(value: &Value, spaced: bool) -> Bytes {
    if spaced {
        serde_json::to_vec_pretty(value)
    } else {
        serde_json::to_vec(value)
    }
    .expect("JSON")
    .into()
}

/// As every reader sees it: an object, whose known keys the strict reader of envelopes finds once.
fn reread(raw: &[u8]) -> Value {
    Object::parse(raw).expect("no key twice");
    serde_json::from_slice(raw).expect("JSON")
}

/// Whether a request with such `params` gets past the envelope.
fn is_request(params: &[u8]) -> bool {
    let params = std::str::from_utf8(params).expect("JSON is text");
    parse(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"x","params":{params}}}"#).into()).is_ok()
}

/// The members that are in neither list, and are not known keys in other letters.
fn rest(object: &Value, protocols: &[&str]) -> serde_json::Map<String, Value> {
    let mut rest = object.as_object().expect("an object").clone();
    rest.retain(|key, _| !protocols.iter().any(|known| known.eq_ignore_ascii_case(key)));
    rest
}

proptest! {
    #[test]
    fn a_request_to_a_legacy_server_keeps_what_is_not_the_protocols(method in prop::sample::select(&METHODS[..]), params in object(), spaced in any::<bool>()) {
        let raw = written(&params, spaced);
        let Ok(mapped) = request_to_legacy(method, &raw) else { return Ok(()) };
        let out = reread(&mapped.params);
        prop_assert!(!is_request(&raw) || is_request(&mapped.params));
        let own = if is_multi_round_trip(method) { &["_meta", "task", "inputResponses", "requestState"][..] } else { &["_meta"] };
        prop_assert_eq!(rest(&params, own), rest(&out, own));
        let protocols = [PROTOCOL_VERSION, CLIENT_CAPABILITIES, CLIENT_INFO, LOG_LEVEL];
        if out["_meta"].is_object() {
            prop_assert_eq!(rest(&params["_meta"], &protocols), rest(&out["_meta"], &[]));
        } else {
            prop_assert!(params["_meta"].is_null() || rest(&params["_meta"], &protocols).is_empty());
        }
        if is_multi_round_trip(method) {
            prop_assert_eq!(rest(&out, &[]), rest(&out, &["task", "inputResponses", "requestState"]));
        }
        // A legacy request has nothing of the modern era, and stays the bytes that it is.
        let again = request_to_legacy(method, &mapped.params).expect("mapped already");
        prop_assert_eq!(again.params, mapped.params);
    }

    #[test]
    fn a_request_to_a_modern_server_and_back_is_the_request(method in prop::sample::select(&METHODS[..]), params in object(), spaced in any::<bool>()) {
        let raw = written(&params, spaced);
        let retry = Retry {
            input_responses: vec![("k\"".to_owned(), r#"{"action":"cancel"}"#.into())],
            request_state: Some("s\n".to_owned()),
        };
        let Ok(mapped) = request_to_modern(method, &raw, &client(), Some(retry.clone())) else { return Ok(()) };
        let out = reread(&mapped);
        prop_assert!(!is_request(&raw) || is_request(&mapped));
        prop_assert_eq!(&out["_meta"][PROTOCOL_VERSION], "2026-07-28");
        prop_assert_eq!(&out["_meta"][CLIENT_CAPABILITIES], &json!({"elicitation": {}}));
        prop_assert_eq!(&out["_meta"][LOG_LEVEL], "warning");
        let back = request_to_legacy(method, &mapped).expect("what the gate made");
        prop_assert_eq!(back.client_info, client().info);
        prop_assert_eq!(back.log_level, client().log_level);
        if is_multi_round_trip(method) {
            prop_assert_eq!(back.input_responses, retry.input_responses);
            prop_assert_eq!(back.request_state, retry.request_state);
        }
        if let Ok(plain) = request_to_legacy(method, &raw) {
            // Whatever it had of the modern era is gone either way.
            let (mut back, mut plain) = (reread(&back.params), reread(&plain.params));
            for params in [&mut back, &mut plain] {
                if params["_meta"] == json!({}) {
                    params.as_object_mut().expect("an object").remove("_meta");
                }
            }
            prop_assert_eq!(back, plain);
        }
    }

    #[test]
    fn a_result_to_a_modern_client_and_back_is_the_result(method in prop::sample::select(&METHODS[..]), result in object(), spaced in any::<bool>()) {
        let raw = written(&result, spaced);
        let Ok(mapped) = result_to_modern(method, &raw, &facts()) else { return Ok(()) };
        let out = reread(&mapped);
        prop_assert_eq!(&out["resultType"], "complete");
        prop_assert_eq!(&out["_meta"][SERVER_INFO], &json!({"name": "s", "version": "1"}));
        if matches!(method, "tools/list" | "resources/list" | "resources/read") {
            prop_assert_eq!((&out["ttlMs"], &out["cacheScope"]), (&json!(0), &json!("private")));
        }
        let own = ["_meta", "resultType", "ttlMs", "cacheScope", "inputRequests", "requestState", "tools"];
        prop_assert_eq!(rest(&result, &own), rest(&out, &own));
        let Ok(ToLegacyResult::Complete(back)) = result_to_legacy(method, &mapped) else {
            // A tool list that legacy clients can't have.
            prop_assert_eq!(method, "tools/list");
            return Ok(());
        };
        let back = reread(&back);
        let own = ["_meta", "resultType", "ttlMs", "cacheScope", "inputRequests", "requestState", "tools", "structuredContent"];
        prop_assert_eq!(rest(&result, &own), rest(&back, &own));
        prop_assert_eq!(rest(&back, &[]), rest(&back, &["resultType"]));
        let meta = |result: &Value| rest(&json!(result["_meta"].as_object().cloned().unwrap_or_default()), &[SERVER_INFO]);
        prop_assert_eq!(meta(&result), meta(&back));
    }

    #[test]
    fn a_result_to_a_legacy_client_has_nothing_of_the_modern_era(method in prop::sample::select(&METHODS[..]), result in object(), spaced in any::<bool>()) {
        let raw = written(&result, spaced);
        match result_to_legacy(method, &raw) {
            Ok(ToLegacyResult::Complete(mapped)) => {
                let out = reread(&mapped);
                prop_assert!(result["resultType"] == "complete" || result.get("resultType").is_none());
                prop_assert_eq!(rest(&out, &[]), rest(&out, &["resultType"]));
                let again = result_to_legacy(method, &mapped);
                prop_assert_eq!(again, Ok(ToLegacyResult::Complete(mapped)));
            }
            Ok(ToLegacyResult::InputRequired { requests, state }) => {
                prop_assert!(is_multi_round_trip(method));
                prop_assert_eq!(&result["resultType"], "input_required");
                prop_assert!(!requests.is_empty() || state.is_some());
                for request in requests {
                    reread(&request.params);
                    prop_assert_eq!(&result["inputRequests"][&request.key]["method"], &request.method);
                }
            }
            Err(_) => {}
        }
    }

    #[test]
    fn what_servers_ask_and_notify_is_still_an_object(method in prop::sample::select(&METHODS[..]), params in object(), spaced in any::<bool>()) {
        let raw = written(&params, spaced);
        if let Ok(asked) = asked_to_modern(method, &raw) {
            let out = reread(&asked);
            prop_assert_eq!(&out["method"], method);
            prop_assert_eq!(rest(&out["params"], &[]), rest(&out["params"], &["task", "_meta"]));
            let all = br#"{"elicitation":{"form":{},"url":{}},"sampling":{"tools":{}}}"#;
            let params = out["params"].to_string();
            let (_, back) = asked_to_legacy(method, params.as_bytes(), all).expect("all is declared");
            let (params, mut back) = (&out["params"], reread(&back));
            if method == "elicitation/create" && params["mode"] == "url" {
                let id = back.as_object_mut().expect("an object").remove("elicitationId");
                prop_assert!(id.is_some());
            }
            prop_assert_eq!(&back, params);
        }
        for carry in [notification_to_modern, notification_to_legacy, client_notification] {
            if let Some(carried) = carry(method, &raw) {
                prop_assert_eq!(rest(&reread(&carried), &["_meta"]), rest(&params, &["_meta"]));
            }
        }
        let id = crate::mcp::Id("7".into());
        if let Some(subscribed) = subscribed(&raw, &id) {
            prop_assert_eq!(&reread(&subscribed)["_meta"][SUBSCRIPTION_ID], 7);
        }
    }

    #[test]
    fn capabilities_are_never_more_than_was_declared(declared in object()) {
        let mapped = client_capabilities_to_legacy(&written(&declared, false));
        let out = reread(&mapped);
        for (name, value) in out.as_object().expect("an object") {
            prop_assert!(declared[name].is_object(), "{}", name);
            for part in value.as_object().expect("an object").keys() {
                prop_assert!(declared[name].get(part).is_some(), "{}", part);
            }
        }
        for mode in ["form", "url"] {
            let params = json!({"mode": mode}).to_string();
            if lacks(&written(&declared, true), "elicitation/create", params.as_bytes()).is_some() {
                prop_assert!(lacks(&mapped, "elicitation/create", params.as_bytes()).is_some(), "{}", mode);
            }
        }
    }

    #[test]
    fn nothing_panics(raw in prop::collection::vec(any::<u8>(), 0..80), method in prop::sample::select(&METHODS[..])) {
        let raw = Bytes::from(raw);
        let _ = request_to_legacy(method, &raw);
        let _ = request_to_modern(method, &raw, &client(), None);
        let _ = result_to_modern(method, &raw, &facts());
        let _ = result_to_legacy(method, &raw);
        let _ = asked_to_modern(method, &raw);
        let _ = asked_to_legacy(method, &raw, &raw);
        let _ = param_headers(&raw);
        let _ = annotated_tools(&raw);
        let facts = Facts { version: "x".into(), capabilities: raw.clone(), server_info: Some(raw.clone()), instructions: None };
        reread(&initialize_result(&facts, "x"));
        reread(&discover_result(&facts));
        let error = RpcError { code: -32042, message: String::new(), data: Some(raw) };
        let _ = error_to_modern(method, &error);
        let _ = error_to_legacy(method, Some("x"), &error);
    }
}
