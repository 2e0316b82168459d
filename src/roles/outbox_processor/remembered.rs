//! What this process settled lately, so that it settles a redelivery in the same way instead of sending it again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::envelope::Envelope;
use crate::domain::lately::{Lately, Stored, is_repeated, number_of_envelope};
use crate::domain::outcome::Reason;
use crate::nats::{Answers, Delivered};
use crate::panics;

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
    /// Those that were not delivered, or whose envelope has no number.
    lately: Mutex<Lately<Stored, Settlement>>,
    /// The highest sequence among these: what the stream stored later is not looked up.
    highest: AtomicU64,
    /// The messages with which envelopes were delivered, by the number of the envelope.
    delivered: Mutex<Lately<u128, Stored>>,
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
        let delivered = Mutex::new(Lately::new(MOST, TIME.max(window)));
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
        let Some(number) = number_of_envelope(envelope) else {
            return self.remember(message, Settlement::Delivered);
        };
        self.highest.fetch_max(message.stream_sequence, Ordering::Relaxed);
        self.of_numbers().remember(number, stored(message), self.now());
    }

    /// Whether another copy of this fresh envelope was delivered, and the outbox would have dropped this one as a
    /// duplicate. A broker that restarts forgets the ids of the messages that it does not hold any more.
    pub(super) fn is_repeated(&self, message: &Delivered, envelope: &str) -> bool {
        let Some(number) = number_of_envelope(envelope) else { return false };
        let first = self.of_numbers().of(&number, self.now());
        first.is_some_and(|first| is_repeated(first.at_nanos, stored(message).at_nanos, self.window))
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
            .or_else(|| self.was_delivered(message).then_some(Settlement::Delivered))
    }

    fn was_delivered(&self, message: &Delivered) -> bool {
        let Ok(Ok(envelope)) = panics::catch(|| Envelope::read(&message.payload)) else { return false };
        let Some(number) = number_of_envelope(&envelope.id) else { return false };
        self.of_numbers().of(&number, self.now()) == Some(stored(message))
    }

    fn of_numbers(&self) -> MutexGuard<'_, Lately<u128, Stored>> {
        self.delivered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, work: impl FnOnce(&mut Lately<Stored, Settlement>, Duration) -> T) -> T {
        work(&mut self.lately.lock().unwrap_or_else(PoisonError::into_inner), self.now())
    }
}

fn stored(message: &Delivered) -> Stored {
    Stored::new(message.stream_sequence, message.stored_at_nanos)
}
