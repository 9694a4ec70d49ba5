//! A JSON reply on its way to the caller.
//!
//! 1. Where no rules exist the body passes frame by frame; a scanner beside it learns the outcome.
//! 2. Where rules exist a reply that may hold a list is read whole (bounded) and filtered. One too large to be a
//!    reasonable answer to anything but a list call still passes frame by frame, but is broken off the moment a list
//!    shows in it: refusing it whole would make every large tool result cost its size in memory.

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody};

use super::ending::Ending;
use super::events::outcome_of;
use crate::edge::{Body, BodyError, Rejection};
use crate::mcp::Scanner;
use crate::telemetry::Outcome;
use crate::upstream::UpstreamBody;

/// Replies up to this many bytes are read whole where rules exist.
pub const WHOLE: usize = 1024 * 1024;
/// Longest list that is filtered.
pub const MAX_LIST: usize = 16 * 1024 * 1024;

/// Whether a reply of this size should be read whole before it is forwarded.
pub fn fits(body: &UpstreamBody, limit: usize) -> bool {
    body.size_hint().upper().is_some_and(|length| length <= limit as u64)
}

/// Reads a reply whole.
pub async fn read(mut body: UpstreamBody, limit: usize) -> Result<Bytes, Rejection> {
    let mut whole = BytesMut::new();
    let mut first = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Rejection::UpstreamNonsense("its body ended early"))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() + first.as_ref().map_or(0, Bytes::len) > limit {
            return Err(Rejection::UpstreamNonsense("a reply to be filtered is over 16 MiB"));
        }
        // Most replies come in one frame, which then needs no copy.
        match first.take() {
            None if whole.is_empty() => first = Some(data),
            None => whole.extend_from_slice(&data),
            Some(before) => {
                whole.extend_from_slice(&before);
                whole.extend_from_slice(&data);
            }
        }
    }
    Ok(first.unwrap_or_else(|| whole.freeze()))
}

/// What a whole reply says of the call, and whether it may hold a list.
pub fn see(message: &[u8]) -> (Outcome, bool) {
    let mut scanner = Scanner::default();
    scanner.push(message);
    let seen = scanner.finish();
    let outcome = outcome_of(seen.outcome).unwrap_or(Outcome::UpstreamError);
    (outcome, seen.holds_list || is_strange(message))
}

/// Whether bytes could be another encoding than the UTF-8 that the scanner reads (RFC 8259 section 8.1): some clients
/// detect UTF-16 and UTF-32, in which every ASCII character has a NUL beside it. JSON in UTF-8 never has one.
fn is_strange(bytes: &[u8]) -> bool {
    memchr::memchr(0, bytes).is_some()
}

/// Forwards a reply as it comes; with `guarded`, only until a list shows in it. The calls end with `known`, or with what
/// the reply turns out to say.
pub fn pass(body: UpstreamBody, endings: Vec<Ending>, guarded: bool, known: Option<Outcome>) -> Body {
    struct Flow {
        body: UpstreamBody,
        scanner: Scanner,
        endings: Vec<Ending>,
        guarded: bool,
    }
    let flow = Flow {
        body,
        scanner: Scanner::default(),
        endings,
        guarded,
    };
    let frames = futures_util::stream::unfold(Some(flow), move |flow| async move {
        let mut flow = flow?;
        let end = |flow: Flow, outcome| {
            for ending in flow.endings {
                ending.finish(outcome);
            }
        };
        loop {
            match flow.body.frame().await {
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    flow.scanner.push(&data);
                    if flow.guarded && (flow.scanner.holds_list() || is_strange(&data)) {
                        end(flow, Outcome::UpstreamError);
                        return Some((Err(unexpected_list()), None));
                    }
                    return Some((Ok(Frame::data(data)), Some(flow)));
                }
                Some(Err(error)) => {
                    end(flow, Outcome::UpstreamError);
                    return Some((Err(error), None));
                }
                None => {
                    let seen = std::mem::take(&mut flow.scanner).finish();
                    let outcome = outcome_of(seen.outcome).unwrap_or(Outcome::UpstreamError);
                    end(flow, known.unwrap_or(outcome));
                    return None;
                }
            }
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

fn unexpected_list() -> BodyError {
    "the upstream put a list into a reply too large to be filtered".into()
}
