//! Two pools that share the limits of subscriptions.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::allotment::{MemberId, SharedAllotments, Wake};

/// Two pools, and how often each was woken.
fn two_pools() -> ([FairShare<Item>; 2], Arc<[AtomicUsize; 2]>) {
    let woken = Arc::new([const { AtomicUsize::new(0) }; 2]);
    let wakes = (0..2).map(|pool| {
        let woken = Arc::clone(&woken);
        Box::new(move || {
            woken[pool].fetch_add(1, Ordering::Relaxed);
        }) as Wake
    });
    let shared = SharedAllotments::new(MemberId::new(1), wakes.collect());
    let limits =
        PoolLimits { slots: 64, queue_per_subscription: 100, queue_per_tenant: usize::MAX, memory: 10_000 };
    ([0, 1].map(|pool| FairShare::sharing(limits, shared.sharer(pool))), woken)
}

#[test]
fn a_slot_goes_to_the_pool_that_waits() {
    let (mut pools, woken) = two_pools();
    let at = Duration::from_millis;
    for pool in &mut pools {
        (0..3).for_each(|number| pool.offer(&id(0), 1, None, (0, number), START).unwrap());
    }
    let [first, second] = &mut pools;
    assert_eq!((first.next(at(0)), second.next(at(0))), (Some((0, 0)), None));
    // The other pool is next, although this one asks before.
    first.finished(&id(0), Finish::Healthy, at(0), at(10));
    assert_eq!(woken[1].load(Ordering::Relaxed), 1);
    assert_eq!(first.next(at(10)), None);
    assert!(first.next_wake(at(10)).unwrap() <= at(20));
    second.wake();
    assert_eq!(second.next(at(10)), Some((0, 0)));
    // If it does not come, the slot is not lost.
    second.finished(&id(0), Finish::Healthy, at(10), at(20));
    assert_eq!(second.next(at(20)), None, "it is the turn of the first pool");
    assert_eq!(second.next(at(41)), Some((0, 1)));
}

#[test]
fn pools_share_the_tokens_of_a_rate_limit() {
    let (mut pools, _) = two_pools();
    let rate = Some(RateLimit { per_second: 10.0, burst: 2 });
    for pool in &mut pools {
        (0..50).for_each(|number| pool.offer(&id(0), 32, rate, (0, number), START).unwrap());
    }
    let mut started = [0, 0];
    for millis in 0..3000 {
        let now = Duration::from_millis(millis);
        for (pool, started) in pools.iter_mut().zip(&mut started) {
            pool.wake();
            while pool.next(now).is_some() {
                *started += 1;
                pool.finished(&id(0), Finish::Healthy, now, now);
            }
        }
    }
    assert!((28..=32).contains(&(started[0] + started[1])), "{started:?}");
    assert!(started.iter().all(|started| *started >= 12), "{started:?}");
}

/// Envelopes that leave without an attempt, as those that are published again, use up no rate limit.
#[test]
fn only_attempts_count_for_a_rate_limit() {
    let (mut pools, _) = two_pools();
    let rate = Some(RateLimit { per_second: 10.0, burst: 1 });
    for pool in &mut pools {
        (0..100).for_each(|number| pool.offer(&id(0), 4, rate, (0, number), START).unwrap());
    }
    // Of each pool, the first 40 leave without an attempt, 1 ms after their start.
    let (mut untried, mut tried, mut running) = ([0, 0], [0, 0], [Vec::new(), Vec::new()]);
    for millis in 0..3000 {
        let now = Duration::from_millis(millis);
        for (which, pool) in pools.iter_mut().enumerate() {
            for (finish, started) in std::mem::take(&mut running[which]) {
                pool.finished(&id(0), finish, started, now);
            }
            pool.wake();
            while let Some((_, number)) = pool.next(now) {
                let finish = if number < 40 { Finish::Untried } else { Finish::Healthy };
                let count = if number < 40 { &mut untried } else { &mut tried };
                count[which] += 1;
                running[which].push((finish, now));
            }
        }
        assert!(
            tried[0] + tried[1] <= 1 + usize::try_from(millis / 100).unwrap(),
            "{tried:?} at {millis} ms"
        );
        if millis == 500 {
            assert_eq!(untried, [40, 40], "they delay the attempts by no more than they take");
        }
    }
    assert!((25..=30).contains(&(tried[0] + tried[1])), "{tried:?}");
}
