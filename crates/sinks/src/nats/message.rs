//! A message as NATS carries it, and JetStream's answers.

use std::str::FromStr;

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use crate::{OutgoingMessage, PublishError};

/// A publish acknowledgement, or an API error instead.
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

    /// `JSAccountResourcesExceededErr`
    const ACCOUNT_LIMITS: u16 = 10002;
    /// `JSInsufficientResourcesErr`
    const NO_RESOURCES: u16 = 10023;

    pub(super) fn into_error(self, subject: &str) -> PublishError {
        let reason = format!("{subject}: {} (JetStream error {})", self.description, self.err_code);
        match (self.code, self.err_code) {
            (_, Self::TOO_LARGE | Self::HEADERS_TOO_LARGE) => PublishError::permanent(reason),
            // It comes with 503 or 400.
            (_, Self::STORE_FAILED) => PublishError::no_room(reason),
            // JetStream is off, has no leader, or too many requests or no resources: the message is not the cause.
            (429 | 500.., _) | (_, Self::ACCOUNT_LIMITS | Self::NO_RESOURCES) => {
                PublishError::unavailable(reason)
            }
            _ => PublishError::refused(reason),
        }
    }
}

/// The message's headers and id as NATS headers. A NATS header value is one line (ADR-4).
pub(super) fn headers(message: &OutgoingMessage) -> Result<HeaderMap, PublishError> {
    // The server trims the header, so two different ids would become one.
    if message.id.trim() != message.id {
        return Err(PublishError::permanent(
            "the message id begins or ends with a space, which NATS removes",
        ));
    }
    let mut map = HeaderMap::new();
    let id = ("Nats-Msg-Id", message.id.as_str());
    let rest = message.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in rest.chain([id]) {
        let unfit =
            |what| PublishError::permanent(format!("header {name:?}: {what} is not valid in a NATS header"));
        let name = HeaderName::from_str(name).map_err(|_| unfit("name"))?;
        map.insert(name, HeaderValue::from_str(value).map_err(|_| unfit("value"))?);
    }
    Ok(map)
}

/// The longest subject in bytes. A server with default settings closes the connection if the protocol line, which also
/// holds the reply inbox and the lengths, exceeds 4,096 bytes (`max_control_line`).
const LONGEST_SUBJECT: usize = 3_840;

/// Checks that a message can be published to a subject: tokens separated by dots, no wildcards, not too long.
pub(super) fn check_subject(subject: &str) -> Result<(), PublishError> {
    if subject.len() > LONGEST_SUBJECT {
        return Err(PublishError::permanent(format!(
            "destination: the subject is {} bytes long; at most {LONGEST_SUBJECT} are allowed",
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
        "destination: {subject:?} is not a subject to publish to; write tokens separated by dots, without wildcards"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: u16, err_code: u16) -> PublishError {
        Refusal { code, err_code, description: "it says".to_owned() }.into_error("s")
    }

    #[test]
    fn only_an_error_about_the_message_is_attributed_to_it() {
        // Bytes or messages exceeded: of the stream, or of the subject.
        for full in [of(503, 10_077), of(400, 10_077)] {
            assert!(matches!(full, PublishError::NoRoom { .. }), "{full}");
        }
        for all_wait in [
            // Insufficient resources, system unavailable, JetStream not enabled (for the account), storage and
            // memory exceeded, offline, account limits, too many requests.
            of(503, 10_023),
            of(503, 10_008),
            of(503, 10_076),
            of(503, 10_039),
            of(500, 10_047),
            of(500, 10_028),
            of(500, 10_118),
            of(400, 10_002),
            of(429, 10_167),
        ] {
            assert!(matches!(all_wait, PublishError::Unavailable { .. }), "{all_wait}");
        }
        for too_large in [of(400, 10_054), of(400, 10_097)] {
            assert!(matches!(too_large, PublishError::Permanent { .. }), "{too_large}");
        }
        // Another expected sequence, a sealed stream.
        for refused in [of(400, 10_071), of(400, 10_109)] {
            assert!(matches!(refused, PublishError::Refused { .. }), "{refused}");
        }
    }
}
