//! The servers of `hub demo`.

use super::Cause;

/// The token endpoint ended.
pub struct DemoTokenEndpointEnded<'a> {
    pub error: Cause<'a>,
}

impl DemoTokenEndpointEnded<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::error!(%error, "the demo's token endpoint ended");
    }
}

/// A receiver ended.
pub struct DemoReceiverEnded<'a> {
    pub receiver: &'a str,
    pub error: Cause<'a>,
}

impl DemoReceiverEnded<'_> {
    pub fn emit(self) {
        let Self { receiver, error } = self;
        tracing::error!(%error, receiver, "a receiver of the demo ended");
    }
}

/// The hub of the demo ended with an error.
pub struct DemoHubFailed<'a> {
    pub error: Cause<'a>,
}

impl DemoHubFailed<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::error!(%error, "the hub did not stop in good order");
    }
}

/// The nats-server of the demo had to be killed.
pub struct DemoServerNotStopped<'a> {
    pub error: Cause<'a>,
}

impl DemoServerNotStopped<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::warn!(%error, "the nats-server did not stop by itself");
    }
}

/// The process has a log already, which the demo uses.
pub struct DemoLogShared<'a> {
    pub error: Cause<'a>,
}

impl DemoLogShared<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::debug!(%error, "the demo keeps the log of its process");
    }
}
