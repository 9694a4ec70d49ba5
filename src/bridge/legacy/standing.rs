//! Streams that a session's client keeps open: its GET stream, or its HTTP+SSE stream.
//!
//! 1. What waits in the session goes out as it comes, save what its reader may no longer see; a comment after 15 s of
//!    silence.
//! 2. It ends with its session, when a newer one is opened, when a reload leads its route to another server, and like
//!    every standing stream: with the caller's token or right, or with the gateway, when no call is under way on it any
//!    more.
//! 3. An HTTP+SSE stream's end is its session's.

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::session::Session;
use crate::edge::{Body, BodyError};
use crate::mcp::sse;
use crate::reply::{COMMENT, Inspector, Interruption, KEEPALIVE, Standing, stream_headers};
use crate::route::Route;
use crate::session::OpenStream;
use crate::telemetry::GaugeGuard;

/// What an HTTP+SSE session's calls are answered by.
pub struct Stream {
    pub open: OpenStream,
    pub answers: mpsc::Receiver<Bytes>,
    pub route: Arc<Route>,
}

struct Flow {
    session: Arc<Session>,
    number: u64,
    changed: watch::Receiver<()>,
    standing: Standing,
    inspector: Inspector,
    stream: Option<Stream>,
    first: Option<Bytes>,
    keepalive: Instant,
    /// The route no longer leads to the session's server: nothing new comes to it.
    astray: bool,
    _guard: GaugeGuard,
}

/// The response that holds the stream; `first` is written first.
pub fn response(
    session: Arc<Session>,
    standing: Standing,
    inspector: Inspector,
    stream: Option<Stream>,
    first: Option<Bytes>,
) -> Response<Body> {
    let (number, changed) = session.stand();
    let flow = Flow {
        _guard: inspector.route.metrics.stream(),
        session,
        number,
        changed,
        standing,
        inspector,
        stream,
        first,
        keepalive: Instant::now() + KEEPALIVE,
        astray: false,
    };
    let frames = futures_util::stream::unfold(flow, |mut flow| async move {
        let event = flow.next().await?;
        flow.keepalive = Instant::now() + KEEPALIVE;
        Some((Ok::<_, BodyError>(Frame::data(event)), flow))
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    stream_headers(response.headers_mut());
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

impl Flow {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            let busy = self.is_busy();
            if !busy && (self.astray || self.session.is_over()) {
                return None;
            }
            if !self.session.is_newest(self.number) {
                return None;
            }
            if self.standing.is_expired() {
                return None;
            }
            while let Some(message) = self.session.next_waiting() {
                if !self.inspector.hides(&message) {
                    return Some(sse::message(&message));
                }
            }
            let ended = self.session.ended().clone();
            let over = self.session.back().map(|back| back.peer.ended());
            tokio::select! {
                biased;
                interruption = self.standing.interrupted(busy) => match interruption {
                    // A call may have come while nobody looked; one that ended in the meantime shows at the next turn.
                    Interruption::End if self.is_busy() && !self.standing.is_expired() => {}
                    Interruption::End => return None,
                    Interruption::Shaken => self.reconsider().await?,
                },
                Some(event) = answer(&mut self.stream) => return Some(event),
                changed = self.changed.changed() => changed.ok()?,
                () = ended.cancelled(), if !busy => return None,
                () = over_of(over), if !busy => return None,
                () = tokio::time::sleep_until(self.keepalive) => return Some(COMMENT),
            }
        }
    }

    async fn reconsider(&mut self) -> Option<()> {
        let claim = Box::pin(self.standing.rights.check(&self.standing.claim)).await.ok()?;
        let sessions = claim.route.bridge.sessions();
        self.astray = sessions.find(&self.session.key, &self.session.person).is_none();
        self.inspector.route = claim.route.clone();
        self.inspector.principal = claim.principal.clone();
        self.standing.claim = claim;
        Some(())
    }

    /// Whether answers are still to be written on this stream.
    fn is_busy(&self) -> bool {
        let Some(stream) = &self.stream else { return false };
        self.session.is_busy() || !stream.answers.is_empty() || !stream.open.refusals.is_empty()
    }
}

async fn answer(stream: &mut Option<Stream>) -> Option<Bytes> {
    let Some(stream) = stream else {
        return std::future::pending().await;
    };
    tokio::select! {
        event = stream.answers.recv() => event,
        event = stream.open.refusals.recv() => event,
    }
}

async fn over_of(ended: Option<tokio_util::sync::CancellationToken>) {
    match ended {
        Some(ended) => ended.cancelled().await,
        None => std::future::pending().await,
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.session.leave();
        if let Some(stream) = &self.stream {
            stream.route.bridge.sessions().end(&self.session.key);
        }
    }
}
