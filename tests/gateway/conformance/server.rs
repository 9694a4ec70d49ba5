//! The conformance server, started in one era and on one transport.

use std::convert::Infallible;
use std::sync::Arc;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use portcullis::cli::demo::loopback::Loopback;
use rmcp::ServiceExt;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::Service;

use super::handler::Handler;

/// Which revisions it speaks: nothing but these.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Era {
    /// 2026-07-28.
    Modern,
    /// The handshake's, up to 2025-11-25.
    Legacy,
}

impl Era {
    /// The one that a revision belongs to.
    pub(super) fn of(revision: &str) -> Self {
        if revision < "2026-07-28" {
            Self::Legacy
        } else {
            Self::Modern
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::Modern => Self::Legacy,
            Self::Legacy => Self::Modern,
        }
    }
}

/// A running server over Streamable HTTP; dropping it stops it.
pub(super) struct HttpServer {
    server: Loopback,
    _sessions: DropGuard,
}

impl HttpServer {
    pub(super) async fn start(era: Era) -> Self {
        let sessions = CancellationToken::new();
        let config = StreamableHttpServerConfig::default()
            .with_legacy_session_mode(era == Era::Legacy)
            .with_sse_keep_alive(None)
            .with_cancellation_token(sessions.clone());
        let handler = Handler::new(era);
        let manager = Arc::new(LocalSessionManager::default());
        let mcp = StreamableHttpService::new(move || Ok(handler.instance()), manager, config);
        let service = service_fn(move |request: Request<Incoming>| {
            let mut mcp = mcp.clone();
            async move {
                match mcp.call(request).await {
                    Ok(response) => Ok::<_, Infallible>(response),
                    Err(never) => match never {},
                }
            }
        });
        Self {
            server: Loopback::serve(0, service).await.expect("loopback has a free port"),
            _sessions: sessions.drop_guard(),
        }
    }

    /// The MCP endpoint.
    pub(super) fn url(&self) -> String {
        format!("{}/mcp", self.server.origin())
    }
}

/// The same server as a command: the command joins its stdio to a socket here, where each connection is a process of its own
/// to the server. Dropping it ends all of them.
pub(super) struct StdioServer {
    port: u16,
    _ends: DropGuard,
}

impl StdioServer {
    pub(super) async fn start(era: Era) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("loopback has a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let ends = CancellationToken::new();
        let handler = Handler::new(era);
        let ended = ends.clone();
        tokio::spawn(ended.clone().run_until_cancelled_owned(async move {
            while let Ok((socket, _)) = listener.accept().await {
                // rmcp cancels what it is given when it ends.
                let (handler, ended) = (handler.instance(), ended.child_token());
                tokio::spawn(async move {
                    if let Ok(running) = handler.serve_with_ct(socket, ended).await {
                        let _ = running.waiting().await;
                    }
                });
            }
        }));
        Self {
            port,
            _ends: ends.drop_guard(),
        }
    }

    /// Program and arguments, as a list of YAML's.
    pub(super) fn command(&self) -> String {
        format!(
            "[{:?}, tests/interop/servers/pipe.mjs, \"{}\"]",
            super::node(),
            self.port
        )
    }
}
