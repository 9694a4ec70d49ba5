//! Discovery and logins against servers on loopback.

mod discovery;
mod login;

use super::{AuthMethod, ClientRecord, Grant, TokenSet};
use crate::secret::Secret;

#[test]
fn a_grant_survives_being_written() {
    let grant = Grant {
        issuer: "https://login.example".to_owned(),
        token_endpoint: "https://login.example/token".parse().unwrap(),
        revocation_endpoint: None,
        resource: Some("https://mcp.example/mcp".to_owned()),
        upstream: "https://mcp.example/mcp".to_owned(),
        client: ClientRecord {
            id: "gate".to_owned(),
            secret: Some(Secret::new("s")),
            secret_expires_at: Some(u64::MAX),
            auth: AuthMethod::ClientSecretPost,
        },
        tokens: TokenSet {
            access_token: Secret::new("a"),
            refresh_token: Some(Secret::new("r")),
            expires_at: None,
            scopes: Some(vec!["x".to_owned()]),
            id_token: None,
        },
    };
    assert!(Grant::from_json(&grant.to_json()).as_ref() == Some(&grant));
    assert!(Grant::from_json(b"{}").is_none());
}
