//! The result of one delivery attempt, over HTTP or to a broker.

use std::error::Error;
use std::time::Duration;

use super::outcome::{Failure, Outcome};
use super::words::with_sources;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub outcome: Outcome,
    pub latency: Duration,
    /// The first kilobyte of a failed answer's body, for the delivery log. Credentials of the
    /// request that the endpoint echoes are replaced by `***`.
    pub answer_excerpt: Option<String>,
    /// If there was no answer: the error of the layer below, for people. Contains no URL.
    pub detail: Option<String>,
}

impl Attempt {
    /// An attempt that failed before anything was sent.
    pub fn failed(failure: Failure) -> Self {
        Self {
            outcome: Outcome::Failed(failure),
            latency: Duration::ZERO,
            answer_excerpt: None,
            detail: None,
        }
    }

    /// Adds an explanation.
    pub fn failed_because(failure: Failure, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..Self::failed(failure) }
    }

    /// Adds the error and its sources, in one line.
    pub fn failed_by(failure: Failure, error: &dyn Error) -> Self {
        Self::failed_because(failure, with_sources(error))
    }

    /// The problem, for people.
    pub fn error_text(&self) -> String {
        let text = self.outcome.error_text();
        match &self.detail {
            Some(detail) => format!("{text}: {detail}"),
            None => text,
        }
    }
}
