//! The time of day, injected, so that expiry can be tested without waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since the Unix epoch, the unit of JWT's `NumericDate` (RFC 7519 section 2).
pub type UnixSeconds = u64;

/// Tells the time of day: the machine's, or one that a test moves by hand.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<AtomicU64>>);

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that stands still at `now` until [`Clock::set`] moves it.
    pub fn fixed(now: UnixSeconds) -> Self {
        Self(Some(Arc::new(AtomicU64::new(now))))
    }

    /// Moves a fixed clock (and every clone of it); the system clock ignores this.
    pub fn set(&self, now: UnixSeconds) {
        if let Some(fixed) = &self.0 {
            fixed.store(now, Ordering::Relaxed);
        }
    }

    /// The time now.
    pub fn now(&self) -> UnixSeconds {
        match &self.0 {
            Some(fixed) => fixed.load(Ordering::Relaxed),
            None => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |elapsed| elapsed.as_secs()),
        }
    }
}
