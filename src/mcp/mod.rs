//! The protocol, pure: envelopes, eras, headers, event streams and lists, without IO.

mod message;

pub use message::{Era, Id, Kind, Message, Meta, Payload, Reference};
