//! An MCP server for the tests, of every Streamable HTTP revision, that remembers what reached it.
//!
//! - [`RmcpServer::seen`] is the proof that a refused request never left the gate: it holds every request from its head on,
//!   whether or not it made sense.
//! - It offers what the SDK clients of `tests/interop/` go through, so that they can be run against it.
//! - The same tool asks its caller in the way of the caller's era: `elicit_name` and `sample` send a request back (legacy)
//!   or answer `input_required` (modern).
//! - [`Settings`] adds tools for the budget, cuts lists into pages and sets the pace.

#![expect(
    deprecated,
    reason = "sampling, logging and resources/subscribe are deprecated, and older clients use them"
)]

mod handler;
mod tests;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Uri};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use portcullis::cli::demo::loopback::Loopback;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::Service;

use handler::{Change, Handler};

/// Tools that are always there; `tool_000` and on follow when [`Settings::extra_tools`] asks for them.
pub const TOOLS: [&str; 18] = [
    "echo",
    "add",
    "slow_count",
    "fail",
    "wait_forever",
    "was_cancelled",
    "elicit_name",
    "sample",
    "touch",
    "resumable",
    "big",
    "headers",
    "change_tools",
    "get_note",
    "search_notes",
    "delete_note",
    "admin_reset",
    "admin_export",
];
/// Resources that are always there.
pub const RESOURCES: [&str; 3] = ["memo://greeting", "memo://secret/plan", "file:///etc/motd"];
/// Prompts that are always there.
pub const PROMPTS: [&str; 2] = ["greet", "admin_briefing"];

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// More tools than [`TOOLS`], named `tool_000`, `tool_001` and so on.
    pub extra_tools: usize,
    /// Entries of a list's page; 0 answers everything at once.
    pub page: usize,
    /// Between two steps of `slow_count`.
    pub step: Duration,
    /// Plain JSON where nothing comes before the result; otherwise every modern reply is SSE. Legacy sessions always get SSE.
    pub json: bool,
    /// A comment on idle streams; `None` sends none.
    pub keep_alive: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            extra_tools: 0,
            page: 0,
            step: Duration::from_millis(20),
            json: true,
            keep_alive: None,
        }
    }
}

/// A request that reached the server.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    /// As far as it came; empty until it is complete.
    pub body: Bytes,
}

impl Seen {
    /// The JSON-RPC message, or null when the body is none.
    pub fn message(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A running server; dropping it stops it.
pub struct RmcpServer {
    server: Loopback,
    sessions: CancellationToken,
    seen: Arc<Mutex<Vec<Seen>>>,
    handler: Handler,
}

/// The reply that a tool's call is answered on: the tool may end it before it has answered.
#[derive(Clone, Default)]
struct Line {
    hang_up: CancellationToken,
    /// What the ids of its events have in common, once one was sent.
    stream: Arc<OnceLock<String>>,
}

impl RmcpServer {
    /// A server with default settings, on a free port.
    pub async fn start() -> Self {
        Self::with(Settings::default()).await
    }

    /// A server with these settings.
    pub async fn with(settings: Settings) -> Self {
        let sessions = CancellationToken::new();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let config = StreamableHttpServerConfig::default()
            .with_json_response(settings.json)
            .with_sse_keep_alive(settings.keep_alive)
            .with_cancellation_token(sessions.clone());
        let resumed = watch::Sender::default();
        let handler = Handler::new(settings, resumed.clone());
        let serving = handler.clone();
        let mut manager = LocalSessionManager::default();
        // How soon a client comes back for the rest of a stream.
        manager.session_config.sse_retry = Some(Duration::from_millis(50));
        let mcp = StreamableHttpService::new(move || Ok(serving.instance()), Arc::new(manager), config);
        let recorder = seen.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let (mut mcp, seen, resumed) = (mcp.clone(), recorder.clone(), resumed.clone());
            async move {
                let (mut parts, body) = request.into_parts();
                let place = record(&seen, &parts);
                // A body that breaks off is what the server got to see: as much of it as came.
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                if let Some(entry) = held(&seen).get_mut(place) {
                    entry.body = body.clone();
                }
                let resumes = parts
                    .headers
                    .get("last-event-id")
                    .and_then(|id| stream_of(id.to_str().ok()?));
                let line = Line::default();
                parts.extensions.insert(line.clone());
                let response = match mcp.call(Request::from_parts(parts, Full::new(body))).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                };
                if let Some(stream) = resumes {
                    resumed.send_replace(stream);
                }
                Ok::<_, Infallible>(response.map(|body| until_hung_up(body, line)))
            }
        });
        let server = Loopback::serve(0, service).await.expect("loopback has a free port");
        Self {
            server,
            sessions,
            seen,
            handler,
        }
    }

    /// The MCP endpoint.
    pub fn url(&self) -> String {
        format!("{}/mcp", self.server.origin())
    }

    /// Every request so far, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        held(&self.seen).clone()
    }

    /// The JSON-RPC methods of the messages so far, batches flattened.
    pub fn methods(&self) -> Vec<String> {
        self.seen()
            .iter()
            .map(Seen::message)
            .flat_map(|message| match message {
                Value::Array(members) => members,
                single => vec![single],
            })
            .filter_map(|message| message["method"].as_str().map(str::to_owned))
            .collect()
    }

    /// Tells whoever subscribed to `uri` that it changed.
    pub async fn touch(&self, uri: &str) {
        self.handler.tell(Change::Resource(uri.to_owned())).await;
    }

    /// Ends sessions and connections.
    pub async fn stop(self) {
        self.sessions.cancel();
        self.server.stop().await;
    }
}

/// What `body` still holds when the tool hangs up is sent; what comes later is not.
fn until_hung_up(
    body: BoxBody<Bytes, Infallible>,
    line: Line,
) -> impl hyper::body::Body<Data = Bytes, Error = Infallible> {
    StreamBody::new(stream::unfold((body, line), |(mut body, line)| async move {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame?,
            () = line.hang_up.cancelled() => return None,
        };
        let text = frame.as_ref().ok().and_then(|frame| frame.data_ref());
        let text = text.map(|data| String::from_utf8_lossy(data)).unwrap_or_default();
        if let Some(stream) = text
            .lines()
            .filter_map(|line| line.strip_prefix("id:"))
            .find_map(stream_of)
        {
            // Later events say the same.
            let _ = line.stream.set(stream);
        }
        Some((frame, (body, line)))
    }))
}

/// Event ids are `index/stream`; those of the standing stream are an index alone.
fn stream_of(event_id: &str) -> Option<String> {
    event_id.trim().split_once('/').map(|(_, stream)| stream.to_owned())
}

fn record(seen: &Mutex<Vec<Seen>>, parts: &Parts) -> usize {
    let mut seen = held(seen);
    seen.push(Seen {
        method: parts.method.clone(),
        uri: parts.uri.clone(),
        headers: parts.headers.clone(),
        body: Bytes::new(),
    });
    seen.len() - 1
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
