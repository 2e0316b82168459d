//! Gives a problem document to the answers that the HTTP server writes by itself, to requests that it cannot parse.
//!
//! `hyper` answers such a request with a bare head, before any handler of the API sees it, and then closes the connection.
//! [`AnsweringStream`] replaces that head. It recognizes it by what every answer of the API with these statuses has, and a
//! bare head has not: a content type.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::problem::{Problem, ProblemKind};

const END_OF_HEAD: &[u8] = b"\r\n\r\n";
/// Bytes of the request that are read and discarded after the answer. A peer that is still sending would otherwise see a
/// broken connection instead of the answer (RFC 9112 section 9.6). The deadline for the head of a request limits the time.
const DISCARD_LIMIT: usize = 1024 * 1024;

/// The problem for the status of a bare head.
fn problem(status: &[u8]) -> Option<Problem> {
    let (kind, field, text) = match status {
        b"400" => (
            ProblemKind::InvalidRequest,
            "request",
            "is not valid HTTP/1.1; percent-encode special characters of the path, such as > as %3E, and check the \
             request line and the headers",
        ),
        b"414" => (ProblemKind::PathTooLong, "path", "is too long; send at most 65,534 bytes"),
        b"431" => (
            ProblemKind::HeadersTooLarge,
            "headers",
            "are too many or too large; send at most 100 headers, and smaller ones",
        ),
        _ => return None,
    };
    Some(Problem::header(kind, field, text).closing())
}

/// Where a bare head starts, which ends these bytes, and its problem.
fn bare_head(bytes: &[u8]) -> Option<(usize, Problem)> {
    const STATUS_LINE: &[u8] = b"HTTP/1.";
    if !bytes.ends_with(END_OF_HEAD) {
        return None;
    }
    let start = bytes.windows(STATUS_LINE.len()).rposition(|part| part == STATUS_LINE)?;
    let head = bytes.get(start..)?;
    let problem = problem(head.get(9..12)?)?;
    let is_whole = head.windows(END_OF_HEAD.len()).position(|part| part == END_OF_HEAD)?
        == head.len() - END_OF_HEAD.len();
    let has_type = head
        .split(|byte| *byte == b'\n')
        .any(|line| line.get(..13).is_some_and(|name| name.eq_ignore_ascii_case(b"content-type:")));
    (is_whole && !has_type).then_some((start, problem))
}

/// A stream of a connection, on which every answer with an error has a problem document.
pub(super) struct AnsweringStream<S> {
    inner: S,
    /// The answer that replaces a bare head, and how much of it is written.
    answer: Option<(Vec<u8>, usize)>,
    /// Bytes discarded after the answer.
    discarded: usize,
    is_shut_down: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> AnsweringStream<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, answer: None, discarded: 0, is_shut_down: false }
    }

    /// Writes the rest of the answer.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        if let Some((answer, written)) = &mut self.answer {
            while let Some(rest) = answer.get(*written..).filter(|rest| !rest.is_empty()) {
                match ready!(Pin::new(&mut self.inner).poll_write(cx, rest))? {
                    0 => return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                    more => *written += more,
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads until the peer has read the answer and closes, or has sent too much.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let mut bytes = [0; 4096];
        while self.discarded < DISCARD_LIMIT {
            let mut buffer = ReadBuf::new(&mut bytes);
            match ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => self.discarded += buffer.filled().len(),
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for AnsweringStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for AnsweringStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        ready!(self.poll_answer(cx))?;
        match bare_head(bytes) {
            None => Pin::new(&mut self.inner).poll_write(cx, bytes),
            Some((0, problem)) => {
                self.answer = Some((problem.to_http(), 0));
                // What cannot be written now is written by the flush that follows.
                match self.poll_answer(cx) {
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    _ => Poll::Ready(Ok(bytes.len())),
                }
            }
            // The end of an earlier answer comes first.
            Some((start, _)) => {
                Pin::new(&mut self.inner).poll_write(cx, bytes.get(..start).unwrap_or_default())
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let mut filled = parts.iter().filter(|part| !part.is_empty());
        // A bare head has no body, so it is the only part.
        match (filled.next(), filled.next()) {
            (Some(only), None) => self.poll_write(cx, only),
            _ => {
                ready!(self.poll_answer(cx))?;
                Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        ready!(self.poll_answer(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        ready!(self.poll_answer(cx))?;
        if !self.is_shut_down {
            ready!(Pin::new(&mut self.inner).poll_shutdown(cx))?;
            self.is_shut_down = true;
        }
        if self.answer.is_some() { self.poll_discard(cx) } else { Poll::Ready(Ok(())) }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const BARE: &str = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\ndate: x\r\n\r\n";

    #[test]
    fn only_a_bare_head_of_an_error_is_recognized() {
        for status in ["400 Bad Request", "414 URI Too Long", "431 Request Header Fields Too Large"] {
            let head = BARE.replace("400 Bad Request", status);
            assert_eq!(bare_head(head.as_bytes()).map(|(start, _)| start), Some(0), "{status}");
            let after = format!("HTTP/1.1 204 No Content\r\n\r\n{head}");
            assert_eq!(bare_head(after.as_bytes()).map(|(start, _)| start), Some(27), "{status}");
        }
        let typed = BARE.replace("date", "Content-Type: application/problem+json\r\ndate");
        for other in [
            "",
            "\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
            "HTTP/1.1 400 Bad Request\r\n\r\ntext\r\n\r\n",
            &typed,
        ] {
            assert!(bare_head(other.as_bytes()).is_none(), "{other:?}");
        }
    }

    /// A peer that reads slowly, and goes on sending.
    #[tokio::test]
    async fn the_answer_is_whole_however_slowly_it_is_read() {
        for room in [1, 7, 64, 4096] {
            let (ours, mut theirs) = tokio::io::duplex(room);
            let mut stream = AnsweringStream::new(ours);
            let writing = async {
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
                stream.write_all(BARE.as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
                stream.shutdown().await.unwrap();
            };
            let reading = async {
                let mut read = Vec::new();
                theirs.read_to_end(&mut read).await.unwrap();
                theirs.write_all(&[b'x'; 10_000]).await.unwrap();
                drop(theirs);
                String::from_utf8(read).unwrap()
            };
            let ((), read) = tokio::join!(writing, reading);
            let (first, second) = read.split_once("\r\n\r\n").unwrap();
            assert_eq!(first, "HTTP/1.1 204 No Content");
            assert!(second.contains("application/problem+json") && second.ends_with('}'), "{second}");
        }
    }
}
