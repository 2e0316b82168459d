//! How many dead letters there are in each state, and how old the oldest is.

use time::OffsetDateTime;

use super::dead_letter::DeadLetterState;

/// Dead letters, counted one by one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LetterTally {
    pub scheduled: u64,
    pub replaying: u64,
    pub parked: u64,
    /// When the oldest failed.
    pub oldest: Option<OffsetDateTime>,
}

impl LetterTally {
    pub fn add(&mut self, state: DeadLetterState, failed_at: OffsetDateTime) {
        match state {
            DeadLetterState::Scheduled => self.scheduled += 1,
            DeadLetterState::Replaying => self.replaying += 1,
            DeadLetterState::Parked => self.parked += 1,
        }
        self.oldest = Some(self.oldest.map_or(failed_at, |oldest| oldest.min(failed_at)));
    }

    /// Adds the tally of other dead letters.
    pub fn merge(&mut self, other: Self) {
        self.scheduled += other.scheduled;
        self.replaying += other.replaying;
        self.parked += other.parked;
        self.oldest = [self.oldest, other.oldest].into_iter().flatten().min();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_tally_of_parts_is_that_of_the_whole() {
        let at = |seconds| OffsetDateTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let letters = [
            (DeadLetterState::Parked, at(9)),
            (DeadLetterState::Scheduled, at(4)),
            (DeadLetterState::Parked, at(6)),
            (DeadLetterState::Replaying, at(7)),
        ];
        let tally = |letters: &[(DeadLetterState, OffsetDateTime)]| {
            let mut tally = LetterTally::default();
            letters.iter().for_each(|(state, failed_at)| tally.add(*state, *failed_at));
            tally
        };
        let whole = tally(&letters);
        assert_eq!(whole, LetterTally { scheduled: 1, replaying: 1, parked: 2, oldest: Some(at(4)) });
        for cut in 0..=letters.len() {
            let mut merged = tally(&letters[..cut]);
            merged.merge(tally(&letters[cut..]));
            assert_eq!(merged, whole);
        }
    }
}
