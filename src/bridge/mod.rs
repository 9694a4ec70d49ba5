//! Any client to any server: callers of one era and transport on a server of another.
//!
//! Whoever speaks what the server speaks over HTTP is forwarded byte for byte, and never comes here ([`crate::reply`]).
//! All others meet the server over a [`Peer`]: a connection of the gateway's own, over which calls, their notifications and
//! the server's questions travel. What comes back passes the same filters, counts and audit as everything else.
//!
//! | caller | server | how |
//! |---|---|---|
//! | modern | legacy: Streamable HTTP, HTTP+SSE, stdio | `modern`: a session that the person's requests share (`peers`) |
//! | modern | modern, over stdio | `modern`: one process for all that it may serve |
//! | legacy, by either transport | legacy, over another transport | `legacy`: a session of the caller's on a connection of its own |
//! | legacy, by either transport | modern | `legacy`: the same, `input_required` asked of the caller |
//!
//! [`map`] names every method and notification of every revision, and what becomes of it between the eras.

mod course;
pub mod era;
pub mod legacy;
pub mod link;
mod listen;
pub mod map;
pub mod message;
pub mod modern;
pub mod opening;
mod parked;
pub mod peer;
pub mod peers;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod wishes;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::config;
use crate::edge::Rejection;
use crate::upstream::Upstream;
use crate::upstream::stdio::Owner;
use era::Nature;
use opening::{Opened, Opener};
use parked::Parked;
use peer::{Funds, Lost, Peer};
use peers::{Key, Own, Peers};

/// How often idle connections are looked for.
const TENDING: Duration = Duration::from_secs(30);
/// How long a session at a server is kept that nobody needs; a process is configured.
const IDLE: Duration = Duration::from_secs(10 * 60);

/// What one route keeps of its server, and of callers that don't speak as it does.
pub struct Bridge {
    upstream: Arc<Upstream>,
    /// The server's name, for people.
    name: Arc<str>,
    idle_timeout: Duration,
    /// How long a connection that nobody needs is kept.
    kept_for: Duration,
    kept: Arc<Kept>,
}

/// What outlives a reload that leaves the server and its credential as they were.
struct Kept {
    nature: Nature,
    peers: Peers,
    parked: Parked,
    probing: tokio::sync::Mutex<()>,
    /// How often the server was asked what it speaks.
    probes: AtomicU64,
    sessions: legacy::Sessions,
}

impl Bridge {
    /// A bridge to a server that nothing is known of yet but its configuration.
    pub fn new(config: &config::Upstream, upstream: Arc<Upstream>) -> Self {
        Self {
            name: name(&upstream),
            upstream,
            idle_timeout: config.idle_timeout,
            kept_for: config.stdio.as_ref().map_or(IDLE, |stdio| stdio.idle_timeout),
            kept: Arc::new(Kept {
                nature: Nature::of(config),
                peers: Peers::default(),
                parked: Parked::default(),
                probing: tokio::sync::Mutex::default(),
                probes: AtomicU64::new(0),
                sessions: legacy::Sessions::default(),
            }),
        }
    }

    /// The same bridge after a reload: sessions go on.
    pub fn carried_on(&self, upstream: Arc<Upstream>) -> Self {
        Self {
            name: name(&upstream),
            upstream,
            idle_timeout: self.idle_timeout,
            kept_for: self.kept_for,
            kept: self.kept.clone(),
        }
    }

    /// What is known of the server.
    pub fn nature(&self) -> &Nature {
        &self.kept.nature
    }

    /// Whether modern requests go to the server as they are: it speaks as they do, or doesn't tell what it speaks and will
    /// answer them itself. One request asks for all that want to know.
    ///
    /// # Errors
    /// When the server can't be reached, or refuses the gateway's credential.
    pub async fn takes_modern(&self, funds: &Funds) -> Result<bool, Rejection> {
        let known = || self.forwards_modern();
        if let Some(modern) = known() {
            return Ok(modern);
        }
        let before = self.kept.probes.load(Ordering::Relaxed);
        let _turn = self.kept.probing.lock().await;
        if let Some(modern) = known() {
            return Ok(modern);
        }
        if self.kept.probes.load(Ordering::Relaxed) != before {
            // Somebody asked just now, in vain.
            return Ok(true);
        }
        let told = self.opener(funds).is_modern().await;
        self.kept.probes.fetch_add(1, Ordering::Relaxed);
        match told {
            Err(Rejection::UpstreamNonsense(_)) => Ok(true),
            told => told,
        }
    }

    /// The same, where it is known.
    pub fn forwards_modern(&self) -> Option<bool> {
        match self.is_stdio() {
            true => Some(false),
            false => self.kept.nature.modern().get(),
        }
    }

    /// Calls that wait for their callers' input.
    pub(crate) fn parked(&self) -> &Parked {
        &self.kept.parked
    }

    /// The sessions of legacy callers that the gateway serves itself.
    pub fn sessions(&self) -> &legacy::Sessions {
        &self.kept.sessions
    }

    /// Opens connections with these funds.
    pub fn opener<'a>(&'a self, funds: &'a Funds) -> Opener<'a> {
        Opener {
            upstream: &self.upstream,
            nature: &self.kept.nature,
            funds,
            idle_timeout: self.idle_timeout,
        }
    }

    /// The connection to a legacy server that one person's modern requests share; `initialize` are the raw parameters that
    /// it is opened with, if it has to be.
    ///
    /// # Errors
    /// When it can't be opened, or the person has too many at work.
    pub async fn shared(&self, key: &Key, initialize: &Bytes, funds: &Funds) -> Result<Arc<Peer>, Rejection> {
        let everybody = Key::default();
        let (key, initialize) = match self.is_shared() {
            true => (&everybody, &opening::as_nobody()),
            false => (key, initialize),
        };
        let open = async || Ok(self.open(&key.person, initialize, funds).await?.peer);
        self.kept.peers.get(key, &self.name, open).await
    }

    /// A connection of a legacy client's own, or of a person's: to the server, or to a process of theirs.
    ///
    /// # Errors
    /// When it can't be opened.
    pub async fn open(&self, person: &Owner, initialize: &Bytes, funds: &Funds) -> Result<Opened, Lost> {
        match self.upstream.processes() {
            Some(processes) => {
                // Some die of being asked what they are: one of them is enough. Where that was in vain nobody waits for
                // another, or for all who came before.
                let before = self.kept.probes.load(Ordering::Relaxed);
                let turn = match self.kept.nature.modern().get() {
                    Some(_) => None,
                    None => Some(self.kept.probing.lock().await),
                };
                let turn = turn.filter(|_| self.kept.probes.load(Ordering::Relaxed) == before);
                let opened = self.opener(funds).process(processes, person, initialize).await;
                if turn.is_some() {
                    self.kept.probes.fetch_add(1, Ordering::Relaxed);
                }
                opened
            }
            None => self.opener(funds).initialize(initialize).await,
        }
    }

    /// A connection for one call.
    ///
    /// # Errors
    /// When it can't be opened.
    pub async fn own(&self, person: &Owner, initialize: &Bytes, funds: &Funds) -> Result<Own, Rejection> {
        Ok(Own::new(self.open(person, initialize, funds).await?.peer))
    }

    /// Whether the server is one process for everybody. It is told of no client, and can ask none: it could not say whom.
    pub fn is_shared(&self) -> bool {
        self.upstream
            .processes()
            .is_some_and(|processes| processes.config().shared)
    }

    /// Whether the server is a command.
    pub fn is_stdio(&self) -> bool {
        self.upstream.processes().is_some()
    }

    /// Ends what nobody needs, for as long as it is polled.
    pub async fn tend_forever(&self) {
        let mut ticks = tokio::time::interval(TENDING);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.kept.peers.end_idle(self.kept_for);
            self.kept.parked.end_expired();
            self.kept.sessions.tend();
        }
    }

    /// Ends all connections, and waits until the servers know.
    pub async fn close(&self) {
        self.kept.parked.clear();
        tokio::join!(self.kept.peers.close(), self.kept.sessions.close());
    }
}

fn name(upstream: &Upstream) -> Arc<str> {
    let endpoints = upstream.endpoints();
    endpoints
        .first()
        .map_or_else(|| "".into(), |first| first.url.as_str().into())
}
