//! Permit to credential: the one that leaves.

use super::OutboundCredential;
use crate::edge::{Check, Rejection};
use crate::reply::Audited;
use crate::telemetry::Outcome;

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
        let obtained = call.route.credential.obtain(&audited.permitted.permit, subject).await;
        match obtained {
            Ok(credential) => Ok(Funded { audited, credential }),
            Err(error) => {
                for ending in audited.endings {
                    ending.finish(Outcome::UpstreamError);
                }
                Err(error.into())
            }
        }
    }
}
