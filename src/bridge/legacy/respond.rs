//! What the calls of one POST bring, as the client reads it.
//!
//! 1. Streamable HTTP: JSON when the answers are the first thing that happens, and within 15 s; else a stream of events,
//!    with a comment after 15 s of silence. A client that goes away takes its calls with it.
//! 2. HTTP+SSE: everything goes to the session's stream.
//! 3. What fails before the response began is the response; after it, an event.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::PATIENCE;
use super::call::{Answer, Out};
use crate::edge::{Body, BodyError, Journey, Rejection, json, rescue};
use crate::mcp::sse;
use crate::reply::{COMMENT, Ending, KEEPALIVE, outcome_of_failure, see, stream_headers};
use crate::telemetry::GaugeGuard;

/// The calls of one POST, under way; dropped, they end.
pub struct Calls {
    pub out: mpsc::Receiver<Out>,
    pub tasks: JoinSet<()>,
    /// How many there are.
    pub count: usize,
    /// Answers to members of a batch that were refused.
    pub refused: Vec<Bytes>,
    pub batch: bool,
    pub journey: Arc<Journey>,
}

impl Calls {
    /// Rule 1.
    ///
    /// # Errors
    /// Why the only call has no answer, its ending put back.
    pub async fn response(
        mut self,
        endings: &mut Vec<Ending>,
        guard: impl FnOnce() -> GaugeGuard,
    ) -> Result<Response<Body>, Rejection> {
        let deadline = Instant::now() + PATIENCE;
        let mut answers = Vec::with_capacity(self.count);
        let mut first = None;
        while answers.len() < self.count {
            match tokio::time::timeout_at(deadline, self.out.recv()).await {
                Ok(Some(Out::Answer(answer))) => answers.push(answer),
                Ok(Some(Out::Message(message))) => {
                    first = Some(message);
                    break;
                }
                Ok(None) | Err(_) => break,
            }
        }
        if answers.len() == self.count {
            return self.json(answers, endings);
        }
        let mut prelude: VecDeque<Bytes> = self.refused.iter().map(|error| sse::message(error)).collect();
        for answer in answers {
            prelude.push_back(sse::message(&finished(answer, &self.journey)));
        }
        prelude.extend(first.map(|message| sse::message(&message)));
        let mut response = Response::new(self.events(prelude, guard()));
        stream_headers(response.headers_mut());
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        Ok(response)
    }

    fn json(self, mut answers: Vec<Answer>, endings: &mut Vec<Ending>) -> Result<Response<Body>, Rejection> {
        if !self.batch
            && let Some(answer) = answers.pop()
        {
            let message = match answer.outcome {
                Ok(message) => message,
                Err(rejection) => {
                    endings.extend(answer.ending);
                    return Err(rejection);
                }
            };
            finish(answer.ending, &message);
            return Ok(json(StatusCode::OK, message));
        }
        let mut body = vec![b'['];
        let answers = answers.into_iter().map(|answer| finished(answer, &self.journey));
        for message in self.refused.into_iter().chain(answers) {
            if body.len() > 1 {
                body.push(b',');
            }
            body.extend_from_slice(&message);
        }
        body.push(b']');
        Ok(json(StatusCode::OK, body))
    }

    fn events(self, prelude: VecDeque<Bytes>, guard: GaugeGuard) -> Body {
        let state = (self, prelude, guard);
        let frames = futures_util::stream::unfold(state, |(mut calls, mut prelude, guard)| async move {
            let event = match prelude.pop_front() {
                Some(event) => event,
                None => match tokio::time::timeout(KEEPALIVE, calls.out.recv()).await {
                    Err(_) => COMMENT,
                    Ok(Some(Out::Message(message))) => sse::message(&message),
                    Ok(Some(Out::Answer(answer))) => sse::message(&finished(answer, &calls.journey)),
                    Ok(None) => return None,
                },
            };
            Some((Ok::<_, BodyError>(Frame::data(event)), (calls, prelude, guard)))
        });
        StreamBody::new(frames).boxed_unsync()
    }

    /// Rule 2, until all are answered or the stream has ended.
    pub async fn pour(mut self, stream: mpsc::Sender<Bytes>) {
        let closed = stream.clone();
        let pouring = async {
            while let Some(out) = self.out.recv().await {
                let event = match out {
                    Out::Message(message) => sse::message(&message),
                    Out::Answer(answer) => {
                        // The outcome is counted when the answer has a place on the stream.
                        let Ok(place) = stream.reserve().await else { return };
                        place.send(sse::message(&finished(answer, &self.journey)));
                        continue;
                    }
                };
                if stream.send(event).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = pouring => {}
            () = closed.closed() => {}
        }
    }
}

/// The answer as it is written, counted.
fn finished(answer: Answer, journey: &Journey) -> Bytes {
    match answer.outcome {
        Ok(message) => {
            finish(answer.ending, &message);
            message
        }
        Err(rejection) => {
            if let Some(ending) = answer.ending {
                ending.finish(outcome_of_failure(&rejection));
            }
            rescue::message_to(&rejection, journey, Some(&answer.id))
        }
    }
}

fn finish(ending: Option<Ending>, message: &Bytes) {
    if let Some(ending) = ending {
        ending.finish(see(message).0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::ConnectionInfo;
    use crate::mcp::Id;
    use crate::telemetry::Metrics;
    use crate::upstream::UpstreamError;

    fn calls(count: usize, batch: bool) -> (mpsc::Sender<Out>, Calls) {
        let (sender, out) = mpsc::channel(4);
        let connection = ConnectionInfo {
            peer: ([127, 0, 0, 1], 1).into(),
            tls: false,
            certificate: None,
        };
        let calls = Calls {
            out,
            tasks: JoinSet::new(),
            count,
            refused: Vec::new(),
            batch,
            journey: Journey::begin(connection),
        };
        (sender, calls)
    }

    fn answer(id: &'static str) -> Out {
        Out::Answer(Answer {
            id: Id(id.into()),
            outcome: Ok(format!("{{\"id\":{id}}}").into()),
            ending: None,
        })
    }

    fn failure() -> Out {
        Out::Answer(Answer {
            id: Id("7".into()),
            outcome: Err(UpstreamError::NoneHealthy.into()),
            ending: None,
        })
    }

    async fn respond(calls: Calls) -> Result<Response<Body>, Rejection> {
        let metrics = Metrics::new();
        calls.response(&mut Vec::new(), || metrics.route("r").stream()).await
    }

    async fn text(body: Body) -> String {
        String::from_utf8(body.collect().await.expect("a body").to_bytes().to_vec()).expect("text")
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_first_decides_between_json_and_events() {
        let (out, only) = calls(1, false);
        let _ = out.send(answer("1")).await;
        let response = respond(only).await.expect("a response");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        assert_eq!(text(response.into_body()).await, "{\"id\":1}");

        let (out, both) = calls(2, true);
        let _ = out.send(answer("1")).await;
        let _ = out.send(failure()).await;
        let response = respond(both).await.expect("a response");
        let body: serde_json::Value = serde_json::from_str(&text(response.into_body()).await).expect("JSON");
        assert_eq!(body[0]["id"], 1);
        assert_eq!((&body[1]["id"], &body[1]["error"]["code"]), (&7.into(), &50_300.into()));

        let (out, told) = calls(1, false);
        let _ = out.send(Out::Message("{}".into())).await;
        let _ = out.send(answer("1")).await;
        drop(out);
        let response = respond(told).await.expect("a response");
        assert_eq!(response.headers()[CONTENT_TYPE], "text/event-stream");
        let events = text(response.into_body()).await;
        assert_eq!(
            events,
            "event: message\ndata: {}\n\nevent: message\ndata: {\"id\":1}\n\n"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_the_response_until_that_has_begun() {
        let (out, failed) = calls(1, false);
        let _ = out.send(failure()).await;
        assert!(matches!(respond(failed).await, Err(Rejection::Upstream(_))));
        let (out, late) = calls(1, false);
        let _ = out.send(Out::Message("{}".into())).await;
        let _ = out.send(failure()).await;
        drop(out);
        let events = text(respond(late).await.expect("a response").into_body()).await;
        assert!(
            events.contains("\"code\":50300") && events.contains("\"id\":7"),
            "{events}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_silence_becomes_a_stream_that_is_kept_alive() {
        let (out, silent) = calls(1, false);
        let begun = Instant::now();
        let response = respond(silent).await.expect("a response");
        assert_eq!(begun.elapsed(), PATIENCE);
        let mut body = response.into_body();
        let frame = body.frame().await.expect("a frame").expect("whole");
        assert_eq!(frame.data_ref(), Some(&COMMENT));
        assert_eq!(begun.elapsed(), PATIENCE + KEEPALIVE);
        let _ = out.send(answer("1")).await;
        drop(out);
        assert_eq!(text(body).await, "event: message\ndata: {\"id\":1}\n\n");
    }

    #[tokio::test]
    async fn a_client_that_goes_away_takes_its_calls_with_it() {
        let (out, mut gone) = calls(1, false);
        gone.tasks.spawn(async move {
            let _ = out.send(Out::Message("{}".into())).await;
            std::future::pending::<()>().await;
            drop(out);
        });
        let (stream, written) = mpsc::channel(4);
        drop(written);
        // It comes to its end though the call doesn't.
        gone.pour(stream).await;
    }
}
