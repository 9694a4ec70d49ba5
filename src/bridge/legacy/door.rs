//! Which requests come here, and what becomes of each.
//!
//! 1. A request of a session that the gateway serves is the session's, whoever the server is by now. So is every legacy
//!    POST, GET and DELETE where the server is known to take no `initialize` by POST. Elsewhere `initialize` is forwarded,
//!    and a refusal has the server asked whether it speaks otherwise ([`takes_over`]).
//! 2. A GET with neither session nor version opens HTTP+SSE: the server's own stream where it has one, else the gateway's.
//!    One that names a version asks for the standing stream of a session that it doesn't name: 405.
//! 3. What a client posts is taken message by message: requests are calls, answers go to whoever asked, and a
//!    notification that a request is taken back ends that call. A batch's refused members are answered for.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::call::{Caller, params_of};
use super::respond::Calls;
use super::session::Session;
use super::standing::{self, Stream};
use crate::bridge::map;
use crate::bridge::message::{self, Incoming, at};
use crate::bridge::peer::Lost;
use crate::call::{Call, Form};
use crate::edge::{Body, Rejection, empty, json};
use crate::limit::Who;
use crate::mcp::{Era, Id, Kind, Message, sse};
use crate::reply::{Ending, Sending, Shared, note, refused_members, see};
use crate::session::{Purpose, SESSION_HEADER, StreamKey, Target, person, random_stream_key};
use crate::telemetry::{GaugeGuard, Outcome};
use crate::upstream::UpstreamError;

const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// What may wait for a POST's reader, or an HTTP+SSE stream's.
const QUEUED: usize = 32;

/// Whose a legacy request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The server's, as it is.
    Server,
    /// The server's to answer, and the gateway's where the server refuses: `initialize`.
    Introduction,
    /// The gateway's.
    Gateway,
}

impl Door {
    /// Rules 1 and 2.
    ///
    /// # Errors
    /// When the server has to be asked, and can't be.
    pub async fn of(sending: &Sending) -> Result<Self, Rejection> {
        let call = sending.call();
        let bridge = &call.route.bridge;
        let nature = bridge.nature();
        if bridge.is_stdio() {
            return Ok(match &call.form {
                Form::Post { era: Era::Modern, .. } => Self::Server,
                _ => Self::Gateway,
            });
        }
        if let Some(session) = &call.session {
            return Ok(match session.bridge_key() {
                Some(_) => Self::Gateway,
                None => Self::Server,
            });
        }
        Ok(match &call.form {
            Form::Post { era: Era::Modern, .. } => Self::Server,
            Form::Message { stream, .. } => match stream.bridge_key() {
                Some(_) => Self::Gateway,
                None => Self::Server,
            },
            Form::Post { payload, .. } => match nature.streamable().get() {
                Some(false) => Self::Gateway,
                _ if initializes(payload.messages()).is_some() => Self::Introduction,
                _ => Self::Server,
            },
            Form::Delete => match nature.streamable().get() {
                Some(false) => Self::Gateway,
                _ => Self::Server,
            },
            Form::Get if nature.sse().get() == Some(true) => Self::Server,
            Form::Get if !opens(call) => match nature.streamable().get() {
                Some(false) => Self::Gateway,
                _ => Self::Server,
            },
            Form::Get => {
                let known = nature.streamable().get() == Some(true) || nature.modern().get() == Some(true);
                let has_stream = !known && Box::pin(has_stream(sending)).await?;
                match has_stream {
                    true => Self::Server,
                    false => Self::Gateway,
                }
            }
        })
    }
}

async fn has_stream(sending: &Sending) -> Result<bool, Rejection> {
    match sending.route().bridge.opener(&sending.funds()).is_sse().await {
        // A stream without a word is no HTTP+SSE stream; one that this caller may not have leaves the gateway's own.
        Err(
            Lost::Rejected(Rejection::Upstream(UpstreamError::Timeout { .. })) | Lost::Status(StatusCode::FORBIDDEN),
        ) => Ok(false),
        found => Ok(found?),
    }
}

/// Whether a server that refused `initialize` is one that the gateway speaks to in another way; noted, if it is.
pub async fn takes_over(sending: &Sending) -> bool {
    let funds = sending.funds();
    let bridge = &sending.route().bridge;
    let opener = bridge.opener(&funds);
    // Where nothing can be found out the server's own words are the best there is.
    let found = matches!(opener.is_modern().await, Ok(true)) || matches!(opener.is_sse().await, Ok(true));
    let takes_over = found && !opener.takes_initialize().await;
    if takes_over {
        bridge.nature().streamable().set(Some(false));
    }
    takes_over
}

/// Whether a GET opens HTTP+SSE.
fn opens(call: &Call) -> bool {
    !call.headers.contains_key(VERSION) && !call.headers.contains_key(LAST_EVENT_ID)
}

/// The request that opens a session.
pub fn initializes(messages: &[Message]) -> Option<&Message> {
    match messages {
        [message] => (&*message.method == "initialize" && message.kind == Kind::Request).then_some(message),
        _ => None,
    }
}

/// Serves what is the gateway's.
///
/// # Errors
/// Why not; the endings that are still there are the caller's to finish.
pub async fn serve(shared: &Shared, sending: Sending, endings: &mut Vec<Ending>) -> Result<Response<Body>, Rejection> {
    let call = sending.call();
    let session = session_of(call);
    match &call.form {
        Form::Get if call.session.is_none() && opens(call) => open_stream(shared, &sending, endings),
        Form::Get if call.session.is_none() => Err(Rejection::MethodNotAllowed { allow: "POST, DELETE" }),
        Form::Get => stand(shared, &sending, session.ok_or(Rejection::UnknownSession)?, endings),
        Form::Delete => {
            let session = session.ok_or(Rejection::UnknownSession)?;
            call.route.bridge.sessions().end(&session.key);
            finish(endings, Outcome::Success);
            Ok(Response::new(empty()))
        }
        Form::Post { payload, .. } if call.session.is_none() => match initializes(payload.messages()) {
            Some(_) => open_session(shared, sending, endings).await,
            None => Err(Rejection::UnknownSession),
        },
        Form::Post { .. } | Form::Message { .. } => {
            take(shared, sending, session.ok_or(Rejection::UnknownSession)?, endings).await
        }
    }
}

/// The session that a request names, if it is still there.
fn session_of(call: &Call) -> Option<Arc<Session>> {
    let key = match &call.form {
        Form::Message { stream, .. } => *stream.bridge_key()?,
        _ => call.session.as_ref()?.bridge_key()?,
    };
    // A message without a bearer is its stream's principal's.
    call.route.bridge.sessions().find(&key, &person(&call.principal))
}

/// A session of Streamable HTTP: opened by `initialize`, and told its id with the answer.
async fn open_session(
    shared: &Shared,
    sending: Sending,
    endings: &mut Vec<Ending>,
) -> Result<Response<Body>, Rejection> {
    let call = sending.call();
    let funds = sending.funds();
    let request = initializes(sending.messages()).expect("it was looked at");
    let id = request.id.clone().expect("a request has an id");
    let gauge = call.route.metrics.session("streamable-http");
    let session = new_session(call, random_stream_key(), None, Some(gauge));
    session.fund(&funds);
    let sealed = crate::session::Session::bridged(&session.key, call.opens_pages())
        .seal(&shared.sealer, call.route.name(), &call.principal)
        .and_then(|sealed| HeaderValue::try_from(sealed).ok())
        .expect("a key is short enough to be sealed");
    let answered = match params_of(&request.raw) {
        Ok(params) => Box::pin(super::introduce::introduce(&session, &call.route, &params, &funds)).await?,
        Err(error) => Err(error),
    };
    if let Some(back) = session.back() {
        note(endings, sending.kind(), &back.peer.name());
        if call.route.bridge.sessions().keep(&session).is_none() {
            session.close().await;
            return Err(too_many(call));
        }
    }
    let answer = message::answer(&id, &answered);
    finish(endings, see(&answer).0);
    let mut response = json(StatusCode::OK, answer);
    if answered.is_ok() {
        response.headers_mut().insert(SESSION_HEADER, sealed);
    }
    Ok(response)
}

/// A session of HTTP+SSE: its stream, which says where messages are posted to.
fn open_stream(shared: &Shared, sending: &Sending, endings: &mut Vec<Ending>) -> Result<Response<Body>, Rejection> {
    let call = sending.call();
    let open = shared.streams.open(
        call.route.config.name.clone(),
        call.principal.clone(),
        Target::Bridge,
        call.route.metrics.session("sse"),
    );
    let (sender, answers) = mpsc::channel(QUEUED);
    let session = new_session(call, *open.key(), Some(sender), None);
    session.fund(&sending.funds());
    call.route
        .bridge
        .sessions()
        .keep(&session)
        .ok_or_else(|| too_many(call))?;
    let sealed = shared
        .sealer
        .seal(Purpose::SseSession, open.key())
        .expect("a key is short enough to be sealed");
    let first = format!(
        "event: endpoint\ndata: {}?session_id={sealed}\n\n",
        call.route.messages_url()
    );
    finish(endings, Outcome::Success);
    let stream = Stream {
        open,
        answers,
        route: call.route.clone(),
    };
    let (standing, inspector) = (shared.standing(call), shared.inspector(call, Era::Sse));
    Ok(standing::response(
        session,
        standing,
        inspector,
        Some(stream),
        Some(first.into()),
    ))
}

/// The standing stream of a session of Streamable HTTP.
fn stand(
    shared: &Shared,
    sending: &Sending,
    session: Arc<Session>,
    endings: &mut Vec<Ending>,
) -> Result<Response<Body>, Rejection> {
    let call = sending.call();
    session.fund(&sending.funds());
    finish(endings, Outcome::Success);
    let (standing, inspector) = (shared.standing(call), shared.inspector(call, Era::Legacy));
    Ok(standing::response(session, standing, inspector, None, None))
}

/// Rule 3.
async fn take(
    shared: &Shared,
    sending: Sending,
    session: Arc<Session>,
    endings: &mut Vec<Ending>,
) -> Result<Response<Body>, Rejection> {
    let funds = sending.funds();
    session.fund(&funds);
    if let Some(back) = session.back() {
        note(endings, sending.kind(), &back.peer.name());
    }
    let call = sending.call();
    let Some(payload) = sending.payload() else {
        return Err(Rejection::UnknownSession);
    };
    let (era, batch) = (sending.era(), payload.is_batch());
    let refused: Vec<Bytes> = refused_members(call, payload, &sending.permitted.decisions)
        .into_iter()
        .map(Bytes::from)
        .collect();
    let inspector = Arc::new(shared.inspector(call, era));
    let (journey, route) = (call.journey.clone(), call.route.clone());
    let mut requests = Vec::new();
    let members: Vec<(usize, Message)> = payload
        .messages()
        .iter()
        .enumerate()
        .filter(|(member, _)| {
            sending
                .permitted
                .decisions
                .get(*member)
                .is_some_and(|decision| decision.is_allowed())
        })
        .map(|(member, message)| (member, message.clone()))
        .collect();
    for (member, message) in members {
        let place = endings.iter().position(|ending| ending.member() == Some(member));
        let ending = place.map(|place| endings.swap_remove(place));
        match message.kind {
            Kind::Request => requests.push((member, ending)),
            Kind::Notification => {
                hear(&session, &message, &funds).await;
                ending.into_iter().for_each(|ending| ending.finish(Outcome::Success));
            }
            Kind::Response => {
                answer(&session, &message);
                ending.into_iter().for_each(|ending| ending.finish(Outcome::Success));
            }
        }
    }
    if requests.is_empty() && refused.is_empty() {
        return Ok(accepted());
    }
    let (sender, out) = mpsc::channel(QUEUED);
    let caller = Caller {
        session: session.clone(),
        sending: Arc::new(sending),
        inspector,
        funds,
        out: sender,
    };
    let mut calls = Calls {
        out,
        tasks: JoinSet::new(),
        count: requests.len(),
        refused,
        batch,
        journey,
    };
    for (member, ending) in requests {
        calls.tasks.spawn(caller.clone().carry(member, ending));
    }
    drop(caller);
    let Some(stream) = session.answers() else {
        return calls.response(endings, || route.metrics.stream()).await;
    };
    for error in std::mem::take(&mut calls.refused) {
        let _ = stream.send(sse::message(&error)).await;
    }
    tokio::spawn(calls.pour(stream.clone()));
    Ok(accepted())
}

/// A client's notification.
async fn hear(session: &Arc<Session>, message: &Message, funds: &crate::bridge::peer::Funds) {
    let Ok(params) = params_of(&message.raw) else { return };
    match &*message.method {
        // The gateway has said so itself.
        "notifications/initialized" => {}
        "notifications/cancelled" => {
            if let Some(id) = at(&params, &["requestId"]) {
                session.cancel(&Id(id));
            }
        }
        method => {
            let Some(back) = session.back() else { return };
            let params = match back.modern.is_some() || back.shared {
                // To a process that serves everybody it would be everybody's.
                true => map::client_notification(method, &params),
                false => Some(params),
            };
            if let Some(params) = params
                && let Err(lost) = back.peer.notify(method, &params, funds).await
            {
                tracing::debug!(
                    endpoint = &*back.peer.name(),
                    error = lost.to_string(),
                    "a notification was not taken"
                );
            }
        }
    }
}

/// A client's answer to what it was asked.
fn answer(session: &Session, message: &Message) {
    let Some(asker) = message.id.as_ref().and_then(|id| session.questions.take(id)) else {
        return;
    };
    let read = Incoming::read(&message.raw)
        .ok()
        .and_then(|read| read.into_iter().next());
    match read {
        Some(Incoming::Answer { outcome, .. }) => asker.hear(outcome),
        _ => drop(asker),
    }
}

fn new_session(
    call: &Call,
    key: StreamKey,
    answers: Option<mpsc::Sender<Bytes>>,
    gauge: Option<GaugeGuard>,
) -> Arc<Session> {
    let owner = Who::calls(&call.principal, call.journey.client());
    Session::new(key, person(&call.principal), owner, answers, gauge)
}

fn too_many(call: &Call) -> Rejection {
    UpstreamError::Busy {
        endpoint: call.route.config.name.clone(),
    }
    .into()
}

fn finish(endings: &mut Vec<Ending>, outcome: Outcome) {
    for ending in endings.drain(..) {
        ending.finish(outcome);
    }
}

fn accepted() -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}
