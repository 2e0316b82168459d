//! What a domain outbox can hold, as its stream says: an operator may change its limits while the hub runs.

use std::sync::{Arc, PoisonError, RwLock};

use serde_json::{Map, Value};

use crate::domain::commit_group::OutboxCapacity;
use crate::nats::{JetStream, MOST_PER_BATCH, NatsError};

/// Most bytes of one atomic batch. The server has no limit of its own, but a replicated stream stages a batch in memory.
const MOST_BATCH_BYTES: usize = 64 * 1024 * 1024;

/// Cheap to clone; all clones share what is known.
#[derive(Clone)]
pub(super) struct OutboxRoom {
    js: JetStream,
    stream: String,
    known: Arc<RwLock<OutboxCapacity>>,
}

impl OutboxRoom {
    /// `outbox_size`: the limit in bytes (`limits.outbox`) until the stream is read.
    pub(super) fn new(js: JetStream, domain: &str, outbox_size: usize) -> Self {
        let room = OutboxCapacity {
            batch: MOST_PER_BATCH,
            batch_bytes: MOST_BATCH_BYTES,
            max_bytes: Some(outbox_size),
            max_msgs: None,
            max_msg_size: None,
        };
        let stream = js.names().outbox_stream(domain);
        Self { js, stream, known: Arc::new(RwLock::new(room)) }
    }

    /// As it was read last.
    pub(super) fn known(&self) -> OutboxCapacity {
        *self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the limits from the stream; also returns whether the stream is empty.
    pub(super) async fn read(&self) -> Result<(OutboxCapacity, bool), NatsError> {
        let info = self.js.stream_info(&self.stream).await?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        *known = with_limits(*known, &info.config);
        Ok((*known, info.state.messages == 0))
    }

    /// The server refused a batch of more envelopes than this.
    pub(super) fn lower_batch(&self, most: usize) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).batch = most.max(1);
    }

    pub(super) fn stream(&self) -> &str {
        &self.stream
    }
}

/// A limit of -1, or one that is missing, is none.
fn with_limits(room: OutboxCapacity, config: &Map<String, Value>) -> OutboxCapacity {
    let limit = |name: &str| {
        let limit = config.get(name)?.as_i64()?;
        usize::try_from(limit).ok().filter(|limit| *limit > 0)
    };
    OutboxCapacity {
        max_bytes: limit("max_bytes"),
        max_msgs: limit("max_msgs"),
        max_msg_size: limit("max_msg_size"),
        ..room
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_are_those_of_the_stream() {
        let room = OutboxCapacity {
            batch: 7,
            batch_bytes: 8,
            max_bytes: Some(9),
            max_msgs: None,
            max_msg_size: None,
        };
        let read = |config: Value| with_limits(room, config.as_object().expect("an object"));
        let limited = json!({"max_bytes": 1000, "max_msgs": 20, "max_msg_size": 300});
        let expected =
            OutboxCapacity { max_bytes: Some(1000), max_msgs: Some(20), max_msg_size: Some(300), ..room };
        assert_eq!(read(limited), expected);
        for unlimited in [json!({}), json!({"max_bytes": -1, "max_msgs": 0, "max_msg_size": "x"})] {
            assert_eq!(read(unlimited), OutboxCapacity { max_bytes: None, ..room });
        }
    }
}
