//! Real processes: what they get, what they may do, and how they end.

use std::io::Write;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::timeout;

use super::*;
use crate::secret::Secret;
use bytes::Bytes;

const ALICE: Owner = [1; 32];
const BOB: Owner = [2; 32];
/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Patience = Patience {
    write: Duration::from_millis(200),
    grace: Duration::from_millis(100),
};

fn shell(script: &str) -> config::Stdio {
    config::Stdio {
        program: "/bin/sh".into(),
        arguments: vec!["-c".to_owned(), script.to_owned()],
        environment: vec![("PATH".to_owned(), Secret::new("/usr/bin:/bin"))],
        directory: "/".into(),
        shared: false,
        processes: 8,
        idle_timeout: LONG,
    }
}

fn processes(config: config::Stdio, patience: Patience) -> Arc<Processes> {
    Processes::with("r", config, Arc::new(|_| {}), patience)
}

/// One process of this script.
fn run(script: &str) -> (Arc<Processes>, ChildWriter, ChildLines) {
    let processes = processes(shell(script), Patience::default());
    let (writer, lines) = processes.spawn(&ALICE).expect("a shell can be started");
    (processes, writer, lines)
}

async fn next(lines: &mut ChildLines) -> Option<Result<String, StdioError>> {
    let line = timeout(LONG, lines.next()).await.expect("in time")?;
    Some(line.map(|line| String::from_utf8(line.to_vec()).expect("UTF-8")))
}

async fn message(lines: &mut ChildLines) -> String {
    next(lines).await.expect("it goes on").expect("a message")
}

async fn send(writer: &ChildWriter, text: &str) -> Result<(), StdioError> {
    writer.send(Bytes::copy_from_slice(text.as_bytes())).await
}

/// Numbers that a script wrote as a JSON array.
fn numbers(text: &str) -> Vec<i32> {
    serde_json::from_str(text).expect("numbers")
}

/// A process by its number.
struct Watched(i32);

impl Watched {
    fn new(id: i32) -> Self {
        assert!(Self(id).runs(), "it is there");
        Self(id)
    }

    fn runs(&self) -> bool {
        // pid (name) state …, and the name may hold anything.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest.as_bytes()[0]);
        state.is_some_and(|state| !b"ZX".contains(&state))
    }

    async fn ended(&self) {
        let ended = async {
            while self.runs() {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, ended).await.expect("it ended");
    }

    /// Whether nothing is left of it, not even a zombie.
    fn is_reaped(&self) -> bool {
        !Path::new(&format!("/proc/{}", self.0)).exists()
    }
}

/// What is logged while this is held, on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn start(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || log.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn text(&self) -> String {
        String::from_utf8(lock(&self.0).clone()).expect("UTF-8")
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn r20_what_the_gate_knows_cannot_be_read_in_proc_by_its_own_user() {
    let _processes = processes(shell("exit 0"), SHORT);
    let dumpable = rustix::process::dumpable_behavior().expect("Linux knows");
    assert_eq!(dumpable, rustix::process::DumpableBehavior::NotDumpable);
}

#[tokio::test]
async fn r20_a_childs_environment_holds_only_what_is_named() {
    assert!(std::env::vars_os().count() > 2, "there is something to inherit");
    let script = r#"printf '["%s"]\n' "$(tr '\0' , < /proc/$$/environ)""#;
    let mut config = shell(script);
    config
        .environment
        .push(("API_TOKEN".to_owned(), Secret::new("hunter2")));
    let processes = processes(config, SHORT);
    let (_writer, mut lines) = processes.spawn(&ALICE).expect("a shell can be started");
    assert_eq!(
        message(&mut lines).await,
        r#"["API_TOKEN=hunter2,PATH=/usr/bin:/bin,"]"#
    );
}

#[tokio::test]
async fn it_begins_in_its_directory() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().canonicalize().expect("it is there");
    let mut config = shell(r#"printf '["%s"]\n' "$(pwd -P)""#);
    config.directory.clone_from(&path);
    let processes = processes(config, SHORT);
    let (_writer, mut lines) = processes.spawn(&ALICE).expect("a shell can be started");
    assert_eq!(message(&mut lines).await, format!("[\"{}\"]", path.display()));
}

#[tokio::test]
async fn a_line_is_a_message_both_ways() {
    let (_processes, writer, mut lines) = run("cat");
    send(&writer, "{\r\n  \"a\": 1\n}").await.expect("it is read");
    assert_eq!(message(&mut lines).await, r#"{    "a": 1 }"#);
    let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(1024 * 1024));
    send(&writer, &long).await.expect("it is read");
    send(&writer, "[]").await.expect("it is read");
    assert!(message(&mut lines).await == long, "a long message came back otherwise");
    assert_eq!(message(&mut lines).await, "[]");
}

#[tokio::test]
async fn what_is_no_message_is_passed_over_but_not_for_ever() {
    let banner =
        r#"echo '[INFO] ready'; echo; echo '  {"a":1}  '; for i in $(seq 100); do echo 7; done; echo '{"a":2}'"#;
    let (_processes, _writer, mut lines) = run(&format!("{banner}; cat"));
    assert_eq!(message(&mut lines).await, r#"{"a":1}"#);
    assert_eq!(message(&mut lines).await, r#"{"a":2}"#);
    let (processes, writer, mut lines) = run(&format!("{banner}; yes junk"));
    assert_eq!(message(&mut lines).await, r#"{"a":1}"#);
    assert_eq!(message(&mut lines).await, r#"{"a":2}"#);
    assert_eq!(next(&mut lines).await, Some(Err(StdioError::Nonsense)));
    assert_eq!(next(&mut lines).await, None);
    assert_eq!(came_to(&writer).await, StdioError::Nonsense);
    assert_eq!(processes.state().died, 1);
}

/// What the process came to, by sending until it is gone.
async fn came_to(writer: &ChildWriter) -> StdioError {
    loop {
        if let Err(error) = timeout(LONG, send(writer, "{}")).await.expect("in time") {
            return error;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn who_dies_in_mid_call_is_heard_of_and_held_up() {
    let script = r#"read line; echo '{"progress":1}'; printf '{"last":1}'; exit 3"#;
    let (processes, writer, mut lines) = run(script);
    send(&writer, "{}").await.expect("it is read");
    assert_eq!(message(&mut lines).await, r#"{"progress":1}"#);
    assert_eq!(
        message(&mut lines).await,
        r#"{"last":1}"#,
        "the end of a line may be the end of all"
    );
    let ended = StdioError::Ended("exit status: 3".into());
    assert_eq!(next(&mut lines).await, Some(Err(ended.clone())));
    assert_eq!(next(&mut lines).await, None);
    assert_eq!(came_to(&writer).await, ended);
    let held_up = processes.spawn(&ALICE).err().expect("it ended soon");
    assert!(
        matches!(&held_up, StdioError::Waiting { status, .. } if **status == *"exit status: 3"),
        "{held_up:?}"
    );
    assert_eq!(&*processes.trouble().expect("nobody's runs"), "exit status: 3");
    // What Alice asked may be what killed it: Bob isn't held up, and while his runs all is well.
    let (_bob, _lines) = processes.spawn(&BOB).expect("another's affair");
    assert_eq!(processes.trouble(), None);
    assert_eq!(processes.state().died, 1);
}

#[tokio::test]
async fn who_is_killed_is_said_to_be() {
    let (_processes, _writer, mut lines) = run("kill -9 $$");
    let ended = next(&mut lines).await;
    assert_eq!(ended, Some(Err(StdioError::Ended("signal: 9 (SIGKILL)".into()))));
}

#[tokio::test]
async fn who_closes_stdout_is_ended() {
    let processes = processes(shell("echo \"[$$]\"; exec >&-; exec sleep 1000"), SHORT);
    let (_writer, mut lines) = processes.spawn(&ALICE).expect("a shell can be started");
    let process = Watched::new(numbers(&message(&mut lines).await)[0]);
    assert!(matches!(next(&mut lines).await, Some(Err(StdioError::Ended(_)))));
    process.ended().await;
}

#[tokio::test]
async fn an_endless_line_is_given_up() {
    let (processes, writer, mut lines) = run("echo \"[$$]\"; cat /dev/zero");
    let process = Watched::new(numbers(&message(&mut lines).await)[0]);
    assert_eq!(next(&mut lines).await, Some(Err(StdioError::TooLong)));
    process.ended().await;
    assert_eq!(came_to(&writer).await, StdioError::TooLong);
    processes.close().await;
    assert!(process.is_reaped());
}

#[tokio::test]
async fn a_line_of_the_longest_length_passes() {
    let script = "printf '[\"'; head -c 16777212 /dev/zero | tr '\\0' x; printf '\"]\\n'; cat";
    let (_processes, _writer, mut lines) = run(script);
    assert_eq!(message(&mut lines).await.len(), 16 * 1024 * 1024);
    let (_processes, _writer, mut lines) = run(&script.replace("16777212", "16777213"));
    assert_eq!(next(&mut lines).await, Some(Err(StdioError::TooLong)));
}

#[tokio::test]
async fn a_million_messages_that_nobody_asked_for_flow() {
    let (_processes, writer, mut lines) = run(r#"yes '{"method":"x"}' | head -n 1000000; cat"#);
    for _ in 0..1_000_000 {
        assert_eq!(lines.next().await, Some(Ok(Bytes::from_static(br#"{"method":"x"}"#))));
    }
    send(&writer, "{}").await.expect("it is read");
    assert_eq!(message(&mut lines).await, "{}");
}

#[tokio::test]
async fn who_reads_nothing_holds_up_only_those_who_write_to_him() {
    let config = shell("read kind; if [ \"$kind\" = '[]' ]; then exec sleep 1000; else exec cat; fi");
    let processes = processes(config, SHORT);
    let (deaf, mut deaf_lines) = processes.spawn(&ALICE).expect("a shell can be started");
    let (writer, mut lines) = processes.spawn(&BOB).expect("a shell can be started");
    send(&deaf, "[]").await.expect("it is read");
    send(&writer, "{}").await.expect("it is read");
    let big = Bytes::from(format!("[\"{}\"]", "x".repeat(10 * 1024 * 1024)));
    let flood = async {
        loop {
            if let Err(error) = deaf.send(big.clone()).await {
                return error;
            }
        }
    };
    let others = async {
        for _ in 0..100 {
            send(&writer, r#"{"a":1}"#).await.expect("it is read");
            assert_eq!(message(&mut lines).await, r#"{"a":1}"#);
        }
    };
    let (error, ()) = timeout(LONG, futures_util::future::join(flood, others))
        .await
        .expect("in time");
    assert_eq!(error, StdioError::Stalled);
    assert_eq!(next(&mut deaf_lines).await, Some(Err(StdioError::Stalled)));
}

#[tokio::test]
async fn who_ignores_every_request_to_end_is_killed() {
    let script = "trap '' TERM; echo \"[$$]\"; while :; do sleep 1000; done";
    let processes = processes(shell(script), SHORT);
    let (writer, mut lines) = processes.spawn(&ALICE).expect("a shell can be started");
    let process = Watched::new(numbers(&message(&mut lines).await)[0]);
    drop((writer, lines));
    process.ended().await;
    processes.close().await;
    assert!(process.is_reaped());
    assert_eq!(
        processes.state(),
        ProcessesState {
            running: 0,
            most: 8,
            died: 0
        }
    );
}

#[tokio::test]
async fn either_half_that_is_dropped_asks_it_to_end() {
    for writer_goes in [true, false] {
        // Were it not for stdin, it would be told only in an hour.
        let patience = Patience {
            grace: Duration::from_secs(3600),
            ..Patience::default()
        };
        let processes = processes(shell("echo \"[$$]\"; cat; echo '{\"bye\":1}'"), patience);
        let (writer, mut lines) = processes.spawn(&ALICE).expect("a shell can be started");
        let process = Watched::new(numbers(&message(&mut lines).await)[0]);
        if writer_goes {
            drop(writer);
            assert_eq!(message(&mut lines).await, r#"{"bye":1}"#, "what it says last is heard");
            assert_eq!(next(&mut lines).await, None);
        } else {
            drop(lines);
            assert_eq!(came_to(&writer).await, StdioError::Closed);
        }
        process.ended().await;
        processes.close().await;
        assert!(process.is_reaped());
    }
}

#[tokio::test]
async fn who_stays_when_stdin_is_closed_is_told_to_go() {
    let patience = Patience {
        grace: Duration::from_millis(300),
        ..SHORT
    };
    let script = r#"trap 'echo "{\"told\":1}"; exit 0' TERM; echo '{}'; while :; do sleep 1000 & wait; done"#;
    let processes = processes(shell(script), patience);
    let (writer, mut lines) = processes.spawn(&ALICE).expect("a shell can be started");
    assert_eq!(message(&mut lines).await, "{}");
    drop(writer);
    assert_eq!(message(&mut lines).await, r#"{"told":1}"#);
    assert_eq!(next(&mut lines).await, None);
}

#[tokio::test]
async fn a_group_ends_as_a_whole() {
    // The leader leaves when its stdin is closed, dies, or stays until it is told; its child never leaves by itself.
    for script in [
        "(trap '' TERM; exec sleep 1000) & echo \"[$$, $!]\"; read line; exit 0",
        "(trap '' TERM; exec sleep 1000) & echo \"[$$, $!]\"; read line; kill -9 $$",
        "(trap '' TERM; exec sleep 1000) & echo \"[$$, $!]\"; wait",
    ] {
        let processes = processes(shell(script), SHORT);
        let (writer, mut lines) = processes.spawn(&ALICE).expect("a shell can be started");
        let said = numbers(&message(&mut lines).await);
        let grandchild = Watched::new(said[1]);
        drop((writer, lines));
        grandchild.ended().await;
        processes.close().await;
        assert!(
            !Path::new(&format!("/proc/{}", said[0])).exists(),
            "{script}: no zombie"
        );
    }
}

#[tokio::test]
async fn orphans_that_are_ours_are_reaped() {
    // As if we were the first process of a container.
    let us = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(us)).expect("anybody may");
    let script = "sh -c 'sleep 1000 & echo \"[$!]\"; wait' & exec cat";
    let processes = processes(shell(script), SHORT);
    let (writer, mut lines) = processes.spawn(&ALICE).expect("a shell can be started");
    let orphan = Watched::new(numbers(&message(&mut lines).await)[0]);
    drop((writer, lines));
    processes.close().await;
    assert!(orphan.is_reaped());
}

#[tokio::test]
async fn who_leaves_the_group_with_our_pipe_is_not_waited_for() {
    let script = r#"setsid sh -c 'echo "[$$]"; exec sleep 1000' & read line; exit 0"#;
    let (processes, writer, mut lines) = run(script);
    let stray = numbers(&message(&mut lines).await)[0];
    send(&writer, "{}").await.expect("it is read");
    let ended = next(&mut lines).await;
    assert_eq!(ended, Some(Err(StdioError::Ended("exit status: 0".into()))));
    timeout(LONG, processes.close())
        .await
        .expect("it isn't waited for either");
    kill_process(Pid::from_raw(stray).expect("a number"), Signal::KILL).expect("it is still there");
}

#[tokio::test]
async fn they_end_with_their_configuration() {
    let (processes, _writer, mut lines) = run("echo \"[$$]\"; cat");
    let process = Watched::new(numbers(&message(&mut lines).await)[0]);
    drop(processes);
    assert_eq!(next(&mut lines).await, None);
    process.ended().await;
}

#[tokio::test]
async fn once_closed_none_is_started() {
    let (processes, writer, _lines) = run("cat");
    processes.close().await;
    assert_eq!(processes.state().running, 0);
    assert_eq!(came_to(&writer).await, StdioError::Closed);
    assert_eq!(processes.spawn(&ALICE).err(), Some(StdioError::Closed));
}

#[test]
fn they_end_with_the_gates_runtime() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().expect("a runtime")
    };
    let gates = runtime();
    let (process, kept) = gates.block_on(async {
        let (processes, writer, mut lines) = run("(trap '' TERM; exec sleep 1000) & echo \"[$!]\"; wait");
        (numbers(&message(&mut lines).await)[0], (processes, writer, lines))
    });
    let ours = runtime();
    let process = Watched::new(process);
    drop(gates);
    ours.block_on(process.ended());
    drop(kept);
}

#[tokio::test]
async fn processes_are_bounded_over_all_and_for_one() {
    let processes = processes(shell("cat"), SHORT);
    // A quarter of eight.
    let mut alices: Vec<_> = (0..2).map(|_| processes.spawn(&ALICE).expect("her share")).collect();
    assert_eq!(processes.spawn(&ALICE).err(), Some(StdioError::Full(2)));
    let _others: Vec<_> = (10..16)
        .map(|n| processes.spawn(&[n; 32]).expect("there is room"))
        .collect();
    assert_eq!(processes.spawn(&BOB).err(), Some(StdioError::Full(8)));
    assert_eq!(processes.state().running, 8);
    alices.pop();
    let room = timeout(LONG, processes.shared.places.acquire()).await;
    drop(room.expect("a process that ended gives its place back"));
    processes.spawn(&BOB).expect("there is room again");
    processes.close().await;
    assert!(
        lock(&processes.shared.owners).is_empty(),
        "nobody is remembered for nothing"
    );
}

#[tokio::test]
async fn a_shared_process_is_nobodys_share() {
    let mut config = shell("cat");
    (config.shared, config.processes) = (true, 1);
    let processes = processes(config, SHORT);
    let _ends = processes.spawn(&ALICE).expect("there is room");
    assert_eq!(processes.spawn(&ALICE).err(), Some(StdioError::Full(1)));
}

#[tokio::test]
async fn a_command_that_went_away_is_trouble() {
    let mut config = shell("cat");
    config.program = "/nowhere/server".into();
    let health = Arc::<Mutex<Vec<(String, bool)>>>::default();
    let told = health.clone();
    let events = move |event: UpstreamEvent<'_>| {
        if let UpstreamEvent::Health { endpoint, healthy } = event {
            lock(&told).push((endpoint.to_owned(), healthy));
        }
    };
    let processes = Processes::new("r", config, Arc::new(events));
    let error = processes.spawn(&ALICE).err().expect("it isn't there");
    assert_eq!(error, StdioError::Start("entity not found".to_owned()));
    assert!(!error.to_string().contains("/nowhere"), "{error}");
    assert!(processes.trouble().expect("it isn't there").contains("executed"));
    assert_eq!(
        processes.state(),
        ProcessesState {
            running: 0,
            most: 8,
            died: 1
        }
    );
    assert!(matches!(
        processes.spawn(&ALICE).err(),
        Some(StdioError::Waiting { .. })
    ));
    assert_eq!(*lock(&health), [("stdio:server".to_owned(), false)]);
}

#[tokio::test]
async fn stderr_is_logged_escaped_cut_and_not_without_end() {
    let log = Log::default();
    let _guard = log.start();
    let long = "y".repeat(3000);
    let script = format!(
        "printf 'red \\033[31m \"quoted\"\\n\\n{long}\\n' >&2; yes flooding | head -n 20000 >&2; echo '{{}}'; cat"
    );
    let (processes, writer, mut lines) = run(&script);
    assert_eq!(message(&mut lines).await, "{}");
    drop((writer, lines));
    processes.close().await;
    let text = log.text();
    assert!(text.contains(r#"red \u{1b}[31m \"quoted\""#), "{}", &text[..400]);
    let cut = format!("{}…", "y".repeat(1024));
    assert!(text.contains(&cut) && !text.contains(&"y".repeat(1025)));
    let shown = text.matches("flooding").count();
    let dropped: Vec<usize> = text
        .lines()
        .filter_map(|line| line.split_once(" lines dropped")?.0.rsplit(' ').next())
        .map(|count| count.parse().expect("a number"))
        .collect();
    assert_eq!(shown + dropped.iter().sum::<usize>(), 20_000, "{dropped:?}");
    assert!(
        shown <= 50 * (dropped.len() + 1),
        "{shown} lines in {} windows",
        dropped.len() + 1
    );
    assert!(!dropped.is_empty());
}

#[tokio::test]
async fn a_flood_on_stderr_slows_nobody_but_the_flooder() {
    let log = Log::default();
    let _guard = log.start();
    let (processes, writer, mut lines) = run("yes >&2 & cat");
    for _ in 0..1000 {
        send(&writer, r#"{"a":1}"#).await.expect("it is read");
        assert_eq!(message(&mut lines).await, r#"{"a":1}"#);
    }
    drop((writer, lines));
    timeout(LONG, processes.close())
        .await
        .expect("the flooder ends as well");
    assert!(log.text().lines().count() < 1000);
}

#[tokio::test]
async fn processes_outlive_a_reload_that_leaves_their_command_alone() {
    use crate::upstream::{Upstream, testing};
    let upstream = |script: &str, before: Option<&Upstream>| {
        let mut config = testing::config(&[]);
        config.stdio = Some(shell(script));
        Upstream::new("r", &config, before, Arc::new(|_| {})).expect("no files to read")
    };
    let first = upstream("cat", None);
    let same = upstream("cat", Some(&first));
    let other = upstream("cat; cat", Some(&first));
    let of = |upstream: &Upstream| upstream.processes().expect("it is a command").clone();
    assert!(Arc::ptr_eq(&of(&first), &of(&same)));
    assert!(!Arc::ptr_eq(&of(&first), &of(&other)));
    assert!(first.any_healthy());
    assert_eq!(first.endpoints()[0].url, "stdio:sh");
    // A request can't be sent to a command, whoever asks.
    let sent = first
        .send(&testing::permit(), &testing::credential(), testing::get())
        .await;
    assert!(sent.is_err());
}
