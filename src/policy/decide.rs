//! The one decision function, for lists and for calls.
//!
//! 1. The route's scopes are needed for anything.
//! 2. Deny beats allow; where rules exist and none allows, the answer is no; where none exist, yes.
//! 3. When scopes are all that an allowing rule lacks, the refusal says which: of several such rules, the one that lacks
//!    the fewest, together with what the route needs.
//! 4. A condition that can't be decided denies (r11): an allow doesn't allow, a deny denies.
//! 5. In a list there are no arguments, so a condition over `args` counts as met in an allow and unmet in a deny: what
//!    may be callable is shown, the call decides.
//! 6. A tool that lacks only scopes is listed, so that a client can step up.
//! 7. A URI with dot segments, plain or percent-encoded, is refused where resources have rules. Other spellings of one
//!    resource are the upstream's affair, so narrow allows are safer than broad ones with denies.

use std::fmt;

use super::glob::Glob;
use super::roles::Roles;
use super::source::{PathStep, RuleSource, SourceError};
use super::when::{Question, Undecided, When};
use crate::authn::Principal;
use crate::clock::UnixSeconds;

/// What was decided, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// By this rule, or because nothing restricts it.
    Allowed(Option<RuleName>),
    Denied(Denial),
    /// Scopes are all that is lacking: the smallest sufficient set, the route's included, sorted.
    InsufficientScope {
        required: Vec<String>,
        rule: Option<RuleName>,
    },
}

/// Which rule: `tools.rules[2]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleName {
    pub list: &'static str,
    pub index: usize,
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.rules[{}]", self.list, self.index)
    }
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// A deny rule matched.
    Rule(RuleName),
    /// No rule allows it.
    NoRule,
    /// A rule's condition does not hold.
    When(RuleName),
    /// A rule's condition could not be decided.
    WhenError(RuleName),
    /// A method no revision knows, on a route with rules.
    UnknownMethod,
    /// `tasks/list` would show everybody's tasks.
    TaskList,
    /// The URI has dot segments: what the server makes of it is not what the globs saw.
    AmbiguousUri,
    /// The message lacks what it is about.
    Malformed,
    /// A budget counts over all pages of a list, which a batch has no room for.
    BatchedList,
}

impl Decision {
    /// Whether the message may go on.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed(_))
    }

    /// Whether it is the message that is wrong, not the caller.
    pub fn is_malformed(&self) -> bool {
        matches!(self, Self::Denied(Denial::Malformed))
    }

    /// The scopes that would suffice, when they are all that is lacking.
    pub fn required_scopes(&self) -> Option<&[String]> {
        match self {
            Self::InsufficientScope { required, .. } => Some(required),
            _ => None,
        }
    }

    /// The rule that decided.
    pub fn rule(&self) -> Option<RuleName> {
        match self {
            Self::Allowed(rule) | Self::InsufficientScope { rule, .. } => *rule,
            Self::Denied(Denial::Rule(rule) | Denial::When(rule) | Denial::WhenError(rule)) => Some(*rule),
            Self::Denied(_) => None,
        }
    }

    /// `allow` or `deny`, a metric label.
    pub fn label(&self) -> &'static str {
        if self.is_allowed() { "allow" } else { "deny" }
    }

    /// A bounded word for metrics and the audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Allowed(Some(_)) => "rule",
            Self::Allowed(None) => "unrestricted",
            Self::InsufficientScope { .. } => "insufficient_scope",
            Self::Denied(denial) => match denial {
                Denial::Rule(_) => "deny_rule",
                Denial::NoRule => "no_rule",
                Denial::When(_) => "when_false",
                Denial::WhenError(_) => "when_error",
                Denial::UnknownMethod => "unknown_method",
                Denial::TaskList => "task_list",
                Denial::AmbiguousUri => "ambiguous_uri",
                Denial::Malformed => "malformed",
                Denial::BatchedList => "batched_list",
            },
        }
    }
}

/// What the caller is told: enough to act on, nothing of how the rules are written.
impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allowed(_) => "allowed",
            Self::InsufficientScope { required, .. } => {
                return write!(f, "insufficient scope: this needs {}", required.join(" "));
            }
            Self::Denied(Denial::UnknownMethod) => "this method is not let through on this route",
            Self::Denied(Denial::TaskList) => "tasks can't be listed here, since the server can't tell whose they are",
            Self::Denied(Denial::AmbiguousUri) => "a URI with dot segments is not let through on this route",
            Self::Denied(Denial::Malformed) => "the request lacks the name or URI that it is about",
            Self::Denied(Denial::BatchedList) => {
                "the list of tools has a budget on this route: send tools/list by itself, not in a batch"
            }
            Self::Denied(_) => "not permitted: ask whoever runs this gateway for a role that is",
        })
    }
}

/// How a rule stands to one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It is about other names.
    OtherName,
    /// It is for roles that the caller doesn't have.
    OtherRole,
    /// Of its scopes, or the route's, the caller lacks some.
    LacksScopes,
    /// Its condition doesn't hold.
    When,
    /// Its condition can't be decided.
    Undecided,
    Matches,
}

/// A compiled list of rules.
#[derive(Debug)]
pub struct Rules {
    list: &'static str,
    rules: Vec<Rule>,
    /// As they were written, to be shown.
    sources: Vec<RuleSource>,
}

#[derive(Debug)]
struct Rule {
    denies: bool,
    globs: Vec<Glob>,
    /// Role numbers; empty means everyone.
    to: Vec<usize>,
    /// Sorted.
    scopes: Vec<String>,
    when: Option<When>,
}

/// What is decided over.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    pub principal: &'a Principal,
    pub roles: &'a Roles,
    /// The route's scopes, sorted.
    pub needed: &'a [String],
    pub route: &'a str,
    /// `None`: a list, where arguments are not known (rules 5 and 6).
    pub call: Option<Arguments<'a>>,
    pub now: UnixSeconds,
}

/// A call's raw `arguments`.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a>(pub Option<&'a [u8]>);

impl Rules {
    /// Compiles rules.
    ///
    /// # Errors
    /// Unknown roles, conditions that don't compile, allows that a deny wholly shadows.
    pub fn compile(list: &'static str, sources: Vec<RuleSource>, roles: &Roles) -> Result<Self, Vec<SourceError>> {
        let mut errors = Vec::new();
        let mut at = |index: usize, rest: &[PathStep], message: String| {
            let mut path = vec![PathStep::Key(list), PathStep::Key("rules"), PathStep::Index(index)];
            path.extend_from_slice(rest);
            errors.push(SourceError { path, message });
        };
        let mut rules = Vec::with_capacity(sources.len());
        for (index, source) in sources.iter().enumerate() {
            let to = source.to.iter().enumerate().filter_map(|(place, name)| {
                let number = roles.number(name);
                if number.is_none() {
                    let known: Vec<&str> = roles.names().iter().map(|name| &**name).collect();
                    let message = format!("no role \"{name}\"; there are: {}", known.join(", "));
                    at(index, &[PathStep::Key("to"), PathStep::Index(place)], message);
                }
                number
            });
            let to: Vec<usize> = to.collect();
            let when = source.when.as_deref().and_then(|text| match When::compile(text) {
                Ok(when) => Some(when),
                Err(message) => {
                    at(index, &[PathStep::Key("when")], message);
                    None
                }
            });
            let mut scopes = source.scopes.clone();
            scopes.sort();
            scopes.dedup();
            let denies = !source.deny.is_empty();
            if denies != source.allow.is_empty() {
                at(
                    index,
                    &[],
                    "a rule has either `allow` or `deny`, with at least one pattern".to_owned(),
                );
            }
            let globs = if denies { &source.deny } else { &source.allow };
            rules.push(Rule {
                denies,
                globs: globs.iter().map(|glob| Glob::new(glob)).collect(),
                to,
                scopes,
                when,
            });
        }
        for (index, source) in sources.iter().enumerate() {
            for (place, glob) in source.allow.iter().enumerate() {
                let wanted = Glob::new(glob);
                let shadow = rules.iter().position(|rule| {
                    rule.denies && rule.is_unconditional() && rule.globs.iter().any(|deny| deny.covers(&wanted))
                });
                if let Some(shadow) = shadow {
                    let message = format!("\"{glob}\" can never be allowed: {list}.rules[{shadow}] denies all of it");
                    at(index, &[PathStep::Key("allow"), PathStep::Index(place)], message);
                }
            }
        }
        if errors.is_empty() {
            Ok(Self { list, rules, sources })
        } else {
            Err(errors)
        }
    }

    /// Every scope a rule may ask for.
    pub fn scopes(&self) -> impl Iterator<Item = &String> {
        self.rules
            .iter()
            .filter(|rule| !rule.denies)
            .flat_map(|rule| &rule.scopes)
    }

    /// The rules as they were written.
    pub fn sources(&self) -> &[RuleSource] {
        &self.sources
    }

    /// Decides over one name or URI, telling `hear` of every rule it looks at, in that order. Allocates nothing when the
    /// answer is yes and no condition is asked.
    pub fn decide(&self, case: &Case<'_>, name: &str, mut hear: impl FnMut(RuleName, Fit)) -> Decision {
        let rule_name = |index| RuleName { list: self.list, index };
        if self.list == "resources" && has_dot_segment(name) {
            return Decision::Denied(Denial::AmbiguousUri);
        }
        for (index, rule) in self.rules.iter().enumerate().filter(|(_, rule)| rule.denies) {
            let fit = rule.fit(case, name);
            hear(rule_name(index), fit);
            match fit {
                Fit::Matches => return Decision::Denied(Denial::Rule(rule_name(index))),
                Fit::Undecided => return Decision::Denied(Denial::WhenError(rule_name(index))),
                Fit::OtherName | Fit::OtherRole | Fit::LacksScopes | Fit::When => {}
            }
        }
        let mut denial = Denial::NoRule;
        let mut lacking: Option<(usize, usize)> = None;
        for (index, rule) in self.rules.iter().enumerate().filter(|(_, rule)| !rule.denies) {
            let fit = rule.fit(case, name);
            hear(rule_name(index), fit);
            match fit {
                Fit::Matches => return Decision::Allowed(Some(rule_name(index))),
                Fit::Undecided => denial = Denial::WhenError(rule_name(index)),
                Fit::When if denial == Denial::NoRule => denial = Denial::When(rule_name(index)),
                Fit::LacksScopes => {
                    let missing = rule.lacking(case.principal).count() + lacks(case.needed, case.principal).count();
                    if lacking.is_none_or(|(fewest, _)| missing < fewest) {
                        lacking = Some((missing, index));
                    }
                }
                Fit::OtherName | Fit::OtherRole | Fit::When => {}
            }
        }
        match lacking {
            None => Decision::Denied(denial),
            Some((_, index)) => {
                let mut required: Vec<String> = case.needed.iter().chain(&self.rules[index].scopes).cloned().collect();
                required.sort();
                required.dedup();
                Decision::InsufficientScope {
                    required,
                    rule: Some(rule_name(index)),
                }
            }
        }
    }

    /// Whether a list shows it: rule 6.
    pub fn lists(&self, case: &Case<'_>, name: &str) -> bool {
        !matches!(self.decide(case, name, |_, _| {}), Decision::Denied(_))
    }
}

impl Rule {
    fn is_unconditional(&self) -> bool {
        self.to.is_empty() && self.scopes.is_empty() && self.when.is_none()
    }

    /// What keeps it from matching, the first thing if there are several. A deny needs its own scopes, and is spared its
    /// condition without them; an allow needs the route's as well, and they are asked for last (rule 3).
    fn fit(&self, case: &Case<'_>, name: &str) -> Fit {
        let principal = case.principal;
        if !self.globs.iter().any(|glob| glob.matches(name)) {
            return Fit::OtherName;
        }
        if !self.to.is_empty() && !self.to.iter().any(|&role| principal.granted.has(role)) {
            return Fit::OtherRole;
        }
        let lacks_own = self.lacking(principal).next().is_some();
        if self.denies && lacks_own {
            return Fit::LacksScopes;
        }
        match self.holds(case, name) {
            Err(Undecided) => Fit::Undecided,
            Ok(false) => Fit::When,
            Ok(true) if !self.denies && (lacks_own || lacks(case.needed, principal).next().is_some()) => {
                Fit::LacksScopes
            }
            Ok(true) => Fit::Matches,
        }
    }

    fn lacking<'a>(&'a self, principal: &'a Principal) -> impl Iterator<Item = &'a String> {
        lacks(&self.scopes, principal)
    }

    fn holds(&self, case: &Case<'_>, name: &str) -> Result<bool, Undecided> {
        let Some(when) = &self.when else { return Ok(true) };
        if case.call.is_none() && when.uses_args() {
            return Ok(!self.denies);
        }
        when.holds(&Question {
            principal: case.principal,
            roles: case.roles,
            route: case.route,
            target: name,
            arguments: case.call.and_then(|call| call.0),
            now: case.now,
        })
    }
}

/// The scopes of `needed` that the principal lacks.
pub fn lacks<'a>(needed: &'a [String], principal: &'a Principal) -> impl Iterator<Item = &'a String> {
    needed
        .iter()
        .filter(|scope| principal.scopes.binary_search(scope).is_err())
}

/// Whether some server may take a segment for `.` or `..` (RFC 3986 section 5.2.4): backslashes and the
/// percent-encodings of dots and slashes count, as servers decode before or after they look.
fn has_dot_segment(uri: &str) -> bool {
    let mut rest = uri.as_bytes();
    let (mut length, mut dots) = (0_usize, true);
    loop {
        let (byte, after) = match rest {
            [] => (b'/', None),
            [b'%', b'2', b'e' | b'E', after @ ..] => (b'.', Some(after)),
            [b'%', b'2', b'f' | b'F', after @ ..] | [b'%', b'5', b'c' | b'C', after @ ..] => (b'/', Some(after)),
            [byte, after @ ..] => (*byte, Some(after)),
        };
        if matches!(byte, b'/' | b'\\' | b'?' | b'#') {
            if dots && (1..=2).contains(&length) {
                return true;
            }
            (length, dots) = (0, true);
        } else {
            length += 1;
            dots &= byte == b'.';
        }
        match after {
            Some(after) => rest = after,
            None => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::RoleLine;
    use proptest::prelude::*;

    fn roles() -> Roles {
        let line = |text: &str| vec![RoleLine::Text(text.into())];
        Roles::compile(vec![
            ("reader".into(), line("scope:read")),
            ("editor".into(), line("role:editor")),
        ])
        .expect("good roles")
    }

    fn rule(text: &str) -> RuleSource {
        // allow:GLOB / deny:GLOB, then to:, scopes:, when: parts split at `|`.
        let mut source = RuleSource::default();
        for part in text.split('|') {
            let (key, value) = part.split_once(':').expect("key:value");
            let values = value.split(',').map(str::to_owned).collect();
            match key {
                "allow" => source.allow = values,
                "deny" => source.deny = values,
                "to" => source.to = values,
                "scopes" => source.scopes = values,
                "when" => source.when = Some(value.to_owned()),
                _ => panic!("{key}"),
            }
        }
        source
    }

    fn rules(texts: &[&str]) -> Rules {
        Rules::compile("tools", texts.iter().map(|text| rule(text)).collect(), &roles()).expect("good rules")
    }

    fn principal(scopes: &[&str], claim_roles: &[&str]) -> Principal {
        let mut principal = Principal {
            identity: Some("corp".into()),
            subject: "alice".into(),
            scopes: scopes.iter().map(ToString::to_string).collect(),
            roles: claim_roles.iter().map(ToString::to_string).collect(),
            ..Principal::default()
        };
        principal.scopes.sort();
        principal.granted = roles().of(&principal);
        principal
    }

    fn decide(rules: &Rules, principal: &Principal, needed: &[&str], name: &str, args: Option<&str>) -> Decision {
        let needed: Vec<String> = needed.iter().map(ToString::to_string).collect();
        let roles = roles();
        rules.decide(
            &Case {
                principal,
                roles: &roles,
                needed: &needed,
                route: "notes",
                call: Some(Arguments(args.map(str::as_bytes))),
                now: 1_800_000_000,
            },
            name,
            |_, _| {},
        )
    }

    #[test]
    fn deny_beats_allow_and_silence_denies() {
        let rules = rules(&[
            "allow:get_*|to:reader",
            "allow:*|to:editor",
            "deny:admin_*",
            "deny:get_secret|to:reader",
        ]);
        let reader = principal(&["read"], &[]);
        let editor = principal(&[], &["editor"]);
        let nobody = Principal::anonymous();
        for (who, tool, reason) in [
            (&reader, "get_note", "rule"),
            (&reader, "get_secret", "deny_rule"),
            (&reader, "delete", "no_rule"),
            (&reader, "admin_x", "deny_rule"),
            (&editor, "delete", "rule"),
            (&editor, "get_secret", "rule"),
            (&editor, "admin_x", "deny_rule"),
            (&nobody, "get_note", "no_rule"),
        ] {
            assert_eq!(decide(&rules, who, &[], tool, None).reason(), reason, "{tool}");
        }
    }

    #[test]
    fn insufficient_scope_names_the_smallest_sufficient_set() {
        let rules = rules(&[
            "allow:x|scopes:a,b,c",
            "allow:x|scopes:read,d",
            "allow:y|to:editor|scopes:z",
        ]);
        let reader = principal(&["read"], &[]);
        let required = |decision: Decision| decision.required_scopes().map(<[String]>::to_vec);
        assert_eq!(
            required(decide(&rules, &reader, &["use"], "x", None)),
            Some(vec!["d".to_owned(), "read".into(), "use".into()])
        );
        assert_eq!(
            required(decide(&rules, &reader, &["use"], "y", None)),
            None,
            "the role lacks too"
        );
        assert!(decide(&rules, &principal(&["d", "read", "use"], &[]), &["use"], "x", None).is_allowed());
    }

    #[test]
    fn r11_conditions_that_cant_be_decided_deny() {
        let allow = rules(&["allow:x|when:size(args.ids) <= 2"]);
        let anyone = principal(&[], &[]);
        for (args, reason) in [
            (Some(r#"{"ids":[1,2]}"#), "rule"),
            (Some(r#"{"ids":[1,2,3]}"#), "when_false"),
            (Some(r#"{"ids":7}"#), "when_error"),
            (Some("{}"), "when_error"),
            (None, "when_error"),
        ] {
            assert_eq!(decide(&allow, &anyone, &[], "x", args).reason(), reason, "{args:?}");
        }
        let deny = rules(&["allow:x", "deny:x|when:args.force"]);
        for (args, reason) in [
            (r#"{"force":true}"#, "deny_rule"),
            (r#"{"force":false}"#, "rule"),
            (r#"{"force":1}"#, "when_error"),
            ("{}", "when_error"),
        ] {
            assert_eq!(decide(&deny, &anyone, &[], "x", Some(args)).reason(), reason, "{args}");
        }
        let who = rules(&[
            "allow:x|when:principal.subject == 'alice' && route == 'notes' && tool == 'x' && now > timestamp('2020-01-01T00:00:00Z')",
        ]);
        assert!(decide(&who, &anyone, &[], "x", None).is_allowed());
        let each = rules(&["allow:x|when:args.ids.all(i, i < 10) && 'reader' in principal.roles"]);
        assert!(decide(&each, &principal(&["read"], &[]), &[], "x", Some(r#"{"ids":[1]}"#)).is_allowed());
    }

    #[test]
    fn r49_of_two_arguments_of_one_name_none_is_believed() {
        let allow = rules(&["allow:x|when:size(args.ids) <= 2"]);
        let deny = rules(&["allow:x", "deny:x|when:args.o.force"]);
        let anyone = principal(&[], &[]);
        for (rules, args) in [
            (&allow, r#"{"ids":[1,2,3],"ids":[1]}"#),
            (&allow, r#"{"ids":[1],"i\u0064s":[1,2,3]}"#),
            (&deny, r#"{"o":{"force":true,"force":false}}"#),
            (&allow, r#"[{"ids":[1]}]"#),
        ] {
            assert_eq!(
                decide(rules, &anyone, &[], "x", Some(args)).reason(),
                "when_error",
                "{args}"
            );
        }
    }

    #[test]
    fn dot_segments_reach_past_no_glob() {
        let rules = Rules::compile("resources", vec![rule("allow:file:///public/*")], &roles()).expect("a good rule");
        let anyone = principal(&[], &[]);
        for (uri, reason) in [
            ("file:///public/a", "rule"),
            ("file:///public/a..b/.hidden/...", "rule"),
            ("file:///public/%2", "rule"),
            ("file:///public/../secret", "ambiguous_uri"),
            ("file:///public/x/..", "ambiguous_uri"),
            ("file:///public/./a", "ambiguous_uri"),
            ("file:///public/%2e%2E/secret", "ambiguous_uri"),
            ("file:///public/..%2fsecret", "ambiguous_uri"),
            ("file:///public/..\\secret", "ambiguous_uri"),
            ("file:///public/..%5Csecret", "ambiguous_uri"),
        ] {
            assert_eq!(decide(&rules, &anyone, &[], uri, None).reason(), reason, "{uri}");
        }
    }

    #[test]
    fn numbers_of_json_compare_with_literals() {
        let anyone = principal(&[], &[]);
        for when in [
            "args.n == 10",
            "args.n <= 10",
            "args.n in [10]",
            "args.n + 1 > 10",
            "args.n != 11",
        ] {
            let rules = rules(&[&format!("allow:x|when:{when}")]);
            assert_eq!(
                decide(&rules, &anyone, &[], "x", Some(r#"{"n":10}"#)).reason(),
                "rule",
                "{when}"
            );
        }
    }

    #[test]
    fn rules_that_can_never_hold_are_errors() {
        for (texts, expected) in [
            (&["allow:x|to:ghost"][..], "no role \"ghost\""),
            (&["allow:get_*", "deny:get*"], "can never be allowed"),
            (&["allow:x|when:size("], "not a CEL expression"),
            (&["allow:x|when:nobody.name == 'x'"], "unknown variable \"nobody\""),
        ] {
            let errors =
                Rules::compile("tools", texts.iter().map(|text| rule(text)).collect(), &roles()).expect_err(expected);
            assert!(errors[0].message.contains(expected), "{}", errors[0].message);
        }
        rules(&["allow:get_*", "deny:get*|to:reader"]);
        rules(&["allow:get_*", "deny:get_x*"]);
    }

    proptest! {
        /// Listed = callable, save for what only the arguments or more scopes decide.
        #[test]
        fn r37_listed_is_callable(
            texts in prop::collection::vec((any::<bool>(), "[ab*]{1,3}", prop::option::of(prop_oneof![Just("reader"), Just("editor")]), prop::option::of("[pq]"), any::<bool>()), 0..5),
            scopes in prop::collection::vec(prop_oneof![Just("read"), Just("p"), Just("q")], 0..3),
            editor in any::<bool>(),
            name in "[ab]{1,3}",
        ) {
            let sources: Vec<RuleSource> = texts.iter().map(|(denies, glob, to, scope, when)| RuleSource {
                allow: if *denies { vec![] } else { vec![glob.clone()] },
                deny: if *denies { vec![glob.clone()] } else { vec![] },
                to: to.iter().map(ToString::to_string).collect(),
                scopes: scope.iter().cloned().collect(),
                when: when.then(|| "principal.subject == 'alice'".to_owned()),
            }).collect();
            let roles = roles();
            let Ok(rules) = Rules::compile("tools", sources, &roles) else { return Ok(()) };
            let principal = principal(&scopes, if editor { &["editor"] } else { &[] });
            let mut case = Case { principal: &principal, roles: &roles, needed: &[], route: "r", call: None, now: 0 };
            let listed = rules.lists(&case, &name);
            case.call = Some(Arguments(None));
            let called = rules.decide(&case, &name, |_, _| {});
            prop_assert_eq!(listed, called.is_allowed() || called.required_scopes().is_some());
        }
    }
}
