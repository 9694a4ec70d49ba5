//! Servers that are commands: processes of a route, spoken to over stdin and stdout.
//!
//! 1. A process has the environment of its configuration and nothing of the gate's (r20), and leads a process group of its
//!    own.
//! 2. A line is a message. What a process writes is bounded: a line at 16 MiB, lines that are no message at 100 in a row;
//!    beyond it is killed. What it doesn't read is bounded too, and holds up nobody but its own callers.
//! 3. It is ended with its group: stdin is closed, after 2 s comes SIGTERM, after 2 more SIGKILL; at once where it broke a
//!    bound. The group's leader is reaped last, so that no signal ever meets a number that somebody else has by now. What
//!    leaves the group (`setsid`) leaves our reach.
//! 4. Every process ends with the [`Processes`] that it was started from, and those with the configuration that named them.
//! 5. They are bounded: so many on the route, of which one owner has a quarter at most.
//! 6. A process that ends by itself within 10 s of its start holds its owner up before the next one: half a second,
//!    doubling to 30 s. Nobody else waits, for what one caller asked may be what killed it.
//!
//! What they write to stderr goes to the log: `stderr`.

mod backoff;
mod child;
mod group;
mod lines;
mod stderr;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use child::ChildWriter;
pub use lines::ChildLines;

use super::{UpstreamEvent, UpstreamEvents};
use crate::config::{self, executable};
use backoff::Backoff;

/// More than the end of a process takes, unless it sleeps where no signal reaches it.
const UNKILLABLE: Duration = Duration::from_secs(10);

/// Whose a process is: the hash of issuer and subject, or anything constant where one is shared.
pub type Owner = [u8; 32];

/// Why a process can't be used. Texts are for clients: they name neither command nor environment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StdioError {
    #[error("the server's process can't be started: {0}; see the gateway's log")]
    Start(String),
    #[error("{0} processes of the server run already; try again when one has ended")]
    Full(usize),
    #[error("the server's process ended ({status}) soon after its start; it is started again in {} s", after.as_secs() + 1)]
    Waiting { status: Arc<str>, after: Duration },
    #[error("the server's process ended: {0}")]
    Ended(Arc<str>),
    #[error("the server's process took nothing for too long")]
    Stalled,
    #[error("the server wrote a line over 16 MiB")]
    TooLong,
    #[error("the server's process writes what is no JSON-RPC")]
    Nonsense,
    #[error("the server's process was ended by the gateway")]
    Closed,
}

/// How long a process may take.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// To read a message.
    write: Duration,
    /// To end once its stdin is closed, and again once it got SIGTERM.
    grace: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            write: Duration::from_secs(30),
            grace: Duration::from_secs(2),
        }
    }
}

/// The processes of one route. All of them end when this is dropped.
pub struct Processes {
    config: config::Stdio,
    shared: Arc<Shared>,
    patience: Patience,
    closing: CancellationToken,
    _ended_when_dropped: DropGuard,
}

/// What processes outlive their [`Processes`] with.
struct Shared {
    route: Arc<str>,
    /// For people: the program's name.
    name: Arc<str>,
    /// A permit a process that isn't reaped yet.
    places: Arc<Semaphore>,
    owners: Mutex<HashMap<Owner, OwnerState>>,
    died: AtomicU64,
    /// Until when the route counts as unhealthy while nothing runs, and why.
    trouble: Mutex<Option<(Instant, Arc<str>)>>,
    events: UpstreamEvents,
}

/// Kept for as long as it says anything.
#[derive(Default)]
struct OwnerState {
    running: usize,
    backoff: Backoff,
}

/// A route's processes, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessesState {
    pub running: usize,
    /// How many may run.
    pub most: usize,
    /// How many ended without being asked to, or could not be started.
    pub died: u64,
}

impl Processes {
    /// Processes of a route; none is started yet.
    pub fn new(route: &str, config: config::Stdio, events: UpstreamEvents) -> Arc<Self> {
        Self::with(route, config, events, Patience::default())
    }

    fn with(route: &str, config: config::Stdio, events: UpstreamEvents, patience: Patience) -> Arc<Self> {
        // A process of the same user could read the gate's environment and memory in `/proc`: what can't be dumped is
        // root's there.
        if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
            tracing::warn!(%error, "the gate's own memory can't be hidden from the servers' processes");
        }
        let program = config.program.file_name().unwrap_or(config.program.as_os_str());
        let closing = CancellationToken::new();
        Arc::new(Self {
            shared: Arc::new(Shared {
                route: route.into(),
                name: format!("stdio:{}", program.to_string_lossy()).into(),
                places: Arc::new(Semaphore::new(config.processes)),
                owners: Mutex::default(),
                died: AtomicU64::new(0),
                trouble: Mutex::default(),
                events,
            }),
            config,
            patience,
            _ended_when_dropped: closing.clone().drop_guard(),
            closing,
        })
    }

    /// What these are started from.
    pub fn config(&self) -> &config::Stdio {
        &self.config
    }

    /// For the audit and operators: `stdio:` and the program's name.
    pub fn name(&self) -> &Arc<str> {
        &self.shared.name
    }

    /// Starts one. It ends when either half is dropped.
    ///
    /// # Errors
    /// It can't be started, or not now.
    pub fn spawn(&self, owner: &Owner) -> Result<(ChildWriter, ChildLines), StdioError> {
        let shared = &self.shared;
        if self.closing.is_cancelled() {
            return Err(StdioError::Closed);
        }
        shared.may_start(owner)?;
        let full = || StdioError::Full(self.config.processes);
        let place = shared.places.clone().try_acquire_owned().map_err(|_| full())?;
        let tenancy = Tenancy::enter(shared, *owner, self.most_of_one())?;
        match child::start(&self.config, tenancy, place, self.closing.child_token(), self.patience) {
            Ok(ends) => {
                shared.report(true);
                Ok(ends)
            }
            Err((error, tenancy)) => {
                tracing::warn!(route = &*shared.route, program = %self.config.program.display(), %error, "cannot start the server's process");
                tenancy.died(Duration::ZERO, "it could not be started".into());
                Err(StdioError::Start(error.kind().to_string()))
            }
        }
    }

    /// One owner's share, as of standing streams.
    fn most_of_one(&self) -> usize {
        match self.config.shared {
            true => self.config.processes,
            false => self.config.processes.div_ceil(4),
        }
    }

    /// How many run, and how it went.
    pub fn state(&self) -> ProcessesState {
        ProcessesState {
            running: self.running(),
            most: self.config.processes,
            died: self.shared.died.load(Ordering::Relaxed),
        }
    }

    fn running(&self) -> usize {
        self.config.processes - self.shared.places.available_permits()
    }

    /// Why a process would not do now; `None`: it would, as far as can be told.
    pub fn trouble(&self) -> Option<Arc<str>> {
        if !executable(&self.config.program) {
            return Some("the command is no file that can be executed".into());
        }
        // While one runs the command is no broken one: whatever died, others are served.
        if self.running() > 0 {
            return None;
        }
        let trouble = lock(&self.shared.trouble);
        let (until, why) = trouble.as_ref()?;
        (*until > Instant::now()).then(|| why.clone())
    }

    /// Says whether one would do.
    pub fn report(&self) {
        self.shared.report(self.trouble().is_none());
    }

    /// Ends them all, and waits until they are reaped, save one that not even SIGKILL ends. No more are started.
    pub async fn close(&self) {
        self.closing.cancel();
        let all = u32::try_from(self.config.processes).expect("at most a million");
        let _ = timeout(UNKILLABLE, self.shared.places.acquire_many(all)).await;
    }
}

impl Shared {
    fn may_start(&self, owner: &Owner) -> Result<(), StdioError> {
        match lock(&self.owners).get(owner) {
            Some(state) => state.backoff.check(Instant::now()),
            None => Ok(()),
        }
    }

    fn report(&self, healthy: bool) {
        (self.events)(UpstreamEvent::Health {
            endpoint: &self.name,
            healthy,
        });
    }
}

/// An owner's process that isn't reaped yet.
struct Tenancy {
    shared: Arc<Shared>,
    owner: Owner,
}

impl Tenancy {
    fn enter(shared: &Arc<Shared>, owner: Owner, most: usize) -> Result<Self, StdioError> {
        let mut owners = lock(&shared.owners);
        let state = owners.entry(owner).or_default();
        // An entry that is new has room: `most` is never zero.
        if state.running >= most {
            return Err(StdioError::Full(most));
        }
        state.running += 1;
        Ok(Self {
            shared: shared.clone(),
            owner,
        })
    }

    /// It ended by itself, so long after its start.
    fn died(&self, lived: Duration, status: Arc<str>) {
        self.shared.died.fetch_add(1, Ordering::Relaxed);
        let until = {
            let mut owners = lock(&self.shared.owners);
            let state = owners.entry(self.owner).or_default();
            state.backoff.died(Instant::now(), lived, status.clone())
        };
        if let Some(until) = until {
            *lock(&self.shared.trouble) = Some((until, status));
            self.shared.report(false);
        }
    }
}

impl Drop for Tenancy {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut owners = lock(&self.shared.owners);
        if let Some(state) = owners.get_mut(&self.owner) {
            state.running -= 1;
        }
        // Whoever holds anybody up was written down at some such moment, so that here is where it is forgotten.
        owners.retain(|_, state| state.running > 0 || state.backoff.matters(now));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
