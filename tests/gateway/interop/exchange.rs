//! Tokens that are exchanged: npm oidc-provider gives them, and FastMCP takes them, as scenario N has it.

use serde_json::json;

use super::world::{Issuer, JS, JS_LEGACY, PYTHON, Protected, answer, calls};
use crate::gate::{Gate, call};

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

const TOOLS: &str = "nc_notes_get_note nc_notes_delete_note";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n_the_upstream_sees_another_token_for_itself_and_a_refused_call_has_none() {
    let issuer = Issuer::start(&["--scope", "notes:read notes:write"]).await;
    let upstream = Protected::start(&issuer, &["--audience", "nextcloud", "--scope", "", "--tools", TOOLS]).await;
    let identity = format!("  corp: {{issuer: \"{}\"}}\n", issuer.url());
    let routes = |audience: &str| {
        format!(
            "routes:
  notes:
    path: /nc/mcp
    upstream: {{urls: [\"{}\"]}}
    tools:
      rules:
        - {{allow: [nc_notes_get_note], scopes: [\"notes:read\"]}}
        - {{allow: [nc_notes_delete_note], scopes: [\"notes:write\"]}}
    credential:
      exchange: {{token_endpoint: \"{}/token\", client_id: gate, client_secret: gate-secret, audience: {audience}}}
",
            upstream.url(),
            issuer.url()
        )
    };
    let gate = Gate::with_setup("", Some(&identity), &routes("nextcloud")).await;
    let url = format!("{}/nc/mcp", gate.running.url());
    let token = issuer
        .token(&json!({"resource": [url], "scope": "notes:read", "client_id": "agent"}))
        .await;

    let read = "nc_notes_get_note";
    for (caller, done) in [(JS, 1.0), (JS_LEGACY, 2.0), (PYTHON, 3.0)] {
        let seen = answer(caller, &url, &token, &["--tool", read]).await;
        let claims = &seen["claims"];
        assert_eq!(
            (&claims["aud"], &claims["sub"], &claims["client_id"], &claims["scope"]),
            (
                &json!("nextcloud"),
                &json!("alice"),
                &json!("gate"),
                &json!("notes:read")
            ),
            "{seen:#}"
        );
        let counted = format!("mcp_requests_total{{route=\"notes\",method=\"tools/call\",tool=\"{read}\"");
        let rendered = gate.running.metrics().render();
        let lines: Vec<&str> = rendered.lines().filter(|line| line.contains(&counted)).collect();
        assert!(
            lines.iter().all(|line| line.contains("outcome=\"success\"")),
            "{lines:?}"
        );
        let counts = lines
            .iter()
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        assert_eq!(counts.sum::<f64>(), done, "{lines:?}");
    }
    // One for three callers, their probes and their lists: it is the same caller's token.
    let asked = issuer.asked(EXCHANGE).await;
    assert_eq!(asked.len(), 1, "{asked:#?}");
    assert_eq!(asked[0]["status"], 200);
    assert_eq!(asked[0]["params"]["audience"], "nextcloud");

    let refused = calls(JS, &url, &token, &["--tool", "nc_notes_delete_note"]).await;
    assert_eq!(refused["answers"], json!([]), "{refused:#}");
    let before = upstream.requests().await;
    let mut request = gate.post(&token, &call("nc_notes_delete_note"));
    *request.uri_mut() = url.parse().expect("a URL");
    let refused = gate.send(request).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (403, Some(40_301)));
    assert_eq!(issuer.asked(EXCHANGE).await.len(), 1);
    // Another caller's refused call costs no exchange either.
    let another = issuer
        .token(&json!({"resource": [url], "scope": "notes:read", "sub": "bob"}))
        .await;
    let mut request = gate.post(&another, &call("nc_notes_delete_note"));
    *request.uri_mut() = url.parse().expect("a URL");
    assert_eq!(gate.send(request).await.status, 403);
    assert_eq!(issuer.asked(EXCHANGE).await.len(), 1);

    issuer.set(&json!({"refused": ["nextcloud"]})).await;
    let mut request = gate.modern_request(&another, "tools/call", json!({"name": read, "arguments": {}}));
    *request.uri_mut() = url.parse().expect("a URL");
    let refused = gate.send(request).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (502, Some(50_201)));
    let asked = issuer.asked(EXCHANGE).await;
    assert_eq!((asked.len(), &asked[1]["error"]), (2, &json!("invalid_target")));
    // Nothing of all that was refused got to the upstream.
    assert_eq!(upstream.requests().await, before);
    assert_eq!(before.1, 0);
}

/// Enterprise-managed authorization: the callers' issuer vouches, the upstream's own issuer believes it, and the upstream takes
/// only what that one gives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_assertion_is_turned_into_a_token_of_the_upstreams_issuer() {
    let (callers, own) = tokio::join!(Issuer::start(&[]), Issuer::start(&[]));
    let upstream = Protected::start(&own, &[]).await;
    own.set(&json!({"trusts": callers.url()})).await;
    let client = "client_id: gate, client_secret: gate-secret";
    let routes = format!(
        "routes:
  notes:
    path: /notes/mcp
    upstream: \"{}\"
    credential:
      exchange:
        token_endpoint: \"{}/token\"
        {}
        audience: \"{}\"
        resource: \"{}\"
        requested_token_type: id_jag
        jwt_bearer: {{token_endpoint: \"{}/token\", {client}, scopes: [mcp.use]}}
",
        upstream.url(),
        callers.url(),
        client.replace(", ", "\n        "),
        own.url(),
        upstream.url(),
        own.url(),
    );
    let identity = format!("  corp: {{issuer: \"{}\"}}\n", callers.url());
    let gate = Gate::with_setup("", Some(&identity), &routes).await;
    for (caller, subject) in [(JS, "alice"), (PYTHON, "bob")] {
        let token = callers
            .token(&json!({"resource": gate.url(), "sub": subject, "client_id": "agent"}))
            .await;
        let seen = answer(caller, &gate.url(), &token, &["--calls", "5"]).await;
        let claims = &seen["claims"];
        assert_eq!(
            (&claims["iss"], &claims["sub"], &claims["aud"], &claims["client_id"]),
            (
                &json!(own.url()),
                &json!(subject),
                &json!(upstream.url()),
                &json!("gate")
            ),
            "{seen:#}"
        );
    }
    // One of each step for each caller, the second with what the first gave.
    let vouched = callers.asked(EXCHANGE).await;
    let believed = own.asked("urn:ietf:params:oauth:grant-type:jwt-bearer").await;
    assert_eq!((vouched.len(), believed.len()), (2, 2), "{vouched:#?} {believed:#?}");
    for step in vouched.iter().chain(&believed) {
        assert_eq!(step["status"], 200, "{step:#}");
    }
    assert_eq!(
        vouched[0]["params"]["requested_token_type"],
        "urn:ietf:params:oauth:token-type:id-jag"
    );
    // Refused by the second, nothing goes to the upstream.
    own.set(&json!({"trusts": null})).await;
    let carol = callers.token(&json!({"resource": gate.url(), "sub": "carol"})).await;
    let before = upstream.requests().await;
    let refused = gate
        .modern(&carol, "tools/call", json!({"name": "whoami", "arguments": {}}))
        .await;
    assert_eq!((refused.status.as_u16(), refused.code()), (502, Some(50_201)));
    assert_eq!(upstream.requests().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_acts_for_the_caller_is_in_the_token_and_so_is_every_audience() {
    let issuer = Issuer::start(&[]).await;
    let upstream = Protected::start(&issuer, &["--audience", "notes", "--scope", ""]).await;
    let actor = tempfile::NamedTempFile::new().expect("a file");
    let token = issuer.token(&json!({"resource": issuer.url(), "sub": "robot-7"})).await;
    std::fs::write(actor.path(), token).expect("written");
    let identity = format!("  corp: {{issuer: \"{}\"}}\n", issuer.url());
    for (source, acts) in [
        (format!("{{file: \"{}\"}}", actor.path().display()), "robot-7"),
        ("{client_credentials: true}".to_owned(), "gate"),
    ] {
        let routes = format!(
            "routes:
  notes:
    path: /notes/mcp
    upstream: \"{}\"
    credential: {{exchange: {{token_endpoint: \"{}/token\", client_id: gate, client_secret: gate-secret, audience: [notes, files], actor: {source}}}}}
",
            upstream.url(),
            issuer.url(),
        );
        let gate = Gate::with_setup("", Some(&identity), &routes).await;
        let token = issuer
            .token(&json!({"resource": gate.url(), "client_id": "agent"}))
            .await;
        let seen = answer(JS, &gate.url(), &token, &[]).await;
        let claims = &seen["claims"];
        assert_eq!(
            (&claims["sub"], &claims["act"]["sub"], &claims["aud"]),
            (&json!("alice"), &json!(acts), &json!(["notes", "files"])),
            "{seen:#}"
        );
    }
}
