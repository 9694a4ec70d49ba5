//! Looks at the messages of a reply for what its caller may not see.
//!
//! 1. Any result that holds `tools`, `resources`, `resourceTemplates` or `prompts` is filtered, whatever it answers: a
//!    list can be replayed by `Last-Event-ID`, or come in answer to something else.
//! 2. A resource-updated notification about a resource the caller may not read is dropped.
//! 3. What can't be decoded can't be filtered, and is not forwarded.
//! 4. Answers are told apart by id where several calls share a stream.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::ending::Ending;
use super::events::outcome_of;
use crate::authn::Principal;
use crate::clock::Clock;
use crate::edge::{BodyError, Journey};
use crate::mcp::{Era, Id, ListKind, Scanner, lists, sse};
use crate::route::Route;
use crate::session::{Answered, OpenStream, Purpose, Sealer, Streams, Target};
use crate::upstream::EndpointId;

/// Looks at messages for one principal on one route.
pub struct Inspector {
    pub route: Arc<Route>,
    pub principal: Arc<Principal>,
    pub era: Era,
    /// The request whose answers these are, to find them by id.
    pub journey: Arc<Journey>,
    pub clock: Clock,
    /// Set while the stream may turn out to be HTTP+SSE: until its first event.
    pub endpoint: Option<Endpoint>,
}

/// What is needed to make an upstream's `endpoint` event ours.
pub struct Endpoint {
    pub id: EndpointId,
    pub streams: Arc<Streams>,
    pub sealer: Arc<Sealer>,
    /// The route says its upstream is HTTP+SSE: anything but an `endpoint` event first is nonsense.
    pub required: bool,
}

impl Endpoint {
    /// Registers the stream; returns the event the client gets: absolute, on our origin, its session sealed (r05, r07).
    fn open(
        self,
        event: &sse::Event,
        route: &Route,
        principal: &Arc<Principal>,
    ) -> Result<(OpenStream, Bytes), BodyError> {
        let data = event.data().map(|data| std::str::from_utf8(data)).transpose()?;
        let target = route
            .upstream
            .resolve(&self.id, data.unwrap_or_default().trim())
            .ok_or("the upstream's endpoint event names no URL on its own origin")?;
        let open = self.streams.open(
            route.config.name.clone(),
            principal.clone(),
            Target::Upstream(self.id, target),
            route.metrics.session("sse"),
        );
        let sealed = self.sealer.seal(Purpose::SseSession, open.key())?;
        let event = format!(
            "event: endpoint\ndata: {}?session_id={sealed}\n\n",
            route.messages_url()
        );
        Ok((open, event.into()))
    }
}

impl Inspector {
    /// What of an event may be forwarded: all of it as it came, a rewritten one, or nothing.
    pub fn look(
        &mut self,
        event: sse::Event,
        endings: &mut Vec<Ending>,
        open: &mut Option<OpenStream>,
    ) -> Result<Option<Bytes>, BodyError> {
        if let Some(endpoint) = self.endpoint.take() {
            if event.name() == Some(b"endpoint") {
                let (stream, event) = endpoint.open(&event, &self.route, &self.principal)?;
                *open = Some(stream);
                return Ok(Some(event));
            }
            if event.data().is_none() {
                // A comment before the first event.
                self.endpoint = Some(endpoint);
                return Ok(Some(event.into_raw()));
            }
            if endpoint.required {
                return Err("the upstream's HTTP+SSE stream began without an endpoint event".into());
            }
        }
        // Messages go where the first one said, on our origin; another would lead clients past the gate.
        if self.era == Era::Sse && event.name() == Some(b"endpoint") {
            return Ok(None);
        }
        let Some(data) = event.data().filter(|data| !data.is_empty()) else {
            return Ok(Some(event.into_raw()));
        };
        let data = data.clone();
        let mut scanner = Scanner::default();
        scanner.push(&data);
        let seen = scanner.finish();
        if let Some(outcome) = outcome_of(seen.outcome) {
            match self.answered(&data, endings, open.as_ref()) {
                Answered::Call(ending) => ending.finish(outcome),
                Answered::Page => return Ok(None),
                Answered::Unknown => {}
            }
        } else if self.hides(&data) {
            return Ok(None);
        }
        if seen.holds_list
            && let Some(filtered) = self.filter(&data)?
        {
            return Ok(Some(event.with_data(&filtered)));
        }
        Ok(Some(event.into_raw()))
    }

    /// A message with what the caller may not see taken out; `None` when that is nothing.
    pub fn filter(&self, message: &[u8]) -> Result<Option<Bytes>, lists::ListError> {
        let policy = &self.route.config.policy;
        let route = self.route.name();
        let now = self.clock.now();
        let mut by_rules = 0;
        let mut by_budget = 0;
        let filtered = lists::filter(
            message,
            self.era,
            &mut |kind, name| {
                let kept = policy.lists(&self.principal, route, kind, name, now);
                by_rules += usize::from(!kept && kind == ListKind::Tools);
                kept
            },
            &mut |tools| {
                let Some(budget) = policy.budget() else { return 0 };
                let names: Vec<&str> = tools.iter().map(|tool| &*tool.name).collect();
                let cut = budget.cut(&names);
                if cut.hidden > 0 {
                    *tools = cut.kept.iter().map(|&index| tools[index].clone()).collect();
                    by_budget += cut.hidden;
                }
                cut.hidden
            },
        )?;
        for (reason, count) in [("rules", by_rules), ("budget", by_budget)] {
            if count > 0 {
                self.route.metrics.tools_hidden(reason, count);
            }
        }
        Ok(filtered)
    }

    /// What an answer was for.
    fn answered(&self, message: &Bytes, endings: &mut Vec<Ending>, open: Option<&OpenStream>) -> Answered {
        #[derive(Deserialize)]
        struct Answer<'a> {
            #[serde(borrow)]
            id: &'a RawValue,
        }
        let Ok(answer) = serde_json::from_slice::<Answer<'_>>(message) else {
            return Answered::Unknown;
        };
        let id = Id(Bytes::copy_from_slice(answer.id.get().as_bytes()));
        if let Some(open) = open {
            return open.handle.answered(&id, message);
        }
        let id = id.canonical();
        let place = self.journey.call.get().and_then(|call| {
            endings.iter().position(|ending| {
                let message = ending.member().and_then(|member| call.messages().get(member));
                message.and_then(|message| message.id.as_ref()).map(Id::canonical) == Some(id.clone())
            })
        });
        place.map_or(Answered::Unknown, |place| Answered::Call(endings.swap_remove(place)))
    }

    /// Rule 2.
    pub fn hides(&self, message: &[u8]) -> bool {
        #[derive(Deserialize)]
        struct Notification<'a> {
            #[serde(borrow)]
            method: std::borrow::Cow<'a, str>,
            #[serde(borrow)]
            params: Option<&'a RawValue>,
        }
        #[derive(Deserialize)]
        struct Updated<'a> {
            #[serde(borrow)]
            uri: std::borrow::Cow<'a, str>,
        }
        let policy = &self.route.config.policy;
        if !policy.filters(ListKind::Resources) {
            return false;
        }
        if message.trim_ascii_start().first() == Some(&b'[') {
            // Only 2025-03-26 has arrays; one that can't be shown whole isn't shown.
            let members = serde_json::from_slice::<Vec<&RawValue>>(message).unwrap_or_default();
            return members.iter().any(|member| self.hides(member.get().as_bytes()));
        }
        let notification = match serde_json::from_slice::<Notification<'_>>(message) {
            Ok(notification) => notification,
            // Rule 3: another parser would take the other of two methods. What has none, or isn't JSON, is no news.
            Err(error) => return error.to_string().starts_with("duplicate field"),
        };
        if notification.method != "notifications/resources/updated" {
            return false;
        }
        let uri = notification
            .params
            .and_then(|params| serde_json::from_str::<Updated<'_>>(params.get()).ok());
        uri.is_none_or(|updated| {
            !policy.lists(
                &self.principal,
                self.route.name(),
                ListKind::Resources,
                &updated.uri,
                self.clock.now(),
            )
        })
    }
}
