//! Reads the body of an answer, with limits of size and time. A body that breaks off, stalls or is badly framed is not an
//! error: status and headers have decided the outcome, and the bytes that arrived are kept.

use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout_at};

use super::client::HttpResponse;

/// The part of a body that was read.
pub(super) struct Body {
    /// The first bytes, up to the number to keep.
    pub(super) bytes: Vec<u8>,
    pub(super) end: End,
}

/// How reading a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The body is complete; the connection can be reused.
    Whole,
    /// The body is longer than the limit.
    TooLong,
    /// The deadline passed before the end of the body.
    Late,
    /// The connection closed before the end of the body, or its framing is wrong.
    Broken,
}

/// Reads up to `limit` bytes until `deadline`, and keeps the first `keep` of them. If a part stays unread, the connection
/// is closed.
pub(super) async fn read(answer: HttpResponse, keep: usize, limit: usize, deadline: Instant) -> Body {
    let (mut body, mut bytes, mut length) = (answer.into_body(), Vec::new(), 0);
    let end = loop {
        let frame = match timeout_at(deadline, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => break End::Whole,
            Ok(Some(Err(_))) => break End::Broken,
            Err(_) => break End::Late,
        };
        // A frame without data holds trailers.
        let Ok(chunk) = frame.into_data() else { continue };
        let room = keep - bytes.len();
        bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
        length += chunk.len();
        if length > limit {
            break End::TooLong;
        }
    };
    Body { bytes, end }
}
