//! What clients and servers of different eras say to each other, as the other one reads it. Pure: raw JSON in, raw JSON out.
//!
//! 1. What means the same in both eras keeps its bytes. What the other era lacks is taken out where that changes nothing
//!    that was asked for, and refused where it would.
//! 2. Nothing is claimed that the gate doesn't carry: capabilities are cut to what both sides and the gate can.
//! 3. An object that repeats a key at a level that is read here is refused: two readers would see two messages (r49).
//! 4. What is only the protocol's (versions, states, subscription ids) is the gate's own on each side, and never passed
//!    through from one to the other.
//!
//! Legacy stands for 2024-11-05 to 2025-11-25, modern for 2026-07-28. Between two legacy sides nothing is mapped.
//!
//! # Requests of clients
//!
//! | method | revisions | legacy client, modern server | modern client, legacy server |
//! |---|---|---|---|
//! | `initialize` | 2024-11-05 to 2025-11-25 | answered: [`initialize_result`] from what the server was discovered to be | refused: -32601 |
//! | `ping` | 2024-11-05 to 2025-11-25 | answered: an empty result | refused: -32601 |
//! | `server/discover` | 2026-07-28 | refused: -32601 | answered: [`discover_result`] from what the server said to `initialize` |
//! | `logging/setLevel` | 2024-11-05 to 2025-11-25 | answered: the level goes with every later request as `logLevel` | refused: -32601; `logLevel` becomes the server's level, and the gate drops what is below it |
//! | `tools/list` | all | carried: tools with invalid `x-mcp-header` are left out, an `outputSchema` that isn't an object's is taken out | carried: tools that can only be called as tasks are left out |
//! | `tools/call` | all | carried: mirrored parameters become headers; interim results become requests of the server; `structuredContent` that isn't an object is taken out | carried: requests of the server become interim results |
//! | `resources/list` | all | carried | carried |
//! | `resources/templates/list` | all | carried | carried |
//! | `resources/read` | all | carried: as a call; -32602 that names the resource becomes -32002 | carried: as a call; -32002 becomes -32602 |
//! | `resources/subscribe` | 2024-11-05 to 2025-11-25 | answered: the gate listens for the resource | refused: -32601 |
//! | `resources/unsubscribe` | 2024-11-05 to 2025-11-25 | answered: the gate listens no longer | refused: -32601 |
//! | `prompts/list` | all | carried | carried |
//! | `prompts/get` | all | carried: as a call | carried: as a call |
//! | `completion/complete` | all | carried | carried |
//! | `subscriptions/listen` | 2026-07-28 | refused: -32601 | answered: the gate subscribes to the resources and sends on what the server notifies |
//! | `tasks/get` | 2025-11-25 | refused: -32601 | refused: -32601 |
//! | `tasks/result` | 2025-11-25 | refused: -32601 | refused: -32601 |
//! | `tasks/list` | 2025-11-25 | refused: -32601 | refused: -32601 |
//! | `tasks/cancel` | 2025-11-25 | refused: -32601 | refused: -32601 |
//! | `tasks/update` | none: of the tasks extension | refused: -32601 | refused: -32601 |
//! | any other | none: of extensions | carried: with the `_meta` of its era | carried: with the `_meta` of its era |
//!
//! # Requests of servers
//!
//! A legacy server sends them in the middle of a call, a modern one as `inputRequests` of an interim result.
//!
//! | method | revisions | modern server, legacy client | legacy server, modern client |
//! |---|---|---|---|
//! | `ping` | 2024-11-05 to 2025-11-25 | refused: no interim result asks for it | answered: an empty result |
//! | `elicitation/create` | from 2025-06-18 | carried: a page gets an `elicitationId` | carried: without `elicitationId`, `task` and `_meta` |
//! | `sampling/createMessage` | all | carried | carried: without `task` and `_meta` |
//! | `roots/list` | all | carried | carried: without `_meta` |
//! | `tasks/get` | 2025-11-25 | refused: no interim result asks for it | refused: -32601 |
//! | `tasks/result` | 2025-11-25 | refused: no interim result asks for it | refused: -32601 |
//! | `tasks/list` | 2025-11-25 | refused: no interim result asks for it | refused: -32601 |
//! | `tasks/cancel` | 2025-11-25 | refused: no interim result asks for it | refused: -32601 |
//! | any other | none | refused: no interim result asks for it | refused: -32601 |
//!
//! # Notifications of clients
//!
//! | method | revisions | legacy client, modern server | modern client, legacy server |
//! |---|---|---|---|
//! | `notifications/cancelled` | all | taken: the call's stream is closed, or the server told by its own id | taken: as is a closed stream; the server is told by its own id |
//! | `notifications/initialized` | 2024-11-05 to 2025-11-25 | taken: the gate's session stands | dropped |
//! | `notifications/progress` | 2024-11-05 to 2025-11-25 | dropped: interim results have no progress | dropped |
//! | `notifications/roots/list_changed` | 2024-11-05 to 2025-11-25 | dropped: a modern server asks when it needs them | dropped |
//! | `notifications/tasks/status` | 2025-11-25 | dropped | dropped |
//! | any other | none: of extensions | carried: without the protocol's `_meta` | carried: without the protocol's `_meta` |
//!
//! # Notifications of servers
//!
//! | method | revisions | modern server, legacy client | legacy server, modern client |
//! |---|---|---|---|
//! | `notifications/cancelled` | all | taken: ends what the gate listens to | taken: withdraws a request of the server |
//! | `notifications/progress` | all | carried: with the caller's token | carried: with the caller's token |
//! | `notifications/message` | all | carried | carried: to calls with a `logLevel`, from that level on |
//! | `notifications/tools/list_changed` | all | carried | carried: to who listens for it, with their subscription |
//! | `notifications/prompts/list_changed` | all | carried | carried: to who listens for it, with their subscription |
//! | `notifications/resources/list_changed` | all | carried | carried: to who listens for it, with their subscription |
//! | `notifications/resources/updated` | all | carried | carried: to who listens for it, with their subscription |
//! | `notifications/subscriptions/acknowledged` | 2026-07-28 | taken: says what the gate may listen to | dropped |
//! | `notifications/elicitation/complete` | 2025-11-25 | dropped | dropped: the client learns it by making its request again |
//! | `notifications/tasks/status` | 2025-11-25 | dropped | dropped |
//! | any other | none: of extensions | carried | carried |
//!
//! # Members
//!
//! | of | member | becomes |
//! |---|---|---|
//! | requests | `_meta` `protocolVersion`, `clientInfo`, `clientCapabilities`, `logLevel` | taken out for a legacy server, made by the gate for a modern one |
//! | requests | `_meta` `progressToken`, trace context, what is not the protocol's | stays |
//! | calls | `inputResponses`, `requestState` | the gate's own on each side |
//! | calls | `task` | taken out: the call is made at once, not as a task |
//! | results | `resultType` | `complete` for a modern client, taken out for a legacy one; anything but `complete` and `input_required` is an error |
//! | lists, `resources/read` | `ttlMs`, `cacheScope` | `0` and `private` for a modern client, taken out for a legacy one |
//! | results | `_meta` `serverInfo` | what the server said at first, for a modern client; taken out for a legacy one |
//! | notifications | `_meta` `subscriptionId` | the gate's own on each side |
//! | capabilities | `tasks`, the tasks extension, a client's `roots.listChanged`, what no revision defines | taken out |
//!
//! # Errors
//!
//! -32042 with pages to visit becomes an interim result that asks for them. The other codes that 2026-07-28 reserves or has
//! retired (-32002 but for resources, -32020 to -32099) become -32603 for a modern client; their text and data stay. Every
//! other code passes.
//!
//! Batches exist only in 2025-03-26: their members are mapped one by one.

mod asked;
mod capability;
mod error;
mod header;
mod notification;
mod request;
mod result;

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

const PROTOCOL_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const CLIENT_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
const CLIENT_INFO: &str = "io.modelcontextprotocol/clientInfo";
const LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";
const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";
const SUBSCRIPTION_ID: &str = "io.modelcontextprotocol/subscriptionId";

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
pub fn is_multi_round_trip(method: &str) -> bool {
    matches!(method, "tools/call" | "prompts/get" | "resources/read")
}

#[cfg(test)]
mod tests;
