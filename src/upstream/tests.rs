//! Who is asked, with what, and what happens when that fails: over real sockets.

use http::HeaderValue;
use http::header::{AUTHORIZATION, COOKIE, HOST};
use http_body_util::BodyExt;

use std::collections::VecDeque;
use std::sync::Mutex;

use futures_util::future::BoxFuture;

use super::testing::{OK, Reporting, Server, config, credential, get, permit};
use super::*;

fn ok(_head: &str) -> String {
    OK.to_owned()
}

async fn text(sent: Sent) -> String {
    let bytes = sent.response.into_body().collect().await.expect("a body").to_bytes();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_session_keeps_its_endpoint_when_the_list_is_reordered() {
    let (mut a, mut b) = (Server::start(ok).await, Server::start(ok).await);
    let before = Reporting::new(&config(&[a.url(), b.url()]));
    let sent = before.send(get()).await.expect("an answer");
    let id = EndpointId::from(sent.endpoint.as_str());
    let after = Reporting::new(&config(&[b.url(), a.url()]));
    for _ in 0..4 {
        let outbound = Outbound {
            endpoint: Some(id.clone()),
            ..get()
        };
        assert_eq!(after.send(outbound).await.expect("an answer").endpoint, id);
    }
    let heads = [
        std::iter::from_fn(|| a.heads.try_recv().ok()).count(),
        std::iter::from_fn(|| b.heads.try_recv().ok()).count(),
    ];
    assert!(heads == [5, 0] || heads == [0, 5], "{heads:?}");
}

#[tokio::test]
async fn a_sessions_endpoint_has_no_deputy() {
    let (dead, mut other) = (Server::start(ok).await, Server::start(ok).await);
    let urls = [dead.url(), other.url()];
    dead.kill().await;
    let route = Reporting::new(&config(&urls));
    let id = EndpointId::of(&urls[0].parse().expect("a URL"));
    let outbound = |endpoint| Outbound {
        endpoint: Some(endpoint),
        ..get()
    };
    let failed = route.send(outbound(id)).await.err();
    assert!(matches!(failed, Some(UpstreamError::Unavailable { .. })), "{failed:?}");
    let unknown = route.send(outbound(EndpointId::from("AAAAAAAAAAAA"))).await.err();
    assert!(matches!(unknown, Some(UpstreamError::UnknownEndpoint)), "{unknown:?}");
    assert!(other.heads.try_recv().is_err(), "nobody else was asked");
}

#[tokio::test]
async fn a_killed_endpoint_is_passed_over_and_comes_back() {
    let (doomed, mut other) = (Server::start(ok).await, Server::start(ok).await);
    let url = doomed.url();
    let route = Reporting::new(&config(std::slice::from_ref(&url)));
    assert_eq!(text(route.send(get()).await.expect("an answer")).await, "ok");
    let address = doomed.kill().await;
    // Its pooled connection is gone with it.
    let failed = route.send(get()).await.err();
    assert!(
        matches!(
            failed,
            Some(UpstreamError::Unavailable { .. } | UpstreamError::Protocol { .. })
        ),
        "{failed:?}"
    );
    let failed = route.send(get()).await.err();
    assert!(matches!(failed, Some(UpstreamError::Unavailable { .. })), "{failed:?}");
    let state = route.upstream.endpoints().remove(0);
    assert!(!state.healthy && state.last_error.is_some(), "{state:?}");
    // The only endpoint there is gets another try, however lately it failed.
    let _back = Server::at(address, ok).await;
    assert_eq!(text(route.send(get()).await.expect("an answer")).await, "ok");
    let state = route.upstream.endpoints().remove(0);
    assert!(state.healthy && state.last_error.is_none(), "{state:?}");
    let health: Vec<bool> = route
        .health
        .lock()
        .expect("no panic")
        .iter()
        .map(|(_, healthy)| *healthy)
        .collect();
    assert!(
        health.starts_with(&[false]) && health.ends_with(&[true]),
        "metrics follow: {health:?}"
    );
    assert!(other.heads.try_recv().is_err(), "a server of no route is asked nothing");
}

#[tokio::test]
async fn r46_host_is_the_endpoints_and_one_credential_leaves() {
    let mut server = Server::start(ok).await;
    let route = Reporting::new(&config(&[server.url()]));
    let mut headers = http::HeaderMap::new();
    for (name, value) in [
        (AUTHORIZATION, "Bearer the-callers"),
        (COOKIE, "session=the-callers"),
        (HOST, "mcp.example.com"),
        (http::HeaderName::from_static("x-api-key"), "the-callers"),
        (http::header::TRANSFER_ENCODING, "chunked"),
        (http::header::CONTENT_LENGTH, "7"),
    ] {
        headers.append(name, HeaderValue::from_static(value));
    }
    let outbound = Outbound {
        headers: &|| headers.clone(),
        ..get()
    };
    assert_eq!(text(route.send(outbound).await.expect("an answer")).await, "ok");
    let head = server.heads.recv().await.expect("a request").to_lowercase();
    let mut lines: Vec<&str> = head.trim_end().lines().skip(1).collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [format!("host: {}", server.address), "x-api-key: the-gates".to_owned()]
    );
}

#[tokio::test]
async fn trailers_dont_pass() {
    let server = Server::start(|_| {
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: set-cookie\r\n\r\n2\r\nok\r\n0\r\nset-cookie: a=b\r\n\r\n"
            .to_owned()
    })
    .await;
    let route = Reporting::new(&config(&[server.url()]));
    let body = route.send(get()).await.expect("an answer").response.into_body();
    let body = body.collect().await.expect("a body");
    assert_eq!(body.trailers(), None);
    assert_eq!(body.to_bytes(), "ok");
}

#[tokio::test]
async fn what_is_no_answer_is_the_upstreams_fault() {
    for answer in [
        "SSH-2.0-OpenSSH_9.6\r\n".to_owned(),
        format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(512 * 1024)),
        format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(500)),
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab".to_owned(),
    ] {
        let server = Server::start(move |_: &str| answer.clone()).await;
        let route = Reporting::new(&config(&[server.url()]));
        let failed = route.send(get()).await.err();
        assert!(matches!(failed, Some(UpstreamError::Protocol { .. })), "{failed:?}");
    }
}

#[tokio::test]
async fn a_redirect_is_relative_to_what_was_asked() {
    let mut server = Server::start(|head: &str| match head.split(' ').nth(1) {
        Some("/deep/er/messages?s=1") => {
            "HTTP/1.1 307 Temporary Redirect\r\nlocation: ../here?s=1\r\ncontent-length: 0\r\n\r\n".to_owned()
        }
        _ => OK.to_owned(),
    })
    .await;
    let route = Reporting::new(&config(&[server.url()]));
    let target = PathAndQuery::from_static("/deep/er/messages?s=1");
    let outbound = Outbound {
        target: Some(&target),
        ..get()
    };
    assert_eq!(text(route.send(outbound).await.expect("an answer")).await, "ok");
    server.heads.recv().await.expect("the first");
    let head = server.heads.recv().await.expect("the second");
    assert!(head.starts_with("GET /deep/here?s=1 "), "{head}");
    assert!(head.contains("x-api-key: the-gates"), "{head}");
}

#[tokio::test]
async fn silence_within_a_body_ends_it() {
    let server = Server::start(|_| "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nok".to_owned()).await;
    let mut config = config(&[server.url()]);
    config.idle_timeout = Duration::from_millis(50);
    let body = Reporting::new(&config)
        .send(get())
        .await
        .expect("an answer")
        .response
        .into_body();
    let error = body.collect().await.expect_err("it is not whole");
    assert!(error.is::<body::Idle>(), "{error}");
}

/// Hands out what it was given, one after the other, and remembers which scopes were wanted.
#[derive(Default)]
struct Renewals {
    left: Mutex<VecDeque<&'static str>>,
    wanted: Mutex<Vec<String>>,
}

impl Recover for Renewals {
    fn recover(&self) -> BoxFuture<'_, Result<Option<OutboundCredential>, CredentialError>> {
        let value = self.left.lock().expect("no panic").pop_front();
        let renewed = value.map(|value| OutboundCredential {
            header: Some((
                http::HeaderName::from_static("x-api-key"),
                HeaderValue::from_static(value),
            )),
            ..credential()
        });
        Box::pin(std::future::ready(Ok(renewed)))
    }

    fn wants(&self, scopes: Vec<String>) -> BoxFuture<'_, Result<(), CredentialError>> {
        self.wanted.lock().expect("no panic").extend(scopes);
        Box::pin(std::future::ready(Err(CredentialError::NoSubject)))
    }
}

async fn with_renewals(server: &Server, renewals: &[&'static str]) -> (Result<Sent, UpstreamError>, Arc<Renewals>) {
    let route = Reporting::new(&config(&[server.url()]));
    let recovery = Arc::new(Renewals {
        left: Mutex::new(renewals.iter().copied().collect()),
        ..Renewals::default()
    });
    let credential = OutboundCredential {
        recovery: Some(recovery.clone()),
        ..credential()
    };
    let outbound = Outbound {
        body: Bytes::new(),
        ..get()
    };
    (route.upstream.send(&permit(), &credential, outbound).await, recovery)
}

const REFUSED: &str = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn r27_r36_a_refused_request_is_sent_once_more_and_its_answer_passes() {
    let mut server = Server::start(|head: &str| match head.contains("x-api-key: new") {
        true => OK.to_owned(),
        false => REFUSED.to_owned(),
    })
    .await;
    let (sent, _) = with_renewals(&server, &["new", "unused"]).await;
    assert_eq!(text(sent.expect("an answer")).await, "ok");
    assert!(server.heads.recv().await.expect("the first").contains("the-gates"));
    assert!(
        server
            .heads
            .recv()
            .await
            .expect("the second")
            .contains("x-api-key: new")
    );
    assert!(server.heads.try_recv().is_err(), "no more than these");
}

#[tokio::test]
async fn r27_a_second_401_is_the_answer() {
    for (renewals, asked) in [(&["new", "another"][..], 2), (&[], 1)] {
        let mut server = Server::start(|_: &str| REFUSED.to_owned()).await;
        let (sent, _) = with_renewals(&server, renewals).await;
        let status = sent.expect("an answer").response.status();
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        let heads = std::iter::from_fn(|| server.heads.try_recv().ok()).count();
        assert_eq!(heads, asked);
    }
}

#[tokio::test]
async fn scopes_that_are_wanted_are_told_to_who_can_get_them() {
    let challenge = "HTTP/1.1 403 Forbidden\r\nwww-authenticate: Bearer error=\"insufficient_scope\", scope=\"a b\"\r\n\
                     content-length: 0\r\n\r\n";
    let server = Server::start(move |_: &str| challenge.to_owned()).await;
    let (sent, recovery) = with_renewals(&server, &["new"]).await;
    assert!(matches!(sent.err(), Some(UpstreamError::Credential(_))));
    assert_eq!(*recovery.wanted.lock().expect("no panic"), ["a", "b"]);
    let server = Server::start(|_: &str| "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n".to_owned()).await;
    let (sent, recovery) = with_renewals(&server, &["new"]).await;
    assert_eq!(sent.expect("an answer").response.status(), StatusCode::FORBIDDEN);
    assert!(recovery.wanted.lock().expect("no panic").is_empty());
}

fn breaking(urls: &[String], failures: u32, cooldown: Duration) -> config::Upstream {
    config::Upstream {
        breaker: Some(config::Breaker {
            failures: std::num::NonZeroU32::new(failures).expect("not zero"),
            cooldown,
        }),
        ..config(urls)
    }
}

fn state(route: &Reporting) -> Option<BreakerState> {
    route.upstream.endpoints()[0].breaker
}

fn answer(status: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n")
}

#[tokio::test]
async fn r25_refusals_and_errors_of_requests_open_no_breaker() {
    for (status, counts) in [
        ("200 OK", false),
        ("400 Bad Request", false),
        ("401 Unauthorized", false),
        ("403 Forbidden", false),
        ("404 Not Found", false),
        ("429 Too Many Requests", false),
        ("500 Internal Server Error", false),
        ("502 Bad Gateway", true),
        ("503 Service Unavailable", true),
        ("504 Gateway Timeout", true),
    ] {
        let mut server = Server::start(move |_: &str| answer(status)).await;
        let route = Reporting::new(&breaking(&[server.url()], 2, Duration::from_secs(60)));
        for _ in 0..2 {
            // The server's answer is the caller's, whatever it is.
            let sent = route.send(get()).await.expect("an answer");
            assert!(status.starts_with(sent.response.status().as_str()));
        }
        let third = route.send(get()).await;
        assert_eq!(
            matches!(third, Err(UpstreamError::Open { seconds: 60, .. })),
            counts,
            "{status}"
        );
        let asked = std::iter::from_fn(|| server.heads.try_recv().ok()).count();
        assert_eq!(asked, if counts { 2 } else { 3 }, "{status}");
    }
}

#[tokio::test]
async fn no_connection_no_head_and_half_a_head_open_it() {
    let dead = Server::start(ok).await;
    let gone = dead.url();
    dead.kill().await;
    let silent = Server::start(|_| String::new()).await;
    let broken = Server::start(|_| "SSH-2.0-OpenSSH_9.6\r\n".to_owned()).await;
    for url in [gone, silent.url(), broken.url()] {
        let mut config = breaking(&[url], 1, Duration::from_secs(60));
        config.response_timeout = Some(Duration::from_millis(50));
        let route = Reporting::new(&config);
        let failed = route.send(get()).await.err();
        assert!(failed.is_some());
        assert_eq!(state(&route), Some(BreakerState::Open), "{failed:?}");
    }
}

#[tokio::test]
async fn r25_a_caller_that_goes_away_counts_for_nothing_and_frees_the_probes_place() {
    let mut silent = Server::start(|_| String::new()).await;
    let route = Reporting::new(&breaking(&[silent.url()], 1, Duration::from_secs(60)));
    for _ in 0..3 {
        let mut asking = Box::pin(route.send(get()));
        tokio::select! {
            _ = &mut asking => panic!("nobody answers"),
            head = silent.heads.recv() => assert!(head.is_some()),
        }
    }
    assert_eq!(state(&route), Some(BreakerState::Closed));
}

#[tokio::test]
async fn the_others_serve_while_one_is_left_alone_and_its_sessions_wait() {
    let (mut ill, well) = (Server::start(|_| answer("503 Ill")).await, Server::start(ok).await);
    for balance in [
        config::Balance::RoundRobin,
        config::Balance::Random,
        config::Balance::Sticky,
    ] {
        let urls = [ill.url(), well.url()];
        let mut config = breaking(&urls, 1, Duration::from_secs(60));
        config.balance = balance;
        let route = Reporting::new(&config);
        let bound = || Outbound {
            endpoint: Some(EndpointId::of(&urls[0].parse().expect("a URL"))),
            ..get()
        };
        route.send(bound()).await.expect("an answer");
        assert_eq!(state(&route), Some(BreakerState::Open));
        while ill.heads.try_recv().is_ok() {}
        for key in 0..20 {
            let outbound = Outbound {
                sticky: Some(key),
                ..get()
            };
            assert_eq!(text(route.send(outbound).await.expect("an answer")).await, "ok");
        }
        let waiting = route.send(bound()).await.err();
        assert!(
            matches!(waiting, Some(UpstreamError::Open { seconds: 60, .. })),
            "{waiting:?}"
        );
        assert!(ill.heads.try_recv().is_err(), "{balance:?}: it was left alone");
    }
}
