//! Host and path to route: which MCP endpoint a request means.
//!
//! 1. `{path}` and `{path}/` are the MCP endpoint; `{path}/messages` takes HTTP+SSE messages, whatever the upstream
//!    speaks.
//! 2. A host that routes name has those routes and no others; the routes that name none are on every other host of ours.
//! 3. Paths compare byte for byte: no decoding, no dot segments, no case folding. What isn't a route's path is 404.

use std::sync::Arc;

use http::Request;

use crate::authn::RouteAuth;
use crate::bridge::Bridge;
use crate::config;
use crate::credential::CredentialSource;
use crate::edge::{Arrival, Check, Journey, Rejection};
use crate::limit::RouteLimits;
use crate::telemetry::RouteMetrics;
use crate::upstream::Upstream;

/// One public MCP endpoint, running.
pub struct Route {
    pub config: Arc<config::Route>,
    /// `public_url` (on the route's host, when it names one) + path: the RFC 8707 resource, and what tokens are for.
    pub resource: String,
    pub auth: RouteAuth,
    /// Where this route's RFC 9728 document is, when it has an issuer.
    pub resource_metadata: Option<String>,
    /// The route's scopes as clients ask for them, for challenges.
    pub challenge_scopes: Vec<String>,
    pub upstream: Arc<Upstream>,
    /// For callers that don't speak as the upstream does.
    pub bridge: Arc<Bridge>,
    pub credential: CredentialSource,
    /// Where people connect it to their account.
    pub connect_page: String,
    pub limits: Arc<RouteLimits>,
    pub metrics: Arc<RouteMetrics>,
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Route")
            .field("name", &self.config.name)
            .finish_non_exhaustive()
    }
}

impl Route {
    /// The route's name, a metric label.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// What clients are told about DPoP: required only where no identity takes tokens without.
    pub fn dpop(&self) -> Option<config::Dpop> {
        let tokens = self.config.identities.iter();
        let tokens = tokens.filter(|identity| !matches!(identity.keys, config::KeySource::ClientCertificates(_)));
        let mut asked = tokens.map(|identity| identity.dpop);
        let required = |dpop: &Option<config::Dpop>| matches!(dpop, Some(config::Dpop::Required | config::Dpop::Nonce));
        match asked.clone().all(|dpop| required(&dpop)) {
            true => asked.next().flatten(),
            false => asked.any(|dpop| dpop.is_some()).then_some(config::Dpop::Accepted),
        }
    }

    /// Where HTTP+SSE clients post: `{path}/messages` under the public URL.
    pub fn messages_url(&self) -> String {
        format!("{}/messages", self.resource.trim_end_matches('/'))
    }
}

/// Which door of a route a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The MCP endpoint.
    Mcp,
    /// HTTP+SSE's messages.
    Messages,
}

/// A request whose route is known.
#[derive(Debug)]
pub struct Routed<B> {
    pub journey: Arc<Journey>,
    pub route: Arc<Route>,
    pub door: Door,
    pub request: Box<Request<B>>,
}

/// Finds routes by host and path.
#[derive(Debug)]
pub struct Router {
    /// A gateway has a handful of routes: a scan beats hashing.
    routes: Vec<Arc<Route>>,
}

impl Router {
    /// A router over these routes.
    pub fn new(routes: Vec<Arc<Route>>) -> Self {
        Self { routes }
    }

    fn find(&self, host: Option<&Arc<str>>, path: &str) -> Option<(&Arc<Route>, Door)> {
        self.routes.iter().find_map(|route| {
            if route.config.host.as_ref() != host {
                return None;
            }
            let base = route.config.path.trim_end_matches('/');
            let door = match path.strip_prefix(base)? {
                "" | "/" => Door::Mcp,
                "/messages" => Door::Messages,
                _ => return None,
            };
            Some((route, door))
        })
    }
}

impl<B: Send + 'static> Check<Arrival<B>> for Router {
    type Passed = Routed<B>;

    async fn check(&self, arrival: Arrival<B>) -> Result<Routed<B>, Rejection> {
        let Arrival { journey, request } = arrival;
        let (route, door) = self
            .find(journey.host.get(), request.uri().path())
            .ok_or(Rejection::NotFound)?;
        let _ = journey.route.set(route.clone());
        Ok(Routed {
            route: route.clone(),
            door,
            journey,
            request,
        })
    }
}
