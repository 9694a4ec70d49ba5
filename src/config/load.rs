//! The file's sections become a [`Config`], once: nothing validates again later.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::HeaderName;
use jsonwebtoken::Algorithm;
use serde_json::json;
use url::{Host, Url};

use super::diagnostic::{Diagnostic, Diagnostics, Place};
use super::raw::{At, Report, Section};
use super::tree::{self, Node, Sources, Value};
use super::*;
use crate::policy::{Budget, OnExcess, PathStep, PolicySource, RoleLine, RuleSource, SourceError};

/// Bytes: less is no limit that HTTP/1.1 connections keep.
const MIN_HEADERS: usize = 8 * 1024;

/// A configuration and what is doubtful about it.
pub struct Loaded {
    pub config: Config,
    pub warnings: Vec<Diagnostic>,
}

impl Config {
    /// Reads a file; paths in it are relative to its directory, `${env:…}` is asked of `env`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Diagnostics> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| {
            let mut diagnostic = Diagnostic::new(
                Place::default(),
                "",
                format!("cannot read it: {error}"),
                "name the configuration with --config FILE",
            );
            diagnostic.file.clone_from(&name);
            Diagnostics(vec![diagnostic])
        })?;
        let directory = path.parent().unwrap_or(Path::new("."));
        Self::parse(&text, &name, directory, env)
    }

    /// Reads a file's text.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(
        text: &str,
        file: &str,
        directory: &Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Loaded, Diagnostics> {
        let report = Report::default();
        let sources = Sources { directory, env };
        let root = tree::parse(text, &sources, &mut report.errors.borrow_mut());
        let broken = !report.errors.borrow().is_empty() && root.is_none();
        let unread: Vec<Place> = report.errors.borrow().iter().map(|error| error.place).collect();
        let mut resolved = Vec::new();
        if let Some(root) = &root {
            tree::resolved(root, &mut resolved);
        }
        let config = if broken {
            None
        } else {
            let section = Section::root(root.as_ref(), &report);
            let config = read(&section, directory);
            section.finish(None);
            config
        };
        let finish = |mut all: Vec<Diagnostic>| {
            for diagnostic in &mut all {
                file.clone_into(&mut diagnostic.file);
                for value in &resolved {
                    diagnostic.hide(value);
                }
            }
            all.sort_by_key(|diagnostic| diagnostic.place);
            all
        };
        let mut errors = report.errors.into_inner();
        // What could not be interpolated is reported once, not again by whoever wanted the value.
        let mut index = 0;
        errors.retain(|error| {
            index += 1;
            index <= unread.len() || !unread.contains(&error.place)
        });
        let errors = finish(errors);
        match config {
            Some(config) if errors.is_empty() => Ok(Loaded {
                config,
                warnings: finish(report.warnings.into_inner()),
            }),
            _ => Err(Diagnostics(errors)),
        }
    }

    /// The JSON Schema of the file, for editors.
    pub fn schema() -> serde_json::Value {
        let report = Report::default();
        let section = Section::describe(&report);
        read(&section, Path::new("."));
        let mut schema = section.finish(Some("Portcullis configuration"));
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
        schema
    }
}

fn read(root: &Section<'_>, directory: &Path) -> Option<Config> {
    let listen = root.section("listen", "Where clients arrive.", |section| listen(section, directory));
    let admin = root.optional_section("admin", "The port for operators.", admin);
    let telemetry = root.section("telemetry", "Logs and audit.", |section| telemetry(section, directory));
    let state = root.section("state", "What must outlive the process.", |section| {
        state(section, directory)
    });
    let identities: Vec<Arc<Identity>> = root
        .named("identity", "Who may vouch for a caller.", |name, _, section| {
            identity(name, section, directory)
        })
        .into_iter()
        .flatten()
        .map(Arc::new)
        .collect();
    let roles = Arc::new(roles(root));
    let routes = routes(root, directory, &identities, &roles);
    if routes.is_empty() && !root.is_describing() {
        root.error_at(
            "routes",
            "no route is configured",
            "add one: routes: {notes: {path: /notes/mcp, upstream: http://…}}",
        );
    }
    Some(Config {
        listen: listen?,
        admin: admin.flatten(),
        telemetry,
        state,
        identities,
        roles,
        routes: routes.into_iter().flatten().map(Arc::new).collect(),
    })
}

fn listen(section: &Section<'_>, directory: &Path) -> Option<Listen> {
    let address = section
        .parsed(
            "address",
            "IP address and port; default 127.0.0.1:8080.",
            socket_address,
        )
        .map_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)), |at| at.value);
    let public_url = section.parsed(
        "public_url",
        "What clients see: every URL shown to them is built from it. Required off loopback.",
        public_url,
    );
    let tls = section.optional_section("tls", "Terminate TLS here.", |tls| {
        tls.require("certificate", "name a PEM file with the certificate chain");
        tls.require("key", "name a PEM file with the private key");
        let certificate = path(tls, "certificate", "PEM certificate chain.", directory);
        let key = path(tls, "key", "PEM private key.", directory);
        Some(ServerTls {
            certificate: certificate?,
            key: key?,
        })
    });
    if !address.ip().is_loopback() {
        if !section.has("tls") {
            section.error_at(
                "address",
                format!("\"{address}\" is off loopback, and there is no tls"),
                "add listen.tls with certificate and key",
            );
        }
        if !section.has("public_url") {
            section.error_here(
                "public_url is required off loopback",
                "set it to the URL that clients use",
            );
        }
    }
    if let Some(public) = &public_url
        && public.value.starts_with("http://")
        && tls.is_some()
    {
        section.error_in(
            public,
            format!("\"{}\" is http, but TLS ends here", public.value),
            "write https://",
        );
    }
    let defaults = ListenLimits::default();
    let limits = section.section("limits", "Bounds on connections.", |limits| ListenLimits {
        connections: limits
            .count("connections", "Open connections; default 10000.")
            .unwrap_or(defaults.connections),
        handshake_timeout: limits
            .duration("handshake_timeout", "For a TLS handshake; default 10s.", false)
            .unwrap_or(defaults.handshake_timeout),
        header_timeout: limits
            .duration("header_timeout", "For a request's headers; default 10s.", false)
            .unwrap_or(defaults.header_timeout),
        body_timeout: limits
            .duration("body_timeout", "For a request's body; default 30s.", false)
            .unwrap_or(defaults.body_timeout),
        headers: limits
            .size("headers", "Bytes of a request's headers, at least 8KiB; default 64KiB.")
            .inspect(|size| {
                if *size < MIN_HEADERS {
                    limits.error_at("headers", "no browser's headers fit in this", "give at least 8KiB");
                }
            })
            .unwrap_or(defaults.headers),
    });
    let allowed_hosts = section.parsed_list("allowed_hosts", "Host names served besides public_url's.", host_name);
    let allowed_origins = section.parsed_list("allowed_origins", "Browser origins that may call.", origin);
    Some(Listen {
        address,
        public_url: public_url.map(|at| at.value),
        tls: tls.flatten(),
        limits,
        allowed_hosts: values(allowed_hosts),
        allowed_origins: values(allowed_origins),
    })
}

fn admin(section: &Section<'_>) -> Option<Admin> {
    let address = section
        .parsed(
            "address",
            "IP address and port; default 127.0.0.1:9464.",
            socket_address,
        )
        .map_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 9464)), |at| at.value);
    let token = section.secret("token", "Bearer token for /status; needed off loopback.");
    Some(Admin {
        address,
        token: token.map(|at| at.value),
    })
}

fn telemetry(section: &Section<'_>, directory: &Path) -> Telemetry {
    let log = section.section("log", "The process's own log, on stderr.", |log| Log {
        format: log
            .choice(
                "format",
                "Default text.",
                &[("text", LogFormat::Text), ("json", LogFormat::Json)],
            )
            .unwrap_or(LogFormat::Text),
        level: log
            .text(
                "level",
                "error, warn, info, debug, trace or a tracing filter; default info.",
            )
            .map_or_else(|| "info".to_owned(), |at| at.value),
    });
    let audit = section.section("audit", "One JSON line a decision.", |audit| Audit {
        sink: match audit.text("file", "A file, or - for stdout; default -.") {
            Some(file) if file.value != "-" => AuditSink::File(directory.join(file.value)),
            _ => AuditSink::Stdout,
        },
        on_failure: audit
            .choice(
                "on_failure",
                "What happens to requests when the sink stalls; default refuse.",
                &[("refuse", OnAuditFailure::Refuse), ("drop", OnAuditFailure::Drop)],
            )
            .unwrap_or(OnAuditFailure::Refuse),
    });
    Telemetry { log, audit }
}

fn state(section: &Section<'_>, directory: &Path) -> State {
    let folder = section.text("directory", "Where the seal key is kept; default state.");
    let keys = section.secrets("seal_keys", "Base64 of 32 bytes each: the first seals, all open.");
    let seal_keys = keys
        .iter()
        .filter_map(|at| {
            let bytes = STANDARD.decode(at.value.expose()).ok().map(zeroize::Zeroizing::new);
            let key: Option<[u8; 32]> = bytes.as_deref().and_then(|bytes| bytes.as_slice().try_into().ok());
            if key.is_none() {
                section.error_in(
                    at,
                    "the key is not base64 of 32 bytes",
                    "make one with: openssl rand -base64 32",
                );
            }
            Some(SealKey(zeroize::Zeroizing::new(key?)))
        })
        .collect();
    State {
        directory: directory.join(folder.map_or_else(|| "state".to_owned(), |at| at.value)),
        seal_keys,
    }
}

fn identity(name: &str, section: &Section<'_>, directory: &Path) -> Option<Identity> {
    section.require(
        "issuer",
        "set it to the issuer's `iss`, such as https://login.example.com/realms/corp",
    );
    let issuer = section.parsed("issuer", "`iss`, compared byte for byte.", |text| {
        oauth_url(text).map(|_| text.to_owned())
    });
    let jwks_uri = section.parsed(
        "jwks_uri",
        "The issuer's key set, when it publishes no metadata.",
        oauth_url,
    );
    let jwks_file = path(section, "jwks_file", "A key set in a file.", directory);
    let shared_secret = section.secret(
        "shared_secret",
        "HS256 secret of at least 32 bytes, shared with the issuer.",
    );
    if let Some(secret) = &shared_secret
        && secret.value.expose().len() < 32
    {
        section.error_in(
            secret,
            "the secret is shorter than 32 bytes",
            "make one with: openssl rand -base64 32",
        );
    }
    let sources = ["jwks_uri", "jwks_file", "shared_secret"];
    let given: Vec<&str> = sources.into_iter().filter(|key| section.has(key)).collect();
    if given.len() > 1 {
        section.error_at(
            given[1],
            format!("{} are alternatives", given.join(" and ")),
            "keep one of them",
        );
    }
    let algorithms = section.parsed_list(
        "algorithms",
        "Accepted signatures; default RS256 PS256 ES256 ES384 EdDSA, or HS256 with shared_secret.",
        algorithm,
    );
    for at in &algorithms {
        if (at.value == Algorithm::HS256) != section.has("shared_secret") {
            section.error_in(
                at,
                format!("\"{:?}\" does not go with these keys", at.value),
                "HS256 goes with shared_secret, and only with it",
            );
        }
    }
    let audiences = section.texts("audiences", "Accepted in `aud` besides the route's resource URL.");
    let defaults = ClaimPaths::default();
    let claims = section.section(
        "claims",
        "Where attributes stand: dotted paths, the first that exists wins.",
        |claims| {
            let paths = |key, about: &str, default: Vec<String>| {
                let given = values(claims.texts(key, about));
                if given.is_empty() { default } else { given }
            };
            ClaimPaths {
                subject: paths("subject", "Default sub.", defaults.subject),
                scopes: paths("scopes", "Default scope, scp.", defaults.scopes),
                roles: paths("roles", "Default roles.", defaults.roles),
                groups: paths("groups", "Default groups.", defaults.groups),
                client: paths("client", "Default client_id, azp.", defaults.client),
            }
        },
    );
    let ca = path(
        section,
        "ca",
        "PEM bundle trusted for the issuer instead of the system's roots.",
        directory,
    );
    let implies = implies(section);
    let scope_upgrade_endpoint = section.parsed(
        "scope_upgrade_endpoint",
        "Where users get more scopes; shown in refusals.",
        |text| oauth_url(text).map(|_| text.to_owned()),
    );
    let keys = match (jwks_uri, jwks_file, shared_secret) {
        (Some(uri), _, _) => KeySource::JwksUri(uri.value),
        (_, Some(file), _) => KeySource::JwksFile(file),
        (_, _, Some(secret)) => KeySource::SharedSecret(secret.value),
        _ => KeySource::Discovery,
    };
    let mut algorithms = values(algorithms);
    if algorithms.is_empty() {
        algorithms = match keys {
            KeySource::SharedSecret(_) => vec![Algorithm::HS256],
            _ => vec![
                Algorithm::RS256,
                Algorithm::PS256,
                Algorithm::ES256,
                Algorithm::ES384,
                Algorithm::EdDSA,
            ],
        };
    }
    Some(Identity {
        name: name.into(),
        issuer: issuer?.value,
        keys,
        algorithms,
        audiences: values(audiences),
        claims,
        ca,
        implies,
        scope_upgrade_endpoint: scope_upgrade_endpoint.map(|at| at.value),
    })
}

/// `implies: {"mcp:admin": ["mcp:read"]}`: keys that nobody can know beforehand.
fn implies(section: &Section<'_>) -> BTreeMap<String, Vec<String>> {
    let schema = json!({
        "type": "object",
        "description": "Scope hierarchy: a scope and the scopes it implies.",
        "additionalProperties": {"type": "array", "items": {"type": "string"}},
    });
    let Some((node, _)) = section.node("implies", schema) else {
        return BTreeMap::new();
    };
    let Value::Map(entries) = &node.value else {
        section.error_at(
            "implies",
            "this must be a map of scopes",
            "write {\"mcp:admin\": [\"mcp:read\"]}",
        );
        return BTreeMap::new();
    };
    entries
        .iter()
        .map(|(key, node)| {
            let implied = texts_of(node).unwrap_or_else(|| {
                section.error_at(
                    "implies",
                    format!("\"{}\" implies no list", key.name),
                    "write a list of scopes",
                );
                Vec::new()
            });
            (key.name.clone(), implied)
        })
        .collect()
}

fn roles(root: &Section<'_>) -> crate::policy::Roles {
    let schema = json!({
        "type": "object",
        "description": "Named conditions: a caller has a role when any line matches.",
        "additionalProperties": {"type": "array", "items": {"anyOf": [
            {"type": "string", "pattern": "^(scope|role|group|subject|client|claim|identity):"},
            {"type": "object", "properties": {"all": {"type": "array"}}, "additionalProperties": false},
        ]}},
    });
    let Some((node, path)) = root.node("roles", schema) else {
        return crate::policy::Roles::default();
    };
    let Value::Map(entries) = &node.value else {
        root.error_at(
            "roles",
            "this must be a map of roles",
            "write reader: [\"group:staff\"]",
        );
        return crate::policy::Roles::default();
    };
    let mut definitions = Vec::new();
    for (key, node) in entries {
        match &node.value {
            Value::List(items) => {
                let lines = items
                    .iter()
                    .filter_map(|item| role_line(root, item, &format!("{path}.{}", key.name)));
                definitions.push((key.name.clone(), lines.collect()));
            }
            _ => root.error_in(
                &at(node, &format!("{path}.{}", key.name)),
                "this must be a list of lines",
                "write [\"group:staff\"]",
            ),
        }
    }
    crate::policy::Roles::compile(definitions).unwrap_or_else(|errors| {
        for (role, error) in errors {
            let found = entries.iter().find(|(key, _)| key.name == role).map(|(_, node)| node);
            let (place, key) = locate(found, &format!("{path}.{role}"), &error.path);
            root.error_in(&At { value: (), place, key }, error.message, "");
        }
        crate::policy::Roles::default()
    })
}

fn role_line(root: &Section<'_>, node: &Node, path: &str) -> Option<RoleLine> {
    match &node.value {
        Value::Scalar(scalar) => Some(RoleLine::Text(scalar.text.clone())),
        Value::Map(entries) => match &entries[..] {
            [
                (
                    key,
                    Node {
                        value: Value::List(items),
                        ..
                    },
                ),
            ] if key.name == "all" => Some(RoleLine::All(
                items.iter().filter_map(|item| role_line(root, item, path)).collect(),
            )),
            _ => {
                root.error_in(
                    &at(node, path),
                    "a role line is a text or {all: [..]}",
                    "write {all: [\"group:staff\", …]}",
                );
                None
            }
        },
        _ => {
            root.error_in(
                &at(node, path),
                "a role line is a text or {all: [..]}",
                "write \"group:staff\"",
            );
            None
        }
    }
}

fn routes(
    root: &Section<'_>,
    directory: &Path,
    identities: &[Arc<Identity>],
    roles: &Arc<crate::policy::Roles>,
) -> Vec<Option<Route>> {
    let mut paths: Vec<(String, String)> = Vec::new();
    root.named("routes", "MCP endpoints.", |name, _, section| {
        let route = route(name, section, directory, identities, roles);
        if let Some(route) = &route {
            let base = route.path.trim_end_matches('/');
            for (other, theirs) in &paths {
                if base == theirs || base == format!("{theirs}/messages") || *theirs == format!("{base}/messages") {
                    section.error_at(
                        "path",
                        format!("\"{}\" is taken by route {other}", route.path),
                        "give each route its own path",
                    );
                }
            }
            paths.push((name.to_owned(), base.to_owned()));
        }
        route
    })
}

fn route(
    name: &str,
    section: &Section<'_>,
    directory: &Path,
    identities: &[Arc<Identity>],
    roles: &Arc<crate::policy::Roles>,
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
        |text| Ok(upstream_defaults(vec![upstream_url(text)?])),
        |upstream| upstream_section(upstream, directory),
    );
    let credential = section
        .text_or(
            "credential",
            "What the upstream gets instead of the caller's token; default none.",
            |text| {
                if text == "none" {
                    Ok(Credential::None)
                } else {
                    Err("use none, or a map: {bearer: …}, {header: …}, {basic: …} or {exchange: …}".to_owned())
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
    let body_limit = section
        .section("limits", "Bounds on requests.", |limits| {
            limits.size("body", "Bytes of a request's body; default 4MiB.")
        })
        .unwrap_or(4 * 1024 * 1024);
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
    if anonymous && matches!(credential, Some(Credential::Exchange(_))) {
        section.error_at(
            "credential",
            "there is no token to exchange for nobody",
            "drop anonymous, or use another credential",
        );
    }
    Some(Route {
        name: name.into(),
        path: path?.value,
        identities: chosen,
        anonymous,
        upstream: upstream?,
        credential: credential?,
        policy: policy?,
        body_limit,
        denials,
        bearerless_messages,
    })
}

fn upstream_defaults(urls: Vec<Url>) -> Upstream {
    Upstream {
        urls,
        transport: Transport::Auto,
        balance: Balance::RoundRobin,
        health: None,
        ca: None,
        client_certificate: None,
        client_key: None,
        connect_timeout: Duration::from_secs(5),
        response_timeout: None,
        idle_timeout: Duration::from_secs(15 * 60),
        forward_headers: Vec::new(),
    }
}

fn upstream_section(section: &Section<'_>, directory: &Path) -> Option<Upstream> {
    section.require("urls", "list the server's URLs");
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
        ],
    );
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
        transport: transport.unwrap_or(defaults.transport),
        balance: balance.unwrap_or(defaults.balance),
        health: health.flatten(),
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
    (!upstream.urls.is_empty()).then_some(upstream)
}

fn credential_section(section: &Section<'_>, directory: &Path) -> Option<Credential> {
    let bearer = section
        .secret("bearer", "Sent as Authorization: Bearer.")
        .map(|at| Credential::Bearer(at.value));
    let header = section.optional_section("header", "One header.", |header| {
        header.require("name", "name the header");
        header.require("value", "give its value");
        let name = header.parsed("name", "The header's name.", |text| {
            text.parse::<HeaderName>().map_err(|_| "use a header name".to_owned())
        });
        let value = header.secret("value", "The header's value.");
        Some(Credential::Header {
            name: name?.value,
            value: value?.value,
        })
    });
    let basic = section.optional_section("basic", "Sent as Authorization: Basic.", |basic| {
        basic.require("username", "give the user name");
        basic.require("password", "give the password");
        let username = basic.parsed("username", "Without a colon.", |text| {
            if text.contains(':') {
                Err("a user name has no colon (RFC 7617)".to_owned())
            } else {
                Ok(text.to_owned())
            }
        });
        let password = basic.secret("password", "The password.");
        Some(Credential::Basic {
            username: username?.value,
            password: password?.value,
        })
    });
    let exchange = section.optional_section(
        "exchange",
        "RFC 8693: the caller's token for one of the upstream's.",
        |exchange| {
            for (key, remedy) in [
                ("token_endpoint", "set it to the issuer's token endpoint"),
                ("client_id", "set it to the gate's client id"),
                ("client_secret", "set it to the gate's client secret"),
            ] {
                exchange.require(key, remedy);
            }
            let token_endpoint = exchange.parsed("token_endpoint", "The issuer's token endpoint.", oauth_url);
            let client_id = exchange.text("client_id", "The gate's client id.");
            let client_secret = exchange.secret("client_secret", "The gate's client secret.");
            let client_auth = exchange.choice(
                "client_auth",
                "Default basic.",
                &[("basic", ClientAuth::Basic), ("post", ClientAuth::Post)],
            );
            let audience = exchange.text("audience", "`audience` of the request.");
            let resource = exchange.text("resource", "`resource` of the request.");
            let scopes = exchange.texts("scopes", "`scope` of the request; none is sent by default.");
            let ca = path(
                exchange,
                "ca",
                "PEM bundle trusted instead of the system's roots.",
                directory,
            );
            Some(Credential::Exchange(Exchange {
                token_endpoint: token_endpoint?.value,
                client_id: client_id?.value,
                client_secret: client_secret?.value,
                client_auth: client_auth.unwrap_or(ClientAuth::Basic),
                audience: audience.map(|at| at.value),
                resource: resource.map(|at| at.value),
                scopes: values(scopes),
                ca,
            }))
        },
    );
    let given = ["bearer", "header", "basic", "exchange"]
        .into_iter()
        .filter(|key| section.has(key))
        .count();
    if given != 1 {
        section.error_here(
            format!("{given} credentials are given"),
            "exactly one leaves: bearer, header, basic or exchange",
        );
    }
    bearer.or(header.flatten()).or(basic.flatten()).or(exchange.flatten())
}

fn policy(section: &Section<'_>, roles: &Arc<crate::policy::Roles>) -> Option<RoutePolicy> {
    let scopes = section.parsed_list("scopes", "Scopes needed for anything on the route.", scope);
    let mut places = Vec::new();
    let (tools, budget) = section.section("tools", "Which tools callers see and call.", |tools| {
        let rules = rules(tools, "tools", &mut places);
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
        |section| rules(section, "resources", &mut places),
    );
    let prompts = section.section("prompts", "Which prompts callers see and get.", |section| {
        rules(section, "prompts", &mut places)
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
    match RoutePolicy::compile(source, roles) {
        Ok(policy) => Some(policy),
        Err(errors) => {
            for error in errors {
                let (place, key) = rule_place(section, &places, &error);
                section.error_in(&At { value: (), place, key }, error.message, "");
            }
            None
        }
    }
}

/// Where each rule of a list stands.
type RulePlaces = Vec<(&'static str, Vec<Place>)>;

fn rules(section: &Section<'_>, list: &'static str, places: &mut RulePlaces) -> Option<Vec<RuleSource>> {
    let mut mine = Vec::new();
    let rules = section.list("rules", "Deny beats allow; what no rule allows is denied.", |rule| {
        mine.push(rule.place);
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
            scopes: values(rule.parsed_list("scopes", "Scopes needed besides.", scope)),
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
    places.push((list, mine));
    rules.filter(|rules| rules.iter().all(|rule| rule.allow.is_empty() != rule.deny.is_empty()))
}

fn rule_place(section: &Section<'_>, places: &RulePlaces, error: &SourceError) -> (Place, String) {
    let mut key = section.key.clone();
    for step in &error.path {
        match step {
            PathStep::Key(name) => key.push_str(&format!(".{name}")),
            PathStep::Index(index) => key.push_str(&format!("[{index}]")),
        }
    }
    let place = match &error.path[..] {
        [PathStep::Key(list), _, PathStep::Index(index), ..] => places
            .iter()
            .find(|(name, _)| name == list)
            .and_then(|(_, rules)| rules.get(*index).copied()),
        _ => None,
    };
    (place.unwrap_or(section.place), key)
}

/// Follows a relative path down a tree.
fn locate(mut node: Option<&Node>, key: &str, path: &[PathStep]) -> (Place, String) {
    let mut key = key.to_owned();
    let mut place = node.map(|node| node.place).unwrap_or_default();
    for step in path {
        node = node.and_then(|node| match (step, &node.value) {
            (PathStep::Key(name), Value::Map(entries)) => {
                entries.iter().find(|(key, _)| key.name == *name).map(|(_, node)| node)
            }
            (PathStep::Index(index), Value::List(items)) => items.get(*index),
            _ => None,
        });
        match step {
            PathStep::Key(name) => key.push_str(&format!(".{name}")),
            PathStep::Index(index) => key.push_str(&format!("[{index}]")),
        }
        place = node.map_or(place, |node| node.place);
    }
    (place, key)
}

fn at(node: &Node, key: &str) -> At<()> {
    At {
        value: (),
        place: node.place,
        key: key.to_owned(),
    }
}

fn values<T>(list: Vec<At<T>>) -> Vec<T> {
    list.into_iter().map(|at| at.value).collect()
}

fn texts_of(node: &Node) -> Option<Vec<String>> {
    let Value::List(items) = &node.value else { return None };
    items
        .iter()
        .map(|item| match &item.value {
            Value::Scalar(scalar) => Some(scalar.text.clone()),
            _ => None,
        })
        .collect()
}

fn path(section: &Section<'_>, key: &'static str, about: &str, directory: &Path) -> Option<PathBuf> {
    section
        .parsed(key, about, |text| {
            if text.is_empty() {
                Err("name a file".to_owned())
            } else {
                Ok(directory.join(text))
            }
        })
        .map(|at| at.value)
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "use an IP address and a port, such as 127.0.0.1:8080 or [::]:8443".to_owned())
}

fn public_url(text: &str) -> Result<String, String> {
    let remedy = || "use scheme and authority only, such as https://mcp.example.com".to_owned();
    let url = Url::parse(text).map_err(|_| remedy())?;
    let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    if !bare || !matches!(url.scheme(), "http" | "https") {
        return Err(remedy());
    }
    if url.scheme() == "http" && !is_loopback(&url) {
        return Err("clients must come over https off loopback".to_owned());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// r26: tokens and secrets go over TLS, save on loopback; link-local addresses are never asked.
fn oauth_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|_| "use an absolute https URL".to_owned())?;
    let link_local = match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_link_local(),
        Some(Host::Ipv6(ip)) => ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_link_local()),
        Some(Host::Domain(_)) => false,
        None => return Err("use an absolute https URL".to_owned()),
    };
    match url.scheme() {
        _ if link_local => Err("link-local addresses are never asked".to_owned()),
        _ if !url.username().is_empty() || url.password().is_some() => Err("a URL holds no credentials".to_owned()),
        _ if url.fragment().is_some() => Err("leave the fragment out".to_owned()),
        "https" => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        _ => Err("use https; http is accepted on loopback only".to_owned()),
    }
}

fn upstream_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|_| "use an absolute URL such as http://127.0.0.1:8001/mcp".to_owned())?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err("use an http or https URL".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL holds no credentials; use credential: {basic: …}".to_owned());
    }
    if url.fragment().is_some() {
        return Err("leave the fragment out".to_owned());
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => IpAddr::V4(ip).is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

fn route_path(text: &str) -> Result<String, String> {
    let good = text.starts_with('/')
        && (text == "/" || !text.ends_with('/'))
        && text.len() <= 256
        && !text.contains("//")
        && text.split('/').all(|part| part != "." && part != "..")
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte));
    if !good {
        return Err("use a plain path such as /notes/mcp, without a slash at its end".to_owned());
    }
    if text == "/.well-known" || text.starts_with("/.well-known/") {
        return Err("/.well-known/ is where clients look for metadata; use another path".to_owned());
    }
    Ok(text.to_owned())
}

fn host_name(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    let host = Host::parse(&lower).map_err(|_| "use a host name without a port".to_owned())?;
    if host.to_string() == lower {
        Ok(lower)
    } else {
        Err("use a host name without a port".to_owned())
    }
}

fn origin(text: &str) -> Result<String, String> {
    let remedy = || "use scheme://host[:port], such as https://app.example.com".to_owned();
    let url = Url::parse(text).map_err(|_| remedy())?;
    let origin = url.origin().ascii_serialization();
    if origin == text.to_ascii_lowercase() {
        Ok(origin)
    } else {
        Err(remedy())
    }
}

/// RFC 6749 section 3.3.
fn scope(text: &str) -> Result<String, String> {
    let good = !text.is_empty()
        && text
            .bytes()
            .all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e));
    if good {
        Ok(text.to_owned())
    } else {
        Err("a scope has no spaces, quotes or backslashes".to_owned())
    }
}

fn algorithm(text: &str) -> Result<Algorithm, String> {
    match text {
        "RS256" => Ok(Algorithm::RS256),
        "RS384" => Ok(Algorithm::RS384),
        "RS512" => Ok(Algorithm::RS512),
        "PS256" => Ok(Algorithm::PS256),
        "PS384" => Ok(Algorithm::PS384),
        "PS512" => Ok(Algorithm::PS512),
        "ES256" => Ok(Algorithm::ES256),
        "ES384" => Ok(Algorithm::ES384),
        "EdDSA" => Ok(Algorithm::EdDSA),
        "HS256" => Ok(Algorithm::HS256),
        _ => Err(
            "use RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA, or HS256 with shared_secret".to_owned(),
        ),
    }
}

/// What may be forwarded besides MCP's own headers.
fn forwarded(text: &str) -> Result<HeaderName, String> {
    let name: HeaderName = text.parse().map_err(|_| "use a header name".to_owned())?;
    let never = [
        "authorization",
        "cookie",
        "proxy-authorization",
        "host",
        "connection",
        "content-length",
        "transfer-encoding",
        "te",
        "trailer",
        "upgrade",
        "keep-alive",
        "proxy-connection",
        "expect",
        "mcp-session-id",
    ];
    if never.contains(&name.as_str()) {
        return Err("credentials, hop-by-hop headers and what the gate sets itself are never forwarded".to_owned());
    }
    Ok(name)
}
