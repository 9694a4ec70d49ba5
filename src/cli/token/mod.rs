//! `portcullis token`: what concerns one token or key.

mod issue;

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Make an API key
#[derive(Debug, Args)]
pub struct Token {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Issue(issue::Issue),
}

impl Token {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Issue(issue) => issue.run(),
        }
    }
}
