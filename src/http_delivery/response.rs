//! Reads an endpoint's answer. Status and headers decide the outcome as soon as they arrive; an excerpt of the body is
//! kept, with secrets redacted.

use std::time::{Duration, SystemTime};

use hyper::header::{CONTENT_ENCODING, DATE, HeaderMap, RETRY_AFTER};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use super::body;
use super::client;
use super::token::Token;
use crate::domain::outcome::Outcome;
use crate::domain::redact;

/// Bytes of a failed answer's body that the delivery log keeps.
const EXCERPT: usize = 1024;
/// Bytes searched for echoed credentials: more than the excerpt, so that its end does not cut a credential in two.
const EXAMINED: usize = 4 * 1024;
/// Time limit for reading a body, within the attempt's timeout.
const BODY_TIME: Duration = Duration::from_secs(2);
/// Time limit for reading the body of a 401 or 403 before the attempt continues with a new token.
const REFUSAL_TIME: Duration = Duration::from_millis(200);
/// Maximum `Retry-After`; a longer one is shortened to it.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(365 * 24 * 3600);

/// The outcome of an answer, and an excerpt of its body if it failed.
pub(super) struct ReadResponse {
    pub(super) outcome: Outcome,
    pub(super) excerpt: Option<String>,
}

/// Reads an answer. Its head decides the outcome, even if the body breaks off.
///
/// Reads up to `limit` bytes of the body, for at most 2 s and until `deadline`. If the body is complete, the next attempt
/// can use the connection; otherwise the connection is closed. `now`: the time of the answer.
pub(super) async fn read(
    response: client::HttpResponse,
    now: SystemTime,
    limit: usize,
    deadline: Instant,
    secrets: &[SecretString],
    token: Option<&Token>,
) -> ReadResponse {
    let status = response.status();
    let deadline = deadline.min(Instant::now() + BODY_TIME);
    if status.is_success() {
        body::read(response, 0, limit, deadline).await;
        let outcome = Outcome::Answered { status: status.as_u16(), retry_after: None };
        return ReadResponse { outcome, excerpt: None };
    }
    let retry_after = retry_after(response.headers(), now);
    let encoded = is_encoded(response.headers());
    let body = body::read(response, EXAMINED.min(limit), limit, deadline).await;
    let sent = secrets.iter().chain(token.map(|token| &token.secret));
    let text = if encoded {
        // Credentials in a compressed body cannot be found and redacted.
        "(the body is compressed, and not kept)".to_owned()
    } else {
        let cut = body.bytes.len() >= EXAMINED.min(limit);
        redact::excerpt(
            &String::from_utf8_lossy(&body.bytes),
            cut,
            sent.map(|secret| secret.expose_secret()),
            EXCERPT,
        )
    };
    ReadResponse {
        outcome: Outcome::Answered { status: status.as_u16(), retry_after },
        excerpt: (!text.is_empty()).then_some(text),
    }
}

/// True if the body is compressed, although no request asks for it.
pub(super) fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_ENCODING).iter().any(|value| value != "identity")
}

/// Reads the body of a 401 or 403 for a short time, so that its connection can be reused.
pub(super) async fn discard(response: client::HttpResponse, limit: usize) {
    body::read(response, 0, limit, Instant::now() + REFUSAL_TIME).await;
}

/// `Retry-After` (RFC 9110 section 10.2.3): seconds, or a date. A date in the past means zero. The endpoint wrote it by its
/// own clock, which the answer's `Date` shows (section 6.6.1); `now` counts only without one.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let at = httpdate::parse_http_date(text).ok()?;
        let sent =
            headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?.trim()).ok());
        at.duration_since(sent.unwrap_or(now)).unwrap_or_default()
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let read = |text: &str| {
            retry_after(&HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(text).unwrap())]), now)
        };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(read("120"), seconds(120));
        assert_eq!(read(" 0 "), seconds(0));
        assert_eq!(read("99999999999999999999999"), Some(LONGEST_RETRY_AFTER));
        // The example date of RFC 9110 is 784,111,777 seconds after the epoch; one minute later.
        assert_eq!(read("Sun, 06 Nov 1994 08:50:37 GMT"), seconds(60));
        assert_eq!(read("Sunday, 06-Nov-94 08:50:37 GMT"), seconds(60));
        assert_eq!(read("Sun, 06 Nov 1994 08:00:00 GMT"), seconds(0));
        // By the clock of the endpoint, if the answer shows it.
        let by = |date: &'static str| {
            let headers = [
                (RETRY_AFTER, HeaderValue::from_static("Sun, 06 Nov 1994 08:50:37 GMT")),
                (DATE, HeaderValue::from_static(date)),
            ];
            retry_after(&HeaderMap::from_iter(headers), now)
        };
        assert_eq!(by("Sun, 06 Nov 1994 08:50:07 GMT"), seconds(30));
        assert_eq!(by("Sun, 06 Nov 1994 10:00:00 GMT"), seconds(0));
        assert_eq!(by("yesterday"), seconds(60));
        for text in ["soon", "-5", "1.5", ""] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }
}
