//! Peers that speak HTTP well enough to be let in and then hold what they have got.
//!
//! Most are at the other end of a pipe, so that paused time runs on exactly when nobody has anything to do.

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::tests::{REQUEST, SOON, answer, limits, listen};
use super::*;
use crate::edge;

const SECOND: Duration = Duration::from_secs(1);
/// Longer than any bound here.
const EVER: Duration = Duration::from_secs(3600);

/// One connection to the gateway.
struct Connected {
    socket: DuplexStream,
    stop: watch::Sender<()>,
    served: JoinHandle<()>,
    /// Told of every endless reply that is let go of.
    dropped: mpsc::UnboundedReceiver<()>,
}

/// Answers as [`Service`] does, over a pipe.
fn connect(limits: &ListenLimits) -> Connected {
    let (sender, dropped) = mpsc::unbounded_channel();
    let (stop, told) = watch::channel(());
    let (socket, theirs) = tokio::io::duplex(SEND_BUFFER);
    let peer = SocketAddr::from(([192, 0, 2, 1], 1));
    let connection = Connection {
        tls: None,
        handshake_timeout: limits.handshake_timeout,
        header_timeout: limits.header_timeout,
        protocol: protocol(limits),
        service: tower::service_fn(move |incoming: Incoming| {
            let body = reply(incoming.request.uri().path(), &sender);
            async move { Ok::<_, Infallible>(Response::new(body)) }
        }),
        peer,
        speaks_for: None,
        told,
    };
    let info = ConnectionInfo {
        peer,
        tls: false,
        certificate: None,
    };
    Connected {
        socket,
        stop,
        served: tokio::spawn(connection.serve(theirs, info)),
        dropped,
    }
}

/// What is asked for: `/endless` always has more to say, `/large` says all at once, `/silent` never says anything, and
/// the rest is short.
fn reply(path: &str, dropped: &mpsc::UnboundedSender<()>) -> Body {
    struct Told(mpsc::UnboundedSender<()>);
    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let told = Told(dropped.clone());
    match path {
        "/endless" => {
            let frames = futures_util::stream::repeat_with(move || {
                let _ = &told;
                Ok(body::Frame::data(Bytes::from_static(&[b'x'; 20_000])))
            });
            Body::new(http_body_util::StreamBody::new(frames))
        }
        "/large" => edge::full(vec![b'x'; 1024 * 1024]),
        "/silent" => Body::new(http_body_util::StreamBody::new(futures_util::stream::pending())),
        _ => edge::full("short"),
    }
}

/// An HTTP/2 client, and the end of its connection.
async fn client(socket: DuplexStream, window: u32) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window);
    let (sender, connection) = builder.handshake(socket).await.expect("a handshake");
    (sender, tokio::spawn(connection))
}

async fn ask(sender: &SendRequest<Bytes>, path: &str) -> ResponseFuture {
    let request = Request::get(format!("http://localhost{path}"))
        .body(())
        .expect("a request");
    let mut ready = sender.clone().ready().await.expect("a stream");
    ready.send_request(request, true).expect("sent").0
}

fn soon() -> ListenLimits {
    ListenLimits {
        header_timeout: SOON,
        ..limits()
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_a_window_is_cut_and_its_connection_goes_on() {
    let mut connected = connect(&limits());
    let (sender, _ended) = client(connected.socket, 0).await;
    let response = ask(&sender, "/endless").await.await.expect("headers need no window");
    let began = Instant::now();
    let dropped = timeout(EVER, connected.dropped.recv()).await;
    dropped.expect("the reply is let go of");
    assert!(
        (STALL..STALL + SECOND).contains(&began.elapsed()),
        "{:?}",
        began.elapsed()
    );
    let error = response.into_body().data().await.expect("an end").expect_err("a reset");
    assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
    let other = ask(&sender, "/silent").await.await.expect("other streams go on");
    assert_eq!(other.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_stream_read_by_single_bytes_is_cut() {
    for path in ["/endless", "/large"] {
        let connected = connect(&limits());
        let (sender, _ended) = client(connected.socket, 1).await;
        let mut body = ask(&sender, path).await.await.expect("a reply").into_body();
        let mut read = 0;
        let error = loop {
            match body.data().await.expect("it doesn't end well") {
                Ok(part) => {
                    read += part.len();
                    assert!(read < 100, "{path}: still read by single bytes");
                    sleep(SECOND).await;
                    body.flow_control().release_capacity(part.len()).expect("it was taken");
                }
                Err(error) => break error,
            }
        };
        assert_eq!(error.reason(), Some(h2::Reason::CANCEL), "{path}");
        assert!(read > 50, "{path}: {read}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_read_slowly_is_served() {
    let connected = connect(&limits());
    let (sender, _ended) = client(connected.socket, 16 * 1024).await;
    let mut body = ask(&sender, "/endless").await.await.expect("a reply").into_body();
    let mut read = 0;
    while read < 256 * 1024 {
        let part = body.data().await.expect("it goes on").expect("it is whole");
        read += part.len();
        // Half a kilobyte a second.
        sleep(SECOND * u32::try_from(part.len()).expect("a frame") / 512).await;
        body.flow_control().release_capacity(part.len()).expect("it was taken");
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_waits_no_longer_for_a_stream_without_a_window() {
    let connected = connect(&limits());
    let (sender, _ended) = client(connected.socket, 0).await;
    let _response = ask(&sender, "/endless").await.await.expect("headers need no window");
    let began = Instant::now();
    connected.stop.send_replace(());
    let served = timeout(EVER, connected.served).await;
    served.expect("the connection ends").expect("no panic");
    assert!(began.elapsed() < STALL + SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_requests_is_told_to_go() {
    // Never a request, one that has ended, and signs of life only.
    for (asks, pings) in [(false, false), (true, false), (false, true), (true, true)] {
        let connected = connect(&soon());
        let (sender, mut connection) = h2::client::handshake(connected.socket).await.expect("a handshake");
        let mut pinger = connection.ping_pong().expect("the only one");
        let ended = tokio::spawn(connection);
        if asks {
            let mut body = ask(&sender, "/").await.await.expect("a reply").into_body();
            assert_eq!(body.data().await.expect("a part").expect("whole"), "short");
            assert!(body.data().await.is_none());
        }
        let began = Instant::now();
        if pings {
            tokio::spawn(async move {
                while pinger.ping(h2::Ping::opaque()).await.is_ok() {
                    sleep(SOON / 10).await;
                }
            });
        }
        let ended = timeout(EVER, ended).await.expect("closed").expect("no panic");
        ended.expect("by GOAWAY, without an error");
        assert!(began.elapsed() < SOON * 2, "{:?}", began.elapsed());
        connected.served.await.expect("its place is free");
        drop(sender);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_with_a_request_is_kept() {
    for path in ["/silent", "/endless"] {
        let connected = connect(&soon());
        let (sender, ended) = client(connected.socket, 64 * 1024).await;
        let _reply = ask(&sender, path).await.await.expect("a reply");
        sleep(STALL / 2).await;
        assert!(!ended.is_finished(), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn replies_left_unread_end_their_connection() {
    let connected = connect(&soon());
    let (sender, _ended) = client(connected.socket, 1).await;
    // A byte of it comes, and the rest is in the hands of the connection alone.
    let mut reply = ask(&sender, "/").await.await.expect("a reply").into_body();
    assert_eq!(reply.data().await.expect("a part").expect("whole").len(), 1);
    let began = Instant::now();
    let served = timeout(EVER, connected.served).await;
    served.expect("its place is free").expect("no panic");
    assert!(
        (STALL..STALL + SECOND).contains(&began.elapsed()),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_connection_with_replies_left_unread_gets_no_more_requests() {
    // With a window of a byte the reply is left unread, with a large one it is taken.
    for (window, left) in [(1, true), (64 * 1024, false)] {
        let connected = connect(&soon());
        let (sender, _ended) = client(connected.socket, window).await;
        let other = ask(&sender, "/silent").await.await.expect("a reply");
        let mut reply = ask(&sender, "/").await.await.expect("a reply").into_body();
        reply.data().await.expect("a part").expect("whole");
        sleep(STALL - SECOND).await;
        let early = ask(&sender, "/").await.await.expect("a reply");
        assert_eq!(early.status(), StatusCode::OK, "{window}");
        sleep(3 * STALL).await;
        assert_eq!(sender.clone().ready().await.is_err(), left, "{window}");
        let began = Instant::now();
        drop(other);
        if left {
            let served = timeout(EVER, connected.served).await;
            served.expect("its place is free").expect("no panic");
            assert!(began.elapsed() < STALL + SECOND, "{:?}", began.elapsed());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_ignores_its_dismissal_is_cut() {
    for asked in [&b""[..], &get(1)] {
        let mut connected = connect(&soon());
        // Acknowledges neither settings nor pings.
        let sent = [PREFACE, &frame(4, 0, 0, &[]), asked].concat();
        connected.socket.write_all(&sent).await.expect("sent");
        let began = Instant::now();
        timeout(EVER, connected.served)
            .await
            .expect("closed")
            .expect("no panic");
        let allowed = if asked.is_empty() { FAREWELL } else { STALL } + SOON;
        assert!(began.elapsed() <= allowed + SECOND, "{:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn headers_and_idleness_have_their_time_on_every_request_of_http_1() {
    for next in [&b""[..], b"G", b"GET / HTTP/1.1\r\nx-slow: "] {
        let mut connected = connect(&soon());
        let began = Instant::now();
        for _ in 0..3 {
            connected.socket.write_all(REQUEST).await.expect("sent");
            let read = connected.socket.read(&mut [0; 1024]).await.expect("an answer");
            assert!(read > 0, "closed while it was used");
            sleep(SOON * 2 / 3).await;
        }
        // The beginning of one more request, slowly.
        let slowly = async {
            for byte in next {
                sleep(SOON / 30).await;
                let _ = connected.socket.write_all(&[*byte]).await;
            }
            std::future::pending::<()>().await
        };
        tokio::select! {
            () = slowly => {}
            served = timeout(EVER, connected.served) => served.expect("closed").expect("no panic"),
        }
        assert!(began.elapsed() <= SOON * 3 + FAREWELL + SECOND, "{:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_of_http_1_ends_when_the_gateway_does() {
    let mut connected = connect(&limits());
    connected.socket.write_all(REQUEST).await.expect("sent");
    assert!(connected.socket.read(&mut [0; 1024]).await.expect("an answer") > 0);
    let began = Instant::now();
    connected.stop.send_replace(());
    connected.served.await.expect("no panic");
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_is_taken_slowly_is_not_idleness() {
    let mut connected = connect(&soon());
    // More than the pipe holds, and all of it said before the first byte is read.
    let requests = REQUEST.repeat(1000);
    connected.socket.write_all(&requests).await.expect("sent");
    let mut read = 0;
    let mut part = [0; 16 * 1024];
    loop {
        sleep(SOON * 20).await;
        let taken = connected.socket.read(&mut part).await.expect("the rest of it");
        if taken == 0 {
            break;
        }
        read += part[..taken].windows(5).filter(|bytes| bytes == b"short").count();
    }
    assert!(read >= 990, "cut after {read} replies");
}

#[tokio::test]
async fn a_reply_read_by_single_bytes_is_cut_on_http_1() {
    let (sender, mut dropped) = mpsc::unbounded_channel();
    let listener = Listener::bind(&listen(limits(), None), Metrics::new())
        .await
        .expect("a free port");
    let address = listener.local_addr();
    let service = tower::service_fn(move |_: Incoming| {
        let body = reply("/endless", &sender);
        async move { Ok::<_, Infallible>(Response::new(body)) }
    });
    tokio::spawn(listener.serve(service, CancellationToken::new(), SOON));
    let mut socket = TcpStream::connect(address).await.expect("a connection");
    socket.write_all(REQUEST).await.expect("sent");
    assert!(answer(&mut socket).await.starts_with("HTTP/1.1 200"));
    tokio::time::pause();
    let began = Instant::now();
    let reading = async {
        loop {
            sleep(SECOND).await;
            let _ = socket.read(&mut [0]).await;
        }
    };
    tokio::select! {
        _ = dropped.recv() => {}
        () = reading => {}
        () = sleep(EVER) => panic!("still read by single bytes"),
    }
    assert!(began.elapsed() >= STALL, "{:?}", began.elapsed());
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// An HTTP/2 frame (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `GET http://localhost/` (RFC 7541 appendix A), whole and without a body.
fn get(stream: u32) -> Vec<u8> {
    frame(1, 0x5, stream, b"\x82\x86\x84\x41\x09localhost")
}

#[tokio::test(start_paused = true)]
async fn floods_end_their_connection() {
    let streams = || (0..2000).map(|number| number * 2 + 1);
    let header = [b"\x00\x01a\x7f\x81\x7e".as_slice(), &[b'b'; 16_000]].concat();
    let floods: [(&str, Vec<u8>); 4] = [
        // Rapid reset (CVE-2023-44487).
        (
            "resets",
            streams()
                .flat_map(|id| [get(id), frame(3, 0, id, &[0, 0, 0, 8])].concat())
                .collect(),
        ),
        // Resets that the peer makes us send (CVE-2025-8671): an increment of 0 is an error of the stream.
        (
            "errors",
            streams()
                .flat_map(|id| [get(id), frame(8, 0, id, &[0; 4])].concat())
                .collect(),
        ),
        // A header list without an end, of small parts and of large ones (CVE-2024-27316).
        (
            "small continuations",
            [frame(1, 0, 1, b"\x82"), frame(9, 0, 1, b"").repeat(20_000)].concat(),
        ),
        (
            "large continuations",
            [frame(1, 0, 1, b"\x82"), frame(9, 0, 1, &header).repeat(200)].concat(),
        ),
    ];
    for (name, flood) in floods {
        let connected = connect(&limits());
        let (mut reader, mut writer) = tokio::io::split(connected.socket);
        let began = Instant::now();
        let writing = tokio::spawn(async move {
            let _ = writer
                .write_all(&[PREFACE, &frame(4, 0, 0, &[]), &flood].concat())
                .await;
        });
        let mut bytes = Vec::new();
        let read = timeout(EVER, reader.read_to_end(&mut bytes)).await;
        let _ = read.expect("the gateway ends it");
        assert!(began.elapsed() < SECOND, "{name}: {:?}", began.elapsed());
        writing.await.expect("no panic");
    }
}
