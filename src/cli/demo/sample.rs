//! The sample MCP server behind `demo`: small enough to read, varied enough to see the gate at work.
//!
//! It speaks every Streamable HTTP revision, knows nothing of tokens, and listens on loopback only. `admin_reset` is
//! for admins because the gate's rules say so; the server itself would run it for anybody.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::{
    CallToolResult, ContentBlock, GetPromptRequestParams, GetPromptResponse, GetPromptResult, Implementation,
    ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult, PaginatedRequestParams,
    ProgressNotificationParam, Prompt, PromptArgument, PromptMessage, ReadResourceRequestParams, ReadResourceResponse,
    ReadResourceResult, Resource, ResourceContents, ResourceTemplate, Role, ServerCapabilities, ServerConfig,
};
use rmcp::service::RequestContext;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, RoleServer, ServerHandler, tool, tool_handler, tool_router};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::loopback::Loopback;

/// Where the MCP endpoint is.
const PATH: &str = "/mcp";
/// Between two steps of `countdown`.
const STEP: Duration = Duration::from_millis(200);
/// The most a tool works, so that a demo never looks hung: 100 steps of `countdown`, or as long a `wait`.
const MOST_STEPS: u32 = 100;

/// A running sample server; dropping it stops it.
pub struct SampleServer {
    server: Loopback,
    /// Ends the protocol sessions, which outlive their connections.
    sessions: CancellationToken,
}

impl SampleServer {
    /// Starts it on a free loopback port.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start() -> io::Result<Self> {
        let sessions = CancellationToken::new();
        let sample = Sample::default();
        let mcp = StreamableHttpService::new(
            move || Ok(sample.clone()),
            Arc::new(LocalSessionManager::default()),
            StreamableHttpServerConfig::default()
                .with_json_response(true)
                .with_cancellation_token(sessions.clone()),
        );
        let server = Loopback::serve(
            0,
            service_fn(move |request: Request<Incoming>| {
                let mut mcp = mcp.clone();
                async move {
                    if request.uri().path() == PATH {
                        mcp.call(request).await
                    } else {
                        Ok::<_, Infallible>(not_found())
                    }
                }
            }),
        )
        .await?;
        Ok(Self { server, sessions })
    }

    /// The MCP endpoint.
    pub fn url(&self) -> String {
        format!("{}{PATH}", self.server.origin())
    }

    /// Ends every session and connection.
    pub async fn stop(self) {
        self.sessions.cancel();
        self.server.stop().await;
    }
}

fn not_found() -> Response<BoxBody<Bytes, Infallible>> {
    let mut response = Response::new(Empty::new().boxed());
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

#[derive(Clone, Default)]
struct Sample {
    /// Calls of `echo` since the last `admin_reset`, over all sessions.
    echoes: Arc<AtomicU64>,
}

#[derive(Deserialize, JsonSchema)]
struct Text {
    /// What to say back.
    text: String,
}

#[derive(Deserialize, JsonSchema)]
struct Terms {
    a: f64,
    b: f64,
}

#[derive(Deserialize, JsonSchema)]
struct Steps {
    /// How many steps of 200 ms; at most 100.
    steps: u32,
}

#[derive(Deserialize, JsonSchema)]
struct Seconds {
    /// How long to work; at most 20.
    seconds: f64,
}

#[tool_router]
impl Sample {
    #[tool(description = "Says back what it is told", annotations(read_only_hint = true))]
    async fn echo(&self, Parameters(Text { text }): Parameters<Text>) -> String {
        self.echoes.fetch_add(1, Ordering::Relaxed);
        text
    }

    #[tool(description = "Adds two numbers", annotations(read_only_hint = true))]
    async fn add(&self, Parameters(Terms { a, b }): Parameters<Terms>) -> String {
        (a + b).to_string()
    }

    #[tool(
        description = "Counts down slowly and reports progress",
        annotations(read_only_hint = true)
    )]
    async fn countdown(
        &self,
        Parameters(Steps { steps }): Parameters<Steps>,
        context: RequestContext<RoleServer>,
    ) -> Result<String, ErrorData> {
        let steps = steps.min(MOST_STEPS);
        let token = context.meta.get_progress_token();
        for step in 1..=steps {
            pause(STEP, &context).await?;
            if let Some(token) = &token {
                let progress = ProgressNotificationParam::new(token.clone(), f64::from(step))
                    .with_total(f64::from(steps))
                    .with_message(format!("{} to go", steps - step));
                // Whoever stopped listening still gets the result, if only in the log of a proxy.
                let _ = context.peer.notify_progress(progress).await;
            }
        }
        Ok(format!("{steps} steps done"))
    }

    #[tool(description = "Works for a while without a word", annotations(read_only_hint = true))]
    async fn wait(
        &self,
        Parameters(Seconds { seconds }): Parameters<Seconds>,
        context: RequestContext<RoleServer>,
    ) -> Result<String, ErrorData> {
        let most = STEP * MOST_STEPS;
        // NaN, negative and infinite waits come as JSON never has them, but cost nothing to refuse.
        let asked = Duration::try_from_secs_f64(seconds)
            .map_err(|_| ErrorData::invalid_params("seconds must be zero or more", None))?;
        pause(asked.min(most), &context).await?;
        Ok(format!("waited {:.1} s", asked.min(most).as_secs_f64()))
    }

    #[tool(description = "Fails, as tools do", annotations(read_only_hint = true))]
    async fn fail(&self) -> CallToolResult {
        CallToolResult::error(vec![ContentBlock::text("this tool always fails")])
    }

    #[tool(
        description = "Forgets how often echo was called",
        annotations(destructive_hint = true)
    )]
    async fn admin_reset(&self) -> String {
        format!("forgot {} echoes", self.echoes.swap(0, Ordering::Relaxed))
    }
}

/// Sleeps, unless the call is cancelled.
async fn pause(time: Duration, context: &RequestContext<RoleServer>) -> Result<(), ErrorData> {
    tokio::select! {
        () = tokio::time::sleep(time) => Ok(()),
        () = context.ct.cancelled() => Err(ErrorData::internal_error("cancelled", None)),
    }
}

const WELCOME: &str = "memo://welcome";
const MEMO: &str = "memo://about/";

#[tool_handler]
impl ServerHandler for Sample {
    fn get_info(&self) -> ServerConfig {
        let mut info = ServerConfig::new(
            ServerCapabilities::builder()
                .enable_tools()
                .enable_resources()
                .enable_prompts()
                .build(),
        );
        info.server_info = Implementation::new("portcullis-sample", env!("CARGO_PKG_VERSION"));
        info
    }

    async fn list_resources(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(ListResourcesResult::with_all_items(vec![
            Resource::new(WELCOME, "welcome")
                .with_description("A word of welcome")
                .with_mime_type("text/plain"),
        ]))
    }

    async fn list_resource_templates(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(ListResourceTemplatesResult::with_all_items(vec![
            ResourceTemplate::new(format!("{MEMO}{{topic}}"), "memo")
                .with_description("A memo about any topic")
                .with_mime_type("text/plain"),
        ]))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let text = if request.uri == WELCOME {
            "Everything you read here passed the gate.".to_owned()
        } else if let Some(topic) = request.uri.strip_prefix(MEMO).filter(|topic| !topic.is_empty()) {
            format!("Nothing is known about {topic}, but you were allowed to ask.")
        } else {
            return Err(ErrorData::resource_not_found("no such memo", None));
        };
        Ok(ReadResourceResult::new(vec![ResourceContents::text(text, request.uri)]).into())
    }

    async fn list_prompts(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Ok(ListPromptsResult::with_all_items(vec![Prompt::new(
            "summarize",
            Some("Asks for a summary of a text"),
            Some(vec![
                PromptArgument::new("text")
                    .with_description("What to summarize")
                    .with_required(true),
            ]),
        )]))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        if request.name != "summarize" {
            return Err(ErrorData::invalid_params("no such prompt", None));
        }
        let text = request
            .arguments
            .as_ref()
            .and_then(|arguments| arguments.get("text"))
            .and_then(|text| text.as_str())
            .ok_or_else(|| ErrorData::invalid_params("text is missing", None))?;
        Ok(GetPromptResult::new(vec![PromptMessage::new_text(
            Role::User,
            format!("Summarize in one sentence:\n\n{text}"),
        )])
        .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Full;
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;
    use serde_json::{Value, json};

    async fn post(url: &str, headers: &[(&str, &str)], message: &Value) -> Response<Incoming> {
        let mut request = Request::post(url)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        for (name, value) in headers {
            request = request.header(*name, *value);
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

    async fn text(response: Response<Incoming>) -> String {
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        String::from_utf8(body.to_vec()).expect("UTF-8")
    }

    async fn modern(url: &str, method: &str, name: Option<&str>, mut params: Value) -> String {
        params["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!("2026-07-28");
        params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({});
        let mut headers = vec![("mcp-protocol-version", "2026-07-28"), ("mcp-method", method)];
        headers.extend(name.map(|name| ("mcp-name", name)));
        let message = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        text(post(url, &headers, &message).await).await
    }

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap_or_else(|_| panic!("not JSON: {text}"))
    }

    #[tokio::test]
    async fn modern_clients_need_no_session() {
        let sample = SampleServer::start().await.expect("loopback has a free port");
        let url = sample.url();

        let listed = json(&modern(&url, "tools/list", None, json!({})).await);
        let mut names: Vec<&str> = listed["result"]["tools"]
            .as_array()
            .expect("tools")
            .iter()
            .filter_map(|tool| tool["name"].as_str())
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["add", "admin_reset", "countdown", "echo", "fail", "wait"]);

        let call = |name: &'static str, arguments: Value| {
            let url = url.clone();
            async move {
                let params = json!({"name": name, "arguments": arguments});
                json(&modern(&url, "tools/call", Some(name), params).await)["result"].clone()
            }
        };
        assert_eq!(
            call("echo", json!({"text": "hello"})).await["content"][0]["text"],
            "hello"
        );
        assert_eq!(call("add", json!({"a": 2, "b": 3})).await["content"][0]["text"], "5");
        assert_eq!(call("fail", json!({})).await["isError"], true);
        assert_eq!(
            call("wait", json!({"seconds": 0})).await["content"][0]["text"],
            "waited 0.0 s"
        );
        assert_eq!(
            call("admin_reset", json!({})).await["content"][0]["text"],
            "forgot 1 echoes"
        );
        sample.stop().await;
    }

    #[tokio::test]
    async fn progress_comes_before_the_result() {
        let sample = SampleServer::start().await.expect("loopback has a free port");
        let params = json!({"name": "countdown", "arguments": {"steps": 2}, "_meta": {"progressToken": "p"}});
        let stream = modern(&sample.url(), "tools/call", Some("countdown"), params).await;
        let progress = stream.find("notifications/progress").expect("progress");
        let result = stream.find("2 steps done").expect("a result");
        assert!(progress < result, "{stream}");
    }

    #[tokio::test]
    async fn resources_and_prompts_answer() {
        let sample = SampleServer::start().await.expect("loopback has a free port");
        let url = sample.url();
        let resources = json(&modern(&url, "resources/list", None, json!({})).await);
        assert_eq!(resources["result"]["resources"][0]["uri"], WELCOME);
        let templates = json(&modern(&url, "resources/templates/list", None, json!({})).await);
        assert_eq!(
            templates["result"]["resourceTemplates"][0]["uriTemplate"],
            "memo://about/{topic}"
        );
        for uri in [WELCOME, "memo://about/gates"] {
            let read = json(&modern(&url, "resources/read", Some(uri), json!({"uri": uri})).await);
            assert_eq!(read["result"]["contents"][0]["uri"], uri, "{read}");
        }
        let missing = json(&modern(&url, "resources/read", Some("memo://x"), json!({"uri": "memo://x"})).await);
        assert_eq!(missing["error"]["code"], -32602);
        let prompt = json!({"name": "summarize", "arguments": {"text": "Gates open and close."}});
        let prompt = json(&modern(&url, "prompts/get", Some("summarize"), prompt).await);
        assert!(
            prompt["result"]["messages"][0]["content"]["text"]
                .as_str()
                .expect("text")
                .ends_with("close.")
        );
    }

    #[tokio::test]
    async fn legacy_clients_get_a_session() {
        let sample = SampleServer::start().await.expect("loopback has a free port");
        let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}});
        let answer = post(&sample.url(), &[], &hello).await;
        let session = answer.headers()["mcp-session-id"].to_str().expect("text").to_owned();
        let initialized = text(answer).await;
        assert!(initialized.contains("2025-06-18"), "{initialized}");
        let headers = [
            ("mcp-session-id", session.as_str()),
            ("mcp-protocol-version", "2025-06-18"),
        ];
        let ready = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        assert_eq!(post(&sample.url(), &headers, &ready).await.status(), 202);
        let call = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call",
            "params": {"name": "echo", "arguments": {"text": "hello"}}});
        let echoed = text(post(&sample.url(), &headers, &call).await).await;
        assert!(echoed.contains("hello"), "{echoed}");
    }
}
