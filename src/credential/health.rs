//! What operators see of a route's credential: its kind, whether it can be had, and how long it lives. Never a secret, and
//! never whose it is.
//!
//! A refusal of one person's grant is that person's affair; everything else that a token endpoint fails at is the route's.

use std::collections::BTreeMap;

use serde::Serialize;

use super::connection::State;
use super::{CredentialSource, Source};
use crate::oauth::TokenError;
use crate::telemetry::RouteMetrics;

/// A route's credential, for `/status`.
#[derive(Clone, Debug, Serialize)]
pub struct CredentialHealth {
    /// As in the configuration, or `none`.
    pub kind: &'static str,
    /// `connected`, `expiring`, `needs_auth` or `failing`; `null` for what is had without asking anybody.
    pub state: Option<&'static str>,
    /// Ours, never the issuer's words.
    pub last_error: Option<String>,
    /// Seconds since a shared one was got.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age: Option<u64>,
    /// Seconds that a shared one lives on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining: Option<u64>,
    /// How many users' connections are in which state, as of a moment ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<BTreeMap<&'static str, u64>>,
}

impl CredentialHealth {
    fn of(kind: &'static str, state: Option<State>, last_error: Option<String>) -> Self {
        Self {
            kind,
            state: state.map(State::as_str),
            last_error,
            age: None,
            remaining: None,
            connections: None,
        }
    }
}

impl CredentialSource {
    /// What operators see of it; nobody is asked and nothing waited for (r22).
    pub fn health(&self, route: &RouteMetrics) -> CredentialHealth {
        let trouble = route.credential_trouble();
        let asked = match &trouble {
            None => State::Connected,
            Some(_) => State::Failing,
        };
        match &self.0 {
            Source::Fixed { kind, .. } => CredentialHealth::of(kind, None, None),
            Source::Assertion(_) => CredentialHealth::of("assertion", None, None),
            Source::Passthrough { .. } => CredentialHealth::of("passthrough", None, None),
            Source::Exchange(_) => CredentialHealth::of("exchange", Some(asked), trouble),
            Source::ClientCredentials(own) => {
                let (age, remaining) = own.life();
                CredentialHealth {
                    age,
                    remaining,
                    ..CredentialHealth::of("client_credentials", Some(asked), trouble)
                }
            }
            Source::TokenFile(file) => {
                let health = file.health();
                CredentialHealth {
                    age: health.age,
                    remaining: health.remaining,
                    ..CredentialHealth::of("token_file", Some(health.state), health.last_error)
                }
            }
            Source::Connection(source) => {
                let counts = source.as_ref().and_then(|source| source.counts());
                CredentialHealth {
                    connections: counts.map(|counts| counts.map(|(state, count)| (state.as_str(), count)).into()),
                    ..CredentialHealth::of("connection", Some(asked), trouble)
                }
            }
        }
    }

    /// Writes down how old a shared credential is.
    pub fn measure(&self, route: &RouteMetrics) {
        if matches!(&self.0, Source::ClientCredentials(_) | Source::TokenFile(_)) {
            let health = self.health(route);
            route.credential_life(health.kind, health.age, health.remaining);
        }
    }
}

/// Remembers what a token endpoint failed at, until it succeeds.
pub(super) fn note<T>(route: &RouteMetrics, answer: &Result<T, TokenError>) {
    match answer {
        Ok(_) => route.set_credential_trouble(None),
        Err(TokenError::Rejected {
            error: "invalid_grant" | "access_denied",
        }) => {}
        Err(error) => route.set_credential_trouble(Some(error.to_string())),
    }
}
