//! Answers the documents' paths, and lets everything else pass.
//!
//! The path must be exactly a document's (one trailing slash is forgiven, as it is on routes): a path under
//! `/.well-known/` that is nobody's goes on, and ends as any unknown path does. A request for a mirrored document may
//! wait for the issuer; no other request does.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE,
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE,
};
use http::{HeaderValue, Method, Response, StatusCode};
use tower::Layer;

use super::mirror::{Mirror, Mirrors};
use super::protected_resource::{ProtectedResource, distinct, well_known_path};
use crate::edge::rejection::Rejection;
use crate::edge::{Arrival, Body, Stage, empty, full};
use crate::oauth::metadata::Form;

/// Long enough to spare a round trip, short enough that a reload is seen.
const MAX_AGE: &str = "public, max-age=300";

/// Where the gateway's public keys are.
pub const JWKS: &str = "/.well-known/jwks.json";

const METHODS: &str = "GET, HEAD, OPTIONS";

const ANYONE: &str = "*";

const MIRRORED: [(&str, Form); 2] = [
    ("/.well-known/oauth-authorization-server", Form::OAuth),
    ("/.well-known/openid-configuration", Form::OpenId),
];

/// The documents by host (`None`: every host that no route names) and path.
#[derive(Default)]
pub struct WellKnown {
    hosts: HashMap<Option<Arc<str>>, Documents>,
}

/// The documents of one host by path.
#[derive(Default)]
struct Documents(HashMap<String, Document>);

enum Document {
    /// Made once.
    Ours(Bytes),
    Mirrored(Arc<Mirror>, Form),
    /// Clients look for one here, and no single issuer's would be right.
    Nobodys,
}

impl WellKnown {
    /// The documents of these routes, and their issuers'; routes without an issuer have none. `jwks` are the gateway's own
    /// public keys, on the public URL's host.
    pub fn new<'a>(routes: impl IntoIterator<Item = ProtectedResource<'a>>, mirrors: &Mirrors, jwks: Bytes) -> Self {
        let mut hosts: HashMap<Option<Arc<str>>, Vec<ProtectedResource<'a>>> = HashMap::new();
        for route in routes {
            hosts.entry(route.host.cloned()).or_default().push(route);
        }
        let hosts = hosts.into_iter();
        let mut hosts: HashMap<_, _> = hosts
            .map(|(host, routes)| (host, Documents::new(&routes, mirrors)))
            .collect();
        let own = hosts.entry(None).or_default();
        own.0.insert(JWKS.to_owned(), Document::Ours(jwks));
        Self { hosts }
    }

    /// Besides, a document of the gateway itself, on the hosts that no route names.
    pub fn publish(&mut self, path: &str, document: Bytes) {
        let ours = self.hosts.entry(None).or_default();
        ours.0.insert(path.to_owned(), Document::Ours(document));
    }

    fn at(&self, host: Option<&Arc<str>>, path: &str) -> Option<&Document> {
        let documents = self.hosts.get(&host.cloned())?;
        documents.0.get(path.strip_suffix('/').unwrap_or(path))
    }
}

impl Documents {
    fn new(routes: &[ProtectedResource<'_>], mirrors: &Mirrors) -> Self {
        let mut known = Self::default();
        let mut only = None;
        let mut issuers = Vec::new();
        for route in routes {
            issuers.extend_from_slice(route.issuers);
            if let Some(document) = route.document() {
                only = Some(document.clone());
                known.0.insert(well_known_path(route.path), Document::Ours(document));
            }
        }
        if let ([_], Some(document)) = (routes, only) {
            known.0.insert(well_known_path("/"), Document::Ours(document));
        }
        known.mirror("/", &issuers, mirrors);
        // After the root: there a route's own issuer counts for more than those of the others.
        for route in routes {
            known.mirror(route.path, route.issuers, mirrors);
        }
        known
    }

    fn mirror(&mut self, path: &str, issuers: &[String], mirrors: &Mirrors) {
        let mirror = match distinct(issuers)[..] {
            [issuer] => mirrors.of(issuer),
            _ => None,
        };
        for (prefix, form) in MIRRORED {
            let document = match mirror {
                Some(mirror) => Document::Mirrored(mirror.clone(), form),
                None => Document::Nobodys,
            };
            self.0
                .insert(format!("{prefix}{}", path.trim_end_matches('/')), document);
        }
    }
}

impl Document {
    async fn bytes(&self) -> Result<Bytes, Rejection> {
        match self {
            Self::Ours(document) => Ok(document.clone()),
            Self::Mirrored(mirror, form) => Ok(mirror.document(*form).await?),
            Self::Nobodys => Err(Rejection::NotFound),
        }
    }

    async fn answer(&self, method: &Method) -> Result<Response<Body>, Rejection> {
        let mut response = Response::new(empty());
        let mut put = |name, value| response.headers_mut().insert(name, HeaderValue::from_static(value));
        put(ACCESS_CONTROL_ALLOW_ORIGIN, ANYONE);
        match *method {
            Method::GET | Method::HEAD => {
                put(CONTENT_TYPE, "application/json");
                put(CACHE_CONTROL, MAX_AGE);
                let document = self.bytes().await?;
                response.headers_mut().insert(CONTENT_LENGTH, document.len().into());
                if *method == Method::GET {
                    *response.body_mut() = full(document);
                }
            }
            Method::OPTIONS => {
                put(ALLOW, METHODS);
                put(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
                // Clients send `MCP-Protocol-Version` here too; nothing they send matters.
                put(ACCESS_CONTROL_ALLOW_HEADERS, "*");
                put(ACCESS_CONTROL_MAX_AGE, "86400");
                *response.status_mut() = StatusCode::NO_CONTENT;
            }
            _ => {
                put(ALLOW, METHODS);
                *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            }
        }
        Ok(response)
    }
}

/// Puts the documents in front of a service.
#[derive(Clone)]
pub struct WellKnownLayer {
    documents: Arc<WellKnown>,
}

impl WellKnownLayer {
    pub fn new(documents: Arc<WellKnown>) -> Self {
        Self { documents }
    }
}

impl<S> Layer<S> for WellKnownLayer {
    type Service = WellKnownService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        WellKnownService {
            documents: self.documents.clone(),
            inner,
        }
    }
}

/// The stage of [`WellKnownLayer`].
pub struct WellKnownService<S> {
    documents: Arc<WellKnown>,
    inner: S,
}

impl<S, B> Stage<Arrival<B>> for WellKnownService<S>
where
    S: Stage<Arrival<B>, Error = Rejection>,
    B: Send + 'static,
{
    type Error = Rejection;

    async fn serve(&self, arrival: Arrival<B>) -> Result<Response<Body>, Rejection> {
        let Some(document) = self
            .documents
            .at(arrival.journey.host.get(), arrival.request.uri().path())
        else {
            return self.inner.serve(arrival).await;
        };
        let method = arrival.request.method().clone();
        let Arrival { journey, .. } = arrival;
        let answer = Box::pin(document.answer(&method)).await;
        if answer.is_err() {
            // Pages must be able to read that there is no document, too.
            let _ = journey.origin.set(HeaderValue::from_static(ANYONE));
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http_body_util::BodyExt;

    use super::*;
    use crate::edge::Journey;
    use crate::listener::ConnectionInfo;

    /// What is asked where no document is.
    struct Beyond;

    impl Stage<Arrival<()>> for Beyond {
        type Error = Rejection;

        async fn serve(&self, _: Arrival<()>) -> Result<Response<Body>, Rejection> {
            let mut response = Response::new(empty());
            *response.status_mut() = StatusCode::IM_A_TEAPOT;
            Ok(response)
        }
    }

    const NOTES: &str = "/.well-known/oauth-protected-resource/notes/mcp";
    const ROOT: &str = "/.well-known/oauth-protected-resource";

    fn route<'a>(path: &'a str, issuers: &'a [String]) -> ProtectedResource<'a> {
        ProtectedResource {
            public_url: "https://mcp.example.com",
            host: None,
            path,
            issuers,
            scopes: &[],
            name: "notes",
            dpop: None,
            certificates: false,
        }
    }

    async fn ask(paths: &[(&str, bool)], method: Method, path: &str) -> Response<Body> {
        let issuers = ["https://login.example.com".to_owned()];
        let routes = paths
            .iter()
            .map(|(path, issued)| route(path, if *issued { &issuers } else { &[] }));
        let connection = ConnectionInfo {
            peer: ([127, 0, 0, 1], 1).into(),
            tls: false,
            certificate: None,
        };
        let arrival = Arrival {
            journey: Journey::begin(connection),
            request: Box::new(Request::builder().method(method).uri(path).body(()).unwrap()),
        };
        let documents = WellKnown::new(routes, &Mirrors::default(), Bytes::from_static(b"{}"));
        let stage = WellKnownLayer::new(Arc::new(documents)).layer(Beyond);
        stage.serve(arrival).await.expect("no document here can fail")
    }

    #[tokio::test]
    async fn r08_the_document_answers_without_a_bearer() {
        for path in [NOTES, ROOT, &format!("{NOTES}/")] {
            let response = ask(&[("/notes/mcp", true)], Method::GET, path).await;
            assert_eq!(response.status(), StatusCode::OK, "{path}");
            assert_eq!(response.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], "*");
            assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
            assert_eq!(response.headers()[CACHE_CONTROL], MAX_AGE);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let document: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(document["resource"], "https://mcp.example.com/notes/mcp");
        }
    }

    #[tokio::test]
    async fn the_root_is_answered_only_for_the_only_route() {
        let two = [("/notes/mcp", true), ("/open/mcp", false)];
        assert_eq!(ask(&two, Method::GET, ROOT).await.status(), StatusCode::IM_A_TEAPOT);
        assert_eq!(ask(&two, Method::GET, NOTES).await.status(), StatusCode::OK);
        let open = "/.well-known/oauth-protected-resource/open/mcp";
        assert_eq!(ask(&two, Method::GET, open).await.status(), StatusCode::IM_A_TEAPOT);
    }

    #[tokio::test]
    async fn other_methods_are_answered_as_http_wants() {
        let routes = [("/notes/mcp", true)];
        let head = ask(&routes, Method::HEAD, NOTES).await;
        assert_eq!(head.status(), StatusCode::OK);
        assert_ne!(head.headers()[CONTENT_LENGTH], "0");
        assert!(head.into_body().collect().await.unwrap().to_bytes().is_empty());
        let options = ask(&routes, Method::OPTIONS, NOTES).await;
        assert_eq!(options.status(), StatusCode::NO_CONTENT);
        assert_eq!(options.headers()[ACCESS_CONTROL_ALLOW_METHODS], METHODS);
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
            let refused = ask(&routes, method, NOTES).await;
            assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
            assert_eq!(refused.headers()[ALLOW], METHODS);
        }
    }

    #[test]
    fn the_gateways_own_documents_are_there_for_anyone() {
        let mut documents = WellKnown::new([], &Mirrors::default(), Bytes::new());
        documents.publish("/connect/client.json", Bytes::from_static(b"{}"));
        let path = |host: Option<&str>| documents.at(host.map(Arc::from).as_ref(), "/connect/client.json");
        assert!(matches!(path(None), Some(Document::Ours(_))));
        assert!(
            path(Some("notes.example.com")).is_none(),
            "a route's host has the route's"
        );
    }

    #[tokio::test]
    async fn nothing_else_is_touched() {
        for path in [
            "/notes/mcp",
            "/.well-known/oauth-protected-resource/other",
            "/.well-known/x",
            "/",
            "//",
        ] {
            let response = ask(&[("/notes/mcp", true)], Method::GET, path).await;
            assert_eq!(response.status(), StatusCode::IM_A_TEAPOT, "{path}");
        }
    }
}
