//! What is known of one request so far.
//!
//! Every stage that learns something writes it here once; [`super::rescue`], the access log and the audit read it when
//! the request ends, however far it came. One allocation a request.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use aws_lc_rs::rand;
use http::header::HeaderValue;

use crate::authn::Principal;
use crate::mcp::{Era, Id, Message};
use crate::route::Route;
use crate::session::StreamHandle;

/// The notes of one request.
#[derive(Debug)]
pub struct Journey {
    /// Unique; also in the `x-request-id` response header.
    pub request_id: RequestId,
    pub started: Instant,
    /// The browser origin that may read the response.
    pub origin: OnceLock<HeaderValue>,
    pub route: OnceLock<Arc<Route>>,
    pub principal: OnceLock<Arc<Principal>>,
    pub call: OnceLock<CallNotes>,
}

/// What the envelope said.
#[derive(Debug)]
pub struct CallNotes {
    pub era: Era,
    pub messages: Arc<[Message]>,
    /// The body was an array.
    pub batch: bool,
    /// The HTTP+SSE stream that hears of failures, when there is one.
    pub stream: Option<StreamHandle>,
}

impl Journey {
    /// A journey that starts now.
    pub fn begin() -> Arc<Self> {
        Arc::new(Self {
            request_id: RequestId::random(),
            started: Instant::now(),
            origin: OnceLock::new(),
            route: OnceLock::new(),
            principal: OnceLock::new(),
            call: OnceLock::new(),
        })
    }

    /// The id a single request is answered with.
    pub fn id(&self) -> Option<&Id> {
        let call = self.call.get()?;
        match &*call.messages {
            [only] => only.id.as_ref(),
            _ => None,
        }
    }
}

/// A random request id: 128 bits as 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestId([u8; 32]);

impl RequestId {
    fn random() -> Self {
        let mut bytes = [0_u8; 16];
        rand::fill(&mut bytes).expect("the system's random source works");
        let mut text = [0_u8; 32];
        for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
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
