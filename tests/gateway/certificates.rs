//! Client certificates: as who a caller is, and as what a token is bound to. Real handshakes, exact answers, and an
//! upstream that saw nothing of what was refused.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::commands::run;
use super::gate::{Answer, Gate, call};
use super::upstream::{Upstream, json_reply, result, stream};

type Authority = CertifiedIssuer<'static, KeyPair>;

const AGENT: &str = "spiffe://corp.example/agents/a";
const SOON: Duration = Duration::from_secs(20);

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

/// What a client shows in the handshake.
struct Client {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Client {
    fn new(authority: &Authority, fill: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name = DistinguishedName::new();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        fill(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, authority).expect("a certificate");
        Self {
            certificate: certificate.der().clone(),
            key,
        }
    }

    fn named(authority: &Authority, uris: &[&str]) -> Self {
        Self::new(authority, |params| {
            params.distinguished_name.push(DnType::OrganizationName, "Corp");
            let uris = uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ASCII")));
            params.subject_alt_names = uris.collect();
        })
    }

    fn thumbprint(&self) -> String {
        URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, &self.certificate))
    }
}

/// A gateway that asks for certificates.
struct Mesh {
    gate: Gate,
    authority: Authority,
    files: tempfile::TempDir,
    yaml: String,
}

/// What is put before the tests' `roles`: an identity of certificates, and a role by them.
const IDENTITY: &str = "  mesh: {client_certificates: {subject: uri}}\n  \
     names: {client_certificates: {subject: common_name}}\n\
     roles:\n  agent: [{all: [\"subject:spiffe://corp.example/*\", \"claim:organization=Corp\"]}]\n";

impl Mesh {
    async fn start(routes: &str) -> Self {
        let authority = authority();
        let files = tempfile::tempdir().expect("a directory");
        let key = KeyPair::generate().expect("a key");
        let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("names");
        let server = server.signed_by(&key, &authority).expect("a certificate");
        for (name, pem) in [
            ("ca.pem", authority.pem()),
            ("clients.pem", authority.pem()),
            ("cert.pem", server.pem()),
            ("key.pem", key.serialize_pem()),
        ] {
            std::fs::write(files.path().join(name), pem).expect("a file");
        }
        let listen = format!(
            "  tls: {{certificate: {0}/cert.pem, key: {0}/key.pem, client_ca: {0}/clients.pem}}\n",
            files.path().display()
        );
        let mesh = Self {
            gate: Gate::with_listen(&listen, "routes: {r: {path: /r, upstream: 'http://127.0.0.1:1/'}}\n").await,
            authority,
            files,
            yaml: format!("routes:\n{routes}"),
        };
        mesh.reload();
        mesh
    }

    /// Reads files and configuration again. The harness' own identity stays, and with it its clock, which can be moved.
    fn reload(&self) {
        let reloaded = self.gate.reload_replacing("roles:\n", IDENTITY, &self.yaml);
        reloaded.expect("the configuration is right");
    }

    async fn connect(&self, client: Option<&Client>) -> SendRequest<Full<Bytes>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.authority.der().clone()).expect("our authority");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match client {
            None => config.with_no_client_auth(),
            Some(client) => {
                let key = PrivateKeyDer::Pkcs8(client.key.serialize_der().into());
                let chain = vec![client.certificate.clone()];
                config.with_client_auth_cert(chain, key).expect("they belong together")
            }
        };
        let address = self.gate.running.address();
        let socket = TcpStream::connect(address).await.expect("a connection");
        let name = address.ip().into();
        let connecting = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket);
        let stream = connecting.await.expect("a handshake");
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.expect("HTTP/1.1");
        tokio::spawn(connection);
        sender
    }

    fn request(&self, method: Method, path: &str, authorization: &str, body: &Value) -> Request<Full<Bytes>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.gate.running.address().to_string())
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        if !authorization.is_empty() {
            request = request.header("authorization", authorization);
        }
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        request.body(Full::from(body)).expect("a request")
    }

    async fn send(&self, sender: &mut SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> Answer {
        let answered = async {
            sender.ready().await.expect("the connection stands");
            let (parts, body) = sender.send_request(request).await.expect("an answer").into_parts();
            Answer {
                status: parts.status,
                headers: parts.headers,
                body: body.collect().await.expect("a whole one").to_bytes(),
            }
        };
        tokio::time::timeout(SOON, answered)
            .await
            .expect("it is answered in time")
    }

    async fn post(&self, sender: &mut SendRequest<Full<Bytes>>, path: &str, authorization: &str) -> Answer {
        let request = self.request(Method::POST, path, authorization, &call("echo"));
        self.send(sender, request).await
    }

    fn token(&self, claims: Value) -> String {
        let now = self.gate.clock.now();
        let mut all = json!({"iss": self.gate.issuer.issuer(), "sub": "alice", "aud": self.gate.url(), "iat": now - 1000,
            "exp": now + 600});
        for (name, value) in claims.as_object().expect("claims") {
            all[name] = value.clone();
        }
        format!("Bearer {}", self.gate.issuer.mint_claims(&all))
    }
}

fn challenges(answer: &Answer) -> String {
    let values = answer.headers.get_all("www-authenticate").iter();
    let values: Vec<&str> = values.map(|value| value.to_str().expect("text")).collect();
    values.join(" | ")
}

fn route(name: &str, upstream: &Upstream, rest: &str) -> String {
    format!(
        "  {name}:\n    path: /{name}/mcp\n    upstream: {}\n    {rest}\n",
        upstream.url()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_who_its_caller_is_and_each_way_in_is_closed() {
    let upstream = Upstream::tools(1).await;
    let routes = [
        route("notes", &upstream, "identity: [corp, mesh]"),
        route("certs", &upstream, "identity: [mesh]"),
        route(
            "ruled",
            &upstream,
            "identity: [mesh, names]\n    tools: {rules: [{allow: [echo], to: [agent]}]}",
        ),
        route("scoped", &upstream, "identity: [mesh]\n    scopes: [mcp.use]"),
        route("tokens", &upstream, "identity: [corp]"),
        route("open", &upstream, "identity: [mesh]\n    anonymous: true"),
    ];
    let mesh = Mesh::start(&routes.concat()).await;
    let agent = Client::named(&mesh.authority, &[AGENT]);
    let nameless = Client::named(&mesh.authority, &[]);
    let two = Client::named(&mesh.authority, &[AGENT, "spiffe://corp.example/agents/b"]);
    let strange = Client::named(&mesh.authority, &["spiffe://corp.example/\u{7f}"]);
    let other = Client::new(&mesh.authority, |params| {
        params
            .distinguished_name
            .push(DnType::CommonName, "spiffe://corp.example/agents/a");
    });
    let metadata = |path: &str| {
        let url = mesh.gate.running.url();
        format!("resource_metadata=\"{url}/.well-known/oauth-protected-resource{path}\"")
    };
    let invalid = |description: &str| format!("Bearer error=\"invalid_token\", error_description=\"{description}\"");
    let alice = mesh.token(json!({}));
    let over = mesh.token(json!({"exp": 1_000_000_000}));
    let over_told = format!(
        "{}, {}",
        invalid("token expired at 2001-09-09T01:46:40Z"),
        metadata("/notes/mcp")
    );
    let bare = "Bearer".to_owned();
    let notes = format!("Bearer {}", metadata("/notes/mcp"));
    let nobody = None;
    type Row<'a> = (&'a str, Option<&'a Client>, &'a str, &'a str, u16, i64, String);
    let table: Vec<Row<'_>> = vec![
        ("no certificate", nobody, "/certs/mcp", "", 401, 40_100, bare.clone()),
        ("no name", Some(&nameless), "/certs/mcp", "", 401, 40_100, bare.clone()),
        ("two names", Some(&two), "/certs/mcp", "", 401, 40_100, bare.clone()),
        (
            "an unprintable name",
            Some(&strange),
            "/certs/mcp",
            "",
            401,
            40_100,
            bare.clone(),
        ),
        (
            "another kind of name",
            Some(&other),
            "/certs/mcp",
            "",
            401,
            40_100,
            bare.clone(),
        ),
        // A token that is no good is no certificate's business.
        (
            "and nonsense",
            Some(&agent),
            "/certs/mcp",
            "Bearer nonsense",
            401,
            40_100,
            invalid("invalid token"),
        ),
        (
            "and another scheme",
            Some(&agent),
            "/certs/mcp",
            "Basic YTpi",
            401,
            40_100,
            bare.clone(),
        ),
        (
            "and an empty token",
            Some(&agent),
            "/certs/mcp",
            "Bearer ",
            401,
            40_100,
            bare.clone(),
        ),
        (
            "and a token nobody takes",
            Some(&agent),
            "/certs/mcp",
            &alice,
            401,
            40_100,
            invalid("invalid issuer"),
        ),
        (
            "and a token that is over",
            Some(&agent),
            "/notes/mcp",
            &over,
            401,
            40_100,
            over_told,
        ),
        ("neither", nobody, "/notes/mcp", "", 401, 40_100, notes.clone()),
        (
            "no name, where tokens are taken",
            Some(&nameless),
            "/notes/mcp",
            "",
            401,
            40_100,
            notes,
        ),
        (
            "a certificate where it isn't taken",
            Some(&agent),
            "/tokens/mcp",
            "",
            401,
            40_100,
            format!("Bearer {}", metadata("/tokens/mcp")),
        ),
        (
            "no name, where nobody may come",
            Some(&two),
            "/open/mcp",
            "",
            401,
            40_100,
            bare,
        ),
        (
            "not the role",
            Some(&other),
            "/ruled/mcp",
            "",
            403,
            40_300,
            String::new(),
        ),
        (
            "no scopes",
            Some(&agent),
            "/scoped/mcp",
            "",
            403,
            40_301,
            "Bearer error=\"insufficient_scope\", scope=\"mcp.use\"".to_owned(),
        ),
    ];
    for (name, client, path, authorization, status, code, challenge) in table {
        let mut sender = mesh.connect(client).await;
        let mut request = mesh.request(Method::POST, path, authorization, &call("echo"));
        if status == 403 {
            // Older clients are told of a role in a 200.
            request = modern(request);
        }
        let answer = mesh.send(&mut sender, request).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (status, Some(code)),
            "{name}: {answer:?}"
        );
        assert_eq!(challenges(&answer), challenge, "{name}");
        assert!(
            upstream.seen().is_empty(),
            "{name}: the upstream saw {:?}",
            upstream.seen()
        );
    }
    // No issuer, no document.
    for (path, status) in [("/certs/mcp", 404), ("/notes/mcp", 200)] {
        let path = format!("/.well-known/oauth-protected-resource{path}");
        let mut sender = mesh.connect(None).await;
        let answer = mesh
            .send(&mut sender, mesh.request(Method::GET, &path, "", &Value::Null))
            .await;
        assert_eq!(answer.status.as_u16(), status, "{path}");
        if status == 200 {
            assert_eq!(
                answer.json()["authorization_servers"],
                json!([mesh.gate.issuer.issuer()])
            );
        }
    }
    let allowed = [
        (Some(&agent), "/certs/mcp", ""),
        (Some(&agent), "/notes/mcp", ""),
        (Some(&agent), "/notes/mcp", alice.as_str()),
        (Some(&nameless), "/notes/mcp", alice.as_str()),
        (None, "/notes/mcp", alice.as_str()),
        (Some(&agent), "/ruled/mcp", ""),
        (Some(&agent), "/open/mcp", ""),
        (None, "/open/mcp", ""),
    ];
    for (done, (client, path, authorization)) in allowed.into_iter().enumerate() {
        let mut sender = mesh.connect(client).await;
        let answer = mesh.post(&mut sender, path, authorization).await;
        assert_eq!(answer.status.as_u16(), 200, "{path} {answer:?}");
        assert_eq!(answer.json()["result"]["content"][0]["text"], "echo", "{path}");
        assert_eq!(upstream.seen().len(), done + 1);
    }
    let reason = |route: &str, identity: &str, reason: &str| {
        mesh.gate.metric(&format!(
            "portcullis_auth_validations_total{{route=\"{route}\",identity=\"{identity}\",result=\"refused\",reason=\"{reason}\"}}"
        ))
    };
    assert_eq!(reason("certs", "", "no_certificate"), Some(1.0));
    assert_eq!(reason("certs", "mesh", "certificate_subject"), Some(3.0));
    assert_eq!(reason("certs", "mesh", "certificate_unreadable"), Some(1.0));
    mesh.gate.running.shutdown().await;
    let audit = std::fs::read_to_string(mesh.gate.directory.path().join("audit.jsonl")).expect("the audit");
    let line = audit
        .lines()
        .find(|line| line.contains(AGENT) && line.contains("\"certs\""))
        .expect("a line of the agent's");
    let line: Value = serde_json::from_str(line).expect("JSON");
    assert_eq!(line["issuer"], "portcullis:client-certificates:mesh");
}

/// The same call, by a client of today.
fn modern(request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    let (mut parts, _) = request.into_parts();
    for (name, value) in [
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", "tools/call"),
        ("mcp-name", "echo"),
    ] {
        parts.headers.insert(name, value.parse().expect("a value"));
    }
    let mut body = call("echo");
    body["params"]["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    Request::from_parts(parts, Full::from(body.to_string()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_its_certificates_subjects() {
    let upstream = Upstream::tools(1).await;
    let mesh = Mesh::start(&route("notes", &upstream, "identity: [mesh, names]")).await;
    let first = Client::named(&mesh.authority, &[AGENT]);
    let renewed = Client::named(&mesh.authority, &[AGENT]);
    let other = Client::named(&mesh.authority, &["spiffe://corp.example/agents/b"]);
    // The same text by another identity is another caller.
    let same_text = Client::new(&mesh.authority, |params| {
        params.distinguished_name.push(DnType::CommonName, AGENT)
    });
    let initialize = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}});
    let mut sender = mesh.connect(Some(&first)).await;
    let opened = mesh
        .send(&mut sender, mesh.request(Method::POST, "/notes/mcp", "", &initialize))
        .await;
    let session = opened.headers["mcp-session-id"].clone();
    for (client, expected) in [(&first, 200), (&renewed, 200), (&other, 404), (&same_text, 404)] {
        let mut sender = mesh.connect(Some(client)).await;
        let mut request = mesh.request(Method::POST, "/notes/mcp", "", &call("echo"));
        request.headers_mut().insert("mcp-session-id", session.clone());
        assert_eq!(mesh.send(&mut sender, request).await.status.as_u16(), expected);
    }
    assert_eq!(upstream.seen().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_bound_to_a_certificate_needs_it_in_the_handshake() {
    let upstream = Upstream::tools(1).await;
    let mesh = Mesh::start(&route("notes", &upstream, "identity: [corp, mesh]")).await;
    // What the certificate says doesn't matter: the token says who.
    let owner = Client::named(&mesh.authority, &[]);
    let thief = Client::named(&mesh.authority, &[AGENT]);
    let bound = mesh.token(json!({"cnf": {"x5t#S256": owner.thumbprint()}}));
    let also_keyed = mesh.token(json!({"cnf": {"x5t#S256": owner.thumbprint(), "jkt": owner.thumbprint()}}));
    let unknown = mesh.token(json!({"cnf": {"x5t#S256": owner.thumbprint(), "kid": "x"}}));
    let short = mesh.token(json!({"cnf": {"x5t#S256": &owner.thumbprint()[..42]}}));
    let url = mesh.gate.running.url();
    let told = format!(
        "error=\"invalid_token\", error_description=\"invalid token\", \
         resource_metadata=\"{url}/.well-known/oauth-protected-resource/notes/mcp\""
    );
    let told = format!("Bearer {told} | DPoP algs=\"ES256 ES384 Ed25519 EdDSA PS256 RS256\", {told}");
    for (name, client, token) in [
        ("no certificate", None, &bound),
        ("another certificate", Some(&thief), &bound),
        ("a key besides", Some(&owner), &also_keyed),
        ("what isn't understood besides", Some(&owner), &unknown),
        ("a cut hash", Some(&owner), &short),
    ] {
        let mut sender = mesh.connect(client).await;
        let answer = mesh.post(&mut sender, "/notes/mcp", token).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (401, Some(40_100)), "{name}");
        assert_eq!(challenges(&answer), told, "{name}");
    }
    assert!(upstream.seen().is_empty(), "{:?}", upstream.seen());
    let mut sender = mesh.connect(Some(&owner)).await;
    for _ in 0..2 {
        assert_eq!(mesh.post(&mut sender, "/notes/mcp", &bound).await.status.as_u16(), 200);
    }
    let seen = upstream.seen();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|seen| !seen.headers.contains_key("authorization")));
}

/// A server whose every GET opens a stream that says hello and then nothing.
async fn silent() -> Upstream {
    Upstream::start(|seen| async move {
        if seen.method != Method::GET {
            return json_reply(&result(&seen.json(), 0));
        }
        let (sender, response) = stream();
        sender.send(": hello\n\n".to_owned()).expect("a reader");
        tokio::spawn(async move { sender.closed().await });
        response
    })
    .await
}

/// Opens a standing stream, whose first words have come.
async fn standing(mesh: &Mesh, client: &Client) -> hyper::body::Incoming {
    let mut sender = mesh.connect(Some(client)).await;
    let mut request = mesh.request(Method::GET, "/notes/mcp", "", &Value::Null);
    let version = "2025-11-25".parse().expect("a value");
    request.headers_mut().insert("mcp-protocol-version", version);
    let mut body = sender.send_request(request).await.expect("an answer").into_body();
    let hello = body.frame().await.expect("a frame").expect("a whole one");
    assert_eq!(hello.into_data().expect("data"), ": hello\n\n");
    body
}

async fn ends(body: hyper::body::Incoming) {
    let rest = tokio::time::timeout(SOON, body.collect());
    rest.await.expect("it ends soon").expect("it ends, and isn't cut");
}

/// Seconds since 1970 of 2040-01-01.
const END: u64 = 2_208_988_800;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_and_its_streams_outlive_no_certificate() {
    let upstream = silent().await;
    let mesh = Mesh::start(&route("notes", &upstream, "identity: [mesh]")).await;
    let client = Client::new(&mesh.authority, |params| {
        params.subject_alt_names = vec![SanType::URI(AGENT.try_into().expect("ASCII"))];
        params.not_after = rcgen::date_time_ymd(2040, 1, 1);
    });
    let mut sender = mesh.connect(Some(&client)).await;
    let mut status = async || {
        let answer = mesh.post(&mut sender, "/notes/mcp", "").await;
        (answer.status.as_u16(), answer.json()["error"]["message"].clone())
    };
    assert_eq!(status().await, (200, Value::Null));
    mesh.gate.clock.set(END);
    assert_eq!(status().await, (200, Value::Null), "its last second");
    // Two seconds on, by the machine's time, the certificate and with it the stream are over.
    ends(standing(&mesh, &client).await).await;
    mesh.gate.clock.set(END + 1);
    let over = "the client certificate ended at 2040-01-01T00:00:00Z";
    assert_eq!(status().await, (401, json!(over)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_that_is_withdrawn_takes_its_callers_along() {
    let upstream = silent().await;
    let mesh = Mesh::start(&route("notes", &upstream, "identity: [mesh]")).await;
    let client = Client::named(&mesh.authority, &[AGENT]);
    let bundle = mesh.files.path().join("clients.pem");
    let more = authority();
    std::fs::write(&bundle, format!("{}{}", mesh.authority.pem(), more.pem())).expect("a file");
    let mut open = standing(&mesh, &client).await;
    mesh.reload();
    // Its authority is still there: the connection and the stream stay.
    let mut sender = mesh.connect(Some(&client)).await;
    assert_eq!(mesh.post(&mut sender, "/notes/mcp", "").await.status.as_u16(), 200);
    let waiting = tokio::time::timeout(Duration::from_millis(200), open.frame());
    assert!(waiting.await.is_err(), "the stream stands");
    std::fs::write(&bundle, more.pem()).expect("a file");
    mesh.reload();
    ends(open).await;
    let answer = mesh.post(&mut sender, "/notes/mcp", "").await;
    let told = "the client certificate is not trusted any more";
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["error"]["message"]),
        (401, &json!(told))
    );
}

#[tokio::test]
async fn explain_tells_what_is_made_of_a_certificate() {
    let authority = authority();
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: String| std::fs::write(directory.path().join(name), text).expect("a file");
    write("ca.pem", authority.pem());
    for (name, client) in [
        ("agent.pem", Client::named(&authority, &[AGENT])),
        ("nameless.pem", Client::named(&authority, &[])),
        ("stranger.pem", Client::named(&self::authority(), &[AGENT])),
    ] {
        let pem = STANDARD.encode(&client.certificate);
        write(
            name,
            format!("-----BEGIN CERTIFICATE-----\n{pem}\n-----END CERTIFICATE-----\n"),
        );
    }
    write(
        "portcullis.yaml",
        "listen: {tls: {certificate: c.pem, key: k.pem, client_ca: ca.pem}}\n\
         identity:\n  mesh: {client_certificates: {subject: uri}}\n\
         roles: {agent: [\"subject:spiffe://corp.example/*\"]}\n\
         routes:\n  notes:\n    path: /notes/mcp\n    upstream: \"http://127.0.0.1:1/mcp\"\n    \
         tools: {rules: [{allow: \"get_*\", to: agent}]}\n"
            .to_owned(),
    );
    for (file, tool, code, lines) in [
        (
            Some("agent.pem"),
            "get_x",
            0,
            &[
                "+ mesh: it vouches for this caller",
                AGENT,
                "+ agent: by roles.agent[0]",
            ][..],
        ),
        (Some("agent.pem"), "put_x", 1, &["refused (no_rule"]),
        (
            Some("nameless.pem"),
            "get_x",
            1,
            &[
                "- mesh: it does not vouch: the client certificate has no name",
                "401, code 40100",
            ],
        ),
        (
            Some("stranger.pem"),
            "get_x",
            1,
            &["not trusted", "refused (certificate_untrusted)"],
        ),
        (
            None,
            "get_x",
            1,
            &["- mesh: no certificate was shown", "refused (no_certificate)"],
        ),
    ] {
        let mut arguments = vec!["explain", "--route", "notes", "--tool", tool];
        arguments.extend(file.iter().flat_map(|file| ["--certificate-file", file]));
        let (exit, out, err) = run(directory.path(), &arguments).await;
        assert_eq!(exit, Some(code), "{file:?}: {out}{err}");
        for line in lines {
            assert!(out.contains(line), "{file:?}: {line} is not in {out}");
        }
    }
    let misused = ["explain", "--route", "notes", "--certificate-file", "portcullis.yaml"];
    let (exit, out, err) = run(directory.path(), &misused).await;
    assert_eq!((exit, &*out), (Some(2), ""));
    assert!(err.contains("portcullis.yaml: it holds none"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_without_a_bearer_needs_its_streams_certificate() {
    let upstream = Upstream::sse().await;
    let rest = "identity: [corp, mesh]\n    bearerless_messages: true";
    let server = format!("{{urls: [\"{}\"], transport: sse}}", upstream.url());
    let routes = route("notes", &upstream, rest).replace(&upstream.url(), &server);
    let mesh = Mesh::start(&routes).await;
    let client = Client::named(&mesh.authority, &[AGENT]);
    let other = Client::named(&mesh.authority, &["spiffe://corp.example/agents/b"]);
    let mut sender = mesh.connect(Some(&client)).await;
    let request = mesh.request(Method::GET, "/notes/mcp", "", &Value::Null);
    let mut stream = sender.send_request(request).await.expect("an answer").into_body();
    let frame = stream.frame().await.expect("a frame").expect("a whole one");
    let event = String::from_utf8(frame.into_data().expect("data").to_vec()).expect("text");
    let url = event.trim().rsplit_once("data: ").expect("the endpoint").1;
    let path = url.strip_prefix(&mesh.gate.running.url()).unwrap_or(url);
    let opened = upstream.seen().len();
    for (client, status) in [(None, 401), (Some(&other), 403), (Some(&client), 202)] {
        let mut sender = mesh.connect(client).await;
        assert_eq!(mesh.post(&mut sender, path, "").await.status.as_u16(), status);
        assert_eq!(upstream.seen().len() - opened, usize::from(status == 202));
    }
}
