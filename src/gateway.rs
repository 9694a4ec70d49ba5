//! A configuration becomes bound listeners, a running service and, in the end, a drained one.
//!
//! `serve`, `demo` and the tests all start this. [`Running::reload`] puts another configuration in force: validated and
//! built first, swapped whole, and with any error the old one stays.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::future::join_all;
use rustls::ServerConfig;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::{
    Admin, AdminState, ConfigStatus, EndpointStatus, IdentityStatus, ProcessesStatus, RouteStatus, StatusReport,
};
use crate::authn::Authenticator;
use crate::clock::{Clock, UnixSeconds};
use crate::config::Config;
use crate::generation::{Entrance, Generation, Lasting};
use crate::limit::Limits;
use crate::listener::{Listener, Tls};
use crate::rights::Rights;
use crate::route::Route;
use crate::session::Streams;
use crate::telemetry::{Audit, Metrics};
use crate::upstream::BreakerState;

/// How long calls in flight may take to finish once the gateway is told to stop.
const GRACE: Duration = Duration::from_secs(30);

/// Why the gateway did not start, or not with this configuration: what, where and what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(String);

impl StartError {
    /// An error at a key of the configuration.
    pub fn at(place: &str, error: impl std::fmt::Display) -> Self {
        Self(format!("{place}: {error}"))
    }
}

/// A running gateway.
pub struct Running {
    address: SocketAddr,
    admin: Option<SocketAddr>,
    control: Arc<Control>,
    serving: tokio::task::JoinHandle<()>,
    background: JoinSet<()>,
}

/// What a reload changes.
struct Control {
    current: Arc<ArcSwap<Generation>>,
    /// The configuration in force and how the last reload went; locked for as long as a reload takes.
    state: Mutex<ConfigState>,
    tls: Option<Tls>,
    lasting: Lasting,
}

struct ConfigState {
    config: Config,
    loaded_at: UnixSeconds,
    last_error: Option<String>,
}

/// Makes gateways.
pub struct Gateway;

impl Gateway {
    /// Binds, builds and serves.
    ///
    /// # Errors
    /// An address that can't be bound, or a file or URL that can't be used.
    pub async fn start(config: Config, clock: Clock) -> Result<Running, StartError> {
        let metrics = Metrics::new();
        let audit = Audit::start(&config.telemetry.audit, metrics.clone())
            .map_err(|error| StartError::at("telemetry.audit", error))?;
        let listener = Listener::bind(&config.listen, metrics.clone())
            .await
            .map_err(|error| StartError::at("listen", error))?;
        let address = listener.local_addr();
        let shutdown = CancellationToken::new();
        let lasting = Lasting {
            metrics: metrics.clone(),
            audit,
            streams: Arc::new(Streams::default()),
            rights: Arc::new(Rights::default()),
            limits: Arc::new(Limits::default()),
            sealer: ArcSwapOption::empty(),
            connections: OnceLock::new(),
            clock,
            address,
            closing: shutdown.clone(),
        };
        lasting.prepare(&config).await?;
        let generation = Generation::build(&config, &lasting, None)?;
        let admin = match &config.admin {
            None => None,
            Some(admin) => Some(
                Admin::bind(admin)
                    .await
                    .map_err(|error| StartError::at("admin", error))?,
            ),
        };
        generation.announce();
        lasting
            .rights
            .replace(generation.routes.clone(), generation.authenticator.clone());
        let control = Arc::new(Control {
            current: Arc::new(ArcSwap::from_pointee(generation)),
            state: Mutex::new(ConfigState {
                config,
                loaded_at: lasting.clock.now(),
                last_error: None,
            }),
            tls: listener.tls(),
            lasting,
        });
        let mut background = JoinSet::new();
        background.spawn(metrics.upkeep(shutdown.clone()));
        let admin = admin.map(|admin| {
            let address = admin.local_addr();
            background.spawn(admin.serve(admin_state(control.clone()), shutdown.clone()));
            address
        });
        let entrance = Entrance(control.current.clone());
        let serving = tokio::spawn(listener.serve(entrance, shutdown, GRACE));
        Ok(Running {
            address,
            admin,
            control,
            serving,
            background,
        })
    }
}

impl Running {
    /// The public base URL, without a trailing slash.
    pub fn url(&self) -> String {
        self.control.current.load().url.clone()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The operators' port, when there is one.
    pub fn admin_url(&self) -> Option<String> {
        self.admin.map(|address| format!("http://{address}"))
    }

    /// The metrics, as `/metrics` shows them.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.control.lasting.metrics
    }

    /// Opens what another configuration needs open: before [`Running::reload`], where it may add such a thing.
    ///
    /// # Errors
    /// It can't be opened; what is in force stays so.
    pub async fn prepare(&self, config: &Config) -> Result<(), StartError> {
        // What can't be put in force opens nothing: it would stay open, whatever is configured in the end.
        let restart = needs_restart(&self.control.state().config, config);
        let prepared = match restart {
            Some(key) => Err(restart_needed(key)),
            None => self.control.lasting.prepare(config).await,
        };
        if let Err(error) = &prepared {
            self.reload_failed(&error.to_string());
        }
        prepared
    }

    /// Puts another configuration in force, for requests that arrive from now on. Standing streams stay as long as
    /// their callers may.
    ///
    /// # Errors
    /// The new configuration can't be used, or not without a restart; the old one stays in force.
    pub fn reload(&self, config: Config) -> Result<(), StartError> {
        self.control.reload(config)
    }

    /// Notes that there was a new configuration, and that it couldn't even be read; the old one stays in force.
    pub fn reload_failed(&self, error: &str) {
        self.control.failed(&mut self.control.state(), error.to_owned());
    }

    /// Stops accepting, lets calls finish, ends standing streams, writes what refreshes gave and what the audit still holds.
    pub async fn shutdown(mut self) {
        self.control.lasting.closing.cancel();
        let _ = (&mut self.serving).await;
        // Nobody calls any more.
        let generation = self.control.current.load_full();
        generation.end_bridges().await;
        // What is left of the servers that are commands has nothing to do.
        let processes = generation.routes.iter().filter_map(|route| route.upstream.processes());
        join_all(processes.map(|processes| processes.close())).await;
        if let Some(connections) = self.control.lasting.connections.get() {
            connections.finish().await;
        }
        self.background.shutdown().await;
        self.control.lasting.audit.flush().await;
    }
}

impl Control {
    fn reload(&self, config: Config) -> Result<(), StartError> {
        let mut state = self.state();
        match self.build(&state.config, &config) {
            Ok((generation, certificate)) => {
                // Nothing fails from here on.
                if let (Some(tls), Some(certificate)) = (&self.tls, certificate) {
                    tls.install(certificate);
                }
                self.lasting
                    .rights
                    .replace(generation.routes.clone(), generation.authenticator.clone());
                generation.announce();
                self.current.store(Arc::new(generation));
                *state = ConfigState {
                    config,
                    loaded_at: self.lasting.clock.now(),
                    last_error: None,
                };
                self.lasting.metrics.config_reload("ok");
                Ok(())
            }
            Err(error) => {
                self.failed(&mut state, error.to_string());
                Err(error)
            }
        }
    }

    fn build(&self, old: &Config, new: &Config) -> Result<(Generation, Option<Arc<ServerConfig>>), StartError> {
        if let Some(key) = needs_restart(old, new) {
            return Err(restart_needed(key));
        }
        let certificate = match &new.listen.tls {
            Some(files) => Some(Tls::read(files).map_err(|error| StartError::at("listen", error))?),
            None => None,
        };
        let before = self.current.load();
        let generation = Generation::build(new, &self.lasting, Some(&before))?;
        Ok((generation, certificate))
    }

    fn failed(&self, state: &mut ConfigState, error: String) {
        self.lasting.metrics.config_reload("error");
        state.last_error = Some(error);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, ConfigState> {
        // A panic in a reload leaves what was in force before.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn restart_needed(key: &str) -> StartError {
    StartError::at(
        key,
        "this can't change while the gateway runs; restart it, or put the old value back",
    )
}

/// What was bound or opened at the start and stays so.
fn needs_restart(old: &Config, new: &Config) -> Option<&'static str> {
    let bounds = |config: &Config| {
        let limits = &config.listen.limits;
        (
            limits.connections,
            limits.connections_per_address,
            limits.handshake_timeout,
            limits.header_timeout,
            limits.headers,
        )
    };
    [
        ("listen.address", old.listen.address != new.listen.address),
        ("listen.tls", old.listen.tls.is_some() != new.listen.tls.is_some()),
        (
            "listen.proxy_protocol",
            old.listen.proxy_protocol != new.listen.proxy_protocol,
        ),
        ("listen.limits", bounds(old) != bounds(new)),
        ("admin", old.admin != new.admin),
        ("telemetry", old.telemetry != new.telemetry),
        ("state.directory", old.state.directory != new.state.directory),
        ("state.database", old.state.database != new.state.database),
    ]
    .into_iter()
    .find_map(|(key, differs)| differs.then_some(key))
}

fn admin_state(control: Arc<Control>) -> AdminState {
    let started = Instant::now();
    AdminState {
        metrics: control.lasting.metrics.clone(),
        status: Arc::new(move || {
            let generation = control.current.load();
            let (loaded_at, last_error) = {
                let state = control.state();
                (state.loaded_at, state.last_error.clone())
            };
            StatusReport {
                version: env!("CARGO_PKG_VERSION"),
                uptime: started.elapsed().as_secs(),
                config: ConfigStatus { loaded_at, last_error },
                routes: generation
                    .routes
                    .iter()
                    .map(|route| route_status(route, &generation.authenticator))
                    .collect(),
            }
        }),
    }
}

fn route_status(route: &Route, authenticator: &Authenticator) -> RouteStatus {
    let states = authenticator.state();
    let names = &route.auth.identities;
    let identities: Vec<IdentityStatus> = states
        .into_iter()
        .filter(|keys| names.contains(&keys.identity))
        .map(|keys| IdentityStatus {
            name: keys.identity.clone(),
            keys: keys.keys,
            age: keys.age,
            last_error: keys.last_error,
        })
        .collect();
    let keyed = route.config.anonymous || names.iter().any(|name| authenticator.keys_usable(name));
    RouteStatus {
        name: route.config.name.clone(),
        path: route.config.path.clone(),
        ready: keyed && route.upstream.any_healthy(),
        sessions: route.metrics.open_sessions(),
        streams: route.metrics.open_streams(),
        identities,
        credential: route.credential.health(&route.metrics),
        endpoints: route
            .upstream
            .endpoints()
            .into_iter()
            .map(|endpoint| EndpointStatus {
                url: endpoint.url,
                healthy: endpoint.healthy,
                breaker: endpoint.breaker.map(BreakerState::as_str),
                last_error: endpoint.last_error,
            })
            .collect(),
        processes: route.upstream.processes().map(|processes| {
            let state = processes.state();
            ProcessesStatus {
                running: state.running,
                most: state.most,
                died: state.died,
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(directory: &Path, state: &str, credential: &str) -> Config {
        let yaml = format!(
            "listen: {{address: '127.0.0.1:0'}}\n\
             state: {{directory: {state}}}\n\
             routes:\n  notes: {{path: /notes, upstream: 'http://127.0.0.1:9/mcp', anonymous: true, credential: {credential}}}\n"
        );
        let loaded = Config::parse(&yaml, "portcullis.yaml", directory, &|_| None);
        loaded.unwrap_or_else(|errors| panic!("{errors}")).config
    }

    #[tokio::test]
    async fn a_configuration_that_needs_a_restart_opens_no_store() {
        let directory = tempfile::tempdir().unwrap();
        let refreshed = "{token_file: {path: tokens, client_id: gate, client_auth: none}}";
        let config = |state, credential| config(directory.path(), state, credential);
        let running = Gateway::start(config("state", "none"), Clock::system()).await.unwrap();
        let elsewhere = config("other", refreshed);
        let error = running.prepare(&elsewhere).await.expect_err("it needs a restart");
        assert!(error.to_string().starts_with("state.directory: "), "{error}");
        assert!(!directory.path().join("other").exists());
        // The old value is put back.
        let here = config("state", refreshed);
        running.prepare(&here).await.unwrap();
        running.reload(here).unwrap();
        assert!(directory.path().join("state/portcullis.db").exists());
        running.shutdown().await;
    }
}
