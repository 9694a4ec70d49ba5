//! An identity's keys: fetched once for many, kept while the issuer is away, gone when the issuer withdraws them.
//!
//! 1. One fetch at a time an identity; everybody who needs it waits for the same one, [`PATIENCE`] at most. It goes on
//!    when those who wait go away.
//! 2. An unknown `kid` makes a fetch at most every [`DEBOUNCE`] seconds, so that made-up ones don't turn the gate into
//!    a hammer for the issuer.
//! 3. While the issuer is away old keys serve [`MAX_AGE`] seconds, no longer.
//! 4. When a key is gone after a fetch the generation goes up, which voids every cached verdict of this identity.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use aws_lc_rs::rand;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use url::Url;

use super::fetch;
use super::jwks::{JwksError, KeySet};
use super::{AuthEvent, AuthEvents, SetupError};
use crate::clock::{Clock, UnixSeconds};
use crate::config::{Identity, KeySource};
use crate::oauth::fetch::{FetchError, Fetcher};
use crate::oauth::metadata::{self, DiscoveryError};

/// Seconds between two fetches for unknown key ids.
const DEBOUNCE: u64 = 10;

/// Seconds between two fetches by requests while there are no keys at all.
const DEBOUNCE_WITHOUT_KEYS: u64 = 1;

/// Seconds that keys are believed without the issuer confirming them.
const MAX_AGE: u64 = 24 * 60 * 60;

/// How long a request waits for keys.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two background fetches.
const REFRESH: Duration = Duration::from_secs(5 * 60);

/// Between two background fetches that failed, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// One identity's keys and where they come from.
pub(super) struct KeyRing {
    identity: Arc<str>,
    issuer: String,
    source: Source,
    clock: Clock,
    events: AuthEvents,
    current: ArcSwapOption<Fetched>,
    generation: AtomicU64,
    fetching: Mutex<Fetching>,
}

enum Source {
    /// Never fetched.
    Fixed,
    File(PathBuf),
    Jwks(Fetcher, Url),
    Discovery(Fetcher),
}

/// Keys with the time the issuer last confirmed them.
pub(super) struct Fetched {
    pub(super) keys: KeySet,
    at: UnixSeconds,
}

#[derive(Default)]
struct Fetching {
    flight: Option<Flight>,
    last_attempt: Option<UnixSeconds>,
    last_error: Option<String>,
}

/// One fetch that many wait for; says whether it brought keys.
type Flight = Shared<BoxFuture<'static, bool>>;

/// Why a fetch brought no keys.
#[derive(Debug, thiserror::Error)]
enum RefreshError {
    #[error("{0}")]
    Discovery(#[from] DiscoveryError),
    #[error("no keys at {url}: {source}")]
    Fetch { url: Url, source: FetchError },
    #[error("the keys can't be read: {0}")]
    Jwks(#[from] JwksError),
    #[error("the key file can't be read: {0}")]
    File(#[from] std::io::Error),
}

impl KeyRing {
    /// Reads key and CA files; asks nobody.
    pub(super) fn new(identity: &Identity, clock: Clock, events: AuthEvents) -> Result<Arc<Self>, SetupError> {
        let name = &identity.name;
        let (source, keys) = match &identity.keys {
            KeySource::SharedSecret(secret) => (Source::Fixed, Some(KeySet::shared_secret(secret.expose().as_bytes()))),
            KeySource::JwksFile(path) => {
                let document = std::fs::read(path).map_err(|source| SetupError::File {
                    identity: name.clone(),
                    path: path.clone(),
                    source,
                })?;
                let keys = KeySet::parse(&document).map_err(|error| SetupError::KeySet {
                    identity: name.clone(),
                    path: path.clone(),
                    reason: error.to_string(),
                })?;
                (Source::File(path.clone()), Some(keys))
            }
            KeySource::JwksUri(url) => {
                let fetcher = fetch::fetcher(identity, url)?;
                (Source::Jwks(fetcher, url.clone()), None)
            }
            // Whoever asks about tokens needs keys for ID tokens alone, and only where users log in.
            KeySource::Introspection(_) if identity.login.is_none() => (Source::Fixed, None),
            KeySource::Discovery | KeySource::Introspection(_) => {
                let url = fetch::issuer_url(identity)?;
                (Source::Discovery(fetch::fetcher(identity, &url)?), None)
            }
            // These vouch without keys of an issuer; a ring for one has none, and lets nobody in.
            KeySource::ApiKeys(_) | KeySource::ClientCertificates(_) => (Source::Fixed, None),
        };
        let at = clock.now();
        Ok(Arc::new(Self {
            identity: name.clone(),
            issuer: identity.issuer.clone(),
            source,
            clock,
            events,
            current: ArcSwapOption::from(keys.map(|keys| Arc::new(Fetched { keys, at }))),
            generation: AtomicU64::new(0),
            fetching: Mutex::default(),
        }))
    }

    /// Takes over keys that were fetched already. What is read from files is read anew.
    pub(super) fn inherit(&self, older: &Self) {
        if matches!(self.source, Source::Jwks(..) | Source::Discovery(_)) {
            self.current.store(older.current.load_full());
        }
    }

    /// The keys, unless there are none or they are too old.
    pub(super) fn usable(&self) -> Option<Arc<Fetched>> {
        self.current.load_full().filter(|fetched| self.fresh(fetched))
    }

    /// Whether [`KeyRing::usable`] has keys, and they are those of this generation.
    pub(super) fn confirms(&self, generation: u64) -> bool {
        self.generation() == generation && self.current.load().as_ref().is_some_and(|fetched| self.fresh(fetched))
    }

    /// Goes up when a key is gone. Read it before the keys: a verdict is then never newer than it says.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The keys, waiting for them when there are none.
    pub(super) async fn wait_usable(self: &Arc<Self>) -> Option<Arc<Fetched>> {
        if let Some(fetched) = self.usable() {
            return Some(fetched);
        }
        self.wait(DEBOUNCE_WITHOUT_KEYS).await;
        self.usable()
    }

    /// Fetches because of a `kid` nobody knows, if that wasn't done just now.
    pub(super) async fn wait_newer(self: &Arc<Self>) {
        self.wait(DEBOUNCE).await;
    }

    /// Keeps the keys fresh for ever.
    pub(super) async fn keep_fresh(self: Arc<Self>) {
        if matches!(self.source, Source::Fixed) {
            return;
        }
        let mut backoff = BACKOFF.0;
        loop {
            let brought = match self.flight(0) {
                Some(flight) => flight.await,
                None => false,
            };
            let pause = if brought { REFRESH } else { backoff };
            backoff = if brought {
                BACKOFF.0
            } else {
                (backoff * 2).min(BACKOFF.1)
            };
            tokio::time::sleep(jittered(pause)).await;
        }
    }

    /// Key count, age in seconds and last error.
    pub(super) fn state(&self) -> (usize, Option<u64>, Option<String>) {
        let current = self.current.load();
        let age = current.as_ref().map(|fetched| match self.source {
            Source::Fixed => 0,
            _ => self.clock.now().saturating_sub(fetched.at),
        });
        let keys = current.as_ref().map_or(0, |fetched| fetched.keys.len());
        (keys, age, self.fetching().last_error.clone())
    }

    fn fresh(&self, fetched: &Fetched) -> bool {
        // What the operator put into the configuration or a file is believed until it is replaced.
        matches!(self.source, Source::Fixed | Source::File(_)) || self.clock.now().saturating_sub(fetched.at) <= MAX_AGE
    }

    async fn wait(self: &Arc<Self>, debounce: u64) {
        if let Some(flight) = self.flight(debounce) {
            // Too slow is as good as nothing: the caller looks at what is there.
            let _ = tokio::time::timeout(PATIENCE, flight).await;
        }
    }

    /// The fetch under way, or a new one if the last began at least `debounce` seconds ago.
    fn flight(self: &Arc<Self>, debounce: u64) -> Option<Flight> {
        if matches!(self.source, Source::Fixed) {
            return None;
        }
        let mut fetching = self.fetching();
        if let Some(flight) = &fetching.flight {
            return Some(flight.clone());
        }
        let now = self.clock.now();
        // A clock set back must not close the door for long, hence the distance either way.
        if fetching.last_attempt.is_some_and(|last| now.abs_diff(last) < debounce) {
            return None;
        }
        fetching.last_attempt = Some(now);
        let ring = self.clone();
        // A task of its own: a fetch outlives the request that began it.
        let task = tokio::spawn(async move { ring.refresh().await });
        let flight = task.map(|brought| brought.unwrap_or(false)).boxed().shared();
        fetching.flight = Some(flight.clone());
        Some(flight)
    }

    async fn refresh(&self) -> bool {
        // If the fetch panics, the next one must still be able to begin.
        let landing = Landing(self);
        let result = self.fetch().await;
        let (ok, error) = match result {
            Ok(keys) => {
                self.replace(keys);
                (true, None)
            }
            Err(error) => {
                tracing::warn!(identity = %self.identity, %error, "could not fetch the issuer's keys");
                (false, Some(error.to_string()))
            }
        };
        self.fetching().last_error = error;
        drop(landing);
        (self.events)(AuthEvent::JwksRefresh {
            identity: &self.identity,
            ok,
        });
        ok
    }

    async fn fetch(&self) -> Result<KeySet, RefreshError> {
        let document = match &self.source {
            Source::Fixed => {
                return Err(RefreshError::File(std::io::ErrorKind::Unsupported.into()));
            }
            Source::File(path) => tokio::fs::read(path).await?,
            Source::Jwks(fetcher, url) => get(fetcher, url).await?,
            Source::Discovery(fetcher) => {
                let url = metadata::endpoint(fetcher, &self.issuer, "jwks_uri").await?;
                get(fetcher, &url).await?
            }
        };
        Ok(KeySet::parse(&document)?)
    }

    fn replace(&self, keys: KeySet) {
        let keeps_all = self
            .current
            .load()
            .as_ref()
            .is_none_or(|old| keys.keeps_all_of(&old.keys));
        if keys.len() == 0 {
            tracing::warn!(identity = %self.identity, "the issuer publishes no usable key");
        }
        let at = self.clock.now();
        self.current.store(Some(Arc::new(Fetched { keys, at })));
        if !keeps_all {
            // After the keys: who still reads the old generation gets a verdict that is void at once.
            self.generation.fetch_add(1, Ordering::Release);
            (self.events)(AuthEvent::RightsShaken);
        }
    }

    fn fetching(&self) -> std::sync::MutexGuard<'_, Fetching> {
        // Nothing under this lock can leave it half changed.
        self.fetching.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a flight, however it ended.
struct Landing<'a>(&'a KeyRing);

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.0.fetching().flight = None;
    }
}

async fn get(fetcher: &Fetcher, url: &Url) -> Result<Vec<u8>, RefreshError> {
    fetcher.get(url).await.map_err(|source| RefreshError::Fetch {
        url: url.clone(),
        source,
    })
}

/// Up to a tenth longer, so that replicas don't ask in step.
fn jittered(pause: Duration) -> Duration {
    let mut random = [0u8];
    // Without randomness there is no jitter, which is no harm.
    let _ = rand::fill(&mut random);
    pause + pause.mul_f64(f64::from(random[0]) / 2560.0)
}
