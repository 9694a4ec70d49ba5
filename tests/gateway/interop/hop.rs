//! A process of its own that ends TLS in front of the gate, and another in front of the issuer: whatever such a hop tells of
//! the client, or doesn't, every URL that clients meet is https (r05), and real clients get from one to the next.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use http::StatusCode;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::process::Child;

use super::{NODE, OLD_SSE, command, listening, reported};
use crate::gate::Gate;

/// From where the test calls; the hops themselves call from 127.0.0.1.
const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);

const PRM: &str = "/.well-known/oauth-protected-resource";

/// A started hop, at `https://localhost:PORT`.
struct Hop {
    child: Child,
    url: String,
}

impl Hop {
    async fn start(directory: &Path, tells: &str) -> Self {
        let mut child = command(NODE, &["tests/interop/servers/tls.mjs", "--tells", tells])
            .arg("--certificate")
            .arg(directory.join("hop.pem"))
            .arg("--key")
            .arg(directory.join("hop.key"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the hop starts");
        let port = listening(&mut child, "the hop").await;
        Self {
            child,
            url: format!("https://localhost:{port}"),
        }
    }

    /// Says what is behind it.
    async fn lead_to(&mut self, port: &str) {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        stdin
            .write_all(format!("{port}\n").as_bytes())
            .await
            .expect("the hop listens");
    }
}

/// A client at [`CLIENT`] that trusts the hops' certificate, which is written here with its key.
fn client(directory: &Path) -> reqwest::Client {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    std::fs::write(directory.join("hop.pem"), made.cert.pem()).expect("written");
    std::fs::write(directory.join("hop.key"), made.signing_key.serialize_pem()).expect("written");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a root");
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .local_address(Some(CLIENT.into()))
        .build()
        .expect("a client")
}

async fn text(response: reqwest::Response) -> String {
    assert_eq!(response.status(), StatusCode::OK, "{}", response.url());
    response.text().await.expect("text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r05_whatever_ends_tls_before_the_gate_clients_see_https() {
    let directory = tempfile::tempdir().expect("a directory");
    let client = client(directory.path());
    let ca = directory.path().join("hop.pem");

    let mut to_issuer = Hop::start(directory.path(), "x-forwarded").await;
    let issuer_url = to_issuer.url.clone();
    let mut issuer = command(NODE, &["tests/interop/servers/oidc.mjs", "--issuer", &issuer_url])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the issuer starts");
    to_issuer.lead_to(&listening(&mut issuer, "oidc-provider").await).await;
    let (_server, server_url) = OLD_SSE.start().await;

    for (tells, address) in [
        ("nothing", "127.0.0.1"),
        ("x-forwarded", "127.0.0.9"),
        ("forwarded", "127.0.0.9"),
        ("proxy", "127.0.0.9"),
    ] {
        let mut hop = Hop::start(directory.path(), tells).await;
        let public = hop.url.clone();
        let listen = format!(
            "  plaintext: true\n  public_url: {public}\n  trusted_proxies: [127.0.0.1]\n  proxy_protocol: {}\n",
            tells == "proxy"
        );
        let identity = format!("  real: {{issuer: \"{issuer_url}\", ca: \"{}\"}}\n", ca.display());
        let routes = OLD_SSE.route(&server_url, "sse", "    scopes: [mcp.use]\n");
        let gate = Gate::with_setup(&listen, Some(&identity), &routes).await;
        hop.lead_to(&gate.running.address().port().to_string()).await;

        // What a client says of its own scheme is nobody's business, and no hop's excuse.
        let get = |path: &str| {
            client
                .get(format!("{public}{path}"))
                .header("x-forwarded-proto", "http")
        };
        let resource = format!("{public}/notes/mcp");
        let refused = get("/notes/mcp").send().await.expect("an answer");
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{tells}");
        assert_eq!(
            refused.headers()["www-authenticate"],
            format!("Bearer resource_metadata=\"{public}{PRM}/notes/mcp\", scope=\"mcp.use\""),
            "{tells}"
        );
        let document = text(get(&format!("{PRM}/notes/mcp")).send().await.expect("an answer")).await;
        assert!(
            document.contains(&format!("\"resource\":\"{resource}\""))
                && document.contains(&format!("\"authorization_servers\":[\"{issuer_url}\"]"))
                && !document.contains("http:"),
            "{tells}: {document}"
        );
        for form in ["oauth-authorization-server", "openid-configuration"] {
            let own = client.get(format!("{issuer_url}/.well-known/{form}")).send().await;
            let own = text(own.expect("an answer")).await;
            let mirrored = get(&format!("/.well-known/{form}/notes/mcp")).send().await;
            assert_eq!(text(mirrored.expect("an answer")).await, own, "{tells}: {form}");
            assert!(
                own.contains(&format!("\"issuer\":\"{issuer_url}\"")) && !own.contains("http:"),
                "{own}"
            );
        }

        let asked = client
            .post(format!("{issuer_url}/token-for"))
            .json(&json!({"resource": resource}));
        let granted: serde_json::Value = asked.send().await.expect("an answer").json().await.expect("JSON");
        let token = granted["access_token"].as_str().expect("a token");
        let mut stream = get("/notes/mcp")
            .bearer_auth(token)
            .header("accept", "text/event-stream")
            .send()
            .await
            .expect("an answer");
        let mut event = String::new();
        while !event.contains("\n\n") && !event.contains("\r\n\r\n") {
            let chunk = stream.chunk().await.expect("the stream stands").expect("it goes on");
            event.push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
        }
        assert!(
            event.contains(&format!("data: {public}/notes/mcp/messages?session_id=")),
            "{tells}: {event}"
        );
        drop(stream);

        // Only a hop that lets its clients' headers pass can be made to ask for another host, and gets none.
        let elsewhere = get("/notes/mcp")
            .header("x-forwarded-host", "evil.example")
            .send()
            .await;
        let expected = if tells == "nothing" {
            StatusCode::MISDIRECTED_REQUEST
        } else {
            StatusCode::UNAUTHORIZED
        };
        assert_eq!(elsewhere.expect("an answer").status(), expected, "{tells}");

        let mut dance = command(
            NODE,
            &["tests/interop/clients/oauth.mjs", "--sdk", "v1", "--transport", "sse"],
        );
        let report = reported(dance.arg(&resource).env("NODE_EXTRA_CA_CERTS", &ca)).await;
        assert_eq!(report["call"], json!(["5"]), "{tells}: {report}");
        assert_eq!(
            report["token"]["aud"], "https://localhost:PORT/notes/mcp",
            "{tells}: {report}"
        );
        assert_eq!(
            report["exchanges"][0]["challenge"],
            format!("Bearer resource_metadata=\"https://localhost:PORT{PRM}/notes/mcp\", scope=\"mcp.use\""),
            "{tells}: {report}"
        );

        let Gate { running, directory, .. } = gate;
        running.shutdown().await;
        let audit = std::fs::read_to_string(directory.path().join("audit.jsonl")).expect("an audit file");
        let line = audit
            .lines()
            .find(|line| line.contains("\"decision\":\"allow\""))
            .expect("the stream");
        assert!(line.contains(&format!("\"address\":\"{address}\"")), "{tells}: {audit}");
    }
}
