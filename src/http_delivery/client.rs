//! The HTTP client: hyper's pool, on connections that are guarded, timed and metered. Built on hyper itself because
//! the client above it lets nobody at its connections, where alone an endpoint's bytes can be counted.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::legacy::{Client as Pool, Error};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::HttpConfig;
use super::guard::GuardedResolver;
use super::meter::{Meter, Protocol};

/// Idle connections kept to one endpoint: as many as a domain's pool may use at once, so that a
/// busy endpoint is not connected to anew for each envelope.
const IDLE_PER_HOST: usize = 256;
/// Shorter than the idle time of common servers, which close a connection just when it is used.
const IDLE: Duration = Duration::from_secs(30);
/// An HTTP/2 connection that is dead without a word would take every attempt's whole timeout.
const PING_EVERY: Duration = Duration::from_secs(20);
/// Most headers of an HTTP/1 answer.
const MOST_HEADERS: usize = 256;
/// Most bytes of the head of an answer.
const HEAD: usize = 64 * 1024;
/// What an HTTP/2 endpoint may send of a body before we read it.
const HTTP2_WINDOW: u32 = 128 * 1024;

pub(super) type Answer = Response<Incoming>;

/// A clone shares the connections.
#[derive(Clone)]
pub(super) struct Client {
    pool: Pool<Connector, Full<Bytes>>,
}

impl Client {
    /// `tls` without ALPN.
    pub(super) fn new(config: &HttpConfig, mut tls: ClientConfig) -> Self {
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut tcp = HttpConnector::new_with_resolver(GuardedResolver::new(config.addresses.clone()));
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let connector =
            Connector { tcp, tls: TlsConnector::from(Arc::new(tls)), timeout: config.connect_timeout };
        let pool = Pool::builder(TokioExecutor::new())
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
        Self { pool }
    }

    /// Sends a request, and returns as soon as the head of the answer is there. Redirects are not followed, and nothing
    /// is sent twice.
    pub(super) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer, Error> {
        self.pool.request(request).await
    }
}

/// Connects within a time: name resolution, TCP and TLS together.
#[derive(Clone)]
struct Connector {
    tcp: HttpConnector<GuardedResolver>,
    tls: TlsConnector,
    timeout: Duration,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Connector {
    type Response = TokioIo<Metered>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<Metered>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { tcp, tls, timeout } = self;
        let (connecting, tls, timeout) = (tcp.call(uri.clone()), tls.clone(), *timeout);
        Box::pin(async move {
            let connected = async {
                let tcp = connecting.await?.into_inner();
                if uri.scheme_str() != Some("https") {
                    let meter = Meter::new(Protocol::Http1);
                    return Ok(TokioIo::new(Metered { meter, stream: Stream::Plain(tcp) }));
                }
                let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
                let stream = tls.connect(ServerName::try_from(host.to_owned())?, tcp).await?;
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let meter = Meter::new(if is_http2 { Protocol::Http2 } else { Protocol::Http1 });
                Ok::<_, BoxError>(TokioIo::new(Metered { meter, stream: Stream::Tls(Box::new(stream)) }))
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
    stream: Stream,
}

impl Connection for Metered {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        if self.meter.protocol() == Protocol::Http2 { connected.negotiated_h2() } else { connected }
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
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.meter.written();
        match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
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
        this.meter.written();
        match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
