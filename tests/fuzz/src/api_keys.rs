//! Files of API keys. Input: the file's text.
//!
//! Oracle: every line that says something is a key, in order, or is complained about; without the lines that are, the file is
//! good and says the rest; a key's line, read by a second reader, says the name, hash and roles; a key written anew reads the
//! same; and no hash stands twice.
#![no_main]

use std::collections::{BTreeSet, HashSet};

use libfuzzer_sys::fuzz_target;
use portcullis::authn::api_key::{ApiKey, is_name, parse};

fn says_something(line: &str) -> bool {
    !line.trim().is_empty() && !line.trim().starts_with('#')
}

fn check(text: &str, keys: &[ApiKey]) {
    let lines: Vec<&str> = text.lines().filter(|line| says_something(line)).collect();
    assert_eq!(keys.len(), lines.len());
    let mut hashes = HashSet::new();
    for (key, line) in keys.iter().zip(lines) {
        assert!(hashes.insert(key.hash));
        assert!(is_name(&key.name) && key.roles.iter().all(|role| is_name(role)));
        let parts: Vec<&str> = line.trim().splitn(4, ':').collect();
        assert_eq!(parts[0], key.name);
        let hex: String = key.hash.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(parts[1].eq_ignore_ascii_case(&hex));
        let roles = parts.get(2).copied().unwrap_or_default().replace(['[', ']'], "");
        let roles = roles.split(',').map(str::trim).filter(|role| !role.is_empty());
        assert!(roles.eq(key.roles.iter()));
        assert_eq!(key.expires.is_some(), parts.get(3).is_some_and(|end| !end.is_empty()));
        let written = key.to_string();
        assert!(!written.contains(['\n', '\r']));
        let read = parse(&written).expect("what is written can be read");
        assert!(read.len() == 1 && read[0] == *key, "{written}");
    }
}

fuzz_target!(|text: &str| {
    match parse(text) {
        Ok(keys) => check(text, &keys),
        Err(errors) => {
            let bad: BTreeSet<usize> = errors.iter().map(|error| error.line).collect();
            assert!(!errors.is_empty() && bad.len() == errors.len());
            assert!(bad.first() >= Some(&1) && bad.last() <= Some(&text.lines().count()));
            let lines = text.lines().enumerate();
            let good: Vec<&str> = lines
                .filter(|(index, line)| {
                    let bad = bad.contains(&(index + 1));
                    assert!(!bad || says_something(line));
                    !bad
                })
                .map(|(_, line)| line)
                .collect();
            let good = good.join("\n");
            check(&good, &parse(&good).expect("nothing else was complained about"));
        }
    }
});
