//! `portcullis serve`: the gateway, until SIGTERM or Ctrl-C.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::clock::Clock;
use crate::config::Config;
use crate::gateway::Gateway;
use crate::telemetry;

/// Run the gateway
#[derive(Debug, Args)]
pub struct Serve {
    /// The configuration file
    #[arg(long, short, default_value = "portcullis.yaml")]
    config: PathBuf,
}

impl Serve {
    /// Runs until told to stop.
    pub async fn run(self) -> ExitCode {
        let loaded = match Config::load(&self.config, &|name| std::env::var(name).ok()) {
            Ok(loaded) => loaded,
            Err(errors) => {
                eprintln!("{errors}");
                return ExitCode::FAILURE;
            }
        };
        if let Err(error) = telemetry::install(&loaded.config.telemetry.log) {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        // Before anything listens, so that an early signal isn't lost.
        let mut terminate = match signal(SignalKind::terminate()) {
            Ok(terminate) => terminate,
            Err(error) => {
                eprintln!("cannot listen for SIGTERM: {error}");
                return ExitCode::FAILURE;
            }
        };
        let running = match Gateway::start(loaded.config, Clock::system()).await {
            Ok(running) => running,
            Err(error) => {
                eprintln!("portcullis did not start: {error}");
                return ExitCode::FAILURE;
            }
        };
        tracing::info!(url = running.url(), address = %running.address(), "listening");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        tracing::info!("stopping: calls in flight may finish, standing streams end");
        running.shutdown().await;
        ExitCode::SUCCESS
    }
}
