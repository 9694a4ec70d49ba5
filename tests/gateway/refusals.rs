//! What an attacker gets, way by way: the exact status and error, and an upstream that saw nothing.

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::StatusCode;
use serde_json::{Value, json};

use super::gate::{Gate, call};
use super::shot::{Case, Shot, case, refuse};
use super::upstream::Upstream;

const TOKENS: usize = 33;
const ENVELOPE: usize = 34;
const AGREEMENT: usize = 18;
const ADDRESSING: usize = 25;
const SESSIONS: usize = 14;
const POLICY: usize = 28;
const WIRE: usize = 14;
const _: () = assert!(TOKENS + ENVELOPE + AGREEMENT + ADDRESSING + SESSIONS + POLICY + WIRE >= 60);

const PING: &str = r#"{"jsonrpc":"2.0","id":7,"method":"ping"}"#;
const RULED: &str = "    scopes: [mcp.use]
    tools:
      rules:
        - {allow: [echo, \"tool_*\"], to: [reader]}
        - {allow: [delete_note], to: [editor], scopes: [notes.write]}
        - {deny: [\"admin_*\"]}
    resources: {rules: [{allow: [\"note://public/*\"], to: [reader]}]}
    prompts: {rules: [{allow: [greet], to: [reader]}]}
";

/// Every kind of route, in front of one upstream.
async fn gate(upstream: &Upstream) -> Gate {
    let url = upstream.url();
    let route = |name: &str, rest: &str| format!("  {name}:\n    path: /{name}/mcp\n    upstream: {url}\n{rest}");
    let yaml = [
        "routes:\n".to_owned(),
        route("notes", &format!("{RULED}    limits: {{body: 64KiB}}\n")),
        route("other", ""),
        route("open", "    anonymous: true\n"),
        route("strict", &format!("{RULED}    denials: status\n")),
        route("band", &format!("{RULED}    denials: in_band\n")),
        format!("  old:\n    path: /old/mcp\n    upstream: {{urls: [\"{url}\"], transport: sse}}\n"),
    ];
    Gate::with_yaml(&yaml.concat()).await
}

fn token(gate: &Gate, subject: &str, path: &str, scopes: &[&str], roles: &[&str]) -> String {
    let audience = format!("{}{path}", gate.running.url());
    gate.issuer
        .mint(subject, &audience, scopes, roles, Duration::from_secs(600))
}

fn reader(gate: &Gate) -> String {
    token(gate, "alice", "/notes/mcp", &["mcp.use", "notes.read"], &[])
}

fn metadata(gate: &Gate, path: &str) -> String {
    format!(
        "resource_metadata=\"{}/.well-known/oauth-protected-resource{path}\"",
        gate.running.url()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_r41_r42_r45() {
    let upstream = Upstream::tools(1).await;
    let gate = gate(&upstream).await;
    let now = gate.clock.now();
    let good = json!({"iss": gate.issuer.issuer(), "sub": "alice", "aud": gate.url(), "scope": "mcp.use notes.read",
        "iat": now - 600, "exp": now + 600});
    let claims = |key: &str, value: Value| {
        let mut claims = good.clone();
        if value.is_null() {
            claims.as_object_mut().expect("claims").remove(key);
        } else {
            claims[key] = value;
        }
        gate.issuer.mint_claims(&claims)
    };
    let kid = gate.issuer.current_kid();
    let header = |more: Value| {
        let mut header = json!({"alg": "ES256", "typ": "at+jwt", "kid": kid});
        for (key, value) in more.as_object().expect("an object") {
            header[key] = value.clone();
        }
        gate.issuer.sign(&header, &good)
    };
    let whole = gate.issuer.mint_claims(&good);
    let parts: Vec<&str> = whole.split('.').collect();
    let none = format!(
        "{}.{}.",
        URL_SAFE_NO_PAD.encode(json!({"alg": "none", "typ": "JWT"}).to_string()),
        parts[1]
    );
    let key = &gate.issuer.jwks()["keys"][0];
    let mut point = vec![4];
    for half in ["x", "y"] {
        point.extend(
            URL_SAFE_NO_PAD
                .decode(key[half].as_str().expect("text"))
                .expect("base64url"),
        );
    }
    let confused = {
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "typ": "JWT", "kid": kid}).to_string()),
            parts[1]
        );
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &point), signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
    };
    let doubled = {
        let text = good
            .to_string()
            .replacen('{', "{\"aud\":\"https://elsewhere.example\",", 1);
        format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode(text), parts[2])
    };
    let raised = {
        let text = good.to_string().replace("notes.read", "notes.write");
        format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode(text), parts[2])
    };
    let stranger = {
        let other = portcullis::cli::demo::issuer::DevelopmentIssuer::start(gate.clock.clone())
            .await
            .expect("an issuer");
        other.mint_claims(&good)
    };
    let prm = metadata(&gate, "/notes/mcp");
    let scope = "scope=\"mcp.use\"";
    let missing = Shot::post("", PING).fire(&gate).await.expect("an answer");
    let tail = missing
        .header("www-authenticate")
        .strip_prefix("Bearer ")
        .expect("a challenge")
        .to_owned();
    assert_eq!(tail, format!("{prm}, {scope}"));
    let invalid =
        |description: &str| format!("Bearer error=\"invalid_token\", error_description=\"{description}\", {tail}");
    let refused = |name: &str, token: &str, description: &str| {
        case(name, Shot::post(token, PING), 401, 40_100).header("www-authenticate", invalid(description))
    };
    let expired = jiff::Timestamp::from_second(i64::try_from(now - 61).expect("a time")).expect("a time");
    let plain = |name: &str, value: &str| {
        case(name, Shot::post("", PING).with("authorization", value), 401, 40_100)
            .header("www-authenticate", format!("Bearer {tail}"))
    };
    let cases = vec![
        case("no token", Shot::post("", PING), 401, 40_100).header("www-authenticate", format!("Bearer {tail}")),
        refused(
            "r45 expired 61 s ago",
            &claims("exp", json!(now - 61)),
            &format!("token expired at {expired}"),
        ),
        refused("no exp", &claims("exp", Value::Null), "invalid token"),
        refused("exp as text", &claims("exp", json!("never")), "invalid token"),
        refused("nbf to come", &claims("nbf", json!(now + 120)), "invalid token"),
        refused("r42 no aud", &claims("aud", Value::Null), "invalid audience"),
        refused(
            "wrong aud",
            &claims("aud", json!("https://elsewhere.example/mcp")),
            "invalid audience",
        ),
        refused(
            "aud of a sibling route",
            &claims("aud", json!(format!("{}/other/mcp", gate.running.url()))),
            "invalid audience",
        ),
        refused(
            "aud with a slash more",
            &claims("aud", json!(format!("{}/", gate.url()))),
            "invalid audience",
        ),
        refused("empty aud list", &claims("aud", json!([])), "invalid audience"),
        refused(
            "wrong iss",
            &claims("iss", json!("https://evil.example")),
            "invalid issuer",
        ),
        refused(
            "iss with a slash more",
            &claims("iss", json!(format!("{}/", gate.issuer.issuer()))),
            "invalid issuer",
        ),
        refused("no sub", &claims("sub", Value::Null), "invalid token"),
        refused("empty sub", &claims("sub", json!("")), "invalid token"),
        refused("cnf", &claims("cnf", json!({"jkt": "abc"})), "invalid token"),
        refused("r45 alg none", &none, "invalid token"),
        refused(
            "alg of another family",
            &header(json!({"alg": "RS256"})),
            "invalid token",
        ),
        refused("r45 HS256 with the public key", &confused, "invalid token"),
        refused(
            "r45 unknown crit",
            &header(json!({"crit": ["b64"], "b64": false})),
            "invalid token",
        ),
        refused(
            "typ of another token",
            &header(json!({"typ": "dpop+jwt"})),
            "invalid token",
        ),
        refused(
            "r45 unknown kid",
            &header(json!({"kid": "somebody-else"})),
            "invalid token",
        ),
        refused(
            "r45 signed by another issuer under a known kid",
            &stranger,
            "invalid token",
        ),
        refused("r41 claims changed after signing", &raised, "invalid token"),
        refused("duplicate claims", &doubled, "invalid token"),
        refused("two parts", &format!("{}.{}", parts[0], parts[1]), "invalid token"),
        refused("no JWT at all", "abc", "invalid token"),
        plain("Basic", "Basic YTpi"),
        plain("no token after the scheme", "Bearer"),
        plain("two tokens in one header", &format!("Bearer {whole}, Bearer {whole}")),
        plain("a tab for a space", &format!("Bearer\t{whole}")),
        case(
            "a token in the query",
            Shot::post("", PING).to(&format!("/notes/mcp?access_token={whole}")),
            401,
            40_100,
        )
        .header("www-authenticate", format!("Bearer {tail}")),
        case(
            "a bad token on an anonymous route",
            Shot::post("abc", PING).to("/open/mcp"),
            401,
            40_100,
        ),
        case(
            "a sibling's token on an anonymous route",
            Shot::post(&whole, PING).to("/open/mcp"),
            401,
            40_100,
        ),
    ];
    refuse(&gate, &upstream, cases, TOKENS).await;

    // The other side of it: what must not be refused.
    let lower = Shot::post("", PING).with("authorization", &format!("bearer {whole}"));
    let array = claims("aud", json!(["https://elsewhere.example", gate.url()]));
    for (name, shot) in [
        ("lower case", lower),
        ("aud array", Shot::post(&array, PING)),
        ("open", Shot::post("", PING).to("/open/mcp")),
    ] {
        assert_eq!(
            shot.fire(&gate).await.map(|answer| answer.status),
            Some(StatusCode::OK),
            "{name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r43_an_unreachable_issuer_is_not_the_tokens_fault() {
    let upstream = Upstream::tools(1).await;
    let closed = {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        socket.local_addr().expect("an address")
    };
    let yaml = format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {}\n",
        upstream.url()
    );
    let gate = Gate::with_setup("", Some(&format!("  corp:\n    issuer: http://{closed}\n")), &yaml).await;
    let now = gate.clock.now();
    let claims = json!({"iss": format!("http://{closed}"), "sub": "alice", "aud": gate.url(), "exp": now + 60});
    let cases = vec![
        case(
            "issuer down",
            Shot::post(&gate.issuer.mint_claims(&claims), PING),
            503,
            50_300,
        )
        .header("www-authenticate", "")
        .header("retry-after", "10"),
        case("issuer down, no token", Shot::post("", PING), 401, 40_100),
    ];
    refuse(&gate, &upstream, cases, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envelope_r49() {
    let upstream = Upstream::tools(1).await;
    let gate = gate(&upstream).await;
    let token = reader(&gate);
    let post = |body: &str| Shot::post(&token, body);
    let deep = |depth: usize| {
        format!(
            r#"{{"jsonrpc":"2.0","id":7,"method":"ping","params":{{"a":{}{}}}}}"#,
            "[".repeat(depth - 2),
            "]".repeat(depth - 2)
        )
    };
    let batch = |count: usize| {
        let members: Vec<Value> = (0..count)
            .map(|id| json!({"jsonrpc": "2.0", "id": id, "method": "ping"}))
            .collect();
        Value::from(members).to_string()
    };
    let large = format!(
        r#"{{"jsonrpc":"2.0","id":7,"method":"ping","params":{{"a":"{}"}}}}"#,
        "x".repeat(70_000)
    );
    let chunked = format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len());
    let mut broken = PING.as_bytes().to_vec();
    broken[3] = 0xff;
    let dup = |name: &str, body: &str| case(format!("r49 {name}"), post(body), 400, -32_700);
    let cases = vec![
        dup(
            "method twice",
            r#"{"jsonrpc":"2.0","id":7,"method":"tools/list","method":"tools/call"}"#,
        ),
        dup(
            "method twice, escaped",
            r#"{"jsonrpc":"2.0","id":7,"method":"tools/list","m\u0065thod":"tools/call"}"#,
        ),
        dup(
            "name twice",
            r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","name":"admin_reset"}}"#,
        ),
        dup(
            "params twice",
            r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo"},"params":{"name":"admin_reset"}}"#,
        ),
        dup("id twice", r#"{"jsonrpc":"2.0","id":7,"id":8,"method":"ping"}"#),
        dup(
            "_meta twice inside",
            r#"{"jsonrpc":"2.0","id":7,"method":"ping","params":{"_meta":{"a":1,"a":2}}}"#,
        ),
        case("truncated", post(&PING[..PING.len() - 1]), 400, -32_700),
        case("trailing garbage", post(&format!("{PING}x")), 400, -32_700),
        case("two messages", post(&format!("{PING}{PING}")), 400, -32_700),
        case("empty", post(""), 400, -32_700),
        case("not UTF-8", post("").body(broken), 400, -32_700),
        case("a byte order mark", post(&format!("\u{feff}{PING}")), 400, -32_700),
        case("depth 129", post(&deep(129)), 400, -32_700),
        case(
            "null id",
            post(r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#),
            400,
            -32_600,
        ),
        case(
            "id of fractions",
            post(r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#),
            400,
            -32_600,
        ),
        case(
            "id as object",
            post(r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#),
            400,
            -32_600,
        ),
        case(
            "jsonrpc 1.0",
            post(r#"{"jsonrpc":"1.0","id":7,"method":"ping"}"#),
            400,
            -32_600,
        ),
        case("no jsonrpc", post(r#"{"id":7,"method":"ping"}"#), 400, -32_600),
        case(
            "method as number",
            post(r#"{"jsonrpc":"2.0","id":7,"method":5}"#),
            400,
            -32_600,
        ),
        case(
            "a request and an answer",
            post(r#"{"jsonrpc":"2.0","id":7,"method":"ping","result":{}}"#),
            400,
            -32_600,
        ),
        case("a string", post("\"ping\""), 400, -32_600),
        case(
            "name as list",
            post(r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":["echo"]}}"#),
            400,
            -32_600,
        ),
        case("65 members", post(&batch(65)), 400, -32_600),
        case("no members", post("[]"), 400, -32_600),
        case(
            "a batch in a later revision",
            post(&batch(2)).with("mcp-protocol-version", "2025-06-18"),
            400,
            -32_600,
        ),
        case(
            "a batch with one id twice",
            post(&format!("[{PING},{PING}]")),
            400,
            -32_600,
        ),
        case(
            "a batch with one id in two spellings",
            post(
                "[{\"jsonrpc\":\"2.0\",\"id\":\"a\",\"method\":\"ping\"},\
                 {\"jsonrpc\":\"2.0\",\"id\":\"\\u0061\",\"method\":\"ping\"}]",
            ),
            400,
            -32_600,
        ),
        case(
            "a batch with a broken member",
            post(&format!("[{PING},5]")),
            400,
            -32_600,
        ),
        case("too large, announced", post(&large), 413, 41_300),
        case(
            "too large, chunked",
            post("").body(chunked).with("transfer-encoding", "chunked"),
            413,
            41_300,
        ),
        case("gzip", post(PING).with("content-encoding", "gzip"), 415, 41_500),
        case("text/plain", post(PING).set("content-type", "text/plain"), 415, 41_500),
        case(
            "a form",
            post(PING).set("content-type", "application/x-www-form-urlencoded"),
            415,
            41_500,
        ),
        case("no content type", post(PING).without("content-type"), 415, 41_500),
    ];
    refuse(&gate, &upstream, cases, ENVELOPE).await;
    let allowed = post(&deep(128)).fire(&gate).await.expect("an answer");
    // The mock's own parser stops before that; what counts is that the gate let it through.
    assert!(allowed.status.is_success(), "depth 128 is allowed: {allowed:?}");
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agreement_r49() {
    let upstream = Upstream::tools(1).await;
    let gate = gate(&upstream).await;
    let token = reader(&gate);
    let echo = Shot::modern(&token, "tools/call", json!({"name": "echo"}));
    let base64 = |text: &str| format!("=?base64?{}?=", STANDARD.encode(text));
    let with_meta = |meta: Value| {
        let mut body = call("echo");
        body["params"]["_meta"] = meta;
        echo.clone().body(body.to_string())
    };
    let mismatch = |name: &str, shot: Shot| case(name, shot, 400, -32_020);
    let cases = vec![
        mismatch("r49 Mcp-Name of another tool", echo.clone().set("mcp-name", "tool_0")),
        mismatch(
            "r49 Mcp-Name of another tool, base64",
            echo.clone().set("mcp-name", &base64("tool_0")),
        ),
        mismatch(
            "Mcp-Name that is no base64",
            echo.clone().set("mcp-name", "=?base64?!!?="),
        ),
        mismatch("no Mcp-Name", echo.clone().without("mcp-name")),
        mismatch("Mcp-Name in another case", echo.clone().set("mcp-name", "Echo")),
        mismatch(
            "Mcp-Method of another method",
            echo.clone().set("mcp-method", "tools/list"),
        ),
        mismatch("no Mcp-Method", echo.clone().without("mcp-method")),
        mismatch("no version header", echo.clone().without("mcp-protocol-version")),
        mismatch(
            "an older version header",
            echo.clone().set("mcp-protocol-version", "2025-11-25"),
        ),
        mismatch(
            "a later version header",
            echo.clone().set("mcp-protocol-version", "2027-01-01"),
        ),
        mismatch(
            "a version that is none",
            echo.clone().set("mcp-protocol-version", "latest"),
        ),
        case(
            "a version that is none, in both",
            with_meta(json!({
                "io.modelcontextprotocol/protocolVersion": "v9",
                "io.modelcontextprotocol/clientCapabilities": {},
            }))
            .set("mcp-protocol-version", "v9"),
            400,
            -32_022,
        ),
        case(
            "a method that the revision removed",
            Shot::modern(&token, "resources/subscribe", json!({"uri": "memo://greeting"})),
            404,
            -32_601,
        ),
        mismatch(
            "a modern answer",
            echo.clone().body(r#"{"jsonrpc":"2.0","id":7,"result":{}}"#),
        ),
        case("no _meta", echo.clone().body(call("echo").to_string()), 400, -32_602),
        case(
            "no capabilities",
            with_meta(json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28"})),
            400,
            -32_602,
        ),
        case("Mcp-Name twice", echo.clone().with("mcp-name", "echo"), 400, -32_600),
        case(
            "Mcp-Method twice",
            echo.clone().with("mcp-method", "tools/call"),
            400,
            -32_600,
        ),
    ];
    refuse(&gate, &upstream, cases, AGREEMENT).await;
    let encoded = echo
        .set("mcp-name", &base64("echo"))
        .fire(&gate)
        .await
        .expect("an answer");
    assert_eq!(encoded.status, StatusCode::OK, "the base64 form is a form");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addressing_r06() {
    let upstream = Upstream::tools(1).await;
    let gate = gate(&upstream).await;
    let token = reader(&gate);
    let ping = Shot::post(&token, PING);
    let port = gate.running.address().port();
    let lost = |target: &str| case(format!("path {target}"), ping.clone().to(target), 404, 40_400);
    let host = |name: &str, shot: Shot| case(name, shot, 421, 42_100);
    let evil = ping.clone().with("origin", "https://evil.example");
    let old = token_of_old(&gate);
    let cases: Vec<Case> = vec![
        host("a forged Host", ping.clone().with("host", "evil.example")),
        host(
            "a forged Host with our port",
            ping.clone().with("host", &format!("evil.example:{port}")),
        ),
        host(
            "our host as userinfo",
            ping.clone().with("host", "127.0.0.1@evil.example"),
        ),
        host(
            "userinfo before our host",
            ping.clone().with("host", &format!("evil.example@127.0.0.1:{port}")),
        ),
        host(
            "our host as a prefix",
            ping.clone().with("host", "127.0.0.1.evil.example"),
        ),
        host("an empty Host", ping.clone().with("host", "")),
        host("a forged target", ping.clone().to("http://evil.example/notes/mcp")),
        host(
            "an honest target beside a forged Host",
            ping.clone()
                .to(&format!("http://127.0.0.1:{port}/notes/mcp"))
                .with("host", "evil.example"),
        ),
        case(
            "Host twice",
            ping.clone()
                .with("host", &format!("127.0.0.1:{port}"))
                .with("host", "evil.example"),
            400,
            -32_600,
        ),
        case(
            "Authorization twice",
            ping.clone().with("authorization", "Bearer abc"),
            400,
            -32_600,
        ),
        case(
            "Content-Type twice",
            ping.clone().with("content-type", "text/plain"),
            400,
            -32_600,
        ),
        case("a foreign origin", evil.clone(), 403, 40_302).header("access-control-allow-origin", ""),
        case("origin null", ping.clone().with("origin", "null"), 403, 40_302),
        case(
            "an origin that ours begins",
            ping.clone().with("origin", "https://app.example.evil.example"),
            403,
            40_302,
        ),
        case(
            "a foreign preflight",
            evil.method("OPTIONS").with("access-control-request-method", "POST"),
            403,
            40_302,
        ),
        case(
            "unauthorized from our page",
            Shot::post("", PING).with("origin", "https://app.example"),
            401,
            40_100,
        )
        .header("access-control-allow-origin", "https://app.example")
        .header(
            "access-control-expose-headers",
            "mcp-session-id, www-authenticate, dpop-nonce, x-request-id",
        ),
        lost("/"),
        lost("/notes//mcp"),
        lost("/notes/mcp/../mcp"),
        lost("/notes/%6dcp"),
        lost("/NOTES/mcp"),
        case("PUT", ping.clone().method("PUT"), 405, 40_500).header("allow", "GET, POST, DELETE"),
        case("TRACE", ping.clone().method("TRACE"), 405, 40_500).header("allow", "GET, POST, DELETE"),
        case(
            "POST without a session on HTTP+SSE",
            Shot::post(&old, PING).to("/old/mcp"),
            404,
            40_400,
        ),
        case(
            "GET on messages",
            Shot::post(&old, "").method("GET").to("/old/mcp/messages?session_id=x"),
            404,
            40_400,
        ),
    ];
    refuse(&gate, &upstream, cases, ADDRESSING).await;

    // Preflight comes before authentication, and asks nobody.
    let preflight = Shot::post("", "")
        .method("OPTIONS")
        .with("origin", "https://app.example")
        .with("access-control-request-method", "POST")
        .fire(&gate)
        .await
        .expect("an answer");
    assert_eq!(preflight.status, StatusCode::NO_CONTENT);
    assert_eq!(preflight.header("access-control-allow-origin"), "https://app.example");
    // r06: nobody is trusted, so nobody's X-Forwarded-Host is believed.
    let forwarded = Shot::post("", PING)
        .with("x-forwarded-host", "evil.example")
        .with("forwarded", "host=evil.example");
    let forwarded = forwarded.fire(&gate).await.expect("an answer");
    assert_eq!(forwarded.status, StatusCode::UNAUTHORIZED);
    assert!(!format!("{forwarded:?}").contains("evil"), "{forwarded:?}");
    assert!(upstream.seen().is_empty());
}

fn token_of_old(gate: &Gate) -> String {
    token(gate, "alice", "/old/mcp", &[], &[])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions() {
    let upstream = Upstream::tools(1).await;
    let gate = gate(&upstream).await;
    let token = token(&gate, "alice", "/notes/mcp", &["mcp.use", "notes.read"], &[]);
    let begin = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-11-25",
        "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}});
    let begun = gate.legacy(&token, &begin).await;
    let sealed = begun.header("mcp-session-id").to_owned();
    assert!(sealed.len() > 40 && !sealed.contains("upstream"), "{sealed}");
    let flipped = |at: usize| {
        let mut bytes = sealed.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        String::from_utf8(bytes).expect("text")
    };
    let bob = self::token(&gate, "bob", "/notes/mcp", &["mcp.use", "notes.read"], &[]);
    let other = self::token(&gate, "alice", "/other/mcp", &[], &[]);
    let with = |token: &str, session: &str| Shot::post(token, PING).with("mcp-session-id", session);
    let gone = |name: &str, shot: Shot| case(name, shot, 404, 40_400);
    let old = token_of_old(&gate);
    let messages = |query: &str| Shot::post(&old, PING).to(&format!("/old/mcp/messages{query}"));
    let cases = vec![
        // It vouches for nobody.
        case("one's own, without a token", with("", &sealed), 401, 40_100),
        case(
            "GET with one's own, without a token",
            with("", &sealed).method("GET").body(""),
            401,
            40_100,
        ),
        gone("unknown", with(&token, "abc")),
        gone("the upstream's own", with(&token, "upstream-session-1")),
        gone("first character changed", with(&token, &flipped(0))),
        gone("middle changed", with(&token, &flipped(sealed.len() / 2))),
        gone("cut", with(&token, &sealed[..sealed.len() - 2])),
        gone("over 1024 characters", with(&token, &"A".repeat(1025))),
        gone("another principal's", with(&bob, &sealed)),
        gone("another route's", with(&other, &sealed).to("/other/mcp")),
        gone(
            "GET with a forged one",
            with(&token, &flipped(5)).method("GET").body(""),
        ),
        gone("DELETE with another's", with(&bob, &sealed).method("DELETE").body("")),
        gone("messages without a stream", messages("")),
        gone(
            "messages with a session for a stream",
            messages(&format!("?session_id={sealed}")),
        ),
    ];
    refuse(&gate, &upstream, cases, SESSIONS).await;
    let own = with(&token, &sealed).fire(&gate).await.expect("an answer");
    assert_eq!(own.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy() {
    let upstream = Upstream::tools(1).await;
    let gate = gate(&upstream).await;
    let reader = reader(&gate);
    let editor = token(&gate, "erin", "/notes/mcp", &["mcp.use"], &["notes-editor"]);
    let unscoped = token(&gate, "alice", "/notes/mcp", &["notes.read"], &[]);
    let modern = |method: &str, params: Value| Shot::modern(&reader, method, params);
    let no = |name: &str, shot: Shot| case(name, shot, 403, 40_300).header("www-authenticate", "");
    let prm = metadata(&gate, "/notes/mcp");
    let at = |path: &str, body: &Value| {
        let token = token(&gate, "alice", path, &["mcp.use", "notes.read"], &[]);
        Shot::post(&token, body.to_string()).to(path)
    };
    let step_up = |scopes: &str| format!("Bearer error=\"insufficient_scope\", {prm}, scope=\"{scopes}\"");
    let evil = json!({"jsonrpc": "2.0", "method": "notifications/evil"});
    let mut second = call("admin_reset");
    second["id"] = json!(8);
    let batch = json!([call("delete_note"), second]);
    let cases = vec![
        no("a denied tool", modern("tools/call", json!({"name": "admin_reset"}))),
        no(
            "a tool for another role",
            modern("tools/call", json!({"name": "delete_note"})),
        ),
        no("a tool nobody knows", modern("tools/call", json!({"name": "nothing"}))),
        no("a tool in another case", modern("tools/call", json!({"name": "ECHO"}))),
        case(
            "a tool with a space more",
            Shot::post(&reader, call("admin_reset ").to_string()),
            200,
            40_300,
        ),
        case(
            "legacy, auto",
            Shot::post(&reader, call("admin_reset").to_string()),
            200,
            40_300,
        ),
        case("legacy, status", at("/strict/mcp", &call("admin_reset")), 403, 40_300),
        case("legacy, in band", at("/band/mcp", &call("admin_reset")), 200, 0),
        case("all of a batch", Shot::post(&reader, batch.to_string()), 403, 40_300),
        case(
            "scope of the rule",
            Shot::modern(&editor, "tools/call", json!({"name": "delete_note"})),
            403,
            40_301,
        )
        .header("www-authenticate", step_up("mcp.use notes.write")),
        case(
            "scope of the rule, legacy",
            Shot::post(&editor, call("delete_note").to_string()),
            403,
            40_301,
        )
        .header("www-authenticate", step_up("mcp.use notes.write")),
        case(
            "scope of the route",
            Shot::modern(&unscoped, "tools/call", json!({"name": "echo"})),
            403,
            40_301,
        )
        .header("www-authenticate", step_up("mcp.use")),
        case(
            "scope of the route, for a list",
            Shot::modern(&unscoped, "tools/list", json!({})),
            403,
            40_301,
        )
        .header("www-authenticate", step_up("mcp.use")),
        case(
            "scope of the route, for a ping",
            Shot::post(&unscoped, PING),
            403,
            40_301,
        )
        .header("www-authenticate", step_up("mcp.use")),
        no("an unknown method", modern("vendor/secret", json!({}))),
        no("a method in another case", modern("Tools/call", json!({}))),
        no("tasks/list", modern("tasks/list", json!({}))),
        no(
            "a hidden resource",
            modern("resources/read", json!({"uri": "note://private/1"})),
        ),
        no(
            "a hidden resource by dot segments",
            modern("resources/read", json!({"uri": "note://public/../private/1"})),
        ),
        no(
            "by encoded dot segments",
            modern("resources/read", json!({"uri": "note://public/%2e%2e/private/1"})),
        ),
        case(
            "subscribe",
            Shot::post(
                &reader,
                r#"{"jsonrpc":"2.0","id":7,"method":"resources/subscribe","params":{"uri":"note://private/1"}}"#,
            ),
            200,
            40_300,
        ),
        no(
            "listen",
            modern(
                "subscriptions/listen",
                json!({"notifications": {"resourceSubscriptions": ["note://public/1", "note://private/1"]}}),
            ),
        ),
        no("a hidden prompt", modern("prompts/get", json!({"name": "admin"}))),
        no(
            "completion of a hidden prompt",
            modern(
                "completion/complete",
                json!({"ref": {"type": "ref/prompt", "name": "admin"}, "argument": {"name": "a", "value": "b"}}),
            ),
        ),
        no(
            "completion of a hidden resource",
            modern(
                "completion/complete",
                json!({"ref": {"type": "ref/resource", "uri": "note://private/{id}"}, "argument": {"name": "a", "value": "b"}}),
            ),
        ),
        case("a legacy notification", Shot::post(&reader, evil.to_string()), 202, 0),
        case(
            "no tool named",
            modern("tools/call", json!({"arguments": {}})),
            400,
            -32_602,
        ),
        case(
            "no resource named",
            Shot::post(
                &reader,
                r#"{"jsonrpc":"2.0","id":7,"method":"resources/read","params":{}}"#,
            ),
            400,
            -32_602,
        ),
    ];
    refuse(&gate, &upstream, cases, POLICY).await;

    let banded = at("/band/mcp", &call("admin_reset"))
        .fire(&gate)
        .await
        .expect("an answer")
        .json();
    assert_eq!(
        (banded["id"].as_i64(), banded["result"]["isError"].as_bool()),
        (Some(7), Some(true)),
        "{banded}"
    );
    let all = Shot::post(&reader, batch.to_string())
        .fire(&gate)
        .await
        .expect("an answer")
        .json();
    let ids: Vec<i64> = all
        .as_array()
        .expect("a batch")
        .iter()
        .filter_map(|member| member["id"].as_i64())
        .collect();
    assert_eq!(ids, [7, 8]);
    let asked = Shot::modern(&editor, "tools/call", json!({"name": "delete_note"}))
        .fire(&gate)
        .await
        .expect("an answer");
    let data = asked.json()["error"]["data"].clone();
    assert_eq!(data["error_type"], "insufficient_scope");
    assert_eq!(data["required_scope"], "mcp.use notes.write");
    assert_eq!(data["user_scopes"], json!(["mcp.use"]));
    assert_eq!(data["scope_upgrade_endpoint"], "https://login.example/upgrade");
    assert!(
        data["upgrade_instructions"]
            .as_str()
            .is_some_and(|text| text.contains("notes.write"))
    );
    assert!(upstream.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wire() {
    let upstream = Upstream::tools(1).await;
    let gate = gate(&upstream).await;
    let token = reader(&gate);
    let address = gate.running.address();
    let length = PING.len();
    let head = |more: &str| {
        format!(
            "POST /notes/mcp HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             authorization: Bearer {token}\r\nconnection: close\r\n{more}"
        )
    };
    let raw = |more: &str| Shot::raw(head(more));
    let cases = vec![
        case(
            "two lengths",
            raw(&format!("content-length: {length}\r\ncontent-length: 5\r\n\r\n{PING}")),
            400,
            0,
        ),
        case(
            "a negative length",
            raw(&format!("content-length: -1\r\n\r\n{PING}")),
            400,
            0,
        ),
        case(
            "a signed length",
            raw(&format!("content-length: +{length}\r\n\r\n{PING}")),
            400,
            0,
        ),
        // Chunked framing wins (RFC 9112 section 6.3); the length never frames anything, here or upstream.
        case(
            "a length and chunks",
            raw(&format!(
                "content-length: {length}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{PING}"
            )),
            400,
            -32_700,
        ),
        case(
            "chunks and a length",
            raw(&format!(
                "transfer-encoding: chunked\r\ncontent-length: {length}\r\n\r\n0\r\n\r\n{PING}"
            )),
            400,
            -32_700,
        ),
        case(
            "chunked not last",
            raw("transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
            400,
            0,
        ),
        case(
            "a chunk without a size",
            raw(&format!("transfer-encoding: chunked\r\n\r\nzz\r\n{PING}\r\n0\r\n\r\n")),
            400,
            -32_700,
        ),
        case(
            "a folded header",
            raw(&format!("x-a: b\r\n c\r\ncontent-length: {length}\r\n\r\n{PING}")),
            400,
            0,
        ),
        case(
            "a space before the colon",
            raw(&format!("content-length : {length}\r\n\r\n{PING}")),
            400,
            0,
        ),
        case(
            "a bare LF hides a second bearer",
            raw(&format!(
                "x-a: b\nauthorization: Bearer x\r\ncontent-length: {length}\r\n\r\n{PING}"
            )),
            400,
            -32_600,
        ),
        case(
            "a NUL in a header",
            raw(&format!("x-a: b\0c\r\ncontent-length: {length}\r\n\r\n{PING}")),
            400,
            0,
        ),
        case(
            "headers without end",
            raw(&format!("x-a: {}\r\n\r\n", "a".repeat(70_000))),
            431,
            0,
        ),
        case("slow headers", raw("x-a: b"), 0, 0),
        case(
            "half a body",
            raw(&format!("content-length: {length}\r\n\r\n{}", &PING[..9])),
            408,
            40_800,
        ),
    ];
    refuse(&gate, &upstream, cases, WIRE).await;
}
