//! One request of a client on its way to the server, whichever era that is of.
//!
//! 1. Whatever happens before the answer goes to the client at once: notifications, and what the server asks.
//! 2. A question is answered by the client in a POST of its own; the call ends, its questions end.
//! 3. The answer is filtered like every list, and a budgeted list is gathered page by page.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::sync::mpsc;

use super::everybodys;
use super::questions::{Asker, spelled};
use super::rounds;
use super::session::{Back, Session};
use crate::bridge::map;
use crate::bridge::message::{self, Answered, RpcError, at};
use crate::bridge::peer::{Ask, Asked, Event, Exchange, Funds, Lost, Told};
use crate::edge::Rejection;
use crate::mcp::{Id, Message, codes};
use crate::reply::{Ending, Inspector, Pages, Sending, budgeted, gather, see};

/// What there is for the client to read.
pub enum Out {
    /// A notification or a question, as it is written.
    Message(Bytes),
    Answer(Answer),
}

/// The end of one call.
pub struct Answer {
    pub id: Id,
    /// The message, as it is written.
    pub outcome: Result<Bytes, Rejection>,
    pub ending: Option<Ending>,
}

impl Out {
    /// The message, if it isn't an answer.
    pub fn into_message(self) -> Option<Bytes> {
        match self {
            Self::Message(message) => Some(message),
            Self::Answer(_) => None,
        }
    }
}

/// Whoever makes the calls of one POST.
#[derive(Clone)]
pub struct Caller {
    pub session: Arc<Session>,
    pub sending: Arc<Sending>,
    pub inspector: Arc<Inspector>,
    pub funds: Funds,
    pub out: mpsc::Sender<Out>,
}

impl Caller {
    /// Carries one request to its end.
    pub async fn carry(self, member: usize, ending: Option<Ending>) {
        let messages = self.sending.messages();
        let Some((message, id)) = messages
            .get(member)
            .and_then(|message| Some((message, message.id.clone()?)))
        else {
            return;
        };
        let place = match self.session.begin(&id, &self.out) {
            Ok(place) => place,
            Err(error) => {
                let outcome = Ok(message::answer(&id, &Err(error)));
                return self.end(Answer { id, outcome, ending }).await;
            }
        };
        let outcome = tokio::select! {
            biased;
            // No answer is sent to a request that was taken back (MCP, "Cancellation"); its ending says so by itself.
            () = place.cancelled.cancelled() => return,
            outcome = self.outcome(message, &id) => outcome,
        };
        self.end(Answer { id, outcome, ending }).await;
        drop(place);
    }

    async fn end(&self, mut answer: Answer) {
        if let (Some(ending), Some(back)) = (&mut answer.ending, self.session.back()) {
            ending.sent(self.sending.kind(), &back.peer.name());
        }
        // Nobody reads it any more: its ending counts as cancelled.
        let _ = self.out.send(Out::Answer(answer)).await;
    }

    async fn outcome(&self, message: &Message, id: &Id) -> Result<Bytes, Rejection> {
        let route = self.sending.route();
        if let Some(request) = self.sending.payload().and_then(|payload| budgeted(route, payload)) {
            if request.cursor.is_some() {
                return Err(Rejection::InvalidCursor);
            }
            let mut pages = Bridged {
                caller: self,
                message,
                id,
            };
            return gather(&self.sending, request, &self.inspector, &mut pages).await;
        }
        let answered = self.answered(message, params_of(&message.raw)).await?;
        let answer = message::answer(id, &answered);
        let (_, may_hold_list) = see(&answer);
        if may_hold_list
            && route.config.policy.has_rules()
            && let Some(filtered) = self
                .inspector
                .filter(&answer)
                .map_err(|_| Rejection::UpstreamNonsense("its list can't be decoded"))?
        {
            return Ok(filtered);
        }
        Ok(answer)
    }

    /// What the server answers, with these parameters in the message's place.
    async fn answered(&self, message: &Message, params: Result<Bytes, RpcError>) -> Result<Answered, Rejection> {
        let params = match params {
            Ok(params) => params,
            Err(error) => return Ok(Err(error)),
        };
        if &*message.method == "initialize" {
            return super::introduce::introduce(&self.session, self.sending.route(), &params, &self.funds).await;
        }
        let Some(back) = self.session.back() else {
            return Ok(Err(RpcError::new(codes::INVALID_REQUEST, "initialize first")));
        };
        if let Some(modern) = &back.modern {
            return rounds::answered(self, back, modern, message, params).await;
        }
        if back.shared {
            return everybodys::answered(self, back, message, params).await;
        }
        let ask = Ask {
            method: message.method.clone(),
            params,
            funds: self.funds.clone(),
            headers: HeaderMap::new(),
            takes_questions: true,
        };
        self.converse(back, back.peer.request(ask)).await
    }

    /// Goes along with a call until its answer.
    pub async fn converse(&self, back: &Back, mut exchange: Exchange) -> Result<Answered, Rejection> {
        let mut open = Open::new(&self.session);
        loop {
            match exchange.next().await {
                Ok(Event::Notification(told)) => self.told(back, told).await,
                Ok(Event::Request(asked)) => self.asked(asked, &mut open).await,
                Ok(Event::Answer(answered)) => return Ok(answered),
                Err(lost) => {
                    if let Lost::Status(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) = lost {
                        // No server of its kind says that: it has been replaced. The client finds it when it initializes.
                        let bridge = &self.sending.route().bridge;
                        bridge.nature().forget();
                        bridge.sessions().end(&self.session.key);
                    }
                    return Err(lost.into());
                }
            }
        }
    }

    async fn told(&self, back: &Back, told: Told) {
        if &*told.method == "notifications/cancelled" {
            return self.session.tell(&told);
        }
        let params = match back.modern {
            Some(_) => map::notification_to_legacy(&told.method, &told.params),
            None => Some(told.params),
        };
        if let Some(params) = params {
            self.say(message::notification(&told.method, &params)).await;
        }
    }

    async fn asked(&self, asked: Asked, open: &mut Open<'_>) {
        let (method, params) = (asked.method.clone(), asked.params.clone());
        if let Ok(id) = self.session.questions.put(Asker::Server(asked)) {
            open.ids.push(id);
            self.say(message::request(&spelled(id), &method, &params)).await;
        }
    }

    /// Writes a message that its reader may see.
    pub async fn say(&self, message: Bytes) {
        if !self.inspector.hides(&message) {
            let _ = self.out.send(Out::Message(message)).await;
        }
    }
}

/// Questions of one call; what is still open when it ends, nobody needs to answer.
pub struct Open<'a> {
    session: &'a Session,
    pub ids: Vec<u64>,
}

impl<'a> Open<'a> {
    /// None yet.
    pub fn new(session: &'a Session) -> Self {
        Self {
            session,
            ids: Vec::new(),
        }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        for id in &self.ids {
            self.session.questions.forget(*id);
        }
    }
}

/// Pages of a budgeted list.
struct Bridged<'a> {
    caller: &'a Caller,
    message: &'a Message,
    id: &'a Id,
}

impl Bridged<'_> {
    async fn page(&self, request: &Bytes) -> Result<Bytes, Rejection> {
        let answered = self.caller.answered(self.message, params_of(request)).await?;
        Ok(message::answer(self.id, &answered))
    }
}

impl Pages for Bridged<'_> {
    async fn first(&mut self) -> Result<Bytes, Rejection> {
        self.page(&self.message.raw).await
    }

    async fn next(&mut self, request: Bytes) -> Result<Bytes, Rejection> {
        self.page(&request).await
    }
}

/// A message's parameters.
pub fn params_of(raw: &Bytes) -> Result<Bytes, RpcError> {
    let params = at(raw, &["params"]).filter(|params| &params[..] != b"null");
    match params {
        None => Ok(Bytes::from_static(b"{}")),
        Some(params) if params.first() == Some(&b'{') => Ok(params),
        // JSON-RPC knows arrays, MCP doesn't.
        Some(_) => Err(RpcError::new(codes::INVALID_PARAMS, "params must be an object")),
    }
}
