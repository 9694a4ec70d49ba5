//! Verified claims become a principal.
//!
//! 1. A path is tried as one literal name first (claims are often named by URLs, dots and all), then level by level.
//! 2. The client is what the client paths say, never what `aud` says (r42).
//! 3. Scopes get the names that rules use ([`crate::config::ScopeNames`]), then are closed over the identity's `implies`,
//!    transitively. What the token itself says is kept beside them.
//! 4. Roles and groups are texts, or the keys of a map whose values aren't empty (ZITADEL writes role: {org: domain}).

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
    let named: Vec<String> = token_scopes
        .iter()
        .filter_map(|scope| paths.scope_names.named(scope))
        .collect();
    Some(Principal {
        identity: Some(identity.name.clone()),
        issuer: identity.issuer.clone(),
        subject,
        client: first(&claims, &paths.client).and_then(Value::as_str).map(str::to_owned),
        scopes: closed(&named, &identity.implies),
        token_scopes,
        roles: first(&claims, &paths.roles).map_or_else(Vec::new, names),
        groups: first(&claims, &paths.groups).map_or_else(Vec::new, names),
        claims,
        granted: Default::default(),
        expires: Some(expires),
        generation: 0,
        scope_names: paths.scope_names.clone(),
        scope_upgrade_endpoint: identity.scope_upgrade_endpoint.clone(),
    })
}

/// Whether the claims say everything that the identity requires.
pub(super) fn has_required(identity: &Identity, claims: &Map<String, Value>) -> bool {
    identity.claims.require.iter().all(|(path, accepted)| {
        let says = |value: &Value| {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Bool(_) | Value::Number(_) => value.to_string(),
                _ => return false,
            };
            !text.is_empty() && accepted.iter().any(|accepted| accepted == "*" || *accepted == text)
        };
        at(claims, path).is_some_and(|value| match value {
            Value::Array(values) => values.iter().any(says),
            value => says(value),
        })
    })
}

/// The first of these paths that exists.
pub(super) fn first<'a>(claims: &'a Map<String, Value>, paths: &[String]) -> Option<&'a Value> {
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

/// One name, an array of names, or a map by names; they may hold spaces.
fn names(value: &Value) -> Vec<String> {
    match value {
        Value::String(name) => vec![name.clone()],
        Value::Array(items) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Value::Object(members) => members
            .iter()
            .filter(|(_, value)| match value {
                // `admin: false` or `admin: {}` is nobody's grant.
                Value::Object(value) => !value.is_empty(),
                value => value.as_bool() == Some(true),
            })
            .map(|(name, _)| name.clone())
            .collect(),
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
            "by": {"https://example.com/groups": ["d"]},
            "resource_access.flat.roles": ["e"],
        }));
        assert_eq!(at(&claims, "https://example.com/roles"), Some(&json!(["a"])));
        assert_eq!(at(&claims, "resource_access.my.app.roles"), Some(&json!(["b"])));
        assert_eq!(at(&claims, "by.https://example.com/groups"), Some(&json!(["d"])));
        assert_eq!(at(&claims, "resource_access.flat.roles"), Some(&json!(["e"])));
        assert_eq!(at(&claims, "resource_access.my-app.roles"), None);
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
    fn roles_come_as_texts_or_as_the_keys_of_a_map() {
        let granted = json!({"editor": {"4711": "corp.example"}, "viewer": true});
        assert_eq!(names(&granted), ["editor", "viewer"]);
        let withheld = json!({"admin": false, "owner": null, "root": {}, "su": 1, "op": "no", "wheel": []});
        assert!(names(&withheld).is_empty());
        assert_eq!(names(&json!(["a b", 7, null])), ["a b"]);
        assert!(names(&json!(7)).is_empty());
    }

    #[test]
    fn scopes_are_named_before_they_imply_others() {
        let mut corp = identity("corp", "https://login.example.com");
        corp.claims.scope_names.prefixes = vec!["api/".to_owned()];
        corp.implies = BTreeMap::from([("all".to_owned(), vec!["notes.read".to_owned()])]);
        let ada = principal(&corp, map(json!({"sub": "ada", "scope": "api/all all openid"})), 0).unwrap();
        assert_eq!(ada.scopes, ["all", "notes.read"]);
        assert_eq!(ada.token_scopes, ["api/all", "all", "openid"]);
        let ada = principal(&corp, map(json!({"sub": "ada", "scope": "crm/all notes.read"})), 0).unwrap();
        assert!(ada.scopes.is_empty(), "{:?}", ada.scopes);
    }

    #[test]
    fn required_claims_are_there_and_say_it() {
        let mut corp = identity("corp", "https://login.example.com");
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        corp.claims.require = BTreeMap::from([
            ("hd".to_owned(), texts(&["a.example", "b.example"])),
            ("org.id".to_owned(), texts(&["*"])),
        ]);
        for (claims, good) in [
            (json!({"hd": "b.example", "org": {"id": "x"}}), true),
            (json!({"hd": ["z", "a.example"], "org": {"id": 7}}), true),
            (json!({"hd": "c.example", "org": {"id": "x"}}), false),
            (json!({"hd": "*", "org": {"id": "x"}}), false),
            (json!({"org": {"id": "x"}}), false),
            (json!({"hd": "a.example"}), false),
            (json!({"hd": "a.example", "org": {"id": ""}}), false),
            (json!({"hd": "a.example", "org": {"id": null}}), false),
            (json!({"hd": "a.example", "org": {"id": []}}), false),
            (json!({"hd": {"a.example": 1}, "org": {"id": "x"}}), false),
        ] {
            assert_eq!(has_required(&corp, &map(claims.clone())), good, "{claims}");
        }
    }

    #[test]
    fn without_a_subject_there_is_no_principal() {
        let corp = identity("corp", "https://login.example.com");
        for claims in [json!({}), json!({"sub": ""}), json!({"sub": 7}), json!({"sub": null})] {
            assert!(principal(&corp, map(claims.clone()), 0).is_none(), "{claims}");
        }
    }
}
