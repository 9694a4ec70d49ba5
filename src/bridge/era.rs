//! Which era and transport a server speaks: found by asking, remembered, and asked again when it stops fitting.
//!
//! 1. `server/discover` is asked first (MCP 2026-07-28, "Backward Compatibility"): its result, or an error that only this
//!    revision has, is a modern server's; any other refusal is a legacy server's.
//! 2. A legacy server takes `initialize` by POST, or has an HTTP+SSE stream (MCP 2025-11-25, "Backwards Compatibility").
//! 3. What says nothing of the server concludes nothing: 401, 403, 408, 425, 429, any 5xx, and no answer at all.
//! 4. The configuration's `era` and `transport` are believed, and nothing is asked about them.

use std::sync::atomic::{AtomicU8, Ordering};

use http::StatusCode;
use serde::Deserialize;

use super::message::RpcError;
use super::peer::{Lost, ServerEra};
use crate::config::{self, Transport};
use crate::mcp::{MessageOutcome, Scanner, codes};

/// The first modern revision.
const FIRST_MODERN: &str = "2026-07-28";

/// What a server is known to speak.
#[derive(Debug)]
pub struct Nature {
    modern: Known,
    streamable: Known,
    sse: Known,
}

/// Something that is true, or false, or not known yet.
#[derive(Debug)]
pub struct Known {
    value: AtomicU8,
    /// Configured: it stays.
    fixed: bool,
}

impl Known {
    fn new(value: Option<bool>) -> Self {
        Self {
            value: AtomicU8::new(encode(value)),
            fixed: value.is_some(),
        }
    }

    /// What is known.
    pub fn get(&self) -> Option<bool> {
        match self.value.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(false),
            _ => Some(true),
        }
    }

    /// Notes what was found, or that what was found no longer holds.
    pub fn set(&self, value: Option<bool>) {
        if !self.fixed {
            self.value.store(encode(value), Ordering::Relaxed);
        }
    }
}

fn encode(value: Option<bool>) -> u8 {
    value.map_or(0, |value| 1 + u8::from(value))
}

impl Nature {
    /// What the configuration says.
    pub fn of(upstream: &config::Upstream) -> Self {
        use config::UpstreamEra as E;
        let (modern, streamable, sse) = match (upstream.era, upstream.transport) {
            (E::Modern, _) => (Some(true), Some(false), Some(false)),
            (_, Transport::Sse) => (Some(false), Some(false), Some(true)),
            (E::Legacy, Transport::StreamableHttp) => (Some(false), Some(true), Some(false)),
            (E::Legacy, _) => (Some(false), None, None),
            (E::Auto, Transport::StreamableHttp) => (None, None, Some(false)),
            (E::Auto, _) => (None, None, None),
        };
        Self {
            modern: Known::new(modern),
            streamable: Known::new(streamable),
            sse: Known::new(sse),
        }
    }

    /// Whether it answers modern requests.
    pub fn modern(&self) -> &Known {
        &self.modern
    }

    /// Whether it answers `initialize` by POST.
    pub fn streamable(&self) -> &Known {
        &self.streamable
    }

    /// Whether it has an HTTP+SSE stream.
    pub fn sse(&self) -> &Known {
        &self.sse
    }

    /// Something no longer fits: all is found out anew.
    pub fn forget(&self) {
        self.modern.set(None);
        self.streamable.set(None);
        self.sse.set(None);
    }
}

/// What a server's answer to `server/discover` says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Is(ServerEra),
    Inconclusive,
}

/// Judges an error that came with a status.
pub fn of_error(status: StatusCode, error: &RpcError) -> Verdict {
    match error.code {
        // A legacy server may know the error, and say with it that it speaks nothing modern.
        codes::UNSUPPORTED_VERSION if speaks_legacy_alone(error) => Verdict::Is(ServerEra::Legacy),
        codes::UNSUPPORTED_VERSION | codes::MISSING_CAPABILITY | codes::HEADER_MISMATCH => {
            Verdict::Is(ServerEra::Modern)
        }
        // Legacy servers answer an unknown method with another status (MCP 2026-07-28, "Protocol Version Header").
        codes::METHOD_NOT_FOUND if status == StatusCode::NOT_FOUND => Verdict::Is(ServerEra::Modern),
        _ => of_status(status),
    }
}

/// Whether all versions that an error names are legacy ones; versions are dates, and compare as text.
fn speaks_legacy_alone(error: &RpcError) -> bool {
    #[derive(Deserialize)]
    struct Data {
        supported: Vec<String>,
    }
    let data = error.data.as_ref();
    let data = data.and_then(|data| serde_json::from_slice::<Data>(data).ok());
    data.is_some_and(|data| {
        !data.supported.is_empty() && data.supported.iter().all(|version| &**version < FIRST_MODERN)
    })
}

/// Judges a status whose body said nothing.
pub fn of_status(status: StatusCode) -> Verdict {
    match status.as_u16() {
        401 | 403 | 408 | 425 | 429 => Verdict::Inconclusive,
        status if status >= 500 => Verdict::Inconclusive,
        _ => Verdict::Is(ServerEra::Legacy),
    }
}

/// Whether an error that came with a status is one that only modern servers have.
pub fn is_modern_answer(status: StatusCode, body: &[u8]) -> bool {
    let mut scanner = Scanner::default();
    scanner.push(body);
    match scanner.finish().outcome {
        MessageOutcome::ProtocolError(code) => {
            of_error(status, &RpcError::new(code, "")) == Verdict::Is(ServerEra::Modern)
        }
        _ => false,
    }
}

/// Judges why there was no result.
pub fn of_loss(lost: &Lost) -> Verdict {
    match lost {
        Lost::Refused { status, error } => of_error(*status, error),
        Lost::Status(status) => of_status(*status),
        Lost::Session | Lost::Rejected(_) => Verdict::Inconclusive,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_says_something_of_the_server_concludes() {
        let error = |code| RpcError::new(code, "");
        use ServerEra::{Legacy, Modern};
        for (status, code, verdict) in [
            (400, -32_022, Verdict::Is(Modern)),
            (400, -32_020, Verdict::Is(Modern)),
            (400, -32_021, Verdict::Is(Modern)),
            (404, -32_601, Verdict::Is(Modern)),
            (200, -32_601, Verdict::Is(Legacy)),
            (400, -32_601, Verdict::Is(Legacy)),
            (400, -32_600, Verdict::Is(Legacy)),
            (400, -32_000, Verdict::Is(Legacy)),
            (403, -32_600, Verdict::Inconclusive),
            (500, -32_603, Verdict::Inconclusive),
            (500, -32_022, Verdict::Is(Modern)),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(of_error(status, &error(code)), verdict, "{status} {code}");
        }
        for (status, verdict) in [
            (400, Verdict::Is(Legacy)),
            (404, Verdict::Is(Legacy)),
            (405, Verdict::Is(Legacy)),
            (406, Verdict::Is(Legacy)),
            (401, Verdict::Inconclusive),
            (403, Verdict::Inconclusive),
            (408, Verdict::Inconclusive),
            (429, Verdict::Inconclusive),
            (500, Verdict::Inconclusive),
            (503, Verdict::Inconclusive),
        ] {
            assert_eq!(
                of_status(StatusCode::from_u16(status).expect("a status")),
                verdict,
                "{status}"
            );
        }
        assert_eq!(of_loss(&Lost::Session), Verdict::Inconclusive);
        for (data, verdict) in [
            (r#"{"supported":["2025-11-25","2025-06-18"]}"#, Verdict::Is(Legacy)),
            (r#"{"supported":["2025-11-25","2026-07-28"]}"#, Verdict::Is(Modern)),
            (r#"{"supported":["2099-01-01"]}"#, Verdict::Is(Modern)),
            (r#"{"supported":[]}"#, Verdict::Is(Modern)),
            (r#"{}"#, Verdict::Is(Modern)),
        ] {
            let error = RpcError {
                data: Some(data.into()),
                ..error(-32_022)
            };
            assert_eq!(of_error(StatusCode::BAD_REQUEST, &error), verdict, "{data}");
        }
    }

    #[test]
    fn what_is_configured_is_never_forgotten() {
        let known = Known::new(Some(true));
        known.set(None);
        known.set(Some(false));
        assert_eq!(known.get(), Some(true));
        let known = Known::new(None);
        assert_eq!(known.get(), None);
        known.set(Some(true));
        assert_eq!(known.get(), Some(true));
        known.set(None);
        assert_eq!(known.get(), None);
    }
}
