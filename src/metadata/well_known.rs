//! Answers the documents' paths, and lets everything else pass.
//!
//! The path must be exactly a document's (one trailing slash is forgiven, as it is on routes): a path under
//! `/.well-known/` that is nobody's goes on, and ends as any unknown path does.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE,
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE,
};
use http::{HeaderValue, Method, Response, StatusCode};
use tower::Layer;

use super::protected_resource::{ProtectedResource, well_known_path};
use crate::edge::{Arrival, Body, Stage, empty, full};

/// Long enough to spare a round trip, short enough that a reload is seen.
const MAX_AGE: &str = "public, max-age=300";

const METHODS: &str = "GET, HEAD, OPTIONS";

/// The documents by path, made once.
#[derive(Debug, Default)]
pub struct WellKnown {
    documents: HashMap<String, Bytes>,
}

impl WellKnown {
    /// The documents of these routes; routes without an issuer have none.
    pub fn new<'a>(routes: impl IntoIterator<Item = ProtectedResource<'a>>) -> Self {
        let mut only = None;
        let mut count = 0;
        let mut documents = HashMap::new();
        for route in routes {
            count += 1;
            if let Some(document) = route.document() {
                only = Some(document.clone());
                documents.insert(well_known_path(route.path), document);
            }
        }
        if let (1, Some(document)) = (count, only) {
            documents.insert(well_known_path("/"), document);
        }
        Self { documents }
    }

    fn at(&self, path: &str) -> Option<&Bytes> {
        self.documents.get(path.strip_suffix('/').unwrap_or(path))
    }

    fn answer(&self, method: &Method, path: &str) -> Option<Response<Body>> {
        let document = self.at(path)?;
        let mut response = Response::new(empty());
        let mut put = |name, value| response.headers_mut().insert(name, HeaderValue::from_static(value));
        put(ACCESS_CONTROL_ALLOW_ORIGIN, "*");
        match *method {
            Method::GET | Method::HEAD => {
                put(CONTENT_TYPE, "application/json");
                put(CACHE_CONTROL, MAX_AGE);
                response.headers_mut().insert(CONTENT_LENGTH, document.len().into());
                if *method == Method::GET {
                    *response.body_mut() = full(document.clone());
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
        Some(response)
    }
}

/// Puts the documents in front of a service.
#[derive(Clone, Debug)]
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
#[derive(Debug)]
pub struct WellKnownService<S> {
    documents: Arc<WellKnown>,
    inner: S,
}

impl<S, B> Stage<Arrival<B>> for WellKnownService<S>
where
    S: Stage<Arrival<B>>,
    B: Send + 'static,
{
    type Error = S::Error;

    async fn serve(&self, arrival: Arrival<B>) -> Result<Response<Body>, S::Error> {
        let request = &arrival.request;
        match self.documents.answer(request.method(), request.uri().path()) {
            Some(response) => Ok(response),
            None => self.inner.serve(arrival).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::Request;
    use http_body_util::BodyExt;

    use super::*;
    use crate::edge::Journey;
    use crate::listener::ConnectionInfo;

    /// What is asked where no document is.
    struct Beyond;

    impl Stage<Arrival<()>> for Beyond {
        type Error = Infallible;

        async fn serve(&self, _: Arrival<()>) -> Result<Response<Body>, Infallible> {
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
            request: Request::builder().method(method).uri(path).body(()).unwrap(),
        };
        let stage = WellKnownLayer::new(Arc::new(WellKnown::new(routes))).layer(Beyond);
        let Ok(response) = stage.serve(arrival).await;
        response
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
