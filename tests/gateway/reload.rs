//! Another configuration is put in force while clients are connected.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::json;

use crate::gate::{Gate, RULES, call};
use crate::upstream::{Upstream, event, json_reply, status, stream};

fn routes(upstream: &Upstream, route: &str) -> String {
    format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {}\n{route}",
        upstream.url()
    )
}

/// A server whose every GET is a stream that says one thing, and goes on.
async fn standing() -> Upstream {
    let kept = std::sync::Mutex::new(Vec::new());
    Upstream::start(move |seen| {
        let response = if seen.method == Method::GET {
            let (sender, response) = stream();
            let _ = sender.send(event(
                &json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {}}),
            ));
            kept.lock().expect("nobody panicked").push(sender);
            response
        } else if seen.json()["id"].is_null() {
            status(StatusCode::ACCEPTED)
        } else {
            json_reply(&json!({"jsonrpc": "2.0", "id": seen.json()["id"], "result": {"content": []}}))
        };
        async move { response }
    })
    .await
}

async fn open_stream(gate: &Gate, token: &str) -> Incoming {
    let mut request = gate.request(Method::GET, token, String::new());
    // Without a version it would open HTTP+SSE.
    let version = "2025-11-25".parse().expect("a value");
    request.headers_mut().insert("mcp-protocol-version", version);
    let opened = gate.open(request).await;
    assert_eq!(opened.status(), StatusCode::OK);
    let mut body = opened.into_body();
    let first = body.frame().await.expect("an event").expect("whole");
    assert!(first.data_ref().is_some_and(|data| data.starts_with(b"event: message")));
    body
}

/// The stream ends, and cleanly: its client may open another.
async fn ends(mut body: Incoming) {
    let rest = async {
        while let Some(frame) = body.frame().await {
            frame.expect("the stream ends whole");
        }
    };
    tokio::time::timeout(Duration::from_secs(10), rest)
        .await
        .expect("the stream ends at once");
}

async fn stays(body: &mut Incoming) {
    tokio::select! {
        biased;
        frame = body.frame() => panic!("the stream should only wait: {frame:?}"),
        () = tokio::task::yield_now() => {}
    }
}

#[tokio::test]
async fn new_rules_hold_for_the_next_request_and_sessions_stay() {
    let upstream = Upstream::tools(2).await;
    let gate = Gate::with_rules(&upstream).await;
    let token = gate.token(&["mcp.use", "notes.read"], &[]);
    assert_eq!(gate.legacy(&token, &call("echo")).await.status, StatusCode::OK);
    assert_eq!(gate.legacy(&token, &call("echo")).await.code(), None);
    let stricter = RULES.replace("\"echo\", ", "");
    gate.reload(&routes(&upstream, &stricter)).expect("it can be used");
    assert_eq!(gate.legacy(&token, &call("echo")).await.code(), Some(40300));
    assert_eq!(gate.legacy(&token, &call("tool_1")).await.code(), None);
    assert_eq!(gate.metric("portcullis_config_reloads_total{result=\"ok\"}"), Some(1.0));
}

#[tokio::test]
async fn a_session_opened_before_is_good_after() {
    let upstream = Upstream::start(|seen| async move {
        let mut reply = json_reply(&json!({"jsonrpc": "2.0", "id": seen.json()["id"], "result": {}}));
        if seen.json()["method"] == "initialize" {
            reply
                .headers_mut()
                .insert("mcp-session-id", "theirs".parse().expect("a value"));
        }
        reply
    })
    .await;
    let gate = Gate::with_route(&upstream, "").await;
    let token = gate.reader();
    let begin = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}});
    let session = gate.legacy(&token, &begin).await.header("mcp-session-id").to_owned();
    gate.reload(&routes(&upstream, "    limits: {body: 1MiB}\n"))
        .expect("it can be used");
    let mut request = gate.post(&token, &json!({"jsonrpc": "2.0", "id": 2, "method": "ping"}));
    request
        .headers_mut()
        .insert("mcp-session-id", session.parse().expect("a value"));
    assert_eq!(gate.send(request).await.status, StatusCode::OK);
    assert_eq!(upstream.seen()[1].headers["mcp-session-id"], "theirs");
}

#[tokio::test]
async fn what_cannot_be_used_changes_nothing_and_is_told() {
    let upstream = Upstream::tools(1).await;
    let gate = Gate::with_rules(&upstream).await;
    let token = gate.token(&["mcp.use", "notes.read"], &[]);
    let yaml = routes(&upstream, RULES);
    for (old, new, key) in [
        ("127.0.0.1:0", "127.0.0.2:0", "listen.address"),
        ("header_timeout: 1s", "header_timeout: 2s", "listen.limits"),
        ("audit.jsonl", "other.jsonl", "telemetry"),
    ] {
        let error = gate.reload_replacing(old, new, &yaml).expect_err("it needs a restart");
        assert!(
            error.to_string().starts_with(key) && error.to_string().contains("restart"),
            "{error}"
        );
    }
    let missing = routes(&upstream, &format!("{RULES}    credential: none\n")).replace(
        &upstream.url(),
        &format!("{{urls: [\"{}\"], ca: gone.pem}}", upstream.url()),
    );
    let error = gate.reload(&missing).expect_err("there is no such file");
    assert!(error.to_string().contains("gone.pem"), "{error}");
    assert_eq!(
        gate.metric("portcullis_config_reloads_total{result=\"error\"}"),
        Some(4.0)
    );
    let admin = format!("{}/status", gate.running.admin_url().expect("a port"));
    let request = http::Request::get(admin)
        .body(http_body_util::Full::default())
        .expect("a request");
    let status = gate.send(request).await.json();
    assert!(
        status["config"]["last_error"]
            .as_str()
            .is_some_and(|error| error.contains("gone.pem")),
        "{status}"
    );
    assert_eq!(
        gate.legacy(&token, &call("echo")).await.code(),
        None,
        "the old one serves"
    );
}

#[tokio::test]
async fn r48_standing_streams_end_at_once_when_a_reload_takes_their_callers_right() {
    let upstream = standing().await;
    let gate = Gate::with_route(&upstream, "").await;
    let plain = gate.reader();
    let entitled = gate.token(&["mcp.use", "notes.read"], &[]);
    let loses = open_stream(&gate, &plain).await;
    let mut keeps = open_stream(&gate, &entitled).await;
    gate.reload(&routes(&upstream, "    scopes: [mcp.use]\n"))
        .expect("it can be used");
    ends(loses).await;
    stays(&mut keeps).await;
    let other = routes(&upstream, "    scopes: [mcp.use]\n")
        .replace("notes:", "others:")
        .replace("/notes/", "/others/");
    gate.reload(&other).expect("it can be used");
    ends(keeps).await;
}

#[tokio::test]
async fn a_stream_that_nobody_looked_at_ends_when_rules_come() {
    let upstream = standing().await;
    let streamable = format!("{{urls: [\"{}\"], transport: streamable-http}}", upstream.url());
    let yaml = |route: &str| routes(&upstream, route).replace(&upstream.url(), &streamable);
    let gate = Gate::with_yaml(&yaml("")).await;
    let token = gate.token(&["mcp.use", "notes.read"], &[]);
    let mut unseen = open_stream(&gate, &token).await;
    gate.reload(&yaml("    limits: {body: 1MiB}\n"))
        .expect("it can be used");
    stays(&mut unseen).await;
    gate.reload(&yaml(RULES)).expect("it can be used");
    ends(unseen).await;
}

#[tokio::test]
async fn standing_streams_end_when_their_callers_key_is_withdrawn() {
    let upstream = standing().await;
    let gate = Gate::with_route(&upstream, "").await;
    let withdrawn = open_stream(&gate, &gate.reader()).await;
    gate.issuer.rotate();
    // A reload has the keys fetched anew.
    gate.reload(&routes(&upstream, "")).expect("it can be used");
    let token = gate.reader();
    let mut current = open_stream(&gate, &token).await;
    gate.issuer.withdraw_old_keys();
    gate.reload(&routes(&upstream, "")).expect("it can be used");
    ends(withdrawn).await;
    stays(&mut current).await;
    assert_eq!(
        gate.legacy(&token, &json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}))
            .await
            .status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn keys_outlive_a_reload_while_the_issuer_is_down() {
    let upstream = Upstream::tools(1).await;
    let mut gate = Gate::with_rules(&upstream).await;
    let token = gate.token(&["mcp.use", "notes.read"], &[]);
    assert_eq!(gate.legacy(&token, &call("echo")).await.status, StatusCode::OK);
    let other = portcullis::cli::demo::issuer::DevelopmentIssuer::start(gate.clock.clone())
        .await
        .expect("an issuer");
    std::mem::replace(&mut gate.issuer, other).stop().await;
    gate.reload(&routes(&upstream, RULES)).expect("it can be used");
    assert_eq!(gate.legacy(&token, &call("echo")).await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_reloads_under_load_fail_no_call() {
    let upstream = Upstream::tools(2).await;
    let gate = Arc::new(Gate::with_rules(&upstream).await);
    let token = gate.token(&["mcp.use", "notes.read"], &[]);
    let over = Arc::new(AtomicBool::new(false));
    let calls = Arc::new(AtomicUsize::new(0));
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let (gate, token, over, calls) = (gate.clone(), token.clone(), over.clone(), calls.clone());
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let answer = gate.legacy(&token, &call("echo")).await;
                    assert_eq!((answer.status, answer.code()), (StatusCode::OK, None));
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for round in 0..50 {
        let before = calls.load(Ordering::Relaxed);
        let body = 1 + round % 4;
        gate.reload(&routes(&upstream, &format!("{RULES}    limits: {{body: {body}MiB}}\n")))
            .expect("it can be used");
        while calls.load(Ordering::Relaxed) < before + 8 {
            assert!(workers.iter().all(|worker| !worker.is_finished()), "a call failed");
            tokio::task::yield_now().await;
        }
    }
    over.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.await.expect("no call failed");
    }
    assert_eq!(
        gate.metric("portcullis_config_reloads_total{result=\"ok\"}"),
        Some(50.0)
    );
}
