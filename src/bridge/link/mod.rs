//! How a peer's messages travel: one POST each, an HTTP+SSE stream with its messages URL, or a child's lines.
//!
//! A link carries; it doesn't know what a message means, save for the session and version that headers have to tell.

mod http;
mod source;
mod sse;
mod stdio;

use std::sync::Arc;

use ::http::HeaderMap;
use bytes::Bytes;

pub use self::http::HttpLink;
pub use self::sse::SseLink;
pub use self::stdio::StdioLink;
pub use source::{Events, Source};

use super::peer::{Funds, Lost, Peer};

/// One way to a server.
pub enum Link {
    Http(HttpLink),
    Sse(SseLink),
    Stdio(StdioLink),
}

/// What became of a message.
pub enum Posted {
    /// It was taken; what there is to say to it comes over the link.
    Taken,
    /// What there is to say to it.
    Reply(Box<Source>),
}

impl Link {
    /// Sends one message.
    ///
    /// # Errors
    /// When the server can't be reached, doesn't take it, or has forgotten the session.
    pub async fn post(&self, message: Bytes, funds: &Funds, method: &str, headers: &HeaderMap) -> Result<Posted, Lost> {
        match self {
            Self::Http(link) => link.post(message, funds, method, headers).await,
            Self::Sse(link) => link.post(message, funds).await.map(|()| Posted::Taken),
            Self::Stdio(link) => link.post(message).await.map(|()| Posted::Taken),
        }
    }

    /// Goes on with a reply whose stream ended before its answer.
    pub async fn resume(&self, source: &mut Source, funds: &Funds) -> Result<(), Lost> {
        match self {
            Self::Http(link) => link.resume(source, funds).await,
            Self::Sse(_) | Self::Stdio(_) => Err(self.broken()),
        }
    }

    /// Comes back when what [`Link::stand`] opens was opened, or could not be.
    pub async fn stood(&self) {
        if let Self::Http(link) = self {
            link.stood().await;
        }
    }

    /// Opens what brings messages of no call, if the link has such a thing and it isn't open.
    pub fn stand(&self, peer: &Arc<Peer>) {
        if let Self::Http(link) = self {
            link.stand(peer);
        }
    }

    /// From now on that version of the protocol is spoken.
    pub fn speak(&self, version: &str) {
        match self {
            Self::Http(link) => link.speak(version),
            Self::Sse(_) | Self::Stdio(_) => {}
        }
    }

    /// Whether a server has to be told that nobody waits any more; else it sees its stream closed.
    pub fn is_told_of_cancellation(&self) -> bool {
        match self {
            Self::Http(link) => link.is_legacy(),
            Self::Sse(_) | Self::Stdio(_) => true,
        }
    }

    /// The server's name, for people.
    pub fn name(&self) -> Arc<str> {
        match self {
            Self::Http(link) => link.name(),
            Self::Sse(link) => link.name(),
            Self::Stdio(link) => link.name(),
        }
    }

    /// Ends what the server keeps for this link.
    pub async fn close(&self, funds: &Funds) {
        if let Self::Http(link) = self {
            link.close(funds).await;
        }
    }

    fn broken(&self) -> Lost {
        crate::upstream::UpstreamError::Protocol { endpoint: self.name() }.into()
    }
}
