use std::time::Duration;

use proptest::prelude::*;

use super::*;

const NONE: BacklogLimits = BacklogLimits { messages: None, bytes: None, age: None };

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn messages(most: u64) -> BacklogLimits {
    BacklogLimits { messages: Some(most), ..NONE }
}

fn look(own: u64, shared: u64, size: u64) -> OutboxLook {
    let messages = own + shared;
    let backlogs = vec![Backlog { token: "crm".to_owned(), own, shared }];
    OutboxLook { messages, bytes: messages * size, backlogs }
}

fn fits(ledger: &mut Ledger, size: u64, limits: BacklogLimits) -> bool {
    matches!(ledger.add("crm", size, limits, seconds(1)), QuotaDecision::Fits { .. })
}

#[test]
fn the_lower_limit_applies() {
    let one = BacklogLimits { messages: Some(5), bytes: None, age: Some(seconds(9)) };
    let other = BacklogLimits { messages: Some(7), bytes: Some(3), age: Some(seconds(2)) };
    let both = BacklogLimits { messages: Some(5), bytes: Some(3), age: Some(seconds(2)) };
    assert_eq!((one.within(other), other.within(one)), (both, both));
    assert_eq!(one.within(NONE), one);
    assert!(NONE.is_none() && !one.is_none());
}

#[test]
fn each_limit_counts() {
    let usage = Usage { messages: 10, bytes: 1_000, own_lane: false, free: 2_000, grace: 0 };
    assert_eq!(NONE.exceeded(&usage, 100), None);
    assert_eq!(messages(11).exceeded(&usage, 100), None);
    assert_eq!(messages(10).exceeded(&usage, 100), Some(Exceeded::Messages { most: 10 }));
    let bytes = |most| BacklogLimits { bytes: Some(most), ..NONE };
    assert_eq!(bytes(1_100).exceeded(&usage, 100), None);
    assert_eq!(bytes(1_099).exceeded(&usage, 100), Some(Exceeded::Bytes { most: 1_099 }));
    // Only an endpoint that does not keep up is bounded by the free space.
    let own = Usage { own_lane: true, ..usage };
    assert_eq!(NONE.exceeded(&own, 100), Some(Exceeded::Share { most: 500 }));
    assert_eq!(NONE.exceeded(&Usage { free: 4_400, ..own }, 100), None);
    // What it had after a pause may stay.
    let kept = Usage { grace: 1_100, ..own };
    assert_eq!((NONE.exceeded(&kept, 100), messages(10).exceeded(&kept, 100)), (None, None));
    assert_eq!(NONE.exceeded(&kept, 101), Some(Exceeded::Share { most: 500 }));
    assert_eq!((NONE.percent(&kept), kept.free_share()), (90, 500));
    // One envelope always fits.
    let empty = Usage { messages: 0, bytes: 0, own_lane: true, free: 0, grace: 0 };
    assert_eq!(BacklogLimits { messages: Some(1), bytes: Some(1), age: None }.exceeded(&empty, 100), None);
    assert_eq!((messages(20).percent(&usage), NONE.percent(&usage), NONE.percent(&own)), (50, 0, 200));
}

#[test]
fn the_ledger_counts_what_it_adds_between_two_looks() {
    let mut ledger = Ledger::new(messages(3), 1_000_000);
    ledger.begin_group();
    assert!((0..3).all(|_| fits(&mut ledger, 10, NONE)));
    assert!(!fits(&mut ledger, 10, NONE));
    // A look that is requested before the group is stored does not contain it.
    ledger.request_look();
    ledger.end_group();
    ledger.note(&look(0, 0, 0), seconds(1));
    assert!(!fits(&mut ledger, 10, NONE));
    // One that is requested later is exact.
    ledger.request_look();
    ledger.note(&look(0, 1, 10), seconds(1));
    ledger.begin_group();
    assert!(fits(&mut ledger, 10, NONE) && fits(&mut ledger, 10, NONE) && !fits(&mut ledger, 10, NONE));
    // A look at this subscription alone: it has delivered the one, and two are on their way.
    ledger.note_one(&Backlog { token: "crm".to_owned(), own: 0, shared: 0 }, 0, seconds(1));
    assert!(fits(&mut ledger, 10, NONE) && !fits(&mut ledger, 10, NONE));
    // A limit of the subscription itself is lower.
    assert!(!fits(&mut ledger, 10, messages(2)));
}

#[test]
fn sizes_are_estimated_from_additions_and_the_average() {
    let mut ledger = Ledger::new(NONE, 1_000_000);
    ledger.request_look();
    ledger.note(&look(0, 10, 100), seconds(1));
    assert_eq!(
        ledger.usage("crm", seconds(1)),
        Usage { messages: 10, bytes: 1_000, own_lane: false, free: 1_000_000, grace: 0 }
    );
    assert_eq!(ledger.used(), 1_000);
    ledger.begin_group();
    assert!(fits(&mut ledger, 500, NONE));
    ledger.end_group();
    assert_eq!(ledger.usage("crm", seconds(1)).bytes, 1_500);
    // Some left: the rest has the average size.
    ledger.request_look();
    ledger.note(&look(0, 5, 100), seconds(2));
    assert_eq!(ledger.usage("crm", seconds(1)).bytes, 1_500 * 5 / 11);
    ledger.request_look();
    ledger.note(&OutboxLook::default(), seconds(3));
    assert_eq!((ledger.usage("crm", seconds(1)).bytes, ledger.len()), (0, 0));
}

#[test]
fn a_lane_is_used_while_it_has_envelopes_and_a_little_longer() {
    let mut lane = OwnLane::default();
    assert!(!lane.is_used(seconds(0)) && lane.is_forgotten(seconds(0)));
    lane.note(1, seconds(10));
    assert!(lane.is_used(seconds(19)) && lane.exists());
    lane.note(0, seconds(11));
    assert!(lane.is_used(seconds(11)));
    lane.note(0, seconds(12));
    assert!(!lane.is_used(seconds(12)) && !lane.exists() && !lane.is_forgotten(seconds(12)));
    // It needs its lane again, and stays longer.
    lane.note(9, seconds(20));
    lane.note(0, seconds(23));
    assert!(lane.is_used(seconds(23)));
    lane.note(0, seconds(24));
    assert!(!lane.is_used(seconds(24)));
    assert!(lane.is_forgotten(seconds(84)));
    // Much later, it begins from the start.
    lane.note(9, seconds(100));
    lane.note(0, seconds(102));
    assert!(!lane.is_used(seconds(102)));
}

#[test]
fn a_lane_is_used_by_its_subscription_only_and_not_after_the_look_is_stale() {
    let mut ledger = Ledger::new(NONE, 1_000_000);
    ledger.request_look();
    ledger.note(&look(5, 0, 10), seconds(100));
    let mut lane = |token: &str, at| match ledger.add(token, 10, NONE, seconds(at)) {
        QuotaDecision::Fits { own_lane } => own_lane,
        QuotaDecision::Exceeds { .. } => panic!("it fits"),
    };
    assert!(lane("crm", 101) && !lane("other", 101));
    assert!(!lane("crm", 111));
}

fn outbox(backlogs: &[(&str, u64, u64)], size: u64) -> OutboxLook {
    let messages: u64 = backlogs.iter().map(|(_, own, shared)| own + shared).sum();
    let backlogs =
        backlogs.iter().map(|&(token, own, shared)| Backlog { token: token.to_owned(), own, shared });
    OutboxLook { messages, bytes: messages * size, backlogs: backlogs.collect() }
}

/// How many of these exceed the quota outside a pause.
fn exceeding(ledger: &mut Ledger, count: usize, at: u64) -> usize {
    let added = (0..count).map(|_| ledger.add_unpaused("crm", 1_000, NONE, seconds(at)));
    added.filter(|decision| matches!(decision, QuotaDecision::Exceeds { .. })).count()
}

#[test]
fn the_part_of_the_free_space_is_that_of_the_present_outbox() {
    const CAPACITY: u64 = 1_000_000;
    let mut ledger = Ledger::new(NONE, CAPACITY);
    ledger.request_look();
    ledger.note(&outbox(&[("crm", 1, 0), ("other", 1, 0)], 1_000), seconds(1));
    // What the other gets is delivered as soon as it is added, and no look has seen that yet.
    for _ in 0..950 {
        ledger.begin_group();
        ledger.add_beyond("other", 1_000, seconds(1));
        ledger.end_group();
    }
    ledger.begin_group();
    assert!(exceeding(&mut ledger, 40, 1) > 0, "as far as the ledger knows, own lanes have nearly all");
    ledger.note_one(&Backlog { token: "crm".to_owned(), own: 1, shared: 0 }, 2_000, seconds(1));
    assert_eq!(exceeding(&mut ledger, 40, 1), 0);
}

#[test]
fn what_is_in_shared_lanes_takes_nothing_from_the_part_of_an_own_lane() {
    const CAPACITY: u64 = 1_000_000;
    let mut ledger = Ledger::new(NONE, CAPACITY);
    ledger.request_look();
    ledger.note(&outbox(&[("crm", 1, 0), ("others", 0, 999)], 1_000), seconds(1));
    ledger.begin_group();
    assert_eq!(exceeding(&mut ledger, 199, 1), 0, "its events wait for the room of the outbox");
    // Its own excess remains one.
    assert_eq!(exceeding(&mut ledger, 10, 1), 10);
}

#[test]
fn a_backlog_of_a_pause_drains_without_loss() {
    const CAPACITY: u64 = 1_000_000;
    let mut ledger = Ledger::new(NONE, CAPACITY);
    let note = |ledger: &mut Ledger, own: u64, at| {
        ledger.request_look();
        ledger.note(&outbox(&[("crm", own, 0)], 1_000), seconds(at))
    };
    note(&mut ledger, 10, 1);
    ledger.begin_group();
    for _ in 0..790 {
        if let QuotaDecision::Exceeds { .. } = ledger.add("crm", 1_000, NONE, seconds(2)) {
            ledger.add_in_pause("crm", 1_000, seconds(2));
        }
    }
    ledger.end_group();
    assert!(ledger.has_excess(seconds(2)));
    // Nothing is delivered yet.
    ledger.begin_group();
    assert_eq!(exceeding(&mut ledger, 130, 2), 5);
    ledger.end_group();
    // The pause is over. One is delivered, one is added; more than it had and an eighth of the outbox does not fit.
    for delivered in 1..20 {
        note(&mut ledger, 799 - delivered, 3);
        ledger.begin_group();
        assert_eq!(exceeding(&mut ledger, 1, 3), 0);
        ledger.end_group();
        assert!(exceeding(&mut ledger, 200, 3) > 0);
    }
    // A process that starts only now lets it drain as well.
    let mut other = Ledger::new(NONE, CAPACITY);
    note(&mut other, 700, 1);
    other.begin_group();
    assert_eq!(exceeding(&mut other, 3, 1), 3);
    other.end_group();
    note(&mut other, 698, 2);
    other.begin_group();
    assert_eq!(exceeding(&mut other, 2, 2), 1);
    other.end_group();
    // Later its limit is lower, and once its backlog is within the quota, that is the limit again.
    assert!(ledger.usage("crm", seconds(1_800)).grace < 600_000);
    assert_eq!(ledger.usage("crm", seconds(3_700)).grace, 0);
    note(&mut ledger, 100, 60);
    assert_eq!(ledger.usage("crm", seconds(60)).grace, 0);
}

#[test]
fn a_backlog_is_reported_once_before_it_is_full() {
    let mut ledger = Ledger::new(messages(100), 1_000_000);
    let mut report = |shared| {
        ledger.request_look();
        let (fullest, notices) = ledger.note(&look(0, shared, 10), seconds(1));
        (fullest, notices.len())
    };
    assert_eq!(report(79), (79, 0));
    assert_eq!(report(85), (85, 1));
    assert_eq!(report(75), (75, 0));
    assert_eq!(report(99), (99, 0));
    assert_eq!(report(10), (10, 0));
    assert_eq!(report(80), (80, 1));
}

/// Hanging endpoints, each of which takes as much as it may.
#[test]
fn however_many_endpoints_hang_some_space_stays_free() {
    for count in [1, 4, 10, 100] {
        let mut ledger = Ledger::new(NONE, 10_000_000);
        let tokens: Vec<String> = (0..count).map(|number| format!("s{number}")).collect();
        let backlogs = tokens.iter().map(|token| Backlog { token: token.clone(), own: 1, shared: 0 });
        let look = OutboxLook { messages: count, bytes: count * 100, backlogs: backlogs.collect() };
        ledger.request_look();
        ledger.note(&look, seconds(1));
        loop {
            let added = tokens.iter().filter(|token| {
                matches!(ledger.add(token, 100, NONE, seconds(1)), QuotaDecision::Fits { .. })
            });
            if added.count() == 0 {
                break;
            }
        }
        let free = ledger.usage("s0", seconds(1)).free;
        assert!(free > 10_000_000 / (count / 4 + 2) - 1_000, "{count} take all but {free}");
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Begin,
    Add,
    Store,
    Fail,
    Deliver(u64),
    Request,
    /// The stream answers what it had at the request, or has now.
    Answer {
        late: bool,
    },
    One,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        Just(Step::Begin),
        Just(Step::Add),
        Just(Step::Add),
        Just(Step::Add),
        Just(Step::Store),
        Just(Step::Fail),
        (1..5_u64).prop_map(Step::Deliver),
        Just(Step::Request),
        any::<bool>().prop_map(|late| Step::Answer { late }),
        Just(Step::One),
    ];
    proptest::collection::vec(step, 0..200)
}

proptest! {
    /// Alone, the ledger never has less than the stream, and is exact after a quiet look.
    #[test]
    fn it_never_has_less_than_the_stream(steps in steps()) {
        const SIZE: u64 = 100;
        let mut ledger = Ledger::new(NONE, u64::MAX);
        let (mut stored, mut group, mut requested) = (0_u64, None::<u64>, None::<u64>);
        for step in steps {
            match step {
                Step::Begin if group.is_none() => {
                    ledger.begin_group();
                    group = Some(0);
                }
                Step::Add => if let Some(added) = &mut group {
                    let fits = fits(&mut ledger, SIZE, NONE);
                    prop_assert!(fits);
                    *added += 1;
                },
                Step::Store => if let Some(added) = group.take() {
                    stored += added;
                    ledger.end_group();
                },
                Step::Fail => if group.take().is_some() {
                    ledger.end_group();
                },
                Step::Deliver(count) => stored = stored.saturating_sub(count),
                Step::Request => {
                    ledger.request_look();
                    requested = Some(stored);
                }
                Step::Answer { late } => if let Some(then) = requested.take() {
                    // What was delivered in between may be missing, what was added may be there.
                    let seen = if late { stored } else { then };
                    ledger.note(&look(0, seen, SIZE), seconds(1));
                },
                Step::One => if group.is_some() {
                    let seen = Backlog { token: "crm".to_owned(), own: 0, shared: stored };
                    ledger.note_one(&seen, stored * SIZE, seconds(1));
                },
                Step::Begin => {}
            }
            let usage = ledger.usage("crm", seconds(1));
            let actual = stored + group.unwrap_or(0);
            prop_assert!(ledger.used() >= actual * SIZE, "{} used", ledger.used());
            prop_assert!(usage.messages >= actual, "{} in the ledger, {actual} in the stream", usage.messages);
            prop_assert_eq!(usage.bytes, usage.messages * SIZE);
        }
        ledger.end_group();
        ledger.request_look();
        ledger.note(&look(0, stored, SIZE), seconds(1));
        prop_assert_eq!(ledger.usage("crm", seconds(1)).messages, stored);
    }
}

#[derive(Debug, Clone, Copy)]
enum Act {
    /// Envelopes for everybody.
    Publish(u64),
    /// One of the endpoints that work takes envelopes.
    Deliver {
        which: usize,
        count: u64,
    },
    Look,
    Pause(bool),
    Restart,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (1..40_u64).prop_map(Act::Publish),
        2 => (any::<usize>(), 1..60_u64).prop_map(|(which, count)| Act::Deliver { which, count }),
        3 => Just(Act::Look),
        1 => any::<bool>().prop_map(Act::Pause),
        1 => Just(Act::Restart),
    ];
    proptest::collection::vec(act, 0..150)
}

proptest! {
    /// An outbox with own lanes that hang, own lanes that work, and shared ones, through pauses and restarts. Whatever
    /// shared lanes and pauses do, an own lane within its part loses nothing, and those that hang leave room for others.
    #[test]
    fn own_lanes_share_the_outbox_among_themselves(hanging in 0..12_usize, acts in acts()) {
        const CAPACITY: u64 = 1_000;
        let (working, shared) = (2, 2);
        let count = hanging + working + shared;
        let name = |which: usize| format!("s{which}");
        let has_lane = |which: usize| which < hanging + working;
        let mut stored = vec![1_u64; count];
        let (mut paused, mut was_paused) = (false, false);
        let look_of = |stored: &[u64]| {
            let backlogs = stored.iter().enumerate().map(|(which, &messages)| Backlog {
                token: name(which),
                own: if has_lane(which) { messages } else { 0 },
                shared: if has_lane(which) { 0 } else { messages },
            });
            let messages = stored.iter().sum();
            OutboxLook { messages, bytes: messages, backlogs: backlogs.collect() }
        };
        let mut ledger = Ledger::new(NONE, CAPACITY);
        ledger.request_look();
        ledger.note(&look_of(&stored), seconds(1));
        for act in acts {
            match act {
                Act::Publish(times) => for _ in 0..times {
                    ledger.request_look();
                    ledger.note(&look_of(&stored), seconds(1));
                    if stored.iter().sum::<u64>() + count as u64 > CAPACITY {
                        break; // The events wait.
                    }
                    ledger.begin_group();
                    let before = stored.clone();
                    for which in 0..count {
                        let of_lanes: u64 = stored.iter().take(hanging + working).sum();
                        let part = (CAPACITY - of_lanes) / 4;
                        // As before a refusal: its exact backlog.
                        let backlog = look_of(&before).backlogs.swap_remove(which);
                        ledger.note_one(&backlog, before.iter().sum(), seconds(1));
                        match ledger.add(&name(which), 1, NONE, seconds(1)) {
                            QuotaDecision::Fits { .. } => {}
                            QuotaDecision::Exceeds { .. } if paused => {
                                ledger.add_in_pause(&name(which), 1, seconds(1));
                            }
                            QuotaDecision::Exceeds { .. } => {
                                prop_assert!(has_lane(which) && stored[which] + 1 > part);
                                match ledger.add_unpaused(&name(which), 1, NONE, seconds(1)) {
                                    QuotaDecision::Fits { .. } => {}
                                    QuotaDecision::Exceeds { .. } => continue,
                                }
                            }
                        }
                        stored[which] += 1;
                    }
                    ledger.end_group();
                },
                Act::Deliver { which, count: most } => {
                    let which = hanging + which % (count - hanging);
                    if !paused {
                        stored[which] -= most.min(stored[which] - 1);
                    }
                }
                Act::Look => {
                    ledger.request_look();
                    ledger.note(&look_of(&stored), seconds(1));
                    if paused && ledger.has_excess(seconds(1)) {
                        ledger.note_pause(seconds(1));
                    }
                }
                Act::Pause(now) => {
                    paused = now;
                    was_paused |= now;
                }
                Act::Restart => {
                    ledger = Ledger::new(NONE, CAPACITY);
                    ledger.request_look();
                    ledger.note(&look_of(&stored), seconds(1));
                }
            }
            let of_hanging: u64 = stored.iter().take(hanging).sum();
            let most = CAPACITY - CAPACITY / (hanging as u64 / 4 + 2);
            prop_assert!(was_paused || of_hanging <= most, "{of_hanging} of {CAPACITY}");
        }
        // An hour later, no pause counts any more.
        let later = seconds(3_700);
        ledger.request_look();
        ledger.note(&look_of(&stored), later);
        ledger.begin_group();
        let part = (CAPACITY - stored.iter().take(hanging + working).sum::<u64>()) / 4;
        for (which, &had) in stored.iter().enumerate().take(hanging + working) {
            let decision = ledger.add_unpaused(&name(which), 1, NONE, later);
            let exceeds = matches!(decision, QuotaDecision::Exceeds { .. });
            prop_assert!(exceeds || had < part, "{had} of {part}");
        }
    }
}
