//! What the callers of one connection to a legacy server have it send.
//!
//! 1. What is logged is the most verbose that any of them asked for; each gets what it asked for itself.
//! 2. A resource is subscribed to once however many listeners want it, and no longer when none does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::map::LogLevel;
use super::message::{Answered, text};
use super::peer::{Funds, Lost, Peer};
use crate::mcp::object::Object;

/// How long a server may take to subscribe, or to set a level.
pub const SETTLING: Duration = Duration::from_secs(10);

/// What the callers of one connection have had the server send.
#[derive(Default)]
pub struct Wishes {
    level: tokio::sync::Mutex<Option<LogLevel>>,
    /// By URI, how many listeners want it.
    resources: tokio::sync::Mutex<HashMap<Box<str>, usize>>,
}

impl Wishes {
    /// Has the server log from that level on, if it logs at all and doesn't already.
    pub async fn log_at(&self, level: LogLevel, peer: &Arc<Peer>, funds: &Funds) {
        let logs =
            Object::parse(&peer.facts().capabilities).is_ok_and(|all| matches!(all.object("logging"), Ok(Some(_))));
        if !logs {
            return;
        }
        let mut current = self.level.lock().await;
        if current.is_none_or(|current| level < current) {
            let params = format!(r#"{{"level":"{}"}}"#, level.as_str());
            let answered = peer.ask("logging/setLevel", params.into(), funds, SETTLING).await;
            // A server that won't is asked again by the next caller, one that says nothing is not: all of them would wait
            // for it in turn. The call itself tells whether the session is over.
            if !matches!(answered, Ok(Err(_))) {
                *current = Some(level);
            }
        }
    }
}

/// Subscriptions of one listener; dropped, they are given back.
pub struct Subscribed {
    peer: Arc<Peer>,
    resources: Vec<Box<str>>,
    funds: Funds,
}

impl Subscribed {
    /// Subscribes to these; what the server refuses is left out.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn to(peer: &Arc<Peer>, wanted: &[String], funds: &Funds) -> Result<Self, Lost> {
        let mut subscribed = Self::none(peer, funds);
        for uri in wanted {
            let _ = subscribed.add(uri).await?;
        }
        Ok(subscribed)
    }

    /// None yet.
    pub fn none(peer: &Arc<Peer>, funds: &Funds) -> Self {
        Self {
            peer: peer.clone(),
            resources: Vec::new(),
            funds: funds.clone(),
        }
    }

    /// Subscribes to one more; what the server says to it.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn add(&mut self, uri: &str) -> Result<Answered, Lost> {
        let mut counts = self.peer.wishes().resources.lock().await;
        let known = counts.get_mut(uri).map(|count| *count += 1).is_some();
        let answered = match known {
            true => Ok(Bytes::from_static(b"{}")),
            false => {
                let (peer, funds) = (&self.peer, &self.funds);
                peer.ask("resources/subscribe", resource(uri), funds, SETTLING).await?
            }
        };
        if answered.is_ok() {
            if !known {
                counts.insert(uri.into(), 1);
            }
            self.resources.push(uri.into());
        }
        Ok(answered)
    }

    /// The resources that the server let be subscribed to.
    pub fn resources(&self) -> &[Box<str>] {
        &self.resources
    }
}

impl Drop for Subscribed {
    fn drop(&mut self) {
        let resources = std::mem::take(&mut self.resources);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if resources.is_empty() || self.peer.ended().is_cancelled() {
            return;
        }
        let (peer, funds) = (self.peer.clone(), self.funds.clone());
        runtime.spawn(async move {
            for uri in resources {
                let mut counts = peer.wishes().resources.lock().await;
                let Some(count) = counts.get_mut(&uri) else { continue };
                *count -= 1;
                if *count == 0 {
                    counts.remove(&uri);
                    let _ = peer
                        .ask("resources/unsubscribe", resource(&uri), &funds, SETTLING)
                        .await;
                }
            }
        });
    }
}

fn resource(uri: &str) -> Bytes {
    let uri = String::from_utf8(text(uri)).expect("JSON is UTF-8");
    format!(r#"{{"uri":{uri}}}"#).into()
}

/// Whether a resource is the one that was subscribed to, or a part of it (MCP 2025-11-25, "Resources"). What only begins
/// alike is another's, who may be of the same connection.
pub fn is_part(uri: &str, wanted: &str) -> bool {
    uri.strip_prefix(wanted).is_some_and(|rest| {
        let parted = wanted.ends_with(['/', '?', '#']) || rest.starts_with(['/', '?', '#']);
        rest.is_empty() || (parted && !wanted.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_resource_is_told_from_what_begins_alike() {
        for (uri, wanted) in [
            ("memo://a", "memo://a"),
            ("memo://a/b", "memo://a"),
            ("memo://a/b", "memo://a/"),
            ("memo://a#b", "memo://a"),
            ("memo://a?b", "memo://a"),
        ] {
            assert!(is_part(uri, wanted), "{uri} {wanted}");
        }
        for (uri, wanted) in [
            ("memo://ab", "memo://a"),
            ("memo://a", "memo://a/b"),
            ("memo://a", "m"),
            ("memo://a", ""),
            ("/memo", ""),
        ] {
            assert!(!is_part(uri, wanted), "{uri} {wanted}");
        }
    }
}
