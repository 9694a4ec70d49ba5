//! A person with a real browser at the gate's pages, between two real issuers: theirs, and the service's.

use serde_json::json;

use super::world::{Issuer, JS, Protected, answer, calls};
use super::{NODE, command, reported};
use crate::gate::Gate;

/// Where the screenshots are, for whoever looks at them.
const SHOTS: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/connect");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_connects_in_a_browser_and_nobody_else_does() {
    let corp = Issuer::start(&["--form"]).await;
    let service = Issuer::start(&["--form", "--scope", "issues:read"]).await;
    let upstream = Protected::start(&service, &["--scope", "issues:read"]).await;
    let identity = format!(
        "  corp: {{issuer: \"{}\", login: {{client_id: gate-login, client_secret: a-secret-of-its-own}}}}\n",
        corp.url()
    );
    let yaml = format!(
        "routes:\n  linear:\n    path: /linear/mcp\n    upstream: {url}\n    credential: {{connection: {{}}}}\n\
         \x20 notion:\n    path: /notion/mcp\n    upstream: {url}\n    credential: {{connection: {{}}}}\n",
        url = upstream.url()
    );
    let gate = Gate::with_setup("", Some(&identity), &yaml).await;
    let url = gate.running.url();
    corp.0
        .post(
            "/control/client",
            &json!({
                "client_id": "gate-login", "client_secret": "a-secret-of-its-own",
                "redirect_uris": [format!("{url}/connect/login")],
                "grant_types": ["authorization_code"], "response_types": ["code"],
            }),
        )
        .await;
    let mcp = format!("{url}/notion/mcp");
    let token = async |sub| corp.token(&json!({"resource": [mcp], "sub": sub})).await;
    let ada = token("ada").await;
    let before = calls(JS, &mcp, &ada, &["--tool", "whoami"]).await;
    assert_eq!(before["answers"], json!([]), "{before:#}");

    std::fs::create_dir_all(SHOTS).expect("a directory");
    let script = ["tests/interop/clients/connect.mjs", &url, SHOTS];
    let report = reported(command(NODE, &[]).args(script)).await;
    assert_eq!(report["errors"], json!([]), "{report:#}");
    let steps = report["steps"].as_array().expect("a list");
    let seen = |name: &str| {
        let step = steps.iter().find(|step| step[0] == name);
        step.unwrap_or_else(|| panic!("no step {name}: {report:#}"))[1].clone()
    };
    let nothing = json!({"linear": "Not connected", "notion": "Not connected"});
    let connected = json!({"linear": "Connected", "notion": "Not connected"});
    let both = json!({"linear": "Connected", "notion": "Connected"});
    let foreign = json!(["This request came from another site", connected]);
    for (step, expected) in [
        ("sent to the issuer", json!(true)),
        (
            "signed in",
            json!(["?route=linear", "Your connections", nothing, "ada"]),
        ),
        ("nothing scrolls sideways on a telephone", json!(true)),
        (
            "the keyboard reaches every button and shows where it is",
            json!([["Sign out", "solid"], ["Connect", "solid"], ["Connect", "solid"]]),
        ),
        (
            "connected",
            json!([
                "linear is connected. Whatever waited for it can be tried again.",
                connected
            ]),
        ),
        ("framed by another site", json!(true)),
        ("a form of a sibling", foreign.clone()),
        ("a form of another site", foreign),
        ("an attacker’s link", json!("This login was not begun here")),
        ("connected another without typing a name again", both),
        (
            "disconnected",
            json!(["linear is disconnected.", {"linear": "Not connected", "notion": "Connected"}]),
        ),
        ("signed out", json!(["You are signed out", []])),
        ("nothing was blocked on our own pages", json!([])),
    ] {
        assert_eq!(seen(step), expected, "{step}: {report:#}");
    }
    // What was connected in the browser is what the person's agent then uses; their own token goes nowhere.
    let seen = answer(JS, &mcp, &ada, &["--tool", "whoami"]).await;
    let claims = &seen["claims"];
    assert_eq!(
        (&claims["iss"], &claims["aud"], &claims["sub"]),
        (&json!(service.url()), &json!(upstream.url()), &json!("ada-at-linear")),
        "{seen:#}"
    );
    assert!(!seen.to_string().contains(&ada), "{seen:#}");
    let mallorys = calls(JS, &mcp, &token("mallory").await, &["--tool", "whoami"]).await;
    assert_eq!(mallorys["answers"], json!([]), "{mallorys:#}");
}
