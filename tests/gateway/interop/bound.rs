//! Tokens that `oidc-provider` binds to a client's key, and a client whose proofs are written by `oauth4webapi`: neither
//! knows the gate, so that both show what RFC 9449 means, and not what the gate takes it for.

use serde_json::{Value, json};

use super::{Link, NODE, OLD_SSE, RMCP, Server, command, reported};
use crate::gate::Gate;
use crate::rmcp_server::{RmcpServer, Settings};

const RESOURCE: &str =
    "resource_metadata=\"http://127.0.0.1:PORT/.well-known/oauth-protected-resource/notes/mcp\", scope=\"mcp.use\"";
const ALGORITHMS: &str = "algs=\"ES256 ES384 Ed25519 EdDSA PS256 RS256\"";

/// The client's report about a gate that asks for `dpop`, in front of `url`.
async fn report(server: Server, url: &str, dpop: &str, arguments: &[&str]) -> Value {
    let issuer = super::server(
        "oidc-provider",
        NODE,
        &["tests/interop/servers/oidc.mjs"],
        "",
        Link::Streamable,
    );
    let (_issuer, issuer_url) = issuer.start().await;
    let identity = format!(
        "  real: {{issuer: \"{}\", dpop: {dpop}}}\n",
        issuer_url.trim_end_matches('/')
    );
    let yaml = server.route(url, server.transport(), "    scopes: [mcp.use]\n");
    let gate = Gate::with_setup("", Some(&identity), &yaml).await;
    let mut client = command(NODE, &["tests/interop/clients/dpop.mjs"]);
    reported(client.arg(gate.url()).args(arguments)).await
}

/// What the thief gets for every request that the owner's client made.
fn expect_no_theft(report: &Value, methods: &[&str], bearer: bool) {
    let bound = format!("error=\"invalid_token\", error_description=\"invalid token\", {RESOURCE}");
    let as_bearer = if bearer {
        format!("Bearer {bound}, DPoP {ALGORITHMS}, {bound}")
    } else {
        format!("DPoP {ALGORITHMS}, {bound}")
    };
    let thief = report["thief"].as_object().expect("a thief");
    assert_eq!(thief.keys().collect::<Vec<_>>(), methods);
    for (method, tries) in thief {
        let refused = |description: &str| {
            format!("DPoP {ALGORITHMS}, error=\"invalid_dpop_proof\", error_description=\"{description}\", {RESOURCE}")
        };
        for (name, challenge) in [
            ("replayed", refused("the proof was used before")),
            ("another key", refused("the token is bound to another key")),
            ("another method", refused("htm is not this request's method")),
            ("another URL", refused("htu is not this endpoint's URL")),
            ("another token", refused("ath is not this token's hash")),
            (
                "no proof",
                refused("one DPoP header with a JWT of type dpop+jwt is needed"),
            ),
            ("bearer", as_bearer.clone()),
            ("bearer with a proof", as_bearer.clone()),
        ] {
            assert_eq!(
                tries[name],
                json!({"status": 401, "challenge": challenge}),
                "{method} {name}"
            );
        }
        assert_eq!(tries.as_object().expect("tries").len(), 9, "{tries}");
        assert_eq!(tries["owner"]["challenge"], Value::Null, "{method}: {tries}");
    }
}

/// The exchanges as `method path status`, those with a challenge apart.
fn exchanges(report: &Value) -> (Vec<String>, Vec<&str>) {
    let all = report["exchanges"].as_array().expect("exchanges");
    let line = |exchange: &Value| {
        format!("{} {} {}", exchange["method"], exchange["path"], exchange["status"]).replace('"', "")
    };
    (
        all.iter().map(line).collect(),
        all.iter()
            .filter_map(|exchange| exchange["challenge"].as_str())
            .collect(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_clients_proofs_pass_and_a_thief_has_no_use_of_its_token() {
    let bearer = format!("Bearer {RESOURCE}");
    let bound = format!("DPoP {ALGORITHMS}, {RESOURCE}");
    for (dpop, mode, alg, stranger, required) in [
        ("accepted", "legacy", "ES256", format!("{bearer}, {bound}"), Value::Null),
        ("required", "auto", "Ed25519", bound.clone(), json!(true)),
        ("nonce", "legacy", "ES256", bound.clone(), json!(true)),
    ] {
        let upstream = RmcpServer::with(Settings::default()).await;
        let report = report(RMCP, &upstream.url(), dpop, &["--mode", mode, "--alg", alg]).await;
        let name = format!("{dpop}: {report:#}");
        assert_eq!(
            report["stranger"],
            json!({"status": 401, "challenge": stranger}),
            "{name}"
        );
        assert_eq!(report["resource"]["required"], required, "{name}");
        assert_eq!(
            report["resource"]["algorithms"],
            json!(["ES256", "ES384", "Ed25519", "EdDSA", "PS256", "RS256"]),
            "{name}"
        );
        assert_eq!(report["token"], json!({"type": "dpop", "ours": true}), "{name}");
        assert_eq!(report["call"], json!(["5"]), "{name}");
        let legacy = mode == "legacy";
        assert_eq!(
            report["protocol"],
            if legacy { "2025-11-25" } else { "2026-07-28" },
            "{name}"
        );
        let methods: &[&str] = if legacy { &["GET", "POST"] } else { &["POST"] };
        expect_no_theft(&report, methods, dpop == "accepted");
        let (lines, challenged) = exchanges(&report);
        if dpop == "nonce" {
            // Once: from then on the client has the nonce, and the gate takes it again.
            assert_eq!(lines[0], "POST /notes/mcp 401", "{name}");
            let asked = format!(
                "DPoP {ALGORITHMS}, error=\"use_dpop_nonce\", error_description=\"use the nonce in DPoP-Nonce\", {RESOURCE}"
            );
            assert_eq!(challenged, [asked], "{name}");
        } else {
            assert!(challenged.is_empty(), "{name}");
        }
        assert!(lines.iter().any(|line| line == "POST /notes/mcp 200"), "{name}");
        assert_eq!(
            legacy,
            lines.iter().any(|line| line.starts_with("DELETE /notes/mcp 2")),
            "{name}"
        );
        // Refused, a request has gone nowhere: what arrived is what was proven, without the proof and the token.
        let seen = upstream.seen();
        let passed = lines.iter().filter(|line| !line.ends_with("401")).count() + methods.len();
        // Before the first modern request the gate asks the server, once, whether it is one.
        let passed = passed + usize::from(!legacy);
        assert_eq!(seen.len(), passed, "{name}");
        for seen in seen {
            assert_eq!(
                (seen.header("dpop"), seen.header("authorization")),
                (None, None),
                "{seen:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_clients_proofs_pass_over_http_sse() {
    let (_running, url) = OLD_SSE.start().await;
    let report = report(OLD_SSE, &url, "nonce", &["--transport", "sse"]).await;
    assert_eq!(report["call"], json!(["5"]), "{report:#}");
    expect_no_theft(&report, &["GET", "POST"], false);
    let (lines, challenged) = exchanges(&report);
    // The nonce that the stream was asked for is good for its messages.
    assert_eq!(challenged.len(), 1, "{report:#}");
    assert_eq!(lines[..2], ["GET /notes/mcp 401", "GET /notes/mcp 200"]);
    assert!(
        lines[2..].iter().all(|line| line == "POST /notes/mcp/messages 202") && lines.len() > 4,
        "{lines:?}"
    );
}
