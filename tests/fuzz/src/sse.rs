//! The event stream codec. Input: how many bytes come at once (one byte), then the stream.
//!
//! Oracle: the events' own bytes, joined, are the stream; any split gives the same names and data; an event given other data
//! has that data and nothing of the old, also to a client that meets it first.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use portcullis::mcp::sse::{Decoder, Event, message};

const LIMIT: usize = 1 << 20;

fn decode(stream: &[u8], chunk: usize) -> Vec<Event> {
    let mut decoder = Decoder::new(LIMIT);
    let mut events = Vec::new();
    for part in stream.chunks(chunk) {
        decoder.push(Bytes::copy_from_slice(part));
        while let Some(event) = decoder.next_event().expect("inputs are short") {
            events.push(event);
        }
    }
    let mut joined: Vec<u8> = events.iter().flat_map(|event| event.clone().into_raw()).collect();
    joined.extend_from_slice(&decoder.rest());
    assert_eq!(joined, stream);
    events
}

/// What a client acts on.
fn read(events: &[Event]) -> Vec<(Option<&[u8]>, &[u8])> {
    let read = |event: &'_ Event| event.data().is_some();
    let told = events.iter().filter(|event| read(event));
    told.map(|event| (event.name(), event.data().map(|data| &data[..]).unwrap_or_default()))
        .collect()
}

fuzz_target!(|input: &[u8]| {
    let Some((&chunk, stream)) = input.split_first() else {
        return;
    };
    let events = decode(stream, stream.len().max(1));
    for chunk in [1, usize::from(chunk).max(1)] {
        assert_eq!(read(&decode(stream, chunk)), read(&events), "in chunks of {chunk}");
    }
    // Every line end becomes a line feed.
    let data: Vec<u8> = stream
        .iter()
        .map(|byte| if *byte == b'\r' { b'\n' } else { *byte })
        .collect();
    for event in events.iter().take(8).filter(|event| event.data().is_some()) {
        let first = decode(&event.with_data(stream), LIMIT);
        assert_eq!(read(&first), [(event.name(), &data[..])]);
    }
    assert_eq!(read(&decode(&message(stream), LIMIT)), [(None, &data[..])]);
});
