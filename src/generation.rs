//! Everything that one configuration makes: identities, routes, documents and the stack over them.
//!
//! 1. A reload makes another generation and puts it in the first one's place, whole: a request is served by one
//!    configuration from its beginning to its end.
//! 2. Connections, sessions, metrics and the audit log outlive generations; so do the issuers' keys and metadata, where the
//!    same issuer is asked for them in the same way, a route's processes where its command is the same, and what its bridge
//!    keeps where server and credential are. Pools, caches and balancers are made anew.
//! 3. The store of users' connections is opened once, when a route first needs it.
//! 4. What an old generation still carries it carries to the end; its background tasks end with it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Response;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::Service;

use crate::authn::{AuthEvent, Authenticator, RouteAuth};
use crate::bridge::Bridge;
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::connect::{self, ConnectLayer, Pages};
use crate::credential::{Connections, CredentialSource, Making};
use crate::edge::Body;
use crate::edge::access::Front;
use crate::edge::consent;
use crate::gateway::StartError;
use crate::limit::Limits;
use crate::listener::Incoming;
use crate::metadata::{self, Mirrors, ProtectedResource, WellKnown, WellKnownLayer};
use crate::oauth::registration;
use crate::oauth::signer::Signer;
use crate::rights::Rights;
use crate::route::Route;
use crate::session::{self, Sealer, Streams};
use crate::stack::{Parts, stack};
use crate::store::Store;
use crate::telemetry::{Audit, Metrics};
use crate::upstream::{BreakerState, Upstream, UpstreamEvent};

/// How often the age of the issuers' keys and of shared credentials is written down.
const AGES: Duration = Duration::from_secs(5);

/// What outlives configurations.
pub struct Lasting {
    pub metrics: Arc<Metrics>,
    pub audit: Audit,
    pub streams: Arc<Streams>,
    pub rights: Arc<Rights>,
    pub limits: Arc<Limits>,
    /// The keys in `state.directory`, or in memory where that can't be written. Every generation must open what the others
    /// sealed, so once there are any, they change only with the file that `keys rotate` writes.
    pub sealer: ArcSwapOption<Sealer>,
    /// Users' connections, with their store; open once a route needs them.
    pub connections: OnceLock<Arc<Connections>>,
    pub clock: Clock,
    /// Where the gateway listens.
    pub address: SocketAddr,
    /// Told to stop: standing streams end, calls finish.
    pub closing: CancellationToken,
}

/// One configuration, in force.
pub struct Generation {
    /// The public base URL, without a trailing slash.
    pub url: String,
    pub routes: Vec<Arc<Route>>,
    pub authenticator: Arc<Authenticator>,
    mirrors: Mirrors,
    front: Arc<dyn Front>,
    /// Ends with it.
    _background: JoinSet<()>,
}

impl Generation {
    /// Builds and checks everything; nothing of it is in force yet.
    ///
    /// # Errors
    /// What can't be used, by its key in the configuration.
    pub fn build(config: &Config, lasting: &Lasting, before: Option<&Self>) -> Result<Self, StartError> {
        let Lasting {
            metrics,
            audit,
            streams,
            rights,
            limits,
            sealer,
            connections,
            clock,
            address,
            closing,
        } = lasting;
        let url = public_url(config, *address);
        let authenticator = Authenticator::new(
            &config.identities,
            config.roles.clone(),
            clock.clone(),
            auth_events(metrics.clone(), rights.clone()),
        )
        .map_err(|error| StartError::at("identity", error))?;
        let mirrors = Mirrors::new(&config.identities, clock).map_err(|error| StartError::at("identity", error))?;
        if needs_connections(config) && connections.get().is_none() {
            return Err(StartError::at("state", "the store of connections isn't open"));
        }
        if let Some(before) = before {
            authenticator.inherit(&before.authenticator);
            mirrors.inherit(&before.mirrors);
        }
        let served = before.map_or(&[][..], |before| &before.routes);
        let connections = connections.get();
        let sealer = self::sealer(config, sealer)?;
        let signer = Arc::new(Signer::of_sealer(&sealer));
        let ingredients = Ingredients {
            url: &url,
            signer: &signer,
            metrics,
            limits,
            clock,
            connections,
        };
        let routes = routes(config, &ingredients, served)?;
        let signers = routes.iter().filter_map(|route| route.credential.signer());
        let jwks = Signer::jwks([&*signer].into_iter().chain(signers));
        let pages = match connections {
            None => None,
            Some(connections) => Pages::new(connect::Parts {
                public_url: url.clone(),
                routes: routes.clone(),
                identities: config.identities.clone(),
                authenticator: authenticator.clone(),
                connections: connections.clone(),
                sealer: sealer.clone(),
                audit: audit.clone(),
                clock: clock.clone(),
                body_timeout: config.listen.limits.body_timeout,
            })
            .map_err(|(key, error)| StartError::at(&key, error))?,
        };
        let front = stack(Parts {
            metrics: metrics.clone(),
            audit: audit.clone(),
            trusted_proxies: config.listen.trusted_proxies.clone(),
            hosts: hosts(config, &url, *address),
            origins: config.listen.allowed_origins.clone(),
            well_known: well_known(
                &url,
                &routes,
                config.listen.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()),
                &mirrors,
                jwks,
            ),
            pages: ConnectLayer::new(pages.map(Arc::new)),
            routes: routes.clone(),
            authenticator: authenticator.clone(),
            sealer: sealer.clone(),
            streams: streams.clone(),
            rights: rights.clone(),
            clock: clock.clone(),
            limits: limits.clone(),
            listen_limits: config.listen.limits.clone(),
            closing: closing.clone(),
        });
        let mut background = JoinSet::new();
        background.spawn(ages(metrics.clone(), authenticator.clone(), routes.clone()));
        let refresher = authenticator.clone();
        background.spawn(async move {
            refresher.spawn_refresh().join_all().await;
        });
        for route in &routes {
            let upstream = route.upstream.clone();
            background.spawn(async move { upstream.check_forever().await });
            let bridge = route.bridge.clone();
            background.spawn(async move { bridge.tend_forever().await });
        }
        if let Some(connections) = connections {
            connections.store().replace_sealer(sealer);
            let routes = routes.iter().filter(|route| route.credential.login().is_some());
            let names = routes.map(|route| route.name().into()).collect();
            background.spawn(connections.clone().tend(names));
        }
        Ok(Self {
            url,
            routes,
            authenticator,
            mirrors,
            front,
            _background: background,
        })
    }

    /// Ends what the routes keep open to their servers, and waits until those know, or had 5 s to.
    pub async fn end_bridges(&self) {
        futures_util::future::join_all(self.routes.iter().map(|route| route.bridge.close())).await;
    }

    /// Says which routes are open, and to whom.
    pub fn announce(&self) {
        for route in &self.routes {
            if route.config.anonymous {
                tracing::warn!(
                    route = route.name(),
                    "route is anonymous: anyone who reaches it may use it"
                );
            }
            tracing::info!(route = route.name(), url = route.resource, "route is open");
        }
    }
}

/// Serves every request by the generation that is in force when it arrives.
#[derive(Clone)]
pub struct Entrance(pub Arc<ArcSwap<Generation>>);

impl Service<Incoming> for Entrance {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, incoming: Incoming) -> Self::Future {
        self.0.load().front.answer(incoming)
    }
}

/// The keys that seal: those configured, or the gateway's own.
///
/// # Errors
/// Its own can't be read.
pub(crate) fn sealer(config: &Config, own: &ArcSwapOption<Sealer>) -> Result<Arc<Sealer>, StartError> {
    if !config.state.seal_keys.is_empty() {
        return Ok(Arc::new(Sealer::new(&config.state.seal_keys)));
    }
    let wrong = |error| StartError::at("state.directory", error);
    let before = own.load_full();
    let sealer = if before.is_some() {
        session::read_sealer(&config.state.directory)
            .map_err(wrong)?
            .map(Arc::new)
    } else {
        let (sealer, warning) = session::load_or_create(&config.state.directory).map_err(wrong)?;
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
        Some(Arc::new(sealer))
    };
    let sealer = sealer.or(before).expect("one of them is there");
    own.store(Some(sealer.clone()));
    Ok(sealer)
}

impl Lasting {
    /// Opens what a configuration needs open before a generation of it is built, unless it is.
    ///
    /// # Errors
    /// The store can't be opened.
    pub async fn prepare(&self, config: &Config) -> Result<(), StartError> {
        if !needs_connections(config) || self.connections.get().is_some() {
            return Ok(());
        }
        let sealer = sealer(config, &self.sealer)?;
        let store = Store::open(&config.state, sealer, self.clock.clone())
            .await
            .map_err(|error| StartError::at("state.database", error))?;
        let opened = Connections::new(store, self.clock.clone(), self.metrics.clone());
        // Whoever opened it meanwhile has the same database.
        let _ = self.connections.set(opened);
        Ok(())
    }
}

/// Whether any route has users who connect to it, or somebody's login that the gateway refreshes.
fn needs_connections(config: &Config) -> bool {
    config.routes.iter().any(|route| match &route.credential {
        config::Credential::Connection(_) => true,
        config::Credential::TokenFile(file) => file.login.is_some(),
        _ => false,
    })
}

/// The public base URL, of a gateway that listens there.
pub(crate) fn public_url(config: &Config, address: SocketAddr) -> String {
    let scheme = if config.listen.tls.is_some() { "https" } else { "http" };
    let given = config.listen.public_url.clone();
    given.unwrap_or_else(|| format!("{scheme}://{address}"))
}

/// What all routes are made of besides their configuration.
pub(crate) struct Ingredients<'a> {
    /// The public base URL.
    pub url: &'a str,
    pub signer: &'a Arc<Signer>,
    pub metrics: &'a Arc<Metrics>,
    pub limits: &'a Limits,
    pub clock: &'a Clock,
    /// `None`: no store is open.
    pub connections: Option<&'a Arc<Connections>>,
}

pub(crate) fn routes(
    config: &Config,
    ingredients: &Ingredients<'_>,
    before: &[Arc<Route>],
) -> Result<Vec<Arc<Route>>, StartError> {
    let Ingredients {
        url,
        signer,
        metrics,
        limits,
        clock,
        connections,
    } = *ingredients;
    config
        .routes
        .iter()
        .map(|route| {
            let place = |key: &str| format!("routes.{}.{key}", route.name);
            let counters = metrics.route(&route.name);
            let served = before.iter().find(|before| before.name() == &*route.name);
            let served = served.map(|before| &*before.upstream);
            let upstream = Upstream::new(&route.name, &route.upstream, served, upstream_events(counters.clone()))
                .map_err(|error| StartError::at(&place("upstream"), error))?;
            let origin = metadata::origin(url, route.host.as_ref());
            let resource = metadata::resource_url(&origin, &route.path);
            let server = route.upstream.urls.first().map(|server| {
                let mut server = server.clone();
                server.set_query(None);
                server
            });
            let making = Making {
                route: &route.name,
                upstream: server.as_ref(),
                public_url: url,
                resource: &resource,
                signer,
                servers: &route.upstream,
                connections,
                clock,
                metrics,
            };
            let credential = CredentialSource::new(&route.credential, &making)
                .map_err(|error| StartError::at(&place("credential"), error))?;
            let vouched = route.identities.iter().any(|identity| !identity.issuer.is_empty());
            Ok(Arc::new(Route {
                auth: RouteAuth {
                    identities: route.identities.iter().map(|identity| identity.name.clone()).collect(),
                    anonymous: route.anonymous,
                    resource: resource.clone(),
                    route: route.name.clone(),
                },
                resource_metadata: vouched.then(|| metadata::resource_metadata_url(&origin, &route.path)),
                challenge_scopes: route.asked_scopes(route.policy.required_scopes()),
                resource,
                bridge: bridge(route, &upstream, before),
                upstream,
                connect_page: consent::page(url, &route.name),
                credential,
                limits: limits.route(&route.name, route.limits),
                metrics: counters,
                config: route.clone(),
            }))
        })
        .collect()
}

/// The route's bridge: as it was, where that still leads to the same server with the same credential.
fn bridge(route: &config::Route, upstream: &Arc<Upstream>, before: &[Arc<Route>]) -> Arc<Bridge> {
    let same = before.iter().find(|before| {
        before.config.name == route.name
            && before.config.upstream == route.upstream
            && before.config.credential == route.credential
    });
    Arc::new(match same {
        Some(before) => before.bridge.carried_on(upstream.clone()),
        None => Bridge::new(&route.upstream, upstream.clone()),
    })
}

fn well_known(url: &str, routes: &[Arc<Route>], certificates: bool, mirrors: &Mirrors, jwks: Bytes) -> WellKnownLayer {
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
        .map(|route| {
            let scopes = route.config.policy.scopes_supported();
            // Each issuer's spelling; doubles are left out of the document.
            let identities = route.config.identities.iter();
            let issuers = identities.filter(|identity| !identity.issuer.is_empty());
            issuers
                .flat_map(|identity| identity.claims.scope_names.asked_all(&scopes))
                .collect()
        })
        .collect();
    let documents = routes
        .iter()
        .zip(issuers.iter().zip(&scopes))
        .map(|(route, (issuers, scopes))| ProtectedResource {
            public_url: url,
            host: route.config.host.as_ref(),
            path: &route.config.path,
            issuers,
            scopes,
            name: route.name(),
            dpop: route.dpop(),
            certificates,
        });
    let mut documents = WellKnown::new(documents, mirrors, jwks);
    if routes
        .iter()
        .any(|route| matches!(route.config.credential, config::Credential::Connection(_)))
    {
        documents.publish("/connect/client.json", registration::client_metadata(url));
    }
    WellKnownLayer::new(Arc::new(documents))
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

fn auth_events(metrics: Arc<Metrics>, rights: Arc<Rights>) -> crate::authn::AuthEvents {
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
        AuthEvent::RightsShaken => rights.reconsider(),
        AuthEvent::Cache { cache, hit } => metrics.token_cache(cache, if hit { "hit" } else { "miss" }),
    })
}

/// Keeps the ages of keys and credentials: a gauge that only moved with a refresh would stand still while the issuer is
/// down.
async fn ages(metrics: Arc<Metrics>, authenticator: Arc<Authenticator>, routes: Vec<Arc<Route>>) {
    let mut every = tokio::time::interval(AGES);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        for keys in authenticator.state() {
            if let Some(age) = keys.age {
                metrics.jwks_age(&keys.identity, Duration::from_secs(age));
            }
        }
        for route in &routes {
            route.credential.measure(&route.metrics);
        }
    }
}

fn upstream_events(metrics: Arc<crate::telemetry::RouteMetrics>) -> crate::upstream::UpstreamEvents {
    Arc::new(move |event| match event {
        UpstreamEvent::Connected { ok } => metrics.upstream_connect(if ok { "ok" } else { "error" }),
        UpstreamEvent::Health { endpoint, healthy } => metrics.upstream_healthy(endpoint, healthy),
        UpstreamEvent::Breaker { endpoint, state } => metrics.breaker_state(
            endpoint,
            match state {
                BreakerState::Closed => 0,
                BreakerState::HalfOpen => 1,
                BreakerState::Open => 2,
            },
        ),
    })
}
