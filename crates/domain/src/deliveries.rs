//! Deliveries by the broker, and attempts among them.
//!
//! The broker counts a delivery when it hands an envelope to a process. If the process crashes, stops or loses its
//! connection before it sends the envelope, that delivery is without an attempt. When the deliveries at one place of the outbox
//! are used up, an envelope that still has attempts left is published again, and the copy carries its counts
//! ([`Carried`]). The number of such deliveries is bounded ([`MOST_UNTRIED`]): an envelope that ends the process each
//! time becomes a dead letter.

use super::carried::Carried;
use super::outcome::Reason;

/// Deliveries without an attempt after which an envelope is not published again.
pub const MOST_UNTRIED: u32 = 20;

/// An envelope that was delivered and not tried yet this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deliveries {
    carried: Carried,
    /// At its present place, including the current one.
    deliveries: u32,
    /// Attempts among the earlier ones.
    tried: u32,
    /// Those of them before the last dead letter, if the envelope stayed at its place since then.
    before: u32,
}

impl Deliveries {
    /// `deliveries`: the count of the broker, from 1. `tried`: known attempts among the earlier deliveries.
    pub fn new(carried: Carried, deliveries: u32, tried: u32) -> Self {
        let deliveries = deliveries.max(1);
        Self { carried, deliveries, tried: tried.min(deliveries - 1), before: 0 }
    }

    /// The envelope stayed at its place after a dead letter with this number of attempts, and is replayed there.
    #[must_use]
    pub fn replayed(self, attempts: u32) -> Self {
        let before = attempts.saturating_sub(self.carried.attempts);
        Self { before, tried: self.tried.max(before), ..self }
    }

    /// Attempts so far, over all redrives.
    pub fn attempts(&self) -> u32 {
        self.carried.attempts.saturating_add(self.tried)
    }

    /// Attempts so far at its present place.
    pub fn tried(&self) -> u32 {
        self.tried
    }

    /// Attempts since the fan-out or the last redrive.
    fn of_round(&self) -> u32 {
        self.carried.tried.saturating_add(self.tried - self.before)
    }

    fn untried(&self) -> u32 {
        self.carried.untried.saturating_add((self.deliveries - 1).saturating_sub(self.tried))
    }

    /// Whether the broker will not deliver it again.
    pub fn is_last(&self, max_deliver: u32) -> bool {
        self.deliveries >= max_deliver
    }

    /// Number of the next attempt for [`decide`](super::outcome::decide): `max_deliver` if it is the last one.
    pub fn next_attempt(&self, max_deliver: u32) -> u32 {
        if self.is_last(max_deliver) {
            max_deliver
        } else {
            self.of_round().saturating_add(1).min(max_deliver)
        }
    }

    /// The same where the broker delivers without end, so that only attempts count.
    pub fn next_attempt_in_order(&self, max_deliver: u32) -> u32 {
        self.of_round().saturating_add(1).min(max_deliver)
    }

    /// Whether it must be published again before its next attempt: the broker will not deliver it again, and the next
    /// attempt is not its last.
    pub fn goes_back(&self, max_deliver: u32) -> bool {
        self.is_last(max_deliver)
            && self.of_round().saturating_add(1) < max_deliver
            && self.untried() <= MOST_UNTRIED
    }

    /// The headers of a copy at another place of the outbox. The current delivery, which is used to move it, counts
    /// neither as an attempt nor as untried.
    pub fn moved(&self) -> Carried {
        Carried { attempts: self.attempts(), tried: self.of_round(), untried: self.untried(), ..self.carried }
    }
}

/// Whether a failed attempt with this number was the last one of its round, so that no worker makes another.
pub fn is_final(carried: Carried, attempt: u32, max_deliver: u32) -> bool {
    let here = attempt.saturating_sub(carried.attempts);
    here > 0 && carried.tried.saturating_add(here) >= max_deliver
}

/// What becomes of an envelope that the broker will not deliver again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UndeliveredVerdict {
    /// `attempts`: their number over all redrives.
    DeadLetter { reason: Reason, attempts: u32 },
    /// It is published again with these headers.
    PublishAgain(Carried),
}

/// Decides about an envelope whose deliveries at its place are used up.
///
/// `final_attempt`: the number of its stored final failed attempt ([`LastWords`](super::last_words::LastWords)).
/// `logged`: the highest number of an attempt in the delivery log, 0 if there is none. Both may stem from an earlier
/// redrive; such numbers are not above those that the envelope carries.
///
/// | known | verdict |
/// |---|---|
/// | a final failed attempt | dead letter, exhausted |
/// | `max_deliver` attempts in the delivery log | dead letter, exhausted |
/// | more than [`MOST_UNTRIED`] deliveries without an attempt | dead letter, stranded |
/// | anything else: the last delivery was not tried, or its attempt was cut | publish again |
pub fn after_last_delivery(
    carried: Carried,
    deliveries: u32,
    final_attempt: Option<u32>,
    logged: u32,
    max_deliver: u32,
) -> UndeliveredVerdict {
    if let Some(attempts) = final_attempt.filter(|attempt| *attempt > carried.attempts) {
        return UndeliveredVerdict::DeadLetter { reason: Reason::Exhausted, attempts };
    }
    let deliveries = deliveries.max(1);
    let tried = logged.saturating_sub(carried.attempts).min(deliveries);
    let attempts = carried.attempts.saturating_add(tried);
    let of_round = carried.tried.saturating_add(tried);
    let untried = carried.untried.saturating_add(deliveries - tried);
    if of_round >= max_deliver {
        UndeliveredVerdict::DeadLetter { reason: Reason::Exhausted, attempts }
    } else if untried > MOST_UNTRIED {
        UndeliveredVerdict::DeadLetter { reason: Reason::Stranded, attempts }
    } else {
        UndeliveredVerdict::PublishAgain(Carried { attempts, tried: of_round, untried, ..carried })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICIES: [u32; 5] = [1, 2, 3, 5, 30];

    #[test]
    fn in_a_strict_lane_only_attempts_count_and_a_replay_begins_anew() {
        let of = |deliveries, tried| Deliveries::new(Carried::default(), deliveries, tried);
        assert_eq!(of(100, 0).next_attempt_in_order(3), 1, "deliveries without attempts do not count");
        assert_eq!(of(100, 2).next_attempt_in_order(3), 3);
        let replayed = of(100, 3).replayed(3);
        assert_eq!((replayed.attempts(), replayed.tried(), replayed.next_attempt_in_order(3)), (3, 3, 1));
        // What is forgotten here is in the dead letter.
        assert_eq!(of(1, 0).replayed(3).attempts(), 3);
        assert_eq!(of(100, 5).replayed(3).next_attempt_in_order(3), 3);
    }

    /// What happens to a delivery.
    #[derive(Clone, Copy, PartialEq)]
    enum Event {
        /// The attempt fails, and its record reaches the delivery log or not.
        Fails { logged: bool },
        /// The process ends before the attempt.
        Crash,
    }

    /// An envelope with an endpoint that always fails, until it is a dead letter. `events` decides about each delivery,
    /// by its number over the whole life. `remembers`: the process knows its own attempts. Returns the dead letter, the
    /// real attempts and the number of deliveries.
    fn life(max: u32, remembers: bool, events: impl Fn(u32) -> Event) -> (Reason, u32, u32, u32) {
        let (mut carried, mut real, mut total, mut log) = (Carried::default(), 0, 0, 0);
        'place: loop {
            let mut memory = 0;
            let mut deliveries = 0;
            loop {
                deliveries += 1;
                total += 1;
                assert!(total < 10_000, "no end: {carried:?}");
                let event = events(total);
                if event == Event::Crash {
                    memory = 0;
                } else {
                    let known = if remembers { memory } else { 0 };
                    let known = known.max(u32::saturating_sub(log, carried.attempts));
                    let delivered = Deliveries::new(carried, deliveries, known);
                    if delivered.goes_back(max) {
                        carried = delivered.moved();
                        continue 'place;
                    }
                    let attempt = delivered.attempts() + 1;
                    real += 1;
                    memory = delivered.tried() + 1;
                    if event == (Event::Fails { logged: true }) {
                        log = attempt;
                    }
                    if delivered.next_attempt(max) >= max {
                        return (Reason::Exhausted, attempt, real, total);
                    }
                }
                if deliveries >= max {
                    match after_last_delivery(carried, deliveries, None, log, max) {
                        UndeliveredVerdict::DeadLetter { reason, attempts } => {
                            return (reason, attempts, real, total);
                        }
                        UndeliveredVerdict::PublishAgain(again) => {
                            carried = again;
                            continue 'place;
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn without_a_crash_deliveries_are_attempts() {
        for max in POLICIES {
            for logged in [true, false] {
                let lived = life(max, true, |_| Event::Fails { logged });
                assert_eq!(lived, (Reason::Exhausted, max, max, max));
            }
        }
    }

    #[test]
    fn crashes_use_up_no_attempt() {
        for max in POLICIES {
            for crashes in 0..=MOST_UNTRIED {
                for first in [true, false] {
                    // All at the beginning, or one after each attempt.
                    let events = |total: u32| {
                        let crash = if first {
                            total <= crashes
                        } else {
                            total.is_multiple_of(2) && total <= 2 * crashes
                        };
                        if crash { Event::Crash } else { Event::Fails { logged: true } }
                    };
                    let (reason, attempts, real, _) = life(max, false, events);
                    assert_eq!((reason, attempts, real), (Reason::Exhausted, max, max), "{max} {crashes}");
                }
            }
        }
    }

    #[test]
    fn an_envelope_that_ends_the_process_each_time_becomes_a_dead_letter() {
        for max in POLICIES {
            let (reason, attempts, real, total) = life(max, true, |_| Event::Crash);
            assert_eq!((reason, attempts, real), (Reason::Stranded, 0, 0));
            assert!(total > MOST_UNTRIED && total <= MOST_UNTRIED + max, "{max}: {total}");
        }
    }

    /// Any order of crashes and failures whose records are lost or not: the life ends, no attempt is claimed that was
    /// not made, and too few attempts are made only after too many crashes.
    #[test]
    fn any_life_ends_and_claims_no_attempt_that_was_not_made() {
        for max in POLICIES {
            for seed in 0..3_000_u64 {
                let events = |total: u32| {
                    let mut mixed = (seed << 20) ^ u64::from(total);
                    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                    match (mixed >> 33) % 4 {
                        0 => Event::Crash,
                        1 => Event::Fails { logged: false },
                        _ => Event::Fails { logged: true },
                    }
                };
                let (_, attempts, real, total) = life(max, seed % 2 == 0, events);
                assert!(attempts <= real, "{max} {seed}: {attempts} of {real}");
                assert!(real >= max || total > MOST_UNTRIED, "{max} {seed}: {real} attempts");
                assert!(total <= 2 * (MOST_UNTRIED + max + 1) + max, "{max} {seed}: {total}");
            }
        }
    }

    #[test]
    fn a_final_attempt_of_this_redrive_ends_it_and_an_earlier_one_does_not() {
        let carried = Carried { dead_letter: Some(3), redrives: 1, attempts: 5, ..Carried::default() };
        let exhausted = |attempts| UndeliveredVerdict::DeadLetter { reason: Reason::Exhausted, attempts };
        assert_eq!(after_last_delivery(carried, 5, Some(10), 0, 5), exhausted(10));
        assert_eq!(after_last_delivery(carried, 5, None, 10, 5), exhausted(10));
        let again = Carried { untried: 5, ..carried };
        assert_eq!(after_last_delivery(carried, 5, Some(5), 5, 5), UndeliveredVerdict::PublishAgain(again));
        let again = Carried { attempts: 7, tried: 2, untried: 3, ..carried };
        assert_eq!(after_last_delivery(carried, 5, None, 7, 5), UndeliveredVerdict::PublishAgain(again));
    }

    #[test]
    fn only_the_last_attempt_of_a_round_is_final() {
        let first = Carried::default();
        assert!(is_final(first, 5, 5) && !is_final(first, 4, 5));
        let redriven = Carried { dead_letter: Some(1), attempts: 5, ..first };
        assert!(is_final(redriven, 10, 5) && !is_final(redriven, 9, 5) && !is_final(redriven, 5, 5));
        let moved = Carried { attempts: 7, tried: 2, ..redriven };
        assert!(is_final(moved, 10, 5) && !is_final(moved, 9, 5) && !is_final(moved, 0, 5));
    }

    #[test]
    fn forged_counts_overflow_nothing() {
        let forged = Carried {
            dead_letter: None,
            redrives: u32::MAX,
            attempts: u32::MAX,
            tried: u32::MAX,
            untried: u32::MAX,
            queued_at: None,
        };
        for max in POLICIES {
            for deliveries in [0, 1, max, u32::MAX] {
                let delivered = Deliveries::new(forged, deliveries, u32::MAX);
                assert!(!delivered.goes_back(max));
                assert_eq!(delivered.next_attempt(max), max);
                assert_eq!(delivered.moved().attempts, u32::MAX);
                for logged in [0, u32::MAX] {
                    let verdict = after_last_delivery(forged, deliveries, Some(u32::MAX), logged, max);
                    assert!(matches!(verdict, UndeliveredVerdict::DeadLetter { .. }));
                }
            }
        }
    }
}
