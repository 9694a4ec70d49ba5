//! Which credential leaves towards the upstream: exactly one, and never the caller's token.
//!
//! 1. Nothing is obtained without a [`Permit`]: a forged token never reaches a token endpoint (r41).
//! 2. Fixed credentials are built once; an exchanged or asserted one belongs to the caller and dies with the caller's
//!    token; the gateway's own at an issuer is for all.
//! 3. Whatever goes wrong, there is no credential and no request: never a fall-back (r39).
//! 4. A credential that the upstream refused is had anew once, where it can be (`recovery`).

mod ask;
pub mod assertion;
mod cache;
mod check;
mod client_credentials;
mod connection;
mod exchange;
#[cfg(test)]
mod fake_issuer;
mod flight;
mod health;
mod passthrough;
mod recovery;
pub(crate) mod token_file;
mod way;

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use url::Url;
use zeroize::Zeroizing;

use crate::authn::Principal;
use crate::clock::Clock;
use crate::config::{self, Credential};
use crate::oauth::TokenError;
use crate::oauth::login::Login;
use crate::oauth::signer::Signer;
use crate::policy::Permit;
use crate::secret::Secret;
use crate::telemetry::{Metrics, RouteMetrics};

use assertion::Asserter;
use cache::Exchanged;
pub use check::{CredentialCheck, Funded};
use client_credentials::OwnToken;
use connection::ConnectionSource;
pub use connection::{Connection, Connections, Counts, Person, State};
pub use health::CredentialHealth;
pub(crate) use recovery::Recover;
use token_file::TokenFile;

/// What one request carries to the upstream. Has no `Debug`: it is a secret.
#[derive(Clone)]
pub struct OutboundCredential {
    /// `None`: the request goes without. The value is marked sensitive.
    pub(crate) header: Option<(HeaderName, HeaderValue)>,
    /// For the audit line: the name that the credential has in the configuration, or `none`.
    pub kind: &'static str,
    /// Where another comes from when the upstream refuses this one; `None`: nowhere.
    pub(crate) recovery: Option<Arc<dyn Recover>>,
}

impl OutboundCredential {
    /// Puts the credential on a request, in place of whatever stood under that name.
    pub fn apply(&self, headers: &mut HeaderMap) {
        if let Some((name, value)) = &self.header {
            headers.insert(name, value.clone());
        }
    }
}

/// Why there is no credential, and so no request. The texts hold no token and nothing that the issuer chose.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// Nobody's token can't be exchanged, passed on or spoken for.
    #[error("the route's credential is made of who calls, and the caller came without a token")]
    NoSubject,
    /// The caller's token may not be passed on.
    #[error("the route passes on tokens that are for the upstream, too; the caller's is not: {0}")]
    NotForUpstream(&'static str),
    /// The caller's claims don't fit an assertion.
    #[error("the claims to be copied into the assertion are larger than 8 KiB; copy fewer")]
    TooMuch,
    /// The issuer said no (4xx), with one of the registered error codes or `other`.
    #[error("the token endpoint refused: {error}{}", crate::oauth::hint(error))]
    Rejected { error: &'static str },
    /// No answer: refused, timed out, TLS, or a 5xx.
    #[error("the token endpoint can't be reached: {0}")]
    Unreachable(&'static str),
    /// An answer that can't be used.
    #[error("the token endpoint's answer can't be used: {0}")]
    Malformed(&'static str),
    /// The route's token file is of no use.
    #[error("the route's token file {0}; see /status on the admin port")]
    File(&'static str),
    /// The caller has to connect the route's upstream to their own account there, or to do so again.
    #[error("{0}")]
    NotConnected(NotConnected),
}

/// Whose connection is missing where, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotConnected {
    pub route: Arc<str>,
    pub reason: NotConnectedReason,
}

/// Why a user has to log in to an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotConnectedReason {
    /// They never did, or disconnected.
    Missing,
    /// What they granted is over: the issuer said so, or it can't be renewed.
    NeedsAuth,
    /// The upstream wants more than they granted; the scopes are its own words, bounded in count and length.
    MoreScopes { scopes: Vec<String> },
}

impl std::fmt::Display for NotConnected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let route = &self.route;
        match &self.reason {
            NotConnectedReason::Missing => write!(f, "you have not connected {route} to your account yet"),
            NotConnectedReason::NeedsAuth => write!(f, "your connection of {route} has ended and has to be made again"),
            NotConnectedReason::MoreScopes { .. } => {
                write!(
                    f,
                    "{route} wants more than you have granted, and has to be connected again"
                )
            }
        }
    }
}

impl From<TokenError> for CredentialError {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Rejected { error } => Self::Rejected { error },
            TokenError::Unreachable(why) => Self::Unreachable(why),
            TokenError::Malformed(why) => Self::Malformed(why),
        }
    }
}

impl CredentialError {
    /// A bounded label for metrics and the audit line.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoSubject => "no_subject",
            Self::NotForUpstream(_) => "not_for_upstream",
            Self::TooMuch => "claims_too_large",
            Self::Rejected { error } => error,
            Self::Unreachable(_) => "unreachable",
            Self::Malformed(_) => "malformed",
            Self::File(_) => "token_file",
            Self::NotConnected(lacking) => match lacking.reason {
                NotConnectedReason::Missing => "not_connected",
                NotConnectedReason::NeedsAuth => "needs_auth",
                NotConnectedReason::MoreScopes { .. } => "more_scopes",
            },
        }
    }
}

/// Why a route's credential can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A configured value holds what a header can't.
    #[error("routes.{route}.credential: the value can't stand in a header")]
    Header { route: String },
    /// A key, a certificate, a file or an address that can't be used.
    #[error("routes.{route}.credential.{key}: {cause}")]
    Unusable { route: String, key: String, cause: String },
}

/// What a route's credential is made with.
#[derive(Clone, Copy)]
pub struct Making<'a> {
    pub route: &'a str,
    /// The first of the upstream's URLs, without its query; `None`: it is a command.
    pub upstream: Option<&'a Url>,
    /// Without a trailing slash.
    pub public_url: &'a str,
    /// The route's own URL: what its callers' tokens are for.
    pub resource: &'a str,
    /// The gateway's own.
    pub signer: &'a Arc<Signer>,
    pub servers: &'a config::Upstream,
    /// `None`: no store is open, and nobody is connected.
    pub connections: Option<&'a Arc<Connections>>,
    pub clock: &'a Clock,
    pub metrics: &'a Arc<Metrics>,
}

/// Where one route's credentials come from. Has no `Debug`: it holds secrets.
pub struct CredentialSource(Source);

enum Source {
    Fixed {
        header: Option<(HeaderName, HeaderValue)>,
        kind: &'static str,
    },
    Exchange(Arc<Exchanged>),
    ClientCredentials(Arc<OwnToken>),
    Assertion(Box<Asserter>),
    Passthrough {
        audience: String,
        route: Arc<RouteMetrics>,
    },
    TokenFile(Arc<TokenFile>),
    /// `None`: no store is open, and nobody is connected.
    Connection(Option<Box<ConnectionSource>>),
}

impl CredentialSource {
    /// Prepares a route's credential; call it inside a Tokio runtime.
    ///
    /// # Errors
    /// A value that can't be a header, an insecure token endpoint, or a key or file that can't be used.
    pub fn new(credential: &Credential, making: &Making<'_>) -> Result<Self, SetupError> {
        let route = making.route;
        let unusable = |key: &str, cause: String| SetupError::Unusable {
            route: route.to_owned(),
            key: key.to_owned(),
            cause,
        };
        let sensitive = |text: &str| {
            let mut value = HeaderValue::from_str(text).map_err(|_| SetupError::Header {
                route: route.to_owned(),
            })?;
            value.set_sensitive(true);
            Ok(value)
        };
        let (header, kind) = match credential {
            Credential::None => (None, "none"),
            Credential::Bearer(token) => {
                let text = Zeroizing::new(format!("Bearer {}", token.expose()));
                (Some((AUTHORIZATION, sensitive(&text)?)), "bearer")
            }
            Credential::Header { name, value } => (Some((name.clone(), sensitive(value.expose())?)), "header"),
            Credential::Basic { username, password } => {
                // RFC 7617 section 2: a colon ends the name, and base64 would carry control characters past any check.
                let ambiguous = |character: char| character == ':' || character.is_control();
                if username.contains(ambiguous) || password.expose().contains(char::is_control) {
                    return Err(SetupError::Header {
                        route: route.to_owned(),
                    });
                }
                let pair = Zeroizing::new(format!("{username}:{}", password.expose()));
                let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
                (Some((AUTHORIZATION, sensitive(&text)?)), "basic")
            }
            Credential::Passthrough { audience } => {
                // Whatever the route lets in would be passed on.
                if audience.trim_end_matches('/') == making.resource.trim_end_matches('/') {
                    let cause = "this is what callers' tokens are for anyway; name the upstream's own".to_owned();
                    return Err(unusable("passthrough.audience", cause));
                }
                return Ok(Self(Source::Passthrough {
                    audience: audience.clone(),
                    route: making.metrics.route(route),
                }));
            }
            Credential::ClientCredentials(config) => {
                let own = client_credentials::of(config, making)?;
                return Ok(Self(Source::ClientCredentials(own)));
            }
            Credential::Assertion(config) => {
                let asserter = Asserter::new(config, making)?;
                return Ok(Self(Source::Assertion(Box::new(asserter))));
            }
            Credential::TokenFile(config) => {
                let file = TokenFile::of(config, making).map_err(|cause| unusable("token_file", cause))?;
                return Ok(Self(Source::TokenFile(file)));
            }
            Credential::Connection(config) => {
                let source = ConnectionSource::new(config, making).map_err(|cause| unusable("connection", cause))?;
                return Ok(Self(Source::Connection(source.map(Box::new))));
            }
            Credential::Exchange(exchange) => {
                let exchanged = Exchanged::new(exchange, making)?;
                return Ok(Self(Source::Exchange(Arc::new(exchanged))));
            }
        };
        Ok(Self(Source::Fixed { header, kind }))
    }

    /// The key of this route's own whose signatures its upstream sees.
    pub fn signer(&self) -> Option<&Signer> {
        match &self.0 {
            Source::Assertion(asserter) => Some(asserter.signer()),
            _ => None,
        }
    }

    /// How users log in to the upstream, where they do.
    pub fn login(&self) -> Option<&Arc<Login>> {
        match &self.0 {
            Source::Connection(source) => source.as_ref().map(|source| source.login()),
            _ => None,
        }
    }

    /// The credential for one permitted request. `subject` is the bearer that made the permit's principal.
    ///
    /// # Errors
    /// See [`CredentialError`]; the request must then not be sent.
    pub async fn obtain(
        &self,
        permit: &Permit,
        subject: Option<&Secret>,
    ) -> Result<OutboundCredential, CredentialError> {
        self.obtain_for(permit.principal(), subject).await
    }

    async fn obtain_for(
        &self,
        principal: &Principal,
        subject: Option<&Secret>,
    ) -> Result<OutboundCredential, CredentialError> {
        match &self.0 {
            Source::Fixed { header, kind } => Ok(OutboundCredential {
                header: header.clone(),
                kind,
                recovery: None,
            }),
            Source::Exchange(exchanged) => {
                let subject = subject
                    .filter(|_| !principal.is_anonymous())
                    .ok_or(CredentialError::NoSubject)?;
                // Boxed: requests that exchange nothing need no room for it.
                let value = Box::pin(exchanged.obtain(subject, principal.expires)).await?;
                Ok(exchanged.credential(value, subject, principal.expires))
            }
            Source::ClientCredentials(own) => Box::pin(own.credential()).await,
            Source::Assertion(asserter) => {
                let value = asserter.bearer(principal)?;
                Ok(OutboundCredential {
                    header: Some((AUTHORIZATION, value)),
                    kind: "assertion",
                    recovery: None,
                })
            }
            Source::Passthrough { audience, route } => {
                let value = passthrough::bearer(audience, principal, subject);
                let value = value.inspect_err(|error| route.credential_failure("passthrough", error.reason()))?;
                Ok(OutboundCredential {
                    header: Some((AUTHORIZATION, value)),
                    kind: "passthrough",
                    recovery: None,
                })
            }
            Source::TokenFile(file) => Box::pin(file.credential()).await,
            Source::Connection(source) => {
                let source = source.as_ref();
                let source = source.ok_or(CredentialError::Unreachable("no store of connections is open"))?;
                Box::pin(source.credential(principal)).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake_issuer::Made;
    use super::*;

    async fn fixed(credential: Credential) -> OutboundCredential {
        let made = Made::new(&Clock::system(), &Metrics::new());
        let source = CredentialSource::new(&credential, &made.making()).unwrap();
        let subject = Secret::new("callers-token");
        source
            .obtain_for(&Principal::anonymous(), Some(&subject))
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn fixed_credentials_are_one_sensitive_header() {
        let cases: [(Credential, &str, &str, &str); 3] = [
            (
                Credential::Bearer(Secret::new("abc")),
                "bearer",
                "authorization",
                "Bearer abc",
            ),
            (
                Credential::Header {
                    name: HeaderName::from_static("x-api-key"),
                    value: Secret::new("k=1"),
                },
                "header",
                "x-api-key",
                "k=1",
            ),
            // The example of RFC 7617 section 2.
            (
                Credential::Basic {
                    username: "Aladdin".to_owned(),
                    password: Secret::new("open sesame"),
                },
                "basic",
                "authorization",
                "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
            ),
        ];
        for (credential, kind, name, value) in cases {
            let made = fixed(credential).await;
            let (made_name, made_value) = made.header.expect("a header");
            assert_eq!(
                (made.kind, made_name.as_str(), made_value.to_str().unwrap()),
                (kind, name, value)
            );
            assert!(made_value.is_sensitive());
        }
        let none = fixed(Credential::None).await;
        assert!(none.header.is_none());
        assert_eq!(none.kind, "none");
    }

    #[tokio::test]
    async fn a_value_that_smuggles_a_header_is_refused() {
        for credential in [
            Credential::Bearer(Secret::new("abc\r\nx-admin: 1")),
            Credential::Header {
                name: HeaderName::from_static("x-api-key"),
                value: Secret::new("a\nb"),
            },
            Credential::Basic {
                username: "gate:admin".to_owned(),
                password: Secret::new("abc"),
            },
            Credential::Basic {
                username: "gate".to_owned(),
                password: Secret::new("abc\n"),
            },
        ] {
            let made = Made::new(&Clock::system(), &Metrics::new());
            let error = CredentialSource::new(&credential, &made.making()).err();
            let error = error.expect("refused").to_string();
            assert!(error.contains("routes.nc") && !error.contains("abc"), "{error}");
        }
    }

    #[tokio::test]
    async fn nobodys_token_is_not_exchanged() {
        let issuer = fake_issuer::FakeIssuer::start(200, r#"{"access_token":"t"}"#).await;
        let exchange = Credential::Exchange(Box::new(issuer.config()));
        let made = Made::new(&Clock::fixed(1000), &Metrics::new());
        let source = CredentialSource::new(&exchange, &made.making()).unwrap();
        let alice = Principal {
            identity: Some("corp".into()),
            expires: Some(2000),
            ..Principal::default()
        };
        let subject = Secret::new("callers-token");
        let cases = [
            (&Principal::anonymous(), Some(&subject)),
            (&Principal::anonymous(), None),
            (&alice, None),
        ];
        for (principal, subject) in cases {
            let refused = source.obtain_for(principal, subject).await;
            assert_eq!(refused.err(), Some(CredentialError::NoSubject));
        }
        assert!(issuer.asked().is_empty());
        let made = source.obtain_for(&alice, Some(&subject)).await.expect("exchanged");
        let (name, value) = made.header.expect("a header");
        assert_eq!(
            (made.kind, name, value.to_str().unwrap()),
            ("exchange", AUTHORIZATION, "Bearer t")
        );
        assert!(value.is_sensitive());
    }
}
