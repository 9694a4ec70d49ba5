//! `portcullis token`: what concerns one token or key.

mod inspect;
mod issue;

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Look at a token, or make an API key
#[derive(Debug, Args)]
pub struct Token {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Inspect(inspect::Inspect),
    Issue(issue::Issue),
}

impl Token {
    /// Runs the command.
    pub async fn run(self) -> ExitCode {
        match self.command {
            Command::Inspect(inspect) => inspect.run().await,
            Command::Issue(issue) => issue.run(),
        }
    }
}
