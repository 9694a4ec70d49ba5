//! A small HTTP server on loopback, for everything that `demo` and the tests put beside the gate.
//!
//! 1. It binds 127.0.0.1 and nothing else; port 0 lets the system choose.
//! 2. Stopping it ends its connections too, so that a test can take a server away in mid-stream.
//! 3. Dropping it stops it: nothing is left behind.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A running server; HTTP/1.1 and HTTP/2 with prior knowledge.
#[derive(Debug)]
pub struct Loopback {
    address: SocketAddr,
    accepting: JoinHandle<()>,
    stop: DropGuard,
}

impl Loopback {
    /// Binds `127.0.0.1:port` and serves until stopped or dropped.
    ///
    /// # Errors
    /// When the port can't be bound.
    pub async fn serve<S, B>(port: u16, service: S) -> io::Result<Self>
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let accepting = tokio::spawn(accept(listener, service, stop.clone()));
        Ok(Self {
            address,
            accepting,
            stop: stop.drop_guard(),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:port`, without a trailing slash.
    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends every connection and frees the port before it returns.
    pub async fn stop(self) {
        drop(self.stop);
        // A panic of the accept loop has been reported by the panic hook; the port is free either way.
        let _ = self.accepting.await;
    }
}

async fn accept<S, B>(listener: TcpListener, service: S, stop: CancellationToken)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            // Reaping as we go keeps the set as small as the number of open connections.
            Some(_) = connections.join_next() => {}
            Ok((stream, _)) = listener.accept() => {
                let _ = stream.set_nodelay(true);
                let service = service.clone();
                connections.spawn(async move {
                    // A client that goes away is no event on loopback.
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
            else => break,
        }
    }
    connections.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body_util::Full;
    use hyper::service::service_fn;

    async fn hello() -> Loopback {
        Loopback::serve(
            0,
            service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
            }),
        )
        .await
        .expect("loopback has a free port")
    }

    #[tokio::test]
    async fn it_answers_until_it_is_stopped() {
        let server = hello().await;
        let address = server.address();
        let stream = tokio::net::TcpStream::connect(address).await.expect("connects");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .expect("handshake");
        let connection = tokio::spawn(connection);
        let answer = sender
            .send_request(Request::new(Full::new(Bytes::new())))
            .await
            .expect("an answer");
        assert_eq!(answer.status(), 200);
        drop(answer);

        server.stop().await;
        // The open connection ended with the server, and nobody listens any more.
        let _ = connection.await.expect("the connection task ends");
        tokio::net::TcpStream::connect(address)
            .await
            .expect_err("the port is closed");
    }

    #[tokio::test]
    async fn two_servers_get_two_ports() {
        let (one, two) = (hello().await, hello().await);
        assert_ne!(one.address(), two.address());
        assert!(one.address().ip().is_loopback());
    }
}
