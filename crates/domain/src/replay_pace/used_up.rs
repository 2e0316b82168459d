//! Envelopes that have used up their deliveries, and wait in their outbox until their dead letters have room.
//!
//! They are delivered no more, so they do not count against the pace of a replay: they leave the outbox only when the replay
//! has made room for them. A consumer counts what it still delivers; the rest of its lane is used up. In a lane that several
//! subscriptions share, this gives bounds for each.

use std::collections::{BTreeMap, HashMap};

/// One lane of an outbox.
#[derive(Debug, Clone, Default)]
pub struct LaneLook {
    /// Its envelopes, by the token of their subscription.
    pub envelopes: HashMap<String, u64>,
    /// How many of them its consumer still delivers: those that wait and those in flight. Read after the envelopes. `None`
    /// without a consumer.
    pub active: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Bounds {
    /// Also those that are not used up.
    all: u64,
    least: u64,
    most: u64,
}

/// How many envelopes of each subscription are used up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsedUp {
    by_token: BTreeMap<String, Bounds>,
    total: u64,
}

impl UsedUp {
    pub fn of(lanes: &[LaneLook]) -> Self {
        let mut used_up = Self::default();
        for LaneLook { envelopes, active } in lanes {
            for (token, count) in envelopes {
                let bounds = used_up.by_token.entry(token.clone()).or_default();
                bounds.all = bounds.all.saturating_add(*count);
            }
            // Without a consumer, nothing has been delivered.
            let Some(active) = active else { continue };
            let all = envelopes.values().fold(0, |sum: u64, count| sum.saturating_add(*count));
            let of_lane = all.saturating_sub(*active);
            if of_lane == 0 {
                continue;
            }
            used_up.total = used_up.total.saturating_add(of_lane);
            for (token, count) in envelopes {
                let bounds = used_up.by_token.entry(token.clone()).or_default();
                bounds.least = bounds.least.saturating_add(count.saturating_sub(*active));
                bounds.most = bounds.most.saturating_add(of_lane.min(*count));
            }
        }
        used_up
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The tokens of the subscriptions that may have some, in order.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.by_token.keys().map(String::as_str)
    }

    /// The envelopes of a subscription that are certainly used up.
    pub fn least(&self, token: &str) -> u64 {
        self.by_token.get(token).map_or(0, |bounds| bounds.least)
    }

    /// Whether a subscription has envelopes, and all of them are certainly used up.
    pub fn is_all(&self, token: &str) -> bool {
        self.by_token.get(token).is_some_and(|bounds| bounds.all > 0 && bounds.least == bounds.all)
    }

    /// Whether a subscription may have more than [`Self::least`].
    pub fn is_uncertain(&self, token: &str) -> bool {
        self.by_token.get(token).is_some_and(|bounds| bounds.most > bounds.least)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lane(envelopes: &[(&str, u64)], active: Option<u64>) -> LaneLook {
        LaneLook {
            envelopes: envelopes.iter().map(|(token, count)| ((*token).to_owned(), *count)).collect(),
            active,
        }
    }

    #[test]
    fn what_no_consumer_delivers_is_used_up() {
        let used_up = UsedUp::of(&[
            lane(&[("own", 100)], Some(40)),
            lane(&[("a", 500), ("b", 30)], Some(50)),
            lane(&[("unread", 7)], None),
            lane(&[("well", 7)], Some(9)),
            lane(&[("vast", u64::MAX), ("vaster", u64::MAX)], Some(u64::MAX)),
        ]);
        assert_eq!(used_up.total(), 60 + 480);
        assert_eq!((used_up.least("own"), used_up.least("a"), used_up.least("b")), (60, 450, 0));
        assert!(used_up.is_uncertain("a") && used_up.is_uncertain("b"));
        assert!(["own", "well", "unread", "unknown"].iter().all(|token| !used_up.is_uncertain(token)));
        assert_eq!(UsedUp::of(&[]), UsedUp::default());
        let all = UsedUp::of(&[
            lane(&[("one", 3)], Some(0)),
            lane(&[("other", 3)], Some(1)),
            lane(&[("one", 2)], Some(0)),
        ]);
        assert!(all.is_all("one") && !all.is_all("other") && !all.is_all("unknown"));
        let unread = UsedUp::of(&[lane(&[("one", 3)], Some(0)), lane(&[("one", 1)], None)]);
        assert!(!unread.is_all("one"));
    }

    proptest! {
        /// Whichever envelopes of a shared lane are used up, the bounds include their number.
        #[test]
        fn the_bounds_hold(lanes in prop::collection::vec(prop::collection::vec((0..50u64, 0..50u64), 1..6), 1..4)) {
            let name = |index: usize| format!("s{index}");
            let looks: Vec<LaneLook> = lanes
                .iter()
                .map(|lane| LaneLook {
                    envelopes: lane.iter().enumerate().map(|(index, (used, active))| (name(index), used + active)).collect(),
                    active: Some(lane.iter().map(|(_, active)| active).sum()),
                })
                .collect();
            let found = UsedUp::of(&looks);
            let used = |index: usize| lanes.iter().filter_map(|lane| lane.get(index)).map(|(used, _)| used).sum::<u64>();
            prop_assert_eq!(found.total(), (0..6).map(used).sum::<u64>());
            for index in 0..6 {
                let used = used(index);
                prop_assert!(found.least(&name(index)) <= used);
                prop_assert!(found.is_uncertain(&name(index)) || found.least(&name(index)) == used);
            }
        }
    }
}
