//! A configuration becomes bound listeners, a running service and, in the end, a drained one.
//!
//! `serve`, `demo` and the tests all start this.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, AdminState, EndpointStatus, IdentityStatus, RouteStatus, StatusReport};
use crate::authn::{AuthEvent, Authenticator, RouteAuth};
use crate::clock::Clock;
use crate::config::Config;
use crate::credential::CredentialSource;
use crate::listener::Listener;
use crate::metadata::{self, ProtectedResource, WellKnown, WellKnownLayer};
use crate::route::Route;
use crate::session::{self, Sealer, Streams};
use crate::stack::{Parts, stack};
use crate::telemetry::{Audit, Metrics};
use crate::upstream::{Upstream, UpstreamEvent};

/// How long calls in flight may take to finish once the gateway is told to stop.
const GRACE: Duration = Duration::from_secs(30);

/// How often the age of the issuers' keys is written down.
const AGES: Duration = Duration::from_secs(5);

/// Why the gateway did not start: what, where and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(String);

impl StartError {
    fn at(place: &str, error: impl std::fmt::Display) -> Self {
        Self(format!("{place}: {error}"))
    }
}

/// A running gateway.
pub struct Running {
    url: String,
    address: SocketAddr,
    admin: Option<SocketAddr>,
    metrics: Arc<Metrics>,
    audit: Audit,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    background: JoinSet<()>,
}

/// Makes gateways.
pub struct Gateway;

impl Gateway {
    /// Binds, builds and serves.
    pub async fn start(config: Config, clock: Clock) -> Result<Running, StartError> {
        let metrics = Metrics::new();
        let audit = Audit::start(&config.telemetry.audit, metrics.clone())
            .map_err(|error| StartError::at("telemetry.audit", error))?;
        let sealer = sealer(&config)?;
        let streams = Arc::new(Streams::default());
        let listener = Listener::bind(&config.listen)
            .await
            .map_err(|error| StartError::at("listen", error))?;
        let address = listener.local_addr();
        let scheme = if config.listen.tls.is_some() { "https" } else { "http" };
        let url = config
            .listen
            .public_url
            .clone()
            .unwrap_or_else(|| format!("{scheme}://{address}"));
        let authenticator = Authenticator::new(
            &config.identities,
            config.roles.clone(),
            clock.clone(),
            auth_events(metrics.clone()),
        )
        .map_err(|error| StartError::at("identity", error))?;
        let routes = routes(&config, &url, &metrics, &clock)?;
        let shutdown = CancellationToken::new();
        let mut background = JoinSet::new();
        background.spawn(metrics.clone().upkeep(shutdown.clone()));
        background.spawn(ages(metrics.clone(), authenticator.clone()));
        let refresher = authenticator.clone();
        background.spawn(async move {
            refresher.spawn_refresh().join_all().await;
        });
        for route in &routes {
            let upstream = route.upstream.clone();
            background.spawn(async move { upstream.check_forever().await });
        }
        let admin = match &config.admin {
            None => None,
            Some(admin) => {
                let admin = Admin::bind(admin)
                    .await
                    .map_err(|error| StartError::at("admin", error))?;
                let address = admin.local_addr();
                let state = admin_state(metrics.clone(), authenticator.clone(), routes.clone());
                background.spawn(admin.serve(state, shutdown.clone()));
                Some(address)
            }
        };
        let service = stack(Parts {
            metrics: metrics.clone(),
            audit: audit.clone(),
            hosts: hosts(&config, &url, address),
            origins: config.listen.allowed_origins.clone(),
            well_known: well_known(&url, &routes),
            routes: routes.clone(),
            authenticator,
            sealer,
            streams,
            clock,
            body_timeout: config.listen.limits.body_timeout,
            closing: shutdown.clone(),
        });
        for route in &routes {
            if route.config.anonymous {
                tracing::warn!(
                    route = route.name(),
                    "route is anonymous: anyone who reaches it may use it"
                );
            }
            tracing::info!(route = route.name(), url = route.resource, "route is open");
        }
        let serving = tokio::spawn(listener.serve(service, shutdown.clone(), GRACE));
        Ok(Running {
            url,
            address,
            admin,
            metrics,
            audit,
            shutdown,
            serving,
            background,
        })
    }
}

impl Running {
    /// The public base URL, without a trailing slash.
    pub fn url(&self) -> String {
        self.url.clone()
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
        &self.metrics
    }

    /// Stops accepting, lets calls finish, ends standing streams, writes what the audit still holds.
    pub async fn shutdown(mut self) {
        self.shutdown.cancel();
        let _ = (&mut self.serving).await;
        self.background.shutdown().await;
        self.audit.flush().await;
    }
}

fn sealer(config: &Config) -> Result<Arc<Sealer>, StartError> {
    if !config.state.seal_keys.is_empty() {
        return Ok(Arc::new(Sealer::new(&config.state.seal_keys)));
    }
    let (sealer, warning) =
        session::load_or_create(&config.state.directory).map_err(|error| StartError::at("state.directory", error))?;
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
    Ok(Arc::new(sealer))
}

fn routes(config: &Config, url: &str, metrics: &Arc<Metrics>, clock: &Clock) -> Result<Vec<Arc<Route>>, StartError> {
    config
        .routes
        .iter()
        .map(|route| {
            let place = |key: &str| format!("routes.{}.{key}", route.name);
            let counters = metrics.route(&route.name);
            let upstream = Upstream::new(&route.upstream, upstream_events(counters.clone()))
                .map_err(|error| StartError::at(&place("upstream"), error))?;
            let credential = CredentialSource::new(&route.name, &route.credential, clock.clone(), metrics)
                .map_err(|error| StartError::at(&place("credential"), error))?;
            let resource = metadata::resource_url(url, &route.path);
            let vouched = route.identities.iter().any(|identity| !identity.issuer.is_empty());
            Ok(Arc::new(Route {
                auth: RouteAuth {
                    identities: route.identities.iter().map(|identity| identity.name.clone()).collect(),
                    anonymous: route.anonymous,
                    resource: resource.clone(),
                    route: route.name.clone(),
                },
                resource_metadata: vouched.then(|| metadata::resource_metadata_url(url, &route.path)),
                challenge_scopes: route.policy.required_scopes().to_vec(),
                resource,
                upstream,
                credential,
                metrics: counters,
                config: route.clone(),
            }))
        })
        .collect()
}

fn well_known(url: &str, routes: &[Arc<Route>]) -> WellKnownLayer {
    let issuers: Vec<Vec<String>> = routes
        .iter()
        .map(|route| {
            route
                .config
                .identities
                .iter()
                .map(|identity| identity.issuer.clone())
                .collect()
        })
        .collect();
    let scopes: Vec<Vec<String>> = routes
        .iter()
        .map(|route| route.config.policy.scopes_supported())
        .collect();
    let documents = routes
        .iter()
        .zip(issuers.iter().zip(&scopes))
        .map(|(route, (issuers, scopes))| ProtectedResource {
            public_url: url,
            path: &route.config.path,
            issuers,
            scopes,
            name: route.name(),
        });
    WellKnownLayer::new(Arc::new(WellKnown::new(documents)))
}

/// The hosts a request may name: the public one, those allowed, and loopback's own names when bound there.
fn hosts(config: &Config, url: &str, address: SocketAddr) -> Vec<String> {
    let mut hosts = config.listen.allowed_hosts.clone();
    hosts.extend(
        url::Url::parse(url)
            .ok()
            .and_then(|url| url.host_str().map(str::to_owned)),
    );
    if address.ip().is_loopback() {
        hosts.extend(["localhost", "127.0.0.1", "[::1]"].map(str::to_owned));
    }
    hosts
}

fn auth_events(metrics: Arc<Metrics>) -> crate::authn::AuthEvents {
    Arc::new(move |event| match event {
        AuthEvent::Validated {
            route,
            identity,
            ok,
            reason,
        } => {
            let result = if ok { "ok" } else { "refused" };
            metrics.route(route).auth_validation(identity, result, reason);
        }
        AuthEvent::JwksRefresh { identity, ok } => {
            metrics.jwks_refresh(identity, if ok { "ok" } else { "error" });
        }
        AuthEvent::CacheHit => metrics.token_cache("verified", "hit"),
        AuthEvent::CacheMiss => metrics.token_cache("verified", "miss"),
    })
}

/// Keeps `jwks_age_seconds`: a gauge that only moved with a refresh would stand still while the issuer is down.
async fn ages(metrics: Arc<Metrics>, authenticator: Arc<Authenticator>) {
    let mut every = tokio::time::interval(AGES);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        for keys in authenticator.state() {
            if let Some(age) = keys.age {
                metrics.jwks_age(&keys.identity, Duration::from_secs(age));
            }
        }
    }
}

fn upstream_events(metrics: Arc<crate::telemetry::RouteMetrics>) -> crate::upstream::UpstreamEvents {
    Arc::new(move |event| match event {
        UpstreamEvent::Connected { ok } => metrics.upstream_connect(if ok { "ok" } else { "error" }),
        UpstreamEvent::Health { endpoint, healthy } => metrics.upstream_healthy(endpoint, healthy),
    })
}

fn admin_state(metrics: Arc<Metrics>, authenticator: Arc<Authenticator>, routes: Vec<Arc<Route>>) -> AdminState {
    let started = Instant::now();
    AdminState {
        metrics,
        status: Arc::new(move || StatusReport {
            version: env!("CARGO_PKG_VERSION"),
            uptime: started.elapsed().as_secs(),
            routes: routes.iter().map(|route| route_status(route, &authenticator)).collect(),
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
        endpoints: route
            .upstream
            .endpoints()
            .into_iter()
            .map(|endpoint| EndpointStatus {
                url: endpoint.url,
                healthy: endpoint.healthy,
                last_error: endpoint.last_error,
            })
            .collect(),
    }
}
