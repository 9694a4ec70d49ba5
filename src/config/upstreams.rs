//! The section `upstream` of a route.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use url::Url;

use super::raw::Section;
use super::stdio::stdio;
use super::values::{forwarded, path, upstream_url, values};
use super::{Balance, Breaker, Health, HealthCheck, Transport, Upstream, UpstreamEra};

pub(super) fn upstream_defaults(urls: Vec<Url>) -> Upstream {
    Upstream {
        urls,
        stdio: None,
        transport: Transport::Auto,
        era: UpstreamEra::Auto,
        balance: Balance::RoundRobin,
        health: None,
        breaker: breaker(None, None),
        ca: None,
        client_certificate: None,
        client_key: None,
        connect_timeout: Duration::from_secs(5),
        response_timeout: None,
        idle_timeout: Duration::from_secs(15 * 60),
        forward_headers: Vec::new(),
    }
}

fn breaker(failures: Option<usize>, cooldown: Option<Duration>) -> Option<Breaker> {
    let failures = u32::try_from(failures.unwrap_or(5)).expect("a count is at most a million");
    Some(Breaker {
        failures: NonZeroU32::new(failures)?,
        cooldown: cooldown.unwrap_or(Duration::from_secs(30)),
    })
}

pub(super) fn upstream_section(section: &Section<'_>, directory: &Path) -> Option<Upstream> {
    if !section.has("urls") && !section.has("command") {
        section.error_at(
            "urls",
            "this key is missing",
            "list the server's URLs, or set command to run one",
        );
    }
    let urls = section.parsed_list("urls", "MCP endpoints of equal servers.", upstream_url);
    if let Some(double) = urls
        .iter()
        .enumerate()
        .find(|(index, at)| urls[..*index].iter().any(|before| before.value == at.value))
    {
        section.error_in(
            double.1,
            format!("\"{}\" stands here twice", double.1.value),
            "keep one of them",
        );
    }
    let transport = section.choice(
        "transport",
        "Default auto: Streamable HTTP, or HTTP+SSE when the server's stream begins with an endpoint event.",
        &[
            ("auto", Transport::Auto),
            ("streamable-http", Transport::StreamableHttp),
            ("sse", Transport::Sse),
            ("stdio", Transport::Stdio),
        ],
    );
    let era = section.choice(
        "era",
        "Default auto: found out by asking; modern speaks 2026-07-28 and nothing before, legacy nothing after 2025-11-25.",
        &[
            ("auto", UpstreamEra::Auto),
            ("modern", UpstreamEra::Modern),
            ("legacy", UpstreamEra::Legacy),
        ],
    );
    if transport == Some(Transport::Sse) && era == Some(UpstreamEra::Modern) {
        section.error_at(
            "era",
            "HTTP+SSE ended with revision 2024-11-05",
            "drop era, or use transport: streamable-http",
        );
    }
    let command = section.has("command");
    let named = transport.filter(|transport| *transport != Transport::Auto);
    if named.is_some_and(|transport| (transport == Transport::Stdio) != command) {
        section.error_at(
            "transport",
            "stdio and command go together",
            "set command for a server over stdio; drop transport for any other",
        );
    }
    let stdio = stdio(section, directory);
    let balance = section.choice(
        "balance",
        "Default round_robin; sticky keeps a caller on one server.",
        &[
            ("round_robin", Balance::RoundRobin),
            ("random", Balance::Random),
            ("sticky", Balance::Sticky),
        ],
    );
    let health = section.optional_section("health", "Active checks.", |health| {
        let tcp = health.flag("tcp", "Connect.");
        let http = health.parsed("http", "GET this path; 2xx is healthy.", |text| {
            if text.starts_with('/') {
                Ok(text.to_owned())
            } else {
                Err("begin it with /".to_owned())
            }
        });
        let interval = health
            .duration("interval", "Between checks; default 5s.", false)
            .unwrap_or(Duration::from_secs(5));
        if tcp == Some(true) && http.is_some() {
            health.error_here("tcp and http are alternatives", "keep one of them");
        }
        let check = match (tcp, http) {
            (_, Some(path)) => HealthCheck::Http(path.value),
            (Some(true), None) => HealthCheck::Tcp,
            _ => {
                health.error_here("no check is named", "write {tcp: true} or {http: /healthz}");
                return None;
            }
        };
        Some(Health { check, interval })
    });
    let breaker = section.section("breaker", "Leaves a server alone that keeps failing.", |section| {
        breaker(
            section.count_or_zero(
                "failures",
                "So many in a row: no connection, no answer, 502, 503 or 504; default 5, 0 turns it off.",
            ),
            section.duration("cooldown", "Until it is tried again; default 30s.", false),
        )
    });
    let defaults = upstream_defaults(values(urls));
    let ca = path(
        section,
        "ca",
        "PEM bundle trusted instead of the system's roots.",
        directory,
    );
    let client_certificate = path(
        section,
        "client_certificate",
        "PEM certificate shown to the server.",
        directory,
    );
    let client_key = path(section, "client_key", "Its PEM key.", directory);
    if client_certificate.is_some() != client_key.is_some() {
        section.error_here("client_certificate and client_key go together", "give both or neither");
    }
    let response_timeout = section.duration("response_timeout", "Until the answer's head; default 0, no end.", true);
    let forward_headers = section.parsed_list(
        "forward_headers",
        "Request headers forwarded besides MCP's own.",
        forwarded,
    );
    let upstream = Upstream {
        stdio,
        transport: match command {
            true => Transport::Stdio,
            false => transport.unwrap_or(defaults.transport),
        },
        era: era.unwrap_or(defaults.era),
        balance: balance.unwrap_or(defaults.balance),
        health: health.flatten(),
        breaker,
        ca,
        client_certificate,
        client_key,
        connect_timeout: section
            .duration("connect_timeout", "TCP and TLS; default 5s.", false)
            .unwrap_or(defaults.connect_timeout),
        response_timeout: response_timeout.filter(|time| !time.is_zero()),
        idle_timeout: section
            .duration("idle_timeout", "Silence within an answer; default 15m.", false)
            .unwrap_or(defaults.idle_timeout),
        forward_headers: values(forward_headers),
        ..defaults
    };
    let there = match command {
        true => upstream.stdio.is_some(),
        false => !upstream.urls.is_empty(),
    };
    there.then_some(upstream)
}
