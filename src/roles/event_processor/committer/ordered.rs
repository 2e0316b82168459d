//! Commits ordered events, those with an envelope for a strict order, in the order of their stream.
//!
//! They wait in [`InOrder`](super::InOrder) until it is their turn. If one cannot be committed, those behind it wait again.

use std::collections::VecDeque;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::backlogs::Admitted;
use super::{Committer, MOST_BYTES, Planned};
use crate::facts::{EventRepeated, OrderedEventsWait};
use crate::nats::{BatchError, EnvelopeMessage, NatsError};
use crate::panics::{self, Panicked};

/// Most events that are committed before others are looked at.
const MOST_EVENTS: usize = 512;

/// Why a group was not written.
enum GroupFailure {
    Refused(NatsError),
    Panicked(Panicked),
    /// It is larger than a batch may be.
    Large,
}

impl GroupFailure {
    fn is_batch_too_large(&self) -> bool {
        matches!(self, Self::Refused(error) if error.is_batch_too_large())
    }
}

impl Committer {
    /// Takes in an ordered event, and those that follow it in the channel. Returns the first other event.
    pub(super) async fn take_in_order(
        &mut self,
        planned: Planned,
        receiver: &mut mpsc::Receiver<Planned>,
    ) -> Option<Planned> {
        self.wait_in_order(planned).await;
        for _ in 0..MOST_EVENTS {
            let Ok(planned) = receiver.try_recv() else { return None };
            let planned = self.in_order.split(planned);
            if !planned.ordered {
                return Some(planned);
            }
            self.wait_in_order(planned).await;
        }
        None
    }

    pub(super) async fn wait_in_order(&mut self, planned: Planned) {
        if let Some(last) = self.in_order.add(planned) {
            self.hand_back(vec![last]).await;
        }
    }

    pub(super) async fn commit_in_order_if_due(&mut self) {
        if self.in_order.due().is_none_or(|due| due > Instant::now()) {
            return;
        }
        let is_free = self.blocked.is_none() && self.rest.is_none();
        match self.in_order.ready(MOST_EVENTS, is_free).await {
            Ok(group) if group.is_empty() => {}
            Ok(group) => self.commit_in_order(group).await,
            Err(error) => self.order_waits(&error),
        }
    }

    fn order_waits(&mut self, error: &NatsError) {
        let retry_in = self.in_order.pause();
        OrderedEventsWait { error, retry_in }.emit(&self.metrics);
    }

    async fn commit_in_order(&mut self, group: Vec<Planned>) {
        if group.iter().any(|planned| self.refuses(planned.bytes())) {
            self.in_order.pause();
            return self.wait_again(group);
        }
        self.in_order.ask_for_lanes(&group);
        let places: Vec<(u64, Box<str>)> =
            group.iter().map(|planned| (planned.message.stream_sequence, planned.tenant.clone())).collect();
        let Admitted { events, kept } = self.backlogs.admit(group, &self.recent).await;
        let admitted = self.until_first_missing(&places, events);
        kept.into_iter().for_each(|planned| self.in_order.keep(planned));
        self.write_in_order(admitted).await;
        self.backlogs.settled();
        self.in_order.tell().await;
    }

    /// An event that is not admitted went back to the stream, or is kept: those behind it wait.
    fn until_first_missing(
        &mut self,
        places: &[(u64, Box<str>)],
        admitted: Vec<Planned>,
    ) -> VecDeque<Planned> {
        let mut left = admitted.into_iter().peekable();
        let (mut before, mut behind, mut is_missing) = (VecDeque::new(), Vec::new(), false);
        for (sequence, tenant) in places {
            match left.next_if(|planned| planned.message.stream_sequence == *sequence) {
                Some(planned) if is_missing => behind.push(planned),
                Some(planned) => before.push_back(planned),
                None => {
                    self.in_order.failed(*sequence, tenant);
                    is_missing = true;
                }
            }
        }
        self.wait_again(behind);
        before
    }

    pub(super) fn wait_again(&mut self, events: impl IntoIterator<Item = Planned>) {
        events.into_iter().for_each(|planned| self.in_order.put_back(planned));
    }

    /// Writes the events as few batches. One that is refused is divided, until the event that causes it is found.
    async fn write_in_order(&mut self, mut left: VecDeque<Planned>) {
        let mut most = usize::MAX;
        while !left.is_empty() {
            self.leases.look();
            if left.iter().any(|planned| !self.leases.holds(planned.message.lease)) {
                let (ours, others): (Vec<_>, Vec<_>) =
                    left.into_iter().partition(|planned| self.leases.holds(planned.message.lease));
                for planned in others {
                    self.in_order.failed(planned.message.stream_sequence, &planned.tenant);
                }
                return self.wait_again(ours);
            }
            let count = self.first_batch(&left).min(most).max(1);
            let mut group: Vec<Planned> = left.drain(..count.min(left.len())).collect();
            let room = self.outbox.known();
            let is_whole = group.iter().all(|planned| room.is_one_batch(planned.load()));
            let failed = if is_whole {
                match self.try_write_in_order(&mut group).await {
                    Ok(Ok(())) => {
                        for planned in group {
                            self.committed(planned).await;
                        }
                        continue;
                    }
                    Ok(Err(error)) => GroupFailure::Refused(error),
                    Err(panicked) => GroupFailure::Panicked(panicked),
                }
            } else {
                GroupFailure::Large
            };
            match failed {
                // Whether it is committed is not known; if it is, the outbox drops the repetition.
                GroupFailure::Refused(error) if error.api().is_none() => {
                    self.block(&error, 0);
                    self.in_order.pause();
                    self.wait_again(group);
                }
                failed if group.len() > 1 => {
                    if failed.is_batch_too_large() {
                        let count: usize = group.iter().map(|planned| planned.envelopes.len()).sum();
                        self.outbox.lower_batch(count / 2);
                    }
                    most = group.len() / 2;
                    group.into_iter().rev().for_each(|planned| left.push_front(planned));
                    continue;
                }
                failed => {
                    if let Some(planned) = group.pop() {
                        self.not_in_order(planned, failed).await;
                    }
                }
            }
            self.wait_again(left);
            return;
        }
    }

    /// A single event was not written as a whole. Those behind it wait until it is.
    async fn not_in_order(&mut self, planned: Planned, failed: GroupFailure) {
        self.in_order.failed(planned.message.stream_sequence, &planned.tenant);
        match failed {
            GroupFailure::Refused(error) => self.refused(planned, &error).await,
            GroupFailure::Panicked(panicked) => self.rejecter.panicked(&planned.message, &panicked).await,
            GroupFailure::Large => self.start_in_parts(planned).await,
        }
    }

    /// The number of events that fit into one batch.
    fn first_batch(&self, left: &VecDeque<Planned>) -> usize {
        let room = self.outbox.known();
        let mut sizes = left.iter().map(Planned::load);
        let Some(mut load) = sizes.next() else { return 0 };
        let mut count = 1;
        while room.is_one_batch(load)
            && let Some(more) = sizes.next()
            && room.takes(load, more, MOST_BYTES)
        {
            load = load.and(more);
            count += 1;
        }
        count
    }

    async fn try_write_in_order(&mut self, group: &mut [Planned]) -> Result<Result<(), NatsError>, Panicked> {
        let counts: Vec<usize> = group.iter().map(|planned| planned.envelopes.len()).collect();
        let mut envelopes = Vec::with_capacity(counts.iter().sum());
        for planned in group.iter_mut() {
            envelopes.append(&mut planned.envelopes);
        }
        let written = panics::catch_async(self.write_one_by_one(&envelopes)).await;
        let mut envelopes = envelopes.into_iter();
        for (planned, count) in group.iter_mut().zip(counts) {
            planned.envelopes.extend(envelopes.by_ref().take(count));
        }
        written
    }

    /// Writes one batch. If the outbox has some of the envelopes, each is published after the one before.
    async fn write_one_by_one(&mut self, envelopes: &[EnvelopeMessage]) -> Result<(), NatsError> {
        #[cfg(test)]
        (self.before_write)(envelopes);
        match self.js.commit(envelopes).await {
            Ok(()) => {}
            Err(BatchError::Duplicate) => {
                let mut added = 0;
                for envelope in envelopes {
                    added += self.js.publish_each(std::slice::from_ref(envelope)).await?;
                }
                EventRepeated { envelopes: envelopes.len(), added }.emit(&self.metrics);
            }
            Err(BatchError::Nats(error)) => return Err(error),
        }
        self.recent.committed(envelopes);
        Ok(())
    }
}
