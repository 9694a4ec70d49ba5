//! A client introduces itself: the session gets its connection to the server.
//!
//! 1. What is known of the server decides how it is spoken to: as a legacy server where it is one, for that is what the
//!    client speaks. `initialize` and its answer then pass as they are; the gateway sends `initialized` itself.
//! 2. A modern server is discovered, and what it says of itself is told the client in the words of `initialize`.
//! 3. A process that serves everybody has been introduced to nobody: the client is told what the server said then, and the
//!    server can ask it nothing.
//! 4. A server's refusal is the client's to read; the client may try again.

use std::sync::Arc;

use bytes::Bytes;

use super::listen;
use super::rounds::Modern;
use super::session::{Back, Session};
use crate::bridge::map;
use crate::bridge::message::{Answered, RpcError, at};
use crate::bridge::opening::{LEGACY, Opened, Opener};
use crate::bridge::peer::{Funds, Lost, ServerEra};
use crate::bridge::peers::Key;
use crate::edge::Rejection;
use crate::mcp::codes;
use crate::route::Route;

/// Opens the session's connection; the answer to `initialize`.
///
/// # Errors
/// When the server can't be reached, or speaks nothing that the gateway does.
pub async fn introduce(
    session: &Arc<Session>,
    route: &Arc<Route>,
    params: &Bytes,
    funds: &Funds,
) -> Result<Answered, Rejection> {
    if !session.introduce() {
        return Ok(Err(RpcError::new(
            codes::INVALID_REQUEST,
            "this session has been initialized already",
        )));
    }
    let bridge = &route.bridge;
    let shared = bridge.is_shared();
    let opened = if shared {
        let peer = bridge.shared(&Key::default(), params, funds).await;
        let result = Bytes::new();
        peer.map(|peer| Opened { peer, result }).map_err(Lost::from)
    } else if bridge.is_stdio() {
        bridge.open(&session.person, params, funds).await
    } else {
        connect(&bridge.opener(funds), params).await
    };
    let Opened { peer, result } = match opened {
        Ok(opened) => opened,
        Err(lost) => {
            session.unintroduced();
            return match lost {
                Lost::Refused { error, .. } => Ok(Err(error)),
                lost => Err(lost.into()),
            };
        }
    };
    let modern = (peer.era() == ServerEra::Modern).then(|| Modern::of(params));
    let result = if modern.is_some() || shared {
        let version = at(params, &["protocolVersion"]);
        let version = version.and_then(|version| serde_json::from_slice::<String>(&version).ok());
        map::initialize_result(peer.facts(), version.as_deref().unwrap_or(LEGACY))
    } else {
        result
    };
    session.meet(Back { peer, modern, shared });
    tokio::spawn(listen::hear(session.clone()));
    Ok(Ok(result))
}

/// Rule 1, for a server over HTTP.
async fn connect(opener: &Opener<'_>, params: &Bytes) -> Result<Opened, Lost> {
    let nature = opener.nature;
    let may_be_legacy = nature.streamable().get() != Some(false) || nature.sse().get() == Some(true);
    if !may_be_legacy && let Some(opened) = opener.discover().await? {
        return Ok(opened);
    }
    let modern = nature.modern().get();
    let refused = match opener.initialize(params).await {
        Ok(opened) => return Ok(opened),
        Err(lost) => lost,
    };
    if modern != Some(false)
        && may_be_legacy
        && !opener.takes_initialize().await
        && let Ok(Some(opened)) = opener.discover().await
    {
        // It was asked, and took no `initialize`.
        nature.streamable().set(Some(false));
        return Ok(opened);
    }
    Err(refused)
}
