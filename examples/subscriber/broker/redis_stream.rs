//! A Redis stream read by a consumer group: each entry goes to one of the group, and stays pending until that
//! one acknowledges it. What a consumer that has crashed left pending is claimed by another (`XAUTOCLAIM`).

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
/// Reads what nobody of the group has got yet.
const NEW: &str = ">";

pub struct RedisStream {
    source: Source,
    connection: MultiplexedConnection,
    /// When to look for what others left, and how far in the list of pending entries that look has come.
    reclaim_at: Instant,
    reclaim_from: String,
}

impl RedisStream {
    pub async fn connect(source: &Source) -> Result<Self, BrokerError> {
        let client = Client::open(source.url.as_str())?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(TIMEOUT))
            // A read waits on the server.
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

    pub async fn next(&mut self) -> Result<Vec<Delivery>, BrokerError> {
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

    /// Takes over up to a batch of what has been pending for too long: another's, or our own after an error.
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

    pub async fn acknowledge(&mut self, id: &str) -> Result<(), BrokerError> {
        let Source { stream, group, .. } = &self.source;
        // None is removed if somebody else has claimed and acknowledged it meanwhile: done all the same.
        let _: usize = self.connection.xack(stream, group, &[id]).await?;
        Ok(())
    }

    fn delivery(&self, entry: StreamId, attempts: u64) -> Delivery {
        // The hub writes one field. An entry of somebody else's without it has no envelope, and is put aside.
        let body: Vec<u8> = entry.get("data").unwrap_or_default();
        Delivery {
            place: format!("{} {}", self.source.stream, entry.id),
            body: Bytes::from(body),
            attempts,
            receipt: Receipt::Redis(entry.id),
        }
    }
}
