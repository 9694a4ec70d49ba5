//! Policy as the configuration spells it, before it is compiled.

use std::fmt;

/// One line of a role: a caller has the role when any of its lines matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoleLine {
    /// `kind:value`, split at the first colon.
    Text(String),
    /// Every one of these must match.
    All(Vec<RoleLine>),
}

impl fmt::Display for RoleLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::All(lines) => {
                f.write_str("all of (")?;
                for (index, line) in lines.iter().enumerate() {
                    if index > 0 {
                        f.write_str(", ")?;
                    }
                    line.fmt(f)?;
                }
                f.write_str(")")
            }
        }
    }
}

/// One rule; exactly one of `allow` and `deny` is non-empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSource {
    pub allow: Vec<String>,
    pub deny: Vec<String>,
    /// Roles; empty means everyone.
    pub to: Vec<String>,
    pub scopes: Vec<String>,
    /// A CEL expression.
    pub when: Option<String>,
}

/// A route's policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySource {
    pub scopes: Vec<String>,
    pub tools: Option<Vec<RuleSource>>,
    pub resources: Option<Vec<RuleSource>>,
    pub prompts: Option<Vec<RuleSource>>,
    pub methods: Vec<String>,
    pub budget: Option<Budget>,
}

/// How many tools a caller is shown, counted after the rules, over all pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    pub max: usize,
    /// Survive the cut first.
    pub pin: Vec<String>,
    pub on_excess: OnExcess,
}

/// What happens when there are more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExcess {
    Trim,
    Refuse,
}

/// What is wrong with a policy, and where below the role's or the route's own key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceError {
    pub path: Vec<PathStep>,
    pub message: String,
}

/// One step of a key path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathStep {
    Key(&'static str),
    Index(usize),
}

/// What survives a budget's cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Indexes into the names, in their order.
    pub kept: Vec<usize>,
    pub hidden: usize,
}

impl Budget {
    /// Cuts: pinned tools first, then the upstream's order; what is kept stays in the upstream's order.
    pub fn cut(&self, names: &[&str]) -> Cut {
        let pinned = |name: &str| self.pin.iter().any(|pin| pin == name);
        let mut kept: Vec<usize> = (0..names.len()).filter(|&index| pinned(names[index])).collect();
        kept.truncate(self.max);
        let room = self.max - kept.len();
        kept.extend((0..names.len()).filter(|&index| !pinned(names[index])).take(room));
        kept.sort_unstable();
        Cut {
            hidden: names.len() - kept.len(),
            kept,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r10_the_cut_is_exact_and_pins_survive() {
        let names: Vec<String> = (0..129).map(|n| format!("t{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let budget = |pin: &[&str]| Budget {
            max: 128,
            pin: pin.iter().map(ToString::to_string).collect(),
            on_excess: OnExcess::Trim,
        };
        assert_eq!(budget(&[]).cut(&names[..128]).hidden, 0);
        let cut = budget(&[]).cut(&names);
        assert_eq!((cut.hidden, cut.kept.len(), cut.kept.last()), (1, 128, Some(&127)));
        let cut = budget(&["t128", "absent"]).cut(&names);
        assert_eq!((cut.hidden, cut.kept.last()), (1, Some(&128)));
        assert!(!cut.kept.contains(&127));
    }
}
