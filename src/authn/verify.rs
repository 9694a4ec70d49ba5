//! What a token has to be, apart from signed by the right key.
//!
//! 1. Three base64url parts; header and claims are JSON objects without duplicate keys.
//! 2. `alg` is an algorithm by name: `none` isn't one (RFC 8725 section 3.2). Which keys may verify it, the key decides.
//! 3. `typ` is absent, `JWT` or `at+jwt`, with or without `application/` (RFC 9068 section 4): an ID token or a logout
//!    token that says what it is doesn't pass. Any `crit` is refused: no extension is understood.
//! 4. `jku`, `x5u`, `jwk` and their like are ignored: a token doesn't bring its own keys (RFC 8725 section 3.10).
//! 5. A `cnf` binds the token to a key (`jkt`, RFC 9449) or a certificate (`x5t#S256`, RFC 8705); one with any other
//!    member is refused: unbound use is what it forbids (RFC 7800).
//! 6. What its claims say is no access token is refused, unless the identity takes ID tokens, which are otherwise told by
//!    `at_hash` too (OpenID Connect Core section 3.1.3.6); and what lacks a claim that the identity requires.
//! 7. `aud`, or the claim that stands for it, and `exp` are required; 60 s of leeway for `exp`, `nbf` and `iat`.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, AlgorithmFamily};
use serde_json::{Map, Value};

use super::jwks::Key;
use super::{Principal, RouteAuth, TokenFault, strict_json};
use crate::clock::UnixSeconds;
use crate::config::{Identity, KeySource};

/// Seconds that issuers' clocks may be off.
const LEEWAY: u64 = 60;

/// A parsed token that nobody has vouched for yet.
pub(super) struct Token<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
    signed: &'a str,
    signature: &'a str,
    pub(super) claims: Map<String, Value>,
}

impl<'a> Token<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, TokenFault> {
        let parts = Parts::split(text)?;
        critical(&parts.header)?;
        kind(&parts.header)?;
        Self::of(parts)
    }

    /// A token whose `crit` and `typ` were looked at.
    pub(super) fn of(parts: Parts<'a>) -> Result<Self, TokenFault> {
        Ok(Self {
            algorithm: algorithm(&parts.header)?,
            kid: key_id(&parts.header)?,
            signed: parts.signed,
            signature: parts.signature,
            claims: parts.claims,
        })
    }

    /// Who says they issued it.
    pub(super) fn issuer(&self) -> Option<&str> {
        self.claims.get("iss")?.as_str()
    }

    /// Whether this key signed it.
    pub(super) fn is_signed_by(&self, key: &Key) -> bool {
        jsonwebtoken::crypto::verify(self.signature, self.signed.as_bytes(), &key.verifying, self.algorithm)
            .unwrap_or(false)
    }

    /// Reads the claims of a token whose signature was found good.
    pub(super) fn into_verified(
        self,
        identity: &Identity,
        generation: u64,
        now: UnixSeconds,
    ) -> Result<Verified, TokenFault> {
        believe(identity, self.claims, generation, now)
    }
}

/// A token taken apart: rule 1.
pub(super) struct Parts<'a> {
    pub(super) header: Map<String, Value>,
    pub(super) claims: Map<String, Value>,
    signed: &'a str,
    signature: &'a str,
}

impl<'a> Parts<'a> {
    pub(super) fn split(text: &'a str) -> Result<Self, TokenFault> {
        let (signed, signature) = text.rsplit_once('.').ok_or(TokenFault::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenFault::Malformed)?;
        Ok(Self {
            header: object(header)?,
            claims: object(claims)?,
            signed,
            signature,
        })
    }
}

pub(super) fn critical(header: &Map<String, Value>) -> Result<(), TokenFault> {
    match header.get("crit") {
        None => Ok(()),
        Some(_) => Err(TokenFault::Critical),
    }
}

pub(super) fn kind(header: &Map<String, Value>) -> Result<(), TokenFault> {
    match header.get("typ").is_none_or(is_access_token_type) {
        true => Ok(()),
        false => Err(TokenFault::Type),
    }
}

pub(super) fn algorithm(header: &Map<String, Value>) -> Result<Algorithm, TokenFault> {
    header
        .get("alg")
        .and_then(Value::as_str)
        .and_then(|name| name.parse().ok())
        .ok_or(TokenFault::Algorithm)
}

pub(super) fn key_id(header: &Map<String, Value>) -> Result<Option<String>, TokenFault> {
    match header.get("kid") {
        None => Ok(None),
        Some(Value::String(kid)) => Ok(Some(kid.clone())),
        Some(_) => Err(TokenFault::Malformed),
    }
}

/// What a token looks like to somebody who can't check it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A JWT by this issuer, as it says.
    Jwt(String),
    /// A JWT that can't be read, or that doesn't say plainly whose it is.
    Unclear,
    /// Anything else, a JWT without `iss` included.
    Opaque,
}

/// Looks at a token without believing it, to find out whom it may be shown to: a JWT is its issuer's business alone. So
/// the header is read as leniently as anybody might read it, and the claims as strictly as always.
pub(super) fn shape(text: &str) -> Shape {
    let mut parts = text.split('.');
    let (Some(header), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Shape::Opaque;
    };
    let header = URL_SAFE_NO_PAD.decode(header).ok();
    let header = header.and_then(|json| serde_json::from_slice::<Value>(&json).ok());
    if !header.is_some_and(|header| header.is_object()) {
        return Shape::Opaque;
    }
    match object(claims) {
        Err(_) => Shape::Unclear,
        Ok(claims) => match claims.get("iss") {
            None => Shape::Opaque,
            Some(Value::String(issuer)) => Shape::Jwt(issuer.clone()),
            Some(_) => Shape::Unclear,
        },
    }
}

/// Reads claims that the identity vouches for, whichever way it does.
pub(super) fn believe(
    identity: &Identity,
    claims: Map<String, Value>,
    generation: u64,
    now: UnixSeconds,
) -> Result<Verified, TokenFault> {
    if !is_access_token(&claims, identity.id_tokens) {
        return Err(TokenFault::Type);
    }
    if !super::claims::has_required(identity, &claims) {
        return Err(TokenFault::Required);
    }
    let audiences = audiences(identity, &claims)?;
    let expires = expires(&claims)?;
    let not_before = not_before(&claims)?;
    issued(&claims, now)?;
    let binding = Binding::read(claims.get("cnf"))?;
    let mut principal = super::claims::principal(identity, claims, expires).ok_or(TokenFault::Subject)?;
    principal.generation = generation;
    Ok(Verified {
        principal: Arc::new(principal),
        audiences,
        expires,
        not_before,
        binding,
    })
}

/// What whoever presents a token must show besides it.
#[derive(Default)]
pub(super) struct Binding {
    /// RFC 7638 thumbprint of a DPoP key, in base64url.
    pub(super) key: Option<String>,
    /// SHA-256 of a certificate.
    pub(super) certificate: Option<[u8; 32]>,
}

impl Binding {
    pub(super) fn read(confirmation: Option<&Value>) -> Result<Self, TokenFault> {
        let Some(confirmation) = confirmation else {
            return Ok(Self::default());
        };
        let members = confirmation.as_object().filter(|members| !members.is_empty());
        let mut binding = Self::default();
        for (name, value) in members.ok_or(TokenFault::Bound)? {
            let text = value.as_str().ok_or(TokenFault::Bound)?;
            let hash = URL_SAFE_NO_PAD.decode(text).ok().and_then(|hash| hash.try_into().ok());
            let hash: [u8; 32] = hash.ok_or(TokenFault::Bound)?;
            match name.as_str() {
                "jkt" => binding.key = Some(text.to_owned()),
                "x5t#S256" => binding.certificate = Some(hash),
                _ => return Err(TokenFault::Bound),
            }
        }
        Ok(binding)
    }
}

/// A token that its identity vouches for, with what has to be looked at on every request.
pub(super) struct Verified {
    pub(super) principal: Arc<Principal>,
    pub(super) expires: UnixSeconds,
    pub(super) binding: Binding,
    audiences: Vec<String>,
    not_before: UnixSeconds,
}

impl Verified {
    /// Whether the token is for this route, now.
    pub(super) fn check(&self, identity: &Identity, route: &RouteAuth, now: UnixSeconds) -> Result<(), TokenFault> {
        meant(&self.audiences, identity, route)?;
        unexpired(self.expires, now)?;
        begun(self.not_before, now)
    }
}

pub(super) fn meant(audiences: &[String], identity: &Identity, route: &RouteAuth) -> Result<(), TokenFault> {
    let meant = |audience: &String| same_resource(audience, &route.resource) || identity.audiences.contains(audience);
    match audiences.iter().any(meant) {
        true => Ok(()),
        false => Err(TokenFault::Audience),
    }
}

pub(super) fn unexpired(expires: UnixSeconds, now: UnixSeconds) -> Result<(), TokenFault> {
    match now < expires.saturating_add(LEEWAY) {
        true => Ok(()),
        false => Err(TokenFault::Expired(Some(expires))),
    }
}

/// `nbf` and `iat` may not be to come.
pub(super) fn begun(time: UnixSeconds, now: UnixSeconds) -> Result<(), TokenFault> {
    match time <= now.saturating_add(LEEWAY) {
        true => Ok(()),
        false => Err(TokenFault::NotYetValid),
    }
}

pub(super) fn expires(claims: &Map<String, Value>) -> Result<UnixSeconds, TokenFault> {
    time(claims, "exp")?.ok_or(TokenFault::Times)
}

pub(super) fn not_before(claims: &Map<String, Value>) -> Result<UnixSeconds, TokenFault> {
    Ok(time(claims, "nbf")?.unwrap_or(0))
}

pub(super) fn issued(claims: &Map<String, Value>, now: UnixSeconds) -> Result<(), TokenFault> {
    begun(time(claims, "iat")?.unwrap_or(0), now)
}

/// Whether tokens of this identity may be signed like this.
pub(super) fn allows(identity: &Identity, algorithm: Algorithm) -> bool {
    match identity.keys {
        KeySource::SharedSecret(_) => algorithm == Algorithm::HS256,
        // Whatever the configuration says: a public key is no HMAC secret (RFC 8725 section 2.1).
        _ => algorithm.family() != AlgorithmFamily::Hmac && identity.algorithms.contains(&algorithm),
    }
}

fn object(part: &str) -> Result<Map<String, Value>, TokenFault> {
    let json = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenFault::Malformed)?;
    strict_json::object(&json).ok_or(TokenFault::Malformed)
}

fn is_access_token_type(typ: &Value) -> bool {
    typ.as_str().is_some_and(|typ| {
        let typ = typ.to_ascii_lowercase();
        matches!(typ.strip_prefix("application/").unwrap_or(&typ), "jwt" | "at+jwt")
    })
}

/// `token_type` is RFC 7662's; `token_use` (Cognito) and `typ` (Keycloak) are where issuers tell refresh and ID tokens
/// apart. Keycloak calls one that is bound by `cnf` DPoP.
pub(super) fn is_access_token(claims: &Map<String, Value>, id_tokens: bool) -> bool {
    let says_so = |key: &str| match claims.get(key) {
        None => true,
        Some(Value::String(kind)) => match &*kind.to_ascii_lowercase() {
            "bearer" | "access" | "access_token" | "at+jwt" | "jwt" => true,
            "dpop" => claims.contains_key("cnf"),
            "id" | "id_token" => id_tokens,
            _ => false,
        },
        Some(_) => false,
    };
    ["token_type", "token_use", "typ"].into_iter().all(says_so)
        && (id_tokens || !["at_hash", "c_hash"].into_iter().any(|key| claims.contains_key(key)))
}

pub(super) fn audiences(identity: &Identity, claims: &Map<String, Value>) -> Result<Vec<String>, TokenFault> {
    let one = |value: &Value| value.as_str().map(str::to_owned);
    match super::claims::first(claims, &identity.claims.audience) {
        Some(Value::Array(audiences)) => audiences.iter().map(one).collect(),
        Some(value) => one(value).map(|audience| vec![audience]),
        None => None,
    }
    .ok_or(TokenFault::Audience)
}

/// A NumericDate (RFC 7519 section 2), which may have a fraction.
fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<UnixSeconds>, TokenFault> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let whole = value.as_u64();
    // The cast saturates, and what a fraction adds is less than the leeway.
    let fraction = || value.as_f64().filter(|time| *time >= 0.0).map(|time| time as u64);
    whole.or_else(fraction).map(Some).ok_or(TokenFault::Times)
}

/// Byte for byte, except that an origin and the same with `/` are one resource.
fn same_resource(audience: &str, resource: &str) -> bool {
    let is_origin = |url: &str| {
        url.split_once("://")
            .is_some_and(|(_, rest)| !rest.contains(['/', '?', '#']))
    };
    if audience == resource {
        return true;
    }
    let (a, r) = (
        audience.strip_suffix('/').unwrap_or(audience),
        resource.strip_suffix('/').unwrap_or(resource),
    );
    a == r && is_origin(r)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jwt_is_known_by_its_shape() {
        let part = |json: &str| URL_SAFE_NO_PAD.encode(json);
        let jwt = |header: &str, claims: &str| format!("{}.{}.c2ln", part(header), part(claims));
        let issued = r#"{"iss":"https://a"}"#;
        for (token, expected) in [
            (jwt(r#"{"alg":"RS256"}"#, issued), Shape::Jwt("https://a".to_owned())),
            // A header that a lenient reader takes is enough to keep it from strangers.
            (
                jwt(r#"{"alg":"a","alg":"b"}"#, issued),
                Shape::Jwt("https://a".to_owned()),
            ),
            (jwt("{}", issued), Shape::Jwt("https://a".to_owned())),
            (jwt("{}", r#"{"iss":"https://a","iss":"https://b"}"#), Shape::Unclear),
            (jwt("{}", r#"{"iss":7}"#), Shape::Unclear),
            (jwt("{}", "no JSON"), Shape::Unclear),
            (jwt("{}", r#"{"sub":"a"}"#), Shape::Opaque),
            (jwt("no JSON", issued), Shape::Opaque),
            ("a.b.c".to_owned(), Shape::Opaque),
            (format!("{}.x", jwt("{}", issued)), Shape::Opaque),
            ("2YotnFZFEjr1zCsicMWpAA".to_owned(), Shape::Opaque),
        ] {
            assert_eq!(shape(&token), expected, "{token}");
        }
    }

    #[test]
    fn only_an_origin_has_two_spellings() {
        for (audience, resource, same) in [
            ("https://x.example", "https://x.example/", true),
            ("https://x.example/", "https://x.example", true),
            ("https://x.example/mcp", "https://x.example/mcp", true),
            ("https://x.example/mcp/", "https://x.example/mcp", false),
            ("https://x.example//", "https://x.example/", false),
            ("https://X.example/", "https://x.example/", false),
            ("https://x.example:443/", "https://x.example/", false),
            ("https://x.example/mcp/a", "https://x.example/mcp", false),
            ("", "https://x.example/", false),
        ] {
            assert_eq!(same_resource(audience, resource), same, "{audience} {resource}");
        }
    }

    #[test]
    fn times_are_numbers_of_seconds() {
        let read = |json: &str| time(&strict_json::object(json.as_bytes()).unwrap(), "exp");
        assert_eq!(read("{}"), Ok(None));
        assert_eq!(read(r#"{"exp":12}"#), Ok(Some(12)));
        assert_eq!(read(r#"{"exp":12.9}"#), Ok(Some(12)));
        assert_eq!(read(r#"{"exp":1e300}"#), Ok(Some(u64::MAX)));
        assert_eq!(read(r#"{"exp":18446744073709551615}"#), Ok(Some(u64::MAX)));
        for bad in [r#"{"exp":"12"}"#, r#"{"exp":-1}"#, r#"{"exp":null}"#, r#"{"exp":[12]}"#] {
            assert_eq!(read(bad), Err(TokenFault::Times), "{bad}");
        }
    }
}
