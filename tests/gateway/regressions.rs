//! Behaviours owed, by their numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::gate::{Gate, call};
use super::shot::Shot;
use super::upstream::{self, Upstream};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r37_a_hidden_tool_is_refused_when_called() {
    let upstream = Upstream::tools(3).await;
    let gate = Gate::with_rules(&upstream).await;
    let token = gate.token(&["mcp.use", "notes.read"], &[]);
    let listed = gate.modern(&token, "tools/list", json!({})).await;
    assert_eq!(listed.status, StatusCode::OK);
    let names: Vec<String> = listed.json()["result"]["tools"]
        .as_array()
        .expect("tools")
        .iter()
        .map(|tool| tool["name"].as_str().expect("a name").to_owned())
        .collect();
    assert_eq!(names, ["echo", "tool_0", "tool_1", "tool_2"]);
    let refused = gate.modern(&token, "tools/call", json!({"name": "delete_note"})).await;
    assert_eq!((refused.status, refused.code()), (StatusCode::FORBIDDEN, Some(40_300)));
    // A legacy client would not survive the status.
    let refused = gate.legacy(&token, &call("delete_note")).await;
    assert_eq!((refused.status, refused.code()), (StatusCode::OK, Some(40_300)));
    let called = upstream
        .seen()
        .iter()
        .filter(|seen| seen.json()["method"] == "tools/call")
        .count();
    assert_eq!(called, 0);
}

/// The next event's text, comments aside.
async fn next_event(body: &mut Incoming, rest: &mut String) -> String {
    let reading = async {
        loop {
            if let Some((event, after)) = rest.split_once("\n\n") {
                let event = event.to_owned();
                *rest = after.to_owned();
                if !event.starts_with(':') {
                    return event;
                }
                continue;
            }
            let frame = body.frame().await.expect("the stream goes on").expect("a frame");
            rest.push_str(std::str::from_utf8(frame.data_ref().expect("data")).expect("UTF-8"));
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reading)
        .await
        .expect("the event comes in time")
}

/// A GET to where the gate listens, whatever its public name.
async fn get(gate: &Gate, token: &str, path: &str) -> Response<Incoming> {
    let mut request =
        Request::get(format!("http://{}{path}", gate.running.address())).header("accept", "text/event-stream");
    if !token.is_empty() {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    gate.open(request.body(Full::default()).expect("a request")).await
}

fn ping() -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": "ping"})
}

fn names(list: &Value) -> Vec<String> {
    let tools = list["result"]["tools"]
        .as_array()
        .unwrap_or_else(|| panic!("no tools: {list}"));
    tools
        .iter()
        .map(|tool| tool["name"].as_str().expect("a name").to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r04_messages_belong_to_the_streams_person() {
    let upstream = Upstream::sse().await;
    let route = |name: &str, more: &str| {
        format!(
            "  {name}:\n    path: /{name}/mcp\n    upstream: {{urls: [\"{}\"], transport: sse}}\n{more}",
            upstream.url()
        )
    };
    let gate = Gate::with_yaml(&format!(
        "routes:\n{}{}",
        route("notes", ""),
        route("lax", "    bearerless_messages: true\n")
    ))
    .await;
    for (name, bearerless) in [("notes", 401), ("lax", 202)] {
        let audience = format!("{}/{name}/mcp", gate.running.url());
        let token = |subject: &str| gate.issuer.mint(subject, &audience, &[], &[], Duration::from_secs(600));
        let (alice, bob) = (token("alice"), token("bob"));
        let mut stream = get(&gate, &alice, &format!("/{name}/mcp")).await;
        let mut rest = String::new();
        let first = next_event(stream.body_mut(), &mut rest).await;
        let url = first.split_once("data: ").expect("a URL").1.trim().to_owned();
        let path = url.strip_prefix(&gate.running.url()).expect("ours").to_owned();
        let post = |token: &str, path: &str| Shot::post(token, ping().to_string()).to(path);
        let before = upstream.seen().len();
        let status = async |shot: Shot| shot.fire(&gate).await.expect("an answer").status.as_u16();
        assert_eq!(status(post(&bob, &path)).await, 403, "{name}: another's bearer");
        assert_eq!(
            status(post(&alice, &format!("/{name}/mcp/messages?session_id=x"))).await,
            404,
            "{name}: unknown"
        );
        assert_eq!(upstream.seen().len(), before, "{name}: nothing refused is sent");
        assert_eq!(status(post("", &path)).await, bearerless, "{name}: no bearer");
        assert_eq!(status(post(&alice, &path)).await, 202, "{name}: one's own");
        let before = upstream.seen().len();
        gate.clock.set(gate.clock.now() + 700);
        assert_eq!(
            status(post("", &path)).await,
            401,
            "{name}: the stream's token has expired"
        );
        assert_eq!(status(post(&alice, &path)).await, 401, "{name}: and so has the bearer");
        assert_eq!(upstream.seen().len(), before, "{name}: nothing refused is sent");
        gate.clock.set(gate.clock.now() - 700);
        drop(stream);
        let closed = async { while status(post(&alice, &path)).await != 404 {} };
        tokio::time::timeout(Duration::from_secs(10), closed)
            .await
            .expect("a closed stream is forgotten");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r05_r07_r08_every_url_is_the_public_one() {
    let upstream = Upstream::sse().await;
    let yaml = format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {{urls: [\"{}\"], transport: sse}}\n",
        upstream.url()
    );
    let gate = Gate::with_setup("  public_url: https://mcp.example.com\n", None, &yaml).await;
    let refused = get(&gate, "", "/notes/mcp").await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    let prm = "/.well-known/oauth-protected-resource/notes/mcp";
    assert_eq!(
        refused.headers()["www-authenticate"],
        format!("Bearer resource_metadata=\"https://mcp.example.com{prm}\"")
    );
    for path in [prm, "/.well-known/oauth-protected-resource"] {
        let document = get(&gate, "", path).await;
        assert_eq!(document.status(), StatusCode::OK, "r08: without a bearer");
        let document = document.into_body().collect().await.expect("a body").to_bytes();
        let document: Value = serde_json::from_slice(&document).expect("JSON");
        assert_eq!(document["resource"], "https://mcp.example.com/notes/mcp");
        assert_eq!(document["authorization_servers"], json!([gate.issuer.issuer()]));
    }
    // Scenario R: the endpoint first, then 202 and the answer on the stream.
    let token = gate.reader();
    let mut stream = get(&gate, &token, "/notes/mcp").await;
    let mut rest = String::new();
    let first = next_event(stream.body_mut(), &mut rest).await;
    let path = first
        .strip_prefix("event: endpoint\ndata: https://mcp.example.com")
        .unwrap_or_else(|| panic!("not the endpoint: {first}"))
        .to_owned();
    assert!(
        path.starts_with("/notes/mcp/messages?session_id=") && !path.contains("up=1"),
        "{path}"
    );
    for method in ["initialize", "ping"] {
        let message = json!({"jsonrpc": "2.0", "id": 5, "method": method, "params": {}});
        let posted = Shot::post(&token, message.to_string())
            .to(&path)
            .fire(&gate)
            .await
            .expect("an answer");
        assert_eq!(posted.status, StatusCode::ACCEPTED);
        let answer = next_event(stream.body_mut(), &mut rest).await;
        assert!(answer.contains("\"id\":5"), "{answer}");
    }
    assert_eq!(
        upstream.seen().last().expect("a message").target,
        "/messages?up=1&x=%2Fy",
        "r07: its own query"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r09_progress_arrives_before_the_upstream_finishes() {
    let (sender, mut streams) = tokio::sync::mpsc::unbounded_channel();
    let upstream = Upstream::start(move |_| {
        let (events, response) = upstream::stream();
        sender.send(events).expect("the test listens");
        async move { response }
    })
    .await;
    let gate = Gate::with_rules(&upstream).await;
    let token = gate.token(&["mcp.use", "notes.read"], &[]);
    let asking = tokio::spawn({
        let request = gate.modern_request(&token, "tools/call", json!({"name": "echo"}));
        async move { super::gate::client().request(request).await.expect("an answer") }
    });
    let events = streams.recv().await.expect("the upstream is asked");
    events
        .send(upstream::event(&json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 1, "progress": 1}})))
        .expect("it is read");
    let mut body = asking.await.expect("no panic").into_body();
    let mut rest = String::new();
    assert!(
        next_event(&mut body, &mut rest)
            .await
            .contains("notifications/progress")
    );
    events
        .send(upstream::event(
            &json!({"jsonrpc": "2.0", "id": 1, "result": {"content": []}}),
        ))
        .expect("it is read");
    assert!(next_event(&mut body, &mut rest).await.contains("\"result\""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r10_128_tools_pass_and_129_meet_the_policy() {
    // The upstream adds three of its own.
    for (tools, on_excess, shown) in [
        (125, "trim", Some(128)),
        (125, "refuse", Some(128)),
        (126, "trim", Some(128)),
        (126, "refuse", None),
        (137, "trim", Some(128)),
    ] {
        let upstream = Upstream::tools(tools).await;
        let last = format!("tool_{}", tools - 1);
        let gate = Gate::with_route(
            &upstream,
            &format!("    tools: {{max: 128, pin: [{last}], on_excess: {on_excess}}}\n"),
        )
        .await;
        let listed = gate.modern(&gate.reader(), "tools/list", json!({})).await;
        assert_eq!(upstream.seen().len(), 3, "all pages are gathered");
        match shown {
            None => {
                let text = listed.json()["error"]["message"]
                    .as_str()
                    .expect("a message")
                    .to_owned();
                assert!(text.contains("129") && text.contains("128"), "{text}");
            }
            Some(shown) => {
                let list = listed.json();
                assert_eq!(names(&list).len(), shown, "{tools} {on_excess}");
                assert!(names(&list).contains(&last), "the pinned survives");
                let hidden = list["result"]["_meta"]["portcullis/hiddenTools"].as_u64().unwrap_or(0);
                assert_eq!(hidden, tools as u64 + 3 - 128);
                assert!(list["result"]["nextCursor"].is_null());
            }
        }
    }
}

#[test]
fn r26_r38_what_is_unsafe_does_not_load() {
    let load = |identity: &str, credential: &str| {
        let text = format!(
            "listen: {{address: \"127.0.0.1:0\"}}\n{identity}routes:\n  notes:\n    path: /mcp\n    upstream: http://127.0.0.1:1/mcp\n{credential}"
        );
        portcullis::config::Config::parse(&text, "t.yaml", std::path::Path::new("."), &|_| None).map(|_| ())
    };
    let corp = "identity: {corp: {issuer: \"https://login.example\"}}\n";
    let exchange = |url: &str| {
        format!(
            "    credential: {{exchange: {{token_endpoint: \"{url}\", client_id: gate, client_secret: abcdefgh12345678abcdefgh12345678}}}}\n"
        )
    };
    assert!(load(corp, &exchange("https://login.example/token")).is_ok());
    assert!(load(corp, &exchange("http://login.example/token")).is_err(), "r26");
    assert!(
        load("identity: {corp: {issuer: \"http://login.example\"}}\n", "").is_err(),
        "r26"
    );
    assert!(load("", "").is_err(), "r38: no identity, and not said to be anonymous");
}

/// Scenario N, and r39 and r40.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r39_r40_exchange_or_nothing() {
    let upstream = Upstream::tools(1).await;
    let fails = Arc::new(AtomicBool::new(false));
    let endpoint = {
        let fails = fails.clone();
        Upstream::start(move |_| {
            let fails = fails.load(Ordering::SeqCst);
            async move {
                let granted = json!({"access_token": "for-nextcloud", "token_type": "Bearer", "expires_in": 300,
                    "issued_token_type": "urn:ietf:params:oauth:token-type:access_token"});
                let mut answer = upstream::json_reply(&if fails {
                    json!({"error": "invalid_target"})
                } else {
                    granted
                });
                if fails {
                    *answer.status_mut() = StatusCode::BAD_REQUEST;
                }
                answer
            }
        })
        .await
    };
    let credential = format!(
        "    credential: {{exchange: {{token_endpoint: \"{}\", client_id: gate, client_secret: abcdefgh12345678abcdefgh12345678, audience: nextcloud}}}}\n",
        endpoint.url()
    );
    let gate = Gate::with_route(&upstream, &format!("{}{credential}", super::gate::RULES)).await;
    let token = gate.token(&["mcp.use", "notes.read"], &[]);
    let call = async |token: &str, tool: &str| gate.modern(token, "tools/call", json!({"name": tool})).await;
    assert_eq!(call(&token, "delete_note").await.status, StatusCode::FORBIDDEN);
    assert!(endpoint.seen().is_empty(), "no exchange for what is refused");
    for _ in 0..2 {
        assert_eq!(call(&token, "echo").await.status, StatusCode::OK);
    }
    let asked = endpoint.seen();
    assert_eq!(asked.len(), 1, "r40: the second is cached");
    let form = String::from_utf8(asked[0].body.to_vec()).expect("a form");
    assert!(
        form.contains("audience=nextcloud") && form.contains(&token) && !form.contains("&scope="),
        "{form}"
    );
    for seen in upstream.seen() {
        assert_eq!(seen.headers["authorization"], "Bearer for-nextcloud");
        assert_eq!(seen.headers["host"], upstream.address.to_string(), "r46");
    }
    let counted =
        "portcullis_mcp_requests_total{route=\"notes\",method=\"tools/call\",tool=\"echo\",outcome=\"success\"}";
    assert_eq!(gate.metric(counted), Some(2.0), "{}", gate.running.metrics().render());

    fails.store(true, Ordering::SeqCst);
    let other = gate.issuer.mint(
        "bob",
        &gate.url(),
        &["mcp.use", "notes.read"],
        &[],
        Duration::from_secs(600),
    );
    let before = upstream.seen().len();
    let failed = call(&other, "echo").await;
    assert_eq!((failed.status, failed.code()), (StatusCode::BAD_GATEWAY, Some(50_201)));
    assert_eq!(upstream.seen().len(), before, "r39: no upstream request");
    // A forged subject token never gets that far.
    let exchanges = endpoint.seen().len();
    assert_eq!(
        call(&format!("{}x", &other[..other.len() - 4]), "echo").await.status,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(endpoint.seen().len(), exchanges, "r41");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r48_a_stream_is_not_reopened_with_an_expired_token() {
    let upstream = Upstream::sse().await;
    let yaml = format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {{urls: [\"{}\"], transport: sse}}\n",
        upstream.url()
    );
    let gate = Gate::with_yaml(&yaml).await;
    let expired = gate.issuer.mint_claims(
        &json!({"iss": gate.issuer.issuer(), "sub": "alice", "aud": gate.url(), "exp": gate.clock.now() - 61}),
    );
    assert_eq!(
        get(&gate, &expired, "/notes/mcp").await.status(),
        StatusCode::UNAUTHORIZED
    );
    assert!(upstream.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r50_a_mixed_batch_answers_everybody_and_sends_only_what_is_permitted() {
    let upstream = Upstream::tools(1).await;
    let gate = Gate::with_rules(&upstream).await;
    let token = gate.token(&["mcp.use", "notes.read"], &[]);
    let mut refused = call("admin_reset");
    refused["id"] = json!(8);
    let answer = gate.legacy(&token, &json!([call("echo"), refused])).await;
    assert_eq!(answer.status, StatusCode::OK);
    let answers = answer.json();
    let by_id = |id: i64| {
        let all = answers.as_array().expect("a batch");
        all.iter()
            .find(|answer| answer["id"] == id)
            .unwrap_or_else(|| panic!("{id} is not answered: {answers}"))
    };
    assert_eq!(by_id(7)["result"]["content"][0]["text"], "echo");
    assert_eq!(by_id(8)["error"]["code"], 40_300);
    assert!(!String::from_utf8_lossy(&upstream.seen()[0].body).contains("admin_reset"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r52_filtering_loses_no_page() {
    let upstream = Upstream::tools(137).await;
    let gate = Gate::with_rules(&upstream).await;
    let token = gate.token(&["mcp.use", "notes.read"], &[]);
    let (mut all, mut params) = (Vec::new(), json!({}));
    loop {
        let page = gate.modern(&token, "tools/list", params).await.json();
        all.extend(names(&page));
        match page["result"]["nextCursor"].as_str() {
            Some(cursor) => params = json!({"cursor": cursor}),
            None => break,
        }
    }
    let mut wanted = vec!["echo".to_owned()];
    wanted.extend((0..137).map(|number| format!("tool_{number}")));
    assert_eq!(all, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scenario_a_a_shared_secret_asks_the_issuer_nothing() {
    let upstream = Upstream::tools(1).await;
    let issuer = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = format!("http://{}", issuer.local_addr().expect("an address"));
    let secret = "0f8c1a5be27d4936a1c0f8c1a5be27d4936";
    let identity = format!(
        "  tickets: {{issuer: \"{at}\", shared_secret: {secret}, scope_upgrade_endpoint: \"https://login.example/up\"}}\n"
    );
    let rules = "    tools: {rules: [{allow: [echo], scopes: [files.read]}]}\n";
    let yaml = format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {}\n{rules}",
        upstream.url()
    );
    let gate = Gate::with_setup("", Some(&identity), &yaml).await;
    let token = |scope: &str| {
        let claims =
            json!({"iss": at, "sub": "alice", "aud": gate.url(), "scope": scope, "exp": gate.clock.now() + 60});
        let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
        jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("a token")
    };
    let refused = gate.legacy(&token("basic"), &call("echo")).await;
    assert_eq!((refused.status, refused.code()), (StatusCode::FORBIDDEN, Some(40_301)));
    assert_eq!(
        refused.header("www-authenticate"),
        format!(
            "Bearer error=\"insufficient_scope\", resource_metadata=\"{}/.well-known/oauth-protected-resource/notes/mcp\", scope=\"files.read\"",
            gate.running.url()
        )
    );
    let data = refused.json()["error"]["data"].clone();
    assert_eq!(
        (&data["required_scope"], &data["user_scopes"]),
        (&json!("files.read"), &json!(["basic"]))
    );
    assert_eq!(data["scope_upgrade_endpoint"], "https://login.example/up");
    assert!(upstream.seen().is_empty());
    assert_eq!(
        gate.legacy(&token("basic files.read"), &call("echo")).await.status,
        StatusCode::OK
    );
    assert!(upstream.seen()[0].headers.get("authorization").is_none());
    assert!(issuer.accept().now_or_never().is_none(), "the issuer was asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r44_the_audit_has_a_line_a_decision_and_no_token() {
    let upstream = Upstream::tools(0).await;
    let gate = Gate::with_rules(&upstream).await;
    let token = gate.token(&["mcp.use", "notes.read"], &[]);
    let words = json!({"name": "echo", "arguments": {"text": "a private matter"}});
    gate.modern(&token, "tools/call", words).await;
    gate.modern(&token, "tools/call", json!({"name": "admin_reset"})).await;
    gate.modern("", "tools/call", json!({"name": "echo"})).await;
    let metrics = gate.running.metrics().render();
    gate.running.shutdown().await;
    let audit = std::fs::read_to_string(gate.directory.path().join("audit.jsonl")).expect("the audit file");
    let lines: Vec<Value> = audit
        .lines()
        .map(|line| serde_json::from_str(line).expect("one JSON object a line"))
        .collect();
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            (
                &line["subject"],
                &line["tool"],
                &line["decision"],
                &line["rule"],
                &line["outcome"],
            )
        })
        .collect();
    let (alice, null) = (json!("alice"), Value::Null);
    assert_eq!(
        told,
        [
            (
                &alice,
                &json!("echo"),
                &json!("allow"),
                &json!("tools.rules[0]"),
                &json!("success")
            ),
            (
                &alice,
                &json!("admin_reset"),
                &json!("deny"),
                &json!("tools.rules[2]"),
                &json!("denied")
            ),
            (&null, &null, &json!("deny"), &null, &json!("denied")),
        ]
    );
    assert!(lines[0]["args_hmac"].is_string() && lines[1]["args_hmac"].is_null());
    assert!(!audit.contains("private"), "arguments are never told");
    for text in [&audit, &metrics] {
        for part in token.split('.') {
            assert!(!text.contains(&part[..16]), "not even a prefix of a token");
        }
    }
}
