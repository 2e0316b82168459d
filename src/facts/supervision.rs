//! Tasks and panics.

use super::Cause;
use super::limited::{About, limited};

/// A task ended although it was not stopped; its owner stops the others.
pub struct TaskEnded<'a> {
    pub error: Cause<'a>,
}

impl TaskEnded<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::error!(%error, "task ended, stopping");
    }
}

/// A short task panicked; the others of its kind go on.
pub struct JobPanicked<'a> {
    pub error: Cause<'a>,
}

impl JobPanicked<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        limited!(ERROR "task panicked", About::default(); %error);
    }
}

/// The hub panicked on one message.
pub struct InputPanicked<'a> {
    pub panic: &'a str,
    pub stream: &'a str,
    pub sequence: u64,
    pub deliveries: u32,
    /// It has had its tries.
    pub set_aside: bool,
}

impl InputPanicked<'_> {
    pub fn emit(self) {
        let Self { panic, stream, sequence, deliveries, set_aside } = self;
        limited!(
            ERROR "panicked on an input", About::detail(stream);
            panic, stream, sequence, deliveries, set_aside
        );
    }
}

/// The depths of the streams could not be read for the metrics.
pub struct DepthsNotRead<'a> {
    pub error: Cause<'a>,
}

impl DepthsNotRead<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::debug!(%error, "stream depths not read, will retry");
    }
}
