//! Fifteen minutes of a bad day: what must not be noticed by anybody who calls.
//!
//! 1. Thousands of streams stand open and two hundred calls a second arrive, over two servers. Every minute one of the
//!    servers dies and comes back at the same address, the issuer's key is replaced and the one before it withdrawn, and
//!    the configuration is changed and read again.
//! 2. A call may fail only if it was under way when a server was killed, or was sent before the gate had heard of all the
//!    connections that ended with it: the gate can't know whether that server did it.
//! 3. A stream may end only with its server, or with the key that its token was signed with; it is opened again at once,
//!    with a new token, and that must succeed.
//! 4. Memory is looked at every second. After two minutes (a seventh of a shorter soak) its floor mustn't rise any more:
//!    what is above the floor comes with two thousand streams that are opened again at once, and goes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use portcullis::cli::demo::issuer::DevelopmentIssuer;
use portcullis::clock::Clock;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::client::Client;
use crate::contestant::{self, Contestant};
use crate::{Failure, upstream};

/// How much is asked of the gate.
pub struct Plan {
    time: Duration,
    /// Between two deaths of a server; as often the key changes, and as often the configuration.
    mishaps: Duration,
    streams: usize,
    calls_per_second: u32,
    /// How much higher the floor of the last third may be than that of the first: what is noise.
    growth: f64,
}

pub const FULL: Plan = Plan {
    time: Duration::from_secs(15 * 60),
    mishaps: Duration::from_secs(60),
    streams: 2_000,
    calls_per_second: 200,
    growth: 1.1,
};

/// The issuer is asked again for its keys every ten seconds at most, and a reload asks too: keys can't change more often.
pub const SMOKE: Plan = Plan {
    time: Duration::from_secs(30),
    mishaps: Duration::from_secs(13),
    streams: 40,
    calls_per_second: 50,
    // So soon the heap is still finding its size.
    growth: 2.0,
};

/// Callers at once: more than two hundred calls a second need even when each takes a tenth of a second.
const CALLERS: usize = 64;
/// One principal a hundred streams.
const STREAMS_EACH: usize = 100;
/// Until the gate has heard of every connection that ended with its server.
const HEARD: Duration = Duration::from_secs(1);
/// How long a killed server stays away.
const AWAY: Duration = Duration::from_secs(3);
/// How long opening a stream may take: the keys may have to be fetched.
const REOPENING: Duration = Duration::from_secs(10);

/// What is going on, for those who judge whether a failure was to be expected.
struct Day {
    issuer: DevelopmentIssuer,
    /// Spans in which a server was killed, by the time its last connection was gone.
    kills: Mutex<Vec<(Instant, Instant)>>,
    token: Mutex<String>,
    answered: AtomicUsize,
    /// Failed calls that were under way on a killed server.
    excused: AtomicUsize,
    open: AtomicUsize,
    reopened: AtomicUsize,
    /// What must not have happened, and how often.
    faults: Mutex<BTreeMap<String, usize>>,
}

impl Day {
    fn fault(&self, what: String) {
        *lock(&self.faults).entry(what).or_default() += 1;
    }

    fn was_killed_between(&self, from: Instant, to: Instant) -> bool {
        lock(&self.kills)
            .iter()
            .any(|(begun, ended)| *begun <= to && from <= *ended)
    }

    fn mint(&self, subject: &str) -> String {
        let hour = Duration::from_secs(3600);
        self.issuer.mint(subject, contestant::AUDIENCE, &[], &["caller"], hour)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the day pass, and says how it was.
///
/// # Errors
/// When a call or a stream failed that shouldn't have, a reload was missed, or memory kept growing.
pub async fn run(plan: &Plan) -> Result<(), Failure> {
    let mut servers = [Some(upstream::start().await?), Some(upstream::start().await?)];
    let addresses: Vec<_> = servers.iter().flatten().map(|server| server.address()).collect();
    let issuer = DevelopmentIssuer::start(Clock::system()).await?;
    let gate = Contestant::soaked(&addresses, issuer.issuer()).await?;
    let day = Arc::new(Day {
        token: Mutex::new(String::new()),
        issuer,
        kills: Mutex::default(),
        answered: AtomicUsize::new(0),
        excused: AtomicUsize::new(0),
        open: AtomicUsize::new(0),
        reopened: AtomicUsize::new(0),
        faults: Mutex::default(),
    });
    let token = day.mint("caller");
    Client::new(gate.address, &token).call_once().await?;
    *lock(&day.token) = token;

    let mut tasks = JoinSet::new();
    for index in 0..plan.streams {
        tasks.spawn(keep_open(
            day.clone(),
            gate.address,
            format!("watcher-{}", index / STREAMS_EACH),
        ));
    }
    let begun = Instant::now();
    while day.open.load(Ordering::Relaxed) < plan.streams {
        if begun.elapsed() > Duration::from_secs(60) {
            return Err(format!(
                "only {} streams are open after a minute",
                day.open.load(Ordering::Relaxed)
            )
            .into());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!(
        "{} streams open after {:.1} s",
        plan.streams,
        begun.elapsed().as_secs_f64()
    );

    let (wanted, due) = mpsc::unbounded_channel();
    let due = Arc::new(tokio::sync::Mutex::new(due));
    for _ in 0..CALLERS {
        tasks.spawn(call(day.clone(), gate.address, due.clone()));
    }
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / plan.calls_per_second);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut mishap = tokio::time::interval_at((begun + plan.mishaps).into(), plan.mishaps);
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    let mut memory = Vec::new();
    let mut mishaps = 0;
    let mut away: Option<(usize, Instant)> = None;
    while begun.elapsed() < plan.time {
        tokio::select! {
            _ = ticks.tick() => {
                // Who can't send finds no receiver: all callers have failed, and said so.
                let _ = wanted.send(Instant::now());
            }
            // The last one has time to be gone through.
            _ = mishap.tick(), if begun.elapsed() + plan.mishaps / 6 < plan.time => {
                let victim = mishaps % servers.len();
                let killing = Instant::now();
                // Noted before it dies: whoever meets it dying meets it before it is dead.
                lock(&day.kills).push((killing, killing + AWAY));
                if let Some(server) = servers[victim].take() {
                    server.stop().await;
                }
                if let Some((_, heard)) = lock(&day.kills).last_mut() {
                    *heard = Instant::now() + HEARD;
                }
                away = Some((victim, Instant::now() + AWAY));
                // The key that signed until now stays published until the next change.
                day.issuer.withdraw_old_keys();
                day.issuer.rotate();
                *lock(&day.token) = day.mint("caller");
                mishaps += 1;
                gate.reconfigure(mishaps)?;
            }
            _ = seconds.tick() => {
                memory.push(gate.resident()?.unwrap_or_default());
                if let Some((victim, back)) = away && Instant::now() >= back {
                    servers[victim] = Some(upstream::start_at(addresses[victim].port()).await?);
                    away = None;
                }
                if memory.len() % 60 == 0 {
                    println!(
                        "{:>3} min: {} calls, {} failed on a killed server, {} streams open, {} reopened, {:.1} MiB",
                        memory.len() / 60,
                        day.answered.load(Ordering::Relaxed),
                        day.excused.load(Ordering::Relaxed),
                        day.open.load(Ordering::Relaxed),
                        day.reopened.load(Ordering::Relaxed),
                        mebibytes(*memory.last().unwrap_or(&0)),
                    );
                }
            }
        }
    }
    drop(wanted);
    let reloads = gate.reloads().await?;
    tasks.shutdown().await;
    gate.stop();
    judge(&day, &memory, plan.growth, mishaps, reloads)
}

fn judge(day: &Day, memory: &[u64], growth: f64, mishaps: usize, reloads: usize) -> Result<(), Failure> {
    let settled = &memory[memory.len() * 2 / 15..];
    let third = settled.len() / 3;
    let floor = |samples: &[u64]| mebibytes(samples.iter().copied().min().unwrap_or_default());
    let (first, last) = (floor(&settled[..third]), floor(&settled[settled.len() - third..]));
    let most = mebibytes(settled.iter().copied().max().unwrap_or_default());
    println!(
        "{} calls answered, {} failed on a killed server; {} streams reopened; {mishaps} kills, rotations and reloads; \
         memory at least {first:.1} MiB in the first third after the start, {last:.1} in the last, {most:.1} at most",
        day.answered.load(Ordering::Relaxed),
        day.excused.load(Ordering::Relaxed),
        day.reopened.load(Ordering::Relaxed),
    );
    let mut faults = lock(&day.faults).clone();
    if reloads != mishaps {
        faults.insert(format!("{reloads} reloads of {mishaps} succeeded"), 1);
    }
    if last > first * growth {
        faults.insert(format!("memory's floor rose from {first:.1} to {last:.1} MiB"), 1);
    }
    if faults.is_empty() {
        return Ok(());
    }
    for (fault, times) in &faults {
        eprintln!("{times} times: {fault}");
    }
    Err(format!("{} kinds of things went wrong", faults.len()).into())
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}

/// A caller: takes what is due, on a connection of its own.
async fn call(
    day: Arc<Day>,
    gate: std::net::SocketAddr,
    due: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Instant>>>,
) {
    let mut client = Client::new(gate, "");
    let mut connection = None;
    loop {
        let Some(at) = due.lock().await.recv().await else {
            return;
        };
        let token = lock(&day.token).clone();
        client.authorize(&token);
        let begun = Instant::now();
        let answer = async {
            if connection.is_none() {
                connection = Some(client.connect().await?);
            }
            client.small(connection.as_mut().expect("it was just made")).await
        };
        match answer.await {
            Ok(()) => {
                day.answered.fetch_add(1, Ordering::Relaxed);
                if at.elapsed() > REOPENING {
                    day.fault("a call waited over ten seconds".to_owned());
                }
            }
            Err(_) if day.was_killed_between(begun, Instant::now()) => {
                day.excused.fetch_add(1, Ordering::Relaxed);
                connection = None;
            }
            Err(error) => {
                day.fault(format!("a call failed: {error}"));
                connection = None;
            }
        }
    }
}

/// Keeps one stream open, whatever happens.
async fn keep_open(day: Arc<Day>, gate: std::net::SocketAddr, subject: String) {
    loop {
        let client = Client::new(gate, &day.mint(&subject));
        let begun = Instant::now();
        let opened = tokio::time::timeout(REOPENING, client.idle_streams(1)).await;
        let mut stream = match opened {
            Ok(Ok(mut streams)) => streams.pop().expect("one was asked for"),
            Ok(Err(_)) if day.was_killed_between(begun, Instant::now()) => continue,
            Ok(Err(error)) => {
                day.fault(format!("a stream can't be opened: {error}"));
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            Err(_) => {
                day.fault("a stream wasn't open after ten seconds".to_owned());
                continue;
            }
        };
        day.open.fetch_add(1, Ordering::Relaxed);
        // Comments and nothing else, until it ends.
        while let Some(Ok(_)) = stream.1.frame().await {}
        day.open.fetch_sub(1, Ordering::Relaxed);
        day.reopened.fetch_add(1, Ordering::Relaxed);
    }
}
