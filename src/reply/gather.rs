//! The tool budget: all pages of `tools/list`, filtered, cut and answered as one.
//!
//! 1. Rules come first, then pins, then the upstream's order; the cut is deterministic.
//! 2. At most 100 pages, 10,000 tools and 16 MiB; beyond is 502, since a list cut by accident is no policy.
//! 3. What else came on the way (progress, logging) is forwarded before the answer, in order.

use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::{Map, Value};

use super::forward::{Sending, Shared};
use super::json;
use crate::edge::Rejection;
use crate::mcp::sse::{Decoder, Event};
use crate::mcp::{ListKind, Message, Scanner, lists};
use crate::policy::{Budget, OnExcess};
use crate::upstream::Sent;

const MAX_PAGES: usize = 100;
const MAX_TOOLS: usize = 10_000;

/// One page: the answer, and the events that came before it.
pub struct Page {
    pub answer: Bytes,
    pub before: Vec<Event>,
}

/// A gathered list.
pub struct Gathered {
    pub answer: Bytes,
    /// Events that came before the answers.
    pub before: Vec<Event>,
}

/// Reads the answer of one page out of a reply.
pub async fn page(sent: Sent) -> Result<Page, Rejection> {
    let events = super::forward::is_event_stream(sent.response.headers());
    let mut body = sent.response.into_body();
    if !events {
        let body = json::read(body, json::MAX_LIST).await?;
        return Ok(Page {
            answer: body,
            before: Vec::new(),
        });
    }
    let mut decoder = Decoder::new(json::MAX_LIST);
    let mut before = Vec::new();
    let mut length = 0;
    // The answer ends the page: a server need not end its stream with it (MCP 2025-11-25, "Sending Messages").
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Rejection::UpstreamNonsense("its body ended early"))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length > json::MAX_LIST {
            return Err(Rejection::UpstreamNonsense("a reply to be filtered is over 16 MiB"));
        }
        decoder.push(data);
        let broken = |_| Rejection::UpstreamNonsense("its event stream can't be decoded");
        while let Some(event) = decoder.next_event().map_err(broken)? {
            match answer_of(&event) {
                Some(answer) => return Ok(Page { answer, before }),
                None => before.push(event),
            }
        }
    }
    Err(Rejection::UpstreamNonsense("its stream ended without an answer"))
}

fn answer_of(event: &Event) -> Option<Bytes> {
    let data = event.data()?;
    let mut scanner = Scanner::default();
    scanner.push(data);
    super::events::outcome_of(scanner.finish().outcome)?;
    Some(data.clone())
}

/// Gathers all pages from the first reply on.
pub async fn gather(
    shared: &Shared,
    sending: &Sending<'_>,
    request: &Message,
    first: Sent,
    budget: &Budget,
) -> Result<Gathered, Rejection> {
    let route = sending.route();
    let policy = &route.config.policy;
    let undecodable = |_| Rejection::UpstreamNonsense("its list of tools can't be decoded");
    let endpoint = first.endpoint.clone();
    let Page { answer, mut before } = page(first).await?;
    let mut tools = Vec::new();
    let mut hidden = 0;
    let mut bytes = answer.len();
    let mut current = answer.clone();
    for pages in 1.. {
        let Some(page) = lists::page(&current).map_err(undecodable)? else {
            // An error: the upstream's own answer is the answer.
            return Ok(Gathered {
                answer: current,
                before,
            });
        };
        for tool in page.items {
            if policy.lists(
                sending.principal(),
                route.name(),
                ListKind::Tools,
                &tool.name,
                shared.clock.now(),
            ) {
                tools.push(tool);
            } else {
                hidden += 1;
            }
        }
        let Some(cursor) = page.next_cursor else { break };
        if pages == MAX_PAGES || tools.len() > MAX_TOOLS || bytes > json::MAX_LIST {
            return Err(Rejection::UpstreamNonsense(
                "its list of tools is over 100 pages, 10,000 tools or 16 MiB",
            ));
        }
        let next = sending
            .again(with_cursor(request, &cursor)?, Some(endpoint.clone()))
            .await?;
        let next = self::page(next).await?;
        before.extend(next.before);
        bytes += next.answer.len();
        current = next.answer;
    }
    if hidden > 0 {
        route.metrics.tools_hidden("rules", hidden);
    }
    if tools.len() > budget.max && budget.on_excess == OnExcess::Refuse {
        return Err(Rejection::OverBudget {
            found: tools.len(),
            max: budget.max,
        });
    }
    let names: Vec<&str> = tools.iter().map(|tool| &*tool.name).collect();
    let cut = budget.cut(&names);
    if cut.hidden > 0 {
        route.metrics.tools_hidden("budget", cut.hidden);
    }
    let kept: Vec<_> = cut.kept.iter().map(|&index| tools[index].clone()).collect();
    let answer = lists::join(&answer, &kept, cut.hidden, sending.era()).map_err(undecodable)?;
    Ok(Gathered { answer, before })
}

/// The same request for the next page.
fn with_cursor(request: &Message, cursor: &str) -> Result<Bytes, Rejection> {
    let broken = |_| Rejection::UpstreamNonsense("its cursor can't be sent back");
    let mut message: Map<String, Value> = serde_json::from_slice(&request.raw).map_err(broken)?;
    let params = message.entry("params").or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(params) = params {
        params.insert("cursor".to_owned(), Value::from(cursor));
    }
    Ok(serde_json::to_vec(&message).map_err(broken)?.into())
}
