//! `when:` conditions, in CEL.
//!
//! 1. An expression sees `principal` (subject, issuer, client, scopes, roles, groups, claims), `tool` (the tool's or
//!    prompt's name, or the resource's URI), `args`, `route` and `now`. `principal.roles` are the configured roles.
//! 2. Anything but `true` or `false` is an error, and an error never allows (r11).
//! 3. Arguments are parsed only for a rule that otherwise matches. They are an object in which no key stands twice, at
//!    any depth: of two `ids` the condition might look at one and the upstream act on the other (r49).
//! 4. Parsing and evaluating recurse, and a worker's stack is small: an expression is parsed on a stack of its own, and one
//!    whose tree is deeper than [`MAX_DEPTH`] is refused.

use std::collections::HashMap;
use std::sync::Arc;

use cel::common::ast::{EntryExpr, Expr, IdedExpr};
use cel::{Context, Program, Value};

use super::Roles;
use crate::authn::{Principal, strict_json};
use crate::clock::UnixSeconds;

/// Longest expression.
const MAX_LENGTH: usize = 4096;

/// Deepest tree of an expression. Operators in a row nest to the left, so this is also how many `+` a sum can have.
const MAX_DEPTH: usize = 48;

/// Bytes for the parser, which bounds itself at 96 levels but spends over 100 KiB on each when it isn't optimised.
const PARSER_STACK: usize = 64 * 1024 * 1024;

/// A compiled condition.
#[derive(Debug)]
pub struct When {
    program: Program,
    uses_args: bool,
}

/// What a condition is asked about.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub principal: &'a Principal,
    pub roles: &'a Roles,
    pub route: &'a str,
    pub target: &'a str,
    /// Raw JSON; none is an empty map.
    pub arguments: Option<&'a [u8]>,
    pub now: UnixSeconds,
}

/// The condition could not be decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undecided;

impl When {
    /// Compiles an expression.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn compile(text: &str) -> Result<Self, String> {
        if text.len() > MAX_LENGTH {
            return Err(format!("the expression is over {MAX_LENGTH} bytes"));
        }
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .stack_size(PARSER_STACK)
                .spawn_scoped(scope, || Self::parse(text))
                .map_err(|error| format!("no thread to parse it: {error}"))?
                .join()
                .unwrap_or_else(|_| Err("not a CEL expression".to_owned()))
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let program = Program::compile(text).map_err(|error| format!("not a CEL expression: {error}"))?;
        let mut walk = Walk::default();
        walk.visit(program.expression());
        if walk.deepest > MAX_DEPTH {
            return Err(format!("the expression nests deeper than {MAX_DEPTH}"));
        }
        let known = ["principal", "tool", "args", "route", "now"];
        if let Some(name) = walk.free.iter().find(|name| !known.contains(name)) {
            return Err(format!(
                "unknown variable \"{name}\"; there are principal, tool, args, route and now"
            ));
        }
        let uses_args = walk.free.contains(&"args");
        Ok(Self { program, uses_args })
    }

    /// Whether the arguments of a call decide it.
    pub fn uses_args(&self) -> bool {
        self.uses_args
    }

    /// Decides.
    ///
    /// # Errors
    /// When the evaluation fails or yields no boolean.
    pub fn holds(&self, question: &Question<'_>) -> Result<bool, Undecided> {
        let Question {
            principal,
            roles,
            route,
            target,
            arguments,
            now,
        } = *question;
        let args = match arguments {
            Some(arguments) if self.uses_args => strict_json::object(arguments).ok_or(Undecided)?,
            _ => serde_json::Map::new(),
        };
        let granted = roles
            .names()
            .iter()
            .enumerate()
            .filter(|(role, _)| principal.granted.has(*role))
            .map(|(_, name)| &**name);
        let caller: HashMap<&str, Value> = HashMap::from([
            ("subject", text(&principal.subject)),
            ("issuer", text(&principal.issuer)),
            ("client", text(principal.client.as_deref().unwrap_or_default())),
            ("scopes", texts(principal.scopes.iter().map(String::as_str))),
            ("roles", texts(granted)),
            ("groups", texts(principal.groups.iter().map(String::as_str))),
            ("claims", map(&principal.claims)),
        ]);
        let mut context = Context::default();
        context.add_variable_from_value("principal", Value::from(caller));
        context.add_variable_from_value("args", map(&args));
        context.add_variable_from_value("tool", text(target));
        context.add_variable_from_value("route", text(route));
        let now = chrono::DateTime::from_timestamp(i64::try_from(now).unwrap_or(i64::MAX), 0).ok_or(Undecided)?;
        context.add_variable_from_value("now", Value::Timestamp(now.fixed_offset()));
        match self.program.execute(&context) {
            Ok(Value::Bool(holds)) => Ok(holds),
            _ => Err(Undecided),
        }
    }
}

fn text(text: &str) -> Value {
    Value::String(Arc::new(text.to_owned()))
}

fn texts<'a>(list: impl Iterator<Item = &'a str>) -> Value {
    Value::List(Arc::new(list.map(text).collect()))
}

fn map(object: &serde_json::Map<String, serde_json::Value>) -> Value {
    let entries: HashMap<&str, Value> = object
        .iter()
        .map(|(key, member)| (key.as_str(), value(member)))
        .collect();
    Value::from(entries)
}

/// JSON as CEL sees it. A whole number is an `int` wherever it fits, as literals are: `uint` and `int` don't mix in
/// CEL's arithmetic, and `args.n + 1` has to work.
fn value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(bool) => Value::Bool(*bool),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => Value::Int(int),
            (None, Some(uint)) => Value::UInt(uint),
            // A number beyond every type compares with nothing.
            (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(string) => text(string),
        serde_json::Value::Array(members) => Value::List(Arc::new(members.iter().map(value).collect())),
        serde_json::Value::Object(object) => map(object),
    }
}

/// What an expression's tree shows: the variables it doesn't bind itself, and how deep it is.
#[derive(Default)]
struct Walk<'a> {
    bound: Vec<&'a str>,
    free: Vec<&'a str>,
    depth: usize,
    deepest: usize,
}

impl<'a> Walk<'a> {
    fn visit(&mut self, expression: &'a IdedExpr) {
        self.depth += 1;
        self.deepest = self.deepest.max(self.depth);
        match &expression.expr {
            Expr::Ident(name) => {
                // The parser's own accumulators begin with an `@`.
                if !name.starts_with('@') && !self.bound.contains(&name.as_str()) {
                    self.free.push(name);
                }
            }
            Expr::Call(call) => {
                for part in call.target.as_deref().into_iter().chain(&call.args) {
                    self.visit(part);
                }
            }
            Expr::Comprehension(comprehension) => {
                self.visit(&comprehension.iter_range);
                self.visit(&comprehension.accu_init);
                let outside = self.bound.len();
                self.bound.push(&comprehension.iter_var);
                self.bound.extend(comprehension.iter_var2.as_deref());
                self.bound.push(&comprehension.accu_var);
                self.visit(&comprehension.loop_cond);
                self.visit(&comprehension.loop_step);
                self.visit(&comprehension.result);
                self.bound.truncate(outside);
            }
            Expr::List(list) => {
                for element in &list.elements {
                    self.visit(element);
                }
            }
            Expr::Map(map) => self.entries(&map.entries),
            Expr::Struct(structure) => self.entries(&structure.entries),
            Expr::Select(select) => self.visit(&select.operand),
            Expr::Literal(_) | Expr::Unspecified => {}
        }
        self.depth -= 1;
    }

    fn entries(&mut self, entries: &'a [cel::common::ast::IdedEntryExpr]) {
        for entry in entries {
            match &entry.expr {
                EntryExpr::StructField(field) => self.visit(&field.value),
                EntryExpr::MapEntry(entry) => {
                    self.visit(&entry.key);
                    self.visit(&entry.value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_variables_from_outside_must_be_known() {
        for (expression, good) in [
            ("args.ids.all(i, i < 10)", true),
            ("args.ids.exists(i, args.others.exists(j, i == j))", true),
            ("[1].map(x, x + 1)[0] == 2 && principal.subject == tool", true),
            ("args.ids.all(i, i < limit)", false),
            ("args.ids.all(i, i < 10) && i == 1", false),
            ("{'a': b}.a == 1", false),
        ] {
            assert_eq!(When::compile(expression).is_ok(), good, "{expression}");
        }
        let local = When::compile("[1].all(args, args == 1)").expect("its own args");
        assert!(!local.uses_args());
        assert!(When::compile("route in args.routes").expect("a condition").uses_args());
        assert!(When::compile(&"true || ".repeat(1000)).is_err(), "too long");
    }

    #[test]
    fn what_nests_deeply_is_refused_and_never_takes_the_stack_with_it() {
        let nested = |open: &str, inner: &str, close: &str, times| {
            format!("{}{inner}{}", open.repeat(times), close.repeat(times))
        };
        let principal = Principal::anonymous();
        let question = Question {
            principal: &principal,
            roles: &Roles::default(),
            route: "r",
            target: "t",
            arguments: None,
            now: 0,
        };
        let forms: [(&str, &str, &str); 7] = [
            ("(", "true", ")"),
            ("[", "1", "]"),
            ("[", "", ""),
            ("size(", "'a'", ")"),
            ("{1:", "1", "}"),
            ("", "args", ".a"),
            ("", "1", "+1"),
        ];
        for (open, inner, close) in forms {
            for times in [10, 40, 100, 1000] {
                let text = nested(open, inner, close, times);
                if let Ok(when) = When::compile(&text) {
                    let _ = when.holds(&question);
                    assert!(times < 100 || open == "(", "{text}");
                }
            }
        }
        assert!(When::compile(&nested("[", "1", "]", 10)).is_ok());
    }
}
