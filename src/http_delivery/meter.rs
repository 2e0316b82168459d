//! How much an endpoint may send. On HTTP/1 so many bytes for a request, whatever they are: heads without end,
//! interim answers (1xx) without end. On HTTP/2, where one connection carries many requests and frames that answer
//! none, so many bytes a second.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// Of one HTTP/1 answer: head, what is read of the body, and what lies in the buffers.
const PER_REQUEST: usize = 256 * 1024;
/// Reads of one HTTP/1 answer: whoever sends byte by byte makes each of them cost as much as thousands.
const READS_PER_REQUEST: u32 = 16 * 1024;
/// Of an HTTP/2 connection within one period.
const PER_PERIOD: usize = 256 * 1024;
const READS_PER_PERIOD: u32 = 512;
const PERIOD: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// The endpoint sends far more than an answer needs.
#[derive(Debug, thiserror::Error)]
#[error("more than {PER_REQUEST} bytes or {READS_PER_REQUEST} pieces of an answer, and no end")]
pub(super) struct Flooded;

/// The count of one connection.
pub(super) struct Meter {
    protocol: Protocol,
    bytes: usize,
    reads: u32,
    since: Instant,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Meter {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self { protocol, bytes: 0, reads: 0, since: Instant::now(), pause: None }
    }

    pub(super) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Something was sent: on HTTP/1 the next answer begins.
    pub(super) fn written(&mut self) {
        if self.protocol == Protocol::Http1 {
            (self.bytes, self.reads) = (0, 0);
        }
    }

    pub(super) fn read(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.reads += 1;
    }

    /// Whether more may be read now: on HTTP/2 it may be later.
    pub(super) fn poll_allowed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.protocol {
            Protocol::Http1 if self.bytes >= PER_REQUEST || self.reads >= READS_PER_REQUEST => {
                Poll::Ready(Err(io::Error::other(Flooded)))
            }
            Protocol::Http1 => Poll::Ready(Ok(())),
            Protocol::Http2 => {
                if let Some(pause) = &mut self.pause {
                    ready!(pause.as_mut().poll(cx));
                    self.pause = None;
                    self.begin();
                } else if self.bytes >= PER_PERIOD || self.reads >= READS_PER_PERIOD {
                    if self.since.elapsed() >= PERIOD {
                        self.begin();
                    } else {
                        let pause = tokio::time::sleep_until(self.since + PERIOD);
                        ready!(self.pause.insert(Box::pin(pause)).as_mut().poll(cx));
                        self.pause = None;
                        self.begin();
                    }
                }
                Poll::Ready(Ok(()))
            }
        }
    }

    fn begin(&mut self) {
        (self.bytes, self.reads, self.since) = (0, 0, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn allowed(meter: &mut Meter) -> Poll<io::Result<()>> {
        meter.poll_allowed(&mut Context::from_waker(std::task::Waker::noop()))
    }

    #[tokio::test]
    async fn on_http1_each_request_has_so_many_bytes_and_pieces() {
        for (bytes, reads) in [(PER_REQUEST, 1), (1, READS_PER_REQUEST)] {
            let mut meter = Meter::new(Protocol::Http1);
            for _ in 0..reads {
                assert!(matches!(allowed(&mut meter), Poll::Ready(Ok(()))));
                meter.read(bytes);
            }
            let Poll::Ready(Err(error)) = allowed(&mut meter) else { panic!("it goes on") };
            assert!(error.get_ref().is_some_and(|inner| inner.is::<Flooded>()), "{error}");
            meter.written();
            assert!(matches!(allowed(&mut meter), Poll::Ready(Ok(()))), "the next request begins anew");
        }
    }

    /// A connection of many requests is slowed down, and never cut; what we send makes no difference.
    #[tokio::test]
    async fn on_http2_a_connection_is_slowed_down() {
        for (bytes, reads) in [(PER_PERIOD, 1), (1, READS_PER_PERIOD)] {
            let mut meter = Meter::new(Protocol::Http2);
            for _ in 0..3 {
                // From the first read of a period to its end: a slow machine may pass one in between.
                meter.begin();
                (0..reads).for_each(|_| meter.read(bytes));
                meter.written();
                meter.since = Instant::now();
                assert!(allowed(&mut meter).is_pending());
                poll_fn(|cx| meter.poll_allowed(cx)).await.unwrap();
                assert_eq!((meter.bytes, meter.reads), (0, 0));
            }
        }
    }
}
