//! Which own lanes are read, if there are more than places for readers.
//!
//! The lane that was unread for longest comes first. A lane without envelopes needs no place, and gives its place up to
//! one that has some.

use std::cmp::Reverse;
use std::time::Duration;

/// An own lane. Times are durations since a fixed start.
#[derive(Debug, Clone, Copy)]
pub struct Lane<'a> {
    pub name: &'a str,
    /// It is known to have no envelope, neither unread nor in a process.
    pub is_empty: bool,
    /// When its reader started; `None` without a reader.
    pub reading_since: Option<Duration>,
    /// When its last reader ended; `None` if it was never read here.
    pub last_read: Option<Duration>,
}

/// Readers to start and to stop.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan<'a> {
    pub open: Vec<&'a str>,
    /// Their places become free for others.
    pub close: Vec<&'a str>,
}

/// Plans the readers for at most `places` lanes at once.
pub fn plan<'a>(lanes: &[Lane<'a>], places: usize) -> Plan<'a> {
    let mut waiting: Vec<&Lane<'a>> =
        lanes.iter().filter(|lane| lane.reading_since.is_none() && !lane.is_empty).collect();
    waiting.sort_by_key(|lane| (lane.last_read, lane.name));
    let mut reading: Vec<&Lane<'a>> = lanes.iter().filter(|lane| lane.reading_since.is_some()).collect();
    let free = places.saturating_sub(reading.len());
    let without_place = waiting.len().saturating_sub(free);
    reading.sort_by_key(|lane| (Reverse(lane.is_empty), lane.reading_since, lane.name));
    Plan {
        open: waiting.iter().take(free).map(|lane| lane.name).collect(),
        close: reading.iter().take(without_place).map(|lane| lane.name).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// Rounds of listings, a second apart, over lanes of which some are empty. Returns the round in which each lane was
    /// read first.
    fn rounds(names: &[String], empty: &[bool], places: usize, rounds: u64) -> HashMap<String, u64> {
        let (mut reading, mut last_read) = (HashMap::<String, Duration>::new(), HashMap::new());
        let mut first = HashMap::new();
        for round in 0..rounds {
            let now = Duration::from_secs(round);
            let lanes: Vec<Lane<'_>> = names
                .iter()
                .zip(empty)
                .map(|(name, is_empty)| Lane {
                    name,
                    is_empty: *is_empty,
                    reading_since: reading.get(name).copied(),
                    last_read: last_read.get(name).copied(),
                })
                .collect();
            let plan = plan(&lanes, places);
            for name in plan.close {
                reading.remove(name).expect("it is read");
                last_read.insert(name.to_owned(), now);
            }
            for name in plan.open {
                assert!(reading.insert(name.to_owned(), now).is_none());
                first.entry(name.to_owned()).or_insert(round);
            }
            assert!(reading.len() <= places);
        }
        first
    }

    proptest! {
        #[test]
        fn every_lane_with_envelopes_is_read_in_turn(
            places in 1..20usize,
            empty in proptest::collection::vec(any::<bool>(), 1..100),
        ) {
            let names: Vec<String> = (0..empty.len()).map(|number| format!("own-{number}")).collect();
            let full = empty.iter().filter(|is_empty| !**is_empty).count();
            let enough = 2 * (full.div_ceil(places) as u64 + 1);
            let first = rounds(&names, &empty, places, enough);
            for (name, is_empty) in names.iter().zip(&empty) {
                prop_assert_eq!(first.contains_key(name), !is_empty, "{}", name);
            }
        }
    }

    #[test]
    fn an_empty_lane_gives_its_place_up_before_one_that_is_read_for_longer() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let lane =
            |name, is_empty, reading_since, last_read| Lane { name, is_empty, reading_since, last_read };
        let lanes = [
            lane("long", false, seconds(1), None),
            lane("empty", true, seconds(5), None),
            lane("waits", false, None, seconds(3)),
            lane("waits-longer", false, None, seconds(2)),
            lane("nothing-to-read", true, None, None),
        ];
        assert_eq!(plan(&lanes, 2), Plan { open: vec![], close: vec!["empty", "long"] });
        assert_eq!(plan(&lanes, 3), Plan { open: vec!["waits-longer"], close: vec!["empty"] });
        assert_eq!(plan(&lanes, 4), Plan { open: vec!["waits-longer", "waits"], close: vec![] });
    }
}
