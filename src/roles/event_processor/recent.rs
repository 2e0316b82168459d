//! The ids of the envelopes that this committer committed last.
//!
//! One duplicate makes the server refuse a whole batch. Envelopes that are known here are published one by one instead,
//! so that a publisher that repeats events does not slow the others down.

use std::collections::HashSet;

use foldhash::fast::RandomState;

use crate::nats::EnvelopeMessage;

/// Ids of one generation; there are two.
const MOST: usize = 32 * 1024;

#[derive(Default)]
pub(super) struct Recent {
    newer: HashSet<Box<str>, RandomState>,
    older: HashSet<Box<str>, RandomState>,
}

impl Recent {
    /// Those that are new, and those that were committed already or are twice in the group; `None` if all are new.
    pub(super) fn split(
        &self,
        envelopes: &[EnvelopeMessage],
    ) -> Option<(Vec<EnvelopeMessage>, Vec<EnvelopeMessage>)> {
        let mut repeated = HashSet::new();
        {
            let mut group: HashSet<&str, RandomState> =
                HashSet::with_capacity_and_hasher(envelopes.len(), RandomState::default());
            for (at, envelope) in envelopes.iter().enumerate() {
                let id = envelope.message_id.as_str();
                if self.contains(id) || !group.insert(id) {
                    repeated.insert(at);
                }
            }
        }
        if repeated.is_empty() {
            return None;
        }
        let (mut new, mut known) = (Vec::with_capacity(envelopes.len()), Vec::new());
        for (at, envelope) in envelopes.iter().cloned().enumerate() {
            if repeated.contains(&at) { known.push(envelope) } else { new.push(envelope) }
        }
        Some((new, known))
    }

    pub(super) fn committed(&mut self, envelopes: &[EnvelopeMessage]) {
        for envelope in envelopes {
            self.remember(&envelope.message_id);
        }
    }

    pub(super) fn remember(&mut self, id: &str) {
        if self.newer.len() >= MOST {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(id.into());
    }

    pub(super) fn contains(&self, id: &str) -> bool {
        self.newer.contains(id) || self.older.contains(id)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn envelopes(ids: impl IntoIterator<Item = usize>) -> Vec<EnvelopeMessage> {
        let outgoing = |id: usize| EnvelopeMessage {
            subject: String::new(),
            message_id: format!("env_{id}"),
            payload: Bytes::new().into(),
            headers: Vec::new(),
        };
        ids.into_iter().map(outgoing).collect()
    }

    fn ids(envelopes: &[EnvelopeMessage]) -> Vec<&str> {
        envelopes.iter().map(|envelope| envelope.message_id.as_str()).collect()
    }

    #[test]
    fn duplicates_are_separated_in_their_order() {
        let mut recent = Recent::default();
        recent.committed(&envelopes([1, 2]));
        let (new, known) = recent.split(&envelopes([3, 1, 4, 3, 2])).expect("some are repeated");
        assert_eq!((ids(&new), ids(&known)), (vec!["env_3", "env_4"], vec!["env_1", "env_3", "env_2"]));
        assert!(recent.split(&envelopes([5, 6])).is_none());
    }

    #[test]
    fn it_forgets_the_oldest() {
        let mut recent = Recent::default();
        recent.committed(&envelopes(0..3 * MOST));
        assert!(recent.newer.len() + recent.older.len() <= 2 * MOST);
        let (_, known) = recent.split(&envelopes([3 * MOST - 1, 2 * MOST, 0])).expect("some are repeated");
        assert_eq!(known.len(), 2);
    }
}
