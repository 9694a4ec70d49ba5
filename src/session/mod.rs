//! Sessions the client holds and nobody else can use.
//!
//! The `Mcp-Session-Id` a client sees is sealed: it says which upstream endpoint and upstream session it stands for, on
//! which route and for whom, and only this gateway (or a replica with the same seal key) can make or open one.
//!
//! 1. Opened under another route or by another principal, it is as unknown as a forged one: 404, the client
//!    initializes again (MCP 2025-11-25, "Session Management").
//! 2. The person is a hash over length-prefixed issuer and subject, so a session survives a token refresh.
//! 3. HTTP+SSE streams live on the replica that holds them (`streams`); the client's `session_id` is their sealed key.
//! 4. So do sessions that the gateway itself serves, because their server speaks otherwise ([`crate::bridge`]): sealed is
//!    the key they are found by.

mod check;
mod keyfile;
mod seal;
mod streams;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

pub use check::{SESSION_HEADER, SessionCheck};
pub use keyfile::{KeyFile, KeyFileError, KeyFileWarning, MAX_KEYS, key_file, load_or_create, read_sealer};
pub use seal::{MAX_SEALED, Purpose, SealError, Sealer};
pub use streams::{Answered, Listing, OpenStream, StreamHandle, StreamKey, Streams, Target, random_stream_key};

use crate::authn::Principal;
use crate::upstream::EndpointId;

/// What a sealed `Mcp-Session-Id` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub endpoint: EndpointId,
    /// The upstream's own session id.
    pub upstream: String,
    /// Whether its client said that it can be asked to open a page.
    pub opens_pages: bool,
}

/// Set in the length of the endpoint's name when the client opens pages. A session sealed before there was such a thing has
/// it unset.
const OPENS_PAGES: u8 = 0x80;
/// Stands for the gateway in an endpoint's place; those are twelve characters long.
const BRIDGED: &str = "bridge";

impl Session {
    /// A session that the gateway itself serves.
    pub fn bridged(key: &StreamKey, opens_pages: bool) -> Self {
        Self {
            endpoint: EndpointId::from(BRIDGED),
            upstream: URL_SAFE_NO_PAD.encode(key),
            opens_pages,
        }
    }

    /// By what the gateway finds a session of its own; `None` for an upstream's.
    pub fn bridge_key(&self) -> Option<StreamKey> {
        if self.endpoint.as_str() != BRIDGED {
            return None;
        }
        URL_SAFE_NO_PAD.decode(&self.upstream).ok()?.try_into().ok()
    }

    /// Seals the session for this principal on this route; `None` when the upstream's id is too long to seal.
    pub fn seal(&self, sealer: &Sealer, route: &str, principal: &Principal) -> Option<String> {
        let mut plain = Vec::with_capacity(128);
        plain.extend_from_slice(&person(principal));
        let flag = if self.opens_pages { OPENS_PAGES } else { 0 };
        for (part, flag) in [(route, 0), (self.endpoint.as_str(), flag)] {
            plain.push(u8::try_from(part.len()).ok()? | flag);
            plain.extend_from_slice(part.as_bytes());
        }
        plain.extend_from_slice(self.upstream.as_bytes());
        sealer.seal(Purpose::Session, &plain).ok()
    }

    /// Opens a session id, if it is this principal's on this route.
    pub fn open(sealer: &Sealer, sealed: &str, route: &str, principal: &Principal) -> Option<Self> {
        let plain = sealer.open(Purpose::Session, sealed).ok()?;
        let rest = plain.strip_prefix(&person(principal)[..])?;
        let (length, rest) = rest.split_first()?;
        let (sealed_route, rest) = short(*length, rest)?;
        let (length, rest) = rest.split_first()?;
        let (endpoint, upstream) = short(*length & !OPENS_PAGES, rest)?;
        if sealed_route != route {
            return None;
        }
        Some(Self {
            endpoint: EndpointId::from(endpoint),
            upstream: String::from_utf8(upstream.to_vec()).ok()?,
            opens_pages: *length & OPENS_PAGES != 0,
        })
    }
}

fn short(length: u8, bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (text, rest) = bytes.split_at_checked(usize::from(length))?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

/// Who a session belongs to: SHA-256 over length-prefixed issuer and subject, so that no two pairs read the same.
pub fn person(principal: &Principal) -> [u8; 32] {
    let mut hash = digest::Context::new(&digest::SHA256);
    for part in [&principal.issuer, &principal.subject] {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_says_whether_its_client_opens_pages_and_one_of_before_does_not() {
        let (sealer, principal) = (Sealer::new(&[]), Principal::default());
        for opens_pages in [true, false] {
            let session = Session {
                endpoint: EndpointId::from("AAAAAAAAAAAA"),
                upstream: "theirs".to_owned(),
                opens_pages,
            };
            let sealed = session.seal(&sealer, "notes", &principal).expect("it is short");
            assert_eq!(Session::open(&sealer, &sealed, "notes", &principal), Some(session));
            let bridged = Session::bridged(&[7; 16], opens_pages);
            assert_eq!(bridged.bridge_key(), Some([7; 16]));
        }
        let mut before = person(&principal).to_vec();
        before.extend_from_slice(b"\x05notes\x0cAAAAAAAAAAAAtheirs");
        let sealed = sealer.seal(Purpose::Session, &before).expect("it is short");
        let opened = Session::open(&sealer, &sealed, "notes", &principal).expect("it is known");
        assert!(!opened.opens_pages && opened.upstream == "theirs", "{opened:?}");
    }
}
