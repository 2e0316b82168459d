//! Which envelopes are written to a domain outbox together, and what becomes of those that the outbox refuses.
//!
//! The envelopes of an event are one atomic batch, and small events share a batch. An event that exceeds what one batch,
//! or the whole outbox, can ever hold is written in parts; the message ids make a repetition of a part harmless.

/// Number and size, as stored, of some envelopes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    pub count: usize,
    pub bytes: usize,
}

impl Load {
    pub fn of(sizes: impl IntoIterator<Item = usize>) -> Self {
        sizes.into_iter().fold(Self::default(), |load, bytes| load.and(Self { count: 1, bytes }))
    }

    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { count: self.count + other.count, bytes: self.bytes.saturating_add(other.bytes) }
    }
}

/// What an outbox, and one atomic batch, can hold. `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxCapacity {
    /// Envelopes of one atomic batch.
    pub batch: usize,
    /// Bytes of one atomic batch.
    pub batch_bytes: usize,
    /// The outbox's limits: bytes, messages, and the size of one message.
    pub max_bytes: Option<usize>,
    pub max_msgs: Option<usize>,
    pub max_msg_size: Option<usize>,
}

/// What becomes of an event that the outbox refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterRefusal {
    /// One of its envelopes can never be stored: the event is planned again, which sets that envelope aside.
    TooLarge,
    /// It is written in parts.
    InParts,
    /// It waits until there is room.
    Waits,
}

/// Parts of an event in an outbox: a part takes at most this share, so that the next part fits beside it.
const PARTS_OF_AN_OUTBOX: usize = 4;

impl OutboxCapacity {
    /// The largest envelope that can ever be stored.
    pub fn largest(&self) -> usize {
        let limits = [self.max_bytes, self.max_msg_size];
        limits.into_iter().flatten().min().unwrap_or(usize::MAX)
    }

    /// Whether one batch, and the empty outbox, hold all of these.
    pub fn is_one_batch(&self, load: Load) -> bool {
        load.count <= self.batch.min(self.max_msgs.unwrap_or(usize::MAX))
            && load.bytes <= self.batch_bytes.min(self.max_bytes.unwrap_or(usize::MAX))
    }

    /// Whether a batch that already holds `group` takes another event. A batch takes its first event in any case.
    pub fn takes(&self, group: Load, next: Load, most_bytes: usize) -> bool {
        let both = group.and(next);
        group.count == 0 || (both.bytes <= most_bytes && self.is_one_batch(both))
    }

    /// The number of envelopes, at least one, that are written next of an event that is written in parts. `sizes`: those
    /// that are not written yet. `most`: the most at once.
    pub fn part(&self, sizes: impl IntoIterator<Item = usize>, most: usize, most_bytes: usize) -> usize {
        let share = |limit: Option<usize>| limit.map_or(usize::MAX, |limit| limit / PARTS_OF_AN_OUTBOX);
        let most = most.min(self.batch).min(share(self.max_msgs));
        let most_bytes = most_bytes.min(self.batch_bytes).min(share(self.max_bytes));
        let mut part = Load::default();
        for bytes in sizes {
            let more = part.and(Load { count: 1, bytes });
            if part.count > 0 && (more.count > most || more.bytes > most_bytes) {
                break;
            }
            part = more;
        }
        part.count.max(1)
    }

    /// What becomes of an event that the outbox refused when it was written alone. `is_empty`: nothing is in the outbox.
    pub fn refusal(&self, largest: usize, load: Load, is_empty: bool) -> AfterRefusal {
        if largest > self.largest() {
            AfterRefusal::TooLarge
        } else if !self.is_one_batch(load) || (is_empty && load.count > 1) {
            // An empty outbox that refuses it will not have more room later.
            AfterRefusal::InParts
        } else {
            AfterRefusal::Waits
        }
    }
}

/// Halves a group that was refused: the smaller events, which are tried first, and the larger ones.
pub fn halves<T>(mut group: Vec<T>, bytes: impl Fn(&T) -> usize) -> (Vec<T>, Vec<T>) {
    group.sort_by_cached_key(bytes);
    let larger = group.split_off(group.len().div_ceil(2));
    (group, larger)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROOM: OutboxCapacity = OutboxCapacity {
        batch: 1_000,
        batch_bytes: 1_000_000,
        max_bytes: None,
        max_msgs: None,
        max_msg_size: None,
    };

    fn load(count: usize, bytes: usize) -> Load {
        Load { count, bytes }
    }

    #[test]
    fn a_batch_takes_events_up_to_its_limits_and_its_first_one_in_any_case() {
        assert!(ROOM.takes(load(0, 0), load(5_000, 9_000_000), 100));
        assert!(ROOM.takes(load(1, 50), load(1, 50), 100));
        assert!(!ROOM.takes(load(1, 50), load(1, 51), 100));
        assert!(!ROOM.takes(load(1, 1), load(1_000, 1), 100));
        let small = OutboxCapacity { max_msgs: Some(3), max_bytes: Some(90), ..ROOM };
        assert!(small.takes(load(1, 10), load(2, 20), 100));
        assert!(!small.takes(load(1, 10), load(3, 20), 100));
        assert!(!small.takes(load(1, 50), load(1, 41), 100));
    }

    #[test]
    fn what_is_refused_waits_only_if_it_fits_later() {
        let room = OutboxCapacity { max_bytes: Some(1_000), max_msg_size: Some(500), ..ROOM };
        assert_eq!(room.largest(), 500);
        assert_eq!(room.refusal(501, load(1, 501), false), AfterRefusal::TooLarge);
        assert_eq!(room.refusal(400, load(2, 800), false), AfterRefusal::Waits);
        assert_eq!(room.refusal(400, load(3, 1_200), false), AfterRefusal::InParts);
        assert_eq!(room.refusal(4, load(1_001, 4_004), false), AfterRefusal::InParts);
        // Never forever in front of an empty outbox; one envelope cannot be divided.
        assert_eq!(room.refusal(400, load(2, 800), true), AfterRefusal::InParts);
        assert_eq!(room.refusal(400, load(1, 400), true), AfterRefusal::Waits);
        assert_eq!(ROOM.largest(), usize::MAX);
    }

    #[test]
    fn an_event_of_84_mb_and_an_outbox_of_64_mb() {
        let (size, all) = (800_000, 105);
        let room = OutboxCapacity { batch_bytes: 64 << 20, max_bytes: Some(64 << 20), ..ROOM };
        assert_eq!(room.refusal(size, load(all, size * all), true), AfterRefusal::InParts);
        let mut left = all;
        while left > 0 {
            let part = room.part(std::iter::repeat_n(size, left), usize::MAX, 8 << 20);
            assert!(part * size <= 8 << 20);
            left -= part;
        }
    }

    #[test]
    fn the_smaller_half_is_tried_first() {
        assert_eq!(halves(vec![5, 1, 4, 2, 3], |size| *size), (vec![1, 2, 3], vec![4, 5]));
        assert_eq!(halves(vec![7], |size| *size), (vec![7], vec![]));
    }

    proptest! {
        /// Every envelope that fits is in exactly one part, and every part is within all limits unless it is one envelope.
        #[test]
        fn parts_cover_an_event_within_the_limits(
            sizes in prop::collection::vec(1usize..5_000, 1..300),
            batch in 1usize..50,
            max_bytes in prop::option::of(1usize..50_000),
            max_msgs in prop::option::of(0usize..100),
            most in 1usize..400,
        ) {
            let room = OutboxCapacity { batch, batch_bytes: 20_000, max_bytes, max_msgs, max_msg_size: None };
            let mut done = 0;
            while done < sizes.len() {
                let part = room.part(sizes[done..].iter().copied(), most, 10_000);
                prop_assert!(part >= 1 && done + part <= sizes.len());
                let of = Load::of(sizes[done..done + part].iter().copied());
                prop_assert!(part == 1 || (part <= most && of.bytes <= 10_000 && room.is_one_batch(of)));
                done += part;
            }
        }

        /// Halving ends, loses nothing, and every event of the first half is at most as large as those of the second.
        #[test]
        fn halves_lose_nothing(sizes in prop::collection::vec(0usize..100, 2..200)) {
            let (smaller, larger) = halves(sizes.clone(), |size| *size);
            prop_assert!(!smaller.is_empty() && !larger.is_empty());
            prop_assert!(smaller.iter().max() <= larger.iter().min());
            let mut all = [smaller, larger].concat();
            all.sort_unstable();
            let mut sizes = sizes;
            sizes.sort_unstable();
            prop_assert_eq!(all, sizes);
        }
    }
}
