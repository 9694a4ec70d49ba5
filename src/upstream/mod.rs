//! Which server answers: chosen, dialled and asked.
//!
//! 1. pingora chooses among the healthy endpoints and keeps their health; hyper-util carries the request, a pool an
//!    endpoint. A session's endpoint is the only one asked for it.
//! 2. Another endpoint is tried only when connecting failed: a request whose bytes may have arrived is never sent twice.
//!    An endpoint that can't be connected to is passed over for a while, unless it is the last; one that keeps failing is
//!    left alone even then, until its `breaker` lets a request through.
//! 3. Exactly one credential leaves, the one handed in with a [`Permit`]; `Host` is the endpoint's (r46).
//! 4. A 307 or 308 to the endpoint's own origin is followed; any other redirect would carry the credential to a stranger.
//! 5. A command ([`stdio`]) has no endpoint that a request could be sent to: what speaks to its processes asks for them.
//! 6. A 401 is the credential's: where it can be had anew, the request is sent once more, to the same endpoint, and
//!    whatever comes then is the answer (r27, r36).
//! 7. There is no total time: connecting, the head and silence between frames are bounded, each by its own setting.

mod balance;
mod body;
mod breaker;
mod dial;
pub mod stdio;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, COOKIE, HOST, LOCATION, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use url::Url;

pub use body::UpstreamBody;
pub use breaker::BreakerState;

use crate::config;
use crate::credential::{CredentialError, OutboundCredential, Recover};
use crate::oauth::challenge::Challenge;
use crate::policy::Permit;
use balance::Balancer;
use breaker::Breaker;
use dial::Client;
use stdio::{Processes, StdioError};

/// How long an endpoint that can't be connected to is passed over.
const EJECTED: Duration = Duration::from_secs(5);
const MAX_REDIRECTS: usize = 3;
/// None of these is on anybody's list of what may pass; each would be another's credential, or frame the request.
const NEVER: [HeaderName; 5] = [AUTHORIZATION, COOKIE, HOST, CONTENT_LENGTH, TRANSFER_ENCODING];

/// The servers behind one route.
pub struct Upstream {
    /// None behind a command.
    endpoints: Arc<[Arc<Endpoint>]>,
    processes: Option<Arc<Processes>>,
    balancer: Balancer,
    response_timeout: Option<Duration>,
    idle_timeout: Duration,
    health: Option<config::Health>,
    events: UpstreamEvents,
}

/// One server.
pub struct Endpoint {
    id: EndpointId,
    url: Url,
    /// The same, as requests carry it: made once, and cheap to clone.
    uri: Uri,
    /// What hyper would spell anew for every request; `None` where the connection may turn out to be HTTP/2, which has
    /// no such header.
    host: Option<HeaderValue>,
    /// For people: without userinfo and query.
    name: Arc<str>,
    client: Client,
    /// Milliseconds since `started` until which it is passed over.
    ejected_until: AtomicU64,
    started: Instant,
    /// None where it is turned off.
    breaker: Option<Breaker>,
    last_error: std::sync::Mutex<Option<String>>,
}

/// A stable name of an endpoint, derived from its URL: it means the same after a restart or in another order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointId(Arc<str>);

impl EndpointId {
    fn of(url: &Url) -> Self {
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, url.as_str().as_bytes());
        Self(URL_SAFE_NO_PAD.encode(&hash.as_ref()[..9]).into())
    }

    /// As it is sealed into a session.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for EndpointId {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

/// What is sent. It borrows what another try would send again.
pub struct Outbound<'a> {
    pub method: &'a Method,
    /// `None`: the endpoint URL's own path and query.
    pub target: Option<&'a PathAndQuery>,
    /// Makes the headers, already allow-listed, anew for every try: hardly ever is there a second one.
    pub headers: &'a (dyn Fn() -> HeaderMap + Send + Sync),
    pub body: Bytes,
    /// A session's endpoint: no other is asked.
    pub endpoint: Option<EndpointId>,
    /// What `balance: sticky` goes by.
    pub sticky: Option<u64>,
}

/// What came back.
pub struct Sent {
    pub endpoint: EndpointId,
    /// The endpoint's name, for the audit.
    pub name: Arc<str>,
    pub response: Response<UpstreamBody>,
}

/// Why no answer came back. Texts name the endpoint, never the request.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("the upstream {endpoint} has as much of this caller's to do as it may; try again in a second")]
    Busy { endpoint: Arc<str> },
    #[error("the upstream {endpoint} can't be reached; see /status on the admin port")]
    Unavailable { endpoint: Arc<str> },
    #[error(
        "the upstream {endpoint} keeps failing, so its breaker is open; try again in {seconds} s; see /status on the admin port"
    )]
    Open { endpoint: Arc<str>, seconds: u64 },
    #[error("no endpoint of this route's upstream is healthy; see /status on the admin port")]
    NoneHealthy,
    #[error("the upstream {endpoint} did not answer within {} s", .after.as_secs())]
    Timeout { endpoint: Arc<str>, after: Duration },
    #[error("the upstream {endpoint} broke off or answered something that is not HTTP")]
    Protocol { endpoint: Arc<str> },
    #[error("the session's endpoint is no longer configured")]
    UnknownEndpoint,
    #[error("the upstream {endpoint} redirects away from its own origin; configure the URL it redirects to")]
    Redirect { endpoint: Arc<str> },
    #[error(transparent)]
    Process(#[from] StdioError),
    /// The upstream refused the credential, and there is no other.
    #[error(transparent)]
    Credential(#[from] CredentialError),
}

/// Why an upstream can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("{key}: cannot use {path}: {cause}")]
    Pem {
        key: &'static str,
        path: String,
        cause: String,
    },
    #[error("tls: {0}")]
    Tls(#[from] rustls::Error),
    #[error("urls: {0} has no host")]
    NoHost(Url),
}

/// What happened, for metrics.
#[derive(Clone, Copy, Debug)]
pub enum UpstreamEvent<'a> {
    /// A connection was opened, or could not be.
    Connected { ok: bool },
    /// An endpoint was checked, could not be connected to, or could be again.
    Health { endpoint: &'a str, healthy: bool },
    /// An endpoint's breaker is, or went, there.
    Breaker { endpoint: &'a str, state: BreakerState },
}

/// Where [`UpstreamEvent`]s go.
pub type UpstreamEvents = Arc<dyn Fn(UpstreamEvent<'_>) + Send + Sync>;

/// An endpoint's state, for operators.
#[derive(Clone, Debug)]
pub struct EndpointState {
    pub url: String,
    /// As checks and connecting say.
    pub healthy: bool,
    /// None where there is none.
    pub breaker: Option<BreakerState>,
    pub last_error: Option<String>,
}

impl Upstream {
    /// Reads certificates and makes a client an endpoint; connects to none yet, and starts nothing. The processes of
    /// the route's configuration `before` are carried on where their command is the same.
    ///
    /// # Errors
    /// When a certificate or key can't be used.
    pub fn new(
        route: &str,
        config: &config::Upstream,
        before: Option<&Self>,
        events: UpstreamEvents,
    ) -> Result<Arc<Self>, SetupError> {
        let tls = dial::tls(config)?;
        let processes = config.stdio.as_ref().map(|stdio| {
            let same = before
                .and_then(|before| before.processes.as_ref())
                .filter(|processes| processes.config() == stdio);
            let anew = || Processes::new(route, stdio.clone(), events.clone());
            same.cloned().unwrap_or_else(anew)
        });
        let endpoints = config
            .urls
            .iter()
            .map(|url| {
                let host = url.host_str().ok_or_else(|| SetupError::NoHost(url.clone()))?;
                let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
                let name: Arc<str> = format!("{}://{host}{port}{}", url.scheme(), url.path()).into();
                let breaker = |settings| Breaker::new(settings, name.clone(), events.clone());
                Ok(Arc::new(Endpoint {
                    id: EndpointId::of(url),
                    uri: uri(url).ok_or_else(|| SetupError::NoHost(url.clone()))?,
                    breaker: config.breaker.map(breaker),
                    name,
                    client: dial::client(tls.clone(), config.connect_timeout, events.clone()),
                    host: host_header(url),
                    url: url.clone(),
                    ejected_until: AtomicU64::new(0),
                    started: Instant::now(),
                    last_error: std::sync::Mutex::default(),
                }))
            })
            .collect::<Result<Arc<[_]>, SetupError>>()?;
        Ok(Arc::new(Self {
            balancer: Balancer::new(config.balance, &endpoints, config.health.as_ref()),
            endpoints,
            processes,
            response_timeout: config.response_timeout,
            idle_timeout: config.idle_timeout,
            health: config.health.clone(),
            events,
        }))
    }

    /// Checks the endpoints' health for as long as it is polled; returns at once when no check is configured.
    pub async fn check_forever(&self) {
        if let Some(processes) = &self.processes {
            processes.report();
        }
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            self.report(index);
            if let Some(breaker) = &endpoint.breaker {
                breaker.report();
            }
        }
        let Some(health) = &self.health else { return };
        let mut ticks = tokio::time::interval(health.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.balancer.check().await;
            for index in 0..self.endpoints.len() {
                self.report(index);
            }
        }
    }

    fn report(&self, index: usize) {
        (self.events)(UpstreamEvent::Health {
            endpoint: &self.endpoints[index].name,
            healthy: self.healthy(index),
        });
    }

    fn healthy(&self, index: usize) -> bool {
        self.balancer.healthy(index) && !self.endpoints[index].is_ejected()
    }

    /// Whether a sealed endpoint is still configured.
    pub fn knows(&self, id: &EndpointId) -> bool {
        self.find(id).is_some()
    }

    /// An endpoint's name, for the audit.
    pub fn describe(&self, id: &EndpointId) -> Arc<str> {
        self.find(id)
            .map_or_else(|| "".into(), |(_, endpoint)| endpoint.name.clone())
    }

    /// Where a reference that an endpoint gave leads, if that is on the endpoint's own origin.
    pub fn resolve(&self, id: &EndpointId, reference: &str) -> Option<PathAndQuery> {
        let (_, endpoint) = self.find(id)?;
        endpoint.stay(&endpoint.url, reference)
    }

    /// The processes, where the server is a command.
    pub fn processes(&self) -> Option<&Arc<Processes>> {
        self.processes.as_ref()
    }

    /// The endpoints in the configuration's order, or the command as one.
    pub fn endpoints(&self) -> Vec<EndpointState> {
        if let Some(processes) = &self.processes {
            let trouble = processes.trouble();
            return vec![EndpointState {
                url: processes.name().to_string(),
                healthy: trouble.is_none(),
                breaker: None,
                last_error: trouble.map(|trouble| trouble.to_string()),
            }];
        }
        self.endpoints
            .iter()
            .enumerate()
            .map(|(index, endpoint)| EndpointState {
                url: endpoint.name.to_string(),
                healthy: self.healthy(index),
                breaker: endpoint.breaker.as_ref().map(Breaker::state),
                last_error: endpoint.error().clone(),
            })
            .collect()
    }

    /// Whether any endpoint may be asked, or a process started.
    pub fn any_healthy(&self) -> bool {
        if let Some(processes) = &self.processes {
            return processes.trouble().is_none();
        }
        (0..self.endpoints.len()).any(|index| self.balancer.healthy(index))
    }

    /// Sends one request, and sends it again if only the credential was too old.
    ///
    /// # Errors
    /// See [`UpstreamError`]; nothing was answered then that anybody could use.
    pub async fn send(
        &self,
        permit: &Permit,
        credential: &OutboundCredential,
        outbound: Outbound<'_>,
    ) -> Result<Sent, UpstreamError> {
        // The permit is demanded, not read: whoever has none can't call this.
        let _ = permit;
        let sent = self.deliver(credential, &outbound).await?;
        let refused = matches!(sent.response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        match &credential.recovery {
            // Boxed: hardly any request needs the room.
            Some(recovery) if refused => Box::pin(self.recover(&**recovery, outbound, sent)).await,
            _ => Ok(sent),
        }
    }

    async fn recover(
        &self,
        recovery: &dyn Recover,
        outbound: Outbound<'_>,
        mut sent: Sent,
    ) -> Result<Sent, UpstreamError> {
        if sent.response.status() == StatusCode::UNAUTHORIZED {
            let Some(renewed) = recovery.recover().await? else {
                return Ok(sent);
            };
            tracing::debug!(
                endpoint = &*sent.name,
                "the upstream refused a credential; asking again with another"
            );
            let again = Outbound {
                endpoint: Some(sent.endpoint.clone()),
                ..outbound
            };
            // Its connection is free again.
            drop(sent);
            sent = self.deliver(&renewed, &again).await?;
        }
        if sent.response.status() == StatusCode::FORBIDDEN
            && let Some(challenge) = Challenge::read(sent.response.headers())
            && challenge.error == Some("insufficient_scope")
        {
            recovery.wants(challenge.scopes).await?;
        }
        Ok(sent)
    }

    async fn deliver(&self, credential: &OutboundCredential, outbound: &Outbound<'_>) -> Result<Sent, UpstreamError> {
        if let Some(id) = &outbound.endpoint {
            let (index, endpoint) = self.find(id).ok_or(UpstreamError::UnknownEndpoint)?;
            return match self.ask(index, credential, outbound).await {
                Ok(sent) => Ok(sent),
                Err(Failure::Connect) => Err(endpoint.unavailable()),
                Err(Failure::Open(after)) => Err(endpoint.open(after)),
                Err(Failure::Other(error)) => Err(error),
            };
        }
        let key = outbound.sticky.unwrap_or_default().to_be_bytes();
        let (mut tried, mut unreached) = (Vec::new(), None);
        loop {
            let left = |index: usize| !tried.contains(&index) && self.endpoints[index].wait().is_none();
            // With nobody else left, one that was passed over is better than nobody.
            let chosen = self
                .balancer
                .choose(&key, |index| left(index) && !self.endpoints[index].is_ejected())
                .or_else(|| self.balancer.choose(&key, left));
            let Some(index) = chosen else {
                return Err(unreached.unwrap_or_else(|| self.nobody()));
            };
            match self.ask(index, credential, outbound).await {
                Ok(sent) => return Ok(sent),
                Err(Failure::Other(error)) => return Err(error),
                Err(Failure::Connect) => unreached = Some(self.endpoints[index].unavailable()),
                // Between the look and the request its breaker opened, or somebody else became its probe.
                Err(Failure::Open(after)) => {
                    unreached.get_or_insert_with(|| self.endpoints[index].open(after));
                }
            }
            tried.push(index);
        }
    }

    /// Why nobody is asked: of the breakers that are open, the one that lets somebody through first.
    fn nobody(&self) -> UpstreamError {
        let healthy = (0..self.endpoints.len()).filter(|index| self.balancer.healthy(*index));
        let open = healthy.filter_map(|index| Some((self.endpoints[index].wait()?, index)));
        match open.min() {
            Some((after, index)) => self.endpoints[index].open(after),
            None => UpstreamError::NoneHealthy,
        }
    }

    async fn ask(
        &self,
        index: usize,
        credential: &OutboundCredential,
        outbound: &Outbound<'_>,
    ) -> Result<Sent, Failure> {
        let endpoint = &*self.endpoints[index];
        let mut uri = match outbound.target {
            Some(target) => endpoint.at(target.clone())?,
            None => endpoint.uri.clone(),
        };
        for _ in 0..=MAX_REDIRECTS {
            let response = self.head(index, credential, outbound, uri.clone()).await?;
            let status = response.status();
            if !(status.is_redirection() && status != StatusCode::NOT_MODIFIED) {
                return Ok(Sent {
                    endpoint: endpoint.id.clone(),
                    name: endpoint.name.clone(),
                    response: response.map(|body| UpstreamBody::new(body, self.idle_timeout)),
                });
            }
            let keeps_method = matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
            let target = response
                .headers()
                .get(LOCATION)
                .filter(|_| keeps_method)
                .and_then(|location| {
                    // Relative to what was asked for (RFC 9110 section 10.2.2), which need not be the endpoint's URL.
                    let asked = endpoint.url.join(uri.path_and_query()?.as_str()).ok()?;
                    endpoint.stay(&asked, location.to_str().ok()?)
                })
                .ok_or_else(|| endpoint.redirect())?;
            uri = endpoint.at(target)?;
        }
        Err(endpoint.redirect())
    }

    async fn head(
        &self,
        index: usize,
        credential: &OutboundCredential,
        outbound: &Outbound<'_>,
        uri: Uri,
    ) -> Result<Response<hyper::body::Incoming>, Failure> {
        let endpoint = &*self.endpoints[index];
        let mut request = Request::new(Full::new(outbound.body.clone()));
        *request.method_mut() = outbound.method.clone();
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        *headers = (outbound.headers)();
        while let Some(name) = headers.keys().find(|name| NEVER.contains(name)).cloned() {
            headers.remove(name);
        }
        credential.apply(headers);
        if let Some(host) = &endpoint.host {
            headers.insert(HOST, host.clone());
        }
        let pass = endpoint.breaker.as_ref().map(Breaker::admit).transpose();
        let pass = pass.map_err(Failure::Open)?;
        let asking = endpoint.client.request(request);
        let answer = match self.response_timeout {
            None => Ok(asking.await),
            Some(after) => tokio::time::timeout(after, asking).await.map_err(|_| {
                Failure::Other(UpstreamError::Timeout {
                    endpoint: endpoint.name.clone(),
                    after,
                })
            }),
        };
        if let Some(pass) = pass {
            match &answer {
                Ok(Ok(response)) if !is_gateways(response.status()) => pass.succeeded(),
                _ => pass.failed(),
            }
        }
        match answer? {
            Ok(response) => {
                if endpoint.succeeded() {
                    self.report(index);
                }
                Ok(response)
            }
            Err(error) if error.is_connect() => {
                endpoint.eject(&error);
                self.report(index);
                Err(Failure::Connect)
            }
            Err(error) => {
                tracing::debug!(endpoint = &*endpoint.name, error = %chain(&error), "the upstream failed");
                Err(endpoint.protocol())
            }
        }
    }

    fn find(&self, id: &EndpointId) -> Option<(usize, &Arc<Endpoint>)> {
        self.endpoints
            .iter()
            .enumerate()
            .find(|(_, endpoint)| endpoint.id == *id)
    }
}

enum Failure {
    /// Nothing was sent: another endpoint may be asked.
    Connect,
    /// Nothing was sent, nor will be for so long: another may be asked.
    Open(Duration),
    Other(UpstreamError),
}

impl Endpoint {
    fn is_ejected(&self) -> bool {
        let until = self.ejected_until.load(Ordering::Relaxed);
        until != 0 && until > self.elapsed()
    }

    /// How long its breaker lets nothing through; `None` while requests pass.
    fn wait(&self) -> Option<Duration> {
        self.breaker.as_ref()?.wait()
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn eject(&self, error: &dyn std::error::Error) {
        let error = chain(error);
        let now = self.elapsed();
        let until = now + u64::try_from(EJECTED.as_millis()).expect("five seconds fit");
        // Of all the requests that find it gone at once, one says so.
        if self.ejected_until.swap(until, Ordering::Relaxed) <= now {
            tracing::warn!(endpoint = &*self.name, error, "cannot connect to the upstream");
        }
        *self.error() = Some(error);
    }

    /// Whether it had been passed over.
    fn succeeded(&self) -> bool {
        // Looked at before it is written: every request comes by, and hardly ever was there anything to clear.
        let returned =
            self.ejected_until.load(Ordering::Relaxed) != 0 && self.ejected_until.swap(0, Ordering::Relaxed) != 0;
        if returned {
            *self.error() = None;
        }
        returned
    }

    /// Another resource of this endpoint.
    fn at(&self, target: PathAndQuery) -> Result<Uri, Failure> {
        let mut parts = self.uri.clone().into_parts();
        parts.path_and_query = Some(target);
        Uri::from_parts(parts).map_err(|_| self.protocol())
    }

    /// Where a reference leads, if that is on this endpoint's own origin.
    fn stay(&self, base: &Url, reference: &str) -> Option<PathAndQuery> {
        let url = base.join(reference).ok()?;
        (url.origin() == self.url.origin()).then(|| path_and_query(&url))?
    }

    fn error(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.last_error
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn unavailable(&self) -> UpstreamError {
        UpstreamError::Unavailable {
            endpoint: self.name.clone(),
        }
    }

    fn open(&self, after: Duration) -> UpstreamError {
        UpstreamError::Open {
            endpoint: self.name.clone(),
            // Rounded up: who waits so long is let through.
            seconds: after.as_secs() + u64::from(after.subsec_nanos() > 0),
        }
    }

    fn protocol(&self) -> Failure {
        Failure::Other(UpstreamError::Protocol {
            endpoint: self.name.clone(),
        })
    }

    fn redirect(&self) -> Failure {
        Failure::Other(UpstreamError::Redirect {
            endpoint: self.name.clone(),
        })
    }
}

/// Said by what stands before a server that is away.
fn is_gateways(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}

fn authority(url: &Url) -> &str {
    &url[url::Position::BeforeHost..url::Position::AfterPort]
}

fn host_header(url: &Url) -> Option<HeaderValue> {
    // From bytes that nobody else owns: a copy of it costs a reference count.
    let plain = url.scheme() == "http";
    plain.then(|| HeaderValue::from_maybe_shared(Bytes::from(authority(url).to_owned())).ok())?
}

fn uri(url: &Url) -> Option<Uri> {
    Uri::builder()
        .scheme(url.scheme())
        .authority(authority(url))
        .path_and_query(path_and_query(url)?)
        .build()
        .ok()
}

fn path_and_query(url: &Url) -> Option<PathAndQuery> {
    url[url::Position::BeforePath..url::Position::AfterQuery].parse().ok()
}

/// An error with its causes: hyper's own text says little without them.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
