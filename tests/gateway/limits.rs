//! What a caller may have of the gate, and that every way out of a request gives it back.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use portcullis::edge::Body;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

use super::gate::{Answer, Gate, call};
use super::upstream::{self, Seen, Upstream};

const TOKEN_TIME: Duration = Duration::from_secs(600);

fn token_of(gate: &Gate, subject: &str) -> String {
    gate.issuer.mint(subject, &gate.url(), &[], &[], TOKEN_TIME)
}

fn limited(answer: &Answer) -> (u16, Option<i64>, String) {
    (
        answer.status.as_u16(),
        answer.code(),
        answer.header("retry-after").to_owned(),
    )
}

/// Asks until it is no longer refused for want of a place: what ends, ends a moment after its client has seen it.
async fn until_free(gate: &Gate, token: &str) {
    let asking = async {
        while gate.modern(token, "ping", json!({})).await.code() == Some(42_900) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), asking)
        .await
        .expect("the place is given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_refuses_each_era_in_its_form_and_nobody_else() {
    let upstream = Upstream::tools(0).await;
    let gate = Gate::with_route(&upstream, "    limits: {rate: 1/m, burst: 2}\n").await;
    let (alice, bob) = (token_of(&gate, "alice"), token_of(&gate, "bob"));
    for _ in 0..2 {
        assert_eq!(gate.legacy(&alice, &call("echo")).await.status, StatusCode::OK);
    }
    let before = upstream.seen().len();
    let modern = gate.modern(&alice, "tools/call", json!({"name": "echo"})).await;
    assert_eq!(limited(&modern), (429, Some(42_900), "60".to_owned()));
    assert_eq!(modern.json()["id"], 1, "the refusal carries the request's id");
    let legacy = gate.legacy(&alice, &call("echo")).await;
    assert_eq!(limited(&legacy), (200, Some(42_900), "60".to_owned()));
    assert_eq!(legacy.json()["id"], 7);
    let notification = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    assert_eq!(gate.legacy(&alice, &notification).await.status, StatusCode::ACCEPTED);
    for method in [Method::GET, Method::DELETE] {
        let answer = gate.send(gate.request(method.clone(), &alice, String::new())).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{method}");
    }
    assert_eq!(upstream.seen().len(), before, "nothing refused was sent");
    // Each member of a batch counts, and a batch passes whole or not at all.
    let batch = |size: usize| -> Value {
        (0..size)
            .map(|id| json!({"jsonrpc": "2.0", "id": id, "method": "ping"}))
            .collect()
    };
    let refused = gate.legacy(&bob, &batch(3)).await;
    assert_eq!(limited(&refused), (429, Some(42_900), "120".to_owned()));
    assert_eq!(gate.legacy(&bob, &batch(2)).await.status, StatusCode::OK);
    assert_eq!(gate.legacy(&bob, &call("echo")).await.code(), Some(42_900));
    let counted = gate.metric("portcullis_rate_limited_total{route=\"notes\",kind=\"rate\"}");
    assert_eq!(counted, Some(7.0));
    let Gate { running, directory, .. } = gate;
    running.shutdown().await;
    let audit = std::fs::read_to_string(directory.path().join("audit.jsonl")).expect("an audit file");
    let lines = audit
        .lines()
        .filter(|line| line.contains("\"reason\":\"rate\""))
        .count();
    assert_eq!(lines, 7, "{audit}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_limited_by_their_address() {
    let upstream = Upstream::tools(0).await;
    let gate = Gate::with_route(&upstream, "    anonymous: true\n    limits: {rate: 1/m}\n").await;
    let from = async |host: Ipv4Addr| {
        let mut connector = HttpConnector::new();
        connector.set_local_address(Some(host.into()));
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
        let request = gate.modern_request("", "ping", json!({}));
        client.request(request).await.expect("an answer").status().as_u16()
    };
    let (one, other) = (Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2));
    assert_eq!(from(one).await, 200);
    assert_eq!(from(one).await, 429);
    assert_eq!(from(other).await, 200);
    // Who shows a token is known by it, wherever they are.
    let token = token_of(&gate, "alice");
    assert_eq!(gate.modern(&token, "ping", json!({})).await.status, StatusCode::OK);
}

/// A server that answers `ping` at once, and else as `act` says.
async fn acting<F>(act: F) -> Upstream
where
    F: Fn() -> BoxFuture<'static, Response<Body>> + Send + Sync + 'static,
{
    let act = Arc::new(act);
    Upstream::start(move |seen: Seen| {
        let act = act.clone();
        async move {
            let message = seen.json();
            if message["method"] == "ping" {
                return upstream::json_reply(&upstream::result(&message, 0));
            }
            act().await
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_out_gives_the_place_back() {
    type Act = fn() -> BoxFuture<'static, Response<Body>>;
    let table: [(&str, Act); 5] = [
        ("an answer", || {
            Box::pin(async { upstream::json_reply(&json!({"jsonrpc": "2.0", "id": 1, "result": {}})) })
        }),
        ("an error of the upstream", || {
            Box::pin(async { upstream::status(StatusCode::INTERNAL_SERVER_ERROR) })
        }),
        ("a refused credential", || {
            Box::pin(async { upstream::status(StatusCode::UNAUTHORIZED) })
        }),
        ("a stream that breaks off", || {
            Box::pin(async {
                let (sender, response) = upstream::stream();
                let _ = sender.send(": begun\n\n".to_owned());
                response
            })
        }),
        ("a connection that breaks", || {
            Box::pin(async { panic!("on purpose: the connection ends") })
        }),
    ];
    for (name, act) in table {
        let upstream = acting(act).await;
        let rules = "    limits: {concurrency: 1}\n    tools: {rules: [{allow: [echo]}]}\n";
        let gate = Gate::with_route(&upstream, rules).await;
        let token = gate.reader();
        let request = gate.modern_request(&token, "tools/call", json!({"name": "echo"}));
        let response = gate.open(request).await;
        assert_ne!(response.status(), StatusCode::TOO_MANY_REQUESTS, "{name}");
        let _ = tokio::time::timeout(Duration::from_secs(10), response.into_body().collect())
            .await
            .unwrap_or_else(|_| panic!("{name}: the answer ends"));
        until_free(&gate, &token).await;
        // What policy refuses has given its place back, too.
        let refused = gate.modern(&token, "tools/call", json!({"name": "other"})).await;
        assert_eq!(refused.code(), Some(40_300), "{name}");
        until_free(&gate, &token).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_gives_its_place_back() {
    let begun = Arc::new(Notify::new());
    let tell = begun.clone();
    let upstream = acting(move || {
        tell.notify_one();
        Box::pin(std::future::pending())
    })
    .await;
    let gate = Gate::with_route(&upstream, "    limits: {concurrency: 1}\n").await;
    let token = gate.reader();
    let request = gate.modern_request(&token, "tools/call", json!({"name": "echo"}));
    let waiting = tokio::spawn(super::gate::client().request(request));
    begun.notified().await;
    let second = gate.modern(&token, "tools/call", json!({"name": "echo"})).await;
    assert_eq!(limited(&second), (429, Some(42_900), "1".to_owned()));
    let other = token_of(&gate, "bob");
    assert_eq!(gate.modern(&other, "ping", json!({})).await.status, StatusCode::OK);
    // Notifications need no place.
    let notification = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    let before = upstream.seen().len();
    drop(tokio::spawn(
        super::gate::client().request(gate.post(&token, &notification)),
    ));
    upstream.wait_for(before + 1).await;
    waiting.abort();
    until_free(&gate, &token).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streamed_reply_has_its_place_until_it_ends() {
    let senders: Arc<Mutex<Vec<mpsc::UnboundedSender<String>>>> = Arc::default();
    let open = senders.clone();
    let upstream = acting(move || {
        let (sender, response) = upstream::stream();
        let _ = sender.send(upstream::event(
            &json!({"jsonrpc": "2.0", "method": "notifications/progress"}),
        ));
        open.lock().expect("nobody panicked").push(sender);
        Box::pin(async { response })
    })
    .await;
    for rules in ["", "    tools: {rules: [{allow: [echo]}]}\n"] {
        let gate = Gate::with_route(&upstream, &format!("    limits: {{concurrency: 1}}\n{rules}")).await;
        let token = gate.reader();
        let request = gate.modern_request(&token, "tools/call", json!({"name": "echo"}));
        let mut response = gate.open(request).await;
        response.body_mut().frame().await.expect("progress").expect("a frame");
        assert_eq!(
            gate.modern(&token, "ping", json!({})).await.status,
            StatusCode::TOO_MANY_REQUESTS
        );
        let sender = senders.lock().expect("nobody panicked").pop().expect("an open stream");
        let _ = sender.send(upstream::event(&json!({"jsonrpc": "2.0", "id": 1, "result": {}})));
        response.body_mut().frame().await.expect("the result").expect("a frame");
        // The call is answered, and its stream still holds a connection to the server.
        assert_eq!(
            gate.modern(&token, "ping", json!({})).await.status,
            StatusCode::TOO_MANY_REQUESTS
        );
        drop(sender);
        response.into_body().collect().await.expect("the rest");
        // No retry: who has seen the end may call again at once.
        assert_eq!(gate.modern(&token, "ping", json!({})).await.status, StatusCode::OK);
    }
}

async fn get(gate: &Gate, token: &str) -> Response<hyper::body::Incoming> {
    let request = Request::get(gate.url())
        .header("accept", "text/event-stream")
        .header("authorization", format!("Bearer {token}"));
    gate.open(request.body(Full::default()).expect("a request")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http_sse_a_call_has_its_place_until_its_answer_passed() {
    let stream: Arc<Mutex<Option<mpsc::UnboundedSender<String>>>> = Arc::default();
    let open = stream.clone();
    let upstream = Upstream::start(move |seen: Seen| {
        let open = open.clone();
        async move {
            if seen.method != Method::GET {
                return upstream::status(StatusCode::ACCEPTED);
            }
            let (sender, response) = upstream::stream();
            let _ = sender.send("event: endpoint\ndata: messages\n\n".to_owned());
            *open.lock().expect("nobody panicked") = Some(sender);
            response
        }
    })
    .await;
    let gate = Gate::with_yaml(&format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {{urls: [\"{}\"], transport: sse}}\n    limits: {{concurrency: 1}}\n",
        upstream.url()
    ))
    .await;
    let token = gate.reader();
    let mut response = get(&gate, &token).await;
    let mut text = String::new();
    let mut until = async |part: &str| -> String {
        let reading = async {
            while !text.contains(part) {
                let frame = response.body_mut().frame().await.expect("it stands").expect("a frame");
                text.push_str(std::str::from_utf8(frame.data_ref().expect("data")).expect("UTF-8"));
            }
        };
        tokio::time::timeout(Duration::from_secs(10), reading)
            .await
            .expect("in time");
        std::mem::take(&mut text)
    };
    let endpoint = until("\n\n").await;
    let endpoint = endpoint.split_once("data: ").expect("an endpoint").1.trim().to_owned();
    let post = async |id: u32| {
        let mut request = gate.post(&token, &json!({"jsonrpc": "2.0", "id": id, "method": "ping"}));
        *request.uri_mut() = endpoint.parse().expect("a URL");
        gate.send(request).await.status
    };
    assert_eq!(post(1).await, StatusCode::ACCEPTED);
    // The refusal comes over the stream, as its answer would have.
    assert_eq!(post(2).await, StatusCode::ACCEPTED);
    let refusal = until("42900").await;
    assert!(refusal.contains("\"id\":2"), "{refusal}");
    let answer = upstream::event(&json!({"jsonrpc": "2.0", "id": 1, "result": {}}));
    let sender = stream.lock().expect("nobody panicked").clone().expect("an open stream");
    sender.send(answer).expect("open");
    until("\"result\"").await;
    assert_eq!(post(3).await, StatusCode::ACCEPTED);
    assert_eq!(upstream.wait_for(3).await.len(), 3, "the stream, and the calls 1 and 3");
    // The stream's end frees what never was answered.
    drop(response);
    let again = async {
        loop {
            let mut response = get(&gate, &token).await;
            let frame = response.body_mut().frame().await.expect("it stands").expect("a frame");
            let text = String::from_utf8(frame.data_ref().expect("data").to_vec()).expect("UTF-8");
            let endpoint = text.split_once("data: ").expect("an endpoint").1.trim().to_owned();
            let before = upstream.seen().len();
            let mut request = gate.post(&token, &json!({"jsonrpc": "2.0", "id": 9, "method": "ping"}));
            *request.uri_mut() = endpoint.parse().expect("a URL");
            gate.send(request).await;
            if upstream.seen().len() > before {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again)
        .await
        .expect("the place is given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standing_streams_are_counted_apart() {
    let upstream = Upstream::sse().await;
    let routes = format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {{urls: [\"{}\"], transport: sse}}\n    limits: {{concurrency: 1}}\n",
        upstream.url()
    );
    let listen = "  limits: {streams: 2, streams_per_principal: 1}\n";
    let gate = Gate::with_listen(listen, &routes).await;
    let (alice, bob, carol) = (
        token_of(&gate, "alice"),
        token_of(&gate, "bob"),
        token_of(&gate, "carol"),
    );
    let hers = get(&gate, &alice).await;
    assert_eq!(hers.status(), StatusCode::OK);
    let second = get(&gate, &alice).await;
    assert_eq!(second.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(second.headers()["retry-after"], "1");
    let his = get(&gate, &bob).await;
    assert_eq!(his.status(), StatusCode::OK);
    assert_eq!(get(&gate, &carol).await.status(), StatusCode::TOO_MANY_REQUESTS);
    for kind in ["streams", "streams_per_principal"] {
        let name = format!("portcullis_rate_limited_total{{route=\"notes\",kind=\"{kind}\"}}");
        assert_eq!(gate.metric(&name), Some(1.0), "{kind}");
    }
    // A reload gives nobody a second share.
    gate.reload(&routes).expect("the same again");
    assert_eq!(get(&gate, &carol).await.status(), StatusCode::TOO_MANY_REQUESTS);
    drop(hers);
    let again = async {
        while get(&gate, &carol).await.status() == StatusCode::TOO_MANY_REQUESTS {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again)
        .await
        .expect("the place is given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overloaded_gate_refuses_before_it_looks() {
    let begun = Arc::new(Notify::new());
    let tell = begun.clone();
    let upstream = acting(move || {
        tell.notify_one();
        Box::pin(std::future::pending())
    })
    .await;
    let routes = format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {}\n",
        upstream.url()
    );
    let gate = Gate::with_listen("  limits: {requests: 1}\n", &routes).await;
    let token = gate.reader();
    let request = gate.modern_request(&token, "tools/call", json!({"name": "echo"}));
    let waiting = tokio::spawn(super::gate::client().request(request));
    begun.notified().await;
    for token in [&*token, "not.a.token", ""] {
        let shed = gate.modern(token, "ping", json!({})).await;
        // A 401 would show that it has looked at the token.
        assert_eq!(limited(&shed), (503, Some(50_300), "1".to_owned()), "{token}");
    }
    let counted = gate.metric("portcullis_rate_limited_total{route=\"_none\",kind=\"overload\"}");
    assert_eq!(counted, Some(3.0));
    waiting.abort();
    let again = async {
        while gate.modern(&token, "ping", json!({})).await.status == StatusCode::SERVICE_UNAVAILABLE {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again)
        .await
        .expect("the place is given back");
}
