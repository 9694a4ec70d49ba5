//! One person's login in memory: read once for all who come at once, and refreshed once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use super::row::Stored;
use super::{FRESH, HARDLY_FRESH, UNASKED};
use crate::credential::ask::bearer;
use crate::credential::flight::Flight;
use crate::store::StoreError;

/// A row that was read. Has no `Debug`: it holds tokens.
pub(super) struct Held {
    pub(super) version: u64,
    pub(super) stored: Stored,
    /// `Bearer …`, sensitive.
    pub(super) header: HeaderValue,
}

#[derive(Default)]
pub(super) struct Slot {
    memory: Mutex<Memory>,
    /// Held by the one who reads.
    reading: tokio::sync::Mutex<()>,
    pub(super) renewal: Flight,
}

#[derive(Default)]
struct Memory {
    /// When it was read; `None`: never, or it changed since.
    read: Option<Instant>,
    /// Until when it may be used while the store can't be asked.
    asked: Option<Instant>,
    held: Option<Arc<Held>>,
    /// The issuer has given this pair, and the store doesn't have it yet: it is the only one that there is.
    unsaved: bool,
    /// What last took the place of a refused token, and when.
    replaced: Option<(Instant, HeaderValue)>,
}

impl Memory {
    fn fresh(&self) -> bool {
        let usable = self.held.as_ref().is_some_and(|held| !held.stored.over);
        let believed = if usable { FRESH } else { HARDLY_FRESH };
        self.unsaved || self.read.is_some_and(|read| read.elapsed() < believed)
    }
}

impl Slot {
    /// What is known, read by `reading` if that was too long ago.
    pub(super) async fn current(
        &self,
        reading: impl Future<Output = Result<Option<(u64, Stored)>, StoreError>>,
    ) -> Result<Option<Arc<Held>>, StoreError> {
        if let Some(held) = self.known() {
            return Ok(held);
        }
        let _turn = self.reading.lock().await;
        // Somebody else may have read it while this one waited.
        if let Some(held) = self.known() {
            return Ok(held);
        }
        match reading.await {
            Ok(read) => Ok(self.set(read)),
            Err(error) => {
                let memory = self.memory();
                match memory.asked {
                    Some(asked) if asked.elapsed() < UNASKED => Ok(memory.held.clone()),
                    _ => Err(error),
                }
            }
        }
    }

    fn known(&self) -> Option<Option<Arc<Held>>> {
        let memory = self.memory();
        memory.fresh().then(|| memory.held.clone())
    }

    /// This is what the store holds; a pair that it hasn't got yet stays.
    pub(super) fn set(&self, read: Option<(u64, Stored)>) -> Option<Arc<Held>> {
        let mut memory = self.memory();
        if !memory.unsaved {
            memory.keep(read);
        }
        memory.held.clone()
    }

    /// The pair that the issuer has just given, before the store has it.
    pub(super) fn set_unsaved(&self, version: u64, stored: Stored) {
        let mut memory = self.memory();
        // The version is still that of the pair it came of.
        memory.held = None;
        memory.keep(Some((version, stored)));
        memory.unsaved = true;
    }

    /// The store has it, or something newer.
    pub(super) fn saved(&self) {
        let mut memory = self.memory();
        memory.unsaved = false;
        memory.read = None;
    }

    pub(super) fn is_unsaved(&self) -> bool {
        self.memory().unsaved
    }

    /// It was written: what was read before is good for nothing, even if the store can't be asked any more.
    pub(super) fn stale(&self) {
        let mut memory = self.memory();
        (memory.read, memory.asked) = (None, None);
    }

    /// The upstream refused this token: if it is still the one that is known, that is to be read again.
    pub(super) fn suspect(&self, refused: &Held) {
        let mut memory = self.memory();
        if memory.held.as_ref().is_some_and(|held| held.header == refused.header) {
            memory.read = None;
        }
    }

    /// This token took the place of a refused one.
    pub(super) fn replaced(&self, header: &HeaderValue) {
        self.memory().replaced = Some((Instant::now(), header.clone()));
    }

    /// Whether this token did so less than `pause` ago.
    pub(super) fn is_replacement(&self, header: &HeaderValue, pause: Duration) -> bool {
        let lately = |(at, replacement): &(Instant, HeaderValue)| at.elapsed() < pause && replacement == header;
        self.memory().replaced.as_ref().is_some_and(lately)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn keep(&mut self, read: Option<(u64, Stored)>) {
        let now = Instant::now();
        (self.read, self.asked) = (Some(now), Some(now));
        let same = |held: &Arc<Held>| read.as_ref().is_some_and(|(version, _)| *version == held.version);
        if !self.held.as_ref().is_some_and(same) {
            self.held = read.map(|(version, stored)| {
                Arc::new(Held {
                    version,
                    header: bearer(&stored.grant.tokens),
                    stored,
                })
            });
        }
    }
}
