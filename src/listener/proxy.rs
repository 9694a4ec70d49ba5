//! The PROXY protocol, versions 1 and 2: whom a load balancer connected for.
//!
//! 1. A header is read to its last byte and not beyond, since what follows is TLS or HTTP.
//! 2. It has bounds: 107 bytes in version 1, 4 KiB behind the first 16 in version 2.
//! 3. What the sender can't or won't say (`UNKNOWN`, `LOCAL`, `AF_UNSPEC`) leaves the peer's address; anything else that
//!    isn't an address of a TCP connection is refused, like every version and command that isn't known.
//!
//! Sections are those of the specification ("The PROXY protocol", versions 1 and 2). The parser is our own: a library
//! parses a buffer, and the whole difficulty is not to read too much into one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Section 2.2: what version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Section 2.1, its line end included.
const MAX_LINE: usize = 107;

/// Far more than addresses and the extensions that exist.
const MAX_REST: usize = 4096;

/// Why a connection isn't served.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("no PROXY header: {0}")]
    Read(#[from] io::Error),
    #[error("malformed PROXY header")]
    Malformed,
}

/// Reads a header: the source's address, or `None` where the header leaves the peer's.
///
/// # Errors
/// When it doesn't come whole, or isn't one.
pub async fn read<I: AsyncRead + Unpin>(stream: &mut I) -> Result<Option<SocketAddr>, ProxyError> {
    let mut first = [0; SIGNATURE.len()];
    stream.read_exact(&mut first).await?;
    if first == *SIGNATURE {
        let mut fixed = [0; 4];
        stream.read_exact(&mut fixed).await?;
        let [command, family, high, low] = fixed;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > MAX_REST {
            return Err(ProxyError::Malformed);
        }
        let mut rest = vec![0; length];
        stream.read_exact(&mut rest).await?;
        return binary(command, family, &rest).ok_or(ProxyError::Malformed);
    }
    if !first.starts_with(b"PROXY ") {
        return Err(ProxyError::Malformed);
    }
    let mut line = first.to_vec();
    // One at a time: only the line's end says how long it is, and what follows isn't ours to take.
    while !line.ends_with(b"\r\n") {
        if line.len() == MAX_LINE {
            return Err(ProxyError::Malformed);
        }
        line.push(stream.read_u8().await?);
    }
    text(&line).ok_or(ProxyError::Malformed)
}

/// Section 2.1.
fn text(line: &[u8]) -> Option<Option<SocketAddr>> {
    let line = std::str::from_utf8(line).ok()?;
    let said = line.strip_prefix("PROXY ")?.strip_suffix("\r\n")?;
    if said.contains(['\r', '\n']) {
        return None;
    }
    if said == "UNKNOWN" || said.starts_with("UNKNOWN ") {
        return Some(None);
    }
    let mut parts = said.split(' ');
    let family = parts.next()?;
    let address = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => Some(text.parse::<Ipv4Addr>().ok()?.into()),
            "TCP6" => Some(text.parse::<Ipv6Addr>().ok()?.into()),
            _ => None,
        }
    };
    let (source, _destination) = (address(parts.next()?)?, address(parts.next()?)?);
    let (port, _) = (port(parts.next()?)?, port(parts.next()?)?);
    parts.next().is_none().then_some(Some(SocketAddr::new(source, port)))
}

/// Section 2.1: decimal, without zeros in front.
fn port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok())?
}

/// Section 2.2; what follows the addresses (type-length-values) says nothing that is needed.
fn binary(command: u8, family: u8, rest: &[u8]) -> Option<Option<SocketAddr>> {
    match (command, family) {
        // The proxy's own connection, such as a health check.
        (0x20, _) | (0x21, 0x00) => Some(None),
        (0x21, 0x11) => {
            let (addresses, _) = rest.split_first_chunk::<12>()?;
            let [a, b, c, d, _, _, _, _, high, low, _, _] = *addresses;
            Some(Some(SocketAddr::new(
                Ipv4Addr::new(a, b, c, d).into(),
                u16::from_be_bytes([high, low]),
            )))
        }
        (0x21, 0x21) => {
            let (addresses, _) = rest.split_first_chunk::<36>()?;
            let source: [u8; 16] = addresses[..16].try_into().expect("16 of 36 bytes");
            let port = u16::from_be_bytes([addresses[32], addresses[33]]);
            Some(Some(SocketAddr::new(source.into(), port)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the header says, and how much of what was sent is left unread.
    fn parse(bytes: &[u8]) -> Result<(Option<SocketAddr>, usize), ProxyError> {
        let mut stream = bytes;
        let reading = read(&mut stream);
        let said = futures_util::FutureExt::now_or_never(reading).expect("a slice never waits")?;
        Ok((said, stream.len()))
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("a short header").to_be_bytes();
        [SIGNATURE, &[command, family][..], &length, rest].concat()
    }

    #[test]
    fn headers_say_these() {
        let v4 = v2(0x21, 0x11, &[192, 0, 2, 1, 10, 0, 0, 1, 0x12, 0x34, 0x01, 0xbb]);
        let extended = v2(
            0x21,
            0x11,
            &[192, 0, 2, 1, 10, 0, 0, 1, 0x12, 0x34, 0x01, 0xbb, 4, 0, 1, 0],
        );
        let mut six = [0; 36];
        six[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        six[15] = 1;
        six[33] = 7;
        let v6 = v2(0x21, 0x21, &six);
        for (bytes, expected) in [
            (
                &b"PROXY TCP4 192.0.2.1 10.0.0.1 4660 443\r\n"[..],
                Some("192.0.2.1:4660"),
            ),
            (b"PROXY TCP6 2001:db8::1 ::1 7 443\r\n", Some("[2001:db8::1]:7")),
            (b"PROXY UNKNOWN\r\n", None),
            (b"PROXY UNKNOWN whatever else 1 2\r\n", None),
            (&v4, Some("192.0.2.1:4660")),
            (&extended, Some("192.0.2.1:4660")),
            (&v6, Some("[2001:db8::1]:7")),
            (&v2(0x20, 0x00, &[]), None),
            (&v2(0x20, 0x11, &[1; 12]), None),
            (&v2(0x21, 0x00, &[9; 4096]), None),
        ] {
            let sent = [bytes, b"GET"].concat();
            let expected = expected.map(|text| text.parse().expect("an address"));
            assert_eq!(parse(&sent).expect("a header"), (expected, 3), "{bytes:?}");
            for length in 0..bytes.len() {
                assert!(parse(&bytes[..length]).is_err(), "{length} of {bytes:?}");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
        assert_eq!(long.len(), MAX_LINE + 1);
        assert!(parse(long.replacen('x', "", 1).as_bytes()).is_ok(), "107 bytes");
        let unended = [b'P', b'R', b'O', b'X', b'Y', b' ']
            .iter()
            .chain(&[b'x'; 200])
            .copied()
            .collect();
        for bytes in [
            long.into_bytes(),
            unended,
            b"GET / HTTP/1.1\r\nhost: h\r\n\r\n".to_vec(),
            b"proxy TCP4 192.0.2.1 10.0.0.1 1 2\r\n".to_vec(),
            b"PROXY TCP5 192.0.2.1 10.0.0.1 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1 1 2\n\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1 1 2 \r\n".to_vec(),
            b"PROXY TCP4  192.0.2.1 10.0.0.1 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1 1\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1 1 65536\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1 +1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1 01 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.01 10.0.0.1 1 2\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec(),
            b"PROXY TCP6 192.0.2.1 10.0.0.1 1 2\r\n".to_vec(),
            b"PROXY UNKNOWNS\r\n".to_vec(),
            v2(0x11, 0x11, &[1; 12]),
            v2(0x31, 0x11, &[1; 12]),
            v2(0x22, 0x11, &[1; 12]),
            v2(0x21, 0x11, &[1; 11]),
            v2(0x21, 0x21, &[1; 35]),
            v2(0x21, 0x12, &[1; 12]),
            v2(0x21, 0x31, &[1; 216]),
            v2(0x20, 0x00, &[1; 4097]),
        ] {
            assert!(
                matches!(parse(&bytes), Err(ProxyError::Malformed)),
                "{}",
                String::from_utf8_lossy(&bytes)
            );
        }
    }

    proptest! {
        #[test]
        fn any_source_comes_through(source: SocketAddr, to: [u8; 16], rest in proptest::collection::vec(any::<u8>(), 0..64)) {
            let port = source.port();
            let (line, binary) = match source.ip() {
                IpAddr::V4(ip) => (
                    format!("PROXY TCP4 {ip} 10.0.0.1 {port} 443\r\n"),
                    v2(0x21, 0x11, &[&ip.octets()[..], &to[..4], &port.to_be_bytes(), &to[..2], &rest].concat()),
                ),
                IpAddr::V6(ip) => (
                    format!("PROXY TCP6 {ip} ::1 {port} 443\r\n"),
                    v2(0x21, 0x21, &[&ip.octets()[..], &to, &port.to_be_bytes(), &to[..2], &rest].concat()),
                ),
            };
            let expected = Some(SocketAddr::new(source.ip(), port));
            for header in [line.as_bytes(), &binary] {
                let sent = [header, &rest].concat();
                prop_assert_eq!(parse(&sent).expect("a header"), (expected, rest.len()));
            }
        }

        #[test]
        fn any_bytes_end_in_an_answer(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), like in 0..3) {
            let start: &[u8] = match like { 0 => b"PROXY TCP4 ", 1 => SIGNATURE, _ => b"" };
            bytes.splice(..0, start.iter().copied());
            let before = bytes.len();
            if let Ok((_, left)) = parse(&bytes) {
                prop_assert!(left < before && before - left <= 16 + MAX_REST);
            }
        }
    }
}
