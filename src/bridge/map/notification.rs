//! Notifications, for a reader of the other era.
//!
//! 1. Of what a server sends, progress, log messages, changed lists and updated resources are carried; of what a client
//!    sends, only what no revision defines. The rest is spoken to the gate, or means nothing in the other era.
//! 2. A subscription's id is the gate's own on each side: a server's is taken out.
//! 3. What no revision defines is carried as it is: extensions have notifications, and whoever has not asked for them
//!    ignores them.

use bytes::Bytes;

use super::{CLIENT_CAPABILITIES, CLIENT_INFO, LOG_LEVEL, PROTOCOL_VERSION, SUBSCRIPTION_ID};
use crate::mcp::Id;
use crate::mcp::object::Object;

/// RFC 5424's severities, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    Debug,
    Info,
    Notice,
    Warning,
    Error,
    Critical,
    Alert,
    Emergency,
}

impl LogLevel {
    const ALL: [(Self, &str); 8] = [
        (Self::Debug, "debug"),
        (Self::Info, "info"),
        (Self::Notice, "notice"),
        (Self::Warning, "warning"),
        (Self::Error, "error"),
        (Self::Critical, "critical"),
        (Self::Alert, "alert"),
        (Self::Emergency, "emergency"),
    ];

    /// The level of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find_map(|(level, known)| (known == name).then_some(level))
    }

    /// The protocol's name for it.
    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// The level of a log message, by the `params` of `notifications/message`.
pub fn logged_at(params: &[u8]) -> Option<LogLevel> {
    LogLevel::parse(&Object::parse(params).ok()?.text("level")?)
}

/// The `params` of a legacy server's notification for a modern client; `None` when it has no counterpart.
pub fn notification_to_modern(method: &str, params: &Bytes) -> Option<Bytes> {
    from_server(method, params)
}

/// The `params` of a modern server's notification for a legacy client; `None` when it has no counterpart.
pub fn notification_to_legacy(method: &str, params: &Bytes) -> Option<Bytes> {
    from_server(method, params)
}

fn from_server(method: &str, params: &Bytes) -> Option<Bytes> {
    let carried = match method {
        "notifications/progress"
        | "notifications/message"
        | "notifications/tools/list_changed"
        | "notifications/prompts/list_changed"
        | "notifications/resources/list_changed"
        | "notifications/resources/updated" => true,
        method => !is_known(method),
    };
    carried.then(|| without(params, &[SUBSCRIPTION_ID])).flatten()
}

/// The `params` of a client's notification for a server of the other era; `None` when it has no counterpart.
pub fn client_notification(method: &str, params: &Bytes) -> Option<Bytes> {
    let own = [PROTOCOL_VERSION, CLIENT_CAPABILITIES, CLIENT_INFO, LOG_LEVEL];
    (!is_known(method)).then(|| without(params, &own)).flatten()
}

/// A notification's `params` with the subscription that it is sent for: the id of the `subscriptions/listen` request.
/// `None` when they are no object, or repeat a key.
pub fn subscribed(params: &Bytes, id: &Id) -> Option<Bytes> {
    let mut all = Object::parse(params).ok()?;
    let mut meta = all.object("_meta").ok()?.unwrap_or_else(Object::empty);
    meta.take(SUBSCRIPTION_ID);
    meta.set(SUBSCRIPTION_ID, std::str::from_utf8(&id.0).ok()?);
    all.set("_meta", meta.write());
    Some(all.into_bytes(params))
}

/// Whether any revision defines the notification.
fn is_known(method: &str) -> bool {
    matches!(
        method,
        "notifications/cancelled"
            | "notifications/initialized"
            | "notifications/progress"
            | "notifications/message"
            | "notifications/tools/list_changed"
            | "notifications/prompts/list_changed"
            | "notifications/resources/list_changed"
            | "notifications/resources/updated"
            | "notifications/roots/list_changed"
            | "notifications/subscriptions/acknowledged"
            | "notifications/elicitation/complete"
            | "notifications/tasks/status"
    )
}

/// `None` when they are no object, or repeat a key.
fn without(params: &Bytes, keys: &[&str]) -> Option<Bytes> {
    let mut all = Object::parse(params).ok()?;
    if let Some(mut meta) = all.object("_meta").ok()? {
        for key in keys {
            meta.take(key);
        }
        if meta.is_edited() {
            all.set("_meta", meta.write());
        }
    }
    Some(all.into_bytes(params))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_in_order_and_have_their_names() {
        for pair in LogLevel::ALL.windows(2) {
            assert!(pair[0].0 < pair[1].0);
        }
        for (level, name) in LogLevel::ALL {
            assert_eq!((LogLevel::parse(name), level.as_str()), (Some(level), name));
        }
        assert_eq!(LogLevel::parse("INFO"), None);
        assert_eq!(logged_at(br#"{"data":1,"level":"err\u006fr"}"#), Some(LogLevel::Error));
        for params in [r#"{"level":7}"#, "{}", "", r#"{"level":"info","level":"error"}"#] {
            assert_eq!(logged_at(params.as_bytes()), None, "{params}");
        }
    }

    #[test]
    fn a_servers_subscription_is_not_the_clients() {
        let params = Bytes::from(r#"{"uri":"a:/x","_meta":{"io.modelcontextprotocol/subscriptionId":9,"x":1.0}}"#);
        let method = "notifications/resources/updated";
        let carried = notification_to_modern(method, &params).expect("carried");
        assert_eq!(carried, r#"{"uri":"a:/x","_meta":{"x":1.0}}"#);
        assert_eq!(notification_to_legacy(method, &params), Some(carried.clone()));
        let id = Id(Bytes::from_static(b"\"s\\u0031\""));
        assert_eq!(
            subscribed(&carried, &id).expect("an object"),
            r#"{"uri":"a:/x","_meta":{"x":1.0,"io.modelcontextprotocol/subscriptionId":"s\u0031"}}"#
        );
        assert_eq!(
            subscribed(&params, &id),
            subscribed(&carried, &id).map(|_| {
                r#"{"uri":"a:/x","_meta":{"x":1.0,"io.modelcontextprotocol/subscriptionId":"s\u0031"}}"#.into()
            })
        );
        assert_eq!(
            notification_to_modern(method, &Bytes::from_static(b"{\"uri\":1,\"uri\":2}")),
            None
        );
        assert_eq!(notification_to_modern(method, &Bytes::from_static(b"[]")), None);
    }

    #[test]
    fn what_no_revision_defines_is_carried_as_it_is() {
        let params = Bytes::from_static(b"{\"a\" : 1}");
        for carry in [notification_to_modern, notification_to_legacy, client_notification] {
            let carried = carry("notifications/com.example/x", &params).expect("carried");
            assert_eq!(carried.as_ptr(), params.as_ptr());
        }
        let own = Bytes::from(r#"{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","x":1}}"#);
        assert_eq!(
            client_notification("notifications/x", &own).expect("carried"),
            r#"{"_meta":{"x":1}}"#
        );
    }
}
