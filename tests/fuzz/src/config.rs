//! The configuration. Input: the file's text. The environment answers every name with a secret.
//!
//! Oracle: no text panics; what is refused has a reason, each at a place that the file has; and no diagnostic shows any part of
//! a secret that the file doesn't spell itself. No file is read: what names one is left alone.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use portcullis::config::{Config, Diagnostic};

/// In every secret, so that a quoted half is seen too.
const MARK: &str = "zebra";

/// Secrets in the shapes that values are taken apart in.
fn environment(name: &str) -> Option<String> {
    Some(match name.len() % 5 {
        0 => format!("sk-live-{MARK}"),
        1 => format!("https://user:{MARK}@{MARK}.example/{MARK}?{MARK}"),
        2 => format!("127.0.0.1:{MARK}"),
        3 => format!("claim:{MARK}={MARK}*"),
        _ => format!("12{MARK}"),
    })
}

fn check(diagnostic: &Diagnostic, text: &str) {
    let lines = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count();
    assert!(diagnostic.place.line <= lines + 1, "{diagnostic} of {lines}");
    assert!(diagnostic.place.column <= text.chars().count() + 1, "{diagnostic}");
    assert_eq!(diagnostic.file, "p.yaml");
    assert!(!diagnostic.what.is_empty());
    assert!(
        text.contains(MARK) || !diagnostic.to_string().contains(MARK),
        "{diagnostic}"
    );
}

fuzz_target!(|text: &str| {
    if text.contains("file:") {
        return;
    }
    match Config::parse(text, "p.yaml", Path::new("/nowhere"), &environment) {
        Ok(loaded) => loaded.warnings.iter().for_each(|warning| check(warning, text)),
        Err(errors) => {
            assert!(!errors.0.is_empty());
            errors.0.iter().for_each(|error| check(error, text));
        }
    }
});
