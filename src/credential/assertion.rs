//! A short JWT for each caller, signed by the gateway (RFC 7519).
//!
//! 1. It says who calls: `sub` is the caller's mapped subject, `sub_id` the same with the issuer that knows them by it
//!    (RFC 9493 section 3.2.3), for subjects of two issuers may be spelled alike.
//! 2. It says who acts for them: `act` as the caller's token has it, else the client that the token was made for (RFC 8693
//!    section 4.1); nobody when the client acts for itself.
//! 3. It ends with its lifetime or with the caller's own token, whichever is first, and is handed out for half of its
//!    lifetime at most.
//! 4. What is copied of the caller's claims is configured and bounded; too much is an error, never half of it.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use http::HeaderValue;
use moka::sync::Cache;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{CredentialError, Making, SetupError};
use crate::authn::Principal;
use crate::clock::{Clock, UnixSeconds};
use crate::config::Assertion;
use crate::oauth::client::unique;
use crate::oauth::signer::Signer;

/// Bytes of all claims that are about the caller, as JSON.
const MAX_CLAIMS: usize = 8 * 1024;
const MAX_ENTRIES: u64 = 10_000;

/// What the gateway says itself, or leaves out: never a caller's claim.
const OWN: [&str; 12] = [
    "iss",
    "sub",
    "sub_id",
    "aud",
    "exp",
    "nbf",
    "iat",
    "jti",
    "act",
    "client_id",
    "cnf",
    "scope",
];

/// Signs for one route.
pub(super) struct Asserter {
    signer: Arc<Signer>,
    issuer: String,
    audience: String,
    /// Seconds.
    lifetime: u64,
    /// Of the caller's, copied.
    claims: Vec<String>,
    cache: Cache<[u8; 32], (HeaderValue, UnixSeconds)>,
    clock: Clock,
}

impl Asserter {
    /// # Errors
    /// A key that can't sign, or nobody to be the audience.
    pub(super) fn new(config: &Assertion, making: &Making<'_>) -> Result<Self, SetupError> {
        let unusable = |key: &str, cause: String| SetupError::Unusable {
            route: making.route.to_owned(),
            key: format!("assertion.{key}"),
            cause,
        };
        let signer = match &config.key {
            Some(key) => Arc::new(Signer::of_key(key).map_err(|error| unusable("private_key", error.to_string()))?),
            None => making.signer.clone(),
        };
        let upstream = || making.upstream.map(ToString::to_string);
        let audience = config.audience.clone().or_else(upstream);
        Ok(Self {
            signer,
            issuer: config.issuer.clone().unwrap_or_else(|| making.public_url.to_owned()),
            audience: audience.ok_or_else(|| unusable("audience", "the upstream has no URL: name it".to_owned()))?,
            lifetime: config.lifetime.as_secs(),
            claims: config.claims.clone(),
            cache: Cache::builder()
                .max_capacity(MAX_ENTRIES)
                // Housekeeping; `until` decides.
                .time_to_live(config.lifetime.max(Duration::from_secs(1)))
                .build(),
            clock: making.clock.clone(),
        })
    }

    /// Whose keys its readers need.
    pub(super) fn signer(&self) -> &Signer {
        &self.signer
    }

    /// `Bearer …` with an assertion about this caller, marked sensitive.
    ///
    /// # Errors
    /// Nobody vouched for the caller, or there is too much to say.
    pub(super) fn bearer(&self, principal: &Principal) -> Result<HeaderValue, CredentialError> {
        if principal.is_anonymous() {
            return Err(CredentialError::NoSubject);
        }
        let now = self.clock.now();
        let mut claims = about(principal, &self.claims);
        let said = Zeroizing::new(Value::from(claims.clone()).to_string());
        if said.len() > MAX_CLAIMS {
            return Err(CredentialError::TooMuch);
        }
        let mut context = digest::Context::new(&digest::SHA256);
        // Who asks next may have a token that ends sooner.
        context.update(&principal.expires.unwrap_or(u64::MAX).to_be_bytes());
        context.update(said.as_bytes());
        let key: [u8; 32] = context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes");
        if let Some((value, until)) = self.cache.get(&key)
            && now < until
        {
            return Ok(value);
        }
        let end = now
            .saturating_add(self.lifetime)
            .min(principal.expires.unwrap_or(u64::MAX));
        claims.insert("iss".to_owned(), self.issuer.as_str().into());
        claims.insert("aud".to_owned(), self.audience.as_str().into());
        claims.insert("iat".to_owned(), now.into());
        claims.insert("exp".to_owned(), end.into());
        claims.insert("jti".to_owned(), unique().into());
        let token = Zeroizing::new(format!("Bearer {}", self.signer.sign(&claims, "JWT")));
        let mut value = HeaderValue::from_str(&token).expect("a JWS can stand in a header");
        value.set_sensitive(true);
        let until = now.saturating_add(self.lifetime / 2).min(end);
        self.cache.insert(key, (value.clone(), until));
        Ok(value)
    }
}

/// What an assertion says of a caller, at whatever time.
pub fn about(principal: &Principal, copied: &[String]) -> Map<String, Value> {
    let mut claims = Map::new();
    for name in copied.iter().filter(|name| !OWN.contains(&name.as_str())) {
        if let Some(value) = principal.claims.get(name) {
            claims.insert(name.clone(), value.clone());
        }
    }
    let mut say = |name: &str, value: Value| claims.insert(name.to_owned(), value);
    say("sub", principal.subject.as_str().into());
    say(
        "sub_id",
        json!({"format": "iss_sub", "iss": principal.issuer, "sub": principal.subject}),
    );
    if let Some(client) = &principal.client {
        say("client_id", client.as_str().into());
    }
    if let Some(act) = actor(principal) {
        say("act", act);
    }
    claims
}

fn actor(principal: &Principal) -> Option<Value> {
    if let Some(act @ Value::Object(_)) = principal.claims.get("act") {
        return Some(act.clone());
    }
    let client = principal.client.as_ref()?;
    (*client != principal.subject).then(|| json!({"sub": client, "iss": principal.issuer}))
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::super::fake_issuer::Made;
    use super::*;
    use crate::telemetry::Metrics;

    const NOW: UnixSeconds = 1_000_000;

    fn config(claims: &[&str]) -> Assertion {
        Assertion {
            audience: None,
            issuer: None,
            lifetime: Duration::from_secs(60),
            claims: claims.iter().map(ToString::to_string).collect(),
            key: None,
        }
    }

    fn ada(claims: Value) -> Principal {
        Principal {
            identity: Some("corp".into()),
            issuer: "https://login.example".to_owned(),
            subject: "ada".to_owned(),
            client: Some("agent".to_owned()),
            claims: claims.as_object().unwrap().clone(),
            expires: Some(NOW + 3600),
            ..Principal::default()
        }
    }

    fn asserter(config: &Assertion, clock: &Clock) -> Asserter {
        Asserter::new(config, &Made::new(clock, &Metrics::new()).making()).unwrap_or_else(|error| panic!("{error}"))
    }

    fn claims(value: &HeaderValue) -> Value {
        assert!(value.is_sensitive());
        let token = value.to_str().unwrap().strip_prefix("Bearer ").unwrap();
        let claims = token.split('.').nth(1).unwrap();
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
    }

    #[test]
    fn it_says_who_calls_who_acts_and_for_how_long() {
        let clock = Clock::fixed(NOW);
        let asserter = asserter(&config(&["email", "absent", "groups"]), &clock);
        let caller = ada(json!({"sub": "4711", "email": "ada@corp.example", "groups": ["a"], "secret": 1}));
        let mut said = claims(&asserter.bearer(&caller).unwrap());
        let jti = said["jti"].take();
        assert!(jti.as_str().unwrap().len() >= 22);
        assert_eq!(
            said,
            json!({
                "iss": "https://gate.example", "aud": "https://nc.example/mcp", "sub": "ada",
                "sub_id": {"format": "iss_sub", "iss": "https://login.example", "sub": "ada"},
                "client_id": "agent", "act": {"sub": "agent", "iss": "https://login.example"},
                "email": "ada@corp.example", "groups": ["a"],
                "iat": NOW, "exp": NOW + 60, "jti": null,
            })
        );
        let header = asserter.bearer(&caller).unwrap();
        let token = header.to_str().unwrap().strip_prefix("Bearer ").unwrap().to_owned();
        let jwks: jsonwebtoken::jwk::JwkSet = serde_json::from_slice(&Signer::jwks([asserter.signer()])).unwrap();
        let kid = jsonwebtoken::decode_header(&token).unwrap().kid.unwrap();
        let key = jsonwebtoken::DecodingKey::from_jwk(jwks.find(&kid).unwrap()).unwrap();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let algorithm = jsonwebtoken::Algorithm::ES256;
        assert!(jsonwebtoken::crypto::verify(signature, signed.as_bytes(), &key, algorithm).unwrap());
    }

    #[test]
    fn the_gates_own_word_is_never_a_callers_claim() {
        let asserter = asserter(&config(&["sub", "act", "iss", "exp", "aud"]), &Clock::fixed(NOW));
        let caller = ada(json!({"sub": "root", "iss": "x", "exp": 9, "aud": "x", "act": "root"}));
        let said = claims(&asserter.bearer(&caller).unwrap());
        assert_eq!(
            (
                &said["sub"],
                &said["iss"],
                &said["exp"],
                &said["aud"],
                &said["act"]["sub"]
            ),
            (
                &json!("ada"),
                &json!("https://gate.example"),
                &json!(NOW + 60),
                &json!("https://nc.example/mcp"),
                &json!("agent")
            )
        );
    }

    #[test]
    fn who_acts() {
        let act = |caller: &Principal| about(caller, &[]).get("act").cloned();
        let chain = json!({"sub": "agent-2", "act": {"sub": "agent-1"}});
        assert_eq!(act(&ada(json!({"act": chain}))), Some(chain));
        let itself = Principal {
            client: Some("ada".to_owned()),
            ..ada(json!({}))
        };
        assert_eq!(act(&itself), None);
        let unknown = Principal {
            client: None,
            ..ada(json!({}))
        };
        assert_eq!(act(&unknown), None);
    }

    #[test]
    fn it_ends_with_the_callers_token_and_is_kept_for_half_its_life() {
        let clock = Clock::fixed(NOW);
        let asserter = asserter(&config(&[]), &clock);
        let soon = Principal {
            expires: Some(NOW + 10),
            ..ada(json!({}))
        };
        let long = asserter.bearer(&ada(json!({}))).unwrap();
        assert_eq!(claims(&asserter.bearer(&soon).unwrap())["exp"], NOW + 10);
        assert_eq!(claims(&long)["exp"], NOW + 60);
        clock.set(NOW + 29);
        assert_eq!(asserter.bearer(&ada(json!({}))).unwrap(), long);
        clock.set(NOW + 30);
        let next = asserter.bearer(&ada(json!({}))).unwrap();
        assert_eq!(claims(&next)["exp"], NOW + 90);
        assert_ne!(claims(&next)["jti"], claims(&long)["jti"]);
        // Callers share nothing.
        let bob = Principal {
            subject: "bob".to_owned(),
            ..ada(json!({}))
        };
        assert_eq!(claims(&asserter.bearer(&bob).unwrap())["sub"], "bob");
        let elsewhere = Principal {
            issuer: "https://partner.example".to_owned(),
            ..ada(json!({}))
        };
        let elsewhere = claims(&asserter.bearer(&elsewhere).unwrap());
        assert_eq!(elsewhere["sub_id"]["iss"], "https://partner.example");
        // An API key may have no end.
        let endless = Principal {
            expires: None,
            ..ada(json!({}))
        };
        assert_eq!(claims(&asserter.bearer(&endless).unwrap())["exp"], NOW + 90);
    }

    #[test]
    fn too_much_is_an_error_and_nobody_is_nobody() {
        let asserter = asserter(&config(&["groups"]), &Clock::fixed(NOW));
        let many: Vec<String> = (0..2000).map(|number| format!("group-{number}")).collect();
        assert_eq!(
            asserter.bearer(&ada(json!({"groups": many}))).err(),
            Some(CredentialError::TooMuch)
        );
        assert_eq!(
            asserter.bearer(&Principal::anonymous()).err(),
            Some(CredentialError::NoSubject)
        );
    }

    #[test]
    fn a_command_has_no_url_to_be_the_audience() {
        let made = Made::new(&Clock::system(), &Metrics::new());
        let making = Making {
            upstream: None,
            ..made.making()
        };
        let error = Asserter::new(&config(&[]), &making).err().expect("refused").to_string();
        assert!(error.contains("assertion.audience"), "{error}");
    }
}
