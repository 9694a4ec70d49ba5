//! The load generator: a connection a worker, the next request when the last is answered.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::Failure;
use crate::upstream::EPOCH;

/// Events of a long reply.
const EVENTS: u64 = 1_000;

/// Talks to one contestant.
#[derive(Clone)]
pub struct Client {
    pub address: SocketAddr,
    bearer: String,
}

/// What a stretch of load brought.
pub struct Load {
    /// Sorted.
    latencies: Vec<Duration>,
    took: Duration,
}

impl Load {
    /// Requests answered.
    pub fn requests(&self) -> usize {
        self.latencies.len()
    }

    /// Requests answered a second.
    pub fn per_second(&self) -> f64 {
        self.requests() as f64 / self.took.as_secs_f64()
    }

    /// Microseconds from the request to the end of its answer.
    pub fn percentile(&self, share: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let place = (last as f64 * share) as usize;
        self.latencies
            .get(place)
            .map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e6)
    }
}

impl Client {
    /// A client of whatever listens on `address`.
    pub fn new(address: SocketAddr, token: &str) -> Self {
        Self {
            address,
            bearer: format!("Bearer {token}"),
        }
    }

    /// Calls with this token from now on.
    pub fn authorize(&mut self, token: &str) {
        self.bearer = format!("Bearer {token}");
    }

    /// One small call on a fresh connection.
    pub async fn call_once(&self) -> Result<(), Failure> {
        let mut connection = self.connect().await?;
        self.small(&mut connection).await
    }

    /// Small calls over `connections` for as long as `time`.
    pub async fn load(&self, connections: usize, time: Duration) -> Result<Load, Failure> {
        let mut workers = JoinSet::new();
        let begun = Instant::now();
        for _ in 0..connections {
            let client = self.clone();
            workers.spawn(async move {
                let mut connection = client.connect().await?;
                let mut latencies = Vec::new();
                while begun.elapsed() < time {
                    let sent = Instant::now();
                    client.small(&mut connection).await?;
                    latencies.push(sent.elapsed());
                }
                Ok::<_, Failure>(latencies)
            });
        }
        let mut latencies = Vec::new();
        while let Some(worker) = workers.join_next().await {
            latencies.extend(worker??);
        }
        let took = begun.elapsed();
        latencies.sort_unstable();
        Ok(Load { latencies, took })
    }

    /// Reads `count` replies of a thousand events each, four at a time.
    pub async fn replies(&self, count: usize) -> Result<(), Failure> {
        let mut workers = JoinSet::new();
        for worker in 0..4 {
            let client = self.clone();
            let share = (count + 3 - worker) / 4;
            workers.spawn(async move {
                let mut connection = client.connect().await?;
                for _ in 0..share {
                    let reply = client
                        .call(&mut connection, "events", json!({"count": EVENTS, "pace": 0}))
                        .await?;
                    let body = reply.into_body().collect().await?.to_bytes();
                    let events = body.windows(6).filter(|window| window == b"\ndata:").count();
                    if events as u64 != EVENTS + 1 {
                        return Err(format!("{events} events of {EVENTS} and a result").into());
                    }
                }
                Ok::<_, Failure>(())
            });
        }
        while let Some(worker) = workers.join_next().await {
            worker??;
        }
        Ok(())
    }

    /// The median of microseconds from the making of an event to its arrival, of `count` events a millisecond apart.
    pub async fn event_latency(&self, count: usize) -> Result<f64, Failure> {
        let mut connection = self.connect().await?;
        let reply = self
            .call(&mut connection, "events", json!({"count": count, "pace": 1}))
            .await?;
        let mut body = reply.into_body();
        let mut latencies = Vec::with_capacity(count);
        while let Some(frame) = body.frame().await {
            let arrived = EPOCH.elapsed();
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            latencies.extend(made(&data).map(|made| arrived.saturating_sub(made)));
        }
        if latencies.len() != count {
            return Err(format!("{} of {count} events arrived", latencies.len()).into());
        }
        latencies.sort_unstable();
        Ok(latencies[count / 2].as_secs_f64() * 1e6)
    }

    /// Opens `count` streams on which nothing happens; they close when dropped.
    pub async fn idle_streams(&self, count: usize) -> Result<Vec<(SendRequest<Full<Bytes>>, Incoming)>, Failure> {
        let mut streams = Vec::with_capacity(count);
        for _ in 0..count {
            let mut connection = self.connect().await?;
            let request = Request::get("/mcp")
                .header("host", self.address.to_string())
                .header("authorization", &self.bearer)
                .header("accept", "text/event-stream")
                .header("mcp-protocol-version", "2025-11-25")
                .body(Full::default())?;
            let mut body = ok(connection.send_request(request).await?)?.into_body();
            // The first bytes have come: the way is open from end to end.
            body.frame().await.ok_or("a stream ended at once")??;
            streams.push((connection, body));
        }
        Ok(streams)
    }

    /// Reads `count` replies of 10 MiB at the same time, and throws them away.
    pub async fn big_replies(&self, count: usize) -> Result<(), Failure> {
        let mut workers = JoinSet::new();
        for _ in 0..count {
            let client = self.clone();
            workers.spawn(async move {
                let mut connection = client.connect().await?;
                let mut body = client.call(&mut connection, "big", json!({})).await?.into_body();
                let mut size = 0;
                while let Some(frame) = body.frame().await {
                    size += frame?.data_ref().map_or(0, Bytes::len);
                }
                if size < crate::upstream::BIG {
                    return Err(format!("{size} bytes of a big reply").into());
                }
                Ok::<_, Failure>(())
            });
        }
        while let Some(worker) = workers.join_next().await {
            worker??;
        }
        Ok(())
    }

    /// A connection of its own.
    pub async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Its end shows at the sender.
        tokio::spawn(connection);
        Ok(sender)
    }

    /// One small call.
    pub async fn small(&self, connection: &mut SendRequest<Full<Bytes>>) -> Result<(), Failure> {
        let reply = self
            .call(connection, "small", json!({"query": "whatever a small call asks"}))
            .await?;
        reply.into_body().collect().await?;
        Ok(())
    }

    async fn call(
        &self,
        connection: &mut SendRequest<Full<Bytes>>,
        tool: &str,
        arguments: Value,
    ) -> Result<Response<Incoming>, Failure> {
        connection.ready().await?;
        ok(connection.send_request(self.request(tool, &arguments)?).await?)
    }

    /// A modern `tools/call`.
    pub fn request(&self, tool: &str, arguments: &Value) -> Result<Request<Full<Bytes>>, Failure> {
        let message = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
        "name": tool, "arguments": arguments, "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
            "progressToken": 1,
        }}});
        let request = Request::post("/mcp")
            .header("host", self.address.to_string())
            .header("authorization", &self.bearer)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", "2026-07-28")
            .header("mcp-method", "tools/call")
            .header("mcp-name", tool)
            .body(Full::new(Bytes::from(message.to_string())))?;
        Ok(request)
    }
}

fn ok(response: Response<Incoming>) -> Result<Response<Incoming>, Failure> {
    match response.status() {
        StatusCode::OK => Ok(response),
        status => Err(format!("answered {status}").into()),
    }
}

/// When the progress events in these bytes were made. Frames are whole events here: they are small and flushed one by one.
fn made(data: &[u8]) -> impl Iterator<Item = Duration> {
    let text = String::from_utf8_lossy(data).into_owned();
    let times: Vec<Duration> = text
        .split("\"message\":\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next()?.parse().ok().map(Duration::from_nanos))
        .collect();
    times.into_iter()
}
