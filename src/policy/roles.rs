//! Roles: named conditions on a principal, decided once when it is authenticated.

use serde_json::Value;

use super::glob::Glob;
use super::source::{PathStep, RoleLine, SourceError};
use crate::authn::Principal;

/// Compiled role definitions.
#[derive(Debug, Default)]
pub struct Roles {
    names: Vec<Box<str>>,
    lines: Vec<Vec<Line>>,
    /// The lines as they were written, to be shown.
    sources: Vec<Vec<RoleLine>>,
}

/// The configured roles a principal has: a bit each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleSet(Box<[u64]>);

impl RoleSet {
    /// Whether role number `role` is in the set.
    pub fn has(&self, role: usize) -> bool {
        self.0
            .get(role / 64)
            .is_some_and(|block| block & (1 << (role % 64)) != 0)
    }

    fn insert(&mut self, role: usize) {
        self.0[role / 64] |= 1 << (role % 64);
    }
}

#[derive(Debug)]
enum Line {
    Scope(Glob),
    Role(Glob),
    Group(Glob),
    Subject(Glob),
    Client(Glob),
    Claim(Vec<String>, Glob),
    Identity(Glob),
    All(Vec<Line>),
}

impl Roles {
    /// Compiles definitions in the order of the file.
    ///
    /// # Errors
    /// Every line that can't be read, with its role's name.
    pub fn compile(definitions: Vec<(String, Vec<RoleLine>)>) -> Result<Self, Vec<(String, SourceError)>> {
        let mut roles = Self::default();
        let mut errors = Vec::new();
        for (name, lines) in definitions {
            let mut found = Vec::new();
            if lines.is_empty() {
                found.push(SourceError {
                    path: Vec::new(),
                    message: "a role without lines is nobody's; give it at least one, such as \"group:staff\""
                        .to_owned(),
                });
            }
            roles.sources.push(lines.clone());
            let compiled = compile(lines, &mut Vec::new(), &mut found);
            errors.extend(found.into_iter().map(|error| (name.clone(), error)));
            roles.names.push(name.into());
            roles.lines.push(compiled);
        }
        if errors.is_empty() { Ok(roles) } else { Err(errors) }
    }

    /// The roles a principal has.
    pub fn of(&self, principal: &Principal) -> RoleSet {
        let mut set = RoleSet(vec![0; self.names.len().div_ceil(64)].into());
        for (role, line) in self.grounds(principal).enumerate() {
            if line.is_some() {
                set.insert(role);
            }
        }
        set
    }

    /// By which line a principal has each role, the first that matches; `None` for roles it doesn't have.
    pub fn grounds(&self, principal: &Principal) -> impl Iterator<Item = Option<usize>> {
        self.lines
            .iter()
            .map(|lines| lines.iter().position(|line| line.matches(principal)))
    }

    /// A role's lines as they were written, by its number.
    pub fn sources(&self, role: usize) -> &[RoleLine] {
        &self.sources[role]
    }

    /// A role's number.
    pub fn number(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|role| **role == *name)
    }

    /// The names, by number.
    pub fn names(&self) -> &[Box<str>] {
        &self.names
    }
}

fn compile(lines: Vec<RoleLine>, path: &mut Vec<PathStep>, errors: &mut Vec<SourceError>) -> Vec<Line> {
    let mut compiled = Vec::with_capacity(lines.len());
    for (index, line) in lines.into_iter().enumerate() {
        path.push(PathStep::Index(index));
        match line {
            RoleLine::Text(text) => match Line::parse(&text) {
                Ok(line) => compiled.push(line),
                Err(message) => errors.push(SourceError {
                    path: path.clone(),
                    message,
                }),
            },
            RoleLine::All(lines) => {
                path.push(PathStep::Key("all"));
                if lines.is_empty() {
                    errors.push(SourceError {
                        path: path.clone(),
                        message: "an empty `all` would match everyone; name at least one line".to_owned(),
                    });
                }
                compiled.push(Line::All(compile(lines, path, errors)));
                path.pop();
            }
        }
        path.pop();
    }
    compiled
}

impl Line {
    fn parse(text: &str) -> Result<Self, String> {
        let (kind, value) = text
            .split_once(':')
            .filter(|(_, value)| !value.is_empty())
            .ok_or_else(|| format!("\"{text}\" is not kind:value; write it like \"group:staff\""))?;
        let glob = Glob::new(value);
        Ok(match kind {
            "scope" => Self::Scope(glob),
            "role" => Self::Role(glob),
            "group" => Self::Group(glob),
            "subject" => Self::Subject(glob),
            "client" => Self::Client(glob),
            "identity" => Self::Identity(glob),
            "claim" => {
                let (path, value) = value
                    .split_once('=')
                    .filter(|(path, value)| !path.is_empty() && !value.is_empty())
                    .ok_or_else(|| format!("\"{text}\" is not claim:PATH=VALUE"))?;
                Self::Claim(path.split('.').map(str::to_owned).collect(), Glob::new(value))
            }
            _ => {
                return Err(format!(
                    "\"{kind}\" is no kind of line; use scope, role, group, subject, client, claim or identity"
                ));
            }
        })
    }

    fn matches(&self, principal: &Principal) -> bool {
        let any = |glob: &Glob, values: &[String]| values.iter().any(|value| glob.matches(value));
        match self {
            Self::Scope(glob) => any(glob, &principal.scopes),
            Self::Role(glob) => any(glob, &principal.roles),
            Self::Group(glob) => any(glob, &principal.groups),
            // Nobody has an empty subject, which `*` must not match.
            Self::Subject(glob) => !principal.is_anonymous() && glob.matches(&principal.subject),
            Self::Client(glob) => principal.client.as_deref().is_some_and(|client| glob.matches(client)),
            Self::Identity(glob) => principal.identity.as_deref().is_some_and(|name| glob.matches(name)),
            Self::Claim(path, glob) => claim(principal, path).is_some_and(|value| value_matches(value, glob)),
            Self::All(lines) => lines.iter().all(|line| line.matches(principal)),
        }
    }
}

fn claim<'a>(principal: &'a Principal, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter()
        .try_fold(principal.claims.get(first)?, |value, step| value.get(step))
}

/// A claim matches as text; a list matches when a member does.
fn value_matches(value: &Value, glob: &Glob) -> bool {
    match value {
        Value::String(text) => glob.matches(text),
        Value::Bool(_) | Value::Number(_) => glob.matches(&value.to_string()),
        Value::Array(values) => values
            .iter()
            .any(|value| !value.is_array() && value_matches(value, glob)),
        Value::Null | Value::Object(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn has(line: RoleLine, principal: &Principal) -> bool {
        let roles = Roles::compile(vec![("r".into(), vec![line])]).expect("a good line");
        roles.of(principal).has(0)
    }

    #[test]
    fn every_kind_of_line_matches_what_it_names() {
        let Value::Object(claims) = json!({"department": "docs", "level": 3, "tags": ["a", "b"], "realm": {"x": true}})
        else {
            unreachable!("an object")
        };
        let principal = Principal {
            identity: Some("corp".into()),
            subject: "alice".into(),
            client: Some("cli".into()),
            scopes: vec!["notes:read".into()],
            roles: vec!["admin".into()],
            groups: vec!["staff".into()],
            claims,
            ..Principal::default()
        };
        for (line, expected) in [
            ("scope:notes:read", true),
            ("scope:notes:*", true),
            ("scope:notes", false),
            ("role:admin", true),
            ("group:st*", true),
            ("subject:alice", true),
            ("subject:*", true),
            ("client:cli", true),
            ("identity:corp", true),
            ("identity:other", false),
            ("claim:department=docs", true),
            ("claim:level=3", true),
            ("claim:tags=b", true),
            ("claim:realm.x=true", true),
            ("claim:realm=*", false),
            ("claim:missing=*", false),
        ] {
            assert_eq!(has(RoleLine::Text(line.into()), &principal), expected, "{line}");
            let nobody = Principal::anonymous();
            assert!(!has(RoleLine::Text(line.into()), &nobody), "{line} matches nobody");
        }
        let all = |lines: &[&str]| RoleLine::All(lines.iter().map(|line| RoleLine::Text((*line).into())).collect());
        assert!(has(all(&["group:staff", "role:admin"]), &principal));
        assert!(!has(all(&["group:staff", "role:other"]), &principal));
    }

    #[test]
    fn what_cant_be_read_is_refused() {
        for line in ["staff", "group:", ":x", "team:x", "claim:a", "claim:=b", "claim:a="] {
            assert!(
                Roles::compile(vec![("r".into(), vec![RoleLine::Text(line.into())])]).is_err(),
                "{line}"
            );
        }
        assert!(Roles::compile(vec![("r".into(), vec![RoleLine::All(vec![])])]).is_err());
        assert!(Roles::compile(vec![("r".into(), vec![])]).is_err());
    }

    #[test]
    fn more_roles_than_bits_in_a_block() {
        let definitions = (0..70)
            .map(|n| (format!("r{n}"), vec![RoleLine::Text(format!("group:g{n}"))]))
            .collect();
        let roles = Roles::compile(definitions).expect("good lines");
        let set = roles.of(&Principal {
            groups: vec!["g3".into(), "g69".into()],
            ..Principal::default()
        });
        let having: Vec<usize> = (0..80).filter(|&role| set.has(role)).collect();
        assert_eq!(having, [3, 69]);
    }
}
