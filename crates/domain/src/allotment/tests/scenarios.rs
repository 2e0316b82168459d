//! What processes may do together.

use proptest::prelude::*;

use super::processes::{POOLS, World};
use super::*;

const ALL: [bool; POOLS] = [true; POOLS];
const ONE: [bool; POOLS] = [true, false, false, false];
/// After a change of the processes, the limits hold again after this time.
const MOMENT: Duration = Duration::from_secs(2);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Runs until a change is over, and then for `time`. Returns deliveries per second, and asserts that the slots were not
/// exceeded.
fn settled(world: &mut World, slots: usize, time: Duration) -> f64 {
    world.run_for(MOMENT);
    world.most = world.in_flight;
    let since = world.now;
    world.run_for(time);
    assert!(world.most <= slots, "{} in flight, limit {slots}", world.most);
    world.rate_since(since)
}

#[test]
fn the_pools_of_a_process_share_one_limit() {
    let mut world = World::new(limits(4, Some((10.0, 1))), millis(50));
    world.start(1, ALL);
    let rate = settled(&mut world, 4, seconds(20));
    assert!((9.0..=10.1).contains(&rate), "{rate}");
    let taken = world.processes[&1].taken;
    assert!(taken.iter().all(|taken| (40..70).contains(taken)), "each pool is next in turn: {taken:?}");
    // The pools with items get what the others do not use.
    world.processes.get_mut(&1).unwrap().busy = ONE;
    assert!(settled(&mut world, 4, seconds(20)) > 9.0);
}

#[test]
fn the_pools_of_a_process_share_the_slots() {
    let mut world = World::new(limits(3, None), millis(100));
    world.start(1, ALL);
    let rate = settled(&mut world, 3, seconds(20));
    assert!(rate > 27.0, "{rate}");
    let taken = world.processes[&1].taken;
    let (least, most) = (taken.iter().min().unwrap(), taken.iter().max().unwrap());
    assert!(*least * 2 > *most, "{taken:?}");
}

#[test]
fn a_process_gets_the_slots_that_an_idle_one_does_not_use_however_long_deliveries_take() {
    for service in [millis(700), seconds(3), seconds(10), seconds(60)] {
        let mut world = World::new(limits(32, None), service);
        world.start(1, ONE);
        world.start(2, [false; POOLS]);
        world.run_for(3 * service);
        assert!(settled(&mut world, 32, 3 * service) > 0.0);
        assert!(world.most >= 31, "{} in flight at {service:?} each", world.most);
    }
}

#[test]
fn processes_share_a_rate_and_its_burst() {
    for (per_second, burst) in [(10.0, 1), (10.0, 20), (1.0, 1), (0.2, 1), (300.0, 10)] {
        let mut world = World::new(limits(100, Some((per_second, burst))), millis(20));
        for process in 1..=3 {
            world.start(process, ALL);
        }
        let rate = settled(&mut world, 100, seconds(40));
        assert!(rate <= per_second * 1.05 + 3.0 / 40.0, "{rate} of {per_second}");
        assert!(rate >= per_second * 0.7, "{rate} of {per_second}");
        let most = world.most_in_a_second(seconds(103)) as f64;
        assert!(most <= per_second + f64::from(burst) + 3.0, "{most} of {per_second}");
    }
}

#[test]
fn an_idle_process_costs_nearly_nothing() {
    let mut world = World::new(limits(8, Some((10.0, 2))), millis(50));
    world.start(1, ALL);
    world.start(2, [false; POOLS]);
    world.start(3, [false; POOLS]);
    let rate = settled(&mut world, 8, seconds(20));
    assert!(rate > 8.5, "{rate}");
    // When it has items, it gets its part soon.
    world.processes.get_mut(&2).unwrap().busy = ONE;
    let rate = settled(&mut world, 8, seconds(20));
    assert!((8.5..=10.2).contains(&rate), "{rate}");
    let (first, second) = (world.processes[&1].total(), world.processes[&2].total());
    assert!(second > 70, "{first} and {second}");
}

#[test]
fn a_single_slot_goes_around() {
    for service in [millis(10), millis(200), millis(1500)] {
        let mut world = World::new(limits(1, None), service);
        for process in 1..=3 {
            world.start(process, ONE);
        }
        let rate = settled(&mut world, 1, seconds(60));
        let best = 1.0 / (service + millis(5)).as_secs_f64();
        assert!(rate >= best * 0.6, "{rate} of {best} with {service:?}");
        let taken: Vec<usize> = world.processes.values().map(|process| process.total()).collect();
        assert!(taken.iter().all(|taken| *taken as f64 > rate * 60.0 / 6.0), "{taken:?}");
    }
}

#[test]
fn deliveries_as_long_as_a_cycle_of_turns_starve_nobody() {
    let mut world = World::new(limits(1, None), seconds(6));
    world.start(1, ONE);
    world.start(2, ONE);
    let rate = settled(&mut world, 1, seconds(300));
    assert!(rate > 0.1, "{rate}");
    let taken: Vec<usize> = world.processes.values().map(|process| process.total()).collect();
    assert!(taken.iter().all(|taken| *taken >= 8), "{taken:?}");
}

#[test]
fn long_deliveries_count_until_they_end() {
    // All slots are in use when another process comes.
    let mut world = World::new(limits(4, None), seconds(15));
    world.start(1, ALL);
    world.run_for(seconds(3));
    world.start(2, ALL);
    world.run_for(seconds(60));
    assert_eq!(world.most, 4);
    assert!(world.processes[&2].total() >= 4);
}

#[test]
fn a_process_that_is_gone_leaves_its_part_to_the_others() {
    let mut world = World::new(limits(4, Some((10.0, 1))), millis(100));
    world.start(1, ALL);
    world.start(2, ALL);
    assert!(settled(&mut world, 4, seconds(10)) > 8.0);
    world.kill(1);
    world.run_for(seconds(4));
    let rate = settled(&mut world, 4, seconds(10));
    assert!((8.5..=10.2).contains(&rate), "{rate}");
}

#[test]
fn many_subscriptions_with_demands_are_announced_together() {
    let (mut one, mut two) = (Allotments::new(MemberId::new(1), 1), Allotments::new(MemberId::new(2), 1));
    let hear = |one: &mut Allotments, two: &mut Allotments, now| {
        for notice in [one.beat(now), two.beat(now)] {
            assert!(notice.announced.len() <= MOST_ANNOUNCED);
            one.hear(&notice, now);
            two.hear(&notice, now);
        }
    };
    hear(&mut one, &mut two, seconds(1));
    hear(&mut one, &mut two, seconds(2));
    let names: Vec<Identity> = (0..3000).map(|number| named(&format!("s{number}"))).collect();
    let mut taken = HashMap::new();
    for second in 3..30 {
        let now = seconds(second);
        for name in &names {
            let both = [&mut one, &mut two].map(|process| {
                let took = process.take(0, name, limits(1, None), 10, now).is_ok();
                if took {
                    process.release(0, name, now);
                }
                took
            });
            assert!(both != [true, true], "{name} exceeds its limit");
            let counts: &mut [usize; 2] = taken.entry(name).or_default();
            (0..2).for_each(|at| counts[at] += usize::from(both[at]));
        }
        hear(&mut one, &mut two, now + millis(1));
    }
    assert!(taken.values().all(|counts| counts[0] > 0 && counts[1] > 0), "nobody starves");
}

#[test]
fn a_process_that_does_not_hear_itself_starts_nothing_beside_others() {
    let mut alone = Allotments::new(MemberId::new(1), 1);
    let mut beside = Allotments::new(MemberId::new(2), 1);
    for allotments in [&mut alone, &mut beside] {
        let notice = allotments.beat(seconds(1));
        allotments.hear(&notice, seconds(1));
    }
    beside.hear(&alone.beat(seconds(1)), seconds(1));
    let take = |allotments: &mut Allotments, second| {
        allotments.take(0, &crm(), limits(4, None), 1, seconds(second)).is_ok()
    };
    assert!(take(&mut alone, 20) && take(&mut beside, 3));
    assert!(!take(&mut beside, 20));
    // It does not forget the others during an outage.
    let notice = beside.beat(seconds(21));
    beside.hear(&notice, seconds(21));
    assert_eq!(beside.others(), 1);
    assert!(take(&mut beside, 21) && !take(&mut beside, 21), "two of four slots, one is free");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_joins_and_leaves_the_limits_hold(
        slots in 1u32..12,
        service in 20u64..3000,
        per_second in proptest::option::of(2.0..50.0f64),
        changes in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<bool>(), POOLS)), 1..6),
    ) {
        let mut world = World::new(limits(slots, per_second.map(|rate| (rate, 1))), millis(service));
        for (nth, (choice, busy)) in changes.into_iter().enumerate() {
            let busy = [busy[0], busy[1], busy[2], busy[3]];
            let ids: Vec<u64> = world.processes.keys().copied().collect();
            let known = ids.get(usize::from(choice) % 8).copied();
            match known {
                Some(id) if choice > 200 => world.kill(id),
                Some(id) => world.processes.get_mut(&id).unwrap().busy = busy,
                None => world.start(u64::from(choice) * 10 + nth as u64, busy),
            }
            // Until a process that was killed has expired, and what it leaves is distributed.
            world.run_for(seconds(6));
            let before: Vec<usize> = world.processes.values().map(|process| process.total()).collect();
            let rate = settled(&mut world, slots as usize, seconds(60));
            let wanting = world.processes.values().filter(|process| process.busy.contains(&true)).count();
            if let Some(per_second) = per_second {
                prop_assert!(rate <= per_second * 1.05 + 6.0 / 60.0, "{} of {}", rate, per_second);
            }
            if wanting > 0 {
                let by_slots = f64::from(slots) / (millis(service).as_secs_f64() + 0.005);
                let best = per_second.map_or(by_slots, |rate| rate.min(by_slots));
                prop_assert!(rate >= 0.5 * best, "{} of {}", rate, best);
            }
            for (process, before) in world.processes.values().zip(before) {
                prop_assert!(process.total() > before || !process.busy.contains(&true), "one starves");
            }
        }
    }
}
