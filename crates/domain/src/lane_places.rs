//! Which own lanes are read, if there are more than places for readers.
//!
//! Tenants with envelopes in own lanes have equal parts of the places; what one does not use, the others may. Within a
//! tenant, the lane that was unread for longest comes first. A lane without envelopes gives its place up to one that has some. It is
//! read while places are left: if only one process did so, a lane would wait for the next listing of the others when that one ends.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// An own lane. Times are durations since a fixed start.
#[derive(Debug, Clone, Copy)]
pub struct LaneCandidate<'a> {
    pub name: &'a str,
    pub tenant: &'a str,
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

/// The lanes of a tenant.
#[derive(Debug, Default)]
struct TenantLanes<'a> {
    waiting: Vec<LaneCandidate<'a>>,
    /// With a reader and envelopes.
    reading: Vec<LaneCandidate<'a>>,
    /// With a reader and without envelopes.
    empty: Vec<LaneCandidate<'a>>,
    /// With neither.
    idle: Vec<LaneCandidate<'a>>,
    /// Places for lanes with envelopes.
    part: usize,
}

/// Plans the readers for at most `places` lanes at once.
pub fn plan<'a>(lanes: &[LaneCandidate<'a>], places: usize) -> Plan<'a> {
    let needy: BTreeSet<&str> = lanes.iter().filter(|lane| !lane.is_empty).map(|lane| lane.tenant).collect();
    // Without a place for each tenant, the lanes of all take turns.
    let owner = |lane: &LaneCandidate<'a>| if needy.len() > places { "" } else { lane.tenant };
    let mut tenants: BTreeMap<&str, TenantLanes<'a>> = BTreeMap::new();
    for lane in lanes {
        let tenant = tenants.entry(owner(lane)).or_default();
        match (lane.reading_since, lane.is_empty) {
            (Some(_), true) => tenant.empty.push(*lane),
            (Some(_), false) => tenant.reading.push(*lane),
            (None, false) => tenant.waiting.push(*lane),
            (None, true) => tenant.idle.push(*lane),
        }
    }
    divide(&mut tenants, places);
    let free = places.saturating_sub(lanes.iter().filter(|lane| lane.reading_since.is_some()).count());
    let mut open: Vec<(usize, LaneCandidate<'a>)> = Vec::new();
    for tenant in tenants.values_mut() {
        tenant.waiting.sort_by_key(|lane| (lane.last_read, lane.name));
        tenant.reading.sort_by_key(|lane| (lane.reading_since, lane.name));
        let has = tenant.reading.len();
        let more = tenant.part.saturating_sub(has);
        open.extend(tenant.waiting.iter().take(more).enumerate().map(|(number, lane)| (has + number, *lane)));
    }
    // The tenants with the fewest come first.
    open.sort_by_key(|(before, lane)| (*before, lane.last_read, lane.name));
    open.truncate(free);
    let opened = |tenant: &str| open.iter().filter(|(_, lane)| owner(lane) == tenant).count();
    let without_place: usize = tenants.iter().map(|(name, tenant)| tenant.waiting.len() - opened(name)).sum();
    let mut close: Vec<LaneCandidate<'a>> = Vec::new();
    let fair = places / tenants.len().max(1);
    for tenant in tenants.values() {
        // A tenant with few readers keeps those of its empty lanes, which may get envelopes at any time.
        let all = tenant.reading.len() + tenant.empty.len();
        let kept = if tenant.waiting.is_empty() { fair.min(all) } else { 0 };
        close.extend(tenant.empty.iter().take(all - kept));
    }
    close.sort_by_key(|lane| (lane.reading_since, lane.name));
    close.truncate(without_place);
    let mut turns: Vec<(bool, LaneCandidate<'a>)> = Vec::new();
    for (name, tenant) in &tenants {
        let beyond = tenant.reading.len().saturating_sub(tenant.part);
        let waiting = tenant.waiting.len() - opened(name);
        let ended = tenant.reading.iter().take(beyond.max(waiting)).enumerate();
        turns.extend(ended.map(|(number, lane)| (number < beyond, *lane)));
    }
    turns.sort_by_key(|(beyond, lane)| (Reverse(*beyond), lane.reading_since, lane.name));
    turns.truncate(without_place - close.len());
    close.extend(turns.into_iter().map(|(_, lane)| lane));
    if without_place == 0 {
        let mut idle: Vec<LaneCandidate<'a>> =
            tenants.values().flat_map(|tenant| tenant.idle.iter().copied()).collect();
        idle.sort_by_key(|lane| (lane.last_read, lane.name));
        idle.truncate(free - open.len());
        open.extend(idle.into_iter().map(|lane| (0, lane)));
    }
    let names = |lanes: Vec<LaneCandidate<'a>>| lanes.into_iter().map(|lane| lane.name).collect();
    Plan { open: names(open.into_iter().map(|(_, lane)| lane).collect()), close: names(close) }
}

/// Divides the places among the tenants: equally, as far as each has lanes with envelopes.
fn divide(tenants: &mut BTreeMap<&str, TenantLanes<'_>>, places: usize) {
    let mut by_need: Vec<&mut TenantLanes<'_>> =
        tenants.values_mut().filter(|tenant| tenant.need() > 0).collect();
    by_need.sort_by_key(|tenant| tenant.need());
    let (mut rest, number) = (places, by_need.len());
    for (at, tenant) in by_need.into_iter().enumerate() {
        tenant.part = tenant.need().min(rest / (number - at));
        rest -= tenant.part;
    }
}

impl TenantLanes<'_> {
    fn need(&self) -> usize {
        self.waiting.len() + self.reading.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// Rounds of listings, a second apart, over lanes with their tenants, of which some are empty. Returns the number of
    /// rounds in which each lane was read.
    fn rounds(lanes: &[(String, &str, bool)], places: usize, rounds: u64) -> HashMap<String, u64> {
        let (mut reading, mut last_read) = (HashMap::<String, Duration>::new(), HashMap::new());
        let mut count = HashMap::new();
        for round in 0..rounds {
            let now = Duration::from_secs(round);
            let states: Vec<LaneCandidate<'_>> = lanes
                .iter()
                .map(|(name, tenant, is_empty)| LaneCandidate {
                    name,
                    tenant,
                    is_empty: *is_empty,
                    reading_since: reading.get(name).copied(),
                    last_read: last_read.get(name).copied(),
                })
                .collect();
            let plan = plan(&states, places);
            for name in plan.close {
                reading.remove(name).expect("it is read");
                last_read.insert(name.to_owned(), now);
            }
            for name in plan.open {
                assert!(reading.insert(name.to_owned(), now).is_none());
            }
            assert!(reading.len() <= places);
            for name in reading.keys() {
                *count.entry(name.clone()).or_insert(0) += 1;
            }
        }
        count
    }

    proptest! {
        #[test]
        fn every_lane_with_envelopes_is_read_in_turn(
            places in 1..20usize,
            empty in proptest::collection::vec(any::<bool>(), 1..100),
        ) {
            let lanes: Vec<(String, &str, bool)> = (0..).zip(&empty)
                .map(|(number, is_empty)| (format!("own-{number}"), "acme", *is_empty))
                .collect();
            let full = empty.iter().filter(|is_empty| !**is_empty).count();
            let enough = 2 * (full.div_ceil(places) as u64 + 1);
            let count = rounds(&lanes, places, enough);
            for (name, _, is_empty) in &lanes {
                // Without envelopes if all have places.
                prop_assert!(count.contains_key(name) || *is_empty && lanes.len() > places, "{}", name);
            }
        }
    }

    #[test]
    fn an_empty_lane_gives_its_place_up_before_one_that_is_read_for_longer() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let lane = |name, is_empty, reading_since, last_read| LaneCandidate {
            name,
            tenant: "acme",
            is_empty,
            reading_since,
            last_read,
        };
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
        assert_eq!(
            plan(&lanes, 5),
            Plan { open: vec!["waits-longer", "waits", "nothing-to-read"], close: vec![] }
        );
    }

    proptest! {
        #[test]
        fn a_tenant_with_few_lanes_keeps_its_readers_beside_one_with_many(
            places in 2..20usize,
            few in 1..10usize,
            many in 20..100usize,
            first in any::<bool>(),
        ) {
            let few = few.min(places / 2);
            let of = |tenant: &'static str, number: usize| {
                (0..number).map(move |at| (format!("own-{tenant}-{at}"), tenant, false)).collect::<Vec<_>>()
            };
            let mut lanes = of("evil", many);
            if first { lanes.splice(0..0, of("good", few)); } else { lanes.extend(of("good", few)); }
            let count = rounds(&lanes, places, 40);
            for (name, tenant, _) in &lanes {
                if *tenant == "good" {
                    prop_assert!(count[name] >= 37, "{} {:?}", name, count[name]);
                }
            }
        }

        #[test]
        fn with_more_tenants_than_places_each_has_its_turn(places in 1..8usize, more in 1..20usize) {
            let tenants: Vec<String> = (0..places + more).map(|number| format!("tenant-{number}")).collect();
            let lanes: Vec<(String, &str, bool)> =
                tenants.iter().map(|tenant| (format!("own-{tenant}"), tenant.as_str(), false)).collect();
            let count = rounds(&lanes, places, 80);
            prop_assert_eq!(count.len(), lanes.len());
        }
    }
}
