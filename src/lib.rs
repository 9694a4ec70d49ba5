//! Portcullis: one locked gate in front of every MCP server a platform team runs.
//!
//! # A request's journey
//!
//! The modules stand in the order a request meets them; [`stack`] puts them together.
//!
//! | step | module | what it decides |
//! |---|---|---|
//! | accept, TLS, HTTP/1.1 or 2 | [`listener`] | who may open a connection, and how long they may take |
//! | request id, span, access log, rescue | [`edge`] | what a failure looks like to the client: the only place that picks a status |
//! | Host, Origin, CORS, limits | [`edge`] | which requests are looked at at all |
//! | well-known documents | [`metadata`] | where clients learn who issues tokens; before authentication |
//! | the users' pages | [`connect`] | in browsers: who signs in, and connects which account; before authentication |
//! | path to route | [`route`] | which MCP endpoint is meant |
//! | bearer to principal | [`authn`] | who is calling, or a 401 with a challenge |
//! | body to call | [`call`], [`mcp`] | what is asked: JSON-RPC envelope, era, header agreement |
//! | session | [`session`] | whether the sealed session is this principal's |
//! | rate and concurrency | [`limit`] | whether this caller has more of the gate than their share |
//! | principal × route × call | [`policy`] | a [`policy::Permit`], or a refusal; nothing below runs without one |
//! | permit to credential | [`credential`] | the one credential that leaves |
//! | another era or transport | [`bridge`] | how a caller and a server that don't speak alike meet |
//! | balance, dial, send | [`upstream`] | which server answers |
//! | reply to caller | [`reply`] | what of the answer the caller may see |
//!
//! Across all of them: [`config`], [`secret`], [`clock`], [`oauth`] (the gateway as a client of issuers), [`store`], [`telemetry`],
//! [`admin`], [`cli`] and [`gateway`], which turns
//! a [`config::Config`] into a running service.

pub mod admin;
pub mod authn;
pub mod bridge;
pub mod call;
pub mod cli;
pub mod clock;
pub mod config;
pub mod connect;
pub mod credential;
pub mod edge;
pub mod gateway;
pub mod generation;
pub mod limit;
pub mod listener;
pub mod mcp;
pub mod metadata;
pub mod oauth;
pub mod policy;
pub mod reply;
pub mod rights;
pub mod route;
pub mod secret;
pub mod session;
pub mod stack;
pub mod store;
pub mod telemetry;
pub mod upstream;
