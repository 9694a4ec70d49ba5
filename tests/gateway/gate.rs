//! A gateway, its issuer and a client, put together for a test.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use portcullis::cli::demo::issuer::DevelopmentIssuer;
use portcullis::clock::Clock;
use portcullis::config::Config;
use portcullis::gateway::{Gateway, Running, StartError};
use serde_json::{Value, json};

use super::upstream::Upstream;

/// A running gateway with one issuer, in front of whatever the test started.
pub struct Gate {
    pub running: Running,
    pub issuer: DevelopmentIssuer,
    pub clock: Clock,
    /// The audit file and the state live here.
    pub directory: tempfile::TempDir,
    /// The configuration's text before the test's part.
    before: String,
}

fn config(before: &str, yaml: &str, directory: &tempfile::TempDir) -> Config {
    let text = format!("{before}{yaml}");
    match Config::parse(&text, "test.yaml", directory.path(), &|_| None) {
        Ok(loaded) => loaded.config,
        Err(errors) => panic!("the test's configuration is wrong: {errors}\n{text}"),
    }
}

/// What came back, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// A header as text; empty when it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("a text header"))
    }

    /// The JSON-RPC error's code.
    pub fn code(&self) -> Option<i64> {
        self.json()["error"]["code"].as_i64()
    }
}

impl Gate {
    /// A gateway with route `notes` at `/notes/mcp` to `upstream`; `route` is YAML that is added to the route, indented
    /// by four.
    pub async fn with_route(upstream: &Upstream, route: &str) -> Self {
        let upstream = format!("    upstream: {}\n", upstream.url());
        Self::with_yaml(&format!("routes:\n  notes:\n    path: /notes/mcp\n{upstream}{route}")).await
    }

    /// A gateway in front of the standard rules.
    pub async fn with_rules(upstream: &Upstream) -> Self {
        Self::with_route(upstream, RULES).await
    }

    /// A gateway configured by YAML: `identity`, `listen` and what else it needs are put before it.
    pub async fn with_yaml(yaml: &str) -> Self {
        Self::with_listen(IMPATIENT, yaml).await
    }

    /// The same with more keys for `listen`, indented by two.
    pub async fn with_listen(listen: &str, yaml: &str) -> Self {
        Self::with_setup(listen, None, yaml).await
    }

    /// The same with other identities than the issuer's.
    pub async fn with_setup(listen: &str, identity: Option<&str>, yaml: &str) -> Self {
        // It stands still until a test moves it, save where another issuer mints by the machine's.
        let clock = match identity {
            None => Clock::fixed(Clock::system().now()),
            Some(_) => Clock::system(),
        };
        let issuer = DevelopmentIssuer::start(clock.clone()).await.expect("an issuer");
        let directory = tempfile::tempdir().expect("a directory");
        let corp = format!(
            "  corp:\n    issuer: {}\n    scope_upgrade_endpoint: https://login.example/upgrade\n",
            issuer.issuer()
        );
        let identity = identity.unwrap_or(&corp).replace("{issuer}", issuer.issuer());
        let before = format!(
            "listen:\n  address: 127.0.0.1:0\n  allowed_origins: [\"https://app.example\"]\n{listen}\
             admin: {{address: \"127.0.0.1:0\"}}\n\
             telemetry: {{audit: {{file: audit.jsonl}}}}\n\
             identity:\n{identity}\
             roles:\n  reader: [\"scope:notes.read\"]\n  editor: [\"role:notes-editor\"]\n"
        );
        let running = Gateway::start(config(&before, yaml, &directory), clock.clone())
            .await
            .expect("the gateway starts");
        Self {
            running,
            issuer,
            clock,
            directory,
            before,
        }
    }

    /// Another gateway with the same files and this configuration.
    pub async fn replica(&self, yaml: &str) -> Running {
        let before = self.before.replace("audit.jsonl", "audit-of-replica.jsonl");
        let started = Gateway::start(config(&before, yaml, &self.directory), self.clock.clone());
        started.await.expect("the replica starts")
    }

    /// Opens what another configuration needs; what stands before `yaml` stays.
    pub async fn prepare(&self, yaml: &str) {
        let config = config(&self.before, yaml, &self.directory);
        self.running.prepare(&config).await.expect("it can be opened");
    }

    /// Puts another configuration in force; what stands before `yaml` stays.
    ///
    /// # Errors
    /// As [`Running::reload`].
    pub fn reload(&self, yaml: &str) -> Result<(), StartError> {
        self.running.reload(config(&self.before, yaml, &self.directory))
    }

    /// The same, with what stands before changed by replacing one text by another.
    ///
    /// # Errors
    /// As [`Running::reload`].
    pub fn reload_replacing(&self, old: &str, new: &str, yaml: &str) -> Result<(), StartError> {
        assert!(self.before.contains(old), "nothing to replace: {}", self.before);
        let before = self.before.replace(old, new);
        self.running.reload(config(&before, yaml, &self.directory))
    }

    /// The MCP endpoint of route `notes`.
    pub fn url(&self) -> String {
        format!("{}/notes/mcp", self.running.url())
    }

    /// A token for this route.
    pub fn token(&self, scopes: &[&str], roles: &[&str]) -> String {
        self.issuer
            .mint("alice", &self.url(), scopes, roles, Duration::from_secs(600))
    }

    /// A token that may read.
    pub fn reader(&self) -> String {
        self.token(&["notes.read"], &[])
    }

    /// Sends a request and reads the answer whole.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let response = self.open(request).await;
        let (parts, body) = response.into_parts();
        let body = tokio::time::timeout(Duration::from_secs(20), body.collect())
            .await
            .expect("the answer ends in time")
            .expect("the answer is whole")
            .to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }

    /// Sends a request and leaves the answer's body to the test.
    pub async fn open(&self, request: Request<Full<Bytes>>) -> http::Response<Incoming> {
        tokio::time::timeout(Duration::from_secs(20), client().request(request))
            .await
            .expect("the head comes in time")
            .expect("the gateway answers")
    }

    /// A legacy POST of this JSON.
    pub async fn legacy(&self, token: &str, body: &Value) -> Answer {
        self.send(self.post(token, body)).await
    }

    /// A modern POST of this request; `_meta` and headers are made here.
    pub async fn modern(&self, token: &str, method: &str, params: Value) -> Answer {
        self.send(self.modern_request(token, method, params)).await
    }

    /// A legacy POST, not yet sent.
    pub fn post(&self, token: &str, body: &Value) -> Request<Full<Bytes>> {
        self.request(Method::POST, token, body.to_string())
    }

    /// A request to the MCP endpoint, with the headers a legacy client sends.
    pub fn request(&self, method: Method, token: &str, body: String) -> Request<Full<Bytes>> {
        let mut request = Request::builder()
            .method(method)
            .uri(self.url())
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.body(Full::from(body)).expect("a request")
    }

    /// A modern POST, not yet sent.
    pub fn modern_request(&self, token: &str, method: &str, mut params: Value) -> Request<Full<Bytes>> {
        params["_meta"] = json!({
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        });
        let name = params["name"].as_str().or(params["uri"].as_str()).map(str::to_owned);
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let mut request = self.post(token, &body);
        let headers = request.headers_mut();
        headers.insert("mcp-protocol-version", "2026-07-28".parse().expect("a value"));
        headers.insert("mcp-method", method.parse().expect("a value"));
        if let Some(name) = name {
            headers.insert("mcp-name", name.parse().expect("a value"));
        }
        request
    }

    /// The metrics' line that starts so; its value.
    pub fn metric(&self, start: &str) -> Option<f64> {
        self.running
            .metrics()
            .render()
            .lines()
            .find_map(|line| line.strip_prefix(start)?.trim().parse().ok())
    }
}

/// Slow requests are given up soon. Pools of real clients hold connections for longer than this.
const IMPATIENT: &str = "  limits: {body_timeout: 2s, header_timeout: 1s}\n";

/// Rules of the tests: readers may list and echo, editors delete; nobody touches `admin_*`.
pub const RULES: &str = "    scopes: [mcp.use]
    tools:
      rules:
        - {allow: [\"echo\", \"tool_*\"], to: [reader]}
        - {allow: [delete_note], to: [editor], scopes: [notes.write]}
        - {deny: [\"admin_*\"]}
";

/// A `tools/call`.
pub fn call(tool: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": tool, "arguments": {}}})
}

/// A plain HTTP client.
pub fn client() -> Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).build_http()
}
