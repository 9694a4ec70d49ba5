//! Callers without a JWT: opaque tokens that an issuer is asked about, and API keys; and `portcullis token issue`.

use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::process::Command;

use super::gate::{Gate, call};
use super::shot::{Case, Shot, case, refuse};
use super::upstream::Upstream;

const PING: &str = r#"{"jsonrpc":"2.0","id":7,"method":"ping"}"#;
/// What no key or certificate has.
const HASH: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const SOON: Duration = Duration::from_secs(20);

/// An introspection endpoint that answers by the token's text, and what it was asked.
struct Asked {
    url: String,
    tokens: Arc<Mutex<Vec<String>>>,
}

impl Asked {
    /// `answer` gets the token: a status and a body.
    async fn start(answer: impl Fn(&str) -> (u16, String) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let tokens = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), tokens.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, seen) = (answer.clone(), seen.clone());
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (answer, seen) = (answer.clone(), seen.clone());
                    async move {
                        let body = request.into_body().collect().await?.to_bytes();
                        let body = String::from_utf8_lossy(&body).into_owned();
                        let token = body.rsplit_once("&token=").map_or("", |(_, token)| token).to_owned();
                        let (status, text) = answer(&token);
                        seen.lock().expect("a lock").push(token);
                        let mut response = Response::new(Full::<Bytes>::from(text));
                        *response.status_mut() = StatusCode::from_u16(status).expect("a status");
                        Ok::<_, hyper::Error>(response)
                    }
                });
                let serve = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(serve);
            }
        });
        Self { url, tokens }
    }

    fn tokens(&self) -> Vec<String> {
        self.tokens.lock().expect("a lock").clone()
    }
}

/// `portcullis token issue` with these arguments.
async fn issue(arguments: &[&str]) -> Output {
    let run = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["token", "issue"])
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    tokio::time::timeout(SOON, run)
        .await
        .expect("it ends soon")
        .expect("the binary runs")
}

/// The key that was printed.
fn key(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout.clone()).expect("UTF-8");
    let key = text.strip_suffix('\n').expect("a line");
    assert!(key.starts_with("pcl_") && !key.contains('\n'), "{key}");
    key.to_owned()
}

/// A gateway with the identities `opaque` and `robots`, whose keys are in `file`.
async fn gate(asked: &Asked, upstream: &Upstream, file: &std::path::Path) -> Gate {
    let identities = format!(
        "  opaque:\n    issuer: {url}\n    introspection: {{endpoint: \"{url}/i\", client_id: gate, client_secret: \"a client's own\"}}\n\
         \x20 robots: {{api_keys: \"${{file:{}}}\"}}\n",
        file.display(),
        url = asked.url,
    );
    let route = |name: &str, identity: &str, rest: &str| {
        let url = upstream.url();
        format!("  {name}:\n    path: /{name}/mcp\n    identity: [{identity}]\n    upstream: {url}\n{rest}")
    };
    let rules = "    tools: {rules: [{allow: [echo], to: [editor]}]}\n";
    let yaml = [
        "routes:\n".to_owned(),
        route("notes", "opaque, robots", ""),
        route("keys", "robots", rules),
        route("scoped", "robots", "    scopes: [mcp.use]\n"),
        route("asked", "opaque", ""),
    ];
    Gate::with_setup("", Some(&identities), &yaml.concat()).await
}

/// What the issuer says of a token, by the token's name.
fn says(resource: &str, now: u64, token: &str) -> (u16, String) {
    let good = json!({"active": true, "sub": "ada", "aud": resource, "exp": now + 600, "token_type": "Bearer"});
    let but = |key: &str, value: Value| {
        let mut answer = good.clone();
        answer[key] = value;
        (200, answer.to_string())
    };
    match token {
        "good" => (200, good.to_string()),
        "elsewhere" => but("aud", json!("https://elsewhere.example")),
        "nobodys" => but("aud", Value::Null),
        "over" => but("exp", json!(1_000_000_000)),
        "endless" => but("exp", Value::Null),
        "early" => but("nbf", json!(now + 600)),
        "strange" => but("iss", json!("https://evil.example")),
        "subjectless" => but("sub", json!("")),
        "bound" => but("cnf", json!({"x5t#S256": "x"})),
        "certified" => but("cnf", json!({"x5t#S256": HASH})),
        "keyed" => but("cnf", json!({"jkt": HASH})),
        "refresh" => but("token_type", json!("refresh_token")),
        "down" => (500, String::new()),
        "denied" => (401, json!({"error": "invalid_client"}).to_string()),
        "nonsense" => (200, "<html>".to_owned()),
        "signed" => (200, "eyJhbGciOiJSUzI1NiJ9.e30.c2ln".to_owned()),
        _ => (200, json!({"active": false}).to_string()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opaque_tokens_and_api_keys_r42_r43() {
    let upstream = Upstream::tools(1).await;
    let now = portcullis::clock::Clock::system().now();
    // The resource is known once the gateway runs, and the endpoint must run before.
    let resource: Arc<std::sync::OnceLock<String>> = Arc::default();
    let of = resource.clone();
    let asked = Asked::start(move |token| says(of.get().map_or("", String::as_str), now, token)).await;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("keys");
    let path = file.to_str().expect("UTF-8");
    let editor = key(&issue(&[
        "--name",
        "ci",
        "--roles",
        "notes-editor",
        "--expires",
        "90d",
        "--file",
        path,
    ])
    .await);
    let plain = key(&issue(&["--name", "ops", "--file", path]).await);
    let over = key(&issue(&["--name", "late"]).await);
    let mut text = std::fs::read_to_string(&file).expect("the file");
    let hash: String = portcullis::authn::api_key::hash(&over)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    text.push_str(&format!("late:{hash}::2020-01-01T00:00:00Z\n"));
    std::fs::write(&file, &text).expect("written");
    let gate = gate(&asked, &upstream, &file).await;
    resource.set(gate.url()).expect("once");

    let prm = |path: &str| {
        format!(
            "resource_metadata=\"{}/.well-known/oauth-protected-resource{path}\"",
            gate.running.url()
        )
    };
    let invalid = |description: &str| format!("Bearer error=\"invalid_token\", error_description=\"{description}\"");
    let refused = |name: &str, token: &str, description: &str| {
        case(name, Shot::post(token, PING), 401, 40_100).header(
            "www-authenticate",
            format!("{}, {}", invalid(description), prm("/notes/mcp")),
        )
    };
    let unanswered = |token: &str| {
        case(format!("the issuer is {token}"), Shot::post(token, PING), 503, 50_300)
            .header("www-authenticate", "")
            .header("retry-after", "10")
    };
    let at_keys = |name: &str, token: &str, description: &str| {
        // No issuer, no document and no resource_metadata.
        case(name, Shot::post(token, PING).to("/keys/mcp"), 401, 40_100)
            .header("www-authenticate", invalid(description))
    };
    let stranger = gate
        .issuer
        .mint_claims(&json!({"iss": gate.issuer.issuer(), "sub": "a", "aud": gate.url(),
        "exp": now + 600}));
    let other = if plain.ends_with('x') { "y" } else { "x" };
    let damaged = format!("{}{other}", &plain[..plain.len() - 1]);
    let cases: Vec<Case> = vec![
        refused("inactive", "unknown", "invalid token"),
        refused("for somebody else", "elsewhere", "invalid audience"),
        refused("aud null", "nobodys", "invalid audience"),
        refused("over", "over", "token expired at 2001-09-09T01:46:40Z"),
        refused("exp null", "endless", "invalid token"),
        refused("not yet", "early", "invalid token"),
        refused("another's", "strange", "invalid issuer"),
        refused("no subject", "subjectless", "invalid token"),
        refused("bound to what can't be read", "bound", "invalid token"),
        refused("bound to a certificate", "certified", "invalid token"),
        refused("bound to a key", "keyed", "invalid token"),
        refused("a refresh token", "refresh", "invalid token"),
        unanswered("down"),
        unanswered("denied"),
        unanswered("nonsense"),
        unanswered("signed"),
        refused("a JWT of a stranger", &stranger, "invalid issuer"),
        refused("a damaged key", &damaged, "invalid token"),
        refused("a key that is over", &over, "token expired at 2020-01-01T00:00:00Z"),
        at_keys("an opaque token where keys are wanted", "good", "invalid token"),
        at_keys(
            "a key that is over, without an issuer",
            &over,
            "token expired at 2020-01-01T00:00:00Z",
        ),
        case("no token, no issuer", Shot::post("", PING).to("/keys/mcp"), 401, 40_100)
            .header("www-authenticate", "Bearer"),
        case(
            "a key where it isn't named",
            Shot::post(&plain, PING).to("/asked/mcp"),
            401,
            40_100,
        )
        .header(
            "www-authenticate",
            format!("{}, {}", invalid("invalid token"), prm("/asked/mcp")),
        ),
        case(
            "a key without the role",
            Shot::modern(&plain, "tools/call", json!({"name": "echo"})).to("/keys/mcp"),
            403,
            40_300,
        ),
        case(
            "a key has no scopes",
            Shot::post(&plain, PING).to("/scoped/mcp"),
            403,
            40_301,
        ),
        case(
            "a key in Basic",
            Shot::post("", PING).with("authorization", &format!("Basic {plain}")),
            401,
            40_100,
        ),
    ];
    refuse(&gate, &upstream, cases, 26).await;

    let seen = asked.tokens();
    assert!(
        !seen
            .iter()
            .any(|token| token.starts_with("pcl_") || token.contains('.')),
        "{seen:?}"
    );
    let fire = async |shot: Shot| shot.fire(&gate).await.map(|answer| answer.status.as_u16());
    assert_eq!(fire(Shot::post("good", PING)).await, Some(200));
    assert_eq!(fire(Shot::post(&plain, PING)).await, Some(200));
    let echo = Shot::post(&editor, call("echo").to_string()).to("/keys/mcp");
    assert_eq!(fire(echo).await, Some(200));
    // Neither the token nor the key reaches the upstream.
    for request in upstream.seen() {
        let request = format!("{request:?}");
        assert!(!request.contains("pcl_") && !request.contains("good"), "{request}");
    }
    assert_eq!(
        gate.metric("portcullis_auth_validations_total{route=\"notes\",identity=\"opaque\",result=\"refused\",reason=\"inactive\"}"),
        Some(1.0)
    );
    assert_eq!(
        gate.metric("portcullis_auth_validations_total{route=\"notes\",identity=\"opaque\",result=\"refused\",reason=\"issuer_unavailable\"}"),
        Some(4.0)
    );
    assert!(gate.metric("portcullis_token_cache_total{cache=\"introspection\",result=\"miss\"}") >= Some(15.0));

    // No issuer, no document; keys add none to the issuer's.
    let document = async |path: &str| {
        let url = format!("{}/.well-known/oauth-protected-resource{path}", gate.running.url());
        let answer = gate
            .send(Request::get(url).body(Full::default()).expect("a request"))
            .await;
        (answer.status.as_u16(), answer.json()["authorization_servers"].clone())
    };
    assert_eq!(document("/keys/mcp").await.0, 404);
    assert_eq!(document("/notes/mcp").await, (200, json!([asked.url])));

    // r44: nothing that was written holds a key or a token.
    gate.running
        .metrics()
        .render()
        .lines()
        .for_each(|line| assert!(!line.contains("pcl_"), "{line}"));
    gate.running.shutdown().await;
    let audit = std::fs::read_to_string(gate.directory.path().join("audit.jsonl")).expect("the audit");
    assert!(!audit.contains("pcl_"), "{audit}");
    assert!(audit.contains("portcullis:api-keys:robots"), "{audit}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_first_uses_of_a_token_are_one_question() {
    let upstream = Upstream::tools(1).await;
    let now = portcullis::clock::Clock::system().now();
    let resource: Arc<std::sync::OnceLock<String>> = Arc::default();
    let of = resource.clone();
    let asked = Asked::start(move |token| says(of.get().map_or("", String::as_str), now, token)).await;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("keys");
    std::fs::write(&file, "").expect("written");
    let gate = gate(&asked, &upstream, &file).await;
    resource.set(gate.url()).expect("once");
    let ping: Value = serde_json::from_str(PING).expect("JSON");
    let all = futures_util::future::join_all((0..200).map(|_| gate.legacy("good", &ping))).await;
    assert!(all.iter().all(|answer| answer.status == StatusCode::OK));
    assert_eq!(asked.tokens(), ["good"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_of_keys_is_what_is_true() {
    let upstream = Upstream::tools(1).await;
    let asked = Asked::start(|_| (200, json!({"active": false}).to_string())).await;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("keys");
    let path = file.to_str().expect("UTF-8");
    let first = key(&issue(&["--name", "ci", "--file", path]).await);
    let gate = gate(&asked, &upstream, &file).await;
    let ping: Value = serde_json::from_str(PING).expect("JSON");
    let status = async |key: &str| gate.legacy(key, &ping).await.status.as_u16();
    let becomes = async |key: &str, expected: u16| {
        let changed = async {
            while status(key).await != expected {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(SOON, changed)
            .await
            .expect("the gateway takes the file over");
    };
    assert_eq!(status(&first).await, 200);
    let second = key(&issue(&["--name", "ops", "--file", path]).await);
    becomes(&second, 200).await;
    // A broken file is not taken over, and what is taken over next is.
    let good = std::fs::read_to_string(&file).expect("the file");
    let of_second = good.lines().nth(1).expect("two lines").to_owned();
    std::fs::write(&file, "ci:oops\n").expect("written");
    let admin = gate.running.admin_url().expect("an admin port");
    let told = async {
        loop {
            let request = Request::get(format!("{admin}/status"))
                .body(Full::default())
                .expect("a request");
            let text = String::from_utf8_lossy(&gate.send(request).await.body).into_owned();
            if text.contains("line 1: the hash is not 64 hex digits") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, told).await.expect("the status says why");
    assert_eq!((status(&first).await, status(&second).await), (200, 200));
    std::fs::write(&file, of_second + "\n").expect("written");
    becomes(&first, 401).await;
    assert_eq!(status(&second).await, 200);
}

#[tokio::test]
async fn token_issue_prints_a_key_once_and_keeps_its_hash() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("keys");
    let path = file.to_str().expect("UTF-8");
    let printed = issue(&[
        "--name",
        "ci",
        "--roles",
        "reader,editor",
        "--expires",
        "2099-01-01T00:00:00Z",
    ])
    .await;
    let (one, talk) = (key(&printed), String::from_utf8_lossy(&printed.stderr).into_owned());
    let hash: String = portcullis::authn::api_key::hash(&one)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let line = format!("ci:{hash}:reader,editor:2099-01-01T00:00:00Z");
    assert!(talk.lines().any(|said| said == line) && !talk.contains(&one), "{talk}");

    std::fs::write(&file, "# ours").expect("written");
    let two = key(&issue(&["--name", "ops", "--file", path]).await);
    let text = std::fs::read_to_string(&file).expect("the file");
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines.len() == 2 && lines[0] == "# ours" && lines[1].starts_with("ops:"),
        "{text}"
    );
    assert!(text.ends_with('\n') && !text.contains(&two));
    assert_eq!(
        std::fs::metadata(&file).expect("it").permissions().mode() & 0o777,
        0o600
    );

    std::fs::write(&file, "ops:oops\n").expect("written");
    let refused = issue(&["--name", "ci", "--file", path]).await;
    let talk = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0), "{talk}");
    assert!(talk.contains("line 1") && !talk.contains("oops"), "{talk}");
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), "ops:oops\n");
    for misused in [
        &["--roles", "a"][..],
        &["--name", "a b"],
        &["--name", "a:b"],
        &["--name", "a", "--roles", "b,,c"],
        &["--name", "a", "--expires", "soon"],
        &["--name", "a", "--expires", "2020-01-01T00:00:00Z"],
    ] {
        let output = issue(misused).await;
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{misused:?}");
    }
}
