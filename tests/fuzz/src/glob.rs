//! Rule globs. Input: a pattern, a second pattern and a text, a line each.
//!
//! Oracle: a matcher that tries every way a star can stand for something; and what covers a glob matches whatever that glob
//! matches.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::policy::Glob;

/// A row a pattern byte: which beginnings of the text the pattern so far matches.
fn naive(pattern: &[u8], text: &[u8]) -> bool {
    let mut row = vec![false; text.len() + 1];
    row[0] = true;
    for byte in pattern {
        let mut next = vec![false; text.len() + 1];
        for end in 0..=text.len() {
            next[end] = match byte {
                b'*' => row[end] || (end > 0 && next[end - 1]),
                _ => end > 0 && row[end - 1] && text[end - 1] == *byte,
            };
        }
        row = next;
    }
    row[text.len()]
}

fuzz_target!(|input: &str| {
    let mut lines = input.splitn(3, '\n');
    let (Some(wide), Some(narrow), Some(text)) = (lines.next(), lines.next(), lines.next()) else {
        return;
    };
    let matches = |pattern: &str| {
        let found = Glob::new(pattern).matches(text);
        assert_eq!(
            found,
            naive(pattern.as_bytes(), text.as_bytes()),
            "{pattern:?} {text:?}"
        );
        found
    };
    let (by_wide, by_narrow) = (matches(wide), matches(narrow));
    if by_narrow && Glob::new(wide).covers(&Glob::new(narrow)) {
        assert!(by_wide, "{wide:?} covers {narrow:?}, but not {text:?}");
    }
});
