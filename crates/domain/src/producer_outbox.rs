//! The producer outbox: the event that a producer raises in its own transaction, the envelope of its rows, and the
//! statuses of a row from `pending` to `published` or `abandoned`.

mod content;
mod destination;
mod external_message;
mod full_envelope;
mod name_rules;
mod pauses;
mod raised;
mod status;
#[cfg(test)]
mod tests;

pub use destination::Destination;
pub use external_message::{ExternalMessage, external_metadata};
pub use full_envelope::{CONTENT_TYPE, FullEnvelope};
pub use name_rules::NameRules;
pub use pauses::Pauses;
pub use raised::RaisedEvent;
pub use status::{AfterFailure, Priority, RelayRetryPolicy, RowStep, Status};

/// The target broker of every event: the hub's NATS.
pub const INTERNAL: &str = "internal";

/// The rule for the names of target brokers, as a remedy.
pub const TARGET_BROKER_NAMES: &str =
    "write \"internal\", or 1 to 64 of a-z, 0-9, '_' and '-', with a letter or digit first";

/// True if a name is valid for a target broker: [`INTERNAL`], or that of an external broker.
pub fn is_target_broker(name: &str) -> bool {
    name == INTERNAL || is_external_broker(name)
}

/// True if a name is valid for an external broker: 1 to 64 of a-z, 0-9, `_` and `-`, a letter or digit first, and not
/// [`INTERNAL`].
pub fn is_external_broker(name: &str) -> bool {
    name != INTERNAL
        && name.len() <= 64
        && name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'))
}
