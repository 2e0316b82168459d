//! Simulated endpoints.

use std::time::Duration;

/// What an endpoint does with a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Answer {
    pub(crate) after: Duration,
    pub(crate) healthy: bool,
    pub(crate) retry_after: Option<Duration>,
}

/// The time limit of an attempt.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    answer: Answer,
    /// From that time after its first request, what it does then.
    then: Option<(Duration, Box<Endpoint>)>,
    /// It works for the first time, then fails for the second, and so on.
    flaps: Option<(Duration, Duration)>,
}

impl Endpoint {
    fn of(after: Duration, healthy: bool, retry_after: Option<Duration>) -> Self {
        Self { answer: Answer { after, healthy, retry_after }, then: None, flaps: None }
    }

    pub(crate) fn answers_after(after: Duration) -> Self {
        Self::of(after, true, None)
    }

    pub(crate) fn fails_after(after: Duration) -> Self {
        Self::of(after, false, None)
    }

    /// Never answers, so that each attempt ends with its timeout.
    pub(crate) fn hangs() -> Self {
        Self::of(TIMEOUT, false, None)
    }

    pub(crate) fn retry_after(pause: Duration) -> Self {
        Self::of(Duration::from_millis(10), false, Some(pause))
    }

    pub(crate) fn flaps(on: Duration, off: Duration) -> Self {
        Self { flaps: Some((on, off)), ..Self::answers_after(Duration::from_millis(10)) }
    }

    pub(crate) fn then(self, after: Duration, then: Endpoint) -> Self {
        Self { then: Some((after, Box::new(then))), ..self }
    }

    /// The answer to a request at `since` its first one.
    pub(crate) fn answer(&self, since: Duration) -> Answer {
        if let Some((after, then)) = &self.then
            && since >= *after
        {
            return then.answer(since - *after);
        }
        if let Some((on, off)) = self.flaps {
            let position = since.as_nanos() % (on + off).as_nanos();
            if position >= on.as_nanos() {
                return Answer { healthy: false, ..self.answer };
            }
        }
        self.answer
    }
}
