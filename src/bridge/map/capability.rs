//! What each side may be told that the other can do.
//!
//! 1. A capability is told on only when the gate carries all that it promises. Of what no revision defines, only
//!    `experimental` and `extensions` are told on.
//! 2. Tasks are not carried between eras, in neither of their two shapes.
//! 3. A modern client can't tell of new roots, nor a modern server hear of them: `roots.listChanged` is never told on.
//! 4. What is no object is no capability, and an object that repeats a key has none.

use std::borrow::Cow;

use bytes::Bytes;

use super::SERVER_INFO;
use crate::bridge::opening::{LEGACY_VERSIONS, MODERN};
use crate::bridge::peer::Facts;
use crate::mcp::object::{Object, quoted};

/// The tasks extension of 2026-07-28.
const TASKS: &str = "io.modelcontextprotocol/tasks";

/// A legacy client's capabilities, for a modern server.
pub fn client_capabilities_to_modern(capabilities: &[u8]) -> Bytes {
    client(capabilities).into()
}

/// A modern client's capabilities, for a legacy server.
pub fn client_capabilities_to_legacy(capabilities: &[u8]) -> Bytes {
    client(capabilities).into()
}

/// The eras define the same: what differs between them is what rules 2 and 3 take away.
fn client(capabilities: &[u8]) -> String {
    let Ok(mut all) = Object::parse(capabilities) else {
        return "{}".to_owned();
    };
    keep_objects(
        &mut all,
        &["experimental", "roots", "sampling", "elicitation", "extensions"],
    );
    if all.get("roots").is_some() {
        all.set("roots", "{}");
    }
    if let Some(sampling) = part(&all, "sampling", &["context", "tools"]) {
        all.set("sampling", sampling.write());
    }
    if let Some(elicitation) = part(&all, "elicitation", &["form", "url"]) {
        // An empty object stands for forms (MCP 2025-11-25 "Elicitation", Capabilities); one that only names modes of no
        // revision does not.
        if elicitation.is_empty() && all.get("elicitation").is_some_and(|raw| !is_empty(raw)) {
            all.retain(|name| name != "elicitation");
        } else {
            all.set("elicitation", elicitation.write());
        }
    }
    without_tasks(&mut all);
    all.write().into_owned()
}

/// A server's capabilities, for a client of the other era.
fn server(capabilities: &[u8]) -> String {
    let Ok(mut all) = Object::parse(capabilities) else {
        return "{}".to_owned();
    };
    let known = [
        "experimental",
        "logging",
        "completions",
        "prompts",
        "resources",
        "tools",
        "extensions",
    ];
    keep_objects(&mut all, &known);
    without_tasks(&mut all);
    all.write().into_owned()
}

fn keep_objects(all: &mut Object<'_>, known: &[&str]) {
    let good: Vec<&str> = known
        .iter()
        .copied()
        .filter(|name| matches!(all.object(name), Ok(Some(_))))
        .collect();
    all.retain(|name| good.contains(&name));
}

/// The members of a capability that are known, and objects.
fn part<'a>(all: &Object<'a>, name: &str, known: &[&str]) -> Option<Object<'a>> {
    let mut part = all.object(name).ok()??;
    keep_objects(&mut part, known);
    Some(part)
}

fn without_tasks<'a>(all: &mut Object<'a>) {
    if let Ok(Some(mut extensions)) = all.object("extensions")
        && extensions.take(TASKS).is_some()
    {
        all.set("extensions", extensions.write());
    }
}

fn is_empty(raw: &str) -> bool {
    Object::parse_str(raw).is_ok_and(|object| object.is_empty())
}

/// The capability that a request of the server needs and the client lacks, as `requiredCapabilities` of
/// `MissingRequiredClientCapability` would name it.
///
/// `includeContext` needs none: a client that can't may leave context out (MCP 2025-11-25, "Sampling").
pub fn lacks(capabilities: &[u8], method: &str, params: &[u8]) -> Option<Bytes> {
    let nothing = Object::empty;
    let capabilities = Object::parse(capabilities).unwrap_or_else(|_| nothing());
    let params = Object::parse(params).unwrap_or_else(|_| nothing());
    let part = |name: &str| capabilities.object(name).ok().flatten();
    let required = match method {
        "elicitation/create" => {
            let can = part("elicitation");
            let can = |mode: &str| {
                can.as_ref()
                    .is_some_and(|can| can.get(mode).is_some() || (mode == "form" && can.is_empty()))
            };
            match params.text("mode").as_deref() {
                Some("url") if can("url") => return None,
                Some("url") => r#"{"elicitation":{"url":{}}}"#,
                _ if can("form") => return None,
                _ => r#"{"elicitation":{"form":{}}}"#,
            }
        }
        "sampling/createMessage" => {
            let can = part("sampling");
            let tools = params.get("tools").is_some() || params.get("toolChoice").is_some();
            match can {
                Some(can) if !tools || can.get("tools").is_some() => return None,
                _ if tools => r#"{"sampling":{"tools":{}}}"#,
                _ => r#"{"sampling":{}}"#,
            }
        }
        "roots/list" if part("roots").is_some() => return None,
        "roots/list" => r#"{"roots":{}}"#,
        _ => return None,
    };
    Some(Bytes::from_static(required.as_bytes()))
}

/// The answer to a legacy client's `initialize`, which asked for `requested`.
///
/// The revision is the client's, if it is a legacy one that the server is not known to be too old for; else the newest that
/// is both.
pub fn initialize_result(facts: &Facts, requested: &str) -> Bytes {
    let old_enough = |version: &&str| **version <= *facts.version;
    let newest = LEGACY_VERSIONS
        .into_iter()
        .find(old_enough)
        .unwrap_or(LEGACY_VERSIONS[0]);
    let version = LEGACY_VERSIONS
        .into_iter()
        .find(|version| *version == requested && *version <= newest)
        .unwrap_or(newest);
    let mut result = Object::empty();
    result.set("protocolVersion", quoted(version));
    result.set("capabilities", server(&facts.capabilities));
    // Required in this era, optional in the other.
    let info = server_info(facts).unwrap_or(r#"{"name":"unnamed","version":"0"}"#);
    result.set("serverInfo", info);
    add_instructions(&mut result, facts);
    result.write().into_owned().into()
}

/// The answer to a modern client's `server/discover`. It is this caller's alone, and old at once: another time the
/// legacy server may say something else.
pub fn discover_result(facts: &Facts) -> Bytes {
    let mut result = Object::empty();
    result.set("resultType", "\"complete\"");
    result.set("supportedVersions", format!("[{}]", quoted(MODERN)));
    result.set("capabilities", server(&facts.capabilities));
    add_instructions(&mut result, facts);
    result.set("ttlMs", "0");
    result.set("cacheScope", "\"private\"");
    if let Some(info) = server_info(facts) {
        let mut meta = Object::empty();
        meta.set(SERVER_INFO, info);
        result.set("_meta", meta.write());
    }
    result.write().into_owned().into()
}

/// What the server says that it is; `None` for anything but an object.
pub(super) fn server_info(facts: &Facts) -> Option<&str> {
    let info = std::str::from_utf8(facts.server_info.as_ref()?).ok()?;
    Object::parse_str(info).ok().map(|_| info)
}

fn add_instructions<'a>(result: &mut Object<'a>, facts: &'a Facts) {
    if let Some(instructions) = &facts.instructions {
        result.set("instructions", Cow::Owned(quoted(instructions)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(version: &str, capabilities: &'static str) -> Facts {
        Facts {
            version: version.into(),
            capabilities: capabilities.into(),
            server_info: Some(Bytes::from_static(br#"{"name":"s","version":"1"}"#)),
            instructions: Some("say \"please\"".into()),
        }
    }

    #[test]
    fn a_clients_capabilities_are_what_the_gate_carries() {
        for (from, to) in [
            ("{}", "{}"),
            (r#"{"roots":{"listChanged":true}}"#, r#"{"roots":{}}"#),
            (
                r#"{"sampling":{"tools":{},"context":{"x":1},"more":{}}}"#,
                r#"{"sampling":{"tools":{},"context":{"x":1}}}"#,
            ),
            (r#"{"elicitation":{}}"#, r#"{"elicitation":{}}"#),
            (
                r#"{"elicitation":{"form":{"applyDefaults":true},"url":{}}}"#,
                r#"{"elicitation":{"form":{"applyDefaults":true},"url":{}}}"#,
            ),
            // No mode that there is: not the empty object, which stands for forms.
            (r#"{"elicitation":{"voice":{}}}"#, "{}"),
            (r#"{"elicitation":{"url":true}}"#, "{}"),
            (
                r#"{"tasks":{"requests":{}},"extensions":{"io.modelcontextprotocol/tasks":{},"com.example/x":{"a":[1.0]}}}"#,
                r#"{"extensions":{"com.example/x":{"a":[1.0]}}}"#,
            ),
            (
                r#"{"experimental":{"x":{}},"unheard":{}}"#,
                r#"{"experimental":{"x":{}}}"#,
            ),
            (r#"{"sampling":true,"roots":null,"elicitation":[]}"#, "{}"),
            (r#"{"sampling":{},"sampling":{}}"#, "{}"),
            (r#"{"elicitation":{"url":{},"url":{}}}"#, "{}"),
            ("nonsense", "{}"),
        ] {
            assert_eq!(client_capabilities_to_legacy(from.as_bytes()), to, "{from}");
            assert_eq!(client_capabilities_to_modern(from.as_bytes()), to, "{from}");
        }
    }

    #[test]
    fn what_a_client_lacks_is_named_as_it_would_declare_it() {
        for (capabilities, method, params, lacking) in [
            (r#"{"elicitation":{}}"#, "elicitation/create", "{}", None),
            (
                r#"{"elicitation":{"form":{}}}"#,
                "elicitation/create",
                r#"{"mode":"form"}"#,
                None,
            ),
            (
                r#"{"elicitation":{"url":{}}}"#,
                "elicitation/create",
                "{}",
                Some(r#"{"elicitation":{"form":{}}}"#),
            ),
            (
                r#"{"elicitation":{}}"#,
                "elicitation/create",
                r#"{"mode":"url"}"#,
                Some(r#"{"elicitation":{"url":{}}}"#),
            ),
            (
                r#"{"elicitation":{"url":{}}}"#,
                "elicitation/create",
                r#"{"mode":"\u0075rl"}"#,
                None,
            ),
            ("{}", "sampling/createMessage", "{}", Some(r#"{"sampling":{}}"#)),
            (
                r#"{"sampling":{}}"#,
                "sampling/createMessage",
                r#"{"includeContext":"allServers"}"#,
                None,
            ),
            (
                r#"{"sampling":{}}"#,
                "sampling/createMessage",
                r#"{"toolChoice":{}}"#,
                Some(r#"{"sampling":{"tools":{}}}"#),
            ),
            (
                r#"{"sampling":{"tools":{}}}"#,
                "sampling/createMessage",
                r#"{"tools":[]}"#,
                None,
            ),
            ("{}", "roots/list", "{}", Some(r#"{"roots":{}}"#)),
            (r#"{"roots":{}}"#, "roots/list", "", None),
            (
                r#"{"roots":{},"roots":{}}"#,
                "roots/list",
                "{}",
                Some(r#"{"roots":{}}"#),
            ),
        ] {
            let found = lacks(capabilities.as_bytes(), method, params.as_bytes());
            assert_eq!(found.as_deref(), lacking.map(str::as_bytes), "{capabilities} {params}");
        }
    }

    #[test]
    fn discovery_tells_of_a_legacy_server_what_the_gate_carries() {
        let capabilities = r#"{"logging":{},"completions":{},"tools":{"listChanged":true},"resources":{"subscribe":true},"tasks":{"list":{}},"prompts":7,"other":{}}"#;
        assert_eq!(
            discover_result(&facts("2025-11-25", capabilities)),
            r#"{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"logging":{},"completions":{},"tools":{"listChanged":true},"resources":{"subscribe":true}},"instructions":"say \"please\"","ttlMs":0,"cacheScope":"private","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"s","version":"1"}}}"#
        );
    }

    #[test]
    fn a_legacy_client_gets_its_own_revision_unless_the_server_is_older() {
        for (server, requested, version) in [
            ("2026-07-28", "2025-06-18", "2025-06-18"),
            ("2026-07-28", "2024-11-05", "2024-11-05"),
            ("2026-07-28", "2026-07-28", "2025-11-25"),
            ("2026-07-28", "2025-01-01", "2025-11-25"),
            ("2026-07-28", "", "2025-11-25"),
            ("2025-03-26", "2025-11-25", "2025-03-26"),
            ("2025-03-26", "2024-11-05", "2024-11-05"),
            ("1999", "2025-06-18", "2025-06-18"),
        ] {
            let result = initialize_result(&facts(server, r#"{"tools":{}}"#), requested);
            let expected = format!(
                r#"{{"protocolVersion":"{version}","capabilities":{{"tools":{{}}}},"serverInfo":{{"name":"s","version":"1"}},"instructions":"say \"please\""}}"#
            );
            assert_eq!(result, expected, "{server} {requested}");
        }
        let nameless = Facts {
            server_info: Some(Bytes::from_static(b"[]")),
            instructions: None,
            ..facts("2026-07-28", "[]")
        };
        assert_eq!(
            initialize_result(&nameless, "2025-06-18"),
            r#"{"protocolVersion":"2025-06-18","capabilities":{},"serverInfo":{"name":"unnamed","version":"0"}}"#
        );
        assert!(!discover_result(&nameless).windows(5).any(|part| part == b"_meta"));
    }
}
