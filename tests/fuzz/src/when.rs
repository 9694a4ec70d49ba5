//! `when` conditions. Input: an expression on the first line, a call's arguments (JSON) on the rest.
//!
//! Oracle: neither panics, and libFuzzer's `-timeout` holds; and a condition that says `&& false` never allows, whatever
//! stands before it. Loops within loops are the configuration's own affair and are compiled only: time is bounded here for
//! hostile arguments, not for hostile operators.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use portcullis::authn::Principal;
use portcullis::mcp::parse;
use portcullis::policy::{PolicySource, Roles, RoutePolicy, RuleSource};

fn policy(when: &str) -> Option<RoutePolicy> {
    let rule = RuleSource {
        allow: vec!["*".to_owned()],
        when: Some(when.to_owned()),
        ..RuleSource::default()
    };
    let source = PolicySource {
        tools: Some(vec![rule]),
        ..PolicySource::default()
    };
    RoutePolicy::compile(source, &Arc::new(Roles::default())).ok()
}

fuzz_target!(|input: &str| {
    let (expression, arguments) = input.split_once('\n').unwrap_or((input, "{}"));
    let Some(alone) = policy(expression) else {
        return;
    };
    let loops = [".all", ".exists", ".map", ".filter"];
    if loops.iter().map(|name| expression.matches(name).count()).sum::<usize>() > 1 {
        return;
    }
    let body =
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"t","arguments":{arguments}}}}}"#);
    let Ok(payload) = parse(&body.into()) else {
        return;
    };
    let caller = Principal::anonymous();
    let allows = |policy: &RoutePolicy| {
        policy
            .decide(&caller, "r", &payload.messages()[0], 1_800_000_000)
            .is_allowed()
    };
    allows(&alone);
    if let Some(never) = policy(&format!("({expression}\n) && false")) {
        assert!(!allows(&never));
    }
});
