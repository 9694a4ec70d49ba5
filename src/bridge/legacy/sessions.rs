//! All sessions of one route that the gateway serves itself.
//!
//! 1. A session is found by its key and its person: another's is as unknown as one that never was.
//! 2. At most 64 a caller (where nobody vouches for them, an address) and 10,000 in all. The one that was needed least recently makes room, if one is not needed; else
//!    there is no place.
//! 3. One that nobody needed for half an hour is ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::session::Session;
use crate::session::StreamKey;

/// Sessions of one caller.
const MAX_OF_OWNER: usize = 64;
/// Sessions of all.
const MAX: usize = 10_000;
/// How long one is kept that nobody needs.
const IDLE: Duration = Duration::from_secs(30 * 60);

/// The sessions of one route.
#[derive(Default)]
pub struct Sessions(Mutex<HashMap<StreamKey, Arc<Session>>>);

impl Sessions {
    /// Keeps a session; `None` by rule 2.
    pub fn keep(&self, session: &Arc<Session>) -> Option<()> {
        let mut all = self.all();
        let of_owner = all.values().filter(|other| other.owner == session.owner);
        if of_owner.count() >= MAX_OF_OWNER {
            make_room(&mut all, |other| other.owner == session.owner)?;
        }
        if all.len() >= MAX {
            make_room(&mut all, |_| true)?;
        }
        all.insert(session.key, session.clone());
        Some(())
    }

    /// The session of that key, if it is that person's.
    pub fn find(&self, key: &StreamKey, person: &[u8; 32]) -> Option<Arc<Session>> {
        let session = self.all().get(key).filter(|session| session.person == *person)?.clone();
        if session.is_over() {
            self.end(key);
            return None;
        }
        Some(session)
    }

    /// Ends a session.
    pub fn end(&self, key: &StreamKey) {
        let session = self.all().remove(key);
        if let Some(session) = session {
            close(session);
        }
    }

    /// Ends what nobody needs, and gives up questions that nobody answers.
    pub fn tend(&self) {
        let now = Instant::now();
        let mut over = Vec::new();
        self.all().retain(|_, session| {
            session.questions.expire();
            let idle = session
                .idle_since()
                .is_some_and(|since| now.duration_since(since) >= IDLE);
            let ends = idle || (session.is_over() && !session.is_busy());
            if ends {
                over.push(session.clone());
            }
            !ends
        });
        over.into_iter().for_each(close);
    }

    /// Ends all of them, and waits until the servers know.
    pub async fn close(&self) {
        let all = std::mem::take(&mut *self.all());
        let closing = all.into_values().map(|session| async move { session.close().await });
        futures_util::future::join_all(closing).await;
    }

    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<StreamKey, Arc<Session>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the one among these that was needed least recently.
fn make_room(all: &mut HashMap<StreamKey, Arc<Session>>, among: impl Fn(&Session) -> bool) -> Option<()> {
    let idle = all
        .values()
        .filter(|session| among(session))
        .filter_map(|session| Some((session.idle_since()?, session.key)));
    let (_, key) = idle.min_by_key(|(since, _)| *since)?;
    close(all.remove(&key)?);
    Some(())
}

fn close(session: Arc<Session>) {
    // At once, so that nobody begins anything with it.
    session.ended().cancel();
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(async move { session.close().await });
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        for (_, session) in self.all().drain() {
            close(session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::Who;
    use crate::session::random_stream_key;

    fn session(person: u8) -> Arc<Session> {
        Session::new(random_stream_key(), [person; 32], Who::Person([person; 32]), None, None)
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_is_found_by_its_person_alone_until_it_ends() {
        let sessions = Sessions::default();
        let one = session(1);
        sessions.keep(&one).expect("a place");
        assert!(sessions.find(&one.key, &[1; 32]).is_some());
        assert!(sessions.find(&one.key, &[2; 32]).is_none());
        assert!(sessions.find(&random_stream_key(), &[1; 32]).is_none());
        sessions.end(&one.key);
        assert!(one.is_over() && sessions.find(&one.key, &[1; 32]).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_needs_makes_room_and_ends_by_itself() {
        let sessions = Sessions::default();
        let used = session(1);
        sessions.keep(&used).expect("a place");
        let (_number, _changed) = used.stand();
        let mut kept = Vec::new();
        for _ in 1..MAX_OF_OWNER {
            tokio::time::advance(Duration::from_secs(1)).await;
            let one = session(1);
            sessions.keep(&one).expect("a place");
            kept.push(one);
        }
        let next = session(1);
        sessions.keep(&next).expect("the oldest makes room");
        assert!(kept[0].is_over() && !used.is_over() && !kept[1].is_over());
        let streams: Vec<_> = kept[1..].iter().chain([&next]).map(|one| one.stand()).collect();
        assert!(sessions.keep(&session(1)).is_none(), "all are needed");
        assert!(
            sessions.keep(&session(2)).is_some(),
            "somebody else has places of their own"
        );
        drop(streams);
        kept[1].leave();
        tokio::time::advance(IDLE - Duration::from_secs(1)).await;
        sessions.tend();
        assert!(!kept[1].is_over());
        tokio::time::advance(Duration::from_secs(1)).await;
        sessions.tend();
        assert!(kept[1].is_over() && !kept[2].is_over(), "a stream is open");
    }
}
