//! The section `routes`: endpoints and their policy.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use url::Url;

use super::credentials::credential_section;
use super::identities::locate;
use super::raw::{At, Quote, Section};
use super::upstreams::{upstream_defaults, upstream_section};
use super::values::{host_name, needed_scope, rate, route_path, upstream_url, values};
use super::{CallerLimits, Credential, Denials, Identity, KeySource, Listen, Place, Rate, Route};
use crate::policy::{Budget, OnExcess, PathStep, PolicySource, Roles, RoutePolicy, RuleSource, SourceError};

pub(super) fn routes(
    root: &Section<'_>,
    directory: &Path,
    identities: &[Arc<Identity>],
    roles: Option<&Arc<Roles>>,
    listen: Option<&Listen>,
) -> Vec<Option<Route>> {
    let mut claims = Vec::new();
    root.named("routes", "MCP endpoints.", |name, _, section| {
        let host = host(section, listen);
        route(name, section, directory, identities, roles, host, &mut claims)
    })
}

/// Where a route is, and whose it is.
struct Claim {
    route: String,
    host: Option<Arc<str>>,
    base: String,
}

/// The host that a route names, unless it is `public_url`'s anyway.
fn host(section: &Section<'_>, listen: Option<&Listen>) -> Option<Arc<str>> {
    let at = section.parsed(
        "host",
        "The endpoint's host name, instead of public_url's; its scheme and port stay.",
        host_name,
    )?;
    let listen = listen?;
    let public = listen
        .public_url
        .as_ref()
        .map(|url| Url::parse(url).expect("it was parsed when it was read"));
    let https = public
        .as_ref()
        .map_or(listen.tls.is_some(), |url| url.scheme() == "https");
    let local = at.value == "localhost" || at.value.ends_with(".localhost");
    if !https && !local {
        section.error_in(
            &at,
            format!(
                "\"{}\" does not fit; clients must come over https off loopback",
                at.value
            ),
            "set listen.public_url to an https URL, or use a name under .localhost",
        );
    }
    let shared = public.as_ref().and_then(Url::host_str) == Some(&*at.value);
    (!shared).then(|| at.value.into())
}

/// Notes whose path this is, and says so when it is another route's. A route with other mistakes has its path all the
/// same: whoever mends those should not meet this one only then.
fn claim(name: &str, section: &Section<'_>, host: Option<&Arc<str>>, path: &str, claims: &mut Vec<Claim>) {
    let base = path.trim_end_matches('/');
    for Claim {
        route, base: theirs, ..
    } in claims.iter().filter(|claim| claim.host.as_ref() == host)
    {
        if base == theirs || base == format!("{theirs}/messages") || *theirs == format!("{base}/messages") {
            section.error_at(
                "path",
                format!("\"{path}\" is taken by route {route}"),
                "give each route its own path",
            );
        }
    }
    claims.push(Claim {
        route: name.to_owned(),
        host: host.cloned(),
        base: base.to_owned(),
    });
}

fn route(
    name: &str,
    section: &Section<'_>,
    directory: &Path,
    identities: &[Arc<Identity>],
    roles: Option<&Arc<Roles>>,
    host: Option<Arc<str>>,
    claims: &mut Vec<Claim>,
) -> Option<Route> {
    section.require("path", "set it to the endpoint's path, such as /notes/mcp");
    section.require(
        "upstream",
        "set it to the server's URL, such as http://127.0.0.1:8001/mcp",
    );
    let path = section.parsed(
        "path",
        "The endpoint's path; public_url + path is its resource URL.",
        route_path,
    );
    if let Some(path) = &path {
        claim(name, section, host.as_ref(), &path.value, claims);
    }
    let anonymous = section
        .flag(
            "anonymous",
            "Let requests without a token in, as nobody; default false.",
        )
        .unwrap_or(false);
    let named = section.texts(
        "identity",
        "Which identities may vouch here; must be named when there are several.",
    );
    let chosen: Vec<Arc<Identity>> = named
        .iter()
        .filter_map(|at| {
            let found = identities.iter().find(|identity| *identity.name == *at.value).cloned();
            if found.is_none() {
                let known: Vec<&str> = identities.iter().map(|identity| &*identity.name).collect();
                section.error_in(
                    at,
                    format!("no identity \"{}\"", at.value),
                    format!("there are: {}", known.join(", ")),
                );
            }
            found
        })
        .collect();
    let chosen = match (named.is_empty(), identities) {
        (false, _) => chosen,
        (true, [only]) => vec![only.clone()],
        (true, []) => {
            if !anonymous && !section.is_describing() {
                section.error_here(
                    "nobody can vouch for this route's callers",
                    "configure an identity, or open the route with anonymous: true",
                );
            }
            Vec::new()
        }
        (true, _) => {
            if !anonymous {
                section.error_here(
                    "several identities exist, and none is named",
                    "name those that may vouch: identity: [corp]",
                );
            }
            Vec::new()
        }
    };
    let upstream = section.text_or(
        "upstream",
        "The server behind: a URL, or a map with urls and more.",
        Quote::Clear,
        |text| Ok(upstream_defaults(vec![upstream_url(text)?])),
        |upstream| upstream_section(upstream, directory),
    );
    let credential = section
        .text_or(
            "credential",
            "What the upstream gets instead of the caller's token; default none.",
            Quote::Never,
            |text| {
                if text == "none" {
                    Ok(Credential::None)
                } else {
                    Err("use none, or a map such as {bearer: …}, {exchange: …} or {connection: {}}".to_owned())
                }
            },
            |credential| credential_section(credential, directory),
        )
        .or(if section.has("credential") {
            None
        } else {
            Some(Credential::None)
        });
    let policy = policy(section, roles);
    let (body_limit, limits) = section.section("limits", "Bounds on requests.", |limits| {
        let body = limits.size("body", "Bytes of a request's body; default 4MiB.");
        (body.unwrap_or(4 * 1024 * 1024), caller_limits(limits))
    });
    let denials = section
        .choice(
            "denials",
            "The form of refusals; default auto: what the client's revision survives.",
            &[
                ("auto", Denials::Auto),
                ("status", Denials::Status),
                ("in_band", Denials::InBand),
            ],
        )
        .unwrap_or(Denials::Auto);
    let bearerless_messages = section
        .flag(
            "bearerless_messages",
            "Let HTTP+SSE clients post without their token, as their stream's caller; default false.",
        )
        .unwrap_or(false);
    let personal = match &credential {
        Some(Credential::Exchange(_)) => Some("there is no token to exchange for nobody"),
        Some(Credential::Passthrough { .. }) => Some("there is no token of nobody's to pass on"),
        Some(Credential::Assertion(_)) => Some("there is nobody to vouch for"),
        Some(Credential::Connection(_)) => Some("nobody has no account to connect"),
        _ => None,
    };
    if let (true, Some(why)) = (anonymous, personal) {
        section.error_at("credential", why, "drop anonymous, or use another credential");
    }
    let command = upstream.as_ref().is_some_and(|upstream| upstream.stdio.is_some());
    if command && !matches!(credential, Some(Credential::None)) {
        section.error_at(
            "credential",
            "there is no request that could carry a credential to a command",
            "put the secret into upstream.env",
        );
    }
    let asks = |identity: &&Arc<Identity>| matches!(identity.keys, KeySource::Introspection(_));
    if chosen.iter().filter(asks).count() > 1 {
        section.error_at(
            "identity",
            "two of these are asked about tokens, and one would be shown the other's",
            "name one identity with introspection a route",
        );
    }
    if matches!(credential, Some(Credential::Connection(_) | Credential::Assertion(_))) {
        namesakes(section, &chosen);
    }
    let tokenless = chosen.iter().find_map(|identity| match identity.keys {
        KeySource::ApiKeys(_) => Some(("keys", &identity.name)),
        KeySource::ClientCertificates(_) => Some(("certificates", &identity.name)),
        _ => None,
    });
    let use_of_it = match &credential {
        Some(Credential::Exchange(_)) => Some("exchange"),
        Some(Credential::Passthrough { .. }) => Some("pass on"),
        _ => None,
    };
    if let (Some((what, name)), Some(verb)) = (tokenless, use_of_it) {
        section.error_at(
            "credential",
            format!("the {what} of \"{name}\" are no tokens to {verb}"),
            "use another credential, or another route for them",
        );
    }
    Some(Route {
        name: name.into(),
        host,
        path: path?.value,
        identities: chosen,
        anonymous,
        upstream: upstream?,
        credential: credential?,
        policy: policy?,
        body_limit,
        limits,
        denials,
        bearerless_messages,
    })
}

/// A person is an issuer and a subject. Two claims of one issuer's tokens may well hold the same text for two people, who
/// often choose one of them themselves: they would have one account.
fn namesakes(section: &Section<'_>, identities: &[Arc<Identity>]) {
    for (place, one) in identities.iter().enumerate() {
        let namesake = identities[..place].iter().find(|other| {
            !one.issuer.is_empty() && other.issuer == one.issuer && other.claims.subject != one.claims.subject
        });
        if let Some(other) = namesake {
            section.error_at(
                "identity",
                format!(
                    "\"{}\" and \"{}\" find the subject of one issuer's tokens in different claims, and two people could pass \
                     for one",
                    other.name, one.name
                ),
                "give both the same claims.subject, or name one of them",
            );
        }
    }
}

/// What each principal may have.
fn caller_limits(limits: &Section<'_>) -> CallerLimits {
    let rate = limits.parsed(
        "rate",
        "Messages of one caller, such as 50/s or 600/m; no limit when absent.",
        rate,
    );
    let burst = limits.count(
        "burst",
        "Messages of one caller at once, after a pause; default the number in rate.",
    );
    if burst.is_some() && !limits.has("rate") {
        limits.error_at("burst", "burst says nothing without rate", "set rate, or drop it");
    }
    let concurrency = limits.count("concurrency", "Calls of one caller in flight; no limit when absent.");
    CallerLimits {
        rate: rate.map(|at| Rate {
            burst: burst
                .and_then(|burst| NonZeroU32::new(burst.try_into().ok()?))
                .unwrap_or(at.value.burst),
            ..at.value
        }),
        concurrency,
    }
}

fn policy(section: &Section<'_>, roles: Option<&Arc<Roles>>) -> Option<RoutePolicy> {
    let scopes = section.parsed_list("scopes", "Scopes needed for anything on the route.", needed_scope);
    let (tools, budget) = section.section("tools", "Which tools callers see and call.", |tools| {
        let rules = rules(tools);
        let max = tools.count("max", "Most tools a caller is shown, counted after the rules.");
        let pin = tools.texts("pin", "Tools that survive the cut first.");
        let on_excess = tools.choice(
            "on_excess",
            "Default trim.",
            &[("trim", OnExcess::Trim), ("refuse", OnExcess::Refuse)],
        );
        if max.is_none() && (!pin.is_empty() || on_excess.is_some()) && !tools.has("max") {
            tools.error_here("pin and on_excess say nothing without max", "set max, or drop them");
        }
        let budget = max.map(|max| Budget {
            max,
            pin: values(pin),
            on_excess: on_excess.unwrap_or(OnExcess::Trim),
        });
        (rules, budget)
    });
    let resources = section.section(
        "resources",
        "Which resources callers see and read; globs over URIs.",
        |section| rules(section),
    );
    let prompts = section.section("prompts", "Which prompts callers see and get.", |section| {
        rules(section)
    });
    let methods = section.texts("methods", "Extension methods let through on a route with rules.");
    let source = PolicySource {
        scopes: values(scopes),
        tools,
        resources,
        prompts,
        methods: values(methods),
        budget,
    };
    match RoutePolicy::compile(source, roles.unwrap_or(&Arc::default())) {
        Ok(policy) => Some(policy),
        Err(mut errors) => {
            if roles.is_none() {
                // Without roles a rule reads as everyone's: only what doesn't depend on them is told.
                errors.retain(|error| error.path.last() == Some(&PathStep::Key("when")));
            }
            for error in errors {
                let (place, key) = policy_place(section, &error);
                // What follows the first line draws the expression: a diagnostic is one line.
                let what = error.message.lines().next().unwrap_or_default();
                section.error_in(&At { value: (), place, key }, what, "");
            }
            None
        }
    }
}

fn rules(section: &Section<'_>) -> Option<Vec<RuleSource>> {
    let rules = section.list("rules", "Deny beats allow; what no rule allows is denied.", |rule| {
        let globs = |key, about: &str| {
            let globs = rule.parsed_list(key, about, |text| match text.len() {
                0 => Err("a pattern is not empty".to_owned()),
                1..=1024 => Ok(text.to_owned()),
                _ => Err("a pattern has at most 1024 bytes".to_owned()),
            });
            values(globs)
        };
        let source = RuleSource {
            allow: globs("allow", "Patterns; * stands for anything."),
            deny: globs("deny", "Patterns; * stands for anything."),
            to: values(rule.texts("to", "Roles; everyone when absent.")),
            scopes: values(rule.parsed_list("scopes", "Scopes needed besides.", needed_scope)),
            when: rule
                .text("when", "CEL over principal, tool, args, route and now.")
                .map(|at| at.value),
        };
        if source.to.is_empty() && rule.has("to") {
            rule.error_at("to", "no role is named", "name one, or remove `to` to mean everyone");
        }
        if source.allow.is_empty() == source.deny.is_empty() && !rule.is_describing() {
            rule.error_here("a rule either allows or denies", "give exactly one of allow and deny");
        }
        source
    });
    rules.filter(|rules| rules.iter().all(|rule| rule.allow.is_empty() != rule.deny.is_empty()))
}

/// Where a policy's error stands: below the route, along the error's path.
fn policy_place(section: &Section<'_>, error: &SourceError) -> (Place, String) {
    let Some((PathStep::Key(first), rest)) = error.path.split_first() else {
        return (section.place, section.key.clone());
    };
    let node = section.find(first);
    let (place, key) = locate(node, &format!("{}.{first}", section.key), rest);
    (node.map_or(section.place, |_| place), key)
}
