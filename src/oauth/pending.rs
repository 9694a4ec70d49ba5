//! What is remembered of a login between its beginning and its end: sealed in the store for a browser's, in memory for a
//! device's.

use serde::{Deserialize, Serialize};
use url::Url;
use zeroize::Zeroizing;

use super::{AuthMethod, ClientRecord, Grant, TokenSet};
use crate::clock::UnixSeconds;
use crate::secret::Secret;

/// What a login in a browser is finished with. Has no `Debug`: it holds secrets.
pub struct Pending {
    pub(super) made: Made,
    /// The issuer promises to name itself in its answer (RFC 9207).
    pub(super) names_itself: bool,
    pub(super) redirect_uri: String,
    pub(super) state: String,
    /// RFC 7636.
    pub(super) verifier: Secret,
}

/// All of a grant but its tokens.
pub(super) struct Made {
    pub(super) issuer: String,
    pub(super) token_endpoint: Url,
    pub(super) revocation_endpoint: Option<Url>,
    pub(super) resource: Option<String>,
    pub(super) upstream: String,
    pub(super) client: ClientRecord,
    /// As asked for.
    pub(super) scopes: Vec<String>,
}

impl Made {
    pub(super) fn grant(self, mut tokens: TokenSet) -> Grant {
        // RFC 6749 section 5.1: what isn't said is as it was asked for.
        if tokens.scopes.is_none() && !self.scopes.is_empty() {
            tokens.scopes = Some(self.scopes);
        }
        Grant {
            issuer: self.issuer,
            token_endpoint: self.token_endpoint,
            revocation_endpoint: self.revocation_endpoint,
            resource: self.resource,
            upstream: self.upstream,
            client: self.client,
            tokens,
        }
    }
}

/// As it is written down, only ever sealed.
#[derive(Serialize, Deserialize)]
struct Written {
    issuer: String,
    token_endpoint: Url,
    revocation_endpoint: Option<Url>,
    resource: Option<String>,
    upstream: String,
    client: WrittenClient,
    scopes: Vec<String>,
    names_itself: bool,
    redirect_uri: String,
    state: String,
    verifier: String,
}

/// A client as it is written down, only ever sealed.
#[derive(Serialize, Deserialize)]
pub(super) struct WrittenClient {
    pub(super) id: String,
    secret: Option<String>,
    pub(super) secret_expires_at: Option<UnixSeconds>,
    auth: AuthMethod,
}

impl WrittenClient {
    pub(super) fn of(client: &ClientRecord) -> Self {
        Self {
            id: client.id.clone(),
            secret: client.secret.as_ref().map(|secret| secret.expose().to_owned()),
            secret_expires_at: client.secret_expires_at,
            auth: client.auth,
        }
    }

    pub(super) fn read(self) -> ClientRecord {
        ClientRecord {
            id: self.id,
            secret: self.secret.map(Secret::new),
            secret_expires_at: self.secret_expires_at,
            auth: self.auth,
        }
    }
}

impl Pending {
    /// As it is sealed into the store.
    pub fn to_json(&self) -> Zeroizing<Vec<u8>> {
        let written = Written {
            issuer: self.made.issuer.clone(),
            token_endpoint: self.made.token_endpoint.clone(),
            revocation_endpoint: self.made.revocation_endpoint.clone(),
            resource: self.made.resource.clone(),
            upstream: self.made.upstream.clone(),
            client: WrittenClient::of(&self.made.client),
            scopes: self.made.scopes.clone(),
            names_itself: self.names_itself,
            redirect_uri: self.redirect_uri.clone(),
            state: self.state.clone(),
            verifier: self.verifier.expose().to_owned(),
        };
        Zeroizing::new(serde_json::to_vec(&written).expect("texts and numbers can be written"))
    }

    /// Reads what [`Pending::to_json`] wrote; `None`: this is none.
    pub fn from_json(bytes: &[u8]) -> Option<Self> {
        let written: Written = serde_json::from_slice(bytes).ok()?;
        Some(Self {
            made: Made {
                issuer: written.issuer,
                token_endpoint: written.token_endpoint,
                revocation_endpoint: written.revocation_endpoint,
                resource: written.resource,
                upstream: written.upstream,
                client: written.client.read(),
                scopes: written.scopes,
            },
            names_itself: written.names_itself,
            redirect_uri: written.redirect_uri,
            state: written.state,
            verifier: Secret::new(written.verifier),
        })
    }

    /// Whose answer is waited for.
    pub fn issuer(&self) -> &str {
        &self.made.issuer
    }
}
