//! How a connection is opened: found out what the server is, introduced, ready for calls.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::era::{self, Nature, Verdict};
use super::link::{HttpLink, Link, SseLink, StdioLink};
use super::message::{slice, text};
use super::peer::{Facts, Funds, Lost, Peer, ServerEra};
use crate::edge::Rejection;
use crate::upstream::stdio::{Owner, Processes};
use crate::upstream::{Upstream, UpstreamError};

/// The modern revision that the gateway speaks.
pub const MODERN: &str = "2026-07-28";
/// The legacy revision that the gateway asks for, where no client says which.
pub const LEGACY: &str = "2025-11-25";
/// The legacy revisions that the gateway speaks, latest first.
pub const LEGACY_VERSIONS: [&str; 4] = [LEGACY, "2025-06-18", "2025-03-26", "2024-11-05"];
/// How long a server may take to introduce itself.
const INTRODUCTION: Duration = Duration::from_secs(30);
/// How long after a process died of being asked it may be started again, see [`crate::upstream::stdio`].
const RESTART: Duration = Duration::from_millis(600);
/// How long a process may take to say whether it is modern; many legacy ones say nothing at all.
const PROBE: Duration = Duration::from_secs(10);

/// Opens connections to one HTTP upstream.
pub struct Opener<'a> {
    pub upstream: &'a Arc<Upstream>,
    pub nature: &'a Nature,
    pub funds: &'a Funds,
    /// Silence within a call that is put up with.
    pub idle_timeout: Duration,
}

/// A connection, with the raw JSON of what the server said to `initialize` or `server/discover`.
pub struct Opened {
    pub peer: Arc<Peer>,
    pub result: Bytes,
}

impl Opener<'_> {
    /// Whether the server answers modern requests: as known, or as it says now.
    ///
    /// # Errors
    /// When its answer doesn't tell; nothing is concluded then.
    pub async fn is_modern(&self) -> Result<bool, Rejection> {
        match self.nature.modern().get() {
            Some(modern) => Ok(modern),
            None => Ok(self.discover().await?.is_some()),
        }
    }

    /// A connection to a modern server; `None` when it isn't one.
    ///
    /// # Errors
    /// When its answer doesn't tell.
    pub async fn discover(&self) -> Result<Option<Opened>, Rejection> {
        let link = Link::Http(HttpLink::new(self.upstream.clone(), ServerEra::Modern));
        let peer = Peer::new(ServerEra::Modern, link, None, self.funds.clone(), self.idle_timeout);
        let found = discover(&peer, self.funds).await;
        if let Ok(found) = &found {
            self.nature.modern().set(Some(found.is_some()));
        }
        Ok(found?.map(|result| Opened { peer, result }))
    }

    /// A connection to a legacy server.
    ///
    /// # Errors
    /// When it can't be reached, or takes no `initialize` over any transport.
    pub async fn initialize(&self, params: &Bytes) -> Result<Opened, Lost> {
        let mut refused = None;
        if self.nature.streamable().get() != Some(false) {
            let link = Link::Http(HttpLink::new(self.upstream.clone(), ServerEra::Legacy));
            let peer = Peer::new(ServerEra::Legacy, link, None, self.funds.clone(), self.idle_timeout);
            match initialize(&peer, params, self.funds).await {
                Ok(result) => {
                    self.nature.streamable().set(Some(true));
                    return Ok(Opened { peer, result });
                }
                Err(lost) if era::of_loss(&lost) == Verdict::Inconclusive => return Err(lost),
                Err(lost) => refused = Some(lost),
            }
        }
        let stream = match self.nature.sse().get() {
            Some(false) => None,
            _ => match SseLink::open(self.upstream, self.funds).await {
                Ok(stream) => stream,
                // What was said to the message itself says more.
                Err(lost) => return Err(refused.unwrap_or(lost)),
            },
        };
        if let Some((link, source)) = stream {
            let link = Link::Sse(link);
            let peer = Peer::new(
                ServerEra::Legacy,
                link,
                Some(source),
                self.funds.clone(),
                self.idle_timeout,
            );
            let result = initialize(&peer, params, self.funds).await?;
            self.nature.streamable().set(Some(false));
            self.nature.sse().set(Some(true));
            return Ok(Opened { peer, result });
        }
        self.nature.forget();
        Err(refused.unwrap_or_else(|| {
            Rejection::UpstreamNonsense("it speaks no transport of MCP here; check the upstream's URL").into()
        }))
    }

    /// Whether a server takes the gateway's own `initialize` by POST, or doesn't tell: what it refused one client was that
    /// client's doing then, and says nothing of the server.
    pub async fn takes_initialize(&self) -> bool {
        let link = Link::Http(HttpLink::new(self.upstream.clone(), ServerEra::Legacy));
        let peer = Peer::new(ServerEra::Legacy, link, None, self.funds.clone(), self.idle_timeout);
        let taken = initialize(&peer, &as_nobody(), self.funds).await;
        peer.close().await;
        taken.map_or_else(|lost| era::of_loss(&lost) == Verdict::Inconclusive, |_| true)
    }

    /// A process of a server that is a command, introduced; `initialize` are the raw parameters for one that is legacy.
    ///
    /// # Errors
    /// When it can't be started, or takes no introduction.
    pub async fn process(&self, processes: &Processes, owner: &Owner, initialize: &Bytes) -> Result<Opened, Lost> {
        let modern = self.nature.modern();
        let mut peer = self.start(processes, owner)?;
        if modern.get() != Some(false) {
            match tokio::time::timeout(PROBE, discover(&peer, self.funds)).await {
                Ok(Ok(Some(result))) => {
                    modern.set(Some(true));
                    return Ok(Opened { peer, result });
                }
                // It is known to be modern, or says that it is.
                Ok(Err(lost @ Lost::Rejected(Rejection::UpstreamNonsense(_)))) => return Err(lost),
                Ok(Err(lost)) if modern.get() == Some(true) => return Err(lost),
                Err(_) if modern.get() == Some(true) => {
                    let endpoint = processes.name().clone();
                    return Err(UpstreamError::Timeout { endpoint, after: PROBE }.into());
                }
                // Some end themselves over a request that comes before `initialize`.
                Ok(Err(_)) => {
                    tokio::time::sleep(RESTART).await;
                    peer = self.start(processes, owner)?;
                }
                // Another error, or silence (MCP 2026-07-28, "stdio: Backward Compatibility").
                Ok(Ok(None)) | Err(_) => {}
            }
        }
        peer.turn_legacy();
        let result = self::initialize(&peer, initialize, self.funds).await?;
        modern.set(Some(false));
        Ok(Opened { peer, result })
    }

    fn start(&self, processes: &Processes, owner: &Owner) -> Result<Arc<Peer>, Rejection> {
        let (link, source) = StdioLink::start(processes, owner).map_err(UpstreamError::Process)?;
        let (link, funds) = (Link::Stdio(link), self.funds.clone());
        Ok(Peer::new(
            ServerEra::Modern,
            link,
            Some(source),
            funds,
            self.idle_timeout,
        ))
    }

    /// Whether the server has an HTTP+SSE stream: as known, or as it shows now.
    ///
    /// # Errors
    /// When its answer doesn't tell.
    pub async fn is_sse(&self) -> Result<bool, Lost> {
        if let Some(sse) = self.nature.sse().get() {
            return Ok(sse);
        }
        let sse = SseLink::open(self.upstream, self.funds).await?.is_some();
        self.nature.sse().set(Some(sse));
        Ok(sse)
    }
}

/// Asks a server for what it is; `None` when it is no modern one.
///
/// # Errors
/// When its answer doesn't tell.
pub async fn discover(peer: &Arc<Peer>, funds: &Funds) -> Result<Option<Bytes>, Lost> {
    let params = format!(
        r#"{{"_meta":{{"io.modelcontextprotocol/protocolVersion":"{MODERN}","io.modelcontextprotocol/clientInfo":{},"io.modelcontextprotocol/clientCapabilities":{{}}}}}}"#,
        client_info()
    );
    peer.speak(MODERN);
    let verdict = match ask(peer, "server/discover", params.into(), funds).await {
        Ok(result) => {
            if let Some(facts) = discovered(&result) {
                peer.introduce(facts);
                return Ok(Some(result));
            }
            return Ok(None);
        }
        Err(lost) => match era::of_loss(&lost) {
            Verdict::Inconclusive => return Err(lost),
            Verdict::Is(era) => (era, lost),
        },
    };
    match verdict {
        (ServerEra::Legacy, _) => Ok(None),
        // It is modern, and yet won't say what it is.
        (ServerEra::Modern, _) => {
            Err(Rejection::UpstreamNonsense("it speaks only revisions of MCP that the gateway doesn't know").into())
        }
    }
}

/// Introduces a client to a legacy server, with these parameters of `initialize`.
///
/// # Errors
/// When the server doesn't take it, or names a version that the gateway doesn't know.
pub async fn initialize(peer: &Arc<Peer>, params: &Bytes, funds: &Funds) -> Result<Bytes, Lost> {
    let result = ask(peer, "initialize", params.clone(), funds).await?;
    let unknown = || {
        Lost::from(Rejection::UpstreamNonsense(
            "its answer to initialize names no revision of MCP that the gateway knows",
        ))
    };
    let facts = initialized(&result).ok_or_else(unknown)?;
    peer.introduce(facts);
    let noting = peer.notify("notifications/initialized", b"{}", funds);
    match tokio::time::timeout(INTRODUCTION, noting).await {
        Ok(noted) => noted?,
        Err(_) => return Err(peer.late(INTRODUCTION)),
    }
    Ok(result)
}

async fn ask(peer: &Arc<Peer>, method: &str, params: Bytes, funds: &Funds) -> Result<Bytes, Lost> {
    let answered = peer.ask(method, params, funds, INTRODUCTION).await?;
    answered.map_err(|error| Lost::Refused {
        status: StatusCode::OK,
        error,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Introduction<'a> {
    #[serde(default)]
    protocol_version: Option<String>,
    #[serde(default)]
    supported_versions: Option<Vec<String>>,
    #[serde(borrow, default)]
    capabilities: Option<&'a RawValue>,
    #[serde(borrow, default)]
    server_info: Option<&'a RawValue>,
    #[serde(default)]
    instructions: Option<String>,
    #[serde(borrow, default, rename = "_meta")]
    meta: Option<Meta<'a>>,
}

#[derive(Deserialize)]
struct Meta<'a> {
    #[serde(borrow, default, rename = "io.modelcontextprotocol/serverInfo")]
    server_info: Option<&'a RawValue>,
}

/// What a DiscoverResult says; `None` when it isn't one, or knows no revision of ours.
fn discovered(result: &Bytes) -> Option<Facts> {
    let said: Introduction<'_> = serde_json::from_slice(result).ok()?;
    said.supported_versions
        .as_ref()?
        .iter()
        .find(|version| *version == MODERN)?;
    Some(facts(
        result,
        &said,
        MODERN,
        said.meta.as_ref().and_then(|meta| meta.server_info),
    ))
}

/// What an InitializeResult says; `None` when it isn't one, or its version is none of ours.
fn initialized(result: &Bytes) -> Option<Facts> {
    let said: Introduction<'_> = serde_json::from_slice(result).ok()?;
    let version = said.protocol_version.as_deref()?;
    let version = LEGACY_VERSIONS.iter().find(|known| **known == version)?;
    Some(facts(result, &said, version, said.server_info))
}

fn facts(result: &Bytes, said: &Introduction<'_>, version: &str, server_info: Option<&RawValue>) -> Facts {
    let object = |value: &RawValue| value.get().starts_with('{').then(|| slice(result, value));
    Facts {
        version: version.into(),
        capabilities: said
            .capabilities
            .and_then(object)
            .unwrap_or_else(|| Bytes::from_static(b"{}")),
        server_info: server_info.and_then(object),
        instructions: said.instructions.as_deref().map(Into::into),
    }
}

/// Raw parameters of `initialize` for a server that can ask nobody.
pub fn as_nobody() -> Bytes {
    format!(
        r#"{{"protocolVersion":"{LEGACY}","capabilities":{{}},"clientInfo":{}}}"#,
        client_info()
    )
    .into()
}

/// The gateway as a client: raw JSON.
pub fn client_info() -> String {
    let version = String::from_utf8(text(env!("CARGO_PKG_VERSION"))).expect("JSON is UTF-8");
    format!(r#"{{"name":"portcullis","version":{version}}}"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn introductions_are_read() {
        let modern = Bytes::from_static(
            br#"{"supportedVersions":["2027-01-01","2026-07-28"],"capabilities":{"tools":{}},"instructions":"Hi","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"a"}}}"#,
        );
        let facts = discovered(&modern).expect("a modern server");
        assert_eq!(&*facts.version, MODERN);
        assert_eq!(&facts.capabilities[..], br#"{"tools":{}}"#);
        assert_eq!(facts.server_info.as_deref(), Some(&br#"{"name":"a"}"#[..]));
        assert_eq!(facts.instructions.as_deref(), Some("Hi"));
        let legacy =
            Bytes::from_static(br#"{"protocolVersion":"2024-11-05","capabilities":{},"serverInfo":{"name":"b"}}"#);
        let facts = initialized(&legacy).expect("a legacy server");
        assert_eq!(&*facts.version, "2024-11-05");
        assert!(discovered(&legacy).is_none());
        assert!(initialized(&modern).is_none());
        for text in [
            "{}",
            r#"{"protocolVersion":"2099-01-01"}"#,
            r#"{"supportedVersions":["2099-01-01"]}"#,
        ] {
            let result = Bytes::copy_from_slice(text.as_bytes());
            assert!(
                initialized(&result).is_none() && discovered(&result).is_none(),
                "{text}"
            );
        }
    }
}
