//! What one request costs where it costs anything: the token, the envelope, the decision, the stream, the seal, and the
//! mapping between eras.
//!
//! `cargo bench --bench functions`; `cargo test --benches` runs each once.

use std::hint::black_box;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_lc_rs::digest;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue};
use portcullis::authn::{Authenticator, Principal, RouteAuth, Sender};
use portcullis::bridge::map::{result_to_legacy, result_to_modern};
use portcullis::bridge::peer::Facts;
use portcullis::cli::demo::issuer::DevelopmentIssuer;
use portcullis::clock::Clock;
use portcullis::config::Config;
use portcullis::mcp::sse::Decoder;
use portcullis::mcp::{Payload, agree, parse};
use portcullis::session::{Purpose, Sealer};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RESOURCE: &str = "http://127.0.0.1:8443/mcp";

/// An authenticator with one issuer and a route with the rules of a busy day.
struct Fixture {
    issuer: DevelopmentIssuer,
    config: Config,
    authenticator: Arc<Authenticator>,
    auth: RouteAuth,
    sealer: Sealer,
    /// Bound to a key.
    token: OnceLock<String>,
}

impl Fixture {
    async fn new() -> Self {
        let issuer = DevelopmentIssuer::start(Clock::system())
            .await
            .expect("loopback has a free port");
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("jwks.json"), issuer.jwks().to_string()).expect("writable");
        let config = config(issuer.issuer(), directory.path());
        let authenticator = Authenticator::new(
            &config.identities,
            config.roles.clone(),
            Clock::system(),
            Arc::new(|_| ()),
        )
        .expect("the key file is there");
        let auth = RouteAuth {
            route: "bench".into(),
            identities: vec!["corp".into()],
            anonymous: false,
            resource: RESOURCE.to_owned(),
        };
        Self {
            issuer,
            config,
            authenticator,
            auth,
            sealer: Sealer::new(&[]),
            token: OnceLock::new(),
        }
    }

    fn headers(&self) -> HeaderMap {
        let hour = Duration::from_secs(3600);
        let token = self
            .issuer
            .mint("ada", RESOURCE, &["notes.read", "notes.write"], &["notes-editor"], hour);
        let bearer = HeaderValue::from_str(&format!("Bearer {token}")).expect("a token is ASCII");
        HeaderMap::from_iter([(http::header::AUTHORIZATION, bearer)])
    }

    fn sender(&self) -> Sender<'_> {
        Sender {
            method: &http::Method::POST,
            target: RESOURCE,
            certificate: None,
            sealer: &self.sealer,
        }
    }

    /// A token bound to the key, and a proof that has not been used.
    fn bound(&self, key: &EcdsaKeyPair, number: u64) -> HeaderMap {
        let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let point = key.public_key().as_ref();
        let (x, y) = (
            URL_SAFE_NO_PAD.encode(&point[1..33]),
            URL_SAFE_NO_PAD.encode(&point[33..]),
        );
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let hash = |text: &str| URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, text.as_bytes()));
        let now = Clock::system().now();
        // The times are whole days', so that the token stays in the cache.
        let day = now / 86_400 * 86_400;
        let token = self.token.get_or_init(|| {
            self.issuer
                .mint_claims(&json!({"iss": self.issuer.issuer(), "sub": "ada", "aud": RESOURCE,
                "scope": "notes.read", "iat": day, "exp": day + 200_000, "cnf": {"jkt": hash(&canonical)}}))
        });
        let jwk: serde_json::Value = serde_json::from_str(&canonical).expect("JSON");
        let header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk});
        let claims = json!({"jti": number.to_string(), "htm": "POST", "htu": RESOURCE, "iat": now, "ath": hash(token)});
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
        let proof = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
        let mut headers = HeaderMap::new();
        headers.insert("authorization", format!("DPoP {token}").parse().expect("ASCII"));
        headers.insert("dpop", proof.parse().expect("ASCII"));
        headers
    }

    /// The keys are in a file, so nothing is waited for.
    fn authenticate(&self, headers: &HeaderMap) -> Arc<Principal> {
        self.authenticator
            .authenticate(&self.auth, headers, &self.sender())
            .now_or_never()
            .expect("no network")
            .unwrap_or_else(|error| panic!("the token is good: {error}"))
            .principal
    }
}

fn config(issuer: &str, directory: &Path) -> Config {
    let text = format!(
        r#"
listen: {{address: "127.0.0.1:0"}}
identity:
  corp: {{issuer: "{issuer}", jwks_file: jwks.json, algorithms: [ES256]}}
roles:
  reader: ["scope:notes.read", "group:staff"]
  editor: ["role:notes-editor", {{all: ["group:staff", "claim:department=docs"]}}]
routes:
  rules:
    path: /mcp
    upstream: http://127.0.0.1:1/mcp
    tools:
      rules:
        - {{allow: ["get_*", "search_*"], to: [reader, editor]}}
        - {{allow: ["tool_*"], to: [reader]}}
        - {{allow: [delete_note], to: [editor], scopes: [notes.write]}}
        - {{deny: ["admin_*"]}}
  expression:
    path: /expression
    upstream: http://127.0.0.1:1/mcp
    tools:
      rules:
        - {{allow: [delete_note], to: [editor], when: "size(args.ids) <= 10 && principal.subject == 'ada'"}}
"#
    );
    Config::parse(&text, "bench.yaml", directory, &|_| None)
        .unwrap_or_else(|errors| panic!("{errors}"))
        .config
}

fn call(tool: &str, padding: usize) -> Bytes {
    Bytes::from(
        json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {
        "name": tool, "arguments": {"ids": [1, 2, 3], "text": "x".repeat(padding)}, "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {}, "progressToken": 1,
        }}})
        .to_string(),
    )
}

fn message(body: &Bytes) -> Payload {
    parse(body).expect("a good envelope")
}

fn token(bench: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let fixture = runtime.block_on(Fixture::new());
    let mut group = bench.benchmark_group("token");
    let headers = fixture.headers();
    group.bench_function("cached", |b| b.iter(|| fixture.authenticate(black_box(&headers))));
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
    let mut number = 0;
    group.bench_function("cached, with a DPoP proof", |b| {
        b.iter_batched(
            || {
                number += 1;
                fixture.bound(&key, number)
            },
            // A memory full of proofs refuses after the same work.
            |headers| {
                fixture
                    .authenticator
                    .authenticate(&fixture.auth, &headers, &fixture.sender())
                    .now_or_never()
                    .is_some()
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("cold ES256", |b| {
        b.iter_batched(
            || fixture.headers(),
            |headers| fixture.authenticate(&headers),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn envelope(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("envelope");
    for (name, padding) in [("300 bytes", 0), ("2 KB", 1_700)] {
        let body = call("get_note", padding);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |b| b.iter(|| message(black_box(&body))));
    }
    let payload = message(&call("get_note", 0));
    let headers = HeaderMap::from_iter([
        (
            http::HeaderName::from_static("mcp-protocol-version"),
            HeaderValue::from_static("2026-07-28"),
        ),
        (
            http::HeaderName::from_static("mcp-method"),
            HeaderValue::from_static("tools/call"),
        ),
        (
            http::HeaderName::from_static("mcp-name"),
            HeaderValue::from_static("get_note"),
        ),
    ]);
    group.bench_function("header agreement", |b| {
        b.iter(|| agree(black_box(&headers), black_box(&payload)).expect("they agree"));
    });
    group.finish();
}

fn decision(bench: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let fixture = runtime.block_on(Fixture::new());
    let principal = fixture.authenticate(&fixture.headers());
    let now = Clock::system().now();
    let mut group = bench.benchmark_group("decision");
    for (name, route, tool) in [
        ("allowed by the first rule", 0, "get_note"),
        ("allowed by scope", 0, "delete_note"),
        ("denied", 0, "admin_reset"),
        ("allowed by an expression", 1, "delete_note"),
    ] {
        let policy = &fixture.config.routes[route].policy;
        let payload = message(&call(tool, 0));
        let allowed = policy.authorize(&principal, "bench", &payload, now).permit.is_some();
        assert_eq!(allowed, tool != "admin_reset", "{name}");
        group.bench_function(name, |b| {
            b.iter(|| policy.authorize(&principal, "bench", black_box(&payload), now));
        });
    }
    group.finish();
}

fn stream(bench: &mut Criterion) {
    let event = b"event: message\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":\
        {\"progressToken\":1,\"progress\":12,\"message\":\"on it\"}}\n\n";
    let events = event.repeat(1_000);
    let mut group = bench.benchmark_group("stream");
    group.throughput(Throughput::Elements(1_000));
    for (name, size) in [("an event a chunk", event.len()), ("16 KiB chunks", 16 * 1024)] {
        group.bench_function(name, |b| {
            b.iter_batched(
                || events.chunks(size).map(Bytes::copy_from_slice).collect::<Vec<_>>(),
                |chunks| {
                    let mut decoder = Decoder::new(1024 * 1024);
                    let mut seen = 0;
                    for chunk in chunks {
                        decoder.push(chunk);
                        while let Some(event) = decoder.next_event().expect("small events") {
                            black_box(event.into_raw());
                            seen += 1;
                        }
                    }
                    assert_eq!(seen, 1_000);
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn seal(bench: &mut Criterion) {
    let sealer = Sealer::new(&[]);
    let plain = [7; 96];
    let sealed = sealer.seal(Purpose::Session, &plain).expect("short enough");
    let mut group = bench.benchmark_group("seal");
    group.bench_function("seal", |b| b.iter(|| sealer.seal(Purpose::Session, black_box(&plain))));
    group.bench_function("open", |b| b.iter(|| sealer.open(Purpose::Session, black_box(&sealed))));
    group.finish();
}

/// Results of a server of the other era.
fn mapping(bench: &mut Criterion) {
    let facts = Facts {
        version: "2025-11-25".into(),
        capabilities: Bytes::from_static(b"{}"),
        server_info: Some(json!({"name": "notes", "version": "1.4.2"}).to_string().into()),
        instructions: None,
    };
    let call = json!({"content": [{"type": "text", "text": "x".repeat(1_900)}], "structuredContent": {"found": 3},
        "isError": false, "_meta": {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"}});
    let tools: Vec<_> = (0..128)
        .map(|number| {
            json!({"name": format!("tool_{number}"), "description": "Looks for what the words describe.",
            "inputSchema": {"type": "object", "properties": {"words": {"type": "string"}, "limit": {"type": "integer"}}},
            "outputSchema": {"type": "object", "properties": {"found": {"type": "integer"}}},
            "execution": {"taskSupport": "optional"}})
        })
        .collect();
    let mut group = bench.benchmark_group("mapping");
    for (name, method, result) in [
        ("2 KB call", "tools/call", call),
        ("128 tools", "tools/list", json!({"tools": tools})),
    ] {
        let legacy = Bytes::from(result.to_string());
        let modern = result_to_modern(method, &legacy, &facts).expect("a good result");
        group.throughput(Throughput::Bytes(legacy.len() as u64));
        group.bench_function(format!("{name} to a modern client"), |b| {
            b.iter(|| result_to_modern(method, black_box(&legacy), &facts).expect("a good result"));
        });
        group.bench_function(format!("{name} to a legacy client"), |b| {
            b.iter(|| result_to_legacy(method, black_box(&modern)).expect("a good result"));
        });
    }
    group.finish();
}

criterion_group!(functions, token, envelope, decision, stream, seal, mapping);
criterion_main!(functions);
