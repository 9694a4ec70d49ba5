//! What is wrong with a configuration: where, what, and what would be right.

use std::fmt;

/// A place in the file, counted from 1; line 0 is no place in particular.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

/// One error or warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub place: Place,
    /// `routes.notes.upstream.urls[0]`.
    pub key: String,
    pub what: String,
    pub remedy: String,
    /// The file's name, once it is known.
    pub file: String,
}

impl Diagnostic {
    /// A diagnostic.
    pub fn new(place: Place, key: &str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            place,
            key: key.to_owned(),
            what: what.into(),
            remedy: remedy.into(),
            file: String::new(),
        }
    }

    /// Replaces what came from the environment or a file. One or two characters are no secret, and replacing them
    /// would only garble the text.
    pub(super) fn hide(&mut self, value: &str) {
        for text in [&mut self.key, &mut self.what, &mut self.remedy] {
            if value.len() > 2 && text.contains(value) {
                *text = text.replace(value, "${…}");
            }
        }
    }
}

/// `file:line:column: key: what; remedy`.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.place.line > 0 {
            write!(f, ":{}:{}", self.place.line, self.place.column)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.what)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

/// Everything that is wrong, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, diagnostic) in self.0.iter().enumerate() {
            if place > 0 {
                writeln!(f)?;
            }
            write!(f, "{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}
