//! What became of the messages that this process settled lately.
//!
//! A broker that is killed forgets acknowledgements that it received, and delivers the messages again. A message that is
//! known here is acknowledged again, and not sent again.
//!
//! It also forgets the message ids of the envelopes that were delivered, and then stores such an envelope a second time
//! if its event is repeated. A fresh envelope that was delivered within the duplicate window is not sent again either.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use foldhash::fast::RandomState;

/// A stored message. The time distinguishes messages of a stream that was created again, or that lost its last messages,
/// and so uses sequences twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stored {
    pub sequence: u64,
    /// Since 1970.
    pub at_nanos: i64,
}

impl Stored {
    /// `at_nanos`: nanoseconds since 1970.
    pub fn new(sequence: u64, at_nanos: i128) -> Self {
        Self { sequence, at_nanos: i64::try_from(at_nanos).unwrap_or(i64::MAX) }
    }
}

/// The number in the id of an envelope, to remember it in; `None` if it is not an id that the fan-out makes.
pub fn number_of_envelope(id: &str) -> Option<u128> {
    let digits = id.strip_prefix("env_").filter(|digits| digits.len() == 32)?.as_bytes();
    let (high, low) = digits.split_at(16);
    Some((u128::from(hexadecimal(high)?) << 64) | u128::from(hexadecimal(low)?))
}

/// The value of each hexadecimal digit; 0xff: not one.
const VALUES: [u8; 256] = {
    let mut values = [0xff; 256];
    let mut value = 0;
    while value < 16 {
        values[b"0123456789abcdef"[value] as usize] = value as u8;
        values[b"0123456789ABCDEF"[value] as usize] = value as u8;
        value += 1;
    }
    values
};

/// At most 16 digits. It is on the path of each delivery, where parsing a `u128` takes as long as a map.
fn hexadecimal(digits: &[u8]) -> Option<u64> {
    let (mut number, mut invalid) = (0, 0);
    for digit in digits {
        let value = VALUES[usize::from(*digit)];
        invalid |= value;
        number = (number << 4) | u64::from(value & 0x0f);
    }
    (invalid < 16).then_some(number)
}

/// Whether an outbox stored two copies of an envelope of which it would have dropped one as a duplicate: within the
/// window of each other. They may be delivered in any order. Times in nanoseconds.
pub fn is_repeated(first_at: i64, at: i64, window: Duration) -> bool {
    u128::from(at.abs_diff(first_at)) < window.as_nanos()
}

/// Remembers one value per key (a [`Stored`] message or the number of an envelope), in two generations: at least the
/// last `most` keys unless they are older than `time`, and at most twice as many for twice as long.
#[derive(Debug)]
pub struct Lately<K, V> {
    newer: HashMap<K, V, RandomState>,
    older: HashMap<K, V, RandomState>,
    since: Duration,
    most: usize,
    time: Duration,
}

impl<K: Eq + Hash, V: Copy + PartialEq> Lately<K, V> {
    pub fn new(most: usize, time: Duration) -> Self {
        Self {
            newer: HashMap::default(),
            older: HashMap::default(),
            since: Duration::ZERO,
            most: most.max(1),
            time,
        }
    }

    pub fn remember(&mut self, key: K, value: V, now: Duration) {
        self.turn(now);
        if self.newer.len() >= self.most {
            self.next_generation(now);
        }
        // The newer value counts, so the older one may stay.
        self.newer.insert(key, value);
    }

    /// The same for what may be reported again and again: a value that is known takes no further place.
    pub fn learn(&mut self, key: K, value: V, now: Duration) {
        if self.of(&key, now) != Some(value) {
            self.remember(key, value, now);
        }
    }

    pub fn forget(&mut self, key: &K) {
        self.newer.remove(key);
        self.older.remove(key);
    }

    pub fn of(&mut self, key: &K, now: Duration) -> Option<V> {
        self.turn(now);
        self.newer.get(key).or_else(|| self.older.get(key)).copied()
    }

    fn turn(&mut self, now: Duration) {
        let age = now.saturating_sub(self.since);
        if age >= self.time {
            self.next_generation(now);
            if age >= self.time.saturating_mul(2) {
                (self.older, self.newer) = Default::default();
            }
        }
    }

    fn next_generation(&mut self, now: Duration) {
        // The memory of the older generation is used again.
        std::mem::swap(&mut self.older, &mut self.newer);
        self.newer.clear();
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn stored(sequence: u64) -> Stored {
        Stored { sequence, at_nanos: 7 }
    }

    #[test]
    fn a_message_is_known_by_its_sequence_and_time() {
        let mut lately = Lately::new(10, MINUTE);
        lately.remember(stored(1), 'a', Duration::ZERO);
        assert_eq!(lately.of(&stored(1), Duration::ZERO), Some('a'));
        assert_eq!(lately.of(&Stored { sequence: 1, at_nanos: 8 }, Duration::ZERO), None);
        assert_eq!(lately.of(&stored(2), Duration::ZERO), None);
        lately.remember(stored(1), 'b', Duration::ZERO);
        assert_eq!(lately.of(&stored(1), Duration::ZERO), Some('b'));
        lately.forget(&stored(1));
        assert_eq!(lately.of(&stored(1), Duration::ZERO), None);
    }

    #[test]
    fn copies_within_the_window_of_each_other_are_repeated() {
        let second = 1_000_000_000;
        let is = |first, at| is_repeated(first, at, MINUTE);
        assert!(is(0, 0) && is(second, 2 * second) && is(0, 59 * second) && is(59 * second, 0));
        assert!(!is(0, 60 * second) && !is(60 * second, 0) && !is(i64::MIN, i64::MAX));
        assert!(!is_repeated(0, 0, Duration::ZERO));
    }

    #[test]
    fn only_ids_of_the_fan_out_have_a_number() {
        let id = format!("env_{:032x}", u128::MAX - 5);
        assert_eq!(number_of_envelope(&id), Some(u128::MAX - 5));
        for number in [0, 1, u128::MAX, 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210] {
            assert_eq!(number_of_envelope(&format!("env_{number:032x}")), Some(number));
            assert_eq!(number_of_envelope(&format!("env_{number:032X}")), Some(number));
        }
        for other in
            ["", "env_", "env_1", "x", &id[1..], &format!("{id}0"), "env_+0000000000000000000000000000001"]
        {
            assert_eq!(number_of_envelope(other), None, "{other}");
        }
    }

    #[test]
    fn it_is_bounded_in_number() {
        let mut lately = Lately::new(100, MINUTE);
        for sequence in 0..1_000 {
            lately.remember(stored(sequence), (), Duration::ZERO);
            assert!(lately.newer.len() + lately.older.len() <= 200);
        }
        let known = |lately: &mut Lately<Stored, ()>, sequence| {
            lately.of(&stored(sequence), Duration::ZERO).is_some()
        };
        assert!((900..1_000).all(|sequence| known(&mut lately, sequence)));
        assert!(!known(&mut lately, 700));
    }

    #[test]
    fn what_is_known_takes_no_further_place() {
        let mut lately = Lately::new(100, MINUTE);
        for sequence in 0..200 {
            lately.learn(stored(sequence), 'a', Duration::ZERO);
        }
        // As many processes report it, whatever generation it is in.
        for sequence in (0..200).cycle().take(10_000) {
            lately.learn(stored(sequence), 'a', Duration::ZERO);
        }
        assert_eq!((lately.older.len(), lately.newer.len()), (100, 100));
        // Another value replaces it.
        lately.learn(stored(150), 'b', Duration::ZERO);
        assert_eq!(lately.of(&stored(150), Duration::ZERO), Some('b'));
    }

    #[test]
    fn it_is_bounded_in_time() {
        let mut lately = Lately::new(100, MINUTE);
        lately.remember(stored(1), (), Duration::ZERO);
        assert!(lately.of(&stored(1), MINUTE * 3 / 2).is_some());
        assert!(lately.of(&stored(1), MINUTE * 3).is_none());
        lately.remember(stored(2), (), MINUTE * 3);
        assert!(lately.of(&stored(2), MINUTE * 60).is_none());
        assert!(lately.newer.is_empty() && lately.older.is_empty());
    }
}
