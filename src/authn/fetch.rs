//! The client that asks one identity's issuer: what the identity says of it decides whom it trusts and where it goes.
//!
//! Plain http is for an issuer that is on loopback itself; all else is `oauth/fetch.rs`'s to decide.

use std::io;
use std::sync::Arc;

use rustls::RootCertStore;
use url::Url;

use super::SetupError;
use crate::config::Identity;
use crate::oauth::fetch::{self, Fetcher};

/// A client for this identity's issuer, whose documents are first looked for at `base`.
///
/// # Errors
/// A CA bundle that can't be used, or an address that is never asked.
pub(crate) fn fetcher(identity: &Identity, base: &Url) -> Result<Fetcher, SetupError> {
    let name = &identity.name;
    let roots = match &identity.ca {
        Some(path) => Arc::new(fetch::roots_of(path).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData => SetupError::Authority {
                identity: name.clone(),
                path: path.clone(),
            },
            _ => SetupError::File {
                identity: name.clone(),
                path: path.clone(),
                source,
            },
        })?),
        // Reading the system's store takes a while; over plain http nobody asks for it.
        None if base.scheme() == "http" => Arc::new(RootCertStore::empty()),
        None => fetch::system_roots(),
    };
    let issuer = Url::parse(&identity.issuer).ok();
    let plain = fetch::is_loopback(issuer.as_ref().unwrap_or(base));
    let fetcher = Fetcher::named(roots, plain).map_err(|reason| SetupError::Client {
        identity: name.clone(),
        reason,
    })?;
    match fetcher.allowed(base) {
        Ok(()) => Ok(fetcher),
        Err(reason) => Err(SetupError::Address {
            identity: name.clone(),
            url: base.to_string(),
            reason,
        }),
    }
}

/// The issuer as the URL it must be for anything to be found.
pub(crate) fn issuer_url(identity: &Identity) -> Result<Url, SetupError> {
    Url::parse(&identity.issuer).map_err(|_| SetupError::Address {
        identity: identity.name.clone(),
        url: identity.issuer.clone(),
        reason: "it is no URL",
    })
}
