//! `portcullis check`: is this configuration any good?

use std::io::{ErrorKind, Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::config::Config;

/// Check a configuration file, or print the JSON Schema of such files
#[derive(Debug, Args)]
pub struct Check {
    /// The configuration file
    #[arg(required_unless_present = "schema")]
    file: Option<PathBuf>,
    /// Print the JSON Schema instead, for editors
    #[arg(long)]
    schema: bool,
}

impl Check {
    /// Prints the verdict: data on stdout, complaints on stderr.
    pub fn run(self) -> ExitCode {
        if self.schema {
            return match writeln!(stdout(), "{:#}", Config::schema()) {
                Ok(()) => ExitCode::SUCCESS,
                // A reader such as `head` has seen enough.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("cannot write the schema: {error}");
                    ExitCode::FAILURE
                }
            };
        }
        let Some(file) = self.file else {
            return ExitCode::from(2);
        };
        match Config::load(&file, &|name| std::env::var(name).ok()) {
            Ok(loaded) => {
                for warning in &loaded.warnings {
                    eprintln!("warning: {warning}");
                }
                let Config { routes, identities, .. } = &loaded.config;
                println!(
                    "{}: ok, {} route{}, {} identit{}",
                    file.display(),
                    routes.len(),
                    if routes.len() == 1 { "" } else { "s" },
                    identities.len(),
                    if identities.len() == 1 { "y" } else { "ies" },
                );
                ExitCode::SUCCESS
            }
            Err(errors) => {
                eprintln!("{errors}");
                ExitCode::FAILURE
            }
        }
    }
}
