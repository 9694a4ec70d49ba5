//! Verdicts on tokens seen before, so that a token costs one signature check and not one a request.
//!
//! 1. Keyed by the token's SHA-256: a cache dump holds no token.
//! 2. What is kept is the signature's verdict and the claims. Whether the token is for this route, now, and whether its
//!    key still stands, is looked at on every request, by who asks.
//! 3. Gone at `exp`; at most [`MAX_TOKENS`] small tokens, fewer when they are large.

use std::sync::Arc;

use aws_lc_rs::digest;
use moka::sync::Cache;

use super::verify::Verified;
use crate::clock::UnixSeconds;

/// Most tokens kept.
const MAX_TOKENS: u64 = 10_000;

/// Every token counts as at least this many bytes, so that the two bounds are one.
const SMALL_TOKEN: u32 = 2048;

/// SHA-256 of a token.
pub(super) type TokenHash = [u8; 32];

/// The verdict with the identity that gave it, as an index.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) identity: usize,
    pub(super) verified: Arc<Verified>,
    size: u32,
}

/// Verified tokens.
pub(super) struct TokenCache(Cache<TokenHash, Entry>);

impl TokenCache {
    pub(super) fn new() -> Self {
        Self(
            Cache::builder()
                .max_capacity(MAX_TOKENS * u64::from(SMALL_TOKEN))
                .weigher(|_, entry: &Entry| entry.size.max(SMALL_TOKEN))
                .build(),
        )
    }

    pub(super) fn hash(token: &str) -> TokenHash {
        digest::digest(&digest::SHA256, token.as_bytes())
            .as_ref()
            .try_into()
            .expect("SHA-256 has 32 bytes")
    }

    /// The verdict, unless the token has ended since.
    pub(super) fn get(&self, hash: &TokenHash, now: UnixSeconds) -> Option<Entry> {
        let entry = self.0.get(hash)?;
        if now < entry.verified.expires {
            return Some(entry);
        }
        self.0.invalidate(hash);
        None
    }

    /// Keeps a verdict on a token of `size` bytes.
    pub(super) fn put(&self, hash: TokenHash, identity: usize, verified: Arc<Verified>, size: usize) {
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        self.0.insert(
            hash,
            Entry {
                identity,
                verified,
                size,
            },
        );
    }
}
