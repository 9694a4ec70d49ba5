//! Whom the gateway asks for its own token: a token endpoint that is configured, or one found by the upstream's metadata.
//!
//! 1. What is found is believed for [`KEPT`]; then it is looked for again, for issuers move. While it can't be found there
//!    is nobody to ask.
//! 2. A client's secret goes to an issuer that the operator named, never to one that only the upstream did: whoever is
//!    told a secret has it. (The configuration sees to that.) A signed assertion is for its issuer alone, and a
//!    certificate's key stays here.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{Making, SetupError};
use crate::clock::Clock;
use crate::config::{self, ClientCredentials};
use crate::oauth::TokenError;
use crate::oauth::client::{Client, certificate};
use crate::oauth::discovery::{Configured, Discovery};
use crate::oauth::token::TokenEndpoint;

/// How long an upstream is believed to have the issuer that it had.
const KEPT: Duration = Duration::from_secs(10 * 60);

/// Whom to ask, and as what the upstream is known there.
pub(super) struct Way {
    pub(super) endpoint: TokenEndpoint,
    /// `resource` of the request (RFC 8707).
    pub(super) resource: Option<String>,
}

/// How the way is come by.
pub(super) type Find = Box<dyn Fn() -> BoxFuture<'static, Result<Arc<Way>, TokenError>> + Send + Sync>;

/// A way that need not be found.
pub(super) fn known(endpoint: TokenEndpoint, resource: Option<String>) -> Find {
    let way = Arc::new(Way { endpoint, resource });
    Box::new(move || Box::pin(std::future::ready(Ok(way.clone()))))
}

/// A way that is found when it is needed.
///
/// # Errors
/// A key, a certificate or a file that can't be used.
pub(super) fn found(config: &ClientCredentials, making: &Making<'_>) -> Result<Find, SetupError> {
    let unusable = |cause| SetupError::Unusable {
        route: making.route.to_owned(),
        key: "client_credentials".to_owned(),
        cause,
    };
    Client::configured(&config.client).map_err(|error| unusable(error.to_string()))?;
    let configured = Configured {
        issuer: config.issuer.as_deref(),
        resource: &config.resource,
        private_addresses: config.private_addresses,
        ca: config.ca.as_deref(),
        identity: certificate(&config.client),
    };
    let finder = Arc::new(Finder {
        route: making.route.to_owned(),
        discovery: Discovery::new(making.servers, configured).map_err(unusable)?,
        client: config.client.clone(),
        parameters: config.parameters.clone(),
        clock: making.clock.clone(),
        kept: Mutex::default(),
    });
    Ok(Box::new(move || {
        let finder = finder.clone();
        Box::pin(async move { finder.way().await })
    }))
}

struct Finder {
    route: String,
    discovery: Discovery,
    client: config::Client,
    parameters: Vec<(String, String)>,
    clock: Clock,
    kept: Mutex<Option<(Instant, Arc<Way>)>>,
}

impl Finder {
    async fn way(&self) -> Result<Arc<Way>, TokenError> {
        let mut kept = self.kept.lock().await;
        if let Some((at, way)) = &*kept
            && at.elapsed() < KEPT
        {
            return Ok(way.clone());
        }
        let found = self.discovery.find().await.map_err(|error| {
            tracing::warn!(route = self.route, %error, "the upstream's issuer can't be found");
            TokenError::Unreachable("the upstream's issuer can't be found")
        })?;
        let client = Client::configured(&self.client).expect("it could be made before");
        let url = found.provider.token_endpoint;
        let endpoint = TokenEndpoint::new(
            self.discovery.client_of(&url, false).clone(),
            url,
            client,
            Some(found.provider.issuer),
            self.parameters.clone(),
            self.clock.clone(),
        );
        let way = Arc::new(Way {
            endpoint,
            resource: found.resource,
        });
        *kept = Some((Instant::now(), way.clone()));
        Ok(way)
    }
}
