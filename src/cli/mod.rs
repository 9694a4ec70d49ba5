//! The commands, one file each. Data goes to stdout, talk to stderr; exit codes are 0 good, 1 failed, 2 misused.

mod account;
mod check;
mod connect;
mod credential;
pub mod demo;
mod disconnect;
mod explain;
mod keys;
mod serve;
mod status;
mod token;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// One locked gate in front of your MCP servers.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Demo(demo::Demo),
    Check(check::Check),
    Explain(explain::Explain),
    Token(token::Token),
    Keys(keys::Keys),
    Connect(connect::Connect),
    Disconnect(disconnect::Disconnect),
    Status(status::Status),
}

/// Runs the command line.
pub fn run() -> ExitCode {
    let command = Cli::parse().command;
    // One crypto library, chosen before anything can choose another.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("another TLS provider was installed before ours; this is a bug");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = match command {
        Command::Serve(serve) => runtime.block_on(serve.run()),
        Command::Demo(demo) => runtime.block_on(demo.run()),
        Command::Check(check) => check.run(),
        Command::Explain(explain) => runtime.block_on(explain.run()),
        Command::Token(token) => runtime.block_on(token.run()),
        Command::Keys(keys) => runtime.block_on(keys.run()),
        Command::Connect(connect) => runtime.block_on(connect.run()),
        Command::Disconnect(disconnect) => runtime.block_on(disconnect.run()),
        Command::Status(status) => runtime.block_on(status.run()),
    };
    // A command that has ended has said all it had to: nothing is waited for here.
    runtime.shutdown_background();
    code
}
