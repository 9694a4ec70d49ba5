//! What an assertion says of a caller. Input: names of claims to copy, a comma between, a newline, then the caller's claims.
//!
//! Oracle: who calls is the mapped subject, with its issuer, whatever the claims say; who acts is the claims' `act` if that is an
//! object, and else the client, but never the caller; and nothing is there that wasn't asked for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::authn::Principal;
use portcullis::credential::assertion::about;
use serde_json::{Map, Value, json};

fuzz_target!(|input: &str| {
    let Some((names, claims)) = input.split_once('\n') else {
        return;
    };
    let Ok(claims) = serde_json::from_str::<Map<String, Value>>(claims) else {
        return;
    };
    let names: Vec<String> = names.split(',').map(str::to_owned).collect();
    let client = claims.get("azp").and_then(Value::as_str).map(str::to_owned);
    let principal = Principal {
        identity: Some("corp".into()),
        issuer: "https://login.example".to_owned(),
        subject: "ada".to_owned(),
        client: client.clone(),
        claims: claims.clone(),
        ..Principal::default()
    };
    let said = about(&principal, &names);
    assert_eq!(said["sub"], "ada");
    assert_eq!(
        said["sub_id"],
        json!({"format": "iss_sub", "iss": "https://login.example", "sub": "ada"})
    );
    match claims.get("act") {
        Some(act @ Value::Object(_)) => assert_eq!(said.get("act"), Some(act)),
        _ => match client.as_deref() {
            Some(client) if client != "ada" => assert_eq!(said["act"]["sub"], client),
            _ => assert!(!said.contains_key("act")),
        },
    }
    assert_eq!(said.get("client_id").and_then(Value::as_str), client.as_deref());
    for (name, value) in &said {
        let own = ["sub", "sub_id", "act", "client_id"].contains(&name.as_str());
        assert!(own || (names.contains(name) && claims.get(name) == Some(value)));
        assert!(!["iss", "aud", "exp", "jti", "cnf", "scope"].contains(&name.as_str()));
    }
});
