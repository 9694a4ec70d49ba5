//! What a principal may do on a route: one decision function for lists and calls.

use std::sync::Arc;

use crate::authn::Principal;

/// Compiled role definitions of the configuration.
#[derive(Debug, Default)]
pub struct Roles {}

/// The configured roles a principal has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleSet {}

/// Everything a route demands of its callers, compiled.
#[derive(Debug, Default)]
pub struct RoutePolicy {}

/// Proof that a decision was made. Only this module makes one; `credential` and `upstream` demand it.
#[derive(Clone, Debug)]
pub struct Permit {
    principal: Arc<Principal>,
}

impl Permit {
    /// Whom it was made for.
    pub fn principal(&self) -> &Arc<Principal> {
        &self.principal
    }
}
