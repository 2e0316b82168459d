//! What became of the messages that this process settled lately.
//!
//! A broker that is killed forgets acknowledgements that it received, and delivers the messages again. A message that is
//! known here is acknowledged again, and not sent again.

use std::collections::HashMap;
use std::time::Duration;

/// A stored message. The time tells messages of a stream apart that was created again, or that lost its last messages,
/// and so uses sequences twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stored {
    pub sequence: u64,
    pub at_nanos: i128,
}

/// Remembers one value per message, in two generations: at least the last `most` messages unless they are older than
/// `time`, and at most twice as many for twice as long.
#[derive(Debug)]
pub struct Lately<V> {
    newer: HashMap<Stored, V>,
    older: HashMap<Stored, V>,
    since: Duration,
    most: usize,
    time: Duration,
}

impl<V: Copy> Lately<V> {
    pub fn new(most: usize, time: Duration) -> Self {
        Self { newer: HashMap::new(), older: HashMap::new(), since: Duration::ZERO, most: most.max(1), time }
    }

    pub fn remember(&mut self, message: Stored, value: V, now: Duration) {
        self.turn(now);
        if self.newer.len() >= self.most {
            self.next_generation(now);
        }
        self.older.remove(&message);
        self.newer.insert(message, value);
    }

    pub fn forget(&mut self, message: Stored) {
        self.newer.remove(&message);
        self.older.remove(&message);
    }

    pub fn of(&mut self, message: Stored, now: Duration) -> Option<V> {
        self.turn(now);
        self.newer.get(&message).or_else(|| self.older.get(&message)).copied()
    }

    fn turn(&mut self, now: Duration) {
        let age = now.saturating_sub(self.since);
        if age >= self.time {
            self.next_generation(now);
            if age >= self.time * 2 {
                self.older = HashMap::new();
            }
        }
    }

    fn next_generation(&mut self, now: Duration) {
        self.older = std::mem::take(&mut self.newer);
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
        assert_eq!(lately.of(stored(1), Duration::ZERO), Some('a'));
        assert_eq!(lately.of(Stored { sequence: 1, at_nanos: 8 }, Duration::ZERO), None);
        assert_eq!(lately.of(stored(2), Duration::ZERO), None);
        lately.remember(stored(1), 'b', Duration::ZERO);
        assert_eq!(lately.of(stored(1), Duration::ZERO), Some('b'));
        lately.forget(stored(1));
        assert_eq!(lately.of(stored(1), Duration::ZERO), None);
    }

    #[test]
    fn it_is_bounded_in_number() {
        let mut lately = Lately::new(100, MINUTE);
        for sequence in 0..1_000 {
            lately.remember(stored(sequence), (), Duration::ZERO);
            assert!(lately.newer.len() + lately.older.len() <= 200);
        }
        let known = |lately: &mut Lately<()>, sequence| lately.of(stored(sequence), Duration::ZERO).is_some();
        assert!((900..1_000).all(|sequence| known(&mut lately, sequence)));
        assert!(!known(&mut lately, 700));
    }

    #[test]
    fn it_is_bounded_in_time() {
        let mut lately = Lately::new(100, MINUTE);
        lately.remember(stored(1), (), Duration::ZERO);
        assert!(lately.of(stored(1), MINUTE * 3 / 2).is_some());
        assert!(lately.of(stored(1), MINUTE * 3).is_none());
        lately.remember(stored(2), (), MINUTE * 3);
        assert!(lately.of(stored(2), MINUTE * 60).is_none());
        assert!(lately.newer.is_empty() && lately.older.is_empty());
    }
}
