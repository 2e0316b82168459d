//! The delivery log: messages of several records each, per subscription.

use bytes::Bytes;

use super::connection::JetStream;
use super::error::NatsError;

/// How many records a message of the log holds.
pub(super) const RECORDS_HEADER: &str = "Hub-Records";

impl JetStream {
    /// Puts records (newline-delimited JSON, `count` of them) into a subscription's log, which its
    /// token names.
    pub async fn put_attempts(
        &self,
        domain: &str,
        subscription: &str,
        count: u64,
        lines: Bytes,
    ) -> Result<(), NatsError> {
        let subject = self.names().attempts(domain, subscription);
        self.publish(&subject, lines, &[(RECORDS_HEADER, &count.to_string())]).await.map(drop)
    }
}
