//! Sheds load before it collapses under it.
//!
//! A gate that takes in more than it can answer makes everybody wait until nobody waits any more. So at most
//! `listen.limits.requests` requests are on their way at once, over all routes: by Little's law none of them then waits
//! longer than that many take to be answered. What comes on top is told to come back (503) before anything is spent on
//! it: no signature is checked, no body read. A request is on its way from its arrival to the head of its answer, so
//! that standing streams, which are bounded for themselves, don't count.

use std::sync::Arc;

use http::Response;
use tower::Layer;

use super::places::Total;
use crate::edge::{Arrival, Body, Rejection, Stage};
use crate::telemetry::Metrics;

/// Refuses what would be too much.
#[derive(Clone)]
pub struct OverloadLayer {
    metrics: Arc<Metrics>,
    on_their_way: Arc<Total>,
    limit: usize,
}

impl OverloadLayer {
    /// At most `limit` requests of those that are counted in `on_their_way`.
    pub fn new(metrics: Arc<Metrics>, on_their_way: Arc<Total>, limit: usize) -> Self {
        Self {
            metrics,
            on_their_way,
            limit,
        }
    }
}

impl<S> Layer<S> for OverloadLayer {
    type Service = Overload<S>;

    fn layer(&self, inner: S) -> Overload<S> {
        Overload {
            layer: self.clone(),
            inner,
        }
    }
}

/// The stage of [`OverloadLayer`].
pub struct Overload<S> {
    layer: OverloadLayer,
    inner: S,
}

impl<S, B> Stage<Arrival<B>> for Overload<S>
where
    S: Stage<Arrival<B>, Error = Rejection>,
    B: Send + 'static,
{
    type Error = Rejection;

    async fn serve(&self, arrival: Arrival<B>) -> Result<Response<Body>, Rejection> {
        let Some(_seat) = self.layer.on_their_way.take(self.layer.limit) else {
            self.layer.metrics.unrouted_limited("overload");
            return Err(Rejection::Overloaded);
        };
        self.inner.serve(arrival).await
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::pin::pin;

    use futures_util::{FutureExt, poll};
    use http::Request;
    use tokio::sync::Notify;

    use super::*;
    use crate::edge::{Journey, full};
    use crate::listener::ConnectionInfo;

    /// Answers once it is told to.
    struct Slow(Arc<Notify>);

    impl Stage<Arrival<()>> for Slow {
        type Error = Rejection;

        async fn serve(&self, _: Arrival<()>) -> Result<Response<Body>, Rejection> {
            self.0.notified().await;
            Ok(Response::new(full("")))
        }
    }

    fn arrival() -> Arrival<()> {
        Arrival {
            journey: Journey::begin(ConnectionInfo {
                peer: SocketAddr::from(([127, 0, 0, 1], 1)),
                tls: false,
                certificate: None,
            }),
            request: Box::new(Request::new(())),
        }
    }

    #[tokio::test]
    async fn what_is_too_much_is_refused_at_once_until_there_is_room() {
        let (go, metrics) = (Arc::new(Notify::new()), Metrics::new());
        let stage = OverloadLayer::new(metrics.clone(), Arc::default(), 2).layer(Slow(go.clone()));
        let mut first = pin!(stage.serve(arrival()));
        let mut cancelled = Box::pin(stage.serve(arrival()));
        assert!(poll!(&mut first).is_pending());
        assert!(poll!(&mut cancelled).is_pending());
        let refused = stage.serve(arrival()).now_or_never().expect("no waiting");
        assert!(matches!(refused, Err(Rejection::Overloaded)));
        drop(cancelled);
        let mut second = pin!(stage.serve(arrival()));
        assert!(poll!(&mut second).is_pending(), "the client that went away made room");
        go.notify_waiters();
        assert!(first.await.is_ok() && second.await.is_ok());
        let mut third = pin!(stage.serve(arrival()));
        assert!(poll!(&mut third).is_pending(), "answers made room");
        let counted = "portcullis_rate_limited_total{route=\"_none\",kind=\"overload\"} 1";
        assert!(metrics.render().contains(counted));
    }
}
