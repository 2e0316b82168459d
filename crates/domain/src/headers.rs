//! The names of the `Hub-…` headers. No other module contains such a name.
//!
//! [`Carried`](super::carried::Carried) reads and writes those of an envelope, and
//! [`DeadLetter`](super::dead_letter::DeadLetter) those of a dead letter.

/// Of a redriven envelope: the sequence of its dead letter.
pub(crate) const DEAD_LETTER: &str = "Hub-Dead-Letter";
/// Of an envelope or a dead letter: the number of scheduled redrives so far.
pub(crate) const REDRIVES: &str = "Hub-Redrives";
/// Of an envelope or a dead letter: the number of attempts so far.
pub const ATTEMPTS: &str = "Hub-Attempts";

/// Of a dead letter or a final attempt: the id of the envelope.
pub const ID: &str = "Hub-Id";
/// Of a dead letter: its domain.
pub const DOMAIN: &str = "Hub-Domain";
/// Of a dead letter: the id of its subscription.
pub const SUBSCRIPTION: &str = "Hub-Subscription";
/// Of a publication, a dead letter or a final attempt: the tenant.
pub const TENANT: &str = "Hub-Tenant";
/// Of a publication: the source of the event.
pub const SOURCE: &str = "Hub-Source";
/// Of a dead letter: the incarnation of its subscription.
pub(crate) const INCARNATION: &str = "Hub-Incarnation";
/// Of a dead letter or a final attempt: the id of the event.
pub const EVENT_ID: &str = "Hub-Event-Id";
/// Of a dead letter or a final attempt: the event key.
pub const EVENT_KEY: &str = "Hub-Event-Key";
/// Of a dead letter or a rejected publication: the reason.
pub const REASON: &str = "Hub-Reason";
/// Of a dead letter: `subscriber` or `hub`.
pub const FAULT: &str = "Hub-Fault";
/// Of a dead letter: `scheduled`, `replaying` or `parked`.
pub const STATE: &str = "Hub-State";
/// Of a dead letter: when it failed (RFC 3339).
pub(crate) const FAILED_AT: &str = "Hub-Failed-At";
/// Of a dead letter: the HTTP status of the last attempt.
pub(crate) const LAST_STATUS: &str = "Hub-Last-Status";
/// Of a dead letter: the error of the last attempt.
pub(crate) const LAST_ERROR: &str = "Hub-Last-Error";
/// Of a dead letter: the time of its next redrive (RFC 3339).
pub(crate) const NEXT_REDRIVE_AT: &str = "Hub-Next-Redrive-At";

/// Of a redrive message: who requested the redrive.
pub const ORDER: &str = "Hub-Order";
/// Of a message of the delivery log: the number of its records.
pub const RECORDS: &str = "Hub-Records";

/// Of a rejected publication: the error.
pub const ERROR: &str = "Hub-Error";
/// Of a rejected publication: its subject.
pub const SUBJECT: &str = "Hub-Subject";
/// Of a rejected publication: its sequence in the events stream.
pub const SEQUENCE: &str = "Hub-Sequence";
/// Of a rejected publication in parts: number and count, such as `1/3`.
pub const PART: &str = "Hub-Part";
/// Of a rejected publication in parts: `headers` or `subject`.
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
