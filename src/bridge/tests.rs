//! A peer against servers whose every answer is written here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Bridge;
use super::map::LogLevel;
use super::message::RpcError;
use super::peer::{Event, Lost, Peer, ServerEra};
use super::testing::{Came, INITIALIZED, Process, Server, ask, funds, next, script};
use super::wishes::SETTLING;
use crate::edge::Rejection;
use crate::upstream::Upstream;

fn said(came: &Came) -> Value {
    serde_json::from_str(&came.body).expect("a message")
}

fn answer(event: Result<Event, Lost>) -> Result<Bytes, RpcError> {
    match event {
        Ok(Event::Answer(answer)) => answer,
        other => panic!("no answer: {other:?}"),
    }
}

#[tokio::test]
async fn a_session_is_opened_and_everything_after_belongs_to_it() {
    let mut server = Server::start().await;
    let params = Bytes::from_static(br#"{"protocolVersion":"2025-11-25","capabilities":{}}"#);
    let opening = server.opening();
    let opening = tokio::spawn(async move { opening.opener().initialize(&params).await });
    let came = server.came().await;
    assert_eq!(said(&came)["method"], "initialize");
    assert_eq!(said(&came)["params"]["protocolVersion"], "2025-11-25");
    assert_eq!(came.header("mcp-session-id"), None);
    assert_eq!(came.header("accept"), Some("application/json, text/event-stream"));
    assert_eq!(came.header("x-api-key"), Some("the-gates"));
    came.result(Some("s-1"), INITIALIZED);
    let came = server.came().await;
    assert_eq!(said(&came)["method"], "notifications/initialized");
    assert_eq!(came.header("mcp-session-id"), Some("s-1"));
    assert_eq!(came.header("mcp-protocol-version"), Some("2025-11-25"));
    came.status(202);
    let peer = opening.await.expect("no panic").expect("a session").peer;
    assert_eq!(&*peer.facts().version, "2025-11-25");
    peer.close().await;
}

#[tokio::test]
async fn ending_a_session_tells_the_server() {
    let mut server = Server::start().await;
    let peer = server.session().await;
    let closing = tokio::spawn(async move { peer.close().await });
    let came = server.came().await;
    assert_eq!(came.method, Method::DELETE);
    assert_eq!(came.header("mcp-session-id"), Some("s-1"));
    came.status(204);
    closing.await.expect("no panic");
}

#[tokio::test]
async fn r09_progress_comes_with_the_callers_token_before_the_answer() {
    let mut server = Server::start().await;
    let peer = server.session().await;
    let mut exchange = peer.request(ask(
        "tools/call",
        r#"{"name":"a","_meta":{"progressToken":"mine", "x":1}}"#,
    ));
    let came = server.came().await;
    let token = said(&came)["params"]["_meta"]["progressToken"].clone();
    assert!(token.is_u64(), "{token}");
    assert_eq!(said(&came)["params"]["_meta"]["x"], 1);
    let id = came.id();
    let events = came.events();
    // Another call's progress, and some that nobody asked for.
    events.message(
        r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"mine","progress":9}}"#,
    );
    events.message(&format!(
        r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{token},"progress":1}}}}"#
    ));
    let Ok(Event::Notification(told)) = next(&mut exchange).await else {
        panic!("no progress");
    };
    let params: Value = serde_json::from_slice(&told.params).expect("JSON");
    assert_eq!(params, json!({"progressToken": "mine", "progress": 1}));
    events.message(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[]}}}}"#));
    let result = answer(next(&mut exchange).await).expect("a result");
    assert_eq!(&result[..], br#"{"content":[]}"#);
}

#[tokio::test]
async fn calls_at_once_get_their_own_answers() {
    let mut server = Server::start().await;
    let peer = server.session().await;
    let mut exchanges = Vec::new();
    for _ in 0..20 {
        exchanges.push(peer.request(ask("tools/list", "{}")));
    }
    let mut came = Vec::new();
    for _ in 0..20 {
        came.push(server.came().await);
    }
    // Answered by another's stream, in any order.
    came.reverse();
    for came in came {
        let id = came.id();
        came.json(
            200,
            format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"mine":{id}}}}}"#),
        );
    }
    let mut ids = Vec::new();
    for mut exchange in exchanges {
        let result = answer(next(&mut exchange).await).expect("a result");
        ids.push(
            serde_json::from_slice::<Value>(&result).expect("JSON")["mine"]
                .as_u64()
                .expect("a number"),
        );
    }
    assert!(
        ids.is_sorted() && ids.windows(2).all(|pair| pair[0] < pair[1]),
        "{ids:?}"
    );
}

#[tokio::test]
async fn a_dropped_exchange_is_cancelled_and_its_stream_closed() {
    let mut server = Server::start().await;
    let peer = server.session().await;
    let exchange = peer.request(ask("tools/call", "{}"));
    let came = server.came().await;
    let id = came.id();
    let events = came.events();
    drop(exchange);
    let came = server.came().await;
    assert_eq!(said(&came)["method"], "notifications/cancelled");
    assert_eq!(said(&came)["params"]["requestId"].to_string(), id);
    came.status(202);
    events.closed().await;
    assert!(peer.idle_since().is_some());
}

#[tokio::test]
async fn an_answered_exchange_is_not_cancelled() {
    let mut server = Server::start().await;
    let peer = server.session().await;
    let mut exchange = peer.request(ask("tools/call", "{}"));
    server.came().await.result(None, "{}");
    answer(next(&mut exchange).await).expect("a result");
    drop(exchange);
    let _next = peer.request(ask("tools/list", "{}"));
    assert_eq!(said(&server.came().await)["method"], "tools/list");
}

#[tokio::test]
async fn a_question_in_a_call_is_the_calls_and_its_answer_goes_back() {
    let mut server = Server::start().await;
    let peer = server.session().await;
    let mut exchange = peer.request(ask("tools/call", "{}"));
    let came = server.came().await;
    let id = came.id();
    let events = came.events();
    events.message(r#"{"jsonrpc":"2.0","id":"ping-1","method":"ping"}"#);
    let pong = server.came().await;
    assert_eq!(said(&pong), json!({"jsonrpc": "2.0", "id": "ping-1", "result": {}}));
    pong.status(202);
    events.message(r#"{"jsonrpc":"2.0","id":7,"method":"elicitation/create","params":{"message":"?"}}"#);
    let Ok(Event::Request(asked)) = next(&mut exchange).await else {
        panic!("no question");
    };
    assert_eq!(
        (&*asked.method, &asked.params[..]),
        ("elicitation/create", &br#"{"message":"?"}"#[..])
    );
    let answering = tokio::spawn(asked.answer(Ok(Bytes::from_static(br#"{"action":"accept"}"#))));
    let came = server.came().await;
    assert_eq!(
        said(&came),
        json!({"jsonrpc": "2.0", "id": 7, "result": {"action": "accept"}})
    );
    assert_eq!(came.header("mcp-session-id"), Some("s-1"));
    came.status(202);
    answering.await.expect("no panic").expect("it was taken");
    events.message(r#"{"jsonrpc":"2.0","id":8,"method":"roots/list"}"#);
    let Ok(Event::Request(forgotten)) = next(&mut exchange).await else {
        panic!("no question");
    };
    drop(forgotten);
    let came = server.came().await;
    assert_eq!(said(&came)["id"], 8);
    assert_eq!(said(&came)["error"]["code"], -32_603);
    came.status(202);
    events.message(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#));
    answer(next(&mut exchange).await).expect("a result");
}

#[tokio::test]
async fn a_question_that_nobody_takes_is_refused() {
    let mut server = Server::start().await;
    let peer = server.session().await;
    let _listener = peer.listen();
    let came = server.came().await;
    assert_eq!(came.method, Method::GET);
    let standing = came.events();
    standing.message(r#"{"jsonrpc":"2.0","id":1,"method":"roots/list"}"#);
    let came = server.came().await;
    assert_eq!(said(&came)["error"]["code"], -32_601);
    came.status(202);
    let mut questions = peer.questions();
    standing.message(r#"{"jsonrpc":"2.0","id":2,"method":"roots/list"}"#);
    let asked = questions.recv().await.expect("a question");
    assert_eq!(&*asked.method, "roots/list");
}

#[tokio::test]
async fn a_server_that_never_answers_to_a_level_holds_up_one_caller_once() {
    let mut server = Server::start().await;
    let peer = server.session().await;
    let log = || {
        let peer = peer.clone();
        async move { peer.wishes().log_at(LogLevel::Debug, &peer, &funds()).await }
    };
    let waiting = tokio::spawn(log());
    let unanswered = server.came().await;
    assert_eq!(said(&unanswered)["method"], "logging/setLevel");
    tokio::time::pause();
    tokio::time::advance(SETTLING).await;
    waiting.await.expect("no panic");
    tokio::time::resume();
    let came = server.came().await;
    assert_eq!(said(&came)["method"], "notifications/cancelled");
    came.status(202);
    log().await;
    let _next = peer.request(ask("tools/list", "{}"));
    assert_eq!(said(&server.came().await)["method"], "tools/list");
}

#[tokio::test]
async fn a_session_that_the_server_forgot_ends_the_peer() {
    let mut server = Server::start().await;
    let peer = server.session().await;
    let mut waiting = peer.request(ask("tools/call", "{}"));
    let events = server.came().await.events();
    let mut exchange = peer.request(ask("tools/list", "{}"));
    server.came().await.status(404);
    assert!(matches!(next(&mut exchange).await, Err(Lost::Session)));
    assert!(peer.ended().is_cancelled());
    let mut late = peer.request(ask("tools/list", "{}"));
    assert!(matches!(next(&mut late).await, Err(Lost::Session)));
    // What the server has begun to answer, it may still answer.
    let id = 2;
    events.message(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#));
    answer(next(&mut waiting).await).expect("a result");
}

#[tokio::test]
async fn a_refusal_in_json_rpc_is_an_answer_and_any_other_is_not() {
    let mut server = Server::start().await;
    let peer = server.session().await;
    let mut exchange = peer.request(ask("tools/call", "{}"));
    server.came().await.json(
        400,
        r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32602,"message":"no"}}"#,
    );
    assert_eq!(answer(next(&mut exchange).await), Err(RpcError::new(-32_602, "no")));
    for (status, body) in [(500, "oops"), (400, ""), (429, "{}")] {
        let mut exchange = peer.request(ask("tools/call", "{}"));
        server.came().await.json(status, body);
        let lost = next(&mut exchange).await;
        assert!(
            matches!(&lost, Err(Lost::Status(found)) if *found == status),
            "{lost:?}"
        );
    }
    let mut exchange = peer.request(ask("tools/call", "{}"));
    server.came().await.status(401);
    assert!(matches!(
        next(&mut exchange).await,
        Err(Lost::Rejected(Rejection::CredentialRefused))
    ));
    let mut exchange = peer.request(ask("tools/call", "{}"));
    server.came().await.json(200, "hello");
    assert!(matches!(
        next(&mut exchange).await,
        Err(Lost::Rejected(Rejection::UpstreamNonsense(_)))
    ));
}

#[tokio::test]
async fn a_stream_that_ends_before_its_answer_is_gone_on_with() {
    let mut server = Server::start().await;
    let peer = server.session().await;
    let mut exchange = peer.request(ask("tools/call", "{}"));
    let came = server.came().await;
    let id = came.id();
    let events = came.events();
    events.raw("id: 41\nretry: 1\ndata:\n\n");
    drop(events);
    let came = server.came().await;
    assert_eq!(came.method, Method::GET);
    assert_eq!(came.header("last-event-id"), Some("41"));
    let events = came.events();
    events.raw(&format!(
        "id: 42\ndata: {{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{}}}}\n\n"
    ));
    answer(next(&mut exchange).await).expect("a result");
    // Without an id there is nothing to go on from.
    let mut exchange = peer.request(ask("tools/call", "{}"));
    drop(server.came().await.events());
    assert!(matches!(
        next(&mut exchange).await,
        Err(Lost::Rejected(Rejection::Upstream(_)))
    ));
}

#[tokio::test]
async fn listeners_hear_what_belongs_to_no_call() {
    let mut server = Server::start().await;
    let peer = server.session().await;
    let (mut one, mut other) = (peer.listen(), peer.listen());
    let standing = server.came().await.events();
    standing.message(r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#);
    for listener in [&mut one, &mut other] {
        let told = listener.next().await.expect("a notification");
        assert_eq!(
            (&*told.method, &told.params[..]),
            ("notifications/tools/list_changed", &b"{}"[..])
        );
    }
    assert!(peer.idle_since().is_none());
    drop((one, other));
    assert!(peer.idle_since().is_some());
}

/// The stream of an HTTP+SSE server, and a peer over it.
async fn over_sse(server: &mut Server) -> (super::testing::Events, std::sync::Arc<Peer>) {
    let opening = server.opening();
    let opening = tokio::spawn(async move {
        let opened = opening.opener().initialize(&Bytes::from_static(b"{}")).await;
        (opened, opening.nature.sse().get(), opening.nature.streamable().get())
    });
    server.came().await.status(405);
    let came = server.came().await;
    assert_eq!(came.method, Method::GET);
    let stream = came.events();
    stream.raw(": hello\n\nevent: endpoint\ndata: /messages?session=7\n\n");
    let came = server.came().await;
    assert_eq!(came.target, "/messages?session=7");
    let id = came.id();
    came.status(202);
    stream.message(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{INITIALIZED}}}"#));
    server.came().await.status(202);
    let (opened, sse, streamable) = opening.await.expect("no panic");
    assert_eq!((sse, streamable), (Some(true), Some(false)));
    (stream, opened.expect("a session").peer)
}

#[tokio::test]
async fn a_server_that_refuses_posts_is_met_over_its_stream() {
    let mut server = Server::start().await;
    let (stream, peer) = over_sse(&mut server).await;
    assert_eq!(peer.era(), ServerEra::Legacy);
    let mut one = peer.request(ask("tools/call", r#"{"_meta":{"progressToken":1}}"#));
    let first = server.came().await;
    let mut other = peer.request(ask("tools/call", "{}"));
    let second = server.came().await;
    let (first_id, second_id) = (first.id(), second.id());
    first.status(202);
    second.status(202);
    // The latest call that can be asked is asked.
    stream.message(r#"{"jsonrpc":"2.0","id":1,"method":"sampling/createMessage"}"#);
    assert!(matches!(next(&mut other).await, Ok(Event::Request(_))));
    server.came().await.status(202);
    stream.message(&format!(
        r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{first_id},"progress":1}}}}"#
    ));
    assert!(matches!(next(&mut one).await, Ok(Event::Notification(_))));
    stream.message(&format!(
        r#"[{{"jsonrpc":"2.0","id":{second_id},"result":{{}}}},{{"jsonrpc":"2.0","id":{first_id},"result":{{}}}}]"#
    ));
    answer(next(&mut one).await).expect("a result");
    answer(next(&mut other).await).expect("a result");
    // The stream's end is everybody's end.
    let mut last = peer.request(ask("tools/call", "{}"));
    server.came().await.status(202);
    drop(stream);
    assert!(matches!(
        next(&mut last).await,
        Err(Lost::Rejected(Rejection::Upstream(_)))
    ));
    assert!(peer.ended().is_cancelled());
}

#[tokio::test]
async fn a_server_that_opens_its_stream_whatever_the_method_is_one_of_2024() {
    let mut server = Server::start().await;
    let opening = server.opening();
    let probing = tokio::spawn(async move {
        let modern = opening.opener().is_modern().await;
        let opened = opening.opener().initialize(&Bytes::from_static(b"{}")).await;
        (modern, opened, opening.nature.sse().get())
    });
    let mut streams = Vec::new();
    // Asked what it is, asked to begin a session, and asked for its stream.
    for method in [Method::POST, Method::POST, Method::GET] {
        let came = server.came().await;
        assert_eq!(came.method, method);
        let stream = came.events();
        stream.raw("event: endpoint\ndata: /messages?session=7\n\n");
        streams.push(stream);
    }
    let came = server.came().await;
    assert_eq!(came.target, "/messages?session=7");
    let id = came.id();
    came.status(202);
    let stream = streams.pop().expect("three of them");
    stream.message(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{INITIALIZED}}}"#));
    server.came().await.status(202);
    let (modern, opened, sse) = probing.await.expect("no panic");
    assert!(matches!(modern, Ok(false)), "{modern:?}");
    assert_eq!(sse, Some(true));
    opened.expect("a session");
    // Nobody listens to the others.
    for stream in streams {
        stream.closed().await;
    }
}

#[tokio::test]
async fn a_servers_era_is_concluded_from_what_tells_it() {
    let modern = r#"{"supportedVersions":["2026-07-28"],"capabilities":{}}"#;
    for (status, body, expected) in [
        (
            200,
            format!(r#"{{"jsonrpc":"2.0","id":1,"result":{modern}}}"#),
            Ok(true),
        ),
        (200, r#"{"jsonrpc":"2.0","id":1,"result":{}}"#.to_owned(), Ok(false)),
        (
            200,
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":""}}"#.to_owned(),
            Ok(false),
        ),
        (
            400,
            r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":""}}"#.to_owned(),
            Ok(false),
        ),
        (400, String::new(), Ok(false)),
        (404, String::new(), Ok(false)),
        (405, String::new(), Ok(false)),
        (401, String::new(), Err(())),
        (403, String::new(), Err(())),
        (429, String::new(), Err(())),
        (500, String::new(), Err(())),
        (503, String::new(), Err(())),
        // Modern, but of a revision that isn't known here.
        (
            400,
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32022,"message":"","data":{"supported":["2099-01-01"]}}}"#
                .to_owned(),
            Err(()),
        ),
    ] {
        let mut server = Server::start().await;
        let opening = server.opening();
        let probing = tokio::spawn(async move {
            let found = opening.opener().is_modern().await.map_err(|_| ());
            (found, opening.nature.modern().get())
        });
        let came = server.came().await;
        assert_eq!(came.header("mcp-method"), Some("server/discover"));
        assert_eq!(came.header("mcp-protocol-version"), Some("2026-07-28"));
        came.json(status, body.clone());
        let (found, remembered) = probing.await.expect("no panic");
        assert_eq!(found, expected, "{status} {body}");
        assert_eq!(remembered, expected.ok(), "{status} {body}");
    }
}

/// What a script answers with, to the request in `$line`.
const ANSWER: &str = r#"answer() { id=$(printf %s "$line" | sed 's/.*"id":\([0-9]*\).*/\1/'); printf '{"jsonrpc":"2.0","id":%s,%s}\n' "$id" "$1"; }"#;

#[tokio::test]
async fn a_process_is_asked_what_it_is_once() {
    let legacy = format!(r#"answer '"result":{INITIALIZED}'"#);
    let modern = r#"answer '"result":{"supportedVersions":["2026-07-28"],"capabilities":{}}'"#;
    let unknown = r#"answer '"error":{"code":-32601,"message":"who are you?"}'"#;
    for (discover, initialize, era) in [
        (modern, "exit 1", ServerEra::Modern),
        (unknown, legacy.as_str(), ServerEra::Legacy),
        (r#"answer '"result":{}'"#, legacy.as_str(), ServerEra::Legacy),
        // It dies of what it doesn't know.
        ("exit 1", legacy.as_str(), ServerEra::Legacy),
    ] {
        let script = format!(
            r#"{ANSWER}
            while read -r line; do case $line in
                *server/discover*) {discover} ;;
                *'"initialize"'*) {initialize} ;;
                *'"method":"n/'*) ;;
                *'"id":'*) answer '"result":{{"echo":true}}' ;;
            esac; done"#
        );
        let process = Process::new(&script);
        let opened = process.open().await.expect("a connection");
        assert_eq!(opened.peer.era(), era, "{discover}");
        let mut exchange = opened.peer.request(ask("tools/call", "{}"));
        let result = answer(next(&mut exchange).await).expect("a result");
        assert_eq!(&result[..], br#"{"echo":true}"#);
        assert_eq!(process.opening.nature.modern().get(), Some(era == ServerEra::Modern));
        let again = process.open().await.expect("a connection");
        assert_eq!(again.peer.era(), era);
        opened.peer.close().await;
        again.peer.close().await;
    }
}

#[tokio::test]
async fn a_process_that_takes_no_introduction_is_an_error() {
    let script = format!(
        r#"{ANSWER}
        while read -r line; do case $line in *'"id":'*) answer '"error":{{"code":-32601,"message":"no"}}' ;; esac; done"#
    );
    let process = Process::new(&script);
    let failed = process.open().await.err();
    assert!(matches!(failed, Some(Lost::Refused { .. })), "{failed:?}");
    assert_eq!(process.opening.nature.modern().get(), None, "nothing is concluded");
}

#[tokio::test]
async fn a_line_that_is_no_message_ends_nothing() {
    let script = format!(
        r#"{ANSWER}
        while read -r line; do case $line in
            *server/discover*) answer '"result":{{"supportedVersions":["2026-07-28"],"capabilities":{{}}}}' ;;
            *) printf '{{"level":"info","message":"a log"}}\n'; answer '"result":{{}}' ;;
        esac; done"#
    );
    let process = Process::new(&script);
    let peer = process.open().await.expect("a connection").peer;
    let mut exchange = peer.request(ask("tools/call", "{}"));
    answer(next(&mut exchange).await).expect("a result");
}

#[tokio::test]
async fn what_waits_is_bounded_in_bytes() {
    let mut server = Server::start().await;
    let (stream, peer) = over_sse(&mut server).await;
    let mut exchange = peer.request(ask("tools/call", r#"{"_meta":{"progressToken":1}}"#));
    let came = server.came().await;
    let id = came.id();
    came.status(202);
    // Five of 10 MiB, of which three fit.
    let long = "x".repeat(10 * 1024 * 1024);
    for _ in 0..5 {
        stream.message(&format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{id},"message":"{long}"}}}}"#
        ));
    }
    stream.message(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#));
    // Nothing is taken before the answer is there.
    while peer.idle_since().is_none() {
        tokio::task::yield_now().await;
    }
    let mut told = 0;
    while let Ok(Event::Notification(_)) = next(&mut exchange).await {
        told += 1;
    }
    assert_eq!(told, 3);
}

#[tokio::test]
async fn calls_on_a_process_that_dies_learn_of_it() {
    let script = format!(
        r#"{ANSWER}
        while read -r line; do case $line in
            *server/discover*) answer '"result":{{"supportedVersions":["2026-07-28"],"capabilities":{{}}}}' ;;
            *die*) exit 3 ;;
        esac; done"#
    );
    let process = Process::new(&script);
    let peer = process.open().await.expect("a connection").peer;
    let mut waiting = peer.request(ask("tools/call", "{}"));
    let mut deadly = peer.request(ask("tools/call", r#"{"name":"die"}"#));
    for exchange in [&mut waiting, &mut deadly] {
        let lost = next(exchange).await;
        let Err(Lost::Rejected(Rejection::Upstream(error))) = &lost else {
            panic!("{lost:?}");
        };
        assert!(error.to_string().contains("exit status: 3"), "{error}");
    }
    assert!(peer.ended().is_cancelled());
}

#[tokio::test]
async fn a_stream_that_one_caller_may_not_have_says_nothing_of_the_server() {
    for (status, found) in [
        (403, None),
        (408, None),
        (425, None),
        (429, None),
        (503, None),
        (404, Some(false)),
        (405, Some(false)),
    ] {
        let mut server = Server::start().await;
        let opening = server.opening();
        let asking = tokio::spawn(async move {
            let found = opening.opener().is_sse().await.ok();
            (found, opening.nature.sse().get())
        });
        server.came().await.status(status);
        assert_eq!(asking.await.expect("no panic"), (found, found), "{status}");
    }
}

#[tokio::test]
async fn what_waits_for_a_server_that_asks_and_never_reads_is_bounded() {
    let script = format!(
        r#"{ANSWER}
        while read -r line; do case $line in
            *server/discover*) answer '"result":{{}}' ;;
            *'"initialize"'*) answer '"result":{INITIALIZED}' ;;
            *tools/call*) yes '{{"jsonrpc":"2.0","id":"p","method":"ping"}}' | head -n 20000
                answer '"result":{{}}'; exec sleep 60 ;;
        esac; done"#
    );
    let process = Process::new(&script);
    let peer = process.open().await.expect("a connection").peer;
    let mut exchange = peer.request(ask("tools/call", "{}"));
    answer(next(&mut exchange).await).expect("a result");
    let waiting = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert!(waiting < 1000, "{waiting} tasks");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_in_line_for_a_process_that_does_not_say_what_it_is() {
    let config = script("exec sleep 600");
    let upstream = Upstream::new("r", &config, None, Arc::new(|_| {})).expect("no files to read");
    let bridge = Bridge::new(&config, upstream);
    let (initialize, funds, begun) = (Bytes::from_static(b"{}"), funds(), Instant::now());
    let asking = (0..6).map(|person| {
        let (bridge, initialize, funds) = (&bridge, &initialize, &funds);
        async move { bridge.open(&[person; 32], initialize, funds).await.is_err() }
    });
    let failed = futures_util::future::join_all(asking).await;
    assert_eq!(failed, [true; 6]);
    // Ten seconds for one question and thirty for the other: once, and once more for all others together.
    assert!(begun.elapsed() < Duration::from_secs(100), "{:?}", begun.elapsed());
}
