//! The streams that the workers of one broker publish at the moment, so that no worker claims those of the other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hub_outbox::ClaimedRow;

/// Most streams that a claim is asked to skip; skipping has a cost as well.
const MOST_PASSED_OVER: usize = 1_000;

/// Number of rows of each stream that are claimed and not settled.
#[derive(Default)]
pub(super) struct InHand {
    rows: Mutex<HashMap<Arc<str>, usize>>,
}

impl InHand {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts claimed rows. Returns the stream of each, by position.
    pub(super) fn take(&self, rows: &[ClaimedRow]) -> HashMap<i64, Arc<str>> {
        let mut counts = self.lock();
        let mut take = |row: &ClaimedRow| {
            if let Some((stream, count)) = counts.get_key_value(row.stream.as_str()) {
                let (stream, more) = (stream.clone(), count + 1);
                counts.insert(stream.clone(), more);
                return (row.position, stream);
            }
            let stream: Arc<str> = row.stream.as_str().into();
            counts.insert(stream.clone(), 1);
            (row.position, stream)
        };
        rows.iter().map(&mut take).collect()
    }

    /// Rows of these streams are settled, or no longer in the claim.
    pub(super) fn settle(&self, streams: impl Iterator<Item = Arc<str>>) {
        let mut counts = self.lock();
        for stream in streams {
            if let Some(count) = counts.get_mut(&stream) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&stream);
                }
            }
        }
    }

    /// The streams with a claimed row.
    pub(super) fn streams(&self) -> Vec<String> {
        self.lock().keys().take(MOST_PASSED_OVER).map(|stream| stream.to_string()).collect()
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::domain::producer_outbox::Priority;

    fn row(position: i64, stream: &str) -> ClaimedRow {
        ClaimedRow {
            position,
            message_id: position.to_string(),
            event_type: "user.created".to_owned(),
            stream: stream.to_owned(),
            priority: Priority::Live,
            is_public: false,
            payload: String::new(),
            attempts: 0,
            created_at: OffsetDateTime::UNIX_EPOCH,
            unreadable: None,
        }
    }

    #[test]
    fn a_stream_is_in_hand_until_its_last_row_is_settled() {
        let in_hand = InHand::default();
        let mut first = in_hand.take(&[row(1, "a"), row(2, "a"), row(3, "b")]);
        let second = in_hand.take(&[row(4, "b")]);
        let streams = || {
            let mut streams = in_hand.streams();
            streams.sort();
            streams
        };
        assert_eq!(streams(), ["a", "b"]);
        in_hand.settle([first.remove(&1), first.remove(&3)].into_iter().flatten());
        assert_eq!(streams(), ["a", "b"]);
        in_hand.settle(first.into_values());
        assert_eq!(streams(), ["b"]);
        in_hand.settle(second.into_values());
        assert!(streams().is_empty());
    }
}
