//! `portcullis demo`: the gate, a sample MCP server behind it and a development issuer, all on loopback.
//!
//! 1. It is the real gate, configured by a file's text ([`configuration`]) like any other.
//! 2. Everything lives in memory: the issuer's keys, the sealing key, the sessions. Nothing is written, so nothing is
//!    left behind.
//! 3. What a visitor or a script wants is on stdout; everything else, the audit too, is on stderr.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::signal::unix::{SignalKind, signal};

use crate::clock::Clock;
use crate::config::{AuditSink, Config};
use crate::gateway::{Gateway, Running, StartError};
use crate::secret::Secret;
use crate::telemetry;

use issuer::{DevelopmentClient, DevelopmentIssuer, random_text};
use sample::SampleServer;
use tour::Tour;

pub mod issuer;
pub mod loopback;
pub mod sample;
pub mod tour;

/// Where the gate serves the sample.
const PATH: &str = "/mcp";
/// Needed for anything on the route.
const SCOPE: &str = "demo.use";
/// A working day.
const HOURS: u64 = 8;

/// Try the gate: it, a sample server and a development issuer on loopback
#[derive(Clone, Debug, clap::Args)]
pub struct Demo {
    /// Print one JSON object for scripts instead of the tour
    #[arg(long)]
    json: bool,
    /// The gate's port; 0 lets the system choose
    #[arg(long, default_value_t = 0)]
    port: u16,
}

/// Why the demo didn't start, or couldn't say that it did.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("no loopback port for the issuer or the sample server: {0}")]
    Loopback(io::Error),
    /// A mistake of ours, as the configuration is built in.
    #[error("the demo's own configuration is wrong: {0}")]
    Configuration(String),
    #[error("the gate doesn't start: {0}")]
    Gate(#[from] StartError),
    #[error("can't listen for SIGTERM: {0}")]
    Signal(io::Error),
    #[error("can't print: {0}")]
    Print(io::Error),
}

impl Demo {
    /// Runs until Ctrl-C or SIGTERM.
    pub async fn run(self) -> ExitCode {
        match self.show().await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        }
    }

    async fn show(&self) -> Result<(), DemoError> {
        // Before anything is printed, so that a script's early signal isn't lost.
        let mut terminate = signal(SignalKind::terminate()).map_err(DemoError::Signal)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(DemoError::Signal)?;
        let stage = Stage::set_up(self.port, Clock::system()).await?;
        let printed = self.print(&stage.tour());
        if printed.is_ok() {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        // A second Ctrl-C doesn't wait for calls in flight.
        tokio::select! {
            () = stage.tear_down() => {}
            _ = interrupt.recv() => {}
        }
        printed.map_err(DemoError::Print)
    }

    fn print(&self, tour: &Tour) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", tour.to_json())?;
        } else {
            write!(out, "{tour}")?;
        }
        out.flush()
    }
}

/// The three parts, running.
pub struct Stage {
    pub issuer: DevelopmentIssuer,
    pub sample: SampleServer,
    pub gate: Running,
    /// Of the issuer's client `reader`, for fresh tokens.
    reader_secret: String,
}

impl Stage {
    /// Starts them in the order they need each other; `port` 0 lets the system choose the gate's.
    ///
    /// # Errors
    /// When a port is taken or the gate refuses its configuration.
    pub async fn set_up(port: u16, clock: Clock) -> Result<Self, DemoError> {
        let issuer = DevelopmentIssuer::start(clock.clone())
            .await
            .map_err(DemoError::Loopback)?;
        let sample = SampleServer::start().await.map_err(DemoError::Loopback)?;
        let text = configuration(port, issuer.issuer(), &sample.url());
        let gate = open_gate(&text, clock).await?;
        let stage = Self {
            issuer,
            sample,
            gate,
            reader_secret: random_text(),
        };
        stage.add_client("reader", &stage.reader_secret);
        stage.add_client("admin", &random_text());
        Ok(stage)
    }

    fn add_client(&self, role: &str, secret: &str) {
        self.issuer.add_client(DevelopmentClient {
            id: role.to_owned(),
            secret: Secret::new(secret),
            subject: role.to_owned(),
            audience: self.url(),
            scopes: vec![SCOPE.to_owned()],
            roles: vec![role.to_owned()],
            lifetime: Duration::from_secs(HOURS * 3600),
        });
    }

    /// The MCP endpoint.
    pub fn url(&self) -> String {
        format!("{}{PATH}", self.gate.url())
    }

    /// What there is to say about it, with fresh tokens.
    pub fn tour(&self) -> Tour {
        let url = self.url();
        let token = |role: &str| {
            let lifetime = Duration::from_secs(HOURS * 3600);
            self.issuer.mint(role, &url, &[SCOPE], &[role], lifetime)
        };
        Tour {
            admin_url: self.gate.admin_url(),
            issuer: self.issuer.issuer().to_owned(),
            reader: token("reader"),
            admin: token("admin"),
            reader_secret: self.reader_secret.clone(),
            hours: HOURS,
            url,
        }
    }

    /// Ends the gate first, so that it never finds its upstream gone.
    pub async fn tear_down(self) {
        self.gate.shutdown().await;
        self.sample.stop().await;
        self.issuer.stop().await;
    }
}

/// The gate's configuration file, as a visitor could write it.
pub fn configuration(port: u16, issuer: &str, upstream: &str) -> String {
    let mut key = [0; 32];
    aws_lc_rs::rand::fill(&mut key).expect("the system has randomness");
    let key = STANDARD.encode(key);
    format!(
        r#"listen: {{address: "127.0.0.1:{port}"}}
admin: {{address: "127.0.0.1:0"}}
telemetry: {{log: {{level: warn}}}}
state: {{seal_keys: ["{key}"]}}
identity:
  development: {{issuer: "{issuer}", algorithms: [ES256]}}
roles:
  reader: ["role:reader"]
  admin: ["role:admin"]
routes:
  demo:
    path: {PATH}
    identity: [development]
    scopes: [{SCOPE}]
    upstream: {upstream}
    tools:
      rules:
        - {{allow: ["*"], to: [reader, admin]}}
        - {{deny: ["admin_*"], to: [reader]}}
"#
    )
}

async fn open_gate(text: &str, clock: Clock) -> Result<Running, DemoError> {
    // Nothing in it is relative to a directory or taken from the environment.
    let mut config = Config::parse(text, "demo.yaml", Path::new("."), &|_| None)
        .map_err(|errors| DemoError::Configuration(errors.to_string()))?
        .config;
    // Stdout belongs to the tour, or to the script that reads `--json`.
    config.telemetry.audit.sink = AuditSink::Stderr;
    // It fails where a subscriber is installed already: a test's log is the test's business.
    let _ = telemetry::install(&config.telemetry.log);
    Ok(Gateway::start(config, clock).await?)
}
