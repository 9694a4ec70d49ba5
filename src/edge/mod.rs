//! The edge: what every request meets first and every response last.
//!
//! [`access`] names the request and logs it; [`rescue`] turns a [`Rejection`] into what the client gets, and is the only
//! place that picks a status; [`forwarded`] finds the client behind trusted proxies; [`guard`] checks Host and Origin; [`consent`] asks users
//! to connect what they haven't; [`check`] is the shape of the layers in between.

pub mod access;
pub mod body;
pub mod check;
pub mod consent;
pub mod drain;
pub mod forwarded;
pub mod guard;
pub mod journey;
pub mod rejection;
pub mod rescue;

pub use body::{Body, BodyError, empty, full, json};
pub use check::{Arrival, Check, CheckLayer, Stage};
pub use journey::{CallNotes, Journey};
pub use rejection::Rejection;
