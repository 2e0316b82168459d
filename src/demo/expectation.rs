//! Checks with a deadline. A check that fails names what was expected and what was found.

use std::error::Error;
use std::fmt::{self, Display};
use std::time::Duration;

use crate::nats::NatsError;

/// Polling interval: the broker does not report changes of the number of messages.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A check that did not hold in time.
#[derive(Debug, thiserror::Error)]
#[error("expected {expected}; seen: {seen}")]
pub(super) struct Unmet {
    pub expected: String,
    /// What was found last.
    pub seen: Seen,
}

impl Unmet {
    pub(super) fn new(expected: impl Into<String>, seen: impl Into<Seen>) -> Self {
        Self { expected: expected.into(), seen: seen.into() }
    }

    /// The check could not be made.
    pub(super) fn failed(expected: impl Into<String>, error: impl Error + Send + Sync + 'static) -> Self {
        Self::new(expected, Seen::Failure(error.into()))
    }
}

/// What a check found instead of what it expected.
#[derive(Debug)]
pub(super) enum Seen {
    State(String),
    /// The look itself failed.
    Failure(Box<dyn Error + Send + Sync>),
    /// `last` was found, and then no look ended within `limit`.
    NoAnswer {
        last: Option<Box<Seen>>,
        limit: Duration,
    },
    /// Still the same after `limit`.
    StillAfter {
        last: Option<Box<Seen>>,
        limit: Duration,
    },
}

impl Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(state) => f.write_str(state),
            Self::Failure(error) => error.fmt(f),
            Self::NoAnswer { last: Some(last), limit } => {
                write!(f, "{last}, then no answer within {limit:?}")
            }
            Self::NoAnswer { last: None, limit } => write!(f, "no answer within {limit:?}"),
            Self::StillAfter { last: Some(last), limit } => write!(f, "{last} (after {limit:?})"),
            Self::StillAfter { last: None, limit } => write!(f, "nothing (after {limit:?})"),
        }
    }
}

impl From<String> for Seen {
    fn from(state: String) -> Self {
        Self::State(state)
    }
}

impl From<&str> for Seen {
    fn from(state: &str) -> Self {
        Self::State(state.to_owned())
    }
}

impl From<NatsError> for Seen {
    fn from(error: NatsError) -> Self {
        Self::Failure(error.into())
    }
}

/// Repeats `look` until it returns what was expected, instead of what it found.
///
/// # Errors
///
/// After `limit`, with what was found last; a look that hangs ends then as well.
pub(super) async fn until<T>(
    limit: Duration,
    expected: &str,
    mut look: impl AsyncFnMut() -> Result<T, Seen>,
) -> Result<T, Unmet> {
    let deadline = tokio::time::Instant::now() + limit;
    let mut last = None;
    loop {
        match tokio::time::timeout_at(deadline, look()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(seen)) => last = Some(Box::new(seen)),
            Err(_) => {
                return Err(Unmet { expected: expected.to_owned(), seen: Seen::NoAnswer { last, limit } });
            }
        }
        if tokio::time::Instant::now() + LOOK_AGAIN >= deadline {
            return Err(Unmet { expected: expected.to_owned(), seen: Seen::StillAfter { last, limit } });
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Checks a condition once.
pub(super) fn holds(condition: bool, expected: &str, seen: impl Display) -> Result<(), Unmet> {
    if condition { Ok(()) } else { Err(Unmet::new(expected, seen.to_string())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn a_look_that_succeeds_late_is_met() {
        let mut looks = 0;
        let found = until(Duration::from_secs(5), "three", async || {
            looks += 1;
            if looks == 3 { Ok("it") } else { Err(format!("{looks}").into()) }
        })
        .await;
        assert_eq!((found.ok(), looks), (Some("it"), 3));
    }

    #[tokio::test]
    async fn an_unmet_check_names_what_was_expected_and_found() {
        let error =
            until(SHORT, "one dead letter", async || Err::<(), _>("0 dead letters".to_owned().into())).await;
        let error = error.unwrap_err();
        assert_eq!(error.expected, "one dead letter");
        assert!(error.seen.to_string().starts_with("0 dead letters (after"), "{error}");
    }

    #[tokio::test]
    async fn a_look_that_hangs_ends_at_the_deadline_with_what_was_found_before() {
        let mut first = true;
        let error = until(SHORT, "an answer", async || {
            if !std::mem::take(&mut first) {
                std::future::pending::<()>().await;
            }
            Err::<(), _>("2 messages".to_owned().into())
        })
        .await
        .unwrap_err();
        assert_eq!(error.seen.to_string(), "2 messages, then no answer within 200ms");
    }

    #[test]
    fn a_condition_that_is_false_is_unmet() {
        assert!(holds(true, "4 attempts", 4).is_ok());
        let unmet = holds(false, "4 attempts", 3).unwrap_err();
        assert_eq!(unmet.to_string(), "expected 4 attempts; seen: 3");
    }
}
