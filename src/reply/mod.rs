//! Reply to caller: what of an answer the caller may see, and how it was.
//!
//! `forward` sends the call (as `sending` says) and picks a path for the reply: `json` and `events` carry it, `inspect`
//! filters what has to be, `gather` makes a budgeted list one page (`listing` over Streamable HTTP, `message` over
//! HTTP+SSE), `ending` counts and audits each call once. `headers` says what crosses the gate in either direction.

mod ending;
pub(crate) mod events;
mod forward;
pub(crate) mod gather;
mod headers;
pub(crate) mod inspect;
pub(crate) mod json;
mod listing;
mod message;
pub(crate) mod sending;
mod tap;

pub(crate) use ending::fail;
pub use ending::{AuditCheck, Audited, Ending, count, line};
pub(crate) use events::{COMMENT, Interruption, KEEPALIVE, Standing};
pub use forward::{Forward, Shared};
pub(crate) use forward::{is_encoded, is_event_stream, is_json, note, refused_members, stream_headers};
pub(crate) use gather::{Pages, budgeted, gather};
pub(crate) use inspect::Inspector;
pub(crate) use json::see;
pub(crate) use listing::outcome_of_failure;
pub(crate) use sending::Sending;
