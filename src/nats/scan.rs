//! Reading a stream from one end to the other through a consumer that lives as long as the read.

use serde_json::{Map, Value, json};

use super::connection::JetStream;
use super::error::NatsError;
use super::message::Delivered;
use super::pull::{PullEvent, Puller};

/// Messages asked for ahead while reading.
const ROOM: usize = 2_000;

/// How a stream is read.
#[derive(Debug, Clone, Default)]
pub(super) struct ScanOptions {
    /// Subjects, none of which overlaps another.
    pub(super) filters: Vec<String>,
    pub(super) from_sequence: Option<u64>,
    pub(super) headers_only: bool,
    /// Only the newest message of each subject, then what follows.
    pub(super) last_per_subject: bool,
}

/// An ephemeral reader. It acknowledges nothing and leaves no trace.
pub(super) struct Scan {
    puller: Puller,
    js: JetStream,
    stream: String,
    consumer: String,
    /// Messages that were there when the read began and have not come yet.
    pub(super) remaining: u64,
    next_sequence: u64,
}

/// The reader lost its place: the server forgot the consumer, or a message went astray. Begin anew.
#[derive(Debug)]
pub(super) enum ScanEvent {
    Message(Box<Delivered>),
    Lost,
}

impl Scan {
    pub(super) async fn begin(
        js: &JetStream,
        stream: &str,
        options: &ScanOptions,
    ) -> Result<Self, NatsError> {
        let inbox = js.client().new_inbox();
        let consumer = format!("scan-{}", inbox.rsplit('.').next().unwrap_or("reader"));
        let mut config: Map<String, Value> = Map::new();
        config.insert("name".into(), json!(consumer));
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
        let puller = Puller::new(js, stream, &consumer).await?;
        let info = js.put_consumer(stream, &consumer, &config, "create").await?;
        Ok(Self {
            puller,
            js: js.clone(),
            stream: stream.to_owned(),
            consumer,
            remaining: info.num_pending,
            next_sequence: 1,
        })
    }

    /// The next message, waiting for it if there is none yet. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<ScanEvent, NatsError> {
        match self.puller.next(ROOM).await? {
            PullEvent::Message(message) => {
                if message.consumer_sequence != self.next_sequence {
                    return Ok(ScanEvent::Lost);
                }
                self.next_sequence += 1;
                // The server's own count too: what was dropped meanwhile never comes.
                self.remaining = self.remaining.saturating_sub(1).min(message.pending);
                Ok(ScanEvent::Message(message))
            }
            PullEvent::Missing | PullEvent::Reset => Ok(ScanEvent::Lost),
        }
    }

    /// Removes the consumer at once; without this the server does after a minute.
    pub(super) async fn end(self) {
        let subject = format!("CONSUMER.DELETE.{}.{}", self.stream, self.consumer);
        if let Err(error) = self.js.api::<Value>(&subject, &Value::Null).await {
            tracing::debug!(%error, "a reader's consumer was not removed; the server removes it");
        }
    }
}
