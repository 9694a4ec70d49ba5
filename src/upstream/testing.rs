//! Upstreams and servers for the tests of this module.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, Method};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::{Endpoint, Outbound, Sent, Upstream, UpstreamError, UpstreamEvent};
use crate::authn::Principal;
use crate::config::{self, Balance, Transport, UpstreamEra};
use crate::credential::OutboundCredential;
use crate::policy::{Permit, RoutePolicy};

pub const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

pub fn config(urls: &[String]) -> config::Upstream {
    config::Upstream {
        urls: urls.iter().map(|url| url.parse().expect("a URL")).collect(),
        stdio: None,
        transport: Transport::Auto,
        era: UpstreamEra::Auto,
        balance: Balance::RoundRobin,
        health: None,
        breaker: None,
        ca: None,
        client_certificate: None,
        client_key: None,
        connect_timeout: Duration::from_secs(5),
        response_timeout: None,
        idle_timeout: Duration::from_secs(60),
        forward_headers: Vec::new(),
    }
}

/// So many endpoints that nobody connects to.
pub fn endpoints(count: usize) -> Arc<[Arc<Endpoint>]> {
    let urls: Vec<_> = (0..count).map(|n| format!("http://127.0.0.1/{n}")).collect();
    let upstream = Upstream::new("r", &config(&urls), None, Arc::new(|_| {})).expect("no files to read");
    upstream.endpoints.clone()
}

/// An upstream and what it reported of its endpoints' health.
pub struct Reporting {
    pub upstream: Arc<Upstream>,
    pub health: Arc<Mutex<Vec<(String, bool)>>>,
}

impl Reporting {
    pub fn new(config: &config::Upstream) -> Self {
        let health = Arc::<Mutex<Vec<_>>>::default();
        let log = health.clone();
        let events = move |event: UpstreamEvent<'_>| {
            if let UpstreamEvent::Health { endpoint, healthy } = event {
                log.lock().expect("no panic").push((endpoint.to_owned(), healthy));
            }
        };
        Self {
            upstream: Upstream::new("r", config, None, Arc::new(events)).expect("no files to read"),
            health,
        }
    }

    pub async fn send(&self, outbound: Outbound<'_>) -> Result<Sent, UpstreamError> {
        self.upstream.send(&permit(), &credential(), outbound).await
    }
}

pub fn permit() -> Permit {
    let somebody = Principal {
        identity: Some("corp".into()),
        ..Principal::anonymous()
    };
    RoutePolicy::default()
        .permit_stream(&Arc::new(somebody))
        .expect("nothing is demanded")
}

pub fn credential() -> OutboundCredential {
    let mut value = http::HeaderValue::from_static("the-gates");
    value.set_sensitive(true);
    OutboundCredential {
        header: Some((http::HeaderName::from_static("x-api-key"), value)),
        kind: "header",
        recovery: None,
    }
}

pub fn get() -> Outbound<'static> {
    Outbound {
        method: &Method::GET,
        target: None,
        headers: &HeaderMap::new,
        body: bytes::Bytes::new(),
        endpoint: None,
        sticky: None,
    }
}

/// A server that answers each request's head with the same bytes, and tells it.
pub struct Server {
    pub address: SocketAddr,
    pub heads: mpsc::UnboundedReceiver<String>,
    accepting: AbortHandle,
    connections: mpsc::UnboundedReceiver<AbortHandle>,
}

impl Server {
    pub async fn start(answer: impl Fn(&str) -> String + Clone + Send + 'static) -> Self {
        Self::at("127.0.0.1:0".parse().expect("an address"), answer).await
    }

    pub async fn at(address: SocketAddr, answer: impl Fn(&str) -> String + Clone + Send + 'static) -> Self {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (told, heads) = mpsc::unbounded_channel();
        let (opened, connections) = mpsc::unbounded_channel();
        let accepting = tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (told, answer) = (told.clone(), answer.clone());
                let connection = tokio::spawn(async move {
                    let mut head = String::new();
                    let mut bytes = [0; 4096];
                    while let Ok(read @ 1..) = socket.read(&mut bytes).await {
                        head.push_str(&String::from_utf8_lossy(&bytes[..read]));
                        if head.ends_with("\r\n\r\n") {
                            let reply = answer(&head);
                            let _ = told.send(std::mem::take(&mut head));
                            let _ = socket.write_all(reply.as_bytes()).await;
                        }
                    }
                });
                let _ = opened.send(connection.abort_handle());
            }
        });
        Self {
            address,
            heads,
            accepting: accepting.abort_handle(),
            connections,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    /// Ends it with all its connections, and returns its URL.
    pub async fn kill(mut self) -> SocketAddr {
        self.accepting.abort();
        while let Some(connection) = self.connections.recv().await {
            connection.abort();
        }
        self.address
    }
}
