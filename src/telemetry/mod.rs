//! What operators see: metrics, the audit log and the process's own log.

mod audit;
mod families;
mod log;
mod metrics;
mod route_metrics;

pub use audit::{Audit, AuditDecision, AuditError, AuditLine, AuditSlot};
pub use log::{LogError, install};
pub use metrics::Metrics;
pub use route_metrics::{GaugeGuard, Outcome, RouteMetrics};
