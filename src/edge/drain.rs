//! A request body that is read to its end even when nobody wants it.
//!
//! Closing a connection on unread bytes makes the kernel reset it, and the client never sees the refusal (RFC 9112
//! section 9.6). So what is left of a refused request is read and thrown away, up to 16 MiB or two seconds.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::listener;

/// A request body that drains itself when it is dropped early.
#[derive(Debug)]
pub struct RequestBody(Option<Incoming>);

impl RequestBody {
    /// Wraps what hyper received.
    pub fn new(incoming: Incoming) -> Self {
        Self(Some(incoming))
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(rest) = self.0.take().filter(|body| !body.is_end_stream()) {
            listener::drain(rest);
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.0 {
            Some(incoming) => Pin::new(incoming).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
