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
