//! The suite's scenarios of clients that must authorize themselves: the gate is the OAuth client, and its caller knows nothing of
//! the server's issuer.
//!
//! 1. Every such scenario of a revision runs at that revision: those it requires, and those it reports without scoring.
//! 2. The suite starts `interop/clients/gated.mjs`, which starts a gate in front of the scenario's server and somebody who
//!    connects when the gate says so.
//! 3. [`FAILS`] lists what may not pass, with reasons; a warning is none. One that passes after all is stale, and fails the test too.

use std::path::Path;
use std::process::Stdio;

use futures_util::StreamExt;
use serde_json::Value;
use tokio::process::Command;

use super::{PATIENCE, REVISIONS, SUITE, node, packages};
use crate::interop::world::Issuer;

/// Scenarios that fail, and why that is right.
const FAILS: &[(&str, &str)] = &[
    (
        "auth/dpop",
        "the gate holds bearer tokens: it proves nothing of them to a server",
    ),
    ("auth/dpop-nonce", "as auth/dpop"),
];

/// What became of a scenario.
struct Outcome {
    scenario: String,
    revision: &'static str,
    /// As the suite's own exit code has it: no failure, no warning, and the client's exit is good where it must be.
    passed: bool,
    checks: usize,
    wrong: Vec<String>,
    /// What the suite and the client printed.
    said: String,
}

/// The scenarios of a revision: those that are required, and those that are not scored.
fn scenarios(revision: &str) -> Vec<String> {
    let path = packages().join(format!("{SUITE}/requirements/{revision}.yaml"));
    let text = std::fs::read_to_string(path).expect("the suite's requirements");
    let client = text.lines().skip_while(|line| *line != "client:").skip(1);
    let required = client.map_while(|line| line.strip_prefix("  - "));
    let unscored = text.lines().filter_map(|line| line.strip_prefix("  - scenario: "));
    let all = required.chain(unscored).filter(|name| name.starts_with("auth/"));
    all.map(str::to_owned).collect()
}

async fn run(scenario: String, revision: &'static str, client: &str) -> Outcome {
    let results = tempfile::tempdir().expect("a directory");
    let mut command = Command::new(node());
    command
        .arg(packages().join(format!("{SUITE}/dist/index.js")))
        .args(["client", "--command", client, "--scenario", &scenario])
        .args(["--spec-version", revision, "--force", "--timeout", "90000", "-o"])
        .arg(results.path())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output())
        .await
        .unwrap_or_else(|_| panic!("{scenario} took over {PATIENCE:?}"))
        .expect("the suite runs");
    let checks = checks(results.path());
    let with = |status: &'static str| checks.iter().filter(move |check| check["status"] == status);
    Outcome {
        passed: output.status.success(),
        checks: checks.len() - with("INFO").count(),
        wrong: with("FAILURE")
            .chain(with("WARNING"))
            .map(|check| format!("{} {}", check["id"], check["description"]))
            .collect(),
        said: [output.stdout, output.stderr]
            .map(|said| String::from_utf8_lossy(&said).into_owned())
            .concat(),
        scenario,
        revision,
    }
}

/// What the suite left behind: one directory, at some depth, with the checks in it.
fn checks(results: &Path) -> Vec<Value> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(results).expect("the suite's results") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(checks(&path));
        } else if path.ends_with("checks.json") {
            let text = std::fs::read(path).expect("a file");
            found.extend(serde_json::from_slice::<Vec<Value>>(&text).expect("a list of checks"));
        }
    }
    found
}

impl Outcome {
    fn expected(&self) -> Option<&'static str> {
        let known = FAILS.iter().find(|(scenario, _)| *scenario == self.scenario);
        known.map(|(_, reason)| *reason)
    }

    fn line(&self) -> String {
        let verdict = match (self.passed, self.expected()) {
            (true, _) => "passed".to_owned(),
            (false, Some(reason)) => format!("expected to fail: {reason}"),
            (false, None) => "FAILED".to_owned(),
        };
        format!(
            "{} {:<40} {:>3} checks {verdict}",
            self.revision, self.scenario, self.checks
        )
    }

    /// What is wrong with it.
    fn wrong(&self) -> Vec<String> {
        let name = format!("{} {}", self.revision, self.scenario);
        let mut wrong = Vec::new();
        match (self.passed, self.expected()) {
            (false, None) => wrong.push(format!("{name}: {:#?}\n{}", self.wrong, self.said)),
            (true, Some(reason)) => wrong.push(format!("{name} passes, but was expected to fail: {reason}")),
            _ => {}
        }
        if self.checks == 0 {
            wrong.push(format!("{name}: nothing was checked\n{}", self.said));
        }
        wrong
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suites_authorization_scenarios_pass_with_the_gate_as_the_client() {
    let issuer = Issuer::start(&["--scope", "mcp.use"]).await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/clients/gated.mjs");
    let client = format!(
        "node {script} --portcullis {} --issuer {}",
        env!("CARGO_BIN_EXE_portcullis"),
        issuer.url()
    );
    let all = REVISIONS.into_iter().flat_map(|revision| {
        let scenarios = scenarios(revision);
        assert!(scenarios.len() >= 20, "{scenarios:?}");
        scenarios.into_iter().map(move |scenario| (scenario, revision))
    });
    let outcomes: Vec<Outcome> = futures_util::stream::iter(all)
        .map(|(scenario, revision)| run(scenario, revision, &client))
        .buffered(3)
        .collect()
        .await;
    let table: Vec<String> = outcomes.iter().map(Outcome::line).collect();
    crate::show("conformance-authorization", &table.join("\n"));
    let mut wrong: Vec<String> = outcomes.iter().flat_map(Outcome::wrong).collect();
    let ran = |name: &str| outcomes.iter().any(|outcome| outcome.scenario == name);
    wrong.extend(
        FAILS
            .iter()
            .filter(|(name, _)| !ran(name))
            .map(|(name, _)| format!("no scenario {name}")),
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
