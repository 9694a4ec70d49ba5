//! How often each caller may call: a bucket a caller, that fills at the configured rate.
//!
//! A bucket that is full again says nothing, so it is dropped. When there are more callers than the table may hold all the
//! same, those who come share buckets until there is room: a hostile crowd gets stricter limits, not our memory.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

use super::places::Who;
use crate::config::Rate;

/// Callers with a bucket of their own.
const MAX_BUCKETS: usize = 65_536;
/// Buckets of those who share one.
const CROWD: u16 = 4_096;
/// Calls between two looks at how many there are.
const SWEEP_EVERY: usize = 4_096;

/// One route's buckets.
pub struct Buckets {
    limiter: RateLimiter<Who, DashMapStateStore<Who>, Since, NoOpMiddleware<Nanos>>,
    clock: Since,
    /// The time a whole bucket takes to fill.
    filling: Duration,
    calls: AtomicUsize,
    crowded: AtomicBool,
    hasher: RandomState,
    room: usize,
}

/// tokio's time, so that tests can move it.
#[derive(Clone, Debug)]
struct Since(Instant);

impl Clock for Since {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.elapsed().into()
    }
}

impl Buckets {
    /// Full buckets.
    pub fn new(rate: Rate) -> Self {
        Self::with_room(rate, MAX_BUCKETS)
    }

    fn with_room(rate: Rate, room: usize) -> Self {
        let every = rate.per / rate.count.get();
        let quota = Quota::with_period(every)
            .expect("at most a million a second is configured")
            .allow_burst(rate.burst);
        let clock = Since(Instant::now());
        Self {
            limiter: RateLimiter::new(quota, DashMapStateStore::default(), clock.clone()),
            clock,
            filling: every * rate.burst.get(),
            calls: AtomicUsize::new(0),
            crowded: AtomicBool::new(false),
            hasher: RandomState::new(),
            room,
        }
    }

    /// Takes `messages` from a caller's bucket.
    ///
    /// # Errors
    /// There are not so many in it, and none is taken: how long until there will be. Where a whole bucket is too small
    /// that is the time it takes to fill, and a smaller batch is what will pass.
    pub fn take(&self, who: Who, messages: NonZeroU32) -> Result<(), Duration> {
        if self.calls.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1 {
            self.sweep();
        }
        let who = if self.crowded.load(Ordering::Relaxed) {
            let shared = self.hasher.hash_one(who) % u64::from(CROWD);
            Who::Crowd(u16::try_from(shared).expect("less than CROWD"))
        } else {
            who
        };
        match self.limiter.check_key_n(&who, messages) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(until)) => Err(until.wait_time_from(self.clock.now())),
            Err(_) => Err(self.filling),
        }
    }

    fn sweep(&self) {
        self.limiter.retain_recent();
        self.crowded.store(self.limiter.len() >= self.room, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(count: u32, per: Duration, burst: u32) -> Rate {
        let positive = |number| NonZeroU32::new(number).expect("positive");
        Rate {
            count: positive(count),
            per,
            burst: positive(burst),
        }
    }

    const ONE: NonZeroU32 = NonZeroU32::MIN;
    const SECOND: Duration = Duration::from_secs(1);

    fn who(number: u32) -> Who {
        Who::at(std::net::Ipv4Addr::from_bits(number).into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_empties_and_fills() {
        // Rate, burst; how many pass at once; the wait that is named.
        let table = [
            (rate(10, SECOND, 1), 1, Duration::from_millis(100)),
            (rate(10, SECOND, 5), 5, Duration::from_millis(100)),
            (rate(1, SECOND, 3), 3, SECOND),
            (rate(6, 60 * SECOND, 2), 2, 10 * SECOND),
            (rate(1, 60 * SECOND, 1), 1, 60 * SECOND),
        ];
        for (rate, burst, wait) in table {
            let buckets = Buckets::new(rate);
            for call in 0..burst {
                assert_eq!(buckets.take(who(1), ONE), Ok(()), "{rate:?}, call {call}");
            }
            assert_eq!(buckets.take(who(1), ONE), Err(wait), "{rate:?}");
            assert_eq!(buckets.take(who(2), ONE), Ok(()), "another's bucket is another");
            tokio::time::advance(wait - Duration::from_millis(1)).await;
            assert!(buckets.take(who(1), ONE).is_err(), "{rate:?}: too early");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert_eq!(buckets.take(who(1), ONE), Ok(()), "{rate:?}: one is there again");
            assert!(buckets.take(who(1), ONE).is_err(), "{rate:?}: and only one");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_takes_its_members_or_nothing() {
        let buckets = Buckets::new(rate(1, SECOND, 5));
        let batch = |size| NonZeroU32::new(size).expect("positive");
        assert_eq!(
            buckets.take(who(1), batch(6)),
            Err(5 * SECOND),
            "more than a bucket holds"
        );
        assert_eq!(buckets.take(who(1), batch(3)), Ok(()));
        assert_eq!(buckets.take(who(1), batch(3)), Err(SECOND));
        assert_eq!(buckets.take(who(1), batch(2)), Ok(()), "what was refused took nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn idle_callers_are_forgotten_and_a_crowd_shares() {
        let room = 1_000;
        let buckets = Buckets::with_room(rate(1, SECOND, 1), room);
        for number in 0..100_000 {
            let _ = buckets.take(who(number), ONE);
        }
        let most = room + SWEEP_EVERY + usize::from(CROWD);
        assert!(buckets.limiter.len() <= most, "{} of {most}", buckets.limiter.len());
        assert!(buckets.crowded.load(Ordering::Relaxed));
        // Everybody is idle for as long as a bucket takes to fill.
        tokio::time::advance(2 * SECOND).await;
        buckets.sweep();
        assert_eq!(buckets.limiter.len(), 0);
        assert_eq!(buckets.take(who(1), ONE), Ok(()));
        assert!(buckets.take(who(1), ONE).is_err(), "its own again");
        assert_eq!(buckets.take(who(2), ONE), Ok(()));
    }
}
