//! An upstream's body, with an end to silence.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::edge::BodyError;

/// A response body that fails when nothing has come for the idle timeout. Dropping it aborts the upstream request.
///
/// Trailers are dropped: they come after the head was judged, and would carry past it what a head may not hold.
#[derive(Debug)]
pub struct UpstreamBody {
    inner: Incoming,
    idle: Duration,
    /// The end of the silence: begun when a frame is waited for, and moved only when it fires, so that a body that is
    /// there at once pays for no timer, and a busy stream for the time of day and nothing else.
    deadline: Option<Pin<Box<Sleep>>>,
    /// When the last frame was waited for; `None` once it has come.
    silent_since: Option<Instant>,
}

/// Nothing came for too long.
#[derive(Debug, thiserror::Error)]
#[error("the upstream said nothing for {} s", .0.as_secs())]
pub struct Idle(pub Duration);

impl UpstreamBody {
    /// Bounds the silence between two frames.
    pub fn new(inner: Incoming, idle: Duration) -> Self {
        Self {
            inner,
            idle,
            deadline: None,
            silent_since: None,
        }
    }

    /// For a standing stream, which may be silent for as long as it likes.
    pub fn without_idle_end(mut self) -> Self {
        self.idle = Duration::from_secs(100 * 365 * 86_400);
        self.deadline = None;
        self
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        while let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            this.silent_since = None;
            if !matches!(&frame, Some(Ok(frame)) if frame.is_trailers()) {
                return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
            }
        }
        let due = *this.silent_since.get_or_insert_with(Instant::now) + this.idle;
        let deadline = this.deadline.get_or_insert_with(|| Box::pin(sleep_until(due)));
        loop {
            match deadline.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) if due <= Instant::now() => return Poll::Ready(Some(Err(Idle(this.idle).into()))),
                Poll::Ready(()) => deadline.as_mut().reset(due),
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
