//! One table: a row a measure, a column a contestant, and what the gate costs compared with the bare proxy.

use std::collections::BTreeMap;
use std::fmt;

use crate::contestant::Kind;

/// In the order of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    RequestsPerSecond,
    P50,
    P99,
    CpuPerRequest,
    CpuPerReply,
    EventLatency,
    Start,
    IdleMemory,
    BigReplies,
    StreamMemory,
}

impl Measure {
    const ALL: [Self; 10] = [
        Self::RequestsPerSecond,
        Self::P50,
        Self::P99,
        Self::CpuPerRequest,
        Self::CpuPerReply,
        Self::EventLatency,
        Self::Start,
        Self::IdleMemory,
        Self::BigReplies,
        Self::StreamMemory,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::RequestsPerSecond => "requests/s",
            Self::P50 => "latency p50, µs",
            Self::P99 => "latency p99, µs",
            Self::CpuPerRequest => "CPU a request, µs",
            Self::CpuPerReply => "CPU a reply of 1,000 events, µs",
            Self::EventLatency => "event latency p50, µs",
            Self::Start => "start, ms",
            Self::IdleMemory => "memory idle, MiB",
            Self::BigReplies => "memory a 10 MiB reply, MiB",
            Self::StreamMemory => "memory an idle stream, KiB",
        }
    }

    /// What the gate may cost, and of what: the project's budgets.
    fn budget(self, table: &Table) -> Option<(f64, String)> {
        let gate = table.get(Kind::Gate, self)?;
        let ratio = |most: f64| {
            let bare = table.get(Kind::Bare, self)?;
            Some((gate / bare / most, format!("at most {most}x bare")))
        };
        let absolute = |most: f64| Some((gate / most, format!("at most {most}")));
        match self {
            Self::CpuPerRequest => ratio(1.4),
            Self::P50 => ratio(1.5),
            Self::EventLatency => {
                let direct = table.get(Kind::Direct, self)?;
                Some(((gate - direct) / 60.0, "at most 60 more than direct".to_owned()))
            }
            Self::Start => absolute(200.0),
            Self::IdleMemory => absolute(40.0),
            Self::BigReplies => absolute(10.0),
            Self::StreamMemory => absolute(64.0),
            Self::RequestsPerSecond | Self::P99 | Self::CpuPerReply => None,
        }
    }
}

/// The results.
#[derive(Default)]
pub struct Table(BTreeMap<(Measure, Kind), f64>);

impl Table {
    /// Enters a result.
    pub fn set(&mut self, kind: Kind, measure: Measure, value: f64) {
        self.0.insert((measure, kind), value);
    }

    fn get(&self, kind: Kind, measure: Measure) -> Option<f64> {
        self.0.get(&(measure, kind)).copied()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [Kind::Direct, Kind::Bare, Kind::Nginx, Kind::Gate, Kind::Bridged];
        write!(f, "{:<34}", "")?;
        for kind in kinds {
            write!(f, "{:>10}", kind.name())?;
        }
        writeln!(f, "{:>11}  budget", "gate/bare")?;
        for measure in Measure::ALL {
            write!(f, "{:<34}", measure.name())?;
            for kind in kinds {
                match self.get(kind, measure) {
                    Some(value) if value.abs() >= 1000.0 => write!(f, "{value:>10.0}")?,
                    Some(value) => write!(f, "{value:>10.1}")?,
                    None => write!(f, "{:>10}", "-")?,
                }
            }
            match (self.get(Kind::Gate, measure), self.get(Kind::Bare, measure)) {
                (Some(gate), Some(bare)) => write!(f, "{:>10.2}x", gate / bare)?,
                _ => write!(f, "{:>11}", "")?,
            }
            match measure.budget(self) {
                Some((used, text)) if used <= 1.0 => writeln!(f, "  {text}: met")?,
                Some((_, text)) => writeln!(f, "  {text}: MISSED")?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}
