//! The test server itself, without a gate in between.

use super::handler::QUESTION;
use super::*;
use futures_util::StreamExt;
use http::{Response, StatusCode};
use http_body_util::BodyDataStream;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;

/// A client of either era, without a gate in between.
struct Direct<'a> {
    url: String,
    headers: Vec<(&'a str, String)>,
    modern: bool,
}

impl Direct<'_> {
    fn modern(server: &RmcpServer) -> Self {
        let headers = vec![("mcp-protocol-version", "2026-07-28".to_owned())];
        Self {
            url: server.url(),
            headers,
            modern: true,
        }
    }

    async fn legacy(server: &RmcpServer) -> Self {
        let mut client = Self {
            url: server.url(),
            headers: Vec::new(),
            modern: false,
        };
        let hello = json!({"protocolVersion": "2025-11-25", "capabilities": {"elicitation": {}, "sampling": {}},
            "clientInfo": {"name": "tests", "version": "1"}});
        let answer = client.send("initialize", None, Some(1), hello).await;
        let session = answer.headers()["mcp-session-id"].to_str().expect("text").to_owned();
        client.headers = vec![
            ("mcp-session-id", session),
            ("mcp-protocol-version", "2025-11-25".to_owned()),
        ];
        let ready = client.send("notifications/initialized", None, None, json!({})).await;
        assert_eq!(ready.status(), StatusCode::ACCEPTED);
        client
    }

    async fn send(&self, method: &str, name: Option<&str>, id: Option<u64>, params: Value) -> Response<Incoming> {
        let mut message = json!({"jsonrpc": "2.0", "method": method, "params": params});
        if let Some(id) = id {
            message["id"] = id.into();
        }
        let mut headers = self.headers.clone();
        if self.modern {
            let meta = &mut message["params"]["_meta"];
            meta["io.modelcontextprotocol/protocolVersion"] = "2026-07-28".into();
            meta["io.modelcontextprotocol/clientCapabilities"] = json!({"elicitation": {}, "sampling": {}});
            headers.push(("mcp-method", method.to_owned()));
            headers.extend(name.map(|name| ("mcp-name", name.to_owned())));
        }
        self.post(&headers, message).await
    }

    async fn post(&self, headers: &[(&str, String)], message: Value) -> Response<Incoming> {
        let mut request = Request::post(&self.url)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request
            .body(Full::new(Bytes::from(message.to_string())))
            .expect("a request");
        Client::builder(TokioExecutor::new())
            .build_http()
            .request(request)
            .await
            .expect("an answer")
    }

    async fn call(&self, tool: &str, arguments: Value) -> Response<Incoming> {
        self.send(
            "tools/call",
            Some(tool),
            Some(2),
            json!({"name": tool, "arguments": arguments}),
        )
        .await
    }
}

async fn value(response: Response<Incoming>) -> Value {
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    serde_json::from_slice(&body).unwrap_or_else(|_| panic!("not JSON: {body:?}"))
}

/// The next event of a stream that carries a message.
async fn event(stream: &mut BodyDataStream<Incoming>, rest: &mut String) -> Value {
    loop {
        while let Some((event, after)) = rest.split_once("\n\n") {
            let data: String = event.lines().filter_map(|line| line.strip_prefix("data:")).collect();
            *rest = after.to_owned();
            if !data.trim().is_empty() {
                return serde_json::from_str(&data).expect("JSON");
            }
        }
        let frame = stream.next().await.expect("the stream goes on").expect("bytes");
        rest.push_str(std::str::from_utf8(&frame).expect("UTF-8"));
    }
}

#[tokio::test]
async fn lists_come_in_pages_without_loss() {
    let server = RmcpServer::with(Settings {
        extra_tools: 140,
        page: 50,
        ..Settings::default()
    })
    .await;
    let client = Direct::modern(&server);
    let (mut names, mut cursor, mut pages) = (Vec::new(), Value::Null, 0);
    loop {
        let params = if cursor.is_null() {
            json!({})
        } else {
            json!({"cursor": cursor})
        };
        let page = value(client.send("tools/list", None, Some(1), params).await).await;
        let tools = page["result"]["tools"].as_array().expect("tools").clone();
        names.extend(
            tools
                .iter()
                .map(|tool| tool["name"].as_str().expect("a name").to_owned()),
        );
        pages += 1;
        cursor = page["result"]["nextCursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    assert_eq!((names.len(), pages), (TOOLS.len() + 140, 4));
    assert!(TOOLS.iter().all(|tool| names.iter().any(|name| name == tool)));
    let lists = [
        ("resources/list", "resources", RESOURCES.len()),
        ("prompts/list", "prompts", PROMPTS.len()),
    ];
    for (method, key, length) in lists {
        let list = value(client.send(method, None, Some(1), json!({})).await).await;
        assert_eq!(list["result"][key].as_array().expect("a list").len(), length);
    }
}

#[tokio::test]
async fn a_modern_caller_is_asked_by_a_result() {
    let server = RmcpServer::start().await;
    let client = Direct::modern(&server);
    for (tool, method) in [
        ("elicit_name", "elicitation/create"),
        ("sample", "sampling/createMessage"),
    ] {
        let asked = value(client.call(tool, json!({})).await).await["result"].clone();
        assert_eq!(asked["resultType"], "input_required", "{asked}");
        assert_eq!(asked["inputRequests"][QUESTION]["method"], method);
        let mut retry = json!({"name": tool, "arguments": {}, "requestState": asked["requestState"],
            "inputResponses": {QUESTION: {"action": "accept", "content": {"name": "Ada"}}}});
        let done = value(client.send("tools/call", Some(tool), Some(3), retry.clone()).await).await;
        assert!(
            done["result"]["content"][0]["text"]
                .as_str()
                .expect("text")
                .contains("Ada")
        );
        retry["requestState"] = "tampered".into();
        let refused = value(client.send("tools/call", Some(tool), Some(3), retry).await).await;
        assert_eq!(refused["error"]["code"], -32602);
    }
}

#[tokio::test]
async fn a_legacy_caller_is_asked_in_mid_call() {
    let server = RmcpServer::start().await;
    let client = Direct::legacy(&server).await;
    let sampled = json!({"role": "assistant", "model": "m", "content": {"type": "text", "text": "Paris, Ada"}});
    let elicited = json!({"action": "accept", "content": {"name": "Ada"}});
    for (tool, method, answer) in [
        ("elicit_name", "elicitation/create", elicited),
        ("sample", "sampling/createMessage", sampled),
    ] {
        let mut stream = BodyDataStream::new(client.call(tool, json!({})).await.into_body());
        let mut rest = String::new();
        let question = event(&mut stream, &mut rest).await;
        assert_eq!(question["method"], method, "{question}");
        let answer = json!({"jsonrpc": "2.0", "id": question["id"], "result": answer});
        assert_eq!(
            client.post(&client.headers, answer).await.status(),
            StatusCode::ACCEPTED
        );
        let done = event(&mut stream, &mut rest).await;
        assert!(
            done["result"]["content"][0]["text"]
                .as_str()
                .expect("text")
                .contains("Ada"),
            "{done}"
        );
    }
}

#[tokio::test]
async fn subscribers_of_both_eras_hear_of_changes() {
    let server = RmcpServer::start().await;
    let modern = Direct::modern(&server);
    let filter = json!({"notifications": {"resourceSubscriptions": [RESOURCES[0]], "toolsListChanged": true}});
    let answer = modern.send("subscriptions/listen", None, Some(9), filter).await;
    let (mut stream, mut rest) = (BodyDataStream::new(answer.into_body()), String::new());
    let acknowledged = event(&mut stream, &mut rest).await;
    assert_eq!(acknowledged["method"], "notifications/subscriptions/acknowledged");
    modern
        .call("change_tools", json!({}))
        .await
        .into_body()
        .collect()
        .await
        .expect("done");
    let changed = event(&mut stream, &mut rest).await;
    assert_eq!(changed["method"], "notifications/tools/list_changed");
    server.touch("memo://other").await;
    server.touch(RESOURCES[0]).await;
    let updated = event(&mut stream, &mut rest).await;
    assert_eq!(updated["params"]["uri"], RESOURCES[0], "{updated}");

    let legacy = Direct::legacy(&server).await;
    let uri = json!({"uri": RESOURCES[0]});
    let mut get = Request::get(server.url()).header("accept", "text/event-stream");
    for (name, value) in &legacy.headers {
        get = get.header(*name, value);
    }
    let get = get.body(Full::new(Bytes::new())).expect("a request");
    let standing = Client::builder(TokioExecutor::new())
        .build_http()
        .request(get)
        .await
        .expect("a stream");
    let (mut stream, mut rest) = (BodyDataStream::new(standing.into_body()), String::new());
    legacy
        .send("resources/subscribe", None, Some(3), uri.clone())
        .await
        .into_body()
        .collect()
        .await
        .expect("done");
    server.touch(RESOURCES[0]).await;
    let updated = event(&mut stream, &mut rest).await;
    assert_eq!(updated["params"]["uri"], RESOURCES[0], "{updated}");
}

#[tokio::test]
async fn everything_that_arrives_is_remembered() {
    let server = RmcpServer::start().await;
    assert!(server.seen().is_empty());
    let client = Direct::modern(&server);
    let told = value(client.call("headers", json!({})).await).await;
    assert!(
        told["result"]["content"][0]["text"]
            .as_str()
            .expect("text")
            .contains("mcp-name")
    );
    let seen = server.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].method.as_str(), seen[0].uri.path()), ("POST", "/mcp"));
    assert_eq!(seen[0].header("mcp-name"), Some("headers"));
    assert_eq!(seen[0].message()["params"]["name"], "headers");
    assert_eq!(server.methods(), ["tools/call"]);
    server.stop().await;
}
