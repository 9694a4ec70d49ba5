//! Signing in to the gateway's pages: OpenID Connect's code flow against the identity's own issuer.
//!
//! 1. Authorization code, PKCE (S256), `state` and `nonce`; scope `openid` and what is configured; the redirect URI is
//!    `{public_url}/connect/login` and no other.
//! 2. What the answer needs is sealed into a cookie of this browser for ten minutes, and nowhere else: an answer in
//!    another browser finds nothing, and a stranger who begins sign-ins takes no room.
//! 3. `state`, then `iss` (RFC 9207), then `error` or the code. The code goes to the token endpoint of the issuer's own
//!    metadata; what counts of its answer is the ID token ([`Authenticator::signed_in`]).
//! 4. The metadata is asked for when it is needed: one fetch at a time, believed for five minutes, a failure for five
//!    seconds. Of an issuer on https every endpoint is, too.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use url::Url;
use zeroize::Zeroizing;

use super::refusal::{ConnectError, What};
use crate::authn::{Authenticator, AuthnError, SignedIn, strict_json};
use crate::clock::{Clock, UnixSeconds};
use crate::config::{Identity, UserLogin};
use crate::oauth::TokenError;
use crate::oauth::authorization::{self, CallbackError, Expected};
use crate::oauth::client::{self, Client, Form};
use crate::oauth::fetch::{Fetcher, Reach};
use crate::oauth::metadata::{self, DiscoveryError};
use crate::oauth::token::TokenEndpoint;
use crate::secret::Secret;
use crate::session::{Purpose, Sealer};

/// Seconds for somebody to sign in.
pub const SIGN_IN: u64 = 10 * 60;

/// Seconds that an issuer's metadata is believed, and that it is left in peace after a failure.
const BELIEVED: u64 = 5 * 60;
const PEACE: u64 = 5;

/// One identity's way in.
pub struct SignIn {
    pub identity: Arc<Identity>,
    fetcher: Arc<Fetcher>,
    redirect_uri: String,
    clock: Clock,
    known: Mutex<Option<Known>>,
}

/// What was last found out about the issuer.
struct Known {
    metadata: Result<Arc<Metadata>, Arc<DiscoveryError>>,
    until: UnixSeconds,
}

struct Metadata {
    authorization: Url,
    token: Url,
    /// `authorization_response_iss_parameter_supported` (RFC 9207 section 3).
    iss_promised: bool,
}

/// A sign-in under way: what its cookie seals.
#[derive(Serialize, Deserialize)]
pub struct Begun {
    identity: String,
    state: String,
    nonce: String,
    verifier: String,
    expires: UnixSeconds,
    /// The route that the visitor came for.
    pub route: Option<String>,
}

impl Begun {
    /// The cookie's value; `None` when the route's name leaves no room.
    pub fn seal(&self, sealer: &Sealer) -> Option<String> {
        let plain = Zeroizing::new(serde_json::to_vec(self).expect("texts are JSON"));
        sealer.seal(Purpose::SignIn, &plain).ok()
    }

    /// The sign-in that a cookie stands for, if there is time left for it.
    pub fn open(sealer: &Sealer, cookie: &str, now: UnixSeconds) -> Option<Self> {
        let plain = Zeroizing::new(sealer.open(Purpose::SignIn, cookie).ok()?);
        let begun: Self = serde_json::from_slice(&plain).ok()?;
        (now < begun.expires).then_some(begun)
    }

    /// Whose sign-in it is.
    pub fn identity(&self) -> &str {
        &self.identity
    }
}

impl SignIn {
    /// `None` for an identity whose users can't log in here. Nobody is asked yet.
    ///
    /// # Errors
    /// Files of the client or the CA that can't be used, in words for the operator.
    pub fn new(identity: &Arc<Identity>, public_url: &str, clock: Clock) -> Result<Option<Self>, String> {
        let Some(login) = &identity.login else {
            return Ok(None);
        };
        // What can't authenticate is found out now.
        Client::configured(&login.client).map_err(|error| error.to_string())?;
        let certificate = client::certificate(&login.client);
        Ok(Some(Self {
            identity: identity.clone(),
            fetcher: Arc::new(Fetcher::new(identity.ca.as_deref(), certificate, Reach::Named)?),
            redirect_uri: format!("{public_url}/connect/login"),
            clock,
            known: Mutex::new(None),
        }))
    }

    /// Where the browser goes, and what it must bring back.
    ///
    /// # Errors
    /// The issuer's metadata can't be had.
    pub async fn begin(&self, route: Option<&str>) -> Result<(Url, Begun), ConnectError> {
        let metadata = self.metadata().await?;
        let [state, nonce, verifier] = [(); 3].map(|()| authorization::random());
        let url = authorization::Request {
            client_id: &self.login().client.id,
            redirect_uri: &self.redirect_uri,
            state: state.expose(),
            verifier: &verifier,
            scopes: &self.login().scopes,
            resource: None,
            parameters: &[("nonce".to_owned(), nonce.expose().to_owned())],
        }
        .url(&metadata.authorization);
        let begun = Begun {
            identity: self.identity.name.to_string(),
            state: state.expose().to_owned(),
            nonce: nonce.expose().to_owned(),
            verifier: verifier.expose().to_owned(),
            expires: self.clock.now().saturating_add(SIGN_IN),
            route: route.map(str::to_owned),
        };
        Ok((url, begun))
    }

    /// Who came back.
    ///
    /// # Errors
    /// The answer isn't this sign-in's, says no, or what the issuer then gave doesn't show who it was.
    pub async fn finish(
        &self,
        begun: &Begun,
        query: &str,
        authenticator: &Authenticator,
    ) -> Result<SignedIn, ConnectError> {
        let metadata = self.metadata().await?;
        let expected = Expected {
            state: &begun.state,
            issuer: &self.identity.issuer,
            iss_promised: metadata.iss_promised,
        };
        let code = authorization::code(query, &expected).map_err(|error| {
            let what = match &error {
                CallbackError::State => What::ForeignSignIn,
                CallbackError::Refused { .. } => What::SignInRefused,
                CallbackError::Large => What::TooLarge,
                CallbackError::Twice(_) => What::Malformed,
                _ => What::SignInUnusable,
            };
            self.error(what).because(error)
        })?;
        let id_token = self.redeem(&metadata, &code, begun).await?;
        let client = &self.login().client.id;
        let signed_in = authenticator.signed_in(&self.identity.name, id_token.expose(), client, &begun.nonce);
        signed_in.await.map_err(|error| {
            let what = match error {
                AuthnError::InvalidToken { .. } => What::SignInUnusable,
                _ => What::IssuerUnavailable,
            };
            self.error(what).because(format!("the ID token: {}", error.reason()))
        })
    }

    /// The ID token for a code.
    async fn redeem(&self, metadata: &Metadata, code: &Secret, begun: &Begun) -> Result<Secret, ConnectError> {
        let client = Client::configured(&self.login().client);
        let client = client.map_err(|error| self.error(What::SignInUnusable).because(error))?;
        let endpoint = TokenEndpoint::new(
            self.fetcher.clone(),
            metadata.token.clone(),
            client,
            Some(self.identity.issuer.clone()),
            Vec::new(),
            self.clock.clone(),
        );
        let mut form = Form::grant("authorization_code");
        form.push("code", code.expose());
        form.push("redirect_uri", &self.redirect_uri);
        form.push("code_verifier", &begun.verifier);
        let answer = endpoint.ask(form).await.map_err(|error| {
            let what = match error {
                TokenError::Unreachable(_) => What::IssuerUnavailable,
                TokenError::Rejected { .. } | TokenError::Malformed(_) => What::SignInUnusable,
            };
            self.error(what).because(error)
        })?;
        let id_token = answer.tokens.id_token;
        id_token.ok_or_else(|| {
            self.error(What::SignInUnusable)
                .because("the token endpoint gave no ID token")
        })
    }

    async fn metadata(&self) -> Result<Arc<Metadata>, ConnectError> {
        // Held over the fetch, which takes 30 s at most: who comes meanwhile wants the same answer.
        let mut known = self.known.lock().await;
        let now = self.clock.now();
        let metadata = match &*known {
            Some(Known { metadata, until }) if now < *until => metadata.clone(),
            _ => {
                let metadata = self.discover().await.map(Arc::new).map_err(Arc::new);
                let lasts = if metadata.is_ok() { BELIEVED } else { PEACE };
                let until = self.clock.now().saturating_add(lasts);
                let found = metadata.clone();
                *known = Some(Known { metadata, until });
                found
            }
        };
        metadata.map_err(|error| self.error(What::IssuerUnavailable).because(error))
    }

    async fn discover(&self) -> Result<Metadata, DiscoveryError> {
        let issuer = &self.identity.issuer;
        let document = metadata::document(&self.fetcher, issuer, metadata::Form::OpenId).await?;
        let metadata = strict_json::object(&document).ok_or(DiscoveryError::Issuer)?;
        let url = Url::parse(issuer).map_err(|_| DiscoveryError::Issuer)?;
        let endpoint = |key: &'static str| {
            let found = metadata.get(key).and_then(|found| Url::parse(found.as_str()?).ok());
            let unusable = |reason| DiscoveryError::Address {
                url: url.clone(),
                key,
                reason,
            };
            let found = found.ok_or_else(|| DiscoveryError::Document { url: url.clone(), key })?;
            self.fetcher.allowed(&found).map_err(unusable)?;
            if url.scheme() == "https" && found.scheme() != "https" {
                return Err(unusable("https is needed where the issuer has it"));
            }
            Ok(found)
        };
        Ok(Metadata {
            authorization: endpoint("authorization_endpoint")?,
            token: endpoint("token_endpoint")?,
            iss_promised: metadata
                .get("authorization_response_iss_parameter_supported")
                .and_then(serde_json::Value::as_bool)
                .unwrap_or(false),
        })
    }

    fn login(&self) -> &UserLogin {
        self.identity
            .login
            .as_ref()
            .expect("only such identities have a way in")
    }

    fn error(&self, what: What) -> ConnectError {
        ConnectError::at(what, &self.identity.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_in_opens_while_it_lasts_and_for_nothing_else() {
        let sealer = Sealer::new(&[]);
        let text = || authorization::random().expose().to_owned();
        let begun = Begun {
            identity: "corp".to_owned(),
            state: text(),
            nonce: text(),
            verifier: text(),
            expires: 100,
            route: Some("linear".to_owned()),
        };
        let cookie = begun.seal(&sealer).expect("it fits");
        let opened = Begun::open(&sealer, &cookie, 99).expect("it lasts");
        assert!(opened.state == begun.state && opened.nonce == begun.nonce && opened.verifier == begun.verifier);
        assert_eq!((opened.identity(), opened.route.as_deref()), ("corp", Some("linear")));
        assert!(Begun::open(&sealer, &cookie, 100).is_none());
        assert!(Begun::open(&Sealer::new(&[]), &cookie, 99).is_none());
        let plain = serde_json::to_vec(&begun).unwrap();
        let visit = sealer.seal(Purpose::Visitor, &plain).unwrap();
        assert!(Begun::open(&sealer, &visit, 99).is_none());
    }
}
