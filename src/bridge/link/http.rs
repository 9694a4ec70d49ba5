//! Streamable HTTP: every message a POST, whose reply is JSON or a stream; in legacy revisions also a session and a
//! standing stream.
//!
//! 1. The server's session id and endpoint are kept from its first reply, and go with everything after it.
//! 2. A session that the server answers with 404 is over (MCP 2025-11-25, "Session Management").
//! 3. A reply's stream that ends before its answer is gone on with from its last event, a bounded number of times.
//! 4. The standing stream is opened anew when it ends, unless the server offers none (405).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::source::{Events, whole};
use super::{Posted, Source};
use crate::bridge::message::Incoming;
use crate::bridge::peer::{Funds, Lost, Peer, ServerEra};
use crate::edge::Rejection;
use crate::reply::{is_encoded, is_event_stream, is_json};
use crate::session::SESSION_HEADER;
use crate::upstream::{EndpointId, Outbound, Sent, Upstream, UpstreamError};

const BOTH: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Longest pause before the standing stream is asked for again.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// A server that is posted to.
pub struct HttpLink {
    upstream: Arc<Upstream>,
    era: ServerEra,
    session: OnceLock<HeaderValue>,
    endpoint: OnceLock<EndpointId>,
    /// Who answered last.
    name: Mutex<Arc<str>>,
    version: OnceLock<HeaderValue>,
    stands: AtomicBool,
    /// The standing stream is open, or was not to be had.
    stood: CancellationToken,
    standing: OnceLock<AbortHandle>,
}

impl HttpLink {
    /// A link that no message has gone over.
    pub fn new(upstream: Arc<Upstream>, era: ServerEra) -> Self {
        Self {
            upstream,
            era,
            session: OnceLock::new(),
            endpoint: OnceLock::new(),
            name: Mutex::new("".into()),
            version: OnceLock::new(),
            stands: AtomicBool::new(false),
            stood: CancellationToken::new(),
            standing: OnceLock::new(),
        }
    }

    /// Whether it is a session's.
    pub fn is_legacy(&self) -> bool {
        self.era == ServerEra::Legacy
    }

    /// The server's name, once it has answered.
    pub fn name(&self) -> Arc<str> {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What `MCP-Protocol-Version` says from now on.
    pub fn speak(&self, version: &str) {
        // 2025-03-26 knew no such header; later servers that are sent it ignore it.
        if let Ok(version) = HeaderValue::try_from(version) {
            let _ = self.version.set(version);
        }
    }

    /// Posts a message.
    ///
    /// # Errors
    /// When it can't be, or isn't taken.
    pub async fn post(&self, message: Bytes, funds: &Funds, method: &str, headers: &HeaderMap) -> Result<Posted, Lost> {
        let all = || {
            let mut all = self.headers(funds, BOTH);
            all.insert(CONTENT_TYPE, JSON);
            if self.era == ServerEra::Modern
                && let Ok(method) = HeaderValue::try_from(method)
            {
                all.insert(METHOD, method);
            }
            all.extend(headers.clone());
            all
        };
        let sent = self.send(Method::POST, message, funds, &all).await?;
        // What the first reply comes from and belongs to is what everything after it is for.
        if self.era == ServerEra::Legacy
            && let Some(session) = sent.response.headers().get(SESSION_HEADER)
        {
            let _ = self.session.set(session.clone());
        }
        let status = sent.response.status();
        if is_event_stream(sent.response.headers()) && status.is_success() {
            return Ok(Posted::Reply(Box::new(Source::of(sent.name, sent.response))));
        }
        let asks = !(method.starts_with("notifications/") || method.is_empty());
        if status == StatusCode::ACCEPTED || status == StatusCode::NO_CONTENT {
            // A request that is only taken is never answered.
            return match asks {
                true => Err(Lost::Status(status)),
                false => Ok(Posted::Taken),
            };
        }
        if status.is_success() {
            return Ok(match is_json(sent.response.headers()) {
                true => Posted::Reply(Box::new(Source::of(sent.name, sent.response))),
                // What was no request needs no reply.
                false if !asks => Posted::Taken,
                false => {
                    let why = "its reply is neither application/json nor text/event-stream";
                    return Err(Rejection::UpstreamNonsense(why).into());
                }
            });
        }
        Err(self.refused(sent).await)
    }

    /// Reads a refusal for the JSON-RPC error that it may be.
    async fn refused(&self, sent: Sent) -> Lost {
        let status = sent.response.status();
        if status == StatusCode::NOT_FOUND && self.session.get().is_some() {
            return Lost::Session;
        }
        let body = whole(sent.response.into_body(), &sent.name).await.ok().flatten();
        let answer = body.and_then(|body| Incoming::read(&body).ok()?.into_iter().next());
        match answer {
            Some(Incoming::Answer {
                outcome: Err(error), ..
            }) => Lost::Refused { status, error },
            _ => Lost::Status(status),
        }
    }

    /// Asks for the rest of a stream that ended.
    pub async fn resume(&self, source: &mut Source, funds: &Funds) -> Result<(), Lost> {
        let broken = || UpstreamError::Protocol { endpoint: self.name() };
        let Source::Events(events) = source else {
            return Err(broken().into());
        };
        let Some(last) = events.last_id.clone().filter(|_| self.is_legacy()) else {
            return Err(broken().into());
        };
        if !events.may_go_on() {
            return Err(broken().into());
        }
        tokio::time::sleep(events.retry).await;
        let sent = self.get(funds, Some(&last)).await?;
        if !is_event_stream(sent.response.headers()) || !sent.response.status().is_success() {
            return Err(broken().into());
        }
        events.go_on(sent.response.into_body());
        Ok(())
    }

    /// Keeps the standing stream open for as long as the peer is there.
    pub fn stand(&self, peer: &Arc<Peer>) {
        if self.stands.swap(true, Ordering::Relaxed) {
            return;
        }
        let (weak, stood) = (Arc::downgrade(peer), self.stood.clone());
        let standing = tokio::spawn(async move {
            let mut last: Option<HeaderValue> = None;
            let mut pause = Duration::from_secs(1);
            loop {
                let Some(peer) = weak.upgrade() else { return };
                let opened = peer.open_standing(last.as_ref()).await;
                stood.cancel();
                if matches!(opened, Err(Lost::Session)) {
                    return peer.forgotten();
                }
                drop(peer);
                let mut events = match opened {
                    Ok(Some(events)) => events,
                    // It has none.
                    Ok(None) => return,
                    Err(_) => {
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(MAX_PAUSE);
                        continue;
                    }
                };
                while let Ok(Some((name, data))) = events.event().await {
                    let Some(peer) = weak.upgrade() else { return };
                    pause = Duration::from_secs(1);
                    if name.is_none() && !data.is_empty() && peer.hear(&data, None).await.is_err() {
                        tracing::debug!(
                            endpoint = &*peer.name(),
                            "something on the standing stream is not JSON-RPC"
                        );
                    }
                }
                last = events.last_id.clone().or(last);
                tokio::time::sleep(events.retry.max(Duration::from_millis(100))).await;
            }
        });
        let _ = self.standing.set(standing.abort_handle());
    }

    /// Comes back when the standing stream was opened for the first time, or could not be.
    pub async fn stood(&self) {
        self.stood.cancelled().await;
    }

    /// The standing stream; `None` when the server offers none.
    pub async fn open_standing(&self, funds: &Funds, last: Option<&HeaderValue>) -> Result<Option<Events>, Lost> {
        let sent = self.get(funds, last).await?;
        match sent.response.status() {
            status if status.is_success() && is_event_stream(sent.response.headers()) => {
                let body = sent.response.into_body().without_idle_end();
                Ok(Some(Events::new(sent.name, body)))
            }
            StatusCode::NOT_FOUND if self.session.get().is_some() => Err(Lost::Session),
            status if status.is_client_error() => Ok(None),
            status => Err(Lost::Status(status)),
        }
    }

    /// Tells a legacy server that its session is over; it may not care (405).
    pub async fn close(&self, funds: &Funds) {
        if self.session.get().is_some() {
            let _ = self
                .send(Method::DELETE, Bytes::new(), funds, &|| self.headers(funds, BOTH))
                .await;
        }
    }

    async fn get(&self, funds: &Funds, last: Option<&HeaderValue>) -> Result<Sent, Lost> {
        self.send(Method::GET, Bytes::new(), funds, &|| {
            let mut headers = self.headers(funds, EVENTS);
            if let Some(last) = last {
                headers.insert(LAST_EVENT_ID, last.clone());
            }
            headers
        })
        .await
    }

    async fn send(
        &self,
        method: Method,
        body: Bytes,
        funds: &Funds,
        headers: &(dyn Fn() -> HeaderMap + Send + Sync),
    ) -> Result<Sent, Lost> {
        let outbound = Outbound {
            method: &method,
            target: None,
            headers,
            body,
            endpoint: self.endpoint.get().cloned(),
            sticky: None,
        };
        let sent = self.upstream.send(&funds.permit, &funds.credential, outbound).await?;
        *self.name.lock().unwrap_or_else(PoisonError::into_inner) = sent.name.clone();
        // A modern server keeps nothing: any endpoint will do.
        if self.era == ServerEra::Legacy {
            let _ = self.endpoint.set(sent.endpoint.clone());
        }
        match sent.response.status() {
            StatusCode::UNAUTHORIZED => Err(Rejection::CredentialRefused.into()),
            _ if is_encoded(sent.response.headers()) => {
                Err(Rejection::UpstreamNonsense("its reply is compressed, and can't be read").into())
            }
            _ => Ok(sent),
        }
    }

    fn headers(&self, funds: &Funds, accept: HeaderValue) -> HeaderMap {
        let mut headers = funds.forwarded.clone();
        headers.insert(ACCEPT, accept);
        if let Some(version) = self.version.get() {
            headers.insert(VERSION, version.clone());
        }
        if let Some(session) = self.session.get() {
            headers.insert(SESSION_HEADER, session.clone());
        }
        headers
    }
}

impl Drop for HttpLink {
    fn drop(&mut self) {
        if let Some(standing) = self.standing.get() {
            standing.abort();
        }
    }
}
