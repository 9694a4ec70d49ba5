//! The shape of most layers here: look at a request, and pass on something that says more, or refuse.
//!
//! A [`Check`] turns one stage's request type into the next one's, so that the order of the stack is held by the
//! compiler: policy can't be asked about a request that nobody authenticated. [`CheckLayer`] makes a tower layer of it.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tower::{Layer, Service};

use super::rejection::Rejection;

/// One decision on a request's way.
pub trait Check<Request>: Send + Sync + 'static {
    /// What is known after the check.
    type Passed: Send;

    /// Passes the request on, or says why not.
    fn check(&self, request: Request) -> impl Future<Output = Result<Self::Passed, Rejection>> + Send;
}

/// Stacks a [`Check`] as a tower layer.
#[derive(Debug)]
pub struct CheckLayer<C>(Arc<C>);

impl<C> CheckLayer<C> {
    /// A layer around `check`.
    pub fn new(check: C) -> Self {
        Self(Arc::new(check))
    }
}

impl<C, S> Layer<S> for CheckLayer<C> {
    type Service = Checked<C, S>;

    fn layer(&self, inner: S) -> Self::Service {
        Checked(Arc::new(Stage {
            check: self.0.clone(),
            inner,
        }))
    }
}

/// The service of [`CheckLayer`]. A clone is one count up, however much is stacked below: a service is cloned once a
/// request and layer.
#[derive(Debug)]
pub struct Checked<C, S>(Arc<Stage<C, S>>);

#[derive(Debug)]
struct Stage<C, S> {
    check: Arc<C>,
    inner: S,
}

impl<C, S> Clone for Checked<C, S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<Request, C, S> Service<Request> for Checked<C, S>
where
    Request: Send + 'static,
    C: Check<Request>,
    S: Service<C::Passed, Error = Rejection> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Response = S::Response;
    type Error = Rejection;
    type Future = BoxFuture<'static, Result<S::Response, Rejection>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        // Nothing in this stack waits to be ready: what is bounded is bounded where it is spent.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let stage = self.0.clone();
        Box::pin(async move {
            let passed = stage.check.check(request).await?;
            let mut inner = stage.inner.clone();
            inner.call(passed).await
        })
    }
}
