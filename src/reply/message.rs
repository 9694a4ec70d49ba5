//! A message to an HTTP+SSE stream: the answer, if any, comes over the stream.
//!
//! 1. Calls are registered before they are sent: the answer may overtake the 202.
//! 2. A budgeted list is gathered beside the stream, never by who reads it: its pages are taken off the stream, and the
//!    one answer is put on it. Meanwhile everything else flows, so a server may ask its client something in between.
//! 3. The gathering ends with the stream, or when the client cancels it; each page has the upstream's idle time.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::ending::Ending;
use super::forward::{Shared, note, permitted_body, refused_members};
use super::gather::{Pages, budgeted, gather};
use super::inspect::Inspector;
use super::json;
use super::listing::outcome_of_failure;
use super::sending::Sending;
use crate::call::Form;
use crate::edge::{Body, Rejection, rescue};
use crate::mcp::{Id, Kind, Message, sse};
use crate::session::{Listing, StreamHandle};
use crate::telemetry::Outcome;
use crate::upstream::UpstreamError;

impl Shared {
    /// Sends messages to a stream's upstream.
    pub(super) async fn message(
        &self,
        sending: Sending,
        endings: &mut Vec<Ending>,
    ) -> Result<Response<Body>, Rejection> {
        let call = sending.call();
        let Form::Message { stream, payload, body } = &call.form else {
            unreachable!("only messages are sent to streams");
        };
        let stream = stream.clone();
        let body = permitted_body(payload, body, &sending.permitted.decisions);
        let messages = payload.messages();
        let upstream = described(&sending, &stream);
        note(endings, sending.kind(), &upstream);
        if let Some(request) = budgeted(&call.route, payload)
            && let Some(id) = &request.id
        {
            if request.cursor.is_some() {
                return Err(Rejection::InvalidCursor);
            }
            let listing = stream.list(id).ok_or(Rejection::ListUnderWay)?;
            let sent = sending.first(body).await?;
            let accepted = sent.response.status().is_success();
            let response = self.accepted(&sending, sent)?;
            if accepted {
                let inspector = self.inspector(call, sending.era());
                tokio::spawn(list(sending, inspector, stream, listing, std::mem::take(endings)));
            } else {
                finish(endings, Outcome::UpstreamError);
            }
            return Ok(response);
        }
        let waiting = wait(&stream, messages, endings)?;
        let reclaim = |endings: &mut Vec<Ending>| endings.extend(waiting.iter().filter_map(|id| stream.forget(id)));
        let sent = match sending.first(body).await {
            Ok(sent) => sent,
            Err(rejection) => {
                reclaim(endings);
                return Err(rejection);
            }
        };
        for error in refused_members(call, payload, &sending.permitted.decisions) {
            stream.tell(sse::message(&error));
        }
        let accepted = sent.response.status().is_success();
        let response = self.accepted(&sending, sent);
        if !accepted || response.is_err() {
            reclaim(endings);
            if !accepted {
                finish(endings, Outcome::UpstreamError);
            }
            return response;
        }
        finish(endings, Outcome::Success);
        for (message, decision) in messages.iter().zip(&sending.permitted.decisions) {
            if decision.is_allowed()
                && let Some(id) = cancelled(message)
            {
                // Dropped, its ending counts as cancelled. An answer that comes all the same passes like any other.
                drop(stream.forget(&id));
            }
        }
        response
    }

    /// The upstream's answer to the POST, as the caller gets it.
    fn accepted(&self, sending: &Sending, sent: crate::upstream::Sent) -> Result<Response<Body>, Rejection> {
        let (parts, body) = self.head(sending.call(), sent)?;
        let rules = sending.route().config.policy.has_rules();
        Ok(Response::from_parts(parts, json::pass(body, Vec::new(), rules, None)))
    }
}

/// The name of a stream's server, for the audit.
fn described(sending: &Sending, stream: &StreamHandle) -> Arc<str> {
    let target = stream.target();
    target.map_or_else(
        || "".into(),
        |(endpoint, _)| sending.route().upstream.describe(endpoint),
    )
}

fn finish(endings: &mut Vec<Ending>, outcome: Outcome) {
    for ending in endings.drain(..) {
        ending.finish(outcome);
    }
}

/// Registers the requests among these; what is left in `endings` waits for no answer.
fn wait(stream: &StreamHandle, messages: &[Message], endings: &mut Vec<Ending>) -> Result<Vec<Id>, Rejection> {
    let mut waiting = Vec::new();
    let mut others = Vec::new();
    let mut refused = false;
    for ending in endings.drain(..) {
        let request = ending
            .member()
            .and_then(|member| messages.get(member))
            .filter(|message| message.kind == Kind::Request)
            .and_then(|message| message.id.as_ref());
        match request {
            Some(id) => match stream.wait_for(id, ending) {
                Ok(()) => waiting.push(id.clone()),
                Err(ending) => {
                    refused = true;
                    others.push(ending);
                }
            },
            None => others.push(ending),
        }
    }
    *endings = others;
    if refused {
        endings.extend(waiting.iter().filter_map(|id| stream.forget(id)));
        return Err(Rejection::ListUnderWay);
    }
    Ok(waiting)
}

/// Which request a message takes back (MCP 2024-11-05, "Cancellation").
fn cancelled(message: &Message) -> Option<Id> {
    #[derive(Deserialize)]
    struct Cancelled<'a> {
        #[serde(borrow)]
        params: Params<'a>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params<'a> {
        #[serde(borrow)]
        request_id: &'a RawValue,
    }
    if &*message.method != "notifications/cancelled" {
        return None;
    }
    let cancelled: Cancelled<'_> = serde_json::from_slice(&message.raw).ok()?;
    Some(Id(Bytes::copy_from_slice(cancelled.params.request_id.get().as_bytes())))
}

/// Gathers a list and answers it.
async fn list(
    sending: Sending,
    inspector: Inspector,
    stream: StreamHandle,
    listing: Listing,
    mut endings: Vec<Ending>,
) {
    let gone = listing.gone();
    let answered = async {
        let Form::Message { payload, .. } = &sending.call().form else {
            unreachable!("only messages are sent to streams");
        };
        let request = budgeted(sending.route(), payload).expect("only budgeted lists are gathered");
        let mut pages = Streamed {
            sending: &sending,
            stream: &stream,
            listing,
        };
        let (message, outcome) = match gather(&sending, request, &inspector, &mut pages).await {
            Ok(answer) => {
                let (outcome, _) = json::see(&answer);
                (answer, outcome)
            }
            Err(rejection) => {
                let message = rescue::message(&rejection, &sending.call().journey);
                (message, outcome_of_failure(&rejection))
            }
        };
        if pages.listing.answer(sse::message(&message)).await {
            finish(&mut endings, outcome);
        }
    };
    tokio::select! {
        biased;
        () = gone.cancelled() => {}
        () = answered => {}
    }
}

/// Pages that come over the stream.
struct Streamed<'a> {
    sending: &'a Sending,
    stream: &'a StreamHandle,
    listing: Listing,
}

impl Pages for Streamed<'_> {
    async fn first(&mut self) -> Result<Bytes, Rejection> {
        let after = self.sending.route().config.upstream.idle_timeout;
        match tokio::time::timeout(after, self.listing.page()).await {
            Ok(page) => Ok(page),
            Err(_) => Err(Rejection::Upstream(UpstreamError::Timeout {
                endpoint: described(self.sending, self.stream),
                after,
            })),
        }
    }

    async fn next(&mut self, request: Bytes) -> Result<Bytes, Rejection> {
        self.listing.skip();
        let endpoint = self.stream.target().map(|(endpoint, _)| endpoint.clone());
        let sent = tokio::select! {
            // An answer that overtakes its 202 is an answer.
            page = self.listing.page() => return Ok(page),
            sent = self.sending.again(request, endpoint) => sent?,
        };
        if !sent.response.status().is_success() {
            return Err(Rejection::UpstreamNonsense("it refused to list its next page"));
        }
        self.first().await
    }
}
