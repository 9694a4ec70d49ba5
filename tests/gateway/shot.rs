//! Requests written byte by byte, as no honest client library would send them.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::gate::{Answer, Gate};
use super::upstream::Upstream;

/// One HTTP/1.1 request in the making.
#[derive(Clone)]
pub struct Shot {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Written instead of all of the above.
    raw: Option<Vec<u8>>,
    /// Written before the request.
    before: Vec<u8>,
}

impl Shot {
    /// A legacy POST to the route `notes`.
    pub fn post(token: &str, body: impl Into<String>) -> Self {
        let mut shot = Self {
            method: "POST".to_owned(),
            target: "/notes/mcp".to_owned(),
            headers: vec![],
            body: body.into().into_bytes(),
            raw: None,
            before: vec![],
        }
        .with("content-type", "application/json")
        .with("accept", "application/json, text/event-stream");
        if !token.is_empty() {
            shot = shot.with("authorization", &format!("Bearer {token}"));
        }
        shot
    }

    /// A modern POST.
    pub fn modern(token: &str, method: &str, mut params: Value) -> Self {
        params["_meta"] = json!({
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        });
        let name = params["name"].as_str().or(params["uri"].as_str()).map(str::to_owned);
        let body = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
        let shot = Self::post(token, body.to_string())
            .with("mcp-protocol-version", "2026-07-28")
            .with("mcp-method", method);
        match name {
            Some(name) => shot.with("mcp-name", &name),
            None => shot,
        }
    }

    /// These bytes; `{host}` and `{token}` must be filled in already.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            raw: Some(bytes.into()),
            ..Self::post("", "")
        }
    }

    /// Adds a header.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Leaves a header out.
    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self
    }

    /// Replaces a header.
    pub fn set(self, name: &str, value: &str) -> Self {
        self.without(name).with(name, value)
    }

    pub fn method(mut self, method: &str) -> Self {
        self.method = method.to_owned();
        self
    }

    pub fn to(mut self, target: &str) -> Self {
        self.target = target.to_owned();
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Puts something before the request, as a proxy does that says whom it speaks for.
    pub fn after(mut self, before: impl Into<Vec<u8>>) -> Self {
        self.before = before.into();
        self
    }

    fn bytes(&self, authority: &str) -> Vec<u8> {
        if let Some(raw) = &self.raw {
            return [&*self.before, raw].concat();
        }
        let has = |wanted: &str| self.headers.iter().any(|(name, _)| name == wanted);
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if !has("host") {
            head += &format!("host: {authority}\r\n");
        }
        if !has("content-length") && !has("transfer-encoding") {
            head += &format!("content-length: {}\r\n", self.body.len());
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "connection: close\r\n\r\n";
        [&self.before, head.as_bytes(), &self.body].concat()
    }

    /// Sends it; `None` when the connection was closed without an answer.
    pub async fn fire(&self, gate: &Gate) -> Option<Answer> {
        let address = gate.running.address();
        let mut socket = TcpStream::connect(address).await.expect("the gateway listens");
        // The gateway may close before it has read everything.
        let _ = socket.write_all(&self.bytes(&address.to_string())).await;
        let mut got = Vec::new();
        let reading = async {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = socket.read(&mut buffer).await {
                got.extend_from_slice(&buffer[..count]);
            }
        };
        tokio::time::timeout(Duration::from_secs(15), reading)
            .await
            .expect("the gateway closes in time");
        read(&got)
    }
}

fn read(got: &[u8]) -> Option<Answer> {
    let end = got.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&got[..end]).expect("an ASCII head");
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse::<u16>().ok()?;
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').expect("a header");
        headers.append(
            HeaderName::try_from(name).expect("a name"),
            HeaderValue::try_from(value.trim()).expect("a value"),
        );
    }
    Some(Answer {
        status: StatusCode::from_u16(status).expect("a status"),
        headers,
        body: Bytes::copy_from_slice(&got[end + 4..]),
    })
}

/// A request and what it must get.
pub struct Case {
    name: String,
    shot: Shot,
    /// 0: closed without an answer.
    status: u16,
    code: Option<i64>,
    headers: Vec<(&'static str, String)>,
}

/// A case; `code` 0 means a body without a JSON-RPC error.
pub fn case(name: impl Into<String>, shot: Shot, status: u16, code: i64) -> Case {
    Case {
        name: name.into(),
        shot,
        status,
        code: (code != 0).then_some(code),
        headers: Vec::new(),
    }
}

impl Case {
    /// This header, exactly; empty means it must be missing.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// Fires every case; none may reach the upstream.
pub async fn refuse(gate: &Gate, upstream: &Upstream, cases: Vec<Case>, expected: usize) {
    let mut wrong = Vec::new();
    let before = upstream.seen().len();
    let count = cases.len();
    for case in cases {
        let answer = case.shot.fire(gate).await;
        let got = answer.as_ref().map_or(0, |answer| answer.status.as_u16());
        let body = answer.as_ref().map_or(Value::Null, Answer::json);
        let error = if body.is_array() { &body[0] } else { &body };
        let code = error["error"]["code"].as_i64();
        if (got, code) != (case.status, case.code) {
            wrong.push(format!(
                "{}: wanted {} {:?}, got {got} {code:?} {body}",
                case.name, case.status, case.code
            ));
        }
        // Of the reserved codes, only those that JSON-RPC and MCP define (MCP 2026-07-28, "Error Codes").
        let defined = [-32_700, -32_600, -32_601, -32_602, -32_603, -32_020, -32_021, -32_022];
        if code.is_some_and(|code| (-32_768..=-32_000).contains(&code) && !defined.contains(&code)) {
            wrong.push(format!("{}: nobody defined {code:?}", case.name));
        }
        for (name, value) in case.headers {
            let got = answer.as_ref().map_or("", |answer| answer.header(name));
            if got != value {
                wrong.push(format!("{}: {name} is {got:?}, not {value:?}", case.name));
            }
        }
        if upstream.seen().len() != before {
            wrong.push(format!("{}: the upstream saw {:?}", case.name, upstream.seen().last()));
            break;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(count, expected, "the family's count is out of date");
}
