//! `subscriptions/listen` over a connection of the gateway's (MCP 2026-07-28, "Subscriptions").
//!
//! 1. The acknowledgment comes first, and names what the server can tell of.
//! 2. Each listener hears what it asked for, and of no resource that the route's rules hide from it. A server that tells of
//!    a resource though nobody could subscribe to it, as many do, is not kept from it.
//! 3. A listener ends with the caller's token, when a right is taken away and when the gateway stops: gracefully, with a
//!    result. With the connection to the server it ends without one, so that the client listens anew.

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::course::{Caller, unanswered};
use super::map;
use super::message::{self, Answered};
use super::modern::{Way, last, stream};
use super::peer::{Ask, Event, Exchange, Listener, Lost, Told};
use super::wishes::{SETTLING, Subscribed, is_part};
use crate::edge::{Body, BodyError, Rejection};
use crate::mcp::object::Object;
use crate::mcp::sse;
use crate::reply::Ending;
use crate::reply::events::{COMMENT, Interruption, KEEPALIVE, Standing};
use crate::telemetry::{GaugeGuard, Outcome};
use crate::upstream::UpstreamError;

const ACKNOWLEDGED: &str = "notifications/subscriptions/acknowledged";
/// Resources of one listener.
const MAX_RESOURCES: usize = 256;

/// What a listener wants to hear of.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
struct Filter {
    tools_list_changed: bool,
    prompts_list_changed: bool,
    resources_list_changed: bool,
    resource_subscriptions: Vec<String>,
}

impl Filter {
    /// What `params.notifications` asks for.
    fn read(params: &Bytes) -> Result<Self, Rejection> {
        let broken = || Rejection::Map(map::MapError::Params("notifications must say what is listened for"));
        let asked = message::at(params, &["notifications"]).unwrap_or_else(|| Bytes::from_static(b"{}"));
        let mut filter: Self = serde_json::from_slice(&asked).map_err(|_| broken())?;
        filter.resource_subscriptions.sort();
        filter.resource_subscriptions.dedup();
        if filter.resource_subscriptions.len() > MAX_RESOURCES {
            return Err(Rejection::Map(map::MapError::Params(
                "at most 256 resources are listened to at once",
            )));
        }
        Ok(filter)
    }

    /// The part of it that a server of these capabilities may tell of. Whether it says that it does isn't looked at: there
    /// are servers that do, and never say so; one that doesn't refuses to subscribe.
    fn honoured(mut self, capabilities: &[u8]) -> Self {
        let all = Object::parse(capabilities).unwrap_or_else(|_| Object::empty());
        let has = |name| matches!(all.object(name), Ok(Some(_)));
        self.tools_list_changed &= has("tools");
        self.prompts_list_changed &= has("prompts");
        self.resources_list_changed &= has("resources");
        if !has("resources") {
            self.resource_subscriptions.clear();
        }
        self
    }

    fn wants(&self, told: &Told) -> bool {
        match &*told.method {
            "notifications/tools/list_changed" => self.tools_list_changed,
            "notifications/prompts/list_changed" => self.prompts_list_changed,
            "notifications/resources/list_changed" => self.resources_list_changed,
            "notifications/resources/updated" => {
                let uri =
                    message::at(&told.params, &["uri"]).and_then(|uri| serde_json::from_slice::<String>(&uri).ok());
                uri.is_some_and(|uri| self.resource_subscriptions.iter().any(|wanted| is_part(&uri, wanted)))
            }
            _ => false,
        }
    }

    /// As it is acknowledged, with the resources that the server let be subscribed to.
    fn json(&self, resources: &[Box<str>]) -> Value {
        let mut all = Map::new();
        for (name, wanted) in [
            ("toolsListChanged", self.tools_list_changed),
            ("promptsListChanged", self.prompts_list_changed),
            ("resourcesListChanged", self.resources_list_changed),
        ] {
            if wanted {
                all.insert(name.to_owned(), Value::from(true));
            }
        }
        if !resources.is_empty() {
            all.insert("resourceSubscriptions".to_owned(), json!(resources));
        }
        Value::Object(all)
    }
}

/// Opens a listener's stream.
///
/// # Errors
/// When what it wants can't be read, or the server can't be reached.
pub async fn open(
    way: &Way,
    caller: Caller,
    params: &Bytes,
    standing: Standing,
    endings: &mut Vec<Ending>,
) -> Result<Response<Body>, Rejection> {
    let wanted = Filter::read(params)?;
    let mut again = true;
    let (listener, subscribed, filter) = loop {
        let peer = way.peer().await?;
        way.note(endings, &peer);
        let filter = Filter {
            resource_subscriptions: wanted.resource_subscriptions.clone(),
            ..wanted
        }
        .honoured(&peer.facts().capabilities);
        // It hears before it subscribes: the first news may overtake the answer.
        let listener = peer.listen();
        peer.stand().await;
        match Subscribed::to(&peer, &filter.resource_subscriptions, way.funds()).await {
            Ok(subscribed) => break (listener, subscribed, filter),
            Err(Lost::Session) if again => again = false,
            Err(lost) => return Err(unanswered(lost, &peer)),
        }
    };
    let acknowledged = json!({"notifications": filter.json(subscribed.resources())})
        .to_string()
        .into();
    let first = caller.subscribed(ACKNOWLEDGED, &acknowledged);
    let news = News::Ours {
        filter,
        _subscribed: Box::new(subscribed),
    };
    Ok(Flow::response(first, caller, news, listener, standing, endings))
}

/// Opens a listener's stream at a modern server that tells its listeners apart by their subscription's id.
///
/// # Errors
/// When the server can't be reached, or doesn't acknowledge.
pub async fn forward(
    way: &Way,
    caller: Caller,
    params: Bytes,
    standing: Standing,
    endings: &mut Vec<Ending>,
) -> Result<Response<Body>, Rejection> {
    let peer = way.peer().await?;
    way.note(endings, &peer);
    let mut listener = peer.listen();
    let mut exchange = peer.request(Ask {
        method: caller.method.clone(),
        params,
        funds: way.funds().clone(),
        headers: HeaderMap::new(),
        takes_questions: false,
    });
    let acknowledged = tokio::time::timeout(SETTLING, async {
        loop {
            tokio::select! {
                biased;
                Some(told) = listener.next() => {
                    if is_of(&told.params, exchange.id()) && &*told.method == ACKNOWLEDGED {
                        return Ok(Ok(told));
                    }
                }
                event = exchange.next() => match event {
                    Ok(Event::Answer(answer)) => return Ok(Err(answer)),
                    Ok(_) => {}
                    Err(lost) => return Err(unanswered(lost, &peer)),
                },
            }
        }
    });
    let first = match acknowledged.await {
        Err(_) => {
            return Err(UpstreamError::Timeout {
                endpoint: peer.name(),
                after: SETTLING,
            }
            .into());
        }
        Ok(told) => match told? {
            Ok(told) => caller.subscribed(ACKNOWLEDGED, &told.params),
            Err(answer) => {
                let answer = answer.map(|result| map::subscribed(&result, &caller.id).unwrap_or(result));
                let finished = caller.finish(message::answer(&caller.id, &answer), StatusCode::OK)?;
                return Ok(last(finished, endings));
            }
        },
    };
    Ok(Flow::response(
        first,
        caller,
        News::Theirs(exchange),
        listener,
        standing,
        endings,
    ))
}

/// Whether something is of the subscription that the server knows by that id.
fn is_of(params: &Bytes, id: u64) -> bool {
    let of = message::at(params, &["_meta", "io.modelcontextprotocol/subscriptionId"]);
    of.is_some_and(|of| of == id.to_string())
}

/// Where a listener's news are from.
enum News {
    /// All that the connection hears, as far as it was asked for.
    Ours {
        filter: Filter,
        _subscribed: Box<Subscribed>,
    },
    /// A subscription at the server.
    Theirs(Exchange),
}

impl News {
    fn is_wanted(&self, told: &Told) -> bool {
        match self {
            Self::Ours { filter, .. } => filter.wants(told),
            Self::Theirs(exchange) => is_of(&told.params, exchange.id()),
        }
    }

    /// The end, where the server says that it is.
    async fn ended(&mut self) -> Option<Answered> {
        let Self::Theirs(exchange) = self else {
            return std::future::pending().await;
        };
        loop {
            match exchange.next().await {
                Ok(Event::Answer(answer)) => return Some(answer),
                // Silence is what most subscriptions are.
                Ok(_) | Err(Lost::Rejected(Rejection::Upstream(UpstreamError::Timeout { .. }))) => {}
                Err(_) => return None,
            }
        }
    }
}

impl Caller {
    /// A notification as this listener's, as an event.
    fn subscribed(&self, method: &str, params: &Bytes) -> Option<Bytes> {
        let params = map::subscribed(params, &self.id)?;
        let message = message::notification(method, &params);
        (!self.inspector.hides(&message)).then(|| sse::message(&message))
    }

    /// The result that ends a listener gracefully, as an event.
    fn closed(&self) -> Option<Bytes> {
        let result = map::subscribed(&Bytes::from_static(br#"{"resultType":"complete"}"#), &self.id)?;
        Some(sse::message(&message::answer(&self.id, &Ok(result))))
    }
}

struct Flow {
    first: Option<Bytes>,
    caller: Caller,
    news: News,
    listener: Listener,
    standing: Standing,
    endings: Vec<Ending>,
    quiet_since: Instant,
    _guard: GaugeGuard,
}

impl Flow {
    fn response(
        first: Option<Bytes>,
        caller: Caller,
        news: News,
        listener: Listener,
        standing: Standing,
        endings: &mut Vec<Ending>,
    ) -> Response<Body> {
        let guard = caller.inspector.route.metrics.stream();
        let flow = Self {
            first,
            caller,
            news,
            listener,
            standing,
            endings: std::mem::take(endings),
            quiet_since: Instant::now(),
            _guard: guard,
        };
        stream(flow.body())
    }

    fn body(self) -> Body {
        let frames = futures_util::stream::unfold(Some(self), |flow| async move {
            let mut flow = flow?;
            let (bytes, ends) = flow.next().await?;
            flow.quiet_since = Instant::now();
            Some((Ok::<_, BodyError>(Frame::data(bytes)), (!ends).then_some(flow)))
        });
        StreamBody::new(frames).boxed_unsync()
    }

    /// What the caller gets next, and whether it is the last.
    async fn next(&mut self) -> Option<(Bytes, bool)> {
        if let Some(first) = self.first.take() {
            return Some((first, false));
        }
        loop {
            tokio::select! {
                biased;
                interruption = self.standing.interrupted(false) => {
                    let stays = match interruption {
                        Interruption::End => false,
                        Interruption::Shaken => self.reconsider().await,
                    };
                    if !stays {
                        self.end(Outcome::Success);
                        return Some((self.caller.closed()?, true));
                    }
                }
                told = self.listener.next() => {
                    let Some(told) = told else {
                        self.end(Outcome::UpstreamError);
                        return None;
                    };
                    if let Some(event) = self.heard(&told) {
                        return Some((event, false));
                    }
                }
                ended = self.news.ended() => {
                    let Some(Ok(_)) = ended else {
                        self.end(Outcome::UpstreamError);
                        return None;
                    };
                    self.end(Outcome::Success);
                    return Some((self.caller.closed()?, true));
                }
                () = tokio::time::sleep_until(self.quiet_since + KEEPALIVE) => return Some((COMMENT, false)),
            }
        }
    }

    fn heard(&self, told: &Told) -> Option<Bytes> {
        if !self.news.is_wanted(told) {
            return None;
        }
        let params = map::notification_to_modern(&told.method, &told.params)?;
        self.caller.subscribed(&told.method, &params)
    }

    /// Whether the caller may stay; what is still to come is seen with today's rules.
    async fn reconsider(&mut self) -> bool {
        match self.standing.rights.check(&self.standing.claim).await {
            Ok(claim) => {
                self.caller.inspector.route = claim.route.clone();
                self.caller.inspector.principal = claim.principal.clone();
                self.standing.claim = claim;
                true
            }
            Err(_) => false,
        }
    }

    fn end(&mut self, outcome: Outcome) {
        for ending in self.endings.drain(..) {
            ending.finish(outcome);
        }
    }
}
