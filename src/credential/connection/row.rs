//! What is kept of one person's login at one upstream, sealed.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::{PAUSE, State};
use crate::clock::UnixSeconds;
use crate::oauth::{Grant, TokenSet};

/// Scopes that are remembered as wanted.
pub(super) const MAX_SCOPES: usize = 32;
/// Longest pause between two tries to refresh, in seconds.
const MAX_PAUSE: UnixSeconds = 60;

/// One row. Has no `Debug`: it holds tokens.
#[derive(Clone)]
pub(super) struct Stored {
    pub(super) grant: Grant,
    /// When the person logged in.
    pub(super) since: UnixSeconds,
    /// When the tokens were got.
    pub(super) obtained: UnixSeconds,
    /// Scopes that the upstream asked for since the login.
    pub(super) wanted: Vec<String>,
    /// Scopes that the login asked for because the upstream had: asking again would give nothing new.
    pub(super) asked: Vec<String>,
    /// It can't be renewed any more: the person has to log in again.
    pub(super) over: bool,
    pub(super) trouble: Option<Trouble>,
    /// When these tokens took the place of refused ones.
    pub(super) replaced: Option<UnixSeconds>,
}

/// Why the last refresh failed.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Trouble {
    /// Of our own words.
    pub(super) error: String,
    pub(super) failures: u32,
    /// Nobody tries before.
    pub(super) next: UnixSeconds,
}

#[derive(Serialize, Deserialize)]
struct Written<'a> {
    #[serde(borrow)]
    grant: &'a RawValue,
    since: UnixSeconds,
    obtained: UnixSeconds,
    #[serde(default)]
    wanted: Vec<String>,
    #[serde(default)]
    asked: Vec<String>,
    #[serde(default)]
    over: bool,
    #[serde(default)]
    trouble: Option<Trouble>,
    #[serde(default)]
    replaced: Option<UnixSeconds>,
}

impl Stored {
    /// A login of just now.
    pub(super) fn new(grant: Grant, asked: Vec<String>, now: UnixSeconds) -> Self {
        Self {
            grant,
            since: now,
            obtained: now,
            wanted: Vec::new(),
            asked,
            over: false,
            trouble: None,
            replaced: None,
        }
    }

    pub(super) fn to_json(&self) -> Zeroizing<Vec<u8>> {
        let grant = Zeroizing::new(self.grant.to_json());
        let written = Written {
            grant: serde_json::from_slice(&grant).expect("a grant is written as JSON"),
            since: self.since,
            obtained: self.obtained,
            wanted: self.wanted.clone(),
            asked: self.asked.clone(),
            over: self.over,
            trouble: self.trouble.clone(),
            replaced: self.replaced,
        };
        Zeroizing::new(serde_json::to_vec(&written).expect("texts and numbers can be written"))
    }

    /// `None`: no row of ours says that.
    pub(super) fn from_json(bytes: &[u8]) -> Option<Self> {
        let written: Written<'_> = serde_json::from_slice(bytes).ok()?;
        Some(Self {
            grant: Grant::from_json(written.grant.get().as_bytes())?,
            since: written.since,
            obtained: written.obtained,
            wanted: written.wanted,
            asked: written.asked,
            over: written.over,
            trouble: written.trouble,
            replaced: written.replaced,
        })
    }

    pub(super) fn state(&self) -> State {
        let tokens = &self.grant.tokens;
        if self.over {
            State::NeedsAuth
        } else if self.trouble.is_some() {
            State::Failing
        } else if tokens.refresh_token.is_none() && tokens.expires_at.is_some() {
            State::Expiring
        } else {
            State::Connected
        }
    }

    /// The pair that a refresh gave, in place of the one that was presented for it; `refused`: because the upstream didn't
    /// take that.
    pub(super) fn renewed(mut self, tokens: TokenSet, now: UnixSeconds, refused: bool) -> Self {
        let old = &mut self.grant.tokens;
        // An issuer that doesn't rotate leaves the refresh token out (RFC 6749 section 6), r14; and scopes that didn't
        // change (section 5.1).
        let refresh_token = tokens.refresh_token.or(old.refresh_token.take());
        let scopes = tokens.scopes.or(old.scopes.take());
        let id_token = tokens.id_token.or(old.id_token.take());
        *old = TokenSet {
            access_token: tokens.access_token,
            refresh_token,
            expires_at: tokens.expires_at,
            scopes,
            id_token,
        };
        self.obtained = now;
        self.trouble = None;
        self.replaced = refused.then_some(now);
        self
    }

    /// One more failure that may pass: 1, 2, 4 … 60 seconds until the next try.
    pub(super) fn troubled(mut self, error: String, now: UnixSeconds) -> Self {
        let failures = self.trouble.map_or(0, |trouble| trouble.failures).saturating_add(1);
        let pause = 1_u64
            .checked_shl(failures.min(16) - 1)
            .unwrap_or(MAX_PAUSE)
            .min(MAX_PAUSE);
        self.trouble = Some(Trouble {
            error,
            failures,
            next: now.saturating_add(pause),
        });
        self
    }

    /// From now on only another login helps.
    pub(super) fn ended(mut self, error: &str) -> Self {
        self.over = true;
        self.trouble = Some(Trouble {
            error: error.to_owned(),
            failures: 0,
            next: 0,
        });
        self
    }

    /// Whether the last refresh failed so lately that nobody tries yet.
    pub(super) fn waits(&self, now: UnixSeconds) -> bool {
        // What is further ahead was told by another clock, or by this one before it was set back.
        let lasts = |next: UnixSeconds| now < next && next - now <= MAX_PAUSE;
        self.trouble.as_ref().is_some_and(|trouble| lasts(trouble.next))
    }

    /// Whether these tokens took the place of refused ones just now, wherever that was: the next ones would be refused, too.
    pub(super) fn is_replacement(&self, now: UnixSeconds) -> bool {
        self.replaced.is_some_and(|at| at <= now && now - at < PAUSE.as_secs())
    }

    /// Whether both hold the same pair of tokens, whatever else is noted.
    pub(super) fn same_tokens(&self, other: &Self) -> bool {
        let (one, other) = (&self.grant.tokens, &other.grant.tokens);
        one.access_token == other.access_token && one.refresh_token == other.refresh_token
    }

    /// When to refresh: 120 s ahead, or in the middle of a life that is shorter than twice that. `None`: not by time.
    pub(super) fn due(&self) -> Option<UnixSeconds> {
        let end = self.grant.tokens.expires_at?;
        let ahead = (end.saturating_sub(self.obtained) / 2).min(super::AHEAD);
        Some(end.saturating_sub(ahead))
    }

    /// Whether the upstream was asked for nothing that the person wasn't asked for already.
    pub(super) fn has(&self, scope: &str) -> bool {
        let granted = self.grant.tokens.scopes.as_deref().unwrap_or_default();
        granted.iter().chain(&self.asked).any(|known| known == scope)
    }
}
