//! Globs over names and URIs: `*` stands for any run of characters, `/` included, and nothing else is special.
//!
//! URIs are full of `?` and `[`, so those are themselves; matching is linear in practice and never worse than pattern
//! times text, which are both bounded.

/// What a star is tried as; the last of Unicode's characters, which no name has.
const ANYTHING: &str = "\u{10FFFF}";

/// A compiled glob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    /// The literal runs between the stars.
    parts: Box<[Box<str>]>,
}

impl Glob {
    /// Compiles a pattern.
    pub fn new(pattern: &str) -> Self {
        Self {
            parts: pattern.split('*').map(Into::into).collect(),
        }
    }

    /// Whether the whole text matches.
    pub fn matches(&self, text: &str) -> bool {
        let [first, middle @ .., last] = &*self.parts else {
            return *self.parts[0] == *text;
        };
        let Some(mut rest) = text.strip_prefix(&**first) else {
            return false;
        };
        for part in middle {
            // The leftmost place leaves the most for what follows.
            match rest.find(&**part) {
                Some(found) => rest = &rest[found + part.len()..],
                None => return false,
            }
        }
        rest.ends_with(&**last)
    }

    /// Whether everything `other` matches is matched here too; may say no where it is so, never the reverse.
    pub fn covers(&self, other: &Glob) -> bool {
        if self == other {
            return true;
        }
        // A star in `other` must be able to stand for anything, so it is put to the test as a text this pattern can't spell.
        let spelled = other.parts.join(ANYTHING);
        !self.parts.iter().any(|part| part.contains(ANYTHING)) && self.matches(&spelled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|skip| naive(rest, &text[skip..])),
            Some((first, rest)) => text
                .split_first()
                .is_some_and(|(next, text)| next == first && naive(rest, text)),
        }
    }

    #[test]
    fn only_the_star_is_special() {
        for (pattern, text, expected) in [
            ("get_*", "get_", true),
            ("get_*", "get_note", true),
            ("get_*", "forget_note", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a?c", "abc", false),
            ("memo://*/x?[1]", "memo://a/b/x?[1]", true),
            ("*a*a*", "aa", true),
            ("aa*aa", "aaa", false),
            ("Get_*", "get_note", false),
        ] {
            assert_eq!(Glob::new(pattern).matches(text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_pattern_that_spells_the_stand_in_covers_no_star() {
        assert!(!Glob::new("*\u{10FFFF}").covers(&Glob::new("**")));
        assert!(Glob::new("*").covers(&Glob::new("a*\u{10FFFF}")));
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_matcher(pattern in "[ab*]{0,8}", text in "[ab]{0,10}") {
            let (p, t): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
            prop_assert_eq!(Glob::new(&pattern).matches(&text), naive(&p, &t));
        }

        #[test]
        fn what_covers_matches_all_that_is_covered(wide in "[ab*]{0,6}", narrow in "[ab*]{0,6}", text in "[ab]{0,8}") {
            let (wide, narrow) = (Glob::new(&wide), Glob::new(&narrow));
            if wide.covers(&narrow) && narrow.matches(&text) {
                prop_assert!(wide.matches(&text));
            }
        }
    }
}
