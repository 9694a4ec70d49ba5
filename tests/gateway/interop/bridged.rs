//! Clients of one era and transport, servers of another, and the gate between them.
//!
//! 1. The measure is what the server does for its native client: the same SDK, joined to it without the gate in the way that
//!    both speak. Through the gate, every step must come to the same.
//! 2. What the eras themselves tell differently is compared by its meaning: [`same`] says how.
//! 3. [`Bridged::different`] lists steps that may differ all the same, with reasons. One that doesn't is stale, and fails the
//!    test too.
//! 4. Where a server asks its client, the questions must have been put, or the comparison would show nothing.

use futures_util::StreamExt;
use serde_json::{Map, Value, json};

use super::{
    Client, EVERYTHING, EVERYTHING_SSE, Link, MID, NEW, NODE, OLD_SSE, PY1_CLIENT, PY2, PY2_AUTO, PY2_LEGACY, RMCP,
    Running, Server, V1, V2, V2_LEGACY, V2_SERVER, client, server,
};
use crate::gate::Gate;

const V2_MODERN: Client = client(
    "npm v2 modern",
    NODE,
    &["tests/interop/clients/v2.mjs", "--mode", "modern"],
);
const TIME: Server = server(
    "time",
    PY2,
    &["-m", "mcp_server_time", "--local-timezone", "UTC"],
    "",
    Link::Stdio,
);
const EVERYTHING_STDIO: Server = server(
    "everything stdio",
    NODE,
    &[
        "tests/interop/node_modules/@modelcontextprotocol/server-everything/dist/index.js",
        "stdio",
    ],
    "",
    Link::Stdio,
);

const ABSENT: &str = "not offered";

#[derive(Clone, Copy)]
struct Bridged {
    server: Server,
    /// Joined to the server directly.
    native: Client,
    /// Joined to the gate, over this.
    client: Client,
    front: Link,
    /// The era that the configuration gives the server; none: the gate finds out.
    era: &'static str,
    different: &'static [(&'static str, &'static str)],
}

/// What no modern client can use.
const TASKS: &[(&str, &str)] = &[(
    "tools",
    "a tool that can only be called as a task of 2025-11-25 is left out",
)];
/// The server tells everybody of its resources, and knows no subscription to one.
const UNSUBSCRIBED: &[(&str, &str)] = &[(
    "changes",
    "the server refuses to subscribe and tells all the same; Python 2.x hears of what was acknowledged alone",
)];
/// How npm v2 tells it.
const NOT_FOUND: &[(&str, &str)] = &[(
    "templates",
    "an unknown method is 404 in 2026-07-28, and npm v2 tells of the status",
)];

/// A pair whose era the gate finds out.
const fn pair(server: Server, native: Client, client: Client, front: Link) -> Bridged {
    Bridged {
        server,
        native,
        client,
        front,
        era: "auto",
        different: &[],
    }
}

impl Bridged {
    /// The same with a server that could speak to the client itself, and may not.
    const fn held_to(self, era: &'static str) -> Self {
        Self { era, ..self }
    }

    /// The same with steps that may differ.
    const fn but(self, different: &'static [(&'static str, &'static str)]) -> Self {
        Self { different, ..self }
    }
}

fn pairs() -> Vec<Bridged> {
    use Link::{Sse, Stdio, Streamable};
    vec![
        // Clients of 2026-07-28, servers with a handshake.
        pair(MID, PY2_LEGACY, PY2_AUTO, Streamable).but(UNSUBSCRIBED),
        pair(MID, V2_LEGACY, V2_MODERN, Streamable),
        pair(NEW, PY2_AUTO, PY2_AUTO, Streamable)
            .held_to("legacy")
            .but(UNSUBSCRIBED),
        pair(RMCP, V2, V2_MODERN, Streamable).held_to("legacy"),
        pair(EVERYTHING, PY2_LEGACY, PY2_AUTO, Streamable).but(TASKS),
        pair(EVERYTHING, V2_LEGACY, V2_MODERN, Streamable).but(TASKS),
        pair(OLD_SSE, PY2_LEGACY, PY2_AUTO, Streamable),
        pair(OLD_SSE, V2_LEGACY, V2_MODERN, Streamable).but(NOT_FOUND),
        pair(EVERYTHING_SSE, V2_LEGACY, V2_MODERN, Streamable).but(TASKS),
        pair(EVERYTHING_STDIO, PY2_LEGACY, PY2_AUTO, Streamable).but(TASKS),
        pair(EVERYTHING_STDIO, V2_LEGACY, V2_MODERN, Streamable).but(TASKS),
        pair(TIME, PY2_AUTO, PY2_AUTO, Streamable),
        pair(TIME, V2_LEGACY, V2_MODERN, Streamable).held_to("legacy"),
        // Clients that begin with a handshake, servers of 2026-07-28.
        pair(NEW, PY2_LEGACY, PY2_LEGACY, Streamable).held_to("modern"),
        pair(NEW, PY1_CLIENT, PY1_CLIENT, Streamable).held_to("modern"),
        pair(NEW, V1, V1, Sse).held_to("modern"),
        pair(V2_SERVER, V2, V2_LEGACY, Streamable).held_to("modern"),
        pair(RMCP, V1, V1, Streamable).held_to("modern"),
        pair(RMCP, PY1_CLIENT, PY1_CLIENT, Sse).held_to("modern"),
        pair(TIME, PY2_LEGACY, PY1_CLIENT, Streamable).held_to("modern"),
        // One era, two transports.
        pair(MID, PY1_CLIENT, PY1_CLIENT, Sse),
        pair(EVERYTHING, V1, V1, Sse),
        pair(OLD_SSE, PY1_CLIENT, PY1_CLIENT, Streamable),
        pair(EVERYTHING_SSE, V1, V1, Streamable),
        pair(EVERYTHING_STDIO, V1, V1, Streamable),
        pair(EVERYTHING_STDIO, V1, V1, Sse),
        pair(TIME, V1, V1, Streamable).held_to("legacy"),
        pair(TIME, V1, V1, Sse).held_to("legacy"),
    ]
    .into_iter()
    .inspect(|pair| assert_ne!(pair.front, Stdio, "the gate is reached over HTTP"))
    .collect()
}

/// Whether two outcomes of a step mean the same.
fn same(step: &str, direct: &Value, gated: &Value) -> bool {
    match step {
        // Statuses of GET and DELETE, which not every era has.
        "end" => true,
        "connect" => {
            let capabilities = |told: &Value| -> Vec<String> {
                let names = told["capabilities"].as_array().into_iter().flatten();
                // 2025-11-25's tasks are another thing than the extension that followed them.
                let names = names.filter_map(Value::as_str).filter(|name| *name != "tasks");
                names.map(str::to_owned).collect()
            };
            direct["server"] == gated["server"] && capabilities(direct) == capabilities(gated)
        }
        // What the caller is told of a call that it gave up is its own SDK's doing.
        "cancel" => direct["server"] == gated["server"],
        // The SDKs have names of their own for what they hear on a subscription.
        "changes" => match (direct, gated) {
            (Value::Array(direct), Value::Array(gated)) => direct.len() == gated.len(),
            _ => direct == gated,
        },
        // Whoever has no session has nothing to come back to; and how much of the progress was lost with a stream is chance.
        "resume" => direct["texts"] == gated["texts"] || [direct, gated].contains(&&json!(ABSENT)),
        _ => era_free(direct) == era_free(gated),
    }
}

/// With the codes of 2026-07-28, wherever they stand.
fn era_free(outcome: &Value) -> String {
    outcome.to_string().replace("-32002", "-32602")
}

impl Bridged {
    /// A line of the table, and whether everything was as it has to be.
    async fn run(self) -> (String, bool) {
        let name = format!(
            "{:<16} x {:<14} {:<10} {:<7}",
            self.server.name,
            self.client.name,
            self.front.name(),
            self.era
        );
        let Value::Object(direct) = self.directly().await else {
            return (format!("{name} no report without the gate"), false);
        };
        let (gated, reached) = self.gated().await;
        let mut wrong = self.idle(&direct);
        let reached = |method: &str| {
            reached
                .as_ref()
                .map(|methods| methods.iter().any(|reached| reached == method))
        };
        // A server of both eras would do for the client what it does natively, bridge or none.
        if self.era != "auto" && reached("initialize").is_some_and(|shaken| shaken != (self.era == "legacy")) {
            wrong.push(format!("the server was not spoken to as a {} one", self.era));
        }
        for (step, outcome) in &direct {
            let got = gated.get(step).unwrap_or(&Value::Null);
            let reason = self.different.iter().find(|(different, _)| different == step);
            match (same(step, outcome, got), reason) {
                (false, None) => wrong.push(format!("{step}: natively {outcome}\n    {step}: bridged  {got}")),
                (true, Some((_, reason))) => {
                    wrong.push(format!("{step} is no different, but expected to be: {reason}"))
                }
                _ => {}
            }
        }
        if let Some(lost) = gated.get("lost") {
            wrong.push(format!("lost: {lost}"));
        }
        let protocol = gated["connect"]["protocol"].as_str();
        if self.speaks_modern() != (protocol == Some("2026-07-28")) {
            wrong.push(format!("the client spoke {protocol:?}"));
        }
        let verdict = match wrong.is_empty() {
            true => format!("{} steps the same", direct.len()),
            false => format!("DIFFERENT\n    {}", wrong.join("\n    ")),
        };
        (format!("{name} {verdict}"), wrong.is_empty())
    }

    /// Through the gate, which speaks every revision, a client that probes for this one finds it.
    fn speaks_modern(self) -> bool {
        self.front == Link::Streamable && [PY2_AUTO, V2, V2_MODERN].contains(&self.client)
    }

    async fn directly(self) -> Value {
        let (_server, url) = self.server.start().await;
        self.native.run(self.server, &url, &[]).await
    }

    /// The report, and the methods that reached the server, where it can tell.
    async fn gated(self) -> (Value, Option<Vec<String>>) {
        let (server, url) = self.server.start().await;
        let upstream = match (self.era, self.server.link) {
            ("auto", Link::Stdio) => "stdio".to_owned(),
            ("auto", _) => "auto".to_owned(),
            (era, _) => format!("{}, era: {era}", self.server.transport()),
        };
        let gate = Gate::with_listen("", &self.server.route(&url, &upstream, "")).await;
        let token = gate.token(&[], &[]);
        let report = self
            .client
            .run_over(self.front, self.server, &gate.url(), &["--token", &token])
            .await;
        let reached = match &server {
            Running::Here(server) => Some(server.methods()),
            Running::Process { .. } | Running::NotYet => None,
        };
        (report, reached)
    }

    /// Steps that did nothing with the native client: those show nothing.
    fn idle(self, direct: &Map<String, Value>) -> Vec<String> {
        let says = |step: &str, text: &str| {
            direct
                .get(step)
                .is_some_and(|outcome| outcome.to_string().contains(text))
        };
        let profile = self.server.profile();
        let mut steps = vec![(
            "call",
            match profile {
                "time" => "20:00",
                "everything" => "hello",
                _ => "5",
            },
        )];
        if profile != "time" {
            steps.extend([("sampling", "you said"), ("progress", "5"), ("after_cancel", "texts")]);
        }
        if profile != "time" && self.server != OLD_SSE {
            steps.push(("elicitation", "Ada"));
        }
        // It has no tool that waits, so nothing there could be cancelled.
        steps.retain(|(step, _)| *step != "after_cancel" || self.server != OLD_SSE);
        steps
            .into_iter()
            .filter(|(step, text)| !says(step, text))
            .map(|(step, text)| format!("{step} does not say {text} without the gate: {:?}", direct.get(step)))
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_has_of_every_server_what_its_native_client_has() {
    let results: Vec<(String, bool)> = futures_util::stream::iter(pairs())
        .map(Bridged::run)
        .buffered(3)
        .collect()
        .await;
    let table: Vec<&str> = results.iter().map(|(line, _)| line.as_str()).collect();
    crate::show("bridged", &table.join("\n"));
    let different = results.iter().filter(|(_, same)| !same);
    let different: Vec<&str> = different.map(|(line, _)| line.as_str()).collect();
    assert!(different.is_empty(), "bridged, these differ:\n{}", different.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_modern_only_client_calls_a_tool_that_samples_on_an_sse_server_of_2024() {
    let (report, _) = pair(OLD_SSE, V2_LEGACY, V2_MODERN, Link::Streamable).gated().await;
    assert_eq!(report["connect"]["protocol"], "2026-07-28", "{report:#}");
    assert_eq!(report["connect"]["server"], "old", "{report:#}");
    assert_eq!(report["sampling"], json!({"texts": ["toy: you said hi"]}), "{report:#}");
    assert!(report.get("lost").is_none(), "{report:#}");
}
