//! How long a stream of HTTP/2 may leave its reply waiting for a flow-control window.
//!
//! hyper asks a reply for its next part only when the peer's window has room for the one before it. A peer that opens no
//! window stops the reply as one that doesn't read stops its connection ([`super::stall`]), but alone: the socket can be
//! written all the time, and other streams go on. So:
//!
//! 1. A stream that waited with the same part of its reply for [`STALL`] is let go of, which resets it (RFC 9113 section
//!    5.4.2) and drops the reply with all that it holds. The connection and its other streams are left alone: they may
//!    be other callers', who share a proxy.
//! 2. A part is at most [`PART_SIZE`] bytes, and is out of the reply's hands whole when the window has room for one:
//!    taking single bytes of a large reply is no progress.
//! 3. What the window had no room for of the last part outlives its stream in the hands of the connection, where nobody
//!    can reset it any more. A connection that has had such a part for longer than [`STALL`] gets no more requests (it is
//!    told to go by GOAWAY, RFC 9113 section 6.8), and ends with those it has ([`super::idle`]).
//!
//! A part costs a look at the clock and four atomic additions; a stream's timer is made when it first has to wait.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use hyper::rt::Executor;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

use super::idle::Busy;
use super::stall::STALL;
use crate::edge::{Body, BodyError};

/// Bytes of a reply that are given to HTTP/2 at once: what a frame has without other agreement (RFC 9113 section 4.2).
const PART_SIZE: usize = 16 * 1024;

tokio::task_local! {
    /// Since when the task's stream has the part of its reply that it has; `None` while it has none.
    static GIVEN: Cell<Option<Instant>>;
}

/// Runs the streams of HTTP/2 connections.
#[derive(Clone, Copy, Debug)]
pub struct Streams;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        tokio::spawn(GIVEN.scope(Cell::new(None), Patient { stream, timer: None }));
    }
}

pin_project! {
    /// A stream that ends when its peer doesn't take what it was given.
    struct Patient<F> {
        #[pin]
        stream: F,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl<F: Future<Output = ()>> Future for Patient<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some(given) = GIVEN.with(Cell::get) else {
            return Poll::Pending;
        };
        let until = given + STALL;
        let timer = this
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        ready!(timer.as_mut().poll(cx));
        tracing::debug!("a stream is reset: its peer takes nothing");
        Poll::Ready(())
    }
}

/// How many parts the peer of a connection has still to take, by when they were given.
#[derive(Debug)]
pub struct Untaken {
    began: Instant,
    /// One for each of four spans of [`STALL`], which take turns: this one, the one before it, and two that are long over.
    given: [AtomicUsize; 4],
}

impl Untaken {
    /// Nothing was given yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            given: Default::default(),
        })
    }

    /// Whether everything was taken.
    pub fn is_empty(&self) -> bool {
        self.given.iter().all(|given| given.load(Ordering::Relaxed) == 0)
    }

    /// Returns when a part has waited for longer than [`STALL`], and not for more than three times that.
    pub async fn stale(&self) {
        loop {
            tokio::time::sleep(STALL / 2).await;
            let span = self.span(Instant::now());
            if [span + 1, span + 2]
                .iter()
                .any(|span| self.given[span % 4].load(Ordering::Relaxed) > 0)
            {
                return;
            }
        }
    }

    fn span(&self, now: Instant) -> usize {
        let spans = (now - self.began).as_secs() / STALL.as_secs();
        usize::try_from(spans % 4).expect("less than four")
    }
}

/// A part of a reply; dropped when it was taken.
#[derive(Debug)]
pub struct Part {
    bytes: Bytes,
    /// Where it is counted.
    counted: Option<(Arc<Untaken>, usize)>,
}

impl Buf for Part {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some((untaken, span)) = &self.counted {
            untaken.given[*span].fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A reply that keeps its connection busy, and tells its stream what it gives.
#[derive(Debug)]
pub struct Reply {
    body: Body,
    /// Of the last frame, what wasn't given yet.
    rest: Bytes,
    untaken: Arc<Untaken>,
    _busy: Busy,
}

impl Reply {
    /// The reply to a request.
    pub fn new(body: Body, untaken: Arc<Untaken>, busy: Busy) -> Self {
        Self {
            body,
            rest: Bytes::new(),
            untaken,
            _busy: busy,
        }
    }

    fn part(&mut self) -> Frame<Part> {
        let now = Instant::now();
        let _ = GIVEN.try_with(|given| given.set(Some(now)));
        let span = self.untaken.span(now);
        self.untaken.given[span].fetch_add(1, Ordering::Relaxed);
        Frame::data(Part {
            bytes: self.rest.split_to(self.rest.len().min(PART_SIZE)),
            counted: Some((self.untaken.clone(), span)),
        })
    }
}

impl http_body::Body for Reply {
    type Data = Part;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Part>, BodyError>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(self.part())));
        }
        let on_stream = GIVEN.try_with(|given| given.set(None)).is_ok();
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            let frame = frame?;
            if on_stream && frame.is_data() {
                self.rest = frame.into_data().expect("a frame of data");
                return Ok(self.part());
            }
            // HTTP/1 has no streams, and writes what it is given.
            Ok(frame.map_data(|bytes| Part { bytes, counted: None }))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = u64::try_from(self.rest.len()).expect("a length");
        let body = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}
