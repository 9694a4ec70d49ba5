//! Users whose connection ends while their client runs: SDKs that can open pages are asked to, and their call goes on when the user
//! has connected again.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use super::world::Caller;
use super::{NODE, PATIENCE, PY2, command};
use crate::connect_refusal::{LOGIN, OURS, alice, connect, connections, gate, page};
use crate::gate::call;
use crate::rmcp_server::RmcpServer;

/// A client that does one thing for each line it is sent.
struct Talking {
    _child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Talking {
    fn start((program, arguments): Caller, url: &str, token: &str) -> Self {
        let mut child = command(program, arguments)
            .arg(url)
            .args(["--token", token, "--tool", "echo"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let stdin = child.stdin.take().expect("a pipe");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self {
            _child: child,
            stdin,
            lines,
        }
    }

    async fn said(&mut self) -> Value {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.expect("in time").expect("text").expect("it goes on");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"))
    }

    async fn go_on(&mut self) {
        self.stdin.write_all(b"\n").await.expect("it listens");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_sdk_opens_the_page_and_its_call_goes_on_once_its_user_has_connected() {
    const JS: &str = "tests/interop/clients/asked.mjs";
    const PY: &str = "tests/interop/clients/asked.py";
    let clients: [(Caller, bool); 4] = [
        ((NODE, &[JS]), true),
        ((PY2, &[PY]), true),
        ((NODE, &[JS, "--mode", "legacy"]), false),
        ((NODE, &[JS, "--sdk", "v1"]), false),
    ];
    for (client, modern) in clients {
        let upstream = RmcpServer::start().await;
        let gate = gate(&upstream.url(), LOGIN, "").await;
        let token = gate.reader();
        connect(&gate, &upstream.url()).await;
        let mut talking = Talking::start(client, &gate.url(), &token);
        let first = talking.said().await;
        assert!(first["answer"]["content"].is_array(), "{client:?}: {first}");

        let gone = connections(&gate).await.forget("notes", &alice(&gate), None).await;
        assert!(gone.expect("a store"));
        while gate.legacy(&token, &call("echo")).await.code() != Some(50_202) {}
        talking.go_on().await;
        let refused = talking.said().await;
        let question = match modern {
            true => refused["asked"].clone(),
            false => {
                assert_eq!(refused["code"], -32_042, "{client:?}: {refused}");
                refused["data"]["elicitations"][0].clone()
            }
        };
        assert_eq!(
            (&question["mode"], &question["url"]),
            (&json!("url"), &json!(page(&gate))),
            "{client:?}: {refused}"
        );

        connect(&gate, &upstream.url()).await;
        if !modern {
            // Nobody waits for its user but itself: the gate hears of another process's connection within a second.
            while gate.legacy(&token, &call("echo")).await.code() == Some(50_202) {}
        }
        talking.go_on().await;
        let second = talking.said().await;
        assert_eq!(second["answer"]["content"], first["answer"]["content"], "{client:?}");
        let seen = upstream.seen();
        assert!(
            seen.iter().all(|seen| !seen.message().to_string().contains(OURS)),
            "the server saw nothing of it"
        );
    }
}
