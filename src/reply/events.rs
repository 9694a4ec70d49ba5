//! An event stream on its way to the caller.
//!
//! 1. What nobody has to look at is forwarded as it came ([`Tap`] watches it pass). Where rules exist, or answers must be
//!    told apart, whole events are looked at, and an unchanged event's bytes are still the upstream's. Nothing waits for
//!    more to come; but what has come already leaves together, up to 16 KiB in one write.
//! 2. A comment goes out after 15 s of silence, between events only.
//! 3. A standing stream has no idle end, but ends when its caller's token does, when a reload or an issuer takes the
//!    caller's right away ([`crate::rights`]), and when the gateway is told to stop: hyper's graceful end waits for every
//!    open response, so one idle stream would use up the whole grace period.
//! 4. Dropping the stream drops the upstream's body, which aborts the upstream request; its [`Ending`]s count themselves
//!    as cancelled.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::ending::Ending;
use super::inspect::Inspector;
use super::tap::Tap;
use crate::edge::{Body, BodyError};
use crate::mcp::MessageOutcome;
use crate::mcp::sse::Decoder;
use crate::rights::{Claim, Lost, Rights};
use crate::session::OpenStream;
use crate::telemetry::{GaugeGuard, Outcome};
use crate::upstream::UpstreamBody;

/// Silence before a comment.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(15);
pub(crate) const COMMENT: Bytes = Bytes::from_static(b": keepalive\n\n");
/// Bytes that leave together when they are there together.
const TOGETHER: usize = 16 * 1024;
/// Longest event that is looked at whole.
pub const MAX_EVENT: usize = 16 * 1024 * 1024;

/// What is needed to relay a stream.
pub struct Relay {
    pub upstream: UpstreamBody,
    pub view: View,
    /// Calls answered on this stream.
    pub endings: Vec<Ending>,
    /// Written first.
    pub prelude: VecDeque<Bytes>,
    /// For streams that answer no call and would never end by themselves.
    pub standing: Option<Standing>,
    /// An HTTP+SSE stream's registration.
    pub open: Option<OpenStream>,
    pub _guard: GaugeGuard,
}

/// What ends a standing stream.
pub struct Standing {
    /// The token's `exp`.
    pub until: Option<Instant>,
    /// The gateway is told to stop.
    pub closing: CancellationToken,
    /// By what right it stands.
    pub claim: Claim,
    pub rights: Arc<Rights>,
    /// Told when the claim has to be looked at again.
    pub shaken: watch::Receiver<()>,
}

impl Standing {
    /// Whether the token has ended.
    pub fn is_expired(&self) -> bool {
        self.until.is_some_and(|until| until <= Instant::now())
    }

    /// Why it can't go on as it did. A stream that calls are still answered on is told to stop when they are.
    pub(crate) async fn interrupted(&mut self, busy: bool) -> Interruption {
        tokio::select! {
            () = self.closing.cancelled(), if !busy => Interruption::End,
            () = at(self.until) => Interruption::End,
            Ok(()) = self.shaken.changed() => Interruption::Shaken,
        }
    }
}

/// Why a stream can't go on as it did.
pub(crate) enum Interruption {
    /// The token has ended, or the gateway stops.
    End,
    /// The caller's rights may have changed.
    Shaken,
}

/// How closely a stream is looked at.
pub enum View {
    /// Bytes pass as they come.
    Pass(Box<Tap>),
    /// Every event is looked at.
    Inspect(Box<(Decoder, Inspector)>),
}

impl View {
    /// A view that lets everything pass.
    pub fn pass() -> Self {
        Self::Pass(Box::default())
    }

    /// A view that shows every event to `inspector`; `decoder` may already hold the first bytes.
    pub fn inspect(decoder: Decoder, inspector: Inspector) -> Self {
        Self::Inspect(Box::new((decoder, inspector)))
    }
}

struct Flow {
    relay: Relay,
    keepalive: std::pin::Pin<Box<Sleep>>,
    quiet_since: Instant,
    ended: bool,
    /// Why it ended early; said after what was still good.
    error: Option<BodyError>,
}

/// The body the caller gets.
pub fn body(relay: Relay) -> Body {
    let now = Instant::now();
    let flow = Flow {
        relay,
        keepalive: Box::pin(tokio::time::sleep_until(now + KEEPALIVE)),
        quiet_since: now,
        ended: false,
        error: None,
    };
    let frames = futures_util::stream::unfold(flow, |mut flow| async move {
        let item = flow.next().await?;
        Some((item.map(Frame::data), flow))
    });
    StreamBody::new(frames).boxed_unsync()
}

impl Flow {
    async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        loop {
            if !self.relay.prelude.is_empty() {
                self.gather().await;
                self.quiet_since = Instant::now();
                return Some(Ok(self.together()));
            }
            if self.ended {
                let error = self.error.take()?;
                // hyper throws away what it hasn't flushed when a body fails: it gets a turn to.
                tokio::task::yield_now().await;
                return Some(Err(error));
            }
            let boundary = self.at_boundary();
            let busy = self.is_busy();
            tokio::select! {
                biased;
                // A token's end counts more than whatever there still is to say.
                interruption = interrupted(&mut self.relay.standing, busy) => match interruption {
                    Interruption::End => {
                        // A call may have come while nobody looked.
                        self.ended = !self.is_busy() || self.relay.standing.as_ref().is_some_and(Standing::is_expired);
                    }
                    // Boxed: it is rare, and a stream is kept for hours.
                    Interruption::Shaken => Box::pin(self.reconsider()).await,
                },
                frame = self.relay.upstream.frame() => self.came(frame),
                Some(told) = told(&mut self.relay.open), if boundary => {
                    self.relay.prelude.push_back(told);
                }
                () = &mut self.keepalive => {
                    let due = self.quiet_since + KEEPALIVE;
                    let now = Instant::now();
                    if due <= now && boundary {
                        self.relay.prelude.push_back(COMMENT);
                        self.keepalive.as_mut().reset(now + KEEPALIVE);
                    } else if due > now {
                        self.keepalive.as_mut().reset(due);
                    } else {
                        // In the middle of an event: it will be over soon.
                        self.keepalive.as_mut().reset(now + Duration::from_secs(1));
                    }
                }
            }
        }
    }

    /// Ends when the caller's right is gone; else what is still to come is seen with today's rules.
    async fn reconsider(&mut self) {
        let Some(standing) = &mut self.relay.standing else {
            return;
        };
        match standing.rights.check(&standing.claim).await {
            Ok(claim) => {
                match &mut self.relay.view {
                    View::Inspect(inspection) => {
                        let (_, inspector) = &mut **inspection;
                        inspector.route = claim.route.clone();
                        inspector.principal = claim.principal.clone();
                    }
                    // Nobody has looked at what passed, so nobody could begin to in the middle: the client opens it anew.
                    View::Pass(_) => self.ended = claim.route.config.policy.has_rules(),
                }
                standing.claim = claim;
            }
            Err(Lost) => self.ended = true,
        }
    }

    /// Takes what has come already. hyper hands over one chunk each time its connection has a turn, so a burst of events
    /// would otherwise cost a write each; an event that comes alone is a turn late, which is less than a microsecond.
    async fn gather(&mut self) {
        while !self.ended && self.relay.prelude.iter().map(Bytes::len).sum::<usize>() < TOGETHER {
            match or_a_turn(self.relay.upstream.frame()).await {
                Some(frame) => self.came(frame),
                None => return,
            }
        }
    }

    fn together(&mut self) -> Bytes {
        let first = self.relay.prelude.pop_front().unwrap_or_default();
        if self.relay.prelude.is_empty() {
            return first;
        }
        let mut all = BytesMut::from(first);
        for bytes in self.relay.prelude.drain(..) {
            all.extend_from_slice(&bytes);
        }
        all.freeze()
    }

    fn came(&mut self, frame: Option<Result<Frame<Bytes>, BodyError>>) {
        match frame {
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data()
                    && let Err(error) = self.take(bytes)
                {
                    self.fail(error);
                }
            }
            Some(Err(error)) => self.fail(error),
            None => self.close(),
        }
    }

    /// Whether calls are still to be answered, or answers to be written, on an HTTP+SSE stream.
    fn is_busy(&self) -> bool {
        // Calls first: a gathered list is in the queue before it is none of them any more.
        self.relay
            .open
            .as_ref()
            .is_some_and(|open| open.handle.is_busy() || !open.refusals.is_empty())
    }

    fn at_boundary(&self) -> bool {
        match &self.relay.view {
            View::Pass(tap) => tap.at_boundary(),
            // Only whole events are written in this view.
            View::Inspect(_) => true,
        }
    }

    fn take(&mut self, bytes: Bytes) -> Result<(), BodyError> {
        let Relay {
            view,
            endings,
            prelude,
            open,
            ..
        } = &mut self.relay;
        match view {
            View::Pass(tap) => {
                tap.follow(&bytes, |seen| {
                    if let Some(outcome) = outcome_of(seen.outcome)
                        && let Some(ending) = endings.pop()
                    {
                        ending.finish(outcome);
                    }
                });
                prelude.push_back(bytes);
            }
            View::Inspect(inspection) => {
                let (decoder, inspector) = &mut **inspection;
                decoder.push(bytes);
                while let Some(event) = decoder.next_event()? {
                    if let Some(bytes) = inspector.look(event, endings, open)? {
                        prelude.push_back(bytes);
                    }
                }
            }
        }
        Ok(())
    }

    /// The upstream ended its stream: what was never answered isn't the client's doing.
    fn close(&mut self) {
        self.ended = true;
        for ending in self.relay.endings.drain(..) {
            ending.finish(Outcome::UpstreamError);
        }
    }

    fn fail(&mut self, error: BodyError) {
        self.error = Some(error);
        self.close();
    }
}

/// What the future has when it is asked, or when it is asked again after the other tasks of this thread had their turn.
/// (tokio's `yield_now` would ask the system for new events, too.)
async fn or_a_turn<T>(mut future: impl Future<Output = T> + Unpin) -> Option<T> {
    // hyper asks a body that isn't ready twice before it lets others run.
    let mut asked = 0;
    poll_fn(|cx| match future.poll_unpin(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if asked == 2 => Poll::Ready(None),
        Poll::Pending => {
            asked += 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

async fn interrupted(standing: &mut Option<Standing>, busy: bool) -> Interruption {
    match standing {
        Some(standing) => standing.interrupted(busy).await,
        None => std::future::pending().await,
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

async fn told(open: &mut Option<OpenStream>) -> Option<Bytes> {
    match open {
        Some(open) => open.refusals.recv().await,
        None => std::future::pending().await,
    }
}

/// The outcome a JSON-RPC answer stands for; `None` when the message was no answer.
pub fn outcome_of(outcome: MessageOutcome) -> Option<Outcome> {
    match outcome {
        MessageOutcome::Success => Some(Outcome::Success),
        MessageOutcome::ToolError => Some(Outcome::ToolError),
        MessageOutcome::ProtocolError(_) => Some(Outcome::ProtocolError),
        MessageOutcome::Unknown => None,
    }
}
