//! Answers to introspection (RFC 7662). Input: the body of an issuer's answer, sent with 200 over loopback; `ISSUER` stands for
//! the issuer.
//!
//! Oracle: whoever is let in has, by a second JSON reader, an active token with a subject and an end that isn't over, by this
//! issuer if by any, for this resource or, where it doesn't say, for the default audience, bound to nothing and no refresh or
//! ID token; an answer that is no object with a boolean `active` is the issuer's fault and never the token's; and no error shows
//! the client's secret.
#![no_main]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method};
use libfuzzer_sys::fuzz_target;
use portcullis::authn::{Authenticator, AuthnError, RouteAuth, Sender};
use portcullis::clock::Clock;
use portcullis::config::{ClaimPaths, ClientAuth, Identity, Introspection, KeySource};
use portcullis::policy::Roles;
use portcullis::secret::Secret;
use portcullis::session::Sealer;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

const CLIENT_SECRET: &str = "zebra-zebra-zebra";
const RESOURCE: &str = "https://r.example/mcp";
const NOW: u64 = 1_800_000_000;

/// What the issuer answers next.
static ANSWER: Mutex<Vec<u8>> = Mutex::new(Vec::new());
/// Each is asked about once: no answer comes from the cache.
static TOKENS: AtomicU64 = AtomicU64::new(0);
static SEALER: LazyLock<Sealer> = LazyLock::new(|| Sealer::new(&[]));

struct Gate {
    /// It has a port of its own each time.
    issuer: String,
    authenticator: Arc<Authenticator>,
    route: RouteAuth,
    runtime: Runtime,
}

static GATE: LazyLock<Gate> = LazyLock::new(|| {
    let issuer = issuer();
    let identity = Identity {
        name: "fuzz".into(),
        issuer: issuer.clone(),
        keys: KeySource::Introspection(Introspection {
            endpoint: Some(format!("{issuer}/introspect").parse().expect("a URL")),
            client_id: "gate".to_owned(),
            client_secret: Secret::new(CLIENT_SECRET),
            client_auth: ClientAuth::Basic,
            cache: Duration::ZERO,
            default_audiences: vec![RESOURCE.to_owned()],
        }),
        algorithms: Vec::new(),
        audiences: Vec::new(),
        claims: ClaimPaths::default(),
        id_tokens: false,
        ca: None,
        implies: Default::default(),
        scope_upgrade_endpoint: None,
        dpop: None,
        login: None,
    };
    let (roles, clock) = (Arc::new(Roles::default()), Clock::fixed(NOW));
    Gate {
        issuer,
        authenticator: Authenticator::new(&[Arc::new(identity)], roles, clock, Arc::new(|_| {})).expect("a gate"),
        route: RouteAuth {
            route: "r".into(),
            identities: vec!["fuzz".into()],
            anonymous: false,
            resource: RESOURCE.to_owned(),
        },
        runtime: Builder::new_current_thread().enable_all().build().expect("a runtime"),
    }
});

/// A server that answers everything with [`ANSWER`]; its URL.
fn issuer() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
    format!("http://{address}")
}

/// Ends when the other side does, whichever way.
fn serve(stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(&stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim().to_ascii_lowercase();
            if let Some(said) = line.strip_prefix("content-length:") {
                length = said.trim().parse().expect("a length");
            }
            if line.is_empty() {
                break;
            }
        }
        reader.read_exact(&mut vec![0; length])?;
        let answer = ANSWER.lock().expect("nobody panicked").clone();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", answer.len());
        (&stream).write_all(&[head.as_bytes(), &answer].concat())?;
    }
}

fuzz_target!(|answer: &[u8]| {
    let gate = &*GATE;
    let answer = match std::str::from_utf8(answer) {
        Ok(text) => text.replace("ISSUER", &gate.issuer).into_bytes(),
        Err(_) => answer.to_vec(),
    };
    ANSWER.lock().expect("nobody panicked").clone_from(&answer);
    let token = format!("Bearer t{}", TOKENS.fetch_add(1, Ordering::Relaxed));
    let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::try_from(token).expect("ASCII"))]);
    let sender = Sender {
        method: &Method::POST,
        target: RESOURCE,
        certificate: None,
        sealer: &SEALER,
    };
    let caller = gate.authenticator.authenticate(&gate.route, &headers, &sender);
    let caller = gate.runtime.block_on(caller);
    let read = serde_json::from_slice::<Value>(&answer).ok();
    let active = read.as_ref().and_then(|claims| claims.get("active")?.as_bool());
    let claims = match caller {
        Err(error) => {
            assert!(!format!("{error} {error:?} {:?}", gate.authenticator.state()).contains(CLIENT_SECRET));
            match error {
                // It may say the same name twice, too, which the second reader doesn't see.
                AuthnError::IssuerUnavailable { .. } => {}
                AuthnError::InvalidToken { .. } => assert!(active.is_some(), "{error}"),
                error => panic!("{error}"),
            }
            return;
        }
        Ok(caller) => {
            let claims = read.expect("only JSON is let in");
            assert!(claims["sub"] == *caller.principal.subject && !caller.principal.subject.is_empty());
            claims
        }
    };
    assert_eq!(active, Some(true));
    assert!(claims.get("iss").is_none_or(|issuer| *issuer == *gate.issuer));
    let audience = claims.get("aud").is_none_or(|aud| {
        let audiences = aud.as_array().map_or(std::slice::from_ref(aud), Vec::as_slice);
        audiences.iter().any(|audience| audience == RESOURCE)
    });
    assert!(audience);
    assert!(claims["exp"].as_f64().expect("a number") + 61.0 > NOW as f64);
    assert!(claims.get("cnf").is_none());
    for kind in ["token_type", "token_use", "typ"] {
        let kind = claims
            .get(kind)
            .map(|kind| kind.as_str().expect("a text").to_ascii_lowercase());
        assert!(!matches!(
            kind.as_deref(),
            Some("refresh_token" | "refresh" | "id" | "id_token" | "dpop" | "offline")
        ));
    }
});
