//! Who the client is when trusted proxies stand in front, and which host it asked for.
//!
//! 1. Only a peer in `listen.trusted_proxies` is believed; anybody else's `X-Forwarded-*` and `Forwarded` are ignored.
//!    Neither is ever sent upstream: request headers go by allow-list, and these can't be put on it.
//! 2. The client is the rightmost address no trusted proxy owns: each proxy appends whom it saw, so everything left of an
//!    untrusted address is that address's claim. A hidden node (`unknown`, `_name`) ends the walk at the hop before it.
//! 3. What a trusted peer sends must parse, all of it, and `Forwarded` (RFC 7239) and `X-Forwarded-For` must name the
//!    same client: a proxy that sets one and lets the other pass would let clients choose who they are.
//! 4. The host decides only whether the request is ours, and the scheme nothing: with trusted proxies `public_url` is
//!    required, and every URL is built from it.
//!
//! Without trusted proxies all of this is one comparison.

use std::net::{IpAddr, Ipv6Addr};

use http::{HeaderMap, HeaderName};

use super::check::{Arrival, Check};
use super::rejection::Rejection;
use crate::config::Network;

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

/// More proxies than stand in a row anywhere.
const MAX_HOPS: usize = 32;

/// A trusted proxy's header that can't be read: its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// What trusted proxies said of a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Origin {
    pub client: IpAddr,
    /// The host asked for, with its port if it was given.
    pub host: Option<String>,
}

/// Finds the client.
#[derive(Debug)]
pub struct ForwardedCheck {
    trusted: Vec<Network>,
}

impl ForwardedCheck {
    /// Believes these peers.
    pub fn new(trusted: Vec<Network>) -> Self {
        Self { trusted }
    }
}

impl<B: Send + 'static> Check<Arrival<B>> for ForwardedCheck {
    type Passed = Arrival<B>;

    async fn check(&self, arrival: Arrival<B>) -> Result<Arrival<B>, Rejection> {
        if !self.trusted.is_empty() {
            let peer = arrival.journey.connection.peer.ip();
            let origin = origin(arrival.request.headers(), peer, &self.trusted)
                .map_err(|Malformed(name)| Rejection::MalformedForwarded(name))?;
            if let Some(origin) = origin {
                let _ = arrival.journey.forwarded.set(origin);
            }
        }
        Ok(arrival)
    }
}

/// What the headers say; `None` when the peer isn't trusted.
///
/// # Errors
/// A trusted peer's header that can't be read, or headers that disagree.
pub fn origin(headers: &HeaderMap, peer: IpAddr, trusted: &[Network]) -> Result<Option<Origin>, Malformed> {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let peer = peer.to_canonical();
    if !is_trusted(peer) {
        return Ok(None);
    }
    let walk = |hops: &[Node]| {
        let mut client = peer;
        for hop in hops.iter().rev() {
            match hop {
                Some(address) if is_trusted(client) => client = *address,
                _ => break,
            }
        }
        client
    };
    let (hops, named) = forwarded(headers)?;
    let x_hops = x_forwarded_for(headers)?;
    let x_named = single(headers, &HOST, "X-Forwarded-Host")?;
    let proto = single(headers, &PROTO, "X-Forwarded-Proto")?;
    if proto.is_some_and(|proto| !is_scheme(proto)) {
        return Err(Malformed("X-Forwarded-Proto"));
    }
    let port = single(headers, &PORT, "X-Forwarded-Port")?;
    if port.is_some_and(|port| !is_port(port)) {
        return Err(Malformed("X-Forwarded-Port"));
    }
    if x_named.is_some_and(|host| host.parse::<http::uri::Authority>().is_err()) {
        return Err(Malformed("X-Forwarded-Host"));
    }
    let client = match (hops, x_hops) {
        (Some(hops), Some(x_hops)) if walk(&hops) != walk(&x_hops) => return Err(Malformed("Forwarded")),
        (Some(hops), _) | (None, Some(hops)) => walk(&hops),
        (None, None) => peer,
    };
    let host = match (named, x_named) {
        (Some(named), Some(x_named)) if !named.eq_ignore_ascii_case(x_named) => return Err(Malformed("Forwarded")),
        (Some(named), _) => Some(named),
        (None, x_named) => x_named.map(str::to_owned),
    };
    Ok(Some(Origin { client, host }))
}

/// A hop's address; `None` when it hides.
type Node = Option<IpAddr>;

/// Each line is read by itself: a quoted string that one leaves open doesn't end in the next, which another hop may have
/// written.
fn lines<'a>(headers: &'a HeaderMap, name: &HeaderName, shown: &'static str) -> Result<Vec<&'a str>, Malformed> {
    let lines = headers.get_all(name).iter();
    lines.map(|line| line.to_str().map_err(|_| Malformed(shown))).collect()
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName, shown: &'static str) -> Result<Option<&'a str>, Malformed> {
    let mut lines = headers.get_all(name).iter();
    match (lines.next(), lines.next()) {
        (None, _) => Ok(None),
        (Some(line), None) => line
            .to_str()
            .map(|text| Some(text.trim()))
            .map_err(|_| Malformed(shown)),
        _ => Err(Malformed(shown)),
    }
}

fn x_forwarded_for(headers: &HeaderMap) -> Result<Option<Vec<Node>>, Malformed> {
    let bad = Malformed("X-Forwarded-For");
    let lines = lines(headers, &FOR, "X-Forwarded-For")?;
    if lines.is_empty() {
        return Ok(None);
    }
    let hops: Option<Vec<Node>> = lines
        .iter()
        .flat_map(|line| line.split(','))
        .take(MAX_HOPS + 1)
        .map(|hop| {
            let hop = hop.trim_matches([' ', '\t']);
            match hop.parse::<Ipv6Addr>() {
                Ok(bare) => Some(Some(IpAddr::V6(bare).to_canonical())),
                Err(_) => node(hop),
            }
        })
        .collect();
    hops.filter(|hops| hops.len() <= MAX_HOPS).map(Some).ok_or(bad)
}

/// The hops, and the host as the nearest proxy named it.
type Elements = (Option<Vec<Node>>, Option<String>);

/// RFC 7239 section 4.
fn forwarded(headers: &HeaderMap) -> Result<Elements, Malformed> {
    let bad = Malformed("Forwarded");
    let lines = lines(headers, &FORWARDED, "Forwarded")?;
    let (mut hops, mut host) = (Vec::new(), None);
    for line in &lines {
        host = elements(line, &mut hops).ok_or(bad)?;
    }
    Ok(((!lines.is_empty()).then_some(hops), host))
}

/// Appends the hops of one line; the last element's host.
fn elements(text: &str, hops: &mut Vec<Node>) -> Option<Option<String>> {
    let mut rest = text;
    let mut host;
    loop {
        if hops.len() == MAX_HOPS {
            return None;
        }
        let mut seen: Vec<String> = Vec::new();
        let mut hop = None;
        host = None;
        loop {
            rest = rest.trim_start_matches([' ', '\t']);
            let (name, after) = token(rest)?;
            let (value, after) = value(after.strip_prefix('=')?)?;
            let name = name.to_ascii_lowercase();
            match name.as_str() {
                "for" => hop = node(&value)?,
                "by" => {
                    node(&value)?;
                }
                "host" => {
                    value.parse::<http::uri::Authority>().ok()?;
                    host = Some(value);
                }
                "proto" if !is_scheme(&value) => return None,
                _ => {}
            }
            if seen.contains(&name) {
                return None;
            }
            seen.push(name);
            rest = after.trim_start_matches([' ', '\t']);
            match rest.strip_prefix(';') {
                Some(more) => rest = more,
                None => break,
            }
        }
        hops.push(hop);
        if rest.is_empty() {
            return Some(host);
        }
        rest = rest.strip_prefix(',')?;
    }
}

/// RFC 9110 section 5.6.2.
fn token(text: &str) -> Option<(&str, &str)> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let end = text.find(|c| !is_token(c)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// A token or a quoted string (RFC 9110 section 5.6.4), unquoted.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        return token(text).map(|(value, rest)| (value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            _ => value.push(c),
        }
    }
    None
}

/// RFC 7239 section 6: an address with or without port, or a name that hides it.
fn node(text: &str) -> Option<Node> {
    let name_end = match text.strip_prefix('[') {
        Some(_) => text.find(']')? + 1,
        None => text.find(':').unwrap_or(text.len()),
    };
    let (name, port) = text.split_at(name_end);
    let is_obfuscated = |text: &str| {
        text.len() > 1
            && text.starts_with('_')
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    if !port.is_empty()
        && !port
            .strip_prefix(':')
            .is_some_and(|port| is_port(port) || is_obfuscated(port))
    {
        return None;
    }
    if name.eq_ignore_ascii_case("unknown") || is_obfuscated(name) {
        return Some(None);
    }
    let address = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(v6) => IpAddr::V6(v6.parse().ok()?),
        None => IpAddr::V4(name.parse().ok()?),
    };
    Some(Some(address.to_canonical()))
}

fn is_port(text: &str) -> bool {
    (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

fn is_scheme(text: &str) -> bool {
    text.eq_ignore_ascii_case("http") || text.eq_ignore_ascii_case("https")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn trusted() -> Vec<Network> {
        ["10.0.0.0/8", "fd00::/8"]
            .iter()
            .map(|text| text.parse().expect("a network"))
            .collect()
    }

    fn ask(peer: &str, lines: &[(&'static str, &str)]) -> Result<Option<Origin>, Malformed> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        origin(&headers, peer.parse().expect("an address"), &trusted())
    }

    #[test]
    fn r06_strangers_are_not_believed() {
        for lines in [
            &[("x-forwarded-for", "192.0.2.1")][..],
            &[("x-forwarded-host", "evil.example")],
            &[("forwarded", "for=192.0.2.1;host=evil.example")],
            &[("forwarded", "=;;,\"")],
        ] {
            assert_eq!(ask("203.0.113.9", lines), Ok(None), "{lines:?}");
        }
    }

    #[test]
    fn the_client_is_the_rightmost_untrusted() {
        for (lines, client) in [
            (&[][..], "10.0.0.1"),
            (&[("x-forwarded-for", "192.0.2.1")], "192.0.2.1"),
            (&[("x-forwarded-for", "198.51.100.1, 192.0.2.1, 10.0.0.2")], "192.0.2.1"),
            (
                &[
                    ("x-forwarded-for", "198.51.100.1"),
                    ("x-forwarded-for", "192.0.2.1:4711"),
                ],
                "192.0.2.1",
            ),
            (&[("x-forwarded-for", "10.9.9.9, 10.0.0.2")], "10.9.9.9"),
            (&[("x-forwarded-for", "192.0.2.1, unknown")], "10.0.0.1"),
            (&[("x-forwarded-for", "2001:db8::1")], "2001:db8::1"),
            (&[("x-forwarded-for", "::ffff:192.0.2.1")], "192.0.2.1"),
            (&[("forwarded", "for=192.0.2.1;proto=https;by=_gate")], "192.0.2.1"),
            (
                &[("forwarded", "For=\"[2001:db8::1]:4711\" , for=10.0.0.2")],
                "2001:db8::1",
            ),
            (&[("forwarded", "for=192.0.2.1, for=_hidden")], "10.0.0.1"),
            (&[("forwarded", "proto=https")], "10.0.0.1"),
            (
                &[("forwarded", "for=192.0.2.1"), ("x-forwarded-for", "192.0.2.1")],
                "192.0.2.1",
            ),
        ] {
            let found = ask("10.0.0.1", lines).expect("well formed").expect("trusted");
            assert_eq!(found.client.to_string(), client, "{lines:?}");
        }
    }

    #[test]
    fn a_trusted_proxy_must_write_well() {
        let hops = ["10.0.0.2"; MAX_HOPS + 1].join(",");
        for (name, value) in [
            ("x-forwarded-for", ""),
            ("x-forwarded-for", "192.0.2.1,"),
            ("x-forwarded-for", "192.0.2.256"),
            ("x-forwarded-for", "client.example"),
            ("x-forwarded-for", "192.0.2.1:99999"),
            ("x-forwarded-for", hops.as_str()),
            ("x-forwarded-proto", "javascript"),
            ("x-forwarded-port", "+80"),
            ("x-forwarded-host", "a b"),
            ("forwarded", ""),
            ("forwarded", "for"),
            ("forwarded", "for="),
            ("forwarded", "for=\"192.0.2.1"),
            ("forwarded", "for=192.0.2.1;for=192.0.2.2"),
            ("forwarded", "for=\"2001:db8::1\""),
            ("forwarded", "for=192.0.2.1 for=192.0.2.2"),
            ("forwarded", "for=192.0.2.1,"),
            ("forwarded", "for=192.0.2.1;proto=gopher"),
        ] {
            assert!(ask("10.0.0.1", &[(name, value)]).is_err(), "{name}: {value}");
        }
        for (name, value) in [("x-forwarded-host", "a.example"), ("x-forwarded-proto", "https")] {
            assert!(
                ask("10.0.0.1", &[(name, value), (name, value)]).is_err(),
                "{name} twice"
            );
        }
        let both = [("forwarded", "for=192.0.2.1"), ("x-forwarded-for", "192.0.2.2")];
        assert_eq!(ask("10.0.0.1", &both), Err(Malformed("Forwarded")));
    }

    #[test]
    fn quotes_end_on_their_line() {
        for lines in [["host=\"", "\""], ["x=\"", "y=\";for=192.0.2.2"]] {
            let lines = lines.map(|line| ("forwarded", line));
            assert_eq!(ask("10.0.0.1", &lines), Err(Malformed("Forwarded")), "{lines:?}");
        }
        let lines = [
            ("forwarded", "for=198.51.100.1;host=a.example"),
            ("forwarded", "for=192.0.2.1;x=\"a, b\""),
        ];
        let found = ask("10.0.0.1", &lines).expect("well formed").expect("trusted");
        assert_eq!((found.client.to_string().as_str(), found.host), ("192.0.2.1", None));
        let hops = ["for=10.0.0.2"; MAX_HOPS].join(",");
        let lines = [("forwarded", hops.as_str()), ("forwarded", "for=10.0.0.2")];
        assert!(ask("10.0.0.1", &lines[..1]).is_ok() && ask("10.0.0.1", &lines).is_err());
    }

    proptest! {
        #[test]
        fn a_client_cannot_move_itself(left in "[ -~]{0,60}") {
            let lines = [("x-forwarded-for", format!("{left},192.0.2.1"))];
            let lines: Vec<(&'static str, &str)> = lines.iter().map(|(name, value)| (*name, value.as_str())).collect();
            if let Ok(found) = ask("10.0.0.1", &lines) {
                prop_assert_eq!(found.expect("trusted").client.to_string(), "192.0.2.1");
            }
            let lines = [("forwarded", format!("{left},for=192.0.2.1"))];
            let lines: Vec<(&'static str, &str)> = lines.iter().map(|(name, value)| (*name, value.as_str())).collect();
            if let Ok(found) = ask("10.0.0.1", &lines) {
                prop_assert_eq!(found.expect("trusted").client.to_string(), "192.0.2.1");
            }
        }
    }
}
