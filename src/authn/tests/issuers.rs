//! Where keys come from, and what happens when they don't.

use http::StatusCode;

use super::super::testing::{Answer, Issuer, JWKS, METADATA, SigningKey, identity};
use super::*;
use crate::config::KeySource;

#[tokio::test]
async fn many_requests_make_one_fetch() {
    let key = SigningKey::es256("k");
    let issuer = Issuer::start(&[&key]).await;
    let gate = Gate::corp(&issuer);
    let token = key.token(&claims(&issuer.url));
    let all = futures_util::future::join_all((0..50).map(|_| gate.reason(&token))).await;
    assert!(all.iter().all(|reason| *reason == "ok"));
    assert_eq!((issuer.hits(METADATA), issuer.hits(JWKS)), (1, 1));
}

#[tokio::test]
async fn an_unknown_kid_fetches_at_most_every_ten_seconds() {
    let (old, new) = (SigningKey::es256("old"), SigningKey::es256("new"));
    let issuer = Issuer::start(&[&old]).await;
    let gate = Gate::corp(&issuer);
    let (before, after) = (old.token(&claims(&issuer.url)), new.token(&claims(&issuer.url)));
    assert_eq!(gate.reason(&before).await, "ok");
    issuer.publish(&[&old, &new]);
    gate.clock.set(NOW + 9);
    assert_eq!(gate.reason(&after).await, "unknown_key");
    assert_eq!(issuer.hits(JWKS), 1);
    gate.clock.set(NOW + 10);
    assert_eq!(gate.reason(&after).await, "ok");
    assert_eq!(gate.reason(&before).await, "ok");
    assert_eq!(gate.count("verified:hit"), 1, "an added key voids nothing");
    assert_eq!(issuer.hits(JWKS), 2);
}

#[tokio::test]
async fn a_withdrawn_key_voids_what_it_signed() {
    let (old, new) = (SigningKey::es256("old"), SigningKey::es256("new"));
    let issuer = Issuer::start(&[&old]).await;
    let gate = Gate::corp(&issuer);
    let token = old.token(&claims(&issuer.url));
    assert_eq!(gate.reason(&token).await, "ok");
    issuer.publish(&[&new]);
    gate.clock.set(NOW + 10);
    assert_eq!(gate.reason(&new.token(&claims(&issuer.url))).await, "ok");
    assert_eq!(gate.reason(&token).await, "unknown_key");
}

#[tokio::test]
async fn r43_empty_key_set_unreachable_issuer_and_bad_token_differ() {
    let key = SigningKey::es256("k");
    let (empty, down) = (Issuer::start(&[]).await, Issuer::start(&[&key]).await);
    down.answer(METADATA, Answer::Broken);
    let gate = Gate::corp(&empty);
    assert_eq!(gate.reason(&key.token(&claims(&empty.url))).await, "empty_key_set");
    assert!(!gate.authenticator.keys_usable("corp"));
    let gate = Gate::corp(&down);
    let token = key.token(&claims(&down.url));
    assert_eq!(
        gate.ask(&token).await.err(),
        Some(AuthnError::KeysUnavailable {
            identity: "corp".into()
        })
    );
    let state = gate.authenticator.state();
    assert_eq!((state[0].keys, state[0].age), (0, None));
    assert!(state[0].last_error.is_some());
    // It comes back, and with it the first token.
    down.publish_metadata(&down.url);
    gate.clock.set(NOW + 1);
    assert_eq!(gate.reason(&token).await, "ok");
    assert_eq!(gate.authenticator.state()[0].last_error, None);
}

#[tokio::test]
async fn stale_keys_serve_a_day_and_no_longer() {
    let key = SigningKey::es256("k");
    let issuer = Issuer::start(&[&key]).await;
    let gate = Gate::corp(&issuer);
    let token = key.token(&with(&claims(&issuer.url), json!({"exp": NOW + 1_000_000})));
    assert_eq!(gate.reason(&token).await, "ok");
    issuer.answer(METADATA, Answer::Status(StatusCode::BAD_GATEWAY));
    issuer.answer(JWKS, Answer::Status(StatusCode::BAD_GATEWAY));
    gate.clock.set(NOW + 86_400);
    assert_eq!(gate.reason(&token).await, "ok");
    gate.clock.set(NOW + 86_401);
    assert_eq!(gate.reason(&token).await, "keys_unavailable", "cached or not");
    assert!(!gate.authenticator.keys_usable("corp"));
}

#[tokio::test]
async fn r46_redirects_stay_on_the_origin() {
    let key = SigningKey::es256("k");
    let (issuer, elsewhere) = (Issuer::start(&[&key]).await, Issuer::start(&[&key]).await);
    let token = key.token(&claims(&issuer.url));
    let chain = |length: usize| {
        issuer.answer("/hop0", Answer::Redirect("/jwks".to_owned()));
        for hop in 1..length {
            issuer.answer(&format!("/hop{hop}"), Answer::Redirect(format!("/hop{}", hop - 1)));
        }
        json!({"issuer": issuer.url, "jwks_uri": format!("{}/hop{}", issuer.url, length - 1)}).to_string()
    };
    issuer.answer(METADATA, Answer::Json(chain(3)));
    assert_eq!(Gate::corp(&issuer).reason(&token).await, "ok");
    issuer.answer(METADATA, Answer::Json(chain(4)));
    assert_eq!(Gate::corp(&issuer).reason(&token).await, "keys_unavailable");
    issuer.publish_metadata(&issuer.url);
    issuer.answer(JWKS, Answer::Redirect(format!("{}{JWKS}", elsewhere.url)));
    assert_eq!(Gate::corp(&issuer).reason(&token).await, "keys_unavailable");
    assert_eq!(elsewhere.hits(JWKS), 0);
}

#[tokio::test]
async fn documents_that_cannot_be_trusted_bring_no_keys() {
    let key = SigningKey::es256("k");
    let issuer = Issuer::start(&[&key]).await;
    let token = key.token(&claims(&issuer.url));
    let keys = json!({"keys": [key.jwk()]}).to_string();
    let metadata = |issuer: &str, jwks_uri: &str| json!({"issuer": issuer, "jwks_uri": jwks_uri}).to_string();
    let jwks_uri = format!("{}{JWKS}", issuer.url);
    for (what, document, jwks) in [
        (
            "another issuer",
            metadata(&format!("{}/", issuer.url), &jwks_uri),
            keys.clone(),
        ),
        ("no jwks_uri", json!({"issuer": issuer.url}).to_string(), keys.clone()),
        (
            "link-local",
            metadata(&issuer.url, "http://169.254.169.254/jwks"),
            keys.clone(),
        ),
        (
            "plain http",
            metadata(&issuer.url, "http://login.example.com/jwks"),
            keys.clone(),
        ),
        ("no JSON", "<html>".to_owned(), keys.clone()),
        (
            "a huge set",
            metadata(&issuer.url, &jwks_uri),
            format!("{keys}{}", " ".repeat(1024 * 1024)),
        ),
        ("no set", metadata(&issuer.url, &jwks_uri), "[]".to_owned()),
    ] {
        issuer.answer(METADATA, Answer::Json(document));
        issuer.answer(JWKS, Answer::Json(jwks));
        let gate = Gate::corp(&issuer);
        assert_eq!(gate.reason(&token).await, "keys_unavailable", "{what}");
    }
    // OpenID Connect's address is asked when RFC 8414's has nothing.
    issuer.answer(METADATA, Answer::Status(StatusCode::NOT_FOUND));
    issuer.answer(
        "/.well-known/openid-configuration",
        Answer::Json(metadata(&issuer.url, &jwks_uri)),
    );
    issuer.publish(&[&key]);
    assert_eq!(Gate::corp(&issuer).reason(&token).await, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_slow_issuer_holds_a_request_five_seconds() {
    let key = SigningKey::es256("k");
    let issuer = Issuer::start(&[&key]).await;
    issuer.answer(METADATA, Answer::Hang);
    let gate = Gate::corp(&issuer);
    let begun = tokio::time::Instant::now();
    assert_eq!(gate.reason(&key.token(&claims(&issuer.url))).await, "keys_unavailable");
    assert_eq!(begun.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn r46_an_issuer_down_at_boot_is_asked_again() {
    let key = SigningKey::es256("k");
    let issuer = Issuer::start(&[&key]).await;
    issuer.answer(METADATA, Answer::Broken);
    let gate = Gate::corp(&issuer);
    let _refresh = gate.authenticator.spawn_refresh();
    while gate.count(r#"JwksRefresh { identity: "corp", ok: false }"#) < 3 {
        tokio::time::advance(std::time::Duration::from_millis(100)).await;
    }
    assert!(!gate.authenticator.keys_usable("corp"));
    issuer.publish_metadata(&issuer.url);
    while !gate.authenticator.keys_usable("corp") {
        tokio::time::advance(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(gate.authenticator.state()[0].keys, 1);
}

#[tokio::test]
async fn key_files_are_read_at_once_and_bad_ones_say_so() {
    let key = SigningKey::es256("k");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), json!({"keys": [key.jwk()]}).to_string()).unwrap();
    let mut corp = identity("corp", "https://login.example.com");
    corp.keys = KeySource::JwksFile(file.path().to_owned());
    let gate = Gate::new(vec![corp]);
    gate.clock.set(NOW + 90_000);
    let token = key.token(&with(
        &claims("https://login.example.com"),
        json!({"exp": NOW + 90_300}),
    ));
    assert_eq!(gate.reason(&token).await, "ok");

    let refused = |keys: KeySource, issuer: &str| {
        let mut bad = identity("corp", issuer);
        bad.keys = keys;
        let events: AuthEvents = Arc::new(|_| ());
        Authenticator::new(&[Arc::new(bad)], Arc::default(), Clock::system(), events).err()
    };
    std::fs::write(file.path(), "{}").unwrap();
    let https = "https://login.example.com";
    let file = KeySource::JwksFile(file.path().to_owned());
    assert!(matches!(refused(file, https), Some(SetupError::KeySet { .. })));
    assert!(matches!(
        refused(KeySource::JwksFile("/nowhere".into()), https),
        Some(SetupError::File { .. })
    ));
    assert!(matches!(
        refused(KeySource::Discovery, "http://login.example.com"),
        Some(SetupError::Address { .. })
    ));
    assert!(matches!(
        refused(KeySource::Discovery, "corp"),
        Some(SetupError::Address { .. })
    ));
    let metadata_service = KeySource::JwksUri("https://169.254.169.254/jwks".parse().unwrap());
    assert!(matches!(
        refused(metadata_service, https),
        Some(SetupError::Address { .. })
    ));
}

#[tokio::test]
async fn only_the_configured_authority_is_trusted() {
    let key = SigningKey::es256("k");
    let (issuer, authority) = Issuer::start_tls(&[&key]).await;
    let token = key.token(&claims(&issuer.url));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), authority).unwrap();
    let mut corp = identity("corp", &issuer.url);
    corp.ca = Some(file.path().to_owned());
    assert_eq!(Gate::new(vec![corp]).reason(&token).await, "ok");
    assert_eq!(Gate::corp(&issuer).reason(&token).await, "keys_unavailable");

    std::fs::write(file.path(), "no certificate").unwrap();
    let mut corp = identity("corp", &issuer.url);
    corp.ca = Some(file.path().to_owned());
    let events: AuthEvents = Arc::new(|_| ());
    let refused = Authenticator::new(&[Arc::new(corp)], Arc::default(), Clock::system(), events);
    assert!(matches!(refused.err(), Some(SetupError::Authority { .. })));
}
