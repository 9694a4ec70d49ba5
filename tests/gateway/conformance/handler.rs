//! What the conformance server does: the behaviour that the suite wants from its tools and prompts, in each era's way.
//!
//! A legacy caller is asked in mid-call, a modern one by `input_required`; everything else is the same for both.

#![expect(
    deprecated,
    reason = "sampling, roots and logging are deprecated, and the suite wants them"
)]

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::try_join_all;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ClientResult, CompleteRequestParams, CompleteResult,
    CompletionInfo, GetPromptRequestParams, GetPromptResponse, GetPromptResult, Implementation, InputRequest,
    InputRequiredResult, InputResponses, ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult,
    ListToolsResult, LoggingLevel, LoggingMessageNotificationParam, PaginatedRequestParams, ProgressNotificationParam,
    ProtocolVersion, ReadResourceRequestParams, ReadResourceResponse, ReadResourceResult, ServerConfig, ServerRequest,
    SetLevelRequestParams, SubscribeRequestParams, SubscriptionFilter, UnsubscribeRequestParams,
};
use rmcp::service::{RequestContext, SubscriptionContext};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::contents::{self, ASKING_PROMPT, complete, elicit, roots, sample, text, typed};
use super::server::Era;

#[derive(Clone, Copy)]
enum Change {
    Tools,
    Prompts,
}

/// Questions that are put together, each under its key.
type Round = BTreeMap<&'static str, Value>;

/// What came of asking.
enum Asked {
    /// Every round was answered.
    Answered(Value),
    /// A modern caller has to come back with answers.
    Required(InputRequiredResult),
}

#[derive(Clone)]
pub(super) struct Handler {
    era: Era,
    changes: broadcast::Sender<Change>,
    /// Taken before a subscription is acknowledged, so that no change is missed between that and its stream.
    listening: Arc<Mutex<Option<broadcast::Receiver<Change>>>>,
    /// Every `requestState` given out, and the round whose answers it waits for.
    states: Arc<Mutex<HashMap<String, usize>>>,
    next_state: Arc<AtomicU64>,
}

fn held<T>(lock: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

fn modern(context: &RequestContext<RoleServer>) -> bool {
    context
        .protocol_version()
        .is_some_and(|version| version.as_str() >= ProtocolVersion::V_2026_07_28.as_str())
}

fn internal(error: impl std::fmt::Display) -> ErrorData {
    ErrorData::internal_error(error.to_string(), None)
}

impl Handler {
    pub(super) fn new(era: Era) -> Self {
        Self {
            era,
            changes: broadcast::channel(64).0,
            listening: Arc::default(),
            states: Arc::default(),
            next_state: Arc::default(),
        }
    }

    /// One for each session, and for each modern request.
    pub(super) fn instance(&self) -> Self {
        Self {
            listening: Arc::default(),
            ..self.clone()
        }
    }

    /// Puts `rounds` one after the other. `stateful`: a modern caller must bring `requestState` back with its answers.
    async fn ask(
        &self,
        rounds: &[Round],
        stateful: bool,
        (answers, state): (Option<&InputResponses>, Option<&str>),
        context: &RequestContext<RoleServer>,
    ) -> Result<Asked, ErrorData> {
        if !modern(context) {
            let mut answers = BTreeMap::new();
            for round in rounds {
                let round = round.iter().map(|(key, question)| async move {
                    let answer = self.put(question, context).await?;
                    Ok::<_, ErrorData>((*key, answer))
                });
                answers.extend(try_join_all(round).await?);
            }
            return Ok(Asked::Answered(json!(answers)));
        }
        let waiting = match state.filter(|_| stateful) {
            None => 0,
            Some(state) => *held(&self.states)
                .get(state)
                .ok_or_else(|| ErrorData::invalid_params("no such requestState", None))?,
        };
        // Without the state, answers belong to nothing that was asked.
        let answers = answers.filter(|_| !stateful || state.is_some());
        let answered = answers.is_some_and(|answers| {
            let round = rounds[waiting].keys();
            round
                .into_iter()
                .all(|key| answers.get(*key).is_some_and(Value::is_object))
        });
        let next = waiting + usize::from(answered);
        let Some(round) = rounds.get(next) else {
            return Ok(Asked::Answered(json!(answers)));
        };
        let state = stateful.then(|| {
            let state = format!("state {}", self.next_state.fetch_add(1, Ordering::Relaxed));
            held(&self.states).insert(state.clone(), next);
            state
        });
        let questions = round
            .iter()
            .map(|(key, question)| ((*key).to_owned(), typed(question.clone())))
            .collect();
        Ok(Asked::Required(InputRequiredResult::new(Some(questions), state)))
    }

    /// Puts one question to a legacy caller.
    async fn put(&self, question: &Value, context: &RequestContext<RoleServer>) -> Result<Value, ErrorData> {
        let request = match typed(question.clone()) {
            InputRequest::Elicitation(question) => ServerRequest::ElicitRequest(question),
            InputRequest::CreateMessage(question) => ServerRequest::CreateMessageRequest(question),
            InputRequest::ListRoots(question) => ServerRequest::ListRootsRequest(question),
            _ => return Err(internal("no such question")),
        };
        let answer: ClientResult = context.peer.send_request(request).await.map_err(internal)?;
        Ok(json!(answer))
    }

    /// What `tool` asks, in rounds, and whether it keeps state for it.
    fn questions(
        tool: &str,
        argument: impl Fn(&str) -> String,
        context: &RequestContext<RoleServer>,
    ) -> Option<(Vec<Round>, bool)> {
        let name = || elicit("What is your name?", "name", "string");
        let one = |key, question| vec![Round::from([(key, question)])];
        Some(match tool {
            "test_sampling" => (one("question", sample(&argument("prompt"))), false),
            "test_missing_capability" => (one("question", sample("Anything.")), false),
            "test_elicitation" => (
                one("question", elicit(&argument("message"), "response", "string")),
                false,
            ),
            "test_elicitation_sep1034_defaults" => (one("question", contents::defaults()), false),
            "test_elicitation_sep1330_enums" => (one("question", contents::choices()), false),
            "test_streaming_elicitation" | "test_input_required_result_elicitation" => {
                (one("user_name", name()), false)
            }
            "test_input_required_result_sampling" => (one("capital", sample("What is the capital of France?")), false),
            "test_input_required_result_list_roots" => (one("client_roots", roots()), false),
            "test_input_required_result_request_state" | "test_input_required_result_tampered_state" => {
                (one("confirm", elicit("Please confirm.", "ok", "boolean")), true)
            }
            "test_input_required_result_multiple_inputs" => {
                let round = [
                    ("user_name", name()),
                    ("greeting", sample("Greet.")),
                    ("client_roots", roots()),
                ];
                (vec![Round::from(round)], true)
            }
            "test_input_required_result_multi_round" => {
                let colour = elicit("What is your favourite colour?", "color", "string");
                (
                    vec![Round::from([("step1", name())]), Round::from([("step2", colour)])],
                    true,
                )
            }
            "test_input_required_result_capabilities" => {
                let can = context.client_capabilities().unwrap_or_default();
                let mut round = Round::new();
                if can.elicitation.is_some() {
                    round.insert("elicited", name());
                }
                if can.sampling.is_some() {
                    round.insert("sampled", sample("Anything."));
                }
                (vec![round], false)
            }
            _ => return None,
        })
    }

    /// A modern caller gets logs only when it asked for them with the call.
    async fn log(&self, message: &str, context: &RequestContext<RoleServer>) {
        if !modern(context) || context.meta.log_level().is_some() {
            let log = LoggingMessageNotificationParam::new(LoggingLevel::Info, json!(message));
            // Whoever went away misses it.
            let _ = context.peer.notify_logging_message(log).await;
        }
    }

    async fn progress(&self, context: &RequestContext<RoleServer>) {
        if let Some(token) = context.meta.get_progress_token() {
            for step in [0.0, 50.0, 100.0] {
                let progress = ProgressNotificationParam::new(token.clone(), step).with_total(100.0);
                let _ = context.peer.notify_progress(progress).await;
            }
        }
    }

    async fn change(&self, change: Change, context: &RequestContext<RoleServer>) {
        // Nobody listening is fine.
        let _ = self.changes.send(change);
        if !modern(context) {
            let _ = match change {
                Change::Tools => context.peer.notify_tool_list_changed().await,
                Change::Prompts => context.peer.notify_prompt_list_changed().await,
            };
        }
    }
}

impl ServerHandler for Handler {
    fn get_info(&self) -> ServerConfig {
        let mut info = ServerConfig::new(typed(json!({
            "tools": {"listChanged": true},
            "prompts": {"listChanged": true},
            "resources": {"subscribe": true, "listChanged": true},
            "completions": {},
            "logging": {},
        })));
        info.server_info = Implementation::new("portcullis-conformance-server", "1.0.0");
        if self.era == Era::Legacy {
            info.protocol_version = ProtocolVersion::V_2025_11_25;
        }
        info
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        match self.era {
            Era::Modern => vec![ProtocolVersion::V_2026_07_28].into(),
            Era::Legacy => ProtocolVersion::known_up_to(&ProtocolVersion::V_2025_11_25).into(),
        }
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(contents::tools()))
    }

    async fn call_tool(
        &self,
        call: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let name = call.name.as_ref();
        if let Some(answer) = contents::answer(name) {
            return Ok(complete::<CallToolResult>(answer).into());
        }
        let argument = |name: &str| {
            let value = call.arguments.as_ref().and_then(|arguments| arguments.get(name));
            value.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        // In the handshake era a server finds out by asking; now it has to refuse.
        let samples = context.client_capabilities().is_some_and(|can| can.sampling.is_some());
        if name == "test_missing_capability" && modern(&context) && !samples {
            return Err(ErrorData::missing_required_client_capability(typed(
                json!({"sampling": {}}),
            )));
        }
        match name {
            "test_tool_with_logging" => {
                for message in ["started", "going on", "done"] {
                    self.log(message, &context).await;
                }
            }
            "test_logging_tool" => self.log("once", &context).await,
            "test_tool_with_progress" | "test_streaming_elicitation" => self.progress(&context).await,
            "test_trigger_tool_change" => self.change(Change::Tools, &context).await,
            "test_trigger_prompt_change" => self.change(Change::Prompts, &context).await,
            _ => {}
        }
        let said = match Self::questions(name, argument, &context) {
            Some((rounds, stateful)) => {
                let given = (call.input_responses.as_ref(), call.request_state.as_deref());
                match self.ask(&rounds, stateful, given, &context).await? {
                    Asked::Answered(answers) => answers.to_string(),
                    Asked::Required(required) => return Ok(required.into()),
                }
            }
            None if contents::tools().iter().any(|tool| tool.name == name) => "done".to_owned(),
            None => return Err(ErrorData::invalid_params("no such tool", None)),
        };
        Ok(complete::<CallToolResult>(json!({"content": [text(said)]})).into())
    }

    async fn list_resources(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(ListResourcesResult::with_all_items(typed(contents::resources())))
    }

    async fn list_resource_templates(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(ListResourceTemplatesResult::with_all_items(
            typed(contents::templates()),
        ))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let contents = contents::read(&request.uri)
            .ok_or_else(|| ErrorData::resource_not_found("no such resource", Some(json!({"uri": request.uri}))))?;
        Ok(complete::<ReadResourceResult>(json!({"contents": [contents]})).into())
    }

    async fn list_prompts(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Ok(ListPromptsResult::with_all_items(typed(contents::prompts())))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        if request.name == ASKING_PROMPT {
            let rounds = [Round::from([(
                "user_context",
                elicit("In what context?", "context", "string"),
            )])];
            let given = (request.input_responses.as_ref(), request.request_state.as_deref());
            if let Asked::Required(required) = self.ask(&rounds, false, given, &context).await? {
                return Ok(required.into());
            }
        }
        let argument = |name: &str| {
            let value = request.arguments.as_ref().and_then(|arguments| arguments.get(name));
            value.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let messages = contents::messages(&request.name, argument)
            .ok_or_else(|| ErrorData::invalid_params("no such prompt", None))?;
        Ok(complete::<GetPromptResult>(json!({"messages": messages})).into())
    }

    async fn complete(
        &self,
        _request: CompleteRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let values = CompletionInfo::with_all_values(vec!["one".to_owned(), "two".to_owned()]);
        Ok(CompleteResult::new(values.expect("two are below the limit")))
    }

    async fn set_level(
        &self,
        _request: SetLevelRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn subscribe(
        &self,
        _request: SubscribeRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn unsubscribe(
        &self,
        _request: UnsubscribeRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        Ok(())
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        *held(&self.listening) = Some(self.changes.subscribe());
        Some(requested.clone())
    }

    async fn listen(&self, subscription: SubscriptionContext) -> Result<(), ErrorData> {
        let taken = held(&self.listening).take();
        let mut changes = taken.unwrap_or_else(|| self.changes.subscribe());
        loop {
            tokio::select! {
                () = subscription.cancelled() => return Ok(()),
                change = changes.recv() => {
                    // What wasn't subscribed to is refused by the sink: that is the filter.
                    let _ = match change {
                        Ok(Change::Tools) => subscription.sink().notify_tool_list_changed().await,
                        Ok(Change::Prompts) => subscription.sink().notify_prompt_list_changed().await,
                        Err(broadcast::error::RecvError::Lagged(_)) => Ok(()),
                        Err(broadcast::error::RecvError::Closed) => return Ok(()),
                    };
                }
            }
        }
    }
}
