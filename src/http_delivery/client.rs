//! The HTTP client: hyper's connection pool, with an address guard, timeouts and a limit of incoming bytes. It uses hyper
//! directly because reqwest gives no access to its connections, where the bytes are counted.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::http::uri::Scheme;
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::connect::{
    CaptureConnection, Connected, Connection, HttpConnector, capture_connection,
};
use hyper_util::client::legacy::{Client as Pool, Error};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::HttpConfig;
use super::address_guard::{BoxError, GuardedResolver};
use super::begun_answer::{BegunAnswer, ConnectionTasks, Outgoing, StatusLine};
use super::meter::{Meter, Protocol};

/// Idle connections kept per endpoint: as many as a domain's pool may use at once, so that a busy endpoint needs no new
/// connection for each envelope.
const IDLE_PER_HOST: usize = 256;
/// Maximum idle time: shorter than that of common servers, so that a server does not close a connection while it is used.
const IDLE: Duration = Duration::from_secs(30);
/// Interval of HTTP/2 pings, which detect a dead connection before attempts time out on it.
const PING_EVERY: Duration = Duration::from_secs(20);
/// Maximum number of headers of an HTTP/1 answer.
const MOST_HEADERS: usize = 256;
/// Maximum size of an answer's head, in bytes.
const HEAD: usize = 64 * 1024;
/// Bytes of a body that an HTTP/2 endpoint may send before they are read.
const HTTP2_WINDOW: u32 = 128 * 1024;

pub(super) type HttpResponse = Response<Incoming>;

/// An HTTP client. A clone shares the connections.
#[derive(Clone)]
pub(super) struct Client {
    pool: Arc<Pool<Connector, Outgoing>>,
}

impl Client {
    /// * `tls`: a configuration without ALPN
    /// * `open`: the number of open connections, which the client updates
    pub(super) fn new(config: &HttpConfig, mut tls: ClientConfig, open: &Arc<AtomicUsize>) -> Self {
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut tcp = HttpConnector::new_with_resolver(GuardedResolver::new(config.addresses.clone()));
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let connector = Connector {
            tcp,
            tls: TlsConnector::from(Arc::new(tls)),
            timeout: config.connect_timeout,
            open: Arc::clone(open),
        };
        let pool = Pool::builder(ConnectionTasks)
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .http1_allow_obsolete_multiline_headers_in_responses(true)
            .http1_allow_spaces_after_header_name_in_responses(true)
            .http1_ignore_invalid_headers_in_responses(true)
            .http1_max_headers(MOST_HEADERS)
            .http1_max_buf_size(HEAD)
            .http2_max_header_list_size(HEAD as u32)
            .http2_initial_stream_window_size(HTTP2_WINDOW)
            .http2_keep_alive_interval(PING_EVERY)
            .http2_keep_alive_timeout(config.connect_timeout)
            .build(connector);
        Self { pool: Arc::new(pool) }
    }

    /// Sends a request, and returns as soon as the head of the answer is complete. Follows no redirect and sends nothing
    /// twice. If the future is dropped before, no other request uses the connection. `begun` has the status of the answer,
    /// as soon as it has begun.
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        begun: &mut BegunAnswer,
    ) -> Result<HttpResponse, RequestError> {
        begun.renew();
        let mut request = request.map(|body| Outgoing::new(body, begun.clone()));
        let may_be_http2 = request.uri().scheme() == Some(&Scheme::HTTPS);
        let mut unanswered = Unanswered(may_be_http2.then(|| capture_connection(&mut request)));
        let answer = self.pool.request(request).await;
        unanswered.0 = None;
        answer.map_err(|error| RequestError { error, status: begun.status() })
    }
}

/// A request that may use HTTP/2 and has no answer yet. If it is dropped, its time is up, and the connection drains: it may
/// answer pings and no request, and would otherwise take every later request to its host. (On HTTP/1, hyper closes it.)
struct Unanswered(Option<CaptureConnection>);

impl Drop for Unanswered {
    fn drop(&mut self) {
        let connected = self.0.as_ref().map(CaptureConnection::connection_metadata);
        if let Some(connected) = connected.as_ref().and_then(|connected| connected.as_ref()) {
            connected.poison();
        }
    }
}

/// A request without a readable answer.
pub(super) struct RequestError {
    pub(super) error: Error,
    /// The final status, if the status line arrived.
    pub(super) status: Option<u16>,
}

/// Opens connections, with one timeout for name resolution, TCP and TLS together.
#[derive(Clone)]
struct Connector {
    tcp: HttpConnector<GuardedResolver>,
    tls: TlsConnector,
    timeout: Duration,
    open: Arc<AtomicUsize>,
}

/// Counts one open connection until it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(open))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Metered>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<Metered>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { tcp, tls, timeout, open } = self;
        let (connecting, tls, timeout) = (tcp.call(uri.clone()), tls.clone(), *timeout);
        let counted = Counted::new(open);
        Box::pin(async move {
            let connected = async {
                let tcp = connecting.await?.into_inner();
                if uri.scheme_str() != Some("https") {
                    let meter = Meter::new(Protocol::Http1);
                    return Ok(TokioIo::new(Metered::new(meter, Stream::Plain(tcp), counted)));
                }
                let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
                let stream = tls.connect(ServerName::try_from(host.to_owned())?, tcp).await?;
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let meter = Meter::new(if is_http2 { Protocol::Http2 } else { Protocol::Http1 });
                Ok::<_, BoxError>(TokioIo::new(Metered::new(meter, Stream::Tls(Box::new(stream)), counted)))
            };
            match tokio::time::timeout(timeout, connected).await {
                Ok(connected) => connected,
                Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            }
        })
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection whose incoming bytes are counted.
struct Metered {
    meter: Meter,
    answer: StatusLine,
    stream: Stream,
    _counted: Counted,
}

impl Metered {
    fn new(meter: Meter, stream: Stream, counted: Counted) -> Self {
        Self { meter, answer: StatusLine::default(), stream, _counted: counted }
    }

    fn begin_write(&mut self) {
        self.meter.written();
        if self.meter.protocol() == Protocol::Http1 {
            self.answer.begin();
        }
    }

    fn written(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = result
            && self.meter.protocol() == Protocol::Http1
        {
            self.answer.written(bytes);
        }
        result
    }
}

impl Connection for Metered {
    fn connected(&self) -> Connected {
        match self.meter.protocol() {
            Protocol::Http1 => Connected::new(),
            Protocol::Http2 => Connected::new().negotiated_h2(),
        }
    }
}

impl AsyncRead for Metered {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.meter.poll_allowed(cx))?;
        let before = buf.filled().len();
        ready!(match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        })?;
        this.meter.read(buf.filled().len() - before);
        if this.meter.protocol() == Protocol::Http1 {
            this.answer.read(&buf.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.begin_write();
        let written = match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        };
        this.written(written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.begin_write();
        let written = match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        };
        this.written(written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
