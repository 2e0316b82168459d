//! Reads a stream in order through an ephemeral consumer.

use serde_json::{Map, Value, json};

use super::connection::JetStream;
use super::error::NatsError;
use super::message::Delivered;
use super::pull::{PullEvent, Puller};
use super::scan_names::ScanName;
use crate::facts::EphemeralConsumerNotDeleted;

/// Maximum number of messages requested ahead.
const ROOM: usize = 2_000;

/// Length of the part of the name that is the same for all readers of a process.
const PROCESS_NAME: usize = 10;

/// Which messages of a stream to read.
#[derive(Debug, Clone, Default)]
pub(super) struct OrderedReaderOptions {
    /// Subject filters, which must not overlap.
    pub(super) filters: Vec<String>,
    pub(super) from_sequence: Option<u64>,
    pub(super) headers_only: bool,
    /// Start with the newest message of each subject, then read what follows.
    pub(super) last_per_subject: bool,
}

/// Reads a stream through an ephemeral consumer, without acknowledgements.
pub(super) struct OrderedReader {
    puller: Puller,
    js: JetStream,
    stream: String,
    consumer: ScanName,
    /// Messages that existed when the read began and have not been received yet.
    pub(super) remaining: u64,
    next_sequence: u64,
}

/// The result of a read.
#[derive(Debug)]
pub(super) enum OrderedEvent {
    Message(Box<Delivered>),
    /// The server dropped the consumer, or a message was lost. Open a new reader.
    Lost,
}

impl OrderedReader {
    pub(super) async fn open(
        js: &JetStream,
        stream: &str,
        options: &OrderedReaderOptions,
    ) -> Result<Self, NatsError> {
        let consumer = js.scan_names().take(|| {
            let inbox = js.client().new_inbox();
            inbox.rsplit('.').next().unwrap_or("reader").chars().take(PROCESS_NAME).collect()
        });
        let mut config: Map<String, Value> = Map::new();
        config.insert("name".into(), json!(consumer.as_str()));
        config.insert("ack_policy".into(), json!("none"));
        config.insert("mem_storage".into(), json!(true));
        config.insert("num_replicas".into(), json!(1));
        config.insert("inactive_threshold".into(), json!(60_000_000_000u64));
        match &options.filters[..] {
            [one] => config.insert("filter_subject".into(), json!(one)),
            many => config.insert("filter_subjects".into(), json!(many)),
        };
        config.insert("headers_only".into(), json!(options.headers_only));
        if options.last_per_subject {
            config.insert("deliver_policy".into(), json!("last_per_subject"));
        } else if let Some(sequence) = options.from_sequence {
            config.insert("deliver_policy".into(), json!("by_start_sequence"));
            config.insert("opt_start_seq".into(), json!(sequence.max(1)));
        } else {
            config.insert("deliver_policy".into(), json!("all"));
        }
        let puller = Puller::new(js, stream, consumer.as_str()).await?;
        let info = js.put_consumer(stream, consumer.as_str(), &config, "create").await?;
        Ok(Self {
            puller,
            js: js.clone(),
            stream: stream.to_owned(),
            consumer,
            remaining: info.num_pending,
            next_sequence: 1,
        })
    }

    /// Waits for the next message. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<OrderedEvent, NatsError> {
        match self.puller.next(ROOM).await? {
            PullEvent::Message(message) => {
                if message.consumer_sequence != self.next_sequence {
                    return Ok(OrderedEvent::Lost);
                }
                self.next_sequence += 1;
                // The server's count matters too: messages deleted in the meantime never arrive.
                self.remaining = self.remaining.saturating_sub(1).min(message.pending);
                Ok(OrderedEvent::Message(message))
            }
            PullEvent::Missing | PullEvent::Reset => Ok(OrderedEvent::Lost),
        }
    }

    /// Deletes the consumer at once; otherwise the server deletes it after a minute.
    pub(super) async fn close(self) {
        match self.js.delete_consumer(&self.stream, self.consumer.as_str()).await {
            Ok(()) => self.consumer.deleted(),
            Err(error) => EphemeralConsumerNotDeleted { error: &error }.emit(),
        }
    }
}
