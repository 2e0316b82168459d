//! An HTTP/1.1 server on a free loopback port: the base of the receiver and the token endpoint.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::connections::serve_connections;

/// Connections at the same time; further ones wait.
const MOST_CONNECTIONS: usize = 4_096;
/// Size of a request body in bytes; larger ones get a 413.
const MOST_BODY: usize = 64 * 1024 * 1024;

pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Serves until it is dropped, which ends its connections.
pub(crate) struct HttpEndpoint {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl HttpEndpoint {
    /// Answers each request with `handler`, after its body has arrived.
    pub(crate) async fn bind<H, F>(handler: H) -> io::Result<Self>
    where
        H: Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let serve = move |stream: TcpStream| connection(stream, handler.clone());
        let accepting = tokio::spawn(async move {
            serve_connections(listener, MOST_CONNECTIONS, serve).await;
        });
        Ok(Self { address, accepting })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:<port><path>`
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for HttpEndpoint {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn connection<H, F>(stream: TcpStream, handler: H)
where
    H: Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let handler = handler.clone();
        async move { Ok::<_, Infallible>(answer(request, handler).await) }
    });
    // A connection may be idle for any time.
    let connection =
        http1::Builder::new().header_read_timeout(None).serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "connection of an endpoint ended with an error");
    }
}

async fn answer<H, F>(request: Request<Incoming>, handler: H) -> Response<Body>
where
    H: Fn(Request<Bytes>) -> F,
    F: Future<Output = Response<Body>>,
{
    let (head, body) = request.into_parts();
    match Limited::new(body, MOST_BODY).collect().await {
        Ok(body) => handler(Request::from_parts(head, body.to_bytes())).await,
        Err(error) if error.is::<LengthLimitError>() => response(StatusCode::PAYLOAD_TOO_LARGE, ""),
        Err(_) => response(StatusCode::BAD_REQUEST, ""),
    }
}

pub(crate) fn response(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never: Infallible| -> io::Error { match never {} });
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = status;
    response
}
