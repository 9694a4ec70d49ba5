//! Event streams (WHATWG HTML, "Server-sent events"): found in bytes, without changing a byte that need not change.
//!
//! The decoder yields whole events with their exact bytes: joined, they are the stream. Comments and blank lines
//! between events come as events without data, so that nothing is lost and keepalives flow at once.

use bytes::{Buf, Bytes, BytesMut};

/// The byte order mark, which a client takes off the stream's beginning, once.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// An event is over the decoder's bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is over {0} bytes")]
pub struct TooLong(pub usize);

/// One event, or what stands between two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    raw: Bytes,
    /// Where its lines begin: after the byte order mark, if it is the first and has one.
    text: usize,
    data: Option<Bytes>,
    name: Option<Bytes>,
}

impl Event {
    /// The data lines joined by line feeds; `None` when there was no data line.
    pub fn data(&self) -> Option<&Bytes> {
        self.data.as_ref()
    }

    /// The `event` field; `None` stands for `message`.
    pub fn name(&self) -> Option<&[u8]> {
        self.name.as_deref()
    }

    /// The last value of a field that neither [`data`](Self::data) nor [`name`](Self::name) tells: `id` or `retry`.
    pub fn last(&self, name: &[u8]) -> Option<&[u8]> {
        let lines = lines(&self.raw[self.text..]).map(field);
        lines.filter(|(found, _)| *found == name).map(|(_, value)| value).last()
    }

    /// The exact bytes, the blank line included.
    pub fn into_raw(self) -> Bytes {
        self.raw
    }

    /// The same event with other data: `id`, `retry`, `event` and comments stay, a byte order mark does not, nor any line
    /// that begins with one. Were it kept, what follows it would still be the client's first `data`, with what was taken out.
    pub fn with_data(&self, data: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(self.raw.len() + data.len());
        let stays = |line: &&[u8]| !line.is_empty() && field(line).0 != b"data" && !line.starts_with(MARK);
        for line in lines(&self.raw[self.text..]).filter(stays) {
            out.extend_from_slice(line);
            out.extend_from_slice(b"\n");
        }
        put_data(&mut out, data);
        out.freeze()
    }
}

/// A `message` event of the gateway's own.
pub fn message(data: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(data.len() + 32);
    out.extend_from_slice(b"event: message\n");
    put_data(&mut out, data);
    out.freeze()
}

fn put_data(out: &mut BytesMut, data: &[u8]) {
    // A carriage return ends a line as well: JSON allows it as white space, where a line feed means the same.
    for line in data.split(|byte| matches!(byte, b'\n' | b'\r')) {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.extend_from_slice(b"\n");
    }
    out.extend_from_slice(b"\n");
}

/// Finds events in chunks as they come.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    /// Where the line begins that is not yet whole.
    line: usize,
    /// How much of the buffer is known to hold no end of that line: a line of megabytes comes in thousands of chunks, and
    /// searching it from its start at each would be quadratic.
    searched: usize,
    limit: usize,
    begun: bool,
}

impl Decoder {
    /// A decoder for events of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            line: 0,
            searched: 0,
            limit,
            begun: false,
        }
    }

    /// Takes the stream's next bytes.
    pub fn push(&mut self, chunk: Bytes) {
        if self.buffer.is_empty() {
            // The usual chunk holds whole events and nobody else has it: then nothing is copied.
            self.buffer = chunk
                .try_into_mut()
                .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
            self.restart();
        } else {
            self.buffer.extend_from_slice(&chunk);
        }
    }

    /// The next whole event, if it is there.
    ///
    /// # Errors
    /// When what is there of it is over the limit already.
    pub fn next_event(&mut self) -> Result<Option<Event>, TooLong> {
        match self.end() {
            Some(end) if end <= self.limit => {
                let raw = self.buffer.split_to(end).freeze();
                self.restart();
                let event = event(raw, !self.begun);
                self.begun = true;
                Ok(Some(event))
            }
            None if self.buffer.len() <= self.limit => Ok(None),
            _ => Err(TooLong(self.limit)),
        }
    }

    /// What came after the last whole event: nothing, if the stream ended well.
    pub fn rest(&mut self) -> Bytes {
        self.restart();
        self.buffer.split().freeze()
    }

    fn restart(&mut self) {
        self.line = 0;
        self.searched = 0;
    }

    /// Where the first event (or a run of blank or comment lines closed by a blank one) ends.
    fn end(&mut self) -> Option<usize> {
        let mut at = self.line;
        loop {
            self.line = at;
            let from = at.max(self.searched);
            let Some(found) = memchr::memchr2(b'\n', b'\r', &self.buffer[from..]) else {
                self.searched = self.buffer.len();
                return None;
            };
            at = from + found;
            let blank = at == self.line;
            at += if self.buffer[at] == b'\n' {
                1
            } else {
                match self.buffer.get(at + 1) {
                    Some(b'\n') => 2,
                    Some(_) => 1,
                    // A lone CR ends a line too, but its LF may still be on its way; a blank line is whole either way,
                    // and the LF would then begin the next one as an empty line of its own.
                    None if blank => 1,
                    None => {
                        self.searched = at;
                        return None;
                    }
                }
            };
            if blank {
                return Some(at);
            }
        }
    }
}

fn event(raw: Bytes, first: bool) -> Event {
    let mut data: Option<Bytes> = None;
    let mut joined: Option<BytesMut> = None;
    let mut name = None;
    let text = if first && raw.starts_with(MARK) { MARK.len() } else { 0 };
    for line in lines(&raw[text..]) {
        match field(line) {
            (b"data", value) => match (&mut joined, &data) {
                (Some(joined), _) => {
                    joined.extend_from_slice(b"\n");
                    joined.extend_from_slice(value);
                }
                (None, Some(before)) => {
                    let mut both = BytesMut::from(&before[..]);
                    both.extend_from_slice(b"\n");
                    both.extend_from_slice(value);
                    joined = Some(both);
                }
                (None, None) => data = Some(raw.slice_ref(value)),
            },
            (b"event", value) => name = Some(raw.slice_ref(value)),
            _ => {}
        }
    }
    Event {
        data: joined.map(BytesMut::freeze).or(data),
        name: name.filter(|name| !name.is_empty() && &**name != b"message"),
        text,
        raw,
    }
}

/// A line's field name and value; a comment's name is empty.
fn field(line: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b':', line) {
        None => (line, &line[line.len()..]),
        Some(colon) => {
            let mut value = &line[colon + 1..];
            if value.first() == Some(&b' ') {
                value.advance(1);
            }
            (&line[..colon], value)
        }
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
        let line = &rest[..end];
        rest = match &rest[end..] {
            [b'\r', b'\n', after @ ..] | [_, after @ ..] => after,
            [] => &[],
        };
        Some(line)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(stream: &[u8], chunk: usize) -> (Vec<Event>, Bytes) {
        let mut decoder = Decoder::new(1 << 20);
        let mut events = Vec::new();
        for part in stream.chunks(chunk.max(1)) {
            decoder.push(Bytes::copy_from_slice(part));
            while let Some(event) = decoder.next_event().expect("short events") {
                events.push(event);
            }
        }
        (events, decoder.rest())
    }

    #[test]
    fn fields_are_read_as_the_standard_says() {
        let stream = b"\xef\xbb\xbfid: 1\nevent: endpoint\ndata:/messages\n\n: note\n\ndata: a\r\ndata:  b\r\n\r\ndata\n\nevent: message\ndata: c\n\n";
        let (events, rest) = decode(stream, 1000);
        let read: Vec<_> = events
            .iter()
            .map(|event| (event.name(), event.data().map(|data| &data[..])))
            .collect();
        assert_eq!(
            read,
            [
                (Some(&b"endpoint"[..]), Some(&b"/messages"[..])),
                (None, None),
                (None, Some(&b"a\n b"[..])),
                (None, Some(&b""[..])),
                (None, Some(&b"c"[..])),
            ]
        );
        assert!(rest.is_empty());
    }

    #[test]
    fn other_data_keeps_id_and_retry() {
        let (events, _) = decode(b"id: 9\nretry: 5\ndata: old\ndata: more\n\n", 1000);
        assert_eq!(events[0].with_data(b"new"), "id: 9\nretry: 5\ndata: new\n\n");
    }

    #[test]
    fn other_data_leaves_none_of_the_old_behind_a_byte_order_mark() {
        let (events, _) = decode(b"\xef\xbb\xbfdata: secret\nid: 1\n\n", 1000);
        assert_eq!(events[0].data().map(|data| &data[..]), Some(&b"secret"[..]));
        assert_eq!(events[0].with_data(b"new"), "id: 1\ndata: new\n\n");
    }

    #[test]
    fn other_data_leaves_none_of_the_old_behind_a_second_byte_order_mark() {
        let (events, _) = decode(b"\xef\xbb\xbf\xef\xbb\xbfdata: secret\nid: 1\ndata: old\n\n", 1000);
        assert_eq!(events[0].with_data(b"new"), "id: 1\ndata: new\n\n");
    }

    #[test]
    fn data_with_any_line_end_stays_one_event() {
        for data in [&b"{\"a\":\r1}"[..], b"{\"a\":\r\n1}", b"{\"a\":\n1}"] {
            let (events, rest) = decode(&message(data), 1000);
            assert_eq!((events.len(), rest.len()), (1, 0));
            let read: serde_json::Value = serde_json::from_slice(events[0].data().expect("data")).expect("still whole");
            assert_eq!(read, serde_json::json!({"a": 1}));
        }
    }

    #[test]
    fn a_long_line_in_many_chunks_is_searched_once() {
        let mut decoder = Decoder::new(1 << 20);
        decoder.push(Bytes::from_static(b"data: "));
        for _ in 0..100 {
            decoder.push(Bytes::from_static(b"0123456789"));
            assert_eq!(decoder.next_event(), Ok(None));
            assert_eq!(decoder.searched, decoder.buffer.len());
        }
        decoder.push(Bytes::from_static(b"\r"));
        assert_eq!(decoder.next_event(), Ok(None));
        decoder.push(Bytes::from_static(b"\n\r\n"));
        let event = decoder.next_event().expect("short").expect("whole");
        assert_eq!(event.data().map(Bytes::len), Some(1000));
    }

    #[test]
    fn an_endless_event_is_given_up() {
        let mut decoder = Decoder::new(16);
        decoder.push(Bytes::from_static(b"data: 0123456789abcdef"));
        assert_eq!(decoder.next_event(), Err(TooLong(16)));
    }

    proptest! {
        #[test]
        fn the_bytes_of_the_events_are_the_stream(stream in "([a-z:]{0,6}[ \r\n]{0,3}){0,20}", chunk in 1_usize..20) {
            let (events, rest) = decode(stream.as_bytes(), chunk);
            let mut joined: Vec<u8> = events.iter().flat_map(|event| event.raw.to_vec()).collect();
            joined.extend_from_slice(&rest);
            prop_assert_eq!(joined, stream.as_bytes());
        }

        #[test]
        fn every_chunking_gives_the_same_data(lines in prop::collection::vec("(data: [a-z]{0,5}|id: 1|: x|)", 0..20), chunk in 1_usize..20, crlf in any::<bool>()) {
            let stream = lines.join(if crlf { "\r\n" } else { "\n" });
            let data = |events: Vec<Event>| events.into_iter().filter_map(|event| event.data().cloned()).collect::<Vec<_>>();
            prop_assert_eq!(data(decode(stream.as_bytes(), chunk).0), data(decode(stream.as_bytes(), 10_000).0));
        }
    }
}
