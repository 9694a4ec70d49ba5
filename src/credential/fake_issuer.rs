//! A token endpoint for tests: it records what it is asked and answers what it is told, once it is let.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::Making;
use crate::clock::Clock;
use crate::config::{Client, ClientProof, Exchange, ExchangeGrant, TokenEndpoint, TokenType};
use crate::oauth::signer::Signer;
use crate::secret::Secret;
use crate::session::Sealer;
use crate::telemetry::Metrics;

/// One request for a token.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) form: BTreeMap<String, String>,
    /// The form as it came, doubles included.
    pub(super) fields: Vec<(String, String)>,
}

/// What credentials of a route `nc` are made with.
pub(super) struct Made {
    clock: Clock,
    metrics: Arc<Metrics>,
    signer: Arc<Signer>,
    upstream: url::Url,
    servers: crate::config::Upstream,
}

impl Made {
    pub(super) fn new(clock: &Clock, metrics: &Arc<Metrics>) -> Self {
        Self {
            clock: clock.clone(),
            metrics: metrics.clone(),
            signer: Arc::new(Signer::of_sealer(&Sealer::new(&[]))),
            upstream: "https://nc.example/mcp".parse().unwrap(),
            servers: crate::upstream::testing::config(&["https://nc.example/mcp".to_owned()]),
        }
    }

    pub(super) fn making(&self) -> Making<'_> {
        Making {
            route: "nc",
            upstream: Some(&self.upstream),
            public_url: "https://gate.example",
            resource: "https://gate.example/nc/mcp",
            signer: &self.signer,
            servers: &self.servers,
            connections: None,
            clock: &self.clock,
            metrics: &self.metrics,
        }
    }
}

#[derive(Clone)]
pub(super) struct FakeIssuer {
    pub(super) address: SocketAddr,
    asked: watch::Sender<Vec<Asked>>,
    answer: Arc<Mutex<(u16, String)>>,
    /// Paths that answer something else.
    exceptions: Arc<Mutex<BTreeMap<String, (u16, String)>>>,
    open: watch::Sender<bool>,
}

impl FakeIssuer {
    /// Answers `status` and `body` from now on.
    pub(super) async fn start(status: u16, body: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = Self {
            address: listener.local_addr().unwrap(),
            asked: watch::Sender::new(Vec::new()),
            answer: Arc::new(Mutex::new((status, body.to_owned()))),
            exceptions: Arc::default(),
            open: watch::Sender::new(true),
        };
        let serving = issuer.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let issuer = serving.clone();
                let service = service_fn(move |request| issuer.clone().answer(request));
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });
        issuer
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let path = request.uri().path().to_owned();
        let headers = request.headers().clone();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let fields: Vec<_> = url::form_urlencoded::parse(&body).into_owned().collect();
        let asked = Asked {
            path: path.clone(),
            headers,
            form: fields.iter().cloned().collect(),
            fields,
        };
        self.asked.send_modify(|before| before.push(asked));
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
        let exception = self.exceptions.lock().unwrap().get(&path).cloned();
        let (status, body) = exception.unwrap_or_else(|| self.answer.lock().unwrap().clone());
        let mut response = Response::builder().status(status);
        if status == 307 {
            response = response.header("location", "/elsewhere");
        }
        Ok(response.body(Full::new(body.into())).unwrap())
    }

    pub(super) fn answers(&self, status: u16, body: &str) {
        *self.answer.lock().unwrap() = (status, body.to_owned());
    }

    /// Answers this at one path from now on.
    pub(super) fn answers_at(&self, path: &str, status: u16, body: &str) {
        let answer = (status, body.to_owned());
        self.exceptions.lock().unwrap().insert(path.to_owned(), answer);
    }

    /// Holds answers back until [`FakeIssuer::open`].
    pub(super) fn close(&self) {
        self.open.send_replace(false);
    }

    pub(super) fn open(&self) {
        self.open.send_replace(true);
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.borrow().clone()
    }

    /// Returns once it was asked `count` times.
    pub(super) async fn was_asked(&self, count: usize) {
        self.asked
            .subscribe()
            .wait_for(|asked| asked.len() >= count)
            .await
            .unwrap();
    }

    /// A token endpoint here, and a client with a secret.
    pub(super) fn endpoint(&self, path: &str) -> TokenEndpoint {
        TokenEndpoint {
            url: format!("http://{}{path}", self.address).parse().unwrap(),
            client: Client {
                id: "gate".to_owned(),
                proof: ClientProof::Basic(Secret::new("s3cret")),
            },
            parameters: Vec::new(),
            ca: None,
        }
    }

    /// A configuration that names this issuer and nothing optional.
    pub(super) fn config(&self) -> Exchange {
        Exchange {
            endpoint: self.endpoint("/token"),
            grant: ExchangeGrant::TokenExchange,
            audiences: Vec::new(),
            resources: Vec::new(),
            scopes: Vec::new(),
            subject_token_type: TokenType(TokenType::ACCESS_TOKEN.to_owned()),
            requested_token_type: TokenType(TokenType::ACCESS_TOKEN.to_owned()),
            actor: None,
            jwt_bearer: None,
        }
    }
}
