//! `portcullis connect`: a person's login at a service, from a terminal.
//!
//! 1. By a browser anywhere: the command prints where to log in, and reads back the address that the browser ends on, from
//!    stdin and never from an argument, which other users of the machine can read. An answer that isn't good keeps the
//!    login: the same address can be used again, and is asked for again.
//! 2. With `--device` nothing comes back: a code is typed at the service's own page, and the command waits.
//! 3. A newer login for the same person and route ends this one, wherever it is begun (r24: and a finished one clears it).
//! 4. Exit codes: 0 connected, 1 not, 2 misused or no good configuration.

use std::io::{self, BufRead, Read};
use std::process::ExitCode;
use std::time::Duration;

use aws_lc_rs::rand;
use clap::Args;
use zeroize::Zeroizing;

use super::account::{Account, Known, Owner};
use crate::connect::pending::{self, Waiting};
use crate::credential::token_file;
use crate::oauth::Grant;
use crate::oauth::login::Pending;

/// Seconds for somebody to log in somewhere else.
const TIME: u64 = 30 * 60;

/// Between two looks whether a newer login has begun.
const LOOK: Duration = Duration::from_secs(2);

/// Bytes of an address that is pasted.
const MAX_LINE: u64 = 16 * 1024;

/// Connect a person's account at a service, or the login that a token file's callers share
///
/// Prints where to log in. Log in there with any browser, on any machine; it ends on an address that begins with the
/// gateway's own URL and /connect/callback. Paste that whole address here. The gateway need not be running, and if it is, it
/// uses the connection with the next call.
///
/// Whose account it is, is said by a token (--token-file) or by the operator (--subject). A route whose credential is a
/// token_file has one login for everybody, which is written to that file: there nobody is named.
///
/// Exit codes: 0 connected, 1 not connected, 2 misused or no good configuration.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  portcullis connect linear --token-file ~/.mcp-token\n  \
                        portcullis connect linear --subject ada --device\n  \
                        pbpaste | portcullis connect linear --subject ada   # the address, from a clipboard")]
pub struct Connect {
    #[command(flatten)]
    account: Account,
    /// Show a code to type at the service's page instead, and wait (RFC 8628)
    #[arg(long)]
    device: bool,
}

/// Why there is no connection.
enum Ended {
    /// Somebody began a newer login.
    Replaced,
    Failed(String),
}

impl<E: std::error::Error> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Connect {
    /// Connects, or says why not.
    pub async fn run(self) -> ExitCode {
        let known = match self.account.open().await {
            Ok(known) => known,
            Err(closed) => return closed.told(),
        };
        let mut mark = [0; 32];
        rand::fill(&mut mark).expect("the system's random generator works");
        let run = Run {
            route: &self.account.route,
            known: &known,
            mark,
        };
        let ended = match self.device {
            true => run.device().await,
            false => run.paste().await,
        };
        match ended {
            Ok(()) => {
                eprintln!("Connected: {} {}.", self.account.route, known.owner);
                ExitCode::SUCCESS
            }
            Err(Ended::Replaced) => {
                eprintln!("A newer login for this route and person has begun; this one is over.");
                ExitCode::FAILURE
            }
            Err(Ended::Failed(error)) => {
                eprintln!("Not connected: {error}");
                ExitCode::FAILURE
            }
        }
    }
}

/// One login.
struct Run<'a> {
    route: &'a str,
    known: &'a Known,
    mark: [u8; 32],
}

impl Run<'_> {
    async fn paste(&self) -> Result<(), Ended> {
        let wanted = self.known.wanted(self.route).await?;
        let begun = self.known.login.begin(&wanted).await?;
        let (state, pending) = (begun.state, begun.pending.to_json());
        self.wait(Some(state.clone()), TIME).await?;
        eprintln!("Open this address in a browser and log in:\n");
        println!("{}", begun.url);
        eprintln!("\nThe browser then ends on an address of the gateway. Paste it here, whole:");
        loop {
            let line = tokio::select! {
                line = line() => line?,
                replaced = self.replaced() => return Err(replaced),
            };
            let Some(line) = line else {
                self.clear(Some(&state)).await;
                return Err(Ended::Failed("no address was pasted".to_owned()));
            };
            let Some(query) = query(&line) else {
                eprintln!("This is no such address: it has no `?` with a code after it. Paste it again, whole:");
                continue;
            };
            let pending = Pending::from_json(&pending).expect("it was written just now");
            match self.known.login.finish(pending, query).await {
                Ok(grant) => {
                    self.still().await?;
                    return self.adopt(grant, Some(&state)).await;
                }
                Err(error) => eprintln!(
                    "{error}.\nThe login is still open: log in again at the same address, and paste the new one that it \
                     ends on:"
                ),
            }
        }
    }

    async fn device(&self) -> Result<(), Ended> {
        let wanted = self.known.wanted(self.route).await?;
        let device = self.known.login.device(&wanted).await?;
        self.wait(None, TIME).await?;
        match &device.verification_uri_complete {
            Some(complete) => {
                eprintln!(
                    "Open this address in a browser, and check that it shows the code {}:\n",
                    device.user_code
                );
                println!("{complete}");
                eprintln!("\nOr open {} and type the code.", device.verification_uri);
            }
            None => {
                eprintln!(
                    "Open this address in a browser, and type the code {} there:\n",
                    device.user_code
                );
                println!("{}", device.verification_uri);
            }
        }
        eprintln!("\nWaiting …");
        let grant = tokio::select! {
            grant = device.wait() => grant,
            replaced = self.replaced() => return Err(replaced),
        };
        match grant {
            Ok(grant) => {
                self.still().await?;
                self.adopt(grant, None).await
            }
            Err(error) => {
                self.clear(None).await;
                Err(error.into())
            }
        }
    }

    /// Takes the place of an older login.
    async fn wait(&self, state: Option<String>, seconds: u64) -> Result<(), Ended> {
        let waiting = Waiting {
            state,
            mark: self.mark,
            pending: None,
        };
        let expires = self.known.deciders.clock.now().saturating_add(seconds);
        let store = self.known.store();
        waiting
            .in_terminal(store, self.route, self.known.owner.id(), expires)
            .await?;
        Ok(())
    }

    /// Returns when a newer login has taken this one's place, or its time is over.
    async fn replaced(&self) -> Ended {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Err(ended) = self.still().await {
                return ended;
            }
        }
    }

    async fn still(&self) -> Result<(), Ended> {
        let now = self.known.deciders.clock.now();
        let stands = pending::stands(self.known.store(), self.route, self.known.owner.id(), &self.mark, now);
        match stands.await? {
            true => Ok(()),
            false => Err(Ended::Replaced),
        }
    }

    async fn adopt(&self, grant: Grant, state: Option<&str>) -> Result<(), Ended> {
        match &self.known.owner {
            Owner::Person { person, .. } => self.known.connections.adopt(self.route, person, grant).await?,
            Owner::Everybody(file) => token_file::adopt(file, &grant.tokens).await?,
        }
        self.clear(state).await;
        Ok(())
    }

    /// What stays of a login expires by itself.
    async fn clear(&self, state: Option<&str>) {
        let cleared = pending::clear(self.known.store(), self.route, self.known.owner.id(), state);
        if let Err(error) = cleared.await {
            eprintln!("warning: the login under way could not be cleared: {error}");
        }
    }
}

/// The next line of stdin that isn't empty; `None` at its end. Whoever waits no longer leaves a thread behind, which ends
/// with the process.
async fn line() -> io::Result<Option<Zeroizing<String>>> {
    let read = || loop {
        let mut line = Zeroizing::new(String::new());
        if io::stdin().lock().take(MAX_LINE).read_line(&mut line)? == 0 {
            return Ok(None);
        }
        if !line.trim().is_empty() {
            return Ok(Some(line));
        }
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

/// What a browser's address says after its `?`; browsers and terminals may have put quotes around it.
fn query(address: &str) -> Option<&str> {
    let address = address.trim().trim_matches(['"', '\'', '<', '>']);
    let (_, query) = address.split_once('?')?;
    let query = query.split_once('#').map_or(query, |(query, _)| query);
    (!query.is_empty()).then_some(query)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_of_what_is_pasted() {
        for (address, expected) in [
            (
                "https://gate.example/connect/callback?code=a&state=b",
                Some("code=a&state=b"),
            ),
            (" \"https://gate.example/connect/callback?code=a\"\r\n", Some("code=a")),
            (
                "http://127.0.0.1:8080/connect/callback?code=a&state=b#_=_",
                Some("code=a&state=b"),
            ),
            ("?code=a", Some("code=a")),
            (
                "https://gate.example/connect/callback?redirect=x?y",
                Some("redirect=x?y"),
            ),
            ("https://gate.example/connect/callback", None),
            ("https://gate.example/connect/callback?", None),
            ("code=a&state=b", None),
        ] {
            assert_eq!(query(address), expected, "{address}");
        }
    }
}
