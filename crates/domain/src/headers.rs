//! The names of the `Hub-…` headers. No other module contains such a name.
//!
//! [`Carried`](super::carried::Carried) reads and writes those of an envelope, and
//! [`DeadLetter`](super::dead_letter::DeadLetter) those of a dead letter.

/// Of all of them.
pub(crate) const PREFIX: &str = "Hub-";
/// The sequence of the dead letter, in a redriven envelope; in a dead letter, that of the one before it.
pub const DEAD_LETTER: &str = "Hub-Dead-Letter";
/// The number of scheduled redrives so far, in an envelope or dead letter.
pub const REDRIVES: &str = "Hub-Redrives";
/// When the outbox stored an envelope first, in milliseconds since 1970; in one that was moved.
pub(crate) const QUEUED_AT: &str = "Hub-Queued-At";
/// The number of attempts so far, in an envelope or dead letter.
pub const ATTEMPTS: &str = "Hub-Attempts";
/// The number of attempts since the fan-out or the last redrive, in an envelope.
pub(crate) const TRIED: &str = "Hub-Tried";
/// The number of deliveries since then without an attempt, in an envelope.
pub(crate) const UNTRIED: &str = "Hub-Untried";

/// The id of the envelope, in a dead letter or final attempt.
pub const ID: &str = "Hub-Id";
/// The domain of a dead letter.
pub const DOMAIN: &str = "Hub-Domain";
/// The id of the subscription of a dead letter.
pub const SUBSCRIPTION: &str = "Hub-Subscription";
/// The tenant of a publication, dead letter or final attempt.
pub const TENANT: &str = "Hub-Tenant";
/// The source of the event, in a publication.
pub const SOURCE: &str = "Hub-Source";
/// The incarnation of the subscription of a dead letter.
pub(crate) const INCARNATION: &str = "Hub-Incarnation";
/// The id of the event, in a dead letter or final attempt.
pub const EVENT_ID: &str = "Hub-Event-Id";
/// The event key, in a dead letter or final attempt.
pub const EVENT_KEY: &str = "Hub-Event-Key";
/// The reason of a dead letter or rejected event.
pub const REASON: &str = "Hub-Reason";
/// The fault of a dead letter: `subscriber` or `hub`.
pub const FAULT: &str = "Hub-Fault";
/// The state of a dead letter: `scheduled`, `replaying` or `parked`.
pub const STATE: &str = "Hub-State";
/// The time of the failure of a dead letter (RFC 3339).
pub(crate) const FAILED_AT: &str = "Hub-Failed-At";
/// The HTTP status of the last attempt of a dead letter.
pub(crate) const LAST_STATUS: &str = "Hub-Last-Status";
/// The error of the last attempt of a dead letter.
pub(crate) const LAST_ERROR: &str = "Hub-Last-Error";
/// The time of the next redrive of a dead letter (RFC 3339).
pub(crate) const NEXT_REDRIVE_AT: &str = "Hub-Next-Redrive-At";

/// The sequence in the domain outbox of the envelope that stops a strict order, in its dead letter.
pub const STOPS: &str = "Hub-Stops";

/// The requester of the redrive, in a redrive message.
pub const ORDER: &str = "Hub-Order";
/// The number of records in a message of the delivery log.
pub const RECORDS: &str = "Hub-Records";

/// The error of a rejected event.
pub const ERROR: &str = "Hub-Error";
/// The subject of a rejected event.
pub const SUBJECT: &str = "Hub-Subject";
/// The sequence of a rejected event in the events stream.
pub const SEQUENCE: &str = "Hub-Sequence";
/// Number and count of a part, such as `1/3`, for a rejected event in parts.
pub const PART: &str = "Hub-Part";
/// The content of a part, `headers` or `subject`, for a rejected event in parts.
pub const PART_OF: &str = "Hub-Part-Of";
/// Prefix of an original header whose name has a meaning for the stream or the hub.
pub const ORIGINAL_PREFIX: &str = "Hub-Original-";
/// The original message id.
pub const ORIGINAL_MESSAGE_ID: &str = "Hub-Original-Nats-Msg-Id";
/// The original subject in base64.
pub const ORIGINAL_SUBJECT: &str = "Hub-Original-Subject";
/// The original header block in base64.
pub const ORIGINAL_HEADERS: &str = "Hub-Original-Headers";
/// The size of the original header block in bytes.
pub const ORIGINAL_HEADERS_SIZE: &str = "Hub-Original-Headers-Size";
