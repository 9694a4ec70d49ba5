//! Tokens. Input: a header and claims, a line each, which are signed with the right secret; and, whole, as a token.
//!
//! Oracle: nothing unsigned is ever let in; and what is let in, read by a second JSON reader, has the right `alg` and issuer,
//! is for this resource, is not over, and names its subject.
#![no_main]

use std::sync::{Arc, LazyLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method};
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use libfuzzer_sys::fuzz_target;
use portcullis::authn::{Authenticated, Authenticator, RouteAuth, Sender};
use portcullis::clock::Clock;
use portcullis::config::{ClaimPaths, Identity, KeySource};
use portcullis::policy::Roles;
use portcullis::secret::Secret;
use portcullis::session::Sealer;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const ISSUER: &str = "https://i.example";
const RESOURCE: &str = "https://r.example/mcp";
const NOW: u64 = 1_800_000_000;

struct Gate {
    authenticator: Arc<Authenticator>,
    route: RouteAuth,
    sealer: Sealer,
    runtime: Runtime,
}

static GATE: LazyLock<Gate> = LazyLock::new(|| {
    let identity = Identity {
        name: "fuzz".into(),
        issuer: ISSUER.to_owned(),
        keys: KeySource::SharedSecret(Secret::new(SECRET)),
        algorithms: vec![Algorithm::HS256],
        audiences: Vec::new(),
        claims: ClaimPaths::default(),
        id_tokens: false,
        ca: None,
        implies: Default::default(),
        scope_upgrade_endpoint: None,
        dpop: None,
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
        sealer: Sealer::new(&[]),
        runtime: Builder::new_current_thread().enable_time().build().expect("a runtime"),
    }
});

fn present(token: &str) -> Option<Authenticated> {
    let value = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
    let gate = &*GATE;
    let sender = Sender {
        method: &Method::POST,
        target: RESOURCE,
        certificate: None,
        sealer: &gate.sealer,
    };
    gate.runtime
        .block_on(gate.authenticator.authenticate(&gate.route, &headers, &sender))
        .ok()
}

fuzz_target!(|input: &str| {
    assert!(present(input).is_none());
    let Some((header, claims)) = input.split_once('\n') else {
        return;
    };
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = crypto::sign(signed.as_bytes(), &key, Algorithm::HS256).expect("a signature");
    assert!(present(&format!("{signed}.")).is_none());
    let Some(caller) = present(&format!("{signed}.{signature}")) else {
        return;
    };
    let read = |text| serde_json::from_str::<Value>(text).expect("only JSON is let in");
    let (header, claims) = (read(header), read(claims));
    assert!(header["alg"] == "HS256" && header.get("crit").is_none());
    assert!(claims["iss"] == ISSUER && claims.get("cnf").is_none());
    let aud = &claims["aud"];
    let audiences = aud.as_array().map_or(std::slice::from_ref(aud), Vec::as_slice);
    assert!(audiences.iter().any(|audience| audience == RESOURCE));
    assert!(claims["exp"].as_f64().expect("a number") + 61.0 > NOW as f64);
    let future = (NOW + 61) as f64;
    assert!(["nbf", "iat"].iter().all(|time| {
        claims
            .get(time)
            .is_none_or(|at| at.as_f64().expect("a number") < future)
    }));
    assert_eq!(claims["sub"], *caller.principal.subject);
});
