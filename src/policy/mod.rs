//! What a principal may do on a route: one decision function for lists and calls.
//!
//! Pure: no IO, and the time of day is an argument. [`source`](PolicySource) is what the configuration says, [`Roles`] and
//! [`RoutePolicy`] are that compiled, [`Decision`] is an answer and [`Permit`] its proof: only this module makes one, and
//! [`crate::credential`] and [`crate::upstream`] demand it.
//!
//! What is listed can be called, save for conditions over arguments and for scopes still to be had:
//!
//! ```
//! use std::sync::Arc;
//!
//! use portcullis::authn::Principal;
//! use portcullis::mcp::{ListKind, parse};
//! use portcullis::policy::{PolicySource, Roles, RoutePolicy, RuleSource};
//!
//! let rule = RuleSource { allow: vec!["get_*".to_owned()], ..RuleSource::default() };
//! let source = PolicySource { tools: Some(vec![rule]), ..PolicySource::default() };
//! let policy = RoutePolicy::compile(source, &Arc::new(Roles::default())).expect("the rules are good");
//!
//! let caller = Arc::new(Principal::anonymous());
//! let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"drop_all"}}"#;
//! let payload = parse(&body.into()).expect("it is JSON-RPC");
//! let verdict = policy.authorize(&caller, "notes", &payload, 0);
//! assert!(verdict.permit.is_none());
//! assert_eq!(verdict.decisions[0].reason(), "no_rule");
//! assert!(!policy.lists(&caller, "notes", ListKind::Tools, "drop_all", 0));
//! assert!(policy.lists(&caller, "notes", ListKind::Tools, "get_note", 0));
//! ```

mod check;
mod decide;
mod glob;
mod roles;
mod source;
mod when;

use std::sync::Arc;

pub use check::{Permitted, PolicyCheck};
pub use decide::{Decision, Denial, Fit, RuleName, lacks};
pub use glob::Glob;
pub use roles::{RoleSet, Roles};
pub use source::{Budget, Cut, OnExcess, PathStep, PolicySource, RoleLine, RuleSource, SourceError};

use crate::authn::Principal;
use crate::clock::UnixSeconds;
use crate::mcp::{ListKind, Message, Payload, Reference, Target, target};
use decide::{Arguments, Case, Rules};

/// Everything a route demands of its callers, compiled.
#[derive(Debug, Default)]
pub struct RoutePolicy {
    roles: Arc<Roles>,
    /// Sorted.
    scopes: Vec<String>,
    tools: Option<Rules>,
    resources: Option<Rules>,
    prompts: Option<Rules>,
    methods: Vec<String>,
    budget: Option<Budget>,
}

/// Proof that a decision was made. Only this module makes one.
#[derive(Clone, Debug)]
pub struct Permit {
    principal: Arc<Principal>,
}

impl Permit {
    /// Whom it was made for.
    pub fn principal(&self) -> &Arc<Principal> {
        &self.principal
    }
}

/// The decisions over one POST.
#[derive(Debug)]
pub struct Verdict {
    /// There when at least one message may go on.
    pub permit: Option<Permit>,
    /// One a message, in order.
    pub decisions: Vec<Decision>,
}

impl RoutePolicy {
    /// Compiles a route's policy.
    ///
    /// # Errors
    /// Everything in it that is unknown or can never hold.
    pub fn compile(source: PolicySource, roles: &Arc<Roles>) -> Result<Self, Vec<SourceError>> {
        let mut errors = Vec::new();
        let mut rules = |list, sources: Option<Vec<RuleSource>>| {
            Rules::compile(list, sources?, roles)
                .map_err(|found| errors.extend(found))
                .ok()
        };
        let tools = rules("tools", source.tools);
        let resources = rules("resources", source.resources);
        let prompts = rules("prompts", source.prompts);
        let mut scopes = source.scopes;
        scopes.sort();
        scopes.dedup();
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            roles: roles.clone(),
            scopes,
            tools,
            resources,
            prompts,
            methods: source.methods,
            budget: source.budget,
        })
    }

    /// Decides message by message; what isn't permitted must not be sent (r50). A batch can't hold a list that has to be
    /// gathered: its other answers would have to wait for all the pages, and so would whatever the server asks meanwhile.
    pub fn authorize(&self, principal: &Arc<Principal>, route: &str, payload: &Payload, now: UnixSeconds) -> Verdict {
        self.authorize_aloud(principal, route, payload, now, |_, _, _| {})
    }

    /// The same, telling `hear` of every rule that is looked at: for which name or URI, and how it stands to that.
    pub fn authorize_aloud(
        &self,
        principal: &Arc<Principal>,
        route: &str,
        payload: &Payload,
        now: UnixSeconds,
        mut hear: impl FnMut(&str, RuleName, Fit),
    ) -> Verdict {
        let no_list = self.budget.is_some() && payload.is_batch();
        let decisions: Vec<Decision> = payload
            .messages()
            .iter()
            .map(
                |message| match self.decide_aloud(principal, route, message, now, &mut hear) {
                    Decision::Allowed(_) if no_list && &*message.method == "tools/list" => {
                        Decision::Denied(Denial::BatchedList)
                    }
                    decision => decision,
                },
            )
            .collect();
        let permit = decisions.iter().any(Decision::is_allowed).then(|| Permit {
            principal: principal.clone(),
        });
        Verdict { permit, decisions }
    }

    /// A permit for a stream, or for the end of a session: it needs the route's scopes.
    ///
    /// # Errors
    /// The scopes that are lacking.
    pub fn permit_stream(&self, principal: &Arc<Principal>) -> Result<Permit, Decision> {
        match self.open(principal) {
            Decision::Allowed(_) => Ok(Permit {
                principal: principal.clone(),
            }),
            refused => Err(refused),
        }
    }

    /// The decision over one message.
    pub fn decide(&self, principal: &Principal, route: &str, message: &Message, now: UnixSeconds) -> Decision {
        self.decide_aloud(principal, route, message, now, &mut |_, _, _| {})
    }

    fn decide_aloud(
        &self,
        principal: &Principal,
        route: &str,
        message: &Message,
        now: UnixSeconds,
        hear: &mut impl FnMut(&str, RuleName, Fit),
    ) -> Decision {
        let case = |arguments| Case {
            principal,
            roles: &self.roles,
            needed: &self.scopes,
            route,
            call: Some(Arguments(arguments)),
            now,
        };
        let mut by = |rules: &Option<Rules>, name: &str, arguments| match rules {
            Some(rules) => rules.decide(&case(arguments), name, |rule, fit| hear(name, rule, fit)),
            None => self.open(principal),
        };
        match target(message) {
            Target::Tool { name, arguments } => by(&self.tools, name, arguments),
            Target::Resource(uri) => by(&self.resources, uri, None),
            Target::Complete(Reference::Resource(uri)) => by(&self.resources, uri, None),
            Target::Prompt(name) => by(&self.prompts, name, message.arguments.as_deref()),
            Target::Complete(Reference::Prompt(name)) => by(&self.prompts, name, None),
            Target::Listen(uris) => uris
                .iter()
                .map(|uri| by(&self.resources, uri, None))
                .find(|decision| !decision.is_allowed())
                .unwrap_or_else(|| self.open(principal)),
            Target::List | Target::Lifecycle => self.open(principal),
            Target::TaskList if self.restricts() => Decision::Denied(Denial::TaskList),
            Target::TaskList => self.open(principal),
            Target::Extension(method) if self.restricts() && !self.methods.iter().any(|known| known == method) => {
                Decision::Denied(Denial::UnknownMethod)
            }
            Target::Extension(_) => self.open(principal),
            Target::Malformed => Decision::Denied(Denial::Malformed),
        }
    }

    /// Whether a list shows this principal an item.
    pub fn lists(&self, principal: &Principal, route: &str, kind: ListKind, name: &str, now: UnixSeconds) -> bool {
        self.rules(kind).is_none_or(|rules| {
            let case = Case {
                principal,
                roles: &self.roles,
                needed: &self.scopes,
                route,
                call: None,
                now,
            };
            rules.lists(&case, name)
        })
    }

    /// The rules of `tools`, `resources` or `prompts` as they were written; `None` where there are none.
    pub fn sources(&self, list: &str) -> Option<&[RuleSource]> {
        let rules = match list {
            "tools" => &self.tools,
            "resources" => &self.resources,
            "prompts" => &self.prompts,
            _ => &None,
        };
        rules.as_ref().map(Rules::sources)
    }

    /// Whether replies have to be looked at: rules exist, or a budget does.
    pub fn has_rules(&self) -> bool {
        self.restricts() || self.budget.is_some()
    }

    /// Whether anything has rules; a budget hides and forbids nothing.
    fn restricts(&self) -> bool {
        self.tools.is_some() || self.resources.is_some() || self.prompts.is_some()
    }

    /// Whether rules cover this kind of list.
    pub fn filters(&self, kind: ListKind) -> bool {
        self.rules(kind).is_some()
    }

    /// How many tools a caller is shown.
    pub fn budget(&self) -> Option<&Budget> {
        self.budget.as_ref()
    }

    /// Scopes needed for anything on the route, sorted.
    pub fn required_scopes(&self) -> &[String] {
        &self.scopes
    }

    /// Every scope the route may ask for (RFC 9728 `scopes_supported`).
    pub fn scopes_supported(&self) -> Vec<String> {
        let rules = [&self.tools, &self.resources, &self.prompts];
        let mut scopes: Vec<String> = self
            .scopes
            .iter()
            .chain(rules.into_iter().flatten().flat_map(Rules::scopes))
            .cloned()
            .collect();
        scopes.sort();
        scopes.dedup();
        scopes
    }

    fn rules(&self, kind: ListKind) -> Option<&Rules> {
        match kind {
            ListKind::Tools => self.tools.as_ref(),
            ListKind::Resources | ListKind::Templates => self.resources.as_ref(),
            ListKind::Prompts => self.prompts.as_ref(),
        }
    }

    /// The route's scopes and nothing else.
    fn open(&self, principal: &Principal) -> Decision {
        if lacks(&self.scopes, principal).next().is_none() {
            return Decision::Allowed(None);
        }
        Decision::InsufficientScope {
            required: self.scopes.clone(),
            rule: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_hides_and_forbids_nothing() {
        let decision = |tools: Option<Vec<RuleSource>>, method: &str| {
            let source = PolicySource {
                tools,
                budget: Some(Budget {
                    max: 1,
                    pin: Vec::new(),
                    on_excess: OnExcess::Trim,
                }),
                ..PolicySource::default()
            };
            let policy = RoutePolicy::compile(source, &Arc::default()).expect("a good policy");
            let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}"}}"#);
            let payload = crate::mcp::parse(&body.into()).expect("a message");
            policy
                .decide(&Principal::anonymous(), "r", &payload.messages()[0], 0)
                .reason()
        };
        assert_eq!(decision(None, "x/y"), "unrestricted");
        assert_eq!(decision(None, "tasks/list"), "unrestricted");
        assert_eq!(decision(Some(Vec::new()), "x/y"), "unknown_method");
        assert_eq!(decision(Some(Vec::new()), "tasks/list"), "task_list");
        assert_eq!(decision(Some(Vec::new()), "tasks/get"), "unrestricted");
    }

    #[test]
    fn a_budgeted_list_comes_alone() {
        let reasons = |budget: Option<Budget>, body: &'static str| -> Vec<&str> {
            let source = PolicySource {
                budget,
                ..PolicySource::default()
            };
            let policy = RoutePolicy::compile(source, &Arc::default()).expect("a good policy");
            let payload = crate::mcp::parse(&body.into()).expect("a message");
            let verdict = policy.authorize(&Arc::new(Principal::anonymous()), "r", &payload, 0);
            verdict.decisions.iter().map(Decision::reason).collect()
        };
        let budget = || {
            Some(Budget {
                max: 1,
                pin: Vec::new(),
                on_excess: OnExcess::Trim,
            })
        };
        let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
        let batch =
            r#"[{"jsonrpc":"2.0","id":1,"method":"tools/list"},{"jsonrpc":"2.0","id":2,"method":"prompts/list"}]"#;
        assert_eq!(reasons(budget(), list), ["unrestricted"]);
        assert_eq!(reasons(budget(), batch), ["batched_list", "unrestricted"]);
        assert_eq!(reasons(None, batch), ["unrestricted", "unrestricted"]);
    }
}
