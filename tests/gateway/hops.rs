//! Ways to the gate: hosts that routes name, and proxies in front (issue 3 item 4).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::Command;

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

/// A PROXY header, version 1, of a connection from there.
fn proxy_1(client: &str) -> Vec<u8> {
    let (family, to) = if client.contains(':') {
        ("TCP6", "::1")
    } else {
        ("TCP4", "127.0.0.1")
    };
    format!("PROXY {family} {client} {to} 4711 443\r\n").into_bytes()
}

/// The same, version 2.
fn proxy_2(client: &str) -> Vec<u8> {
    let ports = [0x12, 0x67, 0x01, 0xbb];
    let (family, addresses) = match client.parse().expect("an address") {
        IpAddr::V4(client) => (0x11, [client.octets(), [127, 0, 0, 1]].concat()),
        IpAddr::V6(client) => (0x21, [client.octets(), std::net::Ipv6Addr::LOCALHOST.octets()].concat()),
    };
    let length = u8::try_from(addresses.len() + ports.len()).expect("a short header");
    [
        &b"\r\n\r\n\0\r\nQUIT\n\x21"[..],
        &[family, 0, length],
        &addresses,
        &ports,
    ]
    .concat()
}

/// The `address` of each line of the audit.
async fn audited(gate: Gate) -> Vec<String> {
    let Gate { running, directory, .. } = gate;
    running.shutdown().await;
    let audit = std::fs::read_to_string(directory.path().join("audit.jsonl")).expect("an audit file");
    let address = |line: &str| {
        serde_json::from_str::<Value>(line).expect("JSON")["address"]
            .as_str()
            .map(str::to_owned)
    };
    audit.lines().map(|line| address(line).expect("an address")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r06_limits_and_audit_know_the_client_that_a_trusted_hop_names_and_no_other() {
    type Tell = fn(Shot, &str) -> Shot;
    let ways: [(&str, bool, Tell); 7] = [
        ("X-Forwarded-For", false, |shot, client| {
            shot.with("x-forwarded-for", client)
        }),
        ("what clients claim stands left of it", false, |shot, client| {
            shot.with("x-forwarded-for", &format!("198.51.100.7, {client}"))
        }),
        ("Forwarded", false, |shot, client| {
            let client = if client.contains(':') {
                format!("\"[{client}]\"")
            } else {
                client.to_owned()
            };
            shot.with("forwarded", &format!("for={client};proto=https"))
        }),
        ("PROXY 1", true, |shot, client| shot.after(proxy_1(client))),
        ("PROXY 2", true, |shot, client| shot.after(proxy_2(client))),
        ("a source that isn't trusted names another", true, |shot, client| {
            shot.after(proxy_2(client)).with("x-forwarded-for", "198.51.100.7")
        }),
        ("a trusted source names it", true, |shot, client| {
            shot.after(proxy_2("127.0.0.1")).with("x-forwarded-for", client)
        }),
    ];
    let upstream = Upstream::tools(0).await;
    let routes = format!(
        "routes:\n  notes: {{path: /notes/mcp, anonymous: true, upstream: '{}', limits: {{rate: 1/m}}}}\n",
        upstream.url()
    );
    let listen = |trusted: &str, proxy: bool| {
        format!(
            "  plaintext: true\n  public_url: https://mcp.example.com\n  trusted_proxies: [{trusted}]\n  proxy_protocol: {proxy}\n"
        )
    };
    let ping = || Shot::modern("", "ping", json!({})).with("host", "mcp.example.com");
    let clients = ["192.0.2.1", "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"];
    for (name, proxy, tell) in ways {
        let gate = Gate::with_listen(&listen("127.0.0.1", proxy), &routes).await;
        let mut got = Vec::new();
        for client in clients {
            let answer = tell(ping(), client).fire(&gate).await.expect("an answer");
            got.push(answer.status.as_u16());
        }
        // One bucket an address, and one a /64.
        assert_eq!(got, [200, 429, 200, 200, 429], "{name}");
        assert_eq!(audited(gate).await, clients, "{name}");

        let gate = Gate::with_listen(&listen("192.0.2.0/24", proxy), &routes).await;
        let before = upstream.seen().len();
        let mut got = Vec::new();
        for client in clients {
            got.push(
                tell(ping(), client)
                    .fire(&gate)
                    .await
                    .map_or(0, |answer| answer.status.as_u16()),
            );
        }
        let reached = upstream.seen().len() - before;
        if proxy {
            // To somebody who may not send one, it is a broken request, and no request at all takes from a rate.
            assert!(got.iter().all(|status| matches!(status, 0 | 400)), "{name}: {got:?}");
            assert_eq!(reached, 0, "{name}");
            assert_eq!(audited(gate).await, [""; 0], "{name}");
        } else {
            assert_eq!(got, [200, 429, 429, 429, 429], "{name}");
            assert_eq!(reached, 1, "{name}");
            assert_eq!(audited(gate).await, ["127.0.0.1"; 5], "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r06_streams_of_a_stranger_are_counted_by_the_address_that_a_trusted_hop_names() {
    let upstream = Upstream::sse().await;
    let routes = format!(
        "routes:\n  notes: {{path: /notes/mcp, anonymous: true, upstream: {{urls: ['{}'], transport: sse}}}}\n",
        upstream.url()
    );
    for (trusted, expected) in [("127.0.0.1", [200, 429, 200]), ("192.0.2.0/24", [200, 429, 429])] {
        let listen = format!(
            "  plaintext: true\n  public_url: https://mcp.example.com\n  trusted_proxies: [{trusted}]\n\
             \x20 limits: {{streams_per_principal: 1}}\n"
        );
        let gate = Gate::with_listen(&listen, &routes).await;
        let mut open = Vec::new();
        for client in ["192.0.2.1", "192.0.2.1", "192.0.2.2"] {
            let request = http::Request::get(format!("http://{}/notes/mcp", gate.running.address()))
                .header("host", "mcp.example.com")
                .header("accept", "text/event-stream")
                .header("x-forwarded-for", client);
            open.push(gate.open(request.body(Default::default()).expect("a request")).await);
        }
        let got: Vec<u16> = open.iter().map(|stream| stream.status().as_u16()).collect();
        assert_eq!(got, expected, "{trusted}");
    }
}

/// A connection from there that stays open, and the status of the one request over it; 0 when it was closed instead.
async fn connected(to: SocketAddr, from: Ipv4Addr, before: &[u8], client: &str) -> (TcpStream, u16) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind(SocketAddr::from((from, 0)))
        .expect("an address of this machine");
    let mut stream = socket.connect(to).await.expect("the gateway listens");
    let head = format!("GET {PRM}/notes/mcp HTTP/1.1\r\nhost: mcp.example.com\r\nx-forwarded-for: {client}\r\n\r\n");
    // It may be closed before it has been read.
    let _ = stream.write_all(&[before, head.as_bytes()].concat()).await;
    let mut status = [0; 12];
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut status)).await;
    let status = match read.expect("an answer or an end in time") {
        Ok(_) => std::str::from_utf8(&status[9..])
            .expect("ASCII")
            .parse()
            .expect("a status"),
        Err(_) => 0,
    };
    (stream, status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r06_connections_are_counted_by_peer_or_proxy_header_and_never_by_a_request_header() {
    const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
    let hop = Ipv4Addr::LOCALHOST;
    let stranger = Ipv4Addr::new(127, 0, 0, 9);
    let upstream = Upstream::tools(0).await;
    let routes = format!(
        "routes:\n  notes: {{path: /notes/mcp, upstream: '{}'}}\n",
        upstream.url()
    );
    let plain = |client| (vec![], client);
    let through = |client| (proxy_2(client), "198.51.100.7");
    for (name, proxy, from, connections, expected, refused) in [
        (
            "a trusted hop brings everybody",
            false,
            hop,
            [plain("192.0.2.1"), plain("192.0.2.1"), plain("192.0.2.2")],
            [200, 200, 200],
            0.0,
        ),
        (
            "a stranger brings nobody but itself",
            false,
            stranger,
            [plain("192.0.2.1"), plain("192.0.2.2"), plain("127.0.0.1")],
            [200, 0, 0],
            2.0,
        ),
        (
            "a PROXY header's source counts",
            true,
            hop,
            [through("192.0.2.1"), through("192.0.2.1"), through("192.0.2.2")],
            [200, 0, 200],
            1.0,
        ),
        (
            "a hop's own connections don't",
            true,
            hop,
            [LOCAL, LOCAL, LOCAL].map(|header| (header.to_vec(), "127.0.0.1")),
            [200, 200, 200],
            0.0,
        ),
    ] {
        let listen = format!(
            "  plaintext: true\n  public_url: https://mcp.example.com\n  trusted_proxies: [127.0.0.1]\n\
             \x20 proxy_protocol: {proxy}\n  limits: {{connections_per_address: 1}}\n"
        );
        let gate = Gate::with_listen(&listen, &routes).await;
        let mut open = Vec::new();
        for (before, client) in &connections {
            open.push(connected(gate.running.address(), from, before, client).await);
        }
        let got: Vec<u16> = open.iter().map(|(_, status)| *status).collect();
        assert_eq!(got, expected, "{name}");
        let counted = gate.metric("portcullis_rate_limited_total{route=\"_none\",kind=\"connections_per_address\"}");
        assert_eq!(counted.unwrap_or(0.0), refused, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r06_the_access_log_names_the_client_and_the_peer() {
    let upstream = Upstream::tools(0).await;
    for (trusted, client) in [("127.0.0.1", "192.0.2.1"), ("192.0.2.0/24", "127.0.0.1")] {
        let directory = tempfile::tempdir().expect("a directory");
        let text = format!(
            "listen: {{address: '127.0.0.1:0', plaintext: true, public_url: 'https://mcp.example.com', trusted_proxies: [{trusted}]}}\n\
             telemetry: {{log: {{format: json}}}}\n\
             routes:\n  notes: {{path: /notes/mcp, anonymous: true, upstream: '{}'}}\n",
            upstream.url()
        );
        std::fs::write(directory.path().join("portcullis.yaml"), text).expect("written");
        let mut child = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .arg("serve")
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary runs");
        let mut log = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut until = async |what: &str| -> Value {
            let reading = async {
                loop {
                    let line = log.next_line().await.expect("UTF-8").expect("it runs");
                    if line.contains(what) {
                        return serde_json::from_str(&line).expect("JSON");
                    }
                }
            };
            tokio::time::timeout(Duration::from_secs(20), reading)
                .await
                .expect("in time")
        };
        let listening = until("\"listening\"").await;
        let address = listening["address"].as_str().and_then(|address| address.parse().ok());
        let (stream, _) = connected(address.expect("an address"), Ipv4Addr::LOCALHOST, b"", "192.0.2.1").await;
        let access = until("portcullis::access").await;
        let peer = stream.local_addr().expect("an address").to_string();
        assert_eq!(
            (&access["client"], &access["peer"]),
            (&client.into(), &peer.into()),
            "{access}"
        );
    }
}
