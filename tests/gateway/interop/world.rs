//! The others of a credential's way out: issuers and a protected server in processes of their own, and callers with an SDK.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::process::Child;

use super::{NODE, PY2, command, listening, reported};

/// How an SDK calls: its program, and what it is told.
pub type Caller = (&'static str, &'static [&'static str]);

pub const JS: Caller = (NODE, &["tests/interop/clients/call.mjs"]);
pub const JS_LEGACY: Caller = (NODE, &["tests/interop/clients/call.mjs", "--sdk", "v1"]);
pub const PYTHON: Caller = (PY2, &["tests/interop/clients/call.py"]);

/// Calls a tool with an SDK: `{answers, errors}`.
pub async fn calls((program, arguments): Caller, url: &str, token: &str, more: &[&str]) -> Value {
    let mut caller = command(program, arguments);
    reported(caller.arg(url).args(["--token", token]).args(more)).await
}

/// The one answer of one call that was answered.
pub async fn answer(caller: Caller, url: &str, token: &str, more: &[&str]) -> Value {
    let report = calls(caller, url, token, more).await;
    assert_eq!(report["errors"], json!([]), "{caller:?}: {report:#}");
    report["answers"][0].clone()
}

/// A script of `servers/` that listens.
pub struct Process {
    _child: Child,
    pub url: String,
    http: reqwest::Client,
}

impl Process {
    async fn start(program: &'static str, arguments: &[&str], scheme_and_host: &str, roots: RootCertStore) -> Self {
        let mut child = command(program, arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let port = listening(&mut child, arguments[0]).await;
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .timeout(Duration::from_secs(20))
            .build()
            .expect("a client");
        Self {
            _child: child,
            url: format!("{scheme_and_host}:{port}"),
            http,
        }
    }

    /// What it tells of itself.
    pub async fn get(&self, path: &str) -> Value {
        let answer = self.http.get(format!("{}{path}", self.url)).send().await;
        answer.expect("an answer").json().await.expect("JSON")
    }

    pub async fn post(&self, path: &str, body: &Value) -> Value {
        let asked = self.http.post(format!("{}{path}", self.url)).json(body).send().await;
        let answer = asked.expect("an answer");
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        answer.json().await.expect("JSON")
    }
}

/// npm oidc-provider.
pub struct Issuer(pub(super) Process);

impl Issuer {
    pub async fn start(arguments: &[&str]) -> Self {
        let all = [&["tests/interop/servers/oidc.mjs"], arguments].concat();
        Self(Process::start(NODE, &all, "http://127.0.0.1", RootCertStore::empty()).await)
    }

    /// The same over TLS, at `localhost`.
    pub async fn with_tls(root: &CertificateDer<'_>, certificate: &str, key: &str) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned()).expect("a root");
        let all = [
            "tests/interop/servers/oidc.mjs",
            "--certificate",
            certificate,
            "--key",
            key,
        ];
        Self(Process::start(NODE, &all, "https://localhost", roots).await)
    }

    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// A token without the dance: `asked` is at least the resource.
    pub async fn token(&self, asked: &Value) -> String {
        let granted = self.0.post("/token-for", asked).await;
        granted["access_token"].as_str().expect("a token").to_owned()
    }

    /// Changes how it behaves.
    pub async fn set(&self, settings: &Value) {
        self.0.post("/control/set", settings).await;
    }

    /// Requests to its token endpoint with this grant, as it saw them.
    pub async fn asked(&self, grant: &str) -> Vec<Value> {
        let seen = self.0.get("/control/seen").await;
        let seen = seen.as_array().expect("a list").iter();
        seen.filter(|request| request["params"]["grant_type"] == grant)
            .cloned()
            .collect()
    }
}

/// FastMCP as a resource server.
pub struct Protected(pub(super) Process);

impl Protected {
    /// One that takes the issuer's tokens.
    pub async fn start(issuer: &Issuer, arguments: &[&str]) -> Self {
        let all = [
            &["tests/interop/servers/protected.py", "--issuer", issuer.url()],
            arguments,
        ]
        .concat();
        Self(Process::start(PY2, &all, "http://127.0.0.1", RootCertStore::empty()).await)
    }

    pub fn url(&self) -> String {
        format!("{}/mcp", self.0.url)
    }

    /// Takes no token any more that it has seen.
    pub async fn expire(&self) {
        self.0.post("/control/expire", &json!({})).await;
    }

    /// Requests with a token that it took, and with one that it refused.
    pub async fn requests(&self) -> (u64, u64) {
        let seen = self.0.get("/control/seen").await;
        let count = |kind: &str| seen["requests"][kind].as_u64().expect("a number");
        (count("taken"), count("refused"))
    }
}
