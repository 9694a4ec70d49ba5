//! The connections that modern callers share, who have no session of their own.
//!
//! 1. One a person and set of client capabilities, opened once however many ask for it: what a server was told of its
//!    client has to hold for every request that goes over it. Nobody's connection is ever another person's.
//! 2. A connection that ended is opened anew for the next request.
//! 3. One that nobody needed for a while is ended, and the server told. So is the one needed least recently when a person
//!    has too many; when all of them are at work, the next is refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::peer::Peer;
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

/// A connection for one call; it ends with this, and the server is told.
pub struct Own(Arc<Peer>);

impl Own {
    /// Of a connection that nobody else has.
    pub fn new(peer: Arc<Peer>) -> Self {
        Self(peer)
    }

    /// The connection.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.0
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        end(self.0.clone());
    }
}

/// Ends a connection in good order, where there is a runtime to do it.
fn end(peer: Arc<Peer>) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(async move { peer.close().await });
    }
}

/// The connections to one upstream.
#[derive(Default)]
pub struct Peers(Mutex<HashMap<Key, Arc<Slot>>>);

#[derive(Default)]
struct Slot(tokio::sync::Mutex<Place>);

#[derive(Default)]
struct Place {
    peer: Option<Arc<Peer>>,
    /// When opening it failed last.
    failed: Option<Instant>,
}

impl Slot {
    /// For how long nobody has needed it; `None` while somebody does, or it is being opened.
    fn idle_for(&self) -> Option<Duration> {
        let place = self.0.try_lock().ok()?;
        match &place.peer {
            Some(peer) if !peer.ended().is_cancelled() => peer.idle_since().map(|since| since.elapsed()),
            // An opening that failed, or a connection that is over.
            _ => Some(Duration::MAX),
        }
    }

    fn end(&self) {
        if let Some(peer) = self.0.try_lock().ok().and_then(|mut place| place.peer.take()) {
            end(peer);
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
        let asked = Instant::now();
        let mut place = slot.0.lock().await;
        if let Some(peer) = place.peer.as_ref().filter(|peer| !peer.ended().is_cancelled()) {
            return Ok(peer.clone());
        }
        if place.failed.is_some_and(|failed| failed >= asked) {
            // Whoever waited for an opening that failed would each wait for their own.
            return Err(UpstreamError::Unavailable { endpoint: name.clone() }.into());
        }
        let opened = open().await;
        match &opened {
            Ok(peer) => place.peer = Some(peer.clone()),
            Err(_) => place.failed = Some(Instant::now()),
        }
        opened
    }

    /// Ends what nobody needed for that long.
    pub fn end_idle(&self, after: Duration) {
        self.slots().retain(|_, slot| {
            // Somebody who has the slot is about to use it.
            let unused = Arc::strong_count(slot) == 1;
            let idle = unused && slot.idle_for().is_some_and(|idle| idle >= after);
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
            let peer = slot.0.lock().await.peer.take();
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
        .filter_map(|(key, slot)| Some((slot.idle_for()?, key)));
    let (_, key) = idle.max_by_key(|(idle, _)| *idle)?;
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::bridge::testing::{Server, ask};

    fn key(person: u8, client: u8) -> Key {
        Key {
            person: [person; 32],
            client: [client; 32],
        }
    }

    async fn get(peers: &Peers, key: &Key, peer: &Arc<Peer>) -> Result<Arc<Peer>, Rejection> {
        peers.get(key, &"r".into(), async || Ok(peer.clone())).await
    }

    #[tokio::test]
    async fn a_connection_is_opened_once_for_all_who_ask() {
        let mut server = Server::start().await;
        let peer = server.session().await;
        let (peers, opened) = (Peers::default(), AtomicUsize::new(0));
        let ask = async || {
            let open = async || {
                opened.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                Ok(peer.clone())
            };
            peers.get(&key(1, 1), &"r".into(), open).await
        };
        let all = futures_util::future::join_all((0..20).map(|_| ask())).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(opened.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn who_waited_for_an_opening_that_failed_does_not_try_in_turn() {
        let (peers, opened) = (Peers::default(), AtomicUsize::new(0));
        let ask = async || {
            let open = async || {
                opened.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                Err(Rejection::CredentialRefused)
            };
            peers.get(&key(1, 1), &"r".into(), open).await
        };
        let all = futures_util::future::join_all((0..20).map(|_| ask())).await;
        assert!(all.iter().all(Result::is_err));
        assert_eq!(opened.load(Ordering::Relaxed), 1);
        assert!(ask().await.is_err());
        assert_eq!(opened.load(Ordering::Relaxed), 2, "the next one tries");
    }

    #[tokio::test]
    async fn a_person_with_too_many_loses_an_idle_one_and_never_one_at_work() {
        let mut server = Server::start().await;
        let peers = Peers::default();
        let (mut working, mut unanswered) = (Vec::new(), Vec::new());
        for client in 0..8 {
            let peer = server.session().await;
            get(&peers, &key(1, client), &peer).await.expect("there is room");
            working.push(peer.request(ask("tools/call", "{}")));
            unanswered.push(server.came().await.events());
        }
        let peer = server.session().await;
        let refused = get(&peers, &key(1, 9), &peer).await.err();
        assert!(
            matches!(refused, Some(Rejection::Upstream(UpstreamError::Busy { .. }))),
            "{refused:?}"
        );
        get(&peers, &key(2, 9), &peer).await.expect("somebody else has room");
        drop(working.remove(3));
        get(&peers, &key(1, 9), &peer).await.expect("an idle one made room");
        assert_eq!(peers.len(), 9);
        assert!(!peers.slots().contains_key(&key(1, 3)));
    }

    #[tokio::test]
    async fn one_that_nobody_needed_is_ended_and_the_server_told() {
        let mut server = Server::start().await;
        let (idle, busy) = (server.session().await, server.session().await);
        let peers = Peers::default();
        get(&peers, &key(1, 1), &idle).await.expect("there is room");
        get(&peers, &key(1, 2), &busy).await.expect("there is room");
        let _call = busy.request(ask("tools/call", "{}"));
        let _unanswered = server.came().await.events();
        peers.end_idle(Duration::from_secs(3600));
        assert_eq!(peers.len(), 2);
        peers.end_idle(Duration::ZERO);
        assert_eq!(peers.len(), 1);
        let came = server.came().await;
        assert_eq!(came.method, http::Method::DELETE);
        came.status(200);
    }
}
