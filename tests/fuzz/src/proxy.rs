//! PROXY headers. Input: the first bytes of a connection.
//!
//! Oracle: the same answer whatever follows, with all of that left unread; no more read than the two versions' bounds; and a
//! source that is named is one that the bytes spell.
#![no_main]

use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use portcullis::listener::proxy;

/// What is said, and how many bytes were read for it.
fn read(runtime: &tokio::runtime::Runtime, mut bytes: &[u8]) -> Option<(Option<SocketAddr>, usize)> {
    let length = bytes.len();
    let said = runtime.block_on(proxy::read(&mut bytes)).ok()?;
    Some((said, length - bytes.len()))
}

fuzz_target!(|input: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let Some((said, taken)) = read(&runtime, input) else {
        return;
    };
    let header = &input[..taken];
    let text = header.starts_with(b"PROXY ");
    assert!(taken <= if text { 107 } else { 16 + 4096 });
    assert_eq!(read(&runtime, header), Some((said, taken)));
    assert_eq!(
        read(&runtime, &[header, b"\r\nGET / HTTP/1.1\r\n"].concat()),
        Some((said, taken))
    );
    assert_eq!(read(&runtime, &header[..taken - 1]), None);
    let Some(said) = said else {
        return;
    };
    if text {
        let words: Vec<&str> = std::str::from_utf8(header)
            .expect("ASCII")
            .trim_end()
            .split(' ')
            .collect();
        assert_eq!(words.len(), 6);
        assert_eq!(words[2].parse(), Ok(said.ip()));
        assert_eq!(words[4], said.port().to_string());
    } else {
        let octets = match said {
            SocketAddr::V4(v4) => v4.ip().octets().to_vec(),
            SocketAddr::V6(v6) => v6.ip().octets().to_vec(),
        };
        assert!(header[16..].starts_with(&octets));
    }
});
