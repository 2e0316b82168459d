//! Connections to external brokers.

use super::{Cause, Shown};

/// An external NATS server reported an error on the connection.
pub struct ExternalNatsErrorReported<'a> {
    pub error: Shown<'a>,
}

impl ExternalNatsErrorReported<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::warn!(%error, "an external NATS server reported an error");
    }
}

/// Another event of the connection to an external NATS server.
pub struct ExternalNatsClientEvent<'a> {
    pub event: Shown<'a>,
}

impl ExternalNatsClientEvent<'_> {
    pub fn emit(self) {
        let Self { event } = self;
        tracing::debug!(%event, "external NATS client event");
    }
}

/// A connection that is to be closed was closed before.
pub struct ExternalNatsClosedBefore<'a> {
    pub error: Cause<'a>,
}

impl ExternalNatsClosedBefore<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::debug!(%error, "connection to an external NATS server was closed already");
    }
}

/// A connection that is to be closed was closed before, or did not close in time.
pub struct AmqpClosedBefore<'a> {
    pub broker: &'a str,
}

impl AmqpClosedBefore<'_> {
    pub fn emit(self) {
        let Self { broker } = self;
        tracing::debug!(broker, "connection was closed already");
    }
}

/// A producer was closed before all its records were acknowledged.
pub struct KafkaRecordsPending<'a> {
    pub error: Cause<'a>,
}

impl KafkaRecordsPending<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::debug!(%error, "Kafka producer closed with records pending");
    }
}
