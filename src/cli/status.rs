//! `portcullis status`: which credential each route sends, and what state it is in.
//!
//! 1. What is shown is what is written down, in the store and in token files: a running gateway is not asked, and nobody
//!    else either. What is got anew for each call has no state to show.
//! 2. No token is read out of the store: rows are counted by the state that stands beside them.
//! 3. Exit codes: 0 shown, 1 the store can't be read, 2 misused or no good configuration.

use std::fmt::Write as _;
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::account;
use crate::config::{Config, Credential};
use crate::credential::{State, token_file};
use crate::store::{Kind, Tally};

/// Show which credential each route sends, and the state of people's connections
///
/// Reads the configuration and the store, beside a running gateway or without one. No secret is shown.
///
/// Exit codes: 0 shown, 1 the store can't be read, 2 misused or no good configuration.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  portcullis status\n  \
                        portcullis status --json | jq '.[] | select(.connections.needs_auth > 0) | .route'")]
pub struct Status {
    /// The configuration file
    #[arg(long, short, default_value = "portcullis.yaml")]
    config: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One route's line.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Line {
    route: String,
    credential: &'static str,
    state: String,
    /// Of a connection: people by state.
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<Counts>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Counts {
    connected: u64,
    expiring: u64,
    needs_auth: u64,
    failing: u64,
}

impl Status {
    /// Prints the table.
    pub async fn run(self) -> ExitCode {
        let config = match Config::load(&self.config, &|name| std::env::var(name).ok()) {
            Ok(loaded) => loaded.config,
            Err(errors) => {
                eprintln!("{errors}");
                return ExitCode::from(2);
            }
        };
        let connects = |credential: &Credential| matches!(credential, Credential::Connection(_));
        let tallies = match config.routes.iter().any(|route| connects(&route.credential)) {
            // Nothing would be there, and opening the store makes it.
            false => Ok(Vec::new()),
            true => {
                async {
                    let store = account::store(&config).await?;
                    store.tally(Kind::Connection).await.map_err(|error| error.to_string())
                }
                .await
            }
        };
        let tallies = match tallies {
            Ok(tallies) => tallies,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        };
        let lines: Vec<Line> = config
            .routes
            .iter()
            .map(|route| line(&route.name, &route.credential, &tallies))
            .collect();
        let text = match self.json {
            true => format!("{:#}\n", serde_json::to_value(&lines).expect("it is plain data")),
            false => table(&lines),
        };
        // A reader that has seen enough takes nothing from the answer.
        let _ = stdout().write_all(text.as_bytes());
        ExitCode::SUCCESS
    }
}

fn line(route: &str, credential: &Credential, tallies: &[Tally]) -> Line {
    let (kind, state) = match credential {
        Credential::None => ("none", "nothing is sent".to_owned()),
        Credential::Bearer(_) => ("bearer", "as configured".to_owned()),
        Credential::Header { .. } => ("header", "as configured".to_owned()),
        Credential::Basic { .. } => ("basic", "as configured".to_owned()),
        Credential::Passthrough { .. } => ("passthrough", "the caller's own".to_owned()),
        Credential::Exchange(_) => ("exchange", "got for each caller".to_owned()),
        Credential::ClientCredentials(_) => ("client_credentials", "got when it is needed".to_owned()),
        Credential::Assertion(_) => ("assertion", "signed for each call".to_owned()),
        Credential::TokenFile(file) => ("token_file", file_state(&file.path)),
        Credential::Connection(_) => {
            let counts = Counts::of(route, tallies);
            return Line {
                route: route.to_owned(),
                credential: "connection",
                state: counts.to_string(),
                connections: Some(counts),
            };
        }
    };
    Line {
        route: route.to_owned(),
        credential: kind,
        state,
        connections: None,
    }
}

fn file_state(path: &std::path::Path) -> String {
    match std::fs::metadata(path) {
        Ok(found) if found.len() == 0 => format!("{} is empty", path.display()),
        Ok(found) => {
            let written = found
                .modified()
                .ok()
                .and_then(|time| jiff::Timestamp::try_from(time).ok());
            let written = written.map_or_else(String::new, |time| {
                format!(", written {}", time.strftime("%Y-%m-%dT%H:%M:%SZ"))
            });
            let trouble = token_file::trouble(path).map_or_else(String::new, |trouble| format!(": {trouble}"));
            format!("{}{written}{trouble}", path.display())
        }
        Err(error) => format!("{} can't be read: {error}", path.display()),
    }
}

impl Counts {
    fn of(route: &str, tallies: &[Tally]) -> Self {
        let mut counts = Self::default();
        for tally in tallies.iter().filter(|tally| tally.scope == route) {
            let count = match State::ALL.into_iter().find(|state| state.as_str() == tally.label) {
                Some(State::Connected) => &mut counts.connected,
                Some(State::Expiring) => &mut counts.expiring,
                Some(State::NeedsAuth) => &mut counts.needs_auth,
                _ => &mut counts.failing,
            };
            *count += tally.count;
        }
        counts
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut said = false;
        for (count, state) in [
            (self.connected, State::Connected),
            (self.expiring, State::Expiring),
            (self.needs_auth, State::NeedsAuth),
            (self.failing, State::Failing),
        ] {
            if count > 0 {
                let comma = if said { ", " } else { "" };
                write!(f, "{comma}{count} {}", state.as_str())?;
                said = true;
            }
        }
        if said {
            Ok(())
        } else {
            f.write_str("nobody is connected")
        }
    }
}

fn table(lines: &[Line]) -> String {
    let widest = |of: fn(&Line) -> usize, title: &str| lines.iter().map(of).max().unwrap_or(0).max(title.len());
    let (first, second) = (
        widest(|line| line.route.len(), "ROUTE"),
        widest(|line| line.credential.len(), "CREDENTIAL"),
    );
    let mut text = format!("{:first$}  {:second$}  STATE\n", "ROUTE", "CREDENTIAL");
    for line in lines {
        let _ = writeln!(
            text,
            "{:first$}  {:second$}  {}",
            line.route, line.credential, line.state
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_is_read_and_not_only_found() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let state = |text: &str| {
            std::fs::write(file.path(), text).expect("written");
            file_state(file.path())
        };
        assert!(state("").ends_with(" is empty"));
        let half = state("{\"access_token\": \"secret");
        assert!(half.ends_with(": the token file holds neither a JSON object with access_token nor one bare token"));
        assert!(!half.contains("secret"));
        let whole = state("{\"access_token\": \"secret\"}");
        assert!(whole.contains(", written ") && whole.ends_with('Z'), "{whole}");
        let directory = tempfile::tempdir().expect("a directory");
        assert!(file_state(directory.path()).ends_with(": the token file is no regular file"));
    }

    #[test]
    fn people_are_counted_by_state_and_route() {
        let tally = |scope: &str, label: &str, count| Tally {
            scope: scope.to_owned(),
            label: label.to_owned(),
            count,
            soonest: None,
            oldest: None,
        };
        let tallies = [
            tally("linear", "connected", 3),
            tally("linear", "needs_auth", 1),
            tally("notion", "failing", 2),
        ];
        let counts = Counts::of("linear", &tallies);
        assert_eq!(counts.to_string(), "3 connected, 1 needs_auth");
        assert_eq!(Counts::of("notion", &tallies).failing, 2);
        assert_eq!(Counts::of("other", &tallies).to_string(), "nobody is connected");
        let lines = [
            Line {
                route: "linear".to_owned(),
                credential: "connection",
                state: counts.to_string(),
                connections: Some(counts),
            },
            line("a", &Credential::None, &tallies),
        ];
        assert_eq!(
            table(&lines),
            "ROUTE   CREDENTIAL  STATE\nlinear  connection  3 connected, 1 needs_auth\na       none        nothing is sent\n"
        );
    }
}
