use proptest::prelude::*;

use super::*;

const KNOWN_FOR: Duration = Duration::from_secs(20);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn creation() -> LaneCreation {
    LaneCreation::new(KNOWN_FOR)
}

fn ask_for_many(creation: &mut LaneCreation, tenant: &str, count: usize) {
    for number in 0..count {
        assert!(creation.ask(&format!("{tenant}-{number}"), tenant, seconds(0)));
    }
}

fn started(creation: &mut LaneCreation, now: Duration) -> Vec<Box<str>> {
    std::iter::from_fn(|| creation.next(now)).collect()
}

#[test]
fn a_lane_is_created_once_and_asked_for_again_when_it_may_be_gone() {
    let mut creation = creation();
    assert!(creation.ask("a", "acme", seconds(0)));
    assert!(!creation.ask("a", "acme", seconds(0)), "it waits");
    assert_eq!(creation.next(seconds(0)).as_deref(), Some("a"));
    assert!(!creation.ask("a", "acme", seconds(1)), "it is in progress");
    assert_eq!((creation.next(seconds(1)), creation.missing()), (None, 1));
    creation.created("a", seconds(1));
    assert!(!creation.ask("a", "acme", seconds(20)), "it exists");
    assert_eq!((creation.next(seconds(20)), creation.missing()), (None, 0));
    assert!(creation.ask("a", "acme", seconds(21)), "an idle lane may be removed");
    assert_eq!(creation.next(seconds(21)).as_deref(), Some("a"));
}

#[test]
fn a_tenant_with_many_new_lanes_delays_no_other() {
    let mut creation = creation();
    ask_for_many(&mut creation, "evil", 500);
    assert_eq!(started(&mut creation, seconds(0)).len(), PER_TENANT);
    // None of these ends.
    for tenant in ["acme", "bee"] {
        let lane = format!("{tenant}-0");
        ask_for_many(&mut creation, tenant, 1);
        assert_eq!(creation.next(seconds(1)).as_deref(), Some(&*lane));
        creation.created(&lane, seconds(1));
    }
    assert_eq!(creation.next(seconds(1)), None);
    assert_eq!(creation.missing(), 500);
}

#[test]
fn tenants_take_turns() {
    let mut creation = creation();
    for tenant in ["acme", "bee", "cat"] {
        ask_for_many(&mut creation, tenant, 2);
    }
    let lanes = started(&mut creation, seconds(0));
    assert_eq!(lanes.len(), 6);
    assert_eq!(lanes[..3].iter().map(|lane| &lane[lane.len() - 1..]).collect::<String>(), "000");
    assert_eq!(lanes[3..].iter().map(|lane| &lane[lane.len() - 1..]).collect::<String>(), "111");
}

#[test]
fn a_lane_that_fails_is_tried_rarely_and_stops_no_other() {
    let mut creation = creation();
    ask_for_many(&mut creation, "acme", 2);
    let (mut now, mut tries) = (seconds(0), Vec::new());
    while tries.len() < 1_000 {
        for lane in started(&mut creation, now) {
            if &*lane != "acme-0" {
                creation.created(&lane, now);
                continue;
            }
            tries.push(now.as_secs());
            let pause = creation.failed(&lane, CreationFailure::Refused, now);
            assert_eq!(pause.map(|pause| now + pause), creation.due());
        }
        assert!(!creation.ask("acme-0", "acme", now), "it is paused");
        assert_eq!(creation.missing(), 1, "it is never given up");
        now = creation.due().unwrap();
    }
    assert_eq!(tries[..9], [0, 1, 3, 7, 15, 31, 63, 123, 183]);
    assert!(tries[9..].windows(2).all(|pair| pair[1] - pair[0] == 60));
}

#[test]
fn without_an_answer_it_is_tried_soon() {
    let mut creation = creation();
    ask_for_many(&mut creation, "acme", 1);
    for second in 0..1_000 {
        assert_eq!(creation.next(seconds(second)).as_deref(), Some("acme-0"));
        assert_eq!(creation.failed("acme-0", CreationFailure::Unanswered, seconds(second)), Some(seconds(1)));
        assert!(!creation.fails_for_long("acme-0"));
    }
}

#[test]
fn a_lane_without_envelopes_is_forgotten_unless_it_is_asked_for_meanwhile() {
    let mut creation = creation();
    ask_for_many(&mut creation, "acme", 1);
    let mut now = seconds(0);
    while !creation.fails_for_long("acme-0") {
        assert_eq!(creation.next(now).as_deref(), Some("acme-0"));
        creation.failed("acme-0", CreationFailure::Refused, now);
        now = creation.due().unwrap();
    }
    assert!(now > seconds(60), "{now:?}");
    assert_eq!(creation.next(now).as_deref(), Some("acme-0"));
    assert!(!creation.ask("acme-0", "acme", now));
    creation.unneeded("acme-0");
    assert_eq!((creation.missing(), creation.next(now).as_deref()), (1, Some("acme-0")));
    creation.unneeded("acme-0");
    assert_eq!((creation.missing(), creation.next(now), creation.due()), (0, None, None));
    assert!(creation.ask("acme-0", "acme", now), "as a new one");
    assert!(!creation.fails_for_long("acme-0"));
}

/// Creates all lanes that wait.
fn create_all(creation: &mut LaneCreation, now: Duration) {
    while let Some(lane) = creation.next(now) {
        creation.created(&lane, now);
    }
}

#[test]
fn lanes_that_exist_give_way_to_those_that_are_missing() {
    let mut creation = creation();
    for tenant in ["a", "b", "c", "d"] {
        ask_for_many(&mut creation, tenant, MOST_PER_TENANT);
        create_all(&mut creation, seconds(0));
    }
    assert_eq!((creation.lanes.len(), creation.missing()), (MOST, 0));
    ask_for_many(&mut creation, "e", MOST_PER_TENANT);
    assert_eq!((creation.lanes.len(), creation.missing()), (MOST, MOST_PER_TENANT));
    assert_eq!(creation.take_refused(), 0);
    create_all(&mut creation, seconds(1));
    // The oldest gave way, and what exists is forgotten after a while.
    assert!(!creation.ask("b-0", "b", seconds(2)) && creation.ask("a-0", "a", seconds(2)));
    assert!(creation.ask("new", "acme", seconds(40)));
    assert_eq!((creation.lanes.len(), creation.existing.len()), (2, 0));
}

#[test]
fn the_missing_lanes_of_a_tenant_are_bounded() {
    let mut creation = creation();
    ask_for_many(&mut creation, "evil", MOST_PER_TENANT);
    for number in 0..10 {
        assert!(!creation.ask(&format!("more-{number}"), "evil", seconds(0)));
    }
    assert_eq!(
        (creation.missing(), creation.take_refused(), creation.take_refused()),
        (MOST_PER_TENANT, 10, 0)
    );
    assert!(creation.ask("acme", "acme", seconds(0)));
    create_all(&mut creation, seconds(1));
    assert!(creation.ask("more-0", "evil", seconds(1)));
}

#[test]
fn tenants_that_fill_the_memory_give_way_to_others() {
    let many = MOST / MOST_PER_TENANT;
    for is_paused in [false, true] {
        let mut creation = creation();
        for tenant in 0..many {
            ask_for_many(&mut creation, &tenant.to_string(), MOST_PER_TENANT);
        }
        let now = seconds(0);
        while is_paused && let Some(lane) = creation.next(now) {
            creation.failed(&lane, CreationFailure::Refused, now);
        }
        for number in 0..100 {
            let lane = format!("acme-{number}");
            assert!(creation.ask(&lane, "acme", now), "{is_paused}");
        }
        assert_eq!((creation.missing(), creation.take_refused()), (MOST, 100));
        assert!(started(&mut creation, now).iter().any(|lane| lane.starts_with("acme-")));
        // They take no more than the same part.
        let count = if is_paused { 0 } else { MOST };
        for number in 0..count {
            creation.ask(&format!("bee-{number}"), "bee", now);
        }
        let (most, least) = (creation.missing.values().max(), creation.missing.get("bee"));
        let differ_by = |(most, least): (&usize, &usize)| most - least;
        assert!(most.zip(least).map(differ_by).is_none_or(|more| more <= 2), "{most:?} {least:?}");
        assert_eq!(creation.missing.values().sum::<usize>(), MOST);
    }
}

proptest! {
    /// Whatever order things happen in: the limits hold, and each lane is created in the end.
    #[test]
    fn every_lane_is_created_within_the_limits(
        steps in prop::collection::vec((0..60_usize, 0..5_usize, 0..6_u8), 1..300),
    ) {
        let mut creation = creation();
        let (mut now, mut running, mut asked) = (Duration::ZERO, Vec::<Box<str>>::new(), BTreeSet::new());
        let mut created = BTreeSet::new();
        for (pick, tenant, dice) in steps.into_iter().chain(std::iter::repeat_n((0, 0, 9), 2_000)) {
            let lane = format!("{tenant}-{pick}");
            match dice {
                0 | 1 => {
                    creation.ask(&lane, &tenant.to_string(), now);
                    asked.insert(lane);
                }
                2 => now += Duration::from_millis(700),
                3 if !running.is_empty() => {
                    let lane = running.swap_remove(pick % running.len());
                    let failure = if pick % 2 == 0 { CreationFailure::Refused } else { CreationFailure::Unanswered };
                    creation.failed(&lane, failure, now);
                }
                _ => {
                    if let Some(lane) = running.pop() {
                        creation.created(&lane, now);
                        created.insert(lane.to_string());
                    }
                    if dice == 9 {
                        now += Duration::from_millis(100);
                    }
                }
            }
            running.extend(started(&mut creation, now));
            let states = creation.lanes.values();
            let missing = states.filter(|lane| !matches!(lane.state, CreationState::Exists)).count();
            prop_assert_eq!(creation.missing(), missing);
            prop_assert_eq!(creation.missing.values().sum::<usize>(), missing);
            prop_assert!(running.len() <= AT_ONCE);
            for tenant in 0..5 {
                let of = format!("{tenant}-");
                prop_assert!(running.iter().filter(|lane| lane.starts_with(&of)).count() <= PER_TENANT);
            }
        }
        prop_assert_eq!(creation.missing(), 0);
        prop_assert_eq!(created, asked);
    }
}
