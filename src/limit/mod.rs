//! Rate and concurrency: how much of the gate one caller may have.
//!
//! 1. `routes.X.limits` bound each principal on each route; nobody's use is another's loss. Who came without a token is
//!    known by their address.
//! 2. Every message takes from the rate, each member of a batch for itself; a GET or a DELETE counts as one message.
//! 3. A request (a message that is answered) has a place of `concurrency` until its answer has ended: the reply's body
//!    over Streamable HTTP, the answer's event over HTTP+SSE. Notifications and responses have none.
//! 4. Standing streams (GET, and `subscriptions/listen`) are counted apart, over all routes: in all, and a principal.
//! 5. The limits stand after the envelope, so that a refusal carries the request's id, and before policy: whether a tool
//!    may be called can't be asked more often than it can be called.
//! 6. What is counted outlives a reload. A bucket begins full again when its own rate has changed.
//!
//! Connections are counted per address in [`crate::listener`], and [`overload`] looks at the gate as a whole. Behind a proxy
//! that `listen.trusted_proxies` doesn't name, all strangers have the proxy's address and share what one of them may have.

mod held;
pub mod overload;
mod places;
mod rate;

use std::cell::LazyCell;
use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use held::{Held, keep};
pub use overload::OverloadLayer;
pub use places::{Seat, Share, Shares, Total, Who};

use crate::call::{Call, Form};
use crate::config::CallerLimits;
use crate::edge::{Check, Rejection};
use crate::mcp::Kind;
use rate::Buckets;

/// When places will be free again nobody knows: calls last from a millisecond to hours.
const PLACE_RETRY: Duration = Duration::from_secs(1);

/// Everything that is counted; outlives configurations.
#[derive(Default)]
pub struct Limits {
    routes: Mutex<HashMap<Arc<str>, Arc<RouteLimits>>>,
    streams: Arc<Total>,
    callers_streams: Arc<Shares>,
    /// For [`OverloadLayer`].
    pub on_their_way: Arc<Total>,
}

impl Limits {
    /// A route's limits as configured now, with what is in flight already.
    pub fn route(&self, name: &Arc<str>, config: CallerLimits) -> Arc<RouteLimits> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = routes.get(name);
        if let Some(same) = known.filter(|known| known.config == config) {
            return same.clone();
        }
        let limits = Arc::new(RouteLimits {
            config,
            buckets: config.rate.map(Buckets::new),
            in_flight: known.map(|known| known.in_flight.clone()).unwrap_or_default(),
        });
        routes.insert(name.clone(), limits.clone());
        limits
    }
}

/// What each principal may have of one route.
pub struct RouteLimits {
    config: CallerLimits,
    buckets: Option<Buckets>,
    in_flight: Arc<Shares>,
}

impl RouteLimits {
    /// Takes what a request asks for.
    fn admit(&self, who: impl Fn() -> Who, demand: Demand) -> Result<Option<Share>, Limited> {
        if let (Some(buckets), Some(messages)) = (&self.buckets, NonZeroU32::new(demand.messages)) {
            buckets
                .take(who(), messages)
                .map_err(|wait| Limited::new(Limit::Rate, wait))?;
        }
        let Some(limit) = self.config.concurrency.filter(|_| demand.calls > 0) else {
            return Ok(None);
        };
        match self.in_flight.take(who(), demand.calls, limit) {
            Some(share) => Ok(Some(share)),
            None => Err(Limited::new(Limit::Concurrency, PLACE_RETRY)),
        }
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Demand {
    messages: u32,
    calls: usize,
    standing: bool,
}

impl Demand {
    fn of(form: &Form) -> Self {
        let messages = match form {
            Form::Get | Form::Delete => {
                return Self {
                    messages: 1,
                    calls: 0,
                    standing: matches!(form, Form::Get),
                };
            }
            Form::Post { payload, .. } | Form::Message { payload, .. } => payload.messages(),
        };
        let requests = messages.iter().filter(|message| message.kind == Kind::Request);
        let listens = requests
            .clone()
            .filter(|request| &*request.method == "subscriptions/listen")
            .count();
        Self {
            messages: u32::try_from(messages.len()).expect("a batch has at most 64 members"),
            calls: requests.count() - listens,
            standing: listens > 0,
        }
    }
}

/// Which limit was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Rate,
    Concurrency,
    /// All callers' standing streams.
    Streams,
    /// This caller's standing streams.
    CallerStreams,
}

impl Limit {
    /// The metric's label and the audit's reason.
    pub fn label(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Concurrency => "concurrency",
            Self::Streams => "streams",
            Self::CallerStreams => "streams_per_principal",
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rate => "you call more often than this endpoint allows",
            Self::Concurrency => "you have as many calls under way as this endpoint allows",
            Self::Streams => "there are as many streams open as the gateway holds",
            Self::CallerStreams => "you have as many streams open as the gateway allows",
        })
    }
}

/// A limit refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit}; try again in {retry_after} s")]
pub struct Limited {
    pub limit: Limit,
    /// Seconds, at least one.
    pub retry_after: u64,
}

impl Limited {
    fn new(limit: Limit, wait: Duration) -> Self {
        // Rounded up: who comes back when told to must not be too early.
        let retry_after = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self {
            limit,
            retry_after: retry_after.max(1),
        }
    }
}

/// Counts calls, and refuses those that are too many.
pub struct LimitCheck {
    pub limits: Arc<Limits>,
    /// Standing streams, over all routes.
    pub streams: usize,
    pub streams_per_principal: usize,
}

impl LimitCheck {
    fn admit(&self, call: &Call) -> Result<Option<Held>, Limited> {
        let demand = Demand::of(&call.form);
        // Hashed only where somebody asks.
        let who = LazyCell::new(|| Who::calls(&call.principal, call.journey.client()));
        let calls = call.route.limits.admit(|| *who, demand)?;
        let stream = if demand.standing {
            Some(self.stream(*who)?)
        } else {
            None
        };
        Ok((calls.is_some() || stream.is_some()).then_some(Held {
            _calls: calls,
            _stream: stream,
        }))
    }

    fn stream(&self, who: Who) -> Result<(Seat, Share), Limited> {
        let refused = |limit| Limited::new(limit, PLACE_RETRY);
        let share = self.limits.callers_streams.take(who, 1, self.streams_per_principal);
        let share = share.ok_or_else(|| refused(Limit::CallerStreams))?;
        let seat = self.limits.streams.take(self.streams);
        Ok((seat.ok_or_else(|| refused(Limit::Streams))?, share))
    }
}

impl Check<Box<Call>> for LimitCheck {
    type Passed = Box<Call>;

    async fn check(&self, call: Box<Call>) -> Result<Box<Call>, Rejection> {
        match self.admit(&call) {
            Ok(None) => {}
            Ok(Some(held)) => {
                let _ = call.journey.held.set(held);
            }
            Err(limited) => {
                call.route.metrics.rate_limited(limited.limit.label());
                return Err(Rejection::Limited(limited));
            }
        }
        Ok(call)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rate;
    use crate::mcp::{Era, parse};

    fn post(body: &'static str) -> Form {
        let body = bytes::Bytes::from_static(body.as_bytes());
        Form::Post {
            era: Era::Legacy,
            payload: parse(&body).expect("a message"),
            body,
        }
    }

    #[test]
    fn what_each_request_asks_for() {
        let request = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
        let notification = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        let response = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
        let batch = r#"[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","method":"notifications/x"},
            {"jsonrpc":"2.0","id":2,"method":"tools/list"}]"#;
        let listen = r#"{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen"}"#;
        for (name, form, messages, calls, standing) in [
            ("a request", post(request), 1, 1, false),
            ("a notification", post(notification), 1, 0, false),
            ("a response", post(response), 1, 0, false),
            ("a batch", post(batch), 3, 2, false),
            ("listen", post(listen), 1, 0, true),
            ("GET", Form::Get, 1, 0, true),
            ("DELETE", Form::Delete, 1, 0, false),
        ] {
            let expected = Demand {
                messages,
                calls,
                standing,
            };
            assert_eq!(Demand::of(&form), expected, "{name}");
        }
    }

    fn limits(rate: Option<(u32, u32)>, concurrency: Option<usize>) -> CallerLimits {
        let positive = |number| NonZeroU32::new(number).expect("positive");
        CallerLimits {
            rate: rate.map(|(count, burst)| Rate {
                count: positive(count),
                per: Duration::from_secs(1),
                burst: positive(burst),
            }),
            concurrency,
        }
    }

    const ALICE: Who = Who::Person([1; 32]);
    const BOB: Who = Who::Person([2; 32]);

    fn calls(count: usize) -> Demand {
        Demand {
            messages: u32::try_from(count).expect("few"),
            calls: count,
            standing: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobodys_use_is_anothers_loss() {
        let all = Limits::default();
        let (notes, wiki) = (Arc::from("notes"), Arc::from("wiki"));
        let config = limits(Some((1, 2)), Some(1));
        let notes = all.route(&notes, config);
        let held = notes.admit(|| ALICE, calls(1)).expect("the first passes");
        let refused = |limit| Limited { limit, retry_after: 1 };
        let second = notes.admit(|| ALICE, calls(1)).expect_err("one at a time");
        assert_eq!(second, refused(Limit::Concurrency));
        let third = notes.admit(|| ALICE, calls(1)).expect_err("the burst is used up");
        assert_eq!(third, refused(Limit::Rate));
        assert!(notes.admit(|| BOB, calls(1)).is_ok(), "Bob has his own");
        assert!(
            all.route(&wiki, config).admit(|| ALICE, calls(1)).is_ok(),
            "so has each route"
        );
        drop(held);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(notes.admit(|| ALICE, calls(1)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reload_forgets_no_call() {
        let all = Limits::default();
        let name = Arc::from("notes");
        let before = all.route(&name, limits(Some((1, 1)), Some(2)));
        let held = before.admit(|| ALICE, calls(1)).expect("passes");
        assert!(before.admit(|| ALICE, calls(1)).is_err(), "the bucket is empty");
        let same = all.route(&name, limits(Some((1, 1)), Some(2)));
        assert!(
            same.admit(|| ALICE, calls(1)).is_err(),
            "and stays so when nothing changes"
        );
        let stricter = all.route(&name, limits(None, Some(1)));
        let refused = stricter.admit(|| ALICE, calls(1)).expect_err("one is in flight");
        assert_eq!(refused.limit, Limit::Concurrency);
        drop(held);
        assert!(stricter.admit(|| ALICE, calls(1)).is_ok());
    }

    #[test]
    fn what_is_not_configured_is_not_counted() {
        let limits = Limits::default().route(&Arc::from("notes"), CallerLimits::default());
        let nobody = || -> Who { unreachable!("nobody's identity is hashed") };
        assert!(matches!(limits.admit(nobody, calls(64)), Ok(None)));
    }

    #[test]
    fn a_wait_is_named_in_whole_seconds_and_never_too_short() {
        for (wait, seconds) in [(0, 1), (1, 1), (999, 1), (1_000, 1), (1_001, 2), (60_000, 60)] {
            let limited = Limited::new(Limit::Rate, Duration::from_millis(wait));
            assert_eq!(limited.retry_after, seconds, "{wait} ms");
        }
    }
}
