//! What this process settled lately, so that it settles a redelivery in the same way instead of sending it again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::domain::lately::{Lately, Stored, is_repeated, number_of_envelope};
use crate::domain::outcome::Reason;
use crate::nats::{Answers, Delivered};

/// Messages of one generation; there are two, of at most 2 MB together.
const MOST: usize = 32 * 1024;
/// Life of a generation. A broker that returns delivers again what it forgot within ack_wait.
const TIME: Duration = Duration::from_secs(15 * 60);

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settlement {
    Delivered,
    /// It is on its way to its own lane.
    Moving,
    Moved,
    DeadLettered(Reason),
}

/// The messages of one domain that were settled lately.
pub(super) struct Remembered {
    lately: Mutex<Lately<Stored, Settlement>>,
    /// The highest sequence among these: what the stream stored later is not looked up.
    highest: AtomicU64,
    /// When the outbox stored the envelopes that were delivered.
    delivered: Mutex<Lately<u128, i128>>,
    /// The outbox's duplicate window.
    window: Duration,
    /// Milliseconds since the start of the worker, which sets it: three looks at the clock for each delivery would cost as
    /// much as the look-ups.
    now: AtomicU64,
    /// The acknowledgements, which are sent again after a reconnect.
    pub(super) answers: Answers,
}

impl Remembered {
    pub(super) fn new(window: Duration) -> Self {
        let lately = Mutex::new(Lately::new(MOST, TIME));
        let delivered = Mutex::new(Lately::new(MOST, window));
        Self {
            lately,
            highest: AtomicU64::new(0),
            delivered,
            window,
            now: AtomicU64::new(0),
            answers: Answers::default(),
        }
    }

    /// Takes note of the time since the start of the worker.
    pub(super) fn pass(&self, now: Duration) {
        self.now.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn now(&self) -> Duration {
        Duration::from_millis(self.now.load(Ordering::Relaxed))
    }

    /// An envelope was delivered.
    pub(super) fn delivered(&self, message: &Delivered, envelope: &str) {
        self.remember(message, Settlement::Delivered);
        if let Some(number) = number_of_envelope(envelope) {
            let mut delivered = self.delivered.lock().unwrap_or_else(PoisonError::into_inner);
            delivered.remember(number, message.stored_at_nanos, self.now());
        }
    }

    /// Whether another copy of this fresh envelope was delivered, and the outbox would have dropped this one as a
    /// duplicate. A broker that restarts forgets the ids of the messages that it does not hold any more.
    pub(super) fn is_repeated(&self, message: &Delivered, envelope: &str) -> bool {
        let Some(number) = number_of_envelope(envelope) else { return false };
        let mut delivered = self.delivered.lock().unwrap_or_else(PoisonError::into_inner);
        delivered
            .of(&number, self.now())
            .is_some_and(|first| is_repeated(first, message.stored_at_nanos, self.window))
    }

    pub(super) fn remember(&self, message: &Delivered, settlement: Settlement) {
        self.highest.fetch_max(message.stream_sequence, Ordering::Relaxed);
        self.with(|lately, now| lately.remember(stored(message), settlement, now));
    }

    pub(super) fn forget(&self, message: &Delivered) {
        self.with(|lately, _| lately.forget(&stored(message)));
    }

    pub(super) fn of(&self, message: &Delivered) -> Option<Settlement> {
        if message.stream_sequence > self.highest.load(Ordering::Relaxed) {
            return None;
        }
        self.with(|lately, now| lately.of(&stored(message), now))
    }

    fn with<T>(&self, work: impl FnOnce(&mut Lately<Stored, Settlement>, Duration) -> T) -> T {
        work(&mut self.lately.lock().unwrap_or_else(PoisonError::into_inner), self.now())
    }
}

fn stored(message: &Delivered) -> Stored {
    Stored { sequence: message.stream_sequence, at_nanos: message.stored_at_nanos }
}
