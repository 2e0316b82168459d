//! An attempt, or its absence, as it is settled and recorded.

use std::time::Duration;

use crate::domain::attempt::Attempt;
use crate::domain::attempt_record::ErrorKind;
use crate::domain::outcome::Fault;

/// The envelope that got an answer with `Retry-After` stays at the broker for at most this long: then it waits with the
/// other envelopes of its subscription, and leaves with them when the hold is ended.
const AT_THE_BROKER: Duration = Duration::from_secs(15);

/// The attempt, for the records.
pub(in super::super) struct Tried<'a> {
    pub(super) tried: bool,
    /// Whose fault a failed attempt is, and its kind.
    pub(super) failure: Option<(Fault, &'static str)>,
    pub(super) status: Option<u16>,
    pub(super) error: String,
    pub(super) latency: Duration,
    pub(super) answer: Option<&'a str>,
    pub(super) kind: Option<ErrorKind>,
    pub(super) fault: Option<Fault>,
    /// The hold of the subscription that the answer asks for.
    hold: Option<Duration>,
}

impl<'a> Tried<'a> {
    pub(in super::super) fn once(attempt: &'a Attempt) -> Self {
        Self {
            tried: true,
            failure: attempt.outcome.kind().map(|kind| (attempt.outcome.fault(), kind)),
            status: attempt.outcome.status(),
            error: attempt.error_text(),
            latency: attempt.latency,
            answer: attempt.answer_excerpt.as_deref(),
            kind: ErrorKind::of(&attempt.outcome),
            fault: ErrorKind::of(&attempt.outcome).map(|_| attempt.outcome.fault()),
            hold: None,
        }
    }

    pub(in super::super) fn not_at_all(why: &str) -> Self {
        Self {
            tried: false,
            failure: None,
            status: None,
            error: why.to_owned(),
            latency: Duration::ZERO,
            answer: None,
            kind: None,
            fault: None,
            hold: None,
        }
    }

    /// The answer asks for a hold of its subscription.
    pub(in super::super) fn holding(self, hold: Option<Duration>) -> Self {
        Self { hold, ..self }
    }

    /// How long the broker keeps an envelope that is tried again after `wait`.
    pub(super) fn at_the_broker(&self, wait: Duration) -> Duration {
        match self.hold {
            Some(hold) if hold >= wait => wait.min(AT_THE_BROKER),
            _ => wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_wait_for_a_hold_is_shortened() {
        let at = |hold: Option<u64>, wait| {
            let tried = Tried::not_at_all("busy").holding(hold.map(Duration::from_secs));
            tried.at_the_broker(Duration::from_secs(wait)).as_secs()
        };
        assert_eq!((at(None, 3_600), at(Some(3_600), 3_600), at(Some(9), 9)), (3_600, 15, 9));
        // The retry policy waits longer than the hold.
        assert_eq!(at(Some(9), 600), 600);
    }
}
