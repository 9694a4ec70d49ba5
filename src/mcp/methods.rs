//! What a message is about, as far as policy is concerned.

use super::message::{Kind, Message, Reference};

/// What a message asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target<'a> {
    /// `tools/call`.
    Tool {
        name: &'a str,
        /// Raw JSON.
        arguments: Option<&'a [u8]>,
    },
    /// `resources/read`, `resources/subscribe`, `resources/unsubscribe`.
    Resource(&'a str),
    /// `prompts/get`.
    Prompt(&'a str),
    /// `completion/complete`.
    Complete(&'a Reference),
    /// `subscriptions/listen`, with the resources it names.
    Listen(&'a [Box<str>]),
    /// A list: allowed, and filtered on its way back.
    List,
    /// `tasks/list`: shows everybody's tasks where the upstream credential is shared.
    TaskList,
    /// Part of the protocol itself: `initialize`, `ping`, notifications, answers and the like.
    Lifecycle,
    /// A method of no revision.
    Extension(&'a str),
    /// A known method without what it is about.
    Malformed,
}

/// What this message asks for.
pub fn target<'a>(message: &'a Message) -> Target<'a> {
    if message.kind == Kind::Response {
        return Target::Lifecycle;
    }
    let named = |name: &'a Option<Box<str>>, target: fn(&'a str) -> Target<'a>| {
        name.as_deref().map_or(Target::Malformed, target)
    };
    match &*message.method {
        "tools/call" => message.name.as_deref().map_or(Target::Malformed, |name| Target::Tool {
            name,
            arguments: message.arguments.as_deref(),
        }),
        "resources/read" | "resources/subscribe" | "resources/unsubscribe" => named(&message.uri, Target::Resource),
        "prompts/get" => named(&message.name, Target::Prompt),
        "completion/complete" => message.reference.as_ref().map_or(Target::Malformed, Target::Complete),
        "subscriptions/listen" => Target::Listen(&message.subscriptions),
        "tasks/list" => Target::TaskList,
        method if is_list(method) => Target::List,
        method if is_known(method) => Target::Lifecycle,
        method => Target::Extension(method),
    }
}

/// Whether a method's result is a list that rules filter.
pub fn is_list(method: &str) -> bool {
    matches!(
        method,
        "tools/list" | "resources/list" | "resources/templates/list" | "prompts/list"
    )
}

/// Whether any revision up to 2026-07-28 defines the method, from client to server.
pub fn is_known(method: &str) -> bool {
    matches!(
        method,
        "initialize"
            | "ping"
            | "server/discover"
            | "logging/setLevel"
            | "tools/list"
            | "tools/call"
            | "resources/list"
            | "resources/templates/list"
            | "resources/read"
            | "resources/subscribe"
            | "resources/unsubscribe"
            | "prompts/list"
            | "prompts/get"
            | "completion/complete"
            | "subscriptions/listen"
            | "tasks/list"
            | "tasks/get"
            | "tasks/result"
            | "tasks/cancel"
            | "tasks/update"
            | "notifications/initialized"
            | "notifications/cancelled"
            | "notifications/progress"
            | "notifications/roots/list_changed"
            | "notifications/tasks/status"
            | "notifications/elicitation/complete"
    )
}
