//! The shape of most layers here: look at a request, and pass on something that says more, or refuse.
//!
//! A [`Check`] turns one stage's request type into the next one's, so that the order of the stack is held by the
//! compiler: policy can't be asked about a request that nobody authenticated. [`CheckLayer`] makes a tower layer of it.
//!
//! What the layers make is a [`Stage`], and not a tower `Service`, whose future must be nameable and therefore boxed: a
//! dozen boxes, and as many clones of the stack, were a tenth of the CPU of a request. The stages of a request are one
//! future, and the outermost layer boxes it once.

use std::future::Future;
use std::sync::Arc;

use http::{Request, Response};
use tower::Layer;

use super::body::Body;
use super::journey::Journey;
use super::rejection::Rejection;

/// A request and the notes about it. The request is boxed: every stage's future holds one, and moves it on to the next.
#[derive(Debug)]
pub struct Arrival<B> {
    pub journey: Arc<Journey>,
    pub request: Box<Request<B>>,
}

/// One decision on a request's way.
pub trait Check<Request>: Send + Sync + 'static {
    /// What is known after the check.
    type Passed: Send;

    /// Passes the request on, or says why not.
    fn check(&self, request: Request) -> impl Future<Output = Result<Self::Passed, Rejection>> + Send;
}

/// What takes a request to its response. Nothing here waits to be ready: what is bounded is bounded where it is spent.
pub trait Stage<Request>: Send + Sync + 'static {
    /// [`Rejection`], until the rescue has made responses of them.
    type Error: Send;

    /// Answers, or says why not.
    fn serve(&self, request: Request) -> impl Future<Output = Result<Response<Body>, Self::Error>> + Send;
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

/// The stage of [`CheckLayer`].
#[derive(Debug)]
pub struct Checked<C, S> {
    check: Arc<C>,
    inner: S,
}

impl<Request, C, S> Stage<Request> for Checked<C, S>
where
    Request: Send + 'static,
    C: Check<Request>,
    S: Stage<C::Passed, Error = Rejection>,
{
    type Error = Rejection;

    async fn serve(&self, request: Request) -> Result<Response<Body>, Rejection> {
        let passed = self.check.check(request).await?;
        self.inner.serve(passed).await
    }
}
