//! A modern caller's call: what happens in its course, as the caller may see it.
//!
//! 1. Progress goes to the caller under its own token, and log messages from the level on that it asked for; news that
//!    belong to no call go to whoever listens for them.
//! 2. What the server asks becomes an interim result (MCP 2026-07-28, "Multi Round-Trip Requests") of all that it has asked
//!    by then. What the client has not declared it is not asked: the server hears so, and when the call fails for it the
//!    caller learns what was lacking.
//! 3. What a modern server answers is answered as it is.
//! 4. Everything passes the route's rules before it is the caller's.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::StatusCode;
use tokio::time::Instant;

use super::map::{self, LogLevel, ToModernError};
use super::message::{self, RpcError, replaced, text};
use super::parked::Binding;
use super::peer::{Asked, Event, Exchange, Listener, Lost, Peer, ServerEra, Told};
use super::peers::Own;
use crate::edge::Rejection;
use crate::mcp::{Id, codes};
use crate::reply::inspect::Inspector;
use crate::reply::json;
use crate::session::Sealer;
use crate::telemetry::Outcome;
use crate::upstream::UpstreamError;

/// How long more questions are waited for once there is one: what is asked at once need not come at once, and whoever
/// answers takes longer.
const AT_ONCE: Duration = Duration::from_millis(250);
/// Questions that one interim result holds.
const MAX_QUESTIONS: usize = 16;

/// A modern request, and who sent it.
pub struct Caller {
    pub id: Id,
    pub method: Box<str>,
    /// What the server was told of the client, a raw JSON object.
    pub capabilities: Bytes,
    pub level: Option<LogLevel>,
    /// Its progress token, raw.
    pub token: Option<Bytes>,
    pub binding: Binding,
    pub inspector: Inspector,
    pub sealer: Arc<Sealer>,
}

/// A call on its way; dropped before its answer, it is cancelled.
pub struct Course {
    exchange: Exchange,
    /// Where log messages come from that the connection doesn't tell apart by call.
    logs: Option<Listener>,
    /// What has happened already.
    ahead: VecDeque<Result<Event, Lost>>,
    /// Ends with the call.
    _own: Option<Own>,
    /// How many questions there were.
    asked: usize,
    /// What the client would have had to declare.
    lacking: Option<Bytes>,
}

/// Something that the server wants of the client.
pub struct Question {
    /// What the answer goes by.
    pub key: String,
    /// The raw JSON of its method and parameters.
    pub request: Bytes,
    /// `None`: the server asks no more, but wants the request anew.
    pub asked: Option<Asked>,
}

/// What comes next.
pub enum Step {
    /// A notification, raw.
    Said(Bytes),
    /// The end of it, not yet [filtered](Caller::finish).
    Answered { message: Bytes, status: StatusCode },
    /// The caller has to be asked first.
    Asked(Vec<Question>),
}

/// The last message that a caller gets.
pub struct Finished {
    pub message: Bytes,
    pub status: StatusCode,
    pub outcome: Outcome,
}

impl Caller {
    /// An answer with what the caller may see of it.
    ///
    /// # Errors
    /// When it may hold a list that can't be filtered.
    pub fn finish(&self, message: Bytes, status: StatusCode) -> Result<Finished, Rejection> {
        let (outcome, may_hold_list) = json::see(&message);
        let filtered = if self.has_rules() && may_hold_list {
            self.inspector
                .filter(&message)
                .map_err(|_| Rejection::UpstreamNonsense("its list can't be decoded"))?
        } else {
            None
        };
        Ok(Finished {
            message: filtered.unwrap_or(message),
            status,
            outcome,
        })
    }

    /// Has a call wait for what the caller is asked, and asks it.
    ///
    /// # Errors
    /// When too many calls wait.
    pub fn ask(&self, course: Course, questions: Vec<Question>) -> Result<Finished, Rejection> {
        let mut requests = String::new();
        for question in &questions {
            let comma = if requests.is_empty() { "" } else { "," };
            let key = String::from_utf8(text(&question.key)).expect("JSON is UTF-8");
            let request = String::from_utf8_lossy(&question.request);
            requests.push_str(&format!("{comma}{key}:{request}"));
        }
        let ticket = if questions.iter().any(|question| question.asked.is_some()) {
            let parked = self.inspector.route.bridge.parked();
            Some(parked.park(self.binding.person, course, questions)?)
        } else {
            None
        };
        let state = self
            .binding
            .seal(&self.sealer, ticket.as_ref(), self.inspector.clock.now())?;
        let result =
            format!(r#"{{"resultType":"input_required","inputRequests":{{{requests}}},"requestState":"{state}"}}"#);
        Ok(Finished {
            message: message::answer(&self.id, &Ok(result.into())),
            status: StatusCode::OK,
            outcome: Outcome::Success,
        })
    }

    fn has_rules(&self) -> bool {
        self.inspector.route.config.policy.has_rules()
    }
}

impl Course {
    /// A call that was just sent.
    pub fn new(exchange: Exchange, logs: Option<Listener>, own: Option<Own>) -> Self {
        Self {
            exchange,
            logs,
            ahead: VecDeque::new(),
            _own: own,
            asked: 0,
            lacking: None,
        }
    }

    /// The connection it goes over.
    pub fn peer(&self) -> &Arc<Peer> {
        self.exchange.peer()
    }

    /// Waits until something has happened.
    ///
    /// # Errors
    /// When it is that there will be no answer.
    pub async fn begin(&mut self) -> Result<(), Lost> {
        let first = self.event().await?;
        self.ahead.push_back(Ok(first));
        Ok(())
    }

    /// What comes next; nothing is lost when this is given up halfway.
    ///
    /// # Errors
    /// When there will be no answer, or none that the caller may have.
    pub async fn next(&mut self, caller: &Caller) -> Result<Step, Rejection> {
        loop {
            let event = match self.ahead.pop_front() {
                Some(event) => event,
                None => self.event().await,
            };
            match event.map_err(|lost| unanswered(lost, self.peer()))? {
                Event::Notification(told) => {
                    if let Some(message) = self.said(told, caller) {
                        return Ok(Step::Said(message));
                    }
                }
                Event::Request(asked) => {
                    if let Some(question) = self.question(asked, caller) {
                        return Ok(Step::Asked(self.more(question, caller).await));
                    }
                }
                Event::Answer(Ok(result)) => {
                    let result = match self.peer().era() {
                        ServerEra::Modern => result,
                        ServerEra::Legacy => map::result_to_modern(&caller.method, &result, self.peer().facts())?,
                    };
                    return Ok(Step::Answered {
                        message: message::answer(&caller.id, &Ok(result)),
                        status: StatusCode::OK,
                    });
                }
                Event::Answer(Err(error)) if self.peer().era() == ServerEra::Modern => {
                    return Ok(refused(error, caller));
                }
                Event::Answer(Err(error)) => return self.failed(&error, caller),
            }
        }
    }

    /// Tells the server what the caller has answered, by the keys of its questions; what is still open comes back.
    ///
    /// # Errors
    /// When the server doesn't take it.
    pub async fn answer(
        &mut self,
        questions: Vec<Question>,
        answers: &[(String, Bytes)],
    ) -> Result<Vec<Question>, Rejection> {
        let mut open = Vec::new();
        for mut question in questions {
            let answer = answers.iter().find(|(key, _)| *key == question.key);
            let Some((_, answer)) = answer else {
                open.push(question);
                continue;
            };
            let Some(asked) = question.asked.take() else { continue };
            if let Err(lost) = asked.answer(Ok(answer.clone())).await {
                // It may have gone on without.
                match self.exchange.next().now_or_never() {
                    Some(event) => self.ahead.push_back(event),
                    None => return Err(unanswered(lost, self.peer())),
                }
            }
        }
        Ok(open)
    }

    async fn event(&mut self) -> Result<Event, Lost> {
        let Some(logs) = &mut self.logs else {
            return self.exchange.next().await;
        };
        loop {
            tokio::select! {
                biased;
                Some(told) = logs.next() => {
                    if &*told.method == "notifications/message" {
                        return Ok(Event::Notification(told));
                    }
                }
                event = self.exchange.next() => return event,
            }
        }
    }

    /// Rule 1.
    fn said(&self, mut told: Told, caller: &Caller) -> Option<Bytes> {
        match &*told.method {
            "notifications/progress" => {
                told.params = replaced(&told.params, &["progressToken"], caller.token.as_ref()?);
            }
            "notifications/message" => {
                let wanted = caller.level?;
                map::logged_at(&told.params).filter(|level| *level >= wanted)?;
            }
            method if method.ends_with("/list_changed") || method == "notifications/resources/updated" => {
                self.peer().tell(told);
                return None;
            }
            _ => {}
        }
        let params = map::notification_to_modern(&told.method, &told.params)?;
        let message = message::notification(&told.method, &params);
        let hidden = caller.has_rules() && caller.inspector.hides(&message);
        (!hidden).then_some(message)
    }

    /// Rule 2; `None` when the server was refused.
    fn question(&mut self, asked: Asked, caller: &Caller) -> Option<Question> {
        let request = match map::asked_to_modern(&asked.method, &asked.params) {
            Ok(request) => request,
            Err(error) => {
                asked.reply_later(Err(error));
                return None;
            }
        };
        if let Some(required) = map::lacks(&caller.capabilities, &asked.method, &asked.params) {
            self.lacking.get_or_insert(required);
            asked.reply_later(Err(RpcError::new(
                codes::METHOD_NOT_FOUND,
                "the client has not declared that it can be asked this",
            )));
            return None;
        }
        self.asked += 1;
        Some(Question {
            key: format!("input-{}", self.asked),
            request,
            asked: Some(asked),
        })
    }

    /// What else is asked at the same time.
    async fn more(&mut self, first: Question, caller: &Caller) -> Vec<Question> {
        let mut all = vec![first];
        let until = Instant::now() + AT_ONCE;
        while all.len() < MAX_QUESTIONS {
            let next = tokio::time::timeout_at(until, self.exchange.next()).await;
            match next.ok() {
                Some(Ok(Event::Request(asked))) => all.extend(self.question(asked, caller)),
                Some(Ok(event @ Event::Notification(_))) => self.ahead.push_back(Ok(event)),
                Some(last) => {
                    self.ahead.push_back(last);
                    break;
                }
                None => break,
            }
        }
        all
    }

    fn failed(&mut self, error: &RpcError, caller: &Caller) -> Result<Step, Rejection> {
        if let Some(required) = self.lacking.take() {
            return Err(Rejection::MissingCapability { required });
        }
        let pages = match map::error_to_modern(&caller.method, error) {
            ToModernError::Error(error) => return Ok(refused(error, caller)),
            ToModernError::UrlElicitations(pages) => pages,
        };
        let mut questions = Vec::with_capacity(pages.len());
        for params in pages {
            if let Some(required) = map::lacks(&caller.capabilities, "elicitation/create", &params) {
                return Err(Rejection::MissingCapability { required });
            }
            self.asked += 1;
            let params = String::from_utf8_lossy(&params);
            questions.push(Question {
                key: format!("input-{}", self.asked),
                request: format!(r#"{{"method":"elicitation/create","params":{params}}}"#).into(),
                asked: None,
            });
        }
        Ok(Step::Asked(questions))
    }
}

/// A server's error, with the status that it has over HTTP (MCP 2026-07-28, "Streamable HTTP").
fn refused(error: RpcError, caller: &Caller) -> Step {
    let status = match error.code {
        codes::METHOD_NOT_FOUND => StatusCode::NOT_FOUND,
        codes::HEADER_MISMATCH | codes::MISSING_CAPABILITY | codes::UNSUPPORTED_VERSION => StatusCode::BAD_REQUEST,
        _ => StatusCode::OK,
    };
    Step::Answered {
        message: message::answer(&caller.id, &Err(error)),
        status,
    }
}

/// Why a modern caller, who has no session to begin anew, gets no answer.
pub fn unanswered(lost: Lost, peer: &Peer) -> Rejection {
    match lost {
        Lost::Session => UpstreamError::Protocol { endpoint: peer.name() }.into(),
        lost => lost.into(),
    }
}
