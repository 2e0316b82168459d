//! Checks with a deadline. A check that fails names what was expected and what was found.

use std::fmt::Display;
use std::time::Duration;

/// Polling interval: the broker does not report changes of the number of messages.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A check that did not hold in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}; seen: {seen}")]
pub(super) struct Unmet {
    pub expected: String,
    /// What was found last.
    pub seen: String,
}

impl Unmet {
    pub(super) fn new(expected: impl Into<String>, seen: impl Into<String>) -> Self {
        Self { expected: expected.into(), seen: seen.into() }
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
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, Unmet> {
    let deadline = tokio::time::Instant::now() + limit;
    let mut last = None;
    loop {
        match tokio::time::timeout_at(deadline, look()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(seen)) => last = Some(seen),
            Err(_) => {
                let seen = last.map(|last| format!("{last}, then ")).unwrap_or_default();
                return Err(Unmet::new(expected, format!("{seen}no answer within {limit:?}")));
            }
        }
        if tokio::time::Instant::now() + LOOK_AGAIN >= deadline {
            let seen = last.unwrap_or_default();
            return Err(Unmet::new(expected, format!("{seen} (after {limit:?})")));
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
            if looks == 3 { Ok("it") } else { Err(format!("{looks}")) }
        })
        .await;
        assert_eq!((found, looks), (Ok("it"), 3));
    }

    #[tokio::test]
    async fn an_unmet_check_names_what_was_expected_and_found() {
        let error = until(SHORT, "one dead letter", async || Err::<(), _>("0 dead letters".to_owned())).await;
        let error = error.unwrap_err();
        assert_eq!(error.expected, "one dead letter");
        assert!(error.seen.starts_with("0 dead letters (after"), "{error}");
    }

    #[tokio::test]
    async fn a_look_that_hangs_ends_at_the_deadline_with_what_was_found_before() {
        let mut first = true;
        let error = until(SHORT, "an answer", async || {
            if !std::mem::take(&mut first) {
                std::future::pending::<()>().await;
            }
            Err::<(), _>("2 messages".to_owned())
        })
        .await
        .unwrap_err();
        assert_eq!(error.seen, "2 messages, then no answer within 200ms");
    }

    #[test]
    fn a_condition_that_is_false_is_unmet() {
        assert_eq!(holds(true, "4 attempts", 4), Ok(()));
        assert_eq!(holds(false, "4 attempts", 3), Err(Unmet::new("4 attempts", "3")));
    }
}
