//! The HTTP+SSE streams open on this replica (MCP 2024-11-05, "HTTP with SSE").
//!
//! 1. A stream is known by a random key, which the client sees only sealed, in its `endpoint` event.
//! 2. Messages posted to it must come from the stream's own principal, over the same route.
//! 3. The stream ends the entry: a key of a closed stream is unknown.
//! 4. Calls whose answers come over the stream wait here, bounded, so that their outcome can be counted; a list that is
//!    gathered page by page waits with its pages, and its id is taken until it is answered, cancelled or lost.
//! 5. Ids compare by value: a server may spell `"a"` as `"\u0061"`, or 1 as 1.0.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use aws_lc_rs::rand;
use bytes::Bytes;
use dashmap::DashMap;
use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::authn::Principal;
use crate::mcp::Id;
use crate::reply::Ending;
use crate::telemetry::GaugeGuard;
use crate::upstream::EndpointId;

/// Calls that may wait for their answer on one stream.
const MAX_PENDING: usize = 1024;
/// Lists that may be gathered at once for one stream: each may hold 16 MiB.
const MAX_LISTS: usize = 4;
/// Messages of the gateway itself that may wait to be written to one stream.
const MAX_QUEUED: usize = 64;

/// What a stream is known by.
pub type StreamKey = [u8; 16];

/// All open streams.
#[derive(Debug, Default)]
pub struct Streams(DashMap<StreamKey, StreamHandle>);

/// One open stream, as those who post to it see it.
#[derive(Clone)]
pub struct StreamHandle(Arc<Stream>);

/// Where a stream's messages go.
#[derive(Clone, Debug)]
pub enum Target {
    /// To the URL that the upstream named.
    Upstream(EndpointId, PathAndQuery),
    /// To the gateway's own session of this stream, which has its key.
    Bridge,
}

/// A key that nobody guesses.
pub fn random_stream_key() -> StreamKey {
    let mut key = StreamKey::default();
    rand::fill(&mut key).expect("the system's random source works");
    key
}

struct Stream {
    key: StreamKey,
    route: Arc<str>,
    principal: Arc<Principal>,
    target: Target,
    refusals: mpsc::Sender<Bytes>,
    closed: AtomicBool,
    pending: Mutex<HashMap<Id, Waiting>>,
}

/// What waits for an answer.
enum Waiting {
    Call(Ending),
    List {
        pages: mpsc::Sender<Bytes>,
        /// Tells the gathering that nobody waits any more.
        _gone: DropGuard,
    },
}

/// What an answer on the stream was for.
pub enum Answered {
    Call(Ending),
    /// A list that is gathered: the page is taken, and not for the client.
    Page,
    /// Nothing that waits here.
    Unknown,
}

/// The place of a list that is gathered; dropped, the place is free again.
pub struct Listing {
    stream: StreamHandle,
    id: Id,
    pages: mpsc::Receiver<Bytes>,
    gone: CancellationToken,
}

impl Listing {
    /// Fires when the stream has ended or the call is cancelled.
    pub fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// The next page.
    pub async fn page(&mut self) -> Bytes {
        match self.pages.recv().await {
            Some(page) => page,
            // There is none any more, and `gone` says so.
            None => std::future::pending().await,
        }
    }

    /// Forgets a page that nobody asked for: a server that answers twice would double its tools (r52).
    pub fn skip(&mut self) {
        while self.pages.try_recv().is_ok() {}
    }

    /// Puts the one answer on the stream, and frees the place; `false` when the stream has ended.
    pub async fn answer(mut self, event: Bytes) -> bool {
        let Ok(place) = self.stream.0.refusals.clone().reserve_owned().await else {
            return false;
        };
        // Under the lock, so that the stream is busy until the answer is in its queue.
        let stream = self.stream.clone();
        let mut pending = stream.waiting();
        place.send(event);
        self.leave(&mut pending);
        true
    }

    fn leave(&mut self, pending: &mut HashMap<Id, Waiting>) {
        self.pages.close();
        // Another list may have taken the id since this one was cancelled.
        if matches!(pending.get(&self.id), Some(Waiting::List { pages, .. }) if pages.is_closed()) {
            pending.remove(&self.id);
        }
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        let stream = self.stream.clone();
        self.leave(&mut stream.waiting());
    }
}

impl std::fmt::Debug for StreamHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamHandle")
            .field("route", &self.0.route)
            .finish_non_exhaustive()
    }
}

/// Held by the stream's body: its end is the entry's end.
pub struct OpenStream {
    streams: Arc<Streams>,
    key: StreamKey,
    pub handle: StreamHandle,
    /// Messages of the gateway itself, to be written between events.
    pub refusals: mpsc::Receiver<Bytes>,
    _gauge: GaugeGuard,
}

impl Streams {
    /// Registers a stream whose messages go to `target`.
    pub fn open(
        self: &Arc<Self>,
        route: Arc<str>,
        principal: Arc<Principal>,
        target: Target,
        gauge: GaugeGuard,
    ) -> OpenStream {
        let (refusals, receiver) = mpsc::channel(MAX_QUEUED);
        let key = random_stream_key();
        let handle = StreamHandle(Arc::new(Stream {
            route,
            key,
            principal,
            target,
            refusals,
            closed: AtomicBool::new(false),
            pending: Mutex::default(),
        }));
        self.0.insert(key, handle.clone());
        OpenStream {
            streams: self.clone(),
            key,
            handle,
            refusals: receiver,
            _gauge: gauge,
        }
    }

    /// The open stream of that key on that route.
    pub fn find(&self, key: &StreamKey, route: &str) -> Option<StreamHandle> {
        let handle = self.0.get(key)?;
        (*handle.0.route == *route).then(|| handle.clone())
    }
}

impl OpenStream {
    /// What the client's `endpoint` event carries, sealed.
    pub fn key(&self) -> &StreamKey {
        &self.key
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.streams.0.remove(&self.key);
        self.handle.0.closed.store(true, Ordering::Release);
        // Whoever still waited for an answer lost it with the stream: dropping an ending counts it as cancelled.
        let lost = std::mem::take(&mut *self.handle.waiting());
        drop(lost);
    }
}

impl StreamHandle {
    /// Whose stream it is.
    pub fn principal(&self) -> &Arc<Principal> {
        &self.0.principal
    }

    /// Where its messages go; `None` when the gateway itself takes them.
    pub fn target(&self) -> Option<(&EndpointId, &PathAndQuery)> {
        match &self.0.target {
            Target::Upstream(endpoint, target) => Some((endpoint, target)),
            Target::Bridge => None,
        }
    }

    /// By what the gateway finds the session of its own that takes the messages; `None` when an upstream takes them.
    pub fn bridge_key(&self) -> Option<&StreamKey> {
        matches!(self.0.target, Target::Bridge).then_some(&self.0.key)
    }

    /// Writes a message to the stream; `false` when it is gone or doesn't read.
    pub fn tell(&self, event: Bytes) -> bool {
        self.0.refusals.try_send(event).is_ok()
    }

    /// Remembers a call until its answer passes; over the bound it is let go uncounted as cancelled.
    ///
    /// # Errors
    /// When a list with that id is still gathered: its pages would be taken for this call's answer.
    pub fn wait_for(&self, id: &Id, ending: Ending) -> Result<(), Ending> {
        let id = id.canonical();
        let mut pending = self.waiting();
        if matches!(pending.get(&id), Some(Waiting::List { .. })) {
            return Err(ending);
        }
        if pending.len() < MAX_PENDING && !self.0.closed.load(Ordering::Acquire) {
            pending.insert(id, Waiting::Call(ending));
        }
        Ok(())
    }

    /// A place for a list that is gathered; `None` when there are too many, one has that id, or the stream has ended.
    pub fn list(&self, id: &Id) -> Option<Listing> {
        let id = id.canonical();
        let mut pending = self.waiting();
        let lists = pending
            .values()
            .filter(|waiting| matches!(waiting, Waiting::List { .. }));
        if lists.count() >= MAX_LISTS
            || matches!(pending.get(&id), Some(Waiting::List { .. }))
            || self.0.closed.load(Ordering::Acquire)
        {
            return None;
        }
        // One page at a time is asked for.
        let (sender, pages) = mpsc::channel(1);
        let gone = CancellationToken::new();
        let waiting = Waiting::List {
            pages: sender,
            _gone: gone.clone().drop_guard(),
        };
        pending.insert(id.clone(), waiting);
        drop(pending);
        Some(Listing {
            stream: self.clone(),
            id,
            pages,
            gone,
        })
    }

    /// Whether calls still wait for their answer.
    pub fn is_busy(&self) -> bool {
        !self.waiting().is_empty()
    }

    /// An answer has come: whom it is for.
    pub fn answered(&self, id: &Id, message: &Bytes) -> Answered {
        let id = id.canonical();
        let mut pending = self.waiting();
        match pending.get(&id) {
            None => Answered::Unknown,
            Some(Waiting::List { pages, .. }) => {
                // Full: it has answered already.
                let _ = pages.try_send(message.clone());
                Answered::Page
            }
            Some(Waiting::Call(_)) => match pending.remove(&id) {
                Some(Waiting::Call(ending)) => Answered::Call(ending),
                _ => Answered::Unknown,
            },
        }
    }

    /// A call will not be answered any more: its ending, unless it is a list, whose gathering ends.
    pub fn forget(&self, id: &Id) -> Option<Ending> {
        match self.waiting().remove(&id.canonical())? {
            Waiting::Call(ending) => Some(ending),
            Waiting::List { .. } => None,
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<Id, Waiting>> {
        self.0.pending.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
