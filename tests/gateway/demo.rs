//! `portcullis demo` as a visitor and as a script meets it: the real binary, and what it prints, run as printed.

use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

/// A demo in an empty directory.
struct Demo {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    directory: TempDir,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut child = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .arg("demo")
            .args(arguments)
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary runs");
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        Self {
            child,
            lines,
            directory,
        }
    }

    async fn line(&mut self) -> Option<String> {
        let line = timeout(SOON, self.lines.next_line());
        line.await.expect("the demo prints soon").expect("UTF-8")
    }

    /// Sends the signal; returns what was left on stdout, and stderr. The demo must end well and leave nothing.
    async fn end(mut self, signal: &str) -> (Vec<String>, String) {
        let pid = self.child.id().expect("it runs").to_string();
        let sent = Command::new("kill")
            .args([signal, &pid])
            .status()
            .await
            .expect("kill runs");
        assert!(sent.success());
        let mut rest = Vec::new();
        while let Some(line) = self.line().await {
            rest.push(line);
        }
        let mut stderr = String::new();
        let mut pipe = self.child.stderr.take().expect("stderr is piped");
        timeout(SOON, pipe.read_to_string(&mut stderr))
            .await
            .expect("it ends soon")
            .expect("UTF-8");
        let status = timeout(SOON, self.child.wait())
            .await
            .expect("it ends soon")
            .expect("a status");
        assert!(status.success(), "{status}\n{stderr}");
        let left: Vec<_> = std::fs::read_dir(self.directory.path()).expect("readable").collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        (rest, stderr)
    }
}

/// Runs a printed command in a shell, as a visitor would.
async fn shell(command: &str) -> Value {
    let output = timeout(SOON, Command::new("sh").args(["-c", command]).output());
    let output = output.await.expect("it answers soon").expect("a shell");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {text:?} from {command}"))
}

fn tools(list: &Value) -> Vec<&str> {
    let tools = list["result"]["tools"]
        .as_array()
        .unwrap_or_else(|| panic!("no tools: {list}"));
    tools.iter().filter_map(|tool| tool["name"].as_str()).collect()
}

async fn get(url: &str) -> Value {
    let request = Request::get(url).body(Empty::<Bytes>::new()).expect("a request");
    let client = Client::builder(TokioExecutor::new()).build_http();
    let answer = client.request(request).await.expect("an answer");
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    serde_json::from_slice(&body).unwrap_or_default()
}

#[tokio::test]
async fn every_command_works_as_printed() {
    let mut demo = Demo::start(&[]);
    let mut printed = Vec::new();
    while printed.last().is_none_or(|line: &String| !line.starts_with("Ctrl-C")) {
        printed.push(demo.line().await.expect("the tour goes on"));
    }
    let commands: Vec<&String> = printed.iter().filter(|line| line.starts_with("curl ")).collect();
    let [fresh, list, call, refused, allowed] = commands[..] else {
        panic!("five commands, not {}", commands.len());
    };

    let listed = shell(list).await;
    let seen = tools(&listed);
    assert!(seen.contains(&"echo") && !seen.contains(&"admin_reset"), "{seen:?}");
    assert_eq!(
        shell(call).await["result"]["content"][0]["text"],
        "hello through the gate"
    );
    assert_eq!(shell(refused).await["error"]["code"], 40300);
    assert_eq!(shell(allowed).await["result"]["content"][0]["text"], "forgot 1 echoes");

    let fresh = shell(fresh).await;
    let (before, rest) = list.split_once("Bearer ").expect("a bearer");
    let after = rest.split_once('\'').expect("the header's end").1;
    let token = fresh["access_token"].as_str().expect("a token");
    assert_eq!(tools(&shell(&format!("{before}Bearer {token}'{after}")).await), seen);

    let (rest, _) = demo.end("-INT").await;
    assert!(rest.is_empty(), "{rest:?}");
}

#[tokio::test]
async fn json_is_one_line_for_scripts() {
    let mut demo = Demo::start(&["--json"]);
    let line = demo.line().await.expect("a line");
    let told: Value = serde_json::from_str(&line).expect("JSON");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let (url, admin) = (text(&told["url"]), text(&told["admin_url"]));

    let (origin, path) = url.split_at(url.find("/mcp").expect("the route's path"));
    let metadata = get(&format!("{origin}/.well-known/oauth-protected-resource{path}")).await;
    assert_eq!(metadata["resource"], told["url"]);
    assert_eq!(metadata["authorization_servers"][0], told["issuer"]);
    let issuer = get(&format!(
        "{}/.well-known/oauth-authorization-server",
        text(&told["issuer"])
    ))
    .await;
    assert_eq!(issuer["issuer"], told["issuer"]);

    for (role, sees_admin_tools) in [("reader", false), ("admin", true)] {
        let token = text(&told["tokens"][role]);
        let command = format!(
            "curl -sS {url} -H 'Authorization: Bearer {token}' -H 'Content-Type: application/json' \
             -H 'Accept: application/json, text/event-stream' -H 'MCP-Protocol-Version: 2026-07-28' \
             -H 'Mcp-Method: tools/list' -d '{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/list\",\"params\":{{\"_meta\":\
             {{\"io.modelcontextprotocol/protocolVersion\":\"2026-07-28\",\
             \"io.modelcontextprotocol/clientCapabilities\":{{}}}}}}}}'"
        );
        assert_eq!(
            tools(&shell(&command).await).contains(&"admin_reset"),
            sees_admin_tools,
            "{role}"
        );
    }
    // Whoever else is on this machine gets nothing without a token.
    let bare = shell(&format!("curl -sS -o /dev/null -w '%{{http_code}}' {url} -d '{{}}'")).await;
    assert!(url.starts_with("http://127.0.0.1:") && bare == 401, "{url} {bare}");
    let metrics = Command::new("curl")
        .args(["-sS", &format!("{admin}/metrics")])
        .output()
        .await
        .expect("curl");
    assert!(String::from_utf8_lossy(&metrics.stdout).contains("portcullis_mcp_requests_total"));

    let (rest, stderr) = demo.end("-TERM").await;
    assert!(rest.is_empty(), "more than a line: {rest:?}");
    assert!(stderr.contains("tools/list"), "the audit is on stderr: {stderr}");
    assert!(
        !stderr.contains(&text(&told["tokens"]["reader"])[..20]),
        "a token's prefix was logged"
    );
}
