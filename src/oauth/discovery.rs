//! Who issues tokens for an upstream, from its URL alone (MCP 2026-07-28, "Authorization Server Discovery").
//!
//! 1. The upstream is asked without a token first. The `resource_metadata` of its challenge is where its metadata is;
//!    without one that is at the well-known address with the upstream's path, then at the one without (RFC 9728 section 3).
//! 2. A document counts only for the upstream: its `resource` is the upstream's URL, or a parent of it. A parent's must
//!    stand at that parent's own well-known address (RFC 9728 section 3.3), so that who has one path of a host isn't
//!    given tokens for all of them. What the operator names as `resource` is good, too.
//! 3. The issuer is the configured one, which must be among those that the document names; otherwise the first.
//! 4. The issuer's metadata is found and believed as `metadata.rs` says. Every address in it is one that may be asked.
//! 5. An upstream without such a document is of 2025-03-26: its origin is the issuer, and must have metadata that says so.
//!    Endpoints are never guessed, although 2025-03-26 would have it: without metadata nothing says that the issuer does
//!    PKCE, and what answers at `/token` of a shared host may be anybody's. Who has such an issuer writes its endpoints
//!    into the configuration.
//! 6. Addresses of the upstream's origin, and of the configured issuer's, are the operator's; all others are somebody's
//!    document's, public and not redirected (see `fetch.rs`).

use std::path::Path;
use std::sync::Arc;

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde_json::{Map, Value, json};
use url::{Origin, Url};
use zeroize::Zeroizing;

use super::AuthMethod;
use super::challenge::{self, Challenge};
use super::fetch::{FetchError, Fetcher, Reach, Request, is_loopback};
use super::metadata::{self, DiscoveryError, Form};
use super::registration::{Abilities, method_of};
use crate::authn::strict_json;
use crate::config::{self, Resource};

/// Most texts that are read of a list in a document.
const MAX_LIST: usize = 256;

/// Longest address that is repeated to the operator.
const MAX_SHOWN: usize = 200;

const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

/// Why an upstream's issuer isn't known, or can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    #[error("the upstream's metadata at {url} can't be had: {source}")]
    Fetch { url: Shown, source: FetchError },
    #[error("{0} is no protected resource metadata: no JSON object with a resource, or a key stands twice in it")]
    Document(Shown),
    #[error("the upstream's challenge names no URL as its resource_metadata")]
    Challenge,
    #[error("the metadata at {0} is another resource's than the upstream's; if that is its name, set `resource` to it")]
    OtherResource(Shown),
    #[error("the metadata at {0} names no authorization server")]
    NoIssuer(Shown),
    #[error("the metadata at {0} doesn't name the configured issuer")]
    NotThatIssuer(Shown),
    #[error("the upstream has no protected resource metadata, and its origin is no issuer: {0}")]
    Nothing(Box<FindError>),
    #[error("{0}")]
    Issuer(#[from] Box<DiscoveryError>),
    #[error("the issuer's metadata has no usable {0}")]
    Missing(&'static str),
    #[error("the issuer's {key} can't be used: {reason}")]
    Address { key: &'static str, reason: &'static str },
    #[error("the issuer's metadata doesn't say that it supports PKCE with S256")]
    Pkce,
}

/// An address as it may stand in a log: without its query, and not too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown(String);

impl Shown {
    fn of(url: &Url) -> Self {
        let mut url = url.clone();
        url.set_query(None);
        url.set_fragment(None);
        let mut shown = url.to_string();
        shown.truncate(MAX_SHOWN);
        Self(shown)
    }
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// An authorization server, as far as the gateway needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// Byte for byte as its metadata has it.
    pub issuer: String,
    pub authorization_endpoint: Option<Url>,
    pub token_endpoint: Url,
    pub registration_endpoint: Option<Url>,
    pub device_authorization_endpoint: Option<Url>,
    pub revocation_endpoint: Option<Url>,
    /// `code_challenge_methods_supported` has S256.
    pub pkce: bool,
    /// `authorization_response_iss_parameter_supported`.
    pub names_itself: bool,
    /// `client_id_metadata_document_supported`.
    pub reads_documents: bool,
    /// Empty when it doesn't say.
    pub scopes: Vec<String>,
    /// What it says of its clients.
    pub(super) abilities: Abilities,
}

/// What an upstream's URL leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub provider: Provider,
    /// `resource` of every request (RFC 8707); `None`: not sent.
    pub resource: Option<String>,
    /// The scopes to ask for, if the configuration names none: the challenge's, or else all that the upstream knows.
    pub scopes: Vec<String>,
}

/// Finds the issuer of one upstream.
pub struct Discovery {
    /// Without its query.
    upstream: Url,
    issuer: Option<String>,
    resource: Resource,
    calls: Calls,
}

/// Who is asked by whom.
struct Calls {
    /// With the trust that the upstream needs, and the certificate that it may ask for.
    upstream: Arc<Fetcher>,
    named: Arc<Fetcher>,
    found: Arc<Fetcher>,
    /// Both again with the certificate that the client authenticates by: no document's host is shown it.
    certified: Option<(Arc<Fetcher>, Arc<Fetcher>)>,
    upstream_origin: Origin,
    issuer_origin: Option<Origin>,
}

/// What is configured of a way to an issuer.
#[derive(Clone, Copy)]
pub struct Configured<'a> {
    /// The issuer, where it isn't the first that the upstream names.
    pub issuer: Option<&'a str>,
    pub resource: &'a Resource,
    pub private_addresses: bool,
    /// PEM bundle trusted at the issuer, instead of the machine's roots.
    pub ca: Option<&'a Path>,
    /// Certificate and key shown to the issuer (RFC 8705).
    pub identity: Option<(&'a Path, &'a Path)>,
}

impl Discovery {
    /// For this upstream, by its first URL.
    ///
    /// # Errors
    /// An upstream without a URL, or a file that can't be used, in words for the operator.
    pub fn new(upstream: &config::Upstream, configured: Configured<'_>) -> Result<Self, String> {
        let url = upstream.urls.first().ok_or("the upstream has no URL")?;
        let own = match (&upstream.client_certificate, &upstream.client_key) {
            (Some(certificate), Some(key)) => Some((certificate.as_path(), key.as_path())),
            _ => None,
        };
        let reach = Reach::found(url, configured.private_addresses);
        let issuer_origin = configured.issuer.and_then(|issuer| Url::parse(issuer).ok());
        let fetcher = |identity, reach| Ok::<_, String>(Arc::new(Fetcher::new(configured.ca, identity, reach)?));
        let certified = match configured.identity {
            Some(_) => Some((
                fetcher(configured.identity, Reach::Named)?,
                fetcher(configured.identity, reach)?,
            )),
            None => None,
        };
        Ok(Self {
            calls: Calls {
                upstream: Arc::new(Fetcher::new(upstream.ca.as_deref(), own, Reach::Named)?),
                named: fetcher(None, Reach::Named)?,
                found: fetcher(None, reach)?,
                certified,
                upstream_origin: url.origin(),
                issuer_origin: issuer_origin.map(|issuer| issuer.origin()),
            },
            upstream: without_query(url),
            issuer: configured.issuer.map(str::to_owned),
            resource: configured.resource.clone(),
        })
    }

    /// The upstream's URL without its query: what tokens are bound to.
    pub fn upstream(&self) -> &Url {
        &self.upstream
    }

    /// Who asks as a client, at an endpoint of the configuration (`by_hand`) or of the issuer's metadata.
    pub(crate) fn client_of(&self, url: &Url, by_hand: bool) -> &Arc<Fetcher> {
        let is_named = by_hand || self.calls.issuer_origin == Some(url.origin());
        match &self.calls.certified {
            Some((named, _)) if is_named => named,
            Some((_, found)) => found,
            None if by_hand => &self.calls.named,
            None => self.fetcher(url),
        }
    }

    /// Who asks at an address that a document named.
    fn fetcher(&self, url: &Url) -> &Arc<Fetcher> {
        if self.calls.issuer_origin == Some(url.origin()) {
            &self.calls.named
        } else if url.origin() == self.calls.upstream_origin {
            &self.calls.upstream
        } else {
            &self.calls.found
        }
    }

    /// `resource` where no document says how the upstream calls itself (r35).
    pub(super) fn own_resource(&self) -> Option<String> {
        match &self.resource {
            Resource::Upstream => Some(canonical(&self.upstream)),
            Resource::Named(resource) => Some(resource.clone()),
            Resource::None => None,
        }
    }

    /// Asks the upstream, and whom it names.
    ///
    /// # Errors
    /// See [`FindError`].
    pub async fn find(&self) -> Result<Found, FindError> {
        let challenge = self.challenge().await.unwrap_or_default();
        let (issuer, resource, scopes) = match self.resource(&challenge).await? {
            Some((url, document)) => {
                let issuer = self.issuer_of(&url, &document)?;
                let resource = match &self.resource {
                    Resource::Upstream => Some(document.resource),
                    _ => self.own_resource(),
                };
                (issuer, resource, document.scopes)
            }
            None => {
                let origin = self.upstream.origin().ascii_serialization();
                if self.issuer.as_ref().is_some_and(|issuer| *issuer != origin) {
                    // The operator knows better than an upstream that knows nothing.
                    let issuer = self.issuer.clone().expect("it is another");
                    (issuer, self.own_resource(), Vec::new())
                } else {
                    let provider = self.provider(&origin).await;
                    let provider = provider.map_err(|error| FindError::Nothing(Box::new(error)))?;
                    return Ok(Found {
                        provider,
                        resource: self.own_resource(),
                        scopes: challenge.scopes,
                    });
                }
            }
        };
        let provider = self.provider(&issuer).await?;
        let scopes = match challenge.scopes.is_empty() {
            true => scopes,
            false => challenge.scopes,
        };
        Ok(Found {
            provider,
            resource,
            scopes,
        })
    }

    /// Whether the upstream still names this issuer; `None`: it says nothing, or isn't there.
    pub(super) async fn still_names(&self, issuer: &str) -> Option<bool> {
        let challenge = self.challenge().await.unwrap_or_default();
        let (_, document) = self.resource(&challenge).await.ok()??;
        Some(document.issuers.iter().any(|named| named == issuer))
    }

    /// What the upstream says to a call without a token: to the list of its tools, which is as harmless as it is likely to
    /// be protected. (`server/discover` and `initialize` are open at some.)
    async fn challenge(&self) -> Option<Challenge> {
        let version = "2026-07-28";
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": {
            "io.modelcontextprotocol/protocolVersion": version,
            "io.modelcontextprotocol/clientInfo": {"name": "portcullis", "version": env!("CARGO_PKG_VERSION")},
            "io.modelcontextprotocol/clientCapabilities": {},
        }}});
        let headers = [
            (ACCEPT, "application/json, text/event-stream"),
            (CONTENT_TYPE, "application/json"),
            (HeaderName::from_static("mcp-protocol-version"), version),
            (HeaderName::from_static("mcp-method"), "tools/list"),
        ];
        let request = Request {
            method: Method::POST,
            url: self.upstream.clone(),
            headers: HeaderMap::from_iter(headers.map(|(name, value)| (name, HeaderValue::from_static(value)))),
            body: Zeroizing::new(body.to_string().into_bytes()),
        };
        let answered = self.calls.upstream.ask(request).await.ok()?;
        (answered.status == StatusCode::UNAUTHORIZED)
            .then(|| Challenge::read(&answered.headers))
            .flatten()
    }

    /// The upstream's metadata, and where it was; `None`: there is none.
    async fn resource(&self, challenge: &Challenge) -> Result<Option<(Url, Document)>, FindError> {
        if let Some(named) = &challenge.resource_metadata {
            let url = Url::parse(named).map_err(|_| FindError::Challenge)?;
            let document = self.document(&url).await?;
            return Ok(Some((url, document)));
        }
        for url in well_known(&self.upstream) {
            match self.document(&url).await {
                Ok(document) => return Ok(Some((url, document))),
                Err(FindError::Fetch { source, .. }) if source.is_absence() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    async fn document(&self, url: &Url) -> Result<Document, FindError> {
        let fetch = |source| FindError::Fetch {
            url: Shown::of(url),
            source,
        };
        let bytes = self.fetcher(url).get(url).await.map_err(fetch)?;
        let document = Document::parse(&bytes).ok_or_else(|| FindError::Document(Shown::of(url)))?;
        let ours = match &self.resource {
            Resource::Named(resource) if *resource == document.resource => true,
            _ => is_of(&document.resource, &self.upstream, url),
        };
        ours.then_some(document)
            .ok_or_else(|| FindError::OtherResource(Shown::of(url)))
    }

    fn issuer_of(&self, url: &Url, document: &Document) -> Result<String, FindError> {
        match &self.issuer {
            None => document
                .issuers
                .first()
                .cloned()
                .ok_or_else(|| FindError::NoIssuer(Shown::of(url))),
            Some(issuer) if document.issuers.contains(issuer) => Ok(issuer.clone()),
            Some(_) => Err(FindError::NotThatIssuer(Shown::of(url))),
        }
    }

    async fn provider(&self, issuer: &str) -> Result<Provider, FindError> {
        let url = Url::parse(issuer).map_err(|_| Box::new(DiscoveryError::Issuer))?;
        let document = metadata::document(self.fetcher(&url), issuer, Form::OAuth).await;
        Provider::parse(issuer, &document.map_err(Box::new)?, |url| {
            self.fetcher(url).allowed(url)
        })
    }
}

/// The part of a document of RFC 9728 section 2 that matters here.
#[derive(Debug, PartialEq, Eq)]
struct Document {
    resource: String,
    issuers: Vec<String>,
    scopes: Vec<String>,
}

impl Document {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let document = strict_json::object(bytes)?;
        Some(Self {
            resource: document.get("resource")?.as_str()?.to_owned(),
            issuers: texts(&document, "authorization_servers").unwrap_or_default(),
            scopes: challenge::scopes(&texts(&document, "scopes_supported").unwrap_or_default().join(" ")),
        })
    }
}

impl Provider {
    /// What the issuer's metadata says; `allowed` tells whether an address may be asked at all.
    fn parse(
        issuer: &str,
        document: &[u8],
        allowed: impl Fn(&Url) -> Result<(), &'static str>,
    ) -> Result<Self, FindError> {
        let metadata = strict_json::object(document).ok_or(FindError::Missing("JSON object"))?;
        let endpoint = |key: &'static str| match metadata.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(address)) => {
                let refused = |reason| FindError::Address { key, reason };
                let url = Url::parse(address).map_err(|_| refused("it is no URL"))?;
                allowed(&url).map_err(refused)?;
                Ok(Some(url))
            }
            Some(_) => Err(FindError::Missing(key)),
        };
        let says = |key: &str| metadata.get(key) == Some(&Value::Bool(true));
        let device_authorization_endpoint = endpoint("device_authorization_endpoint")?;
        Ok(Self {
            issuer: issuer.to_owned(),
            authorization_endpoint: endpoint("authorization_endpoint")?,
            token_endpoint: endpoint("token_endpoint")?.ok_or(FindError::Missing("token_endpoint"))?,
            registration_endpoint: endpoint("registration_endpoint")?,
            revocation_endpoint: endpoint("revocation_endpoint")?,
            pkce: texts(&metadata, "code_challenge_methods_supported")
                .is_some_and(|methods| methods.iter().any(|method| method == "S256")),
            names_itself: says("authorization_response_iss_parameter_supported"),
            reads_documents: says("client_id_metadata_document_supported"),
            scopes: texts(&metadata, "scopes_supported").unwrap_or_default(),
            abilities: Abilities {
                auth_methods: match metadata.get("token_endpoint_auth_methods_supported") {
                    Some(Value::Array(methods)) => methods.iter().take(MAX_LIST).filter_map(method_of).collect(),
                    // RFC 8414 section 2.
                    _ => vec![AuthMethod::ClientSecretBasic],
                },
                grant_types: texts(&metadata, "grant_types_supported"),
                devices: device_authorization_endpoint.is_some(),
            },
            device_authorization_endpoint,
        })
    }

    /// An issuer whose endpoints the operator wrote, and who is taken to do PKCE.
    pub(super) fn by_hand(issuer: &str, endpoints: &config::Endpoints) -> Self {
        Self {
            issuer: issuer.to_owned(),
            authorization_endpoint: endpoints.authorization.clone(),
            token_endpoint: endpoints.token.clone(),
            registration_endpoint: None,
            device_authorization_endpoint: endpoints.device_authorization.clone(),
            revocation_endpoint: endpoints.revocation.clone(),
            pkce: true,
            names_itself: false,
            reads_documents: false,
            scopes: Vec::new(),
            abilities: Abilities {
                auth_methods: Vec::new(),
                grant_types: None,
                devices: endpoints.device_authorization.is_some(),
            },
        }
    }

    /// Where people are sent, if the issuer is fit for it.
    pub(super) fn authorization(&self) -> Result<&Url, FindError> {
        let endpoint = self.authorization_endpoint.as_ref();
        let endpoint = endpoint.ok_or(FindError::Missing("authorization_endpoint"))?;
        self.pkce.then_some(endpoint).ok_or(FindError::Pkce)
    }

    /// Whether it is on loopback, and so reads documents there.
    pub(super) fn is_local(&self) -> bool {
        Url::parse(&self.issuer).is_ok_and(|issuer| is_loopback(&issuer))
    }
}

/// The texts of a list; `None`: there is no list.
fn texts(document: &Map<String, Value>, key: &str) -> Option<Vec<String>> {
    let list = document.get(key)?.as_array()?;
    let texts = list.iter().take(MAX_LIST).filter_map(Value::as_str);
    Some(texts.map(str::to_owned).collect())
}

fn without_query(url: &Url) -> Url {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    url
}

/// A URL as a resource's name: an origin without a trailing slash (MCP, "Canonical Server URI").
pub(super) fn canonical(url: &Url) -> String {
    let url = without_query(url);
    match url.path() {
        "/" => url.as_str().trim_end_matches('/').to_owned(),
        _ => url.to_string(),
    }
}

/// RFC 9728 section 3.1, with the path and without.
fn well_known(upstream: &Url) -> Vec<Url> {
    let path = upstream.path().trim_end_matches('/');
    let mut urls = Vec::new();
    let mut url = without_query(upstream);
    if !path.is_empty() {
        url.set_path(&format!("{WELL_KNOWN}{path}"));
        urls.push(url.clone());
    }
    url.set_path(WELL_KNOWN);
    urls.push(url);
    urls
}

/// Whether a document at `at` that calls itself `resource`'s speaks for the upstream.
fn is_of(resource: &str, upstream: &Url, at: &Url) -> bool {
    let Ok(resource) = Url::parse(resource) else {
        return false;
    };
    if resource.origin() != upstream.origin() || resource.query().is_some() || resource.fragment().is_some() {
        return false;
    }
    let (own, parent) = (
        upstream.path().trim_end_matches('/'),
        resource.path().trim_end_matches('/'),
    );
    match own.strip_prefix(parent) {
        Some("") => true,
        Some(rest) => rest.starts_with('/') && well_known(&resource).first() == Some(at),
        None => false,
    }
}
