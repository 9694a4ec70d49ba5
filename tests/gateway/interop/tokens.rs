//! Tokens of a real issuer, found and brought by real clients.

use super::{Link, MID, NODE, PY1, PY2, command, reported, server};
use crate::gate::Gate;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sdk_clients_find_their_way_to_a_token() {
    for (program, arguments) in [
        (NODE, &["tests/interop/clients/oauth.mjs", "--sdk", "v1"][..]),
        (NODE, &["tests/interop/clients/oauth.mjs", "--sdk", "v2"]),
        (PY1, &["tests/interop/clients/oauth.py"]),
        (PY2, &["tests/interop/clients/oauth.py"]),
    ] {
        let issuer = server(
            "oidc-provider",
            NODE,
            &["tests/interop/servers/oidc.mjs"],
            "",
            Link::Streamable,
        );
        let (_issuer, issuer_url) = issuer.start().await;
        let (_server, url) = MID.start().await;
        let identity = format!("  real:\n    issuer: {}\n", issuer_url.trim_end_matches('/'));
        let yaml = MID.route(&url, MID.transport(), "    scopes: [mcp.use]\n");
        let gate = Gate::with_setup("", Some(&identity), &yaml).await;
        let mut command = command(program, arguments);
        let report = reported(command.arg(gate.url())).await.to_string();
        assert!(
            report.contains("/.well-known/oauth-protected-resource/notes/mcp"),
            "{arguments:?}: {report}"
        );
        println!(
            "{program} {}: 401, metadata, registration, PKCE, token, call",
            arguments.join(" ")
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opaque_tokens_of_a_real_issuer_are_asked_about() {
    let arguments = &["tests/interop/servers/oidc.mjs", "--opaque"];
    let (_issuer, issuer_url) = server("oidc-provider", NODE, arguments, "", Link::Streamable)
        .start()
        .await;
    let (_server, url) = MID.start().await;
    let identity = format!(
        "  real:\n    issuer: {}\n    introspection: {{client_id: gate, client_secret: gate-secret}}\n",
        issuer_url.trim_end_matches('/')
    );
    let yaml = MID.route(&url, MID.transport(), "    scopes: [mcp.use]\n");
    let gate = Gate::with_setup("", Some(&identity), &yaml).await;
    let mut command = command(NODE, &["tests/interop/clients/oauth.mjs", "--sdk", "v2"]);
    let report = reported(command.arg(gate.url())).await;
    assert_eq!(report["token"], "opaque", "{report}");
    let asked = |result: &str| {
        let line = format!("portcullis_token_cache_total{{cache=\"introspection\",result=\"{result}\"}}");
        gate.metric(&line).unwrap_or(0.0)
    };
    assert!(asked("miss") >= 1.0 && asked("hit") >= 1.0, "{report}");
    let answer = gate.legacy("no-token-of-theirs", &crate::gate::call("add")).await;
    assert_eq!(answer.status, 401);
}
