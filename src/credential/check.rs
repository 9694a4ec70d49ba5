//! Permit to credential: the one that leaves.

use tokio::time::Instant;

use super::{CredentialError, OutboundCredential};
use crate::call::Call;
use crate::edge::consent::{Consent, LOOK, PATIENCE};
use crate::edge::{Check, Rejection};
use crate::reply::{Audited, fail};

/// A call with the credential it leaves with.
pub struct Funded {
    pub audited: Audited,
    pub credential: OutboundCredential,
}

/// Obtains credentials.
#[derive(Debug)]
pub struct CredentialCheck;

impl Check<Audited> for CredentialCheck {
    type Passed = Funded;

    async fn check(&self, audited: Audited) -> Result<Funded, Rejection> {
        let call = &audited.permitted.call;
        let subject = call.token.as_ref().map(|token| &token.0);
        let obtain = || call.route.credential.obtain(&audited.permitted.permit, subject);
        let mut obtained = obtain().await;
        if matches!(obtained, Err(CredentialError::NotConnected(_))) && is_connecting(call) {
            // Boxed: hardly any request needs the room.
            obtained = Box::pin(patiently(obtain)).await;
        }
        match obtained {
            Ok(credential) => Ok(Funded { audited, credential }),
            Err(error) => {
                // Counted here and not where it is looked for: who waits looks many times. Others count what they ask for.
                if call.route.credential.login().is_some() {
                    call.route.metrics.credential_failure("connection", error.reason());
                }
                let rejection = error.into();
                fail(audited.endings, &rejection);
                Err(rejection)
            }
        }
    }
}

/// Whether the caller has just agreed to connect.
fn is_connecting(call: &Call) -> bool {
    call.journey.call.get().and_then(|notes| notes.consent) == Some(Consent::Given)
}

/// Asks until the caller is connected, or has had the time to.
async fn patiently<T, F>(obtain: impl Fn() -> F) -> Result<T, CredentialError>
where
    F: Future<Output = Result<T, CredentialError>>,
{
    let until = Instant::now() + PATIENCE;
    loop {
        tokio::time::sleep(LOOK).await;
        match obtain().await {
            Err(CredentialError::NotConnected(_)) if Instant::now() < until => {}
            obtained => return obtained,
        }
    }
}
