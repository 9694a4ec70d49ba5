//! API keys as callers bring them.

use super::super::testing::robots;
use super::*;
use crate::policy::RoleLine;

const END: u64 = NOW + 100;

fn line(name: &str, key: &str, rest: &str) -> String {
    let hex: String = api_key::hash(key).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{name}:{hex}{rest}\n")
}

#[tokio::test]
async fn a_key_is_its_owner_with_roles_until_its_end() {
    let end = jiff::Timestamp::from_second(END as i64).unwrap();
    let lines = line("ci", "good", &format!(":reader,editor:{end}")) + &line("ops", "endless", "");
    let gate = Gate::new(vec![robots("corp", &lines)]);
    let ci = gate.ask("good").await.unwrap();
    assert_eq!(
        (ci.subject.as_str(), ci.issuer.as_str()),
        ("ci", "portcullis:api-keys:corp")
    );
    assert_eq!(
        (&ci.roles[..], ci.expires),
        (&["reader".to_owned(), "editor".to_owned()][..], Some(END))
    );
    assert!(ci.scopes.is_empty() && ci.client.is_none());
    assert!(gate.authenticator.stands(&ci) && gate.authenticator.keys_usable("corp"));
    assert_eq!(gate.authenticator.state()[0].keys, 2);
    assert_eq!(gate.ask("endless").await.unwrap().expires, None);
    gate.clock.set(END - 1);
    assert_eq!(gate.reason("good").await, "ok");
    gate.clock.set(END);
    assert_eq!(
        gate.ask("good").await.err(),
        Some(AuthnError::expired(Some(END))),
        "no leeway, no cache"
    );
    assert_eq!(gate.reason("bad").await, "malformed");
    assert_eq!((gate.count("corp:ok"), gate.count("corp:expired")), (3, 1));
}

#[tokio::test]
async fn a_key_is_for_the_routes_that_name_its_identity() {
    let gate = Gate::new(vec![
        robots("corp", &line("ci", "one", "")),
        robots("other", &line("ci", "two", "")),
    ]);
    let (one, two) = (
        gate.ask("one").await.unwrap(),
        gate.ask_on(&route(&["other"]), "two").await.unwrap(),
    );
    assert_eq!(one.subject, two.subject);
    assert_ne!(
        one.issuer, two.issuer,
        "two callers, for whom sessions and limits are apart"
    );
    assert_eq!(gate.reason("two").await, "unknown_api_key");
    assert_eq!(
        gate.ask_on(&route(&["corp", "other"]), "two").await.unwrap().issuer,
        two.issuer
    );
}

#[test]
fn roles_of_keys_are_roles() {
    let lines = vec![("bot".to_owned(), vec![RoleLine::Text("role:reader".to_owned())])];
    let roles = Arc::new(Roles::compile(lines).unwrap());
    let identity = Arc::new(robots("corp", &line("ci", "one", ":reader")));
    let authenticator =
        Authenticator::new(&[identity], roles, Clock::fixed(NOW), Arc::new(|_: AuthEvent<'_>| {})).unwrap();
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, "Bearer one".parse().unwrap());
    let route = route(&["corp"]);
    let caller = futures_util::FutureExt::now_or_never(authenticator.authenticate(
        &route,
        &headers,
        &crate::authn::testing::sender(),
    ));
    let caller = caller.expect("nobody is waited for").unwrap();
    assert!(caller.principal.granted.has(0) && caller.token.is_none());
}
