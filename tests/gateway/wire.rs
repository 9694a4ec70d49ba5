//! Connections: TLS on both sides, several upstreams, streams that flow and calls that are given up.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::gate::{Gate, call};
use super::upstream::{self, Seen, Upstream};

const OPEN: &str = "    anonymous: true\n";

/// A certificate authority of the test's own, and a certificate for `localhost` and 127.0.0.1.
struct Pki {
    ca: CertifiedIssuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Pki {
    fn new() -> Self {
        let mut ca = CertificateParams::new(Vec::new()).expect("parameters");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().expect("a key")).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let mut names = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("names");
        names.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = names.signed_by(&key, &ca).expect("a certificate");
        Self { ca, certificate, key }
    }

    /// Writes `ca.pem`, `cert.pem` and `key.pem`.
    fn write(&self, directory: &Path) {
        for (name, text) in [
            ("ca.pem", self.ca.pem()),
            ("cert.pem", self.certificate.pem()),
            ("key.pem", self.key.serialize_pem()),
        ] {
            std::fs::write(directory.join(name), text).expect("a file");
        }
    }

    fn roots(&self) -> rustls::RootCertStore {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.der().clone()).expect("our authority");
        roots
    }

    fn provider() -> Arc<rustls::crypto::CryptoProvider> {
        Arc::new(rustls::crypto::aws_lc_rs::default_provider())
    }

    /// A server configuration that demands a client certificate of ours.
    fn server(&self) -> rustls::ServerConfig {
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()), Self::provider())
                .build()
                .expect("a verifier");
        let mut config = rustls::ServerConfig::builder_with_provider(Self::provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![self.certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der())),
            )
            .expect("a certificate");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }

    fn client(&self, alpn: &[&[u8]]) -> tokio_rustls::TlsConnector {
        let mut config = rustls::ClientConfig::builder_with_provider(Self::provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        tokio_rustls::TlsConnector::from(Arc::new(config))
    }
}

fn ping() -> Bytes {
    r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#.into()
}

fn post(uri: &str) -> Request<Full<Bytes>> {
    Request::post(uri)
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .body(Full::new(ping()))
        .expect("a request")
}

/// Starts a gate whose files stand in a directory of their own.
async fn gate_with_files(pki: &Pki, yaml: impl FnOnce(&Path) -> String) -> (Gate, tempfile::TempDir) {
    let files = tempfile::tempdir().expect("a directory");
    pki.write(files.path());
    let gate = Gate::with_yaml(&yaml(files.path())).await;
    (gate, files)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_clients_come_by_h2_and_http11() {
    let upstream = Upstream::tools(0).await;
    let pki = Pki::new();
    let files = tempfile::tempdir().expect("a directory");
    pki.write(files.path());
    let listen = format!(
        "  tls: {{certificate: {0}/cert.pem, key: {0}/key.pem}}\n",
        files.path().display()
    );
    let yaml = format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {}\n{OPEN}",
        upstream.url()
    );
    let gate = Gate::with_listen(&listen, &yaml).await;
    let address = gate.running.address();
    for (alpn, version) in [(&b"h2"[..], Version::HTTP_2), (b"http/1.1", Version::HTTP_11)] {
        let socket = TcpStream::connect(address).await.expect("a connection");
        let name = "localhost".try_into().expect("a name");
        let tls = pki.client(&[alpn]).connect(name, socket).await.expect("a handshake");
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(alpn));
        let request = post(&format!("https://localhost:{}/notes/mcp", address.port()));
        let response = if version == Version::HTTP_2 {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
                    .await
                    .expect("HTTP/2");
            tokio::spawn(connection);
            sender.send_request(request).await.expect("an answer")
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
                .await
                .expect("HTTP/1.1");
            tokio::spawn(connection);
            let mut request = request;
            request
                .headers_mut()
                .insert("host", "localhost".parse().expect("a host"));
            *request.uri_mut() = "/notes/mcp".parse().expect("a path");
            sender.send_request(request).await.expect("an answer")
        };
        assert_eq!((response.status(), response.version()), (StatusCode::OK, version));
    }
    // A handshake that never comes is given up, and so is one that isn't TLS.
    let mut plain = TcpStream::connect(address).await.expect("a connection");
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("bytes");
    let mut rest = Vec::new();
    let _ = plain.read_to_end(&mut rest).await;
    assert!(!rest.starts_with(b"HTTP/"), "plain HTTP is not answered on a TLS port");
}

#[tokio::test]
async fn a_replaced_certificate_is_shown_to_whoever_connects_next() {
    let upstream = Upstream::tools(0).await;
    let (first, second) = (Pki::new(), Pki::new());
    let files = tempfile::tempdir().expect("a directory");
    first.write(files.path());
    let listen = format!(
        "  tls: {{certificate: {0}/cert.pem, key: {0}/key.pem}}\n",
        files.path().display()
    );
    let yaml = format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {}\n{OPEN}",
        upstream.url()
    );
    let gate = Gate::with_listen(&listen, &yaml).await;
    let address = gate.running.address();
    let connect = async |pki: &Pki| {
        let socket = TcpStream::connect(address).await.expect("a connection");
        let name = "localhost".try_into().expect("a name");
        pki.client(&[b"http/1.1"]).connect(name, socket).await
    };
    let old = connect(&first).await.expect("the first certificate");
    second.write(files.path());
    std::fs::write(files.path().join("key.pem"), first.key.serialize_pem()).expect("a file");
    let error = gate.reload(&yaml).expect_err("key and certificate differ");
    assert!(error.to_string().starts_with("listen: tls"), "{error}");
    connect(&first).await.expect("still the first certificate");
    second.write(files.path());
    gate.reload(&yaml).expect("they belong together");
    connect(&second).await.expect("the second certificate");
    assert!(connect(&first).await.is_err(), "the first one is gone");
    // Who was connected stays so.
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(old))
        .await
        .expect("HTTP/1.1");
    tokio::spawn(connection);
    let mut request = post("/notes/mcp");
    request
        .headers_mut()
        .insert("host", "localhost".parse().expect("a host"));
    assert_eq!(
        sender.send_request(request).await.expect("an answer").status(),
        StatusCode::OK
    );
}

/// The issuer's documents stand behind a redirect, to its own origin or to another.
async fn redirecting_issuer(gate_issuer: &str, elsewhere: bool) -> Upstream {
    let target = gate_issuer.to_owned();
    Upstream::start(move |seen| {
        let target = target.clone();
        async move {
            let mut response = upstream::status(StatusCode::TEMPORARY_REDIRECT);
            let location = match seen.target.as_str() {
                "/moved" => {
                    let host = seen.headers["host"].to_str().expect("text").to_owned();
                    let issuer = format!("http://{host}");
                    return upstream::json_reply(
                        &serde_json::json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")}),
                    );
                }
                "/keys" => return upstream::json_reply(&serde_json::json!({"keys": []})),
                _ if elsewhere => format!("{target}/.well-known/openid-configuration"),
                _ => "/moved".to_owned(),
            };
            let location = location.parse().expect("a value");
            response.headers_mut().insert("location", location);
            response
        }
    })
    .await
}

#[tokio::test]
async fn r46_a_discovery_redirect_is_followed_on_the_issuers_own_origin_only() {
    let behind = Upstream::tools(0).await;
    let trap = Upstream::start(|_| async { upstream::status(StatusCode::OK) }).await;
    for (elsewhere, reason) in [(false, "invalid_token"), (true, "")] {
        let issuer = redirecting_issuer(&format!("http://{}", trap.address), elsewhere).await;
        let identity = format!("  real:\n    issuer: http://{}\n", issuer.address);
        let yaml = format!(
            "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {}\n",
            behind.url()
        );
        let gate = Gate::with_setup("", Some(&identity), &yaml).await;
        let token = gate.issuer.sign(
            &serde_json::json!({"alg": "ES256", "typ": "JWT", "kid": "k"}),
            &serde_json::json!({
                "iss": format!("http://{}", issuer.address), "sub": "alice", "aud": gate.url(), "exp": gate.clock.now() + 600
            }),
        );
        let answer = gate.legacy(&token, &call("echo")).await;
        // Keys that were found and are none of this token's: 401. Keys that can't be found: 503.
        let expected = if elsewhere {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::UNAUTHORIZED
        };
        assert_eq!(answer.status, expected, "elsewhere: {elsewhere}");
        assert!(answer.header("www-authenticate").contains(reason));
        let asked: Vec<String> = issuer.seen().into_iter().map(|seen| seen.target).collect();
        assert_eq!(asked.contains(&"/keys".to_owned()), !elsewhere, "{asked:?}");
    }
    assert!(trap.seen().is_empty(), "nobody was sent elsewhere");
    assert!(behind.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_with_a_private_ca_is_shown_our_certificate_over_h2() {
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(pki.server()));
    let (seen, mut saw) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let Ok(tls) = acceptor.accept(socket).await else {
                continue;
            };
            let certified = tls.get_ref().1.peer_certificates().is_some();
            let seen = seen.clone();
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let _ = seen.send((
                    request.version(),
                    certified,
                    request.uri().authority().map(ToString::to_string),
                ));
                async move { Ok::<_, io::Error>(upstream::json_reply(&json!({"jsonrpc": "2.0", "id": 1, "result": {}}))) }
            });
            tokio::spawn(
                hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(tls), service)
                    .into_owned(),
            );
        }
    });
    let (gate, _files) = gate_with_files(&pki, |files| {
        let files = files.display();
        format!(
            "routes:\n  notes:\n    path: /notes/mcp\n    anonymous: true\n    upstream: {{urls: [\"https://{address}/mcp\"], ca: {files}/ca.pem, \
             client_certificate: {files}/cert.pem, client_key: {files}/key.pem}}\n  strangers:\n    path: /strangers\n    anonymous: true\n    \
             upstream: \"https://{address}/mcp\"\n"
        )
    })
    .await;
    let answer = gate.send(post(&gate.url())).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(
        saw.recv().await,
        Some((Version::HTTP_2, true, Some(address.to_string())))
    );
    // The system's roots don't know this authority: nothing is sent.
    let answer = gate.send(post(&format!("{}/strangers", gate.running.url()))).await;
    assert_eq!(
        (answer.status, answer.code()),
        (StatusCode::OK, Some(50_300)),
        "a legacy client survives a 200"
    );
    assert!(saw.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_endpoint_is_asked_when_one_cant_be_reached() {
    let alive = Upstream::tools(0).await;
    let dead: SocketAddr = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        listener.local_addr().expect("an address")
    };
    let gate = Gate::with_yaml(&format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    anonymous: true\n    upstream: {{urls: [\"http://{dead}/mcp\", \"{}\"]}}\n",
        alive.url()
    ))
    .await;
    for _ in 0..6 {
        let answer = gate.send(post(&gate.url())).await;
        assert_eq!(
            (answer.status, answer.json()["result"].is_object()),
            (StatusCode::OK, true)
        );
    }
    assert_eq!(alive.seen().len(), 6, "each call arrives once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_may_have_arrived_is_never_sent_twice() {
    // Both endpoints read the request and hang up.
    let count = Arc::new(AtomicUsize::new(0));
    let mut urls = Vec::new();
    for _ in 0..2 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        urls.push(format!("\"http://{}/mcp\"", listener.local_addr().expect("an address")));
        let count = count.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut bytes = [0; 4096];
                if socket.read(&mut bytes).await.is_ok_and(|read| read > 0) {
                    count.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
    }
    let gate = Gate::with_yaml(&format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    anonymous: true\n    denials: status\n    upstream: {{urls: [{}]}}\n",
        urls.join(", ")
    ))
    .await;
    let answer = gate.send(post(&gate.url())).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::BAD_GATEWAY, Some(50_200)));
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unhealthy_endpoint_gets_no_calls() {
    let sick = Upstream::start(|seen: Seen| async move {
        if seen.target == "/healthz" {
            upstream::status(StatusCode::SERVICE_UNAVAILABLE)
        } else {
            upstream::json_reply(&upstream::result(&seen.json(), 0))
        }
    })
    .await;
    let gate = Gate::with_yaml(&format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    anonymous: true\n    denials: status\n    \
         upstream: {{urls: [\"{}\"], health: {{http: /healthz, interval: 50ms}}}}\n",
        sick.url()
    ))
    .await;
    sick.wait_for(2).await;
    let answer = gate.send(post(&gate.url())).await;
    assert_eq!(
        (answer.status, answer.code()),
        (StatusCode::SERVICE_UNAVAILABLE, Some(50_300))
    );
    assert!(
        sick.seen().iter().all(|seen| seen.method == Method::GET),
        "only health checks arrived (r47)"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_redirects_that_stay_are_followed() {
    let elsewhere = Upstream::tools(0).await;
    let away = elsewhere.url();
    let upstream = Upstream::start(move |seen: Seen| {
        let away = away.clone();
        async move {
            let redirect = |status, location: &str| {
                let mut response = upstream::status(status);
                response
                    .headers_mut()
                    .insert("location", location.parse().expect("a location"));
                response
            };
            match seen.target.as_str() {
                "/same" => redirect(StatusCode::TEMPORARY_REDIRECT, "/mcp/"),
                "/away" => redirect(StatusCode::PERMANENT_REDIRECT, &away),
                "/see-other" => redirect(StatusCode::SEE_OTHER, "/mcp/"),
                "/loop" => redirect(StatusCode::PERMANENT_REDIRECT, "/loop"),
                _ => upstream::json_reply(&upstream::result(&seen.json(), 0)),
            }
        }
    })
    .await;
    let routes: Vec<String> = ["same", "away", "see-other", "loop"]
        .iter()
        .map(|name| {
            format!(
                "  {name}:\n    path: /{name}\n    anonymous: true\n    denials: status\n    credential: {{bearer: s3cr3t-of-the-upstream}}\n    \
                 upstream: http://{}/{name}\n",
                upstream.address
            )
        })
        .collect();
    let gate = Gate::with_yaml(&format!("routes:\n{}", routes.concat())).await;
    for (name, status) in [
        ("same", StatusCode::OK),
        ("away", StatusCode::BAD_GATEWAY),
        ("see-other", StatusCode::BAD_GATEWAY),
        ("loop", StatusCode::BAD_GATEWAY),
    ] {
        let answer = gate.send(post(&format!("{}/{name}", gate.running.url()))).await;
        assert_eq!(answer.status, status, "{name}");
        assert_eq!(answer.header("location"), "", "{name}");
    }
    assert!(elsewhere.seen().is_empty(), "the credential stays at home");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_takes_its_upstream_request_with_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (told, mut ended) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let told = told.clone();
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                let _ = socket.read(&mut bytes).await;
                let _ = told.send("asked");
                // The end of the connection is the cancellation.
                while socket.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
                let _ = told.send("gone");
            });
        }
    });
    let gate = Gate::with_yaml(&format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    anonymous: true\n    upstream: http://{address}/mcp\n"
    ))
    .await;
    let asking = tokio::spawn(super::gate::client().request(post(&gate.url())));
    assert_eq!(ended.recv().await, Some("asked"));
    asking.abort();
    assert_eq!(
        tokio::time::timeout(Duration::from_secs(10), ended.recv())
            .await
            .expect("in time"),
        Some("gone")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_reply_flows_and_a_silent_one_ends() {
    let upstream = Upstream::start(|seen: Seen| async move {
        let (events, response) = upstream::stream();
        if seen.json()["method"] == "ping" {
            tokio::spawn(async move {
                for n in 0..160 {
                    let text = "x".repeat(64 * 1024);
                    let note =
                        json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"n": n, "data": text}});
                    let _ = events.send(upstream::event(&note));
                }
                let _ = events.send(upstream::event(&json!({"jsonrpc": "2.0", "id": 1, "result": {}})));
            });
        } else {
            // Says something, and then nothing for ever.
            let _ = events.send(": hello\n\n".to_owned());
            tokio::spawn(async move { events.closed().await });
        }
        response
    })
    .await;
    let gate = Gate::with_yaml(&format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    anonymous: true\n    upstream: {{urls: [\"{}\"], idle_timeout: 2s}}\n",
        upstream.url()
    ))
    .await;
    let answer = gate.send(post(&gate.url())).await;
    assert!(answer.body.len() > 160 * 64 * 1024);
    assert_eq!(answer.header("x-accel-buffering"), "no");
    let silent = gate.open(gate.post("", &call("echo"))).await;
    assert_eq!(silent.status(), StatusCode::OK);
    let end = tokio::time::timeout(Duration::from_secs(10), silent.into_body().collect())
        .await
        .expect("it ends");
    assert!(end.is_err(), "a reply that was cut off doesn't look whole");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_head_is_504() {
    let upstream = Upstream::start(|_| std::future::pending()).await;
    let gate = Gate::with_yaml(&format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    anonymous: true\n    denials: status\n    upstream: {{urls: [\"{}\"], response_timeout: 100ms}}\n",
        upstream.url()
    ))
    .await;
    let answer = gate.send(post(&gate.url())).await;
    assert_eq!(
        (answer.status, answer.code()),
        (StatusCode::GATEWAY_TIMEOUT, Some(50_400))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_lets_a_call_finish_and_ends_standing_streams() {
    let (release, gate_open) = tokio::sync::watch::channel(false);
    let upstream = Upstream::start(move |seen: Seen| {
        let mut gate_open = gate_open.clone();
        async move {
            if seen.method == Method::GET {
                let (events, response) = upstream::stream();
                let _ = events.send(": standing\n\n".to_owned());
                tokio::spawn(async move { events.closed().await });
                return response;
            }
            let _ = gate_open.wait_for(|open| *open).await;
            upstream::json_reply(&upstream::result(&seen.json(), 0))
        }
    })
    .await;
    let gate = Gate::with_yaml(&format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    anonymous: true\n    upstream: {{urls: [\"{}\"], transport: streamable-http}}\n",
        upstream.url()
    ))
    .await;
    let mut standing = gate.request(Method::GET, "", String::new());
    let version = "2025-11-25".parse().expect("a value");
    standing.headers_mut().insert("mcp-protocol-version", version);
    let standing = gate.open(standing).await;
    assert_eq!(standing.status(), StatusCode::OK);
    let calling = tokio::spawn(super::gate::client().request(post(&gate.url())));
    upstream.wait_for(2).await;
    let stopping = tokio::spawn(gate.running.shutdown());
    let ended = tokio::time::timeout(Duration::from_secs(10), standing.into_body().collect());
    ended
        .await
        .expect("a standing stream ends when the gate stops")
        .expect("and ends well");
    release.send(true).expect("the upstream waits");
    let answer = calling.await.expect("the call").expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    tokio::time::timeout(Duration::from_secs(10), stopping)
        .await
        .expect("it stops")
        .expect("cleanly");
}

#[test]
fn certificates_of_the_test_are_readable() {
    let pki = Pki::new();
    let directory = tempfile::tempdir().expect("a directory");
    pki.write(directory.path());
    assert!(CertificateDer::from_pem_file(directory.path().join("cert.pem")).is_ok());
}
