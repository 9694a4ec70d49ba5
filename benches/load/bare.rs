//! The bare proxy: hyper's server, hyper-util's pooled client, and nothing in between. What the gate is measured against.

use std::convert::Infallible;

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use portcullis::cli::demo::loopback::Loopback;

/// The bench runs itself with this and `host:port` as a process of its own.
pub const ARGUMENT: &str = "bare-proxy";

/// Forwards to `target` until killed; prints its own address first.
pub async fn run(target: &str) {
    let authority: Authority = target.parse().expect("the bench passes host:port");
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Incoming> = Client::builder(TokioExecutor::new()).build(connector);
    let service = service_fn(move |request: Request<Incoming>| {
        let (client, authority) = (client.clone(), authority.clone());
        async move { Ok::<_, Infallible>(forward(&client, authority, request).await) }
    });
    let server = Loopback::serve(0, service).await.expect("loopback has a free port");
    println!("{}", server.address());
    std::future::pending::<()>().await;
}

async fn forward(
    client: &Client<HttpConnector, Incoming>,
    authority: Authority,
    mut request: Request<Incoming>,
) -> Response<BoxBody<Bytes, hyper::Error>> {
    let mut uri = request.uri().clone().into_parts();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(authority);
    *request.uri_mut() = Uri::from_parts(uri).expect("a request's path under an authority is a URI");
    request.headers_mut().remove(http::header::HOST);
    match client.request(request).await {
        Ok(response) => response.map(BodyExt::boxed),
        Err(_) => {
            let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed());
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response
        }
    }
}
