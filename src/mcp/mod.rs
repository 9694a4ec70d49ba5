//! The protocol, pure: envelopes, eras, headers, event streams and lists, without IO.
//!
//! [`parse`] reads a body, [`agree`] holds it against its headers, [`target`] says what it asks for. On the way back
//! [`Scanner`] watches, [`sse`] finds events and [`lists`] filters.
//!
//! ```
//! use portcullis::mcp::{Target, parse, target};
//!
//! let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_note"}}"#;
//! let payload = parse(&body.into())?;
//! assert!(matches!(target(&payload.messages()[0]), Target::Tool { name: "get_note", .. }));
//!
//! // Two readers may read a repeated key differently, and one of them is the server.
//! let twice = r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}"#;
//! assert_eq!(parse(&twice.into()).unwrap_err().code(), -32700);
//! # Ok::<(), portcullis::mcp::EnvelopeError>(())
//! ```

mod agreement;
mod envelope;
mod errors;
pub mod lists;
mod message;
mod methods;
pub(crate) mod object;
mod observe;
pub mod sse;

pub use agreement::{AgreementError, agree, decode_value, repeated};
pub use envelope::{EnvelopeError, parse};
pub use errors::{codes, error_response, result_response, tool_error_result};
pub use lists::ListKind;
pub use message::{Era, Id, Kind, Message, Meta, Payload, Reference};
pub use methods::{Target, is_known, is_list, target};
pub use observe::{MessageOutcome, Observation, Scanner};
