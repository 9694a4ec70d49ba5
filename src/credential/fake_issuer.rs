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

use crate::config::{Client, ClientProof, Exchange, TokenEndpoint, TokenType};
use crate::secret::Secret;

/// One request for a token.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) headers: HeaderMap,
    pub(super) form: BTreeMap<String, String>,
}

#[derive(Clone)]
pub(super) struct FakeIssuer {
    pub(super) address: SocketAddr,
    asked: watch::Sender<Vec<Asked>>,
    answer: Arc<Mutex<(u16, String)>>,
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
        let headers = request.headers().clone();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let form = url::form_urlencoded::parse(&body).into_owned().collect();
        self.asked.send_modify(|asked| asked.push(Asked { headers, form }));
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
        let (status, body) = self.answer.lock().unwrap().clone();
        let mut response = Response::builder().status(status);
        if status == 307 {
            response = response.header("location", "/elsewhere");
        }
        Ok(response.body(Full::new(body.into())).unwrap())
    }

    pub(super) fn answers(&self, status: u16, body: &str) {
        *self.answer.lock().unwrap() = (status, body.to_owned());
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

    /// A configuration that names this issuer and nothing optional.
    pub(super) fn config(&self) -> Exchange {
        Exchange {
            endpoint: TokenEndpoint {
                url: format!("http://{}/token", self.address).parse().unwrap(),
                client: Client {
                    id: "gate".to_owned(),
                    proof: ClientProof::Basic(Secret::new("s3cret")),
                },
                parameters: Vec::new(),
                ca: None,
            },
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
