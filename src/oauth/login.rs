//! One route's way to its upstream's tokens: a login in a browser or by device code, refreshing, revoking.
//!
//! 1. What a login was begun with, its answer is finished with: issuer, token endpoint, client and redirect URI are
//!    remembered in [`Pending`], not found again.
//! 2. Scopes are the configured ones; else those of the upstream's challenge, else all of its metadata, and
//!    `offline_access` where the issuer knows it. What more a call turned out to need is added to them.
//! 3. A refresh token goes to the token endpoint that it was got from, and only while upstream, issuer and client are
//!    still the configured ones and the upstream's metadata doesn't name other issuers only: then the login is over, as
//!    if the issuer had said `invalid_grant` (r32).

use std::time::Duration;

use http::HeaderMap;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use url::Url;

use super::authorization::{self, CallbackError, Expected};
use super::client::{Client, ClientError, Form, certificate};
use super::device::{self, Codes, DeviceError};
use super::discovery::{Configured, Discovery, FindError, Found, Provider};
use super::fetch::{Answered, Request};
use super::pending::Made;
use super::registrar::Registrar;
use super::registration::{self, RegistrationError};
use super::token::{self, TokenAnswer, TokenEndpoint};
use super::{ClientRecord, Grant, TokenError, TokenSet};
use crate::clock::{Clock, UnixSeconds};
use crate::config;
use crate::store::{Store, StoreError};

pub use super::pending::Pending;

/// How long the upstream is believed to have the issuer that it had.
const ISSUER_KEPT: Duration = Duration::from_secs(10 * 60);

/// How long a refresh waits to hear which issuer the upstream has.
const PATIENCE: Duration = Duration::from_secs(3);

/// The grant that refreshes can't be used (any more): the person has to log in again.
const GONE: TokenError = TokenError::Rejected { error: "invalid_grant" };

const INVALID_CLIENT: TokenError = TokenError::Rejected {
    error: "invalid_client",
};

const DEVICE_CODE: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// Why a login can't be begun, or came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error(transparent)]
    Find(#[from] FindError),
    #[error(transparent)]
    Registration(#[from] RegistrationError),
    #[error(transparent)]
    Callback(#[from] CallbackError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the route's configuration has changed since the login was begun")]
    Changed,
}

/// One route's login.
pub struct Login {
    config: config::Connection,
    discovery: Discovery,
    registrar: Registrar,
    redirect_uri: String,
    clock: Clock,
    /// The issuer that the upstream still had, and when.
    confirmed: Mutex<Option<(String, Instant)>>,
}

/// A login that was begun.
pub struct Begun {
    /// Where the browser goes.
    pub url: Url,
    /// What finds [`Pending`] again.
    pub state: String,
    pub pending: Pending,
}

/// A login by device code that a person has yet to allow. Has no `Debug`: it holds the device code.
pub struct Device {
    /// What the person types.
    pub user_code: String,
    /// Where they type it.
    pub verification_uri: Url,
    /// Where they needn't.
    pub verification_uri_complete: Option<Url>,
    /// Seconds since the epoch.
    pub expires_at: UnixSeconds,
    interval: Duration,
    deadline: Instant,
    endpoint: TokenEndpoint,
    form: Form,
    made: Made,
}

impl Device {
    /// Asks until the person has decided or the codes are over.
    ///
    /// # Errors
    /// They said no, or the issuer did.
    pub async fn wait(self) -> Result<Grant, LoginError> {
        let polled = device::poll(self.interval, self.deadline, async || {
            self.endpoint.ask(self.form.clone()).await
        });
        let answer = polled.await?;
        Ok(self.made.grant(answer.tokens))
    }
}

impl Login {
    /// The login of a route whose servers are `upstream`, at a gateway that browsers reach at `public_url`.
    ///
    /// # Errors
    /// A file or key of the configuration that can't be used, in words for the operator.
    pub fn new(
        config: &config::Connection,
        upstream: &config::Upstream,
        public_url: &str,
        store: Store,
        clock: Clock,
    ) -> Result<Self, String> {
        if let Some(client) = &config.client {
            Client::configured(client).map_err(|error| error.to_string())?;
        }
        let discovery = Discovery::new(
            upstream,
            Configured {
                issuer: config.issuer.as_deref(),
                resource: &config.resource,
                private_addresses: config.private_addresses,
                ca: config.ca.as_deref(),
                identity: config.client.as_ref().and_then(certificate),
            },
        )?;
        Ok(Self {
            registrar: Registrar::new(config, upstream, public_url, store, clock.clone()),
            redirect_uri: registration::redirect_uri(public_url),
            config: config.clone(),
            discovery,
            clock,
            confirmed: Mutex::new(None),
        })
    }

    /// Where the access tokens may go: the upstream's URL without its query.
    pub fn upstream(&self) -> &str {
        self.discovery.upstream().as_str()
    }

    /// Begins a login in a browser, for these scopes besides the usual ones.
    ///
    /// # Errors
    /// The issuer can't be found or used, or doesn't want the gateway as its client.
    pub async fn begin(&self, more_scopes: &[String]) -> Result<Begun, LoginError> {
        let found = self.found().await?;
        let provider = &found.provider;
        let endpoint = provider.authorization()?;
        let client = self.client(provider).await?;
        let (scopes, offline) = self.scopes(&found, more_scopes);
        let mut parameters = self.config.parameters.clone();
        // OpenID Connect Core section 11: without it the scope is ignored.
        if offline && parameters.iter().all(|(name, _)| name != "prompt") {
            parameters.push(("prompt".to_owned(), "consent".to_owned()));
        }
        let pending = Pending {
            made: self.made(&found, client, scopes),
            names_itself: provider.names_itself,
            redirect_uri: self.redirect_uri.clone(),
            state: authorization::random().expose().to_owned(),
            verifier: authorization::random(),
        };
        let request = authorization::Request {
            client_id: &pending.made.client.id,
            redirect_uri: &pending.redirect_uri,
            state: &pending.state,
            verifier: &pending.verifier,
            scopes: &pending.made.scopes,
            resource: pending.made.resource.as_deref(),
            parameters: &parameters,
        };
        Ok(Begun {
            url: request.url(endpoint),
            state: pending.state.clone(),
            pending,
        })
    }

    /// Finishes a login with the query that the browser came back with.
    ///
    /// # Errors
    /// The answer isn't this login's, or says no; or there is no token for its code.
    pub async fn finish(&self, pending: Pending, callback_query: &str) -> Result<Grant, LoginError> {
        let made = pending.made;
        let expected = Expected {
            state: &pending.state,
            issuer: &made.issuer,
            iss_promised: pending.names_itself,
        };
        let code = authorization::code(callback_query, &expected)?;
        if !self.is_still(&made.upstream, &made.issuer, &made.token_endpoint, &made.client) {
            return Err(LoginError::Changed);
        }
        let mut form = Form::grant("authorization_code");
        form.push("code", code.expose());
        form.push("redirect_uri", &pending.redirect_uri);
        form.push("code_verifier", pending.verifier.expose());
        if let Some(resource) = &made.resource {
            form.push("resource", resource);
        }
        let answer = self.ask(&made.token_endpoint, &made.issuer, &made.client, form).await?;
        self.registrar.finished();
        Ok(made.grant(answer.tokens))
    }

    /// Begins a login by device code, for these scopes besides the usual ones.
    ///
    /// # Errors
    /// As for [`Login::begin`]; and the issuer gives no usable codes.
    pub async fn device(&self, more_scopes: &[String]) -> Result<Device, LoginError> {
        let found = self.found().await?;
        let provider = &found.provider;
        let url = provider.device_authorization_endpoint.as_ref();
        let url = url.ok_or(DeviceError::Unsupported)?;
        let client = self.client(provider).await?;
        let (scopes, _) = self.scopes(&found, more_scopes);
        let mut form = Form::default();
        form.push_scopes(&scopes);
        let mut polled = Form::grant(DEVICE_CODE);
        if let Some(resource) = &found.resource {
            form.push("resource", resource);
            polled.push("resource", resource);
        }
        let began = (Instant::now(), self.clock.now());
        let answered = self.post(url, &provider.issuer, &client, form).await?;
        if let Err(error) = token::succeeded(&answered) {
            if error == INVALID_CLIENT {
                self.registrar.forget(&provider.issuer, &client).await;
            }
            return Err(error.into());
        }
        // The issuer knows the client.
        self.registrar.finished();
        let codes = Codes::parse(&answered.body)?;
        polled.push("device_code", codes.device_code.expose());
        Ok(Device {
            user_code: codes.user_code,
            verification_uri: codes.verification_uri,
            verification_uri_complete: codes.verification_uri_complete,
            expires_at: began.1.saturating_add(codes.lifetime.as_secs()),
            interval: codes.interval,
            deadline: began.0 + codes.lifetime,
            endpoint: self.endpoint(&provider.token_endpoint, &provider.issuer, &client)?,
            form: polled,
            made: self.made(&found, client, scopes),
        })
    }

    /// The grant that these tokens, which somebody else got for the same client, are of.
    ///
    /// # Errors
    /// As for [`Login::begin`].
    pub async fn grant_of(&self, tokens: TokenSet) -> Result<Grant, LoginError> {
        let found = self.found().await?;
        let client = self.client(&found.provider).await?;
        Ok(self.made(&found, client, Vec::new()).grant(tokens))
    }

    /// New tokens for a grant. What the answer leaves out stays: the refresh token (r14), the scopes.
    ///
    /// # Errors
    /// [`TokenError::Rejected`] with `invalid_grant` when the person has to log in again; anything else may pass.
    pub async fn refresh(&self, grant: &Grant) -> Result<TokenSet, TokenError> {
        let refresh_token = grant.tokens.refresh_token.as_ref().ok_or(GONE)?;
        if !self.accepts(grant) || self.has_moved(&grant.issuer).await {
            return Err(GONE);
        }
        let mut form = Form::grant("refresh_token");
        form.push("refresh_token", refresh_token.expose());
        if let Some(resource) = &grant.resource {
            form.push("resource", resource);
        }
        let answer = self.ask(&grant.token_endpoint, &grant.issuer, &grant.client, form);
        let mut tokens = answer.await?.tokens;
        tokens.refresh_token = tokens.refresh_token.or_else(|| Some(refresh_token.clone()));
        tokens.scopes = tokens.scopes.or_else(|| grant.tokens.scopes.clone());
        Ok(tokens)
    }

    /// Whether a grant is of this upstream, and of the configured issuer and client where there are such.
    pub fn accepts(&self, grant: &Grant) -> bool {
        self.is_still(&grant.upstream, &grant.issuer, &grant.token_endpoint, &grant.client)
    }

    /// Tells the issuer that the tokens are no longer needed (RFC 7009), as far as it listens.
    pub async fn revoke(&self, grant: &Grant) {
        let Some(url) = &grant.revocation_endpoint else {
            return;
        };
        let tokens = [
            ("refresh_token", grant.tokens.refresh_token.as_ref()),
            ("access_token", Some(&grant.tokens.access_token)),
        ];
        for (kind, token) in tokens {
            let Some(token) = token else {
                continue;
            };
            let mut form = Form::default();
            form.push("token", token.expose());
            form.push("token_type_hint", kind);
            if let Err(error) = self.post(url, &grant.issuer, &grant.client, form).await {
                tracing::debug!(%error, kind, "a token could not be revoked");
            }
        }
    }

    fn is_still(&self, upstream: &str, issuer: &str, token_endpoint: &Url, client: &ClientRecord) -> bool {
        let config = &self.config;
        upstream == self.upstream()
            && config.issuer.as_ref().is_none_or(|configured| configured == issuer)
            && config
                .endpoints
                .as_ref()
                .is_none_or(|endpoints| endpoints.token == *token_endpoint)
            && config
                .client
                .as_ref()
                .is_none_or(|configured| configured.id == client.id)
    }

    async fn found(&self) -> Result<Found, FindError> {
        let (Some(issuer), Some(endpoints)) = (&self.config.issuer, &self.config.endpoints) else {
            return self.discovery.find().await;
        };
        Ok(Found {
            provider: Provider::by_hand(issuer, endpoints),
            resource: self.discovery.own_resource(),
            scopes: Vec::new(),
        })
    }

    /// Whether the upstream's metadata names other issuers than this one. What can't be found out is no.
    async fn has_moved(&self, issuer: &str) -> bool {
        if self.config.endpoints.is_some() {
            return false;
        }
        let mut confirmed = self.confirmed.lock().await;
        let lately = |(known, at): &(String, Instant)| known == issuer && at.elapsed() < ISSUER_KEPT;
        if confirmed.as_ref().is_some_and(lately) {
            return false;
        }
        let named = timeout(PATIENCE, self.discovery.still_names(issuer)).await;
        if named == Ok(Some(false)) {
            return true;
        }
        *confirmed = Some((issuer.to_owned(), Instant::now()));
        false
    }

    /// The scopes to ask for, and whether `offline_access` was added to them.
    fn scopes(&self, found: &Found, more: &[String]) -> (Vec<String>, bool) {
        let offline = "offline_access".to_owned();
        let configured = !self.config.scopes.is_empty();
        let mut scopes = match configured {
            true => self.config.scopes.clone(),
            false => found.scopes.clone(),
        };
        for scope in more {
            if !scopes.contains(scope) {
                scopes.push(scope.clone());
            }
        }
        // Nothing but `offline_access` would be less than what the issuer gives to who asks for nothing.
        let added =
            !configured && !scopes.is_empty() && found.provider.scopes.contains(&offline) && !scopes.contains(&offline);
        if added {
            scopes.push(offline);
        }
        (scopes, added)
    }

    /// A grant's client, able to show that it is one.
    fn able(&self, record: &ClientRecord) -> Result<Client, ClientError> {
        match &self.config.client {
            Some(client) if client.id == record.id => Client::configured(client),
            keys => Client::recorded(record, keys.as_ref()),
        }
    }

    async fn client(&self, provider: &Provider) -> Result<ClientRecord, LoginError> {
        let fetcher = |url: &Url| self.discovery.client_of(url, false).clone();
        self.registrar.client(provider, fetcher).await
    }

    fn made(&self, found: &Found, client: ClientRecord, scopes: Vec<String>) -> Made {
        let provider = &found.provider;
        Made {
            issuer: provider.issuer.clone(),
            token_endpoint: provider.token_endpoint.clone(),
            revocation_endpoint: provider.revocation_endpoint.clone(),
            resource: found.resource.clone(),
            upstream: self.upstream().to_owned(),
            client,
            scopes,
        }
    }

    /// Asks another endpoint of the issuer than the token endpoint.
    async fn post(
        &self,
        url: &Url,
        issuer: &str,
        client: &ClientRecord,
        mut form: Form,
    ) -> Result<Answered, LoginError> {
        let mut headers = HeaderMap::new();
        let client = self.able(client)?;
        client.authenticate(&mut form, &mut headers, issuer, self.clock.now());
        let mut request = Request::form(url.clone(), form.encode());
        request.headers.extend(headers);
        let fetcher = self.discovery.client_of(url, self.config.endpoints.is_some());
        Ok(fetcher.ask(request).await.map_err(token::unreachable)?)
    }

    fn endpoint(&self, url: &Url, issuer: &str, client: &ClientRecord) -> Result<TokenEndpoint, ClientError> {
        let fetcher = self.discovery.client_of(url, self.config.endpoints.is_some());
        Ok(TokenEndpoint::new(
            fetcher.clone(),
            url.clone(),
            self.able(client)?,
            Some(issuer.to_owned()),
            Vec::new(),
            self.clock.clone(),
        ))
    }

    /// Asks a token endpoint, and forgets a client that it doesn't know.
    async fn ask(&self, url: &Url, issuer: &str, client: &ClientRecord, form: Form) -> Result<TokenAnswer, TokenError> {
        // A client that the configuration has no key for any more is none: a new login makes another.
        let endpoint = self.endpoint(url, issuer, client).map_err(|_| GONE)?;
        let answer = endpoint.ask(form).await;
        if answer.as_ref().err() == Some(&INVALID_CLIENT) {
            self.registrar.forget(issuer, client).await;
        }
        answer
    }
}
