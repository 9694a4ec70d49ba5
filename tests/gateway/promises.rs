//! The README's threat model: that each promise names tests which exist, and the promises that nobody else holds.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderValue, Response, StatusCode};
use http_body_util::BodyExt;
use portcullis::config::Config;
use portcullis::edge::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::gate::{Gate, RULES, call};
use super::shot::{Shot, case, refuse};
use super::upstream::{self, Seen, Upstream};

const README: &str = include_str!("../../README.md");

/// The tables of the threat model, row by row; headers and rules left out.
fn rows() -> Vec<Vec<&'static str>> {
    let (_, section) = README.split_once("\n## Threat model\n").expect("the section");
    let section = section.split("\n## ").next().expect("its text");
    let mut rows = Vec::new();
    let mut above = "";
    for line in section.lines() {
        if line.starts_with('|') && above.starts_with('|') && !line.starts_with("|---") {
            rows.push(line.trim_matches('|').split('|').map(str::trim).collect());
        }
        above = line;
    }
    rows
}

/// The files that may hold the tests of a module: `a::b` is `src/a/b.rs`, `src/a/b/mod.rs` or `src/a/b/tests.rs`;
/// `gateway::b` is in `tests/gateway`.
fn files(module: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = module.replace("::", "/");
    let base = match path.strip_prefix("gateway/") {
        Some(rest) => root.join("tests/gateway").join(rest),
        None => root.join("src").join(path),
    };
    let files = [base.with_extension("rs"), base.join("mod.rs"), base.join("tests.rs")];
    files.into_iter().filter(|file| file.is_file()).collect()
}

/// Whether the text has a function of this name right below a test attribute.
fn has_test(text: &str, name: &str) -> bool {
    let mut attributes = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[") {
            attributes.push(line);
            continue;
        }
        let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        if function.and_then(|rest| rest.split('(').next()) == Some(name) {
            return attributes
                .iter()
                .any(|line| line.starts_with("#[test") || line.starts_with("#[tokio::test"));
        }
        attributes.clear();
    }
    false
}

/// What is wrong with a row, if anything is.
fn fault(row: &[&str]) -> Option<String> {
    let named: Vec<&str> = row.last()?.split('`').skip(1).step_by(2).collect();
    if row.iter().any(|cell| cell.is_empty()) || named.is_empty() {
        return Some("no test is named".to_owned());
    }
    named.into_iter().find_map(|test| {
        let Some((module, name)) = test.rsplit_once("::") else {
            return Some(format!("{test} names no module"));
        };
        let holds = |file: &PathBuf| has_test(&std::fs::read_to_string(file).expect("a source"), name);
        (!files(module).iter().any(holds)).then(|| format!("{test} is no test"))
    })
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let rows = rows();
    assert!(rows.len() > 60, "only {} rows were found", rows.len());
    let faults: Vec<String> = rows
        .iter()
        .filter_map(|row| fault(row).map(|fault| format!("{}: {fault}", row[0])))
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // It would tell.
    for (cell, told) in [
        ("", true),
        ("by hand", true),
        ("`gateway::promises`", true),
        ("`gateway::promises::has_test`", true),
        ("`gateway::promises::no_such_test`", true),
        ("`nowhere::every_promise_names_a_test_that_exists`", true),
        ("`gateway::promises::every_promise_names_a_test_that_exists`", false),
    ] {
        assert_eq!(fault(&["what", "how", cell]).is_some(), told, "{cell}");
    }
}

/// A route with rules and one without, in front of one server.
async fn both(upstream: &Upstream) -> Gate {
    let url = upstream.url();
    Gate::with_yaml(&format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {url}\n{RULES}  \
         plain:\n    path: /plain/mcp\n    upstream: {url}\n"
    ))
    .await
}

fn token(gate: &Gate, path: &str) -> String {
    let audience = format!("{}{path}", gate.running.url());
    let minutes = Duration::from_secs(600);
    gate.issuer
        .mint("alice", &audience, &["mcp.use", "notes.read"], &[], minutes)
}

const ROUTES: [&str; 2] = ["/notes/mcp", "/plain/mcp"];

/// Not even where clients hide it besides the header.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_callers_token_reaches_no_server() {
    let upstream = Upstream::tools(1).await;
    let gate = both(&upstream).await;
    for path in ROUTES {
        let token = token(&gate, path);
        let shot = Shot::modern(&token, "tools/call", json!({"name": "echo"}))
            .to(&format!("{path}?access_token={token}"))
            .with("cookie", &format!("token={token}"))
            .with("proxy-authorization", &format!("Bearer {token}"))
            .with("x-access-token", &token)
            .with("referer", &format!("https://app.example/?access_token={token}"));
        let answer = shot.fire(&gate).await.expect("an answer");
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        let seen = upstream.seen().pop().expect("a request");
        let signature = token.rsplit('.').next().expect("a signature");
        assert!(!format!("{seen:?}").contains(signature), "{path}: {seen:?}");
        assert_eq!(seen.target, "/mcp", "{path}");
    }
}

fn with_status(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = upstream::json_reply(value);
    *response.status_mut() = status;
    response
}

/// Clients read these to find what a server speaks; a gate that hid them would make a modern server look old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_says_about_versions_and_methods_passes() {
    let upstream = Upstream::start(|seen: Seen| async move {
        let id = seen.json()["id"].clone();
        let error = |status, code: i64, data: Value| {
            with_status(
                status,
                &json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": "no", "data": data}}),
            )
        };
        let version = seen.headers.get("mcp-protocol-version").map(HeaderValue::as_bytes);
        match seen.headers["mcp-method"].as_bytes() {
            _ if version != Some(b"2026-07-28") => {
                error(StatusCode::BAD_REQUEST, -32_022, json!({"supported": ["2026-07-28"]}))
            }
            b"tools/call" => error(StatusCode::BAD_REQUEST, -32_021, json!({"required": ["sampling"]})),
            _ => error(StatusCode::NOT_FOUND, -32_601, Value::Null),
        }
    })
    .await;
    let gate = both(&upstream).await;
    for path in ROUTES {
        let token = token(&gate, path);
        let echo = Shot::modern(&token, "tools/call", json!({"name": "echo"}));
        let mut later = call("echo");
        later["params"]["_meta"] = json!({"io.modelcontextprotocol/protocolVersion": "2027-01-01",
            "io.modelcontextprotocol/clientCapabilities": {}});
        let later = echo
            .clone()
            .set("mcp-protocol-version", "2027-01-01")
            .body(later.to_string());
        for (name, shot, status, code) in [
            ("a version of the future", later, 400, -32_022),
            ("a missing capability", echo, 400, -32_021),
            (
                "an unknown method",
                Shot::modern(&token, "prompts/list", json!({})),
                404,
                -32_601,
            ),
        ] {
            let answer = shot.to(path).fire(&gate).await.expect("an answer");
            let got = (answer.status.as_u16(), answer.code());
            assert_eq!(got, (status, Some(code)), "{path}: {name}: {answer:?}");
            assert_eq!(answer.header("content-type"), "application/json");
            assert_eq!(answer.json()["id"], 7, "{name}");
            let supported = answer.json()["error"]["data"]["supported"].is_array();
            assert_eq!(supported, code == -32_022, "{name}");
        }
    }
    assert_eq!(upstream.seen().len(), 6, "each was the server's to answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_to_a_request_is_json_or_events() {
    let upstream = Upstream::start(|seen: Seen| async move {
        let html = seen.json()["id"] == 1;
        let mut response = upstream::json_reply(&upstream::result(&seen.json(), 0));
        let headers = response.headers_mut();
        if html {
            headers.insert("content-type", HeaderValue::from_static("text/html"));
        } else {
            headers.remove("content-type");
        }
        response
    })
    .await;
    let gate = both(&upstream).await;
    for path in ROUTES {
        let token = token(&gate, path);
        for id in [1, 2] {
            let mut body = call("echo");
            body["id"] = json!(id);
            body["params"]["_meta"] = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientCapabilities": {}});
            let shot = Shot::modern(&token, "tools/call", json!({"name": "echo"})).body(body.to_string());
            let answer = shot.to(path).fire(&gate).await.expect("an answer");
            assert_eq!(
                (answer.status, answer.code()),
                (StatusCode::BAD_GATEWAY, Some(50_200)),
                "{path} {id}"
            );
            assert_eq!(answer.header("content-type"), "application/json", "{path} {id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_modern_notification_is_accepted_with_202_or_refused_with_a_status() {
    let upstream = Upstream::tools(1).await;
    let gate = both(&upstream).await;
    let notify = |path: &str| {
        let body = json!({"jsonrpc": "2.0", "method": "notifications/evil"});
        Shot::post(&token(&gate, path), body.to_string())
            .with("mcp-protocol-version", "2026-07-28")
            .with("mcp-method", "notifications/evil")
            .to(path)
    };
    let cases = vec![
        case("one that no rule allows", notify("/notes/mcp"), 403, 40_300),
        case(
            "one whose headers say something else",
            notify("/plain/mcp").set("mcp-method", "notifications/good"),
            400,
            -32_020,
        ),
    ];
    refuse(&gate, &upstream, cases, 2).await;
    let accepted = notify("/plain/mcp").fire(&gate).await.expect("an answer");
    assert_eq!(accepted.status, StatusCode::ACCEPTED);
    assert!(accepted.body.is_empty(), "{accepted:?}");
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_a_response_stream_cancels_the_request() {
    let (told, mut streams) = mpsc::unbounded_channel();
    let upstream = Upstream::start(move |_| {
        let (events, response) = upstream::stream();
        told.send(events).expect("the test listens");
        async move { response }
    })
    .await;
    let gate = both(&upstream).await;
    for path in ROUTES {
        let mut request = gate.modern_request(&token(&gate, path), "tools/call", json!({"name": "echo"}));
        *request.uri_mut() = format!("{}{path}", gate.running.url()).parse().expect("a URL");
        let asking = tokio::spawn(super::gate::client().request(request));
        let events = streams.recv().await.expect("the server is asked");
        let progress = json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 1, "progress": 1}});
        events.send(upstream::event(&progress)).expect("it is read");
        let mut body = asking.await.expect("no panic").expect("an answer").into_body();
        body.frame().await.expect("a frame").expect("a whole one");
        drop(body);
        tokio::time::timeout(Duration::from_secs(10), events.closed())
            .await
            .expect("the server's stream is closed too");
    }
}

/// What a session or a resumption says, a modern request hasn't: both are left behind, and a bad one harms nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modern_requests_have_no_session_and_resume_nothing() {
    let upstream = Upstream::tools(1).await;
    let gate = both(&upstream).await;
    for path in ROUTES {
        let answer = Shot::modern(&token(&gate, path), "tools/call", json!({"name": "echo"}))
            .with("mcp-session-id", "somebody-elses")
            .with("last-event-id", "7")
            .to(path)
            .fire(&gate)
            .await
            .expect("an answer");
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        assert!(!answer.headers.contains_key("mcp-session-id"), "{path}");
        let seen = upstream.seen().pop().expect("a request");
        for name in ["mcp-session-id", "last-event-id"] {
            assert!(!seen.headers.contains_key(name), "{path}: {name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broader_scope_is_as_good_as_those_it_implies() {
    let upstream = Upstream::tools(1).await;
    let gate = Gate::with_rules(&upstream).await;
    let rules = format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {}\n{RULES}",
        upstream.url()
    );
    let broad = gate.token(&["all"], &[]);
    assert_eq!(gate.legacy(&broad, &call("echo")).await.code(), Some(40_300));
    let implies = "    implies: {all: [mcp.use, more], more: [notes.read]}\n    scope_upgrade_endpoint";
    gate.reload_replacing("    scope_upgrade_endpoint", implies, &rules)
        .expect("a good configuration");
    assert_eq!(gate.legacy(&broad, &call("echo")).await.status, StatusCode::OK);
    let narrow = gate.token(&["more"], &[]);
    assert_eq!(gate.legacy(&narrow, &call("echo")).await.code(), Some(40_301));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_up_is_audited_under_its_request_id() {
    let upstream = Upstream::tools(1).await;
    let gate = Gate::with_rules(&upstream).await;
    let lacking = gate.token(&["notes.read"], &[]);
    let answer = gate.modern(&lacking, "tools/call", json!({"name": "echo"})).await;
    assert_eq!(answer.code(), Some(40_301));
    let id = answer.header("x-request-id").to_owned();
    gate.running.shutdown().await;
    let audit = std::fs::read_to_string(gate.directory.path().join("audit.jsonl")).expect("the audit file");
    let line: Value = serde_json::from_str(audit.trim_end()).expect("one line");
    assert_eq!(line["request_id"], id);
    assert_eq!(
        (&line["subject"], &line["tool"], &line["decision"], &line["reason"]),
        (
            &json!("alice"),
            &json!("echo"),
            &json!("deny"),
            &json!("insufficient_scope")
        )
    );
}

#[test]
fn a_gate_that_is_told_no_address_listens_on_loopback() {
    let text = "routes: {notes: {path: /mcp, anonymous: true, upstream: \"http://127.0.0.1:1/mcp\"}}\n";
    let loaded = Config::parse(text, "t.yaml", Path::new("."), &|_| None).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(loaded.config.listen.address.ip().is_loopback());
}
