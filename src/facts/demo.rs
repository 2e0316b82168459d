//! The hub, the server and the log of `hub demo`.

use super::Cause;

/// The hub of the demo ended with an error.
pub struct DemoHubFailed<'a> {
    pub error: Cause<'a>,
}

impl DemoHubFailed<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::error!(%error, "the hub stopped with an error");
    }
}

/// The nats-server of the demo had to be killed.
pub struct DemoServerNotStopped<'a> {
    pub error: Cause<'a>,
}

impl DemoServerNotStopped<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::warn!(%error, "the nats-server did not stop in time");
    }
}

/// The process has a log already, which the demo uses.
pub struct DemoLogShared<'a> {
    pub error: Cause<'a>,
}

impl DemoLogShared<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::debug!(%error, "the demo uses the log of its process");
    }
}
