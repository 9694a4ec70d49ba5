//! The server behind every contestant: it answers at once, so that what is measured is the way there and back.
//!
//! `POST` is a `tools/call`: `small` answers a small JSON, `slow` the same after 10 ms and only eight at a time, `big` 10 MiB of it, `events` a stream of
//! `arguments.count` progress events `arguments.pace` milliseconds apart and then the result. It speaks both eras.
//! `GET` is a stream on which nothing happens.

use std::convert::Infallible;
use std::io;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use portcullis::cli::demo::loopback::Loopback;
use serde_json::Value;
use tokio::sync::Semaphore;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Of a `big` reply.
pub const BIG: usize = 10 * 1024 * 1024;

/// Calls of `slow` at once: what a server with a few workers can do.
static SLOW: Semaphore = Semaphore::const_new(8);

/// What event times are relative to: server and client share the process, so they share this clock.
pub static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Starts the server.
pub async fn start() -> io::Result<Loopback> {
    start_at(0).await
}

/// Starts it on this port.
pub async fn start_at(port: u16) -> io::Result<Loopback> {
    LazyLock::force(&EPOCH);
    Loopback::serve(
        port,
        service_fn(|request| async { Ok::<_, Infallible>(answer(request).await) }),
    )
    .await
}

async fn answer(request: Request<Incoming>) -> Response<Body> {
    if request.method() == Method::GET {
        // The comment makes the head leave; after it the stream is only held open.
        let quiet = stream::once(async { frame(": quiet\n\n") }).chain(stream::pending());
        return events(StreamBody::new(quiet).boxed_unsync());
    }
    let body = request
        .into_body()
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default();
    let call: Value = serde_json::from_slice(&body).unwrap_or_default();
    let arguments = &call["params"]["arguments"];
    let id = &call["id"];
    match call["method"].as_str() {
        Some("server/discover") => return json(answered(id, DISCOVERED)),
        Some("initialize") => return json(answered(id, INITIALIZED)),
        Some(method) if method.starts_with("notifications/") => return accepted(),
        _ => {}
    }
    match call["params"]["name"].as_str() {
        Some("events") => {
            let count = arguments["count"].as_u64().unwrap_or_default();
            let pace = Duration::from_millis(arguments["pace"].as_u64().unwrap_or_default());
            let token = call["params"]["_meta"]["progressToken"].clone();
            let progress = stream::unfold((0, token), move |(step, token)| async move {
                if step == count {
                    return None;
                }
                if !pace.is_zero() {
                    tokio::time::sleep(pace).await;
                }
                Some((frame(event(step, &token)), (step + 1, token)))
            });
            let result = format!("event: message\ndata: {}\n\n", answered(id, RESULT));
            let result = stream::once(async { frame(result) });
            events(StreamBody::new(progress.chain(result)).boxed_unsync())
        }
        Some("slow") => {
            let _place = SLOW.acquire().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
            json(answered(id, RESULT))
        }
        Some("big") => {
            let text = "x".repeat(BIG);
            let result = format!(r#"{{"resultType":"complete","content":[{{"type":"text","text":"{text}"}}]}}"#);
            json(answered(id, &result))
        }
        _ => json(answered(id, RESULT)),
    }
}

const RESULT: &str = r#"{"resultType":"complete","content":[{"type":"text","text":"the answer of a small tool, as long as such answers are"}],"isError":false}"#;
const DISCOVERED: &str = r#"{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"ttlMs":0,"cacheScope":"public"}"#;
const INITIALIZED: &str =
    r#"{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"load","version":"1"}}"#;

fn answered(id: &Value, result: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#)
}

fn accepted() -> Response<Body> {
    let mut response = Response::new(Full::default().boxed_unsync());
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}

/// The time it was made, in nanoseconds, is the progress message.
fn event(step: u64, token: &Value) -> String {
    format!(
        "event: message\ndata: {{\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{{\"progressToken\":{token},\
         \"progress\":{step},\"message\":\"{}\"}}}}\n\n",
        EPOCH.elapsed().as_nanos()
    )
}

fn frame(text: impl Into<String>) -> Result<Frame<Bytes>, Infallible> {
    Ok(Frame::data(Bytes::from(text.into())))
}

fn events(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, http::HeaderValue::from_static("text/event-stream"));
    response
}

fn json(body: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body)).boxed_unsync());
    response
        .headers_mut()
        .insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}
