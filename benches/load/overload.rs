//! What is left of a server's work when twice as much is asked of it as it can do.
//!
//! 1. The server does eight calls at a time, 10 ms each: that, measured with as many callers as it has places, is the peak.
//! 2. Then twice the peak arrives, whether or not anything is answered: callers in the world don't wait for each other.
//! 3. An answer is good within half a second; later its caller has given up. Nobody comes back when told to.
//! 4. The gate with its default of 10,000 requests takes all in, and shows what happens to one that doesn't shed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use portcullis::cli::demo::issuer::DevelopmentIssuer;
use portcullis::clock::Clock;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::client::Client;
use crate::contestant::{self, Contestant, Kind};
use crate::{Failure, upstream};

const TIME: Duration = Duration::from_secs(6);
const IN_TIME: Duration = Duration::from_millis(500);
/// Callers of the peak: enough to keep the server busy.
const CALLERS: usize = 16;
/// Each takes 250 requests at once.
const CONNECTIONS: usize = 32;
/// The share of the peak that must be left.
const LEFT: f64 = 0.8;

#[derive(Default)]
struct Counts {
    good: AtomicUsize,
    late: AtomicUsize,
    shed: AtomicUsize,
    failed: AtomicUsize,
}

/// Measures both gates.
///
/// # Errors
/// When the one that sheds keeps less than 80 % of the peak.
pub async fn run() -> Result<(), Failure> {
    let upstream = upstream::start().await?;
    let issuer = DevelopmentIssuer::start(Clock::system()).await?;
    let hour = Duration::from_secs(3600);
    let token = issuer.mint("bench", contestant::AUDIENCE, &[], &["caller"], hour);
    let mut left = 0.0;
    for kind in [Kind::Gate, Kind::Shedding] {
        let gate = Contestant::start(kind, upstream.address(), &issuer)
            .await?
            .ok_or("the gate is built with this")?;
        let client = Client::new(gate.address, &token);
        client.call_once().await?;
        let peak = peak(&client).await?;
        let (goodput, counts) = twice(&client, peak).await?;
        left = goodput / peak;
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        println!(
            "{}: peak {peak:.0}/s; at twice that {goodput:.0}/s in time ({:.0} %), {} late, {} shed, {} failed",
            kind.name(),
            left * 100.0,
            count(&counts.late),
            count(&counts.shed),
            count(&counts.failed),
        );
        gate.stop();
    }
    issuer.stop().await;
    upstream.stop().await;
    if left < LEFT {
        return Err(format!("{:.0} % of the peak are left, less than 80 %", left * 100.0).into());
    }
    Ok(())
}

/// Good answers a second when callers wait for each answer.
async fn peak(client: &Client) -> Result<f64, Failure> {
    let mut callers = JoinSet::new();
    let begun = Instant::now();
    let counts = Arc::new(Counts::default());
    for _ in 0..CALLERS {
        let (client, counts) = (client.clone(), counts.clone());
        callers.spawn(async move {
            let connection = connect(&client).await?;
            while begun.elapsed() < TIME {
                call(&client, connection.clone(), &counts).await;
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    Ok(counts.good.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64())
}

/// Good answers a second when twice `peak` arrives.
async fn twice(client: &Client, peak: f64) -> Result<(f64, Arc<Counts>), Failure> {
    let mut connections = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        connections.push(connect(client).await?);
    }
    let counts = Arc::new(Counts::default());
    let mut calls = JoinSet::new();
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let begun = Instant::now();
    let mut sent = 0;
    while begun.elapsed() < TIME {
        ticks.tick().await;
        // What is due by now, so that a late tick makes up for it.
        let due = (begun.elapsed().as_secs_f64() * peak * 2.0) as usize;
        while sent < due {
            let (client, counts) = (client.clone(), counts.clone());
            let connection = connections[sent % CONNECTIONS].clone();
            calls.spawn(async move { call(&client, connection, &counts).await });
            sent += 1;
        }
    }
    let took = begun.elapsed();
    let good = counts.good.load(Ordering::Relaxed);
    // Nobody is interested in the rest, but the next measurement wants the server idle.
    while calls.join_next().await.is_some() {}
    Ok((good as f64 / took.as_secs_f64(), counts))
}

async fn connect(client: &Client) -> Result<SendRequest<Full<Bytes>>, Failure> {
    let stream = TcpStream::connect(client.address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    // Its end shows at the sender.
    tokio::spawn(connection);
    Ok(sender)
}

async fn call(client: &Client, mut connection: SendRequest<Full<Bytes>>, counts: &Counts) {
    let begun = Instant::now();
    let answer = async {
        connection.ready().await?;
        let mut request = client.request("slow", &json!({}))?;
        // HTTP/2 has it whole.
        *request.uri_mut() = format!("http://{}/mcp", client.address).parse()?;
        let response = connection.send_request(request).await?;
        let status = response.status();
        response.into_body().collect().await?;
        Ok::<_, Failure>(status)
    };
    let counter = match answer.await {
        Ok(StatusCode::OK) if begun.elapsed() <= IN_TIME => &counts.good,
        Ok(StatusCode::OK) => &counts.late,
        Ok(StatusCode::SERVICE_UNAVAILABLE) => &counts.shed,
        _ => &counts.failed,
    };
    counter.fetch_add(1, Ordering::Relaxed);
}
