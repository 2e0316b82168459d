//! Reads the body of an answer, within bounds of bytes and of time. A body that breaks off, stalls or is badly
//! framed is no error: status and headers have decided by then, and what arrived is kept.

use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout_at};

use super::client::Answer;

/// What was read of a body.
pub(super) struct Body {
    /// At most as many bytes as were to be kept.
    pub(super) bytes: Vec<u8>,
    pub(super) end: End,
}

/// How reading a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// All of it was read; the connection can be reused.
    Whole,
    /// It is longer than the limit.
    TooLong,
    /// It had not ended in time.
    Late,
    /// The connection closed within it, or its framing is wrong.
    Broken,
}

/// Reads up to `limit` bytes until `deadline`, and keeps the first `keep` of them. A connection with an unread rest
/// is closed.
pub(super) async fn read(answer: Answer, keep: usize, limit: usize, deadline: Instant) -> Body {
    let (mut body, mut bytes, mut length) = (answer.into_body(), Vec::new(), 0);
    let end = loop {
        let frame = match timeout_at(deadline, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => break End::Whole,
            Ok(Some(Err(_))) => break End::Broken,
            Err(_) => break End::Late,
        };
        // What is no data is trailers.
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
