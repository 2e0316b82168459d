//! No item is lost, no share is exceeded, and no subscription starves.

mod memory;
mod parking;
mod properties;
mod sharing;
mod stopped;
mod tenants;

use std::collections::BTreeSet;

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

fn empty<T>(slots: usize, queue_per_subscription: usize, queue_per_tenant: usize) -> FairShare<T> {
    FairShare::new(PoolLimits { slots, queue_per_subscription, queue_per_tenant, memory: 1_000_000 })
}

/// Ends an item at once.
fn finish(fair: &mut FairShare<Item>, subscription: usize, healthy: bool) {
    let finish = if healthy { Finish::Healthy } else { Finish::Unhealthy };
    fair.finished(&id(subscription), finish, START, START);
}

/// Lets each subscription prove itself with a few items.
fn prove(fair: &mut FairShare<Item>, subscriptions: impl IntoIterator<Item = usize>) {
    for subscription in subscriptions {
        while fair.find(&id(subscription)).is_none_or(|queue| queue.on_probation) {
            offer(fair, subscription, u64::MAX).unwrap();
            while let Some((ran, _)) = fair.next(START) {
                finish(fair, ran, true);
            }
        }
    }
}

fn filled(slots: usize, subscriptions: usize, each: u64) -> FairShare<Item> {
    let mut fair = empty(slots, 10_000, usize::MAX);
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
        fair.hold(&id(subscription), Duration::from_secs(60), Duration::from_secs(50));
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
    assert_eq!(run(&mut fair, 1), [1]);
    for expected in [2, 4, 8, 16, 32, 32] {
        (0..fair.in_flight()).for_each(|_| finish(&mut fair, 0, true));
        assert_eq!(run(&mut fair, 1), [expected]);
    }
}

#[test]
fn endpoints_that_never_answer_hold_a_slot_each_and_never_all() {
    let (slots, dead) = (64, 100);
    let mut fair = empty(slots, 10_000, usize::MAX);
    prove(&mut fair, [200]);
    for number in 0..1000 {
        (0..dead).for_each(|subscription| offer(&mut fair, subscription, number).unwrap());
    }
    // What the others do not use.
    assert_eq!(run(&mut fair, dead).iter().sum::<usize>(), 48);
    for _ in 0..3 {
        let running = run(&mut fair, dead);
        assert!(running.iter().all(|in_flight| *in_flight <= 1));
        for (subscription, in_flight) in running.iter().enumerate() {
            (0..*in_flight).for_each(|_| finish(&mut fair, subscription, false));
        }
    }
    assert_eq!(run(&mut fair, dead).iter().sum::<usize>(), 48);
    // The other slots are free for a subscription that works.
    (0..64).for_each(|number| fair.offer(&id(200), 64, None, (200, number), START).unwrap());
    let mut answered = 0;
    while let Some((200, number)) = fair.next(START) {
        assert_eq!(number, answered);
        answered += 1;
        finish(&mut fair, 200, true);
    }
    assert_eq!(answered, 64);
}

#[test]
fn a_hanging_subscription_counts_before_its_attempts_end() {
    let mut fair = empty(64, 10_000, usize::MAX);
    prove(&mut fair, [0, 1]);
    // The share of 0 is the whole pool, which it does not get.
    for number in 0..300 {
        fair.offer(&id(0), 64, None, (0, number), START).unwrap();
        if let Some((0, _)) = fair.next(START) {
            finish(&mut fair, 0, true);
        }
    }
    (0..300).for_each(|number| fair.offer(&id(0), 64, None, (0, number), START).unwrap());
    assert_eq!(run(&mut fair, 1), [48], "a quarter is reserved for those with nothing in flight");
    // It hangs: after a second it is on probation, and half of the slots are free for others.
    let later = queue::SLOW;
    fair.offer(&id(1), 1, None, (1, 0), later).unwrap();
    let started: Vec<Item> = std::iter::from_fn(|| fair.next(later)).collect();
    assert!(started.contains(&(1, 0)));
    assert_eq!((fair.in_flight_of(&id(0)), fair.slots.in_flight()), (56, 25));
    assert!(fair.find(&id(0)).unwrap().on_probation);
    assert!(!fair.find(&id(0)).unwrap().flows(later));
    fair.finished(&id(1), Finish::Healthy, later, later);
    // Quick answers end the probation when none of the slow ones is left.
    (0..48).for_each(|_| fair.finished(&id(0), Finish::Healthy, START, later));
    assert!(fair.find(&id(0)).unwrap().on_probation);
    assert_eq!(fair.next(later).map(|(subscription, _)| subscription), Some(0));
    fair.finished(&id(0), Finish::Healthy, later, later);
    assert!(!fair.find(&id(0)).unwrap().on_probation);
}

#[test]
fn a_new_subscription_comes_before_those_that_fail() {
    let (slots, dead) = (16, 100);
    let mut fair = filled(slots, dead, 50);
    while fair.queues.iter().flatten().any(|queue| queue.is_new) {
        let (subscription, _) = fair.next(START).unwrap();
        finish(&mut fair, subscription, false);
    }
    assert_eq!(run(&mut fair, dead).iter().sum::<usize>(), 12);
    offer(&mut fair, 200, 0).unwrap();
    assert_eq!(fair.next(START), None);
    let failing = (0..dead).find(|subscription| fair.in_flight_of(&id(*subscription)) == 1).unwrap();
    finish(&mut fair, failing, false);
    assert_eq!(fair.next(START), Some((200, 0)));
    // A subscription that answers again is not on probation.
    let recovered = (0..dead).find(|subscription| fair.in_flight_of(&id(*subscription)) == 1).unwrap();
    finish(&mut fair, recovered, true);
    assert!(!fair.find(&id(recovered)).unwrap().on_probation);
    assert_eq!(fair.next(START).unwrap().0, recovered);
}

#[test]
fn slow_subscriptions_alone_use_most_of_the_pool() {
    let mut fair = filled(64, 8, 1000);
    let mut now = START;
    // Each answers after two seconds.
    for _ in 0..12 {
        let started = now;
        let mut running = Vec::new();
        while let Some((subscription, _)) = fair.next(now) {
            running.push(subscription);
        }
        now += Duration::from_secs(2);
        running.iter().for_each(|of| fair.finished(&id(*of), Finish::Healthy, started, now));
    }
    while fair.next(now).is_some() {}
    assert_eq!(fair.in_flight(), 40, "the rest is for others");
}

#[test]
fn an_untried_item_changes_nothing() {
    let mut fair = filled(8, 1, 3);
    assert!(fair.next(START).is_some());
    fair.finished(&id(0), Finish::Untried, START, START);
    let queue = fair.find(&id(0)).unwrap();
    assert_eq!((queue.share, queue.is_new, queue.on_probation), (1, true, true));
}

#[test]
fn stuck_subscriptions_leave_memory_for_the_others() {
    for stuck in [1, 4, 20, 100] {
        let limits =
            PoolLimits { slots: 64, queue_per_subscription: 1024, queue_per_tenant: 4096, memory: 4096 };
        let mut fair = FairShare::new(limits);
        for subscription in 0..stuck {
            offer(&mut fair, subscription, 0).unwrap();
            while fair.next(START).is_some() {}
            finish(&mut fair, subscription, false);
        }
        prove(&mut fair, [200]);
        // Each gets far more than it can send.
        for number in 0..4096 {
            for subscription in 0..stuck {
                let _ = offer(&mut fair, subscription, number);
            }
        }
        let taken = (0..64).take_while(|number| offer(&mut fair, 200, *number).is_ok()).count();
        assert!(
            taken == 64 && fair.waiting() < 4096,
            "{taken} of 64 beside {stuck}, {} wait",
            fair.waiting()
        );
    }
}

#[test]
fn a_pool_of_one_still_serves_everybody() {
    let mut fair = filled(1, 3, 3);
    let mut order = Vec::new();
    while let Some((subscription, _)) = fair.next(START) {
        assert!(fair.next(START).is_none());
        order.push(subscription);
        finish(&mut fair, subscription, subscription != 1);
    }
    // Those on probation take turns with the others.
    assert_eq!(order, [0, 0, 1, 0, 2, 2, 1, 2, 1]);
}

#[test]
fn a_full_queue_gives_the_item_back() {
    let mut fair = empty(4, 2, usize::MAX);
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
    assert!(fair.hold(&id(0), seconds(3), START).is_empty());
    finish(&mut fair, 0, false);
    assert_eq!(fair.held_for(&id(0), seconds(1)), Some(seconds(2)));
    assert_eq!(run(&mut fair, 2), [0, 1], "the other subscription continues");
    assert_eq!(fair.next_wake(seconds(1)), Some(seconds(2)));
    // An earlier end does not shorten it; a change of the rate limit does not lift it.
    fair.hold(&id(0), seconds(1), START);
    let rate = Some(RateLimit { per_second: 10.0, burst: 2 });
    fair.offer(&id(0), 32, rate, (0, 9), seconds(1)).unwrap();
    finish(&mut fair, 1, true);
    assert_eq!(run(&mut fair, 2), [0, 2]);
    (0..2).for_each(|_| finish(&mut fair, 1, true));
    assert_eq!(run(&mut fair, 2), [0, 1], "its last item");
    assert_eq!(fair.next(seconds(2)), None);
    assert_eq!(fair.next(seconds(3)), Some((0, 1)));
    assert_eq!(fair.held_for(&id(0), seconds(3)), None);
}

#[test]
fn a_hold_is_kept_without_items_and_a_long_one_returns_those_in_memory() {
    let seconds = Duration::from_secs;
    let mut fair = empty(4, 10, usize::MAX);
    assert!(fair.hold(&id(0), seconds(5), START).is_empty());
    (0..3).for_each(|number| offer(&mut fair, 0, number).unwrap());
    fair.offer_beyond(&id(0), 32, None, (0, 3), START);
    assert_eq!(fair.next(seconds(4)), None);
    assert!(fair.hold(&id(0), seconds(6), START).is_empty(), "it is short");
    assert_eq!(fair.hold(&id(0), seconds(11), START), [(0, 0), (0, 1), (0, 2)]);
    assert_eq!((fair.waiting(), fair.waiting_of(&id(0)), fair.in_memory), (1, 1, 0));
    assert_eq!(offer(&mut fair, 0, 4), Err((0, 4)), "it is held for long");
    assert_eq!(fair.offer(&id(0), 32, None, (0, 5), seconds(2)), Ok(()));
    assert_eq!(fair.next(seconds(10)), None);
    // Those of the shared lane come before those of the own lane.
    assert_eq!(fair.next(seconds(11)), Some((0, 5)));
    // After a drain nothing is held, and there is no next wake.
    fair.hold(&id(0), seconds(20), seconds(11));
    assert_eq!(fair.drain(), [(0, 3)]);
    assert_eq!(fair.next_wake(seconds(12)), None);
    finish(&mut fair, 0, true);
    assert_eq!(fair.next(seconds(21)), None);
}

#[test]
fn held_subscriptions_without_items_are_forgotten_beyond_the_bound() {
    let mut fair: FairShare<Item> = empty(4, 10, usize::MAX);
    for subscription in 0..MAX_REMEMBERED + 10 {
        fair.hold(&id(subscription), Duration::from_secs(5), START);
    }
    assert_eq!(fair.limited.len(), MAX_REMEMBERED);
    assert_eq!(fair.next(Duration::from_secs(6)), None);
}

#[test]
fn a_rate_limit_affects_only_its_own_subscription() {
    let mut fair = empty(64, 100, usize::MAX);
    prove(&mut fair, [0, 1]);
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
    let mut fair = empty(64, 100, usize::MAX);
    let rate = Some(RateLimit { per_second: 1.0, burst: 1 });
    fair.offer(&id(0), 32, rate, (0, 0), START).unwrap();
    assert!(fair.next(START).is_some());
    finish(&mut fair, 0, true);
    fair.offer(&id(0), 32, rate, (0, 1), START).unwrap();
    assert!(fair.next(START).is_none());
}

#[test]
fn draining_returns_all_waiting_items() {
    let mut fair = filled(12, 3, 5);
    let running: BTreeSet<Item> = (0..3).map(|_| fair.next(START).unwrap()).collect();
    let mut seen = 0;
    fair.for_each_waiting(|_| seen += 1);
    assert_eq!((seen, fair.waiting(), fair.in_flight()), (12, 12, 3));
    let drained: BTreeSet<Item> = fair.drain().into_iter().collect();
    assert_eq!(drained.union(&running).count(), 15);
    assert_eq!((fair.waiting(), fair.next(START), fair.in_flight()), (0, None, 3));
    running.iter().for_each(|(subscription, _)| finish(&mut fair, *subscription, true));
    assert_eq!((fair.in_flight(), fair.places.len(), fair.remembered.len()), (0, 3, 3));
    offer(&mut fair, 0, 9).unwrap();
    assert_eq!(fair.next(START), Some((0, 9)));
}

#[test]
fn the_number_of_remembered_subscriptions_is_bounded() {
    let mut fair = empty(4, 4, usize::MAX);
    for subscription in 0..MAX_REMEMBERED + 500 {
        offer(&mut fair, subscription, 0).unwrap();
        assert!(fair.next(START).is_some());
        finish(&mut fair, subscription, false);
        offer(&mut fair, 1_000_000, 0).unwrap();
        assert!(fair.next(START).is_some());
        finish(&mut fair, 1_000_000, true);
    }
    assert_eq!((fair.places.len(), fair.remembered.len()), (MAX_REMEMBERED, MAX_REMEMBERED));
    assert!(fair.queues.len() <= MAX_REMEMBERED + 2);
    // A remembered subscription is not new.
    let last = MAX_REMEMBERED + 499;
    offer(&mut fair, last, 1).unwrap();
    assert!(!fair.find(&id(last)).unwrap().is_new);
}
