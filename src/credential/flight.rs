//! One piece of work for all who need its result.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::watch;

use super::CredentialError;

/// Counts work that is not to be cut off: what an issuer gave for a refresh token that is spent must be written down.
#[derive(Clone, Default)]
pub(super) struct Underway(Arc<watch::Sender<usize>>);

/// A piece of such work, while it lives.
pub(super) struct Piece(Underway);

impl Underway {
    pub(super) fn begin(&self) -> Piece {
        self.0.send_modify(|pieces| *pieces += 1);
        Piece(self.clone())
    }

    /// Comes back when there is none.
    pub(super) async fn done(&self) {
        // The sender is here: it can't be gone.
        let _ = self.0.subscribe().wait_for(|pieces| *pieces == 0).await;
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.0.0.send_modify(|pieces| *pieces -= 1);
    }
}

/// Comes back when the work is done, whoever began it.
pub(super) type Waiting = Shared<BoxFuture<'static, Result<(), CredentialError>>>;

/// At most one piece of work at a time. It is nobody's of those who wait: who goes away ends nothing, and if it dies all
/// are told (r28).
#[derive(Default)]
pub(super) struct Flight(Mutex<Option<Waiting>>);

impl Flight {
    /// What is under way, or else what begins now.
    pub(super) fn join<F>(&self, underway: &Underway, work: impl FnOnce() -> F) -> Waiting
    where
        F: Future<Output = Result<(), CredentialError>> + Send + 'static,
    {
        let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = &*under_way
            && waiting.peek().is_none()
        {
            return waiting.clone();
        }
        let (piece, work) = (underway.begin(), work());
        let working = async move {
            let _piece = piece;
            work.await
        };
        let waiting = tokio::spawn(working)
            .map(|done| done.unwrap_or(Err(CredentialError::Unreachable("the refresh broke off"))))
            .boxed()
            .shared();
        *under_way = Some(waiting.clone());
        waiting
    }
}
