//! Accept and TLS: who may open a connection, and how long they may take.
//!
//! 1. At most `limits.connections` are open; beyond that nobody is accepted until one closes, so that the kernel's
//!    queue, not our memory, holds the rest.
//! 2. One address has at most `limits.connections_per_address` of them; more are closed at once, unread, so that nobody
//!    alone can take all places. Trusted proxies, who bring everybody's, are exempt.
//! 3. With `proxy_protocol`, a trusted proxy says first whom it connected for ([`proxy`]), within the time for headers;
//!    from then on that is the peer, and its address is what rule 2 counts. Nobody else may say so.
//! 4. A handshake and a request's headers have a time and a size; an HTTP/2 peer has bounds on streams, resets and
//!    header lists. A connection without a request has as long as headers have, whatever else it sends (`idle`).
//! 5. A peer that takes nothing of what is written to it for a minute is cut off: the connection when it doesn't read
//!    (`stall`), the stream when it opens no window (`window`).
//! 6. Told to stop, it accepts nobody, lets calls finish for a grace period and then closes.

mod certificate;
#[cfg(test)]
mod hostile;
mod idle;
pub mod proxy;
mod stall;
#[cfg(test)]
mod tests;
mod tls;
mod window;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt as _};

pub use certificate::{ClientCertificate, Names};
use idle::Idle;
use stall::{STALL, Stall};
pub use tls::{Tls, client_verifier};
use window::{Reply, Streams, Untaken};

use crate::config::{self, ListenLimits, Network};
use crate::edge::Body;
use crate::limit::{Share, Shares, Who};
use crate::telemetry::Metrics;

/// What is held of a reply whose client reads slowly, a stream; 250 of them make 16 MiB a connection.
const SEND_BUFFER: usize = 64 * 1024;

/// How much of an unwanted body is read, and for how long.
const DRAIN_BYTES: usize = 16 * 1024 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// For an idle peer to answer that it was told to go: more than a way there and back.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why the gateway can't listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on {address}: {cause}; {}", remedy(cause))]
    Address { address: SocketAddr, cause: io::Error },
    #[error("tls: cannot use {path}: {cause}")]
    Pem { path: String, cause: String },
    #[error("tls: certificate and key do not work together: {0}")]
    Tls(#[from] rustls::Error),
}

fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::AddrInUse => "stop whatever has the address or change listen.address",
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need a right of their own: grant it or change listen.address"
        }
        _ => "change listen.address to an address of this machine",
    }
}

/// A request and what it came over.
#[derive(Debug)]
pub struct Incoming {
    pub connection: ConnectionInfo,
    pub request: Request<body::Incoming>,
}

/// A connection, as its requests need to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// The other end of the connection, or whom its PROXY header names: the client, or the last proxy before us.
    pub peer: SocketAddr,
    /// Whether the connection was encrypted by us.
    pub tls: bool,
    /// The client's, which chained to `listen.tls.client_ca` when the connection began.
    pub certificate: Option<Arc<ClientCertificate>>,
}

/// A bound socket.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    tls: Option<Tls>,
    limits: ListenLimits,
    proxy_protocol: bool,
    admission: Arc<Admission>,
}

/// Who may have one connection more.
struct Admission {
    /// As they were at the start: a reload changes who is believed, but not who may have many connections.
    trusted: Vec<Network>,
    per_address: usize,
    addresses: Arc<Shares>,
    metrics: Arc<Metrics>,
}

/// That somebody has one share too many.
struct TooMany;

impl Admission {
    fn trusts(&self, peer: SocketAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(peer.ip()))
    }

    /// A place for this peer, to be kept while it is connected; trusted ones need none.
    fn admit(&self, peer: SocketAddr) -> Result<Option<Share>, TooMany> {
        if self.trusts(peer) {
            return Ok(None);
        }
        let share = self.addresses.take(Who::at(peer.ip()), 1, self.per_address);
        if share.is_none() {
            self.metrics.unrouted_limited("connections_per_address");
            tracing::debug!(%peer, "too many connections of this address");
        }
        share.map(Some).ok_or(TooMany)
    }
}

impl Listener {
    /// Binds the address and reads the certificate.
    ///
    /// # Errors
    /// When the address is taken or the certificate can't be used.
    pub async fn bind(config: &config::Listen, metrics: Arc<Metrics>) -> Result<Self, BindError> {
        let tls = config.tls.as_ref().map(Tls::new).transpose()?;
        let at = |cause| BindError::Address {
            address: config.address,
            cause,
        };
        let socket = TcpListener::bind(config.address).await.map_err(at)?;
        Ok(Self {
            address: socket.local_addr().map_err(at)?,
            socket,
            tls,
            limits: config.limits.clone(),
            proxy_protocol: config.proxy_protocol,
            admission: Arc::new(Admission {
                trusted: config.trusted_proxies.clone(),
                per_address: config.limits.connections_per_address,
                addresses: Arc::default(),
                metrics,
            }),
        })
    }

    /// The bound address.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The certificate in use, to be replaced while it serves; `None` on a plain listener.
    pub fn tls(&self) -> Option<Tls> {
        self.tls.clone()
    }

    /// Serves until `shutdown`, then drains for at most `grace`.
    pub async fn serve<S>(self, service: S, shutdown: CancellationToken, grace: Duration)
    where
        S: Service<Incoming, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
    {
        let places = Arc::new(Semaphore::new(self.limits.connections));
        let (stop, told) = watch::channel(());
        let protocol = protocol(&self.limits);
        let mut connections = JoinSet::new();
        loop {
            // Those that have ended are let go of, or the set would grow with every connection there ever was.
            while connections.try_join_next().is_some() {}
            let place = tokio::select! {
                () = shutdown.cancelled() => break,
                place = places.clone().acquire_owned() => place.expect("the semaphore is never closed"),
            };
            let (socket, peer) = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = self.socket.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of descriptors, most likely: waiting lets some close.
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            let Ok(share) = self.admission.admit(peer) else {
                continue;
            };
            let speaks_for = (self.proxy_protocol && self.admission.trusts(peer)).then(|| self.admission.clone());
            let _ = socket.set_nodelay(true);
            let connection = Connection {
                tls: self.tls.as_ref().map(Tls::acceptor),
                handshake_timeout: self.limits.handshake_timeout,
                header_timeout: self.limits.header_timeout,
                protocol: protocol.clone(),
                service: service.clone(),
                peer,
                speaks_for,
                told: told.clone(),
            };
            connections.spawn(async move {
                connection.run(socket).await;
                drop((place, share));
            });
        }
        drop(self.socket);
        stop.send_replace(());
        let ended = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, ended).await.is_err() {
            tracing::warn!(
                grace_seconds = grace.as_secs(),
                "calls were still open after the grace period and are cut"
            );
        }
        // What is left, whichever state it is in.
        connections.shutdown().await;
    }
}

struct Connection<S> {
    tls: Option<TlsAcceptor>,
    handshake_timeout: Duration,
    header_timeout: Duration,
    protocol: auto::Builder<Streams>,
    service: S,
    peer: SocketAddr,
    /// The peer must say whom it connected for, and that one is admitted by this.
    speaks_for: Option<Arc<Admission>>,
    /// Changes when the gateway is told to stop.
    told: watch::Receiver<()>,
}

impl<S> Connection<S>
where
    S: Service<Incoming, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    async fn run(mut self, mut socket: TcpStream) {
        let mut _share = None;
        if let Some(admission) = self.speaks_for.take() {
            let peer = self.peer;
            match tokio::time::timeout(self.header_timeout, proxy::read(&mut socket)).await {
                Ok(Ok(source)) => self.peer = source.unwrap_or(peer),
                Ok(Err(error)) => return tracing::debug!(%peer, %error, "connection closed"),
                Err(_) => return tracing::debug!(%peer, "PROXY header took too long"),
            }
            match admission.admit(self.peer) {
                Ok(share) => _share = share,
                Err(TooMany) => return,
            }
        }
        let peer = self.peer;
        let plain = ConnectionInfo {
            peer,
            tls: false,
            certificate: None,
        };
        // Each way is boxed, so that an idle connection keeps no room for a handshake.
        let Some(tls) = self.tls.take() else {
            return Box::pin(self.serve(socket, plain)).await;
        };
        let shaking = Box::pin(tokio::time::timeout(self.handshake_timeout, tls.accept(socket)));
        match shaking.await {
            Ok(Ok(stream)) => {
                let encrypted = ConnectionInfo {
                    tls: true,
                    certificate: tls::certificate(stream.get_ref().1),
                    ..plain
                };
                Box::pin(self.serve(stream, encrypted)).await;
            }
            Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
        }
    }

    async fn serve<I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(mut self, stream: I, info: ConnectionInfo) {
        let peer = info.peer;
        let idle = Idle::new();
        let stream = Stall::new(stream, idle.clone());
        let untaken = Untaken::new();
        let (inner, requests, replies) = (self.service, idle.clone(), untaken.clone());
        let service = service_fn(move |request: Request<body::Incoming>| {
            let busy = requests.busy();
            let untaken = replies.clone();
            let answered = inner.clone().oneshot(Incoming {
                connection: info.clone(),
                request,
            });
            async move { Ok::<_, Infallible>(answered.await?.map(|body| Reply::new(body, untaken, busy))) }
        });
        let mut connection = pin!(self.protocol.serve_connection(TokioIo::new(stream), service));
        let mut patience = self.header_timeout;
        let (mut stale, mut dismissed) = (false, false);
        loop {
            tokio::select! {
                biased;
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%peer, error = &*error, "connection ended with an error");
                    }
                    return;
                }
                Ok(()) = self.told.changed() => connection.as_mut().graceful_shutdown(),
                () = untaken.stale(), if !stale => {
                    stale = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = idle.lasts(patience) => {
                    if dismissed {
                        return tracing::debug!(%peer, "idle connection is cut");
                    }
                    dismissed = true;
                    patience += if untaken.is_empty() { FAREWELL } else { STALL };
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

fn protocol(limits: &ListenLimits) -> auto::Builder<Streams> {
    let headers = limits.headers.max(8 * 1024);
    let mut builder = auto::Builder::new(Streams);
    // Headers that take too long leave their connection idle.
    builder.http1().header_read_timeout(None).max_buf_size(headers);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(250)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(headers).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(100)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

/// Reads what is left of a refused request's body, bounded: closing on unread bytes would reset the connection before
/// the client has read the refusal (RFC 9112 section 9.6).
pub fn drain(mut body: body::Incoming) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return;
    };
    runtime.spawn(async move {
        let mut left = DRAIN_BYTES;
        let reading = async {
            while let Some(Ok(frame)) = body.frame().await {
                let length = frame.data_ref().map_or(0, bytes::Bytes::len);
                match left.checked_sub(length) {
                    Some(rest) => left = rest,
                    None => return,
                }
            }
        };
        let _ = tokio::time::timeout(DRAIN_TIME, reading).await;
    });
}
