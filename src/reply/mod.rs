//! Reply to caller: what of an answer the caller may see, and how it was.
//!
//! `forward` sends the call and picks a path for the reply: `json` and `events` carry it, `inspect` filters what has
//! to be, `gather` answers a budgeted list as one page, `ending` counts and audits each call once. `headers` says
//! what crosses the gate in either direction.

mod ending;
mod events;
mod forward;
mod gather;
mod headers;
mod inspect;
mod json;
mod tap;

pub use ending::{AuditCheck, Audited, Ending, count, line};
pub use forward::{Forward, Shared};
