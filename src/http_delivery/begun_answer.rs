//! What an HTTP/1 connection shows of an answer beside the answer itself: the status although the rest of its head is
//! missing or invalid, and whether the endpoint answered before it took the whole request.
//!
//! The HTTP client says nothing of such an answer, nor which request a connection works on. But a connection's task both
//! takes the body of a request and writes it. So the body leaves its [`BegunAnswer`] in the task, and the next write there
//! begins the exchange.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use hyper_util::rt::TokioExecutor;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

tokio::task_local! {
    /// The answer to the request that the task of a connection takes, until it is written, and the bytes of its body.
    static TAKEN: RefCell<Option<(BegunAnswer, usize)>>;
}

/// An answer that has begun. A clone shares it.
#[derive(Debug, Clone, Default)]
pub(super) struct BegunAnswer(Arc<Exchange>);

#[derive(Debug, Default)]
struct Exchange {
    /// 0 before the answer.
    status: AtomicU16,
    /// Bytes of the request that are not written yet, of its body at least. They count only once it is being written.
    unwritten: AtomicUsize,
    /// Notified when the request is written, or its connection has ended.
    ended: Notify,
}

impl BegunAnswer {
    /// A final status (RFC 9110 section 15). A 2xx counts only if the endpoint took the whole request.
    pub(super) fn status(&self) -> Option<u16> {
        let status = self.0.status.load(Ordering::Relaxed);
        let counts = match status {
            200..300 => self.is_sent(),
            status => (300..600).contains(&status),
        };
        counts.then_some(status)
    }

    /// Whether the connection wrote the whole request, as far as that is known.
    pub(super) fn is_sent(&self) -> bool {
        self.0.unwritten.load(Ordering::Relaxed) == 0
    }

    /// Waits until the whole request is written; false if the connection ends or the deadline passes before.
    pub(super) async fn sent_until(&self, deadline: Instant) -> bool {
        // A notification that came before is kept.
        let _ = timeout_at(deadline, self.0.ended.notified()).await;
        self.is_sent()
    }

    /// Begins another exchange. The connection of an earlier one may still write its request, and has the answer to that.
    pub(super) fn renew(&mut self) {
        if Arc::strong_count(&self.0) > 1 {
            *self = Self::default();
        }
    }
}

/// Runs the tasks of connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectionTasks;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for ConnectionTasks {
    fn execute(&self, task: F) {
        TokioExecutor::new().execute(TAKEN.scope(RefCell::default(), task));
    }
}

/// The body of a request. On HTTP/1, the connection takes it when the previous answer is complete, before anything of the
/// request is written.
pub(super) struct Outgoing {
    body: Full<Bytes>,
    /// `None` once it is taken.
    begun: Option<BegunAnswer>,
}

impl Outgoing {
    pub(super) fn new(body: Full<Bytes>, begun: BegunAnswer) -> Self {
        Self { body, begun: Some(begun) }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(begun) = self.begun.take() {
            let length = usize::try_from(self.body.size_hint().lower()).unwrap_or(usize::MAX);
            // Outside of such a task, the status stays unknown.
            let _ = TAKEN.try_with(|taken| taken.replace(Some((begun, length))));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The length of `HTTP/1.1 200`, and of the blank or line end that shows that the number is complete.
const STATUS_LINE: usize = 13;

/// Reads the status lines of a connection's answers.
#[derive(Debug, Default)]
pub(super) struct StatusLine {
    /// That of the last request.
    begun: BegunAnswer,
    line: [u8; STATUS_LINE],
    length: usize,
}

impl StatusLine {
    /// Something is about to be written. If a request begins, the next byte that is read begins its answer.
    pub(super) fn begin(&mut self) {
        if let Ok(Some((begun, length))) = TAKEN.try_with(RefCell::take) {
            begun.0.unwritten.store(length, Ordering::Relaxed);
            (self.begun, self.length) = (begun, 0);
        }
    }

    /// This number of bytes was written.
    pub(super) fn written(&mut self, bytes: usize) {
        // Only this task writes.
        let Exchange { unwritten, ended, .. } = &*self.begun.0;
        let before = unwritten.load(Ordering::Relaxed);
        if before > 0 {
            unwritten.store(before.saturating_sub(bytes), Ordering::Relaxed);
            if before <= bytes {
                ended.notify_one();
            }
        }
    }

    pub(super) fn read(&mut self, bytes: &[u8]) {
        if self.length == STATUS_LINE {
            return;
        }
        let more = bytes.len().min(STATUS_LINE - self.length);
        self.line[self.length..self.length + more].copy_from_slice(&bytes[..more]);
        self.length += more;
        if let Some(status) = status_of(&self.line[..self.length]) {
            self.begun.0.status.store(status, Ordering::Relaxed);
        }
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        if !self.begun.is_sent() {
            self.begun.0.ended.notify_one();
        }
    }
}

/// Parses the beginning of a status line, if it is complete.
fn status_of(line: &[u8]) -> Option<u16> {
    let [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0' | b'1', b' ', digits @ .., end] = line else {
        return None;
    };
    let is_status = digits.len() == 3 && digits.iter().all(u8::is_ascii_digit);
    let is_complete = matches!(end, b' ' | b'\t' | b'\r' | b'\n');
    (is_status && is_complete)
        .then(|| digits.iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A refused token: the first connection still writes its request while the second one carries the event.
    #[test]
    fn an_earlier_exchange_says_nothing_of_the_next_one() {
        let mut begun = BegunAnswer::default();
        let begin = |begun: &BegunAnswer, line: &mut StatusLine| {
            TAKEN.sync_scope(RefCell::new(Some((begun.clone(), 100))), || line.begin());
        };
        let (mut first, mut second) = (StatusLine::default(), StatusLine::default());
        begun.renew();
        begin(&begun, &mut first);
        begun.renew();
        begin(&begun, &mut second);
        first.written(100);
        first.read(b"HTTP/1.1 200 OK\r\n");
        assert_eq!((begun.status(), begun.is_sent()), (None, false));
        second.read(b"HTTP/1.1 200 OK\r\n");
        assert_eq!(begun.status(), None, "it has not taken the request");
        second.written(100);
        assert_eq!((begun.status(), begun.is_sent()), (Some(200), true));
    }
}
