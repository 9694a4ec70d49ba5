//! The tool budget over all pages where answers come over an HTTP+SSE stream or in a batch, and what else happens on such
//! a stream in the meantime.

use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::gate::{Answer, Gate, RULES, call};
use super::upstream::{Upstream, event, json_reply, result, status, stream};

const PATIENCE: Duration = Duration::from_secs(10);

/// A client with an open HTTP+SSE stream.
struct Client<'a> {
    gate: &'a Gate,
    token: String,
    target: String,
    body: Incoming,
    rest: String,
}

impl<'a> Client<'a> {
    async fn open(gate: &'a Gate) -> Self {
        let token = gate.token(&["mcp.use", "notes.read"], &[]);
        let response = gate.open(gate.request(Method::GET, &token, String::new())).await;
        assert_eq!(response.status(), StatusCode::OK);
        let mut client = Self {
            gate,
            token,
            target: String::new(),
            body: response.into_body(),
            rest: String::new(),
        };
        let first = client.event().await;
        client.target = first
            .strip_prefix("event: endpoint\ndata: ")
            .expect("the endpoint comes first")
            .to_owned();
        client
    }

    async fn post(&self, message: &Value) -> Answer {
        let mut request = self.gate.post(&self.token, message);
        *request.uri_mut() = self.target.parse().expect("an absolute URL");
        self.gate.send(request).await
    }

    async fn accepted(&self, message: &Value) {
        let answer = self.post(message).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    }

    async fn event(&mut self) -> String {
        let reading = async {
            loop {
                if let Some((event, after)) = self.rest.split_once("\n\n") {
                    let event = event.to_owned();
                    self.rest = after.to_owned();
                    if !event.starts_with(':') {
                        return event;
                    }
                    continue;
                }
                let frame = self.body.frame().await.expect("the stream goes on").expect("a frame");
                self.rest
                    .push_str(std::str::from_utf8(frame.data_ref().expect("data")).expect("UTF-8"));
            }
        };
        tokio::time::timeout(PATIENCE, reading)
            .await
            .expect("the event comes in time")
    }

    /// The next event's message.
    async fn message(&mut self) -> Value {
        let event = self.event().await;
        let data = event.lines().find_map(|line| line.strip_prefix("data: "));
        serde_json::from_str(data.unwrap_or_default()).unwrap_or_else(|_| panic!("no message: {event}"))
    }
}

/// An HTTP+SSE server whose stream the test writes: [`Upstream::wait_for`] hears of what is posted.
async fn scripted() -> (Upstream, mpsc::UnboundedReceiver<mpsc::UnboundedSender<String>>) {
    let (opened, streams) = mpsc::unbounded_channel();
    let upstream = Upstream::start(move |seen| {
        let opened = opened.clone();
        async move {
            if seen.method != Method::GET {
                return status(StatusCode::ACCEPTED);
            }
            let (sender, response) = stream();
            let _ = sender.send("event: endpoint\ndata: /messages?s=1\n\n".to_owned());
            let _ = opened.send(sender);
            response
        }
    })
    .await;
    (upstream, streams)
}

async fn sse_gate(upstream: &Upstream, route: &str) -> Gate {
    Gate::with_yaml(&format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {{urls: [\"{}\"], transport: sse}}\n{route}",
        upstream.url()
    ))
    .await
}

fn list(id: impl Into<Value>) -> Value {
    json!({"jsonrpc": "2.0", "id": id.into(), "method": "tools/list"})
}

/// One page of an answer.
fn page(id: impl Into<Value>, names: &[&str], next: Option<&str>) -> Value {
    let tools: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
    let mut answer = json!({"jsonrpc": "2.0", "id": id.into(), "result": {"tools": tools}});
    if let Some(next) = next {
        answer["result"]["nextCursor"] = Value::from(next);
    }
    answer
}

fn names(list: &Value) -> Vec<&str> {
    let tools = list["result"]["tools"].as_array();
    let tools = tools.unwrap_or_else(|| panic!("no tools: {list}"));
    tools
        .iter()
        .map(|tool| tool["name"].as_str().expect("a name"))
        .collect()
}

/// Waits until so many requests of that method ended so.
async fn ended(gate: &Gate, method: &str, outcome: &str, count: f64) {
    let line =
        format!("portcullis_mcp_requests_total{{route=\"notes\",method=\"{method}\",tool=\"\",outcome=\"{outcome}\"}}");
    let counted = async {
        while gate.metric(&line) != Some(count) {
            tokio::task::yield_now().await;
        }
    };
    if tokio::time::timeout(PATIENCE, counted).await.is_err() {
        panic!("not {count} {outcome}: {}", gate.running.metrics().render());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scenario_r_r10_a_budget_counts_over_all_pages_of_a_stream() {
    // The rules permit `echo` and all `tool_*`, and hide two: with 139 of them, 140 are permitted.
    for (tools, on_excess, shown) in [
        (127, "trim", Some(128)),
        (127, "refuse", Some(128)),
        (128, "trim", Some(128)),
        (128, "refuse", None),
        (139, "trim", Some(128)),
        (139, "refuse", None),
    ] {
        let upstream = Upstream::sse_tools(tools).await;
        let last = format!("tool_{}", tools - 1);
        let budget = format!("      max: 128\n      pin: [{last}]\n      on_excess: {on_excess}\n");
        let gate = sse_gate(&upstream, &format!("{RULES}{budget}")).await;
        let mut client = Client::open(&gate).await;
        client.accepted(&list(1)).await;
        let answer = client.message().await;
        assert_eq!(answer["id"], 1);
        assert_eq!(upstream.seen().len(), 4, "the stream, and all three pages");
        match shown {
            None => {
                assert_eq!(answer["error"]["code"], 40_300, "{answer}");
                let text = answer["error"]["message"].as_str().expect("a message");
                let found = (tools + 1).to_string();
                assert!(text.contains(&found) && text.contains("128"), "{text}");
                ended(&gate, "tools/list", "denied", 1.0).await;
            }
            Some(shown) => {
                assert_eq!(names(&answer).len(), shown, "{tools} {on_excess}");
                assert!(names(&answer).contains(&&*last), "the pinned survives");
                assert!(!names(&answer).contains(&"delete_note"), "r37");
                let hidden = answer["result"]["_meta"]["portcullis/hiddenTools"].as_u64();
                assert_eq!(hidden.unwrap_or(0), tools as u64 + 1 - 128);
                assert!(answer["result"]["nextCursor"].is_null());
                ended(&gate, "tools/list", "success", 1.0).await;
            }
        }
        // The stream goes on, and the id is free again.
        client
            .accepted(&json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}))
            .await;
        assert_eq!(client.message().await["result"], json!({}));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r52_no_tool_is_lost_or_doubled_over_a_stream() {
    let wanted: Vec<String> = ["echo".to_owned()]
        .into_iter()
        .chain((0..120).map(|number| format!("tool_{number}")))
        .collect();
    for budget in ["", "      max: 500\n"] {
        let upstream = Upstream::sse_tools(120).await;
        let gate = sse_gate(&upstream, &format!("{RULES}{budget}")).await;
        let mut client = Client::open(&gate).await;
        let mut all: Vec<String> = Vec::new();
        let mut request = list(1);
        let mut pages = 0;
        loop {
            client.accepted(&request).await;
            let answer = client.message().await;
            all.extend(names(&answer).into_iter().map(str::to_owned));
            pages += 1;
            let Some(cursor) = answer["result"]["nextCursor"].as_str() else {
                break;
            };
            request["params"] = json!({"cursor": cursor});
        }
        assert_eq!(all, wanted, "{budget}");
        assert_eq!(pages, if budget.is_empty() { 3 } else { 1 });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scenario_r_r09_progress_streams_before_the_end() {
    let (upstream, mut streams) = scripted().await;
    let gate = sse_gate(&upstream, &format!("{RULES}      max: 128\n")).await;
    let mut client = Client::open(&gate).await;
    let server = streams.recv().await.expect("a stream");
    let mut asked = call("echo");
    asked["params"]["_meta"] = json!({"progressToken": "p"});
    client.accepted(&asked).await;
    let progress = |done: u8| json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": "p", "progress": done}});
    for done in [1, 2] {
        server.send(event(&progress(done))).expect("a reader");
        assert_eq!(client.message().await, progress(done), "before the end");
    }
    server
        .send(event(&json!({"jsonrpc": "2.0", "id": 7, "result": {"content": []}})))
        .expect("a reader");
    assert_eq!(client.message().await["result"], json!({"content": []}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_may_ask_while_its_list_is_gathered() {
    let (upstream, mut streams) = scripted().await;
    let gate = sse_gate(&upstream, "    tools: {max: 2}\n").await;
    let mut client = Client::open(&gate).await;
    let server = streams.recv().await.expect("a stream");
    client.accepted(&list("a")).await;
    // Its id is spelled as only some servers would.
    let first = event(&page("a", &["one"], Some("2"))).replace("\"a\"", "\"\\u0061\"");
    server.send(first).expect("a reader");
    let seen = upstream.wait_for(3).await;
    assert_eq!(seen[2].json()["params"]["cursor"], "2");
    assert_eq!(seen[2].target, "/messages?s=1");
    let roots = json!({"jsonrpc": "2.0", "id": "a", "method": "roots/list"});
    server.send(event(&roots)).expect("a reader");
    assert_eq!(client.message().await, roots, "it is no answer, and passes at once");
    client
        .accepted(&json!({"jsonrpc": "2.0", "id": "a", "result": {"roots": []}}))
        .await;
    upstream.wait_for(4).await;
    server
        .send(event(&page("a", &["two", "three"], None)))
        .expect("a reader");
    let answer = client.message().await;
    assert_eq!(names(&answer), ["one", "two"]);
    ended(&gate, "tools/list", "success", 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_list_is_gathered_no_further() {
    let (upstream, mut streams) = scripted().await;
    let gate = sse_gate(&upstream, "    tools: {max: 2}\n").await;
    let mut client = Client::open(&gate).await;
    let server = streams.recv().await.expect("a stream");
    client.accepted(&list(1)).await;
    server.send(event(&page(1, &["one"], Some("2")))).expect("a reader");
    upstream.wait_for(3).await;
    let again = client.post(&list(1)).await;
    assert_eq!(again.status, StatusCode::ACCEPTED);
    assert_eq!(client.message().await["error"]["code"], 42_900, "the id is taken");
    client
        .accepted(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}))
        .await;
    assert_eq!(upstream.wait_for(4).await[3].json()["params"]["requestId"], 1);
    ended(&gate, "tools/list", "cancelled", 1.0).await;
    // It may be asked again, from its beginning.
    client.accepted(&list(1)).await;
    upstream.wait_for(5).await;
    server.send(event(&page(1, &["new"], None))).expect("a reader");
    assert_eq!(names(&client.message().await), ["new"]);
    assert_eq!(upstream.seen().len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_ends_with_its_stream() {
    let (upstream, mut streams) = scripted().await;
    let gate = sse_gate(&upstream, "    tools: {max: 2}\n").await;
    for count in [1.0, 2.0] {
        let client = Client::open(&gate).await;
        let server = streams.recv().await.expect("a stream");
        let before = upstream.seen().len();
        client.accepted(&list(1)).await;
        server.send(event(&page(1, &["one"], Some("2")))).expect("a reader");
        upstream.wait_for(before + 2).await;
        if count < 2.0 {
            drop(client);
            tokio::time::timeout(PATIENCE, server.closed())
                .await
                .expect("the upstream is let go");
            ended(&gate, "tools/list", "cancelled", count).await;
        } else {
            drop(server);
            ended(&gate, "tools/list", "cancelled", count).await;
            drop(client);
        }
        assert_eq!(upstream.seen().len(), before + 2, "no more is asked for");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_cant_be_gathered_is_an_error_on_the_stream() {
    // What the upstream does with the second page's request.
    for (name, code, outcome) in [
        ("endless", 50_200, "upstream_error"),
        ("refuses", 50_200, "upstream_error"),
        ("locks out", 50_201, "upstream_error"),
        ("fails", -32_603, "protocol_error"),
    ] {
        let open: std::sync::Arc<std::sync::Mutex<Option<mpsc::UnboundedSender<String>>>> = std::sync::Arc::default();
        let upstream = Upstream::start(move |seen| {
            let open = open.clone();
            async move {
                let mut open = open.lock().expect("nobody panicked");
                if seen.method == Method::GET {
                    let (sender, response) = stream();
                    let _ = sender.send("event: endpoint\ndata: /messages\n\n".to_owned());
                    *open = Some(sender);
                    return response;
                }
                let again = seen.json()["params"]["cursor"].is_string();
                let answer = match (again, name) {
                    (true, "refuses") => return status(StatusCode::INTERNAL_SERVER_ERROR),
                    (true, "locks out") => return status(StatusCode::UNAUTHORIZED),
                    (true, "fails") => {
                        json!({"jsonrpc": "2.0", "id": 1, "error": {"code": -32_603, "message": "broken"}})
                    }
                    _ => page(1, &["one"], Some("more")),
                };
                let _ = open.as_ref().expect("an open stream").send(event(&answer));
                status(StatusCode::ACCEPTED)
            }
        })
        .await;
        let gate = sse_gate(&upstream, "    tools: {max: 2}\n").await;
        let mut client = Client::open(&gate).await;
        client.accepted(&list(1)).await;
        let answer = client.message().await;
        assert_eq!(
            (answer["id"].as_i64(), answer["error"]["code"].as_i64()),
            (Some(1), Some(code)),
            "{name}: {answer}"
        );
        ended(&gate, "tools/list", outcome, 1.0).await;
        if name == "endless" {
            assert_eq!(upstream.seen().len(), 101, "100 pages");
        }
        let own = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {"cursor": "more"}});
        let own = client.post(&own).await;
        assert_eq!((own.status, own.code()), (StatusCode::BAD_REQUEST, Some(-32_602)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_is_answered_before_the_end() {
    let (upstream, mut streams) = scripted().await;
    let gate = sse_gate(&upstream, "    tools: {max: 2}\n").await;
    let client = Client::open(&gate).await;
    let server = streams.recv().await.expect("a stream");
    client.accepted(&list(1)).await;
    let body = client.body;
    let end = tokio::spawn(gate.running.shutdown());
    server.send(event(&page(1, &["one"], Some("2")))).expect("a reader");
    upstream.wait_for(3).await;
    server.send(event(&page(1, &["two"], None))).expect("a reader");
    let rest = tokio::time::timeout(PATIENCE, body.collect())
        .await
        .expect("the stream ends once the list is answered")
        .expect("it isn't cut");
    let rest = String::from_utf8_lossy(&rest.to_bytes()).into_owned();
    assert!(rest.contains("one") && rest.contains("two"), "{rest}");
    tokio::time::timeout(PATIENCE, end)
        .await
        .expect("the gateway ends")
        .expect("well");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_upstream_says_to_a_message_it_refuses_passes() {
    let upstream = Upstream::start(|seen| async move {
        if seen.method == Method::GET {
            let (sender, response) = stream();
            let _ = sender.send("event: endpoint\ndata: /messages\n\n".to_owned());
            // Kept open for as long as the test lasts.
            std::mem::forget(sender);
            return response;
        }
        let mut response = json_reply(&json!({"detail": "no such session"}));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        response
    })
    .await;
    let gate = sse_gate(&upstream, &format!("{RULES}      max: 2\n")).await;
    let client = Client::open(&gate).await;
    for (count, (message, method)) in [
        (list(1), "tools/list"),
        (json!({"jsonrpc": "2.0", "id": 2, "method": "ping"}), "ping"),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = client.post(&message).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert_eq!(answer.json()["detail"], "no such session");
        ended(&gate, method, "upstream_error", 1.0).await;
        assert_eq!(upstream.seen().len(), count + 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r07_a_second_endpoint_event_does_not_pass() {
    let (upstream, mut streams) = scripted().await;
    let gate = sse_gate(&upstream, "").await;
    let mut client = Client::open(&gate).await;
    let server = streams.recv().await.expect("a stream");
    for data in ["http://elsewhere.example/messages", "/messages?s=2", ""] {
        server
            .send(format!("event: endpoint\ndata: {data}\n\n"))
            .expect("a reader");
    }
    let news = json!({"jsonrpc": "2.0", "method": "notifications/message"});
    server.send(event(&news)).expect("a reader");
    assert_eq!(client.message().await, news, "the next that comes");
    client.accepted(&call("echo")).await;
    assert_eq!(
        upstream.seen().last().expect("a message").target,
        "/messages?s=1",
        "where the first said"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_find_their_calls_however_ids_are_spelled() {
    let (upstream, mut streams) = scripted().await;
    let gate = sse_gate(&upstream, "").await;
    let mut client = Client::open(&gate).await;
    let server = streams.recv().await.expect("a stream");
    for (count, (asked, answered)) in [("1", "1.0"), ("\"a\"", "\"\\u0061\""), ("\"\\/\"", "\"/\"")]
        .into_iter()
        .enumerate()
    {
        let message = format!("{{\"jsonrpc\":\"2.0\",\"id\":{asked},\"method\":\"ping\"}}");
        let mut request = gate.request(Method::POST, &client.token, message);
        *request.uri_mut() = client.target.parse().expect("a URL");
        assert_eq!(gate.send(request).await.status, StatusCode::ACCEPTED);
        // A client's own answer has an id of the server's counting, which is no call's.
        let own = format!("{{\"jsonrpc\":\"2.0\",\"id\":{asked},\"result\":{{}}}}");
        let mut request = gate.request(Method::POST, &client.token, own);
        *request.uri_mut() = client.target.parse().expect("a URL");
        assert_eq!(gate.send(request).await.status, StatusCode::ACCEPTED);
        server
            .send(format!(
                "data: {{\"jsonrpc\":\"2.0\",\"id\":{answered},\"error\":{{\"code\":1,\"message\":\"\"}}}}\n\n"
            ))
            .expect("a reader");
        assert!(client.event().await.contains(answered), "as it came");
        ended(&gate, "ping", "protocol_error", count as f64 + 1.0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_whose_answer_is_unusable_waits_for_nothing() {
    let (opened, mut streams) = mpsc::unbounded_channel();
    let upstream = Upstream::start(move |seen| {
        let opened = opened.clone();
        async move {
            if seen.method == Method::GET {
                let (sender, response) = stream();
                let _ = sender.send("event: endpoint\ndata: /messages\n\n".to_owned());
                let _ = opened.send(sender);
                return response;
            }
            let mut response = status(StatusCode::ACCEPTED);
            let long = "x".repeat(2000).parse().expect("a value");
            response.headers_mut().insert("mcp-session-id", long);
            response
        }
    })
    .await;
    let gate = sse_gate(&upstream, "").await;
    let mut client = Client::open(&gate).await;
    let _server = streams.recv().await.expect("a stream");
    client
        .accepted(&json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}))
        .await;
    assert_eq!(client.message().await["error"]["code"], 50_200);
    ended(&gate, "ping", "upstream_error", 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r50_a_batch_holds_no_list_that_has_a_budget() {
    let upstream = Upstream::tools(137).await;
    let gate = Gate::with_route(&upstream, "    tools: {max: 128}\n").await;
    let batch = json!([call("echo"), list(8)]);
    let answer = gate.legacy(&gate.reader(), &batch).await;
    assert_eq!(answer.status, StatusCode::OK);
    let answers = answer.json();
    let by_id = |id: i64| {
        let all = answers.as_array().expect("a batch");
        let found = all.iter().find(|member| member["id"] == id);
        found.unwrap_or_else(|| panic!("no {id}: {answers}")).clone()
    };
    assert_eq!(by_id(7)["result"]["content"][0]["text"], "echo");
    assert_eq!(by_id(8)["error"]["code"], 40_300);
    let text = by_id(8)["error"]["message"].as_str().expect("a message").to_owned();
    assert!(text.contains("by itself"), "{text}");
    assert_eq!(upstream.seen()[0].json(), json!([call("echo")]));
    let alone = gate.legacy(&gate.reader(), &json!([list(8)])).await;
    assert_eq!(alone.json()[0]["error"]["code"], 40_300);
    assert_eq!(upstream.seen().len(), 1);
    // Without a budget a batch holds what it likes.
    let gate = Gate::with_route(&upstream, "").await;
    let answer = gate.legacy(&gate.reader(), &batch).await;
    assert_eq!(answer.json()[1]["result"]["tools"].as_array().map(Vec::len), Some(50));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_refused_notifications_has_no_answers() {
    let upstream = Upstream::tools(1).await;
    let yaml = format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {0}\n{RULES}  \
         strict:\n    path: /strict/mcp\n    upstream: {0}\n    denials: status\n{RULES}",
        upstream.url()
    );
    let gate = Gate::with_yaml(&yaml).await;
    let evil = json!({"jsonrpc": "2.0", "method": "notifications/evil"});
    let batch = json!([evil, evil]);
    let token = gate.token(&["mcp.use", "notes.read"], &[]);
    let answer = gate.legacy(&token, &batch).await;
    assert_eq!((answer.status, &*answer.body), (StatusCode::ACCEPTED, &b""[..]));
    let url = format!("{}/strict/mcp", gate.running.url());
    let token = gate
        .issuer
        .mint("alice", &url, &["mcp.use", "notes.read"], &[], Duration::from_secs(600));
    let mut request = gate.post(&token, &batch);
    *request.uri_mut() = url.parse().expect("a URL");
    let answer = gate.send(request).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::FORBIDDEN, Some(40_300)));
    assert_eq!(answer.json().get("id"), None);
    assert!(upstream.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_may_ask_before_it_lists() {
    // Its list waits for what the client answers: held back, the question would hold back the list.
    for (on_excess, shown) in [("trim", Some(128)), ("refuse", None)] {
        let (told, answered) = tokio::sync::watch::channel(false);
        let told = std::sync::Arc::new(told);
        let upstream = Upstream::start(move |seen| {
            let mut answered = answered.clone();
            let told = told.clone();
            async move {
                let message = seen.json();
                if message["method"] != "tools/list" {
                    told.send_replace(true);
                    return status(StatusCode::ACCEPTED);
                }
                if message["params"]["cursor"].is_string() {
                    return json_reply(&result(&message, 137));
                }
                let (sender, response) = stream();
                tokio::spawn(async move {
                    let log = json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "first"}});
                    let roots = json!({"jsonrpc": "2.0", "id": 99, "method": "roots/list"});
                    let _ = sender.send(event(&log));
                    let _ = sender.send(event(&roots));
                    let _ = answered.wait_for(|answered| *answered).await;
                    let _ = sender.send(event(&result(&message, 137)));
                });
                response
            }
        })
        .await;
        let gate = Gate::with_route(&upstream, &format!("    tools: {{max: 128, on_excess: {on_excess}}}\n")).await;
        let token = gate.reader();
        let response = gate.open(gate.post(&token, &list(1))).await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut client = Client {
            gate: &gate,
            token: token.clone(),
            target: String::new(),
            body: response.into_body(),
            rest: String::new(),
        };
        assert_eq!(client.message().await["params"]["data"], "first");
        assert_eq!(client.message().await["id"], 99);
        let answer = json!({"jsonrpc": "2.0", "id": 99, "result": {"roots": []}});
        assert_eq!(gate.legacy(&token, &answer).await.status, StatusCode::ACCEPTED);
        let answer = client.message().await;
        match shown {
            Some(shown) => assert_eq!(names(&answer).len(), shown),
            None => assert_eq!(answer["error"]["code"], 40_300),
        }
        let end = tokio::time::timeout(PATIENCE, client.body.frame()).await;
        assert!(end.expect("it ends").is_none(), "and ends well");
        ended(
            &gate,
            "tools/list",
            if shown.is_some() { "success" } else { "denied" },
            1.0,
        )
        .await;
    }
}
