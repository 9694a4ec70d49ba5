//! The scanner of passing replies. Input: how many bytes come at once (one byte), then the reply.
//!
//! Oracle: any split gives the same observation; and where a full parse sees a list or a tool's error, the scanner does too
//! (a list it missed would pass unfiltered).
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::mcp::{MessageOutcome, Observation, Scanner};
use serde_json::Value;

fn see(reply: &[u8], chunk: usize) -> Observation {
    let mut scanner = Scanner::default();
    reply.chunks(chunk).for_each(|part| scanner.push(part));
    scanner.finish()
}

fuzz_target!(|input: &[u8]| {
    let Some((&chunk, reply)) = input.split_first() else {
        return;
    };
    let seen = see(reply, reply.len().max(1));
    for chunk in [1, usize::from(chunk).max(1)] {
        assert_eq!(see(reply, chunk), seen, "in chunks of {chunk}");
    }
    let messages = match serde_json::from_slice(reply) {
        Ok(Value::Array(messages)) => messages,
        Ok(message) => vec![message],
        Err(_) => return,
    };
    for result in messages.iter().filter_map(|message| message.get("result")) {
        let lists = ["tools", "resources", "resourceTemplates", "prompts"];
        if lists.iter().any(|list| result.get(list).is_some()) {
            assert!(seen.holds_list);
        }
        if result.get("isError") == Some(&Value::Bool(true)) {
            assert!(matches!(
                seen.outcome,
                MessageOutcome::ToolError | MessageOutcome::ProtocolError(_)
            ));
        }
    }
});
