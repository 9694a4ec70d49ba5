//! One process from its start to its end, and the end of it that messages go into.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::process::Signal;
use tokio::io::AsyncWriteExt;
use tokio::process::ChildStdin;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::group::{Group, Pipes};
use super::lines::ChildLines;
use super::stderr;
use super::{Patience, StdioError, Tenancy};
use crate::config;

/// Messages that wait to be read by the process.
const QUEUE: usize = 256;
/// Their bytes: two of the longest.
const ROOM: u32 = 32 * 1024 * 1024;
/// How long stderr is still read of a process that is gone, where somebody who left its group holds it open.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why a process is ended, or has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Nobody needs it.
    Asked,
    /// It ended, or closed its side.
    Left,
    Stalled,
    TooLong,
    Nonsense,
}

/// What a process came to, once it is known.
pub(super) type Outcome = watch::Receiver<Option<StdioError>>;

/// Where messages for a process go. Dropping it closes the process's stdin and ends it.
pub struct ChildWriter {
    messages: mpsc::Sender<Message>,
    room: Arc<Semaphore>,
    outcome: Outcome,
    patience: Duration,
}

struct Message {
    text: Bytes,
    _room: OwnedSemaphorePermit,
}

impl ChildWriter {
    /// Sends one JSON-RPC message; returns when it is queued. Raw line breaks can only be whitespace in JSON, and become
    /// spaces.
    ///
    /// # Errors
    /// The process is gone, or takes nothing.
    pub async fn send(&self, message: Bytes) -> Result<(), StdioError> {
        let text = one_line(message);
        let size = u32::try_from(text.len()).unwrap_or(ROOM).min(ROOM);
        let queued = async {
            let room = self.room.clone().acquire_many_owned(size).await;
            let _room = room.expect("it is never closed");
            self.messages.send(Message { text, _room }).await
        };
        match timeout(self.patience, queued).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(came_to(&mut self.outcome.clone()).await),
            Err(_) => Err(StdioError::Stalled),
        }
    }
}

/// What it came to; waits for as long as that takes.
pub(super) async fn came_to(outcome: &mut Outcome) -> StdioError {
    match outcome.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone().unwrap_or(StdioError::Closed),
        // Its keeper was dropped: the gate itself is ending.
        Err(_) => StdioError::Closed,
    }
}

fn one_line(message: Bytes) -> Bytes {
    if memchr::memchr2(b'\n', b'\r', &message).is_none() {
        return message;
    }
    let unbroken = |byte: &u8| match byte {
        b'\n' | b'\r' => b' ',
        byte => *byte,
    };
    message.iter().map(unbroken).collect()
}

/// Starts a process and whoever keeps it.
pub(super) fn start(
    config: &config::Stdio,
    tenancy: Tenancy,
    place: OwnedSemaphorePermit,
    closing: CancellationToken,
    patience: Patience,
) -> Result<(ChildWriter, ChildLines), (io::Error, Tenancy)> {
    let (group, pipes) = match Group::start(config) {
        Ok(started) => started,
        Err(error) => return Err((error, tenancy)),
    };
    let Pipes { stdin, stdout, stderr } = pipes;
    let (messages, queue) = mpsc::channel(QUEUE);
    let (orders, ordered) = mpsc::channel(1);
    let (tell, outcome) = watch::channel(None);
    let route = tenancy.shared.route.clone();
    tracing::info!(
        route = &*route,
        process = group.id(),
        "the server's process was started"
    );
    let lines = ChildLines::new(stdout, orders, outcome.clone(), route.clone(), group.id());
    let stderr = tokio::spawn(stderr::log(stderr, route, group.id()));
    let keeper = Keeper {
        group,
        stderr,
        tenancy,
        _place: place,
        patience,
        started: Instant::now(),
    };
    tokio::spawn(keeper.keep(stdin, queue, ordered, closing, tell));
    let writer = ChildWriter {
        messages,
        room: Arc::new(Semaphore::new(ROOM as usize)),
        outcome,
        patience: patience.write,
    };
    Ok((writer, lines))
}

/// Feeds a process, and sees to its end.
struct Keeper {
    group: Group,
    stderr: tokio::task::JoinHandle<()>,
    tenancy: Tenancy,
    patience: Patience,
    started: Instant,
    /// Given back last of all.
    _place: OwnedSemaphorePermit,
}

impl Keeper {
    async fn keep(
        mut self,
        stdin: ChildStdin,
        queue: mpsc::Receiver<Message>,
        mut ordered: mpsc::Receiver<Why>,
        closing: CancellationToken,
        tell: watch::Sender<Option<StdioError>>,
    ) {
        let why = tokio::select! {
            biased;
            () = self.group.ended() => Why::Left,
            () = closing.cancelled() => Why::Asked,
            // Nobody reads what it says any more: nobody needs it.
            why = ordered.recv() => why.unwrap_or(Why::Asked),
            why = feed(stdin, queue, self.patience.write) => why,
        };
        // Here its stdin is closed, and whoever waited to send hears of it.
        let lived = self.started.elapsed();
        let verdict = match why {
            Why::Asked => Some(StdioError::Closed),
            Why::Stalled => Some(StdioError::Stalled),
            Why::TooLong => Some(StdioError::TooLong),
            Why::Nonsense => Some(StdioError::Nonsense),
            Why::Left => None,
        };
        if let Some(error) = &verdict {
            if *error != StdioError::Closed {
                self.tenancy.died(lived, error.to_string().into());
            }
            tell.send_replace(verdict.clone());
        }
        if matches!(why, Why::Asked | Why::Left) {
            self.persuade().await;
        }
        let Self {
            group,
            mut stderr,
            tenancy,
            ..
        } = self;
        let (route, id) = (tenancy.shared.route.clone(), group.id());
        let status: Arc<str> = match group.end().await {
            Ok(status) => status.to_string().into(),
            Err(error) => error.to_string().into(),
        };
        if timeout(LAST_WORDS, &mut stderr).await.is_err() {
            stderr.abort();
        }
        let route = &*route;
        match verdict {
            Some(StdioError::Closed) => tracing::info!(route, process = id, %status, "the server's process was ended"),
            Some(error) => tracing::warn!(route, process = id, %error, "the server's process was killed"),
            None => {
                tracing::warn!(route, process = id, %status, "the server's process ended by itself");
                tenancy.died(lived, status.clone());
                // Only now: whoever hears of it and tries again at once is held up.
                tell.send_replace(Some(StdioError::Ended(status)));
            }
        }
    }

    /// Its stdin is closed, which asks it to end; then it is told to.
    async fn persuade(&mut self) {
        if timeout(self.patience.grace, self.group.ended()).await.is_err() {
            self.group.signal(Signal::TERM);
            let _ = timeout(self.patience.grace, self.group.ended()).await;
        }
    }
}

/// Writes message after message, a line each.
async fn feed(mut stdin: ChildStdin, mut queue: mpsc::Receiver<Message>, patience: Duration) -> Why {
    while let Some(message) = queue.recv().await {
        let write = async {
            stdin.write_all(&message.text).await?;
            stdin.write_all(b"\n").await
        };
        match timeout(patience, write).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Why::Left,
            Err(_) => return Why::Stalled,
        }
    }
    Why::Asked
}
