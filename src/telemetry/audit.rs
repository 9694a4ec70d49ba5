//! The audit log: one JSON line per decision, written by a thread of its own.
//!
//! 1. A request is served only while its line can be expected to reach the sink: [`Audit::reserve`] comes first. While
//!    the backlog is full, or the last write failed, it waits up to one second and then refuses (`on_failure: refuse`).
//! 2. With `on_failure: drop` nothing ever waits: lines that find no place, or can't be written, are counted and gone.
//! 3. A line holds no token and no argument; arguments only as the caller's HMAC of them. What clients chose is cut at
//!    128 characters, and control and direction-changing characters leave as JSON escapes.
//! 4. The backlog is bounded at 8,192 lines and what requests already let in may add: a long call holds no place while
//!    it lasts, or a few thousand standing streams would stall everyone else.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Serialize, Serializer};
use tokio::sync::{Notify, oneshot};

use super::metrics::Metrics;
use crate::config::{self, AuditSink, OnAuditFailure};
use crate::policy::RuleName;

/// Lines that may wait for the sink before requests do.
const BACKLOG: usize = 8192;
/// How long a request waits for a stalled sink.
const PATIENCE: Duration = Duration::from_secs(1);
/// The writer gathers lines this long: a busy gateway wakes it a hundred times a second and not thousands, and what it
/// appends is large enough for the kernel to take in large pages.
const GATHER: Duration = Duration::from_millis(10);
/// Bytes of memory that an idle queue keeps.
const KEPT: usize = 256 * 1024;
/// Between two tries to write what failed.
const RETRY: Duration = Duration::from_millis(100);
/// How long a shutdown waits for the sink.
const FLUSH: Duration = Duration::from_secs(5);
/// Characters of a text that a client chose.
const MAX_TEXT: usize = 128;

/// Why a request can't be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// The sink took nothing for a second: 503.
    #[error("the audit log is stalled")]
    Stalled,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditDecision {
    Allow,
    Deny,
}

/// One line of the audit log. It borrows: what is written is copied once, as text.
#[derive(Clone, Debug, Serialize)]
pub struct AuditLine<'a> {
    /// RFC 3339, in UTC.
    pub time: jiff::Timestamp,
    #[serde(serialize_with = "cut")]
    pub request_id: &'a str,
    /// The client's, as far as trusted proxies tell.
    pub address: std::net::IpAddr,
    #[serde(serialize_with = "cut_some", skip_serializing_if = "Option::is_none")]
    pub issuer: Option<&'a str>,
    #[serde(serialize_with = "cut_some", skip_serializing_if = "Option::is_none")]
    pub subject: Option<&'a str>,
    #[serde(serialize_with = "cut_some", skip_serializing_if = "Option::is_none")]
    pub client: Option<&'a str>,
    /// Empty: it is about no route.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub route: &'a str,
    #[serde(serialize_with = "cut")]
    pub method: &'a str,
    #[serde(serialize_with = "cut_some", skip_serializing_if = "Option::is_none")]
    pub tool: Option<&'a str>,
    pub decision: AuditDecision,
    /// The rule that decided, as the configuration numbers it.
    #[serde(serialize_with = "text_of", skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleName>,
    pub reason: &'static str,
    /// `OutboundCredential::kind`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential: Option<&'static str>,
    /// A configured URL, without userinfo and query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<&'a str>,
    /// As `mcp_requests_total` counts it.
    pub outcome: &'static str,
    #[serde(rename = "duration_ms", serialize_with = "milliseconds")]
    pub duration: Duration,
    /// `Sealer::hmac` of the arguments, never the arguments; base64url.
    #[serde(serialize_with = "base64url", skip_serializing_if = "Option::is_none")]
    pub args_hmac: Option<[u8; 32]>,
}

/// The way to the sink; clones share it.
#[derive(Clone)]
pub struct Audit(Arc<Shared>);

/// What every way to the sink holds; its drop tells the writer that nothing more will come.
struct Shared(Arc<SinkState>);

/// What requests and the writer share.
struct SinkState {
    queue: Mutex<Queue>,
    /// Told when a sleeping writer has something to do.
    filled: Condvar,
    /// Lines handed over and not yet written or given up.
    backlog: AtomicUsize,
    /// The last write failed, and the next try is still to come.
    failed: AtomicBool,
    /// Nobody will write any more: the writer needn't insist on what fails.
    closed: AtomicBool,
    /// Told when the backlog shrinks or a write succeeds again.
    room: Notify,
    on_failure: OnAuditFailure,
    metrics: Arc<Metrics>,
}

/// What the writer takes next: lines as text, so that handing one over costs a copy and no allocation.
#[derive(Default)]
struct Queue {
    text: Vec<u8>,
    lines: usize,
    flushes: Vec<oneshot::Sender<()>>,
    /// The writer waits for `filled`.
    asleep: bool,
}

impl Audit {
    /// Opens the sink and starts its thread, which ends when the last clone and slot are dropped.
    ///
    /// # Errors
    /// The file can't be opened for appending (it is made with mode 0600), or the thread can't be started.
    pub fn start(config: &config::Audit, metrics: Arc<Metrics>) -> io::Result<Self> {
        // The standard streams unbuffered: a line that was written is out, and one that failed isn't half kept.
        let sink = match &config.sink {
            AuditSink::Stdout => File::from(io::stdout().as_fd().try_clone_to_owned()?),
            AuditSink::Stderr => File::from(io::stderr().as_fd().try_clone_to_owned()?),
            AuditSink::File(path) => OpenOptions::new().append(true).create(true).mode(0o600).open(path)?,
        };
        Self::with_sink(sink, config.on_failure, metrics)
    }

    /// As [`Audit::start`], with a sink of the caller's.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn with_sink(
        sink: impl Write + Send + 'static,
        on_failure: OnAuditFailure,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let state = Arc::new(SinkState {
            queue: Mutex::default(),
            filled: Condvar::new(),
            backlog: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            room: Notify::new(),
            on_failure,
            metrics,
        });
        let writer = Writer {
            sink,
            state: Arc::clone(&state),
            batch: Vec::new(),
            torn: false,
        };
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run())?;
        Ok(Self(Arc::new(Shared(state))))
    }

    /// Waits until a line can be expected to reach the sink. Call it before the request is served.
    ///
    /// # Errors
    /// [`AuditError::Stalled`] after one second, with `on_failure: refuse` only.
    pub async fn reserve(&self) -> Result<AuditSlot, AuditError> {
        let sink = &self.0.0;
        if sink.on_failure == OnAuditFailure::Refuse && !sink.takes_lines() {
            let room = async {
                loop {
                    // Listening begins before the look, so that no notice falls between the two.
                    let notice = sink.room.notified();
                    if sink.takes_lines() {
                        return;
                    }
                    notice.await;
                }
            };
            if tokio::time::timeout(PATIENCE, room).await.is_err() {
                sink.metrics.audit_refused();
                return Err(AuditError::Stalled);
            }
        }
        Ok(AuditSlot(Arc::clone(&self.0)))
    }

    /// Returns when every line written so far has reached the sink or was given up; after five seconds in any case.
    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        self.0.0.hand_over(|queue| queue.flushes.push(done));
        // Neither a late nor a missing answer can be helped when the process is about to end.
        let _ = tokio::time::timeout(FLUSH, flushed).await;
    }
}

/// The right to write one line. Dropped unused, it costs nothing.
#[must_use]
pub struct AuditSlot(Arc<Shared>);

impl AuditSlot {
    /// Hands the line to the writer; never waits for the sink.
    pub fn write(self, line: &AuditLine<'_>) {
        thread_local! {
            /// Lines become text here, so that the queue is locked for a copy only.
            static TEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let sink = &self.0.0;
        if sink.on_failure == OnAuditFailure::Drop && sink.backlog.load(Ordering::Relaxed) >= BACKLOG {
            return sink.metrics.audit_dropped(1);
        }
        sink.backlog.fetch_add(1, Ordering::Relaxed);
        TEXT.with_borrow_mut(|text| {
            text.clear();
            append(text, line);
            sink.hand_over(|queue| {
                queue.text.extend_from_slice(text);
                queue.lines += 1;
            });
        });
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
        // Under the lock, or a writer between its look and its sleep would miss it.
        self.0.hand_over(|_| ());
    }
}

impl SinkState {
    /// Changes the queue and wakes the writer if it sleeps.
    fn hand_over(&self, change: impl FnOnce(&mut Queue)) {
        let mut queue = self.queue();
        change(&mut queue);
        if std::mem::take(&mut queue.asleep) {
            drop(queue);
            self.filled.notify_one();
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn takes_lines(&self) -> bool {
        self.backlog.load(Ordering::Relaxed) < BACKLOG && !self.failed.load(Ordering::Acquire)
    }
}

/// The thread's side.
struct Writer<W> {
    sink: W,
    state: Arc<SinkState>,
    batch: Vec<u8>,
    /// A line was cut short by a failure and given up: the next one needs a line of its own.
    torn: bool,
}

/// A writer that panics leaves nobody to write: nothing may be served unrecorded then.
struct Alive(Arc<SinkState>);

impl Drop for Alive {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::Release);
        }
    }
}

impl<W: Write> Writer<W> {
    fn run(mut self) {
        let _alive = Alive(Arc::clone(&self.state));
        while let Some((lines, flushed)) = self.take() {
            self.write_out(lines);
            self.batch.clear();
            // What a stall has piled up isn't kept for ever.
            self.batch.shrink_to(KEPT);
            self.state.backlog.fetch_sub(lines, Ordering::Relaxed);
            self.state.room.notify_waiters();
            for done in flushed {
                // Whoever asked may have stopped waiting.
                let _ = done.send(());
            }
        }
    }

    /// Waits for lines, and moves what is there into the batch; `None` when there will never be more.
    fn take(&mut self) -> Option<(usize, Vec<oneshot::Sender<()>>)> {
        let mut queue = self.state.queue();
        while queue.lines == 0 && queue.flushes.is_empty() {
            if self.state.closed.load(Ordering::Acquire) {
                return None;
            }
            queue.asleep = true;
            queue = self.state.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.flushes.is_empty() {
            drop(queue);
            std::thread::sleep(GATHER);
            queue = self.state.queue();
        }
        std::mem::swap(&mut queue.text, &mut self.batch);
        Some((std::mem::take(&mut queue.lines), std::mem::take(&mut queue.flushes)))
    }

    fn write_out(&mut self, lines: usize) {
        let mut rest = self.batch.as_slice();
        if self.torn && !rest.is_empty() {
            if self.sink.write_all(b"\n").is_err() {
                self.state.metrics.audit_failed();
                return self.state.metrics.audit_dropped(lines as u64);
            }
            self.torn = false;
        }
        while !rest.is_empty() {
            let fault = match self.sink.write(rest) {
                Ok(0) => io::ErrorKind::WriteZero.into(),
                Ok(written) => {
                    rest = &rest[written..];
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            self.state.metrics.audit_failed();
            if !self.state.failed.swap(true, Ordering::AcqRel) {
                tracing::error!(error = %fault, "the audit log can't be written");
            }
            if self.state.on_failure == OnAuditFailure::Drop || self.state.closed.load(Ordering::Acquire) {
                let lost = rest.iter().filter(|byte| **byte == b'\n').count();
                self.torn = rest.len() < self.batch.len() && self.batch[self.batch.len() - rest.len() - 1] != b'\n';
                self.state.metrics.audit_dropped(lost as u64);
                self.state.metrics.audit_written((lines - lost) as u64);
                return;
            }
            std::thread::sleep(RETRY);
        }
        // What a sink that buffers can't flush now it reports at the next write.
        let _ = self.sink.flush();
        if self.state.failed.swap(false, Ordering::AcqRel) {
            tracing::info!("the audit log can be written again");
        }
        self.state.metrics.audit_written(lines as u64);
    }
}

/// Adds one line of JSON. Characters that a terminal or a viewer obeys instead of showing become JSON escapes; serde
/// does so for those below U+0020 only.
fn append(batch: &mut Vec<u8>, line: &AuditLine<'_>) {
    let start = batch.len();
    serde_json::to_writer(&mut *batch, line).expect("a line has text keys, and a Vec takes all");
    if batch[start..].iter().any(|byte| *byte >= 0x7f) {
        let text = String::from_utf8(batch.split_off(start)).expect("serde writes UTF-8");
        for character in text.chars() {
            if is_obeyed(character) {
                let mut units = [0; 2];
                for unit in character.encode_utf16(&mut units) {
                    write!(batch, "\\u{unit:04x}").expect("a Vec takes all");
                }
            } else {
                batch.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
    }
    batch.push(b'\n');
}

/// Control characters, line and paragraph separators, joiners, direction marks and the byte order mark.
fn is_obeyed(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        || matches!(character, '\u{61c}' | '\u{e0000}'..='\u{e007f}')
}

fn clipped(text: &str) -> &str {
    if text.len() <= MAX_TEXT {
        return text;
    }
    text.char_indices().nth(MAX_TEXT).map_or(text, |(end, _)| &text[..end])
}

fn cut<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(clipped(text))
}

fn cut_some<S: Serializer>(text: &Option<&str>, serializer: S) -> Result<S::Ok, S::Error> {
    text.map(clipped).serialize(serializer)
}

fn text_of<S: Serializer>(rule: &Option<RuleName>, serializer: S) -> Result<S::Ok, S::Error> {
    match rule {
        Some(rule) => serializer.collect_str(rule),
        None => serializer.serialize_none(),
    }
}

fn base64url<S: Serializer>(bytes: &Option<[u8; 32]>, serializer: S) -> Result<S::Ok, S::Error> {
    let Some(bytes) = bytes else {
        return serializer.serialize_none();
    };
    let mut text = [0; 43];
    URL_SAFE_NO_PAD
        .encode_slice(bytes, &mut text)
        .expect("32 bytes are 43 characters");
    serializer.serialize_str(std::str::from_utf8(&text).expect("base64 is ASCII"))
}

/// Milliseconds, to the microsecond.
fn milliseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_micros() as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    fn line(subject: &str) -> AuditLine<'_> {
        AuditLine {
            time: jiff::Timestamp::from_second(1_700_000_000).unwrap(),
            request_id: "r1",
            address: std::net::Ipv4Addr::LOCALHOST.into(),
            issuer: Some("https://issuer.test"),
            subject: Some(subject),
            client: None,
            route: "notes",
            method: "tools/call",
            tool: Some("get_note"),
            decision: AuditDecision::Deny,
            rule: Some(RuleName {
                list: "tools",
                index: 2,
            }),
            reason: "rule",
            credential: Some("none"),
            upstream: None,
            outcome: "denied",
            duration: Duration::from_micros(1500),
            args_hmac: None,
        }
    }

    fn rendered(subject: &str) -> String {
        let mut batch = Vec::new();
        append(&mut batch, &line(subject));
        String::from_utf8(batch).unwrap()
    }

    /// A sink that fails while it is told to, and tells of each try.
    #[derive(Clone, Default)]
    struct Sink {
        written: Arc<Mutex<Vec<u8>>>,
        broken: Arc<AtomicBool>,
        tries: Option<Sender<()>>,
    }

    impl Sink {
        fn text(&self) -> String {
            String::from_utf8(self.written.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if let Some(tries) = &self.tries {
                let _ = tries.send(());
            }
            if self.broken.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            // Short writes, as pipes give them.
            let some = &bytes[..bytes.len().min(100)];
            self.written.lock().unwrap().extend_from_slice(some);
            Ok(some.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_one_json_object() {
        let text = rendered("alice");
        assert_eq!(text.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            value,
            serde_json::json!({
                "time": "2023-11-14T22:13:20Z", "request_id": "r1", "address": "127.0.0.1", "issuer": "https://issuer.test", "subject": "alice",
                "route": "notes", "method": "tools/call", "tool": "get_note", "decision": "deny",
                "rule": "tools.rules[2]", "reason": "rule", "credential": "none", "outcome": "denied",
                "duration_ms": 1.5
            })
        );
    }

    #[test]
    fn what_clients_chose_is_cut_and_escaped() {
        let hostile = "a\nb\u{1b}[31m\u{7f}\u{9b}\u{202e}\u{2028}\u{feff}\u{e0041}é";
        let text = rendered(hostile);
        assert!(
            text.trim_end().chars().all(|character| !is_obeyed(character)),
            "{text:?}"
        );
        assert!(text.contains(r"\u202e") && text.contains('é'), "{text:?}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["subject"], hostile, "escapes change nothing for a JSON reader");
        let long: serde_json::Value = serde_json::from_str(&rendered(&"é".repeat(500))).unwrap();
        assert_eq!(long["subject"].as_str().unwrap().chars().count(), MAX_TEXT);
    }

    #[tokio::test]
    async fn lines_reach_the_sink_in_order() {
        let sink = Sink::default();
        let metrics = Metrics::new();
        let audit = Audit::with_sink(sink.clone(), OnAuditFailure::Refuse, Arc::clone(&metrics)).unwrap();
        for number in 0..1000 {
            audit.reserve().await.unwrap().write(&line(&number.to_string()));
        }
        drop(audit.reserve().await.unwrap());
        audit.flush().await;
        let subjects: Vec<String> = sink
            .text()
            .lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["subject"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        assert_eq!(subjects, (0..1000).map(|number| number.to_string()).collect::<Vec<_>>());
        assert!(
            metrics
                .render()
                .contains("portcullis_audit_lines_total{result=\"written\"} 1000")
        );
    }

    #[tokio::test]
    async fn a_file_is_appended_to_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        for _ in 0..2 {
            let config = config::Audit {
                sink: AuditSink::File(path.clone()),
                on_failure: OnAuditFailure::Refuse,
            };
            let audit = Audit::start(&config, Metrics::new()).unwrap();
            audit.reserve().await.unwrap().write(&line("alice"));
            audit.flush().await;
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_failing_sink_refuses_until_it_recovers_and_loses_nothing() {
        let (tries, tried) = channel();
        let sink = Sink {
            tries: Some(tries),
            ..Sink::default()
        };
        sink.broken.store(true, Ordering::SeqCst);
        let metrics = Metrics::new();
        let audit = Audit::with_sink(sink.clone(), OnAuditFailure::Refuse, Arc::clone(&metrics)).unwrap();
        audit.reserve().await.unwrap().write(&line("first"));
        // By the second try the first one's failure is known.
        tried.recv().unwrap();
        tried.recv().unwrap();
        tokio::time::pause();
        assert_eq!(audit.reserve().await.err(), Some(AuditError::Stalled));
        tokio::time::resume();
        sink.broken.store(false, Ordering::SeqCst);
        audit.reserve().await.unwrap().write(&line("second"));
        audit.flush().await;
        assert_eq!(sink.text().lines().count(), 2);
        assert!(
            metrics
                .render()
                .contains("portcullis_audit_lines_total{result=\"refused\"} 1")
        );
    }

    #[tokio::test]
    async fn a_failing_sink_costs_lines_and_no_request_when_told_to_drop() {
        let sink = Sink::default();
        sink.broken.store(true, Ordering::SeqCst);
        let metrics = Metrics::new();
        let audit = Audit::with_sink(sink.clone(), OnAuditFailure::Drop, Arc::clone(&metrics)).unwrap();
        audit.reserve().await.unwrap().write(&line("lost"));
        audit.flush().await;
        sink.broken.store(false, Ordering::SeqCst);
        audit.reserve().await.unwrap().write(&line("kept"));
        audit.flush().await;
        assert_eq!(sink.text().lines().count(), 1);
        assert!(sink.text().contains("kept"));
        let text = metrics.render();
        assert!(
            text.contains("portcullis_audit_lines_total{result=\"dropped\"} 1"),
            "{text}"
        );
    }

    /// A sink that takes nothing until the other side is dropped.
    struct Blocked(Receiver<()>);

    impl Write for Blocked {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            assert!(self.0.recv().is_err(), "nobody sends");
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_backlog_refuses_after_a_second_or_drops() {
        for on_failure in [OnAuditFailure::Refuse, OnAuditFailure::Drop] {
            let (held, release) = channel();
            let metrics = Metrics::new();
            let audit = Audit::with_sink(Blocked(release), on_failure, Arc::clone(&metrics)).unwrap();
            for _ in 0..BACKLOG {
                audit.reserve().await.unwrap().write(&line("alice"));
            }
            let started = tokio::time::Instant::now();
            let late = audit.reserve().await;
            match on_failure {
                OnAuditFailure::Refuse => {
                    assert_eq!(late.err(), Some(AuditError::Stalled));
                    assert!(started.elapsed() >= PATIENCE);
                }
                OnAuditFailure::Drop => {
                    late.unwrap().write(&line("dropped"));
                    assert!(started.elapsed() < PATIENCE);
                    assert!(
                        metrics
                            .render()
                            .contains("portcullis_audit_lines_total{result=\"dropped\"} 1")
                    );
                }
            }
            drop(held);
        }
    }
}
