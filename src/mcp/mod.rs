//! The protocol, pure: envelopes, eras, headers, event streams and lists, without IO.
//!
//! [`parse`] reads a body, [`agree`] holds it against its headers, [`target`] says what it asks for. On the way back
//! [`Scanner`] watches, [`sse`] finds events and [`lists`] filters.

mod agreement;
mod envelope;
mod errors;
pub mod lists;
mod message;
mod methods;
mod observe;
pub mod sse;

pub use agreement::{AgreementError, agree, decode_value, repeated};
pub use envelope::{EnvelopeError, parse};
pub use errors::{codes, error_response, tool_error_result};
pub use lists::ListKind;
pub use message::{Era, Id, Kind, Message, Meta, Payload, Reference};
pub use methods::{Target, is_known, is_list, target};
pub use observe::{MessageOutcome, Observation, Scanner};
