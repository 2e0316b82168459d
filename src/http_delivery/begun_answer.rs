//! The status of an HTTP/1 answer whose head is incomplete or invalid: it counts if it is a 2xx.
//!
//! The HTTP client says nothing of such an answer, nor which request a connection works on. But a connection's task both
//! takes the body of a request and writes it. So the body leaves its [`BegunAnswer`] in the task, and the next write there
//! begins the exchange.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use hyper_util::rt::TokioExecutor;

tokio::task_local! {
    /// The answer to the request that the task of a connection takes, until it is written.
    static TAKEN: RefCell<Option<BegunAnswer>>;
}

/// The status of an answer that has begun, 0 before. A clone shares it.
#[derive(Debug, Clone, Default)]
pub(super) struct BegunAnswer(Arc<AtomicU16>);

impl BegunAnswer {
    /// A final status (RFC 9110 section 15).
    pub(super) fn status(&self) -> Option<u16> {
        Some(self.0.load(Ordering::Relaxed)).filter(|status| (200..600).contains(status))
    }

    /// Forgets the answer to an earlier request.
    pub(super) fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
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
            // Outside of such a task, the status stays unknown.
            let _ = TAKEN.try_with(|taken| taken.replace(Some(begun)));
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
    /// Records that something was written. If a request begins, the next byte that is read begins its answer.
    pub(super) fn written(&mut self) {
        if let Ok(Some(begun)) = TAKEN.try_with(RefCell::take) {
            (self.begun, self.length) = (begun, 0);
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
            self.begun.0.store(status, Ordering::Relaxed);
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
