//! Key sets. Input: the document, as an identity's `jwks_file`.
//!
//! Oracle: what is accepted is JSON with an array of `keys`; no more keys are usable than stand there with a type that is
//! asymmetric and at most 100; a symmetric key never is.
#![no_main]

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use jsonwebtoken::Algorithm;
use libfuzzer_sys::fuzz_target;
use portcullis::authn::Authenticator;
use portcullis::clock::Clock;
use portcullis::config::{ClaimPaths, Identity, KeySource};
use portcullis::policy::Roles;
use serde_json::Value;

static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("portcullis-fuzz-{}.json", std::process::id())));

fuzz_target!(|document: &[u8]| {
    std::fs::write(&*FILE, document).expect("the temporary directory can be written");
    let identity = Identity {
        name: "fuzz".into(),
        issuer: "https://i.example".to_owned(),
        keys: KeySource::JwksFile(FILE.clone()),
        algorithms: vec![Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA],
        audiences: Vec::new(),
        claims: ClaimPaths::default(),
        id_tokens: false,
        ca: None,
        implies: Default::default(),
        scope_upgrade_endpoint: None,
        dpop: None,
        login: None,
    };
    let (roles, clock) = (Arc::new(Roles::default()), Clock::fixed(1));
    let built = Authenticator::new(&[Arc::new(identity)], roles, clock, Arc::new(|_| {}));
    std::fs::remove_file(&*FILE).expect("it was written");
    let Ok(authenticator) = built else {
        return;
    };
    let usable = authenticator.state()[0].keys;
    if let Ok(document) = serde_json::from_slice::<Value>(document) {
        let keys = document["keys"].as_array().expect("an array of keys");
        let asymmetric = |key: &&Value| ["RSA", "EC", "OKP"].iter().any(|kind| key["kty"] == *kind);
        assert!(keys.len() <= 100 && usable <= keys.iter().filter(asymmetric).count());
    }
});
