//! Limits what an endpoint may send. On HTTP/1, bytes and reads per request, which also covers endless heads and endless
//! interim answers (1xx). On HTTP/2, where one connection carries many requests and frames that belong to none, bytes
//! and reads per second.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// Maximum bytes of one HTTP/1 answer: its head, the part of the body that is read, and buffered bytes.
const PER_REQUEST: usize = 256 * 1024;
/// Maximum reads of one HTTP/1 answer: an endpoint that sends single bytes makes each as expensive as thousands.
const READS_PER_REQUEST: u32 = 16 * 1024;
/// Maximum bytes of an HTTP/2 connection in one period.
const PER_PERIOD: usize = 256 * 1024;
const READS_PER_PERIOD: u32 = 512;
const PERIOD: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// The endpoint sent more than an answer needs.
#[derive(Debug, thiserror::Error)]
#[error("the answer exceeds {PER_REQUEST} bytes or {READS_PER_REQUEST} reads")]
pub(super) struct TooMuchData;

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

    /// Records that something was sent: on HTTP/1 the next answer begins.
    pub(super) fn written(&mut self) {
        if self.protocol == Protocol::Http1 {
            (self.bytes, self.reads) = (0, 0);
        }
    }

    pub(super) fn read(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.reads += 1;
    }

    /// Ready if more may be read now. On HTTP/2 it waits for the next period; on HTTP/1 it fails with [`TooMuchData`].
    pub(super) fn poll_allowed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.protocol {
            Protocol::Http1 if self.bytes >= PER_REQUEST || self.reads >= READS_PER_REQUEST => {
                Poll::Ready(Err(io::Error::other(TooMuchData)))
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
    async fn on_http1_each_request_has_limits_of_bytes_and_reads() {
        for (bytes, reads) in [(PER_REQUEST, 1), (1, READS_PER_REQUEST)] {
            let mut meter = Meter::new(Protocol::Http1);
            for _ in 0..reads {
                assert!(matches!(allowed(&mut meter), Poll::Ready(Ok(()))));
                meter.read(bytes);
            }
            let Poll::Ready(Err(error)) = allowed(&mut meter) else { panic!("it goes on") };
            assert!(error.get_ref().is_some_and(|inner| inner.is::<TooMuchData>()), "{error}");
            meter.written();
            assert!(matches!(allowed(&mut meter), Poll::Ready(Ok(()))), "the next request starts at zero");
        }
    }

    /// A connection with many requests is slowed down and never closed; sent bytes make no difference.
    #[tokio::test]
    async fn on_http2_a_connection_is_slowed_down() {
        for (bytes, reads) in [(PER_PERIOD, 1), (1, READS_PER_PERIOD)] {
            let mut meter = Meter::new(Protocol::Http2);
            for _ in 0..3 {
                // Starts a period here: on a slow machine, one may end between two reads.
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
