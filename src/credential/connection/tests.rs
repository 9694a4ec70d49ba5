//! Refresh, recovery and what becomes of a connection, over a real store and an issuer that rotates.

use std::collections::VecDeque;
use std::path::Path;

use futures_util::future::join_all;
use tokio::sync::{Semaphore, watch};
use zeroize::Zeroizing;

use super::refresh::LEASE;
use super::*;
use crate::config::{self, Database, SealKey};
use crate::credential::NotConnected;
use crate::oauth::{AuthMethod, ClientRecord, TokenError, TokenSet};
use crate::secret::Secret;
use crate::session::Sealer;

const NOW: UnixSeconds = 1_800_000_000;
const UPSTREAM: &str = "https://mcp.example/mcp";
/// More than ever ask at once.
const PLACES: u32 = 100;
const ISSUER: &str = "https://login.example";

/// What the issuer does with the next refresh tokens, in order; afterwards it rotates.
#[derive(Clone, Copy)]
enum Answer {
    Refused(&'static str),
    Silent,
    /// No refresh token in the answer.
    Kept,
    Panics,
}

/// An issuer that takes each refresh token once, and says what it was shown.
struct Issuer {
    shown: watch::Sender<Vec<String>>,
    script: Mutex<VecDeque<Answer>>,
    /// Permits to answer.
    gate: Semaphore,
    /// Seconds.
    lifetime: Option<u64>,
    clock: Clock,
}

impl Issuer {
    fn new(clock: &Clock) -> Arc<Self> {
        Arc::new(Self {
            shown: watch::Sender::default(),
            script: Mutex::default(),
            gate: Semaphore::new(PLACES as usize),
            lifetime: Some(3600),
            clock: clock.clone(),
        })
    }

    fn then(&self, answers: impl IntoIterator<Item = Answer>) {
        self.script.lock().unwrap().extend(answers);
    }

    fn shown(&self) -> Vec<String> {
        self.shown.borrow().clone()
    }

    async fn was_shown(&self, count: usize) {
        let mut shown = self.shown.subscribe();
        shown.wait_for(|shown| shown.len() >= count).await.unwrap();
    }

    async fn renew(self: Arc<Self>, grant: Grant) -> Result<TokenSet, TokenError> {
        let presented = grant.tokens.refresh_token.expect("one to show").expose().to_owned();
        let known = self.shown().contains(&presented);
        self.shown.send_modify(|shown| shown.push(presented));
        let count = self.shown().len();
        let _place = self.gate.acquire().await.unwrap();
        let answer = self.script.lock().unwrap().pop_front();
        let kept = match answer {
            Some(Answer::Refused(error)) => return Err(TokenError::Rejected { error }),
            Some(Answer::Silent) => return Err(TokenError::Unreachable("no answer in time")),
            Some(Answer::Panics) => panic!("the task dies"),
            Some(Answer::Kept) => true,
            None if known => return Err(TokenError::Rejected { error: "invalid_grant" }),
            None => false,
        };
        Ok(TokenSet {
            access_token: Secret::new(format!("access-{count}")),
            refresh_token: (!kept).then(|| Secret::new(format!("refresh-{count}"))),
            expires_at: self.lifetime.map(|lifetime| self.clock.now().saturating_add(lifetime)),
            scopes: None,
            id_token: None,
        })
    }
}

struct Setup {
    directory: tempfile::TempDir,
    clock: Clock,
    issuer: Arc<Issuer>,
    binding: Arc<Binding>,
    connections: Arc<Connections>,
}

fn principal(subject: &str) -> Principal {
    Principal {
        identity: Some("corp".into()),
        issuer: "https://corp.example".into(),
        subject: subject.into(),
        ..Principal::default()
    }
}

fn person(subject: &str) -> Person {
    Person::of(&principal(subject)).unwrap()
}

fn grant(refresh: Option<&str>, expires_at: Option<UnixSeconds>) -> Grant {
    Grant {
        issuer: ISSUER.to_owned(),
        token_endpoint: "https://login.example/token".parse().unwrap(),
        revocation_endpoint: None,
        resource: None,
        upstream: UPSTREAM.to_owned(),
        client: ClientRecord {
            id: "gate".to_owned(),
            secret: None,
            secret_expires_at: None,
            auth: AuthMethod::None,
        },
        tokens: TokenSet {
            access_token: Secret::new("access-0"),
            refresh_token: refresh.map(Secret::new),
            expires_at,
            scopes: Some(vec!["read".to_owned()]),
            id_token: None,
        },
    }
}

/// Another gateway's, over the same database.
async fn connections(directory: &Path, clock: &Clock) -> Arc<Connections> {
    let state = config::State {
        directory: directory.to_owned(),
        database: Database::Sqlite,
        seal_keys: Vec::new(),
    };
    let sealer = Arc::new(Sealer::new(&[SealKey(Zeroizing::new([7; 32]))]));
    let store = Store::open(&state, sealer, clock.clone()).await.unwrap();
    Connections::new(store, clock.clone(), Metrics::new())
}

fn binding(issuer: &Arc<Issuer>) -> Binding {
    let issuer = issuer.clone();
    Binding {
        route: "notes".into(),
        upstream: UPSTREAM.to_owned(),
        issuer: None,
        token_endpoint: None,
        client: None,
        document: "https://gate.example/connect/client.json".to_owned(),
        renew: Arc::new(move |grant| Box::pin(issuer.clone().renew(grant))),
    }
}

impl Setup {
    /// Alice is connected, with this.
    async fn new(grant: Grant) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::fixed(NOW);
        let connections = connections(directory.path(), &clock).await;
        connections.adopt("notes", &person("alice"), grant).await.unwrap();
        let issuer = Issuer::new(&clock);
        Self {
            directory,
            clock,
            binding: Arc::new(binding(&issuer)),
            issuer,
            connections,
        }
    }

    async fn call(&self) -> Result<OutboundCredential, CredentialError> {
        self.connections.credential(&self.binding, &principal("alice")).await
    }

    async fn token(&self) -> Result<String, CredentialError> {
        Ok(token(&self.call().await?))
    }

    async fn state(&self) -> Connection {
        self.connections.state("notes", &person("alice")).await.unwrap()
    }

    fn spawn(&self) -> tokio::task::JoinHandle<Result<OutboundCredential, CredentialError>> {
        let (connections, binding) = (self.connections.clone(), self.binding.clone());
        tokio::spawn(async move { connections.credential(&binding, &principal("alice")).await })
    }
}

fn token(credential: &OutboundCredential) -> String {
    let (name, value) = credential.header.as_ref().expect("a header");
    assert!(*name == AUTHORIZATION && value.is_sensitive());
    value.to_str().unwrap().to_owned()
}

fn lacking(reason: NotConnectedReason) -> CredentialError {
    CredentialError::NotConnected(NotConnected {
        route: "notes".into(),
        reason,
    })
}

/// Waits until something holds.
async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.expect("in time");
}

#[tokio::test]
async fn who_never_connected_is_told_so_and_nobody_is_never_connected() {
    let setup = Setup::new(grant(Some("refresh-0"), Some(NOW + 3600))).await;
    assert_eq!(setup.token().await.unwrap(), "Bearer access-0");
    let bob = setup.connections.credential(&setup.binding, &principal("bob")).await;
    assert_eq!(bob.err(), Some(lacking(NotConnectedReason::Missing)));
    let nobody = setup
        .connections
        .credential(&setup.binding, &Principal::anonymous())
        .await;
    assert_eq!(nobody.err(), Some(CredentialError::NoSubject));
    assert_eq!(
        setup.connections.state("notes", &person("bob")).await.unwrap().state,
        State::Disconnected
    );
    assert_eq!(setup.issuer.shown().len(), 0);
}

#[tokio::test]
async fn whose_login_no_longer_opens_is_asked_to_make_another_and_can() {
    let setup = Setup::new(grant(Some("refresh-0"), Some(NOW + 3600))).await;
    let another = Sealer::new(&[SealKey(Zeroizing::new([8; 32]))]);
    setup.connections.store().replace_sealer(Arc::new(another));
    assert_eq!(setup.call().await.err(), Some(lacking(NotConnectedReason::NeedsAuth)));
    assert_eq!(setup.state().await.state, State::NeedsAuth);
    let again = grant(Some("refresh-1"), Some(NOW + 3600));
    setup.connections.adopt("notes", &person("alice"), again).await.unwrap();
    assert_eq!(setup.state().await.state, State::Connected);
    assert_eq!(setup.token().await.unwrap(), "Bearer access-0");
}

#[tokio::test]
async fn r12_r31_many_calls_over_an_expired_token_refresh_it_once_before_they_go_on() {
    let setup = Setup::new(grant(Some("refresh-0"), Some(NOW - 1))).await;
    let calls: Vec<_> = (0..200).map(|_| setup.spawn()).collect();
    for call in join_all(calls).await {
        assert_eq!(token(&call.unwrap().unwrap()), "Bearer access-1");
    }
    assert_eq!(setup.issuer.shown(), ["refresh-0"]);
    // Another process, after a restart.
    setup.clock.set(NOW + 3600);
    let restarted = connections(setup.directory.path(), &setup.clock).await;
    let credential = restarted.credential(&setup.binding, &principal("alice")).await.unwrap();
    assert_eq!(token(&credential), "Bearer access-2");
    assert_eq!(setup.issuer.shown(), ["refresh-0", "refresh-1"]);
}

#[tokio::test]
async fn r34_of_two_processes_one_presents_the_refresh_token_and_the_other_adopts_the_pair() {
    for round in 0..5 {
        let setup = Setup::new(grant(Some("refresh-0"), Some(NOW - 1))).await;
        let other = connections(setup.directory.path(), &setup.clock).await;
        let alice = principal("alice");
        let ours = join_all((0..20).map(|_| setup.connections.credential(&setup.binding, &alice)));
        let theirs = join_all((0..20).map(|_| other.credential(&setup.binding, &alice)));
        let (ours, theirs) = tokio::join!(ours, theirs);
        for credential in ours.into_iter().chain(theirs) {
            assert_eq!(
                token(&credential.expect("nobody fails")),
                "Bearer access-1",
                "round {round}"
            );
        }
        assert_eq!(setup.issuer.shown(), ["refresh-0"]);
        assert_eq!(setup.state().await.state, State::Connected);
    }
}

#[tokio::test]
async fn r13_who_loses_to_another_login_takes_that_and_marks_nothing() {
    let setup = Setup::new(grant(Some("refresh-0"), Some(NOW - 1))).await;
    setup.issuer.then([Answer::Refused("invalid_grant")]);
    let held_up = setup.issuer.gate.acquire_many(PLACES).await.unwrap();
    let call = setup.spawn();
    setup.issuer.was_shown(1).await;
    let mut newer = grant(Some("refresh-n"), Some(NOW + 3600));
    newer.tokens.access_token = Secret::new("access-n");
    let other = connections(setup.directory.path(), &setup.clock).await;
    other.adopt("notes", &person("alice"), newer).await.unwrap();
    drop(held_up);
    assert_eq!(token(&call.await.unwrap().unwrap()), "Bearer access-n");
    assert_eq!(setup.state().await.state, State::Connected);
}

#[tokio::test]
async fn the_issuers_no_means_that_only_another_login_helps() {
    let setup = Setup::new(grant(Some("refresh-0"), Some(NOW - 1))).await;
    setup.issuer.then([Answer::Refused("invalid_grant")]);
    assert_eq!(setup.token().await, Err(lacking(NotConnectedReason::NeedsAuth)));
    assert_eq!(setup.token().await, Err(lacking(NotConnectedReason::NeedsAuth)));
    assert_eq!(setup.issuer.shown().len(), 1, "it is not asked again");
    let state = setup.state().await;
    assert_eq!(state.state, State::NeedsAuth);
    assert!(state.last_error.unwrap().contains("invalid_grant"));
    setup
        .connections
        .adopt("notes", &person("alice"), grant(None, None))
        .await
        .unwrap();
    assert_eq!(setup.token().await.unwrap(), "Bearer access-0");
    assert_eq!(setup.state().await.last_error, None);
}

#[tokio::test]
async fn a_refused_client_ends_a_grant_only_where_it_was_registered_for_it() {
    let document = "https://gate.example/connect/client.json";
    for (own, id, expected) in [
        (true, "gate", State::Failing),
        (false, "gate", State::NeedsAuth),
        // The issuer couldn't read it.
        (false, document, State::Failing),
    ] {
        let mut grant = self::grant(Some("refresh-0"), Some(NOW - 1));
        grant.client.id = id.to_owned();
        let mut setup = Setup::new(grant).await;
        setup.binding = Arc::new(Binding {
            client: own.then(|| id.to_owned()),
            ..binding(&setup.issuer)
        });
        setup.issuer.then([Answer::Refused("invalid_client")]);
        assert!(setup.token().await.is_err());
        assert_eq!(setup.state().await.state, expected, "{own} {id}");
    }
}

#[tokio::test]
async fn a_login_of_another_client_is_neither_refreshed_nor_ended() {
    let mut setup = Setup::new(grant(Some("refresh-0"), Some(NOW - 1))).await;
    setup.binding = Arc::new(Binding {
        client: Some("gaet".to_owned()),
        ..binding(&setup.issuer)
    });
    assert_eq!(setup.token().await, Err(lacking(NotConnectedReason::NeedsAuth)));
    assert_eq!(setup.state().await.state, State::Connected);
    // The operator puts it right.
    setup.binding = Arc::new(Binding {
        client: Some("gate".to_owned()),
        ..binding(&setup.issuer)
    });
    assert_eq!(setup.token().await.unwrap(), "Bearer access-1");
    assert_eq!(setup.issuer.shown(), ["refresh-0"]);
}

#[tokio::test]
async fn a_stop_waits_until_a_refresh_is_written_down() {
    let setup = Setup::new(grant(Some("refresh-0"), Some(NOW + 10))).await;
    setup.connections.finish().await;
    setup.clock.set(NOW + 9);
    let held_up = setup.issuer.gate.acquire_many(PLACES).await.unwrap();
    assert_eq!(
        setup.token().await.unwrap(),
        "Bearer access-0",
        "refreshed behind its back"
    );
    setup.issuer.was_shown(1).await;
    let connections = setup.connections.clone();
    let stop = tokio::spawn(async move { connections.finish().await });
    tokio::task::yield_now().await;
    assert!(!stop.is_finished());
    drop(held_up);
    stop.await.unwrap();
    let (_, stored) = setup
        .connections
        .read(&Place::new("notes", &person("alice")))
        .await
        .unwrap()
        .expect("it is there");
    assert_eq!(stored.grant.tokens.access_token.expose(), "access-1");
}

#[tokio::test]
async fn r14_a_refresh_token_that_isnt_rotated_serves_again() {
    let setup = Setup::new(grant(Some("refresh-0"), Some(NOW - 1))).await;
    for cycle in 1..=3 {
        setup.issuer.then([Answer::Kept]);
        assert_eq!(setup.token().await.unwrap(), format!("Bearer access-{cycle}"));
        setup.clock.set(setup.clock.now() + 3600);
    }
    assert_eq!(setup.issuer.shown(), ["refresh-0"; 3]);
    assert_eq!(
        setup.state().await.scopes,
        ["read"],
        "as granted, for no answer said otherwise"
    );
}

#[tokio::test]
async fn r15_r16_no_end_and_an_endless_one_are_usable_at_once() {
    for expires_at in [None, Some(u64::MAX)] {
        let setup = Setup::new(grant(Some("refresh-0"), expires_at)).await;
        for now in [0, NOW, u64::MAX - 1] {
            setup.clock.set(now);
            assert_eq!(setup.token().await.unwrap(), "Bearer access-0");
        }
        setup.clock.set(u64::MAX);
        assert!(setup.token().await.is_ok());
        assert_eq!(
            setup.state().await.expires_at,
            expires_at.map(|_| i64::MAX as u64).and(expires_at)
        );
    }
}

#[tokio::test]
async fn r22_a_slow_refresh_holds_up_nobody_while_the_old_token_lives() {
    let setup = Setup::new(grant(Some("refresh-0"), Some(NOW + 3600))).await;
    let held_up = setup.issuer.gate.acquire_many(PLACES).await.unwrap();
    setup.clock.set(NOW + 3600 - 121);
    assert_eq!(setup.token().await.unwrap(), "Bearer access-0");
    assert_eq!(setup.issuer.shown().len(), 0, "121 s are enough");
    setup.clock.set(NOW + 3600 - 120);
    for _ in 0..10 {
        assert_eq!(setup.token().await.unwrap(), "Bearer access-0");
    }
    setup.issuer.was_shown(1).await;
    assert_eq!(setup.token().await.unwrap(), "Bearer access-0");
    assert_eq!(setup.state().await.state, State::Connected);
    drop(held_up);
    until(async || setup.token().await.unwrap() == "Bearer access-1").await;
    assert_eq!(setup.issuer.shown(), ["refresh-0"]);
}

#[tokio::test]
async fn a_short_life_is_refreshed_in_its_middle_and_not_with_every_call() {
    let setup = Setup::new(grant(Some("refresh-0"), Some(NOW + 60))).await;
    setup.clock.set(NOW + 29);
    setup.token().await.unwrap();
    assert_eq!(setup.issuer.shown().len(), 0);
    setup.clock.set(NOW + 30);
    setup.token().await.unwrap();
    setup.issuer.was_shown(1).await;
}

#[tokio::test]
async fn r27_any_number_of_401s_on_one_token_is_one_refresh() {
    let setup = Setup::new(grant(Some("refresh-0"), None)).await;
    let refused = setup.call().await.unwrap();
    let recovery = refused.recovery.as_ref().expect("it can be had anew");
    let mut last = None;
    for renewed in join_all((0..50).map(|_| recovery.recover())).await {
        let renewed = renewed.unwrap().expect("another");
        assert_eq!(token(&renewed), "Bearer access-1");
        last = Some(renewed);
    }
    let late = recovery.recover().await.unwrap().expect("another");
    assert_eq!(token(&late), "Bearer access-1");
    assert_eq!(setup.issuer.shown(), ["refresh-0"]);
    // Refused again at once: it is not the token.
    let again = last
        .and_then(|last| last.recovery)
        .expect("it can be had anew")
        .recover()
        .await;
    assert!(again.unwrap().is_none());
    assert_eq!(setup.issuer.shown(), ["refresh-0"]);
}

#[tokio::test]
async fn a_refused_or_ended_token_that_cannot_be_renewed_needs_another_login() {
    let setup = Setup::new(grant(None, Some(NOW + 10))).await;
    assert_eq!(setup.state().await.state, State::Expiring);
    let refused = setup.call().await.unwrap();
    let recovered = refused.recovery.unwrap().recover().await;
    assert_eq!(recovered.err(), Some(lacking(NotConnectedReason::NeedsAuth)));
    assert_eq!(setup.state().await.state, State::NeedsAuth);

    setup
        .connections
        .adopt("notes", &person("alice"), grant(None, Some(NOW + 10)))
        .await
        .unwrap();
    setup.clock.set(NOW + 10);
    assert_eq!(setup.token().await, Err(lacking(NotConnectedReason::NeedsAuth)));
    assert_eq!(setup.issuer.shown().len(), 0);
}

#[tokio::test]
async fn r28_who_goes_away_ends_nothing_and_a_task_that_dies_releases_all() {
    let setup = Setup::new(grant(Some("refresh-0"), Some(NOW - 1))).await;
    let held_up = setup.issuer.gate.acquire_many(PLACES).await.unwrap();
    let first = setup.spawn();
    setup.issuer.was_shown(1).await;
    let others = [setup.spawn(), setup.spawn()];
    first.abort();
    assert!(first.await.is_err());
    drop(held_up);
    for other in others {
        assert_eq!(token(&other.await.unwrap().unwrap()), "Bearer access-1");
    }
    assert_eq!(setup.issuer.shown(), ["refresh-0"]);

    setup.clock.set(NOW + 3600);
    setup.issuer.then([Answer::Panics]);
    let calls = [setup.spawn(), setup.spawn(), setup.spawn()];
    for call in calls {
        let told = tokio::time::timeout(Duration::from_secs(10), call)
            .await
            .expect("released");
        assert!(matches!(told.unwrap().err(), Some(CredentialError::Unreachable(_))));
    }
    assert_eq!(
        setup.state().await.state,
        State::Connected,
        "nothing was concluded of it"
    );
}

#[tokio::test]
async fn r32_a_login_goes_nowhere_but_where_it_was_made_for_and_stays() {
    let setup = Setup::new(grant(Some("refresh-0"), Some(NOW - 1))).await;
    let changed: [fn(&mut Binding); 3] = [
        |binding| binding.upstream = "https://mcp.example.net/mcp".to_owned(),
        |binding| binding.issuer = Some("https://login.example.net".to_owned()),
        |binding| binding.token_endpoint = "https://login.example.net/token".parse().ok(),
    ];
    for change in changed {
        let mut other = binding(&setup.issuer);
        change(&mut other);
        let refused = setup
            .connections
            .credential(&Arc::new(other), &principal("alice"))
            .await;
        assert_eq!(refused.err(), Some(lacking(NotConnectedReason::NeedsAuth)));
    }
    assert_eq!(setup.issuer.shown().len(), 0, "nothing was shown to anybody");
    let mut named = binding(&setup.issuer);
    (named.issuer, named.token_endpoint) = (Some(ISSUER.to_owned()), "https://login.example/token".parse().ok());
    let used = setup
        .connections
        .credential(&Arc::new(named), &principal("alice"))
        .await;
    assert_eq!(token(&used.unwrap()), "Bearer access-1", "it was never deleted");
}

#[tokio::test]
async fn r33_routes_and_people_with_like_names_share_nothing() {
    let setup = Setup::new(grant(None, None)).await;
    let mut named = grant(None, None);
    named.tokens.access_token = Secret::new("of-foo/bar");
    setup
        .connections
        .adopt("foo/bar", &person("alice"), named)
        .await
        .unwrap();
    for (route, subject) in [
        ("foo_bar", "alice"),
        ("foo", "alice"),
        ("foo/bar", "bob"),
        ("notes", "alic"),
    ] {
        let other = Arc::new(Binding {
            route: route.into(),
            ..binding(&setup.issuer)
        });
        let refused = setup.connections.credential(&other, &principal(subject)).await;
        assert!(refused.is_err(), "{route} {subject}");
    }
}

#[tokio::test]
async fn r35_a_failure_that_may_pass_deletes_nothing_and_is_tried_again_later() {
    let setup = Setup::new(grant(Some("refresh-0"), Some(NOW - 1))).await;
    setup.issuer.then([Answer::Silent, Answer::Refused("temporarily_odd")]);
    assert_eq!(
        setup.token().await,
        Err(CredentialError::Unreachable("no answer in time"))
    );
    let state = setup.state().await;
    assert_eq!(state.state, State::Failing);
    assert!(state.last_error.unwrap().contains("no answer in time"));
    // Nobody asks again before a second has passed, in no process.
    let other = connections(setup.directory.path(), &setup.clock).await;
    assert!(other.credential(&setup.binding, &principal("alice")).await.is_err());
    assert!(setup.token().await.is_err());
    assert_eq!(setup.issuer.shown().len(), 1);
    setup.clock.set(NOW + 1);
    assert!(setup.token().await.is_err());
    setup.clock.set(NOW + 2);
    assert!(setup.token().await.is_err());
    assert_eq!(setup.issuer.shown().len(), 2, "the second pause is longer");
    setup.clock.set(NOW + 3);
    // The issuer knows the token it was shown without an answer, and this one doesn't mind.
    setup.issuer.then([Answer::Kept]);
    assert_eq!(setup.token().await.unwrap(), "Bearer access-3");
    assert_eq!(setup.issuer.shown(), ["refresh-0"; 3]);
    assert_eq!(setup.state().await.state, State::Connected);
}

#[tokio::test]
async fn a_disconnect_and_another_login_elsewhere_are_seen_within_a_second() {
    let setup = Setup::new(grant(Some("refresh-0"), None)).await;
    setup.token().await.unwrap();
    let other = connections(setup.directory.path(), &setup.clock).await;
    assert!(other.forget("notes", &person("alice"), None).await.unwrap());
    assert!(!other.forget("notes", &person("alice"), None).await.unwrap());
    until(async || setup.token().await == Err(lacking(NotConnectedReason::Missing))).await;
    other.adopt("notes", &person("alice"), grant(None, None)).await.unwrap();
    until(async || setup.token().await.is_ok()).await;
    // Here they are seen at once.
    setup.connections.forget("notes", &person("alice"), None).await.unwrap();
    assert!(setup.token().await.is_err());
}

#[tokio::test]
async fn a_disconnect_during_a_refresh_wins() {
    let setup = Setup::new(grant(Some("refresh-0"), Some(NOW - 1))).await;
    let held_up = setup.issuer.gate.acquire_many(PLACES).await.unwrap();
    let call = setup.spawn();
    setup.issuer.was_shown(1).await;
    setup.connections.forget("notes", &person("alice"), None).await.unwrap();
    drop(held_up);
    assert_eq!(call.await.unwrap().err(), Some(lacking(NotConnectedReason::Missing)));
    assert_eq!(setup.state().await.state, State::Disconnected);
}

#[tokio::test]
async fn a_disconnect_holds_though_the_store_is_gone_afterwards() {
    let setup = Setup::new(grant(Some("refresh-0"), None)).await;
    setup.token().await.unwrap();
    setup.connections.forget("notes", &person("alice"), None).await.unwrap();
    setup.connections.store().close().await;
    let refused = setup.token().await;
    assert_eq!(refused, Err(CredentialError::Unreachable("the store of connections")));
}

#[tokio::test]
async fn a_refresh_that_takes_too_long_ends_before_its_lease() {
    let setup = Setup::new(grant(Some("refresh-0"), Some(NOW - 1))).await;
    let held_up = setup.issuer.gate.acquire_many(PLACES).await.unwrap();
    let call = setup.spawn();
    setup.issuer.was_shown(1).await;
    tokio::time::pause();
    tokio::time::advance(LEASE).await;
    tokio::time::resume();
    let ended = tokio::time::timeout(Duration::from_secs(10), call).await;
    let ended = ended.expect("whoever has the lease next may ask").unwrap().err();
    assert!(matches!(ended, Some(CredentialError::Unreachable(_))), "{ended:?}");
    assert_eq!(setup.state().await.state, State::Failing);
    drop(held_up);
}

#[tokio::test]
async fn a_pause_does_not_outlive_the_clock_that_it_was_told_by() {
    let setup = Setup::new(grant(Some("refresh-0"), Some(NOW - 7200))).await;
    setup.issuer.then([Answer::Silent]);
    assert!(setup.token().await.is_err());
    assert!(setup.token().await.is_err());
    assert_eq!(setup.issuer.shown().len(), 1, "it is paused");
    // Set back, or another replica's that was ahead.
    setup.clock.set(NOW - 3600);
    // The issuer had answered nobody: it takes the token.
    setup.issuer.then([Answer::Kept]);
    assert_eq!(setup.token().await.unwrap(), "Bearer access-2");
}

#[tokio::test]
async fn r27_replicas_do_not_replace_each_others_replacements() {
    let setup = Setup::new(grant(Some("refresh-0"), None)).await;
    let other = connections(setup.directory.path(), &setup.clock).await;
    let alice = principal("alice");
    // An upstream that refuses everything.
    for _ in 0..5 {
        for gate in [&setup.connections, &other] {
            let refused = gate.credential(&setup.binding, &alice).await.unwrap();
            let _ = refused.recovery.expect("it can be had anew").recover().await.unwrap();
        }
    }
    assert_eq!(setup.issuer.shown(), ["refresh-0"]);
    setup.clock.set(NOW + PAUSE.as_secs());
    let refused = other.credential(&setup.binding, &alice).await.unwrap();
    let renewed = refused.recovery.expect("it can be had anew").recover().await.unwrap();
    assert_eq!(token(&renewed.expect("another")), "Bearer access-2");
}

#[tokio::test]
async fn more_scopes_are_asked_for_once() {
    let setup = Setup::new(grant(None, None)).await;
    let wants = async |scopes: &[&str]| {
        let recovery = setup.call().await.unwrap().recovery.unwrap();
        recovery
            .wants(scopes.iter().map(|scope| (*scope).to_owned()).collect())
            .await
    };
    let more = |scopes: &[&str]| {
        let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        Err(lacking(NotConnectedReason::MoreScopes { scopes }))
    };
    assert_eq!(
        wants(&["read"]).await,
        Ok(()),
        "that is granted: asking again gives nothing"
    );
    assert_eq!(wants(&[]).await, Ok(()), "nothing to ask for");
    assert_eq!(wants(&["write"]).await, more(&["write"]));
    assert_eq!(wants(&["read", "admin"]).await, more(&["read", "admin"]));
    assert_eq!(setup.state().await.wanted, ["write", "read", "admin"]);
    let version = async || {
        let place = Place::new("notes", &person("alice"));
        setup.connections.read(&place).await.unwrap().expect("a row").0
    };
    let written = version().await;
    assert_eq!(wants(&["write"]).await, more(&["write"]));
    assert_eq!(version().await, written, "known already");
    assert_eq!(setup.token().await.unwrap(), "Bearer access-0", "other calls go on");
    // The person logged in again, with these, and didn't get them.
    setup
        .connections
        .adopt("notes", &person("alice"), grant(None, None))
        .await
        .unwrap();
    assert_eq!(setup.state().await.wanted, [""; 0]);
    assert_eq!(wants(&["write"]).await, Ok(()), "no loop");
    for n in 0..100 {
        let _ = wants(&[&format!("scope{n}")]).await;
    }
    assert_eq!(setup.state().await.wanted.len(), MAX_SCOPES);
    let written = version().await;
    assert_eq!(wants(&["one_more"]).await, more(&["one_more"]));
    assert_eq!(version().await, written, "no room for it");
}

#[tokio::test]
async fn a_pair_that_cannot_be_written_is_kept_and_written_later() {
    let setup = Setup::new(grant(Some("refresh-0"), Some(NOW - 1))).await;
    let file = setup.directory.path().join("portcullis.db");
    let database = sqlx::SqlitePool::connect(&format!("sqlite://{}", file.display()))
        .await
        .unwrap();
    let rename = async |from: &str, to: &str| {
        let sql = format!("ALTER TABLE {from} RENAME TO {to}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(&database)
            .await
            .unwrap();
    };
    let held_up = setup.issuer.gate.acquire_many(PLACES).await.unwrap();
    let call = setup.spawn();
    setup.issuer.was_shown(1).await;
    rename("portcullis_entry", "away").await;
    drop(held_up);
    assert_eq!(token(&call.await.unwrap().unwrap()), "Bearer access-1");
    assert_eq!(setup.token().await.unwrap(), "Bearer access-1", "from memory");
    rename("away", "portcullis_entry").await;
    let other = connections(setup.directory.path(), &setup.clock).await;
    until(async || {
        let credential = other.credential(&setup.binding, &principal("alice")).await;
        credential.is_ok_and(|credential| token(&credential) == "Bearer access-1")
    })
    .await;
    assert_eq!(setup.issuer.shown(), ["refresh-0"]);
}

#[tokio::test]
async fn a_pair_that_cannot_be_written_for_long_is_not_given_up() {
    let setup = Setup::new(grant(Some("refresh-0"), Some(NOW - 1))).await;
    let file = setup.directory.path().join("portcullis.db");
    let database = sqlx::SqlitePool::connect(&format!("sqlite://{}", file.display()))
        .await
        .unwrap();
    let held_up = setup.issuer.gate.acquire_many(PLACES).await.unwrap();
    let call = setup.spawn();
    setup.issuer.was_shown(1).await;
    let refuse = "CREATE TRIGGER full BEFORE UPDATE ON portcullis_entry BEGIN SELECT RAISE(FAIL, 'full'); END";
    sqlx::raw_sql(refuse).execute(&database).await.unwrap();
    drop(held_up);
    assert_eq!(token(&call.await.unwrap().unwrap()), "Bearer access-1");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(3600)).await;
    tokio::time::resume();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    sqlx::raw_sql("DROP TRIGGER full").execute(&database).await.unwrap();
    until(async || {
        let stored = setup.connections.read(&Place::new("notes", &person("alice"))).await;
        let (_, stored) = stored.unwrap().expect("it is there");
        stored.grant.tokens.access_token.expose() == "access-1"
    })
    .await;
    assert_eq!(setup.issuer.shown(), ["refresh-0"]);
}

#[tokio::test]
async fn operators_see_how_many_are_in_which_state() {
    let setup = Setup::new(grant(Some("refresh-0"), None)).await;
    setup
        .connections
        .adopt("notes", &person("bob"), grant(None, Some(NOW + 9)))
        .await
        .unwrap();
    setup
        .connections
        .adopt("gone", &person("bob"), grant(None, None))
        .await
        .unwrap();
    assert_eq!(setup.connections.counts("notes"), None);
    let tending = tokio::spawn(setup.connections.clone().tend(vec!["notes".into()]));
    until(async || setup.connections.counts("notes").is_some()).await;
    tending.abort();
    let counts = setup.connections.counts("notes").unwrap();
    assert_eq!(counts.map(|(_, count)| count), [1, 1, 0, 0]);
    assert_eq!(setup.connections.counts("gone"), None, "no route of this configuration");
    let text = setup.connections.metrics.render();
    assert!(
        text.contains("portcullis_connections{route=\"notes\",state=\"expiring\"} 1"),
        "{text}"
    );
    assert!(
        text.contains("portcullis_connections{route=\"notes\",state=\"needs_auth\"} 0"),
        "{text}"
    );
}
