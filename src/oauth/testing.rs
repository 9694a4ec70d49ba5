//! Servers for the tests of this module: upstreams and issuers that answer what they are told, and tell what they were
//! asked.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use url::form_urlencoded;

use crate::{config, upstream};

/// One request.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    body: Bytes,
}

impl Asked {
    pub(super) fn form(&self) -> BTreeMap<String, String> {
        form_urlencoded::parse(&self.body).into_owned().collect()
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

#[derive(Clone)]
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: String,
}

/// A server on loopback. What nobody planned is 404.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) origin: String,
    /// The last answer of a path is given again and again.
    answers: Arc<Mutex<HashMap<String, VecDeque<Answer>>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Peer {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = Self {
            origin: format!("http://{}", listener.local_addr().unwrap()),
            answers: Arc::default(),
            asked: Arc::default(),
        };
        let serving = peer.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let peer = serving.clone();
                let service = service_fn(move |request| peer.clone().answer(request));
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });
        peer
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        let body = body.collect().await.unwrap().to_bytes();
        let answer = {
            let mut answers = self.answers.lock().unwrap();
            match answers.get_mut(&path) {
                Some(planned) if planned.len() > 1 => planned.pop_front(),
                Some(planned) => planned.front().cloned(),
                None => None,
            }
        };
        self.asked.lock().unwrap().push(Asked {
            path,
            headers: head.headers,
            body,
        });
        let answer = answer.unwrap_or_else(|| Answer {
            status: 404,
            headers: Vec::new(),
            body: "nothing here".to_owned(),
        });
        let mut response = Response::builder().status(answer.status);
        for (name, value) in answer.headers {
            response = response.header(name, value);
        }
        Ok(response.body(Full::new(answer.body.into())).unwrap())
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.origin)
    }

    /// Answers so from now on.
    pub(super) fn answers(&self, path: &str, status: u16, body: impl ToString) {
        self.plan(path, status, Vec::new(), body.to_string(), true);
    }

    /// Answers so from now on, with a header.
    pub(super) fn answers_with(&self, path: &str, status: u16, header: (&'static str, &str), body: impl ToString) {
        let headers = vec![(header.0, header.1.to_owned())];
        self.plan(path, status, headers, body.to_string(), true);
    }

    /// Answers so once the answers that are planned were given.
    pub(super) fn then_answers(&self, path: &str, status: u16, body: impl ToString) {
        self.plan(path, status, Vec::new(), body.to_string(), false);
    }

    fn plan(&self, path: &str, status: u16, headers: Vec<(&'static str, String)>, body: String, anew: bool) {
        let mut answers = self.answers.lock().unwrap();
        let planned = answers.entry(path.to_owned()).or_default();
        if anew {
            planned.clear();
        }
        planned.push_back(Answer { status, headers, body });
    }

    /// All requests, in order.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The requests for a path.
    pub(super) fn asked_at(&self, path: &str) -> Vec<Asked> {
        self.asked().into_iter().filter(|asked| asked.path == path).collect()
    }

    /// The paths that were asked for, in order.
    pub(super) fn paths(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.path).collect()
    }
}

/// An upstream, and the issuer that it names.
pub(super) struct World {
    pub(super) upstream: Peer,
    pub(super) issuer: Peer,
}

pub(super) const PRM: &str = "/.well-known/oauth-protected-resource/mcp";
pub(super) const ROOT_PRM: &str = "/.well-known/oauth-protected-resource";
pub(super) const METADATA: &str = "/.well-known/oauth-authorization-server";

impl World {
    /// Both do all that they should; the upstream is at `/mcp`.
    pub(super) async fn start() -> Self {
        let world = Self {
            upstream: Peer::start().await,
            issuer: Peer::start().await,
        };
        let challenge = format!("Bearer resource_metadata=\"{}\"", world.upstream.url(PRM));
        world.challenges(&challenge);
        world.upstream.answers(PRM, 200, world.prm());
        world.issuer.answers(METADATA, 200, world.metadata());
        world
    }

    pub(super) fn challenges(&self, challenge: &str) {
        self.upstream
            .answers_with("/mcp", 401, ("www-authenticate", challenge), "");
    }

    pub(super) fn prm(&self) -> Value {
        json!({
            "resource": self.upstream.url("/mcp"),
            "authorization_servers": [self.issuer.origin],
            "scopes_supported": ["read", "write"],
        })
    }

    pub(super) fn metadata(&self) -> Value {
        let at = |path| self.issuer.url(path);
        json!({
            "issuer": self.issuer.origin,
            "authorization_endpoint": at("/authorize"),
            "token_endpoint": at("/token"),
            "registration_endpoint": at("/register"),
            "device_authorization_endpoint": at("/device"),
            "revocation_endpoint": at("/revoke"),
            "code_challenge_methods_supported": ["plain", "S256"],
            "token_endpoint_auth_methods_supported": ["client_secret_post", "none"],
            "authorization_response_iss_parameter_supported": true,
        })
    }

    /// The servers of a route, by a URL that has a query.
    pub(super) fn servers(&self) -> config::Upstream {
        upstream::testing::config(&[self.upstream.url("/mcp?key=k")])
    }
}

/// `document` with `key` as this value; without it when that is null.
pub(super) fn with(mut document: Value, key: &str, value: impl Into<Value>) -> Value {
    match value.into() {
        Value::Null => document.as_object_mut().unwrap().remove(key),
        value => document.as_object_mut().unwrap().insert(key.to_owned(), value),
    };
    document
}
