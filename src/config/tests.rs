//! The files that are shipped, and files that are wrong.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use proptest::prelude::*;
use serde_json::Value as Json;

use super::*;

const REFERENCE: &str = include_str!("../../config/portcullis.yaml");
const QUICKSTART: &str = include_str!("../../config/quickstart.yaml");

/// A file that is right, for tests to add to: nothing of it may be given twice.
const ROUTES: &str = "routes: {r: {path: /mcp, anonymous: true, upstream: 'http://127.0.0.1:1/mcp'}}\n";

fn env(name: &str) -> Option<String> {
    let value = match name {
        "ADMIN_TOKEN" => "an-admin-token",
        "TICKET_SECRET" => "0123456789abcdef0123456789abcdef",
        "WIKI_TOKEN" => "a-wiki-token",
        "SEARCH_KEY" => "a-search-key",
        "SHORT" => "hunter2hunter2",
        "PLAIN_URL" => "http://login.example.com/token",
        "LEAK" => "sk-live-4242",
        _ => return None,
    };
    Some(value.to_owned())
}

fn parse(text: &str) -> Result<Loaded, Diagnostics> {
    Config::parse(text, "p.yaml", std::path::Path::new("/nowhere"), &env)
}

/// The errors of a bad file, a line each.
fn errors(text: &str) -> String {
    match parse(text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(errors) => errors.to_string(),
    }
}

fn secrets() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let secrets = directory.path().join("secrets");
    std::fs::create_dir(&secrets).expect("a directory");
    let signing = rcgen::KeyPair::generate().expect("a key").serialize_pem();
    for (name, text) in [
        ("seal", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n"),
        ("gate", "a-client-secret\n"),
        ("status", "a-password\n"),
        ("introspection", "a-client-secret\n"),
        ("signing", signing.as_str()),
        (
            "keys",
            "ci:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08:reader:\n",
        ),
    ] {
        std::fs::write(secrets.join(name), text).expect("a file");
    }
    program(&directory.path().join("servers/time"));
    directory
}

/// Something that could be run.
fn program(path: &Path) {
    std::fs::create_dir_all(path.parent().expect("it is in a directory")).expect("a directory");
    std::fs::write(path, "#!/bin/sh\n").expect("a file");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("its owner may");
}

fn keys_of_file(node: &tree::Node, keys: &mut BTreeSet<String>) {
    match &node.value {
        tree::Value::Map(entries) => {
            for (key, node) in entries {
                keys.insert(key.name.clone());
                keys_of_file(node, keys);
            }
        }
        tree::Value::List(items) => items.iter().for_each(|item| keys_of_file(item, keys)),
        tree::Value::Scalar(_) | tree::Value::Null => {}
    }
}

fn keys_of_schema(schema: &Json, keys: &mut BTreeSet<String>) {
    match schema {
        Json::Object(members) => {
            for (name, member) in members {
                if let ("properties", Json::Object(properties)) = (&**name, member) {
                    keys.extend(properties.keys().cloned());
                    properties.values().for_each(|property| keys_of_schema(property, keys));
                } else {
                    keys_of_schema(member, keys);
                }
            }
        }
        Json::Array(items) => items.iter().for_each(|item| keys_of_schema(item, keys)),
        _ => {}
    }
}

#[test]
fn the_shipped_files_load_without_a_warning() {
    let directory = secrets();
    for text in [REFERENCE, QUICKSTART] {
        let loaded = Config::parse(text, "p.yaml", directory.path(), &env);
        let loaded = loaded.unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(loaded.warnings, []);
    }
}

#[test]
fn the_reference_holds_every_key_and_no_other() {
    let directory = secrets();
    let files = std::cell::RefCell::default();
    let sources = tree::Sources {
        files: &files,
        directory: directory.path(),
        env: &env,
    };
    let root = tree::parse(REFERENCE, &sources, &mut Vec::new()).expect("it parses");
    let (mut given, mut known) = (BTreeSet::new(), BTreeSet::new());
    keys_of_file(&root, &mut given);
    keys_of_schema(&Config::schema(), &mut known);
    let missing: Vec<_> = known.difference(&given).collect();
    assert!(missing.is_empty(), "not in the reference: {missing:?}");
    // Names that the file's author chooses.
    let chosen: BTreeSet<String> = [
        "corp",
        "offline",
        "tickets",
        "reader",
        "editor",
        "notes",
        "wiki",
        "search",
        "status",
        "mcp:admin",
        "zitadel",
        "robots",
        "mesh",
        "agent",
        ":",
        "org",
        "email_verified",
        "time",
        "PATH",
        "TIME_TOKEN",
        "tenant",
        "billing",
        "crm",
        "files",
        "feed",
        "tasks",
        "calendar",
        "access_type",
    ]
    .map(str::to_owned)
    .into();
    let unknown: Vec<_> = given.difference(&known).filter(|key| !chosen.contains(*key)).collect();
    assert!(unknown.is_empty(), "not in the schema: {unknown:?}");
}

#[test]
fn errors_read_place_key_what_and_remedy() {
    for (text, expected) in [
        (
            "listen: {adress: 127.0.0.1:1}\nroutes: {r: {path: /mcp, anonymous: true, upstream: 'http://h/'}}",
            "p.yaml:1:10: listen.adress: unknown key \"adress\"; did you mean \"address\"?",
        ),
        (
            "routes: {r: {path: mcp, anonymous: true, upstream: 'http://h/'}}",
            "p.yaml:1:20: routes.r.path: \"mcp\" does not fit; use a plain path such as /notes/mcp, without a slash at its end",
        ),
        (
            "routes:\n  r:\n    path: /mcp\n    path: /two\n    anonymous: true\n    upstream: http://h/",
            "p.yaml:4:5: routes.r: the key \"path\" stands here twice; keep one of them",
        ),
        (
            "routes: {r: {path: /mcp, anonymous: true, upstream: 'http://h/', credential: {bearer: '${env:NOT_SET}'}}}",
            "p.yaml:1:87: routes.r.credential.bearer: the environment variable NOT_SET is not set; set NOT_SET, or use ${file:PATH}",
        ),
        (
            "",
            "p.yaml: routes: no route is configured; add one: routes: {notes: {path: /notes/mcp, upstream: http://…}}",
        ),
    ] {
        assert_eq!(errors(text), expected);
    }
}

#[test]
fn all_errors_come_at_once_in_the_order_of_the_file() {
    let text = "listen: {address: nowhere}\nstate: {directory: [a]}\nidentity: {a: {issuer: 'ftp://x'}}\n\
                routes:\n  r:\n    path: /mcp/\n    upstream: nonsense\n    denials: loud\n    tols: {}\n";
    let errors = errors(text);
    let keys: Vec<&str> = errors
        .lines()
        .map(|line| line.split(": ").nth(1).expect("a key"))
        .collect();
    let expected = [
        "listen.address",
        "state.directory",
        "identity.a.issuer",
        "routes.r.path",
        "routes.r.upstream",
        "routes.r.denials",
        "routes.r.tols",
    ];
    // The route's missing identity is told at the route itself.
    let keys: Vec<&str> = keys.into_iter().filter(|key| *key != "routes.r").collect();
    assert_eq!(keys, expected, "{errors}");
}

/// A bad file, the key that is named and a part of what is said.
type Case = (&'static str, &'static str, &'static str);

fn each(cases: &[Case], whole: impl Fn(&str) -> String) {
    for (text, key, fragment) in cases {
        let text = whole(text);
        let errors = errors(&text);
        let named = errors
            .lines()
            .any(|line| line.contains(&format!(": {key}: ")) && line.contains(fragment));
        assert!(named, "wanted {key}: {fragment}\ngot {errors}\nfor {text}");
    }
}

#[test]
fn bad_sections_are_refused() {
    let cases: &[Case] = &[
        (
            "listen: {address: '0.0.0.0:1', public_url: 'https://h'}",
            "listen.address",
            "there is no tls",
        ),
        (
            "listen: {address: '0.0.0.0:1', tls: {certificate: c, key: k}}",
            "listen",
            "public_url is required",
        ),
        (
            "listen: {public_url: 'http://mcp.example.com'}",
            "listen.public_url",
            "https off loopback",
        ),
        (
            "listen: {public_url: 'https://h/path'}",
            "listen.public_url",
            "scheme and authority only",
        ),
        (
            "listen: {public_url: 'http://localhost', tls: {certificate: c, key: k}}",
            "listen.public_url",
            "TLS ends here",
        ),
        ("listen: {tls: {certificate: c}}", "listen.tls.key", "missing"),
        ("listen: {tls: }", "listen.tls", "no value"),
        (
            "listen: {limits: {connections: 0}}",
            "listen.limits.connections",
            "whole number",
        ),
        (
            "listen: {limits: {connections: 18446744073709551615}}",
            "listen.limits.connections",
            "whole number",
        ),
        (
            "listen: {limits: {body_timeout: 10}}",
            "listen.limits.body_timeout",
            "10s",
        ),
        (
            "listen: {limits: {headers: 1KiB}}",
            "listen.limits.headers",
            "at least 8KiB",
        ),
        (
            "listen: {limits: {connections_per_address: 0}}",
            "listen.limits.connections_per_address",
            "whole number",
        ),
        (
            "listen: {limits: {requests: 0}}",
            "listen.limits.requests",
            "whole number",
        ),
        (
            "listen: {limits: {streams: -1}}",
            "listen.limits.streams",
            "whole number",
        ),
        (
            "listen: {limits: {streams_per_principal: 0}}",
            "listen.limits.streams_per_principal",
            "whole number",
        ),
        ("listen: {limits: {headers: 2GiB}}", "listen.limits.headers", "64KiB"),
        (
            "listen: {allowed_hosts: ['h:80']}",
            "listen.allowed_hosts[0]",
            "without a port",
        ),
        (
            "listen: {allowed_origins: ['*']}",
            "listen.allowed_origins[0]",
            "scheme://host",
        ),
        ("listen: text", "listen", "must be a map"),
        ("admin: {token: changeme}", "admin.token", "well-known default"),
        ("admin: {token: ''}", "admin.token", "empty"),
        ("telemetry: {log: {format: xml}}", "telemetry.log.format", "text, json"),
        (
            "telemetry: {audit: {on_failure: ignore}}",
            "telemetry.audit.on_failure",
            "refuse, drop",
        ),
        ("state: {seal_keys: [c2hvcnQ=]}", "state.seal_keys[0]", "32 bytes"),
        (
            "state: {database: 'postgres://h/d'}",
            "state.database",
            "set state.seal_keys",
        ),
        ("identity: {a: {}}", "identity.a.issuer", "missing"),
        ("identity: {a: {issuer: }}", "identity.a.issuer", "no value"),
        (
            "identity: {a: {issuer: 'https://h', introspection: {client_id: i}}}",
            "identity.a.introspection.client_secret",
            "missing",
        ),
        (
            "identity: {a: {issuer: 'https://h', introspection: {client_id: i, client_secret: s, endpoint: 'http://h/'}}}",
            "identity.a.introspection.endpoint",
            "use https",
        ),
        (
            "identity: {a: {issuer: 'https://h', introspection: {client_id: i, client_secret: s, cache: 6m}}}",
            "identity.a.introspection.cache",
            "up to 5m",
        ),
        (
            "identity: {a: {issuer: 'https://h', introspection: {client_id: i, client_secret: s, cache: 1500ms}}}",
            "identity.a.introspection.cache",
            "whole number of seconds",
        ),
        (
            "identity: {a: {issuer: 'https://h', jwks_uri: 'https://h/k', introspection: {client_id: i, client_secret: s}}}",
            "identity.a.introspection",
            "alternatives",
        ),
        (
            "identity: {a: {issuer: 'https://h', algorithms: [RS256], introspection: {client_id: i, client_secret: s}}}",
            "identity.a.algorithms",
            "no signature is checked",
        ),
        (
            "identity: {a: {api_keys: 'ci:00'}}",
            "identity.a.api_keys",
            "does not fit; name the file",
        ),
        (
            "identity: {a: {api_keys: '${env:SHORT}'}}",
            "identity.a.api_keys",
            "name the file",
        ),
        (
            "identity: {a: {api_keys: '${file:none}'}}",
            "identity.a.api_keys",
            "cannot read none",
        ),
        (
            "identity: {a: {issuer: 'http://login.example.com'}}",
            "identity.a.issuer",
            "use https",
        ),
        (
            "identity: {a: {issuer: 'https://169.254.169.254'}}",
            "identity.a.issuer",
            "link-local",
        ),
        (
            "identity: {a: {issuer: 'https://h', algorithms: [none]}}",
            "identity.a.algorithms[0]",
            "RS256",
        ),
        (
            "identity: {a: {issuer: 'https://h', algorithms: [HS256]}}",
            "identity.a.algorithms[0]",
            "shared_secret",
        ),
        (
            "identity: {a: {issuer: 'https://h', jwks_file: f, jwks_uri: 'https://h/k'}}",
            "identity.a.jwks_file",
            "alternatives",
        ),
        (
            "identity: {a: {issuer: 'https://h', shared_secret: '${env:SHORT}'}}",
            "identity.a.shared_secret",
            "shorter than 32",
        ),
        (
            "identity: {a: {issuer: 'https://h', shared_secret: demo-secret-key-change-in-production}}",
            "identity.a.shared_secret",
            "well-known",
        ),
        (
            "identity: {a: {issuer: 'https://h', implies: {x: y}}}",
            "identity.a.implies",
            "no list",
        ),
        ("roles: {x: []}", "roles.x", "nobody's"),
        ("roles: {x: [staff]}", "roles.x[0]", "kind:value"),
        (
            "roles: {x: ['group:a', {all: ['colour:blue']}]}",
            "roles.x[1].all[0]",
            "colour",
        ),
        ("roles: {x: [{any: []}]}", "roles.x[0]", "{all: [..]}"),
        ("roles: {x: ['claim:department']}", "roles.x[0]", "claim:PATH=VALUE"),
        ("roles: [x]", "roles", "map of roles"),
        ("x: &a 1", "x", "anchors"),
        ("x: !t 1", "x", "tags"),
    ];
    each(cases, |text| format!("{text}\n{ROUTES}"));
}

#[test]
fn bad_routes_are_refused() {
    let upstream = |text: &str| format!("upstream: {text}");
    let cases: &[Case] = &[
        ("path: ", "routes.r.path", "no value"),
        ("path: /a//b", "routes.r.path", "plain path"),
        ("path: /a/../b", "routes.r.path", "plain path"),
        ("path: /.well-known/x", "routes.r.path", "metadata"),
        (
            "path: /m, identity: [ghost]",
            "routes.r.identity[0]",
            "no identity \"ghost\"",
        ),
        ("path: /m, anonymous: 'yes'", "routes.r.anonymous", "true or false"),
        ("path: /m, scopes: ['a b']", "routes.r.scopes[0]", "no spaces"),
        (
            "path: /m, scopes: [a, offline_access]",
            "routes.r.scopes[1]",
            "refresh tokens",
        ),
        (
            "path: /m, tools: {rules: [{allow: [a], scopes: [offline_access]}]}",
            "routes.r.tools.rules[0].scopes[0]",
            "refresh tokens",
        ),
        ("path: /m, limits: {body: 0}", "routes.r.limits.body", "64KiB"),
        ("path: /m, limits: {rate: 50}", "routes.r.limits.rate", "50/s or 600/m"),
        ("path: /m, limits: {rate: 0/s}", "routes.r.limits.rate", "50/s or 600/m"),
        (
            "path: /m, limits: {rate: +5/s}",
            "routes.r.limits.rate",
            "50/s or 600/m",
        ),
        ("path: /m, limits: {rate: 5/h}", "routes.r.limits.rate", "50/s or 600/m"),
        (
            "path: /m, limits: {rate: 1000001/s}",
            "routes.r.limits.rate",
            "at most 1000000",
        ),
        ("path: /m, limits: {burst: 5}", "routes.r.limits.burst", "without rate"),
        (
            "path: /m, limits: {rate: 5/s, burst: 0}",
            "routes.r.limits.burst",
            "whole number",
        ),
        (
            "path: /m, limits: {concurrency: 0}",
            "routes.r.limits.concurrency",
            "whole number",
        ),
        ("path: /m, denials: loud", "routes.r.denials", "auto, status, in_band"),
        ("path: /m, credential: token", "routes.r.credential", "use none"),
        ("path: /m, credential: ", "routes.r.credential", "no value"),
        ("path: /m, credential: {}", "routes.r.credential", "0 credentials"),
        (
            "path: /m, credential: {bearer: b, basic: {username: u, password: p}}",
            "routes.r.credential",
            "2 credentials",
        ),
        (
            "path: /m, credential: {basic: {username: 'a:b', password: p}}",
            "routes.r.credential.basic.username",
            "colon",
        ),
        (
            "path: /m, credential: {header: {name: 'a b', value: v}}",
            "routes.r.credential.header.name",
            "header name",
        ),
        (
            "path: /m, credential: {exchange: {client_id: i, client_secret: s}}",
            "routes.r.credential.exchange.token_endpoint",
            "missing",
        ),
        (
            "path: /m, tools: {rules: [{allow: [a], deny: [b]}]}",
            "routes.r.tools.rules[0]",
            "either allows or denies",
        ),
        ("path: /m, tools: {rules: }", "routes.r.tools.rules", "no value"),
        (
            "path: /m, tools: {rules: [{allow: [a], to: []}]}",
            "routes.r.tools.rules[0].to",
            "no role is named",
        ),
        (
            "path: /m, tools: {rules: [{allow: [a], to: [ghost]}]}",
            "routes.r.tools.rules[0].to[0]",
            "no role \"ghost\"",
        ),
        (
            "path: /m, tools: {rules: [{allow: [a], when: 'size('}]}",
            "routes.r.tools.rules[0].when",
            "CEL",
        ),
        (
            "path: /m, tools: {rules: [{allow: [a], when: 'user == 1'}]}",
            "routes.r.tools.rules[0].when",
            "unknown variable",
        ),
        (
            "path: /m, tools: {rules: [{allow: [admin_x]}, {deny: ['admin_*']}]}",
            "routes.r.tools.rules[0].allow[0]",
            "never be allowed",
        ),
        (
            "path: /m, tools: {rules: [{allow: ['']}]}",
            "routes.r.tools.rules[0].allow[0]",
            "not empty",
        ),
        ("path: /m, tools: {max: 0}", "routes.r.tools.max", "whole number"),
        ("path: /m, tools: {pin: [a]}", "routes.r.tools", "without max"),
        (
            "path: /m, tools: {max: 1, on_excess: search}",
            "routes.r.tools.on_excess",
            "trim, refuse",
        ),
    ];
    each(cases, |text| {
        format!("routes: {{r: {{{text}, upstream: 'http://h/'}}}}")
    });
    let cases: &[Case] = &[
        ("nonsense", "routes.r.upstream", "absolute URL"),
        ("'http://user:pass@h/'", "routes.r.upstream", "no credentials"),
        ("{}", "routes.r.upstream.urls", "missing"),
        ("", "routes.r.upstream", "no value"),
        (
            "{urls: ['http://h/', 'http://h/']}",
            "routes.r.upstream.urls[1]",
            "twice",
        ),
        (
            "{urls: 'http://h/', transport: stdio}",
            "routes.r.upstream.transport",
            "set command",
        ),
        (
            "{urls: 'http://h/', command: [/bin/sh]}",
            "routes.r.upstream.urls",
            "says nothing about a command",
        ),
        (
            "{command: [/bin/sh], transport: sse}",
            "routes.r.upstream.transport",
            "go together",
        ),
        (
            "{command: [/bin/sh], health: {tcp: true}}",
            "routes.r.upstream.health",
            "says nothing about a command",
        ),
        (
            "{command: [/bin/sh], breaker: {failures: 0}}",
            "routes.r.upstream.breaker",
            "says nothing about a command",
        ),
        (
            "{command: [/bin/sh], connect_timeout: 5s}",
            "routes.r.upstream.connect_timeout",
            "says nothing about a command",
        ),
        (
            "{command: [/bin/sh], ca: roots.pem}",
            "routes.r.upstream.ca",
            "says nothing about a command",
        ),
        (
            "{urls: 'http://h/', env: {TZ: UTC}}",
            "routes.r.upstream.env",
            "without command",
        ),
        (
            "{urls: 'http://h/', processes: 3}",
            "routes.r.upstream.processes",
            "without command",
        ),
        ("{command: []}", "routes.r.upstream.command", "no program"),
        ("{command: ['', x]}", "routes.r.upstream.command[0]", "no program"),
        (
            "{command: [no-such-program]}",
            "routes.r.upstream.command[0]",
            "no program \"no-such-program\" is on the process's PATH; name its whole path",
        ),
        (
            "{command: [sh], env: {PATH: 'bin:/nowhere'}}",
            "routes.r.upstream.command[0]",
            "PATH",
        ),
        (
            "{command: [./no-such-program]}",
            "routes.r.upstream.command[0]",
            "can be executed",
        ),
        (
            "{command: [/etc/passwd]}",
            "routes.r.upstream.command[0]",
            "can be executed",
        ),
        ("{command: [/bin]}", "routes.r.upstream.command[0]", "can be executed"),
        ("{command: [/bin/sh], env: [TZ]}", "routes.r.upstream.env", "a map"),
        (
            "{command: [/bin/sh], env: {'A=B': c}}",
            "routes.r.upstream.env.A=B",
            "name of a variable",
        ),
        (
            "{command: [/bin/sh], env: {A: [b]}}",
            "routes.r.upstream.env.A",
            "a text",
        ),
        (
            "{command: [/bin/sh], env: {API_TOKEN: changeme}}",
            "routes.r.upstream.env.API_TOKEN",
            "well-known default",
        ),
        (
            "{command: [/bin/sh], directory: nowhere-at-all}",
            "routes.r.upstream.directory",
            "exists",
        ),
        (
            "{command: [/bin/sh], processes: 0}",
            "routes.r.upstream.processes",
            "whole number",
        ),
        (
            "{command: [/bin/sh]}, credential: {bearer: '${env:WIKI_TOKEN}'}",
            "routes.r.credential",
            "upstream.env",
        ),
        (
            "{urls: 'http://h/', health: {}}",
            "routes.r.upstream.health",
            "no check",
        ),
        (
            "{urls: 'http://h/', health: {tcp: true, http: /h}}",
            "routes.r.upstream.health",
            "alternatives",
        ),
        ("{urls: 'http://h/', client_key: k}", "routes.r.upstream", "go together"),
        (
            "{urls: 'http://h/', breaker: {failures: -1}}",
            "routes.r.upstream.breaker.failures",
            "from 0 to 1000000",
        ),
        (
            "{urls: 'http://h/', breaker: {cooldown: 0}}",
            "routes.r.upstream.breaker.cooldown",
            "10s",
        ),
        (
            "{urls: 'http://h/', connect_timeout: 0}",
            "routes.r.upstream.connect_timeout",
            "10s",
        ),
        (
            "{urls: 'http://h/', forward_headers: [Cookie]}",
            "routes.r.upstream.forward_headers[0]",
            "never forwarded",
        ),
    ];
    each(cases, |text| {
        format!("routes: {{r: {{path: /m, anonymous: true, {}}}}}", upstream(text))
    });
}

#[test]
fn identities_and_paths_are_unambiguous() {
    let two = "identity: {a: {issuer: 'https://a'}, b: {issuer: 'https://b'}}\n";
    let one = errors(&format!("{two}routes: {{r: {{path: /m, upstream: 'http://h/'}}}}"));
    assert!(one.contains("routes.r: several identities exist"), "{one}");
    let none = errors("routes: {r: {path: /m, upstream: 'http://h/'}}");
    assert!(none.contains("routes.r: nobody can vouch"), "{none}");
    for (first, second) in [("/m", "/m"), ("/m", "/m/messages"), ("/messages", "/")] {
        let route = |path| format!("{{path: {path}, anonymous: true, upstream: 'http://h/'}}");
        let errors = errors(&format!("routes: {{a: {}, b: {}}}", route(first), route(second)));
        assert!(
            errors.contains("routes.b.path: ") && errors.contains("is taken by route a"),
            "{errors}"
        );
    }
    // A mistake elsewhere in the first route hides neither.
    let both =
        errors("routes: {a: {path: /m, upstream: nowhere}, b: {path: /m, anonymous: true, upstream: 'http://h/'}}");
    assert!(
        both.contains("is taken by route a") && both.contains("routes.a.upstream"),
        "{both}"
    );
    let exchange = "{exchange: {token_endpoint: 'https://h/t', client_id: i, client_secret: s}}";
    let errors = errors(&format!(
        "routes: {{r: {{path: /m, anonymous: true, upstream: 'http://h/', credential: {exchange}}}}}"
    ));
    assert!(errors.contains("no token to exchange for nobody"), "{errors}");
}

#[test]
fn who_asks_and_who_has_keys_stand_where_they_make_sense() {
    let asks =
        |name: &str| format!("{name}: {{issuer: 'https://{name}', introspection: {{client_id: i, client_secret: s}}}}");
    let two = format!("identity: {{{}, {}}}\n", asks("a"), asks("b"));
    let both = errors(&format!(
        "{two}routes: {{r: {{path: /m, identity: [a, b], upstream: 'http://h/'}}}}"
    ));
    assert!(both.contains("routes.r.identity: two of these are asked"), "{both}");

    let directory = secrets();
    let of_file = |text: &str, rest: &str| {
        std::fs::write(directory.path().join("secrets/keys"), text).expect("a file");
        let file = format!("identity: {{a: {{api_keys: '${{file:secrets/keys}}'{rest}");
        match Config::parse(&file, "p.yaml", directory.path(), &env) {
            Ok(loaded) => Ok(loaded.config),
            Err(errors) => Err(errors.to_string()),
        }
    };
    let open = format!("}}}}\n{ROUTES}");
    let config = of_file("", &open).expect("an empty file is a list of none");
    assert_eq!(config.identities[0].issuer, "");
    let bad = of_file("# one\nci:sk-live-4242\nci\n", &open).err().expect("errors");
    assert!(
        bad.contains("p.yaml:1:26: identity.a.api_keys: the file can't be used: line 2: the hash")
            && bad.contains("line 3:")
            && !bad.contains("sk-live-4242"),
        "{bad}"
    );
    let beside = of_file("", &format!(", issuer: 'https://h'{open}"))
        .err()
        .expect("errors");
    assert!(beside.contains("unknown key \"issuer\""), "{beside}");
    let exchange = "{exchange: {token_endpoint: 'https://h/t', client_id: i, client_secret: s}}";
    let route = format!("}}}}\nroutes: {{r: {{path: /m, upstream: 'http://h/', credential: {exchange}}}}}");
    let exchanged = of_file("", &route).err().expect("errors");
    assert!(
        exchanged.contains("the keys of \"a\" are no tokens to exchange"),
        "{exchanged}"
    );
}

#[test]
fn client_certificates_need_authorities_and_no_exchange() {
    let listen = "listen: {tls: {certificate: c, key: k, client_ca: ca.pem}}\n";
    let mesh = |section: &str| format!("identity: {{mesh: {{client_certificates: {section}}}}}\n");
    let file = format!("{listen}{}{ROUTES}", mesh("{subject: uri}"));
    let Ok(loaded) = Config::parse(&file, "p.yaml", Path::new("/etc"), &env) else {
        panic!("it is right: {}", errors(&file));
    };
    let identity = &loaded.config.identities[0];
    assert_eq!(identity.issuer, "");
    match &identity.keys {
        KeySource::ClientCertificates(certificates) => {
            assert_eq!(certificates.subject, CertificateName::Uri);
            assert_eq!(certificates.authorities, Path::new("/etc/ca.pem"));
        }
        _ => panic!("an identity of certificates"),
    }
    let exchange = "{exchange: {token_endpoint: 'https://h/t', client_id: i, client_secret: s}}";
    let exchanging = format!("routes: {{r: {{path: /m, upstream: 'http://h/', credential: {exchange}}}}}");
    for (file, error) in [
        (
            format!("{}{ROUTES}", mesh("{subject: uri}")),
            "identity.mesh.client_certificates: clients are not asked for certificates; name the PEM bundle",
        ),
        (
            format!("{listen}{}{ROUTES}", mesh("{}")),
            "identity.mesh.client_certificates.subject: this key is missing; name what callers go by",
        ),
        (
            format!("{listen}{}{ROUTES}", mesh("{subject: san}")),
            "identity.mesh.client_certificates.subject: ",
        ),
        (
            format!("{listen}{}{ROUTES}", mesh("{subject: uri}, issuer: 'https://h'")),
            "unknown key \"issuer\"",
        ),
        (
            format!("{listen}{}{exchanging}", mesh("{subject: uri}")),
            "routes.r.credential: the certificates of \"mesh\" are no tokens to exchange",
        ),
    ] {
        let errors = errors(&file);
        assert!(
            errors.contains(error) && errors.lines().count() == 1,
            "{file}: {errors}"
        );
    }
}

#[test]
fn keys_of_parts_that_are_not_built_are_unknown() {
    let top = ["database", "plaintext"];
    let route = ["servers", "rate", "concurrency"];
    let mut files: Vec<(&str, String)> = Vec::new();
    let mut add = |keys: &[&'static str], file: &str| {
        files.extend(keys.iter().map(|key| (*key, file.replace("KEY", key))));
    };
    let whole = |extra: &str| format!("routes: {{r: {{path: /m, anonymous: true, {extra}}}}}");
    add(&top, &format!("KEY: x\n{ROUTES}"));
    add(&["otlp"], &format!("telemetry: {{KEY: x}}\n{ROUTES}"));
    add(&route, &whole("upstream: 'http://h/', KEY: x"));
    for (key, file) in files {
        let errors = errors(&file);
        assert!(errors.contains(&format!("unknown key \"{key}\"")), "{errors}");
    }
}

#[test]
fn r26_plain_http_is_refused_after_interpolation_too() {
    for field in [
        "issuer: '${env:PLAIN_URL}'",
        "issuer: 'https://h', jwks_uri: '${env:PLAIN_URL}'",
    ] {
        let errors = errors(&format!("identity: {{a: {{{field}}}}}\n{ROUTES}"));
        assert!(
            errors.contains("the interpolated value does not fit; use https"),
            "{errors}"
        );
    }
    let exchange = "credential: {exchange: {token_endpoint: '${env:PLAIN_URL}', client_id: i, client_secret: s}}";
    let errors = errors(&format!(
        "identity: {{a: {{issuer: 'https://h'}}}}\nroutes: {{r: {{path: /m, upstream: 'http://h/', {exchange}}}}}"
    ));
    assert!(
        errors.contains("routes.r.credential.exchange.token_endpoint: the interpolated"),
        "{errors}"
    );
}

#[test]
fn secrets_are_never_quoted() {
    let leak = "${env:LEAK}";
    for file in [
        format!("routes: {{r: {{path: /m, upstream: '{leak}'}}}}"),
        "routes: {r: {path: /m, upstream: 'http://u:sk-live-4242@h/'}}".to_owned(),
        format!("routes: {{r: {{path: /m, upstream: 'http://h/', credential: '{leak}'}}}}"),
        format!("routes: {{r: {{path: /m, upstream: 'http://h/', identity: ['{leak}']}}}}"),
        format!(
            "routes: {{r: {{path: /m, upstream: 'http://h/', tools: {{rules: [{{allow: [a], to: ['{leak}']}}]}}}}}}"
        ),
        format!("roles: {{x: ['{leak}']}}\n{ROUTES}"),
        format!("admin: {{token: [{leak}]}}\n{ROUTES}"),
        "state: {seal_keys: [sk-live-4242]}\nx: 1".to_owned(),
        "identity: {a: {issuer: 'https://h', shared_secret: sk-live-4242}}\nx: 1".to_owned(),
    ] {
        let errors = errors(&file);
        assert!(!errors.contains("sk-live-4242"), "{errors}");
    }
}

#[test]
fn a_secret_in_clear_is_a_warning_without_the_secret() {
    let loaded = parse(&format!("admin: {{token: sk-live-4242}}\n{ROUTES}"));
    let warnings = loaded.unwrap_or_else(|errors| panic!("{errors}")).warnings;
    let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    let expected = "p.yaml:1:16: admin.token: a secret is written in clear; move it to ${env:NAME} or ${file:PATH}";
    assert_eq!(warnings, [expected]);
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}", cut in 0..REFERENCE.len(), garbage in "[ :{}\\[\\]\n\"'$&*!|>-]{0,12}") {
        let _ = parse(&text);
        let cut = (0..=cut).rev().find(|at| REFERENCE.is_char_boundary(*at)).expect("0 is one");
        let _ = parse(&format!("{}{garbage}{}", &REFERENCE[..cut], &REFERENCE[cut..]));
    }
}

#[test]
fn claims_are_mapped_only_in_ways_that_mean_something() {
    let directory = secrets();
    let with = |keys: &str| {
        let text = format!(
            "identity: {{a: {{issuer: 'https://h', {keys}}}}}\nroutes: {{r: {{path: /mcp, upstream: 'http://127.0.0.1:1/mcp'}}}}"
        );
        Config::parse(&text, "p.yaml", directory.path(), &env).map(|loaded| loaded.config)
    };
    let good = "id_tokens: true, claims: {audience: [aud, client_id], scope_prefixes: ['api/', ''], \
                scope_separators: {':': '.'}, require: {hd: example.com, tid: [a, '*']}}";
    let identity = with(good).map(|config| config.identities[0].clone());
    let identity = identity.unwrap_or_else(|errors| panic!("{errors}"));
    assert!(identity.id_tokens);
    assert_eq!(identity.claims.audience, ["aud", "client_id"]);
    assert_eq!(identity.claims.scope_names.asked("x.y"), "api/x:y");
    assert_eq!(identity.claims.require["hd"], ["example.com"]);
    assert_eq!(identity.claims.require["tid"], ["a", "*"]);
    for (bad, expected) in [
        (
            "claims: {scope_prefixes: ['a b']}",
            "identity.a.claims.scope_prefixes[0]: ",
        ),
        (
            "claims: {scope_separators: [':']}",
            "identity.a.claims.scope_separators: this must map",
        ),
        (
            "claims: {scope_separators: {'::': '.'}}",
            "identity.a.claims.scope_separators: this must map",
        ),
        (
            "claims: {scope_separators: {':': ''}}",
            "identity.a.claims.scope_separators: this must map",
        ),
        (
            "claims: {scope_separators: {':': 'x'}}",
            "identity.a.claims.scope_separators: this must map",
        ),
        (
            "claims: {scope_separators: {':': ' '}}",
            "identity.a.claims.scope_separators: this must map",
        ),
        ("claims: {require: hd}", "identity.a.claims.require: this must map"),
        (
            "claims: {require: {hd: []}}",
            "identity.a.claims.require: this must map",
        ),
        (
            "claims: {require: {hd: ''}}",
            "identity.a.claims.require: this must map",
        ),
        (
            "claims: {require: {hd: {a: b}}}",
            "identity.a.claims.require: this must map",
        ),
        ("id_tokens: yes", "identity.a.id_tokens: "),
    ] {
        let Err(errors) = with(bad) else {
            panic!("{bad} is let through")
        };
        assert!(errors.to_string().contains(expected), "{bad}: {errors}");
    }
}

/// The command of a configuration in a directory of its own, and what is doubtful about it.
fn command(upstream: &str) -> (Stdio, Vec<String>, tempfile::TempDir) {
    let directory = secrets();
    let text = format!("routes: {{r: {{path: /m, anonymous: true, upstream: {upstream}}}}}");
    let loaded = Config::parse(&text, "p.yaml", directory.path(), &env);
    let loaded = loaded.unwrap_or_else(|errors| panic!("{errors}"));
    let upstream = &loaded.config.routes[0].upstream;
    assert_eq!((upstream.transport, upstream.urls.len()), (Transport::Stdio, 0));
    let stdio = upstream.stdio.clone().expect("a command");
    let warnings = loaded.warnings.iter().map(ToString::to_string).collect();
    (stdio, warnings, directory)
}

fn environment(stdio: &Stdio) -> Vec<(&str, &str)> {
    let pairs = stdio.environment.iter();
    pairs.map(|(name, value)| (&**name, value.expose())).collect()
}

#[test]
fn a_command_is_found_where_the_process_would_find_it() {
    // A bare name: on the default path, or on the one that the process gets.
    let (stdio, warnings, directory) = command("{command: [sh, -c, 'exit 0']}");
    assert!(stdio.program.is_absolute() && stdio.program.ends_with("sh"));
    assert_eq!(stdio.arguments, ["-c", "exit 0"]);
    assert_eq!(environment(&stdio), [("PATH", "/usr/local/bin:/usr/bin:/bin")]);
    assert_eq!(stdio.directory, directory.path());
    assert_eq!(warnings, [""; 0]);
    let bin = tempfile::tempdir().expect("a directory");
    program(&bin.path().join("sh"));
    let path = format!("/nowhere:{}:/bin", bin.path().display());
    let (stdio, ..) = command(&format!("{{command: sh, env: {{PATH: '{path}'}}}}"));
    assert_eq!(stdio.program, bin.path().join("sh"));
    assert_eq!(environment(&stdio), [("PATH", &*path)]);
    // A name with a slash: relative to the file.
    let (stdio, _, directory) = command("{command: servers/time, transport: stdio, directory: servers}");
    assert_eq!(stdio.program, directory.path().join("servers/time"));
    assert_eq!(stdio.directory, directory.path().join("servers"));
    let defaults = (stdio.shared, stdio.processes, stdio.idle_timeout);
    assert_eq!(defaults, (false, 64, Duration::from_secs(600)));
}

#[test]
fn a_variable_in_clear_is_a_warning_only_where_its_name_says_that_it_is_a_secret() {
    let (stdio, warnings, _directory) = command(
        "{command: sh, env: {TZ: UTC, PORT: 8080, EMPTY: '', API_KEY: sk-live-4242, A_TOKEN: '${env:WIKI_TOKEN}'}}",
    );
    assert_eq!(
        environment(&stdio)[..5],
        [
            ("TZ", "UTC"),
            ("PORT", "8080"),
            ("EMPTY", ""),
            ("API_KEY", "sk-live-4242"),
            ("A_TOKEN", "a-wiki-token")
        ]
    );
    let [warning] = &*warnings else { panic!("{warnings:?}") };
    assert!(warning.contains("routes.r.upstream.env.API_KEY"), "{warning}");
    assert!(!warning.contains("sk-live-4242"), "{warning}");
}
