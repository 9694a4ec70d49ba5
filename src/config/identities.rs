//! The sections `identity` and `roles`: who may vouch, and what a caller then is.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::Algorithm;
use serde_json::json;

use super::clients::{Needed, client};
use super::raw::{At, Section};
use super::tree::{Node, Value};
use super::values::{algorithm, at, oauth_url, path, scope, texts_of, values};
use super::{
    ApiKeys, CertificateName, ClaimPaths, ClientAuth, ClientCertificates, Dpop, Identity, Introspection, KeySource,
    Listen, Place, UserLogin,
};
use crate::authn::api_key;
use crate::policy::{PathStep, RoleLine, Roles};

/// Longest that an answer about a token may be believed.
const MAX_CACHE: Duration = Duration::from_secs(5 * 60);

/// A file that is no list of keys at all needn't be told about line by line.
const MAX_LINE_ERRORS: usize = 10;

pub(super) fn identity(
    name: &str,
    section: &Section<'_>,
    directory: &Path,
    listen: Option<&Listen>,
) -> Option<Identity> {
    let api_keys = api_keys(section);
    let certificates = client_certificates(section, listen);
    let alone = if section.has("api_keys") {
        Some(api_keys.map(KeySource::ApiKeys))
    } else if section.has("client_certificates") {
        Some(certificates.map(KeySource::ClientCertificates))
    } else {
        None
    };
    if let Some(keys) = alone {
        // No issuer's tokens, so that nothing that is said of an issuer has a meaning.
        return Some(Identity {
            name: name.into(),
            issuer: String::new(),
            keys: keys?,
            algorithms: Vec::new(),
            audiences: Vec::new(),
            claims: ClaimPaths::default(),
            id_tokens: false,
            ca: None,
            implies: BTreeMap::new(),
            scope_upgrade_endpoint: None,
            dpop: None,
            login: None,
        });
    }
    if !section.has("issuer") {
        section.error_at(
            "issuer",
            "this key is missing",
            "set it to the issuer's `iss`, such as https://login.example.com/realms/corp, or give api_keys or client_certificates instead",
        );
    }
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
    let introspection = introspection(section);
    let sources = ["jwks_uri", "jwks_file", "shared_secret", "introspection"];
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
    if section.has("introspection") && section.has("algorithms") {
        section.error_at(
            "algorithms",
            "the issuer is asked, and no signature is checked",
            "drop algorithms, or introspection",
        );
    }
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
    let claims = section.section(
        "claims",
        "Where attributes stand: dotted paths, the first that exists wins.",
        super::claims::claims,
    );
    let id_tokens = section
        .flag(
            "id_tokens",
            "Let ID tokens in as well, where the issuer gives clients no other JWT.",
        )
        .unwrap_or(false);
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
    let dpop = section.choice(
        "dpop",
        "Ask clients for DPoP (RFC 9449); absent: checked where a token is bound to a key, and not advertised.",
        &[
            ("accepted", Dpop::Accepted),
            ("required", Dpop::Required),
            ("nonce", Dpop::Nonce),
        ],
    );
    let login = login(section, directory);
    let keys = match (jwks_uri, jwks_file, shared_secret) {
        _ if section.has("introspection") => KeySource::Introspection(introspection?),
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
        id_tokens,
        ca,
        implies,
        scope_upgrade_endpoint: scope_upgrade_endpoint.map(|at| at.value),
        dpop,
        login,
    })
}

fn login(section: &Section<'_>, directory: &Path) -> Option<UserLogin> {
    let about = "How this identity's users log in to the gate's own pages (OpenID Connect), to connect their accounts.";
    let read = section.optional_section("login", about, |login| {
        let client = client(login, directory, Needed::Yes);
        let scopes = login.parsed_list("scopes", "Besides openid.", scope);
        let mut scopes = values(scopes);
        if !scopes.iter().any(|scope| scope == "openid") {
            scopes.insert(0, "openid".to_owned());
        }
        Some(UserLogin {
            client: client?,
            scopes,
        })
    });
    read.flatten()
}

fn introspection(section: &Section<'_>) -> Option<Introspection> {
    let about = "Ask the issuer about each token (RFC 7662), for tokens that are no JWTs.";
    let read = section.optional_section("introspection", about, |introspection| {
        introspection.require("client_id", "set it to the gate's client id at the issuer");
        introspection.require("client_secret", "set it to that client's secret");
        let endpoint = introspection.parsed("endpoint", "Absent: found by discovery.", oauth_url);
        let client_id = introspection.text("client_id", "The gate's client id at the issuer.");
        let client_secret = introspection.secret("client_secret", "The gate's client secret.");
        let client_auth = introspection.choice(
            "client_auth",
            "Default basic.",
            &[("basic", ClientAuth::Basic), ("post", ClientAuth::Post)],
        );
        let about = "How long an answer is believed, in whole seconds up to 5m; 0 asks every time; default 30s.";
        let cache = introspection.duration("cache", about, true);
        if cache.is_some_and(|cache| cache > MAX_CACHE || cache.subsec_millis() > 0) {
            introspection.error_at(
                "cache",
                "this is not a whole number of seconds up to 5m",
                "a revoked token is let in for as long; 30s is a good value",
            );
        }
        let default_audiences = introspection.texts(
            "default_audiences",
            "What an answer without `aud` is taken to say; by default such a token is refused.",
        );
        Some(Introspection {
            endpoint: endpoint.map(|at| at.value),
            client_id: client_id?.value,
            client_secret: client_secret?.value,
            client_auth: client_auth.unwrap_or(ClientAuth::Basic),
            cache: cache.unwrap_or(Duration::from_secs(30)),
            default_audiences: values(default_audiences),
        })
    });
    read.flatten()
}

fn client_certificates(section: &Section<'_>, listen: Option<&Listen>) -> Option<ClientCertificates> {
    let about = "Callers are who their TLS certificate says; it must chain to listen.tls.client_ca. Nothing else goes beside it.";
    let subject = section.optional_section("client_certificates", about, |certificates| {
        certificates.require(
            "subject",
            "name what callers go by: uri, dns, email, common_name or distinguished_name",
        );
        certificates.choice(
            "subject",
            "The name that a caller goes by, of which a certificate must have exactly one.",
            &[
                ("uri", CertificateName::Uri),
                ("dns", CertificateName::Dns),
                ("email", CertificateName::Email),
                ("common_name", CertificateName::CommonName),
                ("distinguished_name", CertificateName::DistinguishedName),
            ],
        )
    })?;
    let authorities = listen?.tls.as_ref().and_then(|tls| tls.client_ca.clone());
    if authorities.is_none() {
        section.error_at(
            "client_certificates",
            "clients are not asked for certificates",
            "name the PEM bundle of their authorities in listen.tls.client_ca",
        );
    }
    Some(ClientCertificates {
        subject: subject?,
        authorities: authorities?,
    })
}

fn api_keys(section: &Section<'_>) -> Option<ApiKeys> {
    let at = section.whole_file(
        "api_keys",
        "A file with name:sha256-hex:[roles]:[RFC 3339 end] a line, and nothing else beside it; `portcullis token issue` writes them.",
    )?;
    match api_key::parse(&at.value.0) {
        Ok(keys) => Some(ApiKeys { file: at.value.1, keys }),
        Err(errors) => {
            for error in errors.iter().take(MAX_LINE_ERRORS) {
                section.error_in(
                    &at,
                    format!("the file can't be used: {error}"),
                    "correct or remove the line",
                );
            }
            None
        }
    }
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

/// `None`: some role is wrong, and errors about whoever names one would only mislead.
pub(super) fn roles(root: &Section<'_>) -> Option<Arc<Roles>> {
    let schema = json!({
        "type": "object",
        "description": "Named conditions: a caller has a role when any line matches.",
        "additionalProperties": {"type": "array", "items": {"anyOf": [
            {"type": "string", "pattern": "^(scope|role|group|subject|client|claim|identity):"},
            {"type": "object", "properties": {"all": {"type": "array"}}, "additionalProperties": false},
        ]}},
    });
    let Some((node, path)) = root.node("roles", schema) else {
        let absent = !root.has("roles");
        return absent.then(Arc::default);
    };
    let Value::Map(entries) = &node.value else {
        root.error_at(
            "roles",
            "this must be a map of roles",
            "write reader: [\"group:staff\"]",
        );
        return None;
    };
    let mut definitions = Vec::new();
    let mut complete = true;
    for (key, node) in entries {
        let path = format!("{path}.{}", key.name);
        let Value::List(items) = &node.value else {
            complete = false;
            root.error_in(
                &at(node, &path),
                "this must be a list of lines",
                "write [\"group:staff\"]",
            );
            continue;
        };
        let lines = items.iter().enumerate().map(|(index, item)| {
            let line = role_line(root, item, &format!("{path}[{index}]"));
            complete &= line.is_some();
            // A line that could not be read keeps its place, so that errors about its neighbours name theirs.
            line.unwrap_or_else(|| RoleLine::Text("subject:unread".to_owned()))
        });
        definitions.push((key.name.clone(), lines.collect()));
    }
    match Roles::compile(definitions) {
        Ok(roles) => complete.then(|| Arc::new(roles)),
        Err(errors) => {
            for (role, error) in errors {
                let found = entries.iter().find(|(key, _)| key.name == role).map(|(_, node)| node);
                let (place, key) = locate(found, &format!("{path}.{role}"), &error.path);
                root.error_in(&At { value: (), place, key }, error.message, "");
            }
            None
        }
    }
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
                items
                    .iter()
                    .enumerate()
                    .map(|(index, item)| role_line(root, item, &format!("{path}.all[{index}]")))
                    // Every item is looked at before the first that is wrong ends the line.
                    .collect::<Vec<_>>()
                    .into_iter()
                    .collect::<Option<_>>()?,
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

/// Follows a relative path down a tree.
pub(super) fn locate(mut node: Option<&Node>, key: &str, path: &[PathStep]) -> (Place, String) {
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
