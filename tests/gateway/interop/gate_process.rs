//! A gateway as operators have it: a file, a process, and the commands beside it.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{NODE, command};
use crate::gate::client;

const SOON: Duration = Duration::from_secs(60);

/// No other test listens on this address, so that a port that was free a moment ago still is: the commands beside the
/// gateway read its URL in the configuration.
const HERE: Ipv4Addr = Ipv4Addr::new(127, 0, 7, 1);

pub(super) struct GateProcess {
    _child: Child,
    directory: tempfile::TempDir,
    /// Where it listens.
    pub(super) url: String,
    pub(super) public_url: String,
    admin: String,
}

/// A command that has begun: what it printed first, and the rest of it.
pub(super) struct Begun {
    child: Child,
    out: BufReader<tokio::process::ChildStdout>,
    pub(super) address: String,
}

async fn free() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind((HERE, 0)).await.expect("a port");
    listener.local_addr().expect("an address")
}

fn portcullis(directory: &tempfile::TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command
        .args(arguments)
        .current_dir(directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

impl GateProcess {
    /// Takes the tokens of `issuer`; `routes` is YAML, indented by two.
    pub(super) async fn start(issuer: &str, routes: &str) -> Self {
        Self::named(None, issuer, routes).await
    }

    /// The same where something that ends TLS makes it known by another URL.
    pub(super) async fn named(public_url: Option<&str>, issuer: &str, routes: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (listen, admin) = (free().await, free().await);
        let url = format!("http://{listen}");
        // Issuers let a redirect URI without TLS have few names. Nobody goes there: a browser's last address is pasted.
        let local = format!("http://localhost:{}", listen.port());
        let public_url = public_url.unwrap_or(&local).to_owned();
        let text = format!(
            "listen: {{address: \"{listen}\", public_url: \"{public_url}\", plaintext: true, allowed_hosts: [{HERE}]}}\n\
             admin: {{address: \"{admin}\"}}\n\
             state: {{directory: state}}\n\
             identity: {{corp: {{issuer: \"{issuer}\"}}}}\n\
             routes:\n{routes}"
        );
        std::fs::write(directory.path().join("portcullis.yaml"), text).expect("written");
        let mut child = portcullis(&directory, &["serve"]).spawn().expect("the binary runs");
        let mut log = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut said = Vec::new();
        let listening = async {
            while let Some(line) = log.next_line().await.expect("UTF-8") {
                said.push(line);
                if said.last().is_some_and(|line| line.contains("listening")) {
                    return true;
                }
            }
            false
        };
        let listens = timeout(SOON, listening).await;
        assert_eq!(listens, Ok(true), "{said:#?}");
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        Self {
            _child: child,
            directory,
            url,
            public_url,
            admin: format!("http://{admin}"),
        }
    }

    pub(super) fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// What tokens for route `linear` are for.
    pub(super) fn resource(&self) -> String {
        format!("{}/linear/mcp", self.public_url)
    }

    /// Starts a command that prints an address to open.
    pub(super) async fn begin(&self, arguments: &[&str]) -> Begun {
        let mut child = portcullis(&self.directory, arguments).spawn().expect("the binary runs");
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        let mut address = String::new();
        let read = timeout(SOON, out.read_line(&mut address)).await.expect("in time");
        if read.expect("UTF-8") == 0 {
            let output = child.wait_with_output().await.expect("it ends");
            panic!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let address = address.trim().to_owned();
        Begun { child, out, address }
    }

    /// Runs a command to its end; its exit code, and what it said.
    pub(super) async fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = timeout(SOON, portcullis(&self.directory, arguments).output()).await;
        let output = output.expect("in time").expect("the binary runs");
        let all = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&all).into_owned())
    }

    /// Connects as somebody at a terminal does: opens the address that is printed, logs in as `name`, and pastes back the
    /// address that the browser ends at. The exit code, and what the command said.
    pub(super) async fn connect(&self, arguments: &[&str], name: &str) -> (Option<i32>, String) {
        let begun = self.begin(&[&["connect"], arguments].concat()).await;
        let back = browse(
            &begun.address,
            Some(&format!("{}/connect/callback", self.public_url)),
            name,
        )
        .await;
        begun.end(&back).await
    }

    /// One modern request to a route's endpoint, with this token.
    pub(super) async fn call(&self, path: &str, token: &str, tool: &str) -> (u16, Value) {
        let meta = json!({
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        });
        let params = json!({"name": tool, "arguments": {}, "_meta": meta});
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
        let request = http::Request::post(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", "2026-07-28")
            .header("mcp-method", "tools/call")
            .header("mcp-name", tool)
            .body(http_body_util::Full::from(body.to_string()))
            .expect("a request");
        let (status, text) = exchanged(request).await;
        // A server may answer by a stream of one event.
        let data = text
            .lines()
            .find_map(|line| line.strip_prefix("data:"))
            .unwrap_or(&text);
        (status, serde_json::from_str(data.trim()).unwrap_or(Value::Null))
    }

    /// Calls until the answer has this status: what a command beside the gateway did, it knows within a second. The answer.
    pub(super) async fn until(&self, path: &str, token: &str, status: u16) -> Value {
        let calls = async {
            loop {
                let (got, answer) = self.call(path, token, "whoami").await;
                if got == status {
                    return answer;
                }
            }
        };
        timeout(SOON, calls).await.expect("in time")
    }

    /// Returns once so many people's connections to this route are in that state.
    pub(super) async fn until_connections(&self, route: &str, state: &str, count: u64) {
        let looks = async {
            while self.status(route).await["credential"]["connections"][state] != count {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, looks).await.expect("in time");
        let labels = [format!("route=\"{route}\""), format!("state=\"{state}\"")];
        let labels = labels.each_ref().map(String::as_str);
        assert_eq!(self.metric("connections", &labels).await, count as f64);
    }

    /// `/status` of the admin port.
    async fn status(&self, route: &str) -> Value {
        let request = http::Request::get(format!("{}/status", self.admin)).body(http_body_util::Full::default());
        let (_, text) = exchanged(request.expect("a request")).await;
        let status: Value = serde_json::from_str(&text).expect("JSON");
        let mut routes = status["routes"].as_array().expect("routes").iter();
        routes.find(|found| found["name"] == route).cloned().expect("the route")
    }

    /// The sum of a metric's lines that have all of `labels`.
    async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let request = http::Request::get(format!("{}/metrics", self.admin)).body(http_body_util::Full::default());
        let (_, text) = exchanged(request.expect("a request")).await;
        text.lines()
            .filter(|line| line.starts_with(&format!("portcullis_{name}{{")))
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }
}

async fn exchanged(request: http::Request<http_body_util::Full<bytes::Bytes>>) -> (u16, String) {
    use http_body_util::BodyExt;
    let answer = timeout(SOON, client().request(request))
        .await
        .expect("in time")
        .expect("an answer");
    let status = answer.status().as_u16();
    let body = timeout(SOON, answer.into_body().collect())
        .await
        .expect("in time")
        .expect("whole")
        .to_bytes();
    (status, String::from_utf8(body.to_vec()).expect("UTF-8"))
}

impl Begun {
    /// Writes a line to it, and nothing more; its exit code, and what it said.
    pub(super) async fn end(mut self, line: &str) -> (Option<i32>, String) {
        let mut stdin = self.child.stdin.take().expect("piped");
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .await
            .expect("it listens");
        drop(stdin);
        self.ended().await
    }

    pub(super) async fn ended(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        let all = async {
            self.out.read_to_string(&mut said).await.expect("UTF-8");
            self.child.wait_with_output().await.expect("it ends")
        };
        let output = timeout(SOON, all).await.expect("in time");
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.code(), said)
    }
}

/// A browser that logs in as `name` wherever a form asks; the address below `until` that it ends at, or the last page's text.
pub(super) async fn browse(address: &str, until: Option<&str>, name: &str) -> String {
    let mut browser = command(NODE, &["tests/interop/clients/browser.mjs", address]);
    let output = timeout(SOON, browser.args(until).args(["--name", name]).output()).await;
    let output = output.expect("in time").expect("it runs");
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{address}: {talk}");
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}
