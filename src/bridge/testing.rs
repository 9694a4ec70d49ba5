//! A server over HTTP whose every answer a test writes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use super::era::Nature;
use super::opening::{Opened, Opener};
use super::peer::{Ask, Event, Exchange, Funds, Lost, Peer};
use crate::secret::Secret;
use crate::upstream::Upstream;
use crate::upstream::stdio::Processes;
use crate::upstream::testing::{config, credential, permit};

pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A request that has come, and waits for what the test says to it.
pub struct Came {
    pub method: Method,
    pub target: String,
    pub headers: HeaderMap,
    pub body: String,
    reply: oneshot::Sender<Response<Body>>,
}

/// An event stream that a test writes.
pub struct Events(mpsc::UnboundedSender<Bytes>);

impl Came {
    /// The id that its message has, as it stood there.
    pub fn id(&self) -> String {
        let message: serde_json::Value = serde_json::from_str(&self.body).expect("a message");
        message["id"].to_string()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }

    pub fn reply(self, response: Response<Body>) {
        let _ = self.reply.send(response);
    }

    pub fn status(self, status: u16) {
        let body = Empty::new().boxed_unsync();
        let response = Response::builder().status(StatusCode::from_u16(status).expect("a status"));
        self.reply(response.body(body).expect("a response"));
    }

    pub fn json(self, status: u16, body: impl Into<Bytes>) {
        let response = Response::builder()
            .status(status)
            .header("content-type", "application/json");
        self.reply(
            response
                .body(Full::new(body.into()).boxed_unsync())
                .expect("a response"),
        );
    }

    /// Answers with the result of its request, in a session.
    pub fn result(self, session: Option<&str>, result: &str) {
        let body = format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, self.id());
        let mut response = Response::builder().header("content-type", "application/json");
        if let Some(session) = session {
            response = response.header("mcp-session-id", session);
        }
        self.reply(
            response
                .body(Full::new(body.into()).boxed_unsync())
                .expect("a response"),
        );
    }

    /// Answers with a stream.
    pub fn events(self) -> Events {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let frames = futures_util::stream::poll_fn(move |cx| {
            receiver
                .poll_recv(cx)
                .map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
        });
        let response = Response::builder().header("content-type", "text/event-stream");
        self.reply(
            response
                .body(StreamBody::new(frames).boxed_unsync())
                .expect("a response"),
        );
        Events(sender)
    }
}

impl Events {
    pub fn raw(&self, text: &str) {
        self.0
            .send(Bytes::copy_from_slice(text.as_bytes()))
            .expect("somebody reads");
    }

    pub fn message(&self, message: &str) {
        self.raw(&format!("data: {message}\n\n"));
    }

    /// Waits until nobody reads it any more.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

/// The server.
pub struct Server {
    upstream: Arc<Upstream>,
    came: mpsc::UnboundedReceiver<Came>,
    _listening: tokio_util::sync::DropGuard,
}

impl Server {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/mcp", listener.local_addr().expect("an address"));
        let (sender, came) = mpsc::unbounded_channel();
        let stopping = tokio_util::sync::CancellationToken::new();
        let listening = stopping.clone().drop_guard();
        tokio::spawn(stopping.run_until_cancelled_owned(async move {
            loop {
                let (socket, _) = listener.accept().await.expect("a connection");
                let sender = sender.clone();
                let service = service_fn(move |request| answer(request, sender.clone()));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(socket), service));
            }
        }));
        Self {
            upstream: Upstream::new("r", &config(&[url]), None, Arc::new(|_| {})).expect("no files to read"),
            came,
            _listening: listening,
        }
    }

    /// The next request that comes.
    pub async fn came(&mut self) -> Came {
        let came = tokio::time::timeout(Duration::from_secs(10), self.came.recv()).await;
        came.expect("something comes in time").expect("the server lives")
    }

    /// What opens connections to it.
    pub fn opening(&self) -> Opening {
        Opening {
            upstream: self.upstream.clone(),
            nature: Nature::of(&config(&[])),
            funds: funds(),
        }
    }

    /// A session of a legacy server over Streamable HTTP.
    pub async fn session(&mut self) -> Arc<Peer> {
        let opening = self.opening();
        let opening = tokio::spawn(async move { opening.opener().initialize(&Bytes::from_static(b"{}")).await });
        self.came().await.result(Some("s-1"), INITIALIZED);
        self.came().await.status(202);
        opening.await.expect("no panic").expect("a session").peer
    }
}

/// Everything that an opener borrows.
pub struct Opening {
    upstream: Arc<Upstream>,
    pub nature: Nature,
    funds: Funds,
}

impl Opening {
    pub fn opener(&self) -> Opener<'_> {
        Opener {
            upstream: &self.upstream,
            nature: &self.nature,
            funds: &self.funds,
            idle_timeout: Duration::from_secs(60),
        }
    }
}

/// A server that is a script.
pub struct Process {
    pub opening: Opening,
    processes: Arc<Processes>,
}

/// The configuration of a server that is a script.
pub fn script(script: &str) -> crate::config::Upstream {
    let mut config = config(&[]);
    config.stdio = Some(crate::config::Stdio {
        program: "/bin/sh".into(),
        arguments: vec!["-c".to_owned(), script.to_owned()],
        environment: vec![("PATH".to_owned(), Secret::new("/usr/bin:/bin"))],
        directory: "/".into(),
        shared: false,
        processes: 8,
        idle_timeout: Duration::from_secs(60),
    });
    config
}

impl Process {
    pub fn new(script: &str) -> Self {
        let config = self::script(script);
        let stdio = config.stdio.clone().expect("it is a command");
        Self {
            opening: Opening {
                upstream: Upstream::new("r", &config, None, Arc::new(|_| {})).expect("no files to read"),
                nature: Nature::of(&config),
                funds: funds(),
            },
            processes: Processes::new("r", stdio, Arc::new(|_| {})),
        }
    }

    pub async fn open(&self) -> Result<Opened, Lost> {
        let initialize = Bytes::from_static(b"{}");
        self.opening
            .opener()
            .process(&self.processes, &[1; 32], &initialize)
            .await
    }
}

async fn answer(request: Request<Incoming>, sender: mpsc::UnboundedSender<Came>) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    let (reply, replied) = oneshot::channel();
    let _ = sender.send(Came {
        method: parts.method,
        target: parts.uri.to_string(),
        headers: parts.headers,
        body: String::from_utf8(body.to_vec()).expect("text"),
        reply,
    });
    let unanswered = || Response::new(Empty::new().boxed_unsync());
    Ok(replied.await.unwrap_or_else(|_| unanswered()))
}

pub const INITIALIZED: &str = r#"{"protocolVersion":"2025-11-25","capabilities":{"tools":{},"logging":{}},"serverInfo":{"name":"hand","version":"1"}}"#;

pub fn funds() -> Funds {
    Funds {
        permit: permit(),
        credential: credential(),
        forwarded: HeaderMap::new(),
    }
}

pub fn ask(method: &str, params: &'static str) -> Ask {
    Ask {
        method: method.into(),
        params: Bytes::from_static(params.as_bytes()),
        funds: funds(),
        headers: HeaderMap::new(),
        takes_questions: true,
    }
}

/// What happens next, in time.
pub async fn next(exchange: &mut Exchange) -> Result<Event, Lost> {
    let next = tokio::time::timeout(Duration::from_secs(10), exchange.next()).await;
    next.expect("something happens in time")
}
