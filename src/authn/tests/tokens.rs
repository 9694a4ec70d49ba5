//! What tokens say, and what is made of it.

use super::super::testing::{Issuer, JWKS, METADATA, SigningKey, identity};
use super::*;
use crate::config::KeySource;

#[tokio::test]
async fn every_key_type_vouches() {
    let keys = [
        SigningKey::rsa("r"),
        SigningKey::es256("p"),
        SigningKey::es384("q"),
        SigningKey::ed25519("e"),
    ];
    let issuer = Issuer::start(&keys.each_ref()).await;
    let gate = Gate::corp(&issuer);
    for key in &keys {
        let ada = gate.ask(&key.token(&claims(&issuer.url))).await.unwrap();
        assert_eq!(
            (ada.subject.as_str(), ada.client.as_deref()),
            ("ada", Some("agent")),
            "{}",
            key.kid
        );
        assert_eq!(ada.scopes, ["notes.read"]);
    }
    let pss = keys[0].token_with(&json!({"alg": "PS256", "kid": "r"}), &claims(&issuer.url));
    assert_eq!(gate.reason(&pss).await, "ok");
}

#[tokio::test]
async fn good_tokens_of_every_shape_pass() {
    let key = SigningKey::es256("k");
    let issuer = Issuer::start(&[&key]).await;
    let gate = Gate::corp(&issuer);
    let plain = claims(&issuer.url);
    let header = key.header();
    for (headers, changes) in [
        (json!({}), json!({"aud": ["other", RESOURCE]})),
        (json!({}), json!({"exp": NOW - 59})),
        (json!({}), json!({"exp": NOW + 1, "nbf": NOW + 60, "iat": NOW + 60})),
        (json!({}), json!({"exp": (NOW + 2) as f64 + 0.5, "iat": null})),
        (json!({}), json!({"exp": u64::MAX})),
        (json!({"typ": null}), json!({"azp": "agent"})),
        (json!({"typ": "jwt"}), json!({"azp": "agent2"})),
        (json!({"typ": "AT+JWT"}), json!({"azp": "agent3"})),
        (json!({"typ": "application/at+jwt"}), json!({"azp": "agent4"})),
        (json!({"kid": null}), json!({"azp": "agent5"})),
        // Keys that a token brings along are ignored, not refused.
        (
            json!({"jku": "https://evil.example/jwks", "x5u": "https://evil.example", "jwk": {"kty": "oct"}}),
            json!({}),
        ),
    ] {
        let token = key.token_with(&with(&header, headers.clone()), &with(&plain, changes.clone()));
        assert_eq!(gate.reason(&token).await, "ok", "{headers} {changes}");
    }
}

#[tokio::test]
async fn r45_hostile_tokens_are_refused_and_say_why() {
    let (key, rsa, stranger) = (SigningKey::es256("k"), SigningKey::rsa("r"), SigningKey::es256("k"));
    let issuer = Issuer::start(&[&key, &rsa]).await;
    let gate = Gate::corp(&issuer);
    let plain = claims(&issuer.url);
    let of = |changes: Value| key.token(&with(&plain, changes));
    let headed = |changes: Value| key.token_with(&with(&key.header(), changes), &plain);
    let good = key.token(&plain);
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (header, body) = signed.split_once('.').unwrap();
    let confused = |secret: &[u8]| {
        SigningKey::secret(secret).token_with(&json!({"alg": "HS256", "kid": "r", "typ": "JWT"}), &plain)
    };
    let none = |alg: &str| {
        let unsigned = key.token_with(&json!({"alg": alg}), &plain);
        format!("{}.", unsigned.rsplit_once('.').unwrap().0)
    };
    let raw = |extra: &str| {
        let text = plain.to_string();
        key.token_raw(&key.header().to_string(), &format!("{{{extra},{}", &text[1..]))
    };
    let table: Vec<(&str, String, &str)> = vec![
        ("no dots", "abc".into(), "malformed"),
        ("two parts", signed.into(), "malformed"),
        ("five parts", format!("{good}.a.b"), "malformed"),
        (
            "padded header",
            format!("{header}==.{body}.{signature}"),
            "malformed_header",
        ),
        ("padded signature", format!("{good}=="), "signature"),
        ("not base64", format!("~{header}.{body}.{signature}"), "malformed"),
        (
            "header is no object",
            key.token_raw("[]", &plain.to_string()),
            "malformed",
        ),
        (
            "claims are no object",
            key.token_raw(&key.header().to_string(), "\"x\""),
            "malformed",
        ),
        ("claims twice", raw(&format!("\"iss\":\"{}\"", issuer.url)), "malformed"),
        ("a claim twice, escaped", raw("\"\\u0061ud\":\"x\""), "malformed"),
        (
            "header key twice",
            key.token_raw(r#"{"alg":"ES256","alg":"none"}"#, &plain.to_string()),
            "malformed",
        ),
        (
            "deep claims",
            raw(&format!("\"x\":{}1{}", "[".repeat(200), "]".repeat(200))),
            "malformed",
        ),
        ("kid is a number", headed(json!({"kid": 7})), "malformed"),
        ("alg none", none("none"), "algorithm"),
        ("alg NoNe", none("NoNe"), "algorithm"),
        ("alg absent", headed(json!({"alg": null})), "algorithm"),
        ("alg unknown", headed(json!({"alg": "ES512"})), "algorithm"),
        (
            "alg not allowed",
            headed(json!({"alg": "RS512", "kid": "r"})),
            "algorithm",
        ),
        ("alg of another key type", headed(json!({"alg": "RS256"})), "algorithm"),
        ("HS256 with the public key", confused(&rsa.public_bytes()), "algorithm"),
        ("HS256 with nothing", confused(b""), "algorithm"),
        ("crit", headed(json!({"crit": ["exp"]})), "critical_header"),
        ("crit empty", headed(json!({"crit": []})), "critical_header"),
        ("ID token by type", headed(json!({"typ": "id+jwt"})), "type"),
        ("logout token", headed(json!({"typ": "logout+jwt"})), "type"),
        ("typ is a number", headed(json!({"typ": 1})), "type"),
        ("cnf", of(json!({"cnf": {"jkt": "x"}})), "bound_token"),
        ("no iss", of(json!({"iss": null})), "issuer"),
        (
            "iss with a slash",
            of(json!({"iss": format!("{}/", issuer.url)})),
            "issuer",
        ),
        ("iss is an array", of(json!({"iss": [issuer.url]})), "issuer"),
        ("unknown kid", headed(json!({"kid": "nobody"})), "unknown_key"),
        ("another's signature", stranger.token(&plain), "signature"),
        ("signature cut", good[..good.len() - 4].into(), "signature"),
        ("no signature", format!("{signed}."), "signature"),
        (
            "body swapped",
            {
                let other = of(json!({"sub": "eve"}));
                format!("{}.{signature}", other.rsplit_once('.').unwrap().0)
            },
            "signature",
        ),
        ("r42 no aud", of(json!({"aud": null})), "audience"),
        ("aud is the upstream's", of(json!({"aud": "nextcloud"})), "audience"),
        ("aud is empty", of(json!({"aud": []})), "audience"),
        ("aud holds a number", of(json!({"aud": [RESOURCE, 1]})), "audience"),
        (
            "aud with a slash",
            of(json!({"aud": format!("{RESOURCE}/")})),
            "audience",
        ),
        (
            "aud is a prefix",
            of(json!({"aud": "https://mcp.example.com"})),
            "audience",
        ),
        ("aud is the client", of(json!({"aud": "agent"})), "audience"),
        ("no exp", of(json!({"exp": null})), "times"),
        ("exp is text", of(json!({"exp": "1900000000"})), "times"),
        ("exp is negative", of(json!({"exp": -1})), "times"),
        ("nbf is text", of(json!({"nbf": "x"})), "times"),
        ("expired 61 s ago", of(json!({"exp": NOW - 61})), "expired"),
        ("nbf in 61 s", of(json!({"nbf": NOW + 61})), "not_yet_valid"),
        ("iat in 61 s", of(json!({"iat": NOW + 61})), "not_yet_valid"),
        ("no sub", of(json!({"sub": null})), "subject"),
        ("sub is empty", of(json!({"sub": ""})), "subject"),
        ("sub is a number", of(json!({"sub": 7})), "subject"),
    ];
    for (what, token, reason) in &table {
        // Twice: what the cache holds must be refused as well.
        for _ in 0..2 {
            let error = gate.ask(token).await.err();
            assert_eq!(error.as_ref().map(AuthnError::reason), Some(*reason), "{what}");
            let said = format!("{error:?} {}", error.as_ref().unwrap());
            let body = token.split('.').nth(1).filter(|body| body.len() > 8);
            assert!(!body.is_some_and(|body| said.contains(&body[..8])), "r44 {what}");
        }
    }
    assert_eq!(gate.reason(&good).await, "ok");
    let expired = gate.ask(&of(json!({"exp": NOW - 61}))).await.unwrap_err();
    assert!(
        expired.to_string().starts_with("token expired at 2027-01-15T"),
        "{expired}"
    );
    assert_eq!(
        gate.ask(&of(json!({"aud": "x"}))).await.unwrap_err().to_string(),
        "invalid audience"
    );
    assert_eq!(
        gate.ask(&of(json!({"iss": "x"}))).await.unwrap_err().to_string(),
        "invalid issuer"
    );
}

#[tokio::test]
async fn r45_a_kid_of_another_issuer_does_not_help() {
    let (ours, theirs) = (SigningKey::es256("ours"), SigningKey::es256("theirs"));
    let (corp, partner) = (Issuer::start(&[&ours]).await, Issuer::start(&[&theirs]).await);
    let gate = Gate::new(vec![identity("corp", &corp.url), identity("partner", &partner.url)]);
    let both = route(&["corp", "partner"]);
    let forged = theirs.token(&claims(&corp.url));
    assert_eq!(gate.ask_on(&both, &forged).await.unwrap_err().reason(), "unknown_key");
    let honest = theirs.token(&claims(&partner.url));
    assert_eq!(
        gate.ask_on(&both, &honest).await.unwrap().identity.as_deref(),
        Some("partner")
    );
    // Cached by now, and still nobody on a route that doesn't name the identity.
    assert_eq!(gate.ask(&honest).await.unwrap_err().reason(), "issuer");
}

#[tokio::test]
async fn hs256_is_checked_without_a_call() {
    let issuer = Issuer::start(&[]).await;
    let mut tickets = identity("corp", &issuer.url);
    tickets.keys = KeySource::SharedSecret(Secret::new(SECRET));
    let gate = Gate::new(vec![tickets]);
    assert!(gate.authenticator.keys_usable("corp"));
    let good = SigningKey::secret(SECRET.as_bytes());
    assert_eq!(gate.reason(&good.token(&claims(&issuer.url))).await, "ok");
    assert_eq!(
        gate.reason(&SigningKey::secret(b"changeme").token(&claims(&issuer.url)))
            .await,
        "signature"
    );
    assert_eq!(
        gate.reason(&SigningKey::es256("secret").token(&claims(&issuer.url)))
            .await,
        "algorithm"
    );
    assert_eq!((issuer.hits(METADATA), issuer.hits(JWKS)), (0, 0));
}

#[tokio::test]
async fn anonymous_lets_nobody_in_and_bad_tokens_out() {
    let key = SigningKey::es256("k");
    let issuer = Issuer::start(&[&key]).await;
    let gate = Gate::corp(&issuer);
    let mut open = route(&["corp"]);
    open.anonymous = true;
    let nobody = gate
        .authenticator
        .authenticate(&open, &HeaderMap::new(), &crate::authn::testing::sender())
        .await
        .ok()
        .unwrap();
    assert!(nobody.principal.is_anonymous() && nobody.token.is_none());
    assert_eq!(gate.ask_on(&open, "nonsense").await.unwrap_err().reason(), "malformed");
    assert_eq!(
        gate.ask_on(&open, "non sense").await.unwrap_err().reason(),
        "malformed_header"
    );
    let closed = gate
        .authenticator
        .authenticate(&route(&["corp"]), &HeaderMap::new(), &crate::authn::testing::sender())
        .await;
    assert_eq!(closed.err(), Some(AuthnError::MissingToken { malformed: false }));
    assert_eq!(gate.count(":anonymous"), 1);
    assert_eq!(gate.count(":missing"), 1);
}

#[tokio::test]
async fn a_cached_token_is_checked_again_on_every_request() {
    let key = SigningKey::es256("k");
    let issuer = Issuer::start(&[&key]).await;
    let gate = Gate::corp(&issuer);
    let token = key.token(&claims(&issuer.url));
    assert_eq!(gate.reason(&token).await, "ok");
    assert_eq!(gate.reason(&token).await, "ok");
    assert_eq!((gate.count("verified:miss"), gate.count("verified:hit")), (1, 1));
    let mut other = route(&["corp"]);
    other.resource = "https://mcp.example.com/other".to_owned();
    assert_eq!(gate.ask_on(&other, &token).await.unwrap_err().reason(), "audience");
    gate.clock.set(NOW + 330);
    assert_eq!(gate.reason(&token).await, "ok");
    assert_eq!(
        gate.count("verified:miss"),
        2,
        "gone at exp, although the leeway lets it in"
    );
    gate.clock.set(NOW + 361);
    assert_eq!(gate.reason(&token).await, "expired");
}
