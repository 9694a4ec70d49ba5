//! The file's sections become a [`Config`], once: nothing validates again later.

use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tracing_subscriber::EnvFilter;

use super::diagnostic::{Diagnostic, Diagnostics, Place};
use super::identities::{identity, roles};
use super::raw::{At, Report, Section};
use super::routes::routes;
use super::tree::{self, Sources};
use super::values::{host_name, origin, path, public_url, socket_address, values};
use super::*;

/// Bytes: less is no limit that HTTP/1.1 connections keep.
const MIN_HEADERS: usize = 8 * 1024;

/// A configuration and what is doubtful about it.
pub struct Loaded {
    pub config: Config,
    pub warnings: Vec<Diagnostic>,
    /// Whatever it was read from, besides the file itself: certificates, key sets, secrets.
    pub files: Vec<PathBuf>,
}

impl Config {
    /// Reads a file; paths in it are relative to its directory, `${env:…}` is asked of `env`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Diagnostics> {
        let name = path.display().to_string();
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(tree::MAX_SIZE as u64 + 1).read_to_string(&mut text));
        read.map_err(|error| {
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
        let sources = Sources {
            directory,
            env,
            files: &report.files,
        };
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
                files: report.files.into_inner(),
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
            identity(name, section, directory, listen.as_ref())
        })
        .into_iter()
        .flatten()
        .map(Arc::new)
        .collect();
    let roles = roles(root);
    let routes = routes(root, directory, &identities, roles.as_ref(), listen.as_ref());
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
        roles: roles?,
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
        let client_ca = path(
            tls,
            "client_ca",
            "PEM bundle: clients may show a certificate that chains to it.",
            directory,
        );
        Some(ServerTls {
            certificate: certificate?,
            key: key?,
            client_ca,
        })
    });
    let plaintext = section
        .flag(
            "plaintext",
            "Listen off loopback without tls, because TLS ends before the gate; default false.",
        )
        .unwrap_or(false);
    if plaintext && section.has("tls") {
        section.error_at(
            "plaintext",
            "plaintext and tls exclude each other",
            "remove plaintext, or tls where it ends before the gate",
        );
    }
    let trusted_proxies = values(section.parsed_list(
        "trusted_proxies",
        "Networks of the proxies before the gate: only their X-Forwarded-* and Forwarded are believed.",
        str::parse::<Network>,
    ));
    let proxy_protocol = section
        .flag(
            "proxy_protocol",
            "The trusted proxies begin each connection with a PROXY header, version 1 or 2; default false.",
        )
        .unwrap_or(false);
    if proxy_protocol && trusted_proxies.is_empty() {
        section.error_at(
            "proxy_protocol",
            "nobody is trusted to send a PROXY header",
            "name the proxies' networks in listen.trusted_proxies",
        );
    }
    if section.has("trusted_proxies") && !section.has("public_url") {
        section.error_at(
            "trusted_proxies",
            "behind a proxy public_url is required",
            "set listen.public_url to the URL that clients use",
        );
    }
    if !address.ip().is_loopback() {
        if !section.has("tls") && !plaintext {
            section.error_at(
                "address",
                format!("\"{address}\" is off loopback, and there is no tls"),
                "add listen.tls with certificate and key, or listen.plaintext: true where TLS ends before the gate",
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
    let limits = section.section("limits", "Bounds on connections, requests and streams.", |limits| {
        let connections = limits
            .count("connections", "Open connections; default 10000.")
            .unwrap_or(defaults.connections);
        let streams = limits
            .count("streams", "Standing streams over all routes; default 10000.")
            .unwrap_or(defaults.streams);
        let share = |key, about: &str, all: usize| limits.count(key, about).unwrap_or(all.div_ceil(4));
        ListenLimits {
            connections,
            connections_per_address: share(
                "connections_per_address",
                "Open connections of one client address, of IPv6 one /64; default a quarter of connections.",
                connections,
            ),
            requests: limits
                .count(
                    "requests",
                    "Requests at once, from arrival to the head of the answer; beyond it 503; default 10000.",
                )
                .unwrap_or(defaults.requests),
            streams,
            streams_per_principal: share(
                "streams_per_principal",
                "Standing streams of one caller; default a quarter of streams.",
                streams,
            ),
            handshake_timeout: limits
                .duration("handshake_timeout", "For a TLS handshake; default 10s.", false)
                .unwrap_or(defaults.handshake_timeout),
            header_timeout: limits
                .duration(
                    "header_timeout",
                    "For a request's headers, and for a connection without one; default 10s.",
                    false,
                )
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
        }
    });
    let allowed_hosts = section.parsed_list("allowed_hosts", "Host names served besides public_url's.", host_name);
    let allowed_origins = section.parsed_list("allowed_origins", "Browser origins that may call.", origin);
    Some(Listen {
        address,
        public_url: public_url.map(|at| at.value),
        tls: tls.flatten(),
        trusted_proxies,
        proxy_protocol,
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
            .parsed(
                "level",
                "error, warn, info, debug, trace or a tracing filter; default info.",
                |text| match EnvFilter::try_new(text) {
                    Ok(_) if !text.is_empty() => Ok(text.to_owned()),
                    _ => Err("use a filter such as info or portcullis=debug,info".to_owned()),
                },
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
    let folder = section.text(
        "directory",
        "Where the seal key and the database file are kept; default state.",
    );
    let database = database(section);
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
    // A key file is one machine's: what it sealed for others to read, they couldn't.
    if keys.is_empty() && matches!(database, Database::Postgres(_)) {
        section.error_at(
            "database",
            "a PostgreSQL database is there for several gateways, and they have no key in common",
            "set state.seal_keys, the same on all of them; make one with: openssl rand -base64 32",
        );
    }
    State {
        directory: directory.join(folder.map_or_else(|| "state".to_owned(), |at| at.value)),
        database,
        seal_keys,
    }
}

fn database(section: &Section<'_>) -> Database {
    let read = section.unquoted(
        "database",
        "sqlite (default): a file in directory; or a postgres:// URL, which several replicas can share.",
        |text| match text {
            "sqlite" => Ok(false),
            _ if text.starts_with("postgres://") || text.starts_with("postgresql://") => Url::parse(text)
                .map(|_| true)
                .map_err(|_| "use postgres://USER:PASSWORD@HOST/DATABASE".to_owned()),
            _ => Err("use sqlite, or postgres://USER:PASSWORD@HOST/DATABASE".to_owned()),
        },
    );
    match read {
        Some(At { value: true, .. }) => {
            let url = section.secret("database", "");
            url.map_or(Database::Sqlite, |at| Database::Postgres(at.value))
        }
        _ => Database::Sqlite,
    }
}
