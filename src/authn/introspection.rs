//! One question to an issuer about one token (RFC 7662), and what is believed of the answer.
//!
//! 1. The gate says who it is (`client_id` and `client_secret`); the token goes nowhere but to the issuer's endpoint.
//! 2. `active: false` is the issuer's word against the token. Anything but a JSON object with a boolean `active` under a
//!    2xx is no word at all, and the token isn't to blame: a wrong client secret must not look like a hundred bad tokens.
//! 3. What the answer says is checked like a JWT's claims, by the same code: `aud`, `exp` and the mapped subject are
//!    required, and `iss`, if there, is the identity's.
//! 4. RFC 7662 lets issuers leave `aud` out. Then nobody has said that the token is meant for this route: it is refused
//!    (r42), unless `default_audiences` says whom this issuer's tokens without one are for.
//! 5. A refresh token is "active" too. What says that it is anything but an access token is refused, and so is one that
//!    is said to be a DPoP token without the key that it is bound to (RFC 9449 section 6.2). What `cnf` binds it to, the
//!    sender must show, as with a JWT (RFC 8705 section 3.2).

use std::sync::Arc;

use http::HeaderValue;
use http::header::AUTHORIZATION;
use serde_json::{Map, Value};
use tokio::sync::Mutex;
use url::{Url, form_urlencoded};
use zeroize::Zeroizing;

use super::fetch;
use super::verify::{self, Verified};
use super::{SetupError, TokenFault, strict_json};
use crate::clock::UnixSeconds;
use crate::config::{ClientAuth, Identity, Introspection};
use crate::oauth::client::basic;
use crate::oauth::fetch::{Answered, FetchError, Fetcher, Request};
use crate::oauth::metadata::{self, DiscoveryError};

/// Largest answer, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("{0}")]
    Discovery(#[from] DiscoveryError),
    #[error("no answer from {url}: {source}")]
    Fetch { url: Url, source: FetchError },
    #[error("{0} answers something else than RFC 7662 asks for")]
    Answer(Url),
    #[error("it takes longer than 5 s")]
    Slow,
}

/// An issuer's endpoint and how to ask it.
pub(super) struct Endpoint {
    identity: Arc<Identity>,
    default_audiences: Vec<String>,
    fetcher: Fetcher,
    configured: Option<Url>,
    /// Found by discovery; the lock makes many askers one.
    found: Mutex<Option<Url>>,
    /// Form fields that are the same for every token; with `post`, the client's secret among them.
    fields: Zeroizing<String>,
    authorization: Option<HeaderValue>,
}

/// What the issuer said about a token.
pub(super) enum Answer {
    Inactive,
    /// With the answer's size in bytes.
    Active(Map<String, Value>, usize),
}

impl Endpoint {
    /// Prepares the question; asks nobody.
    pub(super) fn new(identity: &Arc<Identity>, config: &Introspection) -> Result<Self, SetupError> {
        let base = match &config.endpoint {
            Some(url) => url.clone(),
            None => fetch::issuer_url(identity)?,
        };
        let mut fields = form_urlencoded::Serializer::new(String::new());
        fields.append_pair("token_type_hint", "access_token");
        let authorization = match config.client_auth {
            ClientAuth::Basic => Some(basic(&config.client_id, &config.client_secret)),
            ClientAuth::Post => {
                fields.append_pair("client_id", &config.client_id);
                fields.append_pair("client_secret", config.client_secret.expose());
                None
            }
        };
        Ok(Self {
            identity: identity.clone(),
            default_audiences: config.default_audiences.clone(),
            fetcher: fetch::fetcher(identity, &base)?,
            configured: config.endpoint.clone(),
            found: Mutex::default(),
            fields: Zeroizing::new(fields.finish()),
            authorization,
        })
    }

    /// Where to ask, found if need be.
    pub(super) async fn url(&self) -> Result<Url, AskError> {
        if let Some(url) = &self.configured {
            return Ok(url.clone());
        }
        let mut found = self.found.lock().await;
        if let Some(url) = &*found {
            return Ok(url.clone());
        }
        let url = metadata::endpoint(&self.fetcher, &self.identity.issuer, "introspection_endpoint").await?;
        Ok(found.insert(url).clone())
    }

    /// Whether it is known where to ask.
    pub(super) fn is_known(&self) -> bool {
        // While somebody is looking for it, it isn't.
        self.configured.is_some() || self.found.try_lock().is_ok_and(|found| found.is_some())
    }

    /// Asks.
    pub(super) async fn ask(&self, token: &str) -> Result<Answer, AskError> {
        let url = self.url().await?;
        let mut form = Zeroizing::new(self.fields.to_string());
        form.push_str("&token=");
        form.extend(form_urlencoded::byte_serialize(token.as_bytes()));
        let mut request = Request::form(url.clone(), Zeroizing::new(form.as_bytes().to_vec()));
        if let Some(authorization) = &self.authorization {
            request.headers.insert(AUTHORIZATION, authorization.clone());
        }
        let answer = match self.fetcher.ask(request).await.and_then(Answered::success) {
            Ok(answer) => answer,
            Err(source) => {
                // It may have moved.
                if matches!(source, FetchError::Status(404 | 405 | 410) | FetchError::Redirect) {
                    *self.found.lock().await = None;
                }
                return Err(AskError::Fetch { url, source });
            }
        };
        read(&answer).ok_or(AskError::Answer(url))
    }

    /// The claims of an active token, if they are those of a token for somebody here.
    pub(super) fn believe(&self, mut claims: Map<String, Value>, now: UnixSeconds) -> Result<Verified, TokenFault> {
        if claims
            .get("iss")
            .is_some_and(|issuer| issuer.as_str() != Some(&self.identity.issuer))
        {
            return Err(TokenFault::Issuer);
        }
        let supposed = !claims.contains_key("aud") && !self.default_audiences.is_empty();
        if supposed {
            claims.insert("aud".to_owned(), self.default_audiences.clone().into());
        }
        let mut verified = verify::believe(&self.identity, claims, 0, now)?;
        if supposed {
            // The issuer didn't say it: nobody is to pass the token on for it.
            let principal = Arc::get_mut(&mut verified.principal).expect("a new principal has one owner");
            principal.claims.remove("aud");
        }
        Ok(verified)
    }
}

fn read(answer: &[u8]) -> Option<Answer> {
    let claims = (answer.len() <= MAX_ANSWER).then(|| strict_json::object(answer))??;
    match claims.get("active")?.as_bool()? {
        true => Some(Answer::Active(claims, answer.len())),
        false => Some(Answer::Inactive),
    }
}
