//! Proofs of possession (RFC 9449). Input: a proof's header and claims, a line each, which are signed with the key that the
//! token is bound to, `NONCE` standing for a good nonce; and, whole, as a proof.
//!
//! Oracle: nothing unsigned passes; what passes is, read by a second JSON reader, a proof with that key for this method, door,
//! token and time, and carries the nonce where one is asked for; it passes once; and with another method, door or token, beside
//! a second proof, or for a token sent as `Bearer` it never does.
#![no_main]

use std::sync::{Arc, LazyLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use libfuzzer_sys::fuzz_target;
use portcullis::authn::{Authenticator, AuthnError, ProofFault, RouteAuth, Sender};
use portcullis::clock::Clock;
use portcullis::config::{ClaimPaths, Dpop, Identity, KeySource, SealKey};
use portcullis::policy::Roles;
use portcullis::secret::Secret;
use portcullis::session::{Purpose, Sealer};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use zeroize::Zeroizing;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const RESOURCE: &str = "https://r.example/mcp";
const NOW: u64 = 1_800_000_000;

/// RFC 8037 appendix A's key: its `x`, and its `d` in PKCS #8.
const PUBLIC: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
const PRIVATE: &str = "MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v_VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g";

/// The claims of the token that is bound to it.
const BOUND: &str = r#"{"iss":"https://i.example","aud":"https://r.example/mcp","exp":1800000600,"sub":"alice","cnf":{"jkt":"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"}}"#;
/// The token's SHA-256.
const ATH: &str = "K6bS5tZ7pXJ2Zp87gfT9pholK8auXJyHRqzI86d_2Dc";

struct Gate {
    authenticator: Arc<Authenticator>,
    route: RouteAuth,
}

fn gate(dpop: Dpop) -> Gate {
    let identity = Identity {
        name: "fuzz".into(),
        issuer: "https://i.example".to_owned(),
        keys: KeySource::SharedSecret(Secret::new(SECRET)),
        algorithms: vec![Algorithm::HS256],
        audiences: Vec::new(),
        claims: ClaimPaths::default(),
        id_tokens: false,
        ca: None,
        implies: Default::default(),
        scope_upgrade_endpoint: None,
        dpop: Some(dpop),
        login: None,
    };
    let (roles, clock) = (Arc::new(Roles::default()), Clock::fixed(NOW));
    Gate {
        authenticator: Authenticator::new(&[Arc::new(identity)], roles, clock, Arc::new(|_| {})).expect("a gate"),
        route: RouteAuth {
            route: "r".into(),
            identities: vec!["fuzz".into()],
            anonymous: false,
            resource: RESOURCE.to_owned(),
        },
    }
}

static ACCEPTED: LazyLock<Gate> = LazyLock::new(|| gate(Dpop::Accepted));
static NONCE: LazyLock<Gate> = LazyLock::new(|| gate(Dpop::Nonce));
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_time().build().expect("a runtime"));
static SEALER: LazyLock<Sealer> = LazyLock::new(|| Sealer::new(&[SealKey(Zeroizing::new([7; 32]))]));
static TOKEN: LazyLock<String> = LazyLock::new(|| token(BOUND));
static OTHER_TOKEN: LazyLock<String> = LazyLock::new(|| token(&BOUND.replace("alice", "bob")));

fn token(claims: &str) -> String {
    let signed = encoded(r#"{"alg":"HS256"}"#, claims);
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = crypto::sign(signed.as_bytes(), &key, Algorithm::HS256).expect("a signature");
    format!("{signed}.{signature}")
}

fn encoded(header: &str, claims: &str) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
}

/// What says whether a request passes.
struct Request<'a> {
    scheme: &'a str,
    token: &'a str,
    proofs: &'a [&'a str],
    method: Method,
    target: &'a str,
}

impl Request<'_> {
    fn send(&self, gate: &Gate) -> Result<(), AuthnError> {
        let mut headers = HeaderMap::new();
        let credentials = format!("{} {}", self.scheme, self.token);
        headers.append(AUTHORIZATION, HeaderValue::try_from(credentials).expect("ASCII"));
        for proof in self.proofs {
            let proof = HeaderValue::try_from(*proof).expect("ASCII");
            headers.append(HeaderName::from_static("dpop"), proof);
        }
        let sender = Sender {
            method: &self.method,
            target: self.target,
            certificate: None,
            sealer: &SEALER,
        };
        let caller = gate.authenticator.authenticate(&gate.route, &headers, &sender);
        RUNTIME.block_on(caller).map(|_| ())
    }
}

fn request<'a>(proofs: &'a [&'a str]) -> Request<'a> {
    Request {
        scheme: "DPoP",
        token: &TOKEN,
        proofs,
        method: Method::POST,
        target: RESOURCE,
    }
}

/// Whether nothing is wrong with the proof itself, used or not.
fn good(result: &Result<(), AuthnError>) -> bool {
    match result {
        Ok(()) | Err(AuthnError::Busy) => true,
        Err(AuthnError::InvalidProof { reason, .. }) => *reason == ProofFault::Replayed,
        Err(_) => false,
    }
}

fuzz_target!(|input: &str| {
    if HeaderValue::try_from(input).is_ok() {
        assert!(!good(&request(&[input]).send(&ACCEPTED)));
    }
    let Some((header, claims)) = input.split_once('\n') else {
        return;
    };
    let nonce = SEALER.seal(Purpose::DpopNonce, &NOW.to_be_bytes()).expect("a seal");
    let claims = claims.replace("NONCE", &nonce);
    let signed = encoded(header, &claims);
    let key = URL_SAFE_NO_PAD.decode(PRIVATE).expect("base64url");
    let signature = crypto::sign(signed.as_bytes(), &EncodingKey::from_ed_der(&key), Algorithm::EdDSA);
    let proof = format!("{signed}.{}", signature.expect("a signature"));
    let proof = &*proof;
    assert!(!good(&request(&[&format!("{signed}.")]).send(&ACCEPTED)));

    let first = request(&[proof]).send(&ACCEPTED);
    let read = |text: &str| serde_json::from_str::<Value>(text).ok();
    let with_nonce = good(&request(&[proof]).send(&NONCE));
    let says_nonce = read(&claims).is_some_and(|claims| claims["nonce"] == *nonce);
    assert_eq!(with_nonce, good(&first) && says_nonce);
    if !good(&first) {
        return;
    }
    assert!(request(&[proof]).send(&ACCEPTED).is_err(), "a proof passes once");

    let read = |text| read(text).expect("only JSON passes");
    let (header, claims) = (read(header), read(&claims));
    assert!(
        header["typ"] == "dpop+jwt"
            && ["EdDSA", "Ed25519"].iter().any(|name| header["alg"] == *name)
            && header.get("crit").is_none()
    );
    let jwk = &header["jwk"];
    assert!(jwk["kty"] == "OKP" && jwk["crv"] == "Ed25519" && jwk["x"] == PUBLIC && jwk.get("d").is_none());
    assert!(claims["htm"] == "POST" && claims["ath"] == ATH);
    assert!(!claims["jti"].as_str().expect("a text").is_empty());
    let issued = claims["iat"].as_u64().expect("a number");
    assert!((NOW - 120..=NOW + 60).contains(&issued));

    let elsewhere = [
        "http://r.example/mcp",
        "https://r.example:8443/mcp",
        "https://r.example/other",
        "https://r.example/mcp/messages",
        "https://r.example/",
        "https://x.r.example/mcp",
    ];
    let (alone, twice) = ([proof], [proof, proof]);
    let others = elsewhere.into_iter().map(|target| Request {
        target,
        ..request(&alone)
    });
    let others = others.chain([
        Request {
            method: Method::GET,
            ..request(&alone)
        },
        Request {
            token: &OTHER_TOKEN,
            ..request(&alone)
        },
        Request {
            scheme: "Bearer",
            ..request(&alone)
        },
        request(&twice),
    ]);
    for other in others {
        assert!(!good(&other.send(&ACCEPTED)), "{} {}", other.method, other.target);
    }
});
