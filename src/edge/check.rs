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
        Checked {
            check: self.0.clone(),
            inner,
        }
    }
}

/// The service of [`CheckLayer`].
#[derive(Debug)]
pub struct Checked<C, S> {
    check: Arc<C>,
    inner: S,
}

impl<C, S: Clone> Clone for Checked<C, S> {
    fn clone(&self) -> Self {
        Self {
            check: self.check.clone(),
            inner: self.inner.clone(),
        }
    }
}

impl<Request, C, S> Service<Request> for Checked<C, S>
where
    Request: Send + 'static,
    C: Check<Request>,
    S: Service<C::Passed, Error = Rejection> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = S::Response;
    type Error = Rejection;
    type Future = BoxFuture<'static, Result<S::Response, Rejection>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let check = self.check.clone();
        // The clone stays behind: the service that was polled ready is the one that is called.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            let passed = check.check(request).await?;
            inner.call(passed).await
        })
    }
}
