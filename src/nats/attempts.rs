//! The delivery log: each message holds several records of one subscription.

use bytes::Bytes;

use super::connection::JetStream;
use super::error::NatsError;
use crate::domain::headers;

/// Number of records in a message of the delivery log.
pub(super) const RECORDS_HEADER: &str = headers::RECORDS;

impl JetStream {
    /// Appends `count` records (newline-delimited JSON) to the delivery log of a subscription, given by its token.
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
