//! Modern clients of legacy servers.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use portcullis::edge::Body;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::gate::{Answer, Gate, RULES};
use super::upstream::{Seen, Upstream, event, json_reply, status, stream};

/// A server of 2025-11-25 with sessions, and tools that wait for the test.
struct Legacy {
    upstream: Upstream,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    sessions: Mutex<(usize, HashSet<String>)>,
    /// Streams of calls that are under way, and the standing ones.
    calls: Mutex<Vec<(Value, mpsc::UnboundedSender<String>)>>,
    standing: Mutex<Vec<mpsc::UnboundedSender<String>>>,
    /// What clients answered to the server's questions.
    answers: watch::Sender<Vec<Value>>,
}

fn held<T>(lock: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Legacy {
    async fn start() -> Self {
        let state = Arc::new(State::default());
        let serving = state.clone();
        let upstream = Upstream::undiscovered(move |seen| {
            let state = serving.clone();
            async move { state.serve(&seen) }
        })
        .await;
        Self { upstream, state }
    }

    /// How often a method came.
    fn count(&self, method: &str) -> usize {
        let seen = self.upstream.seen();
        seen.iter().filter(|seen| seen.json()["method"] == method).count()
    }

    async fn wait_for(&self, what: impl Fn(&Seen) -> bool) -> Seen {
        for count in 1.. {
            let seen = self.upstream.wait_for(count).await;
            if let Some(found) = seen.iter().find(|seen| what(seen)) {
                return found.clone();
            }
        }
        unreachable!("it waits until it is found, or time is over")
    }
}

impl State {
    fn serve(&self, seen: &Seen) -> Response<Body> {
        let message = seen.json();
        let session = seen
            .headers
            .get("mcp-session-id")
            .map(|id| id.to_str().expect("text").to_owned());
        if message["method"] == "initialize" {
            let id = {
                let mut sessions = held(&self.sessions);
                sessions.0 += 1;
                let id = format!("s-{}", sessions.0);
                sessions.1.insert(id.clone());
                id
            };
            let mut response = json_reply(&json!({"jsonrpc": "2.0", "id": message["id"], "result": {
                "protocolVersion": "2025-11-25",
                "capabilities": {"tools": {"listChanged": true}, "resources": {"subscribe": true}, "logging": {}},
                "serverInfo": {"name": "old", "version": "1"}, "instructions": "Be kind.",
            }}));
            response
                .headers_mut()
                .insert("mcp-session-id", id.parse().expect("a value"));
            return response;
        }
        let Some(session) = session else {
            let refused =
                json!({"jsonrpc": "2.0", "id": "server-error", "error": {"code": -32600, "message": "no session"}});
            let mut response = json_reply(&refused);
            *response.status_mut() = StatusCode::BAD_REQUEST;
            return response;
        };
        if !held(&self.sessions).1.contains(&session) {
            return status(StatusCode::NOT_FOUND);
        }
        match seen.method {
            Method::DELETE => {
                held(&self.sessions).1.remove(&session);
                return status(StatusCode::NO_CONTENT);
            }
            Method::GET => {
                let (sender, response) = stream();
                held(&self.standing).push(sender);
                return response;
            }
            _ => {}
        }
        if message.get("method").is_none() {
            self.answers.send_modify(|answers| answers.push(message));
            return status(StatusCode::ACCEPTED);
        }
        if message.get("id").is_none() {
            return status(StatusCode::ACCEPTED);
        }
        let tool = message["params"]["name"].as_str().unwrap_or_default().to_owned();
        match (message["method"].as_str().unwrap_or_default(), &*tool) {
            ("tools/call", "tool_wait") => {
                let (sender, response) = stream();
                held(&self.calls).push((message, sender));
                response
            }
            ("tools/call", "tool_page") => json_reply(&json!({"jsonrpc": "2.0", "id": message["id"], "error": {
                "code": -32042, "message": "visit", "data": {"elicitations": [
                    {"mode": "url", "elicitationId": "e", "url": "https://x.example/", "message": "Please visit"},
                ]},
            }})),
            ("resources/subscribe" | "resources/unsubscribe" | "logging/setLevel", _) => {
                json_reply(&json!({"jsonrpc": "2.0", "id": message["id"], "result": {}}))
            }
            _ => json_reply(&super::upstream::result(&message, 1)),
        }
    }

    /// Writes a message into the latest call's stream; `"$id"` and `"$token"` stand for that call's.
    fn say(&self, message: &Value) {
        let calls = held(&self.calls);
        let (call, sender) = calls.last().expect("a call is under way");
        let text = message
            .to_string()
            .replace("\"$id\"", &call["id"].to_string())
            .replace("\"$token\"", &call["params"]["_meta"]["progressToken"].to_string());
        sender
            .send(event(&serde_json::from_str(&text).expect("JSON")))
            .expect("it is read");
    }

    async fn answer(&self, count: usize) -> Value {
        let mut answers = self.answers.subscribe();
        let answers = tokio::time::timeout(
            std::time::Duration::from_secs(10),
            answers.wait_for(|all| all.len() >= count),
        );
        answers.await.expect("in time").expect("it is there")[count - 1].clone()
    }

    fn forget(&self) {
        held(&self.sessions).1.clear();
    }
}

/// What a modern client sends.
struct Ask {
    token: String,
    id: Value,
    method: &'static str,
    params: Value,
    capabilities: Value,
    meta: Value,
}

fn ask(token: &str, method: &'static str, params: Value) -> Ask {
    Ask {
        token: token.to_owned(),
        id: json!(1),
        method,
        params,
        capabilities: json!({}),
        meta: json!({}),
    }
}

fn call(token: &str, tool: &str) -> Ask {
    ask(token, "tools/call", json!({"name": tool, "arguments": {"a": 1}}))
}

impl Ask {
    fn can(mut self, capabilities: Value) -> Self {
        self.capabilities = capabilities;
        self
    }

    fn meta(mut self, key: &str, value: Value) -> Self {
        self.meta[key] = value;
        self
    }

    fn with(mut self, key: &str, value: Value) -> Self {
        self.params[key] = value;
        self
    }

    fn request(&self, gate: &Gate) -> Request<Full<Bytes>> {
        let mut params = self.params.clone();
        params["_meta"] = self.meta.clone();
        params["_meta"]["io.modelcontextprotocol/protocolVersion"] = "2026-07-28".into();
        params["_meta"]["io.modelcontextprotocol/clientInfo"] = json!({"name": "test", "version": "1"});
        params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = self.capabilities.clone();
        let body = json!({"jsonrpc": "2.0", "id": self.id, "method": self.method, "params": params});
        let mut request = gate.post(&self.token, &body);
        let headers = request.headers_mut();
        headers.insert("mcp-protocol-version", "2026-07-28".parse().expect("a value"));
        headers.insert("mcp-method", self.method.parse().expect("a value"));
        if let Some(name) = params["name"].as_str().or(params["uri"].as_str()) {
            headers.insert("mcp-name", name.parse().expect("a value"));
        }
        request
    }

    async fn send(&self, gate: &Gate) -> Answer {
        gate.send(self.request(gate)).await
    }

    async fn open(&self, gate: &Gate) -> Events {
        let response = gate.open(self.request(gate)).await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events(response.into_body(), String::new())
    }
}

/// A response's events, as they come.
struct Events(Incoming, String);

impl Events {
    /// The next message; `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((event, rest)) = self.1.split_once("\n\n") {
                let data: String = event.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
                self.1 = rest.to_owned();
                if !data.is_empty() {
                    return Some(serde_json::from_str(&data).expect("JSON"));
                }
                continue;
            }
            let frame = tokio::time::timeout(std::time::Duration::from_secs(10), self.0.frame()).await;
            let data = frame
                .expect("in time")?
                .expect("it isn't cut")
                .into_data()
                .expect("data");
            self.1.push_str(std::str::from_utf8(&data).expect("text"));
        }
    }
}

fn asks_for_name() -> Value {
    json!({"jsonrpc": "2.0", "id": "q-1", "method": "elicitation/create",
        "params": {"message": "Your name?", "requestedSchema": {"type": "object", "properties": {}}}})
}

fn done(text: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": "$id", "result": {"content": [{"type": "text", "text": text}]}})
}

async fn under_way(legacy: &Legacy, count: usize) {
    for seen in 1.. {
        legacy.upstream.wait_for(seen).await;
        if held(&legacy.state.calls).len() >= count {
            return;
        }
    }
}

#[tokio::test]
async fn a_call_of_a_modern_client_reaches_a_legacy_server() {
    let legacy = Legacy::start().await;
    let gate = Gate::with_rules(&legacy.upstream).await;
    let token = gate.token(&["mcp.use", "notes.read"], &[]);
    let answer = call(&token, "echo").send(&gate).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.json()["result"]["content"][0]["text"], "echo");
    assert_eq!(answer.json()["result"]["resultType"], "complete");
    assert_eq!(answer.json()["id"], 1);
    let sent = legacy.wait_for(|seen| seen.json()["method"] == "tools/call").await;
    assert_eq!(sent.headers["mcp-session-id"], "s-1");
    assert!(sent.headers.get("mcp-method").is_none());
    assert_eq!(sent.json()["params"], json!({"name": "echo", "arguments": {"a": 1}}));
}

/// A gate with the standard rules in front of a legacy server, and a reader's token.
async fn standard() -> (Legacy, Gate, String) {
    let legacy = Legacy::start().await;
    let gate = Gate::with_rules(&legacy.upstream).await;
    let token = gate.token(&["mcp.use", "notes.read"], &[]);
    (legacy, gate, token)
}

#[tokio::test]
async fn what_a_legacy_server_is_is_told_of_by_discovery() {
    let (legacy, gate, token) = standard().await;
    let answer = ask(&token, "server/discover", json!({})).send(&gate).await;
    let result = &answer.json()["result"];
    assert_eq!(result["supportedVersions"], json!(["2026-07-28"]), "{answer:?}");
    assert_eq!(result["instructions"], "Be kind.");
    assert_eq!(result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "old");
    assert_eq!(result["capabilities"]["tools"]["listChanged"], true);
    assert_eq!((legacy.count("initialize"), legacy.count("server/discover")), (1, 1));
    let initialize = legacy
        .wait_for(|seen| seen.json()["method"] == "initialize")
        .await
        .json();
    assert_eq!(initialize["params"]["protocolVersion"], "2025-11-25");
    assert_eq!(
        initialize["params"]["clientInfo"],
        json!({"name": "test", "version": "1"})
    );
}

#[tokio::test]
async fn another_revision_is_refused_with_those_that_are_spoken() {
    let (_legacy, gate, token) = standard().await;
    let mut request = ask(&token, "tools/list", json!({})).request(&gate);
    request
        .headers_mut()
        .insert("mcp-protocol-version", "2027-01-01".parse().expect("a value"));
    let body = request.body().clone().collect().await.expect("a body").to_bytes();
    let body = String::from_utf8(body.to_vec())
        .expect("text")
        .replace("2026-07-28", "2027-01-01");
    *request.body_mut() = Full::from(body);
    let answer = gate.send(request).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::BAD_REQUEST, Some(-32_022)));
    assert_eq!(
        answer.json()["error"]["data"],
        json!({"supported": ["2026-07-28"], "requested": "2027-01-01"})
    );
}

#[tokio::test]
async fn lists_show_what_the_caller_may_use_and_no_more() {
    let (_legacy, gate, token) = standard().await;
    let answer = ask(&token, "tools/list", json!({})).send(&gate).await;
    let result = &answer.json()["result"];
    let names: Vec<&str> = result["tools"]
        .as_array()
        .expect("tools")
        .iter()
        .filter_map(|tool| tool["name"].as_str())
        .collect();
    assert_eq!(names, ["echo", "tool_0"], "{answer:?}");
    assert_eq!(
        (&result["ttlMs"], &result["cacheScope"]),
        (&json!(0), &json!("private"))
    );
    let refused = call(&token, "admin_reset").send(&gate).await;
    assert_eq!((refused.status, refused.code()), (StatusCode::FORBIDDEN, Some(40_300)));
    let unknown = ask(&token, "prompts/list", json!({})).send(&gate).await;
    assert_eq!((unknown.status, unknown.code()), (StatusCode::NOT_FOUND, Some(-32_601)));
}

/// A legacy server of 123 tools, in three pages.
async fn paged() -> Upstream {
    Upstream::undiscovered(|seen| async move {
        let message = seen.json();
        match seen.headers.contains_key("mcp-session-id") || message["method"] == "initialize" {
            true if message.get("id").is_none() => status(StatusCode::ACCEPTED),
            true => {
                let mut response = json_reply(&super::upstream::result(&message, 120));
                response
                    .headers_mut()
                    .insert("mcp-session-id", "s".parse().expect("a value"));
                response
            }
            false => status(StatusCode::BAD_REQUEST),
        }
    })
    .await
}

#[tokio::test]
async fn r52_filtering_loses_no_page_of_a_legacy_server() {
    let upstream = paged().await;
    let rules = "    tools: {rules: [{allow: [\"tool_*\"]}, {deny: [\"tool_*7\"]}]}\n";
    let gate = Gate::with_route(&upstream, rules).await;
    let token = gate.reader();
    let (mut all, mut params) = (Vec::new(), json!({}));
    loop {
        let page = ask(&token, "tools/list", params).send(&gate).await.json();
        let tools = page["result"]["tools"].as_array().expect("tools");
        all.extend(
            tools
                .iter()
                .map(|tool| tool["name"].as_str().expect("a name").to_owned()),
        );
        match page["result"]["nextCursor"].as_str() {
            Some(cursor) => params = json!({"cursor": cursor}),
            None => break,
        }
    }
    let wanted: Vec<String> = (0..120)
        .filter(|number| number % 10 != 7)
        .map(|number| format!("tool_{number}"))
        .collect();
    assert_eq!(all, wanted);
}

#[tokio::test]
async fn a_budgeted_list_is_gathered_from_all_pages() {
    let upstream = paged().await;
    let gate = Gate::with_route(&upstream, "    tools: {max: 5}\n").await;
    let token = gate.reader();
    let answer = ask(&token, "tools/list", json!({})).send(&gate).await;
    let result = &answer.json()["result"];
    assert_eq!(result["tools"].as_array().map(Vec::len), Some(5), "{answer:?}");
    assert!(result.get("nextCursor").is_none());
    assert_eq!(result["resultType"], "complete");
    let pages = upstream
        .seen()
        .iter()
        .filter(|seen| seen.json()["method"] == "tools/list")
        .count();
    assert_eq!(pages, 3);
    let refused = ask(&token, "tools/list", json!({"cursor": "50"})).send(&gate).await;
    assert_eq!(
        (refused.status, refused.code()),
        (StatusCode::BAD_REQUEST, Some(-32_602))
    );
}

#[tokio::test]
async fn r09_progress_and_logs_come_before_the_server_is_done() {
    let (legacy, gate, token) = standard().await;
    let call = call(&token, "tool_wait")
        .meta("progressToken", json!("mine"))
        .meta("io.modelcontextprotocol/logLevel", json!("warning"));
    let opening = tokio::spawn({
        let request = call.request(&gate);
        async move { super::gate::client().request(request).await.expect("an answer") }
    });
    under_way(&legacy, 1).await;
    let log = |level: &str| json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": level, "data": level}});
    let progress = |token: &str| json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": token, "progress": 1}});
    legacy.state.say(&log("info"));
    legacy.state.say(&progress("$token"));
    let mut events = Events(opening.await.expect("no panic").into_body(), String::new());
    assert_eq!(
        events.next().await.expect("progress")["params"],
        json!({"progressToken": "mine", "progress": 1})
    );
    legacy.state.say(&log("error"));
    assert_eq!(events.next().await.expect("a log")["params"]["level"], "error");
    legacy.state.say(&done("at last"));
    assert_eq!(
        events.next().await.expect("the answer")["result"]["content"][0]["text"],
        "at last"
    );
    assert_eq!(events.next().await, None);
    assert_eq!(legacy.count("logging/setLevel"), 1);
}

/// A call that was asked for a name: its `requestState`, and the answer.
async fn asked(legacy: &Legacy, gate: &Gate, token: &str) -> (String, Answer) {
    let calls = held(&legacy.state.calls).len();
    let call = call(token, "tool_wait").can(json!({"elicitation": {}}));
    let request = call.request(gate);
    let opening = tokio::spawn(async move { super::gate::client().request(request).await.expect("an answer") });
    under_way(legacy, calls + 1).await;
    legacy.state.say(&asks_for_name());
    let (parts, body) = opening.await.expect("no panic").into_parts();
    let answer = Answer {
        status: parts.status,
        headers: parts.headers,
        body: body.collect().await.expect("it is whole").to_bytes(),
    };
    let state = answer.json()["result"]["requestState"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    (state, answer)
}

fn retry(token: &str, state: &str) -> Ask {
    call(token, "tool_wait")
        .can(json!({"elicitation": {}}))
        .with("requestState", json!(state))
        .with(
            "inputResponses",
            json!({"input-1": {"action": "accept", "content": {"name": "Ada"}}, "other": {"action": "cancel"}}),
        )
}

#[tokio::test]
async fn what_the_server_asks_is_asked_of_the_client_and_the_retry_goes_on() {
    let (legacy, gate, token) = standard().await;
    let (state, answer) = asked(&legacy, &gate, &token).await;
    let result = &answer.json()["result"];
    assert_eq!(
        (answer.status, &result["resultType"]),
        (StatusCode::OK, &json!("input_required"))
    );
    let question = &result["inputRequests"]["input-1"];
    assert_eq!(question["method"], "elicitation/create");
    assert_eq!(question["params"]["message"], "Your name?");

    let retry = retry(&token, &state);
    let server = async {
        let answer = legacy.state.answer(1).await;
        assert_eq!(
            (&answer["id"], &answer["result"]["content"]["name"]),
            (&json!("q-1"), &json!("Ada"))
        );
        legacy.state.say(&done("hello"));
    };
    let (answer, ()) = tokio::join!(retry.send(&gate), server);
    assert_eq!(answer.json()["result"]["content"][0]["text"], "hello", "{answer:?}");
    assert_eq!(legacy.count("tools/call"), 1);
}

#[tokio::test]
async fn a_missing_answer_is_asked_for_again() {
    let (legacy, gate, token) = standard().await;
    let (state, _) = asked(&legacy, &gate, &token).await;
    let again = retry(&token, &state)
        .with("inputResponses", json!({}))
        .send(&gate)
        .await;
    let result = &again.json()["result"];
    assert_eq!(
        result["inputRequests"]["input-1"]["method"], "elicitation/create",
        "{again:?}"
    );
    let fresh = result["requestState"].as_str().expect("a state");
    let server = async {
        legacy.state.answer(1).await;
        legacy.state.say(&done("hello"));
    };
    let request = retry(&token, fresh);
    let (answer, ()) = tokio::join!(request.send(&gate), server);
    assert_eq!(answer.json()["result"]["content"][0]["text"], "hello", "{answer:?}");
}

#[tokio::test]
async fn a_state_is_good_once_for_its_person_its_request_and_five_minutes() {
    let (legacy, gate, token) = standard().await;
    let (state, _) = asked(&legacy, &gate, &token).await;
    let bob = gate.issuer.mint(
        "bob",
        &gate.url(),
        &["mcp.use", "notes.read"],
        &[],
        std::time::Duration::from_secs(600),
    );
    let mut altered = state.clone().into_bytes();
    altered[40] ^= 1;
    let altered = String::from_utf8(altered).expect("ASCII");
    let mut other = retry(&token, &state).with("arguments", json!({"a": 2}));
    for (what, request) in [
        ("altered", retry(&token, &altered)),
        ("nonsense", retry(&token, "x")),
        ("somebody else's", retry(&bob, &state)),
        (
            "another request's",
            std::mem::replace(&mut other, retry(&token, &state)),
        ),
    ] {
        let refused = request.send(&gate).await;
        assert_eq!(
            (refused.status, refused.code()),
            (StatusCode::BAD_REQUEST, Some(-32_602)),
            "{what}"
        );
        let message = refused.json()["error"]["message"].as_str().expect("text").to_owned();
        assert!(
            message.contains("send the request again without it"),
            "{what}: {message}"
        );
    }
    let expired = gate.clock.now() + 301;
    gate.clock.set(expired);
    let late = gate.token(&["mcp.use", "notes.read"], &[]);
    let refused = retry(&late, &state).send(&gate).await;
    assert_eq!(
        (refused.status, refused.code()),
        (StatusCode::BAD_REQUEST, Some(-32_602))
    );
    gate.clock.set(expired - 301);

    let server = async {
        legacy.state.answer(1).await;
        legacy.state.say(&done("hello"));
    };
    let request = retry(&token, &state);
    let (answer, ()) = tokio::join!(request.send(&gate), server);
    assert_eq!(answer.json()["result"]["content"][0]["text"], "hello", "{answer:?}");
    let replayed = retry(&token, &state).send(&gate).await;
    assert_eq!(
        (replayed.status, replayed.code()),
        (StatusCode::BAD_REQUEST, Some(-32_602))
    );
}

#[tokio::test]
async fn a_client_that_cannot_be_asked_learns_what_was_lacking() {
    let (legacy, gate, token) = standard().await;
    let request = call(&token, "tool_wait").request(&gate);
    let opening = tokio::spawn(async move { super::gate::client().request(request).await.expect("an answer") });
    under_way(&legacy, 1).await;
    legacy.state.say(&asks_for_name());
    let told = legacy.state.answer(1).await;
    assert_eq!(told["error"]["code"], -32_601);
    legacy
        .state
        .say(&json!({"jsonrpc": "2.0", "id": "$id", "error": {"code": -32603, "message": "no name"}}));
    let response = opening.await.expect("no panic");
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let body: Value =
        serde_json::from_slice(&response.into_body().collect().await.expect("whole").to_bytes()).expect("JSON");
    assert_eq!(body["error"]["code"], -32_021);
    assert_eq!(
        body["error"]["data"],
        json!({"requiredCapabilities": {"elicitation": {"form": {}}}})
    );
}

#[tokio::test]
async fn a_page_to_visit_is_an_input_and_the_retry_is_sent_anew() {
    let (legacy, gate, token) = standard().await;
    let refused = call(&token, "tool_page").send(&gate).await;
    assert_eq!(
        (refused.status, refused.code()),
        (StatusCode::BAD_REQUEST, Some(-32_021))
    );
    let can = || call(&token, "tool_page").can(json!({"elicitation": {"url": {}}}));
    let answer = can().send(&gate).await;
    let result = &answer.json()["result"];
    assert_eq!(
        result["inputRequests"]["input-1"]["params"]["url"], "https://x.example/",
        "{answer:?}"
    );
    let state = &result["requestState"];
    let again = can()
        .with("requestState", state.clone())
        .with("inputResponses", json!({"input-1": {"action": "accept"}}));
    assert_eq!(again.send(&gate).await.json()["result"]["resultType"], "input_required");
    assert_eq!(legacy.count("tools/call"), 3);
    let sent = legacy.upstream.seen();
    let last = sent
        .iter()
        .rev()
        .find(|seen| seen.json()["method"] == "tools/call")
        .expect("a call")
        .json();
    assert_eq!(last["params"], json!({"name": "tool_page", "arguments": {"a": 1}}));
}

#[tokio::test]
async fn one_session_serves_a_person_and_no_other() {
    let (legacy, gate, token) = standard().await;
    let bob = gate.issuer.mint(
        "bob",
        &gate.url(),
        &["mcp.use", "notes.read"],
        &[],
        std::time::Duration::from_secs(600),
    );
    let calls = (0..20).map(|_| async { call(&token, "echo").send(&gate).await.status });
    assert_eq!(futures_util::future::join_all(calls).await, [StatusCode::OK; 20]);
    assert_eq!(legacy.count("initialize"), 1);
    assert_eq!(legacy.count("server/discover"), 1);
    call(&bob, "echo").send(&gate).await;
    call(&token, "echo").can(json!({"sampling": {}})).send(&gate).await;
    assert_eq!(legacy.count("initialize"), 3);
    let sessions = |seen: &[Seen], from: usize| -> HashSet<String> {
        let calls = seen
            .iter()
            .filter(|seen| seen.json()["method"] == "tools/call")
            .skip(from);
        calls
            .map(|seen| seen.headers["mcp-session-id"].to_str().expect("text").to_owned())
            .collect()
    };
    assert_eq!(sessions(&legacy.upstream.seen(), 0).len(), 3);
    assert_eq!(sessions(&legacy.upstream.seen()[..], 20).len(), 2);
}

#[tokio::test]
async fn r51_a_session_that_the_server_forgot_is_opened_again_once() {
    let (legacy, gate, token) = standard().await;
    assert_eq!(call(&token, "echo").send(&gate).await.status, StatusCode::OK);
    legacy.state.forget();
    let answer = call(&token, "echo").send(&gate).await;
    assert_eq!(answer.json()["result"]["content"][0]["text"], "echo", "{answer:?}");
    assert_eq!(legacy.count("initialize"), 2);
    assert_eq!(legacy.count("tools/call"), 3);
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_call() {
    let (legacy, gate, token) = standard().await;
    let request = call(&token, "tool_wait").request(&gate);
    let opening = tokio::spawn(async move { super::gate::client().request(request).await });
    under_way(&legacy, 1).await;
    opening.abort();
    let cancelled = legacy
        .wait_for(|seen| seen.json()["method"] == "notifications/cancelled")
        .await;
    let call = held(&legacy.state.calls)[0].0["id"].clone();
    assert_eq!(cancelled.json()["params"]["requestId"], call);
}

#[tokio::test]
async fn the_end_of_the_gateway_is_the_end_of_its_sessions() {
    let (legacy, gate, token) = standard().await;
    call(&token, "echo").send(&gate).await;
    let Gate { running, .. } = gate;
    running.shutdown().await;
    let ended = legacy.upstream.seen();
    let last = ended.last().expect("it was asked");
    assert_eq!(
        (&last.method, &last.headers["mcp-session-id"]),
        (&Method::DELETE, &"s-1".parse().expect("a value"))
    );
}

#[tokio::test]
async fn sessions_survive_a_reload_that_leaves_the_server_as_it_was() {
    let legacy = Legacy::start().await;
    let yaml = |rest: &str| {
        format!(
            "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {}\n{rest}",
            legacy.upstream.url()
        )
    };
    let gate = Gate::with_yaml(&yaml("")).await;
    let token = gate.reader();
    call(&token, "echo").send(&gate).await;
    gate.reload(&yaml(RULES)).expect("a good configuration");
    let token = gate.token(&["mcp.use", "notes.read"], &[]);
    assert_eq!(call(&token, "echo").send(&gate).await.status, StatusCode::OK);
    assert_eq!((legacy.count("initialize"), legacy.count("server/discover")), (1, 1));
    gate.reload(&yaml("    credential: {bearer: other}\n"))
        .expect("a good configuration");
    assert_eq!(call(&token, "echo").send(&gate).await.status, StatusCode::OK);
    assert_eq!(legacy.count("initialize"), 2);
    legacy.wait_for(|seen| seen.method == Method::DELETE).await;
}

#[tokio::test]
async fn a_listener_hears_what_it_asked_for_and_may_see() {
    let legacy = Legacy::start().await;
    let rules =
        "    resources:\n      rules:\n        - {allow: [\"memo://*\"]}\n        - {deny: [\"memo://secret/*\"]}\n";
    let gate = Gate::with_route(&legacy.upstream, rules).await;
    let token = gate.reader();
    let listen = |uri: &str| {
        ask(
            &token,
            "subscriptions/listen",
            json!({"notifications": {
                "toolsListChanged": true, "promptsListChanged": true, "resourceSubscriptions": [uri],
            }}),
        )
    };
    let mut events = listen("memo://a").open(&gate).await;
    let first = events.next().await.expect("an acknowledgment");
    assert_eq!(first["method"], "notifications/subscriptions/acknowledged");
    assert_eq!(
        first["params"],
        json!({
            "notifications": {"toolsListChanged": true, "resourceSubscriptions": ["memo://a"]},
            "_meta": {"io.modelcontextprotocol/subscriptionId": 1},
        })
    );
    let mut other = listen("memo://a").open(&gate).await;
    other.next().await.expect("an acknowledgment");
    assert_eq!(legacy.count("resources/subscribe"), 1);
    legacy.wait_for(|seen| seen.method == Method::GET).await;
    let say = |method: &str, params: Value| {
        let message = json!({"jsonrpc": "2.0", "method": method, "params": params});
        held(&legacy.state.standing)[0]
            .send(event(&message))
            .expect("it is read");
    };
    say("notifications/resources/updated", json!({"uri": "memo://b"}));
    say("notifications/prompts/list_changed", json!({}));
    say("notifications/resources/updated", json!({"uri": "memo://secret/a"}));
    say("notifications/resources/updated", json!({"uri": "memo://a"}));
    say("notifications/tools/list_changed", json!({}));
    let updated = events.next().await.expect("news");
    assert_eq!(
        updated["params"],
        json!({"uri": "memo://a", "_meta": {"io.modelcontextprotocol/subscriptionId": 1}})
    );
    assert_eq!(
        events.next().await.expect("news")["method"],
        "notifications/tools/list_changed"
    );
    drop(events);
    other.next().await.expect("news");
    drop(other);
    legacy
        .wait_for(|seen| seen.json()["method"] == "resources/unsubscribe")
        .await;
    assert_eq!(legacy.count("resources/unsubscribe"), 1);
    let refused = listen("memo://secret/a").send(&gate).await;
    assert_eq!(refused.code(), Some(40_300));
}

#[tokio::test]
async fn a_listener_ends_gracefully_with_the_gateway_and_without_a_word_with_the_server() {
    let (legacy, gate, token) = standard().await;
    let listen = ask(
        &token,
        "subscriptions/listen",
        json!({"notifications": {"toolsListChanged": true}}),
    );
    let mut events = listen.open(&gate).await;
    events.next().await.expect("an acknowledgment");
    legacy.wait_for(|seen| seen.method == Method::GET).await;
    legacy.state.forget();
    call(&token, "echo").send(&gate).await;
    assert_eq!(events.next().await, None);

    let mut events = listen.open(&gate).await;
    events.next().await.expect("an acknowledgment");
    let Gate { running, .. } = gate;
    let ((), last) = tokio::join!(running.shutdown(), async {
        let last = events.next().await;
        drop(events);
        last
    });
    assert_eq!(
        last.expect("a result")["result"],
        json!({
            "resultType": "complete", "_meta": {"io.modelcontextprotocol/subscriptionId": 1},
        })
    );
}

#[tokio::test]
async fn an_http_sse_server_is_reached_by_modern_calls() {
    let upstream = Upstream::sse_tools(60).await;
    let yaml = format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {{urls: [\"{}\"], transport: sse}}\n",
        upstream.url()
    );
    let gate = Gate::with_yaml(&yaml).await;
    let token = gate.reader();
    let answer = call(&token, "echo").send(&gate).await;
    assert_eq!(answer.json()["result"]["content"][0]["text"], "echo", "{answer:?}");
    let list = ask(&token, "tools/list", json!({})).send(&gate).await;
    assert_eq!(list.json()["result"]["nextCursor"], "50", "{list:?}");
}

#[tokio::test]
async fn a_server_that_ceased_to_be_modern_is_asked_anew() {
    let modern = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let serving = modern.clone();
    let state = Arc::new(State::default());
    let upstream = Upstream::undiscovered(move |seen| {
        let (modern, state) = (serving.clone(), state.clone());
        async move {
            if modern.load(std::sync::atomic::Ordering::Relaxed) {
                return json_reply(&json!({"jsonrpc": "2.0", "id": seen.json()["id"], "result": {
                    "resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {}, "content": [],
                }}));
            }
            state.serve(&seen)
        }
    })
    .await;
    let gate = Gate::with_route(&upstream, "").await;
    let token = gate.reader();
    assert_eq!(call(&token, "echo").send(&gate).await.status, StatusCode::OK);
    assert_eq!(upstream.seen().len(), 2);
    modern.store(false, std::sync::atomic::Ordering::Relaxed);
    let refused = call(&token, "echo").send(&gate).await;
    assert_eq!(
        (refused.status, refused.code()),
        (StatusCode::BAD_REQUEST, Some(-32_600))
    );
    let answer = call(&token, "echo").send(&gate).await;
    assert_eq!(answer.json()["result"]["content"][0]["text"], "echo", "{answer:?}");
}

#[tokio::test]
async fn a_question_after_progress_is_the_last_event() {
    let (legacy, gate, token) = standard().await;
    let call = call(&token, "tool_wait")
        .can(json!({"elicitation": {}}))
        .meta("progressToken", json!(1));
    let request = call.request(&gate);
    let opening = tokio::spawn(async move { super::gate::client().request(request).await.expect("an answer") });
    under_way(&legacy, 1).await;
    let progress = |progress: u8| {
        json!({"jsonrpc": "2.0", "method": "notifications/progress",
        "params": {"progressToken": "$token", "progress": progress}})
    };
    legacy.state.say(&progress(1));
    let mut events = Events(opening.await.expect("no panic").into_body(), String::new());
    events.next().await.expect("progress");
    legacy.state.say(&asks_for_name());
    let asked = events.next().await.expect("a question");
    assert_eq!(asked["result"]["resultType"], "input_required");
    assert_eq!(events.next().await, None);

    // The retry is another request, with another token.
    legacy.state.say(&progress(2));
    let state = asked["result"]["requestState"].as_str().expect("a state");
    let retry = retry(&token, state).meta("progressToken", json!("two"));
    let mut events = retry.open(&gate).await;
    assert_eq!(
        events.next().await.expect("progress")["params"],
        json!({"progressToken": "two", "progress": 2})
    );
    legacy.state.say(&done("hello"));
    assert_eq!(
        events.next().await.expect("the answer")["result"]["content"][0]["text"],
        "hello"
    );
}

#[tokio::test]
async fn a_person_has_sixteen_calls_wait_and_the_next_is_refused() {
    let (legacy, gate, token) = standard().await;
    for _ in 0..16 {
        let (_, answer) = asked(&legacy, &gate, &token).await;
        assert_eq!(answer.json()["result"]["resultType"], "input_required", "{answer:?}");
    }
    let (_, refused) = asked(&legacy, &gate, &token).await;
    assert_eq!(
        (refused.status, refused.code()),
        (StatusCode::TOO_MANY_REQUESTS, Some(42_900))
    );
    assert_eq!(legacy.state.answer(1).await["error"]["code"], -32_603);
    legacy
        .wait_for(|seen| seen.json()["method"] == "notifications/cancelled")
        .await;
}

/// One thread, so that the gateway's time is the test's: it runs when nobody has anything to do.
#[tokio::test]
async fn a_call_that_nobody_comes_back_for_is_cancelled_and_its_session_ends() {
    let (legacy, gate, token) = standard().await;
    let (state, _) = asked(&legacy, &gate, &token).await;
    tokio::time::pause();
    tokio::time::sleep(std::time::Duration::from_secs(331)).await;
    tokio::time::resume();
    let cancelled = legacy
        .wait_for(|seen| seen.json()["method"] == "notifications/cancelled")
        .await;
    assert_eq!(
        cancelled.json()["params"]["requestId"],
        held(&legacy.state.calls)[0].0["id"]
    );
    // By the clock that states go by it is still in time.
    let refused = retry(&token, &state).send(&gate).await;
    assert_eq!(
        (refused.status, refused.code()),
        (StatusCode::BAD_REQUEST, Some(-32_602))
    );
    tokio::time::pause();
    tokio::time::sleep(std::time::Duration::from_secs(631)).await;
    tokio::time::resume();
    let ended = legacy.wait_for(|seen| seen.method == Method::DELETE).await;
    assert_eq!(ended.headers["mcp-session-id"], "s-1");
}

#[tokio::test]
async fn a_silent_call_gets_a_comment_every_15_s() {
    let (legacy, gate, token) = standard().await;
    let request = call(&token, "tool_wait").request(&gate);
    let opening = tokio::spawn(async move { super::gate::client().request(request).await.expect("an answer") });
    under_way(&legacy, 1).await;
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let mut body = opening.await.expect("no panic").into_body();
    for seconds in [15, 30, 45] {
        let frame = body
            .frame()
            .await
            .expect("a frame")
            .expect("a whole one")
            .into_data()
            .expect("data");
        assert_eq!(&frame[..], b": keepalive\n\n");
        let passed = began.elapsed().as_secs_f64();
        assert!((passed - f64::from(seconds)).abs() < 2.0, "{passed}");
    }
    tokio::time::resume();
    legacy.state.say(&done("at last"));
    let mut events = Events(body, String::new());
    assert_eq!(
        events.next().await.expect("the answer")["result"]["content"][0]["text"],
        "at last"
    );
}

/// An HTTP+SSE server whose every call but `quiet` logs, and asks for a name.
async fn talking_sse() -> Upstream {
    let streams: Arc<Mutex<Vec<mpsc::UnboundedSender<String>>>> = Arc::default();
    Upstream::undiscovered(move |seen| {
        let streams = streams.clone();
        async move {
            let message = seen.json();
            let mut streams = held(&streams);
            if seen.method == Method::GET {
                let (sender, response) = stream();
                let endpoint = format!("event: endpoint\ndata: messages?{}\n\n", streams.len());
                sender.send(endpoint).expect("it is read");
                streams.push(sender);
                return response;
            }
            let (_, place) = seen.target.split_once('?').expect("a stream's number");
            let stream = &streams[place.parse::<usize>().expect("a number")];
            let say = |value: &Value| stream.send(event(value)).expect("it is read");
            let answer = |result: Value| say(&json!({"jsonrpc": "2.0", "id": message["id"], "result": result}));
            match message["method"].as_str() {
                Some("initialize") => answer(json!({
                    "protocolVersion": "2024-11-05", "capabilities": {"tools": {}, "logging": {}},
                    "serverInfo": {"name": "old", "version": "1"},
                })),
                Some("logging/setLevel") => answer(json!({})),
                Some("tools/call") if message["params"]["name"] != "quiet" => {
                    let log = json!({"level": "error", "data": 1});
                    say(&json!({"jsonrpc": "2.0", "method": "notifications/message", "params": log}));
                    say(&asks_for_name());
                }
                _ => {}
            }
            status(StatusCode::ACCEPTED)
        }
    })
    .await
}

#[tokio::test]
async fn what_a_line_says_is_its_persons_and_never_of_one_of_many() {
    let upstream = talking_sse().await;
    for anonymous in [false, true] {
        let gate = Gate::with_yaml(&format!(
            "routes:\n  notes:\n    path: /notes/mcp\n    anonymous: {anonymous}\n    upstream: {{urls: [\"{}\"], transport: sse}}\n",
            upstream.url()
        ))
        .await;
        let token = if anonymous { String::new() } else { gate.reader() };
        let call = |tool: &str| {
            call(&token, tool)
                .can(json!({"elicitation": {}}))
                .meta("io.modelcontextprotocol/logLevel", json!("info"))
        };
        let before = upstream.seen().len();
        let quiet = call("quiet").request(&gate);
        let waiting = tokio::spawn(super::gate::client().request(quiet));
        for count in before.. {
            let seen = upstream.wait_for(count).await;
            if seen[before..]
                .iter()
                .any(|seen| seen.json()["params"]["name"] == "quiet")
            {
                break;
            }
        }
        let mut events = call("echo").open(&gate).await;
        assert_eq!(events.next().await.expect("a log")["params"]["level"], "error");
        let asked = events.next().await.expect("a question");
        assert_eq!(asked["result"]["resultType"], "input_required");
        let seen = upstream.seen();
        let opened = seen[before..].iter().filter(|seen| seen.method == Method::GET).count();
        assert_eq!(opened, if anonymous { 2 } else { 1 }, "streams of two calls");
        waiting.abort();
    }
}

/// A modern server on stdin and stdout that asks before it answers, and tells its listener of changes.
const MODERN_PROCESS: &str = r#"
import json, sys
listener, cancelled = None, None
def say(message): print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)
for line in sys.stdin:
    message = json.loads(line)
    method, id, params = message.get("method"), message.get("id"), message.get("params", {})
    subscription = {"io.modelcontextprotocol/subscriptionId": listener}
    if method == "server/discover":
        say({"id": id, "result": {"resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {"listChanged": True}},
            "ttlMs": 0, "cacheScope": "private", "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "new", "version": "1"}}}})
    elif method == "subscriptions/listen":
        listener = id
        say({"method": "notifications/subscriptions/acknowledged", "params": {"notifications": params["notifications"],
            "_meta": {"io.modelcontextprotocol/subscriptionId": id}}})
    elif method == "notifications/cancelled":
        cancelled = params["requestId"]
    elif method == "tools/call" and params["name"] == "change":
        say({"method": "notifications/tools/list_changed", "params": {"_meta": subscription}})
        say({"id": id, "result": {"resultType": "complete", "content": []}})
    elif method == "tools/call" and params["name"] == "cancelled":
        say({"id": id, "result": {"resultType": "complete", "content": [], "cancelled": cancelled is not None and cancelled == listener}})
    elif method == "tools/call" and "requestState" not in params:
        say({"id": id, "result": {"resultType": "input_required", "requestState": "theirs", "inputRequests": {
            "k": {"method": "elicitation/create", "params": {"message": "?", "requestedSchema": {"type": "object", "properties": {}}}}}}})
    elif method == "tools/call":
        say({"id": id, "result": {"resultType": "complete", "content": [], "echo": params}})
    elif id is not None:
        say({"id": id, "error": {"code": -32601, "message": "no"}})
"#;

#[tokio::test]
async fn a_modern_command_is_spoken_with_as_the_caller_speaks() {
    let directory = tempfile::tempdir().expect("a directory");
    let script = directory.path().join("server.py");
    std::fs::write(&script, MODERN_PROCESS).expect("it can be written");
    let gate = Gate::with_yaml(&format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {{command: [/usr/bin/python3, \"{}\"]}}\n",
        script.display()
    ))
    .await;
    let token = gate.reader();
    let told = ask(&token, "server/discover", json!({})).send(&gate).await;
    assert_eq!(
        told.json()["result"]["_meta"]["io.modelcontextprotocol/serverInfo"]["name"],
        "new",
        "{told:?}"
    );

    let can = || call(&token, "ask").can(json!({"elicitation": {}}));
    let answer = can().send(&gate).await;
    let result = &answer.json()["result"];
    assert_eq!(
        (&result["requestState"], &result["inputRequests"]["k"]["method"]),
        (&json!("theirs"), &json!("elicitation/create"))
    );
    let retry = can()
        .with("requestState", json!("theirs"))
        .with("inputResponses", json!({"k": {"action": "decline"}}));
    let answer = retry.send(&gate).await;
    let echo = &answer.json()["result"]["echo"];
    assert_eq!(
        echo["inputResponses"],
        json!({"k": {"action": "decline"}}),
        "{answer:?}"
    );
    assert_eq!(echo["_meta"]["io.modelcontextprotocol/protocolVersion"], "2026-07-28");
    let unknown = ask(&token, "prompts/list", json!({})).send(&gate).await;
    assert_eq!((unknown.status, unknown.code()), (StatusCode::NOT_FOUND, Some(-32_601)));

    let mut listen = ask(
        &token,
        "subscriptions/listen",
        json!({"notifications": {"toolsListChanged": true}}),
    );
    listen.id = json!("mine");
    let mut events = listen.open(&gate).await;
    let mine = json!({"io.modelcontextprotocol/subscriptionId": "mine"});
    let first = events.next().await.expect("an acknowledgment");
    assert_eq!(
        (&first["method"], &first["params"]["_meta"]),
        (&json!("notifications/subscriptions/acknowledged"), &mine)
    );
    call(&token, "change").send(&gate).await;
    let news = events.next().await.expect("news");
    assert_eq!(
        (&news["method"], &news["params"]["_meta"]),
        (&json!("notifications/tools/list_changed"), &mine)
    );
    drop(events);
    while call(&token, "cancelled").send(&gate).await.json()["result"]["cancelled"] != true {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_server_that_opens_its_stream_to_posts_as_well_is_one_of_2024() {
    let state = Arc::new(State::default());
    let upstream = Upstream::undiscovered(move |seen| {
        let state = state.clone();
        async move {
            if seen.target == "/mcp" {
                let (sender, response) = stream();
                sender
                    .send("event: endpoint\ndata: messages\n\n".to_owned())
                    .expect("it is read");
                held(&state.standing).push(sender);
                return response;
            }
            if seen.json().get("id").is_some() {
                let streams = held(&state.standing);
                let latest = streams.last().expect("a stream");
                latest
                    .send(event(&super::upstream::result(&seen.json(), 1)))
                    .expect("it is read");
            }
            status(StatusCode::ACCEPTED)
        }
    })
    .await;
    let gate = Gate::with_route(&upstream, "").await;
    let answer = call(&gate.reader(), "echo").send(&gate).await;
    assert_eq!(answer.json()["result"]["content"][0]["text"], "echo", "{answer:?}");
}
