//! What a passing JSON-RPC answer says, without holding it.
//!
//! A scanner follows the bytes of one message (or an array of them) with a few bytes of state: which keys stand at the
//! top and under `result`, whether `isError` is true, which code an error has. It checks no more of JSON than it needs
//! to keep its place; whoever acts on a list parses it for real.

/// How a call was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageOutcome {
    Success,
    /// `isError: true`.
    ToolError,
    /// A JSON-RPC error with this code (0 when it has none that fits).
    ProtocolError(i64),
    /// No answer: a request, a notification, or no JSON-RPC message.
    Unknown,
}

/// What a message turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    pub outcome: MessageOutcome,
    /// A result holds `tools`, `resources`, `resourceTemplates` or `prompts`.
    pub holds_list: bool,
}

/// Longest key that means anything here, escapes spelled out.
const KEY: usize = 17 * 6;

/// Follows one message.
#[derive(Debug)]
pub struct Scanner {
    depth: usize,
    /// 1 when the outermost value is an array of messages.
    base: usize,
    in_string: bool,
    escaped: bool,
    /// Whether the next string in an object is a key.
    expects_key: bool,
    key: [u8; KEY],
    key_length: usize,
    /// The last key at message level, and under `result` or `error`.
    top: Field,
    sub: Field,
    /// Raw text of the scalar value being read, if it matters.
    scalar: [u8; 24],
    scalar_length: usize,
    objects: u128,
    found: Found,
}

#[derive(Clone, Copy, Debug, Default)]
struct Found {
    result: bool,
    error: bool,
    is_error: bool,
    code: i64,
    list: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Field {
    #[default]
    Other,
    Result,
    Error,
    IsError,
    Code,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            depth: 0,
            base: 0,
            in_string: false,
            escaped: false,
            expects_key: false,
            key: [0; KEY],
            key_length: 0,
            top: Field::Other,
            sub: Field::Other,
            scalar: [0; 24],
            scalar_length: 0,
            objects: 0,
            found: Found::default(),
        }
    }
}

impl Scanner {
    /// Follows more bytes.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.in_string {
                let keyed = self.reads_key();
                if !keyed && !self.escaped {
                    // Most of a reply is the inside of long strings.
                    let Some(end) = memchr::memchr2(b'"', b'\\', bytes) else {
                        return;
                    };
                    if end > 0 {
                        bytes = &bytes[end..];
                        continue;
                    }
                }
                self.in_text(byte, keyed);
            } else {
                self.outside(byte);
            }
            bytes = rest;
        }
    }

    /// Whether a list has shown so far.
    pub fn holds_list(&self) -> bool {
        self.found.list
    }

    /// The message has ended.
    pub fn finish(mut self) -> Observation {
        self.end_scalar();
        let Found {
            result,
            error,
            is_error,
            code,
            list,
        } = self.found;
        Observation {
            outcome: match (error, result, is_error) {
                (true, _, _) => MessageOutcome::ProtocolError(code),
                (false, true, true) => MessageOutcome::ToolError,
                (false, true, false) => MessageOutcome::Success,
                (false, false, _) => MessageOutcome::Unknown,
            },
            holds_list: list,
        }
    }

    /// Keys matter at message level and one below.
    fn reads_key(&self) -> bool {
        self.expects_key && self.in_object() && (1..=2).contains(&(self.depth.wrapping_sub(self.base)))
    }

    fn in_object(&self) -> bool {
        self.depth > 0 && self.depth <= 128 && self.objects & (1 << (self.depth - 1)) != 0
    }

    fn in_text(&mut self, byte: u8, keyed: bool) {
        match (self.escaped, byte) {
            (false, b'"') => {
                self.in_string = false;
                if keyed {
                    self.end_key();
                }
                return;
            }
            (false, b'\\') => self.escaped = true,
            _ => self.escaped = false,
        }
        if keyed {
            if self.key_length < KEY {
                self.key[self.key_length] = byte;
            }
            self.key_length += 1;
        }
    }

    fn outside(&mut self, byte: u8) {
        match byte {
            b'"' => {
                self.in_string = true;
                self.key_length = 0;
                self.scalar_length = 0;
            }
            b'{' | b'[' => {
                self.depth += 1;
                let bit = 1_u128
                    .checked_shl(u32::try_from(self.depth - 1).unwrap_or(u32::MAX))
                    .unwrap_or(0);
                if byte == b'{' {
                    self.objects |= bit;
                    self.expects_key = true;
                } else {
                    self.objects &= !bit;
                    if self.depth == 1 {
                        self.base = 1;
                    }
                }
                self.scalar_length = 0;
            }
            b'}' | b']' => {
                self.end_scalar();
                self.depth = self.depth.saturating_sub(1);
                self.expects_key = false;
            }
            b',' => {
                self.end_scalar();
                self.expects_key = self.in_object();
            }
            b':' => {
                self.expects_key = false;
                self.scalar_length = 0;
            }
            b' ' | b'\t' | b'\r' | b'\n' => {}
            _ => {
                if self.scalar_length < self.scalar.len() {
                    self.scalar[self.scalar_length] = byte;
                    self.scalar_length += 1;
                }
            }
        }
    }

    fn end_key(&mut self) {
        let key = &self.key[..self.key_length.min(KEY)];
        let unescaped;
        let key = if self.key_length <= KEY && memchr::memchr(b'\\', key).is_some() {
            unescaped = unescape(key);
            unescaped.as_bytes()
        } else {
            key
        };
        if self.depth - self.base == 1 {
            self.sub = Field::Other;
            self.top = match key {
                b"result" => {
                    self.found.result = true;
                    Field::Result
                }
                b"error" => {
                    self.found.error = true;
                    Field::Error
                }
                _ => Field::Other,
            };
        } else {
            self.sub = match (self.top, key) {
                (Field::Result, b"isError") => Field::IsError,
                (Field::Result, b"tools" | b"resources" | b"resourceTemplates" | b"prompts") => {
                    self.found.list = true;
                    Field::Other
                }
                (Field::Error, b"code") => Field::Code,
                _ => Field::Other,
            };
        }
    }

    fn end_scalar(&mut self) {
        if self.depth.wrapping_sub(self.base) == 2 && self.scalar_length > 0 {
            let scalar = &self.scalar[..self.scalar_length];
            match self.sub {
                Field::IsError if scalar == b"true" => self.found.is_error = true,
                Field::Code => {
                    self.found.code = std::str::from_utf8(scalar)
                        .ok()
                        .and_then(|code| code.parse().ok())
                        .unwrap_or(0);
                }
                _ => {}
            }
            self.sub = Field::Other;
        }
        self.scalar_length = 0;
    }
}

fn unescape(key: &[u8]) -> String {
    let quoted = [b"\"", key, b"\""].concat();
    serde_json::from_slice(&quoted).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn see(text: &str, chunk: usize) -> Observation {
        let mut scanner = Scanner::default();
        for part in text.as_bytes().chunks(chunk) {
            scanner.push(part);
        }
        scanner.finish()
    }

    #[test]
    fn answers_are_told_apart_in_any_chunking() {
        use MessageOutcome as M;
        for (text, outcome, list) in [
            (r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, M::Success, false),
            (
                r#"{"jsonrpc":"2.0","id":1,"result":{"isError":true,"content":[]}}"#,
                M::ToolError,
                false,
            ),
            (
                r#"{"result":{"content":[{"isError":true}],"isError" : false}}"#,
                M::Success,
                false,
            ),
            (r#"{"result":{"a":{"isError":true}}}"#, M::Success, false),
            (r#"{"result":{"isErr\u006fr":true}}"#, M::ToolError, false),
            (
                r#"{"id":1,"error":{"code":-32602,"message":"\"code\": 1"}}"#,
                M::ProtocolError(-32602),
                false,
            ),
            (r#"{"error":{"data":{"code":7}}}"#, M::ProtocolError(0), false),
            (r#"{"method":"x","params":{"result":{}}}"#, M::Unknown, false),
            (r#"{"result":{"tools":[]}}"#, M::Success, true),
            (r#"{"result":{"t\u006fols":[]}}"#, M::Success, true),
            (r#"{"result":{"resourceTemplates":[]}}"#, M::Success, true),
            (
                r#"{"result":{"\u0072\u0065\u0073\u006f\u0075\u0072\u0063\u0065\u0054\u0065\u006d\u0070\u006c\u0061\u0074\u0065\u0073":[]}}"#,
                M::Success,
                true,
            ),
            (r#"{"result":{"capabilities":{"tools":{}}}}"#, M::Success, false),
            (r#"{"tools":[],"result":{"x":"tools"}}"#, M::Success, false),
            (r#"[{"result":{}},{"result":{"prompts":[]}}]"#, M::Success, true),
            ("", M::Unknown, false),
            ("}}]]", M::Unknown, false),
        ] {
            for chunk in 1..=text.len().max(1) {
                let seen = see(text, chunk);
                assert_eq!((seen.outcome, seen.holds_list), (outcome, list), "{text} in {chunk}");
            }
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let key = prop_oneof![
            "[a-z\"\\\\]{0,6}",
            Just("isError".to_owned()),
            Just("tools".to_owned()),
            Just("result".to_owned())
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 24, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(key.clone(), inner, 0..4).prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_full_parse(result in value(), chunk in 1_usize..40) {
            let text = json!({"jsonrpc": "2.0", "result": result, "z": {"tools": 1}}).to_string();
            let seen = see(&text, chunk);
            prop_assert_eq!(seen.holds_list, result.get("tools").is_some());
            let expected = if result.get("isError") == Some(&Value::Bool(true)) { MessageOutcome::ToolError } else { MessageOutcome::Success };
            prop_assert_eq!(seen.outcome, expected);
        }

        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut scanner = Scanner::default();
            scanner.push(&bytes);
            scanner.finish();
        }
    }
}
