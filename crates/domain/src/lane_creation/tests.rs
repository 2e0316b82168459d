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
    loop {
        for lane in started(&mut creation, now) {
            if &*lane != "acme-0" {
                creation.created(&lane, now);
                continue;
            }
            tries.push(now.as_secs());
            let pause = creation.failed(&lane, Failure::Refused, now);
            assert_eq!(pause.map(|pause| now + pause), creation.due());
        }
        let Some(due) = creation.due() else { break };
        assert!(!creation.ask("acme-0", "acme", now), "it is paused");
        now = due;
    }
    assert_eq!(tries, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303, 363]);
    // It is given up, until the next envelope.
    assert_eq!(creation.missing(), 0);
    assert!(creation.ask("acme-0", "acme", now));
}

#[test]
fn without_an_answer_it_is_tried_soon_and_not_given_up() {
    let mut creation = creation();
    ask_for_many(&mut creation, "acme", 1);
    for second in 0..1_000 {
        assert_eq!(creation.next(seconds(second)).as_deref(), Some("acme-0"));
        assert_eq!(creation.failed("acme-0", Failure::Unanswered, seconds(second)), Some(seconds(1)));
    }
}

#[test]
fn the_number_of_lanes_is_bounded() {
    let mut creation = creation();
    for number in 0..2 * MOST {
        creation.ask(&number.to_string(), "acme", seconds(0));
    }
    assert_eq!(creation.missing(), MOST);
    // What exists is forgotten after a while.
    while let Some(lane) = creation.next(seconds(1)) {
        creation.created(&lane, seconds(1));
    }
    assert!(!creation.ask("new", "acme", seconds(2)));
    assert!(creation.ask("new", "acme", seconds(40)));
    assert_eq!(creation.lanes.len(), 1);
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
                    let failure = if pick % 2 == 0 { Failure::Refused } else { Failure::Unanswered };
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
