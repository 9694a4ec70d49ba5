//! Everybody's own login at an upstream, and one that all share: npm oidc-provider is the upstream's issuer, FastMCP takes
//! nothing but its tokens, and callers come with those of another issuer. Scenarios O and H.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::RMCP;
use super::gate_process::{GateProcess, browse};
use super::world::{Issuer, JS, JS_LEGACY, PYTHON, Protected, answer, calls};

/// The callers' issuer, the upstream's own, and the upstream behind a gateway.
struct World {
    callers: Issuer,
    own: Issuer,
    upstream: Protected,
    gate: Arc<GateProcess>,
}

impl World {
    /// A gateway with a route `linear` whose credential this is, and another, `open`, that needs none.
    async fn start(credential: &str) -> (Self, super::Running) {
        let (callers, own) = tokio::join!(Issuer::start(&[]), Issuer::start(&["--form"]));
        let upstream = Protected::start(&own, &[]).await;
        let (running, open) = RMCP.start().await;
        let routes = format!(
            "  linear: {{path: /linear/mcp, upstream: \"{}\", credential: {credential}}}\n  \
             open: {{path: /open/mcp, upstream: \"{open}\"}}\n",
            upstream.url()
        );
        let gate = Arc::new(GateProcess::start(callers.url(), &routes).await);
        (
            Self {
                callers,
                own,
                upstream,
                gate,
            },
            running,
        )
    }

    fn linear(&self) -> String {
        format!("{}/linear/mcp", self.gate.url)
    }

    /// A token of the callers' issuer for a route of the gateway.
    async fn token(&self, subject: &str, route: &str) -> String {
        let resource = format!("{}/{route}/mcp", self.gate.public_url);
        self.callers
            .token(&json!({"resource": resource, "sub": subject, "client_id": "agent"}))
            .await
    }

    async fn refreshes(&self) -> Vec<Value> {
        self.own.asked("refresh_token").await
    }
}

/// What the upstream saw is of its own issuer, and nothing of the caller's token.
fn expect_own(world: &World, seen: &Value, subject: &str) {
    let claims = &seen["claims"];
    assert_eq!(claims["iss"], world.own.url(), "{seen:#}");
    assert_eq!(claims["sub"], subject, "{seen:#}");
    assert_eq!(claims["aud"], world.upstream.url(), "{seen:#}");
    assert_ne!(claims["client_id"], "agent", "{seen:#}");
    assert!(!seen.to_string().contains(world.callers.url()), "{seen:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o_an_agent_calls_with_its_own_bearer_and_the_upstream_sees_only_its_issuers() {
    let (world, _open) = World::start("{connection: {}}").await;
    let gate = &world.gate;
    let (token, url) = (world.token("alice", "linear").await, world.linear());

    // Nobody has connected: the refusal says where, and asks the upstream nothing.
    let (status, refused) = gate.call("/linear/mcp", &token, "whoami").await;
    assert_eq!(
        (status, &refused["error"]["code"]),
        (403, &json!(50_202)),
        "{refused:#}"
    );
    let command = "run `portcullis connect linear`";
    assert!(refused.to_string().contains(command), "{refused:#}");
    assert_eq!(world.upstream.requests().await, (0, 0));

    let person = ["linear", "--subject", "alice"];
    let (code, said) = gate.connect(&person, "ada").await;
    assert_eq!(code, Some(0), "{said}");
    gate.until("/linear/mcp", &token, 200).await;
    // Registered as the issuer wants it, with PKCE, a state and the resource.
    let seen = world.own.0.get("/control/seen").await;
    let of = |endpoint: &str| {
        let seen = seen.as_array().expect("a list");
        seen.iter()
            .filter(|request| request["endpoint"] == endpoint)
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(of("registration").len(), 1, "{seen:#}");
    let asked = &of("authorization")[0]["given"].to_string();
    assert!(
        ["code_challenge", "state", "resource", "scope"]
            .iter()
            .all(|name| asked.contains(name)),
        "{asked}"
    );
    let granted = &of("token")[0];
    assert_eq!(
        (&granted["status"], &granted["params"]["resource"]),
        (&json!(200), &json!(world.upstream.url())),
        "{granted:#}"
    );

    for caller in [JS, JS_LEGACY, PYTHON] {
        expect_own(&world, &answer(caller, &url, &token, &[]).await, "ada");
    }
    // It is alice's alone.
    let bobs = world.token("bob", "linear").await;
    assert_eq!(
        gate.call("/linear/mcp", &bobs, "whoami").await.1["error"]["code"],
        50_202
    );
    gate.until_connections("linear", "connected", 1).await;

    // The upstream takes the token no more: twenty calls at once, one refresh, twenty answers.
    world.upstream.expire().await;
    let report = calls(JS, &url, &token, &["--calls", "20"]).await;
    assert_eq!(report["errors"], json!([]), "{report:#}");
    assert_eq!(report["answers"].as_array().map(Vec::len), Some(20));
    expect_own(&world, &report["answers"][19], "ada");
    assert_eq!(world.refreshes().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o_a_revoked_refresh_token_is_an_error_that_says_what_to_do_and_nobody_elses() {
    let (world, _open) = World::start("{connection: {}}").await;
    let gate = &world.gate;
    let (token, url) = (world.token("alice", "linear").await, world.linear());
    let (person, command) = (["linear", "--subject", "alice"], "run `portcullis connect linear`");
    let (code, said) = gate.connect(&person, "ada").await;
    assert_eq!(code, Some(0), "{said}");
    gate.until("/linear/mcp", &token, 200).await;
    // Once the issuer has said no, it isn't asked again.
    world.own.0.post("/control/revoke", &json!({})).await;
    world.upstream.expire().await;
    let before = world.refreshes().await.len();
    for _ in 0..3 {
        let (status, refused) = gate.call("/linear/mcp", &token, "whoami").await;
        assert_eq!(
            (status, &refused["error"]["code"]),
            (403, &json!(50_202)),
            "{refused:#}"
        );
        assert!(refused.to_string().contains(command), "{refused:#}");
    }
    let asked = world.refreshes().await;
    assert_eq!(asked.len(), before + 1, "{asked:#?}");
    assert_eq!(
        asked.last().map(|request| &request["error"]),
        Some(&json!("invalid_grant"))
    );
    gate.until_connections("linear", "needs_auth", 1).await;
    let open = world.token("alice", "open").await;
    let (status, done) = gate.call("/open/mcp", &open, "add").await;
    assert!(status == 200 && done["error"]["code"] != 50_202, "{done:#}");

    // Connected again, it works again; disconnected, the tokens are revoked and it doesn't.
    assert_eq!(gate.connect(&person, "ada").await.0, Some(0));
    gate.until("/linear/mcp", &token, 200).await;
    expect_own(&world, &answer(JS, &url, &token, &[]).await, "ada");
    let revoked = async || {
        let seen = world.own.0.get("/control/seen").await;
        let seen = seen.as_array().expect("a list").iter();
        seen.filter(|request| request["endpoint"] == "revocation").count()
    };
    let before = revoked().await;
    let (code, said) = gate.run(&["disconnect", "linear", "--subject", "alice"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(revoked().await > before);
    let refused = gate.until("/linear/mcp", &token, 403).await;
    assert_eq!(refused["error"]["code"], 50_202, "{refused:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o_a_device_code_connects_where_nothing_can_be_pasted() {
    let (world, _open) = World::start("{connection: {}}").await;
    let begun = world
        .gate
        .begin(&["connect", "linear", "--subject", "alice", "--device"])
        .await;
    let page = browse(&begun.address, None, "ada").await;
    assert!(page.contains("Sign-in Success"), "{page}");
    let (code, said) = begun.ended().await;
    assert_eq!(code, Some(0), "{said}");
    let token = world.token("alice", "linear").await;
    expect_own(&world, &answer(JS, &world.linear(), &token, &[]).await, "ada");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o_an_issuer_that_reads_documents_knows_the_gateway_by_its_own() {
    let name = "https://gate.example";
    let reads = ["--client-documents", name];
    let (callers, own) = tokio::join!(Issuer::start(&[]), Issuer::start(&reads));
    let upstream = Protected::start(&own, &[]).await;
    let routes = format!(
        "  linear: {{path: /linear/mcp, upstream: \"{}\", credential: {{connection: {{}}}}}}\n",
        upstream.url()
    );
    let gate = GateProcess::named(Some(name), callers.url(), &routes).await;
    own.set(&json!({"documents": gate.url})).await;
    let (code, said) = gate.connect(&["linear", "--subject", "alice"], "alice").await;
    assert_eq!(code, Some(0), "{said}");
    let seen = own.0.get("/control/seen").await;
    let seen = seen.as_array().expect("a list");
    assert!(
        seen.iter().all(|request| request["endpoint"] != "registration"),
        "{seen:#?}"
    );
    let granted = own.asked("authorization_code").await;
    assert_eq!(
        granted[0]["client"],
        format!("{name}/connect/client.json"),
        "{granted:#?}"
    );
    let resource = format!("{name}/linear/mcp");
    let token = callers.token(&json!({"resource": resource})).await;
    let answer = gate.until("/linear/mcp", &token, 200).await;
    assert_eq!(
        answer["result"]["structuredContent"]["client"],
        format!("{name}/connect/client.json")
    );
}

/// A refresh token that is shown twice ends everything that was granted with it: the issuer sees to that, and so every
/// answer shows that it wasn't.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_calls_over_an_expiring_token_are_one_refresh() {
    let (world, _open) = World::start("{connection: {}}").await;
    world.own.set(&json!({"lifetime": 1})).await;
    assert_eq!(
        world.gate.connect(&["linear", "--subject", "alice"], "ada").await.0,
        Some(0)
    );
    world.own.set(&json!({"lifetime": 600})).await;
    // Over with the first call: one that was issued later, for as long, is.
    let later = json!({"resource": world.upstream.url(), "lifetime": 1});
    let later = world.own.token(&later).await;
    while calls(JS, &world.upstream.url(), &later, &[]).await["errors"] == json!([]) {}
    let token = world.token("alice", "linear").await;
    for refused in [false, true] {
        let before = world.refreshes().await.len();
        if refused {
            // The gateway believes that it is good, and learns otherwise from many 401s.
            world.upstream.expire().await;
        }
        let mut calls = JoinSet::new();
        for _ in 0..200 {
            let (gate, token) = (world.gate.clone(), token.clone());
            calls.spawn(async move { gate.call("/linear/mcp", &token, "whoami").await });
        }
        for (status, answer) in calls.join_all().await {
            assert_eq!(status, 200, "{answer:#}");
            assert_eq!(
                answer["result"]["structuredContent"]["claims"]["sub"], "ada",
                "{answer:#}"
            );
        }
        let asked = world.refreshes().await;
        assert_eq!(asked.len(), before + 1, "{asked:#?}");
        assert!(asked.iter().all(|request| request["status"] == 200), "{asked:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h_a_file_that_others_rewrite_is_read_with_the_next_call() {
    let (world, _open) = World::start("{token_file: tokens.json}").await;
    let file = world.gate.directory().join("tokens.json");
    let token = world.token("alice", "linear").await;
    let write = async |subject: &str, atomically: bool| {
        let granted = world
            .own
            .token(&json!({"resource": world.upstream.url(), "sub": subject}))
            .await;
        let text = json!({"access_token": granted, "token_type": "Bearer"}).to_string();
        if atomically {
            let next = file.with_extension("next");
            std::fs::write(&next, text).expect("written");
            std::fs::rename(&next, &file).expect("renamed");
        } else {
            std::fs::write(&file, text).expect("written");
        }
    };
    // No file yet: an error of this route alone.
    let (status, refused) = world.gate.call("/linear/mcp", &token, "whoami").await;
    assert_eq!(
        (status, &refused["error"]["code"]),
        (502, &json!(50_201)),
        "{refused:#}"
    );
    for (subject, atomically) in [
        ("hourly-1", true),
        ("hourly-2", true),
        ("hourly-3", false),
        ("hourly-4", true),
    ] {
        write(subject, atomically).await;
        let (status, seen) = world.gate.call("/linear/mcp", &token, "whoami").await;
        assert_eq!(status, 200, "{seen:#}");
        assert_eq!(
            seen["result"]["structuredContent"]["claims"]["sub"], subject,
            "{seen:#}"
        );
    }
    // The same where the one that was read is refused only later.
    world.upstream.expire().await;
    write("hourly-5", true).await;
    let seen = answer(JS, &world.linear(), &token, &[]).await;
    expect_own(&world, &seen, "hourly-5");
    assert!(world.refreshes().await.is_empty());
}

/// One login for everybody, in a file that the gateway renews and that others may write, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h_a_file_that_the_gateway_renews_is_written_for_others_to_read() {
    let (world, _open) = World::start("{token_file: {path: tokens.json}}").await;
    let (code, said) = world.gate.connect(&["linear"], "ada").await;
    assert_eq!(code, Some(0), "{said}");
    let file = world.gate.directory().join("tokens.json");
    let read = || serde_json::from_slice::<Value>(&std::fs::read(&file).expect("a file")).expect("JSON");
    let first = read();
    let (alices, bobs) = (world.token("alice", "linear").await, world.token("bob", "linear").await);
    for token in [&alices, &bobs] {
        expect_own(&world, &answer(JS, &world.linear(), token, &[]).await, "ada");
    }
    world.upstream.expire().await;
    let report = calls(JS, &world.linear(), &alices, &["--calls", "20"]).await;
    assert_eq!(
        (&report["errors"], report["answers"].as_array().map(Vec::len)),
        (&json!([]), Some(20)),
        "{report:#}"
    );
    assert_eq!(world.refreshes().await.len(), 1);
    let second = read();
    assert_ne!(first["access_token"], second["access_token"]);
    assert_ne!(first["refresh_token"], second["refresh_token"]);
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&file).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
