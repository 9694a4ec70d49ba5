//! What the gateway shows on its own account: client credentials, however the issuer wants a client to prove itself, short JWTs
//! that it signs for its callers, and the callers' own tokens where those are meant for the upstream too.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, DnType, KeyPair, PublicKeyData};
use serde_json::{Value, json};

use super::RMCP;
use super::gate_process::GateProcess;
use super::world::{Issuer, JS, JS_LEGACY, PYTHON, Protected, answer};

const CLIENT_CREDENTIALS: &str = "client_credentials";

/// The public half of a P-256 key.
fn jwk(key: &KeyPair) -> Value {
    let point = key.der_bytes();
    let coordinate = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
    json!({"kty": "EC", "crv": "P-256", "x": coordinate(1..33), "y": coordinate(33..65)})
}

fn pem(text: &str) -> String {
    serde_json::to_string(text).expect("a string")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_proves_itself_as_the_issuer_wants() {
    let issuer = Issuer::start(&[]).await;
    let upstream = Protected::start(&issuer, &[]).await;
    let key = KeyPair::generate().expect("a key");
    let mut public = jwk(&key);
    public["kid"] = json!("gate-1");
    let client = json!({
        "client_id": "gate-key", "grant_types": [CLIENT_CREDENTIALS], "redirect_uris": [], "response_types": [],
        "token_endpoint_auth_method": "private_key_jwt", "token_endpoint_auth_signing_alg": "ES256", "jwks": {"keys": [public]},
    });
    issuer.0.post("/control/client", &client).await;
    let signing = format!("private_key: {}, key_id: gate-1", pem(&key.serialize_pem()));
    for (method, client) in [
        ("client_secret_basic", "client_id: gate, client_secret: gate-secret"),
        (
            "client_secret_post",
            "client_id: gate-post, client_secret: gate-secret, client_auth: post",
        ),
        ("private_key_jwt", &format!("client_id: gate-key, {signing}")),
    ] {
        let before = issuer.asked(CLIENT_CREDENTIALS).await.len();
        let by_hand = format!(
            "token_endpoint: \"{}/token\", resource: \"{}\", ",
            issuer.url(),
            upstream.url()
        );
        let found = format!("issuer: \"{}\", ", issuer.url());
        for found in [&found, &by_hand] {
            let routes = format!(
                "  linear: {{path: /linear/mcp, upstream: \"{}\", credential: {{client_credentials: {{{found}{client}, scopes: [mcp.use]}}}}}}\n",
                upstream.url()
            );
            let gate = GateProcess::start(issuer.url(), &routes).await;
            let url = format!("{}/linear/mcp", gate.url);
            for (caller, subject) in [(JS, "alice"), (PYTHON, "bob")] {
                let token = issuer
                    .token(&json!({"resource": gate.resource(), "sub": subject}))
                    .await;
                let seen = answer(caller, &url, &token, &["--calls", "5"]).await;
                let claims = &seen["claims"];
                assert!(
                    client.contains(claims["client_id"].as_str().expect("a client")),
                    "{seen:#}"
                );
                assert_eq!(
                    (&claims["aud"], &claims["scope"]),
                    (&json!(upstream.url()), &json!("mcp.use")),
                    "{seen:#}"
                );
            }
        }
        let asked = issuer.asked(CLIENT_CREDENTIALS).await;
        // One a gateway, for all its callers.
        assert_eq!(asked.len(), before + 2, "{method}: {asked:#?}");
        for asked in &asked[before..] {
            assert_eq!(
                (&asked["authentication"], &asked["status"]),
                (&json!(method), &json!(200)),
                "{asked:#}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_known_by_its_certificate() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str| directory.path().join(name).display().to_string();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    std::fs::write(file("issuer.pem"), made.cert.pem()).expect("written");
    std::fs::write(file("issuer.key"), made.signing_key.serialize_pem()).expect("written");
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.distinguished_name.push(DnType::CommonName, "gate");
    let certificate = params.self_signed(&key).expect("a certificate");
    std::fs::write(file("gate.pem"), certificate.pem()).expect("written");
    std::fs::write(file("gate.key"), key.serialize_pem()).expect("written");

    let callers = Issuer::start(&[]).await;
    let issuer = Issuer::with_tls(made.cert.der(), &file("issuer.pem"), &file("issuer.key")).await;
    let mut public = jwk(&key);
    public["x5c"] = json!([STANDARD.encode(certificate.der())]);
    let client = json!({
        "client_id": "gate-tls", "grant_types": [CLIENT_CREDENTIALS], "redirect_uris": [], "response_types": [],
        "token_endpoint_auth_method": "self_signed_tls_client_auth", "jwks": {"keys": [public]},
    });
    issuer.0.post("/control/client", &client).await;
    let (running, open) = RMCP.start().await;
    let routes = format!(
        "  linear: {{path: /linear/mcp, upstream: \"{open}\", credential: {{client_credentials: {{token_endpoint: \"{}/token\", \
         client_id: gate-tls, client_certificate: \"{}\", client_key: \"{}\", ca: \"{}\", resource: \"{open}\"}}}}}}\n",
        issuer.url(),
        file("gate.pem"),
        file("gate.key"),
        file("issuer.pem"),
    );
    let gate = GateProcess::start(callers.url(), &routes).await;
    let token = callers.token(&json!({"resource": gate.resource()})).await;
    let (status, answer) = gate.call("/linear/mcp", &token, "add").await;
    assert_eq!(status, 200, "{answer:#}");
    let asked = issuer.asked(CLIENT_CREDENTIALS).await;
    assert_eq!(asked.len(), 1, "{asked:#?}");
    assert_eq!(
        (&asked[0]["authentication"], &asked[0]["status"]),
        (&json!("self_signed_tls_client_auth"), &json!(200)),
        "{asked:#?}"
    );
    let super::Running::Here(server) = running else {
        panic!("it is in this process")
    };
    for seen in server.seen() {
        let shown = seen.header("authorization").expect("a token");
        assert!(shown.starts_with("Bearer ") && !shown.contains(&token), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_gateway_signs_is_verified_by_the_keys_that_it_publishes() {
    let issuer = Issuer::start(&[]).await;
    let upstream = Protected::start(&issuer, &["--scope", ""]).await;
    let routes = format!(
        "  linear: {{path: /linear/mcp, upstream: \"{}\", credential: {{assertion: {{lifetime: 60s, claims: [email]}}}}}}\n",
        upstream.url()
    );
    let gate = GateProcess::start(issuer.url(), &routes).await;
    let trust =
        json!({"issuer": gate.public_url, "jwks": format!("{}/.well-known/jwks.json", gate.url), "algorithm": "ES256"});
    upstream.0.post("/control/trust", &trust).await;
    let url = format!("{}/linear/mcp", gate.url);
    for (caller, subject) in [(JS, "alice"), (JS_LEGACY, "bob"), (PYTHON, "carol")] {
        let email = format!("{subject}@corp.example");
        let asked = json!({"resource": gate.resource(), "sub": subject, "client_id": "agent", "email": email});
        let seen = answer(caller, &url, &issuer.token(&asked).await, &[]).await;
        let claims = &seen["claims"];
        assert_eq!(claims["iss"], gate.public_url, "{seen:#}");
        assert_eq!(claims["sub"], subject, "{seen:#}");
        assert_eq!(claims["aud"], upstream.url(), "{seen:#}");
        assert_eq!(claims["email"], email, "{seen:#}");
        let time = |name: &str| claims[name].as_u64().expect("a number");
        assert!(time("exp") - time("iat") <= 60, "{seen:#}");
    }
    // The caller's own isn't good there.
    assert_eq!(upstream.requests().await.1, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callers_token_passes_only_where_it_is_meant_for_the_upstream_too() {
    let issuer = Issuer::start(&[]).await;
    let upstream = Protected::start(&issuer, &["--audience", "linear"]).await;
    let routes = format!(
        "  linear: {{path: /linear/mcp, upstream: \"{}\", credential: {{passthrough: {{audience: linear}}}}}}\n",
        upstream.url()
    );
    let gate = GateProcess::start(issuer.url(), &routes).await;
    let url = format!("{}/linear/mcp", gate.url);
    let both = issuer
        .token(&json!({"resource": [gate.resource(), "linear"], "client_id": "agent"}))
        .await;
    let seen = answer(JS, &url, &both, &[]).await;
    assert_eq!(
        (&seen["claims"]["aud"], &seen["client"]),
        (&json!([gate.resource(), "linear"]), &json!("agent")),
        "{seen:#}"
    );
    let before = upstream.requests().await;
    let only = issuer.token(&json!({"resource": [gate.resource()]})).await;
    let (status, refused) = gate.call("/linear/mcp", &only, "whoami").await;
    assert!(status >= 400 && refused["error"].is_object(), "{status} {refused:#}");
    assert_eq!(upstream.requests().await, before);
}
