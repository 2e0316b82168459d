//! Bounds the bytes of the messages that are in memory, over several readers.
//!
//! A pull request names the bytes that it may bring (`max_bytes`, ADR-13), and has reserved them before. Each message
//! takes its size of the reservation with it, and returns it when it is dropped. A message that is larger than a request
//! may bring is requested alone, after its size has been reserved, so a small budget delays it and never stops the reader.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes for messages in memory. Cheap to clone; all clones share them.
#[derive(Debug, Clone)]
pub struct ByteBudget {
    free: Arc<Semaphore>,
    most: u32,
}

/// The bytes of one message, given back when the last clone is dropped.
pub(super) type MessageBytes = Arc<OwnedSemaphorePermit>;

impl ByteBudget {
    pub fn new(bytes: usize) -> Self {
        let most = u32::try_from(bytes).unwrap_or(u32::MAX).max(1);
        Self { free: Arc::new(Semaphore::new(most as usize)), most }
    }

    /// For one reader. One request reserves at most one of `parts` equal parts, and at least 16 KiB.
    pub(super) fn reader(&self, parts: u32) -> ReaderBytes {
        let share = (self.most / parts.max(1)).clamp(self.most.min(LEAST_SHARE), self.most);
        ReaderBytes {
            budget: self.clone(),
            share,
            reserved: None,
            ready: 0,
            older: 0,
            older_ends_after: 0,
            large: None,
        }
    }

    /// Bytes of the messages in memory, and those that pull requests have reserved.
    pub fn used(&self) -> u64 {
        u64::from(self.most).saturating_sub(self.free.available_permits() as u64)
    }

    #[cfg(test)]
    fn free(&self) -> usize {
        self.free.available_permits()
    }
}

const LEAST_SHARE: u32 = 16 * 1024;

/// The messages and bytes of a pull request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) batch: usize,
    /// `None`: one message of any size.
    pub(super) max_bytes: Option<u32>,
}

/// The part of the budget that one reader has reserved.
#[derive(Debug)]
pub(super) struct ReaderBytes {
    budget: ByteBudget,
    /// The most that one request reserves.
    share: u32,
    reserved: Option<OwnedSemaphorePermit>,
    /// The part of `reserved` that the next request takes.
    ready: u32,
    /// The part of `reserved` that belongs to requests before the last one.
    older: usize,
    /// The server serves the requests of a consumer in turns, so those have certainly ended after this number of messages.
    older_ends_after: usize,
    /// The next message is larger than a share: the bytes to reserve for it.
    large: Option<u32>,
}

impl ReaderBytes {
    /// Reserves the bytes of a request for at most `batch` messages, while `outstanding` messages are requested already.
    /// `None` if there are too few; [`Self::freed`] waits for them.
    pub(super) fn request(&mut self, batch: usize, outstanding: usize) -> Option<Request> {
        if let Some(need) = self.large {
            // A request that is open may bring it as well.
            if outstanding > 0 {
                return None;
            }
            if self.ready < need {
                self.end();
                self.reserve(need)?;
            }
            self.ready = 0;
            return Some(Request { batch: 1, max_bytes: None });
        }
        let mut bytes = std::mem::take(&mut self.ready);
        let before = self.reserved().saturating_sub(bytes as usize);
        if bytes < self.least() {
            let free = u32::try_from(self.budget.free.available_permits()).unwrap_or(u32::MAX);
            // Half of what is free, so that other readers have some, too.
            let more = self.share.min((free / 2).max(self.least()));
            self.reserve(more)?;
            bytes += more;
        }
        self.older = before;
        self.older_ends_after = outstanding.saturating_mul(3);
        Some(Request { batch, max_bytes: Some(bytes) })
    }

    /// Waits until enough is free for the next request, and reserves it. Cancel-safe.
    pub(super) async fn freed(&mut self) {
        let need = self.large.unwrap_or_else(|| self.least()).saturating_sub(self.ready);
        // What is freed goes to the one that waits longest, so that a large message is admitted.
        if let Ok(more) = self.budget.free.clone().acquire_many_owned(need).await {
            self.merge(more);
            self.ready += need;
        }
    }

    /// The bytes of a message that has arrived. `left`: messages that are requested and have not arrived.
    pub(super) fn take(&mut self, size: usize, left: usize) -> Option<MessageBytes> {
        self.large = None;
        let mut bytes = self.reserved.as_mut().and_then(|reserved| {
            let size = size.min(reserved.num_permits());
            reserved.split(size)
        });
        let taken = bytes.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        self.older = self.older.saturating_sub(taken);
        // Beyond the reservation only if a request that was considered lost brings it.
        if let Ok(missing) = u32::try_from(size - taken)
            && missing > 0
            && let Ok(more) = self.budget.free.clone().try_acquire_many_owned(missing)
        {
            match &mut bytes {
                Some(bytes) => bytes.merge(more),
                None => bytes = Some(more),
            }
        }
        self.older_ends_after = self.older_ends_after.saturating_sub(1);
        if left == 0 {
            self.end();
            // The next ones are probably large as well.
            if size > self.share as usize {
                self.large = u32::try_from(size).ok().map(|size| size.min(self.budget.most));
            }
        } else if self.older_ends_after == 0 {
            self.release(self.older);
        }
        bytes.map(Arc::new)
    }

    /// A request ended with this many bytes left. `refused`: the next message is larger than that; a message has at most
    /// `largest` bytes.
    pub(super) fn ended(&mut self, left: usize, bytes_left: usize, refused: Option<usize>) {
        if left == 0 {
            self.end();
        } else {
            self.release(bytes_left);
        }
        // A share of which something was used already may suffice for it.
        self.large = refused
            .filter(|_| bytes_left as u64 >= u64::from(self.least()))
            .map(|largest| u32::try_from(largest).unwrap_or(u32::MAX).min(self.budget.most));
    }

    /// All requests have ended.
    pub(super) fn end(&mut self) {
        self.reserved = None;
        (self.ready, self.older, self.older_ends_after) = (0, 0, 0);
    }

    fn reserved(&self) -> usize {
        self.reserved.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    fn least(&self) -> u32 {
        self.share.min(LEAST_SHARE)
    }

    fn reserve(&mut self, bytes: u32) -> Option<()> {
        let more = self.budget.free.clone().try_acquire_many_owned(bytes).ok()?;
        self.merge(more);
        Some(())
    }

    fn merge(&mut self, more: OwnedSemaphorePermit) {
        match &mut self.reserved {
            Some(reserved) => reserved.merge(more),
            None => self.reserved = Some(more),
        }
    }

    fn release(&mut self, bytes: usize) {
        let bytes = bytes.min(self.reserved());
        drop(self.reserved.as_mut().and_then(|reserved| reserved.split(bytes)));
        self.older = self.older.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;

    #[test]
    fn a_message_keeps_its_bytes_until_it_is_dropped() {
        let budget = ByteBudget::new(1024 * KIB);
        let mut reader = budget.reader(8);
        let request = reader.request(100, 0).expect("all is free");
        assert_eq!(request, Request { batch: 100, max_bytes: Some(128 * 1024) });
        let first = reader.take(10 * KIB, 99).expect("reserved");
        let copy = first.clone();
        reader.ended(0, 118 * KIB, None);
        assert_eq!(budget.free(), 1014 * KIB);
        drop(first);
        assert_eq!(budget.free(), 1014 * KIB);
        drop(copy);
        assert_eq!(budget.free(), 1024 * KIB);
    }

    #[test]
    fn requests_that_overlap_give_back_what_they_did_not_use() {
        let budget = ByteBudget::new(1024 * KIB);
        let mut reader = budget.reader(8);
        reader.request(10, 0).expect("free");
        let held: Vec<_> = (0..6).filter_map(|number| reader.take(KIB, 9 - number)).collect();
        reader.request(6, 4).expect("free");
        // Three messages for each that was outstanding: the first request has ended.
        let more: Vec<_> = (0..12).filter_map(|number| reader.take(KIB, 20 - number)).collect();
        assert_eq!((held.len(), more.len(), budget.free()), (6, 12, (1024 - 18 - 128) * KIB));
        reader.ended(0, 0, None);
        assert_eq!(budget.free(), (1024 - 18) * KIB);
    }

    #[tokio::test]
    async fn a_message_larger_than_the_rest_waits_and_is_requested_alone() {
        let budget = ByteBudget::new(256 * KIB);
        let (mut other, mut reader) = (budget.reader(1), budget.reader(8));
        other.request(1, 0).expect("half of it");
        let held = other.take(128 * KIB, 0).expect("reserved");
        assert_eq!(reader.request(9, 0), Some(Request { batch: 9, max_bytes: Some(32 * 1024) }));
        reader.ended(0, 32 * KIB, Some(1024 * KIB));
        // More than there is at all: it waits for the whole budget.
        assert_eq!(reader.request(9, 0), None);
        {
            let waiting = reader.freed();
            tokio::pin!(waiting);
            assert!(futures_util::poll!(&mut waiting).is_pending());
            // Others do not overtake it.
            assert_eq!(other.request(1, 0), None);
            drop(held);
            waiting.await;
        }
        assert_eq!(reader.request(9, 0), Some(Request { batch: 1, max_bytes: None }));
        let large = reader.take(1024 * KIB, 0).expect("the whole budget");
        assert_eq!(budget.free(), 0);
        drop(large);
        assert_eq!(budget.free(), 256 * KIB);
    }

    #[test]
    fn after_a_large_message_that_did_not_come_requests_are_as_before() {
        let budget = ByteBudget::new(1024 * KIB);
        let mut reader = budget.reader(8);
        reader.request(1, 0).expect("free");
        reader.ended(0, 128 * KIB, Some(500 * KIB));
        assert_eq!(reader.request(9, 0), Some(Request { batch: 1, max_bytes: None }));
        reader.ended(0, 0, None);
        assert_eq!(budget.free(), 1024 * KIB);
        assert_eq!(reader.request(9, 0).and_then(|request| request.max_bytes), Some(128 * 1024));
    }
}
