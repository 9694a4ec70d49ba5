//! One connection to a server over which both sides speak: calls, their notifications, and what the server asks.
//!
//! 1. A peer gives every request an id of its own, and a progress token of its own where the caller wants progress; the
//!    caller's token is put back. So any number of callers share a connection without knowing of each other.
//! 2. What belongs to a call comes out of its [`Exchange`]; what belongs to none goes to whoever listens. Progress and
//!    logs are dropped when nobody takes them off a full queue; a question that finds no room is answered with an error, and
//!    answers always find theirs.
//! 3. What a server asks in the middle of a call is the call's; where the connection doesn't tell of which, it is the
//!    latest's that can be asked: all calls of a connection are one caller's, or there is only one. A question nobody takes,
//!    or whose taker goes away, is answered with an error: no server waits for ever, save one that asks on without taking
//!    such answers.
//! 4. Dropping an exchange cancels: the server is told (`notifications/cancelled`), or its stream is closed.
//! 5. A connection that ends takes its calls with it; each of them learns why.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

mod asked;
mod exchange;
mod hearing;

pub use asked::Asked;
pub use exchange::{Exchange, Listener};

use super::link::{Events, Link, Posted, Source};
use super::message::{self, Answered, RpcError, at, replaced};
use super::wishes::Wishes;
use crate::credential::OutboundCredential;
use crate::edge::Rejection;
use crate::mcp::Id;
use crate::policy::Permit;
use crate::upstream::UpstreamError;

/// What may wait for one call to be taken up.
const QUEUED: usize = 256;
/// Bytes of notifications that may wait on one connection: two of the longest.
const ROOM: u32 = 32 * 1024 * 1024;
/// Calls that one connection may carry at once.
const MAX_CALLS: usize = 1024;
/// Answers of the gateway's own that may be on their way at once.
const MAX_REPLIES: usize = 256;
/// How long a server may take to take the answer to its question.
const ANSWERING: Duration = Duration::from_secs(30);
/// How long a server may take to hear of a cancellation, an answer or the end.
const PARTING: Duration = Duration::from_secs(5);
/// How long a standing stream's head is waited for.
const STANDING: Duration = Duration::from_secs(1);
/// The progress token within parameters.
const TOKEN: [&str; 2] = ["_meta", "progressToken"];

/// Which of the protocol's shapes a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerEra {
    /// 2026-07-28 and later.
    Modern,
    /// Up to 2025-11-25.
    Legacy,
}

/// What a server says of itself: by `initialize`, or by `server/discover`.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The protocol version spoken with it.
    pub version: Box<str>,
    /// Raw JSON object.
    pub capabilities: Bytes,
    /// Raw JSON object.
    pub server_info: Option<Bytes>,
    pub instructions: Option<Box<str>>,
}

/// By what right, and with which credential, something is sent. Has no `Debug`: it holds a secret.
#[derive(Clone)]
pub struct Funds {
    pub permit: Permit,
    pub credential: OutboundCredential,
    /// Headers of the caller's that the route forwards, allow-listed.
    pub forwarded: HeaderMap,
}

/// A request for the server.
#[derive(Clone)]
pub struct Ask {
    pub method: Box<str>,
    /// Raw JSON object, in the server's era.
    pub params: Bytes,
    pub funds: Funds,
    /// `Mcp-Name` and `Mcp-Param-*` for a modern server over HTTP.
    pub headers: HeaderMap,
    /// Whether its caller can be asked something before it is answered.
    pub takes_questions: bool,
}

/// Something that happens in the course of a call.
#[derive(Debug)]
pub enum Event {
    /// Progress has the caller's token.
    Notification(Told),
    /// The server asks its client.
    Request(Asked),
    /// The end of it.
    Answer(Answered),
}

/// A notification.
#[derive(Clone, Debug)]
pub struct Told {
    pub method: Box<str>,
    /// Raw JSON object.
    pub params: Bytes,
    /// Its bytes' place among what waits, as long as it does.
    _room: Option<Arc<OwnedSemaphorePermit>>,
}

impl Told {
    /// A notification that waits nowhere yet.
    pub fn new(method: Box<str>, params: Bytes) -> Self {
        Self {
            method,
            params,
            _room: None,
        }
    }
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The server has forgotten the session; nothing was done.
    #[error("the upstream's session has ended")]
    Session,
    /// It was refused with an error of JSON-RPC.
    #[error("the upstream refused: {error}")]
    Refused { status: StatusCode, error: RpcError },
    /// It was refused with a status that nothing explains.
    #[error("the upstream answered {0}")]
    Status(StatusCode),
    #[error(transparent)]
    Rejected(#[from] Rejection),
}

impl From<UpstreamError> for Lost {
    fn from(error: UpstreamError) -> Self {
        Self::Rejected(error.into())
    }
}

impl From<Lost> for Rejection {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Session => Self::UnknownSession,
            Lost::Refused { .. } => Self::UpstreamNonsense("it refused what the gateway has to send before a call"),
            Lost::Status(_) => Self::UpstreamNonsense("its status is an error that nothing explains"),
            Lost::Rejected(rejection) => rejection,
        }
    }
}

/// One connection.
pub struct Peer {
    modern: AtomicBool,
    link: Link,
    facts: OnceLock<Facts>,
    state: Mutex<State>,
    ids: AtomicU64,
    /// Of the bytes that may wait.
    room: Arc<Semaphore>,
    told: broadcast::Sender<Told>,
    wishes: Wishes,
    /// The latest, for what is sent on nobody's behalf: answers, cancellations, the end.
    funds: Mutex<Funds>,
    /// Silence within a call that is put up with.
    idle_timeout: Duration,
    /// A place for each answer of the gateway's own that the server has not taken yet.
    replies: Arc<Semaphore>,
    ended: CancellationToken,
    reader: OnceLock<AbortHandle>,
}

struct State {
    calls: HashMap<u64, InFlight>,
    /// Takes what the server asks outside of any call.
    questions: Option<mpsc::Sender<Asked>>,
    used: Instant,
    listeners: usize,
}

struct InFlight {
    events: mpsc::Sender<Event>,
    answer: oneshot::Sender<Result<Answered, Lost>>,
    token: Option<Bytes>,
    takes_questions: bool,
}

impl Peer {
    /// A connection over a link; `source` is what comes over it, where that isn't the replies to what is sent.
    pub fn new(era: ServerEra, link: Link, source: Option<Source>, funds: Funds, idle_timeout: Duration) -> Arc<Self> {
        let peer = Arc::new(Self {
            modern: AtomicBool::new(era == ServerEra::Modern),
            link,
            facts: OnceLock::new(),
            state: Mutex::new(State {
                calls: HashMap::new(),
                questions: None,
                used: Instant::now(),
                listeners: 0,
            }),
            // From 1: some servers take 0 for no id.
            ids: AtomicU64::new(1),
            room: Arc::new(Semaphore::new(ROOM as usize)),
            told: broadcast::channel(QUEUED).0,
            wishes: Wishes::default(),
            funds: Mutex::new(funds),
            idle_timeout,
            replies: Arc::new(Semaphore::new(MAX_REPLIES)),
            ended: CancellationToken::new(),
            reader: OnceLock::new(),
        });
        if let Some(source) = source {
            let reading = tokio::spawn(hearing::read(Arc::downgrade(&peer), source));
            let _ = peer.reader.set(reading.abort_handle());
        }
        peer
    }

    /// Which era the server speaks here.
    pub fn era(&self) -> ServerEra {
        match self.modern.load(Ordering::Relaxed) {
            true => ServerEra::Modern,
            false => ServerEra::Legacy,
        }
    }

    /// It was taken for a modern server, and is none: a process is tried as both.
    pub(in crate::bridge) fn turn_legacy(&self) {
        self.modern.store(false, Ordering::Relaxed);
    }

    /// What the server said of itself.
    pub fn facts(&self) -> &Facts {
        self.facts.get().expect("a peer is handed out once it is open")
    }

    /// Notes what the server said of itself; the first time counts.
    pub(in crate::bridge) fn introduce(&self, facts: Facts) {
        self.link.speak(&facts.version);
        let _ = self.facts.set(facts);
    }

    /// Fires when the connection has ended.
    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// The server's name, for the audit.
    pub fn name(&self) -> Arc<str> {
        self.link.name()
    }

    /// Whether nobody needs it: no call, no listener, since that instant.
    pub fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        (state.calls.is_empty() && state.listeners == 0).then_some(state.used)
    }

    /// Sends a request.
    pub fn request(self: &Arc<Self>, ask: Ask) -> Exchange {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let (events, receiver) = mpsc::channel(QUEUED);
        let (answer, answered) = oneshot::channel();
        let token = at(&ask.params, &TOKEN).filter(|token| &token[..] != b"null");
        let params = match &token {
            Some(_) => replaced(&ask.params, &TOKEN, id.to_string().as_bytes()),
            None => ask.params,
        };
        let body = message::request(&Id(id.to_string().into()), &ask.method, &params);
        let call = InFlight {
            events,
            answer,
            token,
            takes_questions: ask.takes_questions,
        };
        self.supply(ask.funds.clone());
        let introduces = self.facts.get().is_none();
        let refused = self.take_up(id, call);
        let peer = self.clone();
        let sending = tokio::spawn(async move {
            if refused {
                return;
            }
            let sending = peer.link.post(body, &ask.funds, &ask.method, &ask.headers);
            match sending.await {
                Ok(Posted::Taken) => {}
                Ok(Posted::Reply(source)) => peer.reply(id, *source, &ask.funds).await,
                // A refusal in the protocol's own words is an answer.
                Err(Lost::Refused { error, .. }) if !introduces => peer.settle(id, Ok(Err(error))),
                Err(lost) => peer.lose(id, lost),
            }
        });
        Exchange {
            peer: self.clone(),
            id,
            events: receiver,
            answer: answered,
            sending: sending.abort_handle(),
            done: false,
        }
    }

    /// Has what is sent on nobody's behalf sent with these from now on.
    pub fn supply(&self, funds: Funds) {
        *self.funds.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = funds;
    }

    /// Tells all listeners what came in the course of a call and isn't its own.
    pub(in crate::bridge) fn tell(&self, told: Told) {
        let _ = self.told.send(told);
    }

    /// Whether log messages come without a word of which call they are about.
    pub(in crate::bridge) fn mixes_logs(&self) -> bool {
        matches!(self.link, Link::Sse(_) | Link::Stdio(_))
    }

    /// What this connection's callers have had the server send.
    pub(in crate::bridge) fn wishes(&self) -> &Wishes {
        &self.wishes
    }

    /// Asks the server for something of the gateway's own, or on a caller's behalf; it may take that long. What it says
    /// before its answer belongs to no call, and what it asks nobody takes.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn ask(
        self: &Arc<Self>,
        method: &str,
        params: Bytes,
        funds: &Funds,
        within: Duration,
    ) -> Result<Answered, Lost> {
        let mut exchange = self.request(Ask {
            method: method.into(),
            params,
            funds: funds.clone(),
            headers: HeaderMap::new(),
            takes_questions: false,
        });
        let answered = tokio::time::timeout(within, async {
            loop {
                match exchange.next().await? {
                    Event::Answer(outcome) => return Ok(outcome),
                    Event::Notification(told) => self.tell(told),
                    Event::Request(_) => {}
                }
            }
        });
        answered.await.unwrap_or_else(|_| Err(self.late(within)))
    }

    /// It did not answer in that time.
    pub(in crate::bridge) fn late(&self, after: Duration) -> Lost {
        let endpoint = self.name();
        UpstreamError::Timeout { endpoint, after }.into()
    }

    /// Sends a notification.
    ///
    /// # Errors
    /// When the server doesn't take it.
    pub async fn notify(&self, method: &str, params: &[u8], funds: &Funds) -> Result<(), Lost> {
        let body = message::notification(method, params);
        self.link.post(body, funds, method, &HeaderMap::new()).await.map(|_| ())
    }

    /// Hears from now on what belongs to no call. A legacy server over Streamable HTTP is asked for its standing stream.
    pub fn listen(self: &Arc<Self>) -> Listener {
        self.state().listeners += 1;
        if self.era() == ServerEra::Legacy {
            self.link.stand(self);
        }
        Listener {
            peer: self.clone(),
            told: self.told.subscribe(),
        }
    }

    /// Has a legacy server's standing stream open before something is sent that it may be needed for: many servers ask over it
    /// what belongs to a call, and say nothing when there is none. One that doesn't open soon isn't waited for.
    pub async fn stand(self: &Arc<Self>) {
        if self.era() == ServerEra::Legacy {
            self.link.stand(self);
            let _ = tokio::time::timeout(STANDING, self.link.stood()).await;
        }
    }

    /// Takes from now on what the server asks outside of any call; one taker a peer.
    pub fn questions(&self) -> mpsc::Receiver<Asked> {
        let (sender, receiver) = mpsc::channel(QUEUED);
        self.state().questions = Some(sender);
        receiver
    }

    /// Ends the connection in good order: the server is told.
    pub async fn close(&self) {
        let funds = self.latest_funds();
        let _ = tokio::time::timeout(PARTING, self.link.close(&funds)).await;
        self.end(&UpstreamError::Protocol { endpoint: self.name() });
        // What reads a process holds it.
        if let Some(reader) = self.reader.get() {
            reader.abort();
        }
    }

    /// The version that the link's headers name.
    pub(in crate::bridge) fn speak(&self, version: &str) {
        self.link.speak(version);
    }

    /// The standing stream of a server that has one.
    pub(in crate::bridge) async fn open_standing(&self, last: Option<&HeaderValue>) -> Result<Option<Events>, Lost> {
        match &self.link {
            Link::Http(link) => link.open_standing(&self.latest_funds(), last).await,
            Link::Sse(_) | Link::Stdio(_) => Ok(None),
        }
    }

    /// What was sent last is what may be sent on nobody's behalf.
    pub(in crate::bridge) fn latest_funds(&self) -> Funds {
        self.funds
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// Whether there was no place.
    fn take_up(&self, id: u64, call: InFlight) -> bool {
        let mut state = self.state();
        state.used = Instant::now();
        if self.ended.is_cancelled() {
            let _ = call.answer.send(Err(Lost::Session));
            return true;
        }
        if state.calls.len() >= MAX_CALLS {
            let busy = UpstreamError::Busy { endpoint: self.name() };
            let _ = call.answer.send(Err(busy.into()));
            return true;
        }
        state.calls.insert(id, call);
        false
    }

    fn waits(&self, id: u64) -> bool {
        self.state().calls.contains_key(&id)
    }

    fn settle(&self, id: u64, outcome: Result<Answered, Lost>) {
        let call = {
            let mut state = self.state();
            state.used = Instant::now();
            state.calls.remove(&id)
        };
        if let Some(call) = call {
            let _ = call.answer.send(outcome);
        }
    }

    fn lose(&self, id: u64, lost: Lost) {
        if matches!(lost, Lost::Session) {
            // The session is everybody's: none of its calls will be answered.
            self.ended.cancel();
        }
        self.settle(id, Err(lost));
    }

    /// The server has forgotten the session, and said so to no call.
    pub(in crate::bridge) fn forgotten(&self) {
        self.ended.cancel();
    }

    /// The connection is over: so are its calls.
    fn end(&self, error: &UpstreamError) {
        self.ended.cancel();
        let calls = std::mem::take(&mut self.state().calls);
        for (_, call) in calls {
            let _ = call.answer.send(Err(error.clone().into()));
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.ended.cancel();
        if let Some(reader) = self.reader.get() {
            reader.abort();
        }
    }
}
