//! What came of one delivery attempt, and what it means: acknowledge, retry, or dead-letter.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::status::{Statuses, Treatment};

/// The outcome of one attempt, as the adapter reports it that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The external broker has the message.
    Acknowledged,
    /// The endpoint answered; any status.
    Answered { status: u16, retry_after: Option<Duration> },
    /// No answer came; or the broker has not acknowledged.
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
    /// The connection broke before the head of the answer was whole.
    Broken,
    /// What the endpoint sent is not the head of an HTTP answer.
    Malformed,
    /// The address guard refused the endpoint's or the token endpoint's address.
    AddressRefused,
    /// The OAuth2 token endpoint did not give a token.
    Token,
    /// The credentials could not be opened: the master key is missing.
    Sealed,
    /// The request could not be built from the subscription's settings.
    Request,
    /// The external broker cannot be reached, does not let us in, or does not answer.
    BrokerUnavailable,
    /// The external broker said no for now: full, not permitted, nobody there to take it.
    BrokerRefused,
    /// The external broker will never take the message: too large, or no such name can be.
    Unpublishable,
    /// The settings have no external broker of the name that the subscription gives.
    UnknownBroker,
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    Subscriber,
    Hub,
}

impl Outcome {
    /// The HTTP status, where there was an answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            Outcome::Answered { status, .. } => Some(*status),
            Outcome::Acknowledged | Outcome::Failed(_) => None,
        }
    }

    /// One short line for people: `503 Service Unavailable`, `timed out`. Empty for a success.
    pub fn error_text(&self) -> String {
        match self {
            Outcome::Acknowledged | Outcome::Answered { status: 200..=299, .. } => String::new(),
            Outcome::Answered { status, .. } => match reason_phrase(*status) {
                Some(phrase) => format!("{status} {phrase}"),
                None => format!("status {status}"),
            },
            Outcome::Failed(failure) => failure.to_string(),
        }
    }

    /// Whether the endpoint answered as a living one does: anything but a failure of the
    /// connection, a timeout, a 429 or a 5xx; a broker that is unavailable or rejects counts as they do. The
    /// pool's shares and the breakers use it. A failure on the hub's own side, and a message that can
    /// never be taken, say nothing about the other side and count as healthy.
    pub fn is_healthy(&self) -> bool {
        match self {
            Outcome::Acknowledged | Outcome::Failed(Failure::Unpublishable) => true,
            Outcome::Answered { status, .. } => *status != 429 && *status < 500,
            Outcome::Failed(failure) => failure.fault() == Fault::Hub,
        }
    }

    /// What kind of failure it is, for metrics; a success has none.
    pub fn kind(&self) -> Option<&'static str> {
        Some(match self {
            Outcome::Acknowledged | Outcome::Answered { status: 200..=299, .. } => return None,
            Outcome::Answered { status: 300..=399, .. } => "redirect",
            Outcome::Answered { status: 410, .. } => "gone",
            Outcome::Answered { status: 429, .. } => "throttled",
            Outcome::Answered { status: 400..=499, .. } => "client-error",
            Outcome::Answered { status: 500..=599, .. } => "server-error",
            Outcome::Answered { .. } => "odd-status",
            Outcome::Failed(failure) => failure.kind(),
        })
    }

    /// Whose fault it is, where the attempt did not succeed.
    pub fn fault(&self) -> Fault {
        match self {
            Outcome::Acknowledged | Outcome::Answered { .. } => Fault::Subscriber,
            Outcome::Failed(failure) => failure.fault(),
        }
    }
}

impl Failure {
    /// The name in metrics.
    pub fn kind(self) -> &'static str {
        match self {
            Failure::Timeout => "timeout",
            Failure::Dns => "dns",
            Failure::Connect => "connect",
            Failure::Tls => "tls",
            Failure::Broken => "broken",
            Failure::Malformed => "malformed",
            Failure::AddressRefused => "address-refused",
            Failure::Token => "token",
            Failure::Sealed => "sealed",
            Failure::Request => "request",
            Failure::BrokerUnavailable => "broker-unavailable",
            Failure::BrokerRefused => "broker-refused",
            Failure::Unpublishable => "unpublishable",
            Failure::UnknownBroker => "unknown-broker",
        }
    }

    /// A broker is on the receiving side, like an endpoint, although the operator configures it: a rejection is the
    /// subscriber's fault. A broker that is not configured is the hub's fault.
    pub fn fault(self) -> Fault {
        match self {
            Failure::Sealed | Failure::Request | Failure::UnknownBroker => Fault::Hub,
            Failure::Timeout
            | Failure::Dns
            | Failure::Connect
            | Failure::Tls
            | Failure::Broken
            | Failure::Malformed
            | Failure::AddressRefused
            | Failure::Token
            | Failure::BrokerUnavailable
            | Failure::BrokerRefused
            | Failure::Unpublishable => Fault::Subscriber,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Failure::Timeout => "timed out",
            Failure::Dns => "the host name did not resolve",
            Failure::Connect => "could not connect",
            Failure::Tls => "the TLS handshake failed",
            Failure::Broken => "the connection broke before the head of the answer was whole",
            Failure::Malformed => "the head of the answer is malformed",
            Failure::AddressRefused => "the address is not public and not in delivery.allow_networks",
            Failure::Token => "the token endpoint gave no token",
            Failure::Sealed => "the credentials could not be opened: the master key is missing or another",
            Failure::Request => "the request could not be built from the subscription",
            Failure::BrokerUnavailable => "the broker is not available",
            Failure::BrokerRefused => "the broker refuses the message",
            Failure::Unpublishable => "the broker can never take the message as it is",
            Failure::UnknownBroker => "the settings have no external broker of that name",
        })
    }
}

impl Fault {
    /// The name in headers, lists and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Fault::Subscriber => "subscriber",
            Fault::Hub => "hub",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Fault {
    type Err = UnknownName;
    fn from_str(text: &str) -> Result<Self, UnknownName> {
        [Fault::Subscriber, Fault::Hub].into_iter().find(|fault| fault.to_string() == text).ok_or_else(|| {
            UnknownName { what: "fault", name: text.to_owned(), known: "subscriber, hub".to_owned() }
        })
    }
}

/// Why an envelope is a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The last attempt failed.
    Exhausted,
    /// The endpoint's answer says that no further attempt can succeed.
    Permanent,
    /// The event and what the subscription says do not fit into one message.
    TooLarge,
    /// Stored by older versions only: the subscription's circuit breaker was open.
    CircuitOpen,
    /// The message in the outbox is not an envelope.
    Undecodable,
    /// The broker gave up on it, and its advisory was lost; the sweep found it.
    Stranded,
    /// The subscription was removed.
    Removed,
    /// The subscription is paused.
    Paused,
    /// The subscription was disabled: its endpoint said that it is gone.
    Disabled,
    /// The hub panicked on it.
    InternalError,
}

impl Reason {
    /// Every reason that a stored dead letter may have, also those of older versions.
    pub const ALL: [Self; 10] = [
        Self::Exhausted,
        Self::Permanent,
        Self::TooLarge,
        Self::CircuitOpen,
        Self::Undecodable,
        Self::Stranded,
        Self::Removed,
        Self::Paused,
        Self::Disabled,
        Self::InternalError,
    ];

    /// The reasons that this version produces. Filters accept exactly these.
    pub const PRODUCED: [Self; 9] = [
        Self::Exhausted,
        Self::Permanent,
        Self::TooLarge,
        Self::Undecodable,
        Self::Stranded,
        Self::Removed,
        Self::Paused,
        Self::Disabled,
        Self::InternalError,
    ];

    /// Parses the reason of a stored dead letter, which an older version may have written.
    pub fn read_stored(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }

    /// The name in headers, lists and filters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Permanent => "permanent",
            Self::TooLarge => "too-large",
            Self::CircuitOpen => "circuit-open",
            Self::Undecodable => "undecodable",
            Self::Stranded => "stranded",
            Self::Removed => "removed",
            Self::Paused => "paused",
            Self::Disabled => "disabled",
            Self::InternalError => "internal-error",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Parses a filter, so it accepts only [`Reason::PRODUCED`].
impl FromStr for Reason {
    type Err = UnknownName;
    fn from_str(text: &str) -> Result<Self, UnknownName> {
        Self::PRODUCED.into_iter().find(|reason| reason.as_str() == text).ok_or_else(|| UnknownName {
            what: "reason",
            name: text.to_owned(),
            known: Self::PRODUCED.map(Self::as_str).join(", "),
        })
    }
}

/// An unknown name of a reason, a state, a scope or the like.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} {name:?}; write one of {known}")]
pub struct UnknownName {
    what: &'static str,
    name: String,
    known: String,
}

impl UnknownName {
    /// `known` lists the valid names.
    pub fn new(what: &'static str, name: &str, known: &str) -> Self {
        Self { what, name: name.to_owned(), known: known.to_owned() }
    }
}

/// How often and when a delivery is tried again within the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all; at least 1.
    pub max_deliver: u32,
    /// The wait after the first attempt, the second, …; the last holds for all that follow. Where
    /// there are none, the next attempt comes at once.
    pub waits: Vec<Duration>,
    /// The longest `Retry-After` that is honoured; a longer one counts as this.
    pub max_retry_after: Duration,
}

/// What to do with the envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Ack,
    Retry { after: Duration },
    DeadLetter { reason: Reason, fault: Fault },
}

/// Jitter spreads a wait over this part of itself to either side.
const JITTER: f64 = 0.1;

/// What an attempt's outcome means. `attempt` is the broker's delivery count, from 1; `statuses` are
/// the subscription's own; `jitter` is random, in `[0, 1)`.
///
/// | outcome | before the last attempt | at the last | fault |
/// |---|---|---|---|
/// | 2xx; the broker has acknowledged | ack | ack | |
/// | in `statuses.retry` | retry | dead letter, exhausted | subscriber |
/// | in `statuses.permanent` | dead letter, permanent | the same | subscriber |
/// | 410 | dead letter, permanent; the subscription is [disabled](disables) | the same | subscriber |
/// | 400, 413, 414, 415, 422, 501 | dead letter, permanent | the same | subscriber |
/// | any other status: 1xx, 3xx (never followed), 401, 403, 404, 408, 409, 425, 429, other 4xx, 5xx | retry | dead letter, exhausted | subscriber |
/// | timeout, DNS, connect, TLS, broken connection, malformed answer, token endpoint | retry | dead letter, exhausted | subscriber |
/// | address refused | dead letter, permanent | the same | subscriber |
/// | broker not available, broker refuses for now | retry | dead letter, exhausted | subscriber |
/// | broker can never take it (too large, say) | dead letter, permanent | the same | subscriber |
/// | credentials sealed, request not built, broker not in the settings | retry | dead letter, exhausted | hub |
///
/// The wait after attempt n is `waits[n - 1]`, or the last of them, times 0.9 to 1.1. A
/// `Retry-After` makes it longer, up to `max_retry_after`, never shorter, and
/// [holds](hold) what else the subscription has waiting.
pub fn decide(
    outcome: &Outcome,
    attempt: u32,
    policy: &RetryPolicy,
    statuses: &Statuses,
    jitter: f64,
) -> Decision {
    let fault = outcome.fault();
    match outcome {
        Outcome::Acknowledged | Outcome::Answered { status: 200..=299, .. } => Decision::Ack,
        _ if is_permanent(outcome, statuses) => Decision::DeadLetter { reason: Reason::Permanent, fault },
        _ if attempt >= policy.max_deliver => Decision::DeadLetter { reason: Reason::Exhausted, fault },
        Outcome::Answered { retry_after: Some(asked), .. } => {
            Decision::Retry { after: policy.wait(attempt, jitter).max((*asked).min(policy.max_retry_after)) }
        }
        Outcome::Answered { .. } | Outcome::Failed(_) => {
            Decision::Retry { after: policy.wait(attempt, jitter) }
        }
    }
}

/// Whether the outcome says that no further attempt can succeed.
fn is_permanent(outcome: &Outcome, statuses: &Statuses) -> bool {
    match outcome {
        Outcome::Acknowledged | Outcome::Answered { status: 200..=299, .. } => false,
        Outcome::Answered { status, .. } => match statuses.treatment(*status) {
            Some(treatment) => treatment == Treatment::Permanent,
            None => matches!(status, 400 | 410 | 413 | 414 | 415 | 422 | 501),
        },
        Outcome::Failed(failure) => matches!(failure, Failure::AddressRefused | Failure::Unpublishable),
    }
}

/// Whether the endpoint said that it is gone for good, which disables its subscription: 410, unless
/// the subscription gives that status a meaning of its own. (Standard Webhooks: a 410 is the way to
/// unsubscribe.)
pub fn disables(outcome: &Outcome, statuses: &Statuses) -> bool {
    outcome.status() == Some(410) && statuses.treatment(410).is_none()
}

/// How long the endpoint asked to be left alone by the whole subscription: the `Retry-After` of an
/// answer that is neither a success nor permanent, up to `max_retry_after`.
pub fn hold(outcome: &Outcome, policy: &RetryPolicy, statuses: &Statuses) -> Option<Duration> {
    match outcome {
        Outcome::Answered { status, retry_after: Some(asked) }
            if !(200..=299).contains(status) && !is_permanent(outcome, statuses) && !asked.is_zero() =>
        {
            Some((*asked).min(policy.max_retry_after))
        }
        _ => None,
    }
}

impl RetryPolicy {
    /// The jittered wait after an attempt, counted from 1.
    fn wait(&self, attempt: u32, jitter: f64) -> Duration {
        let position = (attempt.max(1) - 1) as usize;
        let Some(wait) = self.waits.get(position).or(self.waits.last()) else { return Duration::ZERO };
        let factor = 1.0 - JITTER + 2.0 * JITTER * jitter.clamp(0.0, 1.0);
        Duration::try_from_secs_f64(wait.as_secs_f64() * factor).unwrap_or(*wait)
    }
}

/// The standard phrases of the statuses that webhooks meet (RFC 9110 section 15, RFC 6585).
fn reason_phrase(status: u16) -> Option<&'static str> {
    Some(match status {
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
