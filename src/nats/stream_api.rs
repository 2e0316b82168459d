//! JetStream API calls on streams, consumers and single stored messages.

use std::time::Duration;

use async_nats::HeaderMap;
use base64::Engine as _;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::connection::JetStream;
use super::error::{BoxError, NatsError};
use super::gone::unless_gone;
use super::message::Malformed;
use crate::domain::stream_fill::Fill;

/// JetStream pauses until a time; one this far away means "until resumed".
pub const UNTIL_RESUMED: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The fields of `STREAM.INFO` that the hub uses.
#[derive(Debug, Clone, Deserialize)]
pub struct StreamInfo {
    /// Creation time (RFC 3339); it changes if the stream is deleted and created again.
    #[serde(default)]
    pub created: String,
    pub config: Map<String, Value>,
    pub state: StreamState,
    /// Absent from a server without a cluster.
    #[serde(default)]
    cluster: Option<StreamCluster>,
}

/// The servers of a stream.
#[derive(Debug, Clone, Deserialize)]
struct StreamCluster {
    /// The name of a server; absent or empty while there is none.
    #[serde(default)]
    leader: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct StreamState {
    pub messages: u64,
    pub bytes: u64,
    pub first_seq: u64,
    pub last_seq: u64,
    /// When the first message was stored (RFC 3339).
    #[serde(default)]
    pub first_ts: String,
    /// Distinct subjects.
    #[serde(default)]
    pub num_subjects: u64,
    #[serde(default)]
    pub subjects: Option<std::collections::BTreeMap<String, u64>>,
}

impl StreamState {
    /// When the oldest message was stored; `None` if there is none.
    pub fn oldest_at(&self) -> Option<OffsetDateTime> {
        if self.messages == 0 {
            return None;
        }
        let at = OffsetDateTime::parse(&self.first_ts, &Rfc3339).ok();
        // The server writes the year 1 for a time that it does not know.
        at.filter(|at| *at > OffsetDateTime::UNIX_EPOCH)
    }
}

impl StreamInfo {
    /// Whether the stream has a leader. Without one, any of its servers answers, and its state may lack what the others have.
    pub fn has_leader(&self) -> bool {
        self.cluster.as_ref().is_none_or(|cluster| !cluster.leader.is_empty())
    }

    /// What the stream contains, and its limits. A limit of -1, or one that is missing, is none.
    pub fn fill(&self) -> Fill {
        let limit = |name: &str| {
            let limit = self.config.get(name).and_then(Value::as_i64);
            limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0)
        };
        Fill {
            bytes: self.state.bytes,
            messages: self.state.messages,
            max_bytes: limit("max_bytes"),
            max_messages: limit("max_msgs"),
        }
    }
}

/// The fields of `CONSUMER.INFO` that the hub uses.
#[derive(Debug, Clone, Deserialize)]
pub struct ConsumerInfo {
    pub name: String,
    pub config: Map<String, Value>,
    pub delivered: SequencePair,
    pub ack_floor: SequencePair,
    pub num_ack_pending: u64,
    pub num_redelivered: u64,
    pub num_pending: u64,
    /// Pull requests that wait for messages.
    #[serde(default)]
    pub num_waiting: u64,
    #[serde(default)]
    pub paused: bool,
    /// Nanoseconds.
    #[serde(default)]
    pub pause_remaining: Option<u64>,
    /// The time of the answer at the server (RFC 3339).
    #[serde(default, rename = "ts")]
    pub at: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub struct SequencePair {
    pub consumer_seq: u64,
    pub stream_seq: u64,
}

/// A message read from a stream by its sequence or subject.
#[derive(Debug, Clone)]
pub struct StoredMessage {
    pub subject: String,
    pub sequence: u64,
    pub headers: Option<HeaderMap>,
    pub payload: Bytes,
    /// RFC 3339
    pub time: String,
}

impl StoredMessage {
    pub fn header(&self, name: &str) -> Option<&str> {
        super::message::header(self.headers.as_ref(), name)
    }

    /// Why the subject or the headers cannot be parsed; [`Self::header`] then finds nothing.
    pub fn malformed(&self) -> Option<Malformed> {
        super::message::malformed(&self.subject, self.headers.as_ref())
    }

    /// The raw header block, if it cannot be parsed.
    pub fn header_block(&self) -> Option<&Bytes> {
        self.headers.as_ref()?.unparsed()
    }

    /// All headers; a name with several values occurs once per value.
    pub fn header_pairs(&self) -> Vec<(&str, &str)> {
        let headers = self.headers.iter().flat_map(|headers| headers.iter());
        headers
            .flat_map(|(name, values)| {
                let name: &str = name.as_ref();
                values.iter().map(move |value| (name, value.as_str()))
            })
            .collect()
    }
}

#[derive(Deserialize)]
struct GetAnswer {
    message: GetMessage,
}

#[derive(Deserialize)]
struct GetMessage {
    subject: String,
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
    time: String,
}

impl JetStream {
    pub async fn stream_info(&self, stream: &str) -> Result<StreamInfo, NatsError> {
        self.api(&format!("STREAM.INFO.{stream}"), &Value::Null).await
    }

    pub async fn consumer_info(&self, stream: &str, consumer: &str) -> Result<ConsumerInfo, NatsError> {
        self.api(&format!("CONSUMER.INFO.{stream}.{consumer}"), &Value::Null).await
    }

    /// All subjects of a stream that match a filter, with their message counts.
    pub async fn stream_subjects(&self, stream: &str, filter: &str) -> Result<Vec<(String, u64)>, NatsError> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            total: u64,
            state: StreamState,
        }
        let mut found = Vec::new();
        loop {
            let request = json!({"subjects_filter": filter, "offset": found.len()});
            let page: Page = self.api(&format!("STREAM.INFO.{stream}"), &request).await?;
            let subjects = page.state.subjects.unwrap_or_default();
            if subjects.is_empty() {
                return Ok(found);
            }
            found.extend(subjects);
            if found.len() as u64 >= page.total {
                return Ok(found);
            }
        }
    }

    /// The names of all consumers of a stream.
    pub async fn consumer_names(&self, stream: &str) -> Result<Vec<String>, NatsError> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            total: usize,
            #[serde(default)]
            consumers: Option<Vec<String>>,
        }
        let mut names = Vec::new();
        loop {
            let page: Page =
                self.api(&format!("CONSUMER.NAMES.{stream}"), &json!({"offset": names.len()})).await?;
            let consumers = page.consumers.unwrap_or_default();
            if consumers.is_empty() {
                return Ok(names);
            }
            names.extend(consumers);
            if names.len() >= page.total {
                return Ok(names);
            }
        }
    }

    /// The message at a sequence, read from the stream's leader.
    pub async fn get(&self, stream: &str, sequence: u64) -> Result<Option<StoredMessage>, NatsError> {
        self.get_by(stream, json!({"seq": sequence})).await
    }

    /// The first message at or after a sequence whose subject matches the filter.
    pub async fn get_next(
        &self,
        stream: &str,
        from: u64,
        filter: &str,
    ) -> Result<Option<StoredMessage>, NatsError> {
        self.get_by(stream, json!({"seq": from, "next_by_subj": filter})).await
    }

    pub async fn get_last(&self, stream: &str, subject: &str) -> Result<Option<StoredMessage>, NatsError> {
        self.get_by(stream, json!({"last_by_subj": subject})).await
    }

    /// The last message of a subject. Unlike [`Self::get_last`] it fails if the stream does not exist.
    pub(super) async fn get_last_kept(
        &self,
        stream: &str,
        subject: &str,
    ) -> Result<Option<StoredMessage>, NatsError> {
        match self.get_last(stream, subject).await? {
            Some(message) => Ok(Some(message)),
            None => self.stream_info(stream).await.map(|_| None),
        }
    }

    async fn get_by(&self, stream: &str, request: Value) -> Result<Option<StoredMessage>, NatsError> {
        let subject = format!("STREAM.MSG.GET.{stream}");
        let Some(answer) = unless_gone(self.api::<GetAnswer>(&subject, &request).await)? else {
            return Ok(None);
        };
        let unreadable = |source: BoxError| NatsError::answer(subject.clone(), source);
        let decode = |text: &str| {
            base64::engine::general_purpose::STANDARD.decode(text).map_err(|e| unreadable(e.into()))
        };
        let GetMessage { subject: at, seq, hdrs, data, time } = answer.message;
        Ok(Some(StoredMessage {
            subject: at,
            sequence: seq,
            headers: (!hdrs.is_empty())
                .then(|| decode(&hdrs))
                .transpose()?
                .map(|block| HeaderMap::from_block(block.into())),
            payload: decode(&data)?.into(),
            time,
        }))
    }

    /// Deletes a consumer. Succeeds if it does not exist.
    pub async fn delete_consumer(&self, stream: &str, consumer: &str) -> Result<(), NatsError> {
        let subject = format!("CONSUMER.DELETE.{stream}.{consumer}");
        unless_gone(self.api::<Value>(&subject, &Value::Null).await).map(drop)
    }

    /// Pauses a consumer until a time (RFC 3339), or resumes it, as `nats consumer pause` and `resume` do.
    pub async fn pause_consumer(
        &self,
        stream: &str,
        consumer: &str,
        until: Option<&str>,
    ) -> Result<(), NatsError> {
        let request = match until {
            Some(until) => json!({"pause_until": until}),
            None => json!({}),
        };
        self.api::<Value>(&format!("CONSUMER.PAUSE.{stream}.{consumer}"), &request).await.map(drop)
    }
}
