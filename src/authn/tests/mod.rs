//! Hostile tokens and issuers, from the header to the principal.

mod inspect;
mod introspection;
mod issuers;
mod keys;
mod tokens;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde_json::{Value, json};

use super::testing::{Issuer, identity};
use super::*;

const NOW: u64 = 1_800_000_000;
const RESOURCE: &str = "https://mcp.example.com/notes/mcp";
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// An authenticator with its clock and what it reported.
struct Gate {
    authenticator: Arc<Authenticator>,
    clock: Clock,
    events: Arc<Mutex<HashMap<String, usize>>>,
}

impl Gate {
    fn new(identities: Vec<Identity>) -> Self {
        let clock = Clock::fixed(NOW);
        let events = Arc::new(Mutex::new(HashMap::new()));
        let counted = events.clone();
        let identities: Vec<_> = identities.into_iter().map(Arc::new).collect();
        let authenticator = Authenticator::new(
            &identities,
            Arc::default(),
            clock.clone(),
            Arc::new(move |event| {
                let label = match event {
                    AuthEvent::Validated { identity, reason, .. } => format!("{identity}:{reason}"),
                    AuthEvent::Cache { cache, hit } => format!("{cache}:{}", if hit { "hit" } else { "miss" }),
                    other => format!("{other:?}"),
                };
                *counted.lock().unwrap().entry(label).or_default() += 1;
            }),
        );
        Self {
            authenticator: authenticator.unwrap(),
            clock,
            events,
        }
    }

    fn corp(issuer: &Issuer) -> Self {
        Self::new(vec![identity("corp", &issuer.url)])
    }

    fn count(&self, event: &str) -> usize {
        self.events.lock().unwrap().get(event).copied().unwrap_or(0)
    }

    async fn ask_on(&self, route: &RouteAuth, token: &str) -> Result<Arc<Principal>, AuthnError> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        let caller = self
            .authenticator
            .authenticate(route, &headers, &crate::authn::testing::sender())
            .await?;
        let is_key = caller.principal.issuer.starts_with("portcullis:");
        assert_eq!(caller.token.as_ref().map(Secret::expose), (!is_key).then_some(token));
        Ok(caller.principal)
    }

    async fn ask(&self, token: &str) -> Result<Arc<Principal>, AuthnError> {
        self.ask_on(&route(&["corp"]), token).await
    }

    /// The metric reason of a refusal, or `ok`.
    async fn reason(&self, token: &str) -> &'static str {
        self.ask(token).await.map_or_else(|error| error.reason(), |_| "ok")
    }
}

fn route(identities: &[&str]) -> RouteAuth {
    RouteAuth {
        route: "notes".into(),
        identities: identities.iter().map(|name| Arc::from(*name)).collect(),
        anonymous: false,
        resource: RESOURCE.to_owned(),
    }
}

fn claims(issuer: &str) -> Value {
    json!({"iss": issuer, "sub": "ada", "aud": RESOURCE, "exp": NOW + 300, "iat": NOW, "scope": "notes.read", "client_id": "agent"})
}

/// `base` with other members; null removes one.
fn with(base: &Value, changes: Value) -> Value {
    let mut changed = base.clone();
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            changed.as_object_mut().unwrap().remove(name);
        } else {
            changed[name] = value.clone();
        }
    }
    changed
}
