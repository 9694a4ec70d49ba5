//! The authenticated caller.

use std::sync::Arc;

use crate::clock::UnixSeconds;
use crate::config::ScopeNames;
use crate::policy::RoleSet;

/// Who is calling, as far as the gateway's policy is concerned.
#[derive(Clone, Debug, Default)]
pub struct Principal {
    /// The identity that vouched; `None` for nobody on an anonymous route.
    pub identity: Option<Arc<str>>,
    /// `iss`; for an API key `portcullis:api-keys:IDENTITY`, which is nobody's `iss`; empty for nobody.
    pub issuer: String,
    /// The mapped subject; empty for nobody.
    pub subject: String,
    pub client: Option<String>,
    /// Granted scopes, closed over the identity's `implies`, sorted and without doubles.
    pub scopes: Vec<String>,
    /// The scopes as the token spelled them, for `user_scopes` in refusals.
    pub token_scopes: Vec<String>,
    /// Role claims of the token (not to be confused with the configured roles in `granted`).
    pub roles: Vec<String>,
    pub groups: Vec<String>,
    /// All claims of the token.
    pub claims: serde_json::Map<String, serde_json::Value>,
    /// The configured roles this principal has.
    pub granted: RoleSet,
    /// `exp`; `None` for nobody, and for an API key without an end.
    pub expires: Option<UnixSeconds>,
    /// What this principal rests on: the generation of the key set that verified the token, or the number of the API key.
    /// [`super::Authenticator::stands`] says whether it still holds.
    pub generation: u64,
    /// How this identity's issuer spells scopes.
    pub scope_names: ScopeNames,
    /// Where this identity's users can get more scopes.
    pub scope_upgrade_endpoint: Option<String>,
}

impl Principal {
    /// Nobody, on a route that says `anonymous: true`.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// Whether anybody vouched.
    pub fn is_anonymous(&self) -> bool {
        self.identity.is_none()
    }
}
