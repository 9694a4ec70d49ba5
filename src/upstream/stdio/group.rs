//! A process and its group: started, signalled and reaped.
//!
//! While the leader isn't reaped its number is its own, and so is the group's: signals are sent before, never after.
//! Where the gate is its machine's first process, as in a container without an init, the others of the group become its
//! children when their parents are gone, and are reaped as well.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process_group, waitid, waitpgid};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio::time::timeout;

use crate::config;

/// How long is waited for orphans that were killed: they may sleep where no signal reaches them.
const ORPHANS: Duration = Duration::from_secs(1);

/// A process that leads a group. Dropped before it is reaped, the group is killed.
pub struct Group {
    child: Child,
    leader: Pid,
    /// Tells that some child of ours ended.
    ended: Signals,
}

/// Our ends of its standard streams.
pub struct Pipes {
    pub stdin: ChildStdin,
    pub stdout: ChildStdout,
    pub stderr: ChildStderr,
}

impl Group {
    /// Starts the command, with its own environment and directory and nothing else of ours.
    ///
    /// # Errors
    /// The system's.
    pub fn start(config: &config::Stdio) -> io::Result<(Self, Pipes)> {
        // Before there is a process, so that its end isn't missed.
        let ended = signal(SignalKind::child())?;
        let environment = config.environment.iter();
        let mut child = Command::new(&config.program)
            .args(&config.arguments)
            .env_clear()
            .envs(environment.map(|(name, value)| (name, value.expose())))
            .current_dir(&config.directory)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let leader = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
        let pipes = Pipes {
            stdin: child.stdin.take().expect("it was asked for"),
            stdout: child.stdout.take().expect("it was asked for"),
            stderr: child.stderr.take().expect("it was asked for"),
        };
        let group = Self {
            child,
            leader: leader.expect("nobody has waited for it"),
            ended,
        };
        Ok((group, pipes))
    }

    /// The process's number.
    pub fn id(&self) -> i32 {
        self.leader.as_raw_pid()
    }

    /// Waits until the leader has ended, without reaping it.
    pub async fn ended(&mut self) {
        let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        // An error would mean that it is reaped already, and nobody else does that.
        while let Ok(None) = waitid(WaitId::Pid(self.leader), peek) {
            self.ended.recv().await;
        }
    }

    /// Signals every process of the group. Nobody left is no failure.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process_group(self.leader, signal);
    }

    /// Kills what is left of the group, and reaps the leader, and whoever else of it is our child by now.
    pub async fn end(mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL);
        let status = self.child.wait().await;
        let _ = timeout(ORPHANS, self.reap_orphans()).await;
        status
    }

    async fn reap_orphans(&mut self) {
        // None of them means an error, which is what it is nearly always.
        while let Ok(reaped) = waitpgid(self.leader, WaitOptions::NOHANG) {
            if reaped.is_none() {
                self.ended.recv().await;
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The number is known for as long as it isn't reaped. tokio then kills and reaps the leader.
        if self.child.id().is_some() {
            self.signal(Signal::KILL);
        }
    }
}
