//! Legacy callers of servers that don't speak as they do: sessions that the gateway itself serves.
//!
//! 1. A session is one caller's, and has a connection to the server of its own (`session`). Its client comes by
//!    Streamable HTTP (2025-03-26 to 2025-11-25) or by HTTP+SSE (2024-11-05); what it does is the same.
//! 2. A legacy server behind another transport is relayed to: `initialize` and everything after it pass as they are, but
//!    for the ids of what the server asks, which are the gateway's (`call`).
//! 3. A modern server is asked in its own words: each request says who asks, what it wants to know first is asked of the
//!    client, and the request made again (`rounds`); what the client subscribed to is one `subscriptions/listen`
//!    (`listen`).
//! 4. A session ends when its client says so, when its HTTP+SSE stream ends, when the server's connection does, or when
//!    nobody needed it for half an hour; its connection ends with it. It lives on the replica that opened it.
//! 5. Lists are filtered, outcomes counted and audited, and refusals told as on every other path.

mod call;
mod door;
mod everybodys;
mod introduce;
mod listen;
mod questions;
mod respond;
mod rounds;
mod session;
mod sessions;
mod standing;

pub use door::{Door, serve, takes_over};
pub use sessions::Sessions;

use std::time::Duration;

/// How long a reply may take and still be JSON; after that it is a stream.
const PATIENCE: Duration = Duration::from_secs(15);
