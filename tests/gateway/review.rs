//! What a hostile reader of the code expected to break.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::gate::{Gate, call};
use super::upstream::{Upstream, event, json_reply, stream};

const PATIENCE: Duration = Duration::from_secs(10);

fn get(gate: &Gate, token: &str) -> Request<Full<Bytes>> {
    let mut request = gate.request(Method::GET, token, String::new());
    request
        .headers_mut()
        .insert("mcp-protocol-version", "2025-11-25".parse().expect("a value"));
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_standing_stream_does_not_hold_up_the_end() {
    let upstream = Upstream::start(|_| async {
        let (sender, response) = stream();
        sender.send(": open\n\n".to_owned()).expect("a reader");
        // Kept open for as long as the test lasts.
        std::mem::forget(sender);
        response
    })
    .await;
    let gate = Gate::with_route(&upstream, "").await;
    let mut opened = gate.open(get(&gate, &gate.reader())).await.into_body();
    let first = opened.frame().await.expect("a frame").expect("a whole one");
    assert_eq!(first.into_data().expect("data"), ": open\n\n");
    // Well inside the grace period, at whose end everything is cut.
    let end = tokio::spawn(gate.running.shutdown());
    let rest = tokio::time::timeout(PATIENCE, opened.collect()).await;
    assert!(rest.expect("the stream ends at once").is_ok(), "it ends, and isn't cut");
    tokio::time::timeout(PATIENCE, end)
        .await
        .expect("the gateway ends")
        .expect("well");
}

#[tokio::test]
async fn a_standing_stream_may_be_silent_for_longer_than_the_idle_timeout() {
    let upstream = Upstream::start(|_| async {
        let (sender, response) = stream();
        sender.send(": open\n\n".to_owned()).expect("a reader");
        tokio::spawn(async move {
            // The test's time stands still by then, but for this.
            tokio::time::sleep(PATIENCE).await;
            let _ = sender.send(event(&json!({"jsonrpc": "2.0", "method": "notifications/message"})));
        });
        response
    })
    .await;
    let yaml = format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {{urls: [\"{}\"], idle_timeout: 100ms}}\n",
        upstream.url()
    );
    let gate = Gate::with_yaml(&yaml).await;
    let mut opened = gate.open(get(&gate, &gate.reader())).await.into_body();
    opened.frame().await.expect("a frame").expect("a whole one");
    tokio::time::pause();
    let rest = opened.collect().await.expect("it isn't cut").to_bytes();
    assert!(String::from_utf8_lossy(&rest).contains("notifications/message"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_says_nothing_loses_its_place() {
    let upstream = Upstream::tools(0).await;
    let gate = Gate::with_route(&upstream, "").await;
    for opening in ["", "P", "PRI * HTTP/2.0\r\n"] {
        let mut socket = tokio::net::TcpStream::connect(gate.running.address())
            .await
            .expect("accepted");
        socket.write_all(opening.as_bytes()).await.expect("written");
        let mut end = Vec::new();
        tokio::time::timeout(PATIENCE, socket.read_to_end(&mut end))
            .await
            .unwrap_or_else(|_| panic!("{opening:?} is still open"))
            .ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compressed_standing_stream_is_refused_where_rules_must_read_it() {
    let upstream = Upstream::start(|_| async {
        let (sender, mut response) = stream();
        sender.send("\u{1f}not really gzip".to_owned()).expect("a reader");
        response
            .headers_mut()
            .insert("content-encoding", "gzip".parse().expect("a value"));
        response
    })
    .await;
    let gate = Gate::with_rules(&upstream).await;
    let token = gate.token(&["mcp.use", "notes.read"], &[]);
    let answer = gate.send(get(&gate, &token)).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::BAD_GATEWAY, Some(50_200)));
}

const BUDGET: &str = "    tools: {rules: [{allow: [\"*\"]}], max: 2}
    resources: {rules: [{allow: [\"file:///open/*\"]}]}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gathered_list_hides_what_else_it_holds() {
    let upstream = Upstream::start(|seen| async move {
        json_reply(&json!({"jsonrpc": "2.0", "id": seen.json()["id"], "result": {
            "tools": [{"name": "a"}, {"name": "b"}, {"name": "c"}],
            "resources": [{"uri": "file:///open/x"}, {"uri": "file:///secret/y"}],
        }}))
    })
    .await;
    let gate = Gate::with_route(&upstream, BUDGET).await;
    let answer = gate.modern(&gate.reader(), "tools/list", json!({})).await;
    let result = &answer.json()["result"];
    assert_eq!(result["tools"].as_array().map(Vec::len), Some(2), "{answer:?}");
    assert_eq!(result["resources"], json!([{"uri": "file:///open/x"}]));
    assert_eq!(result["_meta"]["portcullis/hiddenTools"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gathered_page_ends_with_its_answer_and_not_with_its_stream() {
    let upstream = Upstream::start(|seen| async move {
        let (sender, response) = stream();
        let list = json!({"jsonrpc": "2.0", "id": seen.json()["id"], "result": {"tools": [{"name": "a"}]}});
        sender.send(event(&list)).expect("a reader");
        std::mem::forget(sender);
        response
    })
    .await;
    let gate = Gate::with_route(&upstream, BUDGET).await;
    let answer = gate.modern(&gate.reader(), "tools/list", json!({})).await;
    assert!(String::from_utf8_lossy(&answer.body).contains("\"a\""), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn news_of_a_hidden_resource_does_not_pass_in_disguise() {
    let twice = r#"{"jsonrpc":"2.0","method":"x","method":"notifications/resources/updated","params":{"uri":"file:///secret/1"}}"#;
    let batch = r#"[{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"file:///secret/2"}}]"#;
    let open = r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"file:///open/3"}}"#;
    let upstream = Upstream::start(move |_| async move {
        let (sender, response) = stream();
        for data in [twice, batch, open] {
            sender.send(format!("data: {data}\n\n")).expect("a reader");
        }
        response
    })
    .await;
    let gate = Gate::with_route(&upstream, BUDGET).await;
    let answer = gate.send(get(&gate, &gate.reader())).await;
    assert_eq!(String::from_utf8_lossy(&answer.body), format!("data: {open}\n\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decisions_and_key_ages_are_counted() {
    let upstream = Upstream::tools(0).await;
    let gate = Gate::with_rules(&upstream).await;
    let token = gate.token(&["mcp.use", "notes.read"], &[]);
    let answers: [Value; 2] = [
        gate.modern(&token, "tools/call", json!({"name": "echo"})).await.json(),
        gate.modern(&token, "tools/call", json!({"name": "admin_reset"}))
            .await
            .json(),
    ];
    assert!(answers[0]["result"].is_object() && answers[1]["error"].is_object());
    let decisions = |decision: &str, reason: &str| {
        gate.metric(&format!(
            "portcullis_policy_decisions_total{{route=\"notes\",decision=\"{decision}\",reason=\"{reason}\"}}"
        ))
    };
    assert_eq!(decisions("allow", "rule"), Some(1.0));
    assert_eq!(decisions("deny", "deny_rule"), Some(1.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_before_a_broken_event_still_arrives() {
    let upstream = Upstream::start(|seen| async move {
        let (sender, response) = stream();
        let answer = event(&json!({"jsonrpc": "2.0", "id": seen.json()["id"], "result": {"content": []}}));
        sender
            .send(format!("{answer}data: {{\"result\":{{\"tools\":1}}}}\n\n"))
            .expect("a reader");
        response
    })
    .await;
    let gate = Gate::with_rules(&upstream).await;
    let token = gate.token(&["mcp.use", "notes.read"], &[]);
    let mut body = gate.open(gate.post(&token, &call("echo"))).await.into_body();
    let first = body
        .frame()
        .await
        .expect("a frame")
        .expect("the answer")
        .into_data()
        .expect("data");
    assert!(String::from_utf8_lossy(&first).contains("content"), "{first:?}");
    assert!(
        body.frame().await.is_none_or(|frame| frame.is_err()),
        "the list does not pass"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_over_http_sse_is_answered_before_the_end() {
    let (answers, feed) = tokio::sync::watch::channel(None::<String>);
    let upstream = Upstream::start(move |seen| {
        let mut feed = feed.clone();
        async move {
            let (sender, mut response) = stream();
            if seen.method == Method::POST {
                *response.status_mut() = StatusCode::ACCEPTED;
                return response;
            }
            sender
                .send("event: endpoint\ndata: /messages?s=1\n\n".to_owned())
                .expect("a reader");
            tokio::spawn(async move {
                let answer = feed.wait_for(Option::is_some).await.expect("the test runs").clone();
                let _ = sender.send(answer.expect("just seen"));
                sender.closed().await;
            });
            response
        }
    })
    .await;
    let yaml = format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {{urls: [\"{}\"], transport: sse}}\n",
        upstream.url()
    );
    let gate = Gate::with_yaml(&yaml).await;
    let token = gate.reader();
    let mut opened = gate
        .open(gate.request(Method::GET, &token, String::new()))
        .await
        .into_body();
    let endpoint = opened
        .frame()
        .await
        .expect("a frame")
        .expect("whole")
        .into_data()
        .expect("data");
    let endpoint = String::from_utf8_lossy(&endpoint).into_owned();
    let target = endpoint.trim().rsplit("data: ").next().expect("a URL").to_owned();
    let mut message = gate.post(&token, &call("echo"));
    *message.uri_mut() = target.parse().expect("an absolute URL");
    assert_eq!(gate.open(message).await.status(), StatusCode::ACCEPTED);
    upstream.wait_for(2).await;
    let end = tokio::spawn(gate.running.shutdown());
    // The shutdown is under way before the answer comes: nobody is accepted any more.
    let answer = json!({"jsonrpc": "2.0", "id": 7, "result": {"content": []}});
    answers.send_replace(Some(event(&answer)));
    let rest = tokio::time::timeout(PATIENCE, opened.collect())
        .await
        .expect("the stream ends once the call is answered")
        .expect("it isn't cut");
    assert!(String::from_utf8_lossy(&rest.to_bytes()).contains("content"));
    tokio::time::timeout(PATIENCE, end)
        .await
        .expect("the gateway ends")
        .expect("well");
}

#[tokio::test]
async fn a_browser_is_shown_no_page_of_a_servers_on_the_origin_of_ours() {
    let upstream = Upstream::undiscovered(|seen| async move {
        // Whoever isn't a browser gets a stream.
        let browses = seen.headers.get("accept").is_some_and(|accept| accept == "text/html");
        if !browses && seen.method == Method::GET {
            let (sender, response) = stream();
            let _ = sender.send("event: endpoint\ndata: messages\n\n".to_owned());
            std::mem::forget(sender);
            return response;
        }
        let mut response = json_reply(&json!("<script>fetch('/connect')</script>"));
        for (name, value) in [
            ("content-type", "text/html"),
            ("nel", "{\"report_to\": \"x\", \"max_age\": 86400}"),
            ("report-to", "{\"group\": \"x\"}"),
            ("clear-site-data", "\"cookies\""),
        ] {
            response.headers_mut().insert(name, value.parse().expect("a value"));
        }
        response
    })
    .await;
    let gate = Gate::with_route(&upstream, "    anonymous: true\n").await;
    let mut request = gate.request(Method::GET, "", String::new());
    request
        .headers_mut()
        .insert("accept", "text/html".parse().expect("a value"));
    let answer = gate.send(request).await;
    assert_eq!(answer.header("content-type"), "text/html", "{answer:?}");
    assert_eq!(
        answer.header("content-security-policy"),
        "sandbox; default-src 'none'; frame-ancestors 'none'"
    );
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    for name in ["nel", "report-to", "clear-site-data"] {
        assert_eq!(answer.header(name), "", "{answer:?}");
    }
}
