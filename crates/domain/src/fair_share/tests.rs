//! No item is lost, no share is exceeded, and no subscription starves.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::subscription::{Incarnation, SubscriptionRef};

const START: Duration = Duration::ZERO;

/// An item: its subscription and its number.
type Item = (usize, u64);

fn id(subscription: usize) -> Identity {
    let subscription = SubscriptionRef::of("acme", &format!("s{subscription}")).unwrap();
    Identity { subscription, incarnation: Incarnation::new(1) }
}

fn offer(fair: &mut FairShare<Item>, subscription: usize, number: u64) -> Result<(), Item> {
    fair.offer(&id(subscription), 32, None, (subscription, number), START)
}

fn filled(pool: usize, subscriptions: usize, each: u64) -> FairShare<Item> {
    let mut fair = FairShare::new(pool, 10_000, usize::MAX);
    for number in 0..each {
        (0..subscriptions).for_each(|subscription| offer(&mut fair, subscription, number).unwrap());
    }
    fair
}

/// Starts all items that can run. Returns the number of running items of each subscription.
fn run(fair: &mut FairShare<Item>, subscriptions: usize) -> Vec<usize> {
    while fair.next(START).is_some() {}
    (0..subscriptions).map(|subscription| fair.in_flight_of(&id(subscription))).collect()
}

#[test]
fn a_hold_ends_with_its_subscription() {
    let mut fair = filled(8, 2, 3);
    for subscription in 0..2 {
        fair.hold(&id(subscription), Duration::from_secs(60), |_| false);
    }
    assert_eq!(fair.next(START), None);
    fair.release(|identity| *identity == id(1));
    assert_eq!(
        (fair.held_for(&id(0), START), fair.held_for(&id(1), START)),
        (Some(Duration::from_secs(60)), None)
    );
    assert_eq!(fair.next(START), Some((1, 0)));
    // A new subscription with the same name has a hold of its own.
    let again = Identity { incarnation: Incarnation::new(2), ..id(0) };
    assert_eq!(fair.held_for(&again, START), None);
}

#[test]
fn a_healthy_subscription_soon_has_its_whole_share() {
    let mut fair = filled(64, 1, 1000);
    assert_eq!(run(&mut fair, 1), [4]);
    for expected in [8, 16, 32, 32] {
        (0..fair.in_flight()).for_each(|_| fair.finished(&id(0), true));
        assert_eq!(run(&mut fair, 1), [expected]);
    }
}

#[test]
fn endpoints_that_never_answer_hold_few_slots_and_then_one() {
    let (pool, dead) = (64, 10);
    let mut fair = filled(pool, dead, 1000);
    assert_eq!(run(&mut fair, dead), vec![4; dead]);
    // After a round of timeouts, each has one slot.
    for _ in 0..3 {
        for subscription in 0..dead {
            (0..fair.in_flight_of(&id(subscription))).for_each(|_| fair.finished(&id(subscription), false));
        }
        assert_eq!(run(&mut fair, dead), vec![1; dead]);
    }
    // The other slots are free for another subscription.
    (0..64).for_each(|number| fair.offer(&id(99), 64, None, (99, number), START).unwrap());
    let mut answered = 0;
    while let Some((99, number)) = fair.next(START) {
        assert_eq!(number, answered);
        answered += 1;
        fair.finished(&id(99), true);
    }
    assert_eq!(answered, 64);
}

#[test]
fn reduced_subscriptions_never_take_more_than_half() {
    let (pool, dead) = (16, 100);
    let mut fair = filled(pool, dead, 50);
    while fair.queues.iter().flatten().any(|queue| !queue.reduced) {
        let (subscription, _) = fair.next(START).unwrap();
        fair.finished(&id(subscription), false);
    }
    assert_eq!(run(&mut fair, dead).iter().sum::<usize>(), 8);
    offer(&mut fair, 200, 0).unwrap();
    assert_eq!(fair.next(START), Some((200, 0)));
    // A reduced subscription that answers again leaves the blocked ring.
    let recovered = (0..dead).find(|subscription| fair.in_flight_of(&id(*subscription)) == 1).unwrap();
    fair.finished(&id(recovered), true);
    assert!(!fair.find(&id(recovered)).unwrap().reduced);
    fair.reduced_next = false;
    assert_eq!(fair.next(START).unwrap().0, recovered);
}

#[test]
fn a_pool_of_one_still_serves_everybody() {
    let mut fair = filled(1, 3, 2);
    let mut order = Vec::new();
    while let Some((subscription, number)) = fair.next(START) {
        assert!(fair.next(START).is_none());
        order.push((subscription, number));
        fair.finished(&id(subscription), subscription != 1);
    }
    // 1 is reduced after its first item, and its ring takes turns with the ring of 0 and 2.
    assert_eq!(order, [(0, 0), (1, 0), (1, 1), (2, 0), (0, 1), (2, 1)]);
}

#[test]
fn a_full_queue_gives_the_item_back() {
    let mut fair = FairShare::new(4, 2, usize::MAX);
    assert_eq!(offer(&mut fair, 0, 0), Ok(()));
    assert_eq!(offer(&mut fair, 0, 1), Ok(()));
    assert_eq!(offer(&mut fair, 0, 2), Err((0, 2)));
    assert_eq!(offer(&mut fair, 1, 3), Ok(()));
    assert_eq!((fair.waiting(), fair.waiting_of(&id(0))), (3, 2));
}

#[test]
fn a_hold_affects_only_its_own_subscription_until_its_end() {
    let seconds = Duration::from_secs;
    let mut fair = filled(64, 2, 4);
    assert_eq!(fair.next(START), Some((0, 0)));
    assert!(fair.hold(&id(0), seconds(3), |_| false).is_empty());
    fair.finished(&id(0), false);
    assert_eq!(fair.held_for(&id(0), seconds(1)), Some(seconds(2)));
    assert_eq!(run(&mut fair, 2), [0, 4], "the other subscription continues");
    assert_eq!(fair.next_wake(seconds(1)), Some(seconds(2)));
    // An earlier end does not shorten it; a change of the rate limit does not lift it.
    fair.hold(&id(0), seconds(1), |_| false);
    let rate = Some(RateLimit { per_second: 10.0, burst: 2 });
    fair.offer(&id(0), 32, rate, (0, 9), seconds(1)).unwrap();
    assert_eq!(fair.next(seconds(2)), None);
    assert_eq!(fair.next(seconds(3)), Some((0, 1)));
    assert_eq!(fair.held_for(&id(0), seconds(3)), None);
}

#[test]
fn a_hold_is_kept_without_items_and_returns_the_requested_items() {
    let seconds = Duration::from_secs;
    let mut fair = FairShare::new(4, 10, usize::MAX);
    fair.hold(&id(0), seconds(5), |_| true);
    (0..4).for_each(|number| offer(&mut fair, 0, number).unwrap());
    assert_eq!(fair.next(seconds(4)), None);
    assert_eq!(fair.hold(&id(0), seconds(6), |(_, number)| number % 2 == 0), [(0, 0), (0, 2)]);
    assert_eq!((fair.waiting(), fair.waiting_of(&id(0))), (2, 2));
    assert_eq!(fair.next(seconds(5)), None);
    assert_eq!(fair.next(seconds(6)), Some((0, 1)));
    // After a drain nothing is held, and there is no next wake.
    fair.hold(&id(0), seconds(9), |_| false);
    assert_eq!(fair.drain(), [(0, 3)]);
    assert_eq!(fair.next_wake(seconds(6)), None);
    fair.finished(&id(0), true);
    assert_eq!(fair.next(seconds(10)), None);
}

#[test]
fn held_subscriptions_without_items_are_forgotten_beyond_the_bound() {
    let mut fair: FairShare<Item> = FairShare::new(4, 10, usize::MAX);
    for subscription in 0..MAX_REMEMBERED + 10 {
        fair.hold(&id(subscription), Duration::from_secs(5), |_| false);
    }
    assert_eq!(fair.limited.len(), MAX_REMEMBERED);
    assert_eq!(fair.next(Duration::from_secs(6)), None);
}

#[test]
fn a_rate_limit_affects_only_its_own_subscription() {
    let mut fair = FairShare::new(64, 100, usize::MAX);
    let rate = Some(RateLimit { per_second: 10.0, burst: 2 });
    for number in 0..4 {
        fair.offer(&id(0), 32, rate, (0, number), START).unwrap();
    }
    offer(&mut fair, 1, 0).unwrap();
    assert_eq!(fair.next_wake(START), None, "no subscription waits for its rate limit yet");
    assert_eq!(run(&mut fair, 2), [2, 1]);
    assert_eq!(fair.next_wake(START), Some(Duration::from_millis(100)));
    let then = Duration::from_millis(100);
    assert_eq!(fair.next(then), Some((0, 2)));
    assert_eq!((fair.next(then), fair.next_wake(then)), (None, Some(Duration::from_millis(100))));
    // The next offer removes the limit, and the waiting items run.
    fair.offer(&id(0), 32, None, (0, 4), then).unwrap();
    assert_eq!((fair.next(then), fair.next_wake(then)), (Some((0, 3)), None));
}

#[test]
fn a_rate_limit_is_not_forgotten_while_its_subscription_is_idle() {
    let mut fair = FairShare::new(64, 100, usize::MAX);
    let rate = Some(RateLimit { per_second: 1.0, burst: 1 });
    fair.offer(&id(0), 32, rate, (0, 0), START).unwrap();
    assert!(fair.next(START).is_some());
    fair.finished(&id(0), true);
    fair.offer(&id(0), 32, rate, (0, 1), START).unwrap();
    assert!(fair.next(START).is_none());
}

#[test]
fn draining_returns_all_waiting_items() {
    let mut fair = filled(4, 3, 5);
    let running: BTreeSet<Item> = (0..3).map(|_| fair.next(START).unwrap()).collect();
    let mut seen = 0;
    fair.for_each_waiting(|_| seen += 1);
    assert_eq!((seen, fair.waiting(), fair.in_flight()), (12, 12, 3));
    let drained: BTreeSet<Item> = fair.drain().into_iter().collect();
    assert_eq!(drained.union(&running).count(), 15);
    assert_eq!((fair.waiting(), fair.next(START), fair.in_flight()), (0, None, 3));
    running.iter().for_each(|(subscription, _)| fair.finished(&id(*subscription), true));
    assert_eq!((fair.in_flight(), fair.places.len()), (0, 0));
    offer(&mut fair, 0, 9).unwrap();
    assert_eq!(fair.next(START), Some((0, 9)));
}

#[test]
fn the_number_of_remembered_subscriptions_is_bounded() {
    let mut fair = FairShare::new(4, 4, usize::MAX);
    for subscription in 0..MAX_REMEMBERED + 500 {
        offer(&mut fair, subscription, 0).unwrap();
        assert!(fair.next(START).is_some());
        fair.finished(&id(subscription), false);
        offer(&mut fair, 1_000_000, 0).unwrap();
        assert!(fair.next(START).is_some());
        fair.finished(&id(1_000_000), true);
    }
    assert_eq!((fair.places.len(), fair.remembered.len()), (MAX_REMEMBERED, MAX_REMEMBERED));
    assert!(fair.queues.len() <= MAX_REMEMBERED + 2);
    // A remembered subscription still has its reduced share.
    let last = MAX_REMEMBERED + 499;
    offer(&mut fair, last, 1).unwrap();
    assert!(fair.find(&id(last)).unwrap().reduced);
}

/// One operation on the pool.
#[derive(Debug, Clone)]
enum Step {
    Offer { subscription: usize, max_in_flight: u32 },
    Next,
    Finish { which: usize, healthy: bool },
    Wait { millis: u64 },
    Drain,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..6usize, 1..12u32).prop_map(|(subscription, max_in_flight)| Step::Offer { subscription, max_in_flight }),
        6 => Just(Step::Next),
        5 => (any::<usize>(), any::<bool>()).prop_map(|(which, healthy)| Step::Finish { which, healthy }),
        2 => (0..300u64).prop_map(|millis| Step::Wait { millis }),
        1 => Just(Step::Drain),
    ]
}

/// Checks the invariants of the fields.
fn check(fair: &FairShare<Item>) {
    let queues: Vec<(Place, &Queue<Item>)> =
        fair.queues.iter().enumerate().filter_map(|(place, queue)| Some((place, queue.as_ref()?))).collect();
    assert_eq!(queues.len(), fair.places.len());
    assert_eq!(queues.iter().map(|(_, queue)| queue.items.len()).sum::<usize>(), fair.waiting);
    assert_eq!(queues.iter().map(|(_, queue)| queue.in_flight).sum::<usize>(), fair.in_flight);
    let reduced: usize =
        queues.iter().filter(|(_, queue)| queue.reduced).map(|(_, queue)| queue.in_flight).sum();
    assert_eq!(reduced, fair.reduced_in_flight);
    assert!(fair.in_flight <= fair.pool);
    let mut in_rings = 0;
    for (place, queue) in queues {
        assert_eq!(fair.places[&queue.id], place);
        assert!((1..=queue.most).contains(&queue.share) && queue.most <= fair.pool);
        let waits = queue.can_run() && queue.limited_until.is_none();
        assert_eq!(queue.turn.map(|(_, reduced)| reduced), waits.then_some(queue.reduced));
        if let Some((turn, reduced)) = queue.turn {
            in_rings += 1;
            assert_eq!(fair.tenants.at(queue.tenant, reduced, turn), Some(place));
        }
        let idle = queue.items.is_empty() && queue.in_flight == 0;
        assert_eq!(queue.remembered.is_some(), idle, "idle subscriptions are remembered or forgotten");
    }
    assert_eq!(fair.tenants.in_ring(false) + fair.tenants.in_ring(true), in_rings);
    assert_eq!(fair.tenants.waiting_of("acme"), fair.waiting);
}

proptest! {
    #[test]
    fn no_item_is_lost_or_doubled_and_no_bound_exceeded(
        pool in 1..12usize,
        bound in 1..6usize,
        limited in proptest::option::of((1.0..50.0f64, 1..4u32)),
        steps in proptest::collection::vec(step(), 1..300),
    ) {
        let mut fair = FairShare::new(pool, bound, usize::MAX);
        let mut now = START;
        let (mut offered, mut out) = (0, 0);
        let mut running: Vec<Item> = Vec::new();
        // By subscription, in order.
        let mut expected: HashMap<usize, VecDeque<u64>> = HashMap::new();
        for step in steps {
            match step {
                Step::Offer { subscription, max_in_flight } => {
                    // Every second subscription has a rate limit.
                    let rate = limited.filter(|_| subscription % 2 == 0);
                    let rate = rate.map(|(per_second, burst)| RateLimit { per_second, burst });
                    let item = (subscription, offered);
                    let queue = expected.entry(subscription).or_default();
                    match fair.offer(&id(subscription), max_in_flight, rate, item, now) {
                        Ok(()) => { queue.push_back(offered); offered += 1; }
                        Err(back) => prop_assert!(back == item && queue.len() == bound),
                    }
                }
                Step::Next => {
                    let shares: HashMap<Identity, (usize, bool)> = fair.queues.iter().flatten()
                        .map(|queue| (queue.id.clone(), (queue.share, queue.reduced))).collect();
                    match fair.next(now) {
                        Some((subscription, number)) => {
                            // First in, first out in each subscription; at most its share; and at most half of the
                            // pool for reduced subscriptions.
                            prop_assert_eq!(expected.get_mut(&subscription).unwrap().pop_front(), Some(number));
                            let (share, reduced) = shares[&id(subscription)];
                            prop_assert!(fair.in_flight_of(&id(subscription)) <= share);
                            prop_assert!(!reduced || fair.reduced_in_flight <= (pool / 2).max(1));
                            running.push((subscription, number));
                            out += 1;
                        }
                        None => {
                            // No item that could run is held back.
                            let could = fair.queues.iter().flatten().any(|queue| {
                                queue.can_run() && queue.limited_until.is_none() && !queue.reduced
                            });
                            prop_assert!(fair.in_flight == pool || !could);
                            if let Some(wait) = fair.next_wake(now) {
                                prop_assert!(wait > Duration::ZERO);
                            }
                        }
                    }
                }
                Step::Finish { which, healthy } if !running.is_empty() => {
                    let (subscription, _) = running.swap_remove(which % running.len());
                    fair.finished(&id(subscription), healthy);
                }
                Step::Finish { which, healthy } => fair.finished(&id(which % 6), healthy),
                Step::Wait { millis } => now += Duration::from_millis(millis),
                Step::Drain => {
                    let drained = fair.drain();
                    out += drained.len() as u64;
                    for (subscription, number) in drained {
                        let queue = expected.get_mut(&subscription).unwrap();
                        prop_assert_eq!(queue.pop_front(), Some(number));
                    }
                    prop_assert!(expected.values().all(VecDeque::is_empty));
                }
            }
            check(&fair);
            prop_assert_eq!(fair.in_flight(), running.len());
            prop_assert_eq!(offered, out + fair.waiting() as u64);
        }
        // In the end all items come out.
        loop {
            running.drain(..).for_each(|(subscription, _)| fair.finished(&id(subscription), true));
            match fair.next(now) {
                Some(item) => { running.push(item); out += 1; }
                None if fair.waiting() == 0 => break,
                None => now += fair.next_wake(now).expect("only a rate limit holds items back"),
            }
        }
        prop_assert_eq!(offered, out);
    }

    #[test]
    fn a_new_healthy_subscription_is_served_within_one_round(
        pool in 2..32usize,
        busy in 1..40usize,
        unhealthy in proptest::collection::vec(any::<bool>(), 40),
    ) {
        let mut fair = filled(pool, busy, 60);
        // All subscriptions run for a while. Some are unhealthy and keep their slots.
        let mut held = 0;
        for _ in 0..busy * 3 {
            let Some((subscription, _)) = fair.next(START) else { break };
            let bad = unhealthy[subscription];
            if bad && fair.find(&id(subscription)).unwrap().reduced {
                held += 1;
            } else {
                fair.finished(&id(subscription), !bad);
            }
        }
        prop_assert!(held <= (pool / 2).max(1));
        offer(&mut fair, 999, 0).unwrap();
        let ahead = fair.tenants.in_ring(false);
        // One slot at a time becomes free; reduced subscriptions keep every slot that they get.
        let mut turns = 0;
        loop {
            match fair.next(START) {
                Some((999, _)) => break,
                Some((subscription, _)) => {
                    if !fair.find(&id(subscription)).unwrap().reduced {
                        fair.finished(&id(subscription), true);
                    }
                }
                None => prop_assert!(false, "a slot is free and the newcomer waits"),
            }
            turns += 1;
            prop_assert!(turns <= 2 * ahead, "{turns} turns with {ahead} in the ring");
        }
    }
}

fn of_tenant(tenant: &str, subscription: usize) -> Identity {
    let subscription = SubscriptionRef::of(tenant, &format!("s{subscription}")).unwrap();
    Identity { subscription, incarnation: Incarnation::new(1) }
}

#[test]
fn a_tenant_with_many_subscriptions_gets_no_larger_part() {
    let mut fair = FairShare::new(64, 1_000, 100_000);
    let mut put = |tenant: &str, subscription: usize, number: u64| {
        let identity = of_tenant(tenant, subscription);
        fair.offer(&identity, 10_000, None, (identity.clone(), number), START).unwrap();
    };
    (0..180).for_each(|subscription| (0..10).for_each(|number| put("acme", subscription, number)));
    put("globex", 0, 0);
    // The tenant with the fewest items in flight is next, and a tenant cannot fill the pool.
    let mut running: Vec<(Identity, u64)> = Vec::new();
    while let Some(item) = fair.next(START) {
        running.push(item);
    }
    let of = |running: &[(Identity, u64)], tenant: &str| {
        running.iter().filter(|(identity, _)| identity.subscription.tenant() == tenant).count()
    };
    assert_eq!((of(&running, "acme"), of(&running, "globex")), (60, 1));
    assert!(running[..3].iter().any(|(identity, _)| identity.subscription.tenant() == "globex"));
    // The reserved slots are available at once.
    for number in 1..40 {
        let identity = of_tenant("globex", 0);
        fair.offer(&identity, 10_000, None, (identity.clone(), number), START).unwrap();
    }
    while let Some(item) = fair.next(START) {
        running.push(item);
    }
    assert_eq!(of(&running, "globex"), 4);
    // Each free slot goes to globex, until both have the same number.
    for _ in 0..200 {
        let at = running.iter().position(|(identity, _)| identity.subscription.tenant() == "acme").unwrap();
        let (identity, _) = running.remove(at);
        fair.finished(&identity, true);
        running.extend(fair.next(START));
        if of(&running, "globex") >= 32 {
            break;
        }
        let grown: Vec<Identity> = running
            .iter()
            .filter(|(identity, _)| identity.subscription.tenant() == "globex")
            .map(|(identity, _)| identity.clone())
            .collect();
        // Its share grows with each healthy finish.
        for identity in grown {
            fair.finished(&identity, true);
        }
        running.retain(|(identity, _)| identity.subscription.tenant() != "globex");
        while let Some(item) = fair.next(START) {
            running.push(item);
        }
    }
    assert_eq!(fair.tenants.waiting_of("globex"), 0, "all its items ran long before acme's");
    assert!(fair.tenants.waiting_of("acme") > 1_000);
}

#[test]
fn the_waiting_items_of_a_tenant_are_bounded_if_there_are_several() {
    let mut fair = FairShare::new(4, 100, 10);
    let put = |fair: &mut FairShare<Item>, tenant: &str, number: u64| {
        fair.offer(&of_tenant(tenant, number as usize), 1, None, (0, number), START)
    };
    // A single tenant has no limit.
    (0..20).for_each(|number| put(&mut fair, "acme", number).unwrap());
    put(&mut fair, "globex", 0).unwrap();
    assert_eq!(put(&mut fair, "acme", 20), Err((0, 20)));
    put(&mut fair, "globex", 1).unwrap();
    fair.drain();
    assert_eq!(fair.tenants.waiting_of("acme"), 0);
    put(&mut fair, "acme", 20).unwrap();
}
