//! What a server says, brought to whom it is for.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use http::StatusCode;
use tokio::sync::mpsc;

use super::{Asked, Event, Funds, Lost, Peer, ROOM, ServerEra, Told};
use crate::bridge::link::Source;
use crate::bridge::message::{Incoming, RpcError, at, replaced};
use crate::edge::Rejection;
use crate::mcp::{Id, codes};
use crate::upstream::UpstreamError;

impl Peer {
    /// Reads the reply to one request: its answer, and what comes before it.
    pub(super) async fn reply(self: &Arc<Self>, id: u64, mut source: Source, funds: &Funds) {
        loop {
            match source.next().await {
                Ok(Some(bytes)) => {
                    if let Err(rejection) = self.hear(&bytes, Some(id)).await {
                        return self.lose(id, rejection.into());
                    }
                }
                Ok(None) if source.is_http_sse() => {
                    return self.lose(id, Lost::Status(StatusCode::METHOD_NOT_ALLOWED));
                }
                Ok(None) | Err(_) if !self.waits(id) => return,
                // A server may end a stream before its answer, and go on with it later (MCP 2025-11-25, "Resumability").
                Ok(None) | Err(_) => match self.link.resume(&mut source, funds).await {
                    Ok(()) => {}
                    Err(lost) => return self.lose(id, lost),
                },
            }
            if !self.waits(id) {
                return;
            }
        }
    }

    /// Takes what came over the link; `origin` is the call whose reply it came in.
    pub(in crate::bridge) async fn hear(self: &Arc<Self>, bytes: &Bytes, origin: Option<u64>) -> Result<(), Rejection> {
        let incoming =
            Incoming::read(bytes).map_err(|_| Rejection::UpstreamNonsense("a message of it is not JSON-RPC"))?;
        for message in incoming {
            match message {
                Incoming::Answer { id, outcome } => {
                    let own = id.as_ref().and_then(|id| std::str::from_utf8(&id.0).ok()?.parse().ok());
                    // An error may come without the id that its request had.
                    if let Some(id) = own.or_else(|| origin.filter(|_| id.is_none())) {
                        self.settle(id, Ok(outcome));
                    }
                }
                Incoming::Notification { method, params } => self.notified(Told::new(method, params), origin).await,
                Incoming::Request { id, method, params } => self.asked(id, method, params, origin),
            }
        }
        Ok(())
    }

    async fn notified(&self, mut told: Told, origin: Option<u64>) {
        let call = if &*told.method == "notifications/progress" {
            let token = at(&told.params, &["progressToken"]);
            token.and_then(|token| std::str::from_utf8(&token).ok()?.parse().ok())
        } else {
            origin
        };
        let Some(call) = call else {
            if self.make_room(&mut told) {
                let _ = self.told.send(told);
            }
            return;
        };
        let events = {
            let state = self.state();
            let Some(in_flight) = state.calls.get(&call) else {
                return;
            };
            if &*told.method == "notifications/progress" {
                // Nobody asked for it.
                let Some(token) = &in_flight.token else { return };
                told.params = replaced(&told.params, &["progressToken"], token);
            }
            in_flight.events.clone()
        };
        if origin == Some(call) {
            // The call's own stream: who reads slowly slows down nobody else.
            let room = self.room.clone().acquire_many_owned(bytes_of(&told.params)).await;
            told._room = room.ok().map(Arc::new);
            let _ = events.send(Event::Notification(told)).await;
        } else if self.make_room(&mut told) {
            let _ = events.try_send(Event::Notification(told));
        }
    }

    /// Whether there is room for it to wait.
    fn make_room(&self, told: &mut Told) -> bool {
        let room = self.room.clone().try_acquire_many_owned(bytes_of(&told.params));
        told._room = room.ok().map(Arc::new);
        told._room.is_some()
    }

    fn asked(self: &Arc<Self>, id: Id, method: Box<str>, params: Bytes, origin: Option<u64>) {
        let room = self.room.clone().try_acquire_many_owned(bytes_of(&params)).ok();
        let full = room.is_none();
        let asked = Asked {
            method,
            params,
            id,
            peer: Arc::downgrade(self),
            answered: false,
            _room: room,
        };
        if &*asked.method == "ping" {
            asked.reply_later(Ok(Bytes::from_static(b"{}")));
            return;
        }
        if self.era() == ServerEra::Modern {
            // MCP 2026-07-28, "stdio": the server writes no requests.
            asked.reply_later(Err(RpcError::new(
                codes::METHOD_NOT_FOUND,
                "this revision has no requests by servers",
            )));
            return;
        }
        if full {
            asked.reply_later(Err(RpcError::new(codes::INTERNAL_ERROR, "too much waits to be asked")));
            return;
        }
        let state = self.state();
        let call = origin
            .and_then(|id| state.calls.get(&id))
            .or_else(|| {
                let open = state.calls.iter().filter(|(_, call)| call.takes_questions);
                open.max_by_key(|(id, _)| **id).map(|(_, call)| call)
            })
            .filter(|call| call.takes_questions);
        let refused = match (call, &state.questions) {
            (Some(call), _) => match call.events.try_send(Event::Request(asked)) {
                Err(
                    mpsc::error::TrySendError::Full(Event::Request(asked))
                    | mpsc::error::TrySendError::Closed(Event::Request(asked)),
                ) => Some(asked),
                _ => None,
            },
            (None, Some(questions)) => questions.try_send(asked).err().map(|error| match error {
                mpsc::error::TrySendError::Full(asked) | mpsc::error::TrySendError::Closed(asked) => asked,
            }),
            (None, None) => Some(asked),
        };
        drop(state);
        if let Some(asked) = refused {
            asked.reply_later(Err(RpcError::new(
                codes::METHOD_NOT_FOUND,
                "no client is there to be asked; ask within a call of one that can be",
            )));
        }
    }
}

/// What it counts for among what may wait.
fn bytes_of(params: &Bytes) -> u32 {
    u32::try_from(params.len()).unwrap_or(ROOM).min(ROOM)
}

/// Reads what comes over a link for as long as there is somebody to hear it.
pub(super) async fn read(peer: Weak<Peer>, mut source: Source) {
    loop {
        let next = source.next().await;
        let Some(peer) = peer.upgrade() else { return };
        let error = match next {
            Ok(Some(bytes)) => match peer.hear(&bytes, None).await {
                Ok(()) => continue,
                // A line that somebody printed is no reason to end everybody's calls; what is no JSON at all is counted where it is read.
                Err(_) if matches!(source, Source::Lines(_)) => {
                    tracing::debug!(
                        endpoint = &*peer.name(),
                        "a line of the server's process is not JSON-RPC"
                    );
                    continue;
                }
                Err(rejection) => {
                    tracing::warn!(endpoint = &*peer.name(), error = %rejection, "the upstream's connection is closed");
                    UpstreamError::Protocol { endpoint: peer.name() }
                }
            },
            Ok(None) => UpstreamError::Protocol { endpoint: peer.name() },
            Err(error) => error,
        };
        peer.end(&error);
        return;
    }
}
