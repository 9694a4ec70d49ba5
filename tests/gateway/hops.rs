//! Ways to the gate: hosts that routes name, and proxies in front (issue 3 item 4).

use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt;

use super::gate::Gate;
use super::shot::Shot;
use super::upstream::Upstream;

const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
const PRM: &str = "/.well-known/oauth-protected-resource";

async fn get(gate: &Gate, host: &str, token: &str, path: &str) -> http::Response<hyper::body::Incoming> {
    let mut request = http::Request::get(format!("http://{}{path}", gate.running.address()))
        .header("host", host)
        .header("accept", "text/event-stream");
    if !token.is_empty() {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    gate.open(request.body(Default::default()).expect("a request")).await
}

async fn text(response: http::Response<hyper::body::Incoming>) -> String {
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    String::from_utf8(body.to_vec()).expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r46_one_path_on_three_hosts_is_three_routes() {
    let upstreams = [
        Upstream::tools(1).await,
        Upstream::tools(1).await,
        Upstream::tools(1).await,
    ];
    let [shared, wiki, notes] = &upstreams;
    let gate = Gate::with_yaml(&format!(
        "routes:\n  shared: {{path: /mcp, upstream: '{}'}}\n  wiki: {{path: /mcp, host: wiki.localhost, upstream: '{}'}}\n  \
         notes: {{path: /mcp, host: Notes.localhost, upstream: '{}'}}\n",
        shared.url(),
        wiki.url(),
        notes.url()
    ))
    .await;
    let port = gate.running.address().port();
    let hosts = [
        format!("127.0.0.1:{port}"),
        format!("wiki.localhost:{port}"),
        format!("notes.localhost:{port}"),
    ];
    for (at, (host, upstream)) in hosts.iter().zip(&upstreams).enumerate() {
        let resource = format!("http://{host}/mcp");
        let refused = get(&gate, host, "", "/mcp").await;
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(
            refused.headers()["www-authenticate"],
            format!("Bearer resource_metadata=\"http://{host}{PRM}/mcp\"")
        );
        // Each host has one route: its document stands at the root, too.
        for path in [&*format!("{PRM}/mcp"), PRM] {
            let document = text(get(&gate, host, "", path).await).await;
            assert!(
                document.contains(&format!("\"resource\":\"{resource}\"")),
                "{host}: {document}"
            );
        }
        let token = gate.issuer.mint("alice", &resource, &[], &[], Duration::from_secs(60));
        for (other, there) in hosts.iter().enumerate() {
            let expected = if at == other {
                StatusCode::OK
            } else {
                StatusCode::UNAUTHORIZED
            };
            let shot = Shot::post(&token, PING).to("/mcp").with("host", there);
            let answer = shot.fire(&gate).await.expect("an answer");
            assert_eq!(answer.status, expected, "{host} at {there}");
        }
        let seen = upstream.seen();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].headers["host"], upstream.address.to_string());
    }
    for (host, path, expected) in [
        ("other.localhost", "/mcp", StatusCode::MISDIRECTED_REQUEST),
        ("x.wiki.localhost", "/mcp", StatusCode::MISDIRECTED_REQUEST),
        ("WIKI.localhost", "/mcp", StatusCode::UNAUTHORIZED),
        ("wiki.localhost", "/other", StatusCode::NOT_FOUND),
    ] {
        assert_eq!(get(&gate, host, "", path).await.status(), expected, "{host}{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r05_the_endpoint_event_names_the_routes_host_behind_a_plain_hop() {
    let upstream = Upstream::sse().await;
    let gate = Gate::with_listen(
        "  plaintext: true\n  public_url: https://mcp.example.com\n  trusted_proxies: [127.0.0.0/8]\n",
        &format!(
            "routes:\n  wiki: {{path: /mcp, host: wiki.example.com, upstream: {{urls: ['{}'], transport: sse}}}}\n",
            upstream.url()
        ),
    )
    .await;
    let origin = "https://wiki.example.com";
    let refused = get(&gate, "wiki.example.com", "", "/mcp").await;
    assert_eq!(
        refused.headers()["www-authenticate"],
        format!("Bearer resource_metadata=\"{origin}{PRM}/mcp\"")
    );
    let document = text(get(&gate, "wiki.example.com", "", &format!("{PRM}/mcp")).await).await;
    assert!(
        document.contains(&format!("\"resource\":\"{origin}/mcp\"")),
        "{document}"
    );
    let resource = format!("{origin}/mcp");
    let token = gate.issuer.mint("alice", &resource, &[], &[], Duration::from_secs(60));
    let mut stream = get(&gate, "wiki.example.com", &token, "/mcp").await;
    let mut event = String::new();
    while !event.contains("event: endpoint") {
        let frame = stream.body_mut().frame().await.expect("the stream goes on");
        let data = frame.expect("a frame").into_data().expect("data");
        event.push_str(std::str::from_utf8(&data).expect("UTF-8"));
    }
    assert!(
        event.contains(&format!("data: {origin}/mcp/messages?session_id=")),
        "{event}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r06_forwarding_headers_of_a_trusted_peer_are_strict_and_of_others_nothing() {
    let upstream = Upstream::tools(1).await;
    let trusting = |networks: &str| {
        format!("  plaintext: true\n  public_url: https://mcp.example.com\n  trusted_proxies: [{networks}]\n")
    };
    let yaml = format!(
        "routes:\n  notes: {{path: /notes/mcp, upstream: '{}'}}\n",
        upstream.url()
    );
    let trusted = Gate::with_listen(&trusting("127.0.0.0/8"), &yaml).await;
    let strangers = Gate::with_listen(&trusting("192.0.2.0/24"), &yaml).await;
    let resource = "https://mcp.example.com/notes/mcp";
    for (name, value, expected) in [
        ("forwarded", "for=", StatusCode::BAD_REQUEST),
        ("forwarded", "for=192.0.2.1;for=192.0.2.2", StatusCode::BAD_REQUEST),
        ("x-forwarded-for", "192.0.2.256", StatusCode::BAD_REQUEST),
        ("x-forwarded-host", "a b", StatusCode::BAD_REQUEST),
        ("x-forwarded-host", "evil.example", StatusCode::MISDIRECTED_REQUEST),
        ("forwarded", "host=evil.example", StatusCode::MISDIRECTED_REQUEST),
    ] {
        for (gate, expected) in [(&trusted, expected), (&strangers, StatusCode::OK)] {
            let before = upstream.seen().len();
            let token = gate.issuer.mint("alice", resource, &[], &[], Duration::from_secs(60));
            let shot = Shot::post(&token, PING)
                .with("host", "mcp.example.com")
                .with(name, value);
            let answer = shot.fire(gate).await.expect("an answer");
            assert_eq!(answer.status, expected, "{name}: {value}");
            let seen = upstream.seen();
            assert_eq!(
                seen.len() - before,
                usize::from(expected == StatusCode::OK),
                "{name}: {value}"
            );
            for seen in &seen[before..] {
                assert!(!seen.headers.contains_key(name), "{name} was sent on");
            }
            assert!(!format!("{:?}", answer.headers).contains("evil"));
        }
    }
}
