//! The tool budget: all pages of `tools/list`, filtered, cut and answered as one.
//!
//! 1. Rules come first, then pins, then the upstream's order; the cut is deterministic.
//! 2. At most 100 pages, 10,000 tools and 16 MiB; beyond is 502, since a list cut by accident is no policy.
//! 3. An error, on whatever page, is the answer.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::inspect::Inspector;
use super::json;
use super::sending::Sending;
use crate::edge::Rejection;
use crate::mcp::{ListKind, Message, Payload, lists};
use crate::policy::OnExcess;
use crate::route::Route;

const MAX_PAGES: usize = 100;
const MAX_TOOLS: usize = 10_000;

/// Where pages come from: the replies of a Streamable HTTP server, or the stream of an HTTP+SSE server.
pub trait Pages {
    /// The answer to the request that has been sent already.
    fn first(&mut self) -> impl Future<Output = Result<Bytes, Rejection>> + Send;

    /// The answer to this request.
    fn next(&mut self, request: Bytes) -> impl Future<Output = Result<Bytes, Rejection>> + Send;
}

/// The tools/list that has to be gathered, if this is one.
pub fn budgeted<'a>(route: &Route, payload: &'a Payload) -> Option<&'a Message> {
    route.config.policy.budget()?;
    match payload {
        Payload::Single(message) => (&*message.method == "tools/list" && message.id.is_some()).then_some(message),
        // Policy refuses it.
        Payload::Batch(_) => None,
    }
}

/// Gathers all pages into the one answer that the caller gets.
///
/// # Errors
/// What the pages' source says, a list beyond rule 2's bounds or that can't be decoded, and the budget's own refusal.
pub async fn gather(
    sending: &Sending,
    request: &Message,
    inspector: &Inspector,
    pages: &mut impl Pages,
) -> Result<Bytes, Rejection> {
    let route = sending.route();
    let policy = &route.config.policy;
    let budget = policy.budget().expect("only budgeted lists are gathered");
    let undecodable = |_| Rejection::UpstreamNonsense("its list of tools can't be decoded");
    let first = pages.first().await?;
    let mut tools = Vec::new();
    let mut hidden = 0;
    let mut bytes = first.len();
    let mut current = first.clone();
    for count in 1.. {
        let Some(page) = lists::page(&current).map_err(undecodable)? else {
            return filtered(inspector, current);
        };
        let now = inspector.clock.now();
        for tool in page.items {
            if policy.lists(&inspector.principal, route.name(), ListKind::Tools, &tool.name, now) {
                tools.push(tool);
            } else {
                hidden += 1;
            }
        }
        let more = page.next_cursor;
        if tools.len() > MAX_TOOLS || bytes > json::MAX_LIST || (count == MAX_PAGES && more.is_some()) {
            return Err(Rejection::UpstreamNonsense(
                "its list of tools is over 100 pages, 10,000 tools or 16 MiB",
            ));
        }
        let Some(cursor) = more else { break };
        current = pages.next(with_cursor(request, &cursor)?).await?;
        bytes += current.len();
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
    let answer = lists::join(&first, &kept, cut.hidden, sending.era()).map_err(undecodable)?;
    filtered(inspector, answer)
}

/// Tools are decided; what else the answer holds is a list like any other.
fn filtered(inspector: &Inspector, answer: Bytes) -> Result<Bytes, Rejection> {
    let filtered = inspector
        .filter(&answer)
        .map_err(|_| Rejection::UpstreamNonsense("its list can't be decoded"))?;
    Ok(filtered.unwrap_or(answer))
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
