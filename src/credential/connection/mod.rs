//! Each person's own login at a route's upstream: its token handed out, refreshed ahead of its end, recovered once.
//!
//! 1. What is in memory is looked up again in the store every second, so that a disconnect, another login and another
//!    replica's refresh are seen. Where the store can't be asked, what was read last is good for [`UNASKED`] more.
//! 2. A token is refreshed from 120 s before its end, beside the calls that go on with it; only when it is over do they
//!    wait. One refresh for all of them, in this process and in all replicas ([`refresh`]).
//! 3. A login goes where it was made for: to the upstream whose URL it names, by the issuer that the route names (r32). One
//!    that was made for another is neither used nor deleted.
//! 4. `needs_auth` follows from the issuer's own refusal or from a token that is over and can't be renewed; a failure that
//!    may pass deletes nothing (r35).
//! 5. An upstream that wants more scopes is remembered, and the person asked once: what they were asked for already is
//!    not asked for again.

mod refresh;
mod row;
mod slot;
mod source;
mod tend;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::header::AUTHORIZATION;
use moka::sync::Cache;

use super::flight::Underway;
use super::recovery::{PAUSE, Recover};
use super::{CredentialError, NotConnectedReason, OutboundCredential};
use crate::authn::Principal;
use crate::clock::{Clock, UnixSeconds};
use crate::oauth::Grant;
use crate::oauth::login::Login;
use crate::session;
use crate::store::{Fault, Key, Kind, Store, StoreError, When};
use crate::telemetry::Metrics;

use row::{MAX_SCOPES, Stored};
use slot::{Held, Slot};
use source::Binding;
pub(crate) use source::ConnectionSource;
pub use tend::Counts;

/// Seconds before a token's end from which it is refreshed.
pub(super) const AHEAD: UnixSeconds = 120;
/// How long what was read is believed without looking again.
const FRESH: Duration = Duration::from_secs(1);
/// The same of a login that is missing or over: its owner may just have logged in elsewhere, and tries again.
const HARDLY_FRESH: Duration = Duration::from_millis(100);
/// How long what was read is used while the store can't be asked.
const UNASKED: Duration = Duration::from_secs(60);
/// Logins held in memory.
const MAX_HELD: u64 = 10_000;
/// How long a login that nobody uses is held.
const IDLE: Duration = Duration::from_secs(600);
/// How long a stop waits for refreshes that are under way, and for what they gave to be written down.
const LAST: Duration = Duration::from_secs(20);
/// How often a note is written again when somebody else wrote meanwhile.
const TRIES: usize = 4;

/// What a connection is worth right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// There is none.
    Disconnected,
    Connected,
    /// It has an end and can't be renewed.
    Expiring,
    /// Only another login helps.
    NeedsAuth,
    /// The last refresh failed, and is tried again.
    Failing,
}

impl State {
    /// Those a row may be in.
    pub const ALL: [Self; 4] = [Self::Connected, Self::Expiring, Self::NeedsAuth, Self::Failing];

    /// As metrics, `/status` and the store's labels spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disconnected => "disconnected",
            Self::Connected => "connected",
            Self::Expiring => "expiring",
            Self::NeedsAuth => "needs_auth",
            Self::Failing => "failing",
        }
    }
}

/// A connection as its owner may see it: without tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub state: State,
    /// When the person logged in, in seconds since the epoch.
    pub since: Option<UnixSeconds>,
    /// When the access token ends; it is renewed before that where it can be.
    pub expires_at: Option<UnixSeconds>,
    /// As granted, where the issuer said so.
    pub scopes: Vec<String>,
    /// What the upstream wants besides.
    pub wanted: Vec<String>,
    pub last_error: Option<String>,
}

impl Connection {
    fn none() -> Self {
        Self {
            state: State::Disconnected,
            since: None,
            expires_at: None,
            scopes: Vec::new(),
            wanted: Vec::new(),
            last_error: None,
        }
    }
}

/// Whose connection: the same over tokens, never two people.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Person(Arc<str>);

impl Person {
    /// Who calls; `None` for nobody in particular.
    pub fn of(principal: &Principal) -> Option<Self> {
        let hex = |bytes: [u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        (!principal.is_anonymous()).then(|| Self(hex(session::person(principal)).into()))
    }

    /// Hexadecimal.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Place {
    route: Arc<str>,
    person: Person,
}

impl Place {
    fn new(route: &str, person: &Person) -> Self {
        Self {
            route: route.into(),
            person: person.clone(),
        }
    }

    fn key(&self) -> Key<'_> {
        Key {
            kind: Kind::Connection,
            scope: &self.route,
            id: self.person.as_str(),
        }
    }
}

/// Everybody's connections. It outlives configurations.
pub struct Connections {
    store: Store,
    clock: Clock,
    metrics: Arc<Metrics>,
    slots: Cache<Place, Arc<Slot>>,
    underway: Underway,
    /// As of the last look.
    counts: Mutex<HashMap<Box<str>, Counts>>,
}

impl Connections {
    /// Nothing is read yet.
    pub fn new(store: Store, clock: Clock, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            store,
            clock,
            metrics,
            slots: Cache::builder().max_capacity(MAX_HELD).time_to_idle(IDLE).build(),
            underway: Underway::default(),
            counts: Mutex::default(),
        })
    }

    /// Waits for refreshes under way, for 20 s at most: who stops the process before they are written down loses what their
    /// issuers gave for tokens that are spent.
    pub async fn finish(&self) {
        if tokio::time::timeout(LAST, self.underway.done()).await.is_err() {
            tracing::error!("a refresh takes too long to be waited for; its owner may have to connect again");
        }
    }

    pub(super) fn underway(&self) -> &Underway {
        &self.underway
    }

    /// The store that they are kept in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Keeps what a finished login gave, in place of what was there.
    ///
    /// # Errors
    /// The store fails; the person has to log in again then.
    pub async fn adopt(&self, route: &str, person: &Person, grant: Grant) -> Result<(), StoreError> {
        let place = Place::new(route, person);
        // What can't be read any more is replaced as well.
        let before = self.read(&place).await.ok().flatten().map(|(_, stored)| stored);
        let asked = before.map_or_else(Vec::new, |before| merged(before.asked, before.wanted));
        let stored = Stored::new(grant, asked, self.clock.now());
        self.put(&place, &stored, When::Always).await?;
        self.forgotten(&place);
        Ok(())
    }

    /// Disconnects, and tells whether there was anything; the issuer is told as well, as far as it listens, by the login
    /// that it is for.
    ///
    /// # Errors
    /// The store fails, and the connection stays.
    pub async fn forget(&self, route: &str, person: &Person, login: Option<&Login>) -> Result<bool, StoreError> {
        let place = Place::new(route, person);
        let grant = self.read(&place).await.ok().flatten().map(|(_, stored)| stored.grant);
        let was = self.store.remove(&place.key(), When::Always).await?;
        self.forgotten(&place);
        // Tokens go to nobody but whom they came from (r32).
        if let (Some(login), Some(grant)) = (login, grant)
            && login.accepts(&grant)
        {
            login.revoke(&grant).await;
        }
        Ok(was)
    }

    /// What a person's connection is worth.
    ///
    /// # Errors
    /// The store fails.
    pub async fn state(&self, route: &str, person: &Person) -> Result<Connection, StoreError> {
        let read = match self.read(&Place::new(route, person)).await {
            // As for its calls: the key is gone, and its owner can make another.
            Err(error) if matches!(error.fault, Fault::Sealed { .. }) => {
                return Ok(Connection {
                    state: State::NeedsAuth,
                    ..Connection::none()
                });
            }
            read => read?,
        };
        let Some((_, stored)) = read else {
            return Ok(Connection::none());
        };
        let over = stored
            .grant
            .tokens
            .expires_at
            .is_some_and(|end| end <= self.clock.now());
        Ok(Connection {
            state: match stored.state() {
                State::Expiring if over => State::NeedsAuth,
                state => state,
            },
            since: Some(stored.since),
            expires_at: stored.grant.tokens.expires_at,
            scopes: stored.grant.tokens.scopes.unwrap_or_default(),
            wanted: stored.wanted,
            last_error: stored.trouble.map(|trouble| trouble.error),
        })
    }

    /// The credential of one call.
    ///
    /// # Errors
    /// There is no connection that could be used; the request must not be sent.
    async fn credential(
        self: &Arc<Self>,
        binding: &Arc<Binding>,
        principal: &Principal,
    ) -> Result<OutboundCredential, CredentialError> {
        // The configuration has no anonymous route with connections.
        let person = Person::of(principal).ok_or(CredentialError::NoSubject)?;
        let place = Place {
            route: binding.route.clone(),
            person,
        };
        let slot = self.slot(&place);
        let held = self.held(binding, &place, &slot).await?;
        let stored = &held.stored;
        let now = self.clock.now();
        if stored.due().is_none_or(|due| now < due) {
            return Ok(self.outbound(binding, &place, &held));
        }
        let can_renew = stored.grant.tokens.refresh_token.is_some();
        if stored.grant.tokens.expires_at.is_some_and(|end| now < end) {
            if can_renew && binding.can_refresh(&stored.grant) && !stored.waits(now) {
                // Beside the call: it goes on with what it has.
                drop(self.renewal(binding, &place, &slot, &held, false));
            }
            return Ok(self.outbound(binding, &place, &held));
        }
        if !can_renew {
            return Err(self
                .end(binding, &place, &slot, &held, "it has ended, and can't be renewed")
                .await);
        }
        if !binding.can_refresh(&stored.grant) {
            // Nothing is written down for it: the operator may put back the client that it was made for.
            return Err(binding.lacking(NotConnectedReason::NeedsAuth));
        }
        if !stored.waits(now) {
            self.renewal(binding, &place, &slot, &held, false).await?;
        }
        let renewed = self.held(binding, &place, &slot).await?;
        if renewed.stored.same_tokens(&held.stored) {
            return Err(CredentialError::Unreachable(
                "the last refresh failed; it is tried again within a minute",
            ));
        }
        Ok(self.outbound(binding, &place, &renewed))
    }

    fn outbound(self: &Arc<Self>, binding: &Arc<Binding>, place: &Place, held: &Arc<Held>) -> OutboundCredential {
        OutboundCredential {
            header: Some((AUTHORIZATION, held.header.clone())),
            kind: "connection",
            recovery: Some(Arc::new(Lent {
                connections: self.clone(),
                binding: binding.clone(),
                place: place.clone(),
                held: held.clone(),
            })),
        }
    }

    fn slot(&self, place: &Place) -> Arc<Slot> {
        self.slots.get_with_by_ref(place, Arc::default)
    }

    /// The person's login, if it is one that may be used.
    async fn held(&self, binding: &Binding, place: &Place, slot: &Slot) -> Result<Arc<Held>, CredentialError> {
        let held = slot.current(self.read(place)).await.map_err(|error| {
            tracing::error!(route = &*binding.route, %error, "connections can't be read");
            match error.fault {
                // Its owner can make another; nothing is deleted, for the key may come back.
                Fault::Sealed { .. } => binding.lacking(NotConnectedReason::NeedsAuth),
                _ => CredentialError::Unreachable("the store of connections"),
            }
        })?;
        let held = held.ok_or_else(|| binding.lacking(NotConnectedReason::Missing))?;
        if !binding.fits(&held.stored.grant) || held.stored.over {
            return Err(binding.lacking(NotConnectedReason::NeedsAuth));
        }
        Ok(held)
    }

    async fn read(&self, place: &Place) -> Result<Option<(u64, Stored)>, StoreError> {
        let Some(row) = self.store.get(&place.key()).await? else {
            return Ok(None);
        };
        let stored = Stored::from_json(&row.value);
        if stored.is_none() {
            tracing::error!(
                route = &*place.route,
                "a stored connection can't be read; its owner has to connect again"
            );
        }
        Ok(stored.map(|stored| (row.version, stored)))
    }

    async fn put(&self, place: &Place, stored: &Stored, when: When) -> Result<Option<u64>, StoreError> {
        let expires = stored.grant.tokens.expires_at;
        let label = stored.state().as_str();
        self.store
            .put(&place.key(), &stored.to_json(), label, expires, when)
            .await
    }

    /// Notes something in a row that still holds the tokens in question; what is there now.
    async fn note(
        &self,
        place: &Place,
        slot: &Slot,
        about: &Stored,
        change: impl Fn(Stored) -> Stored,
    ) -> Result<Option<Arc<Held>>, StoreError> {
        for _ in 0..TRIES {
            let Some((version, stored)) = self.read(place).await? else {
                return Ok(slot.set(None));
            };
            if !stored.same_tokens(about) {
                return Ok(slot.set(Some((version, stored))));
            }
            let changed = change(stored);
            if let Some(version) = self.put(place, &changed, When::Version(version)).await? {
                return Ok(slot.set(Some((version, changed))));
            }
        }
        Ok(slot.set(self.read(place).await?))
    }

    /// A token that is over without remedy: the person has to log in again, unless they already did.
    async fn end(
        &self,
        binding: &Binding,
        place: &Place,
        slot: &Slot,
        held: &Held,
        why: &'static str,
    ) -> CredentialError {
        if let Err(error) = self.note(place, slot, &held.stored, |stored| stored.ended(why)).await {
            tracing::error!(route = &*binding.route, %error, "what became of a connection can't be written down");
        }
        binding.lacking(NotConnectedReason::NeedsAuth)
    }

    /// What is in memory is not to be believed any more.
    fn forgotten(&self, place: &Place) {
        if let Some(slot) = self.slots.get(place) {
            slot.stale();
        }
    }
}

/// A token that was handed out, and whose it is.
struct Lent {
    connections: Arc<Connections>,
    binding: Arc<Binding>,
    place: Place,
    held: Arc<Held>,
}

impl Recover for Lent {
    fn recover(&self) -> BoxFuture<'_, Result<Option<OutboundCredential>, CredentialError>> {
        Box::pin(async {
            let Self {
                connections,
                binding,
                place,
                held,
            } = self;
            let slot = connections.slot(place);
            slot.suspect(held);
            let mut now = connections.held(binding, place, &slot).await?;
            if now.stored.same_tokens(&held.stored) {
                if now.stored.grant.tokens.refresh_token.is_none() {
                    let why = "the upstream refused its token, which can't be renewed";
                    return Err(connections.end(binding, place, &slot, &now, why).await);
                }
                let time = connections.clock.now();
                if slot.is_replacement(&held.header, PAUSE) || now.stored.is_replacement(time) || now.stored.waits(time)
                {
                    return Ok(None);
                }
                connections.renewal(binding, place, &slot, &now, true).await?;
                now = connections.held(binding, place, &slot).await?;
                slot.replaced(&now.header);
            }
            let another = now.header != held.header;
            Ok(another.then(|| connections.outbound(binding, place, &now)))
        })
    }

    fn wants(&self, scopes: Vec<String>) -> BoxFuture<'_, Result<(), CredentialError>> {
        Box::pin(async move {
            let Self {
                connections,
                binding,
                place,
                held,
            } = self;
            let new = |stored: &Stored| scopes.iter().any(|scope| !stored.has(scope));
            if !new(&held.stored) {
                return Ok(());
            }
            // Written once: an upstream that refuses every call doesn't cost a write each.
            if merged(held.stored.wanted.clone(), scopes.clone()) != held.stored.wanted {
                let slot = connections.slot(place);
                let noted = connections.note(place, &slot, &held.stored, |mut stored| {
                    stored.wanted = merged(stored.wanted, scopes.clone());
                    stored
                });
                if let Err(error) = noted.await {
                    tracing::error!(route = &*binding.route, %error, "the scopes an upstream wants can't be written down");
                }
            }
            Err(binding.lacking(NotConnectedReason::MoreScopes { scopes: scopes.clone() }))
        })
    }
}

/// Both, without doubles, within bounds.
fn merged(mut scopes: Vec<String>, more: Vec<String>) -> Vec<String> {
    for scope in more {
        if scopes.len() < MAX_SCOPES && !scopes.contains(&scope) {
            scopes.push(scope);
        }
    }
    scopes
}
