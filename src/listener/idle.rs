//! How long a connection may hold its place without anything to do.
//!
//! 1. A connection is busy from a request's last header to the end of its reply ([`Busy`] travels with both), and while
//!    its peer still has to take what is written to it. Whatever else it does (nothing at all, the beginning of a preface
//!    or of headers, HTTP/2's pings and settings) is no sign of life: a place is for requests.
//! 2. Not busy for the time that headers have, it is told to go: HTTP/2 by GOAWAY (RFC 9113 section 6.8), after which
//!    a request already on its way is still answered, and HTTP/1 by its end.
//! 3. What doesn't go within a second is cut; but who still has parts of replies to take by HTTP/2 has as long for it as
//!    anybody ([`STALL`](super::stall::STALL)).
//!
//! A request costs two atomic additions and one look at the clock; a connection wakes up once in the time that headers
//! have.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Knows whether a connection has anything to do.
#[derive(Clone, Debug)]
pub struct Idle(Arc<State>);

/// Something that the connection has to do, until it is dropped.
#[derive(Debug)]
pub struct Busy(Arc<State>);

#[derive(Debug)]
struct State {
    began: Instant,
    busy: AtomicUsize,
    /// Milliseconds from the beginning to when something was last done.
    since: AtomicU64,
}

impl Idle {
    /// Idle from now on.
    pub fn new() -> Self {
        Self(Arc::new(State {
            began: Instant::now(),
            busy: AtomicUsize::new(0),
            since: AtomicU64::new(0),
        }))
    }

    /// Busy for as long as the result lives.
    pub fn busy(&self) -> Busy {
        self.0.busy.fetch_add(1, Ordering::Relaxed);
        Busy(self.0.clone())
    }

    /// Returns once nothing was to be done for `time`.
    pub async fn lasts(&self, time: Duration) {
        loop {
            let now = Instant::now();
            // Acquired, so that the time read next is at least that of what was done last.
            let since = if self.0.busy.load(Ordering::Acquire) == 0 {
                self.0.began + Duration::from_millis(self.0.since.load(Ordering::Relaxed))
            } else {
                now
            };
            if since + time <= now {
                return;
            }
            tokio::time::sleep_until(since + time).await;
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let since = u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.since.store(since, Ordering::Relaxed);
        self.0.busy.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn idleness_begins_when_the_last_thing_is_done() {
        let second = Duration::from_secs(1);
        let idle = Idle::new();
        let began = Instant::now();
        let waiting = tokio::spawn({
            let idle = idle.clone();
            async move { idle.lasts(10 * second).await }
        });
        tokio::time::sleep(9 * second).await;
        let first = idle.busy();
        tokio::time::sleep(second).await;
        drop(idle.busy());
        tokio::time::sleep(13 * second).await;
        drop(first);
        waiting.await.expect("it returns");
        assert_eq!(began.elapsed(), 33 * second);
    }
}
