//! One strict pass over a body: what message is it?
//!
//! 1. Duplicate keys are refused at every level that is read: the message, `params`, `_meta`, `ref` and
//!    `notifications`. Two parsers that pick different ones of two `name`s are a policy bypass (r49).
//! 2. Keys compare unescaped: `"na\u006de"` is `name`.
//! 3. A key that differs only in case from one that is read is refused: some servers match names without case, and
//!    would run what policy never saw.
//! 4. Nesting is bounded at 128 for the whole body, batches at 64 members, ids at 1 KiB.
//! 5. `id` is a string or an integer; null is refused (MCP, "Requests").

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::errors::codes;
use super::message::{Id, Kind, Message, Meta, Payload, Reference};
use super::object::{Members as Fields, REPEATED, folds_to, unescaped};

const MAX_DEPTH: usize = 128;
const MAX_BATCH: usize = 64;
const MAX_ID: usize = 1024;
const MAX_METHOD: usize = 256;
/// Names and URIs that policy compares and the audit writes.
const MAX_NAME: usize = 8 * 1024;

/// Why a body is no call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct EnvelopeError {
    code: i64,
    text: &'static str,
    id: Option<Id>,
}

impl EnvelopeError {
    fn parse(text: &'static str) -> Self {
        Self {
            code: codes::PARSE_ERROR,
            text,
            id: None,
        }
    }

    fn invalid(text: &'static str) -> Self {
        Self {
            code: codes::INVALID_REQUEST,
            text,
            id: None,
        }
    }

    /// The JSON-RPC error code: parse error or invalid request.
    pub fn code(&self) -> i64 {
        self.code
    }

    /// The id, when it was read before the fault was found.
    pub fn id(&self) -> Option<&Id> {
        self.id.as_ref()
    }
}

/// Parses a request body.
///
/// # Errors
/// -32700 when the body isn't JSON, nests too deeply or repeats a key; -32600 when it isn't a JSON-RPC message.
pub fn parse(body: &Bytes) -> Result<Payload, EnvelopeError> {
    check_depth(body)?;
    let text = std::str::from_utf8(body).map_err(|_| EnvelopeError::parse("the body is not UTF-8"))?;
    match text.trim_start_matches([' ', '\t', '\r', '\n']).as_bytes().first() {
        Some(b'{') => message(body, text).map(|message| Payload::Single(Arc::new(message))),
        Some(b'[') => {
            let members: Vec<&RawValue> =
                serde_json::from_str(text).map_err(|_| EnvelopeError::parse("the body is not JSON"))?;
            if members.is_empty() {
                return Err(EnvelopeError::invalid("the batch is empty"));
            }
            if members.len() > MAX_BATCH {
                return Err(EnvelopeError::invalid("the batch has over 64 members"));
            }
            let messages = members
                .iter()
                .map(|member| message(body, member.get()))
                .collect::<Result<Arc<[_]>, _>>()?;
            let mut ids = HashSet::new();
            let requests = messages.iter().filter(|message| message.kind == Kind::Request);
            if !requests
                .filter_map(|message| message.id.as_ref())
                .all(|id| ids.insert(id.canonical()))
            {
                return Err(EnvelopeError::invalid("two requests of the batch have the same id"));
            }
            Ok(Payload::Batch(messages))
        }
        Some(_) => Err(match serde_json::from_str::<IgnoredAny>(text) {
            Ok(_) => EnvelopeError::invalid("the body is no JSON-RPC message"),
            Err(_) => EnvelopeError::parse("the body is not JSON"),
        }),
        None => Err(EnvelopeError::parse("the body is empty")),
    }
}

/// Rule 3, before anything recurses.
fn check_depth(body: &[u8]) -> Result<(), EnvelopeError> {
    // Nothing nests deeper than it has openers, and counting them is far cheaper than keeping track of strings.
    if body.iter().filter(|byte| matches!(byte, b'{' | b'[')).count() <= MAX_DEPTH {
        return Ok(());
    }
    let mut depth = 0_usize;
    let mut rest = body.iter();
    let mut in_string = false;
    while let Some(byte) = rest.next() {
        match (in_string, byte) {
            (true, b'\\') => {
                rest.next();
            }
            (_, b'"') => in_string = !in_string,
            (false, b'{' | b'[') => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(EnvelopeError::parse("the body nests deeper than 128"));
                }
            }
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

fn message(body: &Bytes, text: &str) -> Result<Message, EnvelopeError> {
    let fields: Fields<'_> = serde_json::from_str(text).map_err(|error| {
        if error.to_string().starts_with(REPEATED) {
            EnvelopeError::parse("a key of the message appears twice")
        } else if error.is_data() {
            EnvelopeError::invalid("the body is no JSON-RPC message")
        } else {
            EnvelopeError::parse("the body is not JSON")
        }
    })?;
    fields.unmistakable(&["jsonrpc", "id", "method", "params", "result", "error"])?;
    let id = fields.get("id").map(|id| id_of(body, id)).transpose()?;
    build(body, text, &fields, id.clone()).map_err(|error| EnvelopeError { id, ..error })
}

fn build(body: &Bytes, text: &str, fields: &Fields<'_>, id: Option<Id>) -> Result<Message, EnvelopeError> {
    if fields.text("jsonrpc").as_deref() != Some("2.0") {
        return Err(EnvelopeError::invalid("jsonrpc must be \"2.0\""));
    }
    let answers = fields.get("result").is_some() || fields.get("error").is_some();
    let mut message = Message {
        kind: match (fields.get("method"), &id) {
            (Some(_), Some(_)) => Kind::Request,
            (Some(_), None) => Kind::Notification,
            (None, Some(_)) => Kind::Response,
            (None, None) if answers => Kind::Response,
            (None, None) => return Err(EnvelopeError::invalid("the message has no method")),
        },
        method: "".into(),
        id,
        name: None,
        uri: None,
        arguments: None,
        reference: None,
        subscriptions: Vec::new(),
        cursor: None,
        task_id: None,
        is_retry: false,
        meta: Meta::default(),
        raw: slice(body, text.trim_matches([' ', '\t', '\r', '\n'])),
    };
    if message.kind == Kind::Response {
        if !answers {
            return Err(EnvelopeError::invalid(
                "the message has neither method nor result nor error",
            ));
        }
        if fields.get("result").is_some() && fields.get("error").is_some() {
            return Err(EnvelopeError::invalid("an answer has a result or an error, not both"));
        }
        return Ok(message);
    }
    if answers {
        return Err(EnvelopeError::invalid("a message is a request or an answer, not both"));
    }
    let method = fields
        .text("method")
        .filter(|method| !method.is_empty() && method.len() <= MAX_METHOD)
        .ok_or_else(|| EnvelopeError::invalid("method must be a string of 1 to 256 bytes"))?;
    message.method = method.into();
    if let Some(params) = fields.get("params") {
        fill(body, &mut message, params)?;
    }
    Ok(message)
}

fn fill(body: &Bytes, message: &mut Message, params: &RawValue) -> Result<(), EnvelopeError> {
    let params = object(params, "params must be an object")?;
    params.unmistakable(&[
        "name",
        "uri",
        "arguments",
        "cursor",
        "taskId",
        "_meta",
        "ref",
        "notifications",
    ])?;
    message.name = params.name("name")?;
    message.uri = params.name("uri")?;
    message.cursor = params.name("cursor")?;
    message.task_id = params.name("taskId")?;
    message.is_retry = params.get("inputResponses").is_some();
    message.arguments = params.get("arguments").map(|arguments| slice(body, arguments.get()));
    if let Some(meta) = params.get("_meta") {
        let meta = object(meta, "params._meta must be an object")?;
        message.meta = Meta {
            protocol_version: meta.name("io.modelcontextprotocol/protocolVersion")?,
            has_client_capabilities: meta
                .get("io.modelcontextprotocol/clientCapabilities")
                .is_some_and(|value| value.get().starts_with('{')),
        };
    }
    if let Some(reference) = params.get("ref") {
        let reference = object(reference, "params.ref must be an object")?;
        reference.unmistakable(&["type", "name", "uri"])?;
        message.reference = match reference.text("type").as_deref() {
            Some("ref/prompt") => reference.name("name")?.map(Reference::Prompt),
            Some("ref/resource") => reference.name("uri")?.map(Reference::Resource),
            _ => None,
        };
    }
    if let Some(listen) = params
        .get("notifications")
        .filter(|_| &*message.method == "subscriptions/listen")
    {
        let listen = object(listen, "params.notifications must be an object")?;
        listen.unmistakable(&["resourceSubscriptions"])?;
        if let Some(uris) = listen.get("resourceSubscriptions") {
            let uris: Vec<Cow<'_, str>> = serde_json::from_str(uris.get())
                .map_err(|_| EnvelopeError::invalid("resourceSubscriptions must be a list of URIs"))?;
            message.subscriptions = uris.into_iter().map(Into::into).collect();
        }
    }
    Ok(())
}

fn object<'a>(raw: &'a RawValue, text: &'static str) -> Result<Fields<'a>, EnvelopeError> {
    serde_json::from_str(raw.get()).map_err(|error| {
        if error.to_string().starts_with(REPEATED) {
            EnvelopeError::parse("a key of the message appears twice")
        } else {
            EnvelopeError::invalid(text)
        }
    })
}

fn id_of(body: &Bytes, id: &RawValue) -> Result<Id, EnvelopeError> {
    let text = id.get();
    let number = || {
        text.strip_prefix('-')
            .unwrap_or(text)
            .bytes()
            .all(|byte| byte.is_ascii_digit())
    };
    if text.len() > MAX_ID || !(text.starts_with('"') || number()) {
        return Err(EnvelopeError::invalid(
            "id must be a string or an integer of at most 1 KiB",
        ));
    }
    Ok(Id(slice(body, text)))
}

/// The part of the body that `text` is.
fn slice(body: &Bytes, text: &str) -> Bytes {
    body.slice_ref(text.as_bytes())
}

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| *value)
    }

    /// Rule 3.
    fn unmistakable(&self, read: &[&str]) -> Result<(), EnvelopeError> {
        let mistakable = |key: &str| read.iter().any(|name| key != *name && folds_to(key, name));
        if self.0.iter().any(|(key, _)| mistakable(key)) {
            return Err(EnvelopeError::parse(
                "a key of the message differs from a known one only in case",
            ));
        }
        Ok(())
    }

    fn text(&self, key: &str) -> Option<Cow<'a, str>> {
        unescaped(self.get(key)?.get())
    }

    /// A text that policy may compare: absent, or a string of reasonable length.
    fn name(&self, key: &str) -> Result<Option<Box<str>>, EnvelopeError> {
        if self.get(key).is_none() {
            return Ok(None);
        }
        match self.text(key) {
            Some(text) if text.len() <= MAX_NAME => Ok(Some(text.into())),
            _ => Err(EnvelopeError::invalid(
                "name, uri, cursor and taskId are strings of at most 8 KiB",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn refusal(body: &str) -> (i64, &'static str) {
        let error = parse(&Bytes::copy_from_slice(body.as_bytes())).expect_err(body);
        (error.code, error.text)
    }

    fn single(body: &str) -> Message {
        match parse(&Bytes::copy_from_slice(body.as_bytes())).expect(body) {
            Payload::Single(message) => Message::clone(&message),
            Payload::Batch(_) => panic!("a batch"),
        }
    }

    #[test]
    fn r49_duplicate_keys_are_refused_however_they_are_spelled() {
        for body in [
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","method":"tools/call"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","m\u0065thod":"tools/call"}"#,
            r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","na\u006de":"b"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_meta":{"a":1,"a":2}}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{},"params":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"type":"ref/prompt","name":"a","name":"b"}}}"#,
        ] {
            assert_eq!(refusal(body).1, "a key of the message appears twice", "{body}");
        }
    }

    #[test]
    fn r49_keys_that_another_parser_could_mistake_are_refused() {
        for body in [
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","Method":"tools/call"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a"},"PARAMS":{"name":"b"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","Name":"b"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","argument\u017f":{}}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"Notifications":{}}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"type":"ref/prompt","NAME":"b"}}}"#,
        ] {
            assert_eq!(
                refusal(body).1,
                "a key of the message differs from a known one only in case",
                "{body}"
            );
        }
        // What nobody decides over may be spelled as it likes.
        single(
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"Name":1},"_meta":{"Name":1}}}"#,
        );
    }

    #[test]
    fn many_keys_are_still_looked_at_for_doubles() {
        let keys: Vec<String> = (0..200).map(|n| format!("\"k{n}\":{n}")).collect();
        let body = |more: &str| {
            format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":{{{}{more}}}}}"#,
                keys.join(",")
            )
        };
        single(&body(""));
        assert_eq!(refusal(&body(",\"k150\":0")).1, "a key of the message appears twice");
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let deep = format!("{}{}", "[".repeat(129), "]".repeat(129));
        let long_id = format!(r#"{{"jsonrpc":"2.0","id":"{}","method":"ping"}}"#, "x".repeat(1024));
        let batch = format!("[{}]", vec![r#"{"jsonrpc":"2.0","method":"ping"}"#; 65].join(","));
        for (body, code) in [
            ("", codes::PARSE_ERROR),
            ("{", codes::PARSE_ERROR),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping"} x"#, codes::PARSE_ERROR),
            (deep.as_str(), codes::PARSE_ERROR),
            ("7", codes::INVALID_REQUEST),
            ("[]", codes::INVALID_REQUEST),
            ("[[]]", codes::INVALID_REQUEST),
            (batch.as_str(), codes::INVALID_REQUEST),
            ("{}", codes::INVALID_REQUEST),
            (r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, codes::INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, codes::INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#, codes::INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#, codes::INVALID_REQUEST),
            (long_id.as_str(), codes::INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":1,"method":""}"#, codes::INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, codes::INVALID_REQUEST),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}"#,
                codes::INVALID_REQUEST,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":7}}"#,
                codes::INVALID_REQUEST,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}"#,
                codes::INVALID_REQUEST,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{}}"#,
                codes::INVALID_REQUEST,
            ),
            (
                r#"[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":1,"method":"ping"}]"#,
                codes::INVALID_REQUEST,
            ),
        ] {
            assert_eq!(refusal(body).0, code, "{body}");
        }
        let body = Bytes::from_static(&[b'"', 0xff, b'"']);
        assert_eq!(parse(&body).expect_err("not UTF-8").code, codes::PARSE_ERROR);
    }

    #[test]
    fn brackets_in_strings_are_no_depth() {
        single(&format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":{{"a":"\"{}","b":[{}1{}]}}}}"#,
            "[".repeat(500),
            "[".repeat(125),
            "]".repeat(125),
        ));
    }

    #[test]
    fn a_fault_after_the_id_still_knows_the_id() {
        let body = Bytes::from_static(br#"{"jsonrpc":"2.0","id":"x","method":"ping","params":[]}"#);
        let error = parse(&body).expect_err("params are a list");
        assert_eq!(error.id().map(|id| &*id.0), Some(&br#""x""#[..]));
    }

    #[test]
    fn what_policy_needs_is_read() {
        let message = single(
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"n\u0061me":"a\nb","arguments":{"x":1},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"progressToken":1}}}"#,
        );
        assert_eq!(message.name.as_deref(), Some("a\nb"));
        assert_eq!(message.arguments.as_deref(), Some(&br#"{"x":1}"#[..]));
        assert_eq!(message.meta.protocol_version.as_deref(), Some("2026-07-28"));
        assert!(message.meta.has_client_capabilities);
        let message = single(
            r#"{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"notifications":{"resourceSubscriptions":["a://b"]}}}"#,
        );
        assert_eq!(&*message.subscriptions[0], "a://b");
        let message = single(
            r#"{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"type":"ref/resource","uri":"a://b"}}}"#,
        );
        assert_eq!(message.reference, Some(Reference::Resource("a://b".into())));
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::hash_map(".{0,8}", inner, 0..5).prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_full_parse(method in "[a-z/]{1,20}", id in any::<i64>(), name in ".{0,20}", uri in ".{0,20}", arguments in json_value(), pretty in any::<bool>()) {
            let value = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": {"name": name, "uri": uri, "arguments": arguments}});
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.expect("JSON");
            let message = single(&text);
            prop_assert_eq!(&*message.method, value["method"].as_str().expect("text"));
            prop_assert_eq!(message.name.as_deref(), value["params"]["name"].as_str());
            prop_assert_eq!(message.uri.as_deref(), value["params"]["uri"].as_str());
            let read: Value = serde_json::from_slice(&message.arguments.expect("arguments")).expect("JSON");
            prop_assert_eq!(&read, &value["params"]["arguments"]);
            prop_assert_eq!(message.id.expect("an id").0, id.to_string());
        }

        #[test]
        fn never_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&Bytes::from(body));
        }

        #[test]
        fn accepts_only_what_a_full_parse_accepts(value in json_value(), cut in 0_usize..400) {
            let text = value.to_string();
            let cut = text.floor_char_boundary(cut.min(text.len()));
            if parse(&Bytes::copy_from_slice(&text.as_bytes()[..cut])).is_ok() {
                prop_assert!(serde_json::from_str::<Value>(&text[..cut]).is_ok());
            }
        }
    }
}
