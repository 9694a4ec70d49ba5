//! What the gate costs: it with everything on, a bare hyper-util proxy and nginx in front of the same server, one run.
//!
//! ```text
//! cargo bench --bench load               # minutes of numbers
//! cargo bench --bench load -- --smoke    # seconds; fails on errors, never on timing
//! cargo bench --bench load -- --overload # twice what a slow server can do; fails under 80 % of its peak
//! cargo bench --bench load -- --soak     # a quarter of an hour of mishaps; fails when anybody would notice
//! ```
//!
//! 1. Every contestant is a process of its own and gets the same requests, bearer and all, over as many connections.
//!    The rounds take turns, and the median of the rounds is shown, so that a busy minute of the machine hurts all alike.
//! 2. CPU is what `/proc` charges the contestant (all its processes), divided by the requests answered.
//! 3. The gate verifies an ES256 bearer, decides by tool rules, counts metrics and audits to a file.
//! 4. `bridged` is the gate between the same modern client and a legacy server.
//! 5. `direct` is the server alone: what the load generator can do at most.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use portcullis::cli::demo::issuer::DevelopmentIssuer;
use portcullis::clock::Clock;

use crate::contestant::{Contestant, Kind};
use crate::table::{Measure, Table};

mod bare;
mod client;
mod contestant;
mod overload;
mod soak;
mod table;
mod upstream;

/// As the gate has it, so that no difference is the allocator's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How much is measured.
struct Plan {
    rounds: usize,
    warm_up: Duration,
    round: Duration,
    connections: usize,
    /// Replies of 1,000 events a round.
    replies: usize,
    /// Events one millisecond apart, for their latency.
    paced: usize,
    idle_streams: usize,
    /// Replies of 10 MiB read at the same time; each must need less than it holds.
    big: usize,
}

const FULL: Plan = Plan {
    rounds: 5,
    warm_up: Duration::from_secs(1),
    round: Duration::from_secs(4),
    connections: 32,
    replies: 400,
    paced: 2_000,
    idle_streams: 1_000,
    big: 8,
};

const SMOKE: Plan = Plan {
    rounds: 1,
    warm_up: Duration::from_millis(50),
    round: Duration::from_millis(200),
    connections: 4,
    replies: 2,
    paced: 20,
    idle_streams: 20,
    big: 1,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime starts");
    if let [mode, target] = arguments.as_slice()
        && mode == bare::ARGUMENT
    {
        runtime.block_on(bare::run(target));
        return ExitCode::SUCCESS;
    }
    // `cargo bench` says `--bench`; `cargo test --all-targets` says nothing and wants to be done soon.
    let asked = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let smoke = asked("--smoke") || asked("--test") || !asked("--bench");
    let ran = runtime.block_on(async {
        if asked("--overload") {
            return overload::run().await;
        }
        if asked("--soak") {
            return soak::run(if smoke { &soak::SMOKE } else { &soak::FULL }).await;
        }
        print!("{}", compare(if smoke { &SMOKE } else { &FULL }).await?);
        Ok(())
    });
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn compare(plan: &Plan) -> Result<Table, Failure> {
    let upstream = upstream::start().await?;
    let issuer = DevelopmentIssuer::start(Clock::system()).await?;
    let hour = Duration::from_secs(3600);
    let token = issuer.mint("bench", contestant::AUDIENCE, &[], &["caller"], hour);

    let mut table = Table::default();
    let mut contestants = Vec::new();
    for kind in [Kind::Direct, Kind::Bare, Kind::Nginx, Kind::Gate, Kind::Bridged] {
        let Some(contestant) = Contestant::start(kind, upstream.address(), &issuer).await? else {
            println!("{}: not installed, left out", kind.name());
            continue;
        };
        let client = client::Client::new(contestant.address, &token);
        // The first request waits for the keys; the rest is measured.
        client.call_once().await?;
        // What the bridge keeps is a caller's, not a request's.
        if kind != Kind::Bridged {
            memory(plan, &contestant, &client, &mut table).await?;
        }
        contestants.push((contestant, client));
    }

    let mut rounds: BTreeMap<(Kind, Measure), Vec<f64>> = BTreeMap::new();
    for _ in 0..plan.rounds {
        for (contestant, client) in &contestants {
            let mut note = |measure, value| {
                rounds.entry((contestant.kind, measure)).or_default().push(value);
            };
            // The server shares its process with the load generator, so its CPU says nothing.
            let counted = contestant.kind != Kind::Direct;
            client.load(plan.connections, plan.warm_up).await?;
            let before = contestant.cpu()?;
            let load = client.load(plan.connections, plan.round).await?;
            let spent = contestant.cpu()?.saturating_sub(before).as_secs_f64() * 1e6;
            note(Measure::RequestsPerSecond, load.per_second());
            note(Measure::P50, load.percentile(0.50));
            note(Measure::P99, load.percentile(0.99));
            if counted {
                note(Measure::CpuPerRequest, spent / load.requests() as f64);
            }

            let before = contestant.cpu()?;
            client.replies(plan.replies).await?;
            let spent = contestant.cpu()?.saturating_sub(before).as_secs_f64() * 1e6;
            if counted {
                note(Measure::CpuPerReply, spent / plan.replies as f64);
            }
            note(Measure::EventLatency, client.event_latency(plan.paced).await?);
        }
    }
    for ((kind, measure), values) in rounds {
        table.set(kind, measure, median(values));
    }
    for (contestant, _) in contestants {
        contestant.stop();
    }
    issuer.stop().await;
    upstream.stop().await;
    Ok(table)
}

/// What a contestant needs at rest, for idle streams and for big replies; before any load has made its heap large.
async fn memory(
    plan: &Plan,
    contestant: &Contestant,
    client: &client::Client,
    table: &mut Table,
) -> Result<(), Failure> {
    let Some(idle) = contestant.resident()? else {
        return Ok(());
    };
    let mebibytes = |bytes: u64| bytes as f64 / (1024.0 * 1024.0);
    table.set(
        contestant.kind,
        Measure::Start,
        contestant.started_in.as_secs_f64() * 1e3,
    );
    table.set(contestant.kind, Measure::IdleMemory, mebibytes(idle));

    client.big_replies(plan.big).await?;
    if let Some(peak) = contestant.peak()? {
        table.set(
            contestant.kind,
            Measure::BigReplies,
            mebibytes(peak.saturating_sub(idle)) / plan.big as f64,
        );
    }

    // Each is a file at both of its ends, and both are this process.
    let count = plan.idle_streams.min(contestant::open_files()? / 4);
    let before = contestant.resident()?.unwrap_or(idle);
    let streams = client.idle_streams(count).await?;
    let with = contestant.resident()?.unwrap_or(before);
    let each = with.saturating_sub(before) as f64 / count as f64;
    table.set(contestant.kind, Measure::StreamMemory, each / 1024.0);
    drop(streams);
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
