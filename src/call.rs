//! Body to call: reads a request's message, bounded, and finds its era.
//!
//! 1. The method decides first: what an endpoint doesn't take is 405 with `Allow`.
//! 2. A message is `application/json`, uncompressed (415), within the route's limit (413) and the listener's time (408).
//! 3. The envelope is parsed once, strictly; then headers and body must tell the same story.
//! 4. What the user said to a question of the gateway's own is taken out of the body, and is nobody else's to see.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, Method, Request};
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use crate::authn::{Known, Principal};
use crate::config::Credential;
use crate::edge::consent::{self, Consent};
use crate::edge::{BodyError, CallNotes, Check, Journey, Rejection};
use crate::mcp::{Era, Payload, agree, parse};
use crate::route::{Door, Route};
use crate::secret::Secret;
use crate::session::{Session, StreamHandle};

/// A request whose meaning is known.
#[derive(Debug)]
pub struct Call {
    pub journey: Arc<Journey>,
    pub route: Arc<Route>,
    pub principal: Arc<Principal>,
    /// The caller's token, for exchange only.
    pub token: Option<Token>,
    pub headers: HeaderMap,
    /// The legacy session it belongs to, once [`crate::session::SessionCheck`] has opened it.
    pub session: Option<Session>,
    pub form: Form,
}

/// A caller's token on its way to the exchange; says nothing of itself.
pub struct Token(pub Secret);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl Call {
    /// Whether its client can be asked to open a page, as far as a legacy client has said.
    pub fn opens_pages(&self) -> bool {
        let said = |session: &Session| session.opens_pages;
        self.session.as_ref().is_some_and(said)
            || matches!(&self.form, Form::Post { payload, .. } if payload.messages().iter().any(consent::declares))
    }
}

/// What kind of call it is.
#[derive(Debug)]
pub enum Form {
    /// A message to the MCP endpoint.
    Post { era: Era, payload: Payload, body: Bytes },
    /// A message to an HTTP+SSE stream.
    Message {
        stream: StreamHandle,
        payload: Payload,
        body: Bytes,
    },
    /// GET: a legacy standing stream, resumed or new, or an HTTP+SSE stream.
    Get,
    /// DELETE: the end of a legacy session.
    Delete,
}

/// Reads calls.
#[derive(Debug)]
pub struct Intake {
    /// For a whole request body.
    pub body_timeout: Duration,
}

impl<B> Check<Known<B>> for Intake
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    /// Boxed, like the request before it: all that follows moves it on.
    type Passed = Box<Call>;

    async fn check(&self, known: Known<B>) -> Result<Box<Call>, Rejection> {
        let Known {
            journey,
            route,
            door,
            principal,
            token,
            stream,
            request,
        } = known;
        let form = match (door, request.method()) {
            (Door::Mcp, &Method::GET) => Form::Get,
            (Door::Mcp, &Method::DELETE) => Form::Delete,
            (Door::Mcp | Door::Messages, &Method::POST) => {
                return self.post(journey, route, door, principal, token, stream, request).await;
            }
            (Door::Mcp, _) => {
                return Err(Rejection::MethodNotAllowed {
                    allow: "GET, POST, DELETE",
                });
            }
            (Door::Messages, _) => {
                return Err(Rejection::MethodNotAllowed { allow: "POST" });
            }
        };
        let (parts, _) = request.into_parts();
        Ok(Box::new(Call {
            journey,
            route,
            principal,
            token: token.map(Token),
            headers: parts.headers,
            session: None,
            form,
        }))
    }
}

impl Intake {
    #[expect(clippy::too_many_arguments, reason = "the fields of `Known`, taken apart once")]
    async fn post<B>(
        &self,
        journey: Arc<Journey>,
        route: Arc<Route>,
        door: Door,
        principal: Arc<Principal>,
        token: Option<Secret>,
        stream: Option<StreamHandle>,
        request: Box<Request<B>>,
    ) -> Result<Box<Call>, Rejection>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        let (parts, body) = request.into_parts();
        if !is_json(&parts.headers) {
            return Err(Rejection::UnsupportedMediaType);
        }
        let mut body = read(&parts.headers, body, route.config.body_limit, self.body_timeout).await?;
        let mut payload = parse(&body).map_err(Rejection::Envelope)?;
        let era = match door {
            Door::Mcp => agree(&parts.headers, &payload),
            Door::Messages => Ok(Era::Sse),
        };
        let mut consent = None;
        if matches!(era, Ok(Era::Modern))
            && let Some((rest, said)) = consent_of(&route, &payload)
        {
            payload = parse(&rest).map_err(Rejection::Envelope)?;
            (body, consent) = (rest, Some(said));
        }
        let _ = journey.call.set(CallNotes {
            // A disagreement is a modern client's: legacy ones have nothing to disagree with.
            era: *era.as_ref().unwrap_or(&Era::Modern),
            payload: payload.clone(),
            consent,
            stream: stream.clone(),
        });
        let era = era.map_err(Rejection::Agreement)?;
        let form = match (door, stream) {
            (Door::Mcp, _) => Form::Post { era, payload, body },
            (Door::Messages, Some(stream)) => Form::Message { stream, payload, body },
            (Door::Messages, None) => return Err(Rejection::UnknownSession),
        };
        Ok(Box::new(Call {
            journey,
            route,
            principal,
            token: token.map(Token),
            headers: parts.headers,
            session: None,
            form,
        }))
    }
}

/// A request's body, within so many bytes and this time.
///
/// # Errors
/// It is longer, slower, or ends early.
pub async fn read<B>(headers: &HeaderMap, body: B, limit: usize, patience: Duration) -> Result<Bytes, Rejection>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(Rejection::BodyTooLarge { limit });
    }
    match tokio::time::timeout(patience, whole(Limited::new(body, limit))).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Rejection::BodyTooLarge { limit }),
        Ok(Err(_)) => Err(Rejection::BodyBroken),
        Err(_) => Err(Rejection::BodyTimeout),
    }
}

/// What a retry brings for the gateway itself, and the message without it.
fn consent_of(route: &Route, payload: &Payload) -> Option<(Bytes, Consent)> {
    let connects = matches!(route.config.credential, Credential::Connection(_));
    let [message] = payload.messages() else { return None };
    (connects && message.is_retry).then(|| consent::taken(&message.raw))?
}

/// A body's bytes; those of a body that came in one piece, as most do, are not copied.
async fn whole<B>(body: B) -> Result<Bytes, B::Error>
where
    B: Body<Data = Bytes>,
{
    let mut body = pin!(body);
    let Some(first) = body.frame().await.transpose()? else {
        return Ok(Bytes::new());
    };
    let first = first.into_data().unwrap_or_default();
    if body.is_end_stream() {
        return Ok(first);
    }
    let mut bytes = BytesMut::from(first);
    while let Some(frame) = body.frame().await.transpose()? {
        if let Ok(data) = frame.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes.freeze())
}

/// Whether the body says it is plain JSON (RFC 8259 defines no charset parameter; `utf-8` is what clients send).
fn is_json(headers: &HeaderMap) -> bool {
    if headers.contains_key(CONTENT_ENCODING) {
        return false;
    }
    let Some(value) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let mut parts = value.split(';').map(str::trim);
    parts
        .next()
        .is_some_and(|media| media.eq_ignore_ascii_case("application/json"))
        && parts.all(|parameter| {
            parameter.split_once('=').is_none_or(|(name, value)| {
                !name.trim().eq_ignore_ascii_case("charset") || value.trim_matches('"').eq_ignore_ascii_case("utf-8")
            })
        })
}
