//! A legacy client's request to a modern server: told who asks, and asked again until it is complete.
//!
//! 1. The gateway answers what only legacy servers know: `ping`, `logging/setLevel`, and subscriptions (`listen`). The
//!    level goes with every request after it.
//! 2. What the server wants to know first is asked of the client, all at once; with the answers the request is made
//!    again, at most 16 times. What the client can't be asked, or refuses to answer, is what the call comes to.
//! 3. Headers mirror the body: `Mcp-Name`, and `Mcp-Param-*` of tools whose definitions this session has seen. A server
//!    that finds them wanting (-32020) is asked for its tools, and the request made again, once.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::{oneshot, watch};

use super::call::{Caller, Open};
use super::questions::{Asker, spelled};
use super::session::Back;
use crate::bridge::map::{self, ClientFacts, InputRequest, LogLevel, MapError, ParamHeader, Retry, ToLegacyResult};
use crate::bridge::message::{self, Answered, RpcError, at};
use crate::bridge::peer::Ask;
use crate::edge::Rejection;
use crate::mcp::{Message, codes};

/// How often a request is made, until it is complete.
const MAX_ROUNDS: usize = 16;
/// Tools whose parameters are mirrored.
const MAX_TOOLS: usize = 1024;
/// Resources that one session is told about.
const MAX_SUBSCRIPTIONS: usize = 1024;
const NAME: HeaderName = HeaderName::from_static("mcp-name");

/// What a modern server is told with every request of a session.
pub struct Modern {
    info: Option<Bytes>,
    /// As the client said them.
    said: Bytes,
    capabilities: Bytes,
    level: Mutex<Option<LogLevel>>,
    tools: Mutex<HashMap<String, Vec<ParamHeader>>>,
    /// URIs that the client subscribed to.
    pub subscribed: watch::Sender<BTreeSet<String>>,
}

impl Modern {
    /// What a client says of itself by the parameters of `initialize`.
    pub fn of(initialize: &Bytes) -> Self {
        let object = |name: &str| at(initialize, &[name]).filter(|value| value.first() == Some(&b'{'));
        let said = object("capabilities").unwrap_or_else(|| Bytes::from_static(b"{}"));
        Self {
            info: object("clientInfo"),
            capabilities: map::client_capabilities_to_modern(&said),
            said,
            level: Mutex::new(None),
            tools: Mutex::default(),
            subscribed: watch::Sender::default(),
        }
    }

    /// Who asks.
    pub fn client(&self) -> ClientFacts {
        ClientFacts {
            info: self.info.clone(),
            capabilities: self.capabilities.clone(),
            log_level: *self.level.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Rule 3.
    fn headers(&self, message: &Message) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let named = match &*message.method {
            "tools/call" | "prompts/get" => message.name.as_deref(),
            "resources/read" => message.uri.as_deref(),
            _ => None,
        };
        if let Some(value) = named.and_then(|named| HeaderValue::try_from(map::encode_header_value(named)).ok()) {
            headers.insert(NAME, value);
        }
        if &*message.method == "tools/call"
            && let (Some(name), Some(arguments)) = (&message.name, &message.arguments)
            && let Some(params) = self.tools().get(&**name)
        {
            for (name, value) in map::mcp_param_values(arguments, params) {
                if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                    headers.insert(name, value);
                }
            }
        }
        headers
    }

    /// Notes which tools have parameters that headers mirror.
    fn learn(&self, result: &Bytes) {
        let mut tools = self.tools();
        for (name, params) in map::annotated_tools(result) {
            if tools.len() < MAX_TOOLS || tools.contains_key(&name) {
                tools.insert(name, params);
            }
        }
    }

    /// Rule 1.
    fn answer_here(&self, back: &Back, message: &Message, params: &Bytes) -> Option<Answered> {
        let done = || Ok(Bytes::from_static(b"{}"));
        let can = |path: &[&str]| at(&back.peer.facts().capabilities, path).is_some_and(|can| &can[..] != b"false");
        let lacks = |what: &str| {
            Err(RpcError::new(
                codes::METHOD_NOT_FOUND,
                format!("the server has no {what}"),
            ))
        };
        Some(match &*message.method {
            "ping" => done(),
            "logging/setLevel" if !can(&["logging"]) => lacks("logging"),
            "logging/setLevel" => {
                let level = at(params, &["level"]).and_then(|level| serde_json::from_slice::<String>(&level).ok());
                match level.and_then(|level| LogLevel::parse(&level)) {
                    Some(level) => {
                        *self.level.lock().unwrap_or_else(PoisonError::into_inner) = Some(level);
                        done()
                    }
                    None => Err(RpcError::new(
                        codes::INVALID_PARAMS,
                        "level must be a level of RFC 5424",
                    )),
                }
            }
            "resources/subscribe" | "resources/unsubscribe" if !can(&["resources", "subscribe"]) => {
                lacks("subscriptions to resources")
            }
            "resources/subscribe" => {
                let uri = message.uri.as_deref().unwrap_or_default().to_owned();
                let mut full = false;
                self.subscribed.send_if_modified(|uris| {
                    full = uris.len() >= MAX_SUBSCRIPTIONS && !uris.contains(&uri);
                    !full && uris.insert(uri)
                });
                match full {
                    true => Err(RpcError::new(
                        codes::RATE_LIMITED,
                        "this session is subscribed to as many resources as it may be",
                    )),
                    false => done(),
                }
            }
            "resources/unsubscribe" => {
                let uri = message.uri.as_deref().unwrap_or_default();
                self.subscribed.send_if_modified(|uris| uris.remove(uri));
                done()
            }
            _ => return None,
        })
    }

    fn tools(&self) -> std::sync::MutexGuard<'_, HashMap<String, Vec<ParamHeader>>> {
        self.tools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a modern server answers in the end.
///
/// # Errors
/// When there is no answer, or none that can be used.
pub async fn answered(
    caller: &Caller,
    back: &Back,
    modern: &Modern,
    message: &Message,
    params: Bytes,
) -> Result<Answered, Rejection> {
    if let Some(answered) = modern.answer_here(back, message, &params) {
        return Ok(answered);
    }
    let method = &message.method;
    let mut retry: Option<Retry> = None;
    let mut relearned = false;
    for _ in 0..MAX_ROUNDS {
        let asked = match map::request_to_modern(method, &params, &modern.client(), retry.clone()) {
            Ok(asked) => asked,
            Err(error) => return refused(error),
        };
        let ask = caller.ask(method, asked, modern.headers(message));
        let result = match caller.converse(back, back.peer.request(ask)).await? {
            Ok(result) => result,
            Err(error) if error.code == codes::HEADER_MISMATCH && !relearned && &**method == "tools/call" => {
                relearned = true;
                relearn(caller, back, modern).await?;
                continue;
            }
            Err(error) => return Ok(Err(map::error_to_legacy(method, message.uri.as_deref(), &error))),
        };
        if &**method == "tools/list" {
            modern.learn(&result);
        }
        match map::result_to_legacy(method, &result) {
            Ok(ToLegacyResult::Complete(result)) => return Ok(Ok(result)),
            Ok(ToLegacyResult::InputRequired { requests, state }) => match ask_client(caller, modern, requests).await {
                Ok(input_responses) => {
                    retry = Some(Retry {
                        input_responses,
                        request_state: state,
                    });
                }
                Err(error) => return Ok(Err(error)),
            },
            Err(error) => return refused(error),
        }
    }
    Err(Rejection::UpstreamNonsense(
        "it asks for more and more, and comes to no answer within 16 rounds",
    ))
}

fn refused(error: MapError) -> Result<Answered, Rejection> {
    match error {
        MapError::Nonsense(why) => Err(Rejection::UpstreamNonsense(why)),
        error => Ok(Err(RpcError::new(error.code(), error.to_string()))),
    }
}

/// Rule 2: asks everything before it waits for any answer.
async fn ask_client(
    caller: &Caller,
    modern: &Modern,
    requests: Vec<InputRequest>,
) -> Result<Vec<(String, Bytes)>, RpcError> {
    let mapped = requests
        .iter()
        .map(|request| map::asked_to_legacy(&request.method, &request.params, &modern.said))
        .collect::<Result<Vec<_>, _>>()?;
    let mut open = Open::new(&caller.session);
    let mut waiting = Vec::with_capacity(mapped.len());
    for (request, (method, params)) in requests.into_iter().zip(mapped) {
        let (sender, answer) = oneshot::channel();
        let id = caller.session.questions.put(Asker::Round(sender))?;
        open.ids.push(id);
        caller.say(message::request(&spelled(id), &method, &params)).await;
        waiting.push((request.key, answer));
    }
    let mut answers = Vec::with_capacity(waiting.len());
    for (key, answer) in waiting {
        let answer = answer
            .await
            .unwrap_or_else(|_| Err(RpcError::new(codes::INTERNAL_ERROR, "the session has ended")))?;
        let answer = map::response(&answer).map_err(|error| RpcError::new(error.code(), error.to_string()))?;
        answers.push((key, answer));
    }
    Ok(answers)
}

/// Asks for the tools, to know what of their parameters is mirrored.
async fn relearn(caller: &Caller, back: &Back, modern: &Modern) -> Result<(), Rejection> {
    let params = map::request_to_modern("tools/list", &Bytes::from_static(b"{}"), &modern.client(), None);
    if let Ok(params) = params {
        let ask = caller.ask("tools/list", params, HeaderMap::new());
        if let Ok(result) = caller.converse(back, back.peer.request(ask)).await? {
            modern.learn(&result);
        }
    }
    Ok(())
}

impl Caller {
    fn ask(&self, method: &str, params: Bytes, headers: HeaderMap) -> Ask {
        Ask {
            method: method.into(),
            params,
            funds: self.funds.clone(),
            headers,
            takes_questions: false,
        }
    }
}
