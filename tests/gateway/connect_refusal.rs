//! What callers get who haven't connected a route's upstream to their account, in every form, and that a retry works once
//! they have.

use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use portcullis::authn::Principal;
use portcullis::clock::Clock;
use portcullis::config::{Database, State};
use portcullis::credential::{Connections, Person};
use portcullis::oauth::{AuthMethod, ClientRecord, Grant, TokenSet};
use portcullis::secret::Secret;
use portcullis::session::load_or_create;
use portcullis::store::Store;
use portcullis::telemetry::Metrics;
use serde_json::{Value, json};

use super::gate::{Answer, Gate, call};
use super::upstream::{Seen, Upstream, json_reply, result, status};

pub const LOGIN: &str = "    login: {client_id: pages, client_secret: four-words-in-a-row}\n";
pub const OURS: &str = "portcullis/connect";

pub async fn gate(upstream: &str, login: &str, extra: &str) -> Gate {
    let identity = format!("  corp:\n    issuer: {{issuer}}\n{login}");
    let to = match extra.contains("upstream:") {
        true => String::new(),
        false => format!("    upstream: {upstream}\n"),
    };
    let route = format!(
        "routes:\n  notes:\n    path: /notes/mcp\n{to}    credential:\n      connection: {{issuer: 'https://login.example', \
         token_endpoint: 'https://login.example/token', client_id: gate, client_auth: none}}\n{extra}"
    );
    Gate::with_setup("", Some(&identity), &route).await
}

/// The gate's store, as another process of the same gate has it.
pub async fn connections(gate: &Gate) -> Arc<Connections> {
    let directory = gate.directory.path().join("state");
    let (sealer, _) = load_or_create(&directory).expect("the gate has made one");
    let state = State {
        directory,
        database: Database::Sqlite,
        seal_keys: Vec::new(),
    };
    let store = Store::open(&state, Arc::new(sealer), Clock::system()).await;
    Connections::new(store.expect("a store"), Clock::system(), Metrics::new())
}

pub fn alice(gate: &Gate) -> Person {
    Person::of(&Principal {
        identity: Some("corp".into()),
        issuer: gate.issuer.issuer().to_owned(),
        subject: "alice".to_owned(),
        ..Principal::default()
    })
    .expect("she is somebody")
}

pub async fn connect(gate: &Gate, upstream: &str) {
    let grant = Grant {
        issuer: "https://login.example".to_owned(),
        token_endpoint: "https://login.example/token".parse().expect("a URL"),
        revocation_endpoint: None,
        resource: None,
        upstream: upstream.to_owned(),
        client: ClientRecord {
            id: "gate".to_owned(),
            secret: None,
            secret_expires_at: None,
            auth: AuthMethod::None,
        },
        tokens: TokenSet {
            access_token: Secret::new("alices-own"),
            refresh_token: None,
            expires_at: None,
            scopes: None,
            id_token: None,
        },
    };
    let adopted = connections(gate).await.adopt("notes", &alice(gate), grant).await;
    adopted.expect("the store takes it");
}

fn opens_pages() -> Value {
    json!({"elicitation": {"url": {}}})
}

async fn modern(gate: &Gate, method: &str, params: Value, capabilities: Value) -> Answer {
    let request = gate.modern_request(&gate.reader(), method, params.clone());
    let (parts, _) = request.into_parts();
    let mut params = params;
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": capabilities,
    });
    let body = json!({"jsonrpc": "2.0", "id": "a", "method": method, "params": params});
    gate.send(http::Request::from_parts(parts, body.to_string().into()))
        .await
}

fn initialize(capabilities: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": capabilities, "clientInfo": {"name": "test", "version": "1"},
    }})
}

async fn in_session(gate: &Gate, session: &str, body: &Value) -> Answer {
    let mut request = gate.post(&gate.reader(), body);
    let headers: &mut HeaderMap = request.headers_mut();
    headers.insert("mcp-session-id", session.parse().expect("a value"));
    headers.insert("mcp-protocol-version", "2025-11-25".parse().expect("a value"));
    gate.send(request).await
}

pub fn page(gate: &Gate) -> String {
    format!("{}/connect?route=notes", gate.running.url())
}

fn echo() -> Value {
    json!({"name": "echo", "arguments": {}})
}

fn asserts_words(answer: &Answer, status: StatusCode, gate: &Gate) {
    assert_eq!((answer.status, answer.code()), (status, Some(50_202)), "{answer:?}");
    let error = &answer.json()["error"];
    let data = json!({"route": "notes", "reason": "not_connected", "connect_url": page(gate)});
    assert_eq!(error["data"], data);
    let message = error["message"].as_str().expect("a text");
    assert!(message.contains(&page(gate)), "{message}");
    // The caller's token is good: there is nothing to challenge.
    assert!(!answer.headers.contains_key("www-authenticate"));
}

#[tokio::test]
async fn who_has_not_connected_is_told_where_to_in_a_form_their_client_survives() {
    let upstream = Upstream::tools(1).await;
    let gate = gate(&upstream.url(), LOGIN, "").await;
    let token = gate.reader();
    for capabilities in [
        json!({}),
        json!({"elicitation": {}}),
        json!({"elicitation": {"form": {}}}),
    ] {
        let answer = modern(&gate, "tools/call", echo(), capabilities).await;
        asserts_words(&answer, StatusCode::FORBIDDEN, &gate);
        assert_eq!(answer.json()["id"], "a");
    }
    // Its answer can't ask for input.
    let answer = modern(&gate, "tools/list", json!({}), opens_pages()).await;
    asserts_words(&answer, StatusCode::FORBIDDEN, &gate);
    for body in [
        call("echo"),
        initialize(&json!({})),
        initialize(&json!({"elicitation": {"form": {}}})),
    ] {
        asserts_words(&gate.legacy(&token, &body).await, StatusCode::OK, &gate);
    }
    let notified = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    assert_eq!(gate.legacy(&token, &notified).await.status, StatusCode::ACCEPTED);

    let answer = modern(&gate, "tools/call", echo(), opens_pages()).await;
    assert_eq!(answer.status, StatusCode::OK);
    let result = &answer.json()["result"];
    assert_eq!(result["resultType"], "input_required");
    assert_eq!(result.get("requestState"), None);
    let asked = &result["inputRequests"][OURS];
    assert_eq!(asked["method"], "elicitation/create");
    assert_eq!(asked["params"]["mode"], "url");
    assert_eq!(asked["params"]["url"], page(&gate));
    assert!(
        asked["params"]["message"]
            .as_str()
            .is_some_and(|text| text.contains("notes"))
    );
    assert_eq!(asked["params"].as_object().map(serde_json::Map::len), Some(3));
    // What the server wanted back is brought back.
    let mut params = echo();
    params["requestState"] = "theirs".into();
    let answer = modern(&gate, "tools/call", params, opens_pages()).await;
    assert_eq!(answer.json()["result"]["requestState"], "theirs");

    let answer = gate.legacy(&token, &initialize(&opens_pages())).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::OK, Some(-32_042)));
    let elicitation = answer.json()["error"]["data"]["elicitations"][0].clone();
    assert_eq!(
        (&elicitation["mode"], &elicitation["url"]),
        (&json!("url"), &json!(page(&gate)))
    );
    assert_eq!(elicitation["elicitationId"].as_str().map(str::len), Some(32));
    assert!(elicitation["message"].is_string());

    assert!(upstream.seen().is_empty(), "nothing got through");
    let denied = gate.metric(
        "portcullis_mcp_requests_total{route=\"notes\",method=\"tools/call\",tool=\"_other\",outcome=\"denied\"}",
    );
    assert_eq!(denied, Some(6.0));
    gate.running.shutdown().await;
    let audit = std::fs::read_to_string(gate.directory.path().join("audit.jsonl")).expect("an audit");
    let lines: Vec<Value> = audit
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert!(!lines.is_empty());
    for line in lines {
        let said = (
            line["decision"].as_str(),
            line["reason"].as_str(),
            line["outcome"].as_str(),
        );
        assert_eq!(said, (Some("deny"), Some("not_connected"), Some("denied")), "{line}");
    }
}

#[tokio::test]
async fn denials_and_logins_decide_what_is_said() {
    let upstream = Upstream::tools(1).await;
    let in_band = gate(&upstream.url(), LOGIN, "    denials: in_band\n").await;
    let answer = in_band.legacy(&in_band.reader(), &call("echo")).await;
    let result = &answer.json()["result"];
    assert_eq!((answer.status, &result["isError"]), (StatusCode::OK, &json!(true)));
    assert!(
        result["content"][0]["text"]
            .as_str()
            .is_some_and(|text| text.contains(&page(&in_band)))
    );

    let by_status = gate(&upstream.url(), LOGIN, "    denials: status\n").await;
    let answer = by_status.legacy(&by_status.reader(), &call("echo")).await;
    asserts_words(&answer, StatusCode::FORBIDDEN, &by_status);

    // Nobody can log in to the page, so that nobody is sent there.
    let headless = gate(&upstream.url(), "", "").await;
    let answer = modern(&headless, "tools/call", echo(), opens_pages()).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::FORBIDDEN, Some(50_202)));
    let error = &answer.json()["error"];
    assert_eq!(error["data"], json!({"route": "notes", "reason": "not_connected"}));
    let message = error["message"].as_str().expect("a text");
    assert!(message.contains("`portcullis connect notes`"), "{message}");
}

#[tokio::test]
async fn who_declines_is_not_asked_again() {
    let upstream = Upstream::tools(1).await;
    let gate = gate(&upstream.url(), LOGIN, "").await;
    for action in ["decline", "cancel"] {
        let mut params = echo();
        params["inputResponses"] = json!({OURS: {"action": action}});
        let answer = modern(&gate, "tools/call", params, opens_pages()).await;
        asserts_words(&answer, StatusCode::FORBIDDEN, &gate);
    }
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn a_retry_waits_for_its_user_and_the_server_never_sees_what_they_said_to_the_gate() {
    let upstream = Upstream::tools(1).await;
    let gate = gate(&upstream.url(), LOGIN, "").await;
    let mut params = echo();
    params["inputResponses"] = json!({OURS: {"action": "accept"}, "theirs": {"action": "accept"}});
    params["requestState"] = "theirs".into();
    let url = upstream.url();
    let (answer, ()) = tokio::join!(
        modern(&gate, "tools/call", params.clone(), opens_pages()),
        connect(&gate, &url)
    );
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.json()["result"]["content"][0]["text"], "echo");
    // Nothing else was brought back.
    params["inputResponses"] = json!({OURS: {"action": "accept"}});
    assert_eq!(
        modern(&gate, "tools/call", params, opens_pages()).await.status,
        StatusCode::OK
    );
    let seen = upstream.seen();
    assert_eq!(seen.len(), 2);
    let first = seen[0].json();
    assert_eq!(
        first["params"]["inputResponses"],
        json!({"theirs": {"action": "accept"}})
    );
    assert_eq!(first["params"]["requestState"], "theirs");
    assert_eq!(seen[1].json()["params"].get("inputResponses"), None);
    assert_eq!(seen[0].headers["authorization"], "Bearer alices-own");
}

#[tokio::test]
async fn a_legacy_session_remembers_that_its_client_opens_pages() {
    let upstream = Upstream::tools(1).await;
    let gate = gate(&upstream.url(), LOGIN, "").await;
    connect(&gate, &upstream.url()).await;
    let mut sessions = Vec::new();
    for capabilities in [opens_pages(), json!({})] {
        let answer = gate.legacy(&gate.reader(), &initialize(&capabilities)).await;
        assert_eq!(answer.status, StatusCode::OK);
        let session = answer.header("mcp-session-id").to_owned();
        assert!(!session.is_empty());
        assert_eq!(in_session(&gate, &session, &call("echo")).await.code(), None);
        sessions.push(session);
    }
    let gone = connections(&gate).await.forget("notes", &alice(&gate), None).await;
    assert!(gone.expect("a store"));
    // It is noticed within a second.
    while in_session(&gate, &sessions[1], &call("echo")).await.code().is_none() {}
    let answer = in_session(&gate, &sessions[0], &call("echo")).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::OK, Some(-32_042)));
    assert_eq!(answer.json()["error"]["data"]["elicitations"][0]["url"], page(&gate));
    asserts_words(
        &in_session(&gate, &sessions[1], &call("echo")).await,
        StatusCode::OK,
        &gate,
    );
}

#[tokio::test]
async fn an_http_sse_client_hears_it_on_its_stream_and_opens_no_page() {
    let upstream = Upstream::sse().await;
    let gate = gate(&upstream.url(), LOGIN, "").await;
    connect(&gate, &upstream.url()).await;
    let token = gate.reader();
    let request = gate.request(http::Method::GET, &token, String::new());
    let mut stream = gate.open(request).await.into_body();
    let endpoint = next_data(&mut stream).await;
    let gone = connections(&gate).await.forget("notes", &alice(&gate), None).await;
    assert!(gone.expect("a store"));
    // What it declares at 2024-11-05 is no promise that it can do what came in 2025-11-25.
    let told = loop {
        let mut request = gate.post(&token, &initialize(&opens_pages()));
        *request.uri_mut() = endpoint.parse().expect("a URL");
        assert_eq!(gate.send(request).await.status, StatusCode::ACCEPTED);
        let told: Value = serde_json::from_str(&next_data(&mut stream).await).expect("JSON");
        if told["error"].is_object() {
            break told;
        }
    };
    assert_eq!(
        (&told["error"]["code"], &told["id"]),
        (&json!(50_202), &json!(1)),
        "{told}"
    );
    assert_eq!(told["error"]["data"]["connect_url"], page(&gate));
}

/// The data of the next event.
async fn next_data(stream: &mut hyper::body::Incoming) -> String {
    loop {
        let frame = tokio::time::timeout(std::time::Duration::from_secs(10), stream.frame()).await;
        let frame = frame.expect("in time").expect("it goes on").expect("it is whole");
        let text = frame
            .into_data()
            .map(|data| String::from_utf8_lossy(&data).into_owned());
        let text = text.unwrap_or_default();
        if let Some(data) = text.lines().find_map(|line| line.strip_prefix("data: ")) {
            return data.to_owned();
        }
    }
}

#[tokio::test]
async fn a_server_that_wants_more_than_was_granted_is_connected_again() {
    let wants_more = |seen: Seen| async move {
        let asked = seen.json();
        if asked["method"] != "tools/call" {
            return match asked.get("id") {
                Some(_) => json_reply(&result(&asked, 0)),
                None => status(StatusCode::ACCEPTED),
            };
        }
        let mut response = status(StatusCode::FORBIDDEN);
        let challenge = "Bearer error=\"insufficient_scope\", scope=\"notes.write\"";
        response
            .headers_mut()
            .insert("www-authenticate", challenge.parse().expect("a value"));
        response
    };
    // As it comes, and over the bridge to a server of the other era.
    for era in ["modern", "legacy"] {
        for capabilities in [opens_pages(), json!({})] {
            let upstream = Upstream::start(wants_more).await;
            let gate = gate(
                &upstream.url(),
                LOGIN,
                &format!("    upstream: {{urls: ['{}'], era: {era}}}\n", upstream.url()),
            )
            .await;
            connect(&gate, &upstream.url()).await;
            let answer = modern(&gate, "tools/call", echo(), capabilities.clone()).await;
            if capabilities == opens_pages() {
                assert_eq!(answer.status, StatusCode::OK, "{era}: {answer:?}");
                let asked = answer.json()["result"]["inputRequests"][OURS]["params"].clone();
                assert_eq!(asked["url"], page(&gate), "{era}: {answer:?}");
                continue;
            }
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{era}: {answer:?}");
            let data = json!({
                "route": "notes", "reason": "more_scopes", "required_scope": "notes.write", "connect_url": page(&gate),
            });
            assert_eq!(
                (answer.code(), &answer.json()["error"]["data"]),
                (Some(50_202), &data),
                "{era}"
            );
        }
    }
}
