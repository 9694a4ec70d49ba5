//! One piece of work for all who need its result.

use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use super::CredentialError;

/// Comes back when the work is done, whoever began it.
pub(super) type Waiting = Shared<BoxFuture<'static, Result<(), CredentialError>>>;

/// At most one piece of work at a time. It is nobody's of those who wait: who goes away ends nothing, and if it dies all
/// are told (r28).
#[derive(Default)]
pub(super) struct Flight(Mutex<Option<Waiting>>);

impl Flight {
    /// What is under way, or else what begins now.
    pub(super) fn join<F>(&self, work: impl FnOnce() -> F) -> Waiting
    where
        F: Future<Output = Result<(), CredentialError>> + Send + 'static,
    {
        let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = &*under_way
            && waiting.peek().is_none()
        {
            return waiting.clone();
        }
        let waiting = tokio::spawn(work())
            .map(|done| done.unwrap_or(Err(CredentialError::Unreachable("the refresh broke off"))))
            .boxed()
            .shared();
        *under_way = Some(waiting.clone());
        waiting
    }
}
