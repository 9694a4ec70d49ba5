//! `portcullis disconnect`: forgets a person's connection, and tells the service so.
//!
//! Exit codes: 0 when nothing is left of it, 1 when that failed, 2 misused or no good configuration.

use std::process::ExitCode;

use clap::Args;

use super::account::{Account, Owner};
use crate::connect::pending;

/// Forget a person's connection at a service
///
/// The tokens are removed from the store and, where the service takes revocations, revoked there (RFC 7009). A running
/// gateway refuses the person's next call on the route until they connect again. A login under way ends, too.
///
/// Exit codes: 0 disconnected, or there was nothing to disconnect; 1 failed; 2 misused or no good configuration.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  portcullis disconnect linear --token-file ~/.mcp-token\n  \
                        portcullis disconnect linear --subject ada --identity corp"
)]
pub struct Disconnect {
    #[command(flatten)]
    account: Account,
}

impl Disconnect {
    /// Disconnects, or says why not.
    pub async fn run(self) -> ExitCode {
        let known = match self.account.open().await {
            Ok(known) => known,
            Err(closed) => return closed.told(),
        };
        let route = &self.account.route;
        let Owner::Person { person, .. } = &known.owner else {
            eprintln!("route {route:?} has its login in a file, which others may use too: remove that yourself");
            return ExitCode::from(2);
        };
        let forgotten = async {
            pending::clear(known.store(), route, person.as_str(), None).await?;
            known.connections.forget(route, person, Some(&known.login)).await
        };
        match forgotten.await {
            Ok(true) => {
                eprintln!("Disconnected: {route} {}.", known.owner);
                ExitCode::SUCCESS
            }
            Ok(false) => {
                eprintln!("There was nothing to disconnect: {route} {}.", known.owner);
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("Not disconnected: {error}");
                ExitCode::FAILURE
            }
        }
    }
}
