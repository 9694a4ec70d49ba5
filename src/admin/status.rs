//! What `/status` and `/readyz` say, without secrets.

use std::sync::Arc;

use serde::Serialize;

use crate::credential::CredentialHealth;

/// The gateway, as an operator sees it.
#[derive(Clone, Debug, Serialize)]
pub struct StatusReport {
    pub version: &'static str,
    /// Seconds since the start.
    pub uptime: u64,
    pub config: ConfigStatus,
    pub routes: Vec<RouteStatus>,
}

/// The configuration in force.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ConfigStatus {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub loaded_at: u64,
    /// Why a newer one was not taken; `null` when the last reload, if any, went well.
    pub last_error: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct RouteStatus {
    pub name: Arc<str>,
    pub path: String,
    /// Some identity has keys (or the route is anonymous), and some endpoint takes requests or the command can be run.
    pub ready: bool,
    pub identities: Vec<IdentityStatus>,
    pub endpoints: Vec<EndpointStatus>,
    /// What leaves towards the upstream.
    pub credential: CredentialHealth,
    /// Where the server is a command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<ProcessesStatus>,
    pub sessions: usize,
    pub streams: usize,
}

#[derive(Clone, Debug, Serialize)]
pub struct IdentityStatus {
    pub name: Arc<str>,
    /// How many keys can be used.
    pub keys: usize,
    /// Seconds since they were fetched; `null` before the first fetch and for secrets.
    pub age: Option<u64>,
    /// Ours, never the issuer's words.
    pub last_error: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ProcessesStatus {
    pub running: usize,
    /// How many may run at once.
    pub most: usize,
    /// How many ended without being asked to, or could not be started.
    pub died: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct EndpointStatus {
    /// Without userinfo and query.
    pub url: String,
    /// As health checks and connecting say.
    pub healthy: bool,
    /// `closed`, `half_open` or `open`; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaker: Option<&'static str>,
    pub last_error: Option<String>,
}

impl StatusReport {
    /// Whether any route can serve.
    pub fn is_ready(&self) -> bool {
        self.routes.iter().any(|route| route.ready)
    }
}

/// What `/readyz` shows to anybody.
#[derive(Serialize)]
pub(super) struct Readiness<'a> {
    ready: bool,
    routes: Vec<RouteReadiness<'a>>,
}

#[derive(Serialize)]
struct RouteReadiness<'a> {
    name: &'a str,
    ready: bool,
}

impl<'a> From<&'a StatusReport> for Readiness<'a> {
    fn from(report: &'a StatusReport) -> Self {
        let routes = report.routes.iter().map(|route| RouteReadiness {
            name: &route.name,
            ready: route.ready,
        });
        Self {
            ready: report.is_ready(),
            routes: routes.collect(),
        }
    }
}
