//! What the conformance server holds still: its lists, and whatever it answers the same each time.

use rmcp::model::Tool;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A grey pixel.
const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==";
/// One silent sample.
const WAV: &str = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQIAAAAAAA==";

/// All tools and what they are for. [`answer`] has the results of those that do nothing else.
const TOOLS: [(&str, &str); 27] = [
    ("test_simple_text", "Answers text"),
    ("test_image_content", "Answers an image"),
    ("test_audio_content", "Answers audio"),
    ("test_embedded_resource", "Answers a resource"),
    ("test_multiple_content_types", "Answers text, an image and a resource"),
    ("test_error_handling", "Fails"),
    ("test_custom_header", "Takes an argument that a header repeats"),
    ("json_schema_2020_12_tool", "Has a schema with keywords of every kind"),
    ("test_tool_with_logging", "Logs thrice"),
    ("test_logging_tool", "Logs once"),
    ("test_tool_with_progress", "Tells its progress thrice"),
    ("test_trigger_tool_change", "Tells that the tools changed"),
    ("test_trigger_prompt_change", "Tells that the prompts changed"),
    ("test_sampling", "Has the caller's model answer a prompt"),
    ("test_missing_capability", "Does the same, and insists on it"),
    ("test_elicitation", "Asks the user"),
    ("test_elicitation_sep1034_defaults", "Asks the user, with defaults"),
    ("test_elicitation_sep1330_enums", "Lets the user choose"),
    ("test_streaming_elicitation", "Tells its progress, then asks the user"),
    ("test_input_required_result_elicitation", "Asks for a name"),
    ("test_input_required_result_sampling", "Asks a model"),
    ("test_input_required_result_list_roots", "Asks for the roots"),
    ("test_input_required_result_request_state", "Asks, and keeps state"),
    (
        "test_input_required_result_tampered_state",
        "Asks, and guards its state",
    ),
    (
        "test_input_required_result_multiple_inputs",
        "Asks three things at once",
    ),
    (
        "test_input_required_result_multi_round",
        "Asks two things, one after the other",
    ),
    (
        "test_input_required_result_capabilities",
        "Asks whatever the caller can be asked",
    ),
];

/// A whole result; of legacy callers' the type is taken off on its way out.
pub(super) fn complete<T: DeserializeOwned>(mut result: Value) -> T {
    result["resultType"] = json!("complete");
    typed(result)
}

/// `value` as a type of the protocol.
pub(super) fn typed<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("what the server says is well-formed")
}

pub(super) fn tools() -> Vec<Tool> {
    TOOLS
        .iter()
        .map(|(name, description)| {
            let schema = match *name {
                "json_schema_2020_12_tool" => every_keyword(),
                "test_custom_header" => json!({
                    "type": "object",
                    "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
                    "required": ["region"],
                }),
                _ => json!({"type": "object"}),
            };
            typed(json!({"name": name, "description": description, "inputSchema": schema}))
        })
        .collect()
}

fn every_keyword() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {"address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }},
        "properties": {
            "name": {"type": "string"},
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": {"type": "string"},
            "email": {"type": "string"},
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": false,
    })
}

pub(super) fn text(text: impl Into<String>) -> Value {
    json!({"type": "text", "text": text.into()})
}

fn image() -> Value {
    json!({"type": "image", "data": PNG, "mimeType": "image/png"})
}

fn embedded(uri: &str) -> Value {
    json!({"type": "resource", "resource": {"uri": uri, "mimeType": "text/plain", "text": "Embedded."}})
}

/// The result of a tool that does nothing but answer.
pub(super) fn answer(tool: &str) -> Option<Value> {
    Some(match tool {
        "test_simple_text" | "json_schema_2020_12_tool" | "test_custom_header" => {
            json!({"content": [text("Some text.")]})
        }
        "test_image_content" => json!({"content": [image()]}),
        "test_audio_content" => json!({"content": [{"type": "audio", "data": WAV, "mimeType": "audio/wav"}]}),
        "test_embedded_resource" => json!({"content": [embedded("test://embedded-resource")]}),
        "test_multiple_content_types" => {
            json!({"content": [text("Some of each."), image(), embedded("test://mixed-content-resource")]})
        }
        "test_error_handling" => json!({"content": [text("This tool always fails.")], "isError": true}),
        _ => return None,
    })
}

pub(super) fn resources() -> Value {
    json!([
        {"uri": "test://static-text", "name": "text", "mimeType": "text/plain"},
        {"uri": "test://static-binary", "name": "pixel", "mimeType": "image/png"},
        {"uri": "test://watched-resource", "name": "watched", "mimeType": "text/plain"},
    ])
}

pub(super) fn templates() -> Value {
    json!([{"uriTemplate": "test://template/{id}/data", "name": "template", "mimeType": "application/json"}])
}

/// The contents of a resource.
pub(super) fn read(uri: &str) -> Option<Value> {
    let plain = |text: &str| json!({"uri": uri, "mimeType": "text/plain", "text": text});
    Some(match uri {
        "test://static-text" => plain("Text that stays."),
        "test://static-binary" => json!({"uri": uri, "mimeType": "image/png", "blob": PNG}),
        "test://watched-resource" => plain("Text that is watched."),
        _ => {
            let id = uri.strip_prefix("test://template/")?.strip_suffix("/data")?;
            json!({"uri": uri, "mimeType": "application/json", "text": json!({"id": id}).to_string()})
        }
    })
}

pub(super) fn prompts() -> Value {
    let arguments = |names: &[&str]| -> Value {
        names
            .iter()
            .map(|name| json!({"name": name, "description": "What to put in", "required": true}))
            .collect()
    };
    json!([
        {"name": "test_simple_prompt", "description": "Says one thing"},
        {"name": "test_prompt_with_arguments", "description": "Repeats", "arguments": arguments(&["arg1", "arg2"])},
        {"name": "test_prompt_with_embedded_resource", "description": "Holds a resource", "arguments": arguments(&["resourceUri"])},
        {"name": "test_prompt_with_image", "description": "Holds an image"},
        {"name": ASKING_PROMPT, "description": "Asks first"},
    ])
}

/// The one prompt that asks before it answers.
pub(super) const ASKING_PROMPT: &str = "test_input_required_result_prompt";

/// The messages of a prompt; `argument` gives what its caller put in.
pub(super) fn messages(prompt: &str, argument: impl Fn(&str) -> String) -> Option<Value> {
    let contents = match prompt {
        "test_simple_prompt" => vec![text("A prompt.")],
        "test_prompt_with_arguments" => vec![text(format!("{} and {}", argument("arg1"), argument("arg2")))],
        "test_prompt_with_embedded_resource" => vec![embedded(&argument("resourceUri")), text("Look at it.")],
        "test_prompt_with_image" => vec![image(), text("Look at it.")],
        ASKING_PROMPT => vec![text("A prompt that asked.")],
        _ => return None,
    };
    Some(
        contents
            .into_iter()
            .map(|content| json!({"role": "user", "content": content}))
            .collect(),
    )
}

/// `elicitation/create` with a form of one required member.
pub(super) fn elicit(message: &str, member: &str, kind: &str) -> Value {
    form(
        message,
        &json!({"type": "object", "properties": {member: {"type": kind}}, "required": [member]}),
    )
}

fn form(message: &str, schema: &Value) -> Value {
    json!({"method": "elicitation/create", "params": {"mode": "form", "message": message, "requestedSchema": schema}})
}

pub(super) fn sample(prompt: &str) -> Value {
    let message = json!({"role": "user", "content": text(prompt)});
    json!({"method": "sampling/createMessage", "params": {"messages": [message], "maxTokens": 100}})
}

pub(super) fn roots() -> Value {
    json!({"method": "roots/list", "params": {}})
}

/// A form whose members have defaults.
pub(super) fn defaults() -> Value {
    form(
        "Is this right?",
        &json!({"type": "object", "required": [], "properties": {
            "name": {"type": "string", "default": "John Doe"},
            "age": {"type": "integer", "default": 30},
            "score": {"type": "number", "default": 95.5},
            "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
            "verified": {"type": "boolean", "default": true},
        }}),
    )
}

/// A form of choices: one or several, with and without titles, and in the old spelling.
pub(super) fn choices() -> Value {
    let titled = |value: &str| json!({"const": value, "title": value.to_uppercase()});
    let titles = json!([titled("value1"), titled("value2"), titled("value3")]);
    let options = json!(["option1", "option2", "option3"]);
    form(
        "Choose.",
        &json!({"type": "object", "required": [], "properties": {
            "untitledSingle": {"type": "string", "enum": options},
            "titledSingle": {"type": "string", "oneOf": titles},
            "legacyEnum": {"type": "string", "enum": ["opt1", "opt2", "opt3"], "enumNames": ["One", "Two", "Three"]},
            "untitledMulti": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"type": "string", "enum": options}},
            "titledMulti": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"anyOf": titles}},
        }}),
    )
}
