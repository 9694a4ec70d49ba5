//! A YAML file as a tree in which every value knows where it stands.
//!
//! 1. Duplicate keys, aliases and tags are refused: a file that two readers may read differently is no security policy.
//! 2. `${env:NAME}` and `${file:PATH}` are replaced in values, once, and what came from there is never quoted back.
//! 3. Depth is bounded at 32, size at 1 MiB.

use std::cell::RefCell;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::diagnostic::{Diagnostic, Place};

const MAX_DEPTH: usize = 32;
pub const MAX_SIZE: usize = 1024 * 1024;
/// A secret file is a line or a short list.
const MAX_FILE: u64 = 1024 * 1024;

/// A value and where it stands.
#[derive(Debug)]
pub struct Node {
    pub place: Place,
    pub value: Value,
}

#[derive(Debug)]
pub enum Value {
    Null,
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A map's key.
#[derive(Debug)]
pub struct Key {
    pub place: Place,
    pub name: String,
}

/// A text, number or boolean, as it is spelled.
#[derive(Debug)]
pub struct Scalar {
    pub text: String,
    /// Quoted: never a number or a boolean.
    pub quoted: bool,
    /// Came from the environment or a file: never shown.
    pub resolved: bool,
    /// The file, when the value is all of one.
    pub file: Option<PathBuf>,
}

/// Where interpolated values come from.
pub struct Sources<'a> {
    pub directory: &'a Path,
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// The files that were read for a value.
    pub files: &'a RefCell<Vec<PathBuf>>,
}

/// Reads a file's text.
pub fn parse(text: &str, sources: &Sources<'_>, errors: &mut Vec<Diagnostic>) -> Option<Node> {
    if text.len() > MAX_SIZE {
        errors.push(Diagnostic::new(
            Place::default(),
            "",
            "the file is over 1 MiB",
            "split what it holds",
        ));
        return None;
    }
    let mut builder = Builder {
        sources,
        errors,
        stack: Vec::new(),
        root: None,
    };
    for event in Parser::new_from_str(text) {
        match event {
            Ok((event, span)) => builder.take(event, span)?,
            Err(error) => {
                let place = Place {
                    line: error.marker().line(),
                    column: error.marker().col() + 1,
                };
                let what = format!("not YAML: {}", error.info());
                builder.errors.push(Diagnostic::new(
                    place,
                    "",
                    what,
                    "correct the syntax here or just before",
                ));
                return None;
            }
        }
    }
    builder.root
}

/// Collects what came from the environment or files, longest first.
pub fn resolved(node: &Node, values: &mut Vec<String>) {
    match &node.value {
        Value::Scalar(scalar) if scalar.resolved => values.push(scalar.text.clone()),
        Value::Scalar(_) | Value::Null => {}
        Value::List(items) => items.iter().for_each(|item| resolved(item, values)),
        Value::Map(entries) => entries.iter().for_each(|(_, node)| resolved(node, values)),
    }
    values.sort_by_key(|value| std::cmp::Reverse(value.len()));
}

struct Builder<'a> {
    sources: &'a Sources<'a>,
    errors: &'a mut Vec<Diagnostic>,
    stack: Vec<Open>,
    root: Option<Node>,
}

enum Open {
    List(Place, Vec<Node>),
    Map(Place, Vec<(Key, Node)>, Option<Key>),
}

impl Builder<'_> {
    /// `None` when there is no use in going on.
    fn take(&mut self, event: Event<'_>, span: Span) -> Option<()> {
        let place = Place {
            line: span.start.line(),
            column: span.start.col() + 1,
        };
        let tagged = |tag: &Option<_>| tag.is_some();
        match event {
            Event::Scalar(_, _, anchor, tag) | Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag)
                if anchor != 0 || tagged(&tag) =>
            {
                self.error(place, "anchors and tags are not used here", "write the value out");
                return None;
            }
            Event::Alias(_) => {
                self.error(place, "aliases are not used here", "write the value out");
                return None;
            }
            Event::DocumentStart(_) if self.root.is_some() => {
                self.error(place, "a second document begins", "keep one document in the file");
                return None;
            }
            Event::Scalar(text, style, ..) => return self.scalar(text.into_owned(), style, place),
            Event::SequenceStart(..) => self.open(Open::List(place, Vec::new()))?,
            Event::MappingStart(..) => self.open(Open::Map(place, Vec::new(), None))?,
            Event::SequenceEnd | Event::MappingEnd => {
                let node = match self.stack.pop()? {
                    Open::List(place, items) => Node {
                        place,
                        value: Value::List(items),
                    },
                    Open::Map(place, entries, _) => Node {
                        place,
                        value: Value::Map(entries),
                    },
                };
                return self.put(node);
            }
            _ => {}
        }
        Some(())
    }

    fn open(&mut self, open: Open) -> Option<()> {
        let place = match &open {
            Open::List(place, _) | Open::Map(place, ..) => *place,
        };
        if let Some(Open::Map(_, _, None)) = self.stack.last() {
            self.error(place, "a key must be a text", "write key: value");
            return None;
        }
        if self.stack.len() == MAX_DEPTH {
            self.error(place, "nested deeper than 32", "flatten it");
            return None;
        }
        self.stack.push(open);
        Some(())
    }

    fn scalar(&mut self, text: String, style: ScalarStyle, place: Place) -> Option<()> {
        let at = self.path();
        if let Some(Open::Map(_, entries, key @ None)) = self.stack.last_mut() {
            if entries.iter().any(|(key, _)| key.name == text) {
                let what = format!("the key \"{text}\" stands here twice");
                self.errors.push(Diagnostic::new(place, &at, what, "keep one of them"));
            }
            *key = Some(Key { place, name: text });
            return Some(());
        }
        let quoted = style != ScalarStyle::Plain;
        if !quoted && matches!(&*text, "" | "~" | "null") {
            return self.put(Node {
                place,
                value: Value::Null,
            });
        }
        let file = text
            .strip_prefix("${file:")
            .and_then(|rest| rest.strip_suffix('}'))
            .filter(|path| !path.contains('}'))
            .map(|path| self.sources.directory.join(path));
        let (text, resolved) = match interpolate(&text, self.sources) {
            Ok(Some(resolved)) => (resolved, true),
            Ok(None) => (text, false),
            Err((what, remedy)) => {
                self.error(place, what, &remedy);
                (text, true)
            }
        };
        self.put(Node {
            place,
            value: Value::Scalar(Scalar {
                text,
                quoted,
                resolved,
                file,
            }),
        })
    }

    fn put(&mut self, node: Node) -> Option<()> {
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(Open::List(_, items)) => items.push(node),
            Some(Open::Map(_, entries, key)) => {
                let key = key.take()?;
                entries.push((key, node));
            }
        }
        Some(())
    }

    /// Where in the tree the next value goes.
    fn path(&self) -> String {
        let mut path = String::new();
        for open in &self.stack {
            match open {
                Open::List(_, items) => path.push_str(&format!("[{}]", items.len())),
                Open::Map(_, _, Some(key)) => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(&key.name);
                }
                Open::Map(_, _, None) => {}
            }
        }
        path
    }

    fn error(&mut self, place: Place, what: impl Into<String>, remedy: &str) {
        let key = self.path();
        self.errors.push(Diagnostic::new(place, &key, what, remedy));
    }
}

/// Replaces every `${…}`; `None` when there is none.
fn interpolate(text: &str, sources: &Sources<'_>) -> Result<Option<String>, (String, String)> {
    if !text.contains("${") {
        return Ok(None);
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        out.push_str(&rest[..start]);
        let inner = &rest[start + 2..];
        let end = inner
            .find('}')
            .ok_or_else(|| ("a ${ without its }".to_owned(), "close it".to_owned()))?;
        out.push_str(&resolve(&inner[..end], sources)?);
        rest = &inner[end + 1..];
    }
    out.push_str(rest);
    Ok(Some(out))
}

fn resolve(reference: &str, sources: &Sources<'_>) -> Result<String, (String, String)> {
    match reference.split_once(':') {
        Some(("env", name)) => (sources.env)(name).ok_or_else(|| {
            (
                format!("the environment variable {name} is not set"),
                format!("set {name}, or use ${{file:PATH}}"),
            )
        }),
        Some(("file", path)) => {
            let full = sources.directory.join(path);
            sources.files.borrow_mut().push(full.clone());
            let failed = |cause: String| {
                (
                    format!("cannot read {path}: {cause}"),
                    "paths are relative to this file; check name and rights".to_owned(),
                )
            };
            let mut text = String::new();
            // A device or pipe has no size to ask beforehand.
            File::open(&full)
                .and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text))
                .map_err(|error| failed(error.to_string()))?;
            if text.len() as u64 > MAX_FILE {
                return Err(failed("it is over 1 MiB".to_owned()));
            }
            // Editors end files with a line feed that is no part of a secret.
            Ok(text.trim_end_matches(['\r', '\n']).to_owned())
        }
        _ => Err((
            format!("${{{reference}}} is no reference"),
            "use ${env:NAME} or ${file:PATH}".to_owned(),
        )),
    }
}
