//! Logins, refreshes and revocations, and what an issuer may not do to them.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Value, json};
use url::Url;

use super::super::login::{Begun, Login, LoginError, Pending};
use super::super::testing::{METADATA, PRM, World, with};
use super::super::{AuthMethod, Grant, TokenError};
use crate::clock::Clock;
use crate::config::{self, Client, ClientProof, Connection, Database, Endpoints, Registration, Resource, State};
use crate::secret::Secret;
use crate::session::Sealer;
use crate::store::Store;

const NOW: u64 = 1_800_000_000;
const GATE: &str = "https://gate.test";
const CALLBACK: &str = "https://gate.test/connect/callback";

/// A world, and what the gateway keeps of it.
struct Scene {
    world: World,
    store: Store,
    clock: Clock,
    _directory: tempfile::TempDir,
}

fn bare() -> Connection {
    Connection {
        issuer: None,
        endpoints: None,
        client: None,
        registration: Registration::Auto,
        scopes: Vec::new(),
        resource: Resource::Upstream,
        parameters: Vec::new(),
        private_addresses: false,
        ca: None,
    }
}

fn client(proof: ClientProof) -> Client {
    Client {
        id: "gate".to_owned(),
        proof,
    }
}

impl Scene {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = State {
            directory: directory.path().to_owned(),
            database: Database::Sqlite,
            seal_keys: Vec::new(),
        };
        let clock = Clock::fixed(NOW);
        let world = World::start().await;
        world
            .issuer
            .answers("/register", 201, json!({"client_id": "c1", "client_secret": "s1"}));
        world.issuer.answers("/token", 200, tokens());
        Self {
            world,
            store: Store::open(&state, Arc::new(Sealer::new(&[])), clock.clone())
                .await
                .unwrap(),
            clock,
            _directory: directory,
        }
    }

    fn login_at(&self, public_url: &str, config: &Connection) -> Login {
        let servers: config::Upstream = self.world.servers();
        Login::new(config, &servers, public_url, self.store.clone(), self.clock.clone()).expect("no files to read")
    }

    fn login(&self, config: &Connection) -> Login {
        self.login_at(GATE, config)
    }

    /// What the browser comes back with.
    fn answer(&self, begun: &Begun) -> String {
        format!("code=the-code&state={}&iss={}", begun.state, self.world.issuer.origin)
    }

    async fn connect(&self, login: &Login) -> Grant {
        let begun = login.begin(&[]).await.expect("it can begin");
        let answer = self.answer(&begun);
        login.finish(begun.pending, &answer).await.expect("it can finish")
    }

    fn token_form(&self) -> HashMap<String, String> {
        let asked = self.world.issuer.asked_at("/token");
        asked
            .last()
            .expect("a token was asked for")
            .form()
            .into_iter()
            .collect()
    }
}

fn tokens() -> Value {
    json!({"access_token": "a1", "refresh_token": "r1", "token_type": "Bearer", "expires_in": 60})
}

fn query(url: &Url) -> HashMap<String, String> {
    url.query_pairs().into_owned().collect()
}

fn rejected(error: &'static str) -> TokenError {
    TokenError::Rejected { error }
}

#[tokio::test]
async fn a_login_in_a_browser() {
    let scene = Scene::new().await;
    let login = scene.login(&bare());
    let begun = login.begin(&["more".to_owned(), "read".to_owned()]).await.unwrap();
    assert!(begun.url.as_str().starts_with(&scene.world.issuer.url("/authorize?")));
    let asked = query(&begun.url);
    assert_eq!(asked["client_id"], "c1");
    assert_eq!(asked["redirect_uri"], CALLBACK);
    assert_eq!(asked["scope"], "read write more");
    assert_eq!(asked["resource"], scene.world.upstream.url("/mcp"));
    assert_eq!(asked["state"], begun.state);
    assert_eq!(asked["code_challenge_method"], "S256");

    let registered = scene.world.issuer.asked_at("/register")[0].json();
    assert_eq!(registered["redirect_uris"], json!([CALLBACK]));
    assert_eq!(registered["token_endpoint_auth_method"], "client_secret_post");
    assert_eq!(registered["application_type"], "web");

    // What is pending survives being written down, and holds the rest.
    let answer = scene.answer(&begun);
    let pending = Pending::from_json(&begun.pending.to_json()).unwrap();
    assert_eq!(pending.issuer(), scene.world.issuer.origin);
    assert!(Pending::from_json(b"{}").is_none());
    let grant = login.finish(pending, &answer).await.unwrap();
    let form = scene.token_form();
    assert_eq!(form["grant_type"], "authorization_code");
    assert_eq!(form["code"], "the-code");
    assert_eq!(form["redirect_uri"], CALLBACK);
    assert_eq!(form["resource"], scene.world.upstream.url("/mcp"));
    assert_eq!(
        (form["client_id"].as_str(), form["client_secret"].as_str()),
        ("c1", "s1")
    );
    let verifier = Secret::new(form["code_verifier"].clone());
    assert_eq!(
        super::super::authorization::code_challenge(&verifier),
        asked["code_challenge"]
    );

    assert_eq!(grant.issuer, scene.world.issuer.origin);
    assert_eq!(grant.upstream, scene.world.upstream.url("/mcp"));
    assert_eq!(grant.resource, Some(grant.upstream.clone()));
    assert_eq!(grant.token_endpoint.as_str(), scene.world.issuer.url("/token"));
    assert_eq!(grant.tokens.access_token.expose(), "a1");
    assert_eq!(grant.tokens.expires_at, Some(NOW + 60));
    assert_eq!(
        grant.tokens.scopes,
        Some(["read", "write", "more"].map(str::to_owned).to_vec())
    );
    assert!(login.accepts(&grant));
}

#[tokio::test]
async fn r15_r16_a_token_without_an_end_and_one_with_the_farthest() {
    let scene = Scene::new().await;
    let login = scene.login(&bare());
    scene.world.issuer.answers("/token", 200, json!({"access_token": "a"}));
    assert_eq!(scene.connect(&login).await.tokens.expires_at, None);
    let far = json!({"access_token": "a", "expires_in": u64::MAX});
    scene.world.issuer.answers("/token", 200, far);
    assert_eq!(scene.connect(&login).await.tokens.expires_at, Some(u64::MAX));
}

#[tokio::test]
async fn answers_of_somebody_else_bring_no_token() {
    let scene = Scene::new().await;
    let login = scene.login(&bare());
    let iss = &scene.world.issuer.origin;
    for (answer, text) in [
        (
            "code=c&state=STATE".to_owned(),
            "the issuer says that it names itself in its answers, and this one names none",
        ),
        (
            "code=c&state=STATE&iss=https://evil.example.com".to_owned(),
            "the answer is another issuer's",
        ),
        (
            format!("code=c&state=STATE&iss={iss}/"),
            "the answer is another issuer's",
        ),
        (
            format!("code=c&state=other&iss={iss}"),
            "the answer is not to this login: its state is another, or was cut off",
        ),
        (
            format!("error=access_denied&error_description=No%21&state=STATE&iss={iss}"),
            "the issuer refused: access_denied (No!)",
        ),
        (
            format!("error=%3Cb%3E&state=STATE&iss={iss}"),
            "the issuer refused: other",
        ),
        (
            format!("state=STATE&iss={iss}"),
            "the answer has neither a code nor an error",
        ),
    ] {
        let begun = login.begin(&[]).await.unwrap();
        let answer = answer.replace("STATE", &begun.state);
        let error = login.finish(begun.pending, &answer).await.err().unwrap();
        assert_eq!(error.to_string(), text, "{answer}");
    }
    assert!(scene.world.issuer.asked_at("/token").is_empty());
}

#[tokio::test]
async fn a_token_endpoint_that_gives_none() {
    let scene = Scene::new().await;
    let login = scene.login(&bare());
    for (status, body, text) in [
        (
            400,
            r#"{"error":"invalid_grant"}"#,
            "the token endpoint refused: invalid_grant",
        ),
        (400, "<html>", "the token endpoint refused: other"),
        (
            200,
            r#"{"error":"invalid_grant"}"#,
            "the token endpoint refused: invalid_grant",
        ),
        (200, "{}", "the token endpoint's answer can't be used: no access_token"),
        (
            503,
            "",
            "the token endpoint can't be reached: it answered that it can't serve now",
        ),
        (
            302,
            "",
            "the token endpoint's answer can't be used: neither success nor an error of OAuth",
        ),
    ] {
        scene.world.issuer.answers("/token", status, body);
        let begun = login.begin(&[]).await.unwrap();
        let answer = scene.answer(&begun);
        let error = login.finish(begun.pending, &answer).await.err().unwrap();
        assert_eq!(error.to_string(), text, "{status} {body}");
    }
}

#[tokio::test]
async fn scopes_are_the_configured_or_the_found_and_offline_access_where_it_is_known() {
    let scene = Scene::new().await;
    let asked = async |config: &Connection| {
        let begun = scene.login(config).begin(&[]).await.unwrap();
        let query = query(&begun.url);
        (query.get("scope").cloned(), query.get("prompt").cloned())
    };
    let said = |scope: &str, prompt: Option<&str>| (Some(scope.to_owned()), prompt.map(str::to_owned));
    assert_eq!(asked(&bare()).await, said("read write", None));

    let metadata = with(
        scene.world.metadata(),
        "scopes_supported",
        json!(["read", "offline_access"]),
    );
    scene.world.issuer.answers(METADATA, 200, metadata);
    assert_eq!(asked(&bare()).await, said("read write offline_access", Some("consent")));
    let parameters = vec![("prompt".to_owned(), "login".to_owned())];
    let prompting = Connection { parameters, ..bare() };
    assert_eq!(
        asked(&prompting).await,
        said("read write offline_access", Some("login"))
    );
    let configured = Connection {
        scopes: vec!["only".to_owned()],
        ..bare()
    };
    assert_eq!(asked(&configured).await, said("only", None));

    let none = with(scene.world.prm(), "scopes_supported", Value::Null);
    scene.world.upstream.answers(PRM, 200, none);
    assert_eq!(asked(&bare()).await, (None, None));
}

#[tokio::test]
async fn the_client_is_configured_a_document_or_registered() {
    let scene = Scene::new().await;
    let id = async |public_url: &str, config: &Connection| {
        let begun = scene.login_at(public_url, config).begin(&[]).await;
        begun.map(|begun| query(&begun.url)["client_id"].clone())
    };
    let refused = async |public_url: &str, config: &Connection| match id(public_url, config).await {
        Err(LoginError::Registration(error)) => error.to_string(),
        _ => panic!("no refusal"),
    };
    let configured = Connection {
        client: Some(client(ClientProof::None)),
        ..bare()
    };
    let by_document = Connection {
        registration: Registration::MetadataDocument,
        ..bare()
    };
    let dynamic = Connection {
        registration: Registration::Dynamic,
        ..bare()
    };
    let document = format!("{GATE}/connect/client.json");

    assert_eq!(id(GATE, &configured).await.unwrap(), "gate");
    assert_eq!(
        refused(GATE, &by_document).await,
        "the issuer takes no client id metadata documents; drop `registration`, or set client_id"
    );
    assert_eq!(id(GATE, &bare()).await.unwrap(), "c1");

    let reads = with(scene.world.metadata(), "client_id_metadata_document_supported", true);
    scene.world.issuer.answers(METADATA, 200, &reads);
    assert_eq!(id(GATE, &bare()).await.unwrap(), document);
    assert_eq!(id(GATE, &by_document).await.unwrap(), document);
    assert_eq!(id(GATE, &dynamic).await.unwrap(), "c1");
    assert_eq!(id("http://gate.test", &bare()).await.unwrap(), "c1");
    assert_eq!(
        refused("http://gate.test", &by_document).await,
        "the issuer can't read the gate's client id metadata document: public_url isn't https"
    );

    let neither = with(scene.world.metadata(), "registration_endpoint", Value::Null);
    scene.world.issuer.answers(METADATA, 200, neither);
    assert_eq!(
        refused(GATE, &bare()).await,
        "the issuer neither takes client id metadata documents from here nor registers clients; set client_id"
    );
    assert_eq!(
        refused(GATE, &dynamic).await,
        "the issuer registers no clients; drop `registration`, or set client_id"
    );
    let keys_only = with(
        scene.world.metadata(),
        "token_endpoint_auth_methods_supported",
        json!(["private_key_jwt"]),
    );
    scene.world.issuer.answers(METADATA, 200, keys_only);
    assert_eq!(
        refused(GATE, &bare()).await,
        "the issuer's ways to authenticate a client are none of client_secret_basic, client_secret_post and none"
    );
}

#[tokio::test]
async fn registrations_that_fail_say_why() {
    let scene = Scene::new().await;
    let login = scene.login(&bare());
    for (status, body, text) in [
        (
            400,
            r#"{"error":"invalid_redirect_uri","error_description":"https only"}"#,
            "the issuer refused to register the gate: invalid_redirect_uri (https only)",
        ),
        (403, "no", "the issuer refused to register the gate: other"),
        (503, "", "the issuer answered that it can't register anybody now"),
        (201, "{}", "the issuer's registration can't be used: no client_id"),
    ] {
        scene.world.issuer.answers("/register", status, body);
        let error = login.begin(&[]).await.err().unwrap();
        assert_eq!(error.to_string(), text);
    }
}

#[tokio::test]
async fn a_registration_is_remembered_for_its_issuer() {
    let scene = Scene::new().await;
    let count = || scene.world.issuer.asked_at("/register").len();
    scene.login(&bare()).begin(&[]).await.unwrap();
    // Another route of another process, in effect.
    scene.login(&bare()).begin(&[]).await.unwrap();
    assert_eq!(count(), 1);
    // Another redirect URI is another client.
    scene.login_at("https://other.test", &bare()).begin(&[]).await.unwrap();
    assert_eq!(count(), 2);

    // So is another upstream, whatever it says of itself.
    let mut servers = scene.world.servers();
    let alias = servers.urls[0].as_str().replace("127.0.0.1", "localhost");
    let other = with(scene.world.prm(), "resource", json!(alias.split('?').next()));
    scene.world.upstream.answers(PRM, 200, other);
    servers.urls[0] = alias.parse().unwrap();
    let login =
        Login::new(&bare(), &servers, GATE, scene.store.clone(), scene.clock.clone()).expect("no files to read");
    login.begin(&[]).await.unwrap();
    assert_eq!(count(), 3);

    // SEP-2352: what one issuer gave isn't shown to the next.
    let second = super::super::testing::Peer::start().await;
    let metadata = scene.world.metadata().to_string();
    second.answers(
        METADATA,
        200,
        metadata.replace(&scene.world.issuer.origin, &second.origin),
    );
    second.answers("/register", 201, json!({"client_id": "c2", "client_secret": "s2"}));
    let moved = with(scene.world.prm(), "authorization_servers", json!([second.origin]));
    scene.world.upstream.answers(PRM, 200, moved);
    let begun = scene.login(&bare()).begin(&[]).await.unwrap();
    assert_eq!(query(&begun.url)["client_id"], "c2");
    assert!(begun.url.as_str().starts_with(&second.url("/authorize")));
    assert!(
        second
            .asked()
            .iter()
            .all(|asked| !format!("{:?}", asked.form()).contains("c1"))
    );
}

#[tokio::test]
async fn a_registration_is_made_anew_when_its_secret_ends_or_its_issuer_forgets_it() {
    let scene = Scene::new().await;
    let login = scene.login(&bare());
    let issuer = &scene.world.issuer;
    let id = async || query(&login.begin(&[]).await.unwrap().url)["client_id"].clone();
    let ends = |id: &str, at: u64| json!({"client_id": id, "client_secret": "s", "client_secret_expires_at": at});
    issuer.answers("/register", 201, ends("c1", NOW + 2 * 60 * 60));
    assert_eq!(id().await, "c1");
    issuer.answers("/register", 201, ends("c2", 0));
    assert_eq!(id().await, "c1");
    scene.clock.set(NOW + 60 * 60);
    assert_eq!(id().await, "c2");

    // The token endpoint doesn't know it: the next login begins with another.
    issuer.answers("/register", 201, ends("c3", 0));
    issuer.answers("/token", 401, json!({"error": "invalid_client"}));
    let begun = login.begin(&[]).await.unwrap();
    let answer = scene.answer(&begun);
    let error = login.finish(begun.pending, &answer).await.err().unwrap();
    assert_eq!(
        error.to_string(),
        "the token endpoint refused: invalid_client (the issuer doesn't know the gateway's client_id, or not with these credentials)"
    );
    assert_eq!(id().await, "c3");

    // The authorization endpoint doesn't, and tells the person only: nobody comes back.
    issuer.answers("/register", 201, ends("c4", 0));
    for _ in 0..5 {
        assert_eq!(id().await, "c3");
    }
    scene.clock.set(NOW + 3 * 60 * 60);
    assert_eq!(id().await, "c4");
}

#[tokio::test]
async fn r14_a_refresh_that_gives_no_refresh_token_keeps_the_old_one() {
    let scene = Scene::new().await;
    let login = scene.login(&bare());
    let mut grant = scene.connect(&login).await;
    for access_token in ["a2", "a3"] {
        let answer = json!({"access_token": access_token, "expires_in": 5});
        scene.world.issuer.answers("/token", 200, answer);
        grant.tokens = login.refresh(&grant).await.unwrap();
        let form = scene.token_form();
        assert_eq!(form["grant_type"], "refresh_token");
        assert_eq!(form["refresh_token"], "r1");
        assert_eq!(form["resource"], scene.world.upstream.url("/mcp"));
        assert_eq!(form["client_secret"], "s1");
        assert_eq!(grant.tokens.access_token.expose(), access_token);
        assert!(grant.tokens.refresh_token == Some(Secret::new("r1")));
        assert_eq!(grant.tokens.scopes, Some(vec!["read".to_owned(), "write".to_owned()]));
    }
    let rotated = json!({"access_token": "a4", "refresh_token": "r2", "scope": "read"});
    scene.world.issuer.answers("/token", 200, rotated);
    let tokens = login.refresh(&grant).await.unwrap();
    assert!(tokens.refresh_token == Some(Secret::new("r2")));
    assert_eq!(tokens.scopes, Some(vec!["read".to_owned()]));
}

#[tokio::test]
async fn r30_a_refresh_goes_to_the_token_endpoint_that_was_found_without_finding_it_again() {
    let scene = Scene::new().await;
    let grant = scene.connect(&scene.login(&bare())).await;
    let written = Grant::from_json(&grant.to_json()).unwrap();
    // Another process, and an upstream that says nothing just now.
    scene.world.upstream.answers("/mcp", 503, "");
    scene.world.upstream.answers(PRM, 503, "");
    scene.world.issuer.answers(METADATA, 503, "");
    let login = scene.login(&bare());
    assert!(login.refresh(&written).await.is_ok());
    assert_eq!(scene.token_form()["refresh_token"], "r1");
}

#[tokio::test]
async fn r32_a_refresh_token_goes_nowhere_else() {
    let scene = Scene::new().await;
    let login = scene.login(&bare());
    let grant = scene.connect(&login).await;
    let asked = scene.world.issuer.asked_at("/token").len();
    let refused = async |login: &Login, grant: &Grant| {
        assert_eq!(login.refresh(grant).await.err(), Some(rejected("invalid_grant")));
    };
    let mut elsewhere = grant.clone();
    elsewhere.upstream = "https://other.test/mcp".to_owned();
    refused(&login, &elsewhere).await;
    let other_issuer = Connection {
        issuer: Some("https://other.test".to_owned()),
        ..bare()
    };
    refused(&scene.login(&other_issuer), &grant).await;
    let other_client = Connection {
        client: Some(client(ClientProof::None)),
        ..bare()
    };
    refused(&scene.login(&other_client), &grant).await;
    let by_hand = Connection {
        issuer: Some(grant.issuer.clone()),
        endpoints: Some(Endpoints {
            authorization: None,
            token: "https://other.test/token".parse().unwrap(),
            device_authorization: None,
            revocation: None,
        }),
        ..bare()
    };
    refused(&scene.login(&by_hand), &grant).await;
    let mut without = grant.clone();
    without.tokens.refresh_token = None;
    refused(&login, &without).await;
    // The upstream has gone over to another issuer.
    let moved = with(
        scene.world.prm(),
        "authorization_servers",
        json!(["https://other.test"]),
    );
    scene.world.upstream.answers(PRM, 200, moved);
    refused(&login, &grant).await;
    assert_eq!(scene.world.issuer.asked_at("/token").len(), asked);
}

#[tokio::test]
async fn a_login_isnt_finished_with_another_configuration() {
    let scene = Scene::new().await;
    let begun = scene.login(&bare()).begin(&[]).await.unwrap();
    let answer = scene.answer(&begun);
    let config = Connection {
        client: Some(client(ClientProof::None)),
        ..bare()
    };
    let error = scene.login(&config).finish(begun.pending, &answer).await.err().unwrap();
    assert_eq!(
        error.to_string(),
        "the route's configuration has changed since the login was begun"
    );
    assert!(scene.world.issuer.asked_at("/token").is_empty());
}

#[tokio::test]
async fn endpoints_by_hand_are_not_looked_for() {
    let scene = Scene::new().await;
    let at = |path| Some(scene.world.issuer.url(path).parse().unwrap());
    let config = Connection {
        issuer: Some(scene.world.issuer.origin.clone()),
        endpoints: Some(Endpoints {
            authorization: at("/authorize?tenant=t"),
            token: scene.world.issuer.url("/token").parse().unwrap(),
            device_authorization: None,
            revocation: None,
        }),
        client: Some(client(ClientProof::Basic(Secret::new("s")))),
        parameters: vec![("access_type".to_owned(), "offline".to_owned())],
        ..bare()
    };
    let login = scene.login(&config);
    let begun = login.begin(&[]).await.unwrap();
    let asked = query(&begun.url);
    assert_eq!(
        (asked["tenant"].as_str(), asked["access_type"].as_str()),
        ("t", "offline")
    );
    assert!(!asked.contains_key("scope"));
    let answer = scene.answer(&begun);
    let grant = login.finish(begun.pending, &answer).await.unwrap();
    assert_eq!(grant.client.auth, AuthMethod::ClientSecretBasic);
    // The configuration's secret stays there.
    assert!(grant.client.secret.is_none());
    let paths = scene.world.issuer.paths();
    assert_eq!(paths, ["/token"]);
    assert!(scene.world.upstream.asked().is_empty());
    let sent = &scene.world.issuer.asked()[0];
    assert!(sent.headers["authorization"].to_str().unwrap().starts_with("Basic "));
    assert!(!sent.form().contains_key("client_secret"));

    login.refresh(&grant).await.unwrap();
    assert!(scene.world.upstream.asked().is_empty());
    let Err(LoginError::Device(error)) = login.device(&[]).await else {
        panic!("there is no endpoint");
    };
    assert_eq!(error.to_string(), "the issuer has no device authorization endpoint");
}

#[tokio::test]
async fn r24_a_token_call_ends_when_the_issuer_never_answers() {
    let scene = Scene::new().await;
    let login = scene.login(&bare());
    let mut grant = scene.connect(&login).await;
    // It takes connections and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/token", silent.local_addr().unwrap());
    grant.token_endpoint = url.parse().unwrap();
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let error = login.refresh(&grant).await.err();
    assert_eq!(error, Some(TokenError::Unreachable("no answer in time")));
    assert!(began.elapsed() <= std::time::Duration::from_secs(10 + 3));
}

#[tokio::test]
async fn a_revocation_names_both_tokens() {
    let scene = Scene::new().await;
    let login = scene.login(&bare());
    let grant = scene.connect(&login).await;
    scene.world.issuer.answers("/revoke", 503, "");
    login.revoke(&grant).await;
    let asked = scene.world.issuer.asked_at("/revoke");
    let forms: Vec<_> = asked.iter().map(|asked| asked.form()).collect();
    let told: Vec<_> = forms
        .iter()
        .map(|form| {
            (
                form["token"].as_str(),
                form["token_type_hint"].as_str(),
                form["client_secret"].as_str(),
            )
        })
        .collect();
    assert_eq!(told, [("r1", "refresh_token", "s1"), ("a1", "access_token", "s1")]);
}

fn codes() -> Value {
    json!({
        "device_code": "d1", "user_code": "WDJB-MJHT", "verification_uri": "https://issuer.test/device",
        "expires_in": 300, "interval": 0,
    })
}

#[tokio::test]
async fn r23_a_login_by_device_code() {
    let scene = Scene::new().await;
    let login = scene.login(&bare());
    scene.world.issuer.answers("/device", 200, codes());
    // GitHub's way to say "not yet".
    scene
        .world
        .issuer
        .answers("/token", 200, json!({"error": "authorization_pending"}));
    scene.world.issuer.then_answers("/token", 200, tokens());
    let device = login.device(&["more".to_owned()]).await.unwrap();
    assert_eq!(device.user_code, "WDJB-MJHT");
    assert_eq!(device.verification_uri.as_str(), "https://issuer.test/device");
    assert_eq!(device.verification_uri_complete, None);
    assert_eq!(device.expires_at, NOW + 300);
    let asked = scene.world.issuer.asked_at("/device")[0].form();
    assert_eq!(asked["scope"], "read write more");
    assert_eq!(asked["resource"], scene.world.upstream.url("/mcp"));
    assert_eq!(asked["client_id"], "c1");

    let grant = device.wait().await.unwrap();
    assert_eq!(scene.world.issuer.asked_at("/token").len(), 2);
    let form = scene.token_form();
    assert_eq!(form["grant_type"], "urn:ietf:params:oauth:grant-type:device_code");
    assert_eq!(form["device_code"], "d1");
    assert_eq!(form["resource"], scene.world.upstream.url("/mcp"));
    assert_eq!(grant.tokens.access_token.expose(), "a1");
    assert_eq!(grant.tokens.scopes.unwrap().len(), 3);
}

#[tokio::test]
async fn device_codes_that_are_not_given() {
    let scene = Scene::new().await;
    let login = scene.login(&bare());
    for (status, body, text) in [
        (
            400,
            r#"{"error":"invalid_scope"}"#,
            "the token endpoint refused: invalid_scope",
        ),
        (
            500,
            "",
            "the token endpoint can't be reached: it answered that it can't serve now",
        ),
        (200, "{}", "the issuer's device codes can't be used: no device_code"),
    ] {
        scene.world.issuer.answers("/device", status, body);
        let error = login.device(&[]).await.err().unwrap();
        assert_eq!(error.to_string(), text);
    }
    assert!(scene.world.issuer.asked_at("/token").is_empty());
}
