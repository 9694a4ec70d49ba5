//! A server that fails and recovers, and what callers, `/status` and the metrics see of its breaker.

use http::StatusCode;
use tokio::sync::watch;

use super::gate::{Gate, call};
use super::processes::admin;
use super::upstream::{Upstream, json_reply, result, status};

/// Long enough to be seen, short enough to be waited for.
const BREAKER: &str = "breaker: {failures: 3, cooldown: 2s}";

/// How the server is.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Well,
    Ill,
    /// It answers when it is well again.
    Slow,
}

async fn server(mood: watch::Receiver<Mood>) -> Upstream {
    Upstream::start(move |seen| {
        let mut mood = mood.clone();
        async move {
            let now = *mood.borrow();
            match now {
                Mood::Ill => return status(StatusCode::SERVICE_UNAVAILABLE),
                Mood::Slow => mood
                    .wait_for(|mood| *mood != Mood::Slow)
                    .await
                    .map(|_| ())
                    .expect("a mood"),
                Mood::Well => {}
            }
            json_reply(&result(&seen.json(), 0))
        }
    })
    .await
}

async fn breaker(gate: &Gate) -> (String, f64) {
    let endpoint = admin(gate, "/status").await.json()["routes"][0]["endpoints"][0].clone();
    let state = endpoint["breaker"].as_str().expect("it has one").to_owned();
    let metric = format!(
        "portcullis_breaker_state{{route=\"notes\",endpoint={}}}",
        endpoint["url"]
    );
    // It is reported first by a task that begins with the gateway.
    loop {
        if let Some(value) = gate.metric(&metric) {
            return (state, value);
        }
        tokio::task::yield_now().await;
    }
}

async fn gate(upstream: &Upstream) -> Gate {
    Gate::with_yaml(&format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {{urls: ['{}'], {BREAKER}}}\n",
        upstream.url()
    ))
    .await
}

#[tokio::test]
async fn r25_a_failing_server_is_left_alone_and_tried_by_one_request() {
    let (mood, seen) = watch::channel(Mood::Ill);
    let upstream = server(seen).await;
    let gate = gate(&upstream).await;
    assert_eq!(breaker(&gate).await, ("closed".to_owned(), 0.0));
    let token = gate.reader();
    let mut asked = 0;
    loop {
        let answer = gate.modern(&token, "tools/call", call("echo")["params"].clone()).await;
        if answer.code() == Some(50_300) {
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
            assert!(["1", "2"].contains(&answer.header("retry-after")), "{answer:?}");
            let text = answer.json()["error"]["message"].to_string();
            assert!(text.contains(&upstream.url()) && text.contains("breaker"), "{text}");
            break;
        }
        asked += 1;
    }
    assert_eq!(asked, 3, "so many failures in a row");
    assert_eq!(upstream.seen().len(), 3);
    assert_eq!(breaker(&gate).await, ("open".to_owned(), 2.0));

    // The first request after the cooldown waits at the server; all others are turned away meanwhile.
    mood.send_replace(Mood::Slow);
    let probe = async {
        loop {
            let answer = gate.modern(&token, "tools/call", call("echo")["params"].clone()).await;
            if answer.code() != Some(50_300) {
                return answer;
            }
        }
    };
    let others = async {
        upstream.wait_for(4).await;
        assert_eq!(breaker(&gate).await, ("half_open".to_owned(), 1.0));
        for _ in 0..10 {
            let answer = gate.modern(&token, "tools/call", call("echo")["params"].clone()).await;
            assert_eq!(answer.code(), Some(50_300));
        }
        assert_eq!(upstream.seen().len(), 4, "one probe");
        mood.send_replace(Mood::Well);
    };
    let (probe, ()) = tokio::join!(probe, others);
    assert_eq!(probe.status, StatusCode::OK);
    assert_eq!(breaker(&gate).await, ("closed".to_owned(), 0.0));
    let answer = gate.modern(&token, "tools/call", call("echo")["params"].clone()).await;
    assert_eq!(answer.status, StatusCode::OK);
}
