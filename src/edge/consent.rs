//! Leads users who haven't connected a route's upstream to the page where they can (code 50202).
//!
//! 1. The page is the gateway's own, and says nothing of the user: whoever opens it logs in there first (MCP 2026-07-28,
//!    "Safe URL Handling"). Users of an identity without `login` can't; they are told the command instead.
//! 2. A client that declared URL-mode elicitation is asked to open it. A modern one by `input_required`, which needs no
//!    state of ours; the request's own `requestState` goes back with it, for its retry may bring none that it was not
//!    given. A legacy one by error -32042 (MCP 2025-11-25, "URL Elicitation Required Error").
//! 3. What the user says to that comes with the retry under `KEY`, and is taken out before anybody else sees it. A user
//!    who won't is not asked again. One who will has only agreed to open the page: the retry waits for a while.
//! 4. Everybody else is refused in words, and so are HTTP+SSE clients: URL mode came long after them.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::journey::{CallNotes, Journey};
use crate::bridge::map;
use crate::credential::{NotConnected, NotConnectedReason};
use crate::mcp::object::{Object, quoted};
use crate::mcp::{self, Era, Id, Kind, Message, codes};

/// Our question's among a result's `inputRequests`.
const KEY: &str = "portcullis/connect";
const CLIENT_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";

/// How long a retry waits for a user who has agreed to connect: less than the minute that clients wait for an answer.
pub const PATIENCE: Duration = Duration::from_secs(45);
/// Between two looks whether they have.
pub const LOOK: Duration = Duration::from_secs(1);

/// What a user said to our question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consent {
    /// They opened the page.
    Given,
    Declined,
}

/// Where people connect a route.
pub fn page(public_url: &str, route: &str) -> String {
    let route: String = form_urlencoded::byte_serialize(route.as_bytes()).collect();
    format!("{public_url}/connect?route={route}")
}

/// The user's answer to our question, and the message without it; `None` when the message has none.
pub fn taken(message: &Bytes) -> Option<(Bytes, Consent)> {
    let mut all = Object::parse(message).ok()?;
    let mut params = all.object("params").ok()??;
    let mut responses = params.object("inputResponses").ok()??;
    let answer = Object::parse_str(responses.take(KEY)?).ok();
    let action = answer.as_ref().and_then(|answer| answer.text("action"));
    let consent = match action.as_deref() {
        Some("accept") => Consent::Given,
        _ => Consent::Declined,
    };
    match responses.is_empty() {
        true => drop(params.take("inputResponses")),
        false => params.set("inputResponses", responses.write()),
    }
    all.set("params", params.write());
    Some((all.write().into_owned().into(), consent))
}

/// Whether a request says that its client can be asked to open a page: a modern one, or `initialize`.
pub fn declares(message: &Message) -> bool {
    let modern = message.meta.protocol_version.is_some();
    let read = || {
        let params = Object::parse(&message.raw).ok()?.object("params").ok()??;
        let capabilities = match modern {
            true => params.object("_meta").ok()??.get(CLIENT_CAPABILITIES)?,
            false => params.get("capabilities")?,
        };
        Some(map::lacks(capabilities.as_bytes(), "elicitation/create", br#"{"mode":"url"}"#).is_none())
    };
    (modern || &*message.method == "initialize") && read() == Some(true)
}

/// What a refusal says: its text, and `data`.
pub(super) fn words(lacking: &NotConnected, journey: &Journey) -> (String, Value) {
    let route = &lacking.route;
    let (reason, scopes) = match &lacking.reason {
        NotConnectedReason::Missing => ("not_connected", None),
        NotConnectedReason::NeedsAuth => ("needs_auth", None),
        NotConnectedReason::MoreScopes { scopes } => ("more_scopes", Some(scopes.join(" "))),
    };
    let mut data = json!({"route": &**route, "reason": reason});
    if let Some(scopes) = scopes {
        data["required_scope"] = scopes.into();
    }
    let text = match page_of(journey) {
        Some(page) => {
            data["connect_url"] = page.into();
            format!("{lacking}: open {page} in a browser, then send the request again")
        }
        None => format!("{lacking}: run `portcullis connect {route}`, then send the request again"),
    };
    (text, data)
}

/// The same as a question, by rule 2: a whole message, for a response of status 200. `None` by rules 3 and 4.
pub(super) fn question(lacking: &NotConnected, journey: &Journey, id: Option<&Id>) -> Option<Vec<u8>> {
    let (page, call, id) = (page_of(journey)?, journey.call.get()?, id?);
    let [message] = call.messages() else { return None };
    if message.kind != Kind::Request || !can_be_asked(call, message, journey) {
        return None;
    }
    let text = format!("{lacking}. Open this page to do so.");
    match call.era {
        Era::Modern => {
            let asked =
                json!({"method": "elicitation/create", "params": {"mode": "url", "url": page, "message": text}});
            let params = Object::parse(&message.raw).ok()?.object("params").ok()??;
            let mut result = Object::empty();
            result.set("resultType", quoted("input_required"));
            result.set("inputRequests", json!({KEY: asked}).to_string());
            if let Some(state) = params.get("requestState") {
                result.set("requestState", Cow::Borrowed(state));
            }
            Some(mcp::result_response(id, &result.write()))
        }
        Era::Legacy => {
            // Unique, and found in the log.
            let elicitation = journey.request_id.as_str();
            let asked = json!({"mode": "url", "elicitationId": elicitation, "url": page, "message": text});
            let data = json!({"elicitations": [asked]});
            let text = lacking.to_string();
            Some(mcp::error_response(
                Some(id),
                codes::URL_ELICITATION_REQUIRED,
                &text,
                Some(&data),
            ))
        }
        Era::Sse => None,
    }
}

fn can_be_asked(call: &CallNotes, message: &Message, journey: &Journey) -> bool {
    match call.era {
        Era::Modern => {
            call.consent != Some(Consent::Declined) && map::is_multi_round_trip(&message.method) && declares(message)
        }
        Era::Legacy => journey.opens_pages.get().is_some() || declares(message),
        Era::Sse => false,
    }
}

/// The page, for this caller.
fn page_of(journey: &Journey) -> Option<&str> {
    let (route, principal) = (journey.route.get()?, journey.principal.get()?);
    let mut identities = route.config.identities.iter();
    let identity = identities.find(|identity| Some(&identity.name) == principal.identity.as_ref())?;
    identity.login.as_ref()?;
    Some(&route.connect_page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::{Payload, parse};

    #[test]
    fn our_answer_is_taken_out_and_everything_else_stays() {
        let others = r#""inputResponses":{"theirs":{"action":"accept"}}"#;
        for (params, rest, consent) in [
            (
                r#"{"name":"t","inputResponses":{"portcullis/connect":{"action":"accept"}},"requestState":"s"}"#
                    .to_owned(),
                r#"{"name":"t","requestState":"s"}"#.to_owned(),
                Consent::Given,
            ),
            (
                r#"{"inputResponses":{"portcullis\/connect":{"action":"decline"},"theirs":{"action":"accept"}}}"#
                    .to_owned(),
                format!("{{{others}}}"),
                Consent::Declined,
            ),
            (
                r#"{"inputResponses":{"portcullis/connect":{"action":"cancel"}}}"#.to_owned(),
                "{}".to_owned(),
                Consent::Declined,
            ),
            // What can't be read is no consent, and nobody else's either.
            (
                r#"{"inputResponses":{"portcullis/connect":7}}"#.to_owned(),
                "{}".to_owned(),
                Consent::Declined,
            ),
        ] {
            let message =
                |params: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#);
            let (taken, said) = taken(&message(&params).into()).expect(&params);
            assert_eq!(taken, message(&rest));
            assert_eq!(said, consent, "{params}");
        }
        for params in [
            r#"{"inputResponses":{"theirs":{"action":"accept"}}}"#,
            r#"{"inputResponses":7}"#,
            r#"{"arguments":{"inputResponses":{"portcullis/connect":{"action":"accept"}}}}"#,
        ] {
            let message = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#);
            assert!(taken(&message.into()).is_none(), "{params}");
        }
    }

    #[test]
    fn only_url_mode_is_declared_by_url_mode() {
        let declared = |method: &str, params: &str| {
            let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
            match parse(&body.into()).expect(params) {
                Payload::Single(message) => declares(&message),
                Payload::Batch(_) => panic!("a batch"),
            }
        };
        for (capabilities, expected) in [
            (r#"{"elicitation":{"url":{}}}"#, true),
            (r#"{"elicitation":{"form":{},"url":{}}}"#, true),
            (r#"{"elicitation":{"form":{}}}"#, false),
            (r#"{"elicitation":{}}"#, false),
            (r#"{"sampling":{"url":{}}}"#, false),
            ("{}", false),
        ] {
            let modern = format!(
                r#"{{"_meta":{{"io.modelcontextprotocol/protocolVersion":"2026-07-28","{CLIENT_CAPABILITIES}":{capabilities}}}}}"#
            );
            assert_eq!(declared("tools/call", &modern), expected, "{modern}");
            let legacy = format!(r#"{{"protocolVersion":"2025-11-25","capabilities":{capabilities}}}"#);
            assert_eq!(declared("initialize", &legacy), expected, "{legacy}");
            // What any other request says of its client it says to the server.
            assert!(!declared("tools/call", &legacy));
        }
    }

    #[test]
    fn a_routes_name_is_escaped_in_its_page() {
        assert_eq!(page("https://g", "a&b=c d"), "https://g/connect?route=a%26b%3Dc+d");
    }
}
