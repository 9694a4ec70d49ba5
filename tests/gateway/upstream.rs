//! A scripted MCP server on loopback that remembers everything it was sent.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use portcullis::edge::{Body, full};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

/// One request as the upstream got it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    /// Path and query.
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Seen {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

type Handler = dyn Fn(Seen) -> BoxFuture<'static, Response<Body>> + Send + Sync;

/// The server; dropping it stops it.
pub struct Upstream {
    pub address: SocketAddr,
    seen: watch::Receiver<Vec<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Upstream {
    /// A server that answers as `handler` says. The gateway's own question which revisions it speaks is answered with the
    /// modern one, and not remembered.
    pub async fn start<F, R>(handler: F) -> Self
    where
        F: Fn(Seen) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::listen(handler, true).await
    }

    /// The same, where that question is the handler's as well.
    pub async fn undiscovered<F, R>(handler: F) -> Self
    where
        F: Fn(Seen) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::listen(handler, false).await
    }

    async fn listen<F, R>(handler: F, discovers: bool) -> Self
    where
        F: Fn(Seen) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let (sender, seen) = watch::channel(Vec::new());
        let handler: Arc<Handler> = Arc::new(move |seen| Box::pin(handler(seen)));
        let task = tokio::spawn(accept(listener, handler, Arc::new(sender), discovers));
        Self { address, seen, task }
    }

    /// A legacy and modern server with `tools` tools named `tool_0`…, and `echo`, `delete_note`, `admin_reset`.
    pub async fn tools(tools: usize) -> Self {
        Self::start(move |seen| async move { answer(&seen, tools) }).await
    }

    /// An HTTP+SSE server: every GET opens a stream, whose messages go to a relative URL with a query of its own.
    pub async fn sse() -> Self {
        Self::sse_tools(1).await
    }

    /// The same with that many tools, in pages of 50.
    pub async fn sse_tools(tools: usize) -> Self {
        let open: Arc<Mutex<Vec<mpsc::UnboundedSender<String>>>> = Arc::default();
        Self::undiscovered(move |seen| {
            let open = open.clone();
            async move {
                let mut open = open.lock().expect("nobody panicked");
                if seen.method == Method::GET {
                    let (sender, response) = stream();
                    let _ = sender.send("event: endpoint\ndata: messages?up=1&x=%2Fy\n\n".to_owned());
                    open.push(sender);
                    return response;
                }
                if seen.target == "/mcp" {
                    return status(StatusCode::METHOD_NOT_ALLOWED);
                }
                if seen.json().get("id").is_some()
                    && let Some(stream) = open.last()
                {
                    let _ = stream.send(event(&result(&seen.json(), tools)));
                }
                status(StatusCode::ACCEPTED)
            }
        })
        .await
    }

    /// Its MCP endpoint.
    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    /// What it has got so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.borrow().clone()
    }

    /// Waits until it has got so many requests.
    pub async fn wait_for(&self, count: usize) -> Vec<Seen> {
        let mut seen = self.seen.clone();
        let all = tokio::time::timeout(
            std::time::Duration::from_secs(10),
            seen.wait_for(|seen| seen.len() >= count),
        )
        .await
        .expect("the upstream is asked in time")
        .expect("the upstream runs");
        all.clone()
    }
}

async fn accept(listener: TcpListener, handler: Arc<Handler>, seen: Arc<watch::Sender<Vec<Seen>>>, discovers: bool) {
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            return;
        };
        let handler = handler.clone();
        let seen = seen.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let handler = handler.clone();
                let seen = seen.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let Ok(body) = body.collect().await else {
                        return Ok::<_, Infallible>(status(StatusCode::BAD_REQUEST));
                    };
                    let request = Seen {
                        method: parts.method,
                        target: parts.uri.to_string(),
                        headers: parts.headers,
                        body: body.to_bytes(),
                    };
                    if discovers && is_probe(&request) {
                        return Ok(json_reply(&discovered(&request.json())));
                    }
                    seen.send_modify(|all| all.push(request.clone()));
                    Ok(handler(request).await)
                }
            });
            let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
    }
}

/// Whether the gateway asks which revisions the server speaks.
fn is_probe(request: &Seen) -> bool {
    let asked = request.json();
    asked["method"] == "server/discover"
        && asked["params"]["_meta"]["io.modelcontextprotocol/clientInfo"]["name"] == "portcullis"
}

fn discovered(request: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": request["id"], "result": {
        "resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}},
        "ttlMs": 0, "cacheScope": "private",
    }})
}

/// A JSON reply.
pub fn json_reply(value: &Value) -> Response<Body> {
    let mut response = Response::new(full(value.to_string()));
    response
        .headers_mut()
        .insert("content-type", "application/json".parse().expect("a value"));
    response
}

/// A reply without a body.
pub fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = status;
    response
}

/// An event stream fed by hand; it ends when the sender is dropped.
pub fn stream() -> (mpsc::UnboundedSender<String>, Response<Body>) {
    let (sender, mut receiver) = mpsc::unbounded_channel::<String>();
    let frames = futures_util::stream::poll_fn(move |cx| {
        receiver
            .poll_recv(cx)
            .map(|event| event.map(|event| Ok(Frame::data(Bytes::from(event)))))
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response
        .headers_mut()
        .insert("content-type", "text/event-stream".parse().expect("a value"));
    (sender, response)
}

/// One `message` event.
pub fn event(value: &Value) -> String {
    format!("event: message\ndata: {value}\n\n")
}

fn answer(seen: &Seen, tools: usize) -> Response<Body> {
    if seen.method != Method::POST {
        return status(StatusCode::METHOD_NOT_ALLOWED);
    }
    let body = seen.json();
    if let Value::Array(members) = &body {
        let answers: Vec<Value> = members
            .iter()
            .filter(|member| member.get("id").is_some())
            .map(|member| result(member, tools))
            .collect();
        return json_reply(&Value::from(answers));
    }
    if body.get("id").is_none() {
        return status(StatusCode::ACCEPTED);
    }
    let mut response = json_reply(&result(&body, tools));
    if body["method"] == "initialize" {
        response
            .headers_mut()
            .insert("mcp-session-id", "upstream-session-1".parse().expect("a value"));
    }
    response
}

/// What the tools server answers to one request.
pub fn result(message: &Value, tools: usize) -> Value {
    let result = match message["method"].as_str().unwrap_or_default() {
        "initialize" => json!({
            "protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "mock", "version": "1"},
        }),
        "tools/list" => {
            let mut all: Vec<Value> = ["echo", "delete_note", "admin_reset"]
                .iter()
                .map(|name| tool(name))
                .collect();
            all.extend((0..tools).map(|number| tool(&format!("tool_{number}"))));
            page(&all, message["params"]["cursor"].as_str())
        }
        "tools/call" => json!({"content": [{"type": "text", "text": message["params"]["name"]}]}),
        "ping" => json!({}),
        _ => {
            return json!({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "Method not found"}});
        }
    };
    json!({"jsonrpc": "2.0", "id": message["id"], "result": result})
}

fn tool(name: &str) -> Value {
    json!({"name": name, "inputSchema": {"type": "object"}})
}

/// Pages of 50.
fn page(all: &[Value], cursor: Option<&str>) -> Value {
    let start: usize = cursor.map_or(0, |cursor| cursor.parse().expect("our own cursor"));
    let end = (start + 50).min(all.len());
    let mut page = json!({"tools": &all[start..end]});
    if end < all.len() {
        page["nextCursor"] = Value::from(end.to_string());
    }
    page
}
