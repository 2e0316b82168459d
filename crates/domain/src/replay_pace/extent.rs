//! Which dead letters of a domain a replay of many includes, so that it ends while others keep making new ones.
//!
//! It includes those that existed at its start, and those that the events of that time still become: a full dead-letter
//! stream keeps events waiting. It also keeps envelopes waiting in the outbox that have used up their deliveries, so these are
//! included, too. When all are done, a second round includes what came up to then, but not many more than the first. What
//! comes later is new.

use std::time::Duration;

/// Events that do not advance for this time are not waited for.
const EVENTS_STALL: Duration = Duration::from_secs(60);
/// Nor are used-up envelopes whose number does not fall for this time.
const USED_UP_STALL: Duration = Duration::from_secs(60);

/// Dead letters that the second round may have for each replay of the first, which may have failed again, and at least.
const SECOND_FACTOR: u64 = 2;
const SECOND_LEAST: u64 = 100;

/// The first and the last event that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitingEvents {
    pub first: u64,
    pub last: u64,
}

impl WaitingEvents {
    pub const NONE: Self = Self { first: 1, last: 0 };
}

/// The extent of a replay, in sequences of the dead-letter stream. Callers pass the time as the duration since a fixed
/// start.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    at_start: u64,
    last: u64,
    /// It never grows beyond this one.
    most: u64,
    /// The last event of this round.
    last_event: u64,
    first_event: u64,
    advanced: Duration,
    is_growing: bool,
    is_second: bool,
    /// The last envelope of the outbox at the start, if used-up ones waited there.
    last_envelope: Option<u64>,
    /// The least number of used-up envelopes, and since when.
    used_up: u64,
    used_up_since: Duration,
}

impl Extent {
    /// The extent at the start. The events are read before the last dead letter.
    pub fn new(events: WaitingEvents, last_letter: u64, now: Duration) -> Self {
        Self {
            at_start: last_letter,
            last: last_letter,
            most: u64::MAX,
            last_event: events.last,
            first_event: events.first,
            advanced: now,
            is_growing: events.first <= events.last,
            is_second: false,
            last_envelope: None,
            used_up: 0,
            used_up_since: now,
        }
    }

    /// Includes the used-up envelopes of the outbox, of which this one is the last.
    #[must_use]
    pub fn with_used_up(mut self, used_up: u64, last_envelope: u64) -> Self {
        if used_up > 0 {
            (self.used_up, self.last_envelope) = (used_up, Some(last_envelope));
        }
        self
    }

    /// Takes note of the number of used-up envelopes.
    pub fn look_at_used_up(&mut self, used_up: u64, now: Duration) {
        if used_up < self.used_up {
            (self.used_up, self.used_up_since) = (used_up, now);
        } else if now.saturating_sub(self.used_up_since) >= USED_UP_STALL {
            self.used_up = 0;
        }
    }

    /// Used-up envelopes of the start are still to become dead letters.
    pub fn expects_used_up(&self) -> bool {
        self.used_up > 0
    }

    /// Used-up envelopes waited at the start.
    pub fn began_with_used_up(&self) -> bool {
        self.last_envelope.is_some()
    }

    /// An envelope that was in the outbox at the start, and is included when it becomes a dead letter.
    pub fn includes_envelope(&self, sequence: u64) -> bool {
        self.last_envelope.is_some_and(|last| sequence <= last)
    }

    /// The last dead letter that existed at the start.
    pub fn at_start(&self) -> u64 {
        self.at_start
    }

    /// The last dead letter that is included.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Events of this round, or used-up envelopes, may still become dead letters.
    pub fn is_growing(&self) -> bool {
        self.is_growing || self.expects_used_up()
    }

    /// Takes note of a look. The events are read before the last dead letter.
    pub fn look(&mut self, events: WaitingEvents, last_letter: u64, now: Duration) {
        if !self.is_growing() {
            return;
        }
        self.last = self.last.max(last_letter.min(self.most));
        if events.first > self.first_event {
            (self.first_event, self.advanced) = (events.first, now);
        }
        let stalls = now.saturating_sub(self.advanced) >= EVENTS_STALL;
        self.is_growing &= events.first <= self.last_event && !stalls;
    }

    /// Waits no longer for the events of this round, nor for used-up envelopes.
    pub fn stop_growing(&mut self) {
        (self.is_growing, self.used_up) = (false, 0);
    }

    /// Begins the second round; returns false if there was one. `replayed`: dead letters of the first round.
    pub fn begin_second(
        &mut self,
        events: WaitingEvents,
        last_letter: u64,
        replayed: u64,
        now: Duration,
    ) -> bool {
        if self.is_second {
            return false;
        }
        let more = replayed.saturating_mul(SECOND_FACTOR).saturating_add(SECOND_LEAST);
        let most = self.last.saturating_add(more);
        let (at_start, last) = (self.at_start, self.last.max(last_letter.min(most)));
        let last_envelope = self.last_envelope;
        *self = Self { at_start, most, is_second: true, last_envelope, ..Self::new(events, last, now) };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_includes_what_the_events_of_the_start_become() {
        let waiting = |first, last| WaitingEvents { first, last };
        let mut extent = Extent::new(waiting(5, 10), 100, at(0));
        extent.look(waiting(7, 500), 120, at(1));
        assert!(extent.is_growing());
        extent.look(waiting(11, 900), 150, at(2));
        assert!(!extent.is_growing());
        extent.look(waiting(12, 950), 180, at(3));
        assert_eq!((extent.at_start(), extent.last()), (100, 150));
        assert!(extent.begin_second(waiting(20, 21), 200, 50, at(4)));
        extent.look(waiting(30, 31), 210, at(5));
        assert_eq!((extent.at_start(), extent.last(), extent.is_growing()), (100, 210, false));
        assert!(!extent.begin_second(WaitingEvents::NONE, 300, 50, at(6)));
    }

    /// They become dead letters when the replay has made room, and are waited for as long as their number falls.
    #[test]
    fn it_includes_what_used_up_envelopes_become() {
        let mut extent = Extent::new(WaitingEvents::NONE, 100, at(0)).with_used_up(50, 900);
        assert!(extent.includes_envelope(900) && !extent.includes_envelope(901));
        for (second, used_up, last_letter) in [(1, 50, 100), (40, 30, 120), (90, 31, 121), (95, 10, 140)] {
            extent.look_at_used_up(used_up, at(second));
            extent.look(WaitingEvents::NONE, last_letter, at(second));
            assert!(extent.is_growing());
            assert_eq!((extent.at_start(), extent.last()), (100, last_letter));
        }
        extent.look_at_used_up(10, at(155));
        assert!(!extent.is_growing() && extent.began_with_used_up());
        extent.look(WaitingEvents::NONE, 150, at(156));
        assert_eq!(extent.last(), 140);
        assert!(extent.begin_second(WaitingEvents::NONE, 150, 40, at(157)));
        assert!(!extent.is_growing() && extent.includes_envelope(900) && extent.last() == 150);

        let mut gone = Extent::new(WaitingEvents::NONE, 100, at(0)).with_used_up(5, 900);
        gone.look_at_used_up(0, at(1));
        assert!(!gone.is_growing());
        let mut without = Extent::new(WaitingEvents::NONE, 100, at(0)).with_used_up(0, 900);
        without.look_at_used_up(7, at(1));
        assert!(!without.is_growing() && !without.began_with_used_up() && !without.includes_envelope(1));
    }

    /// Whoever makes dead letters faster than they are replayed at most doubles what is replayed.
    #[test]
    fn a_second_round_is_as_large_as_the_first() {
        let mut extent = Extent::new(WaitingEvents::NONE, 1_000, at(0));
        assert!(extent.begin_second(WaitingEvents { first: 1, last: 5 }, 1_000_000, 500, at(1)));
        extent.look(WaitingEvents { first: 2, last: 9 }, 2_000_000, at(2));
        assert_eq!(extent.last(), 1_000 + 2 * 500 + 100);
    }

    /// Whoever publishes without pause, and an event that never leaves, do not extend it.
    #[test]
    fn it_ends_while_others_publish_without_pause() {
        for stuck in [true, false] {
            let mut extent = Extent::new(WaitingEvents { first: 1, last: 50 }, 100, at(0));
            let (mut now, mut rounds) = (0, 0);
            loop {
                now += 1;
                assert!(now < 100_000, "it ends");
                let first = if stuck { 1 } else { now * 5 };
                let events = WaitingEvents { first, last: now * 1_000 };
                extent.look(events, 100 + now * 10, at(now));
                if !extent.is_growing() {
                    rounds += 1;
                    if !extent.begin_second(events, 100 + now * 10, 0, at(now)) {
                        break;
                    }
                }
            }
            assert_eq!(rounds, 2);
        }
    }
}
