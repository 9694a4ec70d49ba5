//! Whether a caller who was let in may still stay.
//!
//! A standing stream outlives the request that opened it, and the configuration and the keys of that time. So whenever a
//! reload or an issuer may have taken a right away, every standing stream asks again, by the same authentication and the
//! same policy that let it in:
//!
//! 1. The route must still be there, the token (or the connection's certificate) must still be good there, and its
//!    principal must still be the same person and may still use the route.
//! 2. An issuer that can't be asked takes no right away: that is not the caller's doing, and the stream still ends at
//!    the token's `exp`.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::authn::{Authenticator, AuthnError, Principal};
use crate::listener::ClientCertificate;
use crate::route::Route;
use crate::secret::Secret;
use crate::session::person;

/// Asked by standing streams; replaced by reloads.
pub struct Rights {
    /// Empty until the first configuration is in force.
    table: Mutex<Option<Arc<Table>>>,
    changed: watch::Sender<()>,
}

struct Table {
    routes: Vec<Arc<Route>>,
    authenticator: Arc<Authenticator>,
}

/// What a stream was opened with.
pub struct Claim {
    pub route: Arc<Route>,
    pub principal: Arc<Principal>,
    /// `None` for callers who came without one.
    pub token: Option<Secret>,
    /// What the client showed in the handshake.
    pub certificate: Option<Arc<ClientCertificate>>,
}

/// The caller may not stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

impl Default for Rights {
    fn default() -> Self {
        Self {
            table: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }
}

impl Rights {
    /// Puts a configuration's routes and identities in force.
    pub fn replace(&self, routes: Vec<Arc<Route>>, authenticator: Arc<Authenticator>) {
        *self.table.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(Table { routes, authenticator }));
        self.reconsider();
    }

    /// Has every standing stream ask again.
    pub fn reconsider(&self) {
        self.changed.send_replace(());
    }

    /// Told whenever it is worth asking again.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The claim as it stands today.
    ///
    /// # Errors
    /// The caller's access is gone.
    pub async fn check(&self, claim: &Claim) -> Result<Claim, Lost> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(table) = table else {
            return Err(Lost);
        };
        let route = table
            .routes
            .iter()
            .find(|route| route.name() == claim.route.name() && route.resource == claim.route.resource)
            .ok_or(Lost)?;
        let (token, certificate) = (claim.token.as_ref(), claim.certificate.as_deref());
        let principal = match table.authenticator.reconsider(&route.auth, token, certificate).await {
            Ok(principal) => principal,
            Err(AuthnError::KeysUnavailable { .. } | AuthnError::IssuerUnavailable { .. }) => claim.principal.clone(),
            Err(_) => return Err(Lost),
        };
        if person(&principal) != person(&claim.principal) {
            return Err(Lost);
        }
        route.config.policy.permit_stream(&principal).map_err(|_| Lost)?;
        Ok(Claim {
            route: route.clone(),
            principal,
            token: claim.token.clone(),
            certificate: claim.certificate.clone(),
        })
    }
}
