//! What a client has been asked, and has not answered yet.
//!
//! 1. Every question has an id of the gateway's, a number that the session counts.
//! 2. At most 64 wait at once, ten minutes each; whoever asked one too many, or is not answered in time, gets an error.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::bridge::message::{Answered, RpcError};
use crate::bridge::peer::Asked;
use crate::mcp::{Id, codes};

/// Most questions at once.
const MAX: usize = 64;
/// How long a client may take.
pub const WAIT: Duration = Duration::from_secs(10 * 60);

/// Who wants to know.
pub enum Asker {
    /// A legacy server, by a request.
    Server(Asked),
    /// The round of a modern server's call.
    Round(oneshot::Sender<Answered>),
}

impl Asker {
    /// Passes on what the client said. Doesn't wait for the server to take it.
    pub fn hear(self, answered: Answered) {
        match self {
            Self::Server(asked) => {
                tokio::spawn(async move {
                    if let Err(lost) = asked.answer(answered).await {
                        tracing::debug!(
                            error = lost.to_string(),
                            "a server did not take the answer to its question"
                        );
                    }
                });
            }
            // The call may have ended meanwhile.
            Self::Round(sender) => drop(sender.send(answered)),
        }
    }
}

/// The questions of one session.
#[derive(Default)]
pub struct Questions(Mutex<State>);

#[derive(Default)]
struct State {
    count: u64,
    open: HashMap<u64, (Instant, Asker)>,
}

impl Questions {
    /// Takes up a question; the id that the client is asked with.
    ///
    /// # Errors
    /// By rule 2; who asked has been told.
    pub fn put(&self, asker: Asker) -> Result<u64, RpcError> {
        let mut state = self.state();
        if state.open.len() >= MAX {
            let error = RpcError::new(
                codes::INTERNAL_ERROR,
                "the client has been asked too much that it has not answered yet",
            );
            drop(state);
            asker.hear(Err(error.clone()));
            return Err(error);
        }
        state.count += 1;
        let id = state.count;
        state.open.insert(id, (Instant::now(), asker));
        Ok(id)
    }

    /// Who asked the question that is answered by this id.
    pub fn take(&self, id: &Id) -> Option<Asker> {
        let id = number(id)?;
        self.state().open.remove(&id).map(|(_, asker)| asker)
    }

    /// Nobody wants to know any more; a server that does is told that nobody will answer.
    pub fn forget(&self, id: u64) {
        let asker = self.state().open.remove(&id);
        drop(asker);
    }

    /// The question that a server asked by this id of its own.
    pub fn of_server(&self, id: &Id) -> Option<u64> {
        let id = id.canonical();
        let state = self.state();
        let mut open = state.open.iter();
        open.find_map(|(ours, (_, asker))| match asker {
            Asker::Server(asked) if asked.id().canonical() == id => Some(*ours),
            _ => None,
        })
    }

    /// Gives up what has waited for too long.
    pub fn expire(&self) {
        let now = Instant::now();
        let mut late = Vec::new();
        let mut state = self.state();
        let ids: Vec<u64> = state.open.keys().copied().collect();
        for id in ids {
            if now.duration_since(state.open[&id].0) >= WAIT {
                late.extend(state.open.remove(&id));
            }
        }
        drop(state);
        for (_, asker) in late {
            asker.hear(Err(RpcError::new(
                codes::INTERNAL_ERROR,
                "the client did not answer in time",
            )));
        }
    }

    /// Gives up everything.
    pub fn clear(&self) {
        let open = std::mem::take(&mut self.state().open);
        drop(open);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn number(id: &Id) -> Option<u64> {
    std::str::from_utf8(&id.canonical().0).ok()?.parse().ok()
}

/// The id of a question as it is written.
pub fn spelled(id: u64) -> Id {
    Id(Bytes::from(id.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round() -> (Asker, oneshot::Receiver<Answered>) {
        let (sender, receiver) = oneshot::channel();
        (Asker::Round(sender), receiver)
    }

    #[tokio::test]
    async fn an_answer_finds_who_asked_once() {
        let questions = Questions::default();
        let (asker, answer) = round();
        let id = questions.put(asker).expect("a place");
        assert!(questions.take(&spelled(id + 1)).is_none());
        assert!(questions.take(&Id("\"1\"".into())).is_none(), "a text is no number");
        let asker = questions.take(&Id("1.0".into())).expect("another spelling of 1");
        asker.hear(Ok("{}".into()));
        assert_eq!(answer.await.expect("heard"), Ok("{}".into()));
        assert!(questions.take(&spelled(id)).is_none(), "answered");
    }

    #[tokio::test]
    async fn one_too_many_is_refused_and_told() {
        let questions = Questions::default();
        let kept: Vec<_> = (0..MAX)
            .map(|_| {
                let (asker, answer) = round();
                questions.put(asker).expect("a place");
                answer
            })
            .collect();
        let (asker, answer) = round();
        assert!(questions.put(asker).is_err());
        assert!(answer.await.expect("told").is_err());
        questions.forget(1);
        let (asker, _answer) = round();
        assert!(questions.put(asker).is_ok(), "a place is free again");
        drop(kept);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_answers_is_given_up() {
        let questions = Questions::default();
        let (asker, mut answer) = round();
        questions.put(asker).expect("a place");
        tokio::time::advance(WAIT - Duration::from_secs(1)).await;
        questions.expire();
        assert!(answer.try_recv().is_err(), "there is still time");
        tokio::time::advance(Duration::from_secs(1)).await;
        questions.expire();
        assert_eq!(
            answer.await.expect("told").expect_err("an error").message,
            "the client did not answer in time"
        );
    }
}
