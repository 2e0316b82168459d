//! What this process settled lately, so that it settles a redelivery in the same way instead of sending it again; and what
//! other processes have delivered lately, as far as they announce it ([`super::announcements`]).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::envelope::Envelope;
use crate::domain::lately::{Lately, Stored, is_repeated, number_of_envelope};
use crate::domain::outcome::Reason;
use crate::nats::subjects::lane_number;
use crate::nats::{Answers, Delivered, SettledEnvelope};
use crate::panics;

/// Messages of one generation; there are two, of at most 2 MB together.
const MOST: usize = 32 * 1024;
/// Life of a generation. A broker that returns delivers again what it forgot within ack_wait.
const TIME: Duration = Duration::from_secs(15 * 60);

/// The most envelopes that are announced to other processes, and their longest age.
const MOST_RECENT: usize = 16 * 1024;
const RECENT_FOR: Duration = Duration::from_secs(5 * 60);

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settlement {
    Delivered,
    /// It is on its way to its own lane.
    Moving,
    Moved,
    DeadLettered(Reason),
}

/// What was delivered here lately.
struct DeliveredHere {
    /// The messages, by the number of the envelope.
    known: Lately<u128, Stored>,
    /// To announce.
    recent: Recent,
}

/// The envelopes that were delivered here lately.
#[derive(Default)]
struct Recent {
    envelopes: VecDeque<(Duration, SettledEnvelope)>,
    /// The number of all that were delivered.
    count: u64,
}

impl Recent {
    fn push(&mut self, envelope: SettledEnvelope, now: Duration) {
        let Self { envelopes, count } = self;
        while envelopes.len() >= MOST_RECENT
            || envelopes.front().is_some_and(|(at, _)| now.saturating_sub(*at) > RECENT_FOR)
        {
            envelopes.pop_front();
        }
        envelopes.push_back((now, envelope));
        *count += 1;
    }
}

/// The highest sequences that were settled, by the [number of the lane](lane_number). What the stream stored later is not
/// looked up. The sequences of one lane rise, but those of different lanes are interleaved.
struct Highest([AtomicU64; 256]);

impl Default for Highest {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; 256])
    }
}

impl Highest {
    fn note(&self, lane: u8, sequence: u64) {
        self.0[usize::from(lane)].fetch_max(sequence, Ordering::Relaxed);
    }

    fn reaches(&self, lane: u8, sequence: u64) -> bool {
        sequence <= self.0[usize::from(lane)].load(Ordering::Relaxed)
    }
}

/// The messages of one domain that were settled lately.
pub(super) struct Remembered {
    /// Those that were not delivered, or whose envelope has no number.
    lately: Mutex<Lately<Stored, Settlement>>,
    /// The highest sequences among all of these.
    highest: Highest,
    /// What was delivered here.
    delivered: Mutex<DeliveredHere>,
    /// The same of other processes.
    learned: Mutex<Lately<u128, Stored>>,
    /// Whether there are any.
    any_learned: AtomicBool,
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
        let known = Lately::new(MOST, TIME.max(window));
        let delivered = Mutex::new(DeliveredHere { known, recent: Recent::default() });
        Self {
            lately,
            highest: Highest::default(),
            delivered,
            learned: Mutex::new(Lately::new(MOST, TIME.max(window))),
            any_learned: AtomicBool::new(false),
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
        let (number, lane) = (number_of_envelope(envelope), lane_number(&message.subject));
        let (stored, now) = (stored(message), self.now());
        if number.is_some() {
            self.highest.note(lane, stored.sequence);
        } else {
            self.remember(message, Settlement::Delivered);
        }
        let mut delivered = of(&self.delivered);
        if let Some(number) = number {
            delivered.known.remember(number, stored, now);
        }
        delivered.recent.push(SettledEnvelope { stored, lane, number }, now);
    }

    /// Whether another copy of this fresh envelope was delivered, and the outbox would have dropped this one as a
    /// duplicate. A broker that restarts forgets the ids of the messages that it does not hold any more.
    pub(super) fn is_repeated(&self, message: &Delivered, envelope: &str) -> bool {
        let Some(number) = number_of_envelope(envelope) else { return false };
        let at = stored(message).at_nanos;
        let is_first = |first: Stored| is_repeated(first.at_nanos, at, self.window);
        self.delivered_here(number).is_some_and(is_first) || self.learned(number).is_some_and(is_first)
    }

    fn delivered_here(&self, number: u128) -> Option<Stored> {
        of(&self.delivered).known.of(&number, self.now())
    }

    fn learned(&self, number: u128) -> Option<Stored> {
        // A single process learns nothing.
        self.any_learned.load(Ordering::Acquire).then(|| of(&self.learned).of(&number, self.now())).flatten()
    }

    /// Takes note of what another process delivered.
    pub(super) fn learn(&self, envelopes: &[SettledEnvelope]) {
        let now = self.now();
        for SettledEnvelope { stored, lane, number } in envelopes {
            self.highest.note(*lane, stored.sequence);
            match number {
                Some(number) => {
                    of(&self.learned).learn(*number, *stored, now);
                    self.any_learned.store(true, Ordering::Release);
                }
                None => self.with(|lately, now| lately.learn(*stored, Settlement::Delivered, now)),
            }
        }
    }

    /// What was delivered here lately, after the first `known` envelopes; and the number of all.
    pub(super) fn recent(&self, known: u64) -> (Vec<SettledEnvelope>, u64) {
        let now = self.now();
        let delivered = of(&self.delivered);
        let recent = &delivered.recent;
        let new = usize::try_from(recent.count - known.min(recent.count)).unwrap_or(usize::MAX);
        let from = recent.envelopes.len().saturating_sub(new);
        let envelopes = recent.envelopes.range(from..);
        let fresh = envelopes.filter(|(at, _)| now.saturating_sub(*at) < RECENT_FOR);
        (fresh.map(|(_, envelope)| *envelope).collect(), recent.count)
    }

    pub(super) fn remember(&self, message: &Delivered, settlement: Settlement) {
        self.highest.note(lane_number(&message.subject), message.stream_sequence);
        self.with(|lately, now| lately.remember(stored(message), settlement, now));
    }

    pub(super) fn forget(&self, message: &Delivered) {
        self.with(|lately, _| lately.forget(&stored(message)));
    }

    pub(super) fn of(&self, message: &Delivered) -> Option<Settlement> {
        if !self.highest.reaches(lane_number(&message.subject), message.stream_sequence) {
            return None;
        }
        self.with(|lately, now| lately.of(&stored(message), now))
            .or_else(|| self.was_delivered(message).then_some(Settlement::Delivered))
    }

    fn was_delivered(&self, message: &Delivered) -> bool {
        let Ok(Ok(envelope)) = panics::catch(|| Envelope::read(&message.payload)) else { return false };
        let Some(number) = number_of_envelope(&envelope.id) else { return false };
        let stored = Some(stored(message));
        self.delivered_here(number) == stored || self.learned(number) == stored
    }

    fn with<T>(&self, work: impl FnOnce(&mut Lately<Stored, Settlement>, Duration) -> T) -> T {
        work(&mut self.lately.lock().unwrap_or_else(PoisonError::into_inner), self.now())
    }
}

fn of<T>(known: &Mutex<T>) -> MutexGuard<'_, T> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stored(message: &Delivered) -> Stored {
    Stored::new(message.stream_sequence, message.stored_at_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::subjects::{own_lane, strict_lane};

    #[test]
    fn lanes_do_not_count_for_the_shared_lane() {
        let highest = Highest::default();
        for number in 0..2_000 {
            let token = format!("acme=crm-{number}");
            for lane in [own_lane(&token), strict_lane(3, &token), "x".to_owned()] {
                let number = lane_number(&format!("hub.outbox.user-lifecycle.{lane}.{token}"));
                highest.note(number, 1_000);
                assert!(highest.reaches(number, 1_000) && !highest.reaches(number, 1_001));
            }
        }
        let shared = lane_number("hub.outbox.user-lifecycle.shared.acme=crm");
        assert!(!highest.reaches(shared, 1));
        highest.note(shared, 7);
        highest.note(shared, 6);
        assert!(highest.reaches(shared, 7) && !highest.reaches(shared, 8));
        for foreign in ["", ".", "x", "own-crm"] {
            highest.note(lane_number(foreign), u64::MAX);
        }
        assert!(!highest.reaches(shared, 8));
    }
}
