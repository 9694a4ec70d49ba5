//! What is told of tokens, next to what is decided.

use super::super::inspect::{Verdict, decode};
use super::super::testing::{Issuer, SigningKey};
use super::*;

/// The checks that failed or were skipped, and whether the token is taken.
async fn told(gate: &Gate, token: &str) -> (Vec<&'static str>, Vec<&'static str>, bool) {
    let route = route(&["corp"]);
    let checks = gate.authenticator.inspect(&[&route], token).await;
    for check in &checks {
        if let Some(signature) = token.rsplit('.').next().filter(|signature| signature.len() > 20) {
            assert!(!check.detail.contains(signature), "{check:?}");
        }
    }
    let of = |verdict| {
        let found = checks.iter().filter(move |check| check.verdict == verdict);
        found.map(|check| check.check).collect::<Vec<_>>()
    };
    let weighed = gate.authenticator.weigh(&route, &Secret::new(token)).await;
    (of(Verdict::Fail), of(Verdict::Skipped), weighed.outcome.is_ok())
}

#[tokio::test]
async fn every_fault_is_told_and_none_hides_another() {
    let (key, stranger) = (SigningKey::es256("k"), SigningKey::es256("s"));
    let issuer = Issuer::start(&[&key]).await;
    let gate = Gate::corp(&issuer);
    let plain = claims(&issuer.url);
    let header = key.header();
    let both = json!({"typ": "id_token", "crit": ["x"]});
    let thumbprint = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I";
    for (headers, changes, failed) in [
        (json!({}), json!({}), &[][..]),
        (json!({}), json!({"cnf": {"jkt": thumbprint}}), &[]),
        (json!({}), json!({"cnf": {"jku": "x"}}), &["cnf"]),
        (json!({"typ": "id_token"}), json!({}), &["typ"]),
        (both, json!({}), &["typ", "crit"]),
        (json!({}), json!({"aud": "x", "exp": 1}), &["aud", "exp"]),
        (json!({}), json!({"nbf": NOW + 90, "iat": NOW + 90}), &["nbf", "iat"]),
        (json!({}), json!({"iat": "x", "sub": ""}), &["iat", "subject"]),
        (json!({"kid": "gone"}), json!({"exp": null}), &["kid", "exp"]),
        (json!({}), json!({"token_use": "refresh"}), &["kind"]),
    ] {
        let token = key.token_with(&with(&header, headers.clone()), &with(&plain, changes.clone()));
        let (told, _, taken) = told(&gate, &token).await;
        assert_eq!(told, failed, "{headers} {changes}");
        assert_eq!(taken, failed.is_empty(), "{headers} {changes}");
    }
    let forged = stranger.token_with(&header, &plain);
    assert_eq!(told(&gate, &forged).await, (vec!["signature"], vec![], false));
    let foreign = key.token(&with(&plain, json!({"iss": "https://evil.example", "exp": 1})));
    let (failed, skipped, taken) = told(&gate, &foreign).await;
    assert_eq!((failed, taken), (vec!["iss", "exp"], false));
    assert_eq!(
        skipped,
        [
            "kid",
            "signature",
            "aud",
            "kind",
            "required",
            "subject",
            "scopes",
            "roles"
        ]
    );
    assert_eq!(told(&gate, "opaque").await, (vec!["structure"], vec![], false));
}

#[tokio::test]
async fn an_issuer_that_is_down_is_not_the_tokens_fault() {
    let key = SigningKey::es256("k");
    let gate = Gate::new(vec![identity("corp", "http://127.0.0.1:1")]);
    let token = key.token(&claims("http://127.0.0.1:1"));
    let (failed, skipped, taken) = told(&gate, &token).await;
    assert_eq!(
        (failed, skipped, taken),
        (vec!["keys"], vec!["kid", "signature"], false)
    );
}

#[test]
fn what_is_only_decoded_is_not_checked_against_anybody() {
    let key = SigningKey::es256("k");
    let (checks, parts) = decode(&key.token(&claims("https://login.example.com")), NOW);
    assert_eq!(parts.expect("a JWT")[1]["sub"], "ada");
    for check in checks {
        assert!(!["iss", "kid", "signature", "aud"].contains(&check.check), "{check:?}");
    }
    assert!(decode("opaque", NOW).1.is_none());
}
