//! What this process settled lately, so that it settles a redelivery in the same way instead of sending it again.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::lately::{Lately, Stored};
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
    lately: Mutex<Lately<Settlement>>,
    started: Instant,
    /// The acknowledgements, which are sent again after a reconnect.
    pub(super) answers: Answers,
}

impl Remembered {
    pub(super) fn new() -> Self {
        let lately = Mutex::new(Lately::new(MOST, TIME));
        Self { lately, started: Instant::now(), answers: Answers::default() }
    }

    pub(super) fn remember(&self, message: &Delivered, settlement: Settlement) {
        self.with(|lately, now| lately.remember(stored(message), settlement, now));
    }

    pub(super) fn forget(&self, message: &Delivered) {
        self.with(|lately, _| lately.forget(stored(message)));
    }

    pub(super) fn of(&self, message: &Delivered) -> Option<Settlement> {
        self.with(|lately, now| lately.of(stored(message), now))
    }

    fn with<T>(&self, work: impl FnOnce(&mut Lately<Settlement>, Duration) -> T) -> T {
        work(&mut self.lately.lock().unwrap_or_else(PoisonError::into_inner), self.started.elapsed())
    }
}

fn stored(message: &Delivered) -> Stored {
    Stored { sequence: message.stream_sequence, at_nanos: message.stored_at_nanos }
}
