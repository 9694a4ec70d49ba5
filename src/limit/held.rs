//! What a request holds until its answer has ended.
//!
//! It stands in the request's [`Journey`], which lives in everything that still works for the request: the stages, the
//! [`Ending`](crate::reply::Ending) that waits on an HTTP+SSE stream for the answer, and, by [`keep`], the reply's body.
//! So there is no list of ways out to keep complete.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

use super::places::{Seat, Share};
use crate::edge::{Body, BodyError, Journey};

/// Places of one request.
#[derive(Debug, Default)]
pub struct Held {
    /// Of the principal on the route, one a call.
    pub(super) _calls: Option<Share>,
    /// Of all standing streams, and of the principal's.
    pub(super) _stream: Option<(Seat, Share)>,
}

/// The same body, which keeps what its request holds until it has ended.
pub fn keep(body: Body, journey: Arc<Journey>) -> Body {
    Kept {
        body,
        journey: Some(journey),
    }
    .boxed_unsync()
}

struct Kept {
    body: Body,
    journey: Option<Arc<Journey>>,
}

impl http_body::Body for Kept {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        // Before the last bytes are written: who has read them may call again at once.
        if frame.is_none() || self.body.is_end_stream() {
            self.journey = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
