//! Modern callers of a server that isn't modern, or is a command.
//!
//! 1. A request goes over the connection that its person's requests share ([`super::peers`]). What the gateway is told of
//!    the client with each request, the server was told when the connection was opened.
//! 2. The answer is JSON when it is the first thing that happens; else what happens is told as it does, by events.
//! 3. A call that needs its caller's input waits (`parked`); the retry that brings it goes on with it. The retry is
//!    a request like any other: authorized, counted and audited by itself.
//! 4. `server/discover` is answered from what the server said when the connection was opened, `subscriptions/listen` by
//!    `listen`. A modern server that is a command gets all else as it is. Notifications are for nobody: no call of a modern client outlasts its request.

use std::sync::Arc;

use aws_lc_rs::digest;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::time::Instant;

use super::course::{Caller, Course, Finished, Step, unanswered};
use super::map::{self, ToLegacy};
use super::message::{self, at};
use super::opening::{LEGACY, MODERN, client_info};
use super::parked::{Binding, Ticket};
use super::peer::{Ask, Funds, Listener, Lost, Peer, ServerEra};
use super::peers::Key;
use super::{Bridge, listen};
use crate::call::Form;
use crate::edge::{Body, BodyError, Rejection, empty, json, rescue};
use crate::mcp::object::Object;
use crate::mcp::{Era, Kind, Message, sse};
use crate::reply::events::{COMMENT, KEEPALIVE};
use crate::reply::gather::{Pages, budgeted, gather};
use crate::reply::sending::Sending;
use crate::reply::{Ending, Shared, outcome_of_failure};
use crate::session::person;
use crate::telemetry::{GaugeGuard, Outcome};
use crate::upstream::UpstreamError;

/// How a caller's requests reach the server.
pub struct Way {
    bridge: Arc<Bridge>,
    key: Key,
    /// The parameters of `initialize`, raw.
    initialize: Bytes,
    funds: Funds,
    /// The kind of credential, for the audit.
    kind: &'static str,
    /// Whether all that uses the connection is one person's: what doesn't say which call it is about may be told to any.
    one_person: bool,
}

impl Way {
    fn new(sending: &Sending, caller: &ToLegacy, capabilities: &Bytes) -> Self {
        let call = sending.call();
        let info = caller.client_info.as_deref().filter(|info| introduces(info));
        let info = info.map_or_else(client_info, |info| String::from_utf8_lossy(info).into_owned());
        let declared = String::from_utf8_lossy(capabilities);
        let initialize = format!(r#"{{"protocolVersion":"{LEGACY}","capabilities":{declared},"clientInfo":{info}}}"#);
        // A modern server is told with each request.
        let told = if call.route.bridge.nature().modern().get() == Some(true) {
            &[][..]
        } else {
            capabilities
        };
        let client = digest::digest(&digest::SHA256, told);
        Self {
            bridge: call.route.bridge.clone(),
            key: Key {
                person: person(&call.principal),
                client: client.as_ref().try_into().expect("SHA-256 has 32 bytes"),
            },
            initialize: initialize.into(),
            funds: sending.funds(),
            kind: sending.kind(),
            one_person: !call.principal.is_anonymous() && !call.route.bridge.is_shared(),
        }
    }

    /// The connection, opened if there is none.
    ///
    /// # Errors
    /// When it can't be opened.
    pub async fn peer(&self) -> Result<Arc<Peer>, Rejection> {
        self.bridge.shared(&self.key, &self.initialize, &self.funds).await
    }

    /// Whether the shared connection of a legacy server is not one person's: nobody could say which of the anonymous callers
    /// a question is for, so that each call in which there may be one has a connection of its own.
    fn is_anybodys(&self) -> bool {
        let legacy = self.bridge.nature().modern().get() != Some(true);
        legacy && self.funds.permit.principal().is_anonymous()
    }

    /// What is sent on this request's behalf is sent with these.
    pub fn funds(&self) -> &Funds {
        &self.funds
    }

    /// Notes where the call went.
    pub fn note(&self, endings: &mut [Ending], peer: &Peer) {
        let name = peer.name();
        for ending in endings {
            ending.sent(self.kind, &name);
        }
    }

    /// Sends a request; once more when its session turns out to be over (r51): 404 says that nothing was done. Comes back
    /// when something has happened, or nothing for a while.
    async fn begin(&self, caller: &Caller, params: Bytes) -> Result<Course, Rejection> {
        let ask = Ask {
            method: caller.method.clone(),
            params,
            funds: self.funds.clone(),
            headers: HeaderMap::new(),
            takes_questions: map::is_multi_round_trip(&caller.method) && !self.bridge.is_shared(),
        };
        let mut again = true;
        loop {
            let can_be_asked = ask.takes_questions && &caller.capabilities[..] != b"{}";
            let own = match can_be_asked && self.is_anybodys() {
                true => Some(self.bridge.own(&self.key.person, &self.initialize, &self.funds).await?),
                false => None,
            };
            let peer = match &own {
                Some(own) => own.peer().clone(),
                None => self.peer().await?,
            };
            if can_be_asked {
                peer.stand().await;
            }
            let logs = self.logs(caller, &peer, own.is_some()).await;
            let mut course = Course::new(peer.request(ask.clone()), logs, own);
            match tokio::time::timeout(KEEPALIVE, course.begin()).await {
                Ok(Err(Lost::Session)) if again => again = false,
                Ok(Err(lost)) => return Err(unanswered(lost, &peer)),
                Ok(Ok(())) | Err(_) => return Ok(course),
            }
        }
    }

    /// Has the server log what the caller wants to hear; where that comes from when the connection mixes all calls' logs.
    async fn logs(&self, caller: &Caller, peer: &Arc<Peer>, own: bool) -> Option<Listener> {
        peer.wishes().log_at(caller.level?, peer, &self.funds).await;
        (peer.mixes_logs() && (own || self.one_person)).then(|| peer.listen())
    }
}

/// Whether a client says of itself what legacy servers insist on.
fn introduces(info: &[u8]) -> bool {
    Object::parse(info).is_ok_and(|info| info.text("name").is_some() && info.text("version").is_some())
}

/// Serves a modern POST.
///
/// # Errors
/// Everything that goes wrong before the response has begun.
pub async fn serve(shared: &Shared, sending: Sending, endings: &mut Vec<Ending>) -> Result<Response<Body>, Rejection> {
    let call = sending.call();
    let Form::Post { payload, .. } = &call.form else {
        unreachable!("modern requests are POSTs");
    };
    let [message] = payload.messages() else {
        unreachable!("a modern POST is one message");
    };
    call.route.metrics.gateway_overhead(call.journey.started.elapsed());
    let id = match (&message.id, message.kind) {
        (Some(id), Kind::Request) => id.clone(),
        _ => {
            finish(endings, Outcome::Success);
            return Ok(accepted());
        }
    };
    let version = message.meta.protocol_version.as_deref().unwrap_or_default();
    if version != MODERN {
        return Err(Rejection::UnsupportedVersion(version.into()));
    }
    let params = params_of(&message.raw);
    // Who asks, whatever is asked.
    let mut mapped = map::request_to_legacy("", &params)?;
    let capabilities = map::client_capabilities_to_legacy(&mapped.client_capabilities);
    let way = Way::new(&sending, &mapped, &capabilities);
    let as_it_is = call.route.bridge.is_stdio() && way.peer().await?.era() == ServerEra::Modern;
    if !as_it_is && !matches!(&*message.method, "server/discover" | "subscriptions/listen") {
        mapped = map::request_to_legacy(&message.method, &params)?;
    }
    let caller = Caller {
        id,
        method: message.method.clone(),
        capabilities,
        level: mapped.log_level,
        token: mapped.progress_token.clone(),
        binding: Binding {
            person: person(&call.principal),
            request: Binding::digest(&message.method, &mapped.params),
            route: call.route.name().into(),
        },
        inspector: shared.inspector(call, Era::Modern),
        sealer: shared.sealer.clone(),
    };
    match &*message.method {
        "server/discover" => {
            let peer = way.peer().await?;
            way.note(endings, &peer);
            let result = map::discover_result(peer.facts());
            let answer = caller.finish(message::answer(&caller.id, &Ok(result)), StatusCode::OK)?;
            return Ok(last(answer, endings));
        }
        "subscriptions/listen" => {
            let standing = shared.standing(call);
            return match as_it_is {
                true => listen::forward(&way, caller, params, standing, endings).await,
                false => listen::open(&way, caller, &params, standing, endings).await,
            };
        }
        _ => {}
    }
    if let Some(request) = budgeted(&call.route, payload) {
        // One page answers for all, so there is no other to ask for.
        if request.cursor.is_some() {
            return Err(Rejection::InvalidCursor);
        }
        let params = if as_it_is { params } else { mapped.params };
        return list(&sending, &way, &caller, request, params, endings).await;
    }
    if as_it_is {
        let begun = Instant::now();
        let course = way.begin(&caller, params).await?;
        way.note(endings, course.peer());
        return respond(caller, course, begun + KEEPALIVE, endings).await;
    }
    let ticket = match &mapped.request_state {
        Some(state) => caller.binding.open(&shared.sealer, state, shared.clock.now())?,
        None => None,
    };
    let begun = Instant::now();
    let course = match ticket {
        Some(ticket) => match resume(&way, &caller, &ticket, &mapped).await? {
            Ok(course) => course,
            Err(asked) => return Ok(last(asked, endings)),
        },
        None => way.begin(&caller, mapped.params).await?,
    };
    way.note(endings, course.peer());
    respond(caller, course, begun + KEEPALIVE, endings).await
}

/// Goes on with a call that waited; `Err` is what its caller is still asked.
async fn resume(
    way: &Way,
    caller: &Caller,
    ticket: &Ticket,
    mapped: &ToLegacy,
) -> Result<Result<Course, Finished>, Rejection> {
    let waiting = way.bridge.parked().take(ticket).ok_or(Rejection::RequestState)?;
    let mut course = waiting.course;
    course.peer().supply(way.funds.clone());
    let open = course.answer(waiting.questions, &mapped.input_responses).await?;
    if open.is_empty() {
        return Ok(Ok(course));
    }
    caller.ask(course, open).map(Err)
}

/// Answers by JSON or by events (rule 2).
async fn respond(
    caller: Caller,
    mut course: Course,
    until: Instant,
    endings: &mut Vec<Ending>,
) -> Result<Response<Body>, Rejection> {
    let first = match tokio::time::timeout_at(until, course.next(&caller)).await {
        Err(_) => COMMENT,
        Ok(step) => match step? {
            Step::Said(message) => sse::message(&message),
            Step::Answered { message, status } => return Ok(last(caller.finish(message, status)?, endings)),
            Step::Asked(questions) => return Ok(last(caller.ask(course, questions)?, endings)),
        },
    };
    let flow = Flow {
        first: Some(first),
        quiet_since: Instant::now(),
        endings: std::mem::take(endings),
        _guard: caller.inspector.route.metrics.stream(),
        caller,
        course,
    };
    Ok(stream(flow.body()))
}

/// A call that is still on its way while its caller reads.
struct Flow {
    first: Option<Bytes>,
    caller: Caller,
    course: Course,
    endings: Vec<Ending>,
    /// Since when the server has said nothing.
    quiet_since: Instant,
    _guard: GaugeGuard,
}

impl Flow {
    fn body(self) -> Body {
        let frames = futures_util::stream::unfold(Some(self), |flow| async move {
            let mut flow = flow?;
            if let Some(first) = flow.first.take() {
                return Some((Ok::<_, BodyError>(Frame::data(first)), Some(flow)));
            }
            let step = tokio::time::timeout(KEEPALIVE, flow.course.next(&flow.caller)).await;
            let rejection = match step {
                Ok(Ok(Step::Said(message))) => {
                    flow.quiet_since = Instant::now();
                    return Some((Ok(Frame::data(sse::message(&message))), Some(flow)));
                }
                Ok(Ok(Step::Answered { message, status })) => match flow.caller.finish(message, status) {
                    Ok(answer) => return Some((Ok(Frame::data(flow.last(&answer))), None)),
                    Err(rejection) => rejection,
                },
                Ok(Ok(Step::Asked(questions))) => {
                    let Self {
                        caller,
                        course,
                        mut endings,
                        ..
                    } = flow;
                    let (message, outcome) = match caller.ask(course, questions) {
                        Ok(asked) => (asked.message, asked.outcome),
                        Err(rejection) => failed(&rejection, &caller),
                    };
                    finish(&mut endings, outcome);
                    return Some((Ok(Frame::data(sse::message(&message))), None));
                }
                Ok(Err(rejection)) => rejection,
                Err(_) => match flow.overdue() {
                    None => return Some((Ok(Frame::data(COMMENT)), Some(flow))),
                    Some(rejection) => rejection,
                },
            };
            let (message, outcome) = failed(&rejection, &flow.caller);
            finish(&mut flow.endings, outcome);
            Some((Ok(Frame::data(sse::message(&message))), None))
        });
        StreamBody::new(frames).boxed_unsync()
    }

    fn last(&mut self, answer: &Finished) -> Bytes {
        finish(&mut self.endings, answer.outcome);
        sse::message(&answer.message)
    }

    /// Whether the server has been silent for longer than the route puts up with.
    fn overdue(&self) -> Option<Rejection> {
        let after = self.caller.inspector.route.config.upstream.idle_timeout;
        (self.quiet_since.elapsed() >= after).then(|| {
            let endpoint = self.course.peer().name();
            UpstreamError::Timeout { endpoint, after }.into()
        })
    }
}

/// What a caller whose response has begun is told of a failure.
fn failed(rejection: &Rejection, caller: &Caller) -> (Bytes, Outcome) {
    (
        rescue::message(rejection, &caller.inspector.journey),
        outcome_of_failure(rejection),
    )
}

/// Answers a budgeted list with all its pages.
async fn list(
    sending: &Sending,
    way: &Way,
    caller: &Caller,
    request: &Message,
    params: Bytes,
    endings: &mut Vec<Ending>,
) -> Result<Response<Body>, Rejection> {
    let mut pages = Paged {
        way,
        caller,
        params: Some(params),
        status: StatusCode::OK,
        era: ServerEra::Legacy,
        endings,
    };
    let message = gather(sending, request, &caller.inspector, &mut pages).await?;
    let (status, outcome) = (pages.status, crate::reply::json::see(&message).0);
    Ok(last(
        Finished {
            message,
            status,
            outcome,
        },
        endings,
    ))
}

/// Pages that come over the bridge.
struct Paged<'a> {
    way: &'a Way,
    caller: &'a Caller,
    /// Of the first page.
    params: Option<Bytes>,
    status: StatusCode,
    /// The server's.
    era: ServerEra,
    endings: &'a mut Vec<Ending>,
}

impl Paged<'_> {
    async fn page(&mut self, params: Bytes) -> Result<Bytes, Rejection> {
        let mut course = self.way.begin(self.caller, params).await?;
        self.way.note(self.endings, course.peer());
        self.era = course.peer().era();
        loop {
            match course.next(self.caller).await? {
                Step::Answered { message, status } => {
                    self.status = status;
                    return Ok(message);
                }
                Step::Said(_) | Step::Asked(_) => {}
            }
        }
    }
}

impl Pages for Paged<'_> {
    async fn first(&mut self) -> Result<Bytes, Rejection> {
        let params = self.params.take().expect("there is one first page");
        self.page(params).await
    }

    async fn next(&mut self, request: Bytes) -> Result<Bytes, Rejection> {
        let params = params_of(&request);
        let params = match self.era {
            ServerEra::Modern => params,
            ServerEra::Legacy => map::request_to_legacy(&self.caller.method, &params)?.params,
        };
        self.page(params).await
    }
}

/// The parameters of a request, raw.
fn params_of(message: &Bytes) -> Bytes {
    at(message, &["params"]).unwrap_or_else(|| Bytes::from_static(b"{}"))
}

/// The last message as the whole response.
pub(super) fn last(answer: Finished, endings: &mut Vec<Ending>) -> Response<Body> {
    finish(endings, answer.outcome);
    json(answer.status, answer.message)
}

/// A response of events.
pub(super) fn stream(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn accepted() -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}

fn finish(endings: &mut Vec<Ending>, outcome: Outcome) {
    for ending in endings.drain(..) {
        ending.finish(outcome);
    }
}
