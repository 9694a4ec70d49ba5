//! Reads a tree key by key, collecting every error, and writes the file's JSON Schema by the same reading.
//!
//! A [`Section`] is one map of the file. Every getter names a key and says what it is for; asking for a key is what makes
//! it known, so an unknown key is one nobody asked for. Read without a file ([`Section::describe`]) the same calls yield
//! the schema: the two can't disagree.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use super::diagnostic::{Diagnostic, Place};
use super::tree::{Node, Scalar, Value};
use crate::secret::Secret;

/// Errors and warnings of one reading.
#[derive(Default)]
pub struct Report {
    pub errors: RefCell<Vec<Diagnostic>>,
    pub warnings: RefCell<Vec<Diagnostic>>,
    /// Files that the configuration is made of, besides its own.
    pub files: RefCell<Vec<PathBuf>>,
}

/// A value with its place, for errors found later.
#[derive(Clone, Debug)]
pub struct At<T> {
    pub value: T,
    pub place: Place,
    pub key: String,
}

/// One map of the file.
pub struct Section<'a> {
    /// `None`: the key is absent, or this is a description.
    entries: Option<&'a [(super::tree::Key, Node)]>,
    pub place: Place,
    pub key: String,
    report: &'a Report,
    known: RefCell<Vec<&'static str>>,
    schema: RefCell<Map<String, Json>>,
    required: RefCell<Vec<&'static str>>,
    describing: bool,
}

/// Whether an error may show the value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Quote {
    /// What is written in clear is shown.
    Clear,
    /// People put a secret where this value belongs.
    Never,
}

/// More of anything than a machine has connections or a server tools.
const MAX_COUNT: usize = 1_000_000;

/// Secrets nobody should have left in place.
const DEFAULT_SECRETS: [&str; 8] = [
    "demo-secret-key-change-in-production",
    "changeme",
    "change-me",
    "secret",
    "password",
    "your-secret-here",
    "admin",
    "test",
];

impl<'a> Section<'a> {
    /// Notes a file that is read where the configuration is used: when it changes, the configuration does.
    pub fn reads(&self, file: &Path) {
        self.report.files.borrow_mut().push(file.to_owned());
    }

    /// The whole file.
    pub fn root(node: Option<&'a Node>, report: &'a Report) -> Self {
        Self::of(node, String::new(), report, false)
    }

    /// No file: the same calls describe it.
    pub fn describe(report: &'a Report) -> Self {
        Self::of(None, String::new(), report, true)
    }

    fn of(node: Option<&'a Node>, key: String, report: &'a Report, describing: bool) -> Self {
        let section = Self {
            entries: None,
            place: node.map(|node| node.place).unwrap_or_default(),
            key,
            report,
            known: RefCell::default(),
            schema: RefCell::default(),
            required: RefCell::default(),
            describing,
        };
        match node.map(|node| &node.value) {
            Some(Value::Map(entries)) => Self {
                entries: Some(entries),
                ..section
            },
            Some(Value::Null) | None => section,
            Some(_) => {
                section.error_here("this must be a map", "write key: value lines below it");
                section
            }
        }
    }

    /// Whether this reading only describes.
    pub fn is_describing(&self) -> bool {
        self.describing
    }

    /// Whether a key is given.
    pub fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// An error at this section.
    pub fn error_here(&self, what: impl Into<String>, remedy: impl Into<String>) {
        self.error(self.place, &self.key, what, remedy);
    }

    /// An error at a key of this section, or at the section when the key is absent.
    pub fn error_at(&self, key: &str, what: impl Into<String>, remedy: impl Into<String>) {
        let place = self.find(key).map_or(self.place, |node| node.place);
        self.error(place, &self.path(key), what, remedy);
    }

    /// An error at a value read before.
    pub fn error_in<T>(&self, at: &At<T>, what: impl Into<String>, remedy: impl Into<String>) {
        self.error(at.place, &at.key, what, remedy);
    }

    fn error(&self, place: Place, key: &str, what: impl Into<String>, remedy: impl Into<String>) {
        if !self.describing {
            self.report
                .errors
                .borrow_mut()
                .push(Diagnostic::new(place, key, what, remedy));
        }
    }

    /// A key that must be there.
    pub fn require(&self, key: &'static str, remedy: &str) {
        self.required.borrow_mut().push(key);
        if !self.has(key) {
            self.error(self.place, &self.path(key), "this key is missing", remedy);
        }
    }

    /// A text with something in it.
    pub fn text(&self, key: &'static str, about: &str) -> Option<At<String>> {
        self.parsed(key, about, filled)
    }

    /// A text that `parse` understands.
    pub fn parsed<T>(
        &self,
        key: &'static str,
        about: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<At<T>> {
        self.typed(key, json!({"type": "string", "description": about}), |scalar| {
            parse(&scalar.text)
        })
    }

    /// As [`Section::parsed`], for what stands beside a secret: a misplaced one must not be quoted.
    pub fn unquoted<T>(
        &self,
        key: &'static str,
        about: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<At<T>> {
        let node = self.ask(key, json!({"type": "string", "description": about}))?;
        self.value(node, self.path(key), Quote::Never, |scalar| parse(&scalar.text))
    }

    /// A whole file, named by `${file:PATH}`: its text and its path. Never quoted.
    pub fn whole_file(&self, key: &'static str, about: &str) -> Option<At<(String, PathBuf)>> {
        let schema = json!({"type": "string", "pattern": "^\\$\\{file:[^}]+\\}$", "description": about});
        let node = self.ask(key, schema)?;
        self.value(node, self.path(key), Quote::Never, |scalar| match &scalar.file {
            Some(file) => Ok((scalar.text.clone(), file.clone())),
            None => Err("name the file, and nothing else: ${file:secrets/keys}".to_owned()),
        })
    }

    /// One of some words.
    pub fn choice<T: Copy>(&self, key: &'static str, about: &str, choices: &[(&'static str, T)]) -> Option<T> {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        self.typed(key, json!({"enum": words, "description": about}), |scalar| {
            choices
                .iter()
                .find(|(word, _)| *word == scalar.text)
                .map(|(_, value)| *value)
                .ok_or_else(|| format!("use one of {}", words.join(", ")))
        })
        .map(|at| at.value)
    }

    /// A boolean.
    pub fn flag(&self, key: &'static str, about: &str) -> Option<bool> {
        self.typed(key, json!({"type": "boolean", "description": about}), |scalar| {
            match (&*scalar.text, scalar.quoted) {
                ("true", false) => Ok(true),
                ("false", false) => Ok(false),
                _ => Err("use true or false".to_owned()),
            }
        })
        .map(|at| at.value)
    }

    /// A whole number from 1 to a million.
    pub fn count(&self, key: &'static str, about: &str) -> Option<usize> {
        self.count_from(1, key, about)
    }

    /// The same, or 0.
    pub fn count_or_zero(&self, key: &'static str, about: &str) -> Option<usize> {
        self.count_from(0, key, about)
    }

    fn count_from(&self, least: usize, key: &'static str, about: &str) -> Option<usize> {
        self.typed(
            key,
            json!({"type": "integer", "minimum": least, "maximum": MAX_COUNT, "description": about}),
            |scalar| match scalar.text.parse() {
                Ok(count) if (least..=MAX_COUNT).contains(&count) && !scalar.quoted => Ok(count),
                _ => Err(format!("use a whole number from {least} to {MAX_COUNT}")),
            },
        )
        .map(|at| at.value)
    }

    /// A time such as `500ms`, `10s`, `15m` or `5h`; `0` where `zero` means something.
    pub fn duration(&self, key: &'static str, about: &str, zero: bool) -> Option<Duration> {
        let schema = json!({"type": ["string", "integer"], "pattern": "^[0-9]+(ms|s|m|h)?$", "description": about});
        self.typed(key, schema, |scalar| {
            parse_duration(&scalar.text)
                .filter(|time| zero || !time.is_zero())
                .ok_or_else(|| "use a time such as 500ms, 10s, 15m or 5h".to_owned())
        })
        .map(|at| at.value)
    }

    /// A size such as `64KiB` or `4MiB`, or a number of bytes.
    pub fn size(&self, key: &'static str, about: &str) -> Option<usize> {
        let schema = json!({"type": ["string", "integer"], "pattern": "^[0-9]+(B|KiB|MiB)?$", "description": about});
        self.typed(key, schema, |scalar| {
            parse_size(&scalar.text).ok_or_else(|| "use a size such as 64KiB or 4MiB, at most 1024MiB".to_owned())
        })
        .map(|at| at.value)
    }

    /// A secret: never quoted, warned about when written in clear, refused when it is a well-known default.
    pub fn secret(&self, key: &'static str, about: &str) -> Option<At<Secret>> {
        let about = format!("{about} Use ${{env:NAME}} or ${{file:PATH}}.");
        let node = self.ask(key, json!({"type": "string", "description": about}))?;
        let path = self.path(key);
        let Some(scalar) = scalar(node) else {
            self.error(
                node.place,
                &path,
                "this must be a text",
                "use ${env:NAME} or ${file:PATH}",
            );
            return None;
        };
        self.judge_secret(scalar, node.place, &path);
        Some(At {
            value: Secret::new(scalar.text.clone()),
            place: node.place,
            key: path,
        })
    }

    /// A list of secrets.
    pub fn secrets(&self, key: &'static str, about: &str) -> Vec<At<Secret>> {
        let items = self.items(
            key,
            json!({"type": "array", "items": {"type": "string"}, "description": about}),
        );
        items
            .into_iter()
            .filter_map(|(node, path)| {
                let Some(scalar) = scalar(node) else {
                    self.error(
                        node.place,
                        &path,
                        "this must be a text",
                        "use ${env:NAME} or ${file:PATH}",
                    );
                    return None;
                };
                self.judge_secret(scalar, node.place, &path);
                Some(At {
                    value: Secret::new(scalar.text.clone()),
                    place: node.place,
                    key: path,
                })
            })
            .collect()
    }

    /// Refuses well-known defaults and warns about what is written in clear.
    pub fn judge_secret(&self, scalar: &Scalar, place: Place, path: &str) {
        if DEFAULT_SECRETS
            .iter()
            .any(|default| scalar.text.eq_ignore_ascii_case(default))
        {
            self.error(
                place,
                path,
                "this is a well-known default, and no secret",
                "make a random one",
            );
        } else if scalar.text.is_empty() {
            self.error(place, path, "the secret is empty", "set it");
        } else if !scalar.resolved && !self.describing {
            self.report.warnings.borrow_mut().push(Diagnostic::new(
                place,
                path,
                "a secret is written in clear",
                "move it to ${env:NAME} or ${file:PATH}",
            ));
        }
    }

    /// A list of texts; a single text counts as a list of one.
    pub fn texts(&self, key: &'static str, about: &str) -> Vec<At<String>> {
        self.parsed_list(key, about, filled)
    }

    /// A list of texts that `parse` understands.
    pub fn parsed_list<T>(
        &self,
        key: &'static str,
        about: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<At<T>> {
        let schema = json!({"type": ["array", "string"], "items": {"type": "string"}, "description": about});
        self.items(key, schema)
            .into_iter()
            .filter_map(|(node, path)| self.value(node, path, Quote::Clear, |scalar| parse(&scalar.text)))
            .collect()
    }

    /// A map below this one; `read` is called whether the key is there or not.
    pub fn section<T>(&self, key: &'static str, about: &str, read: impl FnOnce(&Section<'a>) -> T) -> T {
        let node = self.ask(key, Json::Null);
        let section = Self::of(node, self.path(key), self.report, self.describing);
        let value = read(&section);
        self.describe_as(key, section.finish(Some(about)));
        value
    }

    /// A map below this one, if the key is there.
    pub fn optional_section<T>(
        &self,
        key: &'static str,
        about: &str,
        read: impl FnOnce(&Section<'a>) -> T,
    ) -> Option<T> {
        let there = self.has(key);
        if !there && !self.describing {
            self.known.borrow_mut().push(key);
            return None;
        }
        let value = self.section(key, about, read);
        there.then_some(value)
    }

    /// A map whose keys are names.
    pub fn named<T>(
        &self,
        key: &'static str,
        about: &str,
        mut read: impl FnMut(&str, Place, &Section<'a>) -> T,
    ) -> Vec<T> {
        let node = self.ask(key, Json::Null);
        if self.describing {
            let section = Self::of(None, format!("{}.*", self.path(key)), self.report, true);
            read("", Place::default(), &section);
            let schema = json!({"type": "object", "description": about, "additionalProperties": section.finish(None)});
            self.describe_as(key, schema);
            return Vec::new();
        }
        let Some(node) = node else { return Vec::new() };
        let Value::Map(entries) = &node.value else {
            self.error(
                node.place,
                &self.path(key),
                "this must be a map of names",
                "write name: {…} lines below it",
            );
            return Vec::new();
        };
        entries
            .iter()
            .map(|(name, node)| {
                let path = format!("{}.{}", self.path(key), name.name);
                let section = Self::of(Some(node), path, self.report, false);
                let value = read(&name.name, name.place, &section);
                section.finish(None);
                value
            })
            .collect()
    }

    /// A list of maps.
    pub fn list<T>(&self, key: &'static str, about: &str, mut read: impl FnMut(&Section<'a>) -> T) -> Option<Vec<T>> {
        if self.describing {
            self.ask(key, Json::Null);
            let section = Self::of(None, format!("{}[]", self.path(key)), self.report, true);
            read(&section);
            self.describe_as(
                key,
                json!({"type": "array", "description": about, "items": section.finish(None)}),
            );
            return None;
        }
        let node = self.ask(key, Json::Null)?;
        let Value::List(items) = &node.value else {
            self.error(
                node.place,
                &self.path(key),
                "this must be a list",
                "write - {…} lines below it",
            );
            return None;
        };
        let read_item = |(index, node): (usize, &'a Node)| {
            let section = Self::of(Some(node), format!("{}[{index}]", self.path(key)), self.report, false);
            let value = read(&section);
            section.finish(None);
            value
        };
        Some(items.iter().enumerate().map(read_item).collect())
    }

    /// A value that is a text or a map: what `parse` makes of the text, or `read` of the map.
    pub fn text_or<T>(
        &self,
        key: &'static str,
        about: &str,
        quote: Quote,
        parse: impl FnOnce(&str) -> Result<T, String>,
        read: impl FnOnce(&Section<'a>) -> Option<T>,
    ) -> Option<T> {
        let node = self.ask(key, Json::Null);
        let path = self.path(key);
        if let Some(node) = node.filter(|node| scalar(node).is_some()) {
            return self
                .value(node, path, quote, |scalar| parse(&scalar.text))
                .map(|at| at.value);
        }
        if node.is_none() && !self.describing {
            return None;
        }
        let section = Self::of(node, path, self.report, self.describing);
        let value = read(&section);
        let map = section.finish(None);
        self.describe_as(key, json!({"description": about, "anyOf": [{"type": "string"}, map]}));
        value
    }

    /// The raw node of a key, for the few shapes nothing above fits.
    pub fn node(&self, key: &'static str, schema: Json) -> Option<(&'a Node, String)> {
        Some((self.ask(key, schema)?, self.path(key)))
    }

    /// Reports the keys nobody asked for; the schema of those somebody did.
    pub fn finish(&self, about: Option<&str>) -> Json {
        let known = self.known.borrow();
        for (key, _) in self.entries.unwrap_or_default() {
            if !known.contains(&&*key.name) {
                let near = known
                    .iter()
                    .map(|name| (distance(name, &key.name), name))
                    .min()
                    .filter(|(distance, _)| *distance <= 2);
                let remedy = match near {
                    Some((_, name)) => format!("did you mean \"{name}\"?"),
                    None => format!("known here: {}", known.join(", ")),
                };
                let what = format!("unknown key \"{}\"", key.name);
                self.error(key.place, &self.path(&key.name), what, remedy);
            }
        }
        let mut schema = json!({
            "type": "object",
            "properties": &*self.schema.borrow(),
            "additionalProperties": false,
        });
        if let Some(about) = about {
            schema["description"] = about.into();
        }
        if !self.required.borrow().is_empty() {
            schema["required"] = json!(&*self.required.borrow());
        }
        schema
    }

    fn typed<T>(
        &self,
        key: &'static str,
        schema: Json,
        parse: impl FnOnce(&Scalar) -> Result<T, String>,
    ) -> Option<At<T>> {
        let node = self.ask(key, schema)?;
        self.value(node, self.path(key), Quote::Clear, parse)
    }

    fn value<T>(
        &self,
        node: &Node,
        path: String,
        quote: Quote,
        parse: impl FnOnce(&Scalar) -> Result<T, String>,
    ) -> Option<At<T>> {
        let Some(scalar) = scalar(node) else {
            self.error(
                node.place,
                &path,
                "this must be a single value",
                "write a text or a number",
            );
            return None;
        };
        match parse(scalar) {
            Ok(value) => Some(At {
                value,
                place: node.place,
                key: path,
            }),
            Err(remedy) => {
                let what = match &*scalar.text {
                    _ if scalar.resolved => "the interpolated value does not fit".to_owned(),
                    _ if quote == Quote::Never => "the value does not fit".to_owned(),
                    url if url.contains("://") && url.contains('@') => "the URL does not fit".to_owned(),
                    text => format!("\"{text}\" does not fit"),
                };
                self.error(node.place, &path, what, remedy);
                None
            }
        }
    }

    fn items(&self, key: &'static str, schema: Json) -> Vec<(&'a Node, String)> {
        let Some(node) = self.ask(key, schema) else {
            return Vec::new();
        };
        let path = self.path(key);
        match &node.value {
            Value::List(items) => items
                .iter()
                .enumerate()
                .map(|(index, item)| (item, format!("{path}[{index}]")))
                .collect(),
            _ => vec![(node, path)],
        }
    }

    fn ask(&self, key: &'static str, schema: Json) -> Option<&'a Node> {
        self.known.borrow_mut().push(key);
        self.describe_as(key, schema);
        let node = self.find(key)?;
        if matches!(node.value, Value::Null) {
            // Were it as good as absent, an emptied `to:` or `rules:` would let everyone in.
            self.error(
                node.place,
                &self.path(key),
                "this key has no value",
                "give it one, or remove the line",
            );
            return None;
        }
        Some(node)
    }

    fn describe_as(&self, key: &str, schema: Json) {
        if self.describing {
            self.schema.borrow_mut().insert(key.to_owned(), schema);
        }
    }

    /// What stands at a key, known or not.
    pub fn find(&self, key: &str) -> Option<&'a Node> {
        self.entries?
            .iter()
            .find(|(name, _)| name.name == key)
            .map(|(_, node)| node)
    }

    fn path(&self, key: &str) -> String {
        if self.key.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.key)
        }
    }
}

/// An unset variable's usual stand-in is the empty text; as an audience it would match tokens made for nobody.
fn filled(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Err("write something, or remove the key".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

fn scalar(node: &Node) -> Option<&Scalar> {
    match &node.value {
        Value::Scalar(scalar) => Some(scalar),
        _ => None,
    }
}

/// `500ms`, `10s`, `15m`, `5h`, `0`; at most a year.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let milliseconds = match &text[digits..] {
        "ms" => number,
        "s" => number.checked_mul(1000)?,
        "m" => number.checked_mul(60_000)?,
        "h" => number.checked_mul(3_600_000)?,
        "" if number == 0 => 0,
        _ => return None,
    };
    Some(Duration::from_millis(milliseconds)).filter(|time| *time <= Duration::from_secs(365 * 86_400))
}

/// `64KiB`, `4MiB`, `1000B`, `1000`; 1 byte to 1 GiB.
pub fn parse_size(text: &str) -> Option<usize> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: usize = text[..digits].parse().ok()?;
    let unit = match &text[digits..] {
        "" | "B" => 1,
        "KiB" => 1024,
        "MiB" => 1024 * 1024,
        _ => return None,
    };
    number.checked_mul(unit).filter(|size| (1..=1 << 30).contains(size))
}

/// Edits between two words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
