//! Random operations.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// One operation on the pool.
#[derive(Debug, Clone)]
enum Step {
    Offer { subscription: usize, max_in_flight: u32 },
    Next,
    Finish { which: usize, healthy: bool },
    Wait { millis: u64 },
    Withdraw { subscription: usize },
    Drain,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..6usize, 1..12u32).prop_map(|(subscription, max_in_flight)| Step::Offer { subscription, max_in_flight }),
        6 => Just(Step::Next),
        5 => (any::<usize>(), any::<bool>()).prop_map(|(which, healthy)| Step::Finish { which, healthy }),
        2 => (0..300u64).prop_map(|millis| Step::Wait { millis }),
        1 => (0..6usize).prop_map(|subscription| Step::Withdraw { subscription }),
        1 => Just(Step::Drain),
    ]
}

/// Checks the invariants of the fields.
fn check(fair: &FairShare<Item>) {
    let queues: Vec<(QueuePlace, &Queue<Item>)> =
        fair.queues.iter().enumerate().filter_map(|(place, queue)| Some((place, queue.as_ref()?))).collect();
    assert_eq!(queues.len(), fair.places.len());
    assert_eq!(queues.iter().map(|(_, queue)| queue.items.len()).sum::<usize>(), fair.waiting);
    assert_eq!(queues.iter().map(|(_, queue)| queue.in_flight).sum::<usize>(), fair.in_flight());
    let on_probation: usize =
        queues.iter().filter(|(_, queue)| queue.on_probation).map(|(_, queue)| queue.in_slots()).sum();
    assert_eq!(on_probation, fair.slots.on_probation());
    assert!(fair.slots.in_flight() <= fair.slots.pool());
    let parked: usize = queues.iter().map(|(_, queue)| queue.parked).sum();
    assert_eq!(parked, fair.parking.parked());
    assert!(parked <= 4 * fair.slots.pool());
    for (_, queue) in &queues {
        assert_eq!(queue.running.values().map(|running| running.items).sum::<usize>(), queue.in_flight);
        assert_eq!(queue.running.values().map(|running| running.parked).sum::<usize>(), queue.parked);
    }
    assert_eq!(queues.iter().filter(|(_, queue)| !queue.is_new).count(), fair.known);
    let (mut in_rings, mut in_memory) = (0, 0);
    for (place, queue) in queues {
        assert_eq!(fair.places[&queue.id], place);
        assert!((1..=queue.most).contains(&queue.share) && queue.most <= fair.slots.pool());
        assert_eq!(queue.turn.map(|(_, ring)| ring), queue.ring());
        if let Some((turn, ring)) = queue.turn {
            in_rings += 1;
            assert_eq!(fair.tenants.at(queue.tenant, ring, turn), Some(place));
        }
        let idle = queue.items.is_empty() && queue.in_flight == 0;
        assert_eq!(queue.remembered.is_some(), idle, "idle subscriptions are remembered or forgotten");
        let weight: usize = queue.items.iter().map(|(_, weight)| *weight as usize).sum();
        assert_eq!(weight, queue.weight);
        in_memory += weight;
    }
    let rings = Ring::STEADY.into_iter().chain(Ring::ON_PROBATION);
    assert_eq!(rings.map(|ring| fair.tenants.in_ring(ring)).sum::<usize>(), in_rings);
    assert_eq!(in_memory, fair.in_memory);
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
        let mut fair = empty(pool, bound, usize::MAX);
        let mut now = START;
        let (mut offered, mut out) = (0, 0);
        let mut running: Vec<(Item, Duration)> = Vec::new();
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
                    let shares: HashMap<Identity, usize> =
                        fair.queues.iter().flatten().map(|queue| (queue.id.clone(), queue.share)).collect();
                    match fair.next(now) {
                        Some((subscription, number)) => {
                            // First in, first out in each subscription; at most its share; and some slots are kept
                            // from subscriptions on probation.
                            prop_assert_eq!(expected.get_mut(&subscription).unwrap().pop_front(), Some(number));
                            prop_assert!(fair.in_flight_of(&id(subscription)) <= shares[&id(subscription)]);
                            let queue = fair.find(&id(subscription)).unwrap();
                            prop_assert!(!queue.on_probation || fair.slots.in_flight() <= pool - pool / 4);
                            running.push(((subscription, number), now));
                            out += 1;
                        }
                        None => {
                            // No item that could run is held back.
                            let could = fair.queues.iter().flatten().any(|queue| queue.ring() == Some(Ring::First));
                            prop_assert!(fair.slots.in_flight() == pool || !could);
                            let any = fair.queues.iter().flatten().any(|queue| queue.ring().is_some());
                            prop_assert!(fair.slots.in_flight() > 0 || !any);
                            if let Some(wait) = fair.next_wake(now) {
                                prop_assert!(wait > Duration::ZERO);
                            }
                        }
                    }
                }
                Step::Finish { which, healthy } if !running.is_empty() => {
                    let ((subscription, _), started) = running.swap_remove(which % running.len());
                    let finish = if healthy { Finish::Healthy } else { Finish::Unhealthy };
                    fair.finished(&id(subscription), finish, started, now);
                }
                Step::Finish { which, healthy } => finish(&mut fair, which % 6, healthy),
                Step::Wait { millis } => now += Duration::from_millis(millis),
                Step::Withdraw { subscription } => {
                    let withdrawn: Vec<u64> =
                        fair.withdraw(&id(subscription)).into_iter().map(|(_, number)| number).collect();
                    let queue = expected.remove(&subscription).unwrap_or_default();
                    prop_assert_eq!(&withdrawn, &Vec::from(queue));
                    out += withdrawn.len() as u64;
                }
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
            for ((subscription, _), started) in running.drain(..) {
                fair.finished(&id(subscription), Finish::Healthy, started, now);
            }
            match fair.next(now) {
                Some(item) => { running.push((item, now)); out += 1; }
                None if fair.waiting() == 0 => break,
                None => now += fair.next_wake(now).expect("only a rate limit holds items back"),
            }
        }
        prop_assert_eq!(offered, out);
    }

    #[test]
    fn a_subscription_that_works_is_served_at_once_whatever_the_others_do(
        slots in 4..64usize,
        busy in 1..40usize,
        hangs in proptest::collection::vec(any::<bool>(), 40),
    ) {
        let mut fair = filled(slots, busy, 60);
        prove(&mut fair, [999]);
        // All subscriptions run for a while. Some hang and keep their slots.
        let mut running = VecDeque::new();
        for _ in 0..busy * 30 {
            match fair.next(START) {
                Some((subscription, _)) if hangs[subscription] => {}
                Some((subscription, _)) => running.push_back(subscription),
                None => match running.pop_front() {
                    Some(subscription) => finish(&mut fair, subscription, true),
                    None => break,
                },
            }
        }
        running.drain(..).for_each(|subscription| finish(&mut fair, subscription, true));
        offer(&mut fair, 999, 0).unwrap();
        let first = (0..=fair.tenants.in_ring(Ring::First)).find(|_| {
            let next = fair.next(START).expect("a slot is free");
            if next.0 < 999 && !hangs[next.0] {
                finish(&mut fair, next.0, true);
            }
            next.0 == 999
        });
        prop_assert!(first.is_some());
    }
}
