//! The last stage of the stack: sends a permitted, funded call and brings its reply back.
//!
//! 1. What was permitted is sent and nothing else: a batch loses its refused members, and its answer gains theirs (r50).
//! 2. A reply that nobody has to rewrite is forwarded as it comes; lists are filtered; a budgeted list is gathered.
//! 3. A request is answered by JSON or by events (MCP, "Sending Messages"); a success of another type is 502.
//! 4. The upstream's 4xx and 5xx bodies pass, since clients read them to find a server's era; its 401 does not: that
//!    is about the gate's credential (502).
//! 5. A new upstream session leaves sealed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio_util::sync::CancellationToken;

use super::ending::{Audited, Ending, fail};
use super::events::{self, MAX_EVENT, Relay, Standing, View};
use super::gather::budgeted;
use super::inspect::{Endpoint, Inspector};
use super::sending::Sending;
use super::{headers, json};
use crate::authn::Principal;
use crate::authn::bearer::bearer;
use crate::bridge::era::{self, Verdict};
use crate::bridge::legacy::{self, Door};
use crate::bridge::modern;
use crate::bridge::peer::ServerEra;
use crate::call::{Call, Form};
use crate::clock::Clock;
use crate::config::Transport;
use crate::credential::{Funded, OutboundCredential};
use crate::edge::rescue::refusal;
use crate::edge::{Body, Rejection, Stage, full};
use crate::mcp::sse::Decoder;
use crate::mcp::{self, Era, Kind, Payload, Scanner};
use crate::policy::{Decision, Permitted};
use crate::rights::{Claim, Rights};
use crate::secret::Secret;
use crate::session::{SESSION_HEADER, Sealer, Session, Streams};
use crate::telemetry::Outcome;
use crate::upstream::{Sent, UpstreamBody};

const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");

/// Most events before the answer to `initialize`.
const MAX_AHEAD: usize = 64;

/// What all calls share.
pub struct Shared {
    pub sealer: Arc<Sealer>,
    pub streams: Arc<Streams>,
    pub rights: Arc<Rights>,
    pub clock: Clock,
    /// Told when the gateway stops.
    pub closing: CancellationToken,
}

/// The last stage.
pub struct Forward(Shared);

impl Forward {
    /// A stage over these.
    pub fn new(shared: Shared) -> Self {
        Self(shared)
    }
}

impl Stage<Funded> for Forward {
    type Error = Rejection;

    fn serve(&self, funded: Funded) -> impl Future<Output = Result<Response<Body>, Rejection>> + Send {
        self.0.forward(funded)
    }
}

impl Shared {
    async fn forward(&self, funded: Funded) -> Result<Response<Body>, Rejection> {
        let Funded {
            audited: Audited { permitted, mut endings },
            credential,
        } = funded;
        let result = self.carry(permitted, credential, &mut endings).await;
        if let Err(rejection) = &result {
            fail(endings, rejection);
        }
        result
    }

    async fn carry(
        &self,
        permitted: Permitted,
        credential: OutboundCredential,
        endings: &mut Vec<Ending>,
    ) -> Result<Response<Body>, Rejection> {
        let sending = Sending::new(permitted, credential)?;
        match Door::of(&sending).await? {
            Door::Server => {}
            Door::Introduction => return Box::pin(self.introduced(sending, endings)).await,
            Door::Gateway => return Box::pin(legacy::serve(self, sending, endings)).await,
        }
        let permitted = &sending.permitted;
        let call = &permitted.call;
        match &call.form {
            Form::Post { payload, body, era } => {
                let bridge = &call.route.bridge;
                let as_it_is = match bridge.forwards_modern() {
                    _ if *era != Era::Modern => true,
                    Some(modern) => modern,
                    None => Box::pin(bridge.takes_modern(&sending.funds())).await?,
                };
                if !as_it_is {
                    return Box::pin(modern::serve(self, sending, endings)).await;
                }
                let body = permitted_body(payload, body, &permitted.decisions);
                let request = budgeted(&call.route, payload);
                // One page answers for all, so there is no other to ask for.
                if request.is_some_and(|request| request.cursor.is_some()) {
                    return Err(Rejection::InvalidCursor);
                }
                let gathers = request.is_some();
                let sent = sending.first(body).await?;
                note(endings, sending.kind(), &sent.name);
                if gathers && sent.response.status().is_success() {
                    return Box::pin(self.gathered(sending, sent, endings)).await;
                }
                self.answer(permitted, *era, payload, sent, endings).await
            }
            Form::Message { .. } => Box::pin(self.message(sending, endings)).await,
            Form::Get => {
                let sent = sending.first(Bytes::new()).await?;
                note(endings, sending.kind(), &sent.name);
                self.stream(call, sent, endings)
            }
            Form::Delete => {
                let sent = sending.first(Bytes::new()).await?;
                note(endings, sending.kind(), &sent.name);
                let outcome = if sent.response.status().is_success() {
                    Outcome::Success
                } else {
                    Outcome::UpstreamError
                };
                let (parts, body) = self.head(call, sent)?;
                Ok(Response::from_parts(
                    parts,
                    json::pass(body, std::mem::take(endings), false, Some(outcome)),
                ))
            }
        }
    }

    /// `initialize` where the server isn't known to take none: what it says shows whether it does.
    async fn introduced(&self, sending: Sending, endings: &mut Vec<Ending>) -> Result<Response<Body>, Rejection> {
        let permitted = &sending.permitted;
        let Form::Post { payload, body, era } = &permitted.call.form else {
            unreachable!("only a POST initializes");
        };
        let sent = sending.first(body.clone()).await?;
        note(endings, sending.kind(), &sent.name);
        let status = sent.response.status();
        let nature = permitted.call.route.bridge.nature();
        let events = is_event_stream(sent.response.headers());
        if !status.is_success() || !(events || is_json(sent.response.headers())) {
            // A request that is only taken is refused just as well.
            let refused = status.is_success() || era::of_status(status) == Verdict::Is(ServerEra::Legacy);
            if refused && legacy::takes_over(&sending).await {
                return legacy::serve(self, sending, endings).await;
            }
            return self.answer(permitted, *era, payload, sent, endings).await;
        }
        if is_encoded(sent.response.headers()) {
            nature.streamable().set(Some(true));
            return self.answer(permitted, *era, payload, sent, endings).await;
        }
        if events {
            return self.introduced_by_events(sending, sent, endings).await;
        }
        let (mut parts, upstream) = self.head(&permitted.call, sent)?;
        let bytes = json::read(upstream, json::MAX_LIST).await?;
        let (outcome, may_hold_list) = json::see(&bytes);
        if matches!(outcome, Outcome::Success) {
            nature.streamable().set(Some(true));
        } else if legacy::takes_over(&sending).await {
            return legacy::serve(self, sending, endings).await;
        }
        let rules = permitted.call.route.config.policy.has_rules();
        let filtered = match rules && may_hold_list {
            true => self.inspector(&permitted.call, *era).filter(&bytes),
            false => Ok(None),
        };
        let filtered = filtered.map_err(|_| Rejection::UpstreamNonsense("its list can't be decoded"))?;
        for ending in endings.drain(..) {
            ending.finish(outcome);
        }
        parts.headers.remove(CONTENT_LENGTH);
        Ok(Response::from_parts(parts, full(filtered.unwrap_or(bytes))))
    }

    /// The same where the answer comes by events: they wait until it has come.
    async fn introduced_by_events(
        &self,
        sending: Sending,
        sent: Sent,
        endings: &mut Vec<Ending>,
    ) -> Result<Response<Body>, Rejection> {
        let call = sending.call();
        let (mut parts, mut upstream) = self.head(call, sent)?;
        let mut decoder = Decoder::new(json::WHOLE);
        let mut ahead = Vec::new();
        let mut outcome = None;
        let nonsense = |_| Rejection::UpstreamNonsense("its answer to initialize is over 1 MiB");
        while outcome.is_none() {
            let Some(frame) = upstream.frame().await else { break };
            let frame = frame.map_err(|_| Rejection::UpstreamNonsense("its answer to initialize broke off"))?;
            decoder.push(frame.into_data().unwrap_or_default());
            while let Some(event) = decoder.next_event().map_err(nonsense)? {
                let mut scanner = Scanner::default();
                scanner.push(event.data().map_or(&[], |data| data));
                outcome = outcome.or(events::outcome_of(scanner.finish().outcome));
                if event.name() == Some(b"endpoint") {
                    // A server of 2024-11-05 that opens its stream whatever the method: no answer will come on it.
                    outcome = Some(Outcome::ProtocolError);
                }
                ahead.push(event);
            }
            if ahead.len() > MAX_AHEAD {
                return Err(Rejection::UpstreamNonsense(
                    "it says too much before it answers initialize",
                ));
            }
        }
        if outcome == Some(Outcome::Success) {
            call.route.bridge.nature().streamable().set(Some(true));
        } else if legacy::takes_over(&sending).await {
            return legacy::serve(self, sending, endings).await;
        }
        stream_headers(&mut parts.headers);
        let mut inspector = self.inspector(call, Era::Legacy);
        let mut prelude = VecDeque::new();
        for event in ahead {
            let seen = inspector.look(event, endings, &mut None);
            let seen = seen.map_err(|_| Rejection::UpstreamNonsense("its list can't be decoded"))?;
            prelude.extend(seen);
        }
        let body = events::body(Relay {
            upstream,
            view: View::inspect(decoder, inspector),
            endings: std::mem::take(endings),
            prelude,
            standing: None,
            open: None,
            _guard: call.route.metrics.stream(),
        });
        Ok(Response::from_parts(parts, body))
    }

    /// The reply's head as the caller gets it, its session sealed.
    pub(super) fn head(&self, call: &Call, sent: Sent) -> Result<(http::response::Parts, UpstreamBody), Rejection> {
        let (mut parts, body) = sent.response.into_parts();
        parts.extensions = http::Extensions::new();
        if let Some(session) = headers::inbound(&mut parts.headers) {
            let unusable = || Rejection::UpstreamNonsense("its session id can't be sealed into 1024 characters");
            let session = Session {
                endpoint: sent.endpoint,
                upstream: session.to_str().map_err(|_| unusable())?.to_owned(),
                opens_pages: call.opens_pages(),
            };
            let sealed = session
                .seal(&self.sealer, call.route.name(), &call.principal)
                .and_then(|sealed| HeaderValue::try_from(sealed).ok())
                .ok_or_else(unusable)?;
            parts.headers.insert(SESSION_HEADER, sealed);
        }
        Ok((parts, body))
    }

    async fn answer(
        &self,
        permitted: &Permitted,
        era: Era,
        payload: &Payload,
        sent: Sent,
        endings: &mut Vec<Ending>,
    ) -> Result<Response<Body>, Rejection> {
        let call = &permitted.call;
        let refused = refused_members(call, payload, &permitted.decisions);
        let rules = call.route.config.policy.has_rules();
        let batch = payload.is_batch();
        let expects_answer = payload.messages().iter().any(|message| message.kind == Kind::Request);
        let status = sent.response.status();
        if is_event_stream(sent.response.headers()) && status.is_success() {
            let (mut parts, mut upstream) = self.head(call, sent)?;
            stream_headers(&mut parts.headers);
            let inspector = self.inspector(call, era);
            let view = if rules || batch {
                View::inspect(Decoder::new(MAX_EVENT), inspector)
            } else {
                View::pass()
            };
            let prelude: VecDeque<Bytes> = refused.iter().map(|error| mcp::sse::message(error)).collect();
            let listens = payload
                .messages()
                .iter()
                .any(|message| &*message.method == "subscriptions/listen");
            if listens {
                upstream = upstream.without_idle_end();
            }
            let body = events::body(Relay {
                upstream,
                view,
                endings: std::mem::take(endings),
                prelude,
                standing: listens.then(|| self.standing(call)),
                open: None,
                _guard: call.route.metrics.stream(),
            });
            return Ok(Response::from_parts(parts, body));
        }
        let is_json = is_json(sent.response.headers());
        let (mut parts, upstream) = self.head(call, sent)?;
        // Whatever the server was, it may have been replaced by one that doesn't understand.
        let doubtful =
            era == Era::Modern && era::of_status(status) == Verdict::Is(ServerEra::Legacy) && status.is_client_error();
        if doubtful && !(is_json && expects_answer && json::fits(&upstream, json::WHOLE)) {
            call.route.bridge.nature().forget();
        }
        if !expects_answer || !is_json {
            if status.is_success() && !is_json && !upstream.is_end_stream() && expects_answer {
                return Err(Rejection::UpstreamNonsense(
                    "its reply is neither application/json nor text/event-stream",
                ));
            }
            if !refused.is_empty() && status.is_success() {
                for ending in endings.drain(..) {
                    ending.finish(Outcome::Success);
                }
                return Ok(array(&refused, None));
            }
            let outcome = match (status.is_success(), expects_answer) {
                (true, false) => Outcome::Success,
                _ => Outcome::UpstreamError,
            };
            let body = json::pass(upstream, std::mem::take(endings), rules, Some(outcome));
            return Ok(Response::from_parts(parts, body));
        }
        let lists = payload.messages().iter().any(|message| mcp::is_list(&message.method));
        let whole = batch || ((rules || doubtful) && (lists || json::fits(&upstream, json::WHOLE)));
        if !whole {
            let body = json::pass(upstream, std::mem::take(endings), rules, None);
            return Ok(Response::from_parts(parts, body));
        }
        let mut bytes = json::read(upstream, json::MAX_LIST).await?;
        let (outcome, may_hold_list) = json::see(&bytes);
        if doubtful && !era::is_modern_answer(status, &bytes) {
            call.route.bridge.nature().forget();
        }
        // Most replies hold no list, and need no second look.
        if rules
            && may_hold_list
            && let Some(filtered) = self
                .inspector(call, era)
                .filter(&bytes)
                .map_err(|_| Rejection::UpstreamNonsense("its list can't be decoded"))?
        {
            bytes = filtered;
        }
        for ending in endings.drain(..) {
            ending.finish(outcome);
        }
        if !refused.is_empty() {
            return Ok(array(&refused, Some(&bytes)));
        }
        // hyper counts what is sent, and knows it of a whole body.
        parts.headers.remove(CONTENT_LENGTH);
        Ok(Response::from_parts(parts, full(bytes)))
    }

    /// GET: a standing stream.
    fn stream(&self, call: &Call, sent: Sent, endings: &mut Vec<Ending>) -> Result<Response<Body>, Rejection> {
        let status = sent.response.status();
        let rules = call.route.config.policy.has_rules();
        if !is_event_stream(sent.response.headers()) || !status.is_success() {
            let nature = call.route.bridge.nature();
            if nature.sse().get() == Some(true) && era::of_status(status) == Verdict::Is(ServerEra::Legacy) {
                // It no longer is an HTTP+SSE server.
                nature.forget();
            }
            let (parts, body) = self.head(call, sent)?;
            let outcome = if status.is_success() {
                Outcome::Success
            } else {
                Outcome::UpstreamError
            };
            let body = json::pass(body, std::mem::take(endings), rules, Some(outcome));
            return Ok(Response::from_parts(parts, body));
        }
        let transport = call.route.config.upstream.transport;
        let opens = transport == Transport::Sse
            || (transport == Transport::Auto
                && call.session.is_none()
                && !call.headers.contains_key(PROTOCOL_VERSION)
                && !call.headers.contains_key(LAST_EVENT_ID));
        let endpoint = sent.endpoint.clone();
        let (mut parts, upstream) = self.head(call, sent)?;
        stream_headers(&mut parts.headers);
        for ending in endings.drain(..) {
            ending.finish(Outcome::Success);
        }
        let mut inspector = self.inspector(call, if opens { Era::Sse } else { Era::Legacy });
        let view = if opens {
            inspector.endpoint = Some(Endpoint {
                id: endpoint,
                streams: self.streams.clone(),
                sealer: self.sealer.clone(),
                required: transport == Transport::Sse,
            });
            View::inspect(Decoder::new(MAX_EVENT), inspector)
        } else if rules {
            View::inspect(Decoder::new(MAX_EVENT), inspector)
        } else {
            View::pass()
        };
        let body = events::body(Relay {
            upstream: upstream.without_idle_end(),
            view,
            endings: Vec::new(),
            prelude: VecDeque::new(),
            standing: Some(self.standing(call)),
            open: None,
            _guard: call.route.metrics.stream(),
        });
        Ok(Response::from_parts(parts, body))
    }

    pub(crate) fn inspector(&self, call: &Call, era: Era) -> Inspector {
        Inspector {
            route: call.route.clone(),
            principal: call.principal.clone(),
            era,
            journey: call.journey.clone(),
            clock: self.clock.clone(),
            endpoint: None,
        }
    }

    pub(crate) fn standing(&self, call: &Call) -> Standing {
        let mut shaken = self.rights.subscribe();
        // Much may have happened since the request was let in: the claim is looked at once in any case.
        shaken.mark_changed();
        Standing {
            until: self.expiry(&call.principal),
            closing: self.closing.clone(),
            claim: Claim {
                route: call.route.clone(),
                principal: call.principal.clone(),
                token: bearer(&call.headers).ok().flatten().map(Secret::new),
                certificate: call.journey.connection.certificate.clone(),
            },
            rights: self.rights.clone(),
            shaken,
        }
    }

    fn expiry(&self, principal: &Principal) -> Option<tokio::time::Instant> {
        let left = principal.expires?.saturating_sub(self.clock.now());
        // A century is as good as never, and a token that says `u64::MAX` must not overflow the timer.
        Some(tokio::time::Instant::now() + Duration::from_secs(left.min(100 * 365 * 86_400)))
    }
}

/// Notes which credential left, and where to.
pub(crate) fn note(endings: &mut [Ending], kind: &'static str, upstream: &Arc<str>) {
    for ending in endings {
        ending.sent(kind, upstream);
    }
}

/// The body that may be sent: as it came when all of it was permitted.
pub(super) fn permitted_body(payload: &Payload, body: &Bytes, decisions: &[Decision]) -> Bytes {
    if decisions.iter().all(Decision::is_allowed) {
        return body.clone();
    }
    let mut array = vec![b'['];
    for (message, _) in payload
        .messages()
        .iter()
        .zip(decisions)
        .filter(|(_, decision)| decision.is_allowed())
    {
        if array.len() > 1 {
            array.push(b',');
        }
        array.extend_from_slice(&message.raw);
    }
    array.push(b']');
    array.into()
}

/// The errors that answer a batch's refused requests.
pub(crate) fn refused_members(call: &Call, payload: &Payload, decisions: &[Decision]) -> Vec<Vec<u8>> {
    payload
        .messages()
        .iter()
        .zip(decisions)
        .filter(|(message, decision)| !decision.is_allowed() && message.id.is_some())
        .map(|(message, decision)| refusal(message.id.as_ref(), decision, &call.principal))
        .collect()
}

/// Several answers as one array; `more` is the upstream's.
fn array(errors: &[Vec<u8>], more: Option<&Bytes>) -> Response<Body> {
    let mut body = vec![b'['];
    for error in errors {
        if body.len() > 1 {
            body.push(b',');
        }
        body.extend_from_slice(error);
    }
    if let Some(more) = more {
        let inner = more.trim_ascii();
        let inner = inner
            .strip_prefix(b"[")
            .and_then(|inner| inner.strip_suffix(b"]"))
            .unwrap_or(inner);
        if !inner.trim_ascii().is_empty() {
            body.push(b',');
            body.extend_from_slice(inner);
        }
    }
    body.push(b']');
    crate::edge::json(StatusCode::OK, body)
}

pub(crate) fn stream_headers(headers: &mut HeaderMap) {
    headers.remove(CONTENT_LENGTH);
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

/// Whether a reply is `text/event-stream`.
pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    is_media(headers, "text/event-stream")
}

pub(crate) fn is_encoded(headers: &HeaderMap) -> bool {
    headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Whether a reply is `application/json`.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    is_media(headers, "application/json")
}

fn is_media(headers: &HeaderMap, media: &str) -> bool {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|value| value.trim().eq_ignore_ascii_case(media))
}
