//! Host, Origin and repeated headers: what is refused before anyone is asked who they are.
//!
//! 1. A request must name a host that is ours, in its target or its `Host` header and the same in both
//!    (RFC 9110 section 7.2); anything else is 421. This is what stops DNS rebinding. A host that routes name is noted:
//!    it has their endpoints and documents, and no others.
//! 2. A header that decides something may come once (RFC 9110 section 5.3): repeated, it is 400.
//! 3. On MCP endpoints an `Origin` must be one of `allowed_origins` (MCP, Streamable HTTP, "Security & Endpoint"); a
//!    request without one isn't a browser's.
//! 4. Preflights are answered here, before authentication: browsers send them without a token (Fetch, section 3.2.2).
//!
//! The well-known documents stand between 1 and 3: any page may read them.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HOST, ORIGIN, VARY,
};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use std::sync::Arc;

use tower::Layer;

use super::body::{Body, empty};
use super::check::{Arrival, Check, Stage};
use super::rejection::Rejection;
use crate::mcp;

/// Rules 1 and 2.
#[derive(Debug)]
pub struct HostCheck {
    /// Lower case, without a port.
    hosts: Vec<String>,
    /// Likewise: those that routes name.
    named: Vec<Arc<str>>,
}

impl HostCheck {
    /// Accepts these host names, whatever the port; `named` are those that routes name.
    pub fn new(hosts: impl IntoIterator<Item = String>, named: impl IntoIterator<Item = Arc<str>>) -> Self {
        Self {
            hosts: hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect(),
            named: named.into_iter().collect(),
        }
    }

    fn accepts(&self, authority: &str) -> Option<Ours<'_>> {
        // A parsed name costs an allocation; most requests name the host plainly, with or without a port of digits.
        let (name, port) = authority.rsplit_once(':').unwrap_or((authority, ""));
        if port.bytes().all(|byte| byte.is_ascii_digit())
            && let Some(ours) = self.find(name)
        {
            return Some(ours);
        }
        let authority = authority.parse::<Authority>().ok()?;
        if authority.as_str().contains('@') {
            return None;
        }
        self.find(authority.host())
    }

    fn find(&self, name: &str) -> Option<Ours<'_>> {
        if let Some(host) = self.named.iter().find(|host| host.eq_ignore_ascii_case(name)) {
            return Some(Ours::Routes(host));
        }
        let shared = self.hosts.iter().any(|host| host.eq_ignore_ascii_case(name));
        shared.then_some(Ours::Shared)
    }
}

/// A host that is ours.
enum Ours<'a> {
    /// That of every route that names none.
    Shared,
    /// That of the routes that name it.
    Routes(&'a Arc<str>),
}

impl<B: Send + 'static> Check<Arrival<B>> for HostCheck {
    type Passed = Arrival<B>;

    async fn check(&self, arrival: Arrival<B>) -> Result<Arrival<B>, Rejection> {
        let request = &arrival.request;
        if let Some(name) = mcp::repeated(request.headers()) {
            return Err(Rejection::RepeatedHeader(name));
        }
        let header = request.headers().get(HOST).map(HeaderValue::as_bytes);
        let target = request.uri().authority().map(|authority| authority.as_str());
        let named = match (header, target) {
            (Some(header), Some(target)) if !header.eq_ignore_ascii_case(target.as_bytes()) => None,
            (_, Some(target)) => Some(target),
            (Some(header), None) => std::str::from_utf8(header).ok(),
            (None, None) => None,
        };
        // A proxy may write its own Host, as long as it says which one it was asked for.
        let forwarded = arrival
            .journey
            .forwarded
            .get()
            .and_then(|origin| origin.host.as_deref());
        let named = named.map(|named| forwarded.unwrap_or(named));
        if let Ours::Routes(host) = named
            .and_then(|host| self.accepts(host))
            .ok_or(Rejection::Misdirected)?
        {
            let _ = arrival.journey.host.set(host.clone());
        }
        Ok(arrival)
    }
}

/// Rules 3 and 4.
#[derive(Clone, Debug)]
pub struct OriginLayer {
    origins: Arc<[String]>,
}

impl OriginLayer {
    /// Accepts these origins, `scheme://host[:port]`.
    pub fn new(origins: impl IntoIterator<Item = String>) -> Self {
        Self {
            origins: origins.into_iter().collect(),
        }
    }
}

impl<S> Layer<S> for OriginLayer {
    type Service = OriginGuard<S>;

    fn layer(&self, inner: S) -> OriginGuard<S> {
        OriginGuard {
            origins: self.origins.clone(),
            inner,
        }
    }
}

/// The stage of [`OriginLayer`].
#[derive(Debug)]
pub struct OriginGuard<S> {
    origins: Arc<[String]>,
    inner: S,
}

impl<S, B> Stage<Arrival<B>> for OriginGuard<S>
where
    S: Stage<Arrival<B>, Error = Rejection>,
    B: Send + 'static,
{
    type Error = Rejection;

    async fn serve(&self, arrival: Arrival<B>) -> Result<Response<Body>, Rejection> {
        let headers = arrival.request.headers();
        if let Some(origin) = headers.get(ORIGIN) {
            let allowed = headers.get_all(ORIGIN).iter().count() == 1
                && self
                    .origins
                    .iter()
                    .any(|allowed| allowed.as_bytes().eq_ignore_ascii_case(origin.as_bytes()));
            if !allowed {
                return Err(Rejection::ForbiddenOrigin);
            }
            // Refusals further in must be readable by the page too, so the CORS headers are added where all end.
            let _ = arrival.journey.origin.set(origin.clone());
            if arrival.request.method() == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
                return Ok(preflight(headers));
            }
        }
        self.inner.serve(arrival).await
    }
}

/// Lets `origin` read a response and the headers MCP and OAuth clients need.
pub fn expose(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(
        ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("mcp-session-id, www-authenticate, dpop-nonce, x-request-id"),
    );
    headers.append(VARY, HeaderValue::from_static("origin"));
}

fn preflight(asked: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(
        ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, POST, DELETE, OPTIONS"),
    );
    if let Some(names) = asked.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::edge::Journey;
    use crate::listener::ConnectionInfo;

    /// Answers every request, and says so by its status.
    struct Reached;

    impl Stage<Arrival<()>> for Reached {
        type Error = Rejection;

        async fn serve(&self, _: Arrival<()>) -> Result<Response<Body>, Rejection> {
            let mut response = Response::new(empty());
            *response.status_mut() = StatusCode::IM_A_TEAPOT;
            Ok(response)
        }
    }

    fn guarded() -> OriginGuard<Reached> {
        OriginLayer::new(["https://app.example".to_owned()]).layer(Reached)
    }

    fn arrival(request: Request<()>) -> Arrival<()> {
        let connection = ConnectionInfo {
            peer: ([127, 0, 0, 1], 1).into(),
            tls: false,
            certificate: None,
        };
        Arrival {
            journey: Journey::begin(connection),
            request: Box::new(request),
        }
    }

    fn request(method: Method, headers: &[(&'static str, &'static str)]) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = method;
        for (name, value) in headers {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        request
    }

    /// The origin that is noted on the way in.
    async fn through(request: Request<()>) -> Option<HeaderValue> {
        let arrival = arrival(request);
        let journey = arrival.journey.clone();
        let answer = guarded().serve(arrival).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::IM_A_TEAPOT);
        journey.origin.get().cloned()
    }

    #[tokio::test]
    async fn an_allowed_origin_passes_and_is_noted() {
        let sent = request(Method::POST, &[("origin", "https://APP.example")]);
        assert_eq!(
            through(sent).await,
            Some(HeaderValue::from_static("https://APP.example"))
        );
        assert_eq!(through(request(Method::POST, &[])).await, None);
    }

    #[tokio::test]
    async fn other_origins_are_refused_before_anything_else() {
        for headers in [
            &[("origin", "https://evil.example")][..],
            &[("origin", "null")],
            &[("origin", "https://app.example.evil.example")],
            &[("origin", "http://app.example")],
            &[("origin", "https://app.example"), ("origin", "https://evil.example")],
        ] {
            for method in [Method::POST, Method::OPTIONS] {
                let refused = guarded().serve(arrival(request(method, headers))).await;
                assert!(matches!(refused, Err(Rejection::ForbiddenOrigin)), "{headers:?}");
            }
        }
    }

    #[tokio::test]
    async fn preflights_are_answered_here() {
        let asked = request(
            Method::OPTIONS,
            &[
                ("origin", "https://app.example"),
                ("access-control-request-method", "POST"),
                ("access-control-request-headers", "authorization, mcp-method"),
            ],
        );
        let answer = guarded().serve(arrival(asked)).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        assert_eq!(
            answer.headers()[ACCESS_CONTROL_ALLOW_HEADERS],
            "authorization, mcp-method"
        );
    }

    #[tokio::test]
    async fn only_our_hosts_are_served() {
        let check = HostCheck::new(
            ["mcp.example.com".to_owned(), "127.0.0.1".to_owned(), "[::1]".to_owned()],
            ["wiki.example.com".into()],
        );
        for (target, host, served) in [
            ("/", Some("mcp.example.com"), true),
            ("/", Some("MCP.example.com:8443"), true),
            ("/", Some("127.0.0.1:80"), true),
            ("/", Some("[::1]:80"), true),
            ("/", Some("Wiki.example.com:8443"), true),
            ("https://wiki.example.com/", None, true),
            ("https://wiki.example.com/", Some("mcp.example.com"), false),
            ("/", Some("x.wiki.example.com"), false),
            ("https://mcp.example.com/", None, true),
            ("https://mcp.example.com/", Some("mcp.example.com"), true),
            ("https://mcp.example.com/", Some("evil.example"), false),
            ("https://evil.example/", Some("mcp.example.com"), false),
            ("/", Some("evil.example"), false),
            ("/", Some("mcp.example.com.evil.example"), false),
            ("/", Some("mcp.example.com@evil.example"), false),
            ("/", Some("user@mcp.example.com"), false),
            ("/", Some(""), false),
            ("/", None, false),
        ] {
            let mut request = Request::new(());
            *request.uri_mut() = target.parse().expect("a target");
            if let Some(host) = host {
                request.headers_mut().insert(HOST, HeaderValue::from_static(host));
            }
            let arrival = arrival(request);
            let journey = arrival.journey.clone();
            assert_eq!(check.check(arrival).await.is_ok(), served, "{target} {host:?}");
            let wiki = target.contains("wiki") || host.is_some_and(|host| host.starts_with("Wiki"));
            assert_eq!(journey.host.get().is_some(), served && wiki, "{target} {host:?}");
        }
    }
}
