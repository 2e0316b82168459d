//! What came of one delivery attempt, whichever adapter made it.

use std::time::Duration;

use super::outcome::{Failure, Outcome};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub outcome: Outcome,
    pub latency: Duration,
    /// The first kilobyte of a failed answer's body, for the delivery log. Credentials of the
    /// request that the endpoint echoes are replaced by `***`.
    pub answer_excerpt: Option<String>,
    /// Where there was no answer: what the layer below said, for people. Holds no URL.
    pub detail: Option<String>,
}

impl Attempt {
    /// An attempt that ended before anything was sent.
    pub fn failed(failure: Failure) -> Self {
        Self {
            outcome: Outcome::Failed(failure),
            latency: Duration::ZERO,
            answer_excerpt: None,
            detail: None,
        }
    }

    /// The same, with what is to be said of it.
    pub fn failed_because(failure: Failure, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..Self::failed(failure) }
    }

    /// What went wrong, for people.
    pub fn error_text(&self) -> String {
        let text = self.outcome.error_text();
        match &self.detail {
            Some(detail) => format!("{text}: {detail}"),
            None => text,
        }
    }
}
