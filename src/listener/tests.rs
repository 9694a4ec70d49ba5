//! Connections that are refused, slow, too many or cut; over real sockets.

use std::path::Path;

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::*;
use crate::config::{Listen, ServerTls};
use crate::edge;

pub(super) const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
/// The one bound a test lowers; the others are too long to be met.
pub(super) const SOON: Duration = Duration::from_millis(100);

pub(super) fn listen(limits: ListenLimits, tls: Option<ServerTls>) -> Listen {
    Listen {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        public_url: None,
        tls,
        trusted_proxies: Vec::new(),
        proxy_protocol: false,
        limits,
        allowed_hosts: Vec::new(),
        allowed_origins: Vec::new(),
    }
}

pub(super) fn limits() -> ListenLimits {
    let long = Duration::from_secs(60);
    ListenLimits {
        connections: 100,
        connections_per_address: 100,
        requests: 100,
        streams: 100,
        streams_per_principal: 100,
        handshake_timeout: long,
        header_timeout: long,
        body_timeout: long,
        headers: 64 * 1024,
    }
}

/// A certificate for `localhost` and its key, on disk.
fn certificate(directory: &Path) -> ServerTls {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let files = ServerTls {
        certificate: directory.join("cert.pem"),
        key: directory.join("key.pem"),
        client_ca: None,
    };
    std::fs::write(&files.certificate, made.cert.pem()).expect("a file");
    std::fs::write(&files.key, made.signing_key.serialize_pem()).expect("a file");
    files
}

pub(super) struct Serving {
    pub(super) address: SocketAddr,
    pub(super) stop: CancellationToken,
    pub(super) task: JoinHandle<()>,
}

/// Serves, with `answer` deciding over each request.
pub(super) async fn serve<F>(listen: Listen, grace: Duration, answer: fn(Incoming) -> F) -> Serving
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = Listener::bind(&listen, Metrics::new()).await.expect("a free port");
    let stop = CancellationToken::new();
    let service = tower::service_fn(move |incoming| {
        let answered = answer(incoming);
        async move { Ok::<_, Infallible>(answered.await) }
    });
    Serving {
        address: listener.local_addr(),
        stop: stop.clone(),
        task: tokio::spawn(listener.serve(service, stop, grace)),
    }
}

pub(super) async fn whence(incoming: Incoming) -> Response<Body> {
    let info = incoming.connection;
    Response::new(edge::full(format!("{} {}", info.peer, info.tls)))
}

pub(super) async fn never(_: Incoming) -> Response<Body> {
    std::future::pending().await
}

async fn refuse(incoming: Incoming) -> Response<Body> {
    drain(incoming.request.into_body());
    let mut response = Response::new(edge::empty());
    *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
    response
}

/// Everything that comes until the connection ends.
pub(super) async fn rest(mut socket: TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(20), socket.read_to_end(&mut bytes))
        .await
        .expect("the connection ends");
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) async fn answer(socket: &mut TcpStream) -> String {
    let mut bytes = [0; 4096];
    let read = socket.read(&mut bytes).await.expect("an answer");
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}

#[tokio::test]
async fn requests_know_where_they_came_in() {
    let serving = serve(listen(limits(), None), SOON, whence).await;
    let mut socket = TcpStream::connect(serving.address).await.expect("a connection");
    socket.write_all(REQUEST).await.expect("sent");
    let expected = format!("{} false", socket.local_addr().expect("an address"));
    let answer = answer(&mut socket).await;
    assert!(answer.ends_with(&expected), "{answer}");
}

#[tokio::test]
async fn silent_and_slow_peers_are_closed_in_every_phase() {
    let files = tempfile::tempdir().expect("a directory");
    let header = ListenLimits {
        header_timeout: SOON,
        ..limits()
    };
    let handshake = ListenLimits {
        handshake_timeout: SOON,
        ..limits()
    };
    for (limits, tls, sent) in [
        (header.clone(), None, &b""[..]),
        (header.clone(), None, b"PRI * HTTP/2.0\r\n"),
        (header, None, b"POST / HTTP/1.1\r\nhost: localhost\r\nx-slow: "),
        (handshake.clone(), Some(certificate(files.path())), b""),
        // The beginning of a client's hello.
        (handshake, Some(certificate(files.path())), b"\x16\x03\x01\x02\x00\x01"),
    ] {
        let serving = serve(listen(limits, tls), SOON, never).await;
        let mut socket = TcpStream::connect(serving.address).await.expect("a connection");
        socket.write_all(sent).await.expect("sent");
        let rest = rest(socket).await;
        assert!(!rest.contains("200 OK"), "{rest}");
    }
}

#[tokio::test]
async fn a_call_outlasts_the_header_timeout() {
    async fn slow(_: Incoming) -> Response<Body> {
        // From here on nobody but this has anything to do, and time runs to its end.
        tokio::time::pause();
        tokio::time::sleep(SOON * 4).await;
        Response::new(edge::full("late"))
    }
    let limits = ListenLimits {
        header_timeout: SOON,
        ..limits()
    };
    let serving = serve(listen(limits, None), SOON, slow).await;
    let mut socket = TcpStream::connect(serving.address).await.expect("a connection");
    socket.write_all(REQUEST).await.expect("sent");
    assert!(answer(&mut socket).await.ends_with("late"));
}

#[tokio::test]
async fn beyond_the_cap_peers_wait_for_a_place() {
    let limits = ListenLimits {
        connections: 1,
        ..limits()
    };
    let serving = serve(listen(limits, None), SOON, whence).await;
    let mut first = TcpStream::connect(serving.address).await.expect("a connection");
    first.write_all(REQUEST).await.expect("sent");
    assert!(answer(&mut first).await.starts_with("HTTP/1.1 200"));
    let mut second = TcpStream::connect(serving.address).await.expect("the kernel's queue");
    second.write_all(REQUEST).await.expect("sent");
    let early = tokio::time::timeout(SOON, answer(&mut second)).await;
    assert!(early.is_err(), "answered although no place is free: {early:?}");
    drop(first);
    assert!(answer(&mut second).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn one_address_has_its_share_of_the_places() {
    let limits = ListenLimits {
        connections_per_address: 1,
        ..limits()
    };
    let metrics = Metrics::new();
    let listen = Listen {
        trusted_proxies: vec!["127.0.0.3".parse().expect("a network")],
        ..listen(limits, None)
    };
    let listener = Listener::bind(&listen, metrics.clone()).await.expect("a free port");
    let address = listener.local_addr();
    let stop = CancellationToken::new();
    let task = tokio::spawn(listener.serve(
        tower::service_fn(|incoming| async { Ok(whence(incoming).await) }),
        stop.clone(),
        SOON,
    ));
    let from = async |host: [u8; 4]| {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from((host, 0))).expect("a loopback address");
        let mut socket = socket.connect(address).await.expect("a connection");
        let _ = socket.write_all(REQUEST).await;
        socket
    };
    let mut first = from([127, 0, 0, 1]).await;
    assert!(answer(&mut first).await.starts_with("HTTP/1.1 200"));
    let mut second = from([127, 0, 0, 1]).await;
    // Closed with the request unread, it may also be reset.
    assert_eq!(second.read(&mut [0; 64]).await.unwrap_or(0), 0);
    let counted = "portcullis_rate_limited_total{route=\"_none\",kind=\"connections_per_address\"} 1";
    assert!(metrics.render().contains(counted), "{}", metrics.render());
    let mut other = from([127, 0, 0, 2]).await;
    assert!(
        answer(&mut other).await.starts_with("HTTP/1.1 200"),
        "others have their own"
    );
    let mut proxied = [from([127, 0, 0, 3]).await, from([127, 0, 0, 3]).await];
    for socket in &mut proxied {
        assert!(
            answer(socket).await.starts_with("HTTP/1.1 200"),
            "a proxy brings everybody's"
        );
    }
    drop(first);
    let again = async {
        loop {
            let mut socket = from([127, 0, 0, 1]).await;
            if socket.read(&mut [0; 64]).await.unwrap_or(0) > 0 {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again)
        .await
        .expect("the place is free again");
    stop.cancel();
    task.await.expect("it ends");
}

#[tokio::test]
async fn a_silent_handshake_gives_its_place_back() {
    let files = tempfile::tempdir().expect("a directory");
    let limits = ListenLimits {
        connections: 1,
        handshake_timeout: SOON,
        ..limits()
    };
    let serving = serve(listen(limits, Some(certificate(files.path()))), SOON, never).await;
    let _silent = TcpStream::connect(serving.address).await.expect("a connection");
    let second = TcpStream::connect(serving.address).await.expect("the kernel's queue");
    // It is accepted only once the first is gone, and then closed for its own silence.
    assert_eq!(rest(second).await, "");
}

#[tokio::test]
async fn what_outlasts_the_grace_period_is_cut() {
    let serving = serve(listen(limits(), None), SOON, never).await;
    let mut socket = TcpStream::connect(serving.address).await.expect("a connection");
    socket.write_all(REQUEST).await.expect("sent");
    let idle = TcpStream::connect(serving.address).await.expect("a connection");
    serving.stop.cancel();
    serving.task.await.expect("it ends");
    assert_eq!(rest(socket).await, "");
    assert_eq!(rest(idle).await, "");
    assert!(
        TcpStream::connect(serving.address).await.is_err(),
        "nobody is accepted any more"
    );
}

#[tokio::test]
async fn a_refused_body_is_read_so_that_the_refusal_arrives() {
    let serving = serve(listen(limits(), None), SOON, refuse).await;
    let mut socket = TcpStream::connect(serving.address).await.expect("a connection");
    let size = 4 * 1024 * 1024;
    let head = format!("POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: {size}\r\n\r\n");
    socket.write_all(head.as_bytes()).await.expect("sent");
    socket.write_all(&vec![b'x'; size]).await.expect("all of it is taken");
    assert!(answer(&mut socket).await.starts_with("HTTP/1.1 413"));
}

#[tokio::test]
async fn a_drain_has_an_end() {
    let serving = serve(listen(limits(), None), SOON, refuse).await;
    let socket = TcpStream::connect(serving.address).await.expect("a connection");
    let (mut reader, mut writer) = socket.into_split();
    let sending = tokio::spawn(async move {
        let head = b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n";
        writer.write_all(head).await.expect("sent");
        let mut sent = 0;
        while writer.write_all(b"10000\r\n").await.is_ok()
            && writer.write_all(&[b'x'; 0x1_0000]).await.is_ok()
            && writer.write_all(b"\r\n").await.is_ok()
        {
            sent += 0x1_0000;
        }
        sent
    });
    let mut bytes = Vec::new();
    let _ = reader.read_to_end(&mut bytes).await;
    let sent = sending.await.expect("it ends");
    // The sockets' own buffers come on top.
    assert!(sent < DRAIN_BYTES + 32 * 1024 * 1024, "{sent} bytes were taken");
    assert!(bytes.starts_with(b"HTTP/1.1 413"));
}

#[tokio::test]
async fn what_cant_be_bound_says_why_and_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = taken.local_addr().expect("an address");
    let files = tempfile::tempdir().expect("a directory");
    let good = certificate(files.path());
    let empty = files.path().join("empty.pem");
    std::fs::write(&empty, "").expect("a file");
    let other = files.path().join("other");
    std::fs::create_dir(&other).expect("a directory");
    let other = certificate(&other);
    let tls = |certificate: &Path, key: &Path| {
        let (certificate, key) = (certificate.to_owned(), key.to_owned());
        listen(
            limits(),
            Some(ServerTls {
                certificate,
                key,
                client_ca: None,
            }),
        )
    };
    let cases = [
        (
            Listen {
                address,
                ..listen(limits(), None)
            },
            "stop whatever has the address or change listen.address",
        ),
        (tls(&files.path().join("absent.pem"), &good.key), "absent.pem"),
        (tls(&empty, &good.key), "empty.pem: it holds no certificate"),
        (tls(&good.certificate, &empty), "empty.pem: it holds no private key"),
        (tls(&good.certificate, &other.key), "do not work together"),
    ];
    for (listen, expected) in cases {
        let error = Listener::bind(&listen, Metrics::new())
            .await
            .err()
            .expect("it can't be used")
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_peer_that_stops_reading_is_cut_off() {
    let (sender, dropped) = tokio::sync::oneshot::channel::<()>();
    let sender = Arc::new(std::sync::Mutex::new(Some(sender)));
    let listener = Listener::bind(&listen(limits(), None), Metrics::new())
        .await
        .expect("a free port");
    let address = listener.local_addr();
    let service = tower::service_fn(move |_: Incoming| {
        let reply = sender.lock().expect("nobody panicked").take();
        let frames = futures_util::stream::repeat_with(move || {
            // Held for as long as the reply is.
            let _ = &reply;
            Ok(body::Frame::data(bytes::Bytes::from_static(&[b'x'; 16 * 1024])))
        });
        let endless = edge::Body::new(http_body_util::StreamBody::new(frames));
        async move { Ok::<_, Infallible>(Response::new(endless)) }
    });
    tokio::spawn(listener.serve(service, CancellationToken::new(), SOON));
    let mut socket = TcpStream::connect(address).await.expect("a connection");
    socket.write_all(REQUEST).await.expect("sent");
    assert!(answer(&mut socket).await.starts_with("HTTP/1.1 200"));
    // From here time runs whenever nobody has anything to do, which is when the socket's buffers are full.
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let ended = tokio::time::timeout(stall::STALL * 10, dropped).await;
    assert!(ended.expect("the reply is let go of").is_err());
    assert!(began.elapsed() >= stall::STALL, "{:?}", began.elapsed());
}

/// Sends a request with this client certificate; `None` when the connection fails.
async fn shown(
    address: SocketAddr,
    root: &Path,
    certificate: Option<(&rcgen::Certificate, &rcgen::KeyPair)>,
) -> Option<String> {
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    let server = rustls::pki_types::CertificateDer::from_pem_file(root).expect("a certificate");
    roots.add(server).expect("an authority");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let config = match certificate {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let key = rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
            let chain = vec![certificate.der().clone()];
            config.with_client_auth_cert(chain, key).expect("they belong together")
        }
    };
    let socket = TcpStream::connect(address).await.expect("a connection");
    let name = "localhost".try_into().expect("a name");
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, socket)
        .await
        .ok()?;
    // With TLS 1.3 the refusal comes after the client's side of the handshake.
    stream.write_all(REQUEST).await.ok()?;
    let mut bytes = [0; 4096];
    let read = stream.read(&mut bytes).await.ok().filter(|read| *read > 0)?;
    Some(String::from_utf8_lossy(&bytes[..read]).into_owned())
}

#[tokio::test]
async fn client_certificates_are_verified_or_not_there() {
    async fn which(incoming: Incoming) -> Response<Body> {
        let certificate = incoming.connection.certificate;
        let thumbprint = certificate.as_deref().map(ClientCertificate::thumbprint);
        Response::new(edge::full(format!("{thumbprint:?}")))
    }
    let authority = || {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        (certificate, rcgen::Issuer::new(params, key))
    };
    let (trusted, issuer) = authority();
    let (_, stranger) = authority();
    let key = rcgen::KeyPair::generate().expect("a key");
    let leaf = |issuer: &rcgen::Issuer<'_, rcgen::KeyPair>, until: i32| {
        let mut params = rcgen::CertificateParams::new(vec!["client.example".to_owned()]).expect("parameters");
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        params.signed_by(&key, issuer).expect("a certificate")
    };
    let files = tempfile::tempdir().expect("a directory");
    let mut tls = certificate(files.path());
    let root = tls.certificate.clone();
    let bundle = files.path().join("clients.pem");
    std::fs::write(&bundle, trusted.pem()).expect("a file");
    tls.client_ca = Some(bundle);
    let serving = serve(listen(limits(), Some(tls)), SOON, which).await;
    let good = leaf(&issuer, 2100);
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, good.der());
    let expected: [u8; 32] = hash.as_ref().try_into().expect("32 bytes");
    // Twice: a second connection shows its certificate as the first did.
    for _ in 0..2 {
        let answer = shown(serving.address, &root, Some((&good, &key)))
            .await
            .expect("an answer");
        assert!(answer.ends_with(&format!("{:?}", Some(expected))), "{answer}");
    }
    let answer = shown(serving.address, &root, None).await.expect("an answer");
    assert!(answer.ends_with("None"), "{answer}");
    for (name, bad) in [("untrusted", leaf(&stranger, 2100)), ("expired", leaf(&issuer, 2001))] {
        assert_eq!(shown(serving.address, &root, Some((&bad, &key))).await, None, "{name}");
    }
}

/// Trusts this machine to send PROXY headers.
fn proxied(limits: ListenLimits, tls: Option<ServerTls>) -> Listen {
    Listen {
        trusted_proxies: vec!["127.0.0.1".parse().expect("a network")],
        proxy_protocol: true,
        ..listen(limits, tls)
    }
}

const SOURCE: &[u8] = b"PROXY TCP4 192.0.2.1 10.0.0.1 4660 443\r\n";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";

async fn source(incoming: Incoming) -> Response<Body> {
    Response::new(edge::full(incoming.connection.peer.ip().to_string()))
}

#[tokio::test]
async fn a_trusted_proxy_says_whom_it_connected_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let files = certificate(directory.path());
    let mut roots = rustls::RootCertStore::empty();
    let pem = std::fs::read(&files.certificate).expect("a file");
    let made = <rustls::pki_types::CertificateDer as rustls::pki_types::pem::PemObject>::from_pem_slice(&pem);
    roots.add(made.expect("a certificate")).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let plain = serve(proxied(limits(), None), SOON, source).await;
    let tls = serve(proxied(limits(), Some(files)), SOON, source).await;
    for (header, expected) in [(SOURCE, "192.0.2.1"), (LOCAL, "127.0.0.1")] {
        let request = [&REQUEST[..REQUEST.len() - 2], b"connection: close\r\n\r\n"].concat();
        let mut socket = TcpStream::connect(plain.address).await.expect("a connection");
        // In one write: what follows the header must not be taken for a part of it.
        socket.write_all(&[header, &request].concat()).await.expect("a request");
        let answer = rest(socket).await;
        assert!(answer.ends_with(expected), "{answer}");

        let mut socket = TcpStream::connect(tls.address).await.expect("a connection");
        socket.write_all(header).await.expect("a header");
        let name = "localhost".try_into().expect("a name");
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client.clone()));
        let mut socket = connector.connect(name, socket).await.expect("a handshake");
        socket.write_all(&request).await.expect("a request");
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.ends_with(expected), "{answer}");
    }
}

#[tokio::test]
async fn without_a_whole_proxy_header_nothing_is_served() {
    let soon = ListenLimits {
        header_timeout: SOON,
        ..limits()
    };
    let serving = serve(proxied(soon, None), SOON, source).await;
    let oversized = [&b"PROXY UNKNOWN "[..], &[b'x'; 200], b"\r\n", REQUEST].concat();
    for sent in [REQUEST, b"", &SOURCE[..9], &SOURCE[..30], &LOCAL[..14], &oversized] {
        let mut socket = TcpStream::connect(serving.address).await.expect("a connection");
        socket.write_all(sent).await.expect("a write");
        let answer = tokio::time::timeout(Duration::from_secs(10), rest(socket)).await;
        assert_eq!(answer.expect("closed in time"), "", "{}", sent.len());
    }
}

#[tokio::test]
async fn strangers_may_not_say_who_they_are() {
    let mut listen = proxied(limits(), None);
    listen.trusted_proxies = vec!["192.0.2.0/24".parse().expect("a network")];
    let serving = serve(listen, SOON, source).await;
    let mut socket = TcpStream::connect(serving.address).await.expect("a connection");
    socket.write_all(REQUEST).await.expect("a request");
    assert!(
        answer(&mut socket).await.starts_with("HTTP/1.1 200"),
        "without one they are served"
    );
    for header in [SOURCE, LOCAL] {
        let mut socket = TcpStream::connect(serving.address).await.expect("a connection");
        socket.write_all(&[header, REQUEST].concat()).await.expect("a write");
        let answer = rest(socket).await;
        assert!(!answer.contains(" 200 ") && !answer.contains("192.0.2.1"), "{answer}");
    }
}

#[tokio::test]
async fn the_share_of_an_address_is_counted_by_the_source() {
    let one = ListenLimits {
        connections_per_address: 1,
        ..limits()
    };
    let serving = serve(proxied(one, None), SOON, source).await;
    let sent = [SOURCE, REQUEST].concat();
    let mut first = TcpStream::connect(serving.address).await.expect("a connection");
    first.write_all(&sent).await.expect("a request");
    assert!(answer(&mut first).await.starts_with("HTTP/1.1 200"));
    let mut second = TcpStream::connect(serving.address).await.expect("a connection");
    second.write_all(&sent).await.expect("a request");
    assert_eq!(rest(second).await, "");
    let other = [b"PROXY TCP4 192.0.2.2 10.0.0.1 1 443\r\n", REQUEST].concat();
    let mut third = TcpStream::connect(serving.address).await.expect("a connection");
    third.write_all(&other).await.expect("a request");
    assert!(answer(&mut third).await.starts_with("HTTP/1.1 200"));
}
