//! One refresh of one pair of tokens, over tasks, processes and replicas.
//!
//! 1. In a process, all who need it wait for one task. It is nobody's of them: who goes away ends nothing, and if it dies
//!    all are told (r28).
//! 2. Over processes, a lease: the refresh token is presented by who has it, after reading the row again, and never twice
//!    (r12, r34). The others read the row until it has another pair, for as long as [`PATIENCE`].
//! 3. The new pair is written over the row that held the presented one, and no other: a disconnect or another login of
//!    meanwhile wins.
//! 4. A pair that can't be written is kept in memory and written as soon as it can be: the issuer has forgotten the old
//!    one.
//! 5. `invalid_grant` ends a connection only if the row still holds what was presented (r13).

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::row::Stored;
use super::slot::{Held, Slot};
use super::{Binding, Connections, Place};
use crate::credential::flight::Waiting;
use crate::credential::{CredentialError, NotConnectedReason, health};
use crate::oauth::TokenError;
use crate::store::{Lease, StoreError, When};

/// How long one waits for another replica's refresh.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than [`ASKING`] with reading before and writing after it; who dies with it holds the others up for no more than this.
pub(super) const LEASE: Duration = Duration::from_secs(30);
/// How long asking the issuer may take, with all that leads to it: ended before the lease is, so that nobody presents a token
/// beside another who has the lease by then.
const ASKING: Duration = Duration::from_secs(15);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl Connections {
    /// The refresh of this pair: the one that is under way, or a new one. `refused`: the upstream doesn't take it.
    pub(super) fn renewal(
        self: &Arc<Self>,
        binding: &Arc<Binding>,
        place: &Place,
        slot: &Arc<Slot>,
        held: &Arc<Held>,
        refused: bool,
    ) -> Waiting {
        slot.renewal.join(&self.underway, || {
            let (connections, binding, place) = (self.clone(), binding.clone(), place.clone());
            let (slot, held) = (slot.clone(), held.clone());
            async move { connections.renew(&binding, &place, &slot, &held.stored, refused).await }
        })
    }

    async fn renew(
        self: &Arc<Self>,
        binding: &Binding,
        place: &Place,
        slot: &Arc<Slot>,
        old: &Stored,
        refused: bool,
    ) -> Result<(), CredentialError> {
        let unwritable = |error: StoreError| {
            tracing::error!(route = &*binding.route, %error, "a connection can't be refreshed without its store");
            CredentialError::Unreachable("the store of connections")
        };
        if slot.is_unsaved() {
            return Err(CredentialError::Unreachable("the store of connections"));
        }
        // No joined text could be another's: a person is hexadecimal.
        let name = format!("connection {} {}", place.person.as_str(), place.route);
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        let lease = loop {
            if let Some(lease) = self.store.lease(&name, LEASE).await.map_err(unwritable)? {
                break lease;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            if self.is_settled(place, slot, old).await.map_err(unwritable)? {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                return Err(CredentialError::Unreachable(
                    "another replica refreshes it, and takes too long",
                ));
            }
        };
        let mut lease = Some(lease);
        let renewed = self.renew_leased(binding, place, slot, old, refused, &mut lease).await;
        if let Some(lease) = lease {
            lease.release().await;
        }
        renewed.map_err(unwritable)?
    }

    /// Whether somebody else has dealt with these tokens.
    async fn is_settled(&self, place: &Place, slot: &Slot, old: &Stored) -> Result<bool, StoreError> {
        let read = self.read(place).await?;
        let now = self.clock.now();
        let settled = read
            .as_ref()
            .is_none_or(|(_, stored)| !stored.same_tokens(old) || stored.over || stored.waits(now));
        if settled {
            slot.set(read);
        }
        Ok(settled)
    }

    async fn renew_leased(
        self: &Arc<Self>,
        binding: &Binding,
        place: &Place,
        slot: &Arc<Slot>,
        old: &Stored,
        refused: bool,
        lease: &mut Option<Lease>,
    ) -> Result<Result<(), CredentialError>, StoreError> {
        let Some((version, stored)) = self.read(place).await? else {
            slot.set(None);
            return Ok(Ok(()));
        };
        let now = self.clock.now();
        // The winner's pair, another's failure of just now, a login for another upstream: who asked will look at it.
        let others = !stored.same_tokens(old) || stored.over || stored.waits(now) || !binding.fits(&stored.grant);
        if others || stored.grant.tokens.refresh_token.is_none() {
            slot.set(Some((version, stored)));
            return Ok(Ok(()));
        }
        // Nothing is written down for this, either.
        if !binding.can_refresh(&stored.grant) {
            slot.set(Some((version, stored)));
            return Ok(Err(binding.lacking(NotConnectedReason::NeedsAuth)));
        }
        let asked = Instant::now();
        let answer = tokio::time::timeout(ASKING, (binding.renew)(stored.grant.clone())).await;
        let answer = answer.unwrap_or(Err(TokenError::Unreachable("no answer in time")));
        let metrics = self.metrics.route(&binding.route);
        let result = answer.as_ref().map_or_else(TokenError::result, |_| "ok");
        metrics.token_exchange("refresh_token", result, asked.elapsed());
        health::note(&metrics, &answer);
        match answer {
            Ok(tokens) => {
                let renewed = stored.clone().renewed(tokens, now, refused);
                self.keep(place, slot, version, stored, renewed, lease).await;
                Ok(Ok(()))
            }
            Err(error) => self.refused(binding, place, slot, &stored, error).await,
        }
    }

    /// Writes the new pair over the one it came of.
    async fn keep(
        self: &Arc<Self>,
        place: &Place,
        slot: &Arc<Slot>,
        version: u64,
        old: Stored,
        renewed: Stored,
        lease: &mut Option<Lease>,
    ) {
        slot.set_unsaved(version, renewed.clone());
        if let Err(error) = self.save(place, &old, &renewed).await {
            tracing::error!(
                route = &*place.route, %error,
                "a refreshed connection can't be written down, and its old tokens are spent: it is kept in memory until it can"
            );
            let (connections, place, slot) = (self.clone(), place.clone(), slot.clone());
            // While it has the lease no other replica presents what is spent.
            let (lease, piece) = (lease.take(), self.underway.begin());
            tokio::spawn(async move {
                connections.save_later(&place, &slot, &old, &renewed).await;
                drop((lease, piece));
            });
            return;
        }
        slot.saved();
    }

    async fn save(&self, place: &Place, old: &Stored, renewed: &Stored) -> Result<(), StoreError> {
        loop {
            let Some((version, stored)) = self.read(place).await? else {
                // Disconnected meanwhile.
                return Ok(());
            };
            if !stored.same_tokens(old) {
                return Ok(());
            }
            // What was noted about the old pair meanwhile is as true of the new one.
            let mut merged = renewed.clone();
            merged.wanted = stored.wanted;
            if self.put(place, &merged, When::Version(version)).await?.is_some() {
                return Ok(());
            }
        }
    }

    /// Until it is written, or something newer: there is no other such pair, and without the store nobody gets one.
    async fn save_later(&self, place: &Place, slot: &Arc<Slot>, old: &Stored, renewed: &Stored) {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            if self.save(place, old, renewed).await.is_ok() {
                tracing::info!(route = &*place.route, "a refreshed connection is written down at last");
                return slot.saved();
            }
            // Whoever asks finds this one, however long nobody did.
            self.slots.insert(place.clone(), slot.clone());
        }
    }

    /// What the issuer's refusal, or its silence, means for the connection.
    async fn refused(
        &self,
        binding: &Binding,
        place: &Place,
        slot: &Slot,
        presented: &Stored,
        error: TokenError,
    ) -> Result<Result<(), CredentialError>, StoreError> {
        self.metrics
            .route(&binding.route)
            .credential_failure("refresh_token", error.reason());
        let ends = match error {
            TokenError::Rejected { error: "invalid_grant" } => true,
            // It can only be made anew, and the grant was the old one's.
            TokenError::Rejected {
                error: "invalid_client" | "unauthorized_client",
            } => binding.is_forgotten(&presented.grant),
            _ => false,
        };
        let (text, now) = (error.to_string(), self.clock.now());
        tracing::warn!(
            route = &*binding.route,
            error = text,
            ends,
            "a connection can't be refreshed"
        );
        let held = self
            .note(place, slot, presented, |stored| match ends {
                true => stored.ended(&text),
                false => stored.troubled(text.clone(), now),
            })
            .await?;
        // r13: the row may hold the pair of somebody who was faster.
        if held.is_some_and(|held| !held.stored.same_tokens(presented)) {
            return Ok(Ok(()));
        }
        Ok(Err(match ends {
            true => binding.lacking(NotConnectedReason::NeedsAuth),
            false => error.into(),
        }))
    }
}
