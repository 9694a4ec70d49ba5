//! `portcullis serve`: the gateway, until SIGTERM or Ctrl-C; a changed configuration is taken up as it goes.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::block_in_place;

use crate::clock::Clock;
use crate::config::watch::Watch;
use crate::config::{Config, Diagnostics, Loaded};
use crate::gateway::{Gateway, Running};
use crate::session;
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
        let mut watch = Watch::new(vec![self.config.clone()]);
        let loaded = match self.load() {
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
        let hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => {
                eprintln!("cannot listen for SIGHUP: {error}");
                return ExitCode::FAILURE;
            }
        };
        watch.add(&loaded.files);
        let key_file = key_file(&loaded.config);
        let running = match Gateway::start(loaded.config, Clock::system()).await {
            Ok(running) => running,
            Err(error) => {
                eprintln!("portcullis did not start: {error}");
                return ExitCode::FAILURE;
            }
        };
        // Now that it has been made, if there was none.
        watch.add(&key_file);
        tracing::info!(url = running.url(), address = %running.address(), "listening");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
            () = self.reload(&running, watch, hangup) => {}
        }
        tracing::info!("stopping: calls in flight may finish, standing streams end");
        running.shutdown().await;
        ExitCode::SUCCESS
    }

    fn load(&self) -> Result<Loaded, Diagnostics> {
        Config::load(&self.config, &|name| std::env::var(name).ok())
    }

    /// Puts what changes into force, for ever: on SIGHUP, and when the file or one it was read from changes.
    async fn reload(&self, running: &Running, mut watch: Watch, mut hangup: Signal) {
        loop {
            tokio::select! {
                _ = hangup.recv() => {}
                () = watch.changed() => {}
            }
            // Files are read and keys parsed: requests go on meanwhile on the other threads.
            let loaded = match block_in_place(|| self.load()) {
                Ok(loaded) => loaded,
                Err(errors) => {
                    tracing::error!("the configuration stays as it was, for the new one has errors:\n{errors}");
                    running.reload_failed(&errors.to_string());
                    continue;
                }
            };
            for warning in &loaded.warnings {
                tracing::warn!("{warning}");
            }
            watch.add(&loaded.files);
            watch.add(&self::key_file(&loaded.config));
            let reloaded = match running.prepare(&loaded.config).await {
                Ok(()) => block_in_place(|| running.reload(loaded.config)),
                Err(error) => Err(error),
            };
            match reloaded {
                Ok(()) => tracing::info!("the new configuration is in force"),
                Err(error) => {
                    tracing::error!("the configuration stays as it was, for the new one can't be used: {error}");
                }
            }
        }
    }
}

/// The seal keys' file, where they aren't in the configuration: `keys rotate` changes it.
fn key_file(config: &Config) -> Vec<PathBuf> {
    let own = config.state.seal_keys.is_empty();
    own.then(|| session::key_file(&config.state.directory))
        .into_iter()
        .collect()
}
