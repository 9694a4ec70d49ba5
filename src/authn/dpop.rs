//! Proofs of possession (RFC 9449): whether whoever sends a token holds the key that the token is bound to.
//!
//! 1. One `DPoP` header with one JWT: `typ` is `dpop+jwt`, `alg` one of [`ALGORITHMS`], `jwk` a public key that signed it,
//!    no `crit`, no key twice (section 4.3).
//! 2. It is for this request: `htm` is the method, `htu` the public URL of the door that was knocked at, without query and
//!    fragment, after RFC 3986 normalisation; `ath` is the token's hash; the key's RFC 7638 thumbprint is the token's
//!    `cnf.jkt`.
//! 3. It is fresh: `iat` is at most 120 s old and at most 60 s ahead; where the identity wants nonces it carries
//!    one that this gateway sealed lately. Nonces are sealed, not stored, so that replicas with the same key agree.
//! 4. It passes once: key and `jti` are remembered for as long as the proof could pass again, by this process. A full
//!    memory refuses ([`AuthnError::Busy`]) instead of forgetting. Only proofs that passed everything else take a place.
//! 5. Nothing here is cached with the token: every request is proven.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, Method};
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};
use url::Url;

use super::jwks::Key;
use super::{AuthnError, strict_json};
use crate::clock::UnixSeconds;
use crate::listener::ClientCertificate;
use crate::session::{Purpose, Sealer};

/// The header that carries a proof.
pub const PROOF: &str = "dpop";

/// The header that hands out a nonce.
pub const NONCE: &str = "dpop-nonce";

/// `dpop_signing_alg_values_supported`.
pub const ALGORITHMS: [&str; 6] = ["ES256", "ES384", "Ed25519", "EdDSA", "PS256", "RS256"];

/// Seconds that a proof or a nonce may be old.
const MAX_AGE: u64 = 120;

/// Seconds that a client's clock may be ahead.
const LEEWAY: u64 = 60;

/// Longest proof, in bytes: an RSA key of 8192 bits and its signature fit.
const MAX_PROOF: usize = 8 * 1024;

/// Longest `jti`, in bytes.
const MAX_JTI: usize = 256;

/// Most proofs remembered in one window of [`MAX_AGE`] + [`LEEWAY`] seconds; there are two, of 32 bytes a proof.
const MAX_REMEMBERED: usize = 200_000;

/// What is wrong with a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProofFault {
    /// None, more than one, or no JWT of the right type.
    Malformed,
    Algorithm,
    /// No usable public key.
    Key,
    Signature,
    Method,
    Target,
    Times,
    /// `ath` is missing or another token's.
    Token,
    /// Another key than the token is bound to.
    OtherKey,
    /// Used before.
    Replayed,
    /// The nonce is missing, over or not ours; a new one goes with the refusal.
    Nonce,
}

impl ProofFault {
    /// The `error_description`, for developers of clients.
    pub fn description(self) -> &'static str {
        match self {
            Self::Malformed => "one DPoP header with a JWT of type dpop+jwt is needed",
            Self::Algorithm => "the proof's alg is not supported",
            Self::Key => "the proof has no usable public jwk",
            Self::Signature => "the proof's signature is wrong",
            Self::Method => "htm is not this request's method",
            Self::Target => "htu is not this endpoint's URL",
            Self::Times => "the proof is too old or from the future",
            Self::Token => "ath is not this token's hash",
            Self::OtherKey => "the token is bound to another key",
            Self::Replayed => "the proof was used before",
            Self::Nonce => "use the nonce in DPoP-Nonce",
        }
    }

    /// The bounded metric label.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "proof_malformed",
            Self::Algorithm => "proof_algorithm",
            Self::Key => "proof_key",
            Self::Signature => "proof_signature",
            Self::Method => "proof_method",
            Self::Target => "proof_target",
            Self::Times => "proof_times",
            Self::Token => "proof_token",
            Self::OtherKey => "proof_other_key",
            Self::Replayed => "proof_replayed",
            Self::Nonce => "proof_nonce",
        }
    }
}

/// How a request came, for checking what its token is bound to.
#[derive(Clone, Copy)]
pub struct Sender<'a> {
    pub method: &'a Method,
    /// The public URL of the door, without query.
    pub target: &'a str,
    /// The client's, verified by the listener when the connection began.
    pub certificate: Option<&'a ClientCertificate>,
    pub sealer: &'a Sealer,
}

/// What a proof must be for.
pub(super) struct Expected<'a> {
    pub(super) sender: &'a Sender<'a>,
    /// SHA-256 of the token.
    pub(super) token: &'a [u8; 32],
    /// The token's `cnf.jkt`.
    pub(super) thumbprint: &'a str,
    pub(super) nonce: bool,
    pub(super) now: UnixSeconds,
}

/// Checks the request's proof and uses it up.
pub(super) fn check(headers: &HeaderMap, expected: &Expected<'_>, replays: &Replays) -> Result<(), AuthnError> {
    let now = expected.now;
    let refuse = |reason: ProofFault| AuthnError::InvalidProof {
        reason,
        nonce: (reason == ProofFault::Nonce).then(|| nonce(expected.sender.sealer, now)),
    };
    let jti = verify(headers, expected).map_err(refuse)?;
    match replays.once(expected.thumbprint, &jti, now) {
        Use::First => Ok(()),
        Use::Again => Err(refuse(ProofFault::Replayed)),
        Use::Full => Err(AuthnError::Busy),
    }
}

/// The `jti` of a proof that is good, as far as it can be told without having seen it before.
fn verify(headers: &HeaderMap, expected: &Expected<'_>) -> Result<String, ProofFault> {
    let mut proofs = headers.get_all(PROOF).iter();
    let (Some(proof), None) = (proofs.next(), proofs.next()) else {
        return Err(ProofFault::Malformed);
    };
    let proof = proof.to_str().map_err(|_| ProofFault::Malformed)?;
    if proof.len() > MAX_PROOF {
        return Err(ProofFault::Malformed);
    }
    let (signed, signature) = proof.rsplit_once('.').ok_or(ProofFault::Malformed)?;
    let (header, claims) = signed.split_once('.').ok_or(ProofFault::Malformed)?;
    let (header, claims) = (object(header)?, object(claims)?);
    let text = |claims: &Map<String, Value>, name: &str| claims.get(name).and_then(Value::as_str).map(str::to_owned);
    if text(&header, "typ").as_deref() != Some("dpop+jwt") || header.contains_key("crit") {
        return Err(ProofFault::Malformed);
    }
    let algorithm = text(&header, "alg")
        .and_then(|name| algorithm(&name))
        .ok_or(ProofFault::Algorithm)?;
    let jwk = header.get("jwk").and_then(Value::as_object).ok_or(ProofFault::Key)?;
    let (key, thumbprint) = public_key(jwk).ok_or(ProofFault::Key)?;
    if !key.algorithms.contains(&algorithm) {
        return Err(ProofFault::Algorithm);
    }
    if !jsonwebtoken::crypto::verify(signature, signed.as_bytes(), &key.verifying, algorithm).unwrap_or(false) {
        return Err(ProofFault::Signature);
    }
    let jti = text(&claims, "jti")
        .filter(|jti| (1..=MAX_JTI).contains(&jti.len()))
        .ok_or(ProofFault::Malformed)?;
    if text(&claims, "htm").as_deref() != Some(expected.sender.method.as_str()) {
        return Err(ProofFault::Method);
    }
    let same = text(&claims, "htu").is_some_and(|htu| same_target(&htu, expected.sender.target));
    if !same {
        return Err(ProofFault::Target);
    }
    let issued = claims.get("iat").and_then(Value::as_u64).ok_or(ProofFault::Times)?;
    if !is_fresh(issued, expected.now) {
        return Err(ProofFault::Times);
    }
    if text(&claims, "ath") != Some(URL_SAFE_NO_PAD.encode(expected.token)) {
        return Err(ProofFault::Token);
    }
    if thumbprint != expected.thumbprint {
        return Err(ProofFault::OtherKey);
    }
    let nonce = || text(&claims, "nonce").is_some_and(|nonce| is_ours(&nonce, expected.sender.sealer, expected.now));
    if expected.nonce && !nonce() {
        return Err(ProofFault::Nonce);
    }
    Ok(jti)
}

fn algorithm(name: &str) -> Option<Algorithm> {
    match name {
        // RFC 9864's name for the one curve that EdDSA means here; newer libraries write no other.
        "Ed25519" => Some(Algorithm::EdDSA),
        _ if ALGORITHMS.contains(&name) => name.parse().ok(),
        _ => None,
    }
}

fn object(part: &str) -> Result<Map<String, Value>, ProofFault> {
    let json = URL_SAFE_NO_PAD.decode(part).map_err(|_| ProofFault::Malformed)?;
    strict_json::object(&json).ok_or(ProofFault::Malformed)
}

/// The key and its RFC 7638 thumbprint; `None` when any part of a private key is in it.
fn public_key(jwk: &Map<String, Value>) -> Option<(Key, String)> {
    if ["d", "p", "q", "dp", "dq", "qi", "oth", "k"]
        .iter()
        .any(|name| jwk.contains_key(*name))
    {
        return None;
    }
    let key = Key::parse(&serde_json::to_string(jwk).ok()?)?;
    let members: &[&str] = match jwk.get("kty")?.as_str()? {
        "RSA" => &["e", "kty", "n"],
        "EC" => &["crv", "kty", "x", "y"],
        "OKP" => &["crv", "kty", "x"],
        _ => return None,
    };
    let canonical: Option<Vec<String>> = members
        .iter()
        .map(|name| {
            Some(format!(
                "\"{name}\":{}",
                jwk.get(*name).filter(|value| value.is_string())?
            ))
        })
        .collect();
    let hash = digest::digest(&digest::SHA256, format!("{{{}}}", canonical?.join(",")).as_bytes());
    Some((key, URL_SAFE_NO_PAD.encode(hash)))
}

/// RFC 9449 section 4.3: without query and fragment, normalised; a route's path has two spellings at its end.
fn same_target(htu: &str, target: &str) -> bool {
    let normal = |text: &str| {
        let mut url = Url::parse(text).ok()?;
        url.set_query(None);
        url.set_fragment(None);
        Some(url.as_str().trim_end_matches('/').to_owned())
    };
    normal(htu).is_some_and(|htu| normal(target) == Some(htu))
}

fn is_fresh(made: UnixSeconds, now: UnixSeconds) -> bool {
    made <= now.saturating_add(LEEWAY) && now <= made.saturating_add(MAX_AGE)
}

/// A nonce of now.
fn nonce(sealer: &Sealer, now: UnixSeconds) -> String {
    sealer
        .seal(Purpose::DpopNonce, &now.to_be_bytes())
        .expect("eight bytes fit a seal")
}

fn is_ours(nonce: &str, sealer: &Sealer, now: UnixSeconds) -> bool {
    let made = sealer.open(Purpose::DpopNonce, nonce).ok();
    let made = made.and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
    made.is_some_and(|made| is_fresh(made, now))
}

/// Proofs that were used.
#[derive(Default)]
pub(super) struct Replays(Mutex<Windows>);

/// A proof stands in the window it came in and is looked for in that and the one before.
#[derive(Default)]
struct Windows {
    number: u64,
    current: HashSet<[u8; 32]>,
    previous: HashSet<[u8; 32]>,
}

#[derive(Debug, PartialEq, Eq)]
enum Use {
    First,
    Again,
    Full,
}

impl Replays {
    fn once(&self, thumbprint: &str, jti: &str, now: UnixSeconds) -> Use {
        // A thumbprint has one length, so that the two can't run into each other.
        let hash = digest::digest(&digest::SHA256, [thumbprint, jti].concat().as_bytes());
        let proof: [u8; 32] = hash.as_ref().try_into().expect("SHA-256 has 32 bytes");
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that goes back forgets nothing.
        let number = (now / (MAX_AGE + LEEWAY)).max(windows.number);
        if number > windows.number {
            let ended = std::mem::take(&mut windows.current);
            windows.previous = if number == windows.number + 1 {
                ended
            } else {
                HashSet::new()
            };
            windows.number = number;
        }
        if windows.current.contains(&proof) || windows.previous.contains(&proof) {
            Use::Again
        } else if windows.current.len() >= MAX_REMEMBERED {
            Use::Full
        } else {
            windows.current.insert(proof);
            Use::First
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_thumbprint_is_that_of_rfc_7638() {
        let jwk = json!({"kty": "RSA", "alg": "RS256", "kid": "2011-04-29", "e": "AQAB",
            "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"});
        let mut jwk = jwk.as_object().expect("an object").clone();
        let (_, thumbprint) = public_key(&jwk).expect("a public key");
        assert_eq!(thumbprint, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
        jwk.insert("d".to_owned(), json!("AQAB"));
        assert!(public_key(&jwk).is_none());
    }

    #[test]
    fn targets_compare_after_normalisation() {
        let target = "https://mcp.example.com/notes/mcp";
        for (htu, same) in [
            ("https://mcp.example.com/notes/mcp", true),
            ("HTTPS://MCP.example.com:443/notes/mcp/?a=b#c", true),
            ("https://mcp.example.com/notes/./mcp", true),
            ("https://mcp.example.com/notes/mcp/messages", false),
            ("https://mcp.example.com/notes", false),
            ("http://mcp.example.com/notes/mcp", false),
            ("https://mcp.example.com:8443/notes/mcp", false),
            ("https://mcp.example.com.evil/notes/mcp", false),
            ("/notes/mcp", false),
        ] {
            assert_eq!(same_target(htu, target), same, "{htu}");
        }
    }

    #[test]
    fn a_proof_is_remembered_for_as_long_as_it_is_fresh() {
        let replays = Replays::default();
        for made in [1_000_u64, 1_799, 1_800, 5_555] {
            let jti = made.to_string();
            let first = made - LEEWAY;
            assert_eq!(replays.once("k", &jti, first), Use::First);
            assert_eq!(replays.once("other", &jti, first), Use::First, "another key's jti");
            for now in first..=made + MAX_AGE {
                assert!(is_fresh(made, now));
                assert_eq!(replays.once("k", &jti, now), Use::Again, "{now}");
            }
            assert!(!is_fresh(made, made + MAX_AGE + 1) && !is_fresh(made, first - 1));
        }
        // A clock that goes back opens nothing.
        assert_eq!(replays.once("k", "5555", 5_300), Use::Again);
    }

    #[test]
    fn a_full_memory_refuses() {
        let replays = Replays::default();
        for number in 0..MAX_REMEMBERED {
            let proof = digest::digest(&digest::SHA256, &number.to_be_bytes());
            let mut windows = replays.0.lock().expect("nobody panicked");
            windows.number = 10;
            windows.current.insert(proof.as_ref().try_into().expect("32 bytes"));
        }
        assert_eq!(replays.once("k", "j", 0), Use::Full);
        assert_eq!(replays.once("k", "j", (MAX_AGE + LEEWAY) * 11), Use::First);
    }
}
