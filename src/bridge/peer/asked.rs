//! A server's question, and its one answer.

use std::sync::Weak;

use bytes::Bytes;
use http::HeaderMap;
use tokio::sync::OwnedSemaphorePermit;

use super::{ANSWERING, Lost, PARTING, Peer};
use crate::bridge::message::{self, Answered, RpcError};
use crate::mcp::{Id, codes};

/// A server's question; dropped, it is answered with an error.
pub struct Asked {
    pub method: Box<str>,
    /// Raw JSON object.
    pub params: Bytes,
    pub(super) id: Id,
    pub(super) peer: Weak<Peer>,
    pub(super) answered: bool,
    /// Its bytes' place among what waits.
    pub(super) _room: Option<OwnedSemaphorePermit>,
}

impl Asked {
    /// The server's own id of it.
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// Answers.
    ///
    /// # Errors
    /// When the server can't be told.
    pub async fn answer(mut self, outcome: Answered) -> Result<(), Lost> {
        self.answered = true;
        let Some(peer) = self.peer.upgrade() else {
            return Err(Lost::Session);
        };
        let body = message::answer(&self.id, &outcome);
        let funds = peer.latest_funds();
        let headers = HeaderMap::new();
        let posting = peer.link.post(body, &funds, "", &headers);
        match tokio::time::timeout(ANSWERING, posting).await {
            Ok(posted) => posted.map(|_| ()),
            Err(_) => Err(peer.late(ANSWERING)),
        }
    }

    pub(in crate::bridge) fn reply_later(mut self, outcome: Answered) {
        self.answered = true;
        let place = self.peer.upgrade().and_then(|peer| {
            // Nothing else would bound what waits for a server that asks and doesn't read.
            peer.replies.clone().try_acquire_owned().ok()
        });
        let (Ok(runtime), Some(place)) = (tokio::runtime::Handle::try_current(), place) else {
            return;
        };
        let asked = Self {
            method: std::mem::take(&mut self.method),
            params: self.params.clone(),
            id: self.id.clone(),
            peer: self.peer.clone(),
            answered: true,
            _room: None,
        };
        runtime.spawn(async move {
            let _ = tokio::time::timeout(PARTING, asked.answer(outcome)).await;
            drop(place);
        });
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.answered {
            let asked = Self {
                method: std::mem::take(&mut self.method),
                params: Bytes::new(),
                id: self.id.clone(),
                peer: self.peer.clone(),
                answered: true,
                _room: None,
            };
            asked.reply_later(Err(RpcError::new(codes::INTERNAL_ERROR, "the client went away")));
        }
    }
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asked")
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}
