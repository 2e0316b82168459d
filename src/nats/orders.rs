//! Bulk orders: a KV bucket (ADR-8) of how far each has come, so that any replica can tell. The
//! bucket itself is the bound: it keeps so many, for so long, and forgets the oldest.

use super::connection::JetStream;
use super::error::NatsError;
use crate::domain::bulk_job::{BulkJob, BulkJobId};

impl JetStream {
    /// Writes an order. `expected`: the revision it must have now, 0 for none yet. Returns the new
    /// revision.
    pub async fn put_order(&self, order: &BulkJob, expected: u64) -> Result<u64, NatsError> {
        let key = self.names().order_key(&order.id);
        let value = serde_json::to_vec(order).map_err(|error| NatsError::answer(key.clone(), error))?;
        self.write_key(&key, value.into(), Some(expected), &[]).await
    }

    /// An order and its revision; `None` if it is unknown, forgotten or unreadable.
    pub async fn order(&self, id: &BulkJobId) -> Result<Option<(BulkJob, u64)>, NatsError> {
        let (revision, order) = self.order_at(id).await?;
        Ok(order.map(|order| (order, revision)))
    }

    /// An order, and the revision that the next write of it must expect: also where what is stored is
    /// unreadable, so that whoever has the order can write it anew.
    pub async fn order_at(&self, id: &BulkJobId) -> Result<(u64, Option<BulkJob>), NatsError> {
        let key = self.names().order_key(id);
        let Some(message) = self.get_last(&self.names().orders_stream(), &key).await? else {
            return Ok((0, None));
        };
        if message.header("KV-Operation").is_some() {
            return Ok((message.sequence, None));
        }
        if let Some(error) = message.malformed() {
            tracing::warn!(key, %error, "a stored bulk job is unreadable");
            return Ok((message.sequence, None));
        }
        let read = serde_json::from_slice(&message.payload);
        let order =
            read.inspect_err(|error| tracing::warn!(key, %error, "a stored bulk job is unreadable")).ok();
        Ok((message.sequence, order))
    }

    /// All orders that are remembered, in no order.
    pub async fn orders(&self) -> Result<Vec<BulkJob>, NatsError> {
        let (stream, filter) = (self.names().orders_stream(), self.names().orders_filter());
        let mut orders = Vec::new();
        self.browse(&stream, &filter, None, |message| {
            if message.header("KV-Operation").is_some() {
                return;
            }
            if let Some(error) = message.malformed() {
                tracing::warn!(key = message.subject, %error, "a stored order cannot be read and is passed over");
                return;
            }
            match serde_json::from_slice(&message.payload) {
                Ok(order) => orders.push(order),
                Err(error) => {
                    tracing::warn!(key = message.subject, %error, "a stored order cannot be read and is passed over");
                }
            }
        })
        .await?;
        Ok(orders)
    }
}
