//! What a process says on stderr goes to the log.
//!
//! 1. A line is an event, escaped, and cut at 1 KiB.
//! 2. At most 50 a second: of the others it is said how many they were.
//! 3. At most 1 MiB a second is read: whoever writes more waits, not we.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::ChildStderr;
use tokio::time::{Instant, sleep_until, timeout_at};

/// Bytes of a line that are shown.
const SHOWN: usize = 1024;
const LINES: u32 = 50;
const BYTES: usize = 1024 * 1024;
const WINDOW: Duration = Duration::from_secs(1);

/// Reads to the end.
pub(super) async fn log(mut stderr: ChildStderr, route: Arc<str>, process: i32) {
    let route = &*route;
    let show = |line: &[u8]| tracing::info!(route, process, line = shown(line), "stderr");
    let mut chunk = vec![0; 8 * 1024];
    let mut line = Vec::new();
    let mut window = Window::new();
    loop {
        let read = match window.dropped {
            0 => stderr.read(&mut chunk).await,
            // What was left out is told when the second is over, even if nothing more comes.
            _ => match timeout_at(window.end, stderr.read(&mut chunk)).await {
                Ok(read) => read,
                Err(_) => {
                    window.turn(route, process);
                    continue;
                }
            },
        };
        let Ok(read @ 1..) = read else { break };
        if Instant::now() >= window.end {
            window.turn(route, process);
        }
        let mut rest = &chunk[..read];
        while let Some(end) = memchr::memchr(b'\n', rest) {
            keep(&mut line, &rest[..end]);
            rest = &rest[end + 1..];
            if !line.trim_ascii().is_empty() && window.admits() {
                show(&line);
            }
            line.clear();
        }
        keep(&mut line, rest);
        window.bytes += read;
        if window.bytes > BYTES {
            sleep_until(window.end).await;
        }
    }
    if !line.trim_ascii().is_empty() && window.admits() {
        show(&line);
    }
    window.turn(route, process);
}

/// As much of a line as is shown, and a byte by which it is known to be longer.
fn keep(line: &mut Vec<u8>, more: &[u8]) {
    let room = (SHOWN + 1).saturating_sub(line.len());
    line.extend_from_slice(&more[..more.len().min(room)]);
}

/// A line for the log, which escapes what a terminal would obey.
pub(super) fn shown(line: &[u8]) -> String {
    let cut = &line[..line.len().min(SHOWN)];
    let mut text = String::from_utf8_lossy(cut.trim_ascii()).into_owned();
    if line.len() > SHOWN {
        text.push('…');
    }
    text
}

/// What was shown and read of the second that runs.
struct Window {
    end: Instant,
    lines: u32,
    dropped: u64,
    bytes: usize,
}

impl Window {
    fn new() -> Self {
        Self {
            end: Instant::now() + WINDOW,
            lines: 0,
            dropped: 0,
            bytes: 0,
        }
    }

    fn admits(&mut self) -> bool {
        self.lines += 1;
        if self.lines > LINES {
            self.dropped += 1;
        }
        self.lines <= LINES
    }

    fn turn(&mut self, route: &str, process: i32) {
        if self.dropped > 0 {
            tracing::warn!(route, process, "stderr: {} lines dropped", self.dropped);
        }
        *self = Self::new();
    }
}
