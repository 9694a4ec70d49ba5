//! An MCP server for the tests, of every Streamable HTTP revision, that remembers what reached it.
//!
//! - [`RmcpServer::seen`] is the proof that a refused request never left the gate: it holds every request from its head on,
//!   whether or not it made sense.
//! - The same tool asks its caller in the way of the caller's era: `ask` and `think` send a request back (legacy) or
//!   answer `input_required` (modern).
//! - [`Settings`] adds tools for the budget, cuts lists into pages and sets the pace.

#![expect(
    deprecated,
    reason = "sampling, logging and resources/subscribe are deprecated, and older clients use them"
)]

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use portcullis::cli::demo::loopback::Loopback;
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
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tower::Service;

/// Tools that are always there; `tool_000` and on follow when [`Settings::extra_tools`] asks for them.
pub const TOOLS: [&str; 16] = [
    "echo",
    "add",
    "countdown",
    "wait",
    "fail",
    "big",
    "headers",
    "ask",
    "think",
    "touch",
    "change_tools",
    "get_note",
    "search_notes",
    "delete_note",
    "admin_reset",
    "admin_export",
];
/// Resources that are always there.
pub const RESOURCES: [&str; 3] = ["memo://welcome", "memo://secret/plan", "file:///etc/motd"];
/// Prompts that are always there.
pub const PROMPTS: [&str; 2] = ["summarize", "admin_briefing"];

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// More tools than [`TOOLS`], named `tool_000`, `tool_001` and so on.
    pub extra_tools: usize,
    /// Entries of a list's page; 0 answers everything at once.
    pub page: usize,
    /// Between two steps of `countdown`.
    pub step: Duration,
    /// Plain JSON where nothing comes before the result; otherwise every modern reply is SSE. Legacy sessions always get SSE.
    pub json: bool,
    /// A comment on idle streams; `None` sends none.
    pub keep_alive: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            extra_tools: 0,
            page: 0,
            step: Duration::from_millis(20),
            json: true,
            keep_alive: None,
        }
    }
}

/// A request that reached the server.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    /// As far as it came; empty until it is complete.
    pub body: Bytes,
}

impl Seen {
    /// The JSON-RPC message, or null when the body is none.
    pub fn message(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A running server; dropping it stops it.
pub struct RmcpServer {
    server: Loopback,
    sessions: CancellationToken,
    seen: Arc<Mutex<Vec<Seen>>>,
    handler: Handler,
}

#[derive(Clone, Debug)]
enum Change {
    Resource(String),
    Tools,
}

impl RmcpServer {
    /// A server with default settings, on a free port.
    pub async fn start() -> Self {
        Self::with(Settings::default()).await
    }

    /// A server with these settings.
    pub async fn with(settings: Settings) -> Self {
        let sessions = CancellationToken::new();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let config = StreamableHttpServerConfig::default()
            .with_json_response(settings.json)
            .with_sse_keep_alive(settings.keep_alive)
            .with_cancellation_token(sessions.clone());
        let handler = Handler {
            settings: Arc::new(settings),
            changes: broadcast::channel(64).0,
            subscribers: Arc::default(),
            listening: Arc::default(),
        };
        let serving = handler.clone();
        let mcp = StreamableHttpService::new(
            move || Ok(serving.instance()),
            Arc::new(LocalSessionManager::default()),
            config,
        );
        let recorder = seen.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let (mut mcp, seen) = (mcp.clone(), recorder.clone());
            async move {
                let (parts, body) = request.into_parts();
                let place = record(&seen, &parts);
                // A body that breaks off is what the server got to see: as much of it as came.
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                if let Some(entry) = held(&seen).get_mut(place) {
                    entry.body = body.clone();
                }
                mcp.call(Request::from_parts(parts, Full::new(body))).await as Result<_, Infallible>
            }
        });
        let server = Loopback::serve(0, service).await.expect("loopback has a free port");
        Self {
            server,
            sessions,
            seen,
            handler,
        }
    }

    /// The MCP endpoint.
    pub fn url(&self) -> String {
        format!("{}/mcp", self.server.origin())
    }

    /// Every request so far, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        held(&self.seen).clone()
    }

    /// The JSON-RPC methods of the messages so far, batches flattened.
    pub fn methods(&self) -> Vec<String> {
        self.seen()
            .iter()
            .map(Seen::message)
            .flat_map(|message| match message {
                Value::Array(members) => members,
                single => vec![single],
            })
            .filter_map(|message| message["method"].as_str().map(str::to_owned))
            .collect()
    }

    /// Tells whoever subscribed to `uri` that it changed.
    pub async fn touch(&self, uri: &str) {
        self.handler.tell(Change::Resource(uri.to_owned())).await;
    }

    /// Ends sessions and connections.
    pub async fn stop(self) {
        self.sessions.cancel();
        self.server.stop().await;
    }
}

fn record(seen: &Mutex<Vec<Seen>>, parts: &Parts) -> usize {
    let mut seen = held(seen);
    seen.push(Seen {
        method: parts.method.clone(),
        uri: parts.uri.clone(),
        headers: parts.headers.clone(),
        body: Bytes::new(),
    });
    seen.len() - 1
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

type Subscriber = (String, Peer<RoleServer>);

#[derive(Clone)]
struct Handler {
    settings: Arc<Settings>,
    changes: broadcast::Sender<Change>,
    /// Legacy subscriptions: what, and whom to tell.
    subscribers: Arc<Mutex<Vec<Subscriber>>>,
    /// Taken before a subscription is acknowledged, so that no change is missed between that and its stream.
    listening: Arc<Mutex<Option<broadcast::Receiver<Change>>>>,
}

impl Handler {
    /// One for each session, and for each modern request.
    fn instance(&self) -> Self {
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

    async fn tell(&self, change: Change) {
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

    async fn count_down(&self, steps: u64, context: &RequestContext<RoleServer>) -> Result<String, ErrorData> {
        let token = context.meta.get_progress_token();
        for step in 1..=steps {
            pause(self.settings.step, context).await?;
            if let Some(token) = &token {
                let progress = ProgressNotificationParam::new(token.clone(), step as f64).with_total(steps as f64);
                let _ = context.peer.notify_progress(progress).await;
            }
        }
        Ok(format!("{steps} steps done"))
    }

    /// Puts a question to the caller: in mid-call, or by ending this call and waiting for its retry.
    async fn question(
        &self,
        question: InputRequest,
        call: &CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let modern = context
            .protocol_version()
            .is_some_and(|version| version.as_str() >= ProtocolVersion::V_2026_07_28.as_str());
        let answer = if !modern {
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

const QUESTION: &str = "question";
/// Awkward on purpose: what passes it on must not touch it.
const STATE: &str = "st.ate/with+every=thing \"quoted\"\n";

fn said(text: impl Into<String>) -> CallToolResponse {
    CallToolResult::success(vec![ContentBlock::text(text)]).into()
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

fn sampling() -> InputRequest {
    let question = vec![SamplingMessage::user_text("What is the capital of France?")];
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
        let number = |name: &str| arguments.get(name).and_then(Value::as_f64).unwrap_or_default();
        let count = |name: &str| arguments.get(name).and_then(Value::as_u64).unwrap_or_default();
        Ok(match call.name.as_ref() {
            "echo" => said(text("text")),
            "add" => said((number("a") + number("b")).to_string()),
            "countdown" => said(self.count_down(count("steps"), &context).await?),
            "wait" => {
                pause(Duration::from_millis(count("milliseconds")), &context).await?;
                said("waited")
            }
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
            "ask" => self.question(elicitation(), &call, &context).await?,
            "think" => self.question(sampling(), &call, &context).await?,
            "touch" => {
                self.tell(Change::Resource(text("uri"))).await;
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
            ResourceTemplate::new("memo://about/{topic}", "about"),
            ResourceTemplate::new("memo://secret/{topic}", "secret"),
        ]))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        if !RESOURCES.contains(&request.uri.as_str()) && !request.uri.starts_with("memo://about/") {
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
        let arguments = vec![PromptArgument::new("text")];
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
        Ok(GetPromptResult::new(vec![PromptMessage::new_text(Role::User, request.name)]).into())
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

mod tests {
    use super::*;
    use futures_util::StreamExt;
    use http::{Response, StatusCode};
    use http_body_util::BodyDataStream;
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;

    /// A client of either era, without a gate in between.
    struct Direct<'a> {
        url: String,
        headers: Vec<(&'a str, String)>,
        modern: bool,
    }

    impl Direct<'_> {
        fn modern(server: &RmcpServer) -> Self {
            let headers = vec![("mcp-protocol-version", "2026-07-28".to_owned())];
            Self {
                url: server.url(),
                headers,
                modern: true,
            }
        }

        async fn legacy(server: &RmcpServer) -> Self {
            let mut client = Self {
                url: server.url(),
                headers: Vec::new(),
                modern: false,
            };
            let hello = json!({"protocolVersion": "2025-11-25", "capabilities": {"elicitation": {}, "sampling": {}},
                "clientInfo": {"name": "tests", "version": "1"}});
            let answer = client.send("initialize", None, Some(1), hello).await;
            let session = answer.headers()["mcp-session-id"].to_str().expect("text").to_owned();
            client.headers = vec![
                ("mcp-session-id", session),
                ("mcp-protocol-version", "2025-11-25".to_owned()),
            ];
            let ready = client.send("notifications/initialized", None, None, json!({})).await;
            assert_eq!(ready.status(), StatusCode::ACCEPTED);
            client
        }

        async fn send(&self, method: &str, name: Option<&str>, id: Option<u64>, params: Value) -> Response<Incoming> {
            let mut message = json!({"jsonrpc": "2.0", "method": method, "params": params});
            if let Some(id) = id {
                message["id"] = id.into();
            }
            let mut headers = self.headers.clone();
            if self.modern {
                let meta = &mut message["params"]["_meta"];
                meta["io.modelcontextprotocol/protocolVersion"] = "2026-07-28".into();
                meta["io.modelcontextprotocol/clientCapabilities"] = json!({"elicitation": {}, "sampling": {}});
                headers.push(("mcp-method", method.to_owned()));
                headers.extend(name.map(|name| ("mcp-name", name.to_owned())));
            }
            self.post(&headers, message).await
        }

        async fn post(&self, headers: &[(&str, String)], message: Value) -> Response<Incoming> {
            let mut request = Request::post(&self.url)
                .header("content-type", "application/json")
                .header("accept", "application/json, text/event-stream");
            for (name, value) in headers {
                request = request.header(*name, value);
            }
            let request = request
                .body(Full::new(Bytes::from(message.to_string())))
                .expect("a request");
            Client::builder(TokioExecutor::new())
                .build_http()
                .request(request)
                .await
                .expect("an answer")
        }

        async fn call(&self, tool: &str, arguments: Value) -> Response<Incoming> {
            self.send(
                "tools/call",
                Some(tool),
                Some(2),
                json!({"name": tool, "arguments": arguments}),
            )
            .await
        }
    }

    async fn value(response: Response<Incoming>) -> Value {
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        serde_json::from_slice(&body).unwrap_or_else(|_| panic!("not JSON: {body:?}"))
    }

    /// The next event of a stream that carries a message.
    async fn event(stream: &mut BodyDataStream<Incoming>, rest: &mut String) -> Value {
        loop {
            while let Some((event, after)) = rest.split_once("\n\n") {
                let data: String = event.lines().filter_map(|line| line.strip_prefix("data:")).collect();
                *rest = after.to_owned();
                if !data.trim().is_empty() {
                    return serde_json::from_str(&data).expect("JSON");
                }
            }
            let frame = stream.next().await.expect("the stream goes on").expect("bytes");
            rest.push_str(std::str::from_utf8(&frame).expect("UTF-8"));
        }
    }

    #[tokio::test]
    async fn lists_come_in_pages_without_loss() {
        let server = RmcpServer::with(Settings {
            extra_tools: 140,
            page: 50,
            ..Settings::default()
        })
        .await;
        let client = Direct::modern(&server);
        let (mut names, mut cursor, mut pages) = (Vec::new(), Value::Null, 0);
        loop {
            let params = if cursor.is_null() {
                json!({})
            } else {
                json!({"cursor": cursor})
            };
            let page = value(client.send("tools/list", None, Some(1), params).await).await;
            let tools = page["result"]["tools"].as_array().expect("tools").clone();
            names.extend(
                tools
                    .iter()
                    .map(|tool| tool["name"].as_str().expect("a name").to_owned()),
            );
            pages += 1;
            cursor = page["result"]["nextCursor"].clone();
            if cursor.is_null() {
                break;
            }
        }
        assert_eq!((names.len(), pages), (TOOLS.len() + 140, 4));
        assert!(TOOLS.iter().all(|tool| names.iter().any(|name| name == tool)));
        let lists = [
            ("resources/list", "resources", RESOURCES.len()),
            ("prompts/list", "prompts", PROMPTS.len()),
        ];
        for (method, key, length) in lists {
            let list = value(client.send(method, None, Some(1), json!({})).await).await;
            assert_eq!(list["result"][key].as_array().expect("a list").len(), length);
        }
    }

    #[tokio::test]
    async fn a_modern_caller_is_asked_by_a_result() {
        let server = RmcpServer::start().await;
        let client = Direct::modern(&server);
        for (tool, method) in [("ask", "elicitation/create"), ("think", "sampling/createMessage")] {
            let asked = value(client.call(tool, json!({})).await).await["result"].clone();
            assert_eq!(asked["resultType"], "input_required", "{asked}");
            assert_eq!(asked["inputRequests"][QUESTION]["method"], method);
            let mut retry = json!({"name": tool, "arguments": {}, "requestState": asked["requestState"],
                "inputResponses": {QUESTION: {"action": "accept", "content": {"name": "Ada"}}}});
            let done = value(client.send("tools/call", Some(tool), Some(3), retry.clone()).await).await;
            assert!(
                done["result"]["content"][0]["text"]
                    .as_str()
                    .expect("text")
                    .contains("Ada")
            );
            retry["requestState"] = "tampered".into();
            let refused = value(client.send("tools/call", Some(tool), Some(3), retry).await).await;
            assert_eq!(refused["error"]["code"], -32602);
        }
    }

    #[tokio::test]
    async fn a_legacy_caller_is_asked_in_mid_call() {
        let server = RmcpServer::start().await;
        let client = Direct::legacy(&server).await;
        let sampled = json!({"role": "assistant", "model": "m", "content": {"type": "text", "text": "Paris, Ada"}});
        let elicited = json!({"action": "accept", "content": {"name": "Ada"}});
        for (tool, method, answer) in [
            ("ask", "elicitation/create", elicited),
            ("think", "sampling/createMessage", sampled),
        ] {
            let mut stream = BodyDataStream::new(client.call(tool, json!({})).await.into_body());
            let mut rest = String::new();
            let question = event(&mut stream, &mut rest).await;
            assert_eq!(question["method"], method, "{question}");
            let answer = json!({"jsonrpc": "2.0", "id": question["id"], "result": answer});
            assert_eq!(
                client.post(&client.headers, answer).await.status(),
                StatusCode::ACCEPTED
            );
            let done = event(&mut stream, &mut rest).await;
            assert!(
                done["result"]["content"][0]["text"]
                    .as_str()
                    .expect("text")
                    .contains("Ada"),
                "{done}"
            );
        }
    }

    #[tokio::test]
    async fn subscribers_of_both_eras_hear_of_changes() {
        let server = RmcpServer::start().await;
        let modern = Direct::modern(&server);
        let filter = json!({"notifications": {"resourceSubscriptions": [RESOURCES[0]], "toolsListChanged": true}});
        let answer = modern.send("subscriptions/listen", None, Some(9), filter).await;
        let (mut stream, mut rest) = (BodyDataStream::new(answer.into_body()), String::new());
        let acknowledged = event(&mut stream, &mut rest).await;
        assert_eq!(acknowledged["method"], "notifications/subscriptions/acknowledged");
        modern
            .call("change_tools", json!({}))
            .await
            .into_body()
            .collect()
            .await
            .expect("done");
        let changed = event(&mut stream, &mut rest).await;
        assert_eq!(changed["method"], "notifications/tools/list_changed");
        server.touch("memo://other").await;
        server.touch(RESOURCES[0]).await;
        let updated = event(&mut stream, &mut rest).await;
        assert_eq!(updated["params"]["uri"], RESOURCES[0], "{updated}");

        let legacy = Direct::legacy(&server).await;
        let uri = json!({"uri": RESOURCES[0]});
        let mut get = Request::get(server.url()).header("accept", "text/event-stream");
        for (name, value) in &legacy.headers {
            get = get.header(*name, value);
        }
        let get = get.body(Full::new(Bytes::new())).expect("a request");
        let standing = Client::builder(TokioExecutor::new())
            .build_http()
            .request(get)
            .await
            .expect("a stream");
        let (mut stream, mut rest) = (BodyDataStream::new(standing.into_body()), String::new());
        legacy
            .send("resources/subscribe", None, Some(3), uri.clone())
            .await
            .into_body()
            .collect()
            .await
            .expect("done");
        server.touch(RESOURCES[0]).await;
        let updated = event(&mut stream, &mut rest).await;
        assert_eq!(updated["params"]["uri"], RESOURCES[0], "{updated}");
    }

    #[tokio::test]
    async fn everything_that_arrives_is_remembered() {
        let server = RmcpServer::start().await;
        assert!(server.seen().is_empty());
        let client = Direct::modern(&server);
        let told = value(client.call("headers", json!({})).await).await;
        assert!(
            told["result"]["content"][0]["text"]
                .as_str()
                .expect("text")
                .contains("mcp-name")
        );
        let seen = server.seen();
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].method.as_str(), seen[0].uri.path()), ("POST", "/mcp"));
        assert_eq!(seen[0].header("mcp-name"), Some("headers"));
        assert_eq!(seen[0].message()["params"]["name"], "headers");
        assert_eq!(server.methods(), ["tools/call"]);
        server.stop().await;
    }
}
