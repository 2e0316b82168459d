//! Slow attempts leave the slots.

use super::*;

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn start_all(fair: &mut FairShare<Item>, now: Duration) -> usize {
    std::iter::from_fn(|| fair.next(now)).count()
}

fn id_of(tenant: &str, subscription: usize) -> Identity {
    let subscription = SubscriptionRef::of(tenant, &format!("s{subscription}")).unwrap();
    Identity { subscription, incarnation: Incarnation::new(1) }
}

#[test]
fn however_many_new_endpoints_hang_a_new_one_starts_within_seconds() {
    let mut fair = empty(64, 10_000, usize::MAX);
    (0..200).for_each(|subscription| offer(&mut fair, subscription, 0).unwrap());
    offer(&mut fair, 999, 0).unwrap();
    let mut now = START;
    let mut seen = Vec::new();
    loop {
        seen.extend(std::iter::from_fn(|| fair.next(now)).map(|(subscription, _)| subscription));
        if fair.waiting() == 0 {
            break;
        }
        let wait = fair.next_wake(now).expect("slots become free without a finish");
        assert!(wait > Duration::ZERO);
        now += wait;
    }
    assert!(now <= at(1_500), "{now:?}");
    assert_eq!((seen.len(), seen.last()), (201, Some(&999)));
}

#[test]
fn an_attempt_leaves_its_slot_early_only_while_new_ones_wait() {
    let mut fair = empty(16, 10_000, usize::MAX);
    // 12 slots for subscriptions on probation.
    (0..12).for_each(|subscription| offer(&mut fair, subscription, 0).unwrap());
    assert_eq!(start_all(&mut fair, START), 12);
    assert_eq!(start_all(&mut fair, at(900)), 0);
    assert_eq!(fair.parking.parked(), 0, "nobody waits");
    offer(&mut fair, 12, 0).unwrap();
    assert_eq!(start_all(&mut fair, at(900)), 1);
    assert_eq!(fair.parking.parked(), 12);
}

#[test]
fn a_subscription_that_works_keeps_its_slots_while_new_ones_wait() {
    let mut fair = empty(16, 10_000, usize::MAX);
    prove(&mut fair, [0]);
    let now = at(10_000);
    (0..4).for_each(|number| offer(&mut fair, 0, number).unwrap());
    let of_proven = std::iter::from_fn(|| fair.next(now)).count();
    (1..40).for_each(|subscription| offer(&mut fair, subscription, 0).unwrap());
    start_all(&mut fair, now);
    start_all(&mut fair, now + at(500));
    assert!(of_proven > 0 && fair.parking.parked() > 0);
    assert_eq!(fair.find(&id(0)).map(|queue| queue.parked), Some(0));
    start_all(&mut fair, now + at(1_000));
    assert_eq!(fair.find(&id(0)).map(|queue| queue.parked), Some(of_proven), "it is slow now");
}

#[test]
fn the_room_is_bounded_and_an_attempt_without_room_keeps_its_slot() {
    let mut fair = empty(8, 10_000, usize::MAX);
    (0..100).for_each(|subscription| offer(&mut fair, subscription, 0).unwrap());
    let mut running = 0;
    for second in 0..20 {
        running += start_all(&mut fair, at(second * 1000));
    }
    // 6 slots for subscriptions on probation, and the room of 32.
    assert_eq!((running, fair.in_flight(), fair.slots.in_flight()), (38, 38, 6));
    assert_eq!(fair.parking.wait(false, at(20_000)), None, "it does not wake for nothing");
    // An attempt that ends leaves room for another one.
    fair.finished(&id(0), Finish::Unhealthy, START, at(20_000));
    assert_eq!(start_all(&mut fair, at(20_000)), 1);
}

#[test]
fn one_subscription_uses_an_eighth_of_the_room() {
    let mut fair = empty(64, 10_000, usize::MAX);
    prove(&mut fair, [0]);
    let mut running = 0;
    for number in 0..200 {
        fair.offer(&id(0), 64, None, (0, number), START).unwrap();
        if fair.next(START).is_some() {
            running += 1;
            if number < 100 {
                finish(&mut fair, 0, true);
                running -= 1;
            }
        }
    }
    assert!(running > 32, "{running}");
    offer(&mut fair, 1, 0).unwrap();
    assert_eq!(fair.next(at(1_000)), Some((1, 0)));
    assert_eq!(fair.parking.parked(), 32);
}

#[test]
fn one_tenant_leaves_half_of_the_room_to_the_others() {
    let mut fair = empty(16, 10_000, usize::MAX);
    for number in 0..100 {
        fair.offer(&id_of("hostile", number), 1, None, (number, 0), START).unwrap();
        fair.offer(&id_of("other", number), 1, None, (number, 1), START).unwrap();
    }
    let mut by_tenant = [0_usize; 2];
    for second in 0..30 {
        let now = at(second * 1000);
        while let Some((number, tenant)) = fair.next(now) {
            by_tenant[tenant as usize] += 1;
            if tenant == 1 {
                fair.finished(&id_of("other", number), Finish::Healthy, now, now);
            }
        }
    }
    assert_eq!(by_tenant[1], 100);
    assert!((32..=32 + 16).contains(&by_tenant[0]), "{by_tenant:?}");
    assert_eq!(fair.parking.parked(), 32);
}

#[test]
fn a_parked_attempt_counts_for_the_share_of_its_subscription() {
    let mut fair = empty(16, 10_000, usize::MAX);
    offer(&mut fair, 0, 0).unwrap();
    offer(&mut fair, 0, 1).unwrap();
    assert_eq!(start_all(&mut fair, START), 1);
    assert_eq!(start_all(&mut fair, at(2_000)), 0);
    assert_eq!((fair.parking.parked(), fair.slots.in_flight()), (1, 0));
    fair.finished(&id(0), Finish::Healthy, START, at(2_500));
    assert_eq!((fair.parking.parked(), fair.in_flight()), (0, 0));
    assert_eq!(start_all(&mut fair, at(2_500)), 1);
}
