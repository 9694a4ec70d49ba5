//! Connections: TCP, TLS where the URL says https, h2 where ALPN agrees.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Uri;
use http_body_util::Full;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tower::Service;

use super::{SetupError, UpstreamEvent, UpstreamEvents};
use crate::config;
use crate::edge::BodyError;

/// One endpoint's pool.
pub type Client = hyper_util::client::legacy::Client<Dial, Full<Bytes>>;

/// Connections that nobody used for so long are closed.
const POOL_IDLE: Duration = Duration::from_secs(60);
/// How long a connection in use may be silent before its other end is asked whether it is still there.
const PROBE: Duration = Duration::from_secs(30);
/// Bytes of a reply's headers; over HTTP/1.1 also what is read of its body at once, and so what a reply needs of memory.
const MAX_HEADERS: usize = 64 * 1024;

/// A pool of connections.
pub fn client(tls: ClientConfig, connect_timeout: Duration, events: UpstreamEvents) -> Client {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    // A standing stream may be silent for hours: only probes tell that its server's machine is gone.
    tcp.set_keepalive(Some(PROBE));
    tcp.set_keepalive_interval(Some(PROBE));
    tcp.set_keepalive_retries(Some(3));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .enable_http2()
        .wrap_connector(tcp);
    hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .http1_max_buf_size(MAX_HEADERS)
        .http2_keep_alive_interval(PROBE)
        .http2_keep_alive_timeout(PROBE)
        .http2_max_header_list_size(u32::try_from(MAX_HEADERS).expect("64 KiB fit"))
        .build(Dial {
            connector,
            timeout: connect_timeout,
            events,
        })
}

/// Connects within the connect timeout, TLS included, and counts.
#[derive(Clone)]
pub struct Dial {
    connector: HttpsConnector<HttpConnector>,
    timeout: Duration,
    events: UpstreamEvents,
}

impl Service<Uri> for Dial {
    type Response = Unadorned<<HttpsConnector<HttpConnector> as Service<Uri>>::Response>;
    type Error = BodyError;
    type Future = BoxFuture<'static, Result<Self::Response, BodyError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        self.connector.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.connector.call(uri);
        let timeout = self.timeout;
        let events = self.events.clone();
        Box::pin(async move {
            let connected = match tokio::time::timeout(timeout, connecting).await {
                Ok(connected) => connected,
                Err(_) => Err(format!("no connection within {} s", timeout.as_secs_f32()).into()),
            };
            events(UpstreamEvent::Connected { ok: connected.is_ok() });
            connected.map(Unadorned)
        })
    }
}

/// A connection that says nothing of itself but its protocol: hyper-util copies what its own say (two addresses, and a
/// map for them) into every response, and nobody here reads it.
pub struct Unadorned<T>(T);

impl<T: Connection> Connection for Unadorned<T> {
    fn connected(&self) -> Connected {
        if self.0.connected().is_negotiated_h2() {
            Connected::new().negotiated_h2()
        } else {
            Connected::new()
        }
    }
}

impl<T: Read + Unpin> Read for Unadorned<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl<T: Write + Unpin> Write for Unadorned<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write_vectored(cx, bufs)
    }
}

/// The TLS settings of a route's upstream.
///
/// # Errors
/// When a file can't be read or holds nothing usable.
pub fn tls(config: &config::Upstream) -> Result<ClientConfig, SetupError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let encrypted = config.urls.iter().any(|url| url.scheme() == "https");
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(config.ca.as_deref(), encrypted)?);
    match (&config.client_certificate, &config.client_key) {
        (Some(certificate), Some(key)) => {
            let chain = certificates("client_certificate", certificate)?;
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| pem("client_key", key, error))?;
            Ok(builder.with_client_auth_cert(chain, private)?)
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn roots(ca: Option<&Path>, encrypted: bool) -> Result<RootCertStore, SetupError> {
    let mut roots = RootCertStore::empty();
    match ca {
        // The system's roots are some hundred files to read, in vain where nothing is encrypted.
        None if !encrypted => {}
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        Some(path) => {
            for certificate in certificates("ca", path)? {
                roots.add(certificate).map_err(|error| pem("ca", path, error))?;
            }
        }
    }
    Ok(roots)
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    let all: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| pem(key, path, error))?;
    if all.is_empty() {
        return Err(pem(key, path, "it holds no certificate"));
    }
    Ok(all)
}

fn pem(key: &'static str, path: &Path, cause: impl std::fmt::Display) -> SetupError {
    SetupError::Pem {
        key,
        path: path.display().to_string(),
        cause: cause.to_string(),
    }
}
