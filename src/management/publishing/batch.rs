//! Publishes a batch in its order: each event when the one before it is stored. So a later event is never stored before an
//! earlier one, also if the batch is sent again.
//!
//! Only storing waits for the event before it. The ids are looked up ahead, and the id of an event is recorded while the next
//! one is stored. So a batch takes one round trip to the server per event. As long as a batch is published, no other request
//! of this process publishes an event of it: that would make its lookups wrong.

use std::collections::{BTreeSet, HashMap};

use futures_util::{StreamExt as _, stream};
use tokio::time::{Instant, timeout_at};

use super::{CheckedEvent, Published};
use crate::management::{Management, ManagementError};

/// Ids of one batch that are looked up at once.
const LOOKUPS: usize = 32;

/// How long a batch may take.
#[derive(Debug, Clone, Copy)]
pub struct BatchTime {
    /// From then on, no event is tried.
    pub last_start: Instant,
    /// Then the event in progress is given up.
    pub end: Instant,
}

/// What was done of a batch.
#[derive(Debug)]
pub struct Batch {
    /// The first events of the batch, which are stored.
    pub published: Vec<Published>,
    /// Why the others are not; `None` if all are.
    pub stopped: Option<Stopped>,
}

/// Why the events of a batch after those that are stored are not.
#[derive(Debug)]
pub enum Stopped {
    /// The next one was perhaps not stored.
    Failed(ManagementError),
    /// There was no time for it. `tried`: perhaps it is stored nevertheless.
    OutOfTime { tried: bool },
}

/// What is done with each event of a batch.
trait Steps {
    /// The sequence of the event with this message id, if it was published before.
    async fn look_up(&self, message_id: &str) -> Result<Option<u64>, ManagementError>;
    /// Stores an event.
    async fn store(&self, index: usize, message_id: Option<&str>) -> Result<Published, ManagementError>;
    /// The result for an event that was published before.
    fn known(&self, index: usize, sequence: u64) -> Published;
    /// Records that an event was published.
    async fn remember(&self, message_id: &str, sequence: u64);
}

struct Events<'a> {
    management: &'a Management,
    events: &'a [CheckedEvent<'a>],
}

impl Steps for Events<'_> {
    async fn look_up(&self, message_id: &str) -> Result<Option<u64>, ManagementError> {
        Ok(self.management.js.published_sequence(message_id).await?)
    }

    async fn store(&self, index: usize, message_id: Option<&str>) -> Result<Published, ManagementError> {
        let checked = &self.events[index];
        match message_id {
            Some(id) => self.management.store_with_id(checked.form(), &checked.event, id).await,
            None => self.management.store_event(&checked.form(), None).await,
        }
    }

    fn known(&self, index: usize, sequence: u64) -> Published {
        let stream = self.management.js.names().events_stream();
        Published { stream, sequence, id: self.events[index].event.id.clone(), duplicate: true }
    }

    async fn remember(&self, message_id: &str, sequence: u64) {
        self.management.remember(message_id, sequence).await;
    }
}

impl Management {
    /// Publishes checked events in their order, until one is not stored or the time is over.
    pub async fn publish_batch(&self, events: &[CheckedEvent<'_>], time: BatchTime) -> Batch {
        let nothing = |stopped| Batch { published: Vec::new(), stopped: Some(stopped) };
        let secret = match timeout_at(time.last_start, self.message_ids()).await {
            Err(_) => return nothing(Stopped::OutOfTime { tried: false }),
            Ok(Err(error)) => return nothing(Stopped::Failed(error.into())),
            Ok(Ok(secret)) => secret,
        };
        let ids: Vec<Option<String>> = events
            .iter()
            .map(|checked| checked.event.has_given_id().then(|| checked.event.message_id(secret)))
            .collect();
        let keys: BTreeSet<&str> = ids.iter().flatten().map(String::as_str).collect();
        let Ok(_turns) = timeout_at(time.last_start, self.publishing.lock_all(keys)).await else {
            return nothing(Stopped::OutOfTime { tried: false });
        };
        in_order(&Events { management: self, events }, &ids, time).await
    }
}

/// `ids`: the message id of each event, if it has one.
async fn in_order<S: Steps>(steps: &S, ids: &[Option<String>], time: BatchTime) -> Batch {
    let mut lookups = stream::iter(0..ids.len())
        .map(|index| async move {
            match &ids[index] {
                Some(id) => steps.look_up(id).await,
                None => Ok(None),
            }
        })
        .buffered(LOOKUPS);
    let mut published = Vec::with_capacity(ids.len());
    let mut stored = HashMap::<&str, u64>::new();
    let mut unrecorded: Option<(&str, u64)> = None;
    let mut stopped = None;
    for (index, id) in ids.iter().enumerate() {
        let id = id.as_deref();
        let found = match timeout_at(time.last_start, lookups.next()).await {
            Ok(Some(Ok(found))) if Instant::now() < time.last_start => found,
            Ok(Some(Err(error))) => {
                stopped = Some(Stopped::Failed(error));
                break;
            }
            _ => {
                stopped = Some(Stopped::OutOfTime { tried: false });
                break;
            }
        };
        // The lookup was before an earlier event of the batch with the same id was stored.
        let known = id.and_then(|id| stored.get(id).copied()).or(found);
        if let Some(sequence) = known {
            published.push(steps.known(index, sequence));
            continue;
        }
        let step = async { tokio::join!(steps.store(index, id), record(steps, unrecorded.take())).0 };
        match timeout_at(time.end, step).await {
            Ok(Ok(one)) => {
                if let Some(id) = id {
                    stored.insert(id, one.sequence);
                    unrecorded = Some((id, one.sequence));
                }
                published.push(one);
            }
            Ok(Err(error)) => {
                stopped = Some(Stopped::Failed(error));
                break;
            }
            Err(_) => {
                stopped = Some(Stopped::OutOfTime { tried: true });
                break;
            }
        }
    }
    // What is cut off here is stored again if the batch is sent again, and its duplicate envelopes are dropped.
    let _ = timeout_at(time.end, record(steps, unrecorded)).await;
    Batch { published, stopped }
}

async fn record<S: Steps>(steps: &S, stored: Option<(&str, u64)>) {
    if let Some((message_id, sequence)) = stored {
        steps.remember(message_id, sequence).await;
    }
}

#[cfg(test)]
mod tests;
