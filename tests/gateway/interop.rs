//! Official SDKs, old and new, as clients and servers: with the gate between them, nothing may change for either.
//!
//! Each pair runs twice on fresh servers, directly and through the gate; the clients print what happened, step by step, and
//! both reports must be equal. What the clients and servers are stands in `tests/interop/README.md`.

mod asked;
mod bound;
mod bridged;
mod connect;
mod connections;
mod exchange;
mod gate_process;
mod hop;
mod own_tokens;
mod tokens;
pub mod world;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::gate::Gate;
use super::rmcp_server::{RmcpServer, Settings};

/// Longest a client may take; its steps have ten seconds each.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Server {
    name: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
    path: &'static str,
    link: Link,
}

/// How a client and a server are joined, directly or by the gate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Link {
    Streamable,
    Sse,
    /// The server is a command of whoever speaks to it.
    Stdio,
}

impl Link {
    /// As clients take it.
    fn name(self) -> &'static str {
        match self {
            Self::Streamable => "streamable",
            Self::Sse => "sse",
            Self::Stdio => "stdio",
        }
    }
}

/// A started server; dropping it ends it.
enum Running {
    Process {
        _child: Child,
    },
    Here(RmcpServer),
    /// The other side will start it.
    NotYet,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Client {
    name: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
}

const PY2: &str = "target/interop/py2/bin/python";
const PY1: &str = "target/interop/py1/bin/python";
const PYOLD: &str = "target/interop/pyold/bin/python";
const NODE: &str = "node";
/// No program: the server written for these tests, in this process.
const HERE: &str = "";

const NEW: Server = server("new", PY2, &["tests/interop/servers/new.py"], "/mcp", Link::Streamable);
const FAST: Server = server(
    "fastmcp",
    PY2,
    &["tests/interop/servers/fast.py"],
    "/mcp",
    Link::Streamable,
);
const MID: Server = server("mid", PY1, &["tests/interop/servers/mid.py"], "/mcp", Link::Streamable);
const OLD_SSE: Server = server(
    "old SSE",
    PYOLD,
    &["tests/interop/servers/old_sse.py"],
    "/sse",
    Link::Sse,
);
const V2_SERVER: Server = server(
    "npm v2",
    NODE,
    &["tests/interop/servers/v2.mjs"],
    "/mcp",
    Link::Streamable,
);
const RMCP: Server = server("rmcp", HERE, &[], "/mcp", Link::Streamable);
/// The same, where every reply of 2026-07-28 is a stream.
const RMCP_STREAMS: Server = server("rmcp streams", HERE, &["streams"], "/mcp", Link::Streamable);
const EVERYTHING: Server = server(
    "everything",
    NODE,
    &["tests/interop/servers/everything.mjs", "--mode", "streamable"],
    "/mcp",
    Link::Streamable,
);
const EVERYTHING_SSE: Server = server(
    "everything SSE",
    NODE,
    &["tests/interop/servers/everything.mjs", "--mode", "sse"],
    "/sse",
    Link::Sse,
);

const PY2_AUTO: Client = client("py2", PY2, &["tests/interop/clients/py2.py"]);
const PY2_LEGACY: Client = client("py2 legacy", PY2, &["tests/interop/clients/py2.py", "--mode", "legacy"]);
const PY1_CLIENT: Client = client("py1", PY1, &["tests/interop/clients/py1.py"]);
const V1: Client = client("npm v1", NODE, &["tests/interop/clients/v1.mjs"]);
const V2: Client = client("npm v2", NODE, &["tests/interop/clients/v2.mjs", "--mode", "auto"]);
const V2_LEGACY: Client = client(
    "npm v2 legacy",
    NODE,
    &["tests/interop/clients/v2.mjs", "--mode", "legacy"],
);

const fn server(
    name: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
    path: &'static str,
    link: Link,
) -> Server {
    Server {
        name,
        program,
        arguments,
        path,
        link,
    }
}

const fn client(name: &'static str, program: &'static str, arguments: &'static [&'static str]) -> Client {
    Client {
        name,
        program,
        arguments,
    }
}

/// Rules that let everything through, so that every reply is looked at.
pub(super) const INSPECTED: &str = "    tools: {rules: [{allow: [\"*\"]}]}
    resources: {rules: [{allow: [\"*\"]}]}
    prompts: {rules: [{allow: [\"*\"]}]}
";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A program of the interop environment; missing, it is the test's failure, not a reason to skip it.
fn program(name: &str) -> PathBuf {
    if name == NODE {
        assert!(
            root().join("target/interop/node").exists(),
            "run tests/interop/setup first: the npm packages are missing"
        );
        return name.into();
    }
    let path = root().join(name);
    assert!(path.exists(), "run tests/interop/setup first: {name} is missing");
    path
}

fn command(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program(name));
    command
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// The port that a started script says it listens on.
async fn listening(child: &mut Child, name: &str) -> String {
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let port = tokio::time::timeout(Duration::from_secs(60), async {
        while let Some(line) = lines.next_line().await.expect("text") {
            if let Some(port) = line.strip_prefix("PORT ") {
                return port.trim().to_owned();
            }
        }
        panic!("{name} ended without a port")
    })
    .await
    .unwrap_or_else(|_| panic!("{name} did not listen in time"));
    // Read on, so that the script never blocks on a full pipe.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    port
}

/// Runs a client that prints one report, and must come to an end that it calls good.
async fn reported(command: &mut Command) -> Value {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = tokio::time::timeout(PATIENCE, command.output())
        .await
        .expect("in time")
        .expect("it runs");
    let (said, talk) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{command:?}: {said}\n{talk}");
    serde_json::from_str(&said).unwrap_or_else(|_| panic!("{command:?} printed no report: {said}"))
}

impl Server {
    /// Starts it; its URL.
    async fn start(self) -> (Running, String) {
        if self.program == HERE {
            let settings = Settings {
                // The clients have to follow cursors.
                page: 5,
                json: !self.arguments.contains(&"streams"),
                ..Settings::default()
            };
            let server = RmcpServer::with(settings).await;
            let url = server.url();
            return (Running::Here(server), url);
        }
        if self.link == Link::Stdio {
            return (Running::NotYet, self.command_line());
        }
        let mut child = command(self.program, self.arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        let port = listening(&mut child, self.name).await;
        (
            Running::Process { _child: child },
            format!("http://127.0.0.1:{port}{}", self.path),
        )
    }

    /// What starts it, as a JSON array.
    fn command_line(self) -> String {
        let program = match self.program {
            // A command is looked for where the gate's configuration says, and not where a shell would.
            NODE => super::conformance::node(),
            name => program(name),
        };
        let mut command = vec![program.display().to_string()];
        command.extend(self.arguments.iter().map(ToString::to_string));
        serde_json::json!(command).to_string()
    }

    /// A route to it, with `more` of the route, indented by four. `transport` may be followed by more of the upstream.
    fn route(self, url: &str, transport: &str, more: &str) -> String {
        let upstream = match self.link {
            Link::Stdio => format!("command: {url}, directory: {:?}, transport: {transport}", root()),
            _ => format!("urls: [\"{url}\"], transport: {transport}"),
        };
        format!("routes:\n  notes:\n    path: /notes/mcp\n    upstream: {{{upstream}}}\n{more}")
    }

    fn transport(self) -> &'static str {
        match self.link {
            Link::Streamable => "streamable-http",
            Link::Sse => "sse",
            Link::Stdio => "stdio",
        }
    }

    /// Which steps a client goes through.
    fn profile(self) -> &'static str {
        match self.name.split(' ').next() {
            Some("everything") => "everything",
            Some("time") => "time",
            _ => "ours",
        }
    }
}

impl Client {
    async fn run(self, server: Server, url: &str, more: &[&str]) -> Value {
        self.run_over(server.link, server, url, more).await
    }

    /// The same where the client isn't joined to the gate as the gate is to the server.
    async fn run_over(self, link: Link, server: Server, url: &str, more: &[&str]) -> Value {
        let mut command = command(self.program, self.arguments);
        command
            .arg(url)
            .args(["--transport", link.name(), "--profile", server.profile()])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let output = tokio::time::timeout(PATIENCE, command.output())
            .await
            .unwrap_or_else(|_| panic!("{} against {} took over two minutes", self.name, server.name))
            .expect("the client runs");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            panic!(
                "{} against {} printed no report: {}",
                self.name,
                server.name,
                String::from_utf8_lossy(&output.stdout)
            )
        })
    }
}

struct Pair {
    server: Server,
    client: Client,
    transport: &'static str,
    rules: &'static str,
    label: &'static str,
}

impl Pair {
    /// A line of the table, and whether the two runs were equal.
    async fn run(&self) -> (String, bool) {
        let (server, direct_url) = self.server.start().await;
        let direct = self.client.run(self.server, &direct_url, &[]).await;
        drop(server);
        let (_server, url) = self.server.start().await;
        let gate = Gate::with_listen("", &self.server.route(&url, self.transport, self.rules)).await;
        let token = gate.token(&[], &[]);
        let gated = self.client.run(self.server, &gate.url(), &["--token", &token]).await;
        let name = format!("{:<15} x {:<14} {:<9}", self.server.name, self.client.name, self.label);
        let (Value::Object(direct), Value::Object(gated)) = (direct, gated) else {
            return (format!("{name} no report"), false);
        };
        let different: Vec<String> = direct
            .iter()
            .filter(|(step, outcome)| gated.get(*step) != Some(outcome))
            .map(|(step, outcome)| {
                let got = gated.get(step).unwrap_or(&Value::Null);
                format!("    {step}: directly {outcome}\n    {step}: gated    {got}")
            })
            .collect();
        let extra: Vec<&String> = gated.keys().filter(|step| !direct.contains_key(*step)).collect();
        // Two failures are equal too, and show nothing.
        let works = ["connect", "tools", "call", "read", "prompt"]
            .iter()
            .all(|step| direct.get(*step).is_some_and(|outcome| outcome.get("error").is_none()));
        let idle = self.idle_steps(&direct);
        let equal = works && idle.is_empty() && different.is_empty() && extra.is_empty();
        let verdict = if equal {
            format!("{} steps equal", direct.len())
        } else {
            format!(
                "DIFFERENT (works without the gate: {works}) {idle:?} {extra:?}\n{}",
                different.join("\n")
            )
        };
        (format!("{name} {verdict}"), equal)
    }
}

impl Pair {
    /// Steps that did nothing on the server that does everything: two runs that both skip a step are equal, and show nothing.
    fn idle_steps(&self, direct: &serde_json::Map<String, Value>) -> Vec<String> {
        if self.server.program != HERE {
            return Vec::new();
        }
        let step = |name: &str| direct.get(name).unwrap_or(&Value::Null).clone();
        let says = |name: &str, text: &str| step(name)["texts"][0].as_str().is_some_and(|said| said.contains(text));
        let done = [
            (
                "progress",
                says("progress", "counted to 5") && step("progress")["progress"] == 5,
            ),
            ("elicitation", says("elicitation", "Ada")),
            ("sampling", says("sampling", "you said hi")),
            (
                "changes",
                step("changes").as_array().is_some_and(|heard| heard.len() == 2),
            ),
            ("resume", says("resume", "resumed to 6")),
            ("cancel", step("cancel")["server"][0] == "true"),
            ("after_cancel", says("after_cancel", "9")),
            ("lost", step("lost").is_null()),
        ];
        let idle = done.iter().filter(|(_, done)| !done);
        idle.map(|(name, _)| format!("{name} did nothing: {}", step(name)))
            .collect()
    }
}

fn pairs() -> Vec<Pair> {
    let mut pairs = Vec::new();
    let mut add = |server: Server, clients: &[Client], rules, label| {
        for &client in clients {
            pairs.push(Pair {
                server,
                client,
                transport: server.transport(),
                rules,
                label,
            });
        }
    };
    let streamable = [PY2_AUTO, PY2_LEGACY, PY1_CLIENT, V1, V2, V2_LEGACY];
    // A client that would find no 2026-07-28 in a server finds it in the gate: those pairs are bridged.
    let handshake = [PY2_LEGACY, PY1_CLIENT, V1, V2_LEGACY];
    let sse = [PY2_LEGACY, PY1_CLIENT, V1, V2_LEGACY];
    add(NEW, &streamable, "", "as it is");
    add(RMCP, &streamable, "", "as it is");
    add(RMCP_STREAMS, &[PY2_AUTO, V2], "", "as it is");
    add(MID, &handshake, "", "as it is");
    add(V2_SERVER, &streamable, "", "as it is");
    add(FAST, &[PY2_AUTO, V1, V2], "", "as it is");
    add(EVERYTHING, &handshake, "", "as it is");
    add(OLD_SSE, &sse, "", "as it is");
    add(EVERYTHING_SSE, &sse, "", "as it is");
    add(NEW, &[PY2_AUTO, V2], INSPECTED, "inspected");
    add(RMCP, &[PY2_AUTO, PY1_CLIENT, V1, V2], INSPECTED, "inspected");
    add(RMCP_STREAMS, &[PY2_AUTO, V2], INSPECTED, "inspected");
    add(MID, &[PY1_CLIENT], INSPECTED, "inspected");
    add(OLD_SSE, &[PY1_CLIENT], INSPECTED, "inspected");
    add(EVERYTHING, &[V1], INSPECTED, "inspected");
    pairs.push(Pair {
        server: OLD_SSE,
        client: V1,
        transport: "auto",
        rules: "",
        label: "auto",
    });
    pairs.push(Pair {
        server: MID,
        client: V1,
        transport: "auto",
        rules: "",
        label: "auto",
    });
    pairs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_pair_does_through_the_gate_what_it_does_without() {
    let results: Vec<(String, bool)> = futures_util::stream::iter(pairs())
        .map(|pair| async move { pair.run().await })
        .buffered(3)
        .collect()
        .await;
    let table: Vec<&str> = results.iter().map(|(line, _)| line.as_str()).collect();
    crate::show("pairs", &table.join("\n"));
    let different: Vec<&str> = results
        .iter()
        .filter(|(_, equal)| !equal)
        .map(|(line, _)| line.as_str())
        .collect();
    assert!(
        different.is_empty(),
        "the gate made a difference:\n{}",
        different.join("\n")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_every_era_survive_a_refusal() {
    let rules = "    tools: {rules: [{allow: [\"*\"]}, {deny: [\"fail\"]}]}\n";
    for (server, client) in [
        (NEW, PY2_AUTO),
        (NEW, PY2_LEGACY),
        (NEW, V2),
        (RMCP, PY2_AUTO),
        (RMCP, PY2_LEGACY),
        (RMCP, PY1_CLIENT),
        (RMCP, V1),
        (RMCP, V2),
        (RMCP, V2_LEGACY),
        (MID, PY1_CLIENT),
        (MID, V1),
        (OLD_SSE, PY1_CLIENT),
        (OLD_SSE, PY2_LEGACY),
        (OLD_SSE, V1),
        (OLD_SSE, V2_LEGACY),
    ] {
        let (running, url) = server.start().await;
        let gate = Gate::with_listen("", &server.route(&url, server.transport(), rules)).await;
        let token = gate.token(&[], &[]);
        let report = client
            .run(server, &gate.url(), &["--token", &token, "--expect-denied", "fail"])
            .await;
        let name = format!("{} x {}: {report}", server.name, client.name);
        // False, not absent: a list that failed shows nothing.
        assert_eq!(report["tools"]["listed"], false, "{name}");
        assert!(
            report["denied"].get("error").is_some() || report["denied"]["is_error"] == true,
            "{name}"
        );
        assert_ne!(report["denied"]["error"], "timeout", "{name}");
        assert_eq!(report["next"], serde_json::json!({"texts": ["5"]}), "{name}");
        assert!(report.get("lost").is_none(), "{name}");
        if let Running::Here(server) = running {
            let mut called = Vec::new();
            for seen in server.seen() {
                let message = seen.message();
                called.extend(message["params"]["name"].as_str().map(str::to_owned));
            }
            assert_eq!(called, ["add"], "{name}");
        }
        println!("{:<10} x {:<14} refused, and goes on", server.name, client.name);
    }
}
