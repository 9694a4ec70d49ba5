//! Issuers' metadata on the gateway's own origin.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use portcullis::cli::demo::issuer::DevelopmentIssuer;
use portcullis::clock::Clock;
use serde_json::json;

use crate::gate::{Answer, Gate};
use crate::upstream::Upstream;

const FORMS: [&str; 2] = [
    "/.well-known/oauth-authorization-server",
    "/.well-known/openid-configuration",
];

/// What a page of any origin asks, without a bearer.
fn request(gate: &Gate, method: Method, path: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(format!("{}{path}", gate.running.url()))
        .header("origin", "https://anywhere.example")
        .body(Full::default())
        .expect("a request")
}

async fn ask(gate: &Gate, method: Method, path: &str) -> Answer {
    let answer = gate.send(request(gate, method, path)).await;
    assert_eq!(answer.header("access-control-allow-origin"), "*", "{path}");
    answer
}

/// Routes by path and identities, all to the same server.
fn routes(upstream: &Upstream, routes: &[(&str, &str)]) -> String {
    let mut yaml = "routes:\n".to_owned();
    for (number, (path, vouching)) in routes.iter().enumerate() {
        yaml += &format!(
            "  route{number}:\n    path: {path}\n    upstream: {}\n    {vouching}\n",
            upstream.url()
        );
    }
    yaml
}

fn identity(name: &str, issuer: &str) -> String {
    format!("  {name}:\n    issuer: {issuer}\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r08_the_issuers_metadata_is_mirrored_where_one_issuer_fits() {
    let upstream = Upstream::tools(1).await;
    let corp = DevelopmentIssuer::start(Clock::system()).await.expect("an issuer");
    let other = DevelopmentIssuer::start(Clock::system()).await.expect("an issuer");
    let identities =
        identity("corp", corp.issuer()) + &identity("twin", corp.issuer()) + &identity("other", other.issuer());
    let open = ("/open/mcp", "anonymous: true");
    let one = ("/one/mcp", "identity: [corp]");
    let twins = ("/twins/mcp", "identity: [corp, twin]");
    let two = ("/two/mcp", "identity: [other]");
    let both = ("/both/mcp", "identity: [corp, other]");
    let top = ("/", "identity: [other]");
    let (corp, other, none) = (Some(corp.issuer()), Some(other.issuer()), None);
    for (configured, expected) in [
        (
            &[one, two, both][..],
            &[("/one/mcp", corp), ("/two/mcp", other), ("/both/mcp", none), ("", none)][..],
        ),
        (&[one, twins], &[("/one/mcp", corp), ("/twins/mcp", corp), ("", corp)]),
        (
            &[two],
            &[("/two/mcp", other), ("/two/mcp/", other), ("", other), ("/two", none)],
        ),
        (&[one, top], &[("/one/mcp", corp), ("", other)]),
    ] {
        let gate = Gate::with_setup("", Some(&identities), &routes(&upstream, configured)).await;
        for ((path, issuer), form) in expected.iter().flat_map(|expected| FORMS.map(|form| (expected, form))) {
            let path = format!("{form}{path}");
            if path.ends_with("/two") {
                // Nobody's path: not ours to open to every origin.
                let unknown = gate.send(request(&gate, Method::GET, &path)).await;
                assert_eq!(unknown.status, StatusCode::FORBIDDEN, "{path}");
                continue;
            }
            let answer = ask(&gate, Method::GET, &path).await;
            match issuer {
                Some(issuer) => {
                    assert_eq!(answer.status, StatusCode::OK, "{path}");
                    assert_eq!(answer.header("content-type"), "application/json");
                    assert_eq!(answer.header("cache-control"), "public, max-age=300");
                    assert_eq!(answer.json()["issuer"], *issuer, "{path}");
                    assert_eq!(
                        answer.json()["token_endpoint"],
                        format!("{issuer}/token"),
                        "the issuer's, never ours"
                    );
                }
                None => assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}"),
            }
        }
    }
    let gate = Gate::with_route(&upstream, "").await;
    for form in FORMS {
        let whole = ask(&gate, Method::GET, form).await;
        let head = ask(&gate, Method::HEAD, form).await;
        assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
        assert_eq!(head.header("content-length"), whole.body.len().to_string());
        let preflight = ask(&gate, Method::OPTIONS, form).await;
        assert_eq!(preflight.status, StatusCode::NO_CONTENT);
        assert_eq!(preflight.header("access-control-allow-methods"), "GET, HEAD, OPTIONS");
        let posted = ask(&gate, Method::POST, form).await;
        assert_eq!(posted.status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(posted.header("allow"), "GET, HEAD, OPTIONS");
    }
    let anonymous = Gate::with_setup("", None, &routes(&upstream, &[open, ("/one/mcp", "scopes: []")])).await;
    for form in FORMS {
        let of_all = ask(&anonymous, Method::GET, form).await;
        assert_eq!(
            of_all.json()["issuer"],
            anonymous.issuer.issuer(),
            "an open route has no issuer"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_that_cannot_be_used_is_503_502_or_404() {
    let upstream = Upstream::tools(1).await;
    for (status, body, expected) in [
        (StatusCode::INTERNAL_SERVER_ERROR, "", StatusCode::SERVICE_UNAVAILABLE),
        (StatusCode::OK, "<html>", StatusCode::BAD_GATEWAY),
        (
            StatusCode::OK,
            "{\"issuer\": \"https://evil.example\"}",
            StatusCode::BAD_GATEWAY,
        ),
        (StatusCode::NOT_FOUND, "", StatusCode::NOT_FOUND),
    ] {
        let issuer = Upstream::start(move |_| async move {
            let mut response = crate::upstream::status(status);
            *response.body_mut() = portcullis::edge::full(body);
            response
        })
        .await;
        let identities = identity("corp", &format!("http://{}", issuer.address));
        let yaml = routes(&upstream, &[("/notes/mcp", "scopes: []")]);
        let gate = Gate::with_setup("", Some(&identities), &yaml).await;
        for form in FORMS {
            let answer = ask(&gate, Method::GET, &format!("{form}/notes/mcp")).await;
            assert_eq!(answer.status, expected, "{status} {body}");
            let unavailable = expected == StatusCode::SERVICE_UNAVAILABLE;
            assert_eq!(answer.header("retry-after"), if unavailable { "10" } else { "" });
            assert!(
                !answer.body.windows(4).any(|part| part == b"evil"),
                "the issuer's words stay in the log"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_silent_issuer_holds_nobody_up() {
    let upstream = Upstream::tools(1).await;
    // Connections are taken by the system, and nobody ever reads them.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let identities = identity("corp", &format!("http://{}", silent.local_addr().expect("bound")));
    let yaml = routes(
        &upstream,
        &[("/notes/mcp", "scopes: []"), ("/open/mcp", "anonymous: true")],
    );
    let gate = Gate::with_setup("", Some(&identities), &yaml).await;
    let mut waiting = Box::pin(ask(&gate, Method::GET, FORMS[0]));
    let called = async {
        for _ in 0..20 {
            let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "tool_0"}});
            let mut request = gate.post("", &call);
            *request.uri_mut() = format!("{}/open/mcp", gate.running.url()).parse().expect("a URL");
            assert_eq!(gate.send(request).await.status, StatusCode::OK);
        }
    };
    tokio::select! {
        biased;
        answer = &mut waiting => panic!("there is nothing to answer: {answer:?}"),
        () = called => {}
    }
    let answer = tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .expect("bounded");
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.header("retry-after"), "10");
}
