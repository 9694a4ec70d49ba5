//! The headers that a modern call mirrors, for the calls that the gate makes itself (MCP 2026-07-28, "Custom Headers from
//! Tool Parameters" and "Value Encoding").
//!
//! 1. `x-mcp-header` stands on a string, integer or boolean that a chain of `properties` leads to; its value is a header
//!    name's token, and no other's but for case. A tool with any other annotation is invalid as a whole.
//! 2. Annotations are looked for wherever JSON Schema has a schema, and nowhere else: a default or an example may hold
//!    the word.
//! 3. The header is left out where the arguments have no value, or null, or what has no text.
//! 4. What is no plain header value, or looks like the encoded form, is encoded.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::value::RawValue;

use crate::mcp::Id;
use crate::mcp::object::{Object, unescaped};

const KEY: &str = "x-mcp-header";
/// Annotations that one tool may have, and properties that may lead to one.
const MAX_HEADERS: usize = 64;
/// A value over this many bytes is not mirrored: no server would take the header.
const MAX_VALUE: usize = 8 * 1024;
/// Schemas in schemas; one that nests deeper and has annotations is invalid.
const MAX_DEPTH: usize = 64;

/// A parameter that is mirrored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamHeader {
    /// `mcp-param-…`, in lower case.
    pub header: String,
    /// The names of the properties from the arguments to the value; at least one.
    pub path: Vec<String>,
}

/// A tool's annotations break rule 1, or can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its x-mcp-header annotations are invalid")]
pub struct InvalidHeaders;

/// The mirrored parameters of a tool's raw definition.
///
/// # Errors
/// By rule 1; the tool must be left out of lists then.
pub fn param_headers(tool: &[u8]) -> Result<Vec<ParamHeader>, InvalidHeaders> {
    let tool = Object::parse(tool).map_err(|_| InvalidHeaders)?;
    let mut found = Vec::new();
    if let Some(schema) = tool.get("inputSchema").filter(|schema| schema.contains(KEY)) {
        collect(schema, Some(&mut Vec::new()), 0, &mut found)?;
    }
    Ok(found)
}

/// The tools of a raw `tools/list` result that have mirrored parameters, each with its name.
pub fn annotated_tools(result: &[u8]) -> Vec<(String, Vec<ParamHeader>)> {
    let Ok(result) = Object::parse(result) else {
        return Vec::new();
    };
    let tools: Vec<&RawValue> = result
        .get("tools")
        .filter(|tools| tools.contains(KEY))
        .and_then(|tools| serde_json::from_str(tools).ok())
        .unwrap_or_default();
    tools
        .into_iter()
        .filter_map(|tool| {
            let name = Object::parse_str(tool.get()).ok()?.text("name")?;
            let headers = param_headers(tool.get().as_bytes()).ok()?;
            (!headers.is_empty()).then(|| (name.into_owned(), headers))
        })
        .collect()
}

/// The headers of one call, by its raw `arguments`: name, and value as it goes out.
pub fn mcp_param_values(arguments: &[u8], headers: &[ParamHeader]) -> Vec<(String, String)> {
    let Ok(arguments) = std::str::from_utf8(arguments) else {
        return Vec::new();
    };
    headers
        .iter()
        .filter_map(|param| {
            let mut value = arguments;
            for name in &param.path {
                value = Object::parse_str(value).ok()?.get(name)?;
            }
            let text = match value.as_bytes().first()? {
                b'"' => unescaped(value)?.into_owned(),
                b'{' | b'[' | b'n' => return None,
                b't' | b'f' => value.to_owned(),
                // 42.0 is the integer 42, as it is in an id.
                _ => String::from_utf8(Id(Bytes::copy_from_slice(value.as_bytes())).canonical().0.into()).ok()?,
            };
            (text.len() <= MAX_VALUE).then(|| (param.header.clone(), encode_header_value(&text)))
        })
        .collect()
}

/// A value as a header carries it: `Mcp-Name`, or a mirrored parameter.
pub fn encode_header_value(value: &str) -> String {
    let plain = value.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        && value.trim_matches(' ') == value
        && !(value.starts_with("=?base64?") && value.ends_with("?="));
    if plain {
        return value.to_owned();
    }
    format!("=?base64?{}?=", STANDARD.encode(value))
}

/// Rules 1 and 2; `path` is how the schema was reached, if by `properties` alone.
fn collect(
    schema: &str,
    mut path: Option<&mut Vec<String>>,
    depth: usize,
    found: &mut Vec<ParamHeader>,
) -> Result<(), InvalidHeaders> {
    // Schemas that are no objects are `true`, `false` or broken: none of them is annotated.
    if !schema.starts_with('{') || !schema.contains(KEY) {
        return Ok(());
    }
    if depth > MAX_DEPTH {
        return Err(InvalidHeaders);
    }
    let all = Object::parse_str(schema).map_err(|_| InvalidHeaders)?;
    if all.get(KEY).is_some() {
        let path = path.as_ref().filter(|path| !path.is_empty()).ok_or(InvalidHeaders)?;
        found.push(annotation(&all, path, found)?);
    }
    for keyword in all.names() {
        let value = all.get(keyword).expect("a key has its value");
        match keyword {
            "properties" => {
                for (name, schema) in members(value)? {
                    match &mut path {
                        Some(path) => {
                            path.push(name);
                            collect(schema, Some(path), depth + 1, found)?;
                            path.pop();
                        }
                        None => collect(schema, None, depth + 1, found)?,
                    }
                }
            }
            "patternProperties" | "dependentSchemas" | "$defs" | "definitions" => {
                for (_, schema) in members(value)? {
                    collect(schema, None, depth + 1, found)?;
                }
            }
            "allOf" | "anyOf" | "oneOf" | "prefixItems" | "items" if value.starts_with('[') => {
                let schemas: Vec<&RawValue> = serde_json::from_str(value).map_err(|_| InvalidHeaders)?;
                for schema in schemas {
                    collect(schema.get(), None, depth + 1, found)?;
                }
            }
            "items"
            | "additionalItems"
            | "contains"
            | "unevaluatedItems"
            | "additionalProperties"
            | "propertyNames"
            | "unevaluatedProperties"
            | "not"
            | "if"
            | "then"
            | "else"
            | "contentSchema" => collect(value, None, depth + 1, found)?,
            _ => {}
        }
    }
    Ok(())
}

/// Rule 1, for a schema that has the key.
fn annotation(schema: &Object<'_>, path: &[String], found: &[ParamHeader]) -> Result<ParamHeader, InvalidHeaders> {
    let name = schema.text(KEY).filter(|name| is_token(name)).ok_or(InvalidHeaders)?;
    let header = format!("mcp-param-{}", name.to_ascii_lowercase());
    let is_mirrorable = matches!(schema.text("type").as_deref(), Some("string" | "integer" | "boolean"));
    let is_new = found.len() < MAX_HEADERS && found.iter().all(|other| other.header != header);
    if !is_mirrorable || !is_new {
        return Err(InvalidHeaders);
    }
    Ok(ParamHeader {
        header,
        path: path.to_vec(),
    })
}

fn members(raw: &str) -> Result<Vec<(String, &str)>, InvalidHeaders> {
    if !raw.contains(KEY) {
        return Ok(Vec::new());
    }
    let all = Object::parse_str(raw).map_err(|_| InvalidHeaders)?;
    let member = |name: &str| (name.to_owned(), all.get(name).expect("a key has its value"));
    Ok(all.names().map(member).collect())
}

/// `1*tchar` of at most 64 bytes (RFC 9110 section 5.6.2).
fn is_token(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::decode_value;
    use proptest::prelude::*;

    fn tool(properties: &str) -> String {
        format!(r#"{{"name":"t","inputSchema":{{"type":"object","properties":{{{properties}}}}}}}"#)
    }

    fn found(tool: &str) -> Result<Vec<(String, String)>, InvalidHeaders> {
        let headers = param_headers(tool.as_bytes())?;
        Ok(headers
            .into_iter()
            .map(|param| (param.header, param.path.join("/")))
            .collect())
    }

    #[test]
    fn annotations_are_found_where_properties_lead() {
        let region = r#""region":{"type":"string","x-mcp-header":"Region"}"#;
        let nested = format!(
            r#""a":{{"type":"object","properties":{{{region}}}}},"n":{{"x-mcp-header":"N-1","type":"integer"}}"#
        );
        let pair = |header: &str, path: &str| (header.to_owned(), path.to_owned());
        assert_eq!(found(&tool(region)), Ok(vec![pair("mcp-param-region", "region")]));
        assert_eq!(
            found(&tool(&nested)),
            Ok(vec![pair("mcp-param-region", "a/region"), pair("mcp-param-n-1", "n")])
        );
        for none in [
            r#""a":{"type":"string"}"#,
            r#""a":{"type":"string","default":{"x-mcp-header":""},"enum":[{"x-mcp-header":1}]}"#,
            r#""x-mcp-header":{"type":"number"}"#,
            r#""a":true,"x-mcp-header":false"#,
        ] {
            assert_eq!(found(&tool(none)), Ok(vec![]), "{none}");
        }
        assert_eq!(found(r#"{"name":"t"}"#), Ok(vec![]));
    }

    #[test]
    fn any_other_annotation_makes_the_tool_invalid() {
        let good = r#""type":"string","x-mcp-header":"A""#;
        for properties in [
            r#""a":{"type":"string","x-mcp-header":""}"#.to_owned(),
            r#""a":{"type":"string","x-mcp-header":"a b"}"#.to_owned(),
            r#""a":{"type":"string","x-mcp-header":"a\r\nb"}"#.to_owned(),
            r#""a":{"type":"string","x-mcp-header":"ä"}"#.to_owned(),
            r#""a":{"type":"string","x-mcp-header":7}"#.to_owned(),
            r#""a":{"type":"number","x-mcp-header":"A"}"#.to_owned(),
            r#""a":{"type":["string","null"],"x-mcp-header":"A"}"#.to_owned(),
            r#""a":{"x-mcp-header":"A"}"#.to_owned(),
            format!(r#""a":{{{good}}},"b":{{"type":"string","x-mcp-header":"a"}}"#),
            format!(r#""a":{{"type":"array","items":{{{good}}}}}"#),
            format!(r#""a":{{"anyOf":[{{{good}}}]}}"#),
            format!(r#""a":{{"not":{{"properties":{{"b":{{{good}}}}}}}}}"#),
            format!(r#""a":{{{good},"x-mcp-header":"B"}}"#),
            format!(r#""a":{{"x":1,"x":2,"default":{{{good}}}}}"#),
            format!(
                r#"{}"b":{{{good}}}{}"#,
                r#""a":{"properties":{"#.repeat(70),
                "}}".repeat(70)
            ),
        ] {
            assert_eq!(found(&tool(&properties)), Err(InvalidHeaders), "{properties}");
        }
        let root = r#"{"name":"t","inputSchema":{"type":"string","x-mcp-header":"A"}}"#;
        assert_eq!(found(root), Err(InvalidHeaders));
        let defs = format!(r#"{{"name":"t","inputSchema":{{"$defs":{{"d":{{{good}}}}}}}}}"#);
        assert_eq!(found(&defs), Err(InvalidHeaders));
        let many: Vec<_> = (0..65)
            .map(|n| format!(r#""p{n}":{{"type":"string","x-mcp-header":"H{n}"}}"#))
            .collect();
        assert_eq!(found(&tool(&many.join(","))), Err(InvalidHeaders));
        assert!(found(&tool(&many[1..].join(","))).is_ok());
    }

    #[test]
    fn values_are_read_at_their_place() {
        let param = |path: &[&str]| ParamHeader {
            header: "mcp-param-x".into(),
            path: path.iter().map(|&name| name.into()).collect(),
        };
        for (arguments, path, value) in [
            (r#"{"a":"us-west1"}"#, &["a"][..], Some("us-west1")),
            (r#"{"a":{"b":-7}}"#, &["a", "b"], Some("-7")),
            (r#"{"a":42.0}"#, &["a"], Some("42")),
            (r#"{"a":1.5}"#, &["a"], Some("1.5")),
            (r#"{"a":true}"#, &["a"], Some("true")),
            (r#"{"a":false}"#, &["a"], Some("false")),
            (r#"{"\u0061":"\u0062"}"#, &["a"], Some("b")),
            (r#"{"a":""}"#, &["a"], Some("")),
            (r#"{"a":null}"#, &["a"], None),
            (r#"{"a":{"c":1}}"#, &["a", "b"], None),
            (r#"{"a":"x"}"#, &["a", "b"], None),
            (r#"{"a":[1]}"#, &["a"], None),
            (r#"{"a":1,"a":2}"#, &["a"], None),
            ("{}", &["a"], None),
            ("", &["a"], None),
        ] {
            let found = mcp_param_values(arguments.as_bytes(), &[param(path)]);
            let expected = value.map(|value| ("mcp-param-x".to_owned(), value.to_owned()));
            assert_eq!(found, Vec::from_iter(expected), "{arguments}");
        }
        let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(MAX_VALUE + 1));
        assert_eq!(mcp_param_values(long.as_bytes(), &[param(&["a"])]), []);
    }

    #[test]
    fn values_are_encoded_as_the_specification_shows() {
        for (value, encoded) in [
            ("us-west1", "us-west1"),
            ("Hello, 世界", "=?base64?SGVsbG8sIOS4lueVjA==?="),
            (" padded ", "=?base64?IHBhZGRlZCA=?="),
            ("line1\nline2", "=?base64?bGluZTEKbGluZTI=?="),
            ("=?base64?literal?=", "=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?="),
            ("a\tb", "=?base64?YQli?="),
            ("", ""),
        ] {
            assert_eq!(encode_header_value(value), encoded, "{value:?}");
        }
    }

    #[test]
    fn a_list_tells_which_tools_have_mirrored_parameters() {
        let good = tool(r#""a":{"type":"string","x-mcp-header":"A"}"#);
        let bad = tool(r#""a":{"type":"number","x-mcp-header":"A"}"#);
        let list = format!(r#"{{"tools":[{good},{bad},{{"name":"u"}},7]}}"#);
        let found = annotated_tools(list.as_bytes());
        assert_eq!(
            found,
            [("t".to_owned(), param_headers(good.as_bytes()).expect("valid"))]
        );
        assert_eq!(annotated_tools(b"[]"), []);
    }

    proptest! {
        #[test]
        fn every_value_comes_back(value in "\\PC{0,12}|[ -~\t\r\n]{0,12}|=\\?base64\\?.{0,4}\\?=") {
            let header = http::HeaderValue::try_from(encode_header_value(&value)).expect("a header value");
            prop_assert_eq!(decode_value(&header).expect("decodable"), value);
        }
    }
}
