//! A legacy client's request to one legacy process that serves everybody, and knows of one client.
//!
//! 1. Tasks would be everybody's to list, to read and to cancel, so there are none: a call is made at once, as between eras.
//! 2. A resource is subscribed to once however many sessions want it, and no longer when none does: nobody takes it from
//!    another. A session is told of what it subscribed to.
//! 3. Nobody can be asked anything.

use bytes::Bytes;
use http::HeaderMap;

use super::call::Caller;
use super::session::Back;
use crate::bridge::map;
use crate::bridge::message::{Answered, RpcError};
use crate::bridge::peer::Ask;
use crate::bridge::wishes::Subscribed;
use crate::edge::Rejection;
use crate::mcp::object::Object;
use crate::mcp::{Message, codes};

/// What the process answers.
///
/// # Errors
/// When there is no answer.
pub async fn answered(caller: &Caller, back: &Back, message: &Message, params: Bytes) -> Result<Answered, Rejection> {
    let session = &caller.session;
    let uri = message.uri.as_deref().unwrap_or_default();
    match &*message.method {
        method if method.starts_with("tasks/") => {
            return Ok(Err(RpcError::new(
                codes::METHOD_NOT_FOUND,
                "this server is one process for everybody, and has no tasks for anybody",
            )));
        }
        "resources/subscribe" => {
            let mut subscribed = Subscribed::none(&back.peer, &caller.funds);
            return Ok(match subscribed.add(uri).await? {
                Ok(result) => session.subscribe(uri, subscribed).map(|()| result),
                refused => refused,
            });
        }
        "resources/unsubscribe" => {
            session.unsubscribe(uri);
            return Ok(Ok(Bytes::from_static(b"{}")));
        }
        _ => {}
    }
    let params = match without_task(&message.method, &params) {
        Ok(params) => params,
        Err(error) => return Ok(Err(error)),
    };
    let ask = Ask {
        method: message.method.clone(),
        params,
        funds: caller.funds.clone(),
        headers: HeaderMap::new(),
        takes_questions: false,
    };
    caller.converse(back, back.peer.request(ask)).await
}

/// Rule 1.
fn without_task(method: &str, params: &Bytes) -> Result<Bytes, RpcError> {
    if !map::is_multi_round_trip(method) {
        return Ok(params.clone());
    }
    let mut all = Object::parse(params)
        .map_err(|_| RpcError::new(codes::INVALID_PARAMS, "params must be an object without repeated keys"))?;
    all.take("task");
    Ok(all.into_bytes(params))
}
