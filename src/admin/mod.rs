//! The operators' port: `/metrics`, `/healthz`, `/readyz` and `/status`.
//!
//! 1. It is a listener of its own, never reachable through the gate.
//! 2. `Host` must name the bound address, the address the connection came in by, or loopback: a page in an operator's
//!    browser can't reach it through a name of its own (DNS rebinding). Anything else is 421.
//! 3. `/status` needs the token whenever one is configured, and is closed off loopback without one.
//! 4. Few connections, short patience, no request bodies: whoever can reach the port can't use it up for long.

mod host;
mod respond;
mod status;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::secret::Secret;
use crate::telemetry::Metrics;

pub use status::{ConfigStatus, EndpointStatus, IdentityStatus, ProcessesStatus, RouteStatus, StatusReport};

const MAX_CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle and all: a scraper simply connects again.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(120);
const MAX_HEADER_BYTES: usize = 16 * 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the admin port tells.
#[derive(Clone)]
pub struct AdminState {
    pub metrics: Arc<Metrics>,
    /// Called once a request; must not block.
    pub status: Arc<dyn Fn() -> StatusReport + Send + Sync>,
}

/// The bound admin port.
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
    token: Option<Secret>,
}

/// What every request is answered from.
struct Shared {
    state: AdminState,
    bound: SocketAddr,
    token: Option<Secret>,
}

impl Admin {
    /// Binds the configured address; port 0 takes a free one.
    ///
    /// # Errors
    /// The address can't be bound.
    pub async fn bind(config: &config::Admin) -> io::Result<Self> {
        let listener = TcpListener::bind(config.address).await?;
        let address = listener.local_addr()?;
        Ok(Self {
            listener,
            address,
            token: config.token.clone(),
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown`; open connections are dropped then.
    pub async fn serve(self, state: AdminState, shutdown: CancellationToken) {
        let shared = Arc::new(Shared {
            state,
            bound: self.address,
            token: self.token,
        });
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let accept = async {
            loop {
                let place = Arc::clone(&places)
                    .acquire_owned()
                    .await
                    .expect("the semaphore is never closed");
                match self.listener.accept().await {
                    Ok((stream, _)) => {
                        let (shared, shutdown) = (Arc::clone(&shared), shutdown.clone());
                        tokio::spawn(async move {
                            tokio::select! {
                                () = shutdown.cancelled() => {}
                                () = connection(stream, shared) => {}
                            }
                            drop(place);
                        });
                    }
                    Err(error) => {
                        // Out of file descriptors, most often: trying again at once would only burn the CPU.
                        tracing::warn!(%error, "the admin port can't accept");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = accept => {}
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let Ok(local) = stream.local_addr() else {
        return;
    };
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, std::convert::Infallible>(respond::respond(&shared, local, &request)) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    // How a client's connection ends is its own affair.
    let _ = tokio::time::timeout(MAX_CONNECTION_AGE, serving).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn start() -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let config = config::Admin {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            token: None,
        };
        let admin = Admin::bind(&config).await.unwrap();
        let address = admin.local_addr();
        let report = || StatusReport {
            version: "1",
            uptime: 0,
            config: ConfigStatus::default(),
            routes: vec![],
        };
        let state = AdminState {
            metrics: Metrics::new(),
            status: Arc::new(report),
        };
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(admin.serve(state, shutdown.clone()));
        (address, shutdown, serving)
    }

    #[tokio::test]
    async fn it_answers_on_its_own_port_until_shutdown() {
        let (address, shutdown, serving) = start().await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let request = format!("GET /healthz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("ok\n"),
            "{answer}"
        );
        let mut idle = TcpStream::connect(address).await.unwrap();
        shutdown.cancel();
        serving.await.unwrap();
        assert_eq!(idle.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn a_connection_too_many_waits_for_a_place() {
        let (address, shutdown, _) = start().await;
        let mut idle = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let mut late = TcpStream::connect(address).await.unwrap();
        let request = format!("GET /healthz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        late.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let early = tokio::time::timeout(Duration::from_millis(50), late.read_to_string(&mut answer)).await;
        assert!(early.is_err(), "{answer}");
        drop(idle);
        late.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        shutdown.cancel();
    }
}
