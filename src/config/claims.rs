//! `claims`: how an issuer writes what a principal is made of.
//!
//! 1. Each attribute has paths into the claims; the first that exists wins. What stands for the audience is one of them,
//!    `aud` unless the configuration says otherwise.
//! 2. Scopes are mapped to the names that rules use, so that no two different scopes get one name unless the
//!    configuration says so: with prefixes, a scope without any of them is nobody's here, and with separators one that
//!    already holds what they are mapped to.
//! 3. The other way round, clients are told to ask for the first prefix and the issuer's separators.

use std::collections::BTreeMap;

use serde_json::json;

use super::raw::Section;
use super::tree::{Node, Value};
use super::values::{scope, values};

/// Where a principal's attributes stand in the claims; each a dotted path, the first that exists wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimPaths {
    pub subject: Vec<String>,
    pub scopes: Vec<String>,
    pub roles: Vec<String>,
    pub groups: Vec<String>,
    pub client: Vec<String>,
    /// What says whom the token is for.
    pub audience: Vec<String>,
    pub scope_names: ScopeNames,
    /// Claims by path, and what each may say; `*` is anything.
    pub require: BTreeMap<String, Vec<String>>,
}

impl Default for ClaimPaths {
    fn default() -> Self {
        let paths = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Self {
            subject: paths(&["sub"]),
            scopes: paths(&["scope", "scp"]),
            roles: paths(&["roles"]),
            groups: paths(&["groups"]),
            client: paths(&["client_id", "azp"]),
            audience: paths(&["aud"]),
            scope_names: ScopeNames::default(),
            require: BTreeMap::new(),
        }
    }
}

/// How an issuer spells the scopes that rules name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScopeNames {
    /// Cut from scopes, the longest that fits; the first is what clients are told to ask for. An empty one lets in
    /// scopes without.
    pub prefixes: Vec<String>,
    /// The issuer's characters, and what rules write instead.
    pub separators: BTreeMap<char, char>,
}

impl ScopeNames {
    /// The name rules have for a scope in a token; `None` where it could be taken for another scope.
    pub fn named(&self, written: &str) -> Option<String> {
        let rest = if self.prefixes.is_empty() {
            written
        } else {
            let fitting = self.prefixes.iter().filter_map(|prefix| written.strip_prefix(prefix));
            fitting.min_by_key(|rest| rest.len())?
        };
        let name: Option<String> = rest.chars().map(|character| self.read(character)).collect();
        name.filter(|name| !name.is_empty())
    }

    fn read(&self, character: char) -> Option<char> {
        match self.separators.get(&character) {
            Some(mapped) => Some(*mapped),
            None if self.separators.values().any(|mapped| *mapped == character) => None,
            None => Some(character),
        }
    }

    /// What clients ask the issuer for to get a scope that rules name.
    pub fn asked(&self, name: &str) -> String {
        let spell = |character: char| {
            let mut spellings = self.separators.iter().filter(|(_, mapped)| **mapped == character);
            spellings.next().map_or(character, |(written, _)| *written)
        };
        let prefix = self.prefixes.first().map_or("", String::as_str);
        prefix.chars().chain(name.chars().map(spell)).collect()
    }

    /// The same for many.
    pub fn asked_all(&self, names: &[String]) -> Vec<String> {
        names.iter().map(|name| self.asked(name)).collect()
    }
}

pub(super) fn claims(section: &Section<'_>) -> ClaimPaths {
    let defaults = ClaimPaths::default();
    let paths = |key, about: &str, default: Vec<String>| {
        let given = values(section.texts(key, about));
        if given.is_empty() { default } else { given }
    };
    ClaimPaths {
        subject: paths("subject", "Default sub.", defaults.subject),
        scopes: paths("scopes", "Default scope, scp.", defaults.scopes),
        roles: paths("roles", "Default roles. Of a map, the keys.", defaults.roles),
        groups: paths("groups", "Default groups. Of a map, the keys.", defaults.groups),
        client: paths("client", "Default client_id, azp.", defaults.client),
        audience: paths(
            "audience",
            "Default aud; another where the issuer's tokens have none.",
            defaults.audience,
        ),
        scope_names: ScopeNames {
            prefixes: values(section.parsed_list(
                "scope_prefixes",
                "Cut from scopes; the first is what clients ask for. Scopes without any count only if \"\" is listed.",
                |text| {
                    if text.is_empty() {
                        Ok(String::new())
                    } else {
                        scope(text)
                    }
                },
            )),
            separators: separators(section),
        },
        require: require(section),
    }
}

/// `scope_separators: {":": "."}`.
fn separators(section: &Section<'_>) -> BTreeMap<char, char> {
    let key = "scope_separators";
    let schema = json!({
        "type": "object",
        "description": "Characters of the issuer's scopes, and what rules write instead. Scopes that hold the latter already don't count.",
        "propertyNames": {"pattern": "^[^A-Za-z0-9]$"},
        "additionalProperties": {"type": "string", "pattern": "^[^A-Za-z0-9]$"},
    });
    let Some((node, _)) = section.node(key, schema) else {
        return BTreeMap::new();
    };
    let one = |text: &str| {
        let character = text.chars().next().filter(|first| !first.is_alphanumeric())?;
        (scope(text).is_ok() && text.chars().count() == 1).then_some(character)
    };
    let read = entries(node).and_then(|entries| {
        entries
            .map(|(name, node)| match &node.value {
                Value::Scalar(mapped) => Some((one(name)?, one(&mapped.text)?)),
                _ => None,
            })
            .collect()
    });
    read.unwrap_or_else(|| {
        section.error_at(
            key,
            "this must map single characters, no letters or digits, to such",
            "write {\":\": \".\"}",
        );
        BTreeMap::new()
    })
}

/// `require: {token_use: access, hd: [example.com]}`.
fn require(section: &Section<'_>) -> BTreeMap<String, Vec<String>> {
    let key = "require";
    let schema = json!({
        "type": "object",
        "description": "Claims a token must have, by path, and what each may say; * is anything.",
        "additionalProperties": {"type": ["array", "string"], "items": {"type": "string"}, "minItems": 1},
    });
    let Some((node, _)) = section.node(key, schema) else {
        return BTreeMap::new();
    };
    let text = |node: &Node| match &node.value {
        Value::Scalar(scalar) if !scalar.text.is_empty() => Some(scalar.text.clone()),
        _ => None,
    };
    let read = entries(node).and_then(|entries| {
        entries
            .map(|(path, node)| {
                let accepted = match &node.value {
                    Value::List(items) if items.is_empty() => None,
                    Value::List(items) => items.iter().map(text).collect(),
                    _ => text(node).map(|accepted| vec![accepted]),
                };
                Some((path.to_owned(), accepted?))
            })
            .collect()
    });
    read.unwrap_or_else(|| {
        section.error_at(
            key,
            "this must map claims to what they may say",
            "write {token_use: access} or {hd: [example.com]}",
        );
        BTreeMap::new()
    })
}

fn entries(node: &Node) -> Option<impl Iterator<Item = (&str, &Node)>> {
    match &node.value {
        Value::Map(entries) => Some(entries.iter().map(|(key, node)| (&*key.name, node))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(prefixes: &[&str], separators: &[(char, char)]) -> ScopeNames {
        ScopeNames {
            prefixes: prefixes.iter().map(ToString::to_string).collect(),
            separators: separators.iter().copied().collect(),
        }
    }

    #[test]
    fn scopes_get_the_names_that_rules_use() {
        let none = names(&[], &[]);
        let cognito = names(&["api/"], &[]);
        let entra = names(&["api://app-id/", ""], &[]);
        let nested = names(&["api://", "api://notes/"], &[]);
        let colons = names(&[], &[(':', '.')]);
        let both = names(&["api/"], &[(':', '.'), ('.', '.')]);
        for (names, written, name) in [
            (&none, "notes:read", Some("notes:read")),
            (&cognito, "api/notes.read", Some("notes.read")),
            (&cognito, "crm/notes.read", None),
            (&cognito, "notes.read", None),
            (&cognito, "api/", None),
            (&cognito, "API/notes.read", None),
            (&entra, "api://app-id/notes.read", Some("notes.read")),
            (&entra, "notes.read", Some("notes.read")),
            (&nested, "api://notes/read", Some("read")),
            (&nested, "api://other/read", Some("other/read")),
            (&colons, "notes:read", Some("notes.read")),
            (&colons, "notes.read", None),
            (&colons, "a:b:c", Some("a.b.c")),
            (&both, "api/notes:read", Some("notes.read")),
            (&both, "api/notes.read", Some("notes.read")),
        ] {
            assert_eq!(names.named(written).as_deref(), name, "{written} {names:?}");
        }
    }

    #[test]
    fn clients_ask_for_the_issuers_spelling() {
        let entra = names(&["api://app-id/", ""], &[]);
        assert_eq!(entra.asked("notes.read"), "api://app-id/notes.read");
        assert_eq!(names(&[], &[(':', '.')]).asked("notes.read"), "notes:read");
        assert_eq!(names(&[], &[]).asked("notes.read"), "notes.read");
    }

    proptest! {
        /// One prefix and separators that are mapped to different characters: no two scopes get one name.
        #[test]
        fn no_two_scopes_get_one_name(
            a in "(p/|q/|)[a:./]{0,4}",
            b in "(p/|q/|)[a:./]{0,4}",
            prefixed: bool,
            separators in prop_oneof![
                Just(vec![]), Just(vec![(':', '.')]), Just(vec![(':', '.'), ('.', ':')]), Just(vec![('/', ':'), (':', '.')]),
            ],
        ) {
            let names = names(if prefixed { &["p/"] } else { &[] }, &separators);
            if let (Some(first), Some(second)) = (names.named(&a), names.named(&b)) {
                prop_assert_eq!(first == second, a == b);
            }
        }

        /// What clients are told to ask for is read back as the name the rules have.
        #[test]
        fn what_is_asked_for_is_what_counts(
            name in "[a.]{1,5}",
            prefixes in prop::collection::vec(prop_oneof![Just("p/"), Just("q:"), Just("")], 0..3),
            colons: bool,
        ) {
            let names = names(&prefixes, if colons { &[(':', '.')] } else { &[] });
            prop_assert_eq!(names.named(&names.asked(&name)), Some(name));
        }
    }
}
