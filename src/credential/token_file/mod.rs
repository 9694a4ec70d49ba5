//! One upstream login that all callers share, in a file that other programs may write too.
//!
//! 1. Before every request the file is looked at, and read again if it changed (r29): what stands there now is what leaves.
//!    A file that can't be read, half written say, changes nothing: the tokens read last stay in use, and it is told.
//! 2. With a login configured the gateway refreshes ahead of the end, as a connection is: one refresh over all processes by
//!    a lock beside the file, after reading it again; who loses adopts what the winner wrote, whoever that was (r34).
//! 3. A pair that can't be written is used from memory and written as soon as it can be, unless the file changes first; the
//!    lock is kept meanwhile, so that nobody presents what is spent. What another program wrote during a refresh stays.
//! 4. After `invalid_grant` nobody asks again until the file has another refresh token.

pub(super) mod file;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use tokio::time::Instant;

use super::ask::bearer;
use super::connection::{AHEAD, State};
use super::flight::{Flight, Underway, Waiting};
use super::recovery::{PAUSE, Recover};
use super::{CredentialError, Making, OutboundCredential};
use crate::clock::{Clock, UnixSeconds};
use crate::config;
use crate::oauth::login::{Login, LoginError};
use crate::oauth::{TokenError, TokenSet};
use crate::telemetry::RouteMetrics;

use file::{Content, FileError, Lock, Stamp};

/// For metrics and the audit.
const KIND: &str = "token_file";
/// How long one waits for another process's refresh.
const PATIENCE: Duration = Duration::from_secs(20);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a pair that can't be written is tried.
const RETRIES: Duration = Duration::from_secs(600);
/// Longest pause between two tries to refresh, in seconds.
const MAX_WAIT: UnixSeconds = 60;

/// Asks the issuer for another pair in place of this one.
type Refresh = Arc<dyn Fn(TokenSet) -> BoxFuture<'static, Result<TokenSet, TokenError>> + Send + Sync>;

/// The file of one route. Has no `Debug`: it holds tokens.
pub(crate) struct TokenFile {
    path: PathBuf,
    /// `None`: others refresh it.
    refresh: Option<Refresh>,
    clock: Clock,
    metrics: Arc<RouteMetrics>,
    memory: Mutex<Memory>,
    renewal: Flight,
    underway: Underway,
}

#[derive(Default)]
struct Memory {
    /// Of what was read, whether it could be used or not; `None`: it is to be read again.
    stamp: Option<Stamp>,
    held: Option<Arc<Held>>,
    /// What the gateway has had replaced: the file may still hold it for a while.
    spent: Option<TokenSet>,
    /// Why the file, or the last refresh, can't be used.
    file_trouble: Option<FileError>,
    refresh_trouble: Option<Trouble>,
    /// What last took the place of a refused token, and when.
    replaced: Option<(Instant, HeaderValue)>,
}

struct Held {
    tokens: TokenSet,
    header: HeaderValue,
    obtained: UnixSeconds,
}

struct Trouble {
    error: String,
    failures: u32,
    /// Nobody tries before; `None`: not until the file has other tokens.
    next: Option<UnixSeconds>,
}

/// What operators see of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) state: State,
    pub(crate) last_error: Option<String>,
    /// Seconds.
    pub(crate) age: Option<u64>,
    pub(crate) remaining: Option<u64>,
}

/// Puts what a login gave into a file; whoever refreshes it, in this process or another, goes on from there.
///
/// # Errors
/// It can't be written, or somebody refreshes it for longer than 20 s.
pub(crate) async fn adopt(path: &Path, tokens: &TokenSet) -> io::Result<()> {
    file::make(path)?;
    let started = Instant::now();
    let _lock = loop {
        if let Some(lock) = Lock::take(path)? {
            break lock;
        }
        if started.elapsed() > PATIENCE {
            return Err(io::ErrorKind::TimedOut.into());
        }
        tokio::time::sleep(FIRST_PAUSE).await;
    };
    file::begin(path, tokens)
}

impl TokenFile {
    /// Of a route's configuration.
    ///
    /// # Errors
    /// What can't be used, in words for the operator.
    pub(crate) fn of(config: &config::TokenFile, making: &Making<'_>) -> Result<Arc<Self>, String> {
        // Without a store nothing leaves, and nothing is refreshed.
        let refresh = match (&config.login, making.connections) {
            (Some(login), Some(connections)) => {
                let (store, clock) = (connections.store().clone(), making.clock.clone());
                let login = Arc::new(Login::new(login, making.servers, making.public_url, store, clock)?);
                let refresh: Refresh = Arc::new(move |tokens| {
                    let login = login.clone();
                    Box::pin(async move { renewed(&login, tokens).await })
                });
                Some(refresh)
            }
            _ => None,
        };
        let metrics = making.metrics.route(making.route);
        let underway = making.connections.map(|connections| connections.underway().clone());
        Ok(Self::new(
            config.path.clone(),
            refresh,
            making.clock.clone(),
            metrics,
            underway.unwrap_or_default(),
        ))
    }

    /// Reads the file; one that isn't there yet may come.
    fn new(
        path: PathBuf,
        refresh: Option<Refresh>,
        clock: Clock,
        metrics: Arc<RouteMetrics>,
        underway: Underway,
    ) -> Arc<Self> {
        let file = Arc::new(Self {
            path,
            refresh,
            clock,
            metrics,
            memory: Mutex::default(),
            renewal: Flight::default(),
            underway,
        });
        file.look();
        file
    }

    /// The credential of one call.
    pub(crate) async fn credential(self: &Arc<Self>) -> Result<OutboundCredential, CredentialError> {
        let Some(held) = self.look() else {
            return Err(self.unusable("holds no token"));
        };
        let now = self.clock.now();
        if held.due().is_none_or(|due| now < due) {
            return Ok(self.outbound(&held));
        }
        let waits = self.waits(now);
        if held.tokens.expires_at.is_some_and(|end| now < end) {
            if self.can_refresh(&held) && !waits {
                drop(self.renew(&held));
            }
            return Ok(self.outbound(&held));
        }
        if !self.can_refresh(&held) {
            return Err(self.unusable("holds a token that is over, and nobody has renewed it"));
        }
        if !waits {
            self.renew(&held).await?;
        }
        match self.look() {
            Some(renewed) if renewed.tokens != held.tokens => Ok(self.outbound(&renewed)),
            _ => Err(CredentialError::Unreachable(
                "the last refresh failed; see /status on the admin port",
            )),
        }
    }

    fn unusable(&self, why: &'static str) -> CredentialError {
        let error = CredentialError::File(why);
        self.metrics.credential_failure(KIND, error.reason());
        error
    }

    /// What operators see.
    pub(crate) fn health(&self) -> Health {
        let held = self.look();
        let now = self.clock.now();
        let memory = self.memory();
        let ends = memory
            .refresh_trouble
            .as_ref()
            .is_some_and(|trouble| trouble.next.is_none());
        let troubled = memory.file_trouble.is_some() || memory.refresh_trouble.is_some();
        let over = held
            .as_ref()
            .is_some_and(|held| held.tokens.expires_at.is_some_and(|end| end <= now));
        let state = match &held {
            None => State::NeedsAuth,
            Some(_) if ends => State::NeedsAuth,
            Some(held) if over && !self.can_refresh(held) => State::NeedsAuth,
            Some(_) if troubled => State::Failing,
            Some(held) if held.tokens.expires_at.is_some() && !self.can_refresh(held) => State::Expiring,
            Some(_) => State::Connected,
        };
        let file = memory.file_trouble.as_ref().map(FileError::to_string);
        let refresh = memory.refresh_trouble.as_ref().map(|trouble| trouble.error.clone());
        let age = held.as_ref().map(|held| now.saturating_sub(held.obtained));
        let end = held.as_ref().and_then(|held| held.tokens.expires_at);
        Health {
            state,
            last_error: file.or(refresh),
            age,
            remaining: end.map(|end| end.saturating_sub(now)),
        }
    }

    fn can_refresh(&self, held: &Held) -> bool {
        self.refresh.is_some() && held.tokens.refresh_token.is_some()
    }

    fn waits(&self, now: UnixSeconds) -> bool {
        let memory = self.memory();
        let trouble = memory.refresh_trouble.as_ref();
        // What is further ahead was told before the clock was set back.
        let lasts = |next: UnixSeconds| now < next && next - now <= MAX_WAIT;
        trouble.is_some_and(|trouble| trouble.next.is_none_or(lasts))
    }

    fn outbound(self: &Arc<Self>, held: &Arc<Held>) -> OutboundCredential {
        OutboundCredential {
            header: Some((AUTHORIZATION, held.header.clone())),
            kind: KIND,
            recovery: Some(Arc::new(Lent {
                file: self.clone(),
                held: held.clone(),
            })),
        }
    }

    /// What the file holds now, as far as that can be told.
    fn look(&self) -> Option<Arc<Held>> {
        let stamp = Stamp::of(&self.path).ok();
        let mut memory = self.memory();
        if stamp.is_none() || memory.stamp != stamp {
            // Few bytes of a local file: less than handing it to another thread.
            memory.take(file::read(&self.path), &self.path);
        }
        memory.held.clone()
    }

    fn renew(self: &Arc<Self>, held: &Arc<Held>) -> Waiting {
        self.renewal.join(&self.underway, || {
            let (file, held) = (self.clone(), held.clone());
            async move { file.refresh(&held).await }
        })
    }

    async fn refresh(self: &Arc<Self>, old: &Held) -> Result<(), CredentialError> {
        let Some(refresh) = self.refresh.clone() else {
            return Ok(());
        };
        let unwritten = || CredentialError::File("doesn't have the last pair yet");
        self.memory().stamp = None;
        self.look();
        if self.memory().spent.is_some() {
            return Err(unwritten());
        }
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        let lock = loop {
            let lock = Lock::take(&self.path).map_err(|error| {
                tracing::error!(path = %self.path.display(), %error, "the token file can't be locked, and isn't refreshed");
                CredentialError::File("can't be locked, and isn't refreshed")
            })?;
            if let Some(lock) = lock {
                break lock;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            if self.look().is_none_or(|held| held.tokens != old.tokens) {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                return Err(CredentialError::Unreachable(
                    "another process refreshes it, and takes too long",
                ));
            }
        };
        // Read again: whoever had the lock before may have written.
        self.memory().stamp = None;
        if self.look().is_none_or(|held| held.tokens != old.tokens) {
            return Ok(());
        }
        let content = file::read(&self.path).map_err(|_| CredentialError::File("can't be read"))?;
        if content.tokens != old.tokens {
            return Err(unwritten());
        }
        let now = self.clock.now();
        let asked = Instant::now();
        let answer = refresh(old.tokens.clone()).await;
        let result = answer.as_ref().map_or_else(TokenError::result, |_| "ok");
        self.metrics.token_exchange("refresh_token", result, asked.elapsed());
        match answer {
            Ok(tokens) => {
                self.keep(content, tokens, now, lock);
                Ok(())
            }
            Err(error) => self.refused(old, error, now),
        }
    }

    /// Uses the new pair at once, and writes it.
    fn keep(self: &Arc<Self>, old: Content, tokens: TokenSet, now: UnixSeconds, lock: Lock) {
        let tokens = TokenSet {
            refresh_token: tokens.refresh_token.or_else(|| old.tokens.refresh_token.clone()),
            scopes: tokens.scopes.or_else(|| old.tokens.scopes.clone()),
            ..tokens
        };
        if self.is_others(&old) {
            return;
        }
        {
            let mut memory = self.memory();
            memory.spent = Some(old.tokens.clone());
            memory.hold(tokens.clone(), now);
        }
        let written = old.replace(&self.path, &tokens);
        if let Err(error) = written {
            tracing::error!(
                path = %self.path.display(), %error,
                "a refreshed token can't be written to its file, and the old one is spent: it is used from memory until it can"
            );
            let (file, piece) = (self.clone(), self.underway.begin());
            tokio::spawn(async move {
                file.keep_trying(old, tokens).await;
                drop((lock, piece));
            });
        }
    }

    /// Whether another program has put its own tokens in place of these.
    fn is_others(&self, old: &Content) -> bool {
        file::read(&self.path).is_ok_and(|now| now.tokens != old.tokens)
    }

    /// Of who has the lock.
    async fn keep_trying(&self, old: Content, tokens: TokenSet) {
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        while started.elapsed() < RETRIES {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            // Somebody else's newer pair stays.
            if self.is_others(&old) {
                return;
            }
            if old.replace(&self.path, &tokens).is_ok() {
                tracing::info!(path = %self.path.display(), "a refreshed token is in its file at last");
                return;
            }
        }
        tracing::error!(path = %self.path.display(), "a refreshed token was never written to its file; log in again");
    }

    fn refused(&self, old: &Held, error: TokenError, now: UnixSeconds) -> Result<(), CredentialError> {
        // r13: another program may have been faster, without the lock.
        self.memory().stamp = None;
        if self.look().is_none_or(|held| held.tokens != old.tokens) {
            return Ok(());
        }
        let ends = error == TokenError::Rejected { error: "invalid_grant" };
        self.metrics.credential_failure("refresh_token", error.reason());
        tracing::warn!(path = %self.path.display(), %error, ends, "a token file can't be refreshed");
        let mut memory = self.memory();
        let failures = memory
            .refresh_trouble
            .as_ref()
            .map_or(0, |trouble| trouble.failures)
            .saturating_add(1);
        let wait = 1_u64
            .checked_shl(failures.min(16) - 1)
            .unwrap_or(MAX_WAIT)
            .min(MAX_WAIT);
        memory.refresh_trouble = Some(Trouble {
            error: error.to_string(),
            failures,
            next: (!ends).then(|| now.saturating_add(wait)),
        });
        Err(error.into())
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a file holds no tokens, for people.
pub(crate) fn trouble(path: &Path) -> Option<String> {
    file::read(path).err().map(|error| error.to_string())
}

/// The login's issuer is found first, on whichever host it lives (r30).
async fn renewed(login: &Login, tokens: TokenSet) -> Result<TokenSet, TokenError> {
    let grant = login.grant_of(tokens).await.map_err(|error| match error {
        LoginError::Token(error) => error,
        error => {
            tracing::warn!(%error, "the issuer of a token file can't be found");
            TokenError::Unreachable("the issuer can't be found, or doesn't know the gateway")
        }
    })?;
    login.refresh(&grant).await
}

impl Memory {
    /// What was read of the file.
    fn take(&mut self, read: Result<Content, FileError>, path: &Path) {
        match read {
            Ok(content) => {
                self.file_trouble = None;
                self.stamp = content.stamp;
                if self.spent.as_ref() == Some(&content.tokens) {
                    return;
                }
                self.spent = None;
                if self.held.as_ref().is_none_or(|held| held.tokens != content.tokens) {
                    self.hold(content.tokens, content.modified);
                }
            }
            Err(error) => {
                if self.file_trouble.as_ref() != Some(&error) {
                    let meanwhile = match self.held {
                        Some(_) => "what it held before stays in use",
                        None => "calls are refused until it holds a token",
                    };
                    tracing::error!(path = %path.display(), %error, "the token file can't be used; {meanwhile}");
                }
                // Looked at again with every request: it is in somebody's hands.
                self.stamp = None;
                self.file_trouble = Some(error);
            }
        }
    }

    fn hold(&mut self, tokens: TokenSet, obtained: UnixSeconds) {
        self.refresh_trouble = None;
        self.held = Some(Arc::new(Held {
            header: bearer(&tokens),
            tokens,
            obtained,
        }));
    }
}

impl Held {
    /// When to refresh: as for a connection.
    fn due(&self) -> Option<UnixSeconds> {
        let end = self.tokens.expires_at?;
        let ahead = (end.saturating_sub(self.obtained) / 2).min(AHEAD);
        Some(end.saturating_sub(ahead))
    }
}

/// A token that was handed out.
struct Lent {
    file: Arc<TokenFile>,
    held: Arc<Held>,
}

impl Recover for Lent {
    fn recover(&self) -> BoxFuture<'_, Result<Option<OutboundCredential>, CredentialError>> {
        Box::pin(async {
            let (file, held) = (&self.file, &self.held);
            file.memory().stamp = None;
            let Some(mut now) = file.look() else {
                return Ok(None);
            };
            if now.header == held.header {
                let lately = |(at, header): &(Instant, HeaderValue)| at.elapsed() < PAUSE && *header == held.header;
                let replaced = file.memory().replaced.as_ref().is_some_and(lately);
                if replaced || !file.can_refresh(&now) || file.waits(file.clock.now()) {
                    return Ok(None);
                }
                file.renew(&now).await?;
                let Some(renewed) = file.look() else {
                    return Ok(None);
                };
                now = renewed;
                file.memory().replaced = Some((Instant::now(), now.header.clone()));
            }
            let another = now.header != held.header;
            Ok(another.then(|| file.outbound(&now)))
        })
    }
}
