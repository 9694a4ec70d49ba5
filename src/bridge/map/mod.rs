//! TABLE
mod asked;
mod capability;
mod error;
mod header;
mod notification;
mod request;
mod result;

use bytes::Bytes;

use crate::mcp::codes;

pub use asked::{asked_to_legacy, asked_to_modern, missing_capability};
pub use capability::{
    client_capabilities_to_legacy, client_capabilities_to_modern, discover_result, initialize_result, lacks,
};
pub use error::{ToModernError, error_to_legacy, error_to_modern};
pub use header::{InvalidHeaders, ParamHeader, annotated_tools, encode_header_value, mcp_param_values, param_headers};
pub use notification::{
    LogLevel, client_notification, logged_at, notification_to_legacy, notification_to_modern, subscribed,
};
pub use request::{ClientFacts, Retry, ToLegacy, request_to_legacy, request_to_modern, response};
pub use result::{InputRequest, ToLegacyResult, result_to_legacy, result_to_modern};

/// The revision that the gate speaks to modern servers.
const MODERN: &str = "2026-07-28";
const PROTOCOL_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const CLIENT_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
const CLIENT_INFO: &str = "io.modelcontextprotocol/clientInfo";
const LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";
const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";
const SUBSCRIPTION_ID: &str = "io.modelcontextprotocol/subscriptionId";

/// What a server said of itself, in `initialize` or `server/discover`.
#[derive(Clone, Debug)]
pub struct Facts {
    pub version: Box<str>,
    /// Raw JSON.
    pub capabilities: Bytes,
    /// Raw JSON.
    pub server_info: Option<Bytes>,
    pub instructions: Option<Box<str>>,
}

/// A JSON-RPC error.
#[derive(Clone, Debug, PartialEq)]
pub struct RpcError {
    pub code: i64,
    pub message: String,
    /// Raw JSON.
    pub data: Option<Bytes>,
}

/// Why a message has no counterpart in the other era.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The caller's mistake, or the other era's lack.
    #[error("{0} has no counterpart in the server's revision")]
    NotFound(Box<str>),
    /// The caller's mistake.
    #[error("{0}")]
    Params(&'static str),
    /// The server's mistake.
    #[error("{0}")]
    Nonsense(&'static str),
}

impl MapError {
    /// The JSON-RPC error code.
    pub fn code(&self) -> i64 {
        match self {
            Self::NotFound(_) => codes::METHOD_NOT_FOUND,
            Self::Params(_) => codes::INVALID_PARAMS,
            Self::Nonsense(_) => codes::BAD_GATEWAY,
        }
    }
}

/// Whether a modern server may ask for input before it answers (MCP 2026-07-28, "Supported Requests").
fn is_multi_round_trip(method: &str) -> bool {
    matches!(method, "tools/call" | "prompts/get" | "resources/read")
}
