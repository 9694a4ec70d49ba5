//! Watches an event stream pass by, without holding any of it.
//!
//! The bytes are the client's already; the tap only learns where events end (so that a comment can be put between two)
//! and what the JSON-RPC message in each was.

use crate::mcp::{Observation, Scanner};

/// Follows the bytes of an event stream (WHATWG HTML, "Server-sent events").
#[derive(Debug)]
pub struct Tap {
    line: Line,
    after_cr: bool,
    /// Whether this event had a line, and whether one of them was data.
    open: bool,
    data: bool,
    scanner: Scanner,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// So many bytes of `data:` have matched.
    Name(usize),
    /// After `data:`, where one space is not part of the value.
    Space,
    Data,
    Other,
}

const DATA: &[u8] = b"data:";

impl Default for Tap {
    fn default() -> Self {
        Self {
            line: Line::Name(0),
            after_cr: false,
            open: false,
            data: false,
            scanner: Scanner::default(),
        }
    }
}

impl Tap {
    /// Whether a comment could be written here without breaking an event in two.
    pub fn at_boundary(&self) -> bool {
        self.line == Line::Name(0) && !self.open
    }

    /// Follows a chunk; `seen` hears of every message that ended in it.
    pub fn follow(&mut self, mut chunk: &[u8], mut seen: impl FnMut(Observation)) {
        if self.after_cr && chunk.first() == Some(&b'\n') {
            chunk = &chunk[1..];
        }
        if !chunk.is_empty() {
            self.after_cr = false;
        }
        while !chunk.is_empty() {
            let end = memchr::memchr2(b'\n', b'\r', chunk);
            let (line, rest) = chunk.split_at(end.unwrap_or(chunk.len()));
            self.part(line);
            let Some(_) = end else { return };
            self.end_of_line(&mut seen);
            chunk = match rest {
                [b'\r', b'\n', after @ ..] => after,
                [b'\r'] => {
                    self.after_cr = true;
                    &[]
                }
                [_, after @ ..] => after,
                [] => &[],
            };
        }
    }

    fn part(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.line {
                Line::Name(matched) => {
                    let same = bytes
                        .iter()
                        .zip(&DATA[matched..])
                        .take_while(|(byte, expected)| byte == expected)
                        .count();
                    bytes = &bytes[same..];
                    self.line = if matched + same == DATA.len() {
                        if self.data {
                            self.scanner.push(b"\n");
                        }
                        self.data = true;
                        Line::Space
                    } else if bytes.is_empty() {
                        Line::Name(matched + same)
                    } else {
                        Line::Other
                    };
                }
                Line::Space => {
                    if bytes[0] == b' ' {
                        bytes = &bytes[1..];
                    }
                    self.line = Line::Data;
                }
                Line::Data => {
                    self.scanner.push(bytes);
                    return;
                }
                Line::Other => return,
            }
        }
    }

    fn end_of_line(&mut self, seen: &mut impl FnMut(Observation)) {
        let blank = self.line == Line::Name(0);
        self.line = Line::Name(0);
        self.open = !blank;
        if blank && self.data {
            self.data = false;
            seen(std::mem::take(&mut self.scanner).finish());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::MessageOutcome;

    fn outcomes(stream: &str, chunk: usize) -> (Vec<MessageOutcome>, bool) {
        let mut tap = Tap::default();
        let mut outcomes = Vec::new();
        for part in stream.as_bytes().chunks(chunk) {
            tap.follow(part, |seen| outcomes.push(seen.outcome));
        }
        (outcomes, tap.at_boundary())
    }

    #[test]
    fn every_chunking_sees_the_same_messages() {
        let stream = "id: 1\r\nevent: message\r\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\r\ndata: \"result\":{}}\r\n\r\n: hello\n\n\
                      data:{\"jsonrpc\":\"2.0\",\"id\":2,\"error\":{\"code\":-32602,\"message\":\"\"}}\n\ndatax: no\n\n";
        for chunk in 1..stream.len() {
            let (seen, boundary) = outcomes(stream, chunk);
            assert_eq!(
                seen,
                [MessageOutcome::Success, MessageOutcome::ProtocolError(-32602)],
                "in chunks of {chunk}"
            );
            assert!(boundary);
        }
    }

    #[test]
    fn the_middle_of_an_event_is_no_boundary() {
        assert!(!outcomes("data: {}\n", 64).1);
        assert!(!outcomes("event: x\n", 64).1);
        assert!(!outcomes("dat", 64).1);
        assert!(outcomes("data: {}\n\n", 64).1);
    }
}
