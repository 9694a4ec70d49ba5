//! A call's side of a connection, and a listener's.

use std::sync::Arc;

use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::{Event, Lost, PARTING, Peer, Told};
use crate::bridge::message::Answered;
use crate::upstream::UpstreamError;

/// A call on its way; dropped before its answer, it is cancelled.
pub struct Exchange {
    pub(super) peer: Arc<Peer>,
    pub(super) id: u64,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) answer: oneshot::Receiver<Result<Answered, Lost>>,
    pub(super) sending: AbortHandle,
    pub(super) done: bool,
}

/// Hears the notifications that belong to no call.
pub struct Listener {
    pub(super) peer: Arc<Peer>,
    pub(super) told: broadcast::Receiver<Told>,
}

impl Exchange {
    /// The id that the server knows it by.
    pub(in crate::bridge) fn id(&self) -> u64 {
        self.id
    }

    /// The connection it goes over.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// What happens next; nothing does after the answer.
    ///
    /// # Errors
    /// When there will be no answer.
    pub async fn next(&mut self) -> Result<Event, Lost> {
        let silence = tokio::time::sleep(self.peer.idle_timeout);
        tokio::select! {
            biased;
            // What came before the answer is in the queue before the answer is there.
            Some(event) = self.events.recv() => Ok(event),
            answer = &mut self.answer, if !self.done => {
                self.done = true;
                match answer {
                    Ok(answer) => answer.map(Event::Answer),
                    Err(_) => Err(UpstreamError::Protocol { endpoint: self.peer.name() }.into()),
                }
            }
            () = silence => {
                let after = self.peer.idle_timeout;
                Err(UpstreamError::Timeout { endpoint: self.peer.name(), after }.into())
            }
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let waited = self.peer.state().calls.remove(&self.id).is_some();
        self.sending.abort();
        if !waited || !self.peer.link.is_told_of_cancellation() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (peer, id) = (self.peer.clone(), self.id);
        runtime.spawn(async move {
            let params = format!("{{\"requestId\":{id},\"reason\":\"the client went away\"}}");
            let funds = peer.latest_funds();
            let telling = peer.notify("notifications/cancelled", params.as_bytes(), &funds);
            let _ = tokio::time::timeout(PARTING, telling).await;
        });
    }
}

impl Listener {
    /// The next notification; `None` when the connection has ended. Notifications that were not taken in time are left out.
    pub async fn next(&mut self) -> Option<Told> {
        loop {
            tokio::select! {
                biased;
                told = self.told.recv() => match told {
                    Ok(told) => return Some(told),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
                () = self.peer.ended.cancelled() => return None,
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut state = self.peer.state();
        state.listeners -= 1;
        state.used = Instant::now();
    }
}
