//! Credentials that need no user: what the server gets, and what it never gets.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{DecodingKey, TokenData, Validation};
use portcullis::config::Config;
use serde_json::{Value, json};

use super::gate::{Gate, client};
use super::upstream::{self, Seen, Upstream};

const SECRET: &str = "abcdefgh12345678abcdefgh12345678";

/// Every tool, for anybody who is somebody.
fn credential(text: &str) -> String {
    format!("    credential: {{{text}}}\n")
}

async fn call(gate: &Gate, token: &str) -> (StatusCode, Option<i64>) {
    let answer = gate.modern(token, "tools/call", json!({"name": "echo"})).await;
    (answer.status, answer.code())
}

fn sent(seen: &Seen) -> &str {
    seen.headers["authorization"].to_str().expect("text")
}

#[tokio::test]
async fn an_assertion_is_verified_with_the_published_keys() {
    let upstream = Upstream::tools(1).await;
    let gate = Gate::with_route(&upstream, &credential("assertion: {claims: [roles]}")).await;
    let token = gate.token(&["notes.read"], &["notes-editor"]);
    for _ in 0..2 {
        assert_eq!(call(&gate, &token).await.0, StatusCode::OK);
    }
    let seen = upstream.seen();
    assert_eq!(sent(&seen[0]), sent(&seen[1]), "one for a while");
    let assertion = sent(&seen[0]).strip_prefix("Bearer ").expect("a bearer").to_owned();
    assert_ne!(assertion, token);

    let keys = Request::builder()
        .uri(format!("{}/.well-known/jwks.json", gate.running.url()))
        .body(Full::default())
        .expect("a request");
    let keys = gate.send(keys).await;
    assert_eq!(keys.status, StatusCode::OK);
    assert_eq!(keys.header("content-type"), "application/json");
    assert_eq!(keys.header("cache-control"), "public, max-age=300");
    let keys: JwkSet = serde_json::from_slice(&keys.body).expect("a key set");
    let kid = jsonwebtoken::decode_header(&assertion)
        .expect("a JWS")
        .kid
        .expect("a kid");
    let key = DecodingKey::from_jwk(keys.find(&kid).expect("it is published")).expect("a key");
    let mut validation = Validation::new(jsonwebtoken::Algorithm::ES256);
    validation.set_audience(&[upstream.url()]);
    validation.set_issuer(&[gate.running.url()]);
    let read: TokenData<Value> = jsonwebtoken::decode(&assertion, &key, &validation).expect("it is good");
    let claims = read.claims;
    assert_eq!(claims["sub"], "alice");
    assert_eq!(
        claims["sub_id"],
        json!({"format": "iss_sub", "iss": gate.issuer.issuer(), "sub": "alice"})
    );
    assert_eq!(claims["act"]["sub"], "portcullis-demo");
    assert_eq!(claims["roles"], json!(["notes-editor"]));
    gate.running.shutdown().await;
    let audit = std::fs::read_to_string(gate.directory.path().join("audit.jsonl")).expect("it is written");
    assert!(audit.contains(r#""credential":"assertion""#), "{audit}");
    assert!(!audit.contains(&assertion));
}

#[tokio::test]
async fn only_a_token_for_both_is_passed_on() {
    let upstream = Upstream::tools(1).await;
    let gate = Gate::with_route(
        &upstream,
        &credential("passthrough: {audience: \"https://files.example\"}"),
    )
    .await;
    let now = gate.clock.now();
    let mint = |audience: Value| {
        gate.issuer.mint_claims(&json!({
            "iss": gate.issuer.issuer(), "sub": "alice", "aud": audience, "scope": "notes.read", "exp": now + 600,
        }))
    };
    let only = mint(json!(gate.url()));
    assert_eq!(call(&gate, &only).await, (StatusCode::BAD_GATEWAY, Some(50_201)));
    assert!(upstream.seen().is_empty(), "nothing left");
    let both = mint(json!([gate.url(), "https://files.example"]));
    assert_eq!(call(&gate, &both).await.0, StatusCode::OK);
    let seen = upstream.seen();
    assert_eq!(sent(&seen[0]), format!("Bearer {both}"));
    // The upstream's tokens are no key to the gate.
    let theirs = mint(json!("https://files.example"));
    assert_eq!(call(&gate, &theirs).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(upstream.seen().len(), 1);
    let counted =
        r#"portcullis_credential_failures_total{route="notes",grant="passthrough",reason="not_for_upstream"}"#;
    assert_eq!(gate.metric(counted), Some(1.0), "{}", gate.running.metrics().render());
}

#[tokio::test]
async fn what_every_caller_s_token_is_for_cannot_be_passed_on() {
    let upstream = Upstream::tools(1).await;
    let gate = Gate::with_route(&upstream, "").await;
    let own = credential(&format!("passthrough: {{audience: \"{}\"}}", gate.url()));
    let yaml = format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {}\n{own}",
        upstream.url()
    );
    let error = gate.reload(&yaml).expect_err("it is refused").to_string();
    assert!(
        error.contains("routes.notes.credential.passthrough.audience"),
        "{error}"
    );
}

/// The README's recipes, as they stand there.
#[test]
fn the_recipes_load() {
    let readme = include_str!("../../README.md");
    let (_, section) = readme
        .split_once("\n### Credentials towards the servers\n")
        .expect("the section");
    let (section, _) = section.split_once("\n### ").expect("another section");
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(directory.path().join("secrets")).expect("a directory");
    for name in ["crm", "gate", "entra", "notes"] {
        std::fs::write(directory.path().join("secrets").join(name), SECRET).expect("a file");
    }
    let recipes: Vec<&str> = section.split("```yaml\n").skip(1).collect();
    assert_eq!(recipes.len(), 6);
    for recipe in recipes {
        let (recipe, _) = recipe.split_once("```").expect("its end");
        let text = format!(
            "listen: {{address: \"127.0.0.1:0\"}}\nidentity: {{corp: {{issuer: https://login.example.com}}}}\nroutes:\n  r:\n    \
             path: /m\n    upstream: http://127.0.0.1:1/mcp\n{recipe}"
        );
        let loaded = Config::parse(&text, "README.md", directory.path(), &|_| None);
        let loaded = loaded.unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    }
}

/// An issuer with metadata and a token endpoint that knows one client.
async fn issuer() -> Upstream {
    Upstream::start(|seen| async move {
        let host = seen.headers["host"].to_str().expect("text").to_owned();
        let issuer = format!("http://{host}");
        match &*seen.target {
            "/.well-known/oauth-authorization-server" => upstream::json_reply(&json!({
                "issuer": issuer, "token_endpoint": format!("{issuer}/token"),
            })),
            "/token" => upstream::json_reply(&json!({
                "access_token": "the-gates-own", "token_type": "Bearer", "expires_in": 3600,
            })),
            _ => upstream::status(StatusCode::NOT_FOUND),
        }
    })
    .await
}

#[tokio::test]
async fn the_gates_own_token_is_found_and_shared() {
    let issuer = issuer().await;
    let named = format!("http://{}", issuer.address);
    let server = {
        let named = named.clone();
        Upstream::start(move |seen| {
            let named = named.clone();
            async move {
                let host = seen.headers["host"].to_str().expect("text").to_owned();
                if seen.target.starts_with("/.well-known/oauth-protected-resource") {
                    return upstream::json_reply(&json!({
                        "resource": format!("http://{host}/mcp"), "authorization_servers": [named],
                    }));
                }
                if seen.headers.get("authorization") != Some(&HeaderValue::from_static("Bearer the-gates-own")) {
                    return upstream::status(StatusCode::UNAUTHORIZED);
                }
                upstream::json_reply(&upstream::result(&seen.json(), 1))
            }
        })
        .await
    };
    let own = credential(&format!(
        "client_credentials: {{issuer: \"{named}\", client_id: gate, client_secret: {SECRET}}}"
    ));
    let gate = Gate::with_route(&server, &own).await;
    let alice = gate.reader();
    let bob = gate
        .issuer
        .mint("bob", &gate.url(), &["notes.read"], &[], Duration::from_secs(600));
    for token in [&alice, &bob, &alice] {
        assert_eq!(call(&gate, token).await.0, StatusCode::OK);
    }
    let asked: Vec<Seen> = issuer
        .seen()
        .into_iter()
        .filter(|seen| seen.target == "/token")
        .collect();
    assert_eq!(asked.len(), 1, "one for all");
    assert_eq!(asked[0].method, Method::POST);
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("gate:{SECRET}"));
    assert_eq!(sent(&asked[0]), format!("Basic {basic}"));
    let form = String::from_utf8(asked[0].body.to_vec()).expect("a form");
    let resource: String = url::form_urlencoded::byte_serialize(server.url().as_bytes()).collect();
    assert_eq!(form, format!("grant_type=client_credentials&resource={resource}"));
    for seen in server.seen() {
        let text = format!("{:?}", seen.headers);
        assert!(!text.contains(&alice) && !text.contains(&bob) && !text.contains(SECRET));
    }
}

#[tokio::test]
async fn the_keys_are_the_public_hosts_and_nothing_else_is_there() {
    let upstream = Upstream::tools(1).await;
    let gate = Gate::with_rules(&upstream).await;
    let url = format!("{}/.well-known/jwks.json", gate.running.url());
    let request = |method: Method| {
        let request = Request::builder().method(method).uri(&url);
        request.body(Full::default()).expect("a request")
    };
    let keys = gate.send(request(Method::GET)).await;
    let set: Value = serde_json::from_slice(&keys.body).expect("JSON");
    let keys = set["keys"].as_array().expect("keys");
    assert_eq!(keys.len(), 1);
    let names: Vec<&String> = keys[0].as_object().expect("a key").keys().collect();
    assert_eq!(names, ["alg", "crv", "kid", "kty", "use", "x", "y"], "no private part");
    for coordinate in ["x", "y"] {
        let text = keys[0][coordinate].as_str().expect("text");
        assert_eq!(URL_SAFE_NO_PAD.decode(text).expect("base64url").len(), 32);
    }
    let posted = client().request(request(Method::POST)).await.expect("an answer");
    assert_eq!(posted.status(), StatusCode::METHOD_NOT_ALLOWED);
}
