//! Single values: what each text must look like, and what to write instead.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::HeaderName;
use jsonwebtoken::Algorithm;
use url::{Host, Url};

use super::Rate;
use super::raw::{At, Section};
use super::tree::{Node, Value};
use crate::secret::Secret;

/// A bucket of one fills in a microsecond: more often than this nobody calls.
const MAX_RATE: u32 = 1_000_000;

pub(super) fn values<T>(list: Vec<At<T>>) -> Vec<T> {
    list.into_iter().map(|at| at.value).collect()
}

pub(super) fn at(node: &Node, key: &str) -> At<()> {
    At {
        value: (),
        place: node.place,
        key: key.to_owned(),
    }
}

pub(super) fn texts_of(node: &Node) -> Option<Vec<String>> {
    let Value::List(items) = &node.value else { return None };
    items
        .iter()
        .map(|item| match &item.value {
            Value::Scalar(scalar) => Some(scalar.text.clone()),
            _ => None,
        })
        .collect()
}

/// A file that is read once the configuration is used.
pub(super) fn path(section: &Section<'_>, key: &'static str, about: &str, directory: &Path) -> Option<PathBuf> {
    let file = section
        .parsed(key, about, |text| {
            if text.is_empty() {
                Err("name a file".to_owned())
            } else {
                Ok(directory.join(text))
            }
        })?
        .value;
    section.reads(&file);
    Some(file)
}

pub(super) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "use an IP address and a port, such as 127.0.0.1:8080 or [::]:8443".to_owned())
}

pub(super) fn public_url(text: &str) -> Result<String, String> {
    let remedy = || "use scheme and authority only, such as https://mcp.example.com".to_owned();
    let url = Url::parse(text).map_err(|_| remedy())?;
    // Tokens name it byte for byte, so that no other spelling of the same origin will do.
    let origin = url.origin().ascii_serialization();
    if !matches!(url.scheme(), "http" | "https") || text.strip_suffix('/').unwrap_or(text) != origin {
        return Err(remedy());
    }
    if url.scheme() == "http" && !is_loopback(&url) {
        return Err("clients must come over https off loopback".to_owned());
    }
    Ok(origin)
}

/// r26: tokens and secrets go over TLS, save on loopback; link-local addresses are never asked.
pub(super) fn oauth_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|_| "use an absolute https URL".to_owned())?;
    let link_local = match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_link_local(),
        Some(Host::Ipv6(ip)) => ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_link_local()),
        Some(Host::Domain(_)) => false,
        None => return Err("use an absolute https URL".to_owned()),
    };
    match url.scheme() {
        _ if link_local => Err("link-local addresses are never asked".to_owned()),
        _ if !url.username().is_empty() || url.password().is_some() => Err("a URL holds no credentials".to_owned()),
        _ if url.fragment().is_some() => Err("leave the fragment out".to_owned()),
        "https" => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        _ => Err("use https; http is accepted on loopback only".to_owned()),
    }
}

pub(super) fn upstream_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|_| "use an absolute URL such as http://127.0.0.1:8001/mcp".to_owned())?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err("use an http or https URL".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL holds no credentials; use credential: {basic: …}".to_owned());
    }
    if url.fragment().is_some() {
        return Err("leave the fragment out".to_owned());
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => IpAddr::V4(ip).is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

pub(super) fn route_path(text: &str) -> Result<String, String> {
    let good = text.starts_with('/')
        && (text == "/" || !text.ends_with('/'))
        && text.len() <= 256
        && !text.contains("//")
        && text.split('/').all(|part| part != "." && part != "..")
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte));
    if !good {
        return Err("use a plain path such as /notes/mcp, without a slash at its end".to_owned());
    }
    if text == "/.well-known" || text.starts_with("/.well-known/") {
        return Err("/.well-known/ is where clients look for metadata; use another path".to_owned());
    }
    Ok(text.to_owned())
}

/// A number of messages in a second or a minute, all of which may come at once.
pub(super) fn rate(text: &str) -> Result<Rate, String> {
    let parsed = text.split_once('/').and_then(|(count, per)| {
        let per = match per {
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            _ => return None,
        };
        let digits = count.bytes().all(|byte| byte.is_ascii_digit());
        let count = count
            .parse()
            .ok()
            .filter(|count: &NonZeroU32| digits && count.get() <= MAX_RATE)?;
        Some(Rate {
            count,
            per,
            burst: count,
        })
    });
    parsed.ok_or_else(|| "use a rate such as 50/s or 600/m, at most 1000000".to_owned())
}

pub(super) fn host_name(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    let host = Host::parse(&lower).map_err(|_| "use a host name without a port".to_owned())?;
    if host.to_string() == lower {
        Ok(lower)
    } else {
        Err("use a host name without a port".to_owned())
    }
}

pub(super) fn origin(text: &str) -> Result<String, String> {
    let remedy = || "use scheme://host[:port], such as https://app.example.com".to_owned();
    let url = Url::parse(text).map_err(|_| remedy())?;
    let origin = url.origin().ascii_serialization();
    if origin == text.to_ascii_lowercase() {
        Ok(origin)
    } else {
        Err(remedy())
    }
}

/// RFC 6749 section 3.3.
pub(super) fn scope(text: &str) -> Result<String, String> {
    let good = !text.is_empty()
        && text
            .bytes()
            .all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e));
    if good {
        Ok(text.to_owned())
    } else {
        Err("a scope has no spaces, quotes or backslashes".to_owned())
    }
}

/// A scope that a request may need. `offline_access` is none: it is about refresh tokens, and clients must not be told to
/// ask for it (MCP 2026-07-28, "Refresh Tokens").
pub(super) fn needed_scope(text: &str) -> Result<String, String> {
    match text {
        "offline_access" => {
            Err("it is the client's business whether it can refresh tokens; name another scope".to_owned())
        }
        _ => scope(text),
    }
}

pub(super) fn algorithm(text: &str) -> Result<Algorithm, String> {
    match text {
        "RS256" => Ok(Algorithm::RS256),
        "RS384" => Ok(Algorithm::RS384),
        "RS512" => Ok(Algorithm::RS512),
        "PS256" => Ok(Algorithm::PS256),
        "PS384" => Ok(Algorithm::PS384),
        "PS512" => Ok(Algorithm::PS512),
        "ES256" => Ok(Algorithm::ES256),
        "ES384" => Ok(Algorithm::ES384),
        "EdDSA" => Ok(Algorithm::EdDSA),
        "HS256" => Ok(Algorithm::HS256),
        _ => Err(
            "use RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA, or HS256 with shared_secret".to_owned(),
        ),
    }
}

/// A signature of the gateway's own: with a private key, never HS*.
pub(super) fn signature(text: &str) -> Result<Algorithm, String> {
    match text {
        "RS256" => Ok(Algorithm::RS256),
        "PS256" => Ok(Algorithm::PS256),
        "ES256" => Ok(Algorithm::ES256),
        "ES384" => Ok(Algorithm::ES384),
        "EdDSA" => Ok(Algorithm::EdDSA),
        _ => Err("use RS256, PS256, ES256, ES384 or EdDSA".to_owned()),
    }
}

/// A file with a second line would otherwise pass `check` and stop `serve`.
pub(super) fn header_value(section: &Section<'_>, at: &At<Secret>) {
    if at.value.expose().contains(char::is_control) {
        section.error_in(at, "the secret has a control character", "a header carries one line");
    }
}

/// A credential in a header that frames the message would let two readers take it apart differently.
pub(super) fn credential_header(text: &str) -> Result<HeaderName, String> {
    let name: HeaderName = text.parse().map_err(|_| "use a header name".to_owned())?;
    if !matches!(name.as_str(), "authorization" | "cookie") && forwarded(text).is_err() {
        return Err("hop-by-hop headers and what the gate sets itself carry no credential".to_owned());
    }
    Ok(name)
}

/// What may be forwarded besides MCP's own headers.
pub(super) fn forwarded(text: &str) -> Result<HeaderName, String> {
    let name: HeaderName = text.parse().map_err(|_| "use a header name".to_owned())?;
    let never = [
        "authorization",
        "cookie",
        "proxy-authorization",
        "dpop",
        "host",
        "connection",
        "content-length",
        "transfer-encoding",
        "te",
        "trailer",
        "upgrade",
        "keep-alive",
        "proxy-connection",
        "expect",
        "mcp-session-id",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
    ];
    if never.contains(&name.as_str()) {
        return Err("credentials, hop-by-hop headers and what the gate sets itself are never forwarded".to_owned());
    }
    Ok(name)
}
