//! The outermost layer: names the request, keeps its body drained, counts and logs its response.

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{HeaderName, Response};
use tower::Layer;

use super::body::Body;
use super::check::{Arrival, Stage};
use super::drain::RequestBody;
use super::journey::Journey;
use crate::limit;
use crate::listener::Incoming;
use crate::telemetry::Metrics;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Begins and ends journeys.
#[derive(Clone)]
pub struct AccessLayer {
    metrics: Arc<Metrics>,
}

impl AccessLayer {
    /// Counts into these metrics.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics }
    }
}

impl<S> Layer<S> for AccessLayer {
    type Service = Access<S>;

    fn layer(&self, inner: S) -> Access<S> {
        Access(Arc::new(Inner {
            metrics: self.metrics.clone(),
            inner,
        }))
    }
}

/// Answers requests: what a whole stack is to those who needn't know of what it is made.
pub trait Front: Send + Sync {
    /// Takes a request to its response; the one box of its way.
    fn answer(&self, incoming: Incoming) -> BoxFuture<'static, Result<Response<Body>, Infallible>>;
}

/// The front of [`AccessLayer`].
pub struct Access<S>(Arc<Inner<S>>);

struct Inner<S> {
    metrics: Arc<Metrics>,
    inner: S,
}

impl<S> Front for Access<S>
where
    S: Stage<Arrival<RequestBody>, Error = Infallible>,
{
    fn answer(&self, incoming: Incoming) -> BoxFuture<'static, Result<Response<Body>, Infallible>> {
        let access = self.0.clone();
        Box::pin(async move { Ok(access.serve(incoming).await) })
    }
}

impl<S: Stage<Arrival<RequestBody>, Error = Infallible>> Inner<S> {
    async fn serve(&self, incoming: Incoming) -> Response<Body> {
        let Incoming { connection, request } = incoming;
        let journey = Journey::begin(connection);
        let asked = tracing::enabled!(target: "portcullis::access", tracing::Level::INFO)
            .then(|| (request.method().clone(), request.uri().clone()));
        let arrival = Arrival {
            journey: journey.clone(),
            request: Box::new(request.map(RequestBody::new)),
        };
        let Ok(mut response) = self.inner.serve(arrival).await;
        response.headers_mut().insert(REQUEST_ID, journey.request_id.header());
        let status = response.status().as_u16();
        let route = journey.route.get();
        match route {
            Some(route) => route.metrics.http_request(status),
            None => self.metrics.unrouted_http_request(status),
        }
        if let Some((method, uri)) = asked {
            tracing::info!(
                target: "portcullis::access",
                request_id = journey.request_id.as_str(),
                client = %journey.client(),
                peer = %journey.connection.peer,
                %method,
                // Its path alone: a query can carry a session or, against the rules, a token.
                path = uri.path(),
                status,
                route = route.map(|route| route.name()),
                elapsed_us = u64::try_from(journey.started.elapsed().as_micros()).unwrap_or(u64::MAX),
            );
        }
        if journey.held.get().is_some() {
            return response.map(|body| limit::keep(body, journey));
        }
        response
    }
}
