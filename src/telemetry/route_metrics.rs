//! One route's metrics, with the handles that the hot path adds to.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use metrics::{Counter, Gauge, Histogram};

use super::families::*;

/// What stands in a label whose true value would be one too many.
const OTHER: &str = "_other";
/// Names of tools a route may have as label values.
pub(super) const MAX_TOOLS: usize = 512;
/// Bytes of a tool's name, above which it is `_other`.
pub(super) const MAX_TOOL_NAME: usize = 128;

/// How one message ended, as `mcp_requests_total` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// A tool result with `isError: true`.
    ToolError,
    /// A JSON-RPC error of the upstream.
    ProtocolError,
    /// Refused by the gateway.
    Denied,
    /// The upstream, or the way to it, failed.
    UpstreamError,
    /// The client went away first.
    Cancelled,
}

impl Outcome {
    const COUNT: usize = 6;

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::ToolError => "tool_error",
            Self::ProtocolError => "protocol_error",
            Self::Denied => "denied",
            Self::UpstreamError => "upstream_error",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether it shows that the upstream really has the tool.
    fn proves_tool(self) -> bool {
        matches!(self, Self::Success | Self::ToolError)
    }
}

/// The metrics of one route, with their handles.
pub struct RouteMetrics {
    name: Box<str>,
    registry: Arc<Registry>,
    /// By status, 100 to 999.
    codes: Box<[OnceLock<Counter>]>,
    /// As `METHODS`, and one more for `_other`.
    methods: Box<[MethodMetrics]>,
    /// `tools/call` by tool, at most [`MAX_TOOLS`].
    tools: DashMap<Box<str>, Outcomes>,
    pub(super) admitted: AtomicUsize,
    /// By result and reason, then by identity: a handful.
    validations: DashMap<Pair, Vec<(Box<str>, Counter)>>,
    /// By decision and reason.
    decisions: DashMap<Pair, Counter>,
    overhead: Histogram,
    streams: Gauge,
    open_sessions: Arc<AtomicUsize>,
    open_streams: Arc<AtomicUsize>,
    /// What its token endpoint last failed at.
    credential_trouble: Mutex<Option<String>>,
}

/// Two label values.
type Pair = (&'static str, &'static str);

/// One counter an [`Outcome`], registered when first counted.
type Outcomes = [OnceLock<Counter>; Outcome::COUNT];

#[derive(Default)]
struct MethodMetrics {
    outcomes: Outcomes,
    duration: OnceLock<Histogram>,
}

impl RouteMetrics {
    pub(super) fn new(name: &str, registry: Arc<Registry>) -> Self {
        Self {
            name: name.into(),
            codes: (100..1000).map(|_| OnceLock::new()).collect(),
            methods: (0..=METHODS.len()).map(|_| MethodMetrics::default()).collect(),
            tools: DashMap::new(),
            admitted: AtomicUsize::new(0),
            open_sessions: Arc::default(),
            open_streams: Arc::default(),
            credential_trouble: Mutex::default(),
            validations: DashMap::new(),
            decisions: DashMap::new(),
            overhead: registry.histogram(OVERHEAD, &[("route", name)]),
            streams: registry.gauge(STREAMS, &[("route", name)]),
            registry,
        }
    }

    /// Counts an HTTP answer of this route.
    pub fn http_request(&self, code: u16) {
        let Some(counter) = usize::from(code)
            .checked_sub(100)
            .and_then(|place| self.codes.get(place))
        else {
            return;
        };
        counter
            .get_or_init(|| {
                let code = code.to_string();
                self.registry
                    .counter(HTTP_REQUESTS, &[("route", &self.name), ("code", &code)])
            })
            .increment(1);
    }

    /// Counts one message and how long it took, from its arrival to the end of its answer. `tool` is looked at for
    /// `tools/call` alone.
    pub fn mcp_request(&self, method: &str, tool: Option<&str>, outcome: Outcome, duration: Duration) {
        let (index, label) = match METHODS.binary_search(&method) {
            Ok(index) => (index, METHODS[index]),
            Err(_) => (METHODS.len(), OTHER),
        };
        let metrics = &self.methods[index];
        metrics
            .duration
            .get_or_init(|| {
                self.registry
                    .histogram(MCP_DURATION, &[("route", &self.name), ("method", label)])
            })
            .record(duration.as_secs_f64());
        match tool {
            Some(tool) if label == "tools/call" => self.count_tool(tool, outcome, metrics),
            _ => self.count(&metrics.outcomes, label, "", outcome),
        }
    }

    fn count_tool(&self, tool: &str, outcome: Outcome, others: &MethodMetrics) {
        const CALL: &str = "tools/call";
        if let Some(outcomes) = self.tools.get(tool) {
            return self.count(&outcomes, CALL, tool, outcome);
        }
        if !outcome.proves_tool() || tool.len() > MAX_TOOL_NAME || !self.admit() {
            return self.count(&others.outcomes, CALL, OTHER, outcome);
        }
        let mut fresh = false;
        let outcomes = self.tools.entry(tool.into()).or_insert_with(|| {
            fresh = true;
            Outcomes::default()
        });
        if !fresh {
            // Another call of the same tool took its place first: give ours back.
            self.admitted.fetch_sub(1, Ordering::Relaxed);
        }
        self.count(&outcomes, CALL, tool, outcome);
    }

    fn admit(&self) -> bool {
        let one_more = |count| (count < MAX_TOOLS).then_some(count + 1);
        self.admitted
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .is_ok()
    }

    fn count(&self, outcomes: &Outcomes, method: &str, tool: &str, outcome: Outcome) {
        outcomes[outcome as usize]
            .get_or_init(|| {
                let labels = [
                    ("route", &*self.name),
                    ("method", method),
                    ("tool", tool),
                    ("outcome", outcome.as_str()),
                ];
                self.registry.counter(MCP_REQUESTS, &labels)
            })
            .increment(1);
    }

    /// What the gateway itself added to a request: its whole time less the time spent waiting for the upstream.
    pub fn gateway_overhead(&self, time: Duration) {
        self.overhead.record(time.as_secs_f64());
    }

    /// Counts a bearer that was looked at. `identity` is a configured name or `_none`; `result` is `ok` or `refused`.
    pub fn auth_validation(&self, identity: &str, result: &'static str, reason: &'static str) {
        let known = |counters: &Vec<(Box<str>, Counter)>| {
            counters
                .iter()
                .find(|(name, _)| **name == *identity)
                .map(|(_, counter)| counter.increment(1))
        };
        if self
            .validations
            .get(&(result, reason))
            .and_then(|counters| known(&counters))
            .is_some()
        {
            return;
        }
        let mut counters = self.validations.entry((result, reason)).or_default();
        if known(&counters).is_none() {
            let labels = [
                ("route", &*self.name),
                ("identity", identity),
                ("result", result),
                ("reason", reason),
            ];
            let counter = self.registry.counter(AUTH_VALIDATIONS, &labels);
            counter.increment(1);
            counters.push((identity.into(), counter));
        }
    }

    /// Counts a decision: `allow` or `deny`, and why.
    pub fn policy_decision(&self, decision: &'static str, reason: &'static str) {
        if let Some(counter) = self.decisions.get(&(decision, reason)) {
            return counter.increment(1);
        }
        let make = || {
            let labels = [("route", &*self.name), ("decision", decision), ("reason", reason)];
            self.registry.counter(POLICY_DECISIONS, &labels)
        };
        self.decisions
            .entry((decision, reason))
            .or_insert_with(make)
            .increment(1);
    }

    /// Counts a request that a limit refused.
    pub fn rate_limited(&self, kind: &'static str) {
        self.registry
            .counter(RATE_LIMITED, &[("route", &*self.name), ("kind", kind)])
            .increment(1);
    }

    /// How many tools the latest list lost, to `rules` or to the `budget`.
    pub fn tools_hidden(&self, reason: &'static str, count: usize) {
        let labels = [("route", &*self.name), ("reason", reason)];
        self.registry
            .gauge(TOOLS_HIDDEN, &labels)
            .set(u32::try_from(count).unwrap_or(u32::MAX));
    }

    /// Counts a request to a token endpoint and its time.
    pub fn token_exchange(&self, grant: &'static str, result: &'static str, duration: Duration) {
        let labels = [("route", &*self.name), ("grant", grant), ("result", result)];
        self.registry.counter(TOKEN_EXCHANGES, &labels).increment(1);
        self.registry
            .histogram(TOKEN_EXCHANGE_DURATION, &labels[..2])
            .record(duration.as_secs_f64());
    }

    /// Counts a credential that could not be had (`grant` is the route's kind of credential) or renewed
    /// (`refresh_token`).
    pub fn credential_failure(&self, grant: &'static str, reason: &'static str) {
        let labels = [("route", &*self.name), ("grant", grant), ("reason", reason)];
        self.registry.counter(CREDENTIAL_FAILURES, &labels).increment(1);
    }

    /// Why a token endpoint gave nothing the last time; `None`: it did.
    pub fn set_credential_trouble(&self, trouble: Option<String>) {
        *self.credential_trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// The same, for `/status`.
    pub fn credential_trouble(&self) -> Option<String> {
        let trouble = self.credential_trouble.lock();
        trouble.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How old a shared credential is and how long it lives on, in seconds; `None` where that isn't known.
    pub fn credential_life(&self, grant: &'static str, age: Option<u64>, remaining: Option<u64>) {
        let labels = [("route", &*self.name), ("grant", grant)];
        for (name, seconds) in [(CREDENTIAL_AGE, age), (CREDENTIAL_REMAINING, remaining)] {
            if let Some(seconds) = seconds {
                self.registry.gauge(name, &labels).set(seconds as f64);
            }
        }
    }

    /// How many users' connections are in a state.
    pub fn connections(&self, state: &'static str, count: u64) {
        let labels = [("route", &*self.name), ("state", state)];
        self.registry.gauge(CONNECTIONS, &labels).set(count as f64);
    }

    /// A session is open until the guard goes; `transport` is `streamable` or `sse`.
    pub fn session(&self, transport: &'static str) -> GaugeGuard {
        let labels = [("route", &*self.name), ("transport", transport)];
        GaugeGuard::new(self.registry.gauge(SESSIONS, &labels), &self.open_sessions)
    }

    /// A stream is open until the guard goes.
    pub fn stream(&self) -> GaugeGuard {
        GaugeGuard::new(self.streams.clone(), &self.open_streams)
    }

    /// How many sessions are open, of all transports.
    pub fn open_sessions(&self) -> usize {
        self.open_sessions.load(Ordering::Relaxed)
    }

    /// How many streams are open.
    pub fn open_streams(&self) -> usize {
        self.open_streams.load(Ordering::Relaxed)
    }

    /// Whether an endpoint takes requests; `endpoint` is a configured URL, without userinfo and query.
    pub fn upstream_healthy(&self, endpoint: &str, healthy: bool) {
        let labels = [("route", &*self.name), ("endpoint", endpoint)];
        self.registry
            .gauge(UPSTREAM_HEALTHY, &labels)
            .set(if healthy { 1.0 } else { 0.0 });
    }

    /// Where an endpoint's breaker stands: 0 closed, 1 half-open, 2 open.
    pub fn breaker_state(&self, endpoint: &str, state: u8) {
        let labels = [("route", &*self.name), ("endpoint", endpoint)];
        self.registry.gauge(BREAKER_STATE, &labels).set(f64::from(state));
    }

    /// Counts a connection made or missed: `ok`, `refused`, `timeout`, `tls`.
    pub fn upstream_connect(&self, result: &'static str) {
        self.registry
            .counter(UPSTREAM_CONNECTS, &[("route", &self.name), ("result", result)])
            .increment(1);
    }
}

/// One more of something while it lives.
#[must_use]
pub struct GaugeGuard {
    gauge: Gauge,
    open: Arc<AtomicUsize>,
}

impl GaugeGuard {
    fn new(gauge: Gauge, open: &Arc<AtomicUsize>) -> Self {
        gauge.increment(1.0);
        open.fetch_add(1, Ordering::Relaxed);
        Self {
            gauge,
            open: Arc::clone(open),
        }
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.gauge.decrement(1.0);
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}
