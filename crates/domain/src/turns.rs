//! Start-time fair queueing: the owner with the least work done is served next, however much the others have waiting.
//!
//! Each owner has an account of the work done for it, and the lowest account is served next. An owner that was idle
//! starts at the account that is being served, so that idle time gives no credit and a short idle time no advantage.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

/// Number of idle accounts from which idle accounts are removed.
const MOST_IDLE: usize = 64;

/// Waiting items by owner.
#[derive(Debug)]
pub struct Turns<T> {
    queues: HashMap<Arc<str>, OwnerQueue<T>>,
    /// Owners with waiting items, by account.
    order: BTreeSet<(u64, Arc<str>)>,
    /// Account of the owner that was served last.
    clock: u64,
    waiting: usize,
}

#[derive(Debug)]
struct OwnerQueue<T> {
    items: VecDeque<T>,
    account: u64,
    /// Moving average of the work per item of this owner.
    cost: u64,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { queues: HashMap::new(), order: BTreeSet::new(), clock: 0, waiting: 0 }
    }
}

impl<T> Turns<T> {
    /// Adds an item at the end of its owner's queue.
    pub fn push(&mut self, owner: &str, item: T) {
        self.queue(owner).items.push_back(item);
        self.line_up(owner);
    }

    /// Returns an unfinished item to the front of its owner's queue.
    pub fn put_back(&mut self, owner: &str, item: T) {
        self.queue(owner).items.push_front(item);
        self.line_up(owner);
    }

    /// Takes the next item, with its owner. Items of one owner come in order.
    pub fn take_next(&mut self) -> Option<(Arc<str>, T)> {
        let (account, owner) = self.order.pop_first()?;
        self.clock = self.clock.max(account);
        let queue = self.queues.get_mut(&owner)?;
        let item = queue.items.pop_front()?;
        if !queue.items.is_empty() {
            self.order.insert((account, owner.clone()));
        }
        self.waiting -= 1;
        Some((owner, item))
    }

    /// Adds work to an owner's account.
    pub fn charge(&mut self, owner: &str, work: u64) {
        let clock = self.clock;
        let Some((key, queue)) =
            self.queues.get_key_value(owner).map(|(key, queue)| (key.clone(), queue.account))
        else {
            return;
        };
        self.order.remove(&(queue, key.clone()));
        let Some(queue) = self.queues.get_mut(owner) else { return };
        queue.account = queue.account.saturating_add(work);
        if queue.items.is_empty() {
            // An account at or below the clock has no effect, so it can be removed.
            if self.queues.len() > 2 * self.order.len() + MOST_IDLE {
                self.queues.retain(|_, queue| !queue.items.is_empty() || queue.account > clock);
            }
        } else {
            self.order.insert((queue.account, key));
        }
    }

    /// Records the total work of one finished item of an owner.
    pub fn done(&mut self, owner: &str, cost: u64) {
        if let Some(queue) = self.queues.get_mut(owner) {
            // The new value has a weight of a quarter.
            queue.cost = if queue.cost == 0 { cost } else { queue.cost - queue.cost / 4 + cost / 4 };
        }
    }

    /// Estimated work of an owner's waiting items, by the moving average of its items.
    pub fn work_waiting(&self, owner: &str) -> u64 {
        self.queues.get(owner).map_or(0, |queue| queue.cost.saturating_mul(queue.items.len() as u64))
    }

    /// Number of waiting items of all owners.
    pub fn len(&self) -> usize {
        self.waiting
    }

    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// All waiting items, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.queues.values().flat_map(|queue| &queue.items)
    }

    fn queue(&mut self, owner: &str) -> &mut OwnerQueue<T> {
        self.waiting += 1;
        if !self.queues.contains_key(owner) {
            self.queues
                .insert(owner.into(), OwnerQueue { items: VecDeque::new(), account: self.clock, cost: 0 });
        }
        self.queues.get_mut(owner).expect("inserted above")
    }

    fn line_up(&mut self, owner: &str) {
        let clock = self.clock;
        let Some((key, _)) = self.queues.get_key_value(owner) else { return };
        let key = key.clone();
        let Some(queue) = self.queues.get_mut(owner) else { return };
        if queue.items.len() == 1 {
            queue.account = queue.account.max(clock);
        }
        self.order.insert((queue.account, key));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn served(turns: &mut Turns<u32>, work: impl Fn(&str) -> u64, count: usize) -> Vec<(String, u32)> {
        let mut served = Vec::new();
        while served.len() < count
            && let Some((owner, item)) = turns.take_next()
        {
            turns.charge(&owner, work(&owner));
            served.push((owner.to_string(), item));
        }
        served
    }

    #[test]
    fn a_flood_delays_another_by_one_turn() {
        let mut turns = Turns::default();
        for item in 0..10_000 {
            turns.push("evil", item);
        }
        assert_eq!(served(&mut turns, |_| 1, 5_000).len(), 5_000);
        turns.push("good", 0);
        let next = served(&mut turns, |_| 1, 2);
        assert!(next.iter().any(|(owner, _)| owner == "good"), "{next:?}");
    }

    #[test]
    fn turns_are_by_work_and_not_by_number() {
        let mut turns = Turns::default();
        for item in 0..1_000 {
            turns.push("evil", item);
            turns.push("good", item);
        }
        let work = |owner: &str| if owner == "evil" { 15_360 } else { 10 };
        let first = served(&mut turns, work, 1_000);
        let evil = first.iter().filter(|(owner, _)| owner == "evil").count();
        assert!(evil <= 2, "evil had {evil} turns of 15,360 steps where good had 998 of 10");
        // The items of "good" are done; only those of "evil" are left.
        assert_eq!(served(&mut turns, work, 5_000).len(), 1_000);
        assert!(turns.is_empty());
    }

    #[test]
    fn an_owner_that_adds_items_one_by_one_gets_no_more_turns() {
        let mut turns = Turns::default();
        for item in 0..100 {
            turns.push("good", item);
        }
        let mut work = HashMap::new();
        for item in 0..100 {
            turns.push("evil", item);
            for (owner, _) in served(&mut turns, |owner| if owner == "evil" { 100 } else { 1 }, 1) {
                *work.entry(owner).or_insert(0_u64) += 1;
            }
        }
        assert!(work["evil"] <= 3, "{work:?}");
    }

    #[test]
    fn an_item_put_back_is_first_and_idle_time_gives_no_credit() {
        let mut turns = Turns::default();
        turns.push("a", 1);
        turns.push("a", 2);
        let (owner, item) = turns.take_next().unwrap();
        turns.charge(&owner, 1_000);
        turns.put_back(&owner, item);
        assert_eq!((turns.len(), turns.iter().count()), (2, 2));
        assert_eq!(turns.take_next().unwrap().1, 1);
        turns.charge("a", 1_000);
        // An owner that was idle starts at the account of the others.
        for item in 0..10 {
            turns.push("b", item);
            turns.push("a", 10 + item);
        }
        let order = served(&mut turns, |_| 100, 20);
        let of_b = order.iter().take(12).filter(|(owner, _)| owner == "b").count();
        assert!((5..=10).contains(&of_b) && of_b < 12, "{order:?}");
    }

    #[test]
    fn waiting_work_is_estimated_from_finished_items() {
        let mut turns = Turns::default();
        for item in 0..10 {
            turns.push("a", item);
        }
        assert_eq!(turns.work_waiting("a"), 0);
        turns.take_next();
        turns.done("a", 1_000);
        assert_eq!(turns.work_waiting("a"), 9_000);
        turns.take_next();
        turns.done("a", 2_000);
        assert_eq!(turns.work_waiting("a"), 8 * 1_250);
        assert_eq!(turns.work_waiting("nobody"), 0);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_each_owners_order_is_kept(
            pushes in prop::collection::vec((0..4_usize, 0..50_u64), 0..200)
        ) {
            let names = ["a", "b", "c", "d"];
            let mut turns = Turns::default();
            for (number, (owner, _)) in pushes.iter().enumerate() {
                turns.push(names[*owner], number);
            }
            let mut seen: HashMap<Arc<str>, Vec<usize>> = HashMap::new();
            while let Some((owner, number)) = turns.take_next() {
                turns.charge(&owner, pushes[number].1);
                seen.entry(owner).or_default().push(number);
            }
            prop_assert_eq!(seen.values().map(Vec::len).sum::<usize>(), pushes.len());
            prop_assert!(seen.values().all(|numbers| numbers.is_sorted()));
            prop_assert!(turns.is_empty());
        }
    }
}
