//! Calls that wait for their caller's input.
//!
//! 1. A call that the server has asked something in waits here, still on its way, while its caller is answered
//!    `input_required`. At most 16 of one person's and 1024 in all wait, each for five minutes; then the server hears that
//!    it is cancelled.
//! 2. What the caller brings back is sealed: for one person, one route and one request, and for those five minutes. It
//!    finds its call once.
//! 3. The person's answers are not in it, nor is anything else that the server said.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::{digest, rand};
use bytes::Bytes;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::course::{Course, Question};
use crate::clock::UnixSeconds;
use crate::edge::Rejection;
use crate::session::{Purpose, Sealer};

/// Calls of one person that may wait.
const MAX_OF_PERSON: usize = 16;
/// Calls that may wait.
const MAX: usize = 1024;
/// How long one waits.
pub const PATIENCE: Duration = Duration::from_secs(5 * 60);

/// Finds a waiting call.
pub type Ticket = [u8; 16];

/// The calls that wait on one route.
#[derive(Default)]
pub struct Parked(Mutex<HashMap<Ticket, Waiting>>);

/// A call that waits.
pub struct Waiting {
    person: [u8; 32],
    until: Instant,
    pub course: Course,
    /// What the caller was asked.
    pub questions: Vec<Question>,
}

impl Parked {
    /// Has a call wait.
    ///
    /// # Errors
    /// When too many do; the call is cancelled.
    pub fn park(&self, person: [u8; 32], course: Course, questions: Vec<Question>) -> Result<Ticket, Rejection> {
        self.end_expired();
        let mut ticket = Ticket::default();
        rand::fill(&mut ticket).expect("the system's random source works");
        let waiting = Waiting {
            person,
            until: Instant::now() + PATIENCE,
            course,
            questions,
        };
        let mut all = self.all();
        let of_person = all.values().filter(|other| other.person == person).count();
        if of_person >= MAX_OF_PERSON || all.len() >= MAX {
            return Err(Rejection::TooManyParked);
        }
        all.insert(ticket, waiting);
        Ok(ticket)
    }

    /// The call of that ticket, which waits no more.
    pub fn take(&self, ticket: &Ticket) -> Option<Waiting> {
        let waiting = self.all().remove(ticket)?;
        (waiting.until > Instant::now()).then_some(waiting)
    }

    /// Cancels the calls that have waited long enough.
    pub fn end_expired(&self) {
        let now = Instant::now();
        let over: Vec<Waiting> = self
            .all()
            .extract_if(|_, waiting| waiting.until <= now)
            .map(|(_, over)| over)
            .collect();
        drop(over);
    }

    /// Cancels all.
    pub fn clear(&self) {
        let all = std::mem::take(&mut *self.all());
        drop(all);
    }

    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<Ticket, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose request it is, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// [`crate::session::person`].
    pub person: [u8; 32],
    /// [`Binding::digest`].
    pub request: [u8; 32],
    pub route: Arc<str>,
}

impl Binding {
    /// SHA-256 of a request's method and parameters: without `_meta`, and independent of how its members are ordered.
    pub fn digest(method: &str, params: &Bytes) -> [u8; 32] {
        let mut hash = digest::Context::new(&digest::SHA256);
        let mut add = |text: &[u8]| {
            hash.update(&(text.len() as u64).to_be_bytes());
            hash.update(text);
        };
        add(method.as_bytes());
        let members: std::collections::BTreeMap<String, &RawValue> = serde_json::from_slice(params).unwrap_or_default();
        for (name, value) in members.iter().filter(|(name, _)| *name != "_meta") {
            add(name.as_bytes());
            // What was only spaced anew is the same request.
            let value = serde_json::from_str::<Value>(value.get())
                .map_or_else(|_| value.get().to_owned(), |value| value.to_string());
            add(value.as_bytes());
        }
        hash.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// The `requestState` that is good for this request until [`PATIENCE`] is over. Without a ticket there is no call that
    /// waits: the request is sent anew.
    ///
    /// # Errors
    /// Never for a route's name that a configuration allows.
    pub fn seal(&self, sealer: &Sealer, ticket: Option<&Ticket>, now: UnixSeconds) -> Result<String, Rejection> {
        let mut plain = Vec::with_capacity(128);
        plain.extend_from_slice(&self.person);
        plain.extend_from_slice(&self.request);
        plain.extend_from_slice(&(now + PATIENCE.as_secs()).to_be_bytes());
        plain.extend_from_slice(&ticket.copied().unwrap_or_default());
        plain.extend_from_slice(self.route.as_bytes());
        sealer
            .seal(Purpose::RequestState, &plain)
            .map_err(|_| Rejection::RequestState)
    }

    /// Which call waits for this request, if its state says that one does.
    ///
    /// # Errors
    /// When the state is forged, over, somebody else's or another request's: one and the same for all.
    pub fn open(&self, sealer: &Sealer, state: &str, now: UnixSeconds) -> Result<Option<Ticket>, Rejection> {
        let plain = sealer
            .open(Purpose::RequestState, state)
            .map_err(|_| Rejection::RequestState)?;
        let parts = || {
            let rest = plain.strip_prefix(&self.person[..])?.strip_prefix(&self.request[..])?;
            let (until, rest) = rest.split_first_chunk()?;
            let (ticket, route) = rest.split_first_chunk::<16>()?;
            let good = u64::from_be_bytes(*until) > now && route == self.route.as_bytes();
            good.then_some(*ticket)
        };
        let ticket = parts().ok_or(Rejection::RequestState)?;
        Ok((ticket != Ticket::default()).then_some(ticket))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::testing::{Came, Server, ask};

    fn binding() -> Binding {
        Binding {
            person: [1; 32],
            request: Binding::digest(
                "tools/call",
                &Bytes::from_static(br#"{"name":"a","arguments":{"n":1}}"#),
            ),
            route: "notes".into(),
        }
    }

    #[test]
    fn a_state_is_opened_by_the_request_that_it_was_made_for_and_by_no_other() {
        let sealer = Sealer::new(&[]);
        let ticket = Some([7; 16]);
        let state = binding().seal(&sealer, ticket.as_ref(), 1000).expect("it fits");
        assert_eq!(binding().open(&sealer, &state, 1299).expect("it is good"), ticket);
        let anew = binding().seal(&sealer, None, 1000).expect("it fits");
        assert_eq!(binding().open(&sealer, &anew, 1299).expect("it is good"), None);

        let other = |change: fn(&mut Binding)| {
            let mut binding = binding();
            change(&mut binding);
            binding
        };
        let altered = |place: usize| {
            let mut text = state.clone().into_bytes();
            text[place] = if text[place] == b'A' { b'B' } else { b'A' };
            String::from_utf8(text).expect("ASCII")
        };
        let of_another_purpose = sealer.seal(Purpose::Task, &[0; 104]).expect("it fits");
        let cases: [(&str, Binding, &str, u64); 10] = [
            ("over", binding(), &state, 1300),
            (
                "another person's",
                other(|binding| binding.person = [2; 32]),
                &state,
                1000,
            ),
            (
                "another request's",
                other(|binding| binding.request = [2; 32]),
                &state,
                1000,
            ),
            (
                "another route's",
                other(|binding| binding.route = "note".into()),
                &state,
                1000,
            ),
            (
                "a longer route's",
                other(|binding| binding.route = "notes2".into()),
                &state,
                1000,
            ),
            ("altered at its head", binding(), &altered(0), 1000),
            ("altered in its middle", binding(), &altered(state.len() / 2), 1000),
            ("cut", binding(), &state[..state.len() - 4], 1000),
            ("empty", binding(), "", 1000),
            ("of another purpose", binding(), &of_another_purpose, 1000),
        ];
        for (what, binding, state, now) in cases {
            let refused = binding.open(&sealer, state, now).expect_err(what);
            assert!(matches!(refused, Rejection::RequestState), "{what}");
        }
        let another_key = binding().open(&Sealer::new(&[]), &state, 1000);
        assert!(matches!(another_key, Err(Rejection::RequestState)));
    }

    #[test]
    fn a_request_is_the_same_whatever_is_said_of_it_and_however_it_is_spaced() {
        let digest =
            |method: &str, params: &'static str| Binding::digest(method, &Bytes::from_static(params.as_bytes()));
        let one = digest("tools/call", r#"{"name":"a","arguments":{"n":1}}"#);
        for params in [
            r#"{"arguments": {"n" : 1}, "name":"a"}"#,
            r#"{"name":"a","arguments":{"n":1},"_meta":{"progressToken":1}}"#,
        ] {
            assert_eq!(digest("tools/call", params), one, "{params}");
        }
        for (method, params) in [
            ("prompts/get", r#"{"name":"a","arguments":{"n":1}}"#),
            ("tools/call", r#"{"name":"a","arguments":{"n":2}}"#),
            ("tools/call", r#"{"name":"a","arguments":{"n":"1"}}"#),
            ("tools/call", r#"{"name":"a"}"#),
            ("tools/call", r#"{"name":"a","arguments":{"n":1},"x":null}"#),
        ] {
            assert_ne!(digest(method, params), one, "{method} {params}");
        }
    }

    /// A call that is under way, and the server's end of it.
    async fn course(server: &mut Server, peer: &std::sync::Arc<crate::bridge::peer::Peer>) -> (Course, Came) {
        let exchange = peer.request(ask("tools/call", r#"{"name":"a"}"#));
        let came = server.came().await;
        (Course::new(exchange, None, None), came)
    }

    #[tokio::test]
    async fn so_many_calls_wait_and_no_more_until_one_is_taken() {
        let mut server = Server::start().await;
        let peer = server.session().await;
        let parked = Parked::default();
        let mut waiting = Vec::new();
        for _ in 0..MAX_OF_PERSON {
            let (course, came) = course(&mut server, &peer).await;
            let ticket = parked.park([1; 32], course, Vec::new()).expect("there is room");
            waiting.push((ticket, came));
        }
        let (refused, _refused) = course(&mut server, &peer).await;
        let refused = parked.park([1; 32], refused, Vec::new());
        assert!(matches!(refused, Err(Rejection::TooManyParked)));
        let cancelled = server.came().await;
        assert!(cancelled.body.contains("notifications/cancelled"), "{}", cancelled.body);
        cancelled.status(202);
        let (other, _other) = course(&mut server, &peer).await;
        parked
            .park([2; 32], other, Vec::new())
            .expect("another person has room");

        let (ticket, _came) = waiting.pop().expect("one waits");
        let taken = parked.take(&ticket).expect("it waits");
        assert!(parked.take(&ticket).is_none(), "it waits no more");
        let (again, _again) = course(&mut server, &peer).await;
        parked.park([1; 32], again, Vec::new()).expect("there is room again");
        drop(taken);
    }

    #[tokio::test]
    async fn a_call_that_nobody_comes_back_for_is_cancelled() {
        let mut server = Server::start().await;
        let peer = server.session().await;
        let parked = Parked::default();
        let (course, _came) = course(&mut server, &peer).await;
        let ticket = parked.park([1; 32], course, Vec::new()).expect("there is room");
        tokio::time::pause();
        tokio::time::advance(PATIENCE - Duration::from_secs(1)).await;
        parked.end_expired();
        assert_eq!(parked.all().len(), 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::time::resume();
        assert!(parked.all().contains_key(&ticket));
        parked.end_expired();
        assert!(parked.all().is_empty());
        let cancelled = server.came().await;
        assert!(cancelled.body.contains("notifications/cancelled"), "{}", cancelled.body);
    }
}
