//! HTTP+SSE (MCP 2024-11-05): one stream on which everything comes, and a URL of the server's for everything that goes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::Source;
use super::source::Events;
use crate::bridge::era::{self, Verdict};
use crate::bridge::peer::{Funds, Lost};
use crate::edge::Rejection;
use crate::reply::{is_encoded, is_event_stream};
use crate::upstream::{EndpointId, Outbound, Upstream, UpstreamError};

/// How long the `endpoint` event may take.
const OPENING: Duration = Duration::from_secs(10);

/// A server that is posted to at the URL it named.
pub struct SseLink {
    upstream: Arc<Upstream>,
    endpoint: EndpointId,
    name: Arc<str>,
    target: PathAndQuery,
}

impl SseLink {
    /// Opens the stream and waits for the URL. `None` when the server offers no such stream.
    ///
    /// # Errors
    /// When the server can't be reached, or says nothing that would tell.
    pub async fn open(upstream: &Arc<Upstream>, funds: &Funds) -> Result<Option<(Self, Source)>, Lost> {
        let outbound = Outbound {
            method: &Method::GET,
            target: None,
            headers: &|| {
                let mut headers = funds.forwarded.clone();
                headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
                headers
            },
            body: Bytes::new(),
            endpoint: None,
            sticky: None,
        };
        let sending = upstream.send(&funds.permit, &funds.credential, outbound);
        let sent = match tokio::time::timeout(OPENING, sending).await {
            Ok(sent) => sent?,
            // Some send no head before the first event; those of this transport begin with one.
            Err(_) => return Err(Lost::Status(StatusCode::GATEWAY_TIMEOUT)),
        };
        let status = sent.response.status();
        if status == StatusCode::UNAUTHORIZED {
            return Err(Rejection::CredentialRefused.into());
        }
        if era::of_status(status) == Verdict::Inconclusive {
            return Err(Lost::Status(status));
        }
        if !status.is_success() || !is_event_stream(sent.response.headers()) || is_encoded(sent.response.headers()) {
            return Ok(None);
        }
        let mut events = Events::new(sent.name.clone(), sent.response.into_body().without_idle_end());
        let first = tokio::time::timeout(OPENING, events.event()).await;
        let Ok(first) = first else {
            return Err(UpstreamError::Timeout {
                endpoint: sent.name,
                after: OPENING,
            }
            .into());
        };
        let Some((Some(event), data)) = first? else {
            return Ok(None);
        };
        let reference = std::str::from_utf8(&data).unwrap_or_default();
        if &event[..] != b"endpoint" {
            return Ok(None);
        }
        let target = upstream
            .resolve(&sent.endpoint, reference.trim())
            .ok_or(Rejection::UpstreamNonsense(
                "its endpoint event names no URL on its own origin",
            ));
        let link = Self {
            upstream: upstream.clone(),
            endpoint: sent.endpoint,
            name: sent.name,
            target: target?,
        };
        Ok(Some((link, Source::Events(events))))
    }

    /// The server's name.
    pub fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    /// Posts a message; its answer comes over the stream.
    ///
    /// # Errors
    /// When it isn't taken.
    pub async fn post(&self, message: Bytes, funds: &Funds) -> Result<(), Lost> {
        let outbound = Outbound {
            method: &Method::POST,
            target: Some(&self.target),
            headers: &|| {
                let mut headers: HeaderMap = funds.forwarded.clone();
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                headers
            },
            body: message,
            endpoint: Some(self.endpoint.clone()),
            sticky: None,
        };
        let sent = self.upstream.send(&funds.permit, &funds.credential, outbound).await?;
        match sent.response.status() {
            status if status.is_success() => Ok(()),
            StatusCode::UNAUTHORIZED => Err(Rejection::CredentialRefused.into()),
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(Lost::Session),
            status => Err(Lost::Status(status)),
        }
    }
}
