//! The HTTP+SSE streams open on this replica (MCP 2024-11-05, "HTTP with SSE").
//!
//! 1. A stream is known by a random key, which the client sees only sealed, in its `endpoint` event.
//! 2. Messages posted to it must come from the stream's own principal, over the same route.
//! 3. The stream ends the entry: a key of a closed stream is unknown.
//! 4. Calls whose answers come over the stream wait here, bounded, so that their outcome can be counted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use aws_lc_rs::rand;
use bytes::Bytes;
use dashmap::DashMap;
use http::uri::PathAndQuery;
use tokio::sync::mpsc;

use crate::authn::Principal;
use crate::mcp::Id;
use crate::reply::Ending;
use crate::telemetry::GaugeGuard;
use crate::upstream::EndpointId;

/// Calls that may wait for their answer on one stream.
const MAX_PENDING: usize = 1024;
/// Refusals that may wait to be written to one stream.
const MAX_QUEUED: usize = 64;

/// What a stream is known by.
pub type StreamKey = [u8; 16];

/// All open streams.
#[derive(Debug, Default)]
pub struct Streams(DashMap<StreamKey, StreamHandle>);

/// One open stream, as those who post to it see it.
#[derive(Clone)]
pub struct StreamHandle(Arc<Stream>);

struct Stream {
    route: Arc<str>,
    principal: Arc<Principal>,
    endpoint: EndpointId,
    target: PathAndQuery,
    refusals: mpsc::Sender<Bytes>,
    closed: AtomicBool,
    pending: Mutex<HashMap<Id, Ending>>,
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
    /// Registers a stream whose messages go to `target` on `endpoint`.
    pub fn open(
        self: &Arc<Self>,
        route: Arc<str>,
        principal: Arc<Principal>,
        endpoint: EndpointId,
        target: PathAndQuery,
        gauge: GaugeGuard,
    ) -> OpenStream {
        let (refusals, receiver) = mpsc::channel(MAX_QUEUED);
        let mut key = StreamKey::default();
        rand::fill(&mut key).expect("the system's random source works");
        let handle = StreamHandle(Arc::new(Stream {
            route,
            principal,
            endpoint,
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
        self.handle.waiting().clear();
    }
}

impl StreamHandle {
    /// Whose stream it is.
    pub fn principal(&self) -> &Arc<Principal> {
        &self.0.principal
    }

    /// Where its messages go.
    pub fn target(&self) -> (&EndpointId, &PathAndQuery) {
        (&self.0.endpoint, &self.0.target)
    }

    /// Writes a message to the stream; `false` when it is gone or doesn't read.
    pub fn tell(&self, event: Bytes) -> bool {
        self.0.refusals.try_send(event).is_ok()
    }

    /// Remembers a call until its answer passes; over the bound it is let go uncounted as cancelled.
    pub fn wait_for(&self, id: Id, ending: Ending) {
        let mut pending = self.waiting();
        if pending.len() < MAX_PENDING && !self.0.closed.load(Ordering::Acquire) {
            pending.insert(id, ending);
        }
    }

    /// Whether calls still wait for their answer.
    pub fn is_busy(&self) -> bool {
        !self.waiting().is_empty()
    }

    /// The call that `id` answers, if it waits.
    pub fn answered(&self, id: &Id) -> Option<Ending> {
        self.waiting().remove(id)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<Id, Ending>> {
        self.0.pending.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
