//! Verified claims become a principal.
//!
//! 1. A path is tried as one literal name first (claims are often named by URLs, dots and all), then level by level.
//! 2. The client is what the client paths say, never what `aud` says (r42).
//! 3. Scopes are closed over the identity's `implies`, transitively.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::Principal;
use crate::clock::UnixSeconds;
use crate::config::Identity;

/// The principal that these claims are about; `None` without a subject.
pub(super) fn principal(identity: &Identity, claims: Map<String, Value>, expires: UnixSeconds) -> Option<Principal> {
    let paths = &identity.claims;
    let subject = first(&claims, &paths.subject)?
        .as_str()
        .filter(|subject| !subject.is_empty())?
        .to_owned();
    let token_scopes = first(&claims, &paths.scopes).map_or_else(Vec::new, words);
    Some(Principal {
        identity: Some(identity.name.clone()),
        issuer: identity.issuer.clone(),
        subject,
        client: first(&claims, &paths.client).and_then(Value::as_str).map(str::to_owned),
        scopes: closed(&token_scopes, &identity.implies),
        token_scopes,
        roles: first(&claims, &paths.roles).map_or_else(Vec::new, names),
        groups: first(&claims, &paths.groups).map_or_else(Vec::new, names),
        claims,
        granted: Default::default(),
        expires: Some(expires),
        generation: 0,
        scope_upgrade_endpoint: identity.scope_upgrade_endpoint.clone(),
    })
}

fn first<'a>(claims: &'a Map<String, Value>, paths: &[String]) -> Option<&'a Value> {
    paths.iter().find_map(|path| at(claims, path))
}

fn at<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    path.match_indices('.').find_map(|(dot, _)| {
        let below = claims.get(&path[..dot])?.as_object()?;
        at(below, &path[dot + 1..])
    })
}

/// A space-separated string (RFC 6749 section 3.3), or an array of such.
fn words(value: &Value) -> Vec<String> {
    let split = |text: &str| {
        text.split(' ')
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect()
    };
    match value {
        Value::String(text) => split(text),
        Value::Array(items) => items
            .iter()
            .filter_map(Value::as_str)
            .flat_map(|text| -> Vec<String> { split(text) })
            .collect(),
        _ => Vec::new(),
    }
}

/// One name, or an array of names, which may hold spaces.
fn names(value: &Value) -> Vec<String> {
    match value {
        Value::String(name) => vec![name.clone()],
        Value::Array(items) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

fn closed(scopes: &[String], implies: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut closed: BTreeSet<&String> = BTreeSet::new();
    let mut open: Vec<&String> = scopes.iter().collect();
    while let Some(scope) = open.pop() {
        if closed.insert(scope) {
            open.extend(implies.get(scope).into_iter().flatten());
        }
    }
    closed.into_iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::authn::testing::identity;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn claims_become_a_principal() {
        let mut corp = identity("corp", "https://login.example.com");
        corp.claims.roles = vec!["realm_access.roles".into(), "roles".into()];
        corp.implies = BTreeMap::from([
            ("mcp:admin".to_owned(), vec!["mcp:write".to_owned()]),
            (
                "mcp:write".to_owned(),
                vec!["mcp:read".to_owned(), "mcp:admin".to_owned()],
            ),
        ]);
        let claims = json!({
            "sub": "ada", "scope": "mcp:admin  z", "azp": "agent", "aud": "not-the-client",
            "realm_access": {"roles": ["editor", 7]}, "groups": "staff members",
        });
        let ada = principal(&corp, map(claims), 99).unwrap();
        assert_eq!(ada.identity.as_deref(), Some("corp"));
        assert_eq!(ada.issuer, "https://login.example.com");
        assert_eq!(ada.subject, "ada");
        assert_eq!(ada.client.as_deref(), Some("agent"));
        assert_eq!(ada.token_scopes, ["mcp:admin", "z"]);
        assert_eq!(ada.scopes, ["mcp:admin", "mcp:read", "mcp:write", "z"]);
        assert_eq!(ada.roles, ["editor"]);
        assert_eq!(ada.groups, ["staff members"]);
        assert_eq!(ada.expires, Some(99));
    }

    #[test]
    fn r42_the_client_never_comes_from_aud() {
        let corp = identity("corp", "https://login.example.com");
        let claims = json!({"sub": "ada", "aud": ["agent"]});
        assert_eq!(principal(&corp, map(claims), 0).unwrap().client, None);
    }

    #[test]
    fn paths_take_dots_in_names() {
        let claims = map(json!({
            "https://example.com/roles": ["a"],
            "resource_access": {"my.app": {"roles": ["b"]}},
            "plain": {"roles": "c"},
        }));
        assert_eq!(at(&claims, "https://example.com/roles"), Some(&json!(["a"])));
        assert_eq!(at(&claims, "resource_access.my.app.roles"), Some(&json!(["b"])));
        assert_eq!(at(&claims, "plain.roles"), Some(&json!("c")));
        assert_eq!(at(&claims, "plain.roles.deeper"), None);
        assert_eq!(at(&claims, "absent"), None);
    }

    #[test]
    fn scopes_come_as_a_string_or_an_array() {
        assert_eq!(words(&json!("a b")), ["a", "b"]);
        assert_eq!(words(&json!(["a", "b c", 3])), ["a", "b", "c"]);
        assert!(words(&json!({"a": 1})).is_empty());
    }

    #[test]
    fn without_a_subject_there_is_no_principal() {
        let corp = identity("corp", "https://login.example.com");
        for claims in [json!({}), json!({"sub": ""}), json!({"sub": 7}), json!({"sub": null})] {
            assert!(principal(&corp, map(claims.clone()), 0).is_none(), "{claims}");
        }
    }
}
