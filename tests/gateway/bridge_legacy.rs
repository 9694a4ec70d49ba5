//! Legacy clients, by either transport, of servers that don't speak as they do.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use portcullis::edge::Body;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

use super::gate::Gate;
use super::rmcp_server::RmcpServer;
use super::upstream::{Seen, Upstream, event, json_reply, status, stream};

const SOON: Duration = Duration::from_secs(10);

/// A raw client of one session.
struct Client<'a> {
    gate: &'a Gate,
    token: String,
    session: String,
    way: Way,
    ids: i64,
}

enum Way {
    Streamable,
    Sse { endpoint: String, events: Events },
}

/// Messages of a stream.
struct Events {
    body: Incoming,
    rest: String,
    ready: VecDeque<(String, String)>,
}

impl Events {
    fn of(response: Response<Incoming>) -> Self {
        Self {
            body: response.into_body(),
            rest: String::new(),
            ready: VecDeque::new(),
        }
    }

    /// The next event: its name and data; `None` when the stream ends.
    async fn event(&mut self) -> Option<(String, String)> {
        let reading = async {
            loop {
                if let Some(event) = self.ready.pop_front() {
                    return Some(event);
                }
                let frame = self.body.frame().await?.ok()?;
                let Some(data) = frame.data_ref() else { continue };
                self.rest.push_str(std::str::from_utf8(data).expect("UTF-8"));
                while let Some((event, after)) = self.rest.split_once("\n\n") {
                    let field = |name: &str| {
                        let lines = event.lines().filter_map(|line| line.strip_prefix(name));
                        lines.map(str::trim_start).collect::<Vec<_>>().join("\n")
                    };
                    let found = (field("event:"), field("data:"));
                    self.rest = after.to_owned();
                    if !found.1.is_empty() {
                        self.ready.push_back(found);
                    }
                }
            }
        };
        tokio::time::timeout(SOON, reading)
            .await
            .expect("an event comes in time")
    }

    async fn next(&mut self) -> Value {
        let (_, data) = self.event().await.expect("the stream goes on");
        serde_json::from_str(&data).expect("JSON")
    }
}

/// What a client with everything declares.
fn capabilities() -> Value {
    json!({"sampling": {}, "elicitation": {"form": {}, "url": {}}, "roots": {"listChanged": true}})
}

impl<'a> Client<'a> {
    async fn streamable(gate: &'a Gate) -> (Self, Value) {
        Self::streamable_of(gate, gate.reader(), capabilities()).await
    }

    async fn streamable_of(gate: &'a Gate, token: String, capabilities: Value) -> (Self, Value) {
        let mut client = Self {
            gate,
            token,
            session: String::new(),
            way: Way::Streamable,
            ids: 0,
        };
        let initialize = initialize("2025-11-25", &capabilities);
        let answer = gate.legacy(&client.token, &initialize).await;
        assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
        client.session = answer.header("mcp-session-id").to_owned();
        let notified = client
            .post(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}))
            .await;
        assert_eq!(notified.status(), StatusCode::ACCEPTED);
        (client, answer.json())
    }

    async fn sse(gate: &'a Gate) -> (Self, Value) {
        let token = gate.reader();
        let mut client = Self::sse_stream(gate, token).await;
        let result = client.call_raw(&initialize("2024-11-05", &capabilities())).await;
        let notified = client
            .post(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}))
            .await;
        assert_eq!(notified.status(), StatusCode::ACCEPTED);
        (client, result)
    }

    /// A client whose stream is open, and that has said nothing yet.
    async fn sse_stream(gate: &'a Gate, token: String) -> Self {
        let request = Request::get(gate.url())
            .header("accept", "text/event-stream")
            .header("authorization", format!("Bearer {token}"));
        let opened = gate.open(request.body(Full::default()).expect("a request")).await;
        assert_eq!(opened.status(), StatusCode::OK);
        let mut events = Events::of(opened);
        let (name, endpoint) = events.event().await.expect("an endpoint");
        assert_eq!(name, "endpoint");
        assert!(
            endpoint.starts_with(&format!("{}/messages?session_id=", gate.url())),
            "{endpoint}"
        );
        Self {
            gate,
            token,
            session: String::new(),
            way: Way::Sse { endpoint, events },
            ids: 0,
        }
    }

    fn request(&self, method: Method, body: String) -> Request<Full<Bytes>> {
        let mut request = self.gate.request(method, &self.token, body);
        match &self.way {
            Way::Streamable => {
                let headers = request.headers_mut();
                headers.insert("mcp-session-id", self.session.parse().expect("a value"));
                headers.insert("mcp-protocol-version", "2025-11-25".parse().expect("a value"));
            }
            Way::Sse { endpoint, .. } => *request.uri_mut() = endpoint.parse().expect("a URL"),
        }
        request
    }

    async fn post(&self, message: &Value) -> Response<Incoming> {
        self.gate.open(self.request(Method::POST, message.to_string())).await
    }

    fn id(&mut self) -> i64 {
        self.ids += 1;
        self.ids
    }

    /// What comes before the answer, and the answer; `on` answers what the server asks.
    async fn converse(&mut self, message: &Value, on: impl Fn(&Value) -> Value) -> (Vec<Value>, Value) {
        let response = self.post(message).await;
        let (mut before, id) = (Vec::new(), message["id"].clone());
        let mut own = match &self.way {
            Way::Streamable => {
                assert_eq!(response.status(), StatusCode::OK);
                let json = response.headers()["content-type"] == "application/json";
                if json {
                    let body = response.into_body().collect().await.expect("a body").to_bytes();
                    return (before, serde_json::from_slice(&body).expect("JSON"));
                }
                Some(Events::of(response))
            }
            Way::Sse { .. } => {
                assert_eq!(response.status(), StatusCode::ACCEPTED);
                None
            }
        };
        loop {
            let next = match (&mut own, &mut self.way) {
                (Some(events), _) | (None, Way::Sse { events, .. }) => events.next().await,
                _ => unreachable!("a streamable client has a reply"),
            };
            if next["id"] == id && next.get("method").is_none() {
                return (before, next);
            }
            if next.get("id").is_some() {
                let mut answer = json!({"jsonrpc": "2.0", "id": next["id"]});
                answer["result"] = on(&next);
                assert_eq!(self.post(&answer).await.status(), StatusCode::ACCEPTED);
            }
            before.push(next);
        }
    }

    async fn call_raw(&mut self, message: &Value) -> Value {
        self.converse(message, |asked| panic!("nobody is asked: {asked}"))
            .await
            .1
    }

    async fn ask(&mut self, method: &str, params: Value) -> Value {
        let id = self.id();
        self.call_raw(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
            .await
    }

    async fn tool(&mut self, name: &str, arguments: Value) -> Value {
        self.ask("tools/call", json!({"name": name, "arguments": arguments}))
            .await
    }

    /// The standing stream.
    async fn stand(&self) -> Events {
        let response = self.gate.open(self.request(Method::GET, String::new())).await;
        assert_eq!(response.status(), StatusCode::OK);
        Events::of(response)
    }
}

fn initialize(version: &str, capabilities: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": version, "capabilities": capabilities, "clientInfo": {"name": "raw", "version": "1"},
    }})
}

/// A gate whose route's upstream is that, with more keys for the route, indented by four.
async fn gate(url: &str, keys: &str, route: &str) -> Gate {
    Gate::with_yaml(&format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {{urls: [\"{url}\"]{keys}}}\n{route}"
    ))
    .await
}

/// A server of 2026-07-28 and nothing else; `script` answers what isn't its introduction.
async fn modern<F, R>(script: F) -> Upstream
where
    F: Fn(Seen) -> R + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let script = Arc::new(script);
    Upstream::undiscovered(move |seen| {
        let script = script.clone();
        async move {
            let body = seen.json();
            if seen.method != Method::POST {
                return status(StatusCode::METHOD_NOT_ALLOWED);
            }
            let version = "io.modelcontextprotocol/protocolVersion";
            if seen.headers.get("mcp-protocol-version").is_none_or(|value| value != "2026-07-28")
                || body["params"]["_meta"][version] != "2026-07-28"
            {
                let error = json!({"jsonrpc": "2.0", "id": body["id"], "error": {
                    "code": -32022, "message": "Unsupported protocol version", "data": {"supported": ["2026-07-28"], "requested": null},
                }});
                let mut refused = json_reply(&error);
                *refused.status_mut() = StatusCode::BAD_REQUEST;
                return refused;
            }
            if body["method"] == "server/discover" {
                return json_reply(&complete(&body, json!({
                    "supportedVersions": ["2026-07-28"], "ttlMs": 0, "cacheScope": "private",
                    "capabilities": {"tools": {"listChanged": true}, "logging": {}, "resources": {"subscribe": true}},
                    "instructions": "Be kind.",
                    "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "modern", "version": "9"}},
                })));
            }
            script(seen).await
        }
    })
    .await
}

fn complete(request: &Value, mut result: Value) -> Value {
    result["resultType"] = "complete".into();
    json!({"jsonrpc": "2.0", "id": request["id"], "result": result})
}

fn text(text: &str) -> Value {
    json!({"content": [{"type": "text", "text": text}]})
}

#[tokio::test]
async fn a_legacy_client_calls_a_modern_server() {
    let upstream = modern(|seen| async move {
        let body = seen.json();
        json_reply(&complete(&body, text("done")))
    })
    .await;
    let gate = gate(&upstream.url(), "", "").await;
    let (mut client, introduced) = Client::streamable(&gate).await;
    assert_eq!(introduced["result"]["protocolVersion"], "2025-11-25");
    assert_eq!(introduced["result"]["serverInfo"]["name"], "modern");
    assert_eq!(introduced["result"]["instructions"], "Be kind.");
    assert!(!client.session.is_empty());
    let answer = client.tool("echo", json!({"text": "hi"})).await;
    assert_eq!(answer, json!({"jsonrpc": "2.0", "id": 1, "result": text("done")}));
    let seen = upstream.seen();
    let call = seen.last().expect("a call");
    assert_eq!(call.headers["mcp-method"], "tools/call");
    assert_eq!(call.headers["mcp-name"], "echo");
    assert!(!call.headers.contains_key("mcp-session-id"));
    let meta = &call.json()["params"]["_meta"];
    assert_eq!(meta["io.modelcontextprotocol/clientInfo"]["name"], "raw");
    assert_eq!(
        meta["io.modelcontextprotocol/clientCapabilities"]["elicitation"]["form"],
        json!({})
    );
}

#[tokio::test]
async fn an_http_sse_client_calls_a_modern_server() {
    let upstream = modern(|seen| async move { json_reply(&complete(&seen.json(), text("done"))) }).await;
    let gate = gate(&upstream.url(), "", "").await;
    let (mut client, introduced) = Client::sse(&gate).await;
    assert_eq!(introduced["result"]["protocolVersion"], "2024-11-05");
    let answer = client.tool("echo", json!({})).await;
    assert_eq!(answer["result"], text("done"));
    assert_eq!(
        gate.metric("portcullis_sessions{route=\"notes\",transport=\"sse\"}"),
        Some(1.0)
    );
}

#[tokio::test]
async fn a_streamable_client_calls_an_http_sse_server() {
    for keys in ["", ", transport: sse"] {
        let upstream = Upstream::sse_tools(3).await;
        let gate = gate(&upstream.url(), keys, "").await;
        let (mut client, introduced) = Client::streamable(&gate).await;
        assert_eq!(introduced["result"]["serverInfo"]["name"], "mock", "{keys}");
        let answer = client.tool("tool_1", json!({})).await;
        assert_eq!(answer["result"]["content"][0]["text"], "tool_1");
        let session = "portcullis_sessions{route=\"notes\",transport=\"streamable-http\"}";
        assert_eq!(gate.metric(session), Some(1.0));
        let ended = gate.send(client.request(Method::DELETE, String::new())).await;
        assert_eq!(ended.status, StatusCode::OK);
        let after = gate.send(client.request(Method::POST, PING.to_owned())).await;
        assert_eq!(after.status, StatusCode::NOT_FOUND, "{keys}");
        // Its connection to the server ends with it, and is counted no more.
        tokio::time::timeout(SOON, async {
            while gate.metric(session) != Some(0.0) {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the session is gone");
    }
}

#[tokio::test]
async fn an_http_sse_client_calls_a_streamable_server() {
    let upstream = RmcpServer::start().await;
    let gate = gate(&upstream.url(), ", era: legacy", "").await;
    let (mut client, introduced) = Client::sse(&gate).await;
    assert_eq!(introduced["result"]["protocolVersion"], "2024-11-05");
    let answer = client.tool("echo", json!({"text": "hi"})).await;
    assert_eq!(answer["result"]["content"][0]["text"], "hi");
    drop(client);
    // The end of the stream is the end of the server's session.
    tokio::time::timeout(SOON, async {
        while !upstream.seen().iter().any(|seen| seen.method == Method::DELETE) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the server is told");
    upstream.stop().await;
}

const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;

/// Servers that ask, each with the front that it is bridged for.
const FRONTS: [(bool, &str); 3] = [(false, "modern"), (true, "modern"), (true, "legacy")];

async fn client_of(gate: &Gate, sse: bool) -> Client<'_> {
    match sse {
        true => Client::sse(gate).await.0,
        false => Client::streamable(gate).await.0,
    }
}

#[tokio::test]
async fn r09_progress_comes_before_the_server_is_done() {
    for (sse, era) in FRONTS {
        let upstream = RmcpServer::start().await;
        let gate = gate(&upstream.url(), &format!(", era: {era}"), "").await;
        let mut client = client_of(&gate, sse).await;
        let id = client.id();
        let call = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {
            "name": "slow_count", "arguments": {"n": 3}, "_meta": {"progressToken": "mine"},
        }});
        let (before, answer) = client.converse(&call, |asked| panic!("{asked}")).await;
        let progress: Vec<&Value> = before
            .iter()
            .filter(|told| told["method"] == "notifications/progress")
            .collect();
        assert_eq!(progress.len(), 3, "{sse} {era}: {before:?}");
        assert!(progress.iter().all(|told| told["params"]["progressToken"] == "mine"));
        assert!(answer["result"]["content"].is_array(), "{answer}");
        drop(client);
        upstream.stop().await;
    }
}

#[tokio::test]
async fn what_a_server_asks_in_the_middle_of_a_call_is_asked_of_the_client() {
    for (sse, era) in FRONTS {
        let upstream = RmcpServer::start().await;
        let gate = gate(&upstream.url(), &format!(", era: {era}"), "").await;
        let mut client = client_of(&gate, sse).await;
        for (tool, method, result, said) in [
            (
                "elicit_name",
                "elicitation/create",
                json!({"action": "accept", "content": {"name": "Ada"}}),
                "Ada",
            ),
            (
                "sample",
                "sampling/createMessage",
                json!({"role": "assistant", "model": "m", "content": {"type": "text", "text": "as sampled"}}),
                "as sampled",
            ),
        ] {
            let id = client.id();
            let call = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {
                "name": tool, "arguments": {"prompt": "say"},
            }});
            let (before, answer) = client
                .converse(&call, |asked| {
                    assert_eq!(asked["method"], method);
                    result.clone()
                })
                .await;
            assert_eq!(before.len(), 1, "{sse} {era} {tool}: {before:?}");
            assert!(
                answer["result"].to_string().contains(said),
                "{sse} {era} {tool}: {answer}"
            );
        }
        drop(client);
        upstream.stop().await;
    }
}

/// Waits until something is so.
async fn until(what: &str, so: impl Fn() -> bool) {
    let waiting = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, waiting)
        .await
        .unwrap_or_else(|_| panic!("{what}: not in time"));
}

fn listens(upstream: &RmcpServer, uri: Option<&str>) -> bool {
    upstream
        .seen()
        .iter()
        .map(super::rmcp_server::Seen::message)
        .any(|message| {
            let notifications = &message["params"]["notifications"];
            message["method"] == "subscriptions/listen"
                && uri.is_none_or(|uri| notifications["resourceSubscriptions"] == json!([uri]))
        })
}

#[tokio::test]
async fn what_a_client_subscribes_to_of_a_modern_server_comes_on_its_stream() {
    let uri = "memo://greeting";
    for sse in [false, true] {
        let upstream = RmcpServer::start().await;
        let gate = gate(&upstream.url(), ", era: modern", "").await;
        let mut client = client_of(&gate, sse).await;
        let mut standing = match sse {
            true => None,
            false => {
                assert!(!listens(&upstream, None), "nobody could hear it");
                Some(client.stand().await)
            }
        };
        until("a subscription to lists", || listens(&upstream, None)).await;
        let answer = client.ask("resources/subscribe", json!({"uri": uri})).await;
        assert_eq!(answer["result"], json!({}), "{answer}");
        until("a subscription to the resource", || listens(&upstream, Some(uri))).await;
        let mut told = Vec::new();
        // The first may come before the server has registered the subscription.
        while !told
            .iter()
            .any(|told: &Value| told["method"] == "notifications/resources/updated")
        {
            upstream.touch(uri).await;
            let next = match (&mut standing, &mut client.way) {
                (Some(events), _) | (None, Way::Sse { events, .. }) => {
                    tokio::time::timeout(Duration::from_millis(200), events.next()).await
                }
                _ => unreachable!("it has a stream"),
            };
            told.extend(next.ok());
        }
        let updated = told.last().expect("one");
        assert_eq!(updated["params"]["uri"], uri);
        assert!(!updated.to_string().contains("subscriptionId"), "{updated}");
        drop(standing);
        drop(client);
        upstream.stop().await;
    }
}

#[tokio::test]
async fn the_newest_of_a_sessions_streams_counts() {
    let upstream = RmcpServer::start().await;
    let gate = gate(&upstream.url(), ", era: modern", "").await;
    let (client, _) = Client::streamable(&gate).await;
    let mut first = client.stand().await;
    let _second = client.stand().await;
    assert!(first.event().await.is_none(), "it ends");
    upstream.stop().await;
}

#[tokio::test]
async fn a_call_that_is_taken_back_ends_at_the_server() {
    for (sse, era) in FRONTS {
        let upstream = RmcpServer::start().await;
        let gate = gate(&upstream.url(), &format!(", era: {era}"), "").await;
        let mut client = client_of(&gate, sse).await;
        let id = client.id();
        let call = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": "wait_forever", "arguments": {}}});
        let request = client.request(Method::POST, call.to_string());
        let waiting = tokio::spawn(super::gate::client().request(request));
        until("the call", || {
            upstream.methods().iter().any(|method| method == "tools/call")
        })
        .await;
        let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}});
        assert_eq!(client.post(&cancel).await.status(), StatusCode::ACCEPTED);
        waiting.await.expect("the call").expect("a reply, without an answer");
        let mut cancelled = false;
        while !cancelled {
            let answer = client.tool("was_cancelled", json!({})).await;
            cancelled = answer["result"]["content"][0]["text"] == "true";
        }
        drop(client);
        upstream.stop().await;
    }
}

#[tokio::test]
async fn what_only_legacy_servers_know_is_answered_by_the_gate() {
    let upstream = modern(|seen| async move { json_reply(&complete(&seen.json(), text("done"))) }).await;
    let gate = gate(&upstream.url(), "", "").await;
    let (mut client, _) = Client::streamable(&gate).await;
    let before = upstream.seen().len();
    assert_eq!(client.ask("ping", json!({})).await["result"], json!({}));
    let wrong = client.ask("logging/setLevel", json!({"level": "loud"})).await;
    assert_eq!(wrong["error"]["code"], -32602);
    assert_eq!(
        client.ask("logging/setLevel", json!({"level": "warning"})).await["result"],
        json!({})
    );
    let again = client.call_raw(&initialize("2025-11-25", &json!({}))).await;
    assert_eq!(again["error"]["code"], -32600);
    let tasks = client.ask("tasks/get", json!({"taskId": "t"})).await;
    assert_eq!(tasks["error"]["code"], -32601);
    assert_eq!(upstream.seen().len(), before, "nothing of it reached the server");
    client.tool("echo", json!({})).await;
    let call = upstream.seen().last().expect("a call").json();
    assert_eq!(call["params"]["_meta"]["io.modelcontextprotocol/logLevel"], "warning");
}

#[tokio::test]
async fn a_session_is_its_owners_alone() {
    let upstream = modern(|seen| async move { json_reply(&complete(&seen.json(), text("done"))) }).await;
    let gate = gate(&upstream.url(), "", "").await;
    let (client, _) = Client::streamable(&gate).await;
    let (streamed, _) = Client::sse(&gate).await;
    let before = upstream.seen().len();
    let other = gate
        .issuer
        .mint("mallory", &gate.url(), &["notes.read"], &[], Duration::from_secs(600));
    for method in [Method::POST, Method::GET, Method::DELETE] {
        let mut request = client.request(method.clone(), PING.to_owned());
        let bearer = format!("Bearer {other}").parse().expect("a value");
        request.headers_mut().insert("authorization", bearer);
        let answer = gate.send(request).await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::NOT_FOUND, Some(40_400)),
            "{method}"
        );
    }
    let mut request = streamed.request(Method::POST, PING.to_owned());
    let bearer = format!("Bearer {other}").parse().expect("a value");
    request.headers_mut().insert("authorization", bearer);
    assert_eq!(gate.send(request).await.status, StatusCode::FORBIDDEN);
    assert_eq!(upstream.seen().len(), before);
    // Without a session, or with the other transport's.
    assert_eq!(
        gate.legacy(&client.token, &serde_json::from_str(PING).expect("JSON"))
            .await
            .status,
        StatusCode::NOT_FOUND
    );
    let mut get = gate.request(Method::GET, &client.token, String::new());
    get.headers_mut()
        .insert("mcp-protocol-version", "2025-11-25".parse().expect("a value"));
    let refused = gate.send(get).await;
    assert_eq!(
        (refused.status, refused.header("allow")),
        (StatusCode::METHOD_NOT_ALLOWED, "POST, DELETE")
    );
}

#[tokio::test]
async fn r04_an_expired_bearer_ends_messages_and_the_stream() {
    let upstream = modern(|seen| async move { json_reply(&complete(&seen.json(), text("done"))) }).await;
    for keys in ["", "    bearerless_messages: true\n"] {
        let gate = gate(&upstream.url(), "", keys).await;
        let token = gate
            .issuer
            .mint("alice", &gate.url(), &["notes.read"], &[], Duration::from_secs(60));
        let mut client = Client::sse_stream(&gate, token).await;
        client.call_raw(&initialize("2024-11-05", &json!({}))).await;
        let mut bare = client.request(Method::POST, PING.to_owned());
        bare.headers_mut().remove("authorization");
        let bare = gate.send(bare).await;
        let expected = if keys.is_empty() {
            StatusCode::UNAUTHORIZED
        } else {
            StatusCode::ACCEPTED
        };
        assert_eq!(bare.status, expected, "{keys}");
        gate.clock.set(gate.clock.now() + 120);
        let late = gate.send(client.request(Method::POST, PING.to_owned())).await;
        assert_eq!(late.status, StatusCode::UNAUTHORIZED, "{keys}");
    }
}

const LISTS: &str = "    scopes: []
    tools:
      rules:
        - {allow: [\"echo\", \"tool_*\"], to: [reader]}
";

#[tokio::test]
async fn lists_are_filtered_and_cut_and_calls_refused_on_every_bridge() {
    let tools = |seen: Seen| async move {
        let body = seen.json();
        json_reply(&complete(&body, super::upstream::result(&body, 120)["result"].clone()))
    };
    for sse in [false, true] {
        for budget in ["", "      max: 3\n      pin: [tool_119]\n"] {
            let upstream = modern(tools).await;
            let gate = gate(&upstream.url(), "", &format!("{LISTS}{budget}")).await;
            let mut client = client_of(&gate, sse).await;
            let list = client.ask("tools/list", json!({})).await;
            let names: Vec<&str> = list["result"]["tools"]
                .as_array()
                .unwrap_or_else(|| panic!("{list}"))
                .iter()
                .filter_map(|tool| tool["name"].as_str())
                .collect();
            assert!(
                names.iter().all(|name| *name == "echo" || name.starts_with("tool_")),
                "{names:?}"
            );
            match budget.is_empty() {
                true => assert_eq!((names.len(), &list["result"]["nextCursor"]), (48, &json!("50"))),
                false => {
                    assert_eq!(names.len(), 3, "{names:?}");
                    assert!(names.contains(&"tool_119"), "it is on the last page: {names:?}");
                    assert!(list["result"].get("nextCursor").is_none());
                }
            }
            let refused = client.tool("delete_note", json!({})).await;
            assert_eq!(refused["error"]["code"], 40_300, "{refused}");
            let called = upstream.seen().iter().any(|seen| seen.json()["method"] == "tools/call");
            assert!(!called, "it never left the gate");
        }
    }
}

#[tokio::test]
async fn r50_a_batch_loses_its_refused_members_and_gains_their_errors() {
    let upstream = Upstream::sse_tools(3).await;
    let gate = gate(&upstream.url(), ", transport: sse", LISTS).await;
    let token = gate.reader();
    let mut client = Client {
        gate: &gate,
        token,
        session: String::new(),
        way: Way::Streamable,
        ids: 0,
    };
    let answer = gate.legacy(&client.token, &initialize("2025-03-26", &json!({}))).await;
    client.session = answer.header("mcp-session-id").to_owned();
    let call = |id: i64, tool: &str| json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool, "arguments": {}}});
    let batch = json!([call(1, "tool_1"), call(2, "delete_note"), call(3, "tool_2"),
        {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 1, "progress": 1}}]);
    let mut request = client.request(Method::POST, batch.to_string());
    request.headers_mut().remove("mcp-protocol-version");
    let answer = gate.send(request).await;
    assert_eq!(answer.status, StatusCode::OK);
    let mut answers = answer.json().as_array().expect("an array").clone();
    answers.sort_by_key(|answer| answer["id"].as_i64());
    assert_eq!(answers.len(), 3, "{answers:?}");
    assert_eq!(answers[0]["result"]["content"][0]["text"], "tool_1");
    assert_eq!(answers[1]["error"]["code"], 40_300);
    assert_eq!(answers[2]["result"]["content"][0]["text"], "tool_2");
    let sent: Vec<String> = upstream.seen().iter().map(|seen| seen.json().to_string()).collect();
    assert!(!sent.iter().any(|sent| sent.contains("delete_note")), "{sent:?}");
}

#[tokio::test]
async fn a_server_that_never_comes_to_an_answer_is_left_in_the_end() {
    let upstream = modern(|seen| async move {
        let body = seen.json();
        json_reply(&json!({"jsonrpc": "2.0", "id": body["id"], "result": {
            "resultType": "input_required", "requestState": "more",
        }}))
    })
    .await;
    let gate = gate(&upstream.url(), "", "").await;
    let (mut client, _) = Client::streamable(&gate).await;
    let before = upstream.seen().len();
    let answer = client.tool("echo", json!({})).await;
    assert_eq!(answer["error"]["code"], 50_200, "{answer}");
    let seen = upstream.seen();
    assert_eq!(seen.len() - before, 16);
    assert_eq!(seen[before].json()["params"].get("requestState"), None);
    assert_eq!(seen[before + 1].json()["params"]["requestState"], "more");
}

#[tokio::test]
async fn rounds_ask_what_the_client_can_answer_and_nothing_else() {
    let upstream = modern(|seen| async move {
        let body = seen.json();
        if let Some(responses) = body["params"].get("inputResponses") {
            return json_reply(&complete(&body, text(&responses.to_string())));
        }
        json_reply(&json!({"jsonrpc": "2.0", "id": body["id"], "result": {"resultType": "input_required", "requestState": "s", "inputRequests": {
            "a": {"method": "elicitation/create", "params": {"mode": "form", "message": "?", "requestedSchema": {"type": "object", "properties": {}}}},
            "b": {"method": "roots/list", "params": {}},
        }}}))
    })
    .await;
    let gate = gate(&upstream.url(), "", "").await;
    let (mut client, _) = Client::streamable(&gate).await;
    let id = client.id();
    let call = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": "echo", "arguments": {}}});
    let (asked, answer) = client
        .converse(&call, |asked| match asked["method"].as_str() {
            Some("roots/list") => json!({"roots": [{"uri": "file:///here"}]}),
            _ => json!({"action": "decline"}),
        })
        .await;
    assert_eq!(asked.len(), 2);
    let said = answer["result"]["content"][0]["text"].as_str().expect("a text");
    let said: Value = serde_json::from_str(said).expect("JSON");
    assert_eq!(
        said,
        json!({"a": {"action": "decline"}, "b": {"roots": [{"uri": "file:///here"}]}})
    );
    // A client that declared nothing is asked nothing.
    let (mut client, _) = Client::streamable_of(&gate, gate.reader(), json!({})).await;
    let answer = client.tool("echo", json!({})).await;
    assert_eq!(answer["error"]["code"], -32_021, "{answer}");
}

#[tokio::test]
async fn mirrored_parameters_are_learnt_when_the_server_misses_them() {
    let upstream = modern(|seen| async move {
        let body = seen.json();
        match body["method"].as_str() {
            Some("tools/list") => json_reply(&complete(&body, json!({"ttlMs": 0, "cacheScope": "private", "tools": [{
                "name": "query", "inputSchema": {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}},
            }]}))),
            _ if seen.headers.get("mcp-param-region").is_none_or(|value| value != "eu") => {
                let mut refused = json_reply(&json!({"jsonrpc": "2.0", "id": body["id"], "error": {"code": -32020, "message": "Header mismatch"}}));
                *refused.status_mut() = StatusCode::BAD_REQUEST;
                refused
            }
            _ => json_reply(&complete(&body, text("found"))),
        }
    })
    .await;
    let gate = gate(&upstream.url(), "", "").await;
    let (mut client, _) = Client::streamable(&gate).await;
    for asked in [3, 1] {
        let before = upstream.seen().len();
        let answer = client.tool("query", json!({"region": "eu"})).await;
        assert_eq!(answer["result"], text("found"), "{answer}");
        assert_eq!(upstream.seen().len() - before, asked, "learnt once");
    }
    let answer = client.tool("query", json!({"region": "us"})).await;
    assert_eq!(answer["error"]["code"], -32020, "asked once more, and no more");
}

#[tokio::test]
async fn what_a_server_asks_outside_of_calls_is_asked_on_the_standing_stream() {
    let (streams, mut opened) = mpsc::unbounded_channel();
    let heard = Arc::new(Notify::new());
    let told = heard.clone();
    let upstream = Upstream::undiscovered(move |seen: Seen| {
        let (streams, told) = (streams.clone(), told.clone());
        async move {
            if seen.method == Method::GET {
                let (sender, response) = stream();
                let _ = sender.send("event: endpoint\ndata: /messages\n\n".to_owned());
                let _ = streams.send(sender);
                return response;
            }
            if seen.target != "/messages" {
                return status(StatusCode::METHOD_NOT_ALLOWED);
            }
            if seen.json()["id"] == "mine" {
                told.notify_one();
            }
            status(StatusCode::ACCEPTED)
        }
    })
    .await;
    let gate = gate(&upstream.url(), ", transport: sse", "").await;
    let introducing = async {
        let server = opened.recv().await.expect("a stream");
        until("initialize", || {
            upstream.seen().iter().any(|seen| seen.json()["method"] == "initialize")
        })
        .await;
        let id = upstream
            .seen()
            .iter()
            .map(Seen::json)
            .find(|seen| seen["method"] == "initialize")
            .expect("one")["id"]
            .clone();
        let _ = server.send(event(&json!({"jsonrpc": "2.0", "id": id, "result": {
            "protocolVersion": "2024-11-05", "capabilities": {}, "serverInfo": {"name": "old", "version": "1"},
        }})));
        server
    };
    let ((client, _), server) = tokio::join!(Client::streamable(&gate), introducing);
    let ask = |method: &str| event(&json!({"jsonrpc": "2.0", "id": "mine", "method": method}));
    // Before the client has a stream, and after.
    let _ = server.send(ask("roots/list"));
    let mut standing = client.stand().await;
    for round in 0..2 {
        let asked = standing.next().await;
        assert_eq!(asked["method"], "roots/list", "{round}");
        assert_ne!(asked["id"], "mine", "the id is the gate's");
        let answer = json!({"jsonrpc": "2.0", "id": asked["id"], "result": {"roots": []}});
        assert_eq!(client.post(&answer).await.status(), StatusCode::ACCEPTED);
        tokio::time::timeout(SOON, heard.notified())
            .await
            .expect("the server hears");
        let _ = server.send(ask("roots/list"));
    }
    // The server's end is the session's.
    drop(server);
    assert!(loop {
        match standing.event().await {
            Some(_) => {}
            None => break true,
        }
    });
    let after = gate.send(client.request(Method::POST, PING.to_owned())).await;
    assert_eq!(after.status, StatusCode::NOT_FOUND);
}

/// A server that is a shell script: `answer RESULT` answers the line it is at.
const SHELL: &str = r#"answer() { id=$(printf %s "$line" | sed 's/.*"id":\([0-9]*\).*/\1/'); printf '{"jsonrpc":"2.0","id":%s,%s}\n' "$id" "$1"; }
"#;

async fn command(script: &str, keys: &str) -> Gate {
    let script = json!(format!("{SHELL}{script}"));
    Gate::with_yaml(&format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {{command: [\"/bin/sh\", \"-c\", {script}]{keys}}}\n"
    ))
    .await
}

#[tokio::test]
async fn commands_of_either_era_serve_clients_of_either_transport() {
    let legacy = r#"while read -r line; do case $line in
        *server/discover*) answer '"error":{"code":-32601,"message":"no"}' ;;
        *'"initialize"'*) answer '"result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"sh","version":"1"}}' ;;
        *tools/call*) call=$line
            printf '{"jsonrpc":"2.0","id":"q","method":"roots/list"}\n' ;;
        *'"id":"q"'*) line=$call; answer '"result":{"content":[{"type":"text","text":"asked"}]}' ;;
    esac; done"#;
    let modern = r#"while read -r line; do case $line in
        *server/discover*) answer '"result":{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{}}}' ;;
        *inputResponses*file:///here*) answer '"result":{"resultType":"complete","content":[{"type":"text","text":"asked"}]}' ;;
        *tools/call*) answer '"result":{"resultType":"input_required","inputRequests":{"r":{"method":"roots/list","params":{}}}}' ;;
    esac; done"#;
    for (era, script) in [("legacy", legacy), ("modern", modern)] {
        for sse in [false, true] {
            let gate = command(script, "").await;
            let mut client = client_of(&gate, sse).await;
            let id = client.id();
            let call =
                json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": "x", "arguments": {}}});
            let roots = |_: &Value| json!({"roots": [{"uri": "file:///here"}]});
            let (asked, answer) = client.converse(&call, roots).await;
            assert_eq!(asked.len(), 1, "{era} {sse}");
            assert_eq!(answer["result"]["content"][0]["text"], "asked", "{era} {sse}: {answer}");
            gate.running.shutdown().await;
        }
    }
}

#[tokio::test]
async fn clients_of_a_shared_command_do_not_end_it_and_are_asked_nothing() {
    let script = r#"while read -r line; do case $line in
        *server/discover*) answer '"error":{"code":-32601,"message":"no"}' ;;
        *'"initialize"'*) answer '"result":{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"sh","version":"1"}}' ;;
        *tools/call*) call=$line
            printf '{"jsonrpc":"2.0","id":"q","method":"roots/list"}\n' ;;
        *'"id":"q"'*error*) line=$call; answer "\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"$$\"}]}" ;;
    esac; done"#;
    let gate = command(script, ", shared: true").await;
    let mut processes = Vec::new();
    for sse in [false, true, false] {
        let mut client = client_of(&gate, sse).await;
        let answer = client.tool("x", json!({})).await;
        processes.push(answer["result"]["content"][0]["text"].clone());
        if !sse {
            let ended = gate.send(client.request(Method::DELETE, String::new())).await;
            assert_eq!(ended.status, StatusCode::OK);
        }
    }
    assert!(
        processes[0].is_string() && processes.iter().all(|process| *process == processes[0]),
        "{processes:?}"
    );
    gate.running.shutdown().await;
}

#[tokio::test]
async fn what_a_shared_command_keeps_for_one_client_is_no_other_clients() {
    let script = r#"subscribed=0; unsubscribed=0
    while read -r line; do case $line in
        *server/discover*) answer '"error":{"code":-32601,"message":"no"}' ;;
        *'"initialize"'*) answer '"result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{"listChanged":true},"tasks":{"list":{}},"resources":{"subscribe":true}},"serverInfo":{"name":"sh","version":"1"}}' ;;
        *resources/subscribe*) subscribed=$((subscribed + 1)); answer '"result":{}' ;;
        *resources/unsubscribe*) unsubscribed=$((unsubscribed + 1)); answer '"result":{}' ;;
        *tasks/*) answer '"result":{"tasks":[{"taskId":"somebody-elses","status":"completed"}]}' ;;
        *roots/list_changed*|*'"task"'*) exit 1 ;;
        *tools/call*)
            printf '{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"memo://a"}}\n'
            printf '{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}\n'
            answer "\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"$subscribed $unsubscribed\"}]}" ;;
    esac; done"#;
    let gate = command(script, ", shared: true").await;
    let mut one = client_of(&gate, false).await;
    let mut other = client_of(&gate, false).await;
    for method in ["tasks/list", "tasks/get", "tasks/result", "tasks/cancel"] {
        let answer = other.ask(method, json!({"taskId": "somebody-elses"})).await;
        assert_eq!(answer["error"]["code"], -32601, "{method}: {answer}");
    }
    for client in [&mut one, &mut other] {
        let answer = client.ask("resources/subscribe", json!({"uri": "memo://a"})).await;
        assert_eq!(answer["result"], json!({}), "{answer}");
    }
    let answer = other.ask("resources/unsubscribe", json!({"uri": "memo://a"})).await;
    assert_eq!(answer["result"], json!({}), "{answer}");
    let told = json!({"jsonrpc": "2.0", "method": "notifications/roots/list_changed"});
    assert_eq!(other.post(&told).await.status(), StatusCode::ACCEPTED);
    let (mut hears, mut no_longer) = (one.stand().await, other.stand().await);
    let call = json!({"name": "x", "arguments": {}, "task": {"ttl": 1000}});
    let answer = other.ask("tools/call", call).await;
    assert_eq!(answer["result"]["content"][0]["text"], "1 0", "{answer}");
    assert_eq!(hears.next().await["params"]["uri"], "memo://a");
    assert_eq!(hears.next().await["method"], "notifications/tools/list_changed");
    assert_eq!(no_longer.next().await["method"], "notifications/tools/list_changed");
    let ended = gate.send(one.request(Method::DELETE, String::new())).await;
    assert_eq!(ended.status, StatusCode::OK);
    loop {
        // Nobody wants it any more: the process hears so as soon as that is known.
        let answer = other.tool("x", json!({})).await;
        if answer["result"]["content"][0]["text"] == "1 1" {
            break;
        }
        tokio::task::yield_now().await;
    }
    gate.running.shutdown().await;
}

#[tokio::test]
async fn what_one_client_is_refused_for_makes_no_server_another() {
    // It speaks both eras, and reads `initialize` with care.
    let upstream = Upstream::undiscovered(|seen| async move {
        let body = seen.json();
        let legacy = json!({"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "d", "version": "1"}});
        let modern = json!({"resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}});
        let result = match body["method"].as_str() {
            Some("server/discover") => modern,
            Some("initialize") if body["params"]["clientInfo"]["name"].is_string() => legacy,
            Some("initialize") => {
                return json_reply(&json!({"jsonrpc": "2.0", "id": body["id"], "error": {"code": -32602, "message": "who are you?"}}));
            }
            Some("tools/call") => text(&body["params"]["_meta"].to_string()),
            _ => return status(StatusCode::ACCEPTED),
        };
        json_reply(&json!({"jsonrpc": "2.0", "id": body["id"], "result": result}))
    })
    .await;
    let gate = gate(&upstream.url(), "", "").await;
    let broken = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25", "capabilities": {}}});
    let answer = gate.legacy(&gate.reader(), &broken).await;
    assert_eq!(answer.json()["error"]["code"], -32602, "{:?}", answer.body);
    assert_eq!(answer.header("mcp-session-id"), "");
    let mut client = client_of(&gate, true).await;
    let answer = client.call_raw(&broken).await;
    assert_eq!(answer["error"]["code"], -32600, "it has been introduced: {answer}");
    let answer = gate.legacy(&gate.reader(), &initialize("2025-11-25", &json!({}))).await;
    assert_eq!(answer.json()["result"]["serverInfo"]["name"], "d", "{:?}", answer.body);
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x", "arguments": {}}});
    let answer = gate.legacy(&gate.reader(), &call).await;
    assert_eq!(
        answer.json()["result"]["content"][0]["text"],
        "null",
        "as it is: {:?}",
        answer.body
    );
    gate.running.shutdown().await;
}

#[tokio::test]
async fn a_servers_refusal_to_initialize_is_the_clients_to_read() {
    let script = r#"while read -r line; do case $line in
        *'"id":'*) answer '"error":{"code":-32602,"message":"not with you"}' ;;
    esac; done"#;
    let gate = command(script, ", era: legacy").await;
    let answer = gate.legacy(&gate.reader(), &initialize("2025-11-25", &json!({}))).await;
    assert_eq!(
        answer.json()["error"],
        json!({"code": -32602, "message": "not with you"})
    );
    assert_eq!(answer.header("mcp-session-id"), "");
    // Over HTTP+SSE the client may try again.
    let mut client = Client::sse_stream(&gate, gate.reader()).await;
    for _ in 0..2 {
        let answer = client.call_raw(&initialize("2024-11-05", &json!({}))).await;
        assert_eq!(answer["error"]["code"], -32602, "{answer}");
    }
    let early = client.tool("x", json!({})).await;
    assert_eq!(early["error"]["code"], -32600, "{early}");
    gate.running.shutdown().await;
}

#[tokio::test]
async fn stopping_lets_a_bridged_call_finish_and_ends_streams() {
    let (release, held) = tokio::sync::watch::channel(false);
    let upstream = modern(move |seen| {
        let mut held = held.clone();
        async move {
            let _ = held.wait_for(|held| *held).await;
            json_reply(&complete(&seen.json(), text("done")))
        }
    })
    .await;
    let gate = gate(&upstream.url(), "", "").await;
    let (streamable, _) = Client::streamable(&gate).await;
    let mut standing = streamable.stand().await;
    let (client, _) = Client::sse(&gate).await;
    let call = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "x", "arguments": {}}});
    assert_eq!(client.post(&call).await.status(), StatusCode::ACCEPTED);
    until("the call", || {
        upstream.seen().iter().any(|seen| seen.json()["method"] == "tools/call")
    })
    .await;
    let Way::Sse { mut events, .. } = client.way else {
        unreachable!("it is")
    };
    drop(streamable);
    let stopping = tokio::spawn(gate.running.shutdown());
    assert!(
        standing.event().await.is_none(),
        "a standing stream ends when the gate stops"
    );
    release.send(true).expect("the upstream waits");
    assert_eq!(events.next().await["result"], text("done"));
    assert!(events.event().await.is_none(), "the other when its call is answered");
    tokio::time::timeout(SOON, stopping)
        .await
        .expect("it stops")
        .expect("cleanly");
}

#[tokio::test]
async fn r48_bridged_streams_end_when_a_reload_takes_their_callers_right() {
    let upstream = modern(|seen| async move { json_reply(&complete(&seen.json(), text("done"))) }).await;
    let yaml = |route: &str| {
        format!(
            "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {{urls: [\"{}\"]}}\n{route}",
            upstream.url()
        )
    };
    let gate = Gate::with_yaml(&yaml("")).await;
    let (client, _) = Client::streamable(&gate).await;
    let mut standing = client.stand().await;
    let streamed = Client::sse_stream(&gate, gate.reader()).await;
    gate.reload(&yaml("    scopes: [mcp.use]\n")).expect("it can be used");
    assert!(standing.event().await.is_none());
    let Way::Sse { mut events, .. } = streamed.way else {
        unreachable!("it is")
    };
    assert!(events.event().await.is_none());
}

#[tokio::test]
async fn r44_bridged_calls_are_audited_once_with_server_and_outcome() {
    let upstream = modern(|seen| async move {
        let body = seen.json();
        match body["params"]["name"].as_str() {
            Some("fail") => json_reply(&complete(&body, json!({"content": [], "isError": true}))),
            _ => json_reply(&complete(&body, text("done"))),
        }
    })
    .await;
    for sse in [false, true] {
        let gate = gate(&upstream.url(), "", LISTS).await;
        let mut client = client_of(&gate, sse).await;
        client.tool("echo", json!({})).await;
        client.tool("tool_1", json!({"secret": "s3cret"})).await;
        client.tool("delete_note", json!({})).await;
        drop(client);
        let file = gate.directory.path().join("audit.jsonl");
        gate.running.shutdown().await;
        let audit = std::fs::read_to_string(file).expect("an audit");
        assert!(!audit.contains("s3cret"));
        let lines: Vec<Value> = audit
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        for (method, tool, decision, outcome) in [
            ("initialize", Value::Null, "allow", "success"),
            ("notifications/initialized", Value::Null, "allow", "success"),
            ("tools/call", "echo".into(), "allow", "success"),
            ("tools/call", "tool_1".into(), "allow", "success"),
            ("tools/call", "delete_note".into(), "deny", "denied"),
        ] {
            let of_it: Vec<&Value> = lines
                .iter()
                .filter(|line| line["method"] == method && line.get("tool").unwrap_or(&Value::Null) == &tool)
                .collect();
            assert_eq!(of_it.len(), 1, "{sse} {method} {tool}: {audit}");
            assert_eq!(
                (&of_it[0]["decision"], &of_it[0]["outcome"]),
                (&decision.into(), &outcome.into()),
                "{}",
                of_it[0]
            );
            if decision == "allow" {
                let server = of_it[0]["upstream"].as_str().unwrap_or_default();
                assert!(server.contains(&upstream.address.to_string()), "{}", of_it[0]);
            }
        }
    }
}

#[tokio::test]
async fn bridged_streams_end_when_a_reload_leads_their_route_elsewhere() {
    let upstream = modern(|seen| async move { json_reply(&complete(&seen.json(), text("done"))) }).await;
    let yaml = |keys: &str, route: &str| {
        format!(
            "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {{urls: [\"{}\"]{keys}}}\n{route}",
            upstream.url()
        )
    };
    let gate = Gate::with_yaml(&yaml("", "")).await;
    let (mut client, _) = Client::streamable(&gate).await;
    let mut standing = client.stand().await;
    let (mut streamed, _) = Client::sse(&gate).await;
    // Another rule is no other server: everything goes on.
    gate.reload(&yaml("", "    tools: {rules: [{allow: [x]}]}\n"))
        .expect("it can be used");
    for client in [&mut client, &mut streamed] {
        let answer = client.tool("x", json!({})).await;
        assert_eq!(answer["result"]["content"][0]["text"], "done", "{answer}");
    }
    gate.reload(&yaml(", idle_timeout: 1m", "")).expect("it can be used");
    assert!(standing.event().await.is_none());
    let Way::Sse { mut events, .. } = streamed.way else {
        unreachable!("it is")
    };
    assert!(events.event().await.is_none());
}
