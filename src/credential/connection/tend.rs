//! What operators see of everybody's connections, and the store's housekeeping; nobody waits for either (r22).

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{Connections, State};
use crate::store::Kind;

/// How often connections are counted.
const EVERY: Duration = Duration::from_secs(10);
/// How many counts between two sweeps of logins that nobody finished.
const SWEEP: u32 = 6;

/// A route's connections by state, as [`State::ALL`].
pub type Counts = [(State, u64); State::ALL.len()];

const NONE: Counts = [
    (State::ALL[0], 0),
    (State::ALL[1], 0),
    (State::ALL[2], 0),
    (State::ALL[3], 0),
];

impl Connections {
    /// Counts, and removes what has expired, for as long as it is polled.
    pub async fn tend(self: Arc<Self>, routes: Vec<Box<str>>) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for turn in 0_u32.. {
            ticks.tick().await;
            self.count(&routes).await;
            if turn % SWEEP == 0
                && let Err(error) = self.store.sweep().await
            {
                tracing::warn!(%error, "the store can't be swept");
            }
        }
    }

    async fn count(&self, routes: &[Box<str>]) {
        let tallies = match self.store.tally(Kind::Connection).await {
            Ok(tallies) => tallies,
            Err(error) => return tracing::warn!(%error, "connections can't be counted"),
        };
        let mut counts: HashMap<Box<str>, Counts> = routes.iter().map(|route| (route.clone(), NONE)).collect();
        for tally in tallies {
            let Some(counts) = counts.get_mut(&*tally.scope) else {
                continue;
            };
            for (state, count) in counts {
                if state.as_str() == tally.label {
                    *count += tally.count;
                }
            }
        }
        for (route, counts) in &counts {
            let metrics = self.metrics.route(route);
            for (state, count) in counts {
                metrics.connections(state.as_str(), *count);
            }
        }
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    /// How many connections of a route are in which state, as of a moment ago; `None`: not counted yet.
    pub fn counts(&self, route: &str) -> Option<Counts> {
        self.counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(route)
            .copied()
    }
}
