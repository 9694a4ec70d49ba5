//! What the test server serves: its tools, resources and prompts, in each era's way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::request::Parts;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ClientResult, CompleteRequestParams, CompleteResult,
    CompletionInfo, ContentBlock, CreateMessageRequest, CreateMessageRequestParams, ElicitRequest, ElicitRequestParams,
    GetPromptRequestParams, GetPromptResponse, GetPromptResult, Implementation, InputRequest, InputRequests,
    InputRequiredResult, JsonObject, ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult,
    ListToolsResult, PaginatedRequestParams, ProgressNotificationParam, Prompt, PromptArgument, PromptMessage,
    ProtocolVersion, ReadResourceRequestParams, ReadResourceResponse, ReadResourceResult, Resource, ResourceContents,
    ResourceTemplate, ResourceUpdatedNotificationParam, Role, SamplingMessage, ServerCapabilities, ServerConfig,
    ServerRequest, SetLevelRequestParams, SubscribeRequestParams, SubscriptionFilter, Tool, UnsubscribeRequestParams,
};
use rmcp::service::{Peer, RequestContext, SubscriptionContext};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};

use super::{Line, PROMPTS, RESOURCES, Settings, TOOLS, held};

#[derive(Clone, Debug)]
pub(super) enum Change {
    Resource(String),
    Resources,
    Tools,
}

type Subscriber = (String, Peer<RoleServer>);

#[derive(Clone)]
pub(super) struct Handler {
    settings: Arc<Settings>,
    changes: broadcast::Sender<Change>,
    /// Legacy subscriptions: what, and whom to tell.
    subscribers: Arc<Mutex<Vec<Subscriber>>>,
    /// Taken before a subscription is acknowledged, so that no change is missed between that and its stream.
    listening: Arc<Mutex<Option<broadcast::Receiver<Change>>>>,
    /// Whether `wait_forever` was cancelled since `was_cancelled` was last asked.
    cancelled: Arc<AtomicBool>,
    /// The call's stream that a client last came back for. The npm SDK v1 also comes back for one that ended in an error.
    resumed: watch::Sender<String>,
}

impl Handler {
    pub(super) fn new(settings: Settings, resumed: watch::Sender<String>) -> Self {
        Self {
            settings: Arc::new(settings),
            changes: broadcast::channel(64).0,
            subscribers: Arc::default(),
            listening: Arc::default(),
            cancelled: Arc::default(),
            resumed,
        }
    }

    /// One for each session, and for each modern request.
    pub(super) fn instance(&self) -> Self {
        Self {
            listening: Arc::default(),
            ..self.clone()
        }
    }

    fn names(&self) -> Vec<String> {
        let fixed = TOOLS.iter().map(ToString::to_string);
        let extra = (0..self.settings.extra_tools).map(|number| format!("tool_{number:03}"));
        fixed.chain(extra).collect()
    }

    /// One page of a list, and the cursor of the next.
    fn page<T>(
        &self,
        all: Vec<T>,
        request: Option<PaginatedRequestParams>,
    ) -> Result<(Vec<T>, Option<String>), ErrorData> {
        let start = match request.and_then(|request| request.cursor) {
            None => 0,
            Some(cursor) => cursor
                .parse::<usize>()
                .ok()
                .filter(|start| *start < all.len())
                .ok_or_else(|| ErrorData::invalid_params("unknown cursor", None))?,
        };
        let size = if self.settings.page == 0 {
            all.len()
        } else {
            self.settings.page
        };
        let next = start.saturating_add(size);
        let more = (next < all.len()).then(|| next.to_string());
        Ok((all.into_iter().skip(start).take(size).collect(), more))
    }

    pub(super) async fn tell(&self, change: Change) {
        // Nobody listening is fine.
        let _ = self.changes.send(change.clone());
        let subscribers = held(&self.subscribers).clone();
        if let Change::Resource(uri) = change {
            for (_, peer) in subscribers.iter().filter(|(subscribed, _)| *subscribed == uri) {
                let _ = peer
                    .notify_resource_updated(ResourceUpdatedNotificationParam::new(uri.clone()))
                    .await;
            }
        }
    }

    async fn count(&self, steps: u64, context: &RequestContext<RoleServer>) -> Result<CallToolResponse, ErrorData> {
        for step in 1..=steps {
            pause(self.settings.step, context).await?;
            progress(step, steps, context).await;
        }
        Ok(said(format!("counted to {steps}")))
    }

    async fn wait(&self, context: &RequestContext<RoleServer>) -> Result<CallToolResponse, ErrorData> {
        progress(1, 2, context).await;
        context.ct.cancelled().await;
        self.cancelled.store(true, Ordering::SeqCst);
        Err(ErrorData::internal_error("cancelled", None))
    }

    /// Counts, but a legacy caller loses its stream half way and has to come back for the rest.
    async fn resumable(&self, steps: u64, context: &RequestContext<RoleServer>) -> Result<CallToolResponse, ErrorData> {
        let parts = context.extensions.get::<Parts>();
        let line = parts.and_then(|parts| parts.extensions.get::<Line>());
        let line = line.expect("every request has one");
        let mut resumed = self.resumed.subscribe();
        for step in 1..=steps {
            progress(step, steps, context).await;
            if modern(context) {
                continue;
            }
            if step == steps / 2 {
                line.hang_up.cancel();
            } else if step == steps / 2 + 1 {
                // This step was only stored, for replay; what follows goes out live on the stream that came back.
                tokio::select! {
                    _ = resumed.wait_for(|stream| line.stream.get() == Some(stream)) => {}
                    () = context.ct.cancelled() => return Err(ErrorData::internal_error("cancelled", None)),
                }
            }
        }
        Ok(said(format!("resumed to {steps}")))
    }

    /// Puts a question to the caller: in mid-call, or by ending this call and waiting for its retry.
    async fn question(
        &self,
        question: InputRequest,
        call: &CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let answer = if !modern(context) {
            let question = match question {
                InputRequest::Elicitation(question) => ServerRequest::ElicitRequest(question),
                InputRequest::CreateMessage(question) => ServerRequest::CreateMessageRequest(question),
                _ => return Err(ErrorData::internal_error("no such question", None)),
            };
            let answer: ClientResult = context
                .peer
                .send_request(question)
                .await
                .map_err(|error| ErrorData::internal_error(error.to_string(), None))?;
            serde_json::to_value(answer).expect("it came as JSON")
        } else if let Some(answers) = &call.input_responses {
            if call.request_state.as_deref() != Some(STATE) {
                return Err(ErrorData::invalid_params("requestState came back changed", None));
            }
            answers.get(QUESTION).cloned().unwrap_or_default()
        } else {
            let questions = InputRequests::from([(QUESTION.to_owned(), question)]);
            return Ok(InputRequiredResult::new(Some(questions), Some(STATE.to_owned())).into());
        };
        Ok(said(answer.to_string()))
    }
}

pub(super) const QUESTION: &str = "question";
/// Awkward on purpose: what passes it on must not touch it.
const STATE: &str = "st.ate/with+every=thing \"quoted\"\n";

fn said(text: impl Into<String>) -> CallToolResponse {
    CallToolResult::success(vec![ContentBlock::text(text)]).into()
}

fn modern(context: &RequestContext<RoleServer>) -> bool {
    context
        .protocol_version()
        .is_some_and(|version| version.as_str() >= ProtocolVersion::V_2026_07_28.as_str())
}

async fn progress(step: u64, steps: u64, context: &RequestContext<RoleServer>) {
    if let Some(token) = context.meta.get_progress_token() {
        let progress = ProgressNotificationParam::new(token, step as f64).with_total(steps as f64);
        // Whoever went away misses it.
        let _ = context.peer.notify_progress(progress).await;
    }
}

async fn pause(time: Duration, context: &RequestContext<RoleServer>) -> Result<(), ErrorData> {
    tokio::select! {
        () = tokio::time::sleep(time) => Ok(()),
        () = context.ct.cancelled() => Err(ErrorData::internal_error("cancelled", None)),
    }
}

fn object(value: Value) -> JsonObject {
    match value {
        Value::Object(object) => object,
        _ => JsonObject::new(),
    }
}

fn elicitation() -> InputRequest {
    let schema = json!({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]});
    InputRequest::Elicitation(ElicitRequest::new(ElicitRequestParams::FormElicitationParams {
        meta: None,
        message: "What is your name?".to_owned(),
        requested_schema: serde_json::from_value(schema).expect("a form's schema"),
    }))
}

fn sampling(prompt: String) -> InputRequest {
    let question = vec![SamplingMessage::user_text(prompt)];
    InputRequest::CreateMessage(CreateMessageRequest::new(CreateMessageRequestParams::new(
        question, 100,
    )))
}

impl ServerHandler for Handler {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_tools()
            .enable_tool_list_changed()
            .enable_resources()
            .enable_resources_subscribe()
            .enable_resources_list_changed()
            .enable_prompts()
            .enable_completions()
            .enable_logging()
            .build();
        let mut info = ServerConfig::new(capabilities);
        info.server_info = Implementation::new("portcullis-test-server", "1.0.0");
        info
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let any = Arc::new(object(json!({"type": "object"})));
        let all = self
            .names()
            .into_iter()
            .map(|name| Tool::new(name, "A tool of the tests", any.clone()))
            .collect();
        let (tools, next) = self.page(all, request)?;
        let mut result = ListToolsResult::with_all_items(tools);
        result.next_cursor = next;
        Ok(result)
    }

    async fn call_tool(
        &self,
        call: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments = call.arguments.clone().unwrap_or_default();
        let text = |name: &str| {
            arguments
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let number = |name: &str| {
            let number = arguments.get(name).and_then(Value::as_f64);
            number.ok_or_else(|| ErrorData::invalid_params(format!("{name} is no number"), None))
        };
        let count = |name: &str| arguments.get(name).and_then(Value::as_u64).unwrap_or_default();
        Ok(match call.name.as_ref() {
            "echo" => said(text("text")),
            "add" => said((number("a")? + number("b")?).to_string()),
            "slow_count" => self.count(count("n"), &context).await?,
            "wait_forever" => self.wait(&context).await?,
            "was_cancelled" => said(self.cancelled.swap(false, Ordering::SeqCst).to_string()),
            "resumable" => self.resumable(count("n"), &context).await?,
            "fail" => CallToolResult::error(vec![ContentBlock::text("this tool always fails")]).into(),
            "big" => {
                let size = usize::try_from(count("bytes")).unwrap_or_default();
                said("x".repeat(size.min(64 * 1024 * 1024)))
            }
            "headers" => {
                let headers = context.extensions.get::<Parts>().map(|parts| &parts.headers);
                let pairs: Vec<(String, String)> = headers
                    .into_iter()
                    .flatten()
                    .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
                    .collect();
                said(json!(pairs).to_string())
            }
            "elicit_name" => self.question(elicitation(), &call, &context).await?,
            "sample" => self.question(sampling(text("prompt")), &call, &context).await?,
            "touch" => {
                self.tell(Change::Resource(RESOURCES[0].to_owned())).await;
                self.tell(Change::Resources).await;
                if !modern(&context) {
                    let _ = context.peer.notify_resource_list_changed().await;
                }
                said("touched")
            }
            "change_tools" => {
                self.tell(Change::Tools).await;
                let _ = context.peer.notify_tool_list_changed().await;
                said("changed")
            }
            name if self.names().iter().any(|known| known == name) => said(name),
            _ => return Err(ErrorData::invalid_params("no such tool", None)),
        })
    }

    async fn list_resources(
        &self,
        request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let all = RESOURCES.iter().map(|uri| Resource::new(*uri, *uri)).collect();
        let (resources, next) = self.page(all, request)?;
        let mut result = ListResourcesResult::with_all_items(resources);
        result.next_cursor = next;
        Ok(result)
    }

    async fn list_resource_templates(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(ListResourceTemplatesResult::with_all_items(vec![
            ResourceTemplate::new("memo://note/{name}", "note"),
            ResourceTemplate::new("memo://secret/{topic}", "secret"),
        ]))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        if !RESOURCES.contains(&request.uri.as_str()) && !request.uri.starts_with("memo://note/") {
            return Err(ErrorData::resource_not_found("no such resource", None));
        }
        let contents = ResourceContents::text(format!("contents of {}", request.uri), request.uri);
        Ok(ReadResourceResult::new(vec![contents]).into())
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
                        Ok(Change::Resource(uri)) => subscription.sink().notify_resource_updated(uri).await,
                        Ok(Change::Resources) => subscription.sink().notify_resource_list_changed().await,
                        Ok(Change::Tools) => subscription.sink().notify_tool_list_changed().await,
                        Err(broadcast::error::RecvError::Lagged(_)) => Ok(()),
                        Err(broadcast::error::RecvError::Closed) => return Ok(()),
                    };
                }
            }
        }
    }

    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        held(&self.subscribers).push((request.uri, context.peer));
        Ok(())
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        held(&self.subscribers).retain(|(uri, _)| *uri != request.uri);
        Ok(())
    }

    async fn list_prompts(
        &self,
        request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        let arguments = vec![PromptArgument::new("name")];
        let all = PROMPTS
            .iter()
            .map(|name| Prompt::new(*name, Some("A prompt of the tests"), Some(arguments.clone())))
            .collect();
        let (prompts, next) = self.page(all, request)?;
        let mut result = ListPromptsResult::with_all_items(prompts);
        result.next_cursor = next;
        Ok(result)
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        if !PROMPTS.contains(&request.name.as_str()) {
            return Err(ErrorData::invalid_params("no such prompt", None));
        }
        let arguments = request.arguments.unwrap_or_default();
        let name = arguments.get("name").and_then(Value::as_str).unwrap_or("somebody");
        let text = format!("Please greet {name}.");
        Ok(GetPromptResult::new(vec![PromptMessage::new_text(Role::User, text)]).into())
    }

    async fn complete(
        &self,
        _request: CompleteRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let values = CompletionInfo::with_all_values(vec!["one".to_owned(), "two".to_owned()]);
        Ok(CompleteResult::new(
            values.expect("two are below the limit of a hundred"),
        ))
    }

    async fn set_level(
        &self,
        _request: SetLevelRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        Ok(())
    }
}
