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
