//! Each user's own login at an upstream, and one that all share, through a running gate: refreshed once, recovered once.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use http::{Method, Response, StatusCode};
use http_body_util::BodyExt;
use portcullis::authn::Principal;
use portcullis::clock::{Clock, UnixSeconds};
use portcullis::config::{Database, SealKey, State};
use portcullis::credential::{Connections, Person, State as ConnectionState};
use portcullis::edge::Body;
use portcullis::gateway::Running;
use portcullis::oauth::{AuthMethod, ClientRecord, Grant, TokenSet};
use portcullis::secret::Secret;
use portcullis::session::{Sealer, load_or_create};
use portcullis::store::Store;
use portcullis::telemetry::Metrics;
use serde_json::{Value, json};

use super::gate::{Answer, Gate, client};
use super::postgres::Postgres;
use super::upstream::{self, Seen, Upstream, event, json_reply, stream};

const SECRET: &str = "abcdefgh12345678abcdefgh12345678";
const SOON: Duration = Duration::from_secs(20);

/// What the issuer gave last.
struct Tokens {
    access: String,
    refresh: String,
    given: usize,
    /// Refuses the next refresh with this.
    refuses: Option<&'static str>,
}

/// An upstream that takes one access token, and its issuer, which takes each refresh token once.
struct Service {
    issuer: Upstream,
    upstream: Upstream,
    tokens: Arc<Mutex<Tokens>>,
}

impl Service {
    async fn start() -> Self {
        Self::answering(|seen| async move {
            if seen.method != Method::POST {
                return upstream::status(StatusCode::METHOD_NOT_ALLOWED);
            }
            json_reply(&upstream::result(&seen.json(), 3))
        })
        .await
    }

    /// With a legacy server, to which the gate bridges.
    async fn bridged() -> Self {
        let legacy = |seen: Seen| async move {
            let body = seen.json();
            match (seen.method, body.get("id"), body["method"] == "server/discover") {
                (Method::POST, Some(_), false) => json_reply(&upstream::result(&body, 1)),
                (Method::POST, None, _) => upstream::status(StatusCode::ACCEPTED),
                (Method::POST, ..) => upstream::status(StatusCode::BAD_REQUEST),
                _ => upstream::status(StatusCode::METHOD_NOT_ALLOWED),
            }
        };
        Self::with(legacy, false).await
    }

    /// With an upstream that answers so, once the token is right.
    async fn answering<F, R>(handler: F) -> Self
    where
        F: Fn(Seen) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::with(handler, true).await
    }

    async fn with<F, R>(handler: F, modern: bool) -> Self
    where
        F: Fn(Seen) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let tokens = Arc::new(Mutex::new(Tokens {
            access: "access-0".to_owned(),
            refresh: "refresh-0".to_owned(),
            given: 0,
            refuses: None,
        }));
        let issuing = tokens.clone();
        let issuer = Upstream::undiscovered(move |seen| {
            let answer = issue(&mut issuing.lock().expect("no panic"), &seen);
            async move { answer }
        })
        .await;
        let (handler, accepted) = (Arc::new(handler), tokens.clone());
        let named = format!("http://localhost:{}", issuer.address.port());
        let checking = move |seen: Seen| {
            let metadata = seen
                .target
                .starts_with("/.well-known/oauth-protected-resource")
                .then(|| {
                    let resource = format!("http://{}/mcp", seen.headers["host"].to_str().expect("text"));
                    json_reply(&json!({"resource": resource, "authorization_servers": [named]}))
                });
            let bearer = format!("Bearer {}", accepted.lock().expect("no panic").access);
            let known = seen.headers.get("authorization").is_some_and(|value| *value == bearer);
            let handler = handler.clone();
            async move {
                match (metadata, known) {
                    (Some(metadata), _) => metadata,
                    (None, true) => handler(seen).await,
                    (None, false) => upstream::status(StatusCode::UNAUTHORIZED),
                }
            }
        };
        let upstream = match modern {
            true => Upstream::start(checking).await,
            false => Upstream::undiscovered(checking).await,
        };
        Self {
            issuer,
            upstream,
            tokens,
        }
    }

    /// Two routes: `notes` with connections, and `open` without a credential.
    fn yaml(&self, upstream: &str) -> String {
        let (issuer, open) = (self.issuer.address, self.upstream.address);
        format!(
            "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {upstream}\n    credential:\n      connection:\n        \
             issuer: http://{issuer}\n        authorization_endpoint: http://{issuer}/authorize\n        \
             token_endpoint: http://{issuer}/token\n        client_id: gate\n        client_secret: {SECRET}\n  \
             other:\n    path: /other/mcp\n    upstream: http://{open}/mcp\n    credential: {{bearer: access-0}}\n"
        )
    }

    fn configured(&self) -> String {
        self.yaml(&self.upstream.url())
    }

    fn grant(&self, expires_at: Option<UnixSeconds>) -> Grant {
        let tokens = self.tokens.lock().expect("no panic");
        Grant {
            issuer: format!("http://{}", self.issuer.address),
            token_endpoint: format!("http://{}/token", self.issuer.address).parse().expect("a URL"),
            revocation_endpoint: None,
            resource: None,
            upstream: self.upstream.url(),
            client: ClientRecord {
                id: "gate".to_owned(),
                secret: None,
                secret_expires_at: None,
                auth: AuthMethod::ClientSecretBasic,
            },
            tokens: TokenSet {
                access_token: Secret::new(tokens.access.clone()),
                refresh_token: Some(Secret::new(tokens.refresh.clone())),
                expires_at,
                scopes: None,
                id_token: None,
            },
        }
    }

    /// The upstream takes no token any more that was given before.
    fn revoke_access(&self) {
        self.tokens.lock().expect("no panic").access = "none".to_owned();
    }

    fn refuse(&self, error: &'static str) {
        self.tokens.lock().expect("no panic").refuses = Some(error);
    }

    /// The refresh tokens that the issuer was shown.
    fn shown(&self) -> Vec<String> {
        let seen = self.issuer.seen();
        let asked = seen.iter().filter(|seen| seen.target == "/token");
        let form = |seen: &Seen| {
            let pairs = url::form_urlencoded::parse(&seen.body).into_owned();
            let token = pairs.into_iter().find(|(name, _)| name == "refresh_token");
            token.expect("a refresh").1
        };
        asked.map(form).collect()
    }
}

fn issue(tokens: &mut Tokens, seen: &Seen) -> Response<Body> {
    if seen.target.starts_with("/.well-known/") {
        let issuer = format!("http://{}", seen.headers["host"].to_str().expect("text"));
        return json_reply(&json!({
            "issuer": issuer, "authorization_endpoint": format!("{issuer}/authorize"),
            "token_endpoint": format!("{issuer}/token"), "response_types_supported": ["code"],
            "code_challenge_methods_supported": ["S256"],
        }));
    }
    let refuse = |error: &str, status| {
        let mut answer = json_reply(&json!({"error": error, "error_description": tokens.refresh}));
        *answer.status_mut() = status;
        answer
    };
    let presented = url::form_urlencoded::parse(&seen.body).find(|(name, _)| name == "refresh_token");
    let presented = presented.map(|(_, value)| value.into_owned());
    if let Some(error) = tokens.refuses {
        let status = match error {
            "unavailable" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        };
        return refuse(error, status);
    }
    if presented.as_ref() != Some(&tokens.refresh) {
        return refuse("invalid_grant", StatusCode::BAD_REQUEST);
    }
    tokens.given += 1;
    tokens.access = format!("access-{}", tokens.given);
    tokens.refresh = format!("refresh-{}", tokens.given);
    json_reply(
        &json!({"access_token": tokens.access, "refresh_token": tokens.refresh, "token_type": "Bearer",
                       "expires_in": 3600}),
    )
}

/// The same store as a gate's, as another process would open it.
async fn connections(state: &State, sealer: Arc<Sealer>, clock: &Clock) -> Arc<Connections> {
    let store = Store::open(state, sealer, clock.clone())
        .await
        .expect("the store opens");
    Connections::new(store, clock.clone(), Metrics::new())
}

async fn of_gate(gate: &Gate) -> Arc<Connections> {
    let state = State {
        directory: gate.directory.path().join("state"),
        database: Database::Sqlite,
        seal_keys: Vec::new(),
    };
    let (sealer, _) = load_or_create(&state.directory).expect("the gate made its key");
    connections(&state, Arc::new(sealer), &gate.clock).await
}

fn alice(gate: &Gate) -> Person {
    let principal = Principal {
        identity: Some("corp".into()),
        issuer: gate.issuer.issuer().into(),
        subject: "alice".into(),
        ..Principal::default()
    };
    Person::of(&principal).expect("somebody")
}

/// A gate whose Alice is connected, with tokens that end then.
async fn connected(service: &Service, ends_in: Option<i64>) -> (Gate, Arc<Connections>) {
    let gate = Gate::with_yaml(&service.configured()).await;
    let all = of_gate(&gate).await;
    let end = ends_in.map(|seconds| gate.clock.now().saturating_add_signed(seconds));
    all.adopt("notes", &alice(&gate), service.grant(end))
        .await
        .expect("it is kept");
    (gate, all)
}

async fn echo(gate: &Gate, token: &str) -> Answer {
    gate.modern(token, "tools/call", json!({"name": "echo"})).await
}

/// The same, to another gateway.
async fn echo_at(gate: &Gate, url: &str, token: &str) -> StatusCode {
    let mut request = gate.modern_request(token, "tools/call", json!({"name": "echo"}));
    *request.uri_mut() = url.parse().expect("a URL");
    let response = tokio::time::timeout(SOON, client().request(request)).await;
    response.expect("in time").expect("it answers").status()
}

async fn status(gate: &Gate) -> Value {
    let url = format!("{}/status", gate.running.admin_url().expect("an admin port"));
    let request = http::Request::get(url)
        .body(http_body_util::Full::default())
        .expect("a request");
    gate.send(request).await.json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r12_r22_200_calls_over_an_ending_token_are_one_refresh_and_no_failure() {
    let service = Service::start().await;
    let (gate, _) = connected(&service, Some(-1)).await;
    let token = gate.token(&[], &[]);
    for answer in join_all((0..200).map(|_| echo(&gate, &token))).await {
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    }
    assert_eq!(service.shown(), ["refresh-0"]);
    // Not over yet, but soon: nobody waits, and it is one refresh again.
    gate.clock.set(gate.clock.now() + 3600 - 60);
    let token = gate.token(&[], &[]);
    let calls = join_all((0..200).map(|_| echo(&gate, &token)));
    for answer in calls.await {
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    }
    service.issuer.wait_for(2).await;
    assert_eq!(service.shown(), ["refresh-0", "refresh-1"]);
    for seen in service.upstream.seen() {
        let bearer = seen.headers["authorization"].to_str().expect("text");
        assert!(bearer.starts_with("Bearer access-"), "{bearer}");
    }
    let counted = "portcullis_token_exchanges_total{route=\"notes\",grant=\"refresh_token\",result=\"ok\"}";
    assert_eq!(gate.metric(counted), Some(2.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r27_r36_refused_tokens_are_recovered_once_and_the_answers_pass_streams_too() {
    let service = Service::answering(|seen| async move {
        let (sender, response) = stream();
        let _ = sender.send(event(&json!({"jsonrpc": "2.0", "method": "notifications/message",
            "params": {"level": "info", "data": "under way"}})));
        let _ = sender.send(event(&upstream::result(&seen.json(), 1)));
        response
    })
    .await;
    let (gate, _) = connected(&service, None).await;
    service.revoke_access();
    let token = gate.token(&[], &[]);
    for answer in join_all((0..50).map(|_| echo(&gate, &token))).await {
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(answer.status, StatusCode::OK, "{text}");
        assert!(text.contains("under way") && text.contains("\"echo\""), "{text}");
    }
    assert_eq!(service.shown(), ["refresh-0"]);
    let refused = service
        .upstream
        .seen()
        .iter()
        .filter(|seen| seen.headers["authorization"] == "Bearer access-0")
        .count();
    assert!((1..=50).contains(&refused), "one try each: {refused}");
    assert_eq!(service.upstream.seen().len(), 50 + refused);
    // An upstream that refuses everything: one refresh, and then its refusal is the answer.
    service.revoke_access();
    let answer = echo(&gate, &token).await;
    assert_eq!(
        (answer.status, answer.code()),
        (StatusCode::BAD_GATEWAY, Some(50_201)),
        "{answer:?}"
    );
    assert_eq!(service.shown().len(), 1, "the token is a replacement itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h_a_standing_stream_is_opened_with_the_recovered_token() {
    let service = Service::answering(|seen| async move {
        match seen.method {
            Method::GET => {
                let (sender, response) = stream();
                let _ = sender.send("event: endpoint\ndata: messages\n\n".to_owned());
                tokio::spawn(async move { sender.closed().await });
                response
            }
            _ => upstream::status(StatusCode::ACCEPTED),
        }
    })
    .await;
    let at = format!("{{urls: [\"{}\"], transport: sse}}", service.upstream.url());
    let gate = Gate::with_yaml(&service.yaml(&at)).await;
    of_gate(&gate)
        .await
        .adopt("notes", &alice(&gate), service.grant(None))
        .await
        .expect("it is kept");
    service.revoke_access();
    let token = gate.token(&[], &[]);
    let mut request = gate.request(Method::GET, &token, String::new());
    request
        .headers_mut()
        .insert("accept", "text/event-stream".parse().expect("a value"));
    let mut body = gate.open(request).await.into_body();
    let first = tokio::time::timeout(SOON, body.frame())
        .await
        .expect("in time")
        .expect("a frame")
        .expect("whole");
    assert!(String::from_utf8_lossy(first.data_ref().expect("data")).contains("endpoint"));
    let gets: Vec<_> = service
        .upstream
        .seen()
        .iter()
        .map(|seen| seen.headers["authorization"].clone())
        .collect();
    assert_eq!(gets, ["Bearer access-0", "Bearer access-1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o_who_isnt_connected_or_was_revoked_is_told_so_and_others_go_on() {
    let service = Service::start().await;
    let (gate, all) = connected(&service, Some(-1)).await;
    let token = gate.token(&[], &[]);
    service.refuse("unavailable");
    let answer = echo(&gate, &token).await;
    assert_eq!(answer.code(), Some(50_201), "r35: {answer:?}");
    let state = all.state("notes", &alice(&gate)).await.expect("it is read");
    assert_eq!(state.state, ConnectionState::Failing);
    assert!(state.last_error.is_some());
    let failing = status(&gate).await["routes"][0]["credential"].clone();
    assert_eq!(
        (&failing["kind"], &failing["state"]),
        (&json!("connection"), &json!("failing")),
        "{failing}"
    );

    service.refuse("invalid_grant");
    gate.clock.set(gate.clock.now() + 2);
    for _ in 0..2 {
        let answer = echo(&gate, &token).await;
        assert_eq!(answer.code(), Some(50_202), "{answer:?}");
    }
    assert_eq!(service.shown().len(), 2, "a refusal is final");
    assert_eq!(
        all.state("notes", &alice(&gate)).await.expect("it is read").state,
        ConnectionState::NeedsAuth
    );
    let bob = gate.issuer.mint("bob", &gate.url(), &[], &[], Duration::from_secs(600));
    assert_eq!(echo(&gate, &bob).await.code(), Some(50_202), "bob never connected");

    let other = format!("{}/other/mcp", gate.running.url());
    let for_other = gate.issuer.mint("alice", &other, &[], &[], Duration::from_secs(600));
    assert_eq!(
        echo_at(&gate, &other, &for_other).await,
        StatusCode::OK,
        "other routes are unaffected"
    );

    let counted = "portcullis_credential_failures_total{route=\"notes\",grant=\"connection\",reason=\"not_connected\"}";
    assert_eq!(gate.metric(counted), Some(1.0));
    let everything = format!("{} {}", status(&gate).await, gate.running.metrics().render());
    for secret in ["access-", "refresh-", SECRET, "alice"] {
        assert!(!everything.contains(secret), "{secret}: {everything}");
    }
    // A new login is used at once, here and where it was made.
    service.tokens.lock().expect("no panic").refuses = None;
    all.adopt("notes", &alice(&gate), service.grant(None))
        .await
        .expect("it is kept");
    let back = tokio::time::timeout(SOON, async {
        while echo(&gate, &token).await.status != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    back.await.expect("within a second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r32_a_changed_upstream_gets_no_old_token_and_a_first_connection_may_come_with_a_reload() {
    let service = Service::start().await;
    let elsewhere = Upstream::tools(1).await;
    let plain = format!(
        "routes:\n  notes: {{path: /notes/mcp, upstream: \"{}\"}}\n",
        elsewhere.url()
    );
    let gate = Gate::with_yaml(&plain).await;
    assert!(
        !gate.directory.path().join("state/portcullis.db").exists(),
        "no store without need"
    );
    let yaml = service.configured();
    assert!(gate.reload(&yaml).is_err(), "it isn't open yet");
    gate.prepare(&yaml).await;
    gate.reload(&yaml).expect("it can be used");
    let all = of_gate(&gate).await;
    all.adopt("notes", &alice(&gate), service.grant(None))
        .await
        .expect("it is kept");
    let token = gate.token(&[], &[]);
    assert_eq!(echo(&gate, &token).await.status, StatusCode::OK);

    let before = elsewhere.seen().len();
    gate.reload(&service.yaml(&elsewhere.url())).expect("it can be used");
    assert_eq!(echo(&gate, &token).await.code(), Some(50_202));
    assert_eq!(elsewhere.seen().len(), before, "the new host was asked nothing");
    assert!(service.shown().is_empty());
    gate.reload(&yaml).expect("it can be used");
    assert_eq!(echo(&gate, &token).await.status, StatusCode::OK, "nothing was deleted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_wants_more_scopes_sends_the_user_to_connect_once() {
    let service = Service::answering(|_| async {
        let mut refused = upstream::status(StatusCode::FORBIDDEN);
        let challenge = "Bearer error=\"insufficient_scope\", scope=\"notes.write\"";
        let headers = refused.headers_mut();
        headers.insert("www-authenticate", challenge.parse().expect("a value"));
        refused
    })
    .await;
    let (gate, all) = connected(&service, None).await;
    let token = gate.token(&[], &[]);
    for _ in 0..2 {
        let answer = echo(&gate, &token).await;
        assert_eq!(answer.code(), Some(50_202), "{answer:?}");
    }
    let person = alice(&gate);
    assert_eq!(
        all.state("notes", &person).await.expect("it is read").wanted,
        ["notes.write"]
    );
    // The user was asked for it and connected again; the upstream isn't content.
    all.adopt("notes", &person, service.grant(None))
        .await
        .expect("it is kept");
    let content = tokio::time::timeout(SOON, async {
        while echo(&gate, &token).await.code() == Some(50_202) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    content.await.expect("the user isn't sent there again");
    assert_eq!(echo(&gate, &token).await.status, StatusCode::FORBIDDEN);
    assert!(service.shown().is_empty(), "no other token would help");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r27_a_bridged_session_goes_on_with_the_recovered_token() {
    let service = Service::bridged().await;
    let (gate, _) = connected(&service, None).await;
    let token = gate.token(&[], &[]);
    assert_eq!(echo(&gate, &token).await.status, StatusCode::OK);
    service.revoke_access();
    for answer in join_all((0..20).map(|_| echo(&gate, &token))).await {
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    }
    assert_eq!(service.shown(), ["refresh-0"]);
}

/// Two gateways, one database, one token that is over: 50 calls to each.
async fn together(service: &Service, gate: &Gate, replica: &Running, all: &Connections) {
    all.adopt("notes", &alice(gate), service.grant(Some(gate.clock.now() - 1)))
        .await
        .expect("it is kept");
    let token = gate.token(&[], &[]);
    let at = |running: &Running| format!("http://{}/notes/mcp", running.address());
    let (ours, theirs) = (at(&gate.running), at(replica));
    let shown = service.shown().len();
    let calls = (0..100).map(|n| echo_at(gate, if n % 2 == 0 { &ours } else { &theirs }, &token));
    for answer in join_all(calls).await {
        assert_eq!(answer, StatusCode::OK);
    }
    assert_eq!(service.shown().len(), shown + 1, "one refresh");
    let state = all.state("notes", &alice(gate)).await.expect("it is read");
    assert_eq!(state.state, ConnectionState::Connected);
    // And the pair that is kept is the one that works.
    service.revoke_access();
    assert_eq!(echo_at(gate, &theirs, &token).await, StatusCode::OK);
}

/// Both are known by one URL, as behind a balancer.
const BALANCED: &str = "  public_url: https://gate.example\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r34_two_gateways_on_one_file_refresh_once_and_lose_nothing() {
    let service = Service::start().await;
    let yaml = service.configured();
    let gate = Gate::with_listen(BALANCED, &yaml).await;
    let replica = gate.replica(&yaml).await;
    let all = of_gate(&gate).await;
    together(&service, &gate, &replica, &all).await;
    replica.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r34_two_gateways_on_one_postgresql_refresh_once_and_lose_nothing() {
    let postgres = Postgres::start();
    let service = Service::start().await;
    let key = format!("{}CQk=", "CQkJ".repeat(10));
    let yaml = format!(
        "state: {{database: \"{}\", seal_keys: [\"{key}\"]}}\n{}",
        postgres.url(),
        service.configured()
    );
    let gate = Gate::with_listen(BALANCED, &yaml).await;
    let replica = gate.replica(&yaml).await;
    let keys = || vec![SealKey(zeroize::Zeroizing::new([9; 32]))];
    let all = connections(&postgres.state(keys()), Arc::new(Sealer::new(&keys())), &gate.clock).await;
    together(&service, &gate, &replica, &all).await;
    replica.shutdown().await;
}

/// A gate whose route uses a token file; `login` is YAML, indented by eight.
fn file_yaml(service: &Service, path: &Path, anonymous: bool) -> String {
    let issuer = service.issuer.address;
    format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    anonymous: {anonymous}\n    upstream: {}\n    credential:\n      \
         token_file:\n        path: {}\n        issuer: http://{issuer}\n        \
         authorization_endpoint: http://{issuer}/authorize\n        token_endpoint: http://{issuer}/token\n        \
         client_id: gate\n        client_secret: {SECRET}\n",
        service.upstream.url(),
        path.display()
    )
}

fn file_tokens(service: &Service, expires_at: UnixSeconds) -> String {
    let tokens = service.tokens.lock().expect("no panic");
    json!({"access_token": tokens.access, "refresh_token": tokens.refresh, "expires_at": expires_at, "account": "ops"})
        .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h_r29_a_token_file_that_a_cron_job_rewrites_is_used_at_once() {
    let service = Service::start().await;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("tokens.json");
    let now = Clock::system().now();
    fs::write(&path, file_tokens(&service, now + 3600)).expect("a file");
    let gate = Gate::with_yaml(&file_yaml(&service, &path, false)).await;
    let token = gate.token(&[], &[]);
    assert_eq!(echo(&gate, &token).await.status, StatusCode::OK);
    // The cron job logs in anew.
    service.tokens.lock().expect("no panic").access = "by-cron".to_owned();
    fs::write(&path, file_tokens(&service, now + 3600)).expect("a file");
    assert_eq!(echo(&gate, &token).await.status, StatusCode::OK);
    assert!(service.shown().is_empty(), "nothing to refresh");
    assert_eq!(service.upstream.seen().len(), 2, "no try with the old token");
    // It is revoked: one refresh for all, kept in the file with what else is there.
    service.revoke_access();
    for answer in join_all((0..20).map(|_| echo(&gate, &token))).await {
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    }
    assert_eq!(service.shown(), ["refresh-0"]);
    let written: Value = serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
    assert_eq!(
        (&written["access_token"], &written["account"]),
        (&json!("access-1"), &json!("ops"))
    );
    let credential = status(&gate).await["routes"][0]["credential"].clone();
    assert_eq!(
        (&credential["kind"], &credential["state"]),
        (&json!("token_file"), &json!("connected"))
    );
    assert!(
        credential["remaining"].as_u64().is_some_and(|left| left > 3500),
        "{credential}"
    );
    assert!(!credential.to_string().contains("access-"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r30_an_ended_token_at_a_cold_start_is_refreshed_at_the_issuer_that_is_found_on_another_host() {
    let service = Service::start().await;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("tokens.json");
    fs::write(&path, file_tokens(&service, Clock::system().now() - 1)).expect("a file");
    let yaml = format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {}\n    credential:\n      token_file:\n        \
         path: {}\n        issuer: http://localhost:{}\n        client_id: gate\n        client_secret: {SECRET}\n",
        service.upstream.url(),
        path.display(),
        service.issuer.address.port()
    );
    let gate = Gate::with_yaml(&yaml).await;
    let answer = echo(&gate, &gate.token(&[], &[])).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(service.shown(), ["refresh-0"]);
    for seen in service.upstream.seen() {
        let old = seen
            .headers
            .get("authorization")
            .is_some_and(|value| value == "Bearer access-0");
        assert!(!old, "the old token is not tried first");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r34_two_processes_on_one_token_file_refresh_once() {
    let service = Service::start().await;
    let shared = tempfile::tempdir().expect("a directory");
    let path = shared.path().join("tokens.json");
    fs::write(&path, file_tokens(&service, Clock::system().now() - 1)).expect("a file");
    let mut gates = Vec::new();
    for _ in 0..2 {
        let own = tempfile::tempdir().expect("a directory");
        let yaml = format!(
            "listen: {{address: \"127.0.0.1:0\"}}\n{}",
            file_yaml(&service, &path, true)
        );
        fs::write(own.path().join("portcullis.yaml"), yaml).expect("a file");
        gates.push((super::commands::serve(own.path()).await, own));
    }
    let call = async |url: &str| {
        let body =
            json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo", "arguments": {}}});
        let request = http::Request::post(format!("{url}/notes/mcp"))
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .body(http_body_util::Full::from(body.to_string()));
        let answer = client().request(request.expect("a request")).await;
        answer.expect("it answers").status()
    };
    let calls = (0..60).map(|n| call(&gates[n % 2].0.1));
    for answer in join_all(calls).await {
        assert_eq!(answer, StatusCode::OK);
    }
    assert_eq!(service.shown(), ["refresh-0"]);
    let written: Value = serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
    assert_eq!(written["refresh_token"], "refresh-1");
    assert_eq!(written["account"], "ops");
}
