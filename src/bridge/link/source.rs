//! Where messages come from: a JSON body, an event stream, a process.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response};
use http_body_util::BodyExt;

use crate::mcp::sse::Decoder;
use crate::reply::is_event_stream;
use crate::upstream::stdio::ChildLines;
use crate::upstream::{UpstreamBody, UpstreamError};

/// Longest message.
pub const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// How often in a row a stream that brings nothing new is gone on with.
const MAX_RESUMPTIONS: usize = 100;
/// How soon a stream that ended is asked for again, when the server doesn't say.
const RETRY: Duration = Duration::from_secs(1);
/// No server's wish for another time is taken beyond that.
const MAX_RETRY: Duration = Duration::from_secs(30);

/// Messages as they come.
pub enum Source {
    /// One JSON body: one message, or a batch.
    Json {
        name: Arc<str>,
        body: Option<UpstreamBody>,
    },
    Events(Events),
    Lines(ChildLines),
}

/// An event stream.
pub struct Events {
    name: Arc<str>,
    body: UpstreamBody,
    decoder: Decoder,
    /// From where the stream can be gone on with.
    pub last_id: Option<HeaderValue>,
    pub retry: Duration,
    /// How often it was gone on with since something came.
    resumed: usize,
    /// It is HTTP+SSE's stream: some servers open it whatever the request's method.
    is_http_sse: bool,
}

impl Source {
    /// What a response brings.
    pub fn of(name: Arc<str>, response: Response<UpstreamBody>) -> Self {
        if is_event_stream(response.headers()) {
            Self::Events(Events::new(name, response.into_body()))
        } else {
            Self::Json {
                name,
                body: Some(response.into_body()),
            }
        }
    }

    /// Whether it turned out to be HTTP+SSE's stream, which answers nothing that was posted here.
    pub fn is_http_sse(&self) -> bool {
        matches!(self, Self::Events(events) if events.is_http_sse)
    }

    /// The next message, raw; `None` at the end.
    ///
    /// # Errors
    /// When what comes is too long, or breaks off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        match self {
            Self::Json { name, body } => match body.take() {
                Some(body) => whole(body, name).await,
                None => Ok(None),
            },
            Self::Events(events) => events.message().await,
            Self::Lines(lines) => Ok(lines.next().await.transpose()?),
        }
    }
}

impl Events {
    /// The events of a body.
    pub fn new(name: Arc<str>, body: UpstreamBody) -> Self {
        Self {
            name,
            body,
            decoder: Decoder::new(MAX_MESSAGE),
            last_id: None,
            retry: RETRY,
            resumed: 0,
            is_http_sse: false,
        }
    }

    /// Whether it may be gone on with: a server that never comes to its answer is left in the end.
    pub fn may_go_on(&self) -> bool {
        self.resumed < MAX_RESUMPTIONS
    }

    /// Goes on with another body, after the last event that came.
    pub fn go_on(&mut self, body: UpstreamBody) {
        self.body = body;
        self.decoder = Decoder::new(MAX_MESSAGE);
        self.resumed += 1;
    }

    async fn message(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        loop {
            match self.event().await? {
                None => return Ok(None),
                Some((Some(name), _)) if &name[..] == b"endpoint" => {
                    self.is_http_sse = true;
                    return Ok(None);
                }
                Some((None, data)) if !data.is_empty() => {
                    self.resumed = 0;
                    return Ok(Some(data));
                }
                // An event of another name, or one that only primes the stream.
                Some(_) => {}
            }
        }
    }

    /// The next event that has data: its name and those.
    ///
    /// # Errors
    /// When it is too long, or breaks off.
    pub async fn event(&mut self) -> Result<Option<(Option<Bytes>, Bytes)>, UpstreamError> {
        let broken = |name: &Arc<str>| UpstreamError::Protocol { endpoint: name.clone() };
        loop {
            while let Some(event) = self.decoder.next_event().map_err(|_| broken(&self.name))? {
                if let Some(id) = event.last(b"id") {
                    self.last_id = HeaderValue::from_bytes(id).ok().filter(|id| !id.is_empty());
                }
                let retry = event
                    .last(b"retry")
                    .and_then(|retry| std::str::from_utf8(retry).ok()?.parse().ok());
                if let Some(retry) = retry {
                    self.retry = Duration::from_millis(retry).min(MAX_RETRY);
                }
                if let Some(data) = event.data() {
                    return Ok(Some((event.name().map(Bytes::copy_from_slice), data.clone())));
                }
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(_)) => return Err(broken(&self.name)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.decoder.push(data);
                    }
                }
            }
        }
    }
}

/// A body read whole; `None` when it is empty.
pub async fn whole(mut body: UpstreamBody, name: &Arc<str>) -> Result<Option<Bytes>, UpstreamError> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let data = frame.ok().and_then(|frame| frame.into_data().ok());
        match data {
            Some(data) if whole.len() + data.len() <= MAX_MESSAGE => whole.extend_from_slice(&data),
            _ => return Err(UpstreamError::Protocol { endpoint: name.clone() }),
        }
    }
    Ok((!whole.is_empty()).then(|| whole.freeze()))
}
