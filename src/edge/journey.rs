//! What is known of one request so far.
//!
//! Every stage that learns something writes it here once; [`super::rescue`], the access log and the audit read it when
//! the request ends, however far it came. One allocation a request.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Instant;

use aws_lc_rs::rand;
use http::header::HeaderValue;

use super::consent::Consent;
use super::forwarded::Origin;
use crate::authn::Principal;
use crate::limit::Held;
use crate::listener::ConnectionInfo;
use crate::mcp::{Era, Id, Message, Payload};
use crate::route::Route;
use crate::session::StreamHandle;

/// The notes of one request.
#[derive(Debug)]
pub struct Journey {
    /// Unique; also in the `x-request-id` response header.
    pub request_id: RequestId,
    pub started: Instant,
    /// What it came over.
    pub connection: ConnectionInfo,
    /// What trusted proxies said of it.
    pub forwarded: OnceLock<Origin>,
    /// The host asked for, when it is one that routes name for themselves.
    pub host: OnceLock<Arc<str>>,
    /// The browser origin that may read the response.
    pub origin: OnceLock<HeaderValue>,
    pub route: OnceLock<Arc<Route>>,
    pub principal: OnceLock<Arc<Principal>>,
    pub call: OnceLock<CallNotes>,
    /// Set when the request's legacy session began with a client that can be asked to open a page.
    pub opens_pages: OnceLock<()>,
    /// Given back with the journey.
    pub held: OnceLock<Held>,
}

/// What the envelope said.
#[derive(Debug)]
pub struct CallNotes {
    pub era: Era,
    pub payload: Payload,
    /// What the user said to the gateway's own question, which this is the retry of.
    pub consent: Option<Consent>,
    /// The HTTP+SSE stream that hears of failures, when there is one.
    pub stream: Option<StreamHandle>,
}

impl CallNotes {
    /// The body's messages, in order.
    pub fn messages(&self) -> &[Message] {
        self.payload.messages()
    }
}

impl Journey {
    /// A journey that starts now.
    pub fn begin(connection: ConnectionInfo) -> Arc<Self> {
        Arc::new(Self {
            connection,
            request_id: RequestId::next(),
            started: Instant::now(),
            forwarded: OnceLock::new(),
            host: OnceLock::new(),
            origin: OnceLock::new(),
            route: OnceLock::new(),
            principal: OnceLock::new(),
            call: OnceLock::new(),
            opens_pages: OnceLock::new(),
            held: OnceLock::new(),
        })
    }

    /// The client's address: what a trusted proxy said, else the peer's.
    pub fn client(&self) -> IpAddr {
        let peer = || self.connection.peer.ip().to_canonical();
        self.forwarded.get().map_or_else(peer, |forwarded| forwarded.client)
    }

    /// The id a single request is answered with.
    pub fn id(&self) -> Option<&Id> {
        let call = self.call.get()?;
        match call.messages() {
            [only] => only.id.as_ref(),
            _ => None,
        }
    }
}

/// A request id: 128 bits as 32 lower-case hex digits. Unique, but no secret: the first half is the process's, drawn at
/// random, and the second counts, since drawing each would cost as much as deciding over the request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestId([u8; 32]);

impl RequestId {
    fn next() -> Self {
        static PROCESS: LazyLock<[u8; 16]> = LazyLock::new(|| {
            let mut bytes = [0; 16];
            rand::fill(&mut bytes).expect("the system's random source works");
            bytes
        });
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let (process, start) = PROCESS.split_at(8);
        // From a random start, so that an id doesn't tell how busy the gate is.
        let start = u64::from_be_bytes(start.try_into().expect("eight of 16 bytes"));
        let count = start.wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed)).to_be_bytes();
        let mut text = [0_u8; 32];
        for (pair, byte) in text.chunks_exact_mut(2).zip(process.iter().chain(&count)) {
            pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
            pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
        }
        Self(text)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hex digits are ASCII")
    }

    /// The id as a header value.
    pub fn header(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.0).expect("hex digits are a header value")
    }
}

impl std::fmt::Debug for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
