//! The sections `identity` and `roles`: who may vouch, and what a caller then is.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use jsonwebtoken::Algorithm;
use serde_json::json;

use super::raw::{At, Section};
use super::tree::{Node, Value};
use super::values::{algorithm, at, oauth_url, path, texts_of, values};
use super::{ClaimPaths, Identity, KeySource, Place};
use crate::policy::{PathStep, RoleLine, Roles};

pub(super) fn identity(name: &str, section: &Section<'_>, directory: &Path) -> Option<Identity> {
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
