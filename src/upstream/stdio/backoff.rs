//! How long an owner waits for another process after one that ended soon.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::StdioError;

/// Whoever lives so long has started well.
const SOON: Duration = Duration::from_secs(10);
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);

/// What the last processes of an owner came to.
#[derive(Default)]
pub struct Backoff {
    /// Processes in a row that ended soon.
    failures: u32,
    last: Option<(Instant, Arc<str>)>,
}

impl Backoff {
    /// Whether another may be started.
    ///
    /// # Errors
    /// Not yet.
    pub fn check(&self, now: Instant) -> Result<(), StdioError> {
        match &self.last {
            Some((until, status)) if *until > now => Err(StdioError::Waiting {
                status: status.clone(),
                after: *until - now,
            }),
            _ => Ok(()),
        }
    }

    /// One ended by itself; when another may be started, if that isn't at once.
    pub fn died(&mut self, now: Instant, lived: Duration, status: Arc<str>) -> Option<Instant> {
        if lived >= SOON {
            *self = Self::default();
            return None;
        }
        let wait = FIRST.saturating_mul(1 << self.failures.min(6)).min(LONGEST);
        self.failures += 1;
        let until = now + wait;
        self.last = Some((until, status));
        Some(until)
    }

    /// Whether it would make a difference to the next process: its start, or what becomes of it when it ends soon.
    pub fn matters(&self, now: Instant) -> bool {
        self.last.as_ref().is_some_and(|(until, _)| *until + SOON > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_double_up_to_half_a_minute_and_are_forgotten() {
        let mut backoff = Backoff::default();
        let mut waits = Vec::new();
        for _ in 0..9 {
            assert_eq!(backoff.check(Instant::now()), Ok(()));
            let now = Instant::now();
            let until = backoff.died(now, Duration::from_secs(9), "exit status: 1".into());
            let until = until.expect("it ended soon");
            waits.push((until - now).as_millis());
            let just_before = until - Duration::from_millis(1);
            tokio::time::sleep_until(just_before).await;
            assert_eq!(
                backoff.check(Instant::now()),
                Err(StdioError::Waiting {
                    status: "exit status: 1".into(),
                    after: Duration::from_millis(1)
                })
            );
            tokio::time::sleep_until(until).await;
        }
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        assert!(backoff.matters(Instant::now()));
        tokio::time::sleep(SOON).await;
        assert!(!backoff.matters(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn who_lived_long_enough_is_replaced_at_once() {
        let mut backoff = Backoff::default();
        let now = Instant::now();
        assert!(backoff.died(now, Duration::ZERO, "killed".into()).is_some());
        assert_eq!(backoff.died(now, SOON, "killed".into()), None);
        assert_eq!(backoff.check(now), Ok(()));
        assert!(!backoff.matters(now));
        let again = backoff.died(now, Duration::ZERO, "killed".into());
        assert_eq!(again, Some(now + FIRST), "it begins anew");
    }
}
