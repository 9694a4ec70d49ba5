//! The connections that modern callers share, who have no session of their own.
//!
//! 1. One a person and set of client capabilities, opened once however many ask for it: what a server was told of its
//!    client has to hold for every request that goes over it. Nobody's connection is ever another person's.
//! 2. A connection that ended is opened anew for the next request; a request whose session the server had forgotten is
//!    sent again, once (r51): 404 says that nothing was done.
//! 3. One that nobody needed for a while is ended, and the server told. So is the one needed least recently when a person
//!    has too many; when all of them are at work, the next is refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::peer::{Ask, Event, Exchange, Lost, Peer};
use crate::edge::Rejection;
use crate::upstream::UpstreamError;

/// Connections of one person to one upstream.
const MAX_OF_PERSON: usize = 8;
/// Connections to one upstream.
const MAX: usize = 10_000;

/// Whose connection it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Key {
    /// [`crate::session::person`].
    pub person: [u8; 32],
    /// A digest of what the server is told of its client.
    pub client: [u8; 32],
}

/// The connections to one upstream.
#[derive(Default)]
pub struct Peers(Mutex<HashMap<Key, Arc<Slot>>>);

#[derive(Default)]
struct Slot(tokio::sync::Mutex<Option<Arc<Peer>>>);

impl Slot {
    /// Since when nobody needs it; `None` while somebody does, or it is being opened.
    fn idle_since(&self) -> Option<Instant> {
        let peer = self.0.try_lock().ok()?;
        match &*peer {
            Some(peer) if !peer.ended().is_cancelled() => peer.idle_since(),
            // An opening that failed, or a connection that is over.
            _ => Some(Instant::now() - Duration::from_secs(86_400)),
        }
    }

    fn end(&self) {
        let Some(peer) = self.0.try_lock().ok().and_then(|mut peer| peer.take()) else {
            return;
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { peer.close().await });
        }
    }
}

impl Peers {
    /// The connection of that key, opened if there is none.
    ///
    /// # Errors
    /// What opening it says, and when there are too many at work.
    pub async fn get(
        &self,
        key: &Key,
        name: &Arc<str>,
        open: impl AsyncFnOnce() -> Result<Arc<Peer>, Rejection>,
    ) -> Result<Arc<Peer>, Rejection> {
        let slot = self
            .slot(key)
            .ok_or_else(|| UpstreamError::Busy { endpoint: name.clone() })?;
        let mut place = slot.0.lock().await;
        if let Some(peer) = place.as_ref().filter(|peer| !peer.ended().is_cancelled()) {
            return Ok(peer.clone());
        }
        let peer = open().await?;
        *place = Some(peer.clone());
        Ok(peer)
    }

    /// Ends what nobody needed for that long.
    pub fn end_idle(&self, after: Duration) {
        let now = Instant::now();
        self.slots().retain(|_, slot| {
            // Somebody who has the slot is about to use it.
            let unused = Arc::strong_count(slot) == 1;
            let idle = unused
                && slot
                    .idle_since()
                    .is_some_and(|since| now.duration_since(since) >= after);
            if idle {
                slot.end();
            }
            !idle
        });
    }

    /// Ends all of them, and waits until the servers know.
    pub async fn close(&self) {
        let slots = std::mem::take(&mut *self.slots());
        let closing = slots.into_values().map(|slot| async move {
            let peer = slot.0.lock().await.take();
            if let Some(peer) = peer {
                peer.close().await;
            }
        });
        futures_util::future::join_all(closing).await;
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots().is_empty()
    }

    fn slot(&self, key: &Key) -> Option<Arc<Slot>> {
        let mut slots = self.slots();
        if let Some(slot) = slots.get(key) {
            return Some(slot.clone());
        }
        if slots.keys().filter(|other| other.person == key.person).count() >= MAX_OF_PERSON {
            make_room(&mut slots, |other| other.person == key.person)?;
        }
        if slots.len() >= MAX {
            make_room(&mut slots, |_| true)?;
        }
        let slot = Arc::new(Slot::default());
        slots.insert(key.clone(), slot.clone());
        Some(slot)
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Arc<Slot>>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Ends the one among these that was needed least recently.
fn make_room(slots: &mut HashMap<Key, Arc<Slot>>, among: impl Fn(&Key) -> bool) -> Option<()> {
    let idle = slots
        .iter()
        .filter(|(key, slot)| among(key) && Arc::strong_count(slot) == 1)
        .filter_map(|(key, slot)| Some((slot.idle_since()?, key)));
    let (_, key) = idle.min_by_key(|(since, _)| *since)?;
    let key = key.clone();
    slots.remove(&key)?.end();
    Some(())
}

impl Drop for Peers {
    fn drop(&mut self) {
        for (_, slot) in self.slots().drain() {
            slot.end();
        }
    }
}

/// A call under way, with the first thing that happened.
pub struct Begun {
    pub exchange: Exchange,
    /// `None`: nothing has yet.
    pub first: Option<Event>,
}

/// Sends a request over a connection that `peer` finds or opens; once more when its session turns out to be over (r51).
/// Comes back when something happened, or after `patience`.
///
/// # Errors
/// When there is no connection, or no answer.
pub async fn begin(
    peer: impl AsyncFn() -> Result<Arc<Peer>, Rejection>,
    ask: Ask,
    patience: Duration,
) -> Result<Begun, Rejection> {
    let mut again = true;
    loop {
        let mut exchange = peer().await?.request(ask.clone());
        match tokio::time::timeout(patience, exchange.next()).await {
            Err(_) => return Ok(Begun { exchange, first: None }),
            Ok(Ok(event)) => {
                return Ok(Begun {
                    exchange,
                    first: Some(event),
                });
            }
            Ok(Err(Lost::Session)) if again => again = false,
            Ok(Err(lost)) => return Err(lost.into()),
        }
    }
}
