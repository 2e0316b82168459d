//! A Redis stream with a consumer group. Each entry goes to one consumer, and is pending until that consumer
//! acknowledges it. Another consumer claims the pending entries of one that crashed (`XAUTOCLAIM`).

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::streams::{
    StreamAutoClaimOptions, StreamAutoClaimReply, StreamId, StreamPendingCountReply, StreamReadOptions,
    StreamReadReply,
};
use redis::{AsyncCommands, AsyncConnectionConfig, Client};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{BrokerError, Delivery, Receipt, Source, TIMEOUT, WAIT};

const BEGINNING: &str = "0-0";
/// Reads entries that no consumer of the group has read.
const NEW: &str = ">";

pub(crate) struct RedisStream {
    source: Source,
    connection: MultiplexedConnection,
    /// Time of the next search for abandoned entries, and its position in the list of pending entries.
    reclaim_at: Instant,
    reclaim_from: String,
}

impl RedisStream {
    pub(crate) async fn connect(source: &Source) -> Result<Self, BrokerError> {
        let client = Client::open(source.url.as_str())?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(TIMEOUT))
            // A read blocks on the server.
            .set_response_timeout(Some(TIMEOUT + WAIT));
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let made = connection.xgroup_create_mkstream(&source.stream, &source.group, BEGINNING).await;
        match made {
            Err(error) if error.code() == Some("BUSYGROUP") => {}
            made => made?,
        }
        let (reclaim_at, reclaim_from) = (Instant::now(), BEGINNING.to_owned());
        Ok(Self { source: source.clone(), connection, reclaim_at, reclaim_from })
    }

    pub(crate) async fn next(&mut self) -> Result<Vec<Delivery>, BrokerError> {
        if Instant::now() >= self.reclaim_at {
            let reclaimed = self.reclaim().await?;
            if !reclaimed.is_empty() {
                return Ok(reclaimed);
            }
        }
        let options = StreamReadOptions::default()
            .group(&self.source.group, &self.source.consumer)
            .count(self.source.batch)
            .block(WAIT.as_millis() as usize);
        let read: Option<StreamReadReply> =
            self.connection.xread_options(&[&self.source.stream], &[NEW], &options).await?;
        let entries = read.into_iter().flat_map(|read| read.keys).flat_map(|key| key.ids);
        Ok(entries.map(|entry| self.delivery(entry, 1)).collect())
    }

    /// Claims up to one batch of entries that are pending for too long: of another consumer, or its own after an error.
    async fn reclaim(&mut self) -> Result<Vec<Delivery>, BrokerError> {
        let Source { stream, group, consumer, reclaim_after, batch, .. } = &self.source;
        let idle = reclaim_after.as_millis() as usize;
        let options = StreamAutoClaimOptions::default().count(*batch);
        let claimed: StreamAutoClaimReply = self
            .connection
            .xautoclaim_options(stream, group, consumer, idle, &self.reclaim_from, options)
            .await?;
        self.reclaim_from = claimed.next_stream_id;
        if self.reclaim_from == BEGINNING {
            self.reclaim_at = Instant::now() + *reclaim_after / 2;
        }
        if !claimed.deleted_ids.is_empty() {
            warn!(?claimed.deleted_ids, "trimmed from the stream before they were acknowledged");
        }
        let mut deliveries = Vec::with_capacity(claimed.claimed.len());
        for entry in claimed.claimed {
            let pending: StreamPendingCountReply =
                self.connection.xpending_count(stream, group, &entry.id, &entry.id, 1).await?;
            let attempts = pending.ids.first().map_or(1, |pending| pending.times_delivered as u64);
            info!(entry.id, attempts, "reclaimed");
            deliveries.push(self.delivery(entry, attempts));
        }
        Ok(deliveries)
    }

    pub(crate) async fn acknowledge(&mut self, id: &str) -> Result<(), BrokerError> {
        let Source { stream, group, .. } = &self.source;
        // Zero if another consumer has acknowledged it meanwhile, which is fine.
        let _: usize = self.connection.xack(stream, group, &[id]).await?;
        Ok(())
    }

    fn delivery(&self, entry: StreamId, attempts: u64) -> Delivery {
        // The hub writes one field. An entry without it comes from someone else, and is set aside.
        let body: Vec<u8> = entry.get("data").unwrap_or_default();
        Delivery {
            place: format!("{} {}", self.source.stream, entry.id),
            body: Bytes::from(body),
            attempts,
            receipt: Receipt::Redis(entry.id),
        }
    }
}
