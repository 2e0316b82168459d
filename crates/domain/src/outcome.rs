//! The outcome of a delivery attempt, and the decision after it: acknowledge, retry, or dead-letter.

mod kinds;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fair_share::Finish;
use super::status::{Statuses, Treatment};
pub use kinds::{StatusClass, failure_kinds};

/// The outcome of one attempt, as the adapter reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The external broker acknowledged the message.
    Acknowledged,
    /// The endpoint answered, with any status.
    Answered { status: u16, retry_after: Option<Duration> },
    /// The endpoint did not answer, or the broker did not acknowledge.
    Failed(Failure),
}

/// The reason why there was no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// The attempt timed out.
    Timeout,
    Dns,
    Connect,
    Tls,
    /// The connection broke before the head of the answer was complete.
    Broken,
    /// The answer of the endpoint does not begin with the head of an HTTP answer.
    Malformed,
    /// The address of the endpoint or the token endpoint is not allowed.
    AddressRefused,
    /// The OAuth2 token endpoint did not return a token.
    Token,
    /// The credentials could not be opened: the master key is missing.
    Sealed,
    /// The request could not be built from the subscription's settings.
    Request,
    /// The external broker is unreachable, rejects the login, or does not answer.
    BrokerUnavailable,
    /// The external broker rejects the message for now: full, not permitted, or no consumer.
    BrokerRefused,
    /// The external broker will never accept the message: too large, or an invalid name.
    Unpublishable,
    /// The settings have no external broker with the name that the subscription has.
    UnknownBroker,
}

/// The side that has to act on a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    Subscriber,
    Hub,
}

impl Outcome {
    /// The HTTP status of the answer, if any.
    pub fn status(&self) -> Option<u16> {
        match self {
            Outcome::Answered { status, .. } => Some(*status),
            Outcome::Acknowledged | Outcome::Failed(_) => None,
        }
    }

    /// A short text for display, such as `503 Service Unavailable` or `timed out`. Empty for a success.
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

    /// What the outcome shows about the endpoint, for its share of the delivery pool. Unhealthy: it is down or
    /// overloaded (a failure of the connection, a timeout, a 429, a 5xx, or a broker that is unavailable or rejects the
    /// message). A failure of the hub, and a message that can never be accepted, show nothing.
    pub fn finish(&self) -> Finish {
        let healthy = match self {
            Outcome::Failed(Failure::Unpublishable) => return Finish::Untried,
            Outcome::Failed(failure) if failure.fault() == Fault::Hub => return Finish::Untried,
            Outcome::Acknowledged => true,
            Outcome::Answered { status, .. } => *status != 429 && *status < 500,
            Outcome::Failed(_) => false,
        };
        if healthy { Finish::Healthy } else { Finish::Unhealthy }
    }

    /// The kind of the failure, for metrics; `None` for a success.
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

    /// The fault, if the attempt failed.
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
            Failure::Broken => "the connection broke before the head of the answer was complete",
            Failure::Malformed => "the head of the answer is malformed",
            Failure::AddressRefused => "the address is not public and not in delivery.allow_networks",
            Failure::Token => "the token endpoint returned no token",
            Failure::Sealed => {
                "the credentials could not be opened: the master key is missing, or is another one"
            }
            Failure::Request => "the request could not be built from the subscription",
            Failure::BrokerUnavailable => "the broker is unavailable",
            Failure::BrokerRefused => "the broker rejects the message",
            Failure::Unpublishable => "the broker will never accept the message",
            Failure::UnknownBroker => "the settings have no external broker with that name",
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

/// The reason of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The last attempt failed.
    Exhausted,
    /// By the answer of the endpoint, no further attempt can succeed.
    Permanent,
    /// The event and the delivery settings together exceed the size of a message.
    TooLarge,
    /// Stored by older versions only: the subscription's circuit breaker was open.
    CircuitOpen,
    /// The message in the domain outbox is not an envelope.
    Undecodable,
    /// The broker does not deliver it again, although its attempts are not used up.
    Stranded,
    /// The subscription was removed.
    Removed,
    /// The subscription is paused.
    Paused,
    /// The subscription was disabled because its endpoint answered 410 (gone).
    Disabled,
    /// The hub panicked on it.
    InternalError,
    /// The backlog of the subscription was full.
    OverQuota,
    /// It waited in the domain outbox for longer than the subscription allows.
    Expired,
}

impl Reason {
    /// Every reason that a stored dead letter may have, also those of older versions.
    pub const ALL: [Self; 12] = [
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
        Self::OverQuota,
        Self::Expired,
    ];

    /// The reasons that this version produces. Filters accept exactly these.
    pub const PRODUCED: [Self; 11] = [
        Self::Exhausted,
        Self::Permanent,
        Self::TooLarge,
        Self::Undecodable,
        Self::Stranded,
        Self::Removed,
        Self::Paused,
        Self::Disabled,
        Self::InternalError,
        Self::OverQuota,
        Self::Expired,
    ];

    /// Parses the reason of a stored dead letter, which an older version may have written.
    pub(crate) fn read_stored(text: &str) -> Option<Self> {
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
            Self::OverQuota => "over-quota",
            Self::Expired => "expired",
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
    pub(crate) fn new(what: &'static str, name: &str, known: &str) -> Self {
        Self { what, name: name.to_owned(), known: known.to_owned() }
    }
}

/// Number of attempts of an envelope, and the waits between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Total number of attempts, at least 1.
    pub max_deliver: u32,
    /// The wait after the first attempt, the second, …; the last one applies to all further attempts. Without waits, the
    /// next attempt follows at once.
    pub waits: Vec<Duration>,
    /// Maximum wait for a `Retry-After`; a longer one is shortened.
    pub max_retry_after: Duration,
}

/// The decision about an envelope after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryDecision {
    Ack,
    Retry { after: Duration },
    DeadLetter { reason: Reason, fault: Fault },
}

/// Jitter lengthens or shortens a wait by at most this fraction.
const JITTER: f64 = 0.1;

/// Decides about an envelope after an attempt. `attempt` is its number since the fan-out or the last redrive, from 1
/// ([`Deliveries::next_attempt`](super::deliveries::Deliveries::next_attempt)); `statuses` are those of the
/// subscription; `jitter` is random, in `[0, 1)`.
///
/// | outcome | before the last attempt | at the last | fault |
/// |---|---|---|---|
/// | 2xx; acknowledged by the broker | ack | ack | |
/// | in `statuses.retry` | retry | dead letter, exhausted | subscriber |
/// | in `statuses.permanent` | dead letter, permanent | the same | subscriber |
/// | 410 | dead letter, permanent; the subscription is [disabled](disables) | the same | subscriber |
/// | 400, 413, 414, 415, 422, 501 | dead letter, permanent | the same | subscriber |
/// | any other status: 1xx, 3xx (never followed), 401, 403, 404, 408, 409, 425, 429, other 4xx, 5xx | retry | dead letter, exhausted | subscriber |
/// | timeout, DNS, connect, TLS, broken connection, malformed answer, token endpoint | retry | dead letter, exhausted | subscriber |
/// | address not allowed | dead letter, permanent | the same | subscriber |
/// | broker unavailable, or rejects for now | retry | dead letter, exhausted | subscriber |
/// | broker will never accept it (for example, too large) | dead letter, permanent | the same | subscriber |
/// | credentials not opened, request not built, broker not configured | retry | dead letter, exhausted | hub |
///
/// The wait after attempt n is `waits[n - 1]`, or the last of them, times 0.9 to 1.1. A `Retry-After` lengthens it, up to
/// `max_retry_after`, never shortens it, and [holds](hold) the other envelopes of the subscription.
pub fn decide(
    outcome: &Outcome,
    attempt: u32,
    policy: &RetryPolicy,
    statuses: &Statuses,
    jitter: f64,
) -> DeliveryDecision {
    let fault = outcome.fault();
    match outcome {
        Outcome::Acknowledged | Outcome::Answered { status: 200..=299, .. } => DeliveryDecision::Ack,
        _ if is_permanent(outcome, statuses) => {
            DeliveryDecision::DeadLetter { reason: Reason::Permanent, fault }
        }
        _ if attempt >= policy.max_deliver => {
            DeliveryDecision::DeadLetter { reason: Reason::Exhausted, fault }
        }
        Outcome::Answered { retry_after: Some(asked), .. } => DeliveryDecision::Retry {
            after: policy.wait(attempt, jitter).max((*asked).min(policy.max_retry_after)),
        },
        Outcome::Answered { .. } | Outcome::Failed(_) => {
            DeliveryDecision::Retry { after: policy.wait(attempt, jitter) }
        }
    }
}

/// True if no further attempt can succeed.
pub(crate) fn is_permanent(outcome: &Outcome, statuses: &Statuses) -> bool {
    match outcome {
        Outcome::Acknowledged | Outcome::Answered { status: 200..=299, .. } => false,
        Outcome::Answered { status, .. } => match statuses.treatment(*status) {
            Some(treatment) => treatment == Treatment::Permanent,
            None => matches!(status, 400 | 410 | 413 | 414 | 415 | 422 | 501),
        },
        Outcome::Failed(failure) => matches!(failure, Failure::AddressRefused | Failure::Unpublishable),
    }
}

/// True if the outcome disables the subscription: status 410, unless the subscription gives that status another meaning.
/// (Standard Webhooks: receivers unsubscribe with a 410.)
pub fn disables(outcome: &Outcome, statuses: &Statuses) -> bool {
    outcome.status() == Some(410) && statuses.treatment(410).is_none()
}

/// The time for which the endpoint requests a hold of the whole subscription: the `Retry-After` of an answer that is
/// neither a success nor permanent, up to `max_retry_after`.
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

/// The standard phrases of common statuses (RFC 9110 section 15, RFC 6585).
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
