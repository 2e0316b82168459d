//! A message as NATS carries it, and JetStream's answers.

use std::str::FromStr;

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use crate::sinks::{Outgoing, PublishError};

/// A publish acknowledgement, or an API error in its place.
#[derive(Deserialize)]
pub(super) struct Answer {
    pub(super) stream: Option<String>,
    pub(super) error: Option<Refusal>,
}

#[derive(Deserialize)]
pub(super) struct Refusal {
    code: u16,
    #[serde(default)]
    err_code: u16,
    #[serde(default)]
    description: String,
}

impl Refusal {
    /// `JSStreamMessageExceedsMaximumErr`
    const TOO_LARGE: u16 = 10054;
    /// `JSStreamHeaderExceedsMaximumErr`
    const HEADERS_TOO_LARGE: u16 = 10097;
    /// `JSStreamStoreFailedF`: the stream's limits refuse the message (discard new).
    const STORE_FAILED: u16 = 10077;

    pub(super) fn into_error(self, subject: &str) -> PublishError {
        let reason = format!("{subject}: {} (JetStream error {})", self.description, self.err_code);
        match (self.code, self.err_code) {
            (_, Self::TOO_LARGE | Self::HEADERS_TOO_LARGE) => PublishError::permanent(reason),
            // JetStream is off, has no leader, or no resources: not this message's fault. A stream that is
            // full is 10077, which comes with 503 as well.
            (503, code) if code != Self::STORE_FAILED => PublishError::unavailable(reason),
            _ => PublishError::refused(reason),
        }
    }
}

/// The message's headers and its id. A NATS header value is one line (ADR-4).
pub(super) fn headers(message: &Outgoing) -> Result<HeaderMap, PublishError> {
    // The server takes spaces off, and would take the message for a repetition of another.
    if message.id.trim() != message.id {
        return Err(PublishError::permanent(
            "the message id begins or ends with a space, which NATS does not keep",
        ));
    }
    let mut map = HeaderMap::new();
    let id = ("Nats-Msg-Id", message.id.as_str());
    let rest = message.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in rest.chain([id]) {
        let unfit =
            |what| PublishError::permanent(format!("header {name:?}: its {what} cannot be a NATS header's"));
        let name = HeaderName::from_str(name).map_err(|_| unfit("name"))?;
        map.insert(name, HeaderValue::from_str(value).map_err(|_| unfit("value"))?);
    }
    Ok(map)
}

/// The longest subject in bytes. A server that comes with its defaults ends the connection when the line with
/// it (beside it: the inbox for the answer and the lengths) has more than 4,096 (`max_control_line`).
const LONGEST_SUBJECT: usize = 3_840;

/// A subject that a message can be published to: tokens with dots between, no wildcards, not too long.
pub(super) fn check_subject(subject: &str) -> Result<(), PublishError> {
    if subject.len() > LONGEST_SUBJECT {
        return Err(PublishError::permanent(format!(
            "destination: the subject is {} bytes long, and at most {LONGEST_SUBJECT} are sent",
            subject.len()
        )));
    }
    let fits = |token: &str| {
        !token.is_empty()
            && !matches!(token, "*" | ">")
            && !token.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    if subject.split('.').all(fits) {
        return Ok(());
    }
    Err(PublishError::permanent(format!(
        "destination: {subject:?} is no subject to publish to: tokens with dots between"
    )))
}
