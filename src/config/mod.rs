//! The validated configuration: what the rest of the gateway may rely on without checking again.
//!
//! `tree.rs` reads YAML with places and interpolates, `raw.rs` reads that key by key and describes itself as a JSON Schema,
//! `load.rs` and a file a section (`identities.rs`, `claims.rs`, `routes.rs`, `upstreams.rs`, `stdio.rs`,
//! `credentials.rs`, `clients.rs`) make a [`Config`] of it once, collecting
//! every error; `values.rs` knows single values.

mod claims;
mod clients;
mod credentials;
mod diagnostic;
#[cfg(test)]
mod exact;
mod identities;
mod load;
mod network;
mod raw;
mod routes;
mod stdio;
#[cfg(test)]
mod tests;
mod tree;
mod upstreams;
mod values;
pub mod watch;

pub use claims::{ClaimPaths, ScopeNames};
pub use clients::{Client, ClientProof, PrivateKey};
pub use credentials::{
    Actor, Assertion, ClientCredentials, Connection, Credential, Endpoints, Exchange, ExchangeGrant, JwtBearer,
    Registration, Resource, TokenEndpoint, TokenFile, TokenType,
};
pub use diagnostic::{Diagnostic, Diagnostics, Place};
pub use load::Loaded;
pub use network::Network;
pub(crate) use stdio::executable;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderName;
use url::Url;

use crate::authn::api_key::ApiKey;
use crate::policy::{Roles, RoutePolicy};
use crate::secret::Secret;

/// Everything the gateway was told.
pub struct Config {
    pub listen: Listen,
    pub admin: Option<Admin>,
    pub telemetry: Telemetry,
    pub state: State,
    /// In the order of the file: the order of `authorization_servers`.
    pub identities: Vec<Arc<Identity>>,
    /// Role definitions, evaluated once a principal.
    pub roles: Arc<Roles>,
    pub routes: Vec<Arc<Route>>,
}

/// Where clients arrive.
pub struct Listen {
    pub address: SocketAddr,
    /// Scheme and authority, without a trailing slash: what every URL shown to clients starts with.
    /// `None` only on loopback, where it is built from the bound address.
    pub public_url: Option<String>,
    pub tls: Option<ServerTls>,
    /// Peers whose forwarding headers are believed; `public_url` is given when there are any.
    pub trusted_proxies: Vec<Network>,
    /// Whether these begin each connection with a PROXY header; `trusted_proxies` isn't empty then.
    pub proxy_protocol: bool,
    pub limits: ListenLimits,
    /// Hosts accepted besides `public_url`'s and loopback names when bound to loopback; lower case, without a port.
    pub allowed_hosts: Vec<String>,
    /// Browser origins, `scheme://host[:port]`, lower case.
    pub allowed_origins: Vec<String>,
}

/// PEM files of the listener's certificate chain and key.
pub struct ServerTls {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// PEM bundle that client certificates must chain to; `None`: clients aren't asked for one.
    pub client_ca: Option<PathBuf>,
}

/// Bounds on what a connection may take before a request exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenLimits {
    pub connections: usize,
    /// Connections of one client address (of IPv6 one /64).
    pub connections_per_address: usize,
    /// Requests on their way at once, from their arrival to the head of their answer.
    pub requests: usize,
    /// Standing streams, over all routes.
    pub streams: usize,
    pub streams_per_principal: usize,
    pub handshake_timeout: Duration,
    /// For a request's headers, from when its connection had nothing to do.
    pub header_timeout: Duration,
    /// For the whole request body.
    pub body_timeout: Duration,
    /// Bytes of a request's header section.
    pub headers: usize,
}

impl Default for ListenLimits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            connections_per_address: 2_500,
            requests: 10_000,
            streams: 10_000,
            streams_per_principal: 2_500,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            headers: 64 * 1024,
        }
    }
}

/// The port for operators.
#[derive(PartialEq, Eq)]
pub struct Admin {
    pub address: SocketAddr,
    /// Needed for `/status` off loopback.
    pub token: Option<Secret>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telemetry {
    pub log: Log,
    pub audit: Audit,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    pub format: LogFormat,
    /// A `tracing` filter directive, such as `info` or `portcullis=debug,info`.
    pub level: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    pub sink: AuditSink,
    pub on_failure: OnAuditFailure,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditSink {
    Stdout,
    Stderr,
    File(PathBuf),
}

/// What happens to requests when the audit sink stalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnAuditFailure {
    /// 503 after one second.
    Refuse,
    /// The line is dropped and counted.
    Drop,
}

/// What must outlive the process.
pub struct State {
    pub directory: PathBuf,
    pub database: Database,
    /// The first seals, all open. Empty: a key is made and kept in `directory`.
    pub seal_keys: Vec<SealKey>,
}

/// Where rows are kept.
#[derive(PartialEq, Eq)]
pub enum Database {
    /// One file in the state directory.
    Sqlite,
    /// A `postgres://` URL, password and all; several replicas share it.
    Postgres(Secret),
}

/// 32 bytes of key material, base64 in the file.
#[derive(Clone)]
pub struct SealKey(pub zeroize::Zeroizing<[u8; 32]>);

/// One who may vouch for callers.
pub struct Identity {
    pub name: Arc<str>,
    /// Compared byte for byte with `iss`; empty for API keys and client certificates, which are no tokens of anybody.
    pub issuer: String,
    pub keys: KeySource,
    pub algorithms: Vec<jsonwebtoken::Algorithm>,
    /// Accepted besides the route's resource URL.
    pub audiences: Vec<String>,
    pub claims: ClaimPaths,
    /// ID tokens are let in too, where the issuer gives clients no other JWT.
    pub id_tokens: bool,
    /// PEM bundle trusted for this issuer's TLS, instead of the system's roots.
    pub ca: Option<PathBuf>,
    /// Scope hierarchy: a scope and what it implies (closed transitively when a principal is made).
    pub implies: BTreeMap<String, Vec<String>>,
    pub scope_upgrade_endpoint: Option<String>,
    /// `None`: proofs are checked where tokens are bound to keys, and not asked for.
    pub dpop: Option<Dpop>,
    /// How its users log in to the gateway's own pages; `None`: they can't.
    pub login: Option<UserLogin>,
}

/// The gateway as this identity's OpenID Connect client.
pub struct UserLogin {
    pub client: Client,
    /// `openid` among them.
    pub scopes: Vec<String>,
}

/// What is asked of clients about DPoP (RFC 9449).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dpop {
    /// Advertised.
    Accepted,
    /// Tokens that are bound to no key are refused.
    Required,
    /// The same, and proofs carry the gate's nonces.
    Nonce,
}

/// What an identity vouches by: verification keys and where they come from, or what stands in for them.
pub enum KeySource {
    /// RFC 8414, then OpenID Connect discovery, from the issuer.
    Discovery,
    JwksUri(Url),
    JwksFile(PathBuf),
    /// HS256 with a secret of at least 32 bytes; no call to the issuer.
    SharedSecret(Secret),
    /// The issuer is asked about each token.
    Introspection(Introspection),
    ApiKeys(ApiKeys),
    ClientCertificates(ClientCertificates),
}

/// Certificates that clients show in the TLS handshake.
pub struct ClientCertificates {
    /// The name that a caller goes by.
    pub subject: CertificateName,
    /// `listen.tls.client_ca`.
    pub authorities: PathBuf,
}

/// A kind of name in a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateName {
    Uri,
    Dns,
    Email,
    CommonName,
    DistinguishedName,
}

/// RFC 7662 token introspection.
pub struct Introspection {
    /// `None`: found by discovery.
    pub endpoint: Option<Url>,
    pub client_id: String,
    pub client_secret: Secret,
    pub client_auth: ClientAuth,
    /// How long an answer is believed, in whole seconds; zero asks every time.
    pub cache: Duration,
    /// What an answer without `aud` is taken to say; empty: the token is refused.
    pub default_audiences: Vec<String>,
}

/// RFC 6749 section 2.3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    Basic,
    Post,
}

/// Hashes of API keys in a file.
pub struct ApiKeys {
    /// Read again when it changes.
    pub file: PathBuf,
    /// What it held when the configuration was read.
    pub keys: Vec<ApiKey>,
}

/// One public MCP endpoint.
pub struct Route {
    pub name: Arc<str>,
    /// The host that this route is on, lower case and without a port; `None`: `public_url`'s.
    pub host: Option<Arc<str>>,
    /// Begins with `/`, has no trailing slash unless it is `/`.
    pub path: String,
    /// Empty only when `anonymous`.
    pub identities: Vec<Arc<Identity>>,
    /// Requests without a token are let in as nobody; a bad token is still a 401.
    pub anonymous: bool,
    pub upstream: Upstream,
    pub credential: Credential,
    /// Scopes needed for anything, rules, budget, extension methods.
    pub policy: RoutePolicy,
    /// Bytes of a request body.
    pub body_limit: usize,
    pub limits: CallerLimits,
    pub denials: Denials,
    /// HTTP+SSE messages may come without their bearer (r04).
    pub bearerless_messages: bool,
}

impl Route {
    /// These scopes as a caller whom nobody knows yet asks for them: of the first issuer that clients are told.
    pub fn asked_scopes(&self, scopes: &[String]) -> Vec<String> {
        match self.identities.iter().find(|identity| !identity.issuer.is_empty()) {
            Some(identity) => identity.claims.scope_names.asked_all(scopes),
            None => scopes.to_vec(),
        }
    }
}

/// What each principal may have of a route; nothing configured is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallerLimits {
    pub rate: Option<Rate>,
    /// Calls in flight.
    pub concurrency: Option<usize>,
}

/// So many messages in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At most a million.
    pub count: NonZeroU32,
    /// A second or a minute.
    pub per: Duration,
    /// Messages at once, after a pause.
    pub burst: NonZeroU32,
}

/// The servers behind a route.
#[derive(PartialEq, Eq)]
pub struct Upstream {
    /// Absolute http or https; none if and only if the server is a command.
    pub urls: Vec<Url>,
    /// The command, when the server is one.
    pub stdio: Option<Stdio>,
    pub transport: Transport,
    pub era: UpstreamEra,
    pub balance: Balance,
    pub health: Option<Health>,
    /// PEM bundle trusted instead of the system's roots.
    pub ca: Option<PathBuf>,
    pub client_certificate: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    /// None where it is turned off.
    pub breaker: Option<Breaker>,
    pub connect_timeout: Duration,
    /// Until the response head; `None` waits for ever, as hours-long calls may.
    pub response_timeout: Option<Duration>,
    /// Between two frames of a response body.
    pub idle_timeout: Duration,
    /// Request headers forwarded besides the fixed allow-list.
    pub forward_headers: Vec<HeaderName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Auto,
    StreamableHttp,
    Sse,
    /// Exactly when there is a command.
    Stdio,
}

/// A server that is a command, speaking MCP on its stdin and stdout.
#[derive(Clone, PartialEq, Eq)]
pub struct Stdio {
    /// Absolute or relative to the gate's working directory; a file that could be executed when this was read.
    pub program: PathBuf,
    pub arguments: Vec<String>,
    /// All that the process gets, `PATH` included; names without `=`, nothing with NUL.
    pub environment: Vec<(String, Secret)>,
    /// Where it begins.
    pub directory: PathBuf,
    /// One process for all callers, instead of one a caller.
    pub shared: bool,
    /// Most at once on the route.
    pub processes: usize,
    /// How long a process may go unused.
    pub idle_timeout: Duration,
}

/// Which revisions the servers behind a route speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamEra {
    /// Found out by asking.
    Auto,
    /// 2026-07-28 and later, and nothing before.
    Modern,
    /// Up to 2025-11-25.
    Legacy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    RoundRobin,
    Random,
    /// By principal.
    Sticky,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    pub check: HealthCheck,
    pub interval: Duration,
}

/// When an endpoint that keeps failing is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// In a row.
    pub failures: NonZeroU32,
    pub cooldown: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthCheck {
    Tcp,
    /// A GET of this path and query must answer 2xx.
    Http(String),
}

/// The form a policy or upstream refusal takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denials {
    /// The form the client's era survives.
    Auto,
    /// Always an HTTP status.
    Status,
    /// A tool result with `isError: true`.
    InBand,
}
