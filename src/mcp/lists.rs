//! Lists in answers: filtered, cut and joined, every other byte of them kept.
//!
//! 1. A result's `tools` go by name, `resources` by `uri`, `resourceTemplates` by `uriTemplate`, `prompts` by name.
//! 2. An item without its name is dropped: what can't be decided is denied.
//! 3. Kept items and all other fields are the upstream's own bytes, in its order; `nextCursor` survives (r52).
//! 4. A list that was decided for one principal is `cacheScope: "private"` to the modern client that gets it.
//! 5. A key that appears twice in a result is an error: two parsers would see two lists.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::message::Era;

/// The key under `_meta` that says how many tools a budget hid.
pub const HIDDEN_TOOLS: &str = "portcullis/hiddenTools";

/// Which list an item is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListKind {
    Tools,
    Resources,
    Templates,
    Prompts,
}

impl ListKind {
    fn of(key: &str) -> Option<(Self, &'static str)> {
        Some(match key {
            "tools" => (Self::Tools, "name"),
            "resources" => (Self::Resources, "uri"),
            "resourceTemplates" => (Self::Templates, "uriTemplate"),
            "prompts" => (Self::Prompts, "name"),
            _ => return None,
        })
    }
}

/// Why an answer can't be filtered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    #[error("the answer is not JSON")]
    NotJson,
    #[error("the answer repeats a key")]
    RepeatedKey,
    #[error("the list is no array")]
    NotAList,
}

/// One item of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub name: Box<str>,
    pub raw: Bytes,
}

/// One page of `tools/list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub items: Vec<Item>,
    pub next_cursor: Option<String>,
}

/// Filters the lists in an answer, or in an array of answers; `None` when nothing had to change. `cut` is asked which of
/// the kept tools stay, and says how many it took away; a cut list loses its `nextCursor`, which would lead past the cut.
///
/// # Errors
/// When the answer can't be decoded; it must not be forwarded then.
pub fn filter(
    message: &[u8],
    era: Era,
    keep: &mut dyn FnMut(ListKind, &str) -> bool,
    cut: &mut dyn FnMut(&mut Vec<Item>) -> usize,
) -> Result<Option<Bytes>, ListError> {
    if message.trim_ascii_start().first() == Some(&b'[') {
        let members: Vec<&RawValue> = parse(message)?;
        let mut changed = false;
        let mut out = Vec::with_capacity(message.len());
        for member in members {
            out.push(if out.is_empty() { b'[' } else { b',' });
            // Not this function again: an array in an array is no batch, and a reply of nothing but brackets would
            // take the stack with it.
            match filter_one(member.get().as_bytes(), era, keep, cut)? {
                Some(bytes) => {
                    changed = true;
                    out.extend_from_slice(&bytes);
                }
                None => out.extend_from_slice(member.get().as_bytes()),
            }
        }
        out.push(b']');
        return Ok(changed.then(|| out.into()));
    }
    filter_one(message, era, keep, cut)
}

fn filter_one(
    message: &[u8],
    era: Era,
    keep: &mut dyn FnMut(ListKind, &str) -> bool,
    cut: &mut dyn FnMut(&mut Vec<Item>) -> usize,
) -> Result<Option<Bytes>, ListError> {
    let envelope: Object<'_> = parse(message)?;
    let Some(result) = envelope.get("result").filter(|result| result.get().starts_with('{')) else {
        return Ok(None);
    };
    let mut result: Object<'_> = parse(result.get().as_bytes())?;
    let mut listed = false;
    let mut changed = false;
    let mut hidden = 0;
    for place in 0..result.0.len() {
        let (key, value) = &result.0[place];
        let Some((kind, name)) = ListKind::of(key) else {
            continue;
        };
        listed = true;
        let all = items(value.raw(), name)?;
        let count = all.1;
        let mut kept: Vec<Item> = all.0.into_iter().filter(|item| keep(kind, &item.name)).collect();
        if kind == ListKind::Tools {
            hidden += cut(&mut kept);
        }
        if kept.len() < count {
            changed = true;
            result.0[place].1 = Value::Made(array(&kept));
        }
    }
    if !listed {
        return Ok(None);
    }
    if hidden > 0 {
        result.remove("nextCursor");
        result.hide(hidden)?;
    }
    changed |= result.make_private(era);
    Ok(changed.then(|| envelope.with_result(&result)))
}

/// The tools of one page of answers; `None` when the answer is an error or holds no tools.
///
/// # Errors
/// When the answer can't be decoded.
pub fn page(message: &[u8]) -> Result<Option<Page>, ListError> {
    let envelope: Object<'_> = parse(message)?;
    let Some(result) = envelope.get("result").filter(|result| result.get().starts_with('{')) else {
        return Ok(None);
    };
    let result: Object<'_> = parse(result.get().as_bytes())?;
    let Some(tools) = result.get("tools") else {
        return Ok(None);
    };
    // Null is how some servers say that there is none. Anything else that is no string would end the list early, and
    // lose what is on its other pages.
    let next_cursor = match result.get("nextCursor") {
        Some(cursor) => serde_json::from_str(cursor.get()).map_err(|_| ListError::NotAList)?,
        None => None,
    };
    Ok(Some(Page {
        items: items(tools.get(), "name")?.0,
        next_cursor,
    }))
}

/// The first page's answer with `tools` in place of its own, and no next page.
///
/// # Errors
/// When the first page can't be decoded.
pub fn join(first: &[u8], tools: &[Item], hidden: usize, era: Era) -> Result<Bytes, ListError> {
    let envelope: Object<'_> = parse(first)?;
    let result = envelope.get("result").ok_or(ListError::NotAList)?;
    let mut result: Object<'_> = parse(result.get().as_bytes())?;
    result.remove("nextCursor");
    for (key, value) in &mut result.0 {
        if key == "tools" {
            *value = Value::Made(array(tools));
        }
    }
    if hidden > 0 {
        result.hide(hidden)?;
    }
    result.make_private(era);
    Ok(envelope.with_result(&result))
}

/// The items that have a name, and how many there are in all.
fn items(list: &str, name: &str) -> Result<(Vec<Item>, usize), ListError> {
    let all: Vec<&RawValue> = serde_json::from_str(list).map_err(|_| ListError::NotAList)?;
    let named = all
        .iter()
        .filter_map(|raw| {
            let fields: Object<'_> = parse(raw.get().as_bytes()).ok()?;
            let name: Cow<'_, str> = serde_json::from_str(fields.get(name)?.get()).ok()?;
            Some(Item {
                name: name.into(),
                raw: Bytes::copy_from_slice(raw.get().as_bytes()),
            })
        })
        .collect();
    Ok((named, all.len()))
}

fn array(items: &[Item]) -> String {
    let texts: Vec<&str> = items
        .iter()
        .map(|item| std::str::from_utf8(&item.raw).expect("items are JSON text"))
        .collect();
    format!("[{}]", texts.join(","))
}

fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, ListError> {
    serde_json::from_slice(text).map_err(|error| {
        if error.to_string().starts_with(REPEATED) {
            ListError::RepeatedKey
        } else {
            ListError::NotJson
        }
    })
}

const REPEATED: &str = "repeated key";

/// An object's members in order, none twice.
struct Object<'a>(Vec<(Cow<'a, str>, Value<'a>)>);

#[derive(Clone)]
enum Value<'a> {
    Raw(&'a RawValue),
    Made(String),
}

impl Value<'_> {
    fn raw(&self) -> &str {
        match self {
            Self::Raw(raw) => raw.get(),
            Self::Made(text) => text,
        }
    }
}

impl<'a> Object<'a> {
    fn get(&self, key: &str) -> Option<&'a RawValue> {
        self.0.iter().find_map(|(name, value)| match value {
            Value::Raw(raw) if name == key => Some(*raw),
            _ => None,
        })
    }

    fn remove(&mut self, key: &str) {
        self.0.retain(|(name, _)| name != key);
    }

    fn set(&mut self, key: &'a str, text: String) {
        match self.0.iter_mut().find(|(name, _)| name == key) {
            Some((_, value)) => *value = Value::Made(text),
            None => self.0.push((Cow::Borrowed(key), Value::Made(text))),
        }
    }

    fn hide(&mut self, hidden: usize) -> Result<(), ListError> {
        let mut meta = match self.get("_meta") {
            Some(meta) => parse::<serde_json::Map<String, serde_json::Value>>(meta.get().as_bytes())?,
            None => serde_json::Map::new(),
        };
        meta.insert(HIDDEN_TOOLS.to_owned(), hidden.into());
        self.set("_meta", serde_json::Value::Object(meta).to_string());
        Ok(())
    }

    /// Rule 4; whether that changed anything.
    fn make_private(&mut self, era: Era) -> bool {
        const PRIVATE: &str = "\"private\"";
        let scope = self.0.iter().find(|(key, _)| key == "cacheScope");
        if era != Era::Modern || scope.is_some_and(|(_, value)| value.raw() == PRIVATE) {
            return false;
        }
        self.set("cacheScope", PRIVATE.to_owned());
        true
    }

    fn with_result(&self, result: &Object<'_>) -> Bytes {
        let mut out = String::new();
        self.write(&mut out, Some(result));
        out.into()
    }

    fn write(&self, out: &mut String, result: Option<&Object<'_>>) {
        out.push('{');
        for (place, (key, value)) in self.0.iter().enumerate() {
            if place > 0 {
                out.push(',');
            }
            out.push_str(&serde_json::Value::from(&**key).to_string());
            out.push(':');
            match result {
                Some(result) if key == "result" => result.write(out, None),
                _ => out.push_str(value.raw()),
            }
        }
        out.push('}');
    }
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut seen = std::collections::HashSet::new();
                let mut members = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, &RawValue>()? {
                    if !seen.insert(key.clone()) {
                        return Err(serde::de::Error::custom(REPEATED));
                    }
                    members.push((Cow::Owned(key), Value::Raw(value)));
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(message: &str, era: Era, keep: &[&str]) -> Result<Option<String>, ListError> {
        filter(message.as_bytes(), era, &mut |_, name| keep.contains(&name), &mut |_| 0)
            .map(|bytes| bytes.map(|bytes| String::from_utf8(bytes.to_vec()).expect("text")))
    }

    #[test]
    fn r52_what_is_kept_is_the_upstreams_own_bytes() {
        let message = r#"{"id":1,"result":{"x":1.0,"tools":[{"name":"a","n":1.50},{"name":"b"},{"n":1},7],"nextCursor":"c"},"jsonrpc":"2.0"}"#;
        assert_eq!(
            filtered(message, Era::Legacy, &["a"]),
            Ok(Some(
                r#"{"id":1,"result":{"x":1.0,"tools":[{"name":"a","n":1.50}],"nextCursor":"c"},"jsonrpc":"2.0"}"#
                    .into()
            ))
        );
        assert_eq!(
            filtered(message, Era::Legacy, &["a", "b"]).map(|text| text.is_some()),
            Ok(true),
            "nameless items go"
        );
    }

    #[test]
    fn every_list_is_filtered_and_nothing_else() {
        for (message, expected) in [
            (
                r#"{"result":{"resources":[{"uri":"a"},{"uri":"x"}]}}"#,
                Some(r#"{"result":{"resources":[{"uri":"a"}]}}"#),
            ),
            (
                r#"{"result":{"resourceTemplates":[{"uriTemplate":"x"}]}}"#,
                Some(r#"{"result":{"resourceTemplates":[]}}"#),
            ),
            (
                r#"{"result":{"prompts":[{"name":"\u0061"},{"name":"x"}]}}"#,
                Some(r#"{"result":{"prompts":[{"name":"\u0061"}]}}"#),
            ),
            (r#"{"result":{"tools":[{"name":"a"}]}}"#, None),
            (r#"{"result":{"content":[{"name":"x"}]}}"#, None),
            (r#"{"error":{"tools":[{"name":"x"}]}}"#, None),
            (
                r#"[{"result":{}},{"result":{"tools":[{"name":"x"}]}}]"#,
                Some(r#"[{"result":{}},{"result":{"tools":[]}}]"#),
            ),
        ] {
            assert_eq!(
                filtered(message, Era::Legacy, &["a"]).expect(message).as_deref(),
                expected
            );
        }
    }

    #[test]
    fn a_modern_list_is_private() {
        let message = r#"{"result":{"tools":[{"name":"a"}],"cacheScope":"public"}}"#;
        assert_eq!(
            filtered(message, Era::Modern, &["a"]),
            Ok(Some(
                r#"{"result":{"tools":[{"name":"a"}],"cacheScope":"private"}}"#.into()
            ))
        );
        assert_eq!(
            filtered(r#"{"result":{"tools":[],"cacheScope":"private"}}"#, Era::Modern, &[]),
            Ok(None)
        );
    }

    #[test]
    fn r11_what_cant_be_decoded_is_an_error() {
        let deep = "[".repeat(1 << 20) + &"]".repeat(1 << 20);
        for (message, error) in [
            (r#"{"result":{"tools":[],"tools":[]}}"#, ListError::RepeatedKey),
            (r#"{"result":{"tools":{}}}"#, ListError::NotAList),
            (r#"{"result":{"tools":[}"#, ListError::NotJson),
            ("\"tools\"", ListError::NotJson),
            (r#"[[{"result":{"tools":[]}}]]"#, ListError::NotJson),
            (&deep, ListError::NotJson),
        ] {
            assert_eq!(filtered(message, Era::Legacy, &[]), Err(error), "{message:.60}");
        }
    }

    #[test]
    fn a_cursor_is_a_string_or_none() {
        let read = |cursor: &str| {
            let message = format!(r#"{{"id":1,"result":{{"tools":[],"nextCursor":{cursor}}}}}"#);
            page(message.as_bytes()).map(|page| page.expect("a list").next_cursor)
        };
        assert_eq!(read("null"), Ok(None));
        assert_eq!(read("\"\""), Ok(Some(String::new())));
        for odd in ["2", "true", "{}", "[\"2\"]"] {
            assert_eq!(read(odd), Err(ListError::NotAList), "{odd}");
        }
    }

    #[test]
    fn joined_pages_say_what_was_hidden() {
        let first = r#"{"id":1,"result":{"tools":[{"name":"a"}],"nextCursor":"2","_meta":{"k":1}}}"#;
        let read = page(first.as_bytes()).expect("a page").expect("tools");
        assert_eq!(read.next_cursor.as_deref(), Some("2"));
        let joined = join(first.as_bytes(), &read.items, 3, Era::Legacy).expect("joined");
        assert_eq!(
            joined,
            r#"{"id":1,"result":{"tools":[{"name":"a"}],"_meta":{"k":1,"portcullis/hiddenTools":3}}}"#
        );
        let joined = join(first.as_bytes(), &[], 0, Era::Legacy).expect("joined");
        assert_eq!(joined, r#"{"id":1,"result":{"tools":[],"_meta":{"k":1}}}"#);
    }
}
