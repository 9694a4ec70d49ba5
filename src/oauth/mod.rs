//! The gateway as an OAuth client: it knows no users and no routes.
//!
//! 1. Tokens are bound to the issuer and the upstream that they were got for (r32): a [`Grant`] holds both, and a refresh
//!    token goes nowhere but to the token endpoint that its issuer had.
//! 2. Times are absolute and saturate (r16). A login's token without an end is good until an upstream refuses it (r15).
//! 3. Nothing that an issuer chose reaches an error's text: its codes are matched against the registered ones.

pub mod authorization;
pub mod challenge;
pub mod client;
pub mod device;
pub mod discovery;
pub mod fetch;
mod identity;
pub mod login;
pub mod metadata;
mod pending;
mod registrar;
pub mod registration;
pub mod signer;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod token;
pub(crate) mod watched;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::clock::UnixSeconds;
use crate::secret::Secret;

/// What a token endpoint gave. Has no `Debug`: it holds tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenSet {
    pub access_token: Secret,
    pub refresh_token: Option<Secret>,
    /// Seconds since the epoch; `None`: until an upstream refuses it.
    pub expires_at: Option<UnixSeconds>,
    /// As granted; `None`: as asked for (RFC 6749 section 5.1).
    pub scopes: Option<Vec<String>>,
    pub id_token: Option<Secret>,
}

/// What a login gave, and all that refreshing it needs. Has no `Debug`: it holds tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct Grant {
    /// Byte for byte.
    pub issuer: String,
    pub token_endpoint: Url,
    pub revocation_endpoint: Option<Url>,
    /// `resource` as it was sent (RFC 8707).
    pub resource: Option<String>,
    /// The upstream's URL without its query: where the access token may go.
    pub upstream: String,
    pub client: ClientRecord,
    pub tokens: TokenSet,
}

/// The client that a grant was made to. Private keys are the configuration's and stay there.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientRecord {
    pub id: String,
    pub secret: Option<Secret>,
    /// Seconds since the epoch (RFC 7591 section 3.2.1); `None`: never.
    pub secret_expires_at: Option<UnixSeconds>,
    pub auth: AuthMethod,
}

/// How a client authenticates at the token endpoint (RFC 7591 section 2, RFC 8705).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthMethod {
    None,
    ClientSecretBasic,
    ClientSecretPost,
    PrivateKeyJwt,
    TlsClientAuth,
}

/// Why a token endpoint gave no token. The texts hold no token and nothing that the issuer chose.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The issuer said no (4xx), with one of the registered error codes or `other`.
    #[error("the token endpoint refused: {error}{}", hint(error))]
    Rejected { error: &'static str },
    /// No answer: refused, timed out, TLS, or a 5xx.
    #[error("the token endpoint can't be reached: {0}")]
    Unreachable(&'static str),
    /// An answer that can't be used.
    #[error("the token endpoint's answer can't be used: {0}")]
    Malformed(&'static str),
}

/// What an error code leaves people to guess.
pub(crate) fn hint(error: &str) -> &'static str {
    match error {
        "invalid_client" => " (the issuer doesn't know the gateway's client_id, or not with these credentials)",
        _ => "",
    }
}

impl TokenError {
    /// How the request went, for metrics.
    pub fn result(&self) -> &'static str {
        match self {
            Self::Rejected { .. } => "rejected",
            Self::Unreachable(_) => "unreachable",
            Self::Malformed(_) => "malformed",
        }
    }

    /// A bounded label for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Rejected { error } => error,
            Self::Unreachable(_) => "unreachable",
            Self::Malformed(_) => "malformed",
        }
    }
}

/// How a set of tokens is written down; only ever sealed, or to a file of mode 0600.
#[derive(Serialize, Deserialize)]
struct WrittenTokens {
    access_token: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<UnixSeconds>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scopes: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id_token: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct WrittenGrant {
    issuer: String,
    token_endpoint: Url,
    revocation_endpoint: Option<Url>,
    resource: Option<String>,
    upstream: String,
    client_id: String,
    client_secret: Option<String>,
    client_secret_expires_at: Option<UnixSeconds>,
    client_auth: AuthMethod,
    tokens: WrittenTokens,
}

impl Grant {
    /// As it is sealed into the store. The caller wipes it.
    pub fn to_json(&self) -> Vec<u8> {
        let text = |secret: &Option<Secret>| secret.as_ref().map(|secret| secret.expose().to_owned());
        let written = WrittenGrant {
            issuer: self.issuer.clone(),
            token_endpoint: self.token_endpoint.clone(),
            revocation_endpoint: self.revocation_endpoint.clone(),
            resource: self.resource.clone(),
            upstream: self.upstream.clone(),
            client_id: self.client.id.clone(),
            client_secret: text(&self.client.secret),
            client_secret_expires_at: self.client.secret_expires_at,
            client_auth: self.client.auth,
            tokens: WrittenTokens {
                access_token: self.tokens.access_token.expose().to_owned(),
                refresh_token: text(&self.tokens.refresh_token),
                expires_at: self.tokens.expires_at,
                scopes: self.tokens.scopes.clone(),
                id_token: text(&self.tokens.id_token),
            },
        };
        serde_json::to_vec(&written).expect("texts and numbers can be written")
    }

    /// Reads what [`Grant::to_json`] wrote; `None`: this is none.
    pub fn from_json(bytes: &[u8]) -> Option<Self> {
        let written: WrittenGrant = serde_json::from_slice(bytes).ok()?;
        Some(Self {
            issuer: written.issuer,
            token_endpoint: written.token_endpoint,
            revocation_endpoint: written.revocation_endpoint,
            resource: written.resource,
            upstream: written.upstream,
            client: ClientRecord {
                id: written.client_id,
                secret: written.client_secret.map(Secret::new),
                secret_expires_at: written.client_secret_expires_at,
                auth: written.client_auth,
            },
            tokens: TokenSet {
                access_token: Secret::new(written.tokens.access_token),
                refresh_token: written.tokens.refresh_token.map(Secret::new),
                expires_at: written.tokens.expires_at,
                scopes: written.tokens.scopes,
                id_token: written.tokens.id_token.map(Secret::new),
            },
        })
    }
}
