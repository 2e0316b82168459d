//! What came of one delivery attempt.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The outcome of one attempt, as the HTTP adapter reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The endpoint answered; any status.
    Answered { status: u16, retry_after: Option<Duration> },
    /// No whole answer came.
    Failed(Failure),
}

/// Why there was no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// The attempt's timeout ran out.
    Timeout,
    Dns,
    Connect,
    Tls,
    /// The connection broke before the answer was whole.
    Broken,
    /// The address guard refused the endpoint's or the token endpoint's address.
    AddressRefused,
    /// The OAuth2 token endpoint did not give a token.
    Token,
    /// The credentials could not be opened: the master key is missing.
    Sealed,
    /// The request could not be built from the subscription's settings.
    Request,
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    Subscriber,
    Hub,
}
