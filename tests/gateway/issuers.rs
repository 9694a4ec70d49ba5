//! The README's recipes against tokens and metadata in the shapes of real issuers: what each recipe lets in, and as whom,
//! and which of the neighbours' tokens it refuses.
//!
//! A fixture has the issuer's metadata, a token's header and claims with what they should become, and what neighbours'
//! tokens differ in. The test changes only the origins of the issuer's URLs, the key and its algorithm.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use portcullis::authn::{AuthEvent, Authenticator, AuthnError, Principal, RouteAuth, Sender};
use portcullis::cli::demo::issuer::DevelopmentIssuer;
use portcullis::clock::Clock;
use portcullis::config::Config;
use portcullis::session::Sealer;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use url::Url;

use super::gate::{Gate, RULES, call};
use super::upstream::Upstream;

const README: &str = include_str!("../../README.md");
/// Within the lifetime of the fixtures' tokens.
const NOW: u64 = 1_800_000_100;

/// One issuer's recorded shapes, moved to loopback.
struct Fixture {
    recipe: String,
    token: Value,
    neighbours: Value,
    signer: DevelopmentIssuer,
}

macro_rules! fixture {
    ($name:literal) => {
        Fixture::start(
            $name,
            [
                include_str!(concat!("fixtures/issuers/", $name, "/metadata.json")),
                include_str!(concat!("fixtures/issuers/", $name, "/claims.json")),
                include_str!(concat!("fixtures/issuers/", $name, "/neighbour.json")),
            ],
        )
        .await
    };
}

/// The YAML under the heading, as printed.
fn recipe(name: &str) -> &'static str {
    let (_, section) = README.split_once(&format!("\n#### {name}\n")).expect("a recipe");
    let (_, block) = section.split_once("```yaml\n").expect("YAML");
    block.split_once("```").expect("an end").0
}

impl Fixture {
    async fn start(name: &str, [metadata, token, neighbours]: [&str; 3]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let here = format!("http://{}", listener.local_addr().expect("an address"));
        let parsed: Value = serde_json::from_str(metadata).expect("JSON");
        let url = |key: &str| Url::parse(parsed[key].as_str().expect("a text")).expect("a URL");
        let (issuer, jwks) = (url("issuer"), url("jwks_uri"));
        let moved = |text: &str| {
            text.replace(&issuer.origin().ascii_serialization(), &here)
                .replace(&jwks.origin().ascii_serialization(), &here)
        };
        let signer = DevelopmentIssuer::start(Clock::fixed(NOW)).await.expect("an issuer");
        let discovery = format!(
            "{}/.well-known/openid-configuration",
            issuer.path().trim_end_matches('/')
        );
        let answers = HashMap::from([
            (discovery, moved(metadata)),
            (jwks.path().to_owned(), signer.jwks().to_string()),
        ]);
        tokio::spawn(serve(listener, Arc::new(answers)));
        Self {
            recipe: moved(recipe(name)),
            token: serde_json::from_str(&moved(token)).expect("JSON"),
            neighbours: serde_json::from_str(&moved(neighbours)).expect("JSON"),
            signer,
        }
    }

    /// What the recipe makes of these claims: a principal, or the reason that is counted.
    async fn ask(&self, recipe: &str, claims: &Value) -> Result<Arc<Principal>, &'static str> {
        let text = format!(
            "listen: {{address: '127.0.0.1:0', public_url: 'https://mcp.example.com'}}\n{recipe}\
             routes: {{notes: {{path: /notes/mcp, upstream: 'http://127.0.0.1:1/mcp'}}}}\n"
        );
        let config = match Config::parse(&text, "README.md", std::path::Path::new("."), &|_| None) {
            Ok(loaded) => loaded.config,
            Err(errors) => panic!("the recipe is wrong: {errors}\n{text}"),
        };
        let reasons = Arc::new(Mutex::new(Vec::new()));
        let seen = reasons.clone();
        let events = move |event: AuthEvent<'_>| {
            if let AuthEvent::Validated { reason, .. } = event {
                seen.lock().expect("a lock").push(reason);
            }
        };
        let clock = Clock::fixed(NOW);
        let authenticator = Authenticator::new(&config.identities, config.roles.clone(), clock, Arc::new(events));
        let authenticator = authenticator.expect("an authenticator");
        let _refreshing = authenticator.spawn_refresh();
        let mut header = self.token["header"].clone();
        header["alg"] = json!("ES256");
        header["kid"] = json!(self.signer.current_kid());
        let bearer = format!("Bearer {}", self.signer.sign(&header, claims));
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, bearer.parse().expect("a value"));
        let resource = "https://mcp.example.com/notes/mcp";
        let route = RouteAuth {
            route: "notes".into(),
            identities: config.identities.iter().map(|identity| identity.name.clone()).collect(),
            anonymous: false,
            resource: resource.to_owned(),
        };
        let sender = Sender {
            method: &Method::POST,
            target: resource,
            certificate: None,
            sealer: &Sealer::new(&[]),
        };
        match authenticator.authenticate(&route, &headers, &sender).await {
            Ok(caller) => Ok(caller.principal),
            Err(AuthnError::KeysUnavailable { .. }) => panic!("the mock's keys are not found"),
            Err(_) => Err(reasons.lock().expect("a lock").pop().expect("an event")),
        }
    }

    /// Lets the issuer's token in, and none of its neighbours'.
    async fn holds(&self) {
        let caller = self.ask(&self.recipe, &self.token["claims"]).await.expect("let in");
        let expected = &self.token["principal"];
        let found = json!({
            "subject": caller.subject, "client": caller.client, "scopes": caller.scopes,
            "roles": caller.roles, "groups": caller.groups,
        });
        assert_eq!(found, *expected);
        let neighbours = self.neighbours.as_array().expect("a list");
        assert!(neighbours.len() >= 3);
        for neighbour in neighbours {
            let claims = merged(&self.token["claims"], &neighbour["claims"]);
            let refused = self.ask(&self.recipe, &claims).await.err();
            assert_eq!(refused, neighbour["reason"].as_str(), "{}", neighbour["why"]);
        }
    }
}

/// RFC 7396, one level deep.
fn merged(claims: &Value, patch: &Value) -> Value {
    let mut merged = claims.clone();
    let members = merged.as_object_mut().expect("an object");
    for (name, value) in patch.as_object().expect("an object") {
        match value {
            Value::Null => drop(members.remove(name)),
            value => drop(members.insert(name.clone(), value.clone())),
        }
    }
    merged
}

async fn serve(listener: TcpListener, answers: Arc<HashMap<String, String>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let answers = answers.clone();
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let found = answers.get(request.uri().path()).cloned();
            async move {
                let mut response = Response::new(Full::<Bytes>::from(found.clone().unwrap_or_default()));
                if found.is_none() {
                    *response.status_mut() = StatusCode::NOT_FOUND;
                }
                Ok::<_, std::convert::Infallible>(response)
            }
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

macro_rules! recipes {
    ($($test:ident: $name:literal,)*) => {$(
        #[tokio::test]
        async fn $test() {
            fixture!($name).holds().await;
        }
    )*};
}

recipes! {
    keycloak: "keycloak",
    entra_v2: "entra-v2",
    entra_v1: "entra-v1",
    okta: "okta",
    auth0: "auth0",
    google: "google",
    zitadel: "zitadel",
    cognito: "cognito",
}

/// Each recipe without the line that makes it safe or work: what the line is for.
#[tokio::test]
async fn no_recipe_says_more_than_it_needs() {
    let without = async |fixture: Fixture, line: &str| {
        assert!(fixture.recipe.contains(line), "{line}");
        let recipe = fixture.recipe.replace(line, "");
        fixture.ask(&recipe, &fixture.token["claims"]).await.err()
    };
    let missing_audience = without(fixture!("cognito"), "      audience: client_id\n").await;
    assert_eq!(missing_audience, Some("audience"));
    assert_eq!(without(fixture!("google"), "    id_tokens: true\n").await, Some("type"));
    let keycloak = without(fixture!("keycloak"), "    audiences: [notes-gate]\n").await;
    assert_eq!(keycloak, Some("audience"));
    let google = fixture!("google");
    let anybodys = google.recipe.replace(", require: {hd: example.com}", "");
    let anybody = merged(&google.token["claims"], &json!({"hd": null}));
    assert!(google.ask(&anybodys, &anybody).await.is_ok());
}

/// Clients must ask for scopes as the issuer spells them, wherever they read about them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_told_the_issuers_spelling() {
    let upstream = Upstream::tools(1).await;
    let gate = Gate::with_rules(&upstream).await;
    let rules = format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {}\n{RULES}",
        upstream.url()
    );
    let spelling =
        "    claims: {scope_prefixes: [\"api/\"], scope_separators: {\":\": \".\"}}\n    scope_upgrade_endpoint";
    gate.reload_replacing("    scope_upgrade_endpoint", spelling, &rules)
        .expect("a good configuration");

    let unknown = gate.legacy("", &call("echo")).await;
    assert_eq!(unknown.status, 401);
    let challenge = unknown.header("www-authenticate");
    assert!(challenge.contains("scope=\"api/mcp:use\""), "{challenge}");

    let document = format!("{}/.well-known/oauth-protected-resource/notes/mcp", gate.running.url());
    let request = Request::builder()
        .uri(document)
        .body(Full::default())
        .expect("a request");
    let document = gate.send(request).await.json();
    assert_eq!(document["scopes_supported"], json!(["api/mcp:use", "api/notes:write"]));

    let token = gate.token(&["api/mcp:use"], &["notes-editor"]);
    let lacking = gate.legacy(&token, &call("delete_note")).await;
    assert_eq!(lacking.status, 403);
    let challenge = lacking.header("www-authenticate");
    assert!(
        challenge.contains("scope=\"api/mcp:use api/notes:write\""),
        "{challenge}"
    );
    let data = &lacking.json()["error"]["data"];
    assert_eq!(data["required_scope"], "api/mcp:use api/notes:write");
    assert_eq!(data["user_scopes"], json!(["api/mcp:use"]));

    let granted = gate.token(&["api/mcp:use", "api/notes:write"], &["notes-editor"]);
    assert_ne!(gate.legacy(&granted, &call("delete_note")).await.code(), Some(40_301));
    // Written as the rules do, it is another scope.
    let another = gate.token(&["mcp.use", "notes.write"], &["notes-editor"]);
    assert_eq!(gate.legacy(&another, &call("delete_note")).await.code(), Some(40_301));
}
