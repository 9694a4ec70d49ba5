//! A budgeted list over Streamable HTTP.
//!
//! 1. What comes before the answers (progress, logging) is held until all are there, so that a refusal still has its
//!    status, and goes out before the one answer, in order.
//! 2. Unless the server asks something of its own: it may want to hear of it before it lists, so from there on everything
//!    flows as it comes, and a failure is an event.

use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use http::Response;
use http::header::CONTENT_LENGTH;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::sync::mpsc;

use super::ending::Ending;
use super::events::{COMMENT, KEEPALIVE, outcome_of};
use super::forward::{Shared, is_event_stream, stream_headers};
use super::gather::{Pages, budgeted, gather};
use super::inspect::Inspector;
use super::sending::Sending;
use super::{headers, json};
use crate::bridge::map::MapError;
use crate::call::Form;
use crate::credential::CredentialError;
use crate::edge::rescue;
use crate::edge::{Body, BodyError, Rejection, full};
use crate::mcp::Scanner;
use crate::mcp::sse::{self, Decoder};
use crate::telemetry::Outcome;
use crate::upstream::{EndpointId, Sent};

/// Events that may wait for the caller to read.
const FLOWING: usize = 16;

/// The answer, and what was held before it.
type Gathered = (Result<Bytes, Rejection>, Vec<Bytes>);
type Gathering = Pin<Box<dyn Future<Output = Gathered> + Send>>;

impl Shared {
    /// Answers a list whose first page has come with all of them.
    pub(super) async fn gathered(
        &self,
        sending: Sending,
        sent: Sent,
        endings: &mut Vec<Ending>,
    ) -> Result<Response<Body>, Rejection> {
        let events = is_event_stream(sent.response.headers());
        let mut headers = sent.response.headers().clone();
        headers::inbound(&mut headers);
        headers.remove(CONTENT_LENGTH);
        let (flow, mut flowing) = mpsc::channel(FLOWING);
        let era = sending.era();
        let (inspector, watcher) = (self.inspector(sending.call(), era), self.inspector(sending.call(), era));
        let journey = sending.call().journey.clone();
        let guard = sending.route().metrics.stream();
        let mut gathering: Gathering = Box::pin(async move {
            let Form::Post { payload, .. } = &sending.call().form else {
                unreachable!("only a POST is answered with a list");
            };
            let request = budgeted(sending.route(), payload).expect("only budgeted lists are gathered");
            let mut replies = Replies {
                sending: &sending,
                endpoint: sent.endpoint.clone(),
                first: Some(sent),
                watcher,
                events: 0,
                held: Vec::new(),
                flow,
                flows: false,
                may_flow: events,
            };
            let answer = gather(&sending, request, &inspector, &mut replies).await;
            (answer, replies.held)
        });
        let (answer, held) = tokio::select! {
            biased;
            Some(event) = flowing.recv() => {
                stream_headers(&mut headers);
                let flow = Flow { first: Some(event), flowing, gathering, endings: std::mem::take(endings), journey, _guard: guard };
                let mut response = Response::new(flow.body());
                *response.headers_mut() = headers;
                return Ok(response);
            }
            gathered = &mut gathering => gathered,
        };
        let answer = answer?;
        let (outcome, _) = json::see(&answer);
        for ending in endings.drain(..) {
            ending.finish(outcome);
        }
        let body = if events {
            stream_headers(&mut headers);
            with_before(&mut flowing, &held, &sse::message(&answer))
        } else {
            answer
        };
        let mut response = Response::new(full(body));
        *response.headers_mut() = headers;
        Ok(response)
    }
}

/// The last event, after all that came before it.
fn with_before(flowing: &mut mpsc::Receiver<Bytes>, held: &[Bytes], last: &Bytes) -> Bytes {
    let mut out = BytesMut::new();
    while let Ok(event) = flowing.try_recv() {
        out.extend_from_slice(&event);
    }
    for event in held {
        out.extend_from_slice(event);
    }
    out.extend_from_slice(last);
    out.freeze()
}

/// A list that is still gathered while its caller reads.
struct Flow<G> {
    first: Option<Bytes>,
    flowing: mpsc::Receiver<Bytes>,
    gathering: Gathering,
    endings: Vec<Ending>,
    journey: std::sync::Arc<crate::edge::Journey>,
    _guard: G,
}

impl<G: Send + 'static> Flow<G> {
    fn body(self) -> Body {
        let frames = futures_util::stream::unfold(Some(self), |flow| async move {
            let mut flow = flow?;
            if let Some(first) = flow.first.take() {
                return Some((Ok::<_, BodyError>(Frame::data(first)), Some(flow)));
            }
            let next = async {
                tokio::select! {
                    biased;
                    Some(event) = flow.flowing.recv() => Ok(event),
                    gathered = &mut flow.gathering => Err(gathered),
                }
            };
            match tokio::time::timeout(KEEPALIVE, next).await {
                Err(_) => Some((Ok(Frame::data(COMMENT)), Some(flow))),
                Ok(Ok(event)) => Some((Ok(Frame::data(event)), Some(flow))),
                Ok(Err((answer, held))) => {
                    let (outcome, message) = match answer {
                        Ok(answer) => (json::see(&answer).0, answer),
                        Err(rejection) => (
                            outcome_of_failure(&rejection),
                            rescue::message(&rejection, &flow.journey),
                        ),
                    };
                    for ending in flow.endings.drain(..) {
                        ending.finish(outcome);
                    }
                    let last = with_before(&mut flow.flowing, &held, &sse::message(&message));
                    Some((Ok(Frame::data(last)), None))
                }
            }
        });
        StreamBody::new(frames).boxed_unsync()
    }
}

/// How a call ended that failed in the gate.
pub(crate) fn outcome_of_failure(rejection: &Rejection) -> Outcome {
    match rejection {
        Rejection::OverBudget { .. }
        | Rejection::InvalidCursor
        | Rejection::ListUnderWay
        | Rejection::TooManyParked
        | Rejection::Credential(CredentialError::NotConnected(_)) => Outcome::Denied,
        Rejection::UnsupportedVersion(_)
        | Rejection::Map(MapError::NotFound(_) | MapError::Params(_))
        | Rejection::MissingCapability { .. }
        | Rejection::RequestState => Outcome::ProtocolError,
        _ => Outcome::UpstreamError,
    }
}

/// Pages that come as replies.
struct Replies<'a> {
    sending: &'a Sending,
    endpoint: EndpointId,
    first: Option<Sent>,
    /// Looks at what comes before the answers.
    watcher: Inspector,
    /// Bytes of events so far.
    events: usize,
    held: Vec<Bytes>,
    flow: mpsc::Sender<Bytes>,
    /// Rule 2 has set in.
    flows: bool,
    /// The caller's answer is an event stream.
    may_flow: bool,
}

impl Pages for Replies<'_> {
    async fn first(&mut self) -> Result<Bytes, Rejection> {
        let sent = self.first.take().expect("there is one first page");
        self.page(sent).await
    }

    async fn next(&mut self, request: Bytes) -> Result<Bytes, Rejection> {
        let sent = self.sending.again(request, Some(self.endpoint.clone())).await?;
        self.page(sent).await
    }
}

impl Replies<'_> {
    /// Reads the answer of one page out of a reply.
    async fn page(&mut self, sent: Sent) -> Result<Bytes, Rejection> {
        let events = is_event_stream(sent.response.headers());
        let mut body = sent.response.into_body();
        if !events {
            return json::read(body, json::MAX_LIST).await;
        }
        let mut decoder = Decoder::new(json::MAX_LIST);
        // The answer ends the page: a server need not end its stream with it (MCP 2025-11-25, "Sending Messages").
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Rejection::UpstreamNonsense("its body ended early"))?;
            let Ok(data) = frame.into_data() else { continue };
            self.events += data.len();
            if self.events > json::MAX_LIST {
                return Err(Rejection::UpstreamNonsense("a reply to be filtered is over 16 MiB"));
            }
            decoder.push(data);
            let broken = |_| Rejection::UpstreamNonsense("its event stream can't be decoded");
            while let Some(event) = decoder.next_event().map_err(broken)? {
                if let Some(answer) = answer_of(&event) {
                    return Ok(answer);
                }
                self.before(event).await?;
            }
        }
        Err(Rejection::UpstreamNonsense("its stream ended without an answer"))
    }

    async fn before(&mut self, event: sse::Event) -> Result<(), Rejection> {
        if !self.may_flow {
            return Ok(());
        }
        self.flows |= event.data().is_some_and(|data| asks(data));
        let looked = self
            .watcher
            .look(event, &mut Vec::new(), &mut None)
            .map_err(|_| Rejection::UpstreamNonsense("its event stream can't be decoded"))?;
        self.held.extend(looked);
        if self.flows {
            for event in self.held.drain(..) {
                // The caller may be gone, and then so is this.
                let _ = self.flow.send(event).await;
            }
        }
        Ok(())
    }
}

fn answer_of(event: &sse::Event) -> Option<Bytes> {
    let data = event.data()?;
    let mut scanner = Scanner::default();
    scanner.push(data);
    outcome_of(scanner.finish().outcome)?;
    Some(data.clone())
}

/// Whether a message is a request, which somebody waits to have answered.
fn asks(message: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Request {
        #[serde(rename = "id")]
        _id: IgnoredAny,
        #[serde(rename = "method")]
        _method: IgnoredAny,
    }
    serde_json::from_slice::<Request>(message).is_ok()
}
