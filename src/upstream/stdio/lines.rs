//! What a process says on stdout: a line a message.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use serde::de::IgnoredAny;
use tokio::io::AsyncReadExt;
use tokio::process::ChildStdout;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::StdioError;
use super::child::{Outcome, Why, came_to};
use super::stderr::shown;

/// Bytes of a line, as of any message.
const LONGEST: usize = 16 * 1024 * 1024;
/// Lines in a row that are no message: banners are shorter.
const MOST_JUNK: u32 = 100;
const CHUNK: usize = 64 * 1024;
/// Messages up to this size are copied out, so that one that is kept doesn't keep its neighbours' memory.
const SMALL: usize = 16 * 1024;
/// How long is still read what a process says once it is asked to end, or left behind in a pipe that somebody who left
/// its group holds open.
const LEFTOVERS: Duration = Duration::from_secs(1);

/// The messages of a process. Dropping it ends the process.
pub struct ChildLines {
    stdout: ChildStdout,
    buffer: BytesMut,
    /// How much of the buffer holds no line feed.
    scanned: usize,
    junk: u32,
    /// Whether it was said already that it writes something else.
    told: bool,
    /// Known once the process is gone, or asked to go.
    deadline: Option<Instant>,
    over: bool,
    orders: mpsc::Sender<Why>,
    outcome: Outcome,
    route: Arc<str>,
    process: i32,
}

impl ChildLines {
    pub(super) fn new(
        stdout: ChildStdout,
        orders: mpsc::Sender<Why>,
        outcome: Outcome,
        route: Arc<str>,
        process: i32,
    ) -> Self {
        Self {
            stdout,
            buffer: BytesMut::new(),
            scanned: 0,
            junk: 0,
            told: false,
            deadline: None,
            over: false,
            orders,
            outcome,
            route,
            process,
        }
    }

    /// The next message: a line that is a JSON object or array. After an error, or when the process was asked to end,
    /// nothing more comes. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Bytes, StdioError>> {
        while !self.over {
            match self.line() {
                Ok(Some(line)) if line.is_empty() => continue,
                Ok(Some(line)) if is_message(&line) => {
                    self.junk = 0;
                    return Some(Ok(line));
                }
                Ok(Some(line)) => {
                    if let Err(error) = self.not_a_message(&line) {
                        return Some(Err(error));
                    }
                    continue;
                }
                Ok(None) => {}
                Err(error) => return Some(Err(error)),
            }
            if self.read().await {
                continue;
            }
            if !self.buffer.is_empty() {
                // It left in the middle of a line, or didn't think to end the last one.
                self.buffer.extend_from_slice(b"\n");
                continue;
            }
            let _ = self.orders.try_send(Why::Left);
            let error = came_to(&mut self.outcome).await;
            self.over = true;
            return (error != StdioError::Closed).then_some(Err(error));
        }
        None
    }

    /// A line out of the buffer, without what is around it.
    fn line(&mut self) -> Result<Option<Bytes>, StdioError> {
        let found = memchr::memchr(b'\n', &self.buffer[self.scanned..]);
        let length = found.map_or(self.buffer.len(), |at| self.scanned + at);
        if length > LONGEST {
            return Err(self.give_up(Why::TooLong, StdioError::TooLong));
        }
        if found.is_none() {
            self.scanned = length;
            return Ok(None);
        }
        self.scanned = 0;
        let line = if length > SMALL {
            let line = self.buffer.split_to(length).freeze();
            let inner = line.trim_ascii();
            line.slice_ref(inner)
        } else {
            let line = Bytes::copy_from_slice(self.buffer[..length].trim_ascii());
            self.buffer.advance(length);
            line
        };
        self.buffer.advance(1);
        Ok(Some(line))
    }

    /// Reads on; `false` at the end.
    async fn read(&mut self) -> bool {
        self.buffer.reserve(CHUNK);
        if self.deadline.is_none() {
            tokio::select! {
                biased;
                read = self.stdout.read_buf(&mut self.buffer) => return matches!(read, Ok(1..)),
                _ = self.outcome.wait_for(Option::is_some) => {}
            }
            self.deadline = Some(Instant::now() + LEFTOVERS);
        }
        let deadline = self.deadline.expect("it was just set");
        let read = timeout_at(deadline, self.stdout.read_buf(&mut self.buffer)).await;
        matches!(read, Ok(Ok(1..)))
    }

    fn not_a_message(&mut self, line: &[u8]) -> Result<(), StdioError> {
        let (route, process, line) = (&*self.route, self.process, shown(line));
        if std::mem::replace(&mut self.told, true) {
            tracing::debug!(route, process, line, "a line on stdout is no JSON-RPC");
        } else {
            tracing::warn!(
                route,
                process,
                line,
                "the server writes what is no JSON-RPC to stdout; further lines are at debug level"
            );
        }
        self.junk += 1;
        match self.junk > MOST_JUNK {
            true => Err(self.give_up(Why::Nonsense, StdioError::Nonsense)),
            false => Ok(()),
        }
    }

    fn give_up(&mut self, why: Why, error: StdioError) -> StdioError {
        self.over = true;
        self.buffer = BytesMut::new();
        let _ = self.orders.try_send(why);
        error
    }
}

/// Many servers greet on stdout; `[INFO] ready` even begins like JSON.
fn is_message(line: &[u8]) -> bool {
    matches!(line.first(), Some(b'{' | b'['))
        && std::str::from_utf8(line).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok())
}
