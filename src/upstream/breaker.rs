//! Leaves an endpoint alone that keeps failing, and finds out when it has recovered.
//!
//! 1. What counts is the way to the server: no connection, no head in time, a connection that broke before the head, and
//!    502, 503 and 504, by which whatever stands before the server says the same of it. Every other answer shows that the
//!    server is there and ends the count: 401 and 403 are the credential's affair, other 4xx and JSON-RPC errors the
//!    request's (r25), and so is 500, which servers give for a request they can't handle: one caller's bad request must
//!    not close an endpoint to all others. A caller that goes away says nothing of the server.
//! 2. So many failures in a row, whoever's requests they were, open the breaker: for the cooldown nothing is sent there.
//! 3. After it one request is the probe, and everybody else is turned away until it is answered: an answer closes the
//!    breaker, a failure opens it for another cooldown. A probe that is given up, however that comes about, frees its place.
//!    One that waits longer than the cooldown lends its place to the next, as calls may take hours; its answer still closes.
//! 4. A request sent before the breaker opened or closed changes nothing any more.
//! 5. Health checks neither open nor close it: they ask for less than requests do. A closed breaker costs a request three
//!    loads; anything else takes the lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{UpstreamEvent, UpstreamEvents};
use crate::config;

/// What is said of a place that will be free as soon as somebody has answered.
const SOON: Duration = Duration::from_secs(1);

/// One endpoint's breaker.
pub struct Breaker {
    settings: config::Breaker,
    /// The endpoint's.
    name: Arc<str>,
    /// `epoch * 4` and how calm it is, as the hot path reads it. Written under the lock.
    glance: AtomicU64,
    state: Mutex<State>,
    events: UpstreamEvents,
}

/// What operators are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    Closed,
    /// A probe is under way.
    HalfOpen,
    /// In its cooldown, or after it before the first request.
    Open,
}

impl BreakerState {
    /// As `/status` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

struct State {
    /// One more whenever the breaker opens or closes.
    epoch: u64,
    /// Number of the latest probe.
    probes: u64,
    phase: Phase,
}

#[derive(Clone, Copy)]
enum Phase {
    Closed { failed: u32 },
    Open { until: Instant },
    Probed { probe: u64, until: Instant },
}

/// Closed, and the last request went well.
const CALM: u64 = 0;
/// Closed, but failures are being counted.
const COUNTING: u64 = 1;
/// Open or probed.
const TRIPPED: u64 = 2;

/// A request that may be sent. Dropped without a word, it says nothing of the endpoint.
#[must_use]
pub struct Pass<'a> {
    breaker: &'a Breaker,
    epoch: u64,
    probe: Option<u64>,
}

impl Breaker {
    /// A closed one, which tells `events` where it stands whenever that changes.
    pub fn new(settings: config::Breaker, name: Arc<str>, events: UpstreamEvents) -> Self {
        Self {
            settings,
            name,
            glance: AtomicU64::new(CALM),
            state: Mutex::new(State {
                epoch: 0,
                probes: 0,
                phase: Phase::Closed { failed: 0 },
            }),
            events,
        }
    }

    /// How long nothing is sent; `None` while a request would be let through. It takes no place.
    pub fn wait(&self) -> Option<Duration> {
        if self.glance.load(Ordering::Acquire) % 4 != TRIPPED {
            return None;
        }
        self.lock().phase.wait()
    }

    /// Lets a request through.
    ///
    /// # Errors
    /// How long nothing is sent.
    pub fn admit(&self) -> Result<Pass<'_>, Duration> {
        let glance = self.glance.load(Ordering::Acquire);
        if glance % 4 != TRIPPED {
            return Ok(self.pass(glance / 4, None));
        }
        let mut state = self.lock();
        if let Some(wait) = state.phase.wait() {
            return Err(wait);
        }
        if matches!(state.phase, Phase::Closed { .. }) {
            return Ok(self.pass(state.epoch, None));
        }
        state.probes += 1;
        state.phase = Phase::Probed {
            probe: state.probes,
            until: Instant::now() + self.settings.cooldown,
        };
        self.publish(&state);
        Ok(self.pass(state.epoch, Some(state.probes)))
    }

    /// Where it stands.
    pub fn state(&self) -> BreakerState {
        self.lock().phase.told()
    }

    /// Tells where it stands, changed or not.
    pub fn report(&self) {
        self.tell(&self.lock());
    }

    fn pass(&self, epoch: u64, probe: Option<u64>) -> Pass<'_> {
        Pass {
            breaker: self,
            epoch,
            probe,
        }
    }

    fn succeeded(&self, pass: &Pass<'_>) {
        // Looked at before the lock is taken: hardly ever is there anything to clear.
        if pass.probe.is_none() && self.glance.load(Ordering::Acquire) % 4 != COUNTING {
            return;
        }
        let mut state = self.lock();
        if state.epoch != pass.epoch {
            return;
        }
        let recovered = !matches!(state.phase, Phase::Closed { .. });
        state.phase = Phase::Closed { failed: 0 };
        if recovered {
            state.epoch += 1;
            tracing::info!(endpoint = &*self.name, "the upstream answers again: its breaker closes");
        }
        self.publish(&state);
    }

    fn failed(&self, pass: &Pass<'_>) {
        let mut state = self.lock();
        if state.epoch != pass.epoch {
            return;
        }
        let failed = match state.phase {
            Phase::Closed { failed } => failed + 1,
            Phase::Probed { probe, .. } if pass.probe == Some(probe) => self.settings.failures.get(),
            // A probe that lost its place: the one that has it decides.
            Phase::Probed { .. } | Phase::Open { .. } => return,
        };
        if failed < self.settings.failures.get() {
            state.phase = Phase::Closed { failed };
        } else {
            let cooldown = self.settings.cooldown;
            tracing::warn!(
                endpoint = &*self.name,
                seconds = cooldown.as_secs_f32(),
                "the upstream keeps failing: its breaker opens"
            );
            state.epoch += 1;
            state.phase = Phase::Open {
                until: Instant::now() + cooldown,
            };
        }
        self.publish(&state);
    }

    /// The place of a probe that nobody waits for any more.
    fn given_up(&self, probe: u64) {
        let mut state = self.lock();
        if matches!(state.phase, Phase::Probed { probe: current, .. } if current == probe) {
            state.phase = Phase::Open { until: Instant::now() };
            self.publish(&state);
        }
    }

    fn publish(&self, state: &State) {
        let calm = match state.phase {
            Phase::Closed { failed: 0 } => CALM,
            Phase::Closed { .. } => COUNTING,
            Phase::Open { .. } | Phase::Probed { .. } => TRIPPED,
        };
        let before = self.glance.swap(state.epoch * 4 + calm, Ordering::Release);
        if before % 4 == TRIPPED || calm == TRIPPED {
            self.tell(state);
        }
    }

    /// Under the lock, so that the last that is told is how it is.
    fn tell(&self, state: &State) {
        (self.events)(UpstreamEvent::Breaker {
            endpoint: &self.name,
            state: state.phase.told(),
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Phase {
    fn wait(self) -> Option<Duration> {
        match self {
            Self::Closed { .. } => None,
            Self::Open { until } => Some(until.saturating_duration_since(Instant::now())),
            Self::Probed { until, .. } => (until > Instant::now()).then_some(SOON),
        }
        .filter(|wait| !wait.is_zero())
    }

    fn told(self) -> BreakerState {
        match self {
            Self::Closed { .. } => BreakerState::Closed,
            Self::Open { .. } => BreakerState::Open,
            Self::Probed { .. } => BreakerState::HalfOpen,
        }
    }
}

impl Pass<'_> {
    /// The endpoint answered.
    pub fn succeeded(mut self) {
        self.breaker.succeeded(&self);
        self.probe = None;
    }

    /// The endpoint didn't.
    pub fn failed(mut self) {
        self.breaker.failed(&self);
        self.probe = None;
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some(probe) = self.probe {
            self.breaker.given_up(probe);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroU32;
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;

    use proptest::prelude::*;
    use tokio::time::advance;

    use super::*;

    const COOLDOWN: Duration = Duration::from_secs(30);

    fn breaker(failures: u32) -> Breaker {
        let settings = config::Breaker {
            failures: NonZeroU32::new(failures).expect("not zero"),
            cooldown: COOLDOWN,
        };
        Breaker::new(settings, "http://h/".into(), Arc::new(|_| {}))
    }

    fn admit(breaker: &Breaker) -> Pass<'_> {
        breaker.admit().unwrap_or_else(|wait| panic!("to wait {wait:?}"))
    }

    fn fail(breaker: &Breaker, times: usize) {
        (0..times).for_each(|_| admit(breaker).failed());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_open_it_and_an_answer_after_the_cooldown_closes_it() {
        let breaker = breaker(3);
        fail(&breaker, 2);
        admit(&breaker).succeeded();
        drop(admit(&breaker));
        fail(&breaker, 2);
        drop(admit(&breaker));
        assert_eq!(breaker.state(), BreakerState::Closed);
        fail(&breaker, 1);
        assert_eq!(breaker.state(), BreakerState::Open);
        advance(COOLDOWN - Duration::from_millis(1)).await;
        assert_eq!(breaker.admit().err(), Some(Duration::from_millis(1)));
        advance(Duration::from_millis(1)).await;
        let probe = admit(&breaker);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert_eq!(breaker.admit().err(), Some(SOON));
        probe.failed();
        assert_eq!(breaker.admit().err(), Some(COOLDOWN));
        advance(COOLDOWN).await;
        admit(&breaker).succeeded();
        assert_eq!(breaker.state(), BreakerState::Closed);
        // It counts from the beginning.
        fail(&breaker, 2);
        assert_eq!(breaker.wait(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn r25_a_probe_that_is_given_up_frees_its_place() {
        let breaker = Arc::new(breaker(1));
        fail(&breaker, 1);
        advance(COOLDOWN).await;
        for panics in [false, true] {
            let (probed, place) = tokio::sync::oneshot::channel();
            let own = breaker.clone();
            let task = tokio::spawn(async move {
                let _pass = admit(&own);
                let _ = probed.send(());
                assert!(!panics, "a bug");
                std::future::pending::<()>().await;
            });
            place.await.expect("the probe is under way");
            if !panics {
                assert_eq!(breaker.wait(), Some(SOON), "one at a time");
                task.abort();
            }
            let ended = task.await.expect_err("it never ends by itself");
            assert_eq!(ended.is_panic(), panics);
            assert_eq!(breaker.wait(), None, "panics: {panics}");
        }
        admit(&breaker).succeeded();
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_of_hours_does_not_keep_the_place_and_its_answer_still_closes() {
        let breaker = breaker(1);
        fail(&breaker, 1);
        advance(COOLDOWN).await;
        let slow = admit(&breaker);
        advance(COOLDOWN).await;
        let next = admit(&breaker);
        assert_eq!(breaker.wait(), Some(SOON));
        slow.succeeded();
        assert_eq!(breaker.state(), BreakerState::Closed);
        // Whatever the other one says is of before.
        next.failed();
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[test]
    fn r25_of_a_thousand_at_once_one_is_the_probe() {
        const THREADS: usize = 8;
        let breaker = breaker(1);
        for _ in 0..50 {
            // The cooldown is over, without anybody having waited for it.
            {
                let mut state = breaker.lock();
                state.phase = Phase::Open { until: Instant::now() };
                breaker.publish(&state);
            }
            let (start, probes, refused) = (Barrier::new(THREADS), AtomicUsize::new(0), AtomicUsize::new(0));
            let (start, probes, refused) = (&start, &probes, &refused);
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        start.wait();
                        let passes: Vec<_> = (0..1_000 / THREADS).map(|_| breaker.admit()).collect();
                        // Nobody settles before everybody has asked.
                        start.wait();
                        for pass in passes {
                            match pass {
                                Ok(pass) => {
                                    probes.fetch_add(1, Ordering::Relaxed);
                                    pass.failed();
                                }
                                Err(_) => {
                                    refused.fetch_add(1, Ordering::Relaxed);
                                }
                            }
                        }
                    });
                }
            });
            assert_eq!(
                (probes.load(Ordering::Relaxed), refused.load(Ordering::Relaxed)),
                (1, 999)
            );
        }
    }

    fn take<'a>(nth: usize, under_way: &mut BTreeMap<usize, Pass<'a>>) -> Option<(usize, Pass<'a>)> {
        let number = *under_way.keys().nth(nth)?;
        Some((number, under_way.remove(&number)?))
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Ask,
        /// Of the requests under way, by their order.
        Succeed(usize),
        Fail(usize),
        GiveUp(usize),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Ask),
            2 => (0_usize..4).prop_map(Step::Succeed),
            4 => (0_usize..4).prop_map(Step::Fail),
            1 => (0_usize..4).prop_map(Step::GiveUp),
            2 => prop_oneof![1_u64..10, Just(30), 25_u64..70].prop_map(Step::Pass),
        ]
    }

    /// The rules at the head of this module, without epochs, locks and atomics: a request that has nothing to say any
    /// more is struck off.
    #[derive(Default)]
    struct Model {
        now: u64,
        failed: u32,
        /// Second until which nothing is sent, while it is open.
        open: Option<u64>,
        /// The probe, and the second at which it lends its place.
        probe: Option<(usize, u64)>,
        /// Whose verdict counts.
        heard: Vec<usize>,
    }

    impl Model {
        fn ask(&mut self, request: usize) -> bool {
            let held = self.probe.is_some_and(|(_, until)| self.now < until);
            if self.open.is_some_and(|until| self.now < until) || held {
                return false;
            }
            if self.open.is_some() {
                self.probe = Some((request, self.now + COOLDOWN.as_secs()));
            }
            self.heard.push(request);
            true
        }

        fn turn(&mut self, open: Option<u64>) {
            *self = Self {
                now: self.now,
                open,
                ..Self::default()
            };
        }

        fn settle(&mut self, request: usize, well: Option<bool>, limit: u32) {
            let heard = self.heard.contains(&request);
            self.heard.retain(|other| *other != request);
            let is_probe = self.probe.is_some_and(|(probe, _)| probe == request);
            match (heard, self.open, well) {
                (true, Some(_), Some(true)) => self.turn(None),
                (true, None, Some(true)) => self.failed = 0,
                (true, Some(_), Some(false)) if is_probe => self.turn(Some(self.now + COOLDOWN.as_secs())),
                (true, None, Some(false)) => {
                    self.failed += 1;
                    if self.failed == limit {
                        self.turn(Some(self.now + COOLDOWN.as_secs()));
                    }
                }
                (_, _, None) if is_probe => self.probe = None,
                _ => {}
            }
        }
    }

    proptest! {
        #[test]
        fn it_does_what_the_model_does(limit in 1_u32..4, steps in prop::collection::vec(step(), 1..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let breaker = breaker(limit);
                let (mut model, mut under_way) = (Model::default(), BTreeMap::new());
                for (number, step) in steps.into_iter().enumerate() {
                    match step {
                        Step::Ask => {
                            let pass = breaker.admit();
                            assert_eq!(pass.is_ok(), model.ask(number), "request {number}");
                            under_way.extend(pass.ok().map(|pass| (number, pass)));
                        }
                        Step::Succeed(at) => {
                            if let Some((number, pass)) = take(at, &mut under_way) {
                                pass.succeeded();
                                model.settle(number, Some(true), limit);
                            }
                        }
                        Step::Fail(at) => {
                            if let Some((number, pass)) = take(at, &mut under_way) {
                                pass.failed();
                                model.settle(number, Some(false), limit);
                            }
                        }
                        Step::GiveUp(at) => {
                            if let Some((number, pass)) = take(at, &mut under_way) {
                                drop(pass);
                                model.settle(number, None, limit);
                            }
                        }
                        Step::Pass(seconds) => {
                            advance(Duration::from_secs(seconds)).await;
                            model.now += seconds;
                        }
                    }
                    let told = match (model.open, model.probe) {
                        (None, _) => BreakerState::Closed,
                        (Some(_), None) => BreakerState::Open,
                        (Some(_), Some(_)) => BreakerState::HalfOpen,
                    };
                    assert_eq!(breaker.state(), told, "after step {number}");
                }
            });
        }
    }
}
