//! One caller's session: its connection to the server, the calls under way, and what waits for the caller to hear.
//!
//! 1. What belongs to no call waits for the client's standing stream, at most 256 messages and 4 MiB: the oldest
//!    notification makes room. Questions and logs go to the latest call's stream while no standing stream is open.
//! 2. Of several standing streams the newest counts: clients open another before they know that one has ended.
//! 3. A call's id is taken until it is answered or cancelled, as JSON-RPC wants it; at most 256 at once.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::call::Out;
use super::questions::{Asker, Questions, spelled};
use super::rounds::Modern;
use crate::bridge::message::{self, RpcError, at, replaced};
use crate::bridge::peer::{Asked, Funds, Peer, Told};
use crate::bridge::wishes::{Subscribed, is_part};
use crate::limit::Who;
use crate::mcp::{Id, codes};
use crate::session::StreamKey;
use crate::telemetry::GaugeGuard;

/// Messages that wait for a standing stream.
const MAX_WAITING: usize = 256;
/// Bytes of them.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Calls at once.
const MAX_CALLS: usize = 256;
/// Resources of a process that serves everybody that one session is told about.
const MAX_SUBSCRIPTIONS: usize = 1024;

/// One caller's session.
pub struct Session {
    pub key: StreamKey,
    /// [`crate::session::person`].
    pub person: [u8; 32],
    /// Whose share of places it takes.
    pub owner: Who,
    /// Takes the answers of an HTTP+SSE session to its stream.
    answers: Option<mpsc::Sender<Bytes>>,
    back: OnceLock<Back>,
    /// Whether somebody introduces the client just now, or has.
    introduced: Mutex<bool>,
    /// The latest, for what is sent on nobody's behalf.
    funds: Mutex<Option<Funds>>,
    pub questions: Questions,
    /// To what of a process that serves everybody, by URI.
    subscribed: Mutex<HashMap<Box<str>, Subscribed>>,
    waiting: Mutex<VecDeque<Waiting>>,
    calls: Mutex<Calls>,
    /// Told when there is something new for whoever writes a standing stream.
    changed: watch::Sender<()>,
    streams: AtomicUsize,
    newest: AtomicU64,
    used: Mutex<Instant>,
    ended: CancellationToken,
    /// The server knows, or will at once.
    closed: AtomicBool,
    /// An HTTP+SSE stream counts itself.
    _gauge: Option<GaugeGuard>,
}

/// The server's side.
pub struct Back {
    pub peer: Arc<Peer>,
    /// What a modern server has to be told with every request.
    pub modern: Option<Modern>,
    /// Others speak over the connection, too: it outlives the session, and questions could be anybody's.
    pub shared: bool,
}

struct Waiting {
    message: Bytes,
    /// A notification, which may be left out.
    news: bool,
}

#[derive(Default)]
struct Calls {
    count: u64,
    under_way: HashMap<Id, UnderWay>,
}

struct UnderWay {
    number: u64,
    out: mpsc::Sender<Out>,
    cancelled: CancellationToken,
}

/// A call's place in its session; dropped, the id is free again.
pub struct Place {
    session: Arc<Session>,
    id: Id,
    number: u64,
    /// Fires when the client takes the call back.
    pub cancelled: CancellationToken,
}

impl Session {
    /// A session without a server yet.
    pub fn new(
        key: StreamKey,
        person: [u8; 32],
        owner: Who,
        answers: Option<mpsc::Sender<Bytes>>,
        gauge: Option<GaugeGuard>,
    ) -> Arc<Self> {
        Arc::new(Self {
            key,
            person,
            owner,
            answers,
            back: OnceLock::new(),
            introduced: Mutex::new(false),
            funds: Mutex::new(None),
            questions: Questions::default(),
            subscribed: Mutex::default(),
            waiting: Mutex::default(),
            calls: Mutex::default(),
            changed: watch::Sender::new(()),
            streams: AtomicUsize::new(0),
            newest: AtomicU64::new(0),
            used: Mutex::new(Instant::now()),
            ended: CancellationToken::new(),
            closed: AtomicBool::new(false),
            _gauge: gauge,
        })
    }

    /// Where an HTTP+SSE session's answers go; others have them in the reply to the request.
    pub fn answers(&self) -> Option<&mpsc::Sender<Bytes>> {
        self.answers.as_ref()
    }

    /// The server's side, once the client has introduced itself.
    pub fn back(&self) -> Option<&Back> {
        self.back.get()
    }

    /// Whether this is the first time: a session is introduced once.
    pub fn introduce(&self) -> bool {
        !std::mem::replace(&mut *lock(&self.introduced), true)
    }

    /// The client may try again.
    pub fn unintroduced(&self) {
        *lock(&self.introduced) = false;
    }

    /// Notes the server's side.
    pub fn meet(&self, back: Back) {
        let _ = self.back.set(back);
    }

    /// Notes what may be sent by from now on.
    pub fn fund(&self, funds: &Funds) {
        *lock(&self.funds) = Some(funds.clone());
        *lock(&self.used) = Instant::now();
    }

    /// What was sent by last.
    pub fn funds(&self) -> Option<Funds> {
        lock(&self.funds).clone()
    }

    /// Takes a place for a call.
    ///
    /// # Errors
    /// By rule 3.
    pub fn begin(self: &Arc<Self>, id: &Id, out: &mpsc::Sender<Out>) -> Result<Place, RpcError> {
        let id = id.canonical();
        let mut calls = lock(&self.calls);
        if calls.under_way.contains_key(&id) {
            return Err(RpcError::new(
                codes::INVALID_REQUEST,
                "a request with this id is not answered yet",
            ));
        }
        if calls.under_way.len() >= MAX_CALLS {
            return Err(RpcError::new(
                codes::RATE_LIMITED,
                "there are too many requests of this session that are not answered yet",
            ));
        }
        calls.count += 1;
        let number = calls.count;
        let cancelled = CancellationToken::new();
        let call = UnderWay {
            number,
            out: out.clone(),
            cancelled: cancelled.clone(),
        };
        calls.under_way.insert(id.clone(), call);
        Ok(Place {
            session: self.clone(),
            id,
            number,
            cancelled,
        })
    }

    /// The client takes a call back.
    pub fn cancel(&self, id: &Id) {
        if let Some(call) = lock(&self.calls).under_way.get(&id.canonical()) {
            call.cancelled.cancel();
        }
    }

    /// Keeps a subscription.
    ///
    /// # Errors
    /// When there are too many; it is given back then.
    pub fn subscribe(&self, uri: &str, subscribed: Subscribed) -> Result<(), RpcError> {
        let mut all = lock(&self.subscribed);
        if all.len() >= MAX_SUBSCRIPTIONS && !all.contains_key(uri) {
            return Err(RpcError::new(
                codes::RATE_LIMITED,
                "this session is subscribed to as many resources as it may be",
            ));
        }
        all.insert(uri.into(), subscribed);
        Ok(())
    }

    /// Gives a subscription back.
    pub fn unsubscribe(&self, uri: &str) {
        lock(&self.subscribed).remove(uri);
    }

    /// Whether it is told of a resource.
    pub fn is_subscribed(&self, uri: &str) -> bool {
        lock(&self.subscribed).keys().any(|wanted| is_part(uri, wanted))
    }

    /// Whether calls are still to be answered.
    pub fn is_busy(&self) -> bool {
        !lock(&self.calls).under_way.is_empty()
    }

    /// Tells the client of something that belongs to no call.
    pub fn tell(&self, told: &Told) {
        let params = if &*told.method == "notifications/cancelled" {
            // The server takes a question back, by its own id of it.
            let question = at(&told.params, &["requestId"]).and_then(|id| self.questions.of_server(&Id(id)));
            let Some(question) = question else { return };
            self.questions.forget(question);
            replaced(&told.params, &["requestId"], &spelled(question).0)
        } else {
            told.params.clone()
        };
        let of_calls = ["notifications/message", "notifications/elicitation/complete"].contains(&&*told.method);
        self.say(message::notification(&told.method, &params), true, of_calls);
    }

    /// Asks the client something that belongs to no call.
    pub fn ask(&self, asked: Asked) {
        let (method, params) = (asked.method.clone(), asked.params.clone());
        if let Ok(id) = self.questions.put(Asker::Server(asked)) {
            self.say(message::request(&spelled(id), &method, &params), false, true);
        }
    }

    /// Rule 1; `of_calls`: what most likely belongs to a call, though the connection doesn't tell to which.
    fn say(&self, message: Bytes, news: bool, of_calls: bool) {
        let mut message = Some(message);
        if of_calls && self.streams.load(Ordering::Relaxed) == 0 {
            let calls = lock(&self.calls);
            if let Some(call) = calls.under_way.values().max_by_key(|call| call.number) {
                message = match call.out.try_send(Out::Message(message.take().expect("there is one"))) {
                    Ok(()) => None,
                    Err(mpsc::error::TrySendError::Full(out) | mpsc::error::TrySendError::Closed(out)) => {
                        out.into_message()
                    }
                };
            }
        }
        let Some(message) = message else { return };
        let mut waiting = lock(&self.waiting);
        waiting.push_back(Waiting { message, news });
        let mut bytes: usize = waiting.iter().map(|waiting| waiting.message.len()).sum();
        while waiting.len() > 1 && (waiting.len() > MAX_WAITING || bytes > MAX_BYTES) {
            // Questions are few and bounded themselves.
            let place = waiting.iter().position(|waiting| waiting.news).unwrap_or(0);
            bytes -= waiting.remove(place).map_or(0, |waiting| waiting.message.len());
        }
        drop(waiting);
        self.changed.send_replace(());
    }

    /// The next message for a standing stream.
    pub fn next_waiting(&self) -> Option<Bytes> {
        lock(&self.waiting).pop_front().map(|waiting| waiting.message)
    }

    /// Opens a standing stream: its number, and what tells of news.
    pub fn stand(&self) -> (u64, watch::Receiver<()>) {
        self.streams.fetch_add(1, Ordering::Relaxed);
        let number = self.newest.fetch_add(1, Ordering::Relaxed) + 1;
        let changed = self.changed.subscribe();
        // Others learn that they are no longer the newest.
        self.changed.send_replace(());
        (number, changed)
    }

    /// Whether a stream is the newest.
    pub fn is_newest(&self, number: u64) -> bool {
        self.newest.load(Ordering::Relaxed) == number
    }

    /// A standing stream has ended.
    pub fn leave(&self) {
        self.streams.fetch_sub(1, Ordering::Relaxed);
        *lock(&self.used) = Instant::now();
    }

    /// Waits until the client has a stream to hear by.
    pub async fn heard(&self) {
        let mut changed = self.changed.subscribe();
        while self.streams.load(Ordering::Relaxed) == 0 {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Since when nobody needs it; `None` while somebody does.
    pub fn idle_since(&self) -> Option<Instant> {
        let idle = self.streams.load(Ordering::Relaxed) == 0 && !self.is_busy();
        idle.then(|| *lock(&self.used))
    }

    /// Fires when it is over.
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// Whether it is over, or its connection is.
    pub fn is_over(&self) -> bool {
        self.ended.is_cancelled() || self.back().is_some_and(|back| back.peer.ended().is_cancelled())
    }

    /// Ends it, and tells the server.
    pub async fn close(&self) {
        self.ended.cancel();
        self.questions.clear();
        lock(&self.subscribed).clear();
        self.changed.send_replace(());
        if let Some(back) = self.back()
            && !back.shared
            && !self.closed.swap(true, Ordering::Relaxed)
        {
            back.peer.close().await;
        }
    }
}

impl Place {
    /// The session it is in.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut calls = lock(&self.session.calls);
        if calls
            .under_way
            .get(&self.id)
            .is_some_and(|call| call.number == self.number)
        {
            calls.under_way.remove(&self.id);
        }
        drop(calls);
        *lock(&self.session.used) = Instant::now();
        // A stream that waits for the last call to end.
        self.session.changed.send_replace(());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::random_stream_key;

    fn session() -> Arc<Session> {
        Session::new(random_stream_key(), [1; 32], Who::Person([1; 32]), None, None)
    }

    fn told(method: &str, number: usize) -> Told {
        Told::new(method.into(), format!("{{\"n\":{number}}}").into())
    }

    #[tokio::test]
    async fn the_oldest_news_make_room() {
        let session = session();
        session.say("question".into(), false, false);
        for number in 0..MAX_WAITING + 2 {
            session.tell(&told("notifications/x", number));
        }
        let first = session.next_waiting().expect("one");
        assert_eq!(&first[..], b"question", "a question is no news");
        let next = session.next_waiting().expect("one");
        assert!(next.ends_with(br#"{"n":3}}"#), "{next:?}");
        let mut count = 2;
        while session.next_waiting().is_some() {
            count += 1;
        }
        assert_eq!(count, MAX_WAITING);
        for _ in 0..3 {
            session.say("x".repeat(MAX_BYTES / 2).into(), true, false);
        }
        assert_eq!(std::iter::from_fn(|| session.next_waiting()).count(), 2);
    }

    #[tokio::test]
    async fn logs_go_to_the_latest_call_while_there_is_no_stream() {
        let session = session();
        let (out, mut calls) = mpsc::channel(4);
        let _one = session.begin(&Id("1".into()), &out).expect("a place");
        session.tell(&told("notifications/message", 1));
        let said = calls.try_recv().ok().and_then(Out::into_message);
        assert!(said.is_some_and(|said| said.ends_with(br#"{"n":1}}"#)));
        session.tell(&told("notifications/tools/list_changed", 2));
        assert!(calls.try_recv().is_err() && session.next_waiting().is_some());
        let (_number, _changed) = session.stand();
        session.tell(&told("notifications/message", 3));
        assert!(calls.try_recv().is_err() && session.next_waiting().is_some());
    }

    #[tokio::test]
    async fn an_id_is_taken_until_its_call_ends() {
        let session = session();
        let (out, _calls) = mpsc::channel(4);
        let one = session.begin(&Id("1".into()), &out).expect("a place");
        assert!(session.begin(&Id("1.0".into()), &out).is_err(), "another spelling");
        assert!(session.begin(&Id("\"1\"".into()), &out).is_ok(), "another id");
        session.cancel(&Id("1e0".into()));
        assert!(one.cancelled.is_cancelled() && session.is_busy());
        drop(one);
        assert!(session.begin(&Id("1".into()), &out).is_ok());
        let places: Vec<_> = (0..MAX_CALLS)
            .map(|id| session.begin(&Id(id.to_string().into()), &out))
            .collect();
        assert!(places.iter().all(Result::is_ok));
        assert!(session.begin(&Id("\"more\"".into()), &out).is_err());
    }
}
