//! `Forwarded` and `X-Forwarded-*`. Input: header lines, `forwarded`, `for`, `host`, `proto` and `port` short for their names.
//!
//! Oracle: a stranger is never believed, whatever it says; a client that is named stands in the headers; and nobody moves
//! itself: a hop that is added on the left can't change who an untrusted client is, one on the right is the client, and one
//! more trusted proxy there changes nothing. So the answer survives every proxy that only appends, and one that quotes
//! whatever host it was asked for, too.
#![no_main]

use std::net::IpAddr;
use std::sync::LazyLock;

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use portcullis::config::Network;
use portcullis::edge::forwarded::{Origin, origin};

const TRUSTED: &str = "10.0.0.1";
const NEXT_TRUSTED: &str = "10.9.9.9";
const STRANGER: &str = "203.0.113.99";

/// What a proxy says of a stranger who asked for a strange host.
const QUOTED: &str = "for=203.0.113.99;host=\";for=192.0.2.9;y=\"";

const NAMES: [(&str, &str); 5] = [
    ("forwarded", "forwarded"),
    ("for", "x-forwarded-for"),
    ("host", "x-forwarded-host"),
    ("proto", "x-forwarded-proto"),
    ("port", "x-forwarded-port"),
];

/// Fewer commas than this, and one more hop fits.
const FEW: usize = 30;

static NETWORKS: LazyLock<Vec<Network>> = LazyLock::new(|| {
    ["10.0.0.0/8", "fd00::/8"]
        .iter()
        .map(|network| network.parse().expect("a network"))
        .collect()
});

type Lines = Vec<(&'static str, Vec<u8>)>;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn is_trusted(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[0] == 10,
        IpAddr::V6(v6) => v6.octets()[0] == 0xfd,
    }
}

fn ask(peer: &str, lines: &Lines) -> Option<Option<Origin>> {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        let value = HeaderValue::from_bytes(value).expect("it was one");
        headers.append(HeaderName::from_static(name), value);
    }
    origin(&headers, ip(peer), &NETWORKS).ok()
}

/// The lines with one more hop in each list of hops, before the first line or behind the last.
fn with(lines: &Lines, hop: &str, left: bool) -> Lines {
    let mut lines = lines.clone();
    for (name, hop) in [("x-forwarded-for", hop.to_owned()), ("forwarded", format!("for={hop}"))] {
        let mut those = lines.iter_mut().filter(|(line, _)| *line == name);
        let line = if left { those.next() } else { those.next_back() };
        if let Some((_, line)) = line {
            *line = if left {
                [hop.as_bytes(), b",", line].concat()
            } else {
                [line, &b", "[..], hop.as_bytes()].concat()
            };
        }
    }
    lines
}

/// Whether the address is spelled anywhere in the lines, a port behind it or not.
fn stands(address: IpAddr, lines: &Lines) -> bool {
    lines.iter().any(|(_, value)| {
        let text = String::from_utf8_lossy(value).replace('\\', "");
        let spelled = text.split(|c: char| !(c.is_ascii_hexdigit() || ":.".contains(c)));
        let mut spelled = spelled.flat_map(|run| [Some(run), run.rsplit_once(':').map(|(run, _)| run)]);
        spelled.any(|run| {
            run.and_then(|run| run.parse::<IpAddr>().ok())
                .map(|ip| ip.to_canonical())
                == Some(address)
        })
    })
}

fuzz_target!(|input: &[u8]| {
    let mut lines = Lines::new();
    for line in input.split(|byte| *byte == b'\n') {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (Some(short), Some(value)) = (parts.next(), parts.next()) else {
            return;
        };
        let name = NAMES.iter().find(|(known, _)| known.as_bytes() == short);
        let (Some((_, name)), Ok(_)) = (name, HeaderValue::from_bytes(value)) else {
            return;
        };
        lines.push((name, value.to_vec()));
    }
    assert_eq!(ask(STRANGER, &lines), Some(None), "a stranger is ignored, not refused");
    let with_quoted = |separate: bool| {
        let mut lines = lines.clone();
        lines.retain(|(name, _)| *name == "forwarded");
        match lines.last_mut() {
            Some((_, last)) if !separate => *last = [last, &b", "[..], QUOTED.as_bytes()].concat(),
            _ => lines.push(("forwarded", QUOTED.into())),
        }
        ask(TRUSTED, &lines)
    };
    for said in [with_quoted(true), with_quoted(false)].into_iter().flatten() {
        assert_eq!(said.expect("the peer is trusted").client, ip(STRANGER));
    }
    let Some(said) = ask(TRUSTED, &lines) else {
        return;
    };
    let said = said.expect("the peer is trusted");
    assert!(said.client == ip(TRUSTED) || stands(said.client, &lines), "{said:?}");
    if let Some(host) = &said.host {
        assert!(host.parse::<http::uri::Authority>().is_ok());
        assert!(lines.iter().any(|(_, value)| {
            let value = String::from_utf8_lossy(value).replace('\\', "");
            value.contains(host)
        }));
    }
    let has_hops = lines
        .iter()
        .any(|(name, _)| ["forwarded", "x-forwarded-for"].contains(name));
    let hops = lines
        .iter()
        .map(|(_, value)| 1 + value.iter().filter(|byte| **byte == b',').count());
    if !has_hops || hops.sum::<usize>() > FEW {
        return;
    }
    let again = |hop, left| {
        let said = ask(TRUSTED, &with(&lines, hop, left));
        said.expect("one more hop is well formed")
            .expect("the peer is trusted")
            .client
    };
    let moved = again(STRANGER, true);
    assert!(
        moved == said.client || is_trusted(said.client) && moved == ip(STRANGER),
        "{said:?} {moved}"
    );
    assert_eq!(again(STRANGER, false), ip(STRANGER));
    let behind = again(NEXT_TRUSTED, false);
    assert!(
        behind == said.client || said.client == ip(TRUSTED) && behind == ip(NEXT_TRUSTED),
        "{said:?} {behind}"
    );
});
