//! `portcullis token inspect`: what is wrong with this token?
//!
//! 1. Every check is told, passed or failed; the exit code is the real decision's: 0 when a route takes the token.
//! 2. Without a configuration nobody's keys are known: the token is decoded, and 0 only means that it could be.
//! 3. The token and its signature are never printed.

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value};

use crate::authn::inspect::{self, Checked, Verdict};
use crate::authn::{AuthnError, RouteAuth};
use crate::cli::credential::{self, Deciders};
use crate::clock::Clock;
use crate::secret::Secret;

/// Say what every check makes of a token
#[derive(Debug, Args)]
pub struct Inspect {
    /// The configuration that says whose tokens are good; without it the token is only decoded
    #[arg(long, short)]
    config: Option<PathBuf>,
    /// For this route alone
    #[arg(long, requires = "config")]
    route: Option<String>,
    /// Where the token is; stdin, if absent
    #[arg(long)]
    file: Option<PathBuf>,
}

impl Inspect {
    /// Prints the checks.
    pub async fn run(self) -> ExitCode {
        let inspected = match &self.config {
            None => self.decode(),
            Some(config) => match Deciders::load(config) {
                Ok(deciders) => self.inspect(&deciders).await,
                Err(error) => Err(error),
            },
        };
        let (text, good) = match inspected {
            Ok(inspected) => inspected,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::from(2);
            }
        };
        // A reader that has seen enough takes nothing from the answer in the exit code.
        let _ = stdout().write_all(text.as_bytes());
        if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn decode(&self) -> Result<(String, bool), String> {
        let token = credential::token(self.file.as_deref())?;
        let (checks, parts) = inspect::decode(token.expose(), Clock::system().now());
        let mut text = lines(&checks);
        let decoded = parts.is_some();
        for (name, part) in ["header", "claims"].into_iter().zip(parts.into_iter().flatten()) {
            text.push_str(&format!("{name}: {}\n", json(part)));
        }
        eprintln!("nothing was verified: without --config nobody's keys are known");
        Ok((text, decoded))
    }

    async fn inspect(&self, deciders: &Deciders) -> Result<(String, bool), String> {
        let routes: Vec<&RouteAuth> = match &self.route {
            Some(name) => vec![&deciders.route(name)?.auth],
            None => deciders.routes.iter().map(|route| &route.auth).collect(),
        };
        let token = credential::token(self.file.as_deref())?;
        let checks = deciders.authenticator.inspect(&routes, token.expose()).await;
        let mut text = lines(&checks);
        let mut good = false;
        for route in routes {
            let (line, taken) = verdict(deciders, route, &token).await;
            good |= taken;
            text.push_str(&line);
        }
        Ok((text, good))
    }
}

/// The real decision at a route.
async fn verdict(deciders: &Deciders, route: &RouteAuth, token: &Secret) -> (String, bool) {
    let weighed = deciders.authenticator.weigh(route, token).await;
    let proof = if weighed.bound {
        ", if its sender proves possession"
    } else {
        ""
    };
    match weighed.outcome {
        Ok(principal) => {
            let identity = principal.identity.as_deref().unwrap_or_default();
            let names = deciders.config.roles.names().iter().enumerate();
            let roles: Vec<&str> = names
                .filter(|(role, _)| principal.granted.has(*role))
                .map(|(_, name)| &**name)
                .collect();
            let who = format!("{:?} by identity {identity}, roles {roles:?}{proof}", principal.subject);
            (format!("route {}: taken as {who}\n", route.route), true)
        }
        Err(error) => {
            if let AuthnError::KeysUnavailable { .. } | AuthnError::IssuerUnavailable { .. } = error {
                eprintln!("{error}");
            }
            (format!("route {}: refused, {}\n", route.route, error.reason()), false)
        }
    }
}

fn lines(checks: &[Checked]) -> String {
    let mut text = String::new();
    for Checked { check, verdict, detail } in checks {
        let mark = match verdict {
            Verdict::Pass => "pass",
            Verdict::Fail => "FAIL",
            Verdict::Skipped => "skip",
        };
        text.push_str(&format!("{mark}  {check:<13} {detail}\n"));
    }
    text
}

/// JSON without what a terminal would act on; it stays JSON.
fn json(object: Map<String, Value>) -> String {
    let mut text = String::new();
    for character in format!("{:#}", Value::Object(object)).chars() {
        if character == '\n' || character == ' ' || character.escape_debug().len() == 1 || "\"\\'".contains(character) {
            text.push(character);
        } else {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_stay_json_and_say_nothing_to_a_terminal() {
        let hostile = "\u{9b}31m\u{202e}\u{1b}[2J é 日本 \"\\'";
        let mut object = Map::new();
        object.insert("sub".to_owned(), Value::from(hostile));
        let text = json(object.clone());
        assert!(!text.contains(['\u{9b}', '\u{202e}', '\u{1b}']), "{text:?}");
        assert!(text.contains("é 日本"), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), Value::Object(object));
    }
}
