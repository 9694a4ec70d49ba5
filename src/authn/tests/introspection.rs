//! Tokens that their issuer is asked about.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;

use super::super::testing::{Answer, INTROSPECT, Issuer, METADATA, SigningKey, asking, identity, robots};
use super::*;
use crate::config::{ClientAuth, Introspection, KeySource};

const TOKEN: &str = "2YotnFZFEjr1zCsicMWpAA";

/// What an issuer says about an active token.
fn active(issuer: &Issuer) -> Value {
    with(&claims(&issuer.url), json!({"active": true, "token_type": "Bearer"}))
}

fn configured(identity: &mut Identity) -> &mut Introspection {
    match &mut identity.keys {
        KeySource::Introspection(config) => config,
        _ => panic!("an identity that asks"),
    }
}

#[tokio::test]
async fn an_active_token_is_a_principal_with_what_the_answer_says() {
    let issuer = Issuer::start(&[]).await;
    issuer.says(&active(&issuer));
    let gate = Gate::new(vec![asking("corp", &issuer.url)]);
    assert!(!gate.authenticator.keys_usable("corp"));
    let ada = gate.ask(TOKEN).await.unwrap();
    assert!(gate.authenticator.keys_usable("corp"));
    assert_eq!(
        (ada.subject.as_str(), ada.issuer.as_str()),
        ("ada", issuer.url.as_str())
    );
    assert_eq!(
        (ada.client.as_deref(), &ada.scopes[..]),
        (Some("agent"), &["notes.read".to_owned()][..])
    );
    assert_eq!(ada.expires, Some(NOW + 300));
    let (authorization, body) = issuer.last();
    // RFC 6749 section 2.3.1: form-encoded, then base64 of `gate:s%3Ae+cret`.
    assert_eq!(authorization, "Basic Z2F0ZTpzJTNBZStjcmV0");
    assert_eq!(body, format!("token_type_hint=access_token&token={TOKEN}"));

    let mut posting = asking("corp", &issuer.url);
    configured(&mut posting).client_auth = ClientAuth::Post;
    configured(&mut posting).endpoint = Some(format!("{}{INTROSPECT}", issuer.url).parse().unwrap());
    let (gate, before) = (Gate::new(vec![posting]), issuer.hits(METADATA));
    assert!(gate.authenticator.keys_usable("corp"));
    assert_eq!(gate.reason("a/b+c==").await, "ok");
    assert_eq!(issuer.hits(METADATA), before);
    let secret = "client_id=gate&client_secret=s%3Ae+cret";
    let expected = format!("token_type_hint=access_token&{secret}&token=a%2Fb%2Bc%3D%3D");
    assert_eq!(issuer.last(), (String::new(), expected));
}

#[tokio::test]
async fn r42_answers_are_checked_like_claims() {
    let issuer = Issuer::start(&[]).await;
    let gate = Gate::new(vec![asking("corp", &issuer.url)]);
    for (number, (changes, reason)) in [
        (json!({}), "ok"),
        (json!({"iss": null}), "ok"),
        (json!({"iss": "https://other.example"}), "issuer"),
        (json!({"iss": 7}), "issuer"),
        (json!({"aud": null}), "audience"),
        (json!({"aud": "https://other.example"}), "audience"),
        (json!({"aud": ["x", RESOURCE]}), "ok"),
        (json!({"aud": "agent"}), "audience"),
        (json!({"exp": null}), "times"),
        (json!({"exp": "soon"}), "times"),
        (json!({"exp": NOW - 61}), "expired"),
        (json!({"nbf": NOW + 61}), "not_yet_valid"),
        (json!({"iat": NOW + 61}), "not_yet_valid"),
        (json!({"sub": null, "username": "ada"}), "subject"),
        (json!({"sub": ""}), "subject"),
        (json!({"cnf": {"jkt": "x"}}), "bound_token"),
        (json!({"cnf": {"kid": "x"}}), "bound_token"),
        (json!({"cnf": {}}), "bound_token"),
        (json!({"cnf": null, "token_type": "DPoP"}), "type"),
        (json!({"token_type": "refresh_token"}), "type"),
        (json!({"token_use": "refresh_token"}), "type"),
        (json!({"typ": "Refresh"}), "type"),
        (json!({"typ": 7}), "type"),
        (
            json!({"token_type": null, "typ": "Bearer", "token_use": "access_token"}),
            "ok",
        ),
        (json!({"active": false}), "inactive"),
    ]
    .into_iter()
    .enumerate()
    {
        issuer.says(&with(&active(&issuer), changes.clone()));
        assert_eq!(gate.reason(&format!("token-{number}")).await, reason, "{changes}");
    }
}

#[tokio::test]
async fn what_an_answer_binds_a_token_to_must_be_shown() {
    let issuer = Issuer::start(&[]).await;
    let gate = Gate::new(vec![asking("corp", &issuer.url)]);
    let of = |bytes: &[u8]| ClientCertificate::read(&[bytes.to_vec().into()]).unwrap();
    let (theirs, other) = (of(b"one"), of(b"another"));
    let encoded = |hash: &[u8; 32]| URL_SAFE_NO_PAD.encode(hash);
    let binds = |confirmation: Value| {
        issuer.says(&with(
            &active(&issuer),
            json!({"cnf": confirmation, "token_type": "DPoP"}),
        ));
    };
    let ask = async |scheme: &str, token: &str, certificate: Option<&ClientCertificate>| {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, format!("{scheme} {token}").parse().unwrap());
        let sender = Sender {
            certificate,
            ..crate::authn::testing::sender()
        };
        let caller = gate
            .authenticator
            .authenticate(&route(&["corp"]), &headers, &sender)
            .await;
        caller.map_or_else(|error| error.reason(), |_| "ok")
    };
    binds(json!({"x5t#S256": encoded(theirs.thumbprint())}));
    for (certificate, expected) in [
        (Some(&theirs), "ok"),
        (Some(&other), "bound_token"),
        (None, "bound_token"),
    ] {
        // The answer is remembered, and what it asks for looked at each time.
        assert_eq!(ask("Bearer", "certified", certificate).await, expected);
    }
    assert_eq!(issuer.hits(INTROSPECT), 1);
    binds(json!({"jkt": encoded(theirs.thumbprint())}));
    assert_eq!(ask("Bearer", "keyed", None).await, "bound_token");
    assert_eq!(ask("DPoP", "keyed", None).await, "proof_malformed", "there is no proof");
    binds(json!({"jkt": encoded(theirs.thumbprint()), "x5t#S256": encoded(theirs.thumbprint())}));
    assert_eq!(ask("DPoP", "both", None).await, "bound_token");
    assert_eq!(ask("DPoP", "both", Some(&theirs)).await, "proof_malformed");
}

#[tokio::test]
async fn a_missing_audience_is_what_the_configuration_says() {
    let issuer = Issuer::start(&[]).await;
    issuer.says(&with(&active(&issuer), json!({"aud": null})));
    let mut corp = asking("corp", &issuer.url);
    configured(&mut corp).default_audiences = vec![RESOURCE.to_owned()];
    let gate = Gate::new(vec![corp]);
    assert_eq!(gate.reason(TOKEN).await, "ok");
    let elsewhere = RouteAuth {
        resource: "https://mcp.example.com/other/mcp".to_owned(),
        ..route(&["corp"])
    };
    assert_eq!(
        gate.ask_on(&elsewhere, TOKEN).await.err().map(|error| error.reason()),
        Some("audience")
    );
    issuer.says(&with(&active(&issuer), json!({"aud": "https://other.example"})));
    assert_eq!(
        gate.reason("another").await,
        "audience",
        "an audience that is there counts"
    );
}

#[tokio::test]
async fn two_hundred_first_uses_are_one_question() {
    let issuer = Issuer::start(&[]).await;
    issuer.says(&active(&issuer));
    let gate = Gate::new(vec![asking("corp", &issuer.url)]);
    let all = futures_util::future::join_all((0..200).map(|_| gate.reason(TOKEN))).await;
    assert!(all.iter().all(|reason| *reason == "ok"));
    assert_eq!((issuer.hits(METADATA), issuer.hits(INTROSPECT)), (1, 1));
    issuer.says(&json!({"active": false}));
    let all = futures_util::future::join_all((0..200).map(|_| gate.reason("revoked"))).await;
    assert!(all.iter().all(|reason| *reason == "inactive"));
    assert_eq!(issuer.hits(INTROSPECT), 2);
}

#[tokio::test]
async fn answers_are_kept_as_long_as_they_may_be() {
    let issuer = Issuer::start(&[]).await;
    issuer.says(&with(&active(&issuer), json!({"exp": NOW + 40})));
    let gate = Gate::new(vec![asking("corp", &issuer.url)]);
    let mut asked = 0;
    for (at, questions) in [(0, 1), (29, 0), (30, 1), (39, 0), (40, 1), (41, 1)] {
        gate.clock.set(NOW + at);
        assert_eq!(gate.reason(TOKEN).await, "ok", "{at}: exp has 60 s of leeway");
        asked += questions;
        assert_eq!(issuer.hits(INTROSPECT), asked, "{at}");
    }
    assert_eq!(
        (gate.count("introspection:hit"), gate.count("introspection:miss")),
        (2, 4)
    );
    // A no is kept shorter.
    issuer.says(&json!({"active": false}));
    for (at, questions) in [(100, 1), (109, 0), (110, 1)] {
        gate.clock.set(NOW + at);
        assert_eq!(gate.reason("revoked").await, "inactive");
        asked += questions;
        assert_eq!(issuer.hits(INTROSPECT), asked, "{at}");
    }
}

#[tokio::test]
async fn no_time_to_keep_is_a_question_each() {
    let issuer = Issuer::start(&[]).await;
    let mut corp = asking("corp", &issuer.url);
    configured(&mut corp).cache = Duration::ZERO;
    let gate = Gate::new(vec![corp]);
    issuer.says(&active(&issuer));
    assert_eq!(gate.reason(TOKEN).await, "ok");
    issuer.says(&json!({"active": false}));
    assert_eq!(gate.reason(TOKEN).await, "inactive");
    issuer.says(&active(&issuer));
    assert_eq!(gate.reason(TOKEN).await, "ok");
}

#[tokio::test]
async fn r43_an_issuer_without_an_answer_is_not_the_tokens_fault() {
    let issuer = Issuer::start(&[]).await;
    let gate = Gate::new(vec![asking("corp", &issuer.url)]);
    let large = format!(r#"{{"active":true,"x":"{}"}}"#, "x".repeat(64 * 1024));
    for (number, answer) in [
        Answer::Broken,
        Answer::Status(StatusCode::UNAUTHORIZED),
        Answer::Status(StatusCode::BAD_REQUEST),
        Answer::Status(StatusCode::TOO_MANY_REQUESTS),
        Answer::Status(StatusCode::INTERNAL_SERVER_ERROR),
        Answer::Status(StatusCode::NO_CONTENT),
        Answer::Redirect("https://elsewhere.example/".to_owned()),
        Answer::Json("<html>".to_owned()),
        Answer::Json("[]".to_owned()),
        Answer::Json("{}".to_owned()),
        Answer::Json(r#"{"active":"true"}"#.to_owned()),
        Answer::Json(r#"{"active":false,"active":true}"#.to_owned()),
        Answer::Json("eyJhbGciOiJSUzI1NiJ9.e30.c2ln".to_owned()),
        Answer::Json(large),
    ]
    .into_iter()
    .enumerate()
    {
        issuer.answer(INTROSPECT, answer);
        let error = gate.ask(&format!("token-{number}")).await.err();
        let expected = AuthnError::IssuerUnavailable {
            identity: "corp".into(),
        };
        assert_eq!(error, Some(expected), "{number}");
    }
    assert!(gate.authenticator.state()[0].last_error.is_some());
    // It comes back, and a second later the token is good.
    issuer.says(&active(&issuer));
    gate.clock.set(NOW + 1);
    assert_eq!(gate.reason("token-0").await, "ok");
    assert_eq!(gate.authenticator.state()[0].last_error, None);
    // Another issuer's metadata is nobody's endpoint.
    let other = Issuer::start(&[]).await;
    other.publish_metadata("https://other.example");
    let gate = Gate::new(vec![asking("corp", &other.url)]);
    assert_eq!(gate.reason(TOKEN).await, "issuer_unavailable");
    assert_eq!(other.hits(INTROSPECT), 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_issuer_is_waited_for_five_seconds() {
    let issuer = Issuer::start(&[]).await;
    issuer.answer(INTROSPECT, Answer::Hang);
    let gate = Gate::new(vec![asking("corp", &issuer.url)]);
    let began = tokio::time::Instant::now();
    assert_eq!(gate.reason(TOKEN).await, "issuer_unavailable");
    assert_eq!(began.elapsed().as_secs(), 5);
}

#[tokio::test]
async fn a_token_is_shown_to_nobody_whose_it_isnt() {
    let key = SigningKey::es256("k");
    let (jwts, asked) = (Issuer::start(&[&key]).await, Issuer::start(&[&key]).await);
    asked.says(&active(&asked));
    let secret = api_key::mint();
    let hex = |key: &str| {
        api_key::hash(key)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let lines = format!("ci:{}\nold:{}\n", hex(secret.expose()), hex("a-key-of-another-make"));
    let gate = Gate::new(vec![
        identity("corp", &jwts.url),
        asking("opaque", &asked.url),
        identity("opaque-keys", &asked.url),
        robots("robots", &lines),
    ]);
    let ask = async |identities: &[&str], token: &str| {
        let before = asked.hits(INTROSPECT);
        let outcome = gate.ask_on(&route(identities), token).await;
        let reason = outcome.map_or_else(|error| error.reason(), |_| "ok");
        (reason, asked.hits(INTROSPECT) - before)
    };
    let both = &["corp", "opaque"][..];
    let theirs = |issuer: &str| key.token(&claims(issuer));
    // A JWT is its issuer's: with keys where the route has them, else by asking, else nobody's.
    assert_eq!(ask(both, &theirs(&jwts.url)).await, ("ok", 0));
    assert_eq!(ask(both, &theirs("https://stranger.example")).await, ("issuer", 0));
    assert_eq!(ask(both, &theirs("")).await, ("issuer", 0));
    assert_eq!(ask(both, &theirs("portcullis:api-keys:robots")).await, ("issuer", 0));
    assert_eq!(ask(&["opaque"], &theirs(&jwts.url)).await, ("issuer", 0));
    assert_eq!(ask(both, &theirs(&asked.url)).await, ("ok", 1));
    assert_eq!(ask(&["opaque", "opaque-keys"], &theirs(&asked.url)).await, ("ok", 0));
    let doubled = key.token_raw(&key.header().to_string(), r#"{"iss":"a","iss":"b"}"#);
    assert_eq!(ask(both, &doubled).await, ("malformed", 0));
    // What is no JWT is asked about.
    assert_eq!(ask(both, TOKEN).await, ("ok", 1));
    assert_eq!(ask(&["corp"], "another").await, ("malformed", 0));
    // An API key is nobody's but the gate's, on whatever route, gone or mangled.
    let every = &["opaque", "robots"][..];
    assert_eq!(ask(every, secret.expose()).await, ("ok", 0));
    assert_eq!(ask(every, "a-key-of-another-make").await, ("ok", 0));
    assert_eq!(ask(both, secret.expose()).await, ("unknown_api_key", 0));
    assert_eq!(ask(both, "a-key-of-another-make").await, ("unknown_api_key", 0));
    assert_eq!(ask(both, api_key::mint().expose()).await, ("unknown_api_key", 0));
    assert_eq!(ask(both, "pcl_mangled").await, ("malformed", 0));
}
