//! Logins under way at the services: begun, and not answered yet.
//!
//! 1. One for each person and route: a new login takes the place of an older one, wherever that was begun, so that nobody
//!    takes more room than there are routes. [`MAX_WAITING`] in all.
//! 2. A login is found by its person, and then by its `state`; an answer with a state that isn't theirs finds nothing. It
//!    is taken by the version it was read at: of two answers at once one gets it.
//! 3. It is bound to where it was begun: to the visit of a browser, or to a run of a command.
//! 4. That a state belongs to a terminal can be looked up by the state alone, so that the page which the browser ends on
//!    can say what to do with its address. It says nothing else.

use std::borrow::Cow;

use aws_lc_rs::constant_time;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::clock::UnixSeconds;
use crate::oauth::login::Pending;
use crate::store::{Key, Kind, Row, Store, StoreError, When};

/// Seconds for somebody to log in.
pub const LOGIN: u64 = 10 * 60;

/// Logins under way, of everybody.
pub const MAX_WAITING: u64 = 10_000;

const BROWSER: &str = "browser";
const TERMINAL: &str = "terminal";

/// A login under way. Has no `Debug`: what it holds is a secret.
pub struct Waiting {
    /// `None` for a device code, to which no browser brings an answer.
    pub state: Option<String>,
    /// What it is bound to: of a visit, or drawn at random by a command.
    pub mark: [u8; 32],
    /// [`Pending::to_json`]; `None` of a command, which keeps that itself.
    pub pending: Option<Zeroizing<Vec<u8>>>,
}

/// As it is written down, sealed.
#[derive(Serialize, Deserialize)]
struct Written<'a> {
    #[serde(borrow)]
    state: Option<Cow<'a, str>>,
    mark: [u8; 32],
    #[serde(borrow)]
    pending: Option<&'a RawValue>,
}

/// A login that was found, and what it takes to take it.
pub struct Found {
    pub route: String,
    pub waiting: Waiting,
    version: u64,
    expires: Option<UnixSeconds>,
}

fn key<'a>(route: &'a str, person: &'a str) -> Key<'a> {
    Key {
        kind: Kind::Login,
        scope: route,
        id: person,
    }
}

/// By what the state of a terminal is found: nobody is called like that, so that whoever brings somebody's id for a state
/// isn't shown their login, on a route of whatever name.
fn terminal_id(state: &str) -> String {
    format!("state {state}")
}

impl Waiting {
    /// A login in a browser.
    ///
    /// # Errors
    /// The store's.
    pub async fn in_browser(
        &self,
        store: &Store,
        route: &str,
        person: &str,
        expires: UnixSeconds,
    ) -> Result<(), StoreError> {
        self.put(store, route, person, BROWSER, Some(expires), When::Always)
            .await
    }

    /// A login in a terminal.
    ///
    /// # Errors
    /// The store's.
    pub async fn in_terminal(
        &self,
        store: &Store,
        route: &str,
        person: &str,
        expires: UnixSeconds,
    ) -> Result<(), StoreError> {
        if let Some(state) = &self.state {
            let id = terminal_id(state);
            let key = key(TERMINAL, &id);
            let marker = store.put(&key, route.as_bytes(), TERMINAL, Some(expires), When::Always);
            marker.await?;
        }
        self.put(store, route, person, TERMINAL, Some(expires), When::Always)
            .await
    }

    async fn put(
        &self,
        store: &Store,
        route: &str,
        person: &str,
        label: &str,
        expires: Option<UnixSeconds>,
        when: When,
    ) -> Result<(), StoreError> {
        let pending = self.pending.as_deref().map(|pending| {
            let pending = serde_json::from_slice(pending);
            pending.expect("what was written down as JSON is JSON")
        });
        let written = Written {
            state: self.state.as_deref().map(Cow::Borrowed),
            mark: self.mark,
            pending,
        };
        let value = Zeroizing::new(serde_json::to_vec(&written).expect("texts are JSON"));
        store.put(&key(route, person), &value, label, expires, when).await?;
        Ok(())
    }

    fn read(row: &Row, now: UnixSeconds) -> Option<Self> {
        let lasts = row.expires.is_none_or(|expires| now < expires);
        let written: Written<'_> = serde_json::from_slice(&row.value).ok().filter(|_| lasts)?;
        Some(Self {
            state: written.state.map(Cow::into_owned),
            mark: written.mark,
            pending: written
                .pending
                .map(|pending| Zeroizing::new(pending.get().as_bytes().to_vec())),
        })
    }

    /// What the login is finished with.
    pub fn pending(&self) -> Option<Pending> {
        Pending::from_json(self.pending.as_deref()?)
    }
}

/// The login of this person with this state, begun where the mark says.
///
/// # Errors
/// The store's.
pub async fn find(
    store: &Store,
    person: &str,
    state: &str,
    mark: &[u8; 32],
    now: UnixSeconds,
) -> Result<Option<Found>, StoreError> {
    for (route, row) in store.list(Kind::Login, person).await? {
        let Some(waiting) = Waiting::read(&row, now) else {
            continue;
        };
        let same = waiting.state.as_ref().is_some_and(|waiting| {
            constant_time::verify_slices_are_equal(waiting.as_bytes(), state.as_bytes()).is_ok()
        });
        if same && constant_time::verify_slices_are_equal(&waiting.mark, mark).is_ok() {
            let (version, expires) = (row.version, row.expires);
            return Ok(Some(Found {
                route,
                waiting,
                version,
                expires,
            }));
        }
    }
    Ok(None)
}

impl Found {
    /// Takes it: false when somebody else has, or a newer one has begun.
    ///
    /// # Errors
    /// The store's.
    pub async fn take(&self, store: &Store, person: &str) -> Result<bool, StoreError> {
        store
            .remove(&key(&self.route, person), When::Version(self.version))
            .await
    }

    /// Gives back what was taken, unless a newer one has begun: the answer was not to blame on whoever began it.
    ///
    /// # Errors
    /// The store's.
    pub async fn give_back(&self, store: &Store, person: &str) -> Result<(), StoreError> {
        let back = self
            .waiting
            .put(store, &self.route, person, BROWSER, self.expires, When::Absent);
        back.await
    }
}

/// Whether the login of this route and person is still the one with this mark.
///
/// # Errors
/// The store's.
pub async fn stands(
    store: &Store,
    route: &str,
    person: &str,
    mark: &[u8; 32],
    now: UnixSeconds,
) -> Result<bool, StoreError> {
    let row = store.get(&key(route, person)).await?;
    let waiting = row.and_then(|row| Waiting::read(&row, now));
    Ok(waiting.is_some_and(|waiting| waiting.mark == *mark))
}

/// Clears a login that is over, and what its state says (r24).
///
/// # Errors
/// The store's.
pub async fn clear(store: &Store, route: &str, person: &str, state: Option<&str>) -> Result<(), StoreError> {
    store.remove(&key(route, person), When::Always).await?;
    if let Some(state) = state {
        store.remove(&key(TERMINAL, &terminal_id(state)), When::Always).await?;
    }
    Ok(())
}

/// The route of a login that was begun in a terminal.
///
/// # Errors
/// The store's.
pub async fn terminal(store: &Store, state: &str, now: UnixSeconds) -> Result<Option<String>, StoreError> {
    let row = store.get(&key(TERMINAL, &terminal_id(state))).await?;
    let row = row.filter(|row| row.label == TERMINAL && row.expires.is_none_or(|expires| now < expires));
    Ok(row.and_then(|row| String::from_utf8(row.value.to_vec()).ok()))
}

/// Whether there is room for another.
///
/// # Errors
/// The store's.
pub async fn has_room(store: &Store) -> Result<bool, StoreError> {
    let waiting: u64 = store.tally(Kind::Login).await?.iter().map(|tally| tally.count).sum();
    Ok(waiting < MAX_WAITING)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::Clock;
    use crate::config::{Database, State};
    use crate::session::Sealer;

    #[tokio::test]
    async fn whoever_brings_somebodys_id_for_a_state_is_shown_nothing_of_their_login() {
        let directory = tempfile::tempdir().unwrap();
        let config = State {
            directory: directory.path().to_owned(),
            database: Database::Sqlite,
            seal_keys: Vec::new(),
        };
        let store = Store::open(&config, Arc::new(Sealer::new(&[])), Clock::fixed(100));
        let store = store.await.unwrap();
        let person = "0".repeat(64);
        for id in [&*person, "everybody"] {
            let waiting = Waiting {
                state: Some(format!("the-state-of-{id}")),
                mark: [7; 32],
                pending: None,
            };
            // A route of any name may be configured.
            waiting.in_terminal(&store, TERMINAL, id, 200).await.unwrap();
            assert_eq!(terminal(&store, id, 100).await.unwrap(), None);
            let state = waiting.state.as_deref().unwrap();
            let found = terminal(&store, state, 100).await.unwrap();
            assert_eq!(found.as_deref(), Some(TERMINAL));
            clear(&store, TERMINAL, id, Some(state)).await.unwrap();
            assert_eq!(terminal(&store, state, 100).await.unwrap(), None);
        }
    }
}
