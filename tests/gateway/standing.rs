//! Streams that answer no call: what keeps them open, and what ends them.

use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;
use tokio::time::Instant;

use super::gate::Gate;
use super::upstream::{Upstream, stream};

/// A server whose every GET opens a stream that says hello and then nothing.
async fn silent() -> Upstream {
    Upstream::start(|_| async {
        let (sender, response) = stream();
        sender
            .send("event: endpoint\ndata: /messages\n\n".to_owned())
            .expect("a reader");
        tokio::spawn(async move { sender.closed().await });
        tokio::task::yield_now().await;
        response
    })
    .await
}

/// One thread, so that the gateway's time is the test's: it runs when nobody has anything to do.
async fn until_the_end(transport: &str) -> (Vec<String>, Duration) {
    let upstream = silent().await;
    let yaml = format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {{urls: [\"{}\"], transport: {transport}}}\n",
        upstream.url()
    );
    let gate = Gate::with_yaml(&yaml).await;
    let token = gate
        .issuer
        .mint("alice", &gate.url(), &["notes.read"], &[], Duration::from_secs(40));
    let mut request = gate.request(Method::GET, &token, String::new());
    if transport == "streamable-http" {
        let version = "2025-11-25".parse().expect("a value");
        request.headers_mut().insert("mcp-protocol-version", version);
    }
    let mut opened = gate.open(request).await.into_body();
    let hello = opened.frame().await.expect("a frame").expect("a whole one");
    assert!(hello.into_data().expect("data").starts_with(b"event: endpoint"));
    tokio::time::pause();
    let began = Instant::now();
    let mut frames = Vec::new();
    while let Some(frame) = opened.frame().await {
        let data = frame.expect("it ends, and isn't cut").into_data().expect("data");
        let at = began.elapsed().as_secs_f64().round();
        frames.push(format!("{at} {}", String::from_utf8_lossy(&data).escape_default()));
    }
    (frames, began.elapsed())
}

async fn is_kept_alive_until_its_token_ends(transport: &str) {
    let (frames, lasted) = until_the_end(transport).await;
    let (at, said): (Vec<_>, Vec<_>) = frames.iter().filter_map(|frame| frame.split_once(' ')).unzip();
    assert_eq!(at, ["15", "30"], "{frames:?}");
    assert!(said.iter().all(|said| said.starts_with(':')), "{frames:?}");
    // The stream was opened a moment before its time was taken.
    let expected = Duration::from_secs(38)..Duration::from_secs(42);
    assert!(expected.contains(&lasted), "it ended after {lasted:?}");
}

#[tokio::test]
async fn an_idle_get_stream_gets_a_comment_every_15_s_and_ends_with_its_token() {
    is_kept_alive_until_its_token_ends("streamable-http").await;
}

#[tokio::test]
async fn an_idle_http_sse_stream_gets_a_comment_every_15_s_and_ends_with_its_token() {
    is_kept_alive_until_its_token_ends("sse").await;
}
