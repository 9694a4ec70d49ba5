//! Prometheus metrics: every name, label and bucket in one place.
//!
//! 1. The recorder belongs to a [`Metrics`] value and is never installed in the process, so that several gateways can
//!    live in one process without counting each other's requests.
//! 2. Handles are registered once and kept: counting a request looks a handle up in a map and adds to an atomic.
//! 3. Label values are bounded. A tool's name becomes one only after a call of it succeeded or failed as a tool, and
//!    only for the first 512 names of a route; a method only when the protocol knows it. All others share `_other`.
//! 4. Durations are seconds, in fixed buckets, drained by [`Metrics::upkeep`].

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use metrics::Counter;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

use super::families::*;
use super::route_metrics::RouteMetrics;

/// How often histograms are drained when nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// Two label values.
type Pair = (&'static str, &'static str);

/// All metrics of one gateway.
pub struct Metrics {
    registry: Arc<Registry>,
    handle: PrometheusHandle,
    routes: DashMap<Box<str>, Arc<RouteMetrics>>,
    unrouted: DashMap<u16, Counter>,
    /// By cache and result.
    caches: DashMap<Pair, Counter>,
    audit_written: Counter,
    audit_dropped: Counter,
    audit_failed: Counter,
    audit_refused: Counter,
}

impl Metrics {
    /// An empty set, with `build_info` at 1.
    pub fn new() -> Arc<Self> {
        let registry = Arc::new(Registry::new());
        registry
            .gauge(BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))])
            .set(1.0);
        let audit = |result| registry.counter(AUDIT_LINES, &[("result", result)]);
        Arc::new(Self {
            audit_written: audit("written"),
            audit_dropped: audit("dropped"),
            audit_failed: audit("failed"),
            audit_refused: audit("refused"),
            handle: registry.handle(),
            registry,
            routes: DashMap::new(),
            unrouted: DashMap::new(),
            caches: DashMap::new(),
        })
    }

    /// The metrics of one configured route; take them once, when the route is built. Names come from the
    /// configuration, never from a request.
    pub fn route(&self, name: &str) -> Arc<RouteMetrics> {
        if let Some(route) = self.routes.get(name) {
            return Arc::clone(&route);
        }
        let made = || Arc::new(RouteMetrics::new(name, Arc::clone(&self.registry)));
        Arc::clone(&self.routes.entry(name.into()).or_insert_with(made))
    }

    /// Counts an HTTP answer that belongs to no route (`route="_none"`), such as a 404 or a well-known document.
    pub fn unrouted_http_request(&self, code: u16) {
        let make = || {
            self.registry.counter(
                HTTP_REQUESTS,
                &[("route", "_none"), ("code", code.to_string().as_str())],
            )
        };
        self.unrouted.entry(code).or_insert_with(make).increment(1);
    }

    /// Counts what a limit refused before a route was known: `overload` or `connections_per_address`.
    pub fn unrouted_limited(&self, kind: &'static str) {
        self.registry
            .counter(RATE_LIMITED, &[("route", "_none"), ("kind", kind)])
            .increment(1);
    }

    /// Counts a look into a cache of tokens: `cache` is `verified` or `exchange`, `result` is `hit` or `miss`.
    pub fn token_cache(&self, cache: &'static str, result: &'static str) {
        if let Some(counter) = self.caches.get(&(cache, result)) {
            return counter.increment(1);
        }
        let make = || {
            self.registry
                .counter(TOKEN_CACHE, &[("cache", cache), ("result", result)])
        };
        self.caches.entry((cache, result)).or_insert_with(make).increment(1);
    }

    /// Counts an attempt to fetch an identity's keys, such as `ok`, `unreachable` or `malformed`.
    pub fn jwks_refresh(&self, identity: &str, result: &'static str) {
        self.registry
            .counter(JWKS_REFRESH, &[("identity", identity), ("result", result)])
            .increment(1);
    }

    /// Counts a reload of the configuration: `ok` or `error`.
    pub fn config_reload(&self, result: &'static str) {
        self.registry
            .counter(CONFIG_RELOADS, &[("result", result)])
            .increment(1);
    }

    /// How old an identity's keys are.
    pub fn jwks_age(&self, identity: &str, age: Duration) {
        self.registry
            .gauge(JWKS_AGE, &[("identity", identity)])
            .set(age.as_secs_f64());
    }

    /// The text a scrape gets.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Drains histograms until `shutdown`, so that an unscraped gateway doesn't grow.
    pub async fn upkeep(self: Arc<Self>, shutdown: CancellationToken) {
        let mut every = tokio::time::interval(UPKEEP);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = every.tick() => self.handle.run_upkeep(),
            }
        }
    }

    pub(super) fn audit_written(&self, lines: u64) {
        self.audit_written.increment(lines);
    }

    pub(super) fn audit_dropped(&self, lines: u64) {
        self.audit_dropped.increment(lines);
    }

    pub(super) fn audit_failed(&self) {
        self.audit_failed.increment(1);
    }

    pub(super) fn audit_refused(&self) {
        self.audit_refused.increment(1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::super::route_metrics::{MAX_TOOL_NAME, MAX_TOOLS, Outcome};
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn line(rendered: &str, start: &str) -> Option<String> {
        rendered
            .lines()
            .find(|line| line.starts_with(start))
            .map(ToOwned::to_owned)
    }

    #[test]
    fn methods_are_sorted_for_the_search() {
        assert!(METHODS.is_sorted());
    }

    #[test]
    fn two_gateways_count_apart() {
        let (one, two) = (Metrics::new(), Metrics::new());
        one.route("notes").http_request(200);
        assert!(
            one.render()
                .contains("portcullis_http_requests_total{route=\"notes\",code=\"200\"} 1")
        );
        assert!(!two.render().contains("code=\"200\""));
    }

    #[test]
    fn a_call_is_counted_with_its_labels_in_order() {
        let metrics = Metrics::new();
        let route = metrics.route("nc");
        route.mcp_request("tools/call", Some("nc_notes_get_note"), Outcome::Success, 3 * MS);
        route.mcp_request("tools/list", None, Outcome::Success, MS);
        let text = metrics.render();
        let call = "portcullis_mcp_requests_total{route=\"nc\",method=\"tools/call\",tool=\"nc_notes_get_note\",\
                    outcome=\"success\"} 1";
        assert!(text.contains(call), "{text}");
        assert!(
            text.contains("method=\"tools/list\",tool=\"\",outcome=\"success\"} 1"),
            "{text}"
        );
        let bucket =
            "portcullis_mcp_request_duration_seconds_bucket{route=\"nc\",method=\"tools/call\",le=\"0.005\"} 1";
        assert!(text.contains(bucket), "{text}");
        assert!(
            text.contains("# TYPE portcullis_mcp_request_duration_seconds histogram"),
            "{text}"
        );
    }

    #[test]
    fn unknown_methods_share_a_label() {
        let metrics = Metrics::new();
        metrics.route("r").mcp_request("evil/\"}\n", None, Outcome::Denied, MS);
        let text = metrics.render();
        assert!(
            text.contains("method=\"_other\",tool=\"\",outcome=\"denied\"} 1"),
            "{text}"
        );
        assert!(!text.contains("evil"), "{text}");
    }

    #[test]
    fn a_tool_gets_its_name_only_once_it_answered() {
        let metrics = Metrics::new();
        let route = metrics.route("r");
        for outcome in [
            Outcome::ProtocolError,
            Outcome::Denied,
            Outcome::UpstreamError,
            Outcome::Cancelled,
        ] {
            route.mcp_request("tools/call", Some("guess"), outcome, MS);
        }
        assert!(!metrics.render().contains("guess"));
        route.mcp_request("tools/call", Some("guess"), Outcome::ToolError, MS);
        route.mcp_request("tools/call", Some("guess"), Outcome::Denied, MS);
        let text = metrics.render();
        assert!(text.contains("tool=\"guess\",outcome=\"tool_error\"} 1"), "{text}");
        assert!(text.contains("tool=\"guess\",outcome=\"denied\"} 1"), "{text}");
        assert!(text.contains("tool=\"_other\",outcome=\"denied\"} 1"), "{text}");
    }

    #[test]
    fn tools_are_bounded_per_route() {
        let metrics = Metrics::new();
        let route = metrics.route("r");
        for tool in 0..MAX_TOOLS + 10 {
            route.mcp_request("tools/call", Some(&format!("tool_{tool}")), Outcome::Success, MS);
        }
        route.mcp_request("tools/call", Some(&"x".repeat(MAX_TOOL_NAME + 1)), Outcome::Success, MS);
        metrics
            .route("s")
            .mcp_request("tools/call", Some("tool_9999"), Outcome::Success, MS);
        let text = metrics.render();
        let named = text
            .lines()
            .filter(|line| line.contains("route=\"r\"") && line.contains("tool=\"tool_"))
            .count();
        assert_eq!(named, MAX_TOOLS);
        assert!(text.contains("tool=\"_other\",outcome=\"success\"} 11"), "{text}");
        assert!(
            text.contains("route=\"s\",method=\"tools/call\",tool=\"tool_9999\""),
            "{text}"
        );
    }

    #[test]
    fn racing_first_calls_of_one_tool_take_one_place() {
        let metrics = Metrics::new();
        let route = metrics.route("r");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for tool in 0..100 {
                        route.mcp_request("tools/call", Some(&format!("t{tool}")), Outcome::Success, MS);
                    }
                });
            }
        });
        assert_eq!(route.admitted.load(Ordering::Relaxed), 100);
        assert_eq!(
            line(
                &metrics.render(),
                "portcullis_mcp_requests_total{route=\"r\",method=\"tools/call\",tool=\"t7\""
            )
            .expect("counted")
            .rsplit(' ')
            .next(),
            Some("8")
        );
    }

    #[test]
    fn guards_give_back_what_they_took() {
        let metrics = Metrics::new();
        let route = metrics.route("r");
        let session = route.session("sse");
        let streams = [route.stream(), route.stream()];
        let text = metrics.render();
        assert!(
            text.contains("portcullis_sessions{route=\"r\",transport=\"sse\"} 1"),
            "{text}"
        );
        assert!(text.contains("portcullis_streams{route=\"r\"} 2"), "{text}");
        assert_eq!((route.open_sessions(), route.open_streams()), (1, 2));
        drop((session, streams));
        assert_eq!((route.open_sessions(), route.open_streams()), (0, 0));
        let text = metrics.render();
        assert!(
            text.contains("portcullis_sessions{route=\"r\",transport=\"sse\"} 0"),
            "{text}"
        );
        assert!(text.contains("portcullis_streams{route=\"r\"} 0"), "{text}");
    }

    #[test]
    fn every_family_has_its_name_help_and_labels() {
        let metrics = Metrics::new();
        let route = metrics.route("r");
        metrics.unrouted_http_request(404);
        metrics.token_cache("verify", "hit");
        metrics.jwks_refresh("corp", "ok");
        metrics.jwks_age("corp", Duration::from_secs(7));
        route.gateway_overhead(Duration::from_micros(30));
        for _ in 0..2 {
            route.auth_validation("corp", "refused", "expired");
            route.auth_validation("other", "refused", "expired");
            route.policy_decision("deny", "no_rule");
        }
        route.tools_hidden("budget", 12);
        route.token_exchange("token_exchange", "ok", MS);
        route.credential_failure("refresh_token", "invalid_grant");
        route.credential_life("client_credentials", Some(5), Some(295));
        route.connections("needs_auth", 3);
        route.upstream_healthy("http://127.0.0.1:1/mcp", true);
        route.breaker_state("http://127.0.0.1:1/mcp", 2);
        route.upstream_connect("refused");
        let text = metrics.render();
        for expected in [
            "portcullis_http_requests_total{route=\"_none\",code=\"404\"} 1",
            "portcullis_token_cache_total{cache=\"verify\",result=\"hit\"} 1",
            "portcullis_jwks_refresh_total{identity=\"corp\",result=\"ok\"} 1",
            "portcullis_jwks_age_seconds{identity=\"corp\"} 7",
            "portcullis_gateway_overhead_seconds_bucket{route=\"r\",le=\"0.00005\"} 1",
            "portcullis_auth_validations_total{route=\"r\",identity=\"corp\",result=\"refused\",reason=\"expired\"} 2",
            "portcullis_auth_validations_total{route=\"r\",identity=\"other\",result=\"refused\",reason=\"expired\"} 2",
            "portcullis_policy_decisions_total{route=\"r\",decision=\"deny\",reason=\"no_rule\"} 2",
            "portcullis_tools_hidden{route=\"r\",reason=\"budget\"} 12",
            "portcullis_token_exchanges_total{route=\"r\",grant=\"token_exchange\",result=\"ok\"} 1",
            "portcullis_credential_failures_total{route=\"r\",grant=\"refresh_token\",reason=\"invalid_grant\"} 1",
            "portcullis_credential_age_seconds{route=\"r\",grant=\"client_credentials\"} 5",
            "portcullis_credential_remaining_seconds{route=\"r\",grant=\"client_credentials\"} 295",
            "portcullis_connections{route=\"r\",state=\"needs_auth\"} 3",
            "portcullis_token_exchange_duration_seconds_count{route=\"r\",grant=\"token_exchange\"} 1",
            "portcullis_upstream_healthy{route=\"r\",endpoint=\"http://127.0.0.1:1/mcp\"} 1",
            "portcullis_breaker_state{route=\"r\",endpoint=\"http://127.0.0.1:1/mcp\"} 2",
            "portcullis_upstream_connects_total{route=\"r\",result=\"refused\"} 1",
            "portcullis_build_info{version=\"",
            "# HELP portcullis_http_requests_total ",
            "# HELP portcullis_gateway_overhead_seconds ",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
    }
}
