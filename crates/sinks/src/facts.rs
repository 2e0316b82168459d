//! What this crate logs, about connections to external brokers. A fact is one struct, whose `emit` writes the log line.

pub(crate) mod limited;

use std::error::Error;
use std::fmt;

use limited::limited;

/// Why something failed, whatever the error's type: shown with `%`.
type Cause<'a> = &'a (dyn Error + 'static);

/// A name or another value that is shown with `%`.
type Shown<'a> = &'a dyn fmt::Display;

/// An external NATS server reported an error on the connection.
pub(crate) struct ExternalNatsErrorReported<'a> {
    /// Its address.
    pub(crate) broker: &'a str,
    pub(crate) error: Shown<'a>,
}

impl ExternalNatsErrorReported<'_> {
    pub(crate) fn emit(self) {
        let Self { broker, error } = self;
        limited!("an external NATS server reported an error", broker; broker, %error);
    }
}

/// Another event of the connection to an external NATS server.
pub(crate) struct ExternalNatsClientEvent<'a> {
    pub(crate) event: Shown<'a>,
}

impl ExternalNatsClientEvent<'_> {
    pub(crate) fn emit(self) {
        let Self { event } = self;
        tracing::debug!(%event, "external NATS client event");
    }
}

/// A connection that is to be closed was closed before.
pub(crate) struct ExternalNatsClosedBefore<'a> {
    pub(crate) error: Cause<'a>,
}

impl ExternalNatsClosedBefore<'_> {
    pub(crate) fn emit(self) {
        let Self { error } = self;
        tracing::debug!(%error, "connection to an external NATS server was closed already");
    }
}

/// A connection that is to be closed was closed before, or did not close in time.
#[cfg(feature = "amqp")]
pub(crate) struct AmqpClosedBefore<'a> {
    pub(crate) broker: &'a str,
}

#[cfg(feature = "amqp")]
impl AmqpClosedBefore<'_> {
    pub(crate) fn emit(self) {
        let Self { broker } = self;
        tracing::debug!(broker, "connection was closed already");
    }
}

/// A producer was closed before all its records were acknowledged.
#[cfg(feature = "kafka")]
pub(crate) struct KafkaRecordsPending<'a> {
    pub(crate) error: Cause<'a>,
}

#[cfg(feature = "kafka")]
impl KafkaRecordsPending<'_> {
    pub(crate) fn emit(self) {
        let Self { error } = self;
        tracing::debug!(%error, "Kafka producer closed with records pending");
    }
}
