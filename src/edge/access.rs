//! The outermost layer: names the request, keeps its body drained, counts and logs its response.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{HeaderName, Request, Response};
use hyper::body::Incoming;
use tower::{Layer, Service};

use super::body::Body;
use super::drain::RequestBody;
use super::journey::Journey;
use crate::listener::ConnectionInfo;
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
        Access {
            metrics: self.metrics.clone(),
            inner,
        }
    }
}

/// The service of [`AccessLayer`].
#[derive(Clone)]
pub struct Access<S> {
    metrics: Arc<Metrics>,
    inner: S,
}

impl<S> Service<Request<Incoming>> for Access<S>
where
    S: Service<Request<RequestBody>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let journey = Journey::begin();
        let mut request = request.map(RequestBody::new);
        request.extensions_mut().insert(journey.clone());
        let method = request.method().clone();
        // The path alone: a query can carry a session or, against the rules, a token.
        let path = request.uri().path().to_owned();
        let peer = request.extensions().get::<ConnectionInfo>().map(|info| info.peer);
        let metrics = self.metrics.clone();
        let response = self.inner.call(request);
        Box::pin(async move {
            let mut response = response.await?;
            response.headers_mut().insert(REQUEST_ID, journey.request_id.header());
            let status = response.status().as_u16();
            let route = journey.route.get();
            match route {
                Some(route) => route.metrics.http_request(status),
                None => metrics.unrouted_http_request(status),
            }
            tracing::info!(
                target: "portcullis::access",
                request_id = journey.request_id.as_str(),
                peer = peer.map(tracing::field::display),
                %method,
                path,
                status,
                route = route.map(|route| route.name()),
                elapsed_us = u64::try_from(journey.started.elapsed().as_micros()).unwrap_or(u64::MAX),
            );
            Ok(response)
        })
    }
}
