//! An upstream's body, with an end to silence.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use crate::edge::BodyError;

/// A response body that fails when nothing has come for the idle timeout. Dropping it aborts the upstream request.
///
/// Trailers are dropped: they come after the head was judged, and would carry past it what a head may not hold.
#[derive(Debug)]
pub struct UpstreamBody {
    inner: Incoming,
    idle: Duration,
    deadline: Pin<Box<Sleep>>,
    last: Instant,
}

/// Nothing came for too long.
#[derive(Debug, thiserror::Error)]
#[error("the upstream said nothing for {} s", .0.as_secs())]
pub struct Idle(pub Duration);

impl UpstreamBody {
    /// Bounds the silence between two frames.
    pub fn new(inner: Incoming, idle: Duration) -> Self {
        let last = Instant::now();
        Self {
            inner,
            idle,
            deadline: Box::pin(tokio::time::sleep_until(last + idle)),
            last,
        }
    }

    /// For a standing stream, which may be silent for as long as it likes.
    pub fn without_idle_end(mut self) -> Self {
        self.idle = Duration::from_secs(100 * 365 * 86_400);
        self.deadline.as_mut().reset(self.last + self.idle);
        self
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        while let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            // The timer is moved only when it fires: a busy stream pays for the time of day and nothing else.
            this.last = Instant::now();
            if !matches!(&frame, Some(Ok(frame)) if frame.is_trailers()) {
                return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
            }
        }
        loop {
            match this.deadline.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) => {
                    let due = this.last + this.idle;
                    if due <= Instant::now() {
                        return Poll::Ready(Some(Err(Idle(this.idle).into())));
                    }
                    this.deadline.as_mut().reset(due);
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
