//! The metrics' names, texts and buckets, and the registry they are registered with.
//!
//! Names and labels are a contract with dashboards: change them only together with the reference.

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

pub(super) const HTTP_REQUESTS: &str = "portcullis_http_requests_total";
pub(super) const MCP_REQUESTS: &str = "portcullis_mcp_requests_total";
pub(super) const MCP_DURATION: &str = "portcullis_mcp_request_duration_seconds";
pub(super) const OVERHEAD: &str = "portcullis_gateway_overhead_seconds";
pub(super) const AUTH_VALIDATIONS: &str = "portcullis_auth_validations_total";
pub(super) const POLICY_DECISIONS: &str = "portcullis_policy_decisions_total";
pub(super) const TOOLS_HIDDEN: &str = "portcullis_tools_hidden";
pub(super) const TOKEN_EXCHANGES: &str = "portcullis_token_exchanges_total";
pub(super) const CREDENTIAL_FAILURES: &str = "portcullis_credential_failures_total";
pub(super) const TOKEN_EXCHANGE_DURATION: &str = "portcullis_token_exchange_duration_seconds";
pub(super) const CREDENTIAL_AGE: &str = "portcullis_credential_age_seconds";
pub(super) const CREDENTIAL_REMAINING: &str = "portcullis_credential_remaining_seconds";
pub(super) const CONNECTIONS: &str = "portcullis_connections";
pub(super) const TOKEN_CACHE: &str = "portcullis_token_cache_total";
pub(super) const JWKS_REFRESH: &str = "portcullis_jwks_refresh_total";
pub(super) const JWKS_AGE: &str = "portcullis_jwks_age_seconds";
pub(super) const SESSIONS: &str = "portcullis_sessions";
pub(super) const STREAMS: &str = "portcullis_streams";
pub(super) const UPSTREAM_HEALTHY: &str = "portcullis_upstream_healthy";
pub(super) const BREAKER_STATE: &str = "portcullis_breaker_state";
pub(super) const UPSTREAM_CONNECTS: &str = "portcullis_upstream_connects_total";
pub(super) const AUDIT_LINES: &str = "portcullis_audit_lines_total";
pub(super) const BUILD_INFO: &str = "portcullis_build_info";
pub(super) const RATE_LIMITED: &str = "portcullis_rate_limited_total";
pub(super) const CONFIG_RELOADS: &str = "portcullis_config_reloads_total";

/// Buckets of a call's duration, in seconds; calls may last hours.
const CALL_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0,
];
/// Buckets of the time the gateway itself takes, in seconds.
const OVERHEAD_BUCKETS: &[f64] = &[
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1,
];
/// Buckets of a token request's duration, in seconds.
const EXCHANGE_BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The methods that may be label values: those of every revision from 2024-11-05 to 2026-07-28.
pub(super) const METHODS: &[&str] = &[
    "completion/complete",
    "elicitation/create",
    "initialize",
    "logging/setLevel",
    "notifications/cancelled",
    "notifications/elicitation/complete",
    "notifications/initialized",
    "notifications/message",
    "notifications/progress",
    "notifications/prompts/list_changed",
    "notifications/resources/list_changed",
    "notifications/resources/updated",
    "notifications/roots/list_changed",
    "notifications/subscriptions/acknowledged",
    "notifications/tasks/status",
    "notifications/tools/list_changed",
    "ping",
    "prompts/get",
    "prompts/list",
    "resources/list",
    "resources/read",
    "resources/subscribe",
    "resources/templates/list",
    "resources/unsubscribe",
    "roots/list",
    "sampling/createMessage",
    "server/discover",
    "subscriptions/listen",
    "tasks/cancel",
    "tasks/get",
    "tasks/list",
    "tasks/result",
    "tasks/update",
    "tools/call",
    "tools/list",
];

/// The recorder, and the one way to register with it.
pub(super) struct Registry(PrometheusRecorder);

impl Registry {
    const METADATA: Metadata<'static> = Metadata::new("portcullis", Level::INFO, Some("portcullis"));

    /// A recorder of its own, with every family described and every histogram's buckets set.
    pub(super) fn new() -> Self {
        let exactly = |name: &str| Matcher::Full(name.to_owned());
        let recorder = PrometheusBuilder::new()
            .set_buckets(CALL_BUCKETS)
            .and_then(|builder| builder.set_buckets_for_metric(exactly(OVERHEAD), OVERHEAD_BUCKETS))
            .and_then(|builder| builder.set_buckets_for_metric(exactly(TOKEN_EXCHANGE_DURATION), EXCHANGE_BUCKETS))
            .expect("no list of buckets is empty")
            .build_recorder();
        let registry = Self(recorder);
        registry.describe();
        registry
    }

    /// What renders and drains the recorder.
    pub(super) fn handle(&self) -> PrometheusHandle {
        self.0.handle()
    }

    pub(super) fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        self.0.register_counter(&key(name, labels), &Self::METADATA)
    }

    pub(super) fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        self.0.register_gauge(&key(name, labels), &Self::METADATA)
    }

    pub(super) fn histogram(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Histogram {
        self.0.register_histogram(&key(name, labels), &Self::METADATA)
    }

    fn describe(&self) {
        let counter = |name: &'static str, text: &'static str| {
            self.0
                .describe_counter(KeyName::from_const_str(name), None, SharedString::const_str(text));
        };
        let gauge = |name: &'static str, unit: Option<Unit>, text: &'static str| {
            self.0
                .describe_gauge(KeyName::from_const_str(name), unit, SharedString::const_str(text));
        };
        let seconds = |name: &'static str, text: &'static str| {
            self.0.describe_histogram(
                KeyName::from_const_str(name),
                Some(Unit::Seconds),
                SharedString::const_str(text),
            );
        };
        counter(HTTP_REQUESTS, "HTTP answers by route and status code");
        counter(MCP_REQUESTS, "MCP messages by method, tool and outcome");
        seconds(
            MCP_DURATION,
            "Time from an MCP message's arrival to the end of its answer",
        );
        seconds(OVERHEAD, "Time the gateway itself added to a request");
        counter(
            AUTH_VALIDATIONS,
            "Bearer tokens looked at, by identity, result and reason",
        );
        counter(POLICY_DECISIONS, "Policy decisions by decision and reason");
        gauge(TOOLS_HIDDEN, None, "Tools the latest list lost, by reason");
        counter(TOKEN_EXCHANGES, "Requests to token endpoints by grant and result");
        counter(
            CREDENTIAL_FAILURES,
            "Credentials that could not be had by grant and reason",
        );
        seconds(TOKEN_EXCHANGE_DURATION, "Time a token endpoint took to answer");
        gauge(
            CREDENTIAL_AGE,
            Some(Unit::Seconds),
            "Age of a credential that all callers share",
        );
        gauge(
            CREDENTIAL_REMAINING,
            Some(Unit::Seconds),
            "Time until a credential that all callers share ends",
        );
        gauge(CONNECTIONS, None, "Users' connections to a route's upstream, by state");
        counter(TOKEN_CACHE, "Looks into the token caches by cache and result");
        counter(JWKS_REFRESH, "Fetches of an identity's keys by result");
        gauge(JWKS_AGE, Some(Unit::Seconds), "Age of an identity's keys");
        gauge(SESSIONS, None, "Open sessions by transport");
        gauge(STREAMS, None, "Open response streams");
        gauge(UPSTREAM_HEALTHY, None, "Whether an upstream endpoint takes requests");
        gauge(
            BREAKER_STATE,
            None,
            "An upstream endpoint's breaker: 0 closed, 1 half-open, 2 open",
        );
        counter(UPSTREAM_CONNECTS, "Connections to upstreams made or missed");
        counter(
            AUDIT_LINES,
            "Audit lines written and dropped, failed writes, and requests refused for a stalled sink",
        );
        gauge(BUILD_INFO, None, "The version that runs");
        counter(RATE_LIMITED, "Requests and connections refused by a limit, by its kind");
        counter(CONFIG_RELOADS, "Reloads of the configuration by result");
    }
}

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    let labels: Vec<Label> = labels
        .iter()
        .map(|(name, value)| Label::new(*name, (*value).to_owned()))
        .collect();
    Key::from_parts(name, labels)
}
