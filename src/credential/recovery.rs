//! What becomes of a credential that the upstream refused.
//!
//! 1. A refused token is replaced once, however many requests it was refused to; each of them is sent once more (r27).
//! 2. A replacement that is refused as well is not replaced in its turn until [`PAUSE`] has passed: an upstream that
//!    refuses everything costs its issuer one request in that time.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{CredentialError, OutboundCredential};

/// How long a replacement is left in place when it is refused, too.
pub(super) const PAUSE: Duration = Duration::from_secs(10);

/// What obtained a credential, and can do so again.
pub(crate) trait Recover: Send + Sync {
    /// Another credential in place of this one, which the upstream answered with 401; `None` when there is none to be
    /// had.
    fn recover(&self) -> BoxFuture<'_, Result<Option<OutboundCredential>, CredentialError>>;

    /// Hears that the upstream wants these scopes besides (RFC 6750 section 3.1); an error where somebody can be asked
    /// for them.
    fn wants(&self, scopes: Vec<String>) -> BoxFuture<'_, Result<(), CredentialError>> {
        drop(scopes);
        Box::pin(std::future::ready(Ok(())))
    }
}
