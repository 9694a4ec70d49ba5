//! What a server says outside of calls, for as long as a session lasts.
//!
//! 1. A legacy server's notifications and questions pass as they are.
//! 2. Of a modern server the session has one `subscriptions/listen`: the kinds of list that the server says it tells the
//!    changes of, and the resources that the client subscribed to. It is opened when the client has a stream to hear it by.
//! 3. When the client subscribes to something else another is opened, and the one before it ended when the server has
//!    acknowledged that: nothing is missed in between. One that ends is opened again, ever later.
//! 4. A session whose connection ends is over.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::HeaderMap;
use serde_json::{Map, Value, json};

use super::rounds::Modern;
use super::session::{Back, Session};
use crate::bridge::map;
use crate::bridge::message::at;
use crate::bridge::opening::{MODERN, client_info};
use crate::bridge::peer::{Ask, Event, Exchange, Lost, Peer, Told};
use crate::edge::Rejection;
use crate::upstream::UpstreamError;

/// How long a server may take to acknowledge.
const ACKNOWLEDGEMENT: Duration = Duration::from_secs(10);
/// Shortest pause before a subscription that ended is opened again.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Hears the server until the session ends.
pub async fn hear(session: Arc<Session>) {
    let Some(back) = session.back() else { return };
    let ended = session.ended().clone();
    let hearing = async {
        match &back.modern {
            None if back.shared => everybodys(&session, &back.peer).await,
            None => relay(&session, &back.peer).await,
            Some(modern) => {
                tokio::select! {
                    () = channel(&session, back, modern) => {}
                    () = subscribe(&session, back, modern) => {}
                }
            }
        }
    };
    tokio::select! {
        () = ended.cancelled() => {}
        () = hearing => {}
    }
    session.close().await;
}

/// Rule 1.
async fn relay(session: &Arc<Session>, peer: &Arc<Peer>) {
    let mut questions = peer.questions();
    let mut listener = peer.listen();
    loop {
        tokio::select! {
            told = listener.next() => match told {
                Some(told) => session.tell(&told),
                None => return,
            },
            Some(asked) = questions.recv() => session.ask(asked),
        }
    }
}

/// What a legacy server tells everybody: whose a log or a progress is can't be told.
async fn everybodys(session: &Arc<Session>, peer: &Arc<Peer>) {
    let mut listener = peer.listen();
    while let Some(told) = listener.next().await {
        let about = at(&told.params, &["uri"]).and_then(|uri| serde_json::from_slice::<String>(&uri).ok());
        let ours = match &*told.method {
            "notifications/resources/updated" => about.is_some_and(|uri| session.is_subscribed(&uri)),
            method => method.ends_with("/list_changed"),
        };
        if ours {
            session.tell(&told);
        }
    }
}

/// What a modern server says over a channel that all its calls and subscriptions share (stdio). Whose a log is can't be told
/// where others speak over it, too.
async fn channel(session: &Arc<Session>, back: &Back, modern: &Modern) {
    let mut listener = back.peer.listen();
    while let Some(told) = listener.next().await {
        let about = at(&told.params, &["uri"]).and_then(|uri| serde_json::from_slice::<String>(&uri).ok());
        let ours = match &*told.method {
            "notifications/resources/updated" => about.is_some_and(|uri| modern.subscribed.borrow().contains(&uri)),
            "notifications/message" => !back.shared,
            method => method.ends_with("/list_changed"),
        };
        if ours {
            pass(session, told);
        }
    }
}

/// Rules 2 and 3.
async fn subscribe(session: &Arc<Session>, back: &Back, modern: &Modern) {
    session.heard().await;
    let mut subscribed = modern.subscribed.subscribe();
    let mut current: Option<Exchange> = None;
    let mut pause = PAUSE;
    loop {
        let wanted = wanted(&back.peer.facts().capabilities, &subscribed.borrow_and_update());
        let ended = if wanted.is_empty() {
            current = None;
            subscribed.changed().await.is_err()
        } else {
            match open(session, back, wanted).await {
                Ok(opened) => {
                    if let Some(before) = current.replace(opened) {
                        drain(session, before);
                    }
                    pause = PAUSE;
                }
                Err(lost) => {
                    tracing::debug!(
                        endpoint = &*back.peer.name(),
                        error = lost.to_string(),
                        "the server did not take a subscription"
                    );
                    if matches!(lost, Lost::Refused { .. }) {
                        // It won't take this one another time either.
                        current = None;
                    }
                }
            }
            match &mut current {
                Some(exchange) => {
                    tokio::select! {
                        changed = subscribed.changed() => changed.is_err(),
                        () = follow(session, exchange) => {
                            current = None;
                            tokio::time::sleep(pause).await;
                            pause = (pause * 2).min(MAX_PAUSE);
                            false
                        }
                    }
                }
                None => {
                    let again = tokio::time::sleep(pause);
                    pause = (pause * 2).min(MAX_PAUSE);
                    tokio::select! {
                        changed = subscribed.changed() => changed.is_err(),
                        () = again => false,
                    }
                }
            }
        };
        if ended {
            return;
        }
    }
}

/// What the server is asked to tell.
fn wanted(capabilities: &Bytes, subscribed: &BTreeSet<String>) -> Map<String, Value> {
    let mut wanted = Map::new();
    let tells = |path: &[&str]| at(capabilities, path).is_some_and(|tells| &tells[..] == b"true");
    for (kind, name) in [
        ("tools", "toolsListChanged"),
        ("prompts", "promptsListChanged"),
        ("resources", "resourcesListChanged"),
    ] {
        if tells(&[kind, "listChanged"]) {
            wanted.insert(name.to_owned(), Value::Bool(true));
        }
    }
    if !subscribed.is_empty() {
        wanted.insert("resourceSubscriptions".to_owned(), json!(subscribed));
    }
    wanted
}

/// Opens a subscription, and waits until the server has acknowledged it.
async fn open(session: &Arc<Session>, back: &Back, wanted: Map<String, Value>) -> Result<Exchange, Lost> {
    let funds = session.funds().ok_or(Lost::Session)?;
    let params = format!(
        r#"{{"_meta":{{"io.modelcontextprotocol/protocolVersion":"{MODERN}","io.modelcontextprotocol/clientInfo":{},"io.modelcontextprotocol/clientCapabilities":{{}}}},"notifications":{}}}"#,
        client_info(),
        Value::Object(wanted)
    );
    let mut exchange = back.peer.request(Ask {
        method: "subscriptions/listen".into(),
        params: params.into(),
        funds,
        headers: HeaderMap::new(),
        takes_questions: false,
    });
    let acknowledged = async {
        loop {
            match exchange.next().await? {
                Event::Notification(told) if &*told.method == "notifications/subscriptions/acknowledged" => {
                    return Ok(());
                }
                Event::Notification(told) => pass(session, told),
                Event::Request(_) => {}
                Event::Answer(Err(error)) => {
                    return Err(Lost::Refused {
                        status: http::StatusCode::OK,
                        error,
                    });
                }
                Event::Answer(Ok(_)) => {
                    return Err(Rejection::UpstreamNonsense("it ends a subscription before it begins").into());
                }
            }
        }
    };
    match tokio::time::timeout(ACKNOWLEDGEMENT, acknowledged).await {
        Ok(acknowledged) => acknowledged.map(|()| exchange),
        Err(_) => Err(UpstreamError::Timeout {
            endpoint: back.peer.name(),
            after: ACKNOWLEDGEMENT,
        }
        .into()),
    }
}

/// Passes what a subscription brings, until it ends.
async fn follow(session: &Arc<Session>, exchange: &mut Exchange) {
    while let Ok(event) = exchange.next().await {
        match event {
            Event::Notification(told) => pass(session, told),
            Event::Request(_) => {}
            Event::Answer(_) => return,
        }
    }
}

/// Takes what a subscription has brought already.
fn drain(session: &Arc<Session>, mut exchange: Exchange) {
    while let Some(Ok(Event::Notification(told))) = exchange.next().now_or_never() {
        pass(session, told);
    }
}

fn pass(session: &Arc<Session>, told: Told) {
    if let Some(params) = map::notification_to_legacy(&told.method, &told.params) {
        session.tell(&Told::new(told.method, params));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_server_tells_and_the_client_wants_is_asked_for() {
        let capabilities = Bytes::from_static(
            br#"{"tools":{"listChanged":true},"prompts":{"listChanged":false},"resources":{"subscribe":true}}"#,
        );
        let none = BTreeSet::new();
        assert_eq!(
            Value::Object(wanted(&capabilities, &none)),
            json!({"toolsListChanged": true})
        );
        let some = BTreeSet::from(["file:///a".to_owned()]);
        assert_eq!(
            Value::Object(wanted(&capabilities, &some)),
            json!({"toolsListChanged": true, "resourceSubscriptions": ["file:///a"]})
        );
        assert!(wanted(&Bytes::from_static(b"{}"), &none).is_empty());
    }
}
