//! What a route's logins are made for, how their tokens are renewed, and where its calls get them.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use url::Url;

use super::{Connections, Counts};
use crate::authn::Principal;
use crate::config;
use crate::credential::{CredentialError, Making, NotConnected, NotConnectedReason, OutboundCredential};
use crate::oauth::login::Login;
use crate::oauth::{Grant, TokenError, TokenSet, registration};

/// Asks the issuer for another pair of tokens.
pub(super) type Renew = Arc<dyn Fn(Grant) -> BoxFuture<'static, Result<TokenSet, TokenError>> + Send + Sync>;

/// One route's.
pub(super) struct Binding {
    pub(super) route: Arc<str>,
    /// The upstream's URL without its query.
    pub(super) upstream: String,
    /// Where the configuration names them: whom a refresh token may be shown to.
    pub(super) issuer: Option<String>,
    pub(super) token_endpoint: Option<Url>,
    /// The configured client's id: who refreshes.
    pub(super) client: Option<String>,
    /// The id that the gateway has where its document names it.
    pub(super) document: String,
    pub(super) renew: Renew,
}

impl Binding {
    /// Whether the login was made for this upstream, by this issuer (r32).
    pub(super) fn fits(&self, grant: &Grant) -> bool {
        grant.upstream == self.upstream
            && self.issuer.as_ref().is_none_or(|issuer| *issuer == grant.issuer)
            && self
                .token_endpoint
                .as_ref()
                .is_none_or(|url| *url == grant.token_endpoint)
    }

    /// Whether a refusal of the client ends a login: where it registered itself, it is forgotten. A configured one is the
    /// operator's to mend; one with a document is refused when the issuer can't read that, which may pass.
    pub(super) fn is_forgotten(&self, grant: &Grant) -> bool {
        self.client.is_none() && grant.client.id != self.document
    }

    /// Whether the configured client, if there is one, is who the login was made for: no other can refresh it.
    pub(super) fn can_refresh(&self, grant: &Grant) -> bool {
        self.client.as_ref().is_none_or(|id| *id == grant.client.id)
    }

    pub(super) fn lacking(&self, reason: NotConnectedReason) -> CredentialError {
        CredentialError::NotConnected(NotConnected {
            route: self.route.clone(),
            reason,
        })
    }
}

/// Where one route's calls get their users' tokens.
pub(crate) struct ConnectionSource {
    connections: Arc<Connections>,
    login: Arc<Login>,
    binding: Arc<Binding>,
}

impl ConnectionSource {
    /// `None` while no store is open.
    ///
    /// # Errors
    /// A file of the configuration that can't be used, in words for the operator.
    pub(crate) fn new(config: &config::Connection, making: &Making<'_>) -> Result<Option<Self>, String> {
        // Each is asked by a balancer; a login is made for one, and its token goes to no other (r32).
        if making.servers.urls.len() != 1 {
            return Err("a login is made for one URL; give upstream one".to_owned());
        }
        let Some(connections) = making.connections else {
            return Ok(None);
        };
        let (store, clock) = (connections.store().clone(), making.clock.clone());
        let login = Arc::new(Login::new(config, making.servers, making.public_url, store, clock)?);
        let renewing = login.clone();
        let binding = Binding {
            route: making.route.into(),
            upstream: login.upstream().to_owned(),
            issuer: config.issuer.clone(),
            token_endpoint: config.endpoints.as_ref().map(|endpoints| endpoints.token.clone()),
            client: config.client.as_ref().map(|client| client.id.clone()),
            document: registration::client_id(making.public_url),
            renew: Arc::new(move |grant| {
                let login = renewing.clone();
                Box::pin(async move { login.refresh(&grant).await })
            }),
        };
        Ok(Some(Self {
            connections: connections.clone(),
            login,
            binding: Arc::new(binding),
        }))
    }

    pub(crate) fn login(&self) -> &Arc<Login> {
        &self.login
    }

    /// How many connections are in which state.
    pub(crate) fn counts(&self) -> Option<Counts> {
        self.connections.counts(&self.binding.route)
    }

    /// The credential of one call.
    ///
    /// # Errors
    /// The person isn't connected, or their token can't be had.
    pub(crate) async fn credential(&self, principal: &Principal) -> Result<OutboundCredential, CredentialError> {
        self.connections.credential(&self.binding, principal).await
    }
}
