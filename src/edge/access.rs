//! The outermost layer: names the request, keeps its body drained, counts and logs its response.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{HeaderName, Response};
use tower::{Layer, Service};

use super::body::Body;
use super::check::{Arrival, Stage};
use super::drain::RequestBody;
use super::journey::Journey;
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

/// The service of [`AccessLayer`]: where tower's world ends and the stages begin.
pub struct Access<S>(Arc<Inner<S>>);

struct Inner<S> {
    metrics: Arc<Metrics>,
    inner: S,
}

impl<S> Clone for Access<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> Service<Incoming> for Access<S>
where
    S: Stage<Arrival<RequestBody>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, incoming: Incoming) -> Self::Future {
        let access = self.0.clone();
        Box::pin(async move { Ok(access.serve(incoming).await) })
    }
}

impl<S: Stage<Arrival<RequestBody>, Error = Infallible>> Inner<S> {
    async fn serve(&self, incoming: Incoming) -> Response<Body> {
        let Incoming { connection, request } = incoming;
        let journey = Journey::begin(connection);
        let method = request.method().clone();
        // Its path alone is logged: a query can carry a session or, against the rules, a token.
        let uri = request.uri().clone();
        let arrival = Arrival {
            journey: journey.clone(),
            request: request.map(RequestBody::new),
        };
        let Ok(mut response) = self.inner.serve(arrival).await;
        response.headers_mut().insert(REQUEST_ID, journey.request_id.header());
        let status = response.status().as_u16();
        let route = journey.route.get();
        match route {
            Some(route) => route.metrics.http_request(status),
            None => self.metrics.unrouted_http_request(status),
        }
        tracing::info!(
            target: "portcullis::access",
            request_id = journey.request_id.as_str(),
            peer = %connection.peer,
            %method,
            path = uri.path(),
            status,
            route = route.map(|route| route.name()),
            elapsed_us = u64::try_from(journey.started.elapsed().as_micros()).unwrap_or(u64::MAX),
        );
        response
    }
}
