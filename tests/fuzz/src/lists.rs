//! The list filter. Input: a reply. Names with `secret` in them are denied, and more than three tools are cut.
//!
//! Oracle, with `serde_json` as the reader: what comes out (or passes as it is) is JSON without a denied name, without an
//! item that has none and without a fourth tool; what is kept stood in the input, byte for byte, in that order; and a second
//! filter finds nothing to do.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use portcullis::mcp::Era;
use portcullis::mcp::lists::{Item, ListError, filter};
use serde_json::value::RawValue;

const LISTS: [(&str, &str); 4] = [
    ("tools", "name"),
    ("resources", "uri"),
    ("resourceTemplates", "uriTemplate"),
    ("prompts", "name"),
];

type Object<'a> = HashMap<String, &'a RawValue>;

fn denied(name: &str) -> bool {
    name.contains("secret")
}

fn run(message: &[u8]) -> Result<Option<Vec<u8>>, ListError> {
    let mut cut = |tools: &mut Vec<Item>| {
        let all = tools.len();
        tools.truncate(3);
        all - tools.len()
    };
    let out = filter(message, Era::Modern, &mut |_, name| !denied(name), &mut cut)?;
    Ok(out.map(|out| out.to_vec()))
}

/// The items of each list of each result.
fn lists(message: &[u8]) -> Vec<Vec<Vec<&RawValue>>> {
    let messages: Vec<&RawValue> = if message.trim_ascii_start().first() == Some(&b'[') {
        serde_json::from_slice(message).expect("JSON")
    } else {
        vec![serde_json::from_slice(message).expect("JSON")]
    };
    messages
        .iter()
        .filter_map(|message| result(message))
        .map(|result| {
            LISTS
                .map(|(list, _)| result.get(list).map(|list| items(list)).unwrap_or_default())
                .to_vec()
        })
        .collect()
}

fn result(message: &RawValue) -> Option<Object<'_>> {
    let message: Object<'_> = serde_json::from_str(message.get()).ok()?;
    serde_json::from_str(message.get("result")?.get()).ok()
}

fn items(list: &RawValue) -> Vec<&RawValue> {
    serde_json::from_str(list.get()).unwrap_or_default()
}

fuzz_target!(|message: &[u8]| {
    let Ok(out) = run(message) else {
        return;
    };
    let text = out.as_deref().unwrap_or(message);
    let (before, after) = (lists(message), lists(text));
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().flatten().zip(after.iter().flatten()) {
        let mut input = before.iter().map(|item| item.get());
        assert!(after.iter().all(|item| input.any(|other| other == item.get())));
    }
    for result in &after {
        assert!(result[0].len() <= 3);
        for ((_, name), items) in LISTS.iter().zip(result) {
            for item in items {
                let item: Object<'_> = serde_json::from_str(item.get()).expect("items are objects");
                let name: String = serde_json::from_str(item[*name].get()).expect("an item has its name");
                assert!(!denied(&name), "{name}");
            }
        }
    }
    if out.is_some() {
        assert_eq!(run(text), Ok(None));
    }
});
