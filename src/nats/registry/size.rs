//! How large the bucket is, and how far this process has read it.

use super::Registry;
use crate::nats::{JetStream, NatsError, StreamInfo};

/// See [`Registry::size`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegistrySize {
    /// With the history.
    pub bytes: u64,
    /// Keys, including those of removed subscriptions.
    pub entries: u64,
    /// Revisions that this process has not read yet.
    pub revision_lag: u64,
}

impl Registry {
    /// Reads the size of the bucket.
    pub async fn size(&self, js: &JetStream) -> Result<RegistrySize, NatsError> {
        let info = js.registry_info().await?;
        if !info.has_leader() {
            return Err(NatsError::NoLeader { subject: js.names().subscriptions_stream() });
        }
        let StreamInfo { created, state, .. } = info;
        let read_up_to = self.read_up_to.borrow();
        let read = if read_up_to.made == created { read_up_to.revision } else { 0 };
        Ok(RegistrySize {
            bytes: state.bytes,
            entries: state.num_subjects,
            revision_lag: state.last_seq.saturating_sub(read),
        })
    }
}
