//! The order in which events reach a domain outbox, for subscriptions with a strict order.
//!
//! Several processes may turn events into envelopes at once, and an event may return to its stream for a while. An
//! *ordered* event, one with an envelope for a strict order, therefore waits until every earlier event of its tenant
//! and domain is settled. An event is settled when it is not in the events stream any more.

use std::collections::{BTreeMap, BTreeSet};

/// Blockers above which nothing further is looked up until some are settled.
const MOST_BLOCKERS: usize = 10_000;

/// Decides when the ordered events of one domain may be committed. Events are named by their sequence in the stream.
#[derive(Debug, Default)]
pub struct PublishingOrder {
    /// What is at or below this sequence is known: it is in `waiting` or `blockers`, or does not matter.
    known: u64,
    /// Ordered events that wait here, with their tenants.
    waiting: BTreeMap<u64, Box<str>>,
    /// Events that are in the stream, are not here, and delay later ones of their tenant.
    blockers: BTreeMap<u64, Box<str>>,
}

/// What is needed to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderStep {
    /// The next events to commit, in this order.
    Commit(Vec<u64>),
    /// Look up the first event that is in the stream at or after this sequence, and report it with
    /// [`PublishingOrder::stands`].
    LookUp(u64),
    /// Nothing can be committed until a blocker is settled.
    Wait,
}

impl PublishingOrder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an ordered event.
    pub fn add(&mut self, sequence: u64, tenant: &str) {
        self.blockers.remove(&sequence);
        self.waiting.insert(sequence, tenant.into());
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The last of the waiting events.
    pub fn last(&self) -> Option<u64> {
        self.waiting.last_key_value().map(|(sequence, _)| *sequence)
    }

    /// The first blocker at or after a sequence.
    pub fn blocker_from(&self, from: u64) -> Option<u64> {
        self.blockers.range(from..).next().map(|(sequence, _)| *sequence)
    }

    pub fn tenant_of_blocker(&self, sequence: u64) -> Option<&str> {
        self.blockers.get(&sequence).map(|tenant| &**tenant)
    }

    /// The blockers of a tenant, in their order.
    pub fn blockers_of<'a>(&'a self, tenant: &'a str) -> impl Iterator<Item = u64> + 'a {
        self.blockers.iter().filter(move |(_, of)| &***of == tenant).map(|(sequence, _)| *sequence)
    }

    /// The blockers on which the next step depends, in their order: of each tenant with events that wait, the first one, if
    /// it is before all of these.
    pub fn decisive_blockers(&self) -> Vec<u64> {
        let mut decisive = Vec::new();
        if self.blockers.is_empty() {
            return decisive;
        }
        let mut first: BTreeMap<&str, u64> = BTreeMap::new();
        for (sequence, tenant) in &self.waiting {
            first.entry(tenant).or_insert(*sequence);
        }
        for (blocker, tenant) in &self.blockers {
            if first.is_empty() {
                break;
            }
            if first.remove(&**tenant).is_some_and(|first| *blocker < first) {
                decisive.push(*blocker);
            }
        }
        decisive
    }

    /// Reports the state of the durable that reads the events: all events up to `floor` are settled, and `delivered` is
    /// the last event that it has delivered. A stream that was created again begins with 1.
    pub fn reader(&mut self, floor: u64, delivered: u64) {
        if delivered < self.known {
            self.known = 0;
            self.blockers.clear();
        }
        self.known = self.known.max(floor);
        self.blockers = self.blockers.split_off(&floor.saturating_add(1));
    }

    /// Reports that nothing is between the sequence of a [`OrderStep::LookUp`] and `found`. `tenant` is the tenant of the
    /// event at `found` if it belongs to this domain.
    pub fn stands(&mut self, found: u64, tenant: Option<&str>) {
        self.known = self.known.max(found);
        if let Some(tenant) = tenant
            && !self.waiting.contains_key(&found)
        {
            self.blockers.insert(found, tenant.into());
        }
    }

    /// The first sequences at or after that of a [`OrderStep::LookUp`] of which nothing is known, up to the last event that waits,
    /// at most `most`. They may be looked up together, if the answers are reported in this order.
    pub fn unknown_from(&self, from: u64, most: usize) -> Vec<u64> {
        let last = self.last().unwrap_or(0).max(from);
        let unknown =
            (from.max(self.known + 1)..=last).filter(|sequence| !self.waiting.contains_key(sequence));
        unknown.take(most).collect()
    }

    /// Whether the answer to a look-up from this sequence says anything new.
    pub fn is_unknown(&self, sequence: u64) -> bool {
        sequence > self.known && !self.waiting.contains_key(&sequence)
    }

    /// Reports that nothing is between the sequence of a [`OrderStep::LookUp`] and `before`.
    pub fn nothing_before(&mut self, before: u64) {
        self.known = self.known.max(before.saturating_sub(1));
    }

    /// Reports that an event is not in the stream any more.
    pub fn settled(&mut self, sequence: u64) {
        self.blockers.remove(&sequence);
    }

    /// Reports that no event is from one sequence up to, but without, another.
    pub fn settled_between(&mut self, from: u64, before: u64) {
        while let Some(sequence) = self.blocker_from(from).filter(|sequence| *sequence < before) {
            self.blockers.remove(&sequence);
        }
    }

    /// Removes an event that returns to the stream: it delays the later ones.
    pub fn hand_back(&mut self, sequence: u64) {
        if let Some(tenant) = self.waiting.remove(&sequence) {
            self.blockers.insert(sequence, tenant);
        }
    }

    /// An event that was to be committed returns to the stream.
    pub fn failed(&mut self, sequence: u64, tenant: &str) {
        self.blockers.insert(sequence, tenant.into());
    }

    /// The next step. Events of [`OrderStep::Commit`] are removed, at most `most`; they must be committed in this order, none
    /// if one before it fails.
    pub fn next(&mut self, most: usize) -> OrderStep {
        let mut ready = Vec::new();
        let mut blockers = self.blockers.iter().peekable();
        // The tenants with an earlier blocker.
        let mut behind: BTreeSet<&str> = BTreeSet::new();
        for (sequence, tenant) in &self.waiting {
            while self.known + 1 < *sequence && self.waiting.contains_key(&(self.known + 1)) {
                self.known += 1;
            }
            if self.known + 1 < *sequence {
                // What is ready does not wait for the look-up.
                if ready.is_empty() && self.blockers.len() < MOST_BLOCKERS {
                    return OrderStep::LookUp(self.known + 1);
                }
                break;
            }
            self.known = self.known.max(*sequence);
            while let Some((_, of)) = blockers.next_if(|(at, _)| *at < sequence) {
                behind.insert(of);
            }
            if !behind.contains(&**tenant) {
                ready.push(*sequence);
                if ready.len() == most {
                    break;
                }
            }
        }
        if ready.is_empty() {
            return OrderStep::Wait;
        }
        for sequence in &ready {
            self.waiting.remove(sequence);
        }
        OrderStep::Commit(ready)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The events that are in the stream, with their tenants; `None` belongs to another domain.
    type Stream = BTreeMap<u64, Option<&'static str>>;

    /// A few look-ups at once.
    fn look(order: &mut PublishingOrder, stream: &Stream, from: u64) {
        let together = order.unknown_from(from, 4);
        assert_eq!(together.first(), Some(&from));
        for from in together {
            if !order.is_unknown(from) {
                continue;
            }
            match stream.range(from..).next() {
                Some((sequence, tenant)) => order.stands(*sequence, *tenant),
                None => panic!("an event that waits is stored in the stream"),
            }
        }
    }

    fn step(order: &mut PublishingOrder, stream: &Stream) -> OrderStep {
        loop {
            match order.next(100) {
                OrderStep::LookUp(from) => look(order, stream, from),
                step => return step,
            }
        }
    }

    #[test]
    fn an_event_without_earlier_ones_is_committed() {
        let mut order = PublishingOrder::new();
        order.add(7, "acme");
        order.reader(6, 7);
        assert_eq!(order.next(100), OrderStep::Commit(vec![7]));
        assert!(order.is_empty());
    }

    #[test]
    fn an_event_waits_for_an_earlier_one_of_its_tenant_that_is_elsewhere() {
        let stream = Stream::from([(5, Some("acme")), (7, Some("acme")), (8, Some("bee"))]);
        let mut order = PublishingOrder::new();
        order.reader(4, 8);
        order.add(7, "acme");
        order.add(8, "bee");
        assert_eq!(step(&mut order, &stream), OrderStep::Commit(vec![8]), "another tenant does not wait");
        assert_eq!(step(&mut order, &stream), OrderStep::Wait);
        assert_eq!((order.blocker_from(0), order.blocker_from(6)), (Some(5), None));
        order.settled(5);
        assert_eq!(step(&mut order, &stream), OrderStep::Commit(vec![7]));
    }

    #[test]
    fn only_the_first_blocker_of_a_tenant_that_waits_decides() {
        let mut order = PublishingOrder::new();
        order.reader(0, 20);
        for (at, tenant) in [(1, "acme"), (3, "acme"), (4, "bee"), (5, "cat"), (12, "dog")] {
            order.stands(at, Some(tenant));
        }
        assert!(order.decisive_blockers().is_empty());
        for (at, tenant) in [(2, "acme"), (6, "acme"), (8, "bee"), (11, "dog")] {
            order.add(at, tenant);
        }
        assert_eq!(order.decisive_blockers(), [1, 4]);
        order.settled(1);
        assert_eq!(
            order.decisive_blockers(),
            [4],
            "the second event of acme waits for 3, but the first does not"
        );
        order.settled(4);
        assert!(order.decisive_blockers().is_empty());
    }

    #[test]
    fn an_event_of_another_domain_does_not_delay() {
        let stream = Stream::from([(5, None), (7, Some("acme"))]);
        let mut order = PublishingOrder::new();
        order.reader(4, 7);
        order.add(7, "acme");
        assert_eq!(step(&mut order, &stream), OrderStep::Commit(vec![7]));
    }

    #[test]
    fn a_blocker_that_arrives_here_goes_first() {
        let stream = Stream::from([(5, Some("acme")), (7, Some("acme"))]);
        let mut order = PublishingOrder::new();
        order.reader(4, 7);
        order.add(7, "acme");
        assert_eq!(step(&mut order, &stream), OrderStep::Wait);
        order.add(5, "acme");
        assert_eq!(step(&mut order, &stream), OrderStep::Commit(vec![5, 7]));
    }

    #[test]
    fn an_event_that_returns_to_the_stream_delays_the_later_ones() {
        let stream = Stream::from([(5, Some("acme")), (6, Some("acme"))]);
        let mut order = PublishingOrder::new();
        order.reader(4, 6);
        order.add(5, "acme");
        assert_eq!(step(&mut order, &stream), OrderStep::Commit(vec![5]));
        order.failed(5, "acme");
        order.add(6, "acme");
        assert_eq!(step(&mut order, &stream), OrderStep::Wait);
        order.add(5, "acme");
        order.hand_back(6);
        assert_eq!(step(&mut order, &stream), OrderStep::Commit(vec![5]));
    }

    #[test]
    fn a_stream_that_was_created_again_begins_anew() {
        let mut order = PublishingOrder::new();
        order.add(1_000, "acme");
        order.reader(999, 1_000);
        assert_eq!(order.next(100), OrderStep::Commit(vec![1_000]));
        order.reader(0, 2);
        order.add(2, "acme");
        assert_eq!(order.next(100), OrderStep::LookUp(1));
    }

    proptest! {
        /// Several processes commit the events of a stream; each sees its own part, in any order, and events return to
        /// the stream. However they interleave, the events of a tenant are committed in their order, and all of them.
        #[test]
        fn the_events_of_a_tenant_are_committed_in_their_order(
            tenants in prop::collection::vec(0..3_usize, 1..40),
            choices in prop::collection::vec((0..3_usize, 0..100_usize, 0..10_u8), 1_000),
        ) {
            const TENANTS: [Option<&str>; 3] = [Some("acme"), Some("bee"), None];
            let mut stream: Stream =
                tenants.iter().enumerate().map(|(at, tenant)| (at as u64 + 1, TENANTS[*tenant])).collect();
            let last = stream.len() as u64;
            let mut processes: [PublishingOrder; 3] = Default::default();
            // Events that no process has.
            let mut free: Vec<u64> = stream.keys().copied().collect();
            let mut committed: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
            let mut choices = choices.into_iter().cycle();
            let mut rounds = 0;
            while !stream.is_empty() {
                rounds += 1;
                prop_assert!(rounds < 20_000, "{stream:?} is stuck");
                let (process, pick, dice) = choices.next().unwrap();
                let order = &mut processes[process];
                if !free.is_empty() && dice < 6 {
                    let sequence = free.swap_remove(pick % free.len());
                    match stream[&sequence] {
                        Some(tenant) => order.add(sequence, tenant),
                        None => drop(stream.remove(&sequence)),
                    }
                } else if dice == 6 && let Some(sequence) = order.last() {
                    order.hand_back(sequence);
                    free.push(sequence);
                } else {
                    let floor = stream.keys().next().map_or(last, |first| first - 1);
                    order.reader(floor, last);
                    for blocker in order.decisive_blockers() {
                        let stands = stream.range(blocker..).next().map_or(u64::MAX, |(sequence, _)| *sequence);
                        order.settled_between(blocker, stands);
                    }
                    if let OrderStep::Commit(ready) = step(order, &stream) {
                        for (at, sequence) in ready.iter().enumerate() {
                            let tenant = stream[sequence].unwrap();
                            // A commit may fail; then the later ones fail as well.
                            if dice == 9 && at > 0 {
                                for sequence in &ready[at..] {
                                    order.failed(*sequence, stream[sequence].unwrap());
                                    free.push(*sequence);
                                }
                                break;
                            }
                            stream.remove(sequence);
                            committed.entry(tenant).or_default().push(*sequence);
                        }
                    }
                }
            }
            for sequences in committed.values() {
                prop_assert!(sequences.is_sorted(), "{sequences:?}");
            }
        }
    }
}
