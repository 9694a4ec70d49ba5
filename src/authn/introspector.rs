//! Answers of an issuer about tokens, asked for once and kept briefly.
//!
//! 1. Kept by the token's SHA-256, for the configured time: a token that was revoked passes that long at most, and a
//!    positive answer ends at `exp`. No to a token is kept [`KEEP_NO`] seconds at most, since a token may be asked about
//!    before the issuer's replicas know it; no answer at all [`KEEP_FAILURE`].
//! 2. Those who come with a token that is being asked about wait for that answer. If the one who asks goes away, one of
//!    those who wait asks again.
//! 3. At most [`MAX_OPEN`] questions are open at once, and nobody waits longer than [`PATIENCE`]: made-up tokens cost the
//!    issuer no more than that.
//! 4. At most [`MAX_ANSWERS`] small answers are kept, fewer when they are large. What is asked for often stays: a flood
//!    of made-up tokens doesn't push the good ones out (the cache admits by frequency).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moka::future::Cache;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use super::cache::TokenHash;
use super::introspection::{Answer, AskError, Endpoint};
use super::verify::Verified;
use super::{AuthEvent, AuthEvents, AuthnError, SetupError, TokenFault};
use crate::clock::{Clock, UnixSeconds};
use crate::config::{Identity, Introspection};
use crate::policy::Roles;

/// Seconds.
const KEEP_NO: u64 = 10;

/// Seconds.
const KEEP_FAILURE: u64 = 1;

const MAX_OPEN: usize = 64;

/// For one answer, finding out where to ask included.
const PATIENCE: Duration = Duration::from_secs(5);

const MAX_ANSWERS: u64 = 10_000;

/// Every answer counts as at least this many bytes, so that the two bounds are one.
const SMALL_ANSWER: usize = 2048;

/// Between two attempts to find the endpoint, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// One issuer's answers.
pub(super) struct Introspector {
    identity: Arc<str>,
    endpoint: Endpoint,
    /// Seconds.
    keep: u64,
    open: Semaphore,
    cache: Cache<TokenHash, Verdict>,
    roles: Arc<Roles>,
    clock: Clock,
    events: AuthEvents,
    last_error: Mutex<Option<String>>,
}

#[derive(Clone)]
struct Verdict {
    outcome: Result<Arc<Verified>, AuthnError>,
    until: UnixSeconds,
    size: u32,
}

impl Introspector {
    /// Asks nobody yet.
    pub(super) fn new(
        identity: &Arc<Identity>,
        config: &Introspection,
        roles: Arc<Roles>,
        clock: Clock,
        events: AuthEvents,
    ) -> Result<Arc<Self>, SetupError> {
        Ok(Arc::new(Self {
            identity: identity.name.clone(),
            endpoint: Endpoint::new(identity, config)?,
            keep: config.cache.as_secs(),
            open: Semaphore::new(MAX_OPEN),
            cache: Cache::builder()
                .max_capacity(MAX_ANSWERS * SMALL_ANSWER as u64)
                .weigher(|_, verdict: &Verdict| verdict.size)
                // By the clock of the machine, for housekeeping only; `until` decides.
                .time_to_live(config.cache.max(Duration::from_secs(1)))
                .build(),
            roles,
            clock,
            events,
            last_error: Mutex::default(),
        }))
    }

    /// What the issuer says about a token.
    ///
    /// # Errors
    /// It is inactive or no good here, or the issuer has no answer.
    pub(super) async fn verify(&self, token: &str, hash: TokenHash) -> Result<Arc<Verified>, AuthnError> {
        let fresh = |verdict: &Verdict| self.clock.now() < verdict.until;
        let kept = self.cache.get(&hash).await.filter(fresh);
        (self.events)(AuthEvent::Cache {
            cache: "introspection",
            hit: kept.is_some(),
        });
        if let Some(verdict) = kept {
            return verdict.outcome;
        }
        let entry = self.cache.entry(hash);
        let verdict = entry.or_insert_with_if(self.asked(token), |kept| !fresh(kept)).await;
        verdict.into_value().outcome
    }

    /// Finds the endpoint, so that the first caller needn't wait and readiness can be told.
    pub(super) async fn prepare(self: Arc<Self>) {
        let mut pause = BACKOFF.0;
        while let Err(error) = self.endpoint.url().await {
            self.complain(&error);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
        *self.last_error() = None;
    }

    /// The identity's name.
    pub(super) fn identity(&self) -> &Arc<str> {
        &self.identity
    }

    /// Whether tokens can be asked about.
    pub(super) fn is_ready(&self) -> bool {
        self.endpoint.is_known()
    }

    /// Ours, never the issuer's words.
    pub(super) fn last_failure(&self) -> Option<String> {
        self.last_error().clone()
    }

    async fn asked(&self, token: &str) -> Verdict {
        // The time before asking: an answer is never younger than it seems.
        let now = self.clock.now();
        let asking = async {
            let _open = self.open.acquire().await.expect("nobody closes the semaphore");
            self.endpoint.ask(token).await
        };
        let answer = tokio::time::timeout(PATIENCE, asking).await;
        let until = |keep: u64| now.saturating_add(keep);
        match answer.unwrap_or(Err(AskError::Slow)) {
            Ok(answer) => {
                *self.last_error() = None;
                match self.believed(answer, now) {
                    Ok((verified, size)) => Verdict {
                        until: until(self.keep).min(verified.expires),
                        outcome: Ok(verified),
                        size: u32::try_from(size.max(SMALL_ANSWER)).unwrap_or(u32::MAX),
                    },
                    Err(fault) => Verdict {
                        until: until(self.keep.min(KEEP_NO)),
                        outcome: Err(fault.into()),
                        size: SMALL_ANSWER as u32,
                    },
                }
            }
            Err(error) => {
                self.complain(&error);
                let identity = self.identity.clone();
                Verdict {
                    until: until(KEEP_FAILURE),
                    outcome: Err(AuthnError::IssuerUnavailable { identity }),
                    size: SMALL_ANSWER as u32,
                }
            }
        }
    }

    /// What would be made of these claims, had the issuer answered them.
    pub(super) fn supposed(&self, claims: Map<String, Value>) -> Result<Arc<Verified>, TokenFault> {
        let believed = self.believed(Answer::Active(claims, 0), self.clock.now());
        believed.map(|(verified, _)| verified)
    }

    fn believed(&self, answer: Answer, now: UnixSeconds) -> Result<(Arc<Verified>, usize), TokenFault> {
        let Answer::Active(claims, size) = answer else {
            return Err(TokenFault::Inactive);
        };
        let mut verified = self.endpoint.believe(claims, now)?;
        let principal = Arc::get_mut(&mut verified.principal).expect("a new principal has one owner");
        principal.granted = self.roles.of(principal);
        Ok((Arc::new(verified), size))
    }

    /// Logs what is new: a flood of tokens doesn't make a flood of lines.
    fn complain(&self, error: &AskError) {
        let error = error.to_string();
        let mut last = self.last_error();
        if last.as_ref() != Some(&error) {
            tracing::warn!(identity = %self.identity, %error, "could not ask the issuer about a token");
            *last = Some(error);
        }
    }

    fn last_error(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        // Nothing under this lock can leave it half changed.
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
