//! JSON objects that are edited without being rewritten.
//!
//! 1. A key that stands twice is an error: two readers would see two objects.
//! 2. What is not edited keeps its bytes, keys and the space in and around values included, and its place; only the space
//!    around commas goes. An object that is not edited at all is the text it came from.
//! 3. A member is taken out with all that differ from it only in case: some readers match names without case.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A text is no JSON object, or repeats a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no JSON object, or a key stands in it twice")]
pub(crate) struct Malformed;

/// An object's members in order.
#[derive(Debug)]
pub(crate) struct Object<'a> {
    text: &'a str,
    members: Vec<Member<'a>>,
    edited: bool,
}

#[derive(Debug)]
struct Member<'a> {
    name: Cow<'a, str>,
    /// The key as it stands, with its colon.
    head: Cow<'a, str>,
    value: Cow<'a, str>,
}

/// How the error of a repeated key begins.
pub(super) const REPEATED: &str = "repeated key";
/// Above this many keys a set is needed to find doubles in linear time.
const FEW: usize = 32;

impl<'a> Object<'a> {
    /// Reads an object.
    ///
    /// # Errors
    /// By rule 1, and for whatever is no object.
    pub(crate) fn parse(text: &'a [u8]) -> Result<Self, Malformed> {
        Self::parse_str(std::str::from_utf8(text).map_err(|_| Malformed)?)
    }

    /// As [`Object::parse`], for a text.
    ///
    /// # Errors
    /// As [`Object::parse`].
    pub(crate) fn parse_str(text: &'a str) -> Result<Self, Malformed> {
        let Members(read) = serde_json::from_str(text).map_err(|_| Malformed)?;
        let mut members = Vec::with_capacity(read.len() + 4);
        let mut end = 0;
        for (name, value) in read {
            let value = value.get();
            let start = value.as_ptr().addr() - text.as_ptr().addr();
            // Between two values stand a comma, the key and a colon; the key begins with the only quote that can be first.
            let between = &text[end..start];
            let quote = between.find('"').expect("a value has a key before it");
            members.push(Member {
                name,
                head: Cow::Borrowed(&between[quote..]),
                value: Cow::Borrowed(value),
            });
            end = start + value.len();
        }
        Ok(Self {
            text,
            members,
            edited: false,
        })
    }

    /// An object without members.
    pub(crate) fn empty() -> Self {
        Self {
            text: "{}",
            members: Vec::new(),
            edited: false,
        }
    }

    /// Whether it has no members.
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether it says something else than the text it was read from.
    pub(crate) fn is_edited(&self) -> bool {
        self.edited
    }

    /// The names in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| &*member.name)
    }

    /// A member as it was read; not one that was [set](Object::set).
    pub(crate) fn get(&self, name: &str) -> Option<&'a str> {
        self.members.iter().find_map(|member| match member.value {
            Cow::Borrowed(value) if member.name == name => Some(value),
            _ => None,
        })
    }

    /// A member that is an object.
    ///
    /// # Errors
    /// When it is there but malformed.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Object<'a>>, Malformed> {
        self.get(name).map(Object::parse_str).transpose()
    }

    /// A member that is a text, unescaped; `None` for any other.
    pub(crate) fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        unescaped(self.get(name)?)
    }

    /// Takes a member out, by rule 3.
    pub(crate) fn take(&mut self, name: &str) -> Option<&'a str> {
        let value = self.get(name);
        self.retain(|other| !folds_to(other, name));
        value
    }

    /// Keeps the members with these names.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        let before = self.members.len();
        self.members.retain(|member| keep(&member.name));
        self.edited |= self.members.len() < before;
    }

    /// Gives a member another value, or adds it at the end. `value` is JSON.
    pub(crate) fn set(&mut self, name: &'a str, value: impl Into<Cow<'a, str>>) {
        self.edited = true;
        let value = value.into();
        match self.members.iter_mut().find(|member| member.name == name) {
            Some(member) => member.value = value,
            None => self.members.push(Member {
                name: Cow::Borrowed(name),
                head: Cow::Owned(format!("{}:", quoted(name))),
                value,
            }),
        }
    }

    /// Its text.
    pub(crate) fn write(&self) -> Cow<'a, str> {
        if !self.edited {
            return Cow::Borrowed(self.text);
        }
        let lengths = self
            .members
            .iter()
            .map(|member| member.head.len() + member.value.len() + 1);
        let mut out = String::with_capacity(lengths.sum::<usize>() + 2);
        out.push('{');
        for (place, member) in self.members.iter().enumerate() {
            if place > 0 {
                out.push(',');
            }
            out.push_str(&member.head);
            out.push_str(&member.value);
        }
        out.push('}');
        Cow::Owned(out)
    }

    /// Its text; what it was read from, if that has not changed.
    pub(crate) fn into_bytes(self, from: &Bytes) -> Bytes {
        match self.write() {
            Cow::Borrowed(text) if text.len() == from.len() => from.clone(),
            text => text.into_owned().into(),
        }
    }
}

/// A JSON text, unescaped; `None` when it is something else.
pub(crate) fn unescaped(raw: &str) -> Option<Cow<'_, str>> {
    let plain = raw.strip_prefix('"')?.strip_suffix('"')?;
    if plain.contains('\\') {
        return serde_json::from_str(raw).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(plain))
}

/// A text as JSON.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Whether a key is a name but for case. Two letters outside ASCII fold into it: the long s and the Kelvin sign.
pub(super) fn folds_to(key: &str, name: &str) -> bool {
    if key.is_ascii() {
        return key.eq_ignore_ascii_case(name);
    }
    let fold = |letter| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    key.chars().map(fold).eq(name.chars().map(fold))
}

/// An object's members as they were read, none twice. Most have a handful, so a scan beats a map.
pub(super) struct Members<'a>(pub(super) Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::with_capacity(8);
                let mut many = HashSet::new();
                while let Some(Key(key)) = map.next_key()? {
                    let repeated = if members.len() < FEW {
                        members.iter().any(|(name, _)| *name == key)
                    } else {
                        if many.is_empty() {
                            many.extend(members.iter().map(|(name, _)| name.clone()));
                        }
                        !many.insert(key.clone())
                    };
                    if repeated {
                        return Err(serde::de::Error::custom(REPEATED));
                    }
                    members.push((key, map.next_value()?));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

/// A key that borrows when it holds no escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_not_edited_keeps_its_bytes_and_its_place() {
        let text = r#" { "a" : 1.50 ,"b\u0062":[ {} ], "c":"\/" , "A":0 } "#;
        let mut object = Object::parse_str(text).expect("an object");
        assert_eq!(object.write(), text);
        assert_eq!(object.get("bb"), Some("[ {} ]"));
        assert_eq!(object.text("c").as_deref(), Some("/"));
        assert_eq!(object.take("a"), Some("1.50"));
        object.set("d", "true");
        assert_eq!(object.write(), r#"{"b\u0062":[ {} ],"c":"\/","d":true}"#);
        object.set("c", "2");
        object.retain(|name| name != "bb");
        assert_eq!(object.write(), r#"{"c":2,"d":true}"#);
        object.retain(|_| false);
        assert_eq!(object.write(), "{}");
    }

    #[test]
    fn r49_a_key_that_stands_twice_is_refused_however_it_is_spelled() {
        let many = |last: &str| {
            let members: Vec<_> = (0..100).map(|n| format!("\"k{n}\":0")).collect();
            format!("{{{},\"{last}\":0}}", members.join(","))
        };
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":1}"#,
            &many("k7"),
            &many("k99"),
            "[]",
            "1",
            "",
            "{",
        ] {
            assert_eq!(Object::parse_str(text).map(|_| ()), Err(Malformed), "{text}");
        }
        assert_eq!(
            Object::parse_str(&many("k100")).expect("an object").names().count(),
            101
        );
        assert_eq!(Object::parse(b"{\"a\":\"\xff\"}").map(|_| ()), Err(Malformed));
    }

    #[test]
    fn an_object_that_was_not_edited_is_what_it_came_from() {
        let from = Bytes::from_static(b"{\"a\" : 1}");
        let same = Object::parse(&from).expect("an object").into_bytes(&from);
        assert_eq!(same.as_ptr(), from.as_ptr());
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json(pairs in prop::collection::vec(("[a-eA-E\"\\\\ſ]{0,2}", ".{0,4}"), 0..40), drop in "[a-e]") {
            let members: Vec<_> = pairs.iter().map(|(key, value)| format!("{} :\t{}", quoted(key), quoted(value))).collect();
            let text = format!("{{ {} }}", members.join("\n, "));
            let plain: serde_json::Map<_, _> = serde_json::from_str(&text).expect("JSON");
            let read = Object::parse_str(&text);
            prop_assert_eq!(read.is_ok(), plain.len() == pairs.len());
            if let Ok(mut object) = read {
                object.take(&drop);
                object.set("new", "[]");
                let out: serde_json::Map<_, _> = serde_json::from_str(&object.write()).expect("still JSON");
                let mut expected = plain;
                expected.retain(|key, _| !key.eq_ignore_ascii_case(&drop));
                expected.insert("new".into(), serde_json::json!([]));
                prop_assert_eq!(out, expected);
            }
        }
    }
}
