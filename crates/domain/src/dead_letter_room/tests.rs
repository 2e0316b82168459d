use proptest::prelude::*;

use super::*;

const ROOMY: StreamRoom = StreamRoom { bytes: Some((0, 1_000_000)), messages: None };

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn full(used: u64) -> StreamRoom {
    StreamRoom { bytes: Some((used, 1_000_000)), messages: None }
}

#[test]
fn a_full_stream_is_reported_once_until_it_has_room_again() {
    let mut room = LetterRoom::default();
    assert_eq!((room.report(None, seconds(1)), room.is_refusing()), (None, false));
    for at in 1..20 {
        room.refused(DeadLetterRefusal::Full, 10_000, seconds(at));
        let expected = (at == 1).then_some(DeadLetterRoomChange::Began(DeadLetterRefusal::Full));
        assert_eq!(room.report(Some(&full(999_000)), seconds(at)), expected);
        // A small one fits.
        room.stored(500, seconds(at));
        assert_eq!(room.report(Some(&full(999_500)), seconds(at)), None);
    }
    // Nobody writes any more, and it is still full.
    assert_eq!(room.report(Some(&full(999_500)), seconds(3_600)), None);
    assert_eq!(room.report(None, seconds(3_600)), None, "nothing is known");
    let ended = Some(DeadLetterRoomChange::Ended { after: seconds(3_600) });
    assert_eq!(room.report(Some(&full(500_000)), seconds(3_601)), ended);
    assert_eq!((room.report(Some(&ROOMY), seconds(3_601)), room.is_refusing()), (None, false));
}

#[test]
fn room_for_small_ones_is_not_room_for_the_refused_one() {
    let mut room = LetterRoom::default();
    room.refused(DeadLetterRefusal::Full, 300_000, seconds(1));
    assert_eq!(room.may_try(300_000, seconds(1)), Err(DeadLetterRefusal::Full));
    assert_eq!(room.may_try(299_999, seconds(1)), Ok(()));
    assert_eq!(room.may_try(300_000, seconds(2)), Ok(()), "after a moment it is tried again");
    assert!(room.report(None, seconds(2)).is_some());
    assert_eq!(room.report(Some(&full(800_000)), seconds(9)), None);
    assert!(room.report(Some(&full(700_000)), seconds(9)).is_some());
    let count = |used| StreamRoom { messages: Some((used, 100)), bytes: None };
    assert!(!count(100).has_room_for(1) && !count(95).has_room_for(1) && count(90).has_room_for(1));
    assert!(StreamRoom::default().has_room_for(u64::MAX));
}

#[test]
fn a_short_disturbance_is_not_reported() {
    for refusal in [DeadLetterRefusal::Missing, DeadLetterRefusal::Unanswered, DeadLetterRefusal::NoResources]
    {
        let mut room = LetterRoom::default();
        room.refused(refusal, 10, seconds(1));
        room.refused(refusal, 10, seconds(4));
        assert_eq!(room.report(None, seconds(4)), None);
        room.stored(10, seconds(5));
        assert!(!room.is_refusing());
        // If nothing is written any more, it is forgotten.
        room.refused(refusal, 10, seconds(10));
        assert_eq!((room.report(None, seconds(69)), room.is_refusing()), (None, true));
        assert_eq!((room.report(None, seconds(70)), room.is_refusing()), (None, false));
        // One that lasts is reported.
        room.refused(refusal, 10, seconds(100));
        room.refused(refusal, 10, seconds(106));
        assert_eq!(room.report(None, seconds(106)), Some(DeadLetterRoomChange::Began(refusal)));
    }
}

#[test]
fn a_cause_that_the_room_does_not_show_ends_with_a_stored_one_or_a_long_quiet() {
    let began = || {
        let mut room = LetterRoom::default();
        room.refused(DeadLetterRefusal::NoResources, 10, seconds(1));
        room.refused(DeadLetterRefusal::NoResources, 10, seconds(7));
        assert!(room.report(Some(&ROOMY), seconds(7)).is_some());
        assert_eq!(room.report(Some(&ROOMY), seconds(30)), None);
        room
    };
    let mut room = began();
    assert!(room.report(Some(&ROOMY), seconds(67)).is_some());
    let mut room = began();
    room.stored(10, seconds(31));
    assert_eq!(
        room.report(Some(&ROOMY), seconds(31)),
        Some(DeadLetterRoomChange::Ended { after: seconds(30) })
    );
}

#[test]
fn one_that_is_too_large_delays_no_other() {
    let mut room = LetterRoom::default();
    room.refused(DeadLetterRefusal::TooLarge, 1_000, seconds(1));
    assert_eq!(room.may_try(1_000, seconds(1)), Ok(()));
    // It does not hide why others are refused.
    room.refused(DeadLetterRefusal::Full, 10, seconds(2));
    room.refused(DeadLetterRefusal::TooLarge, 1_000, seconds(2));
    assert_eq!(room.may_try(10, seconds(2)), Err(DeadLetterRefusal::Full));
    assert_eq!(room.report(None, seconds(2)), Some(DeadLetterRoomChange::Began(DeadLetterRefusal::Full)));
}

#[test]
fn requests_without_an_answer_become_rare() {
    let mut room = LetterRoom::default();
    let (mut now, mut tries) = (seconds(0), 0);
    while now < seconds(100) {
        if room.may_try(10, now).is_ok() {
            tries += 1;
            // Those that were on their way do not count.
            (0..64).for_each(|_| room.refused(DeadLetterRefusal::Unanswered, 10, now));
        }
        now += Duration::from_millis(100);
    }
    assert!((6..=8).contains(&tries), "{tries} in 100 s");
    room.stored(10, now);
    assert_eq!(room.may_try(10, now), Ok(()));
}

#[test]
fn while_probes_have_no_answer_nobody_else_asks() {
    let mut room = LetterRoom::default();
    assert!(!room.wants_probe());
    room.probe_failed(seconds(1));
    assert!(!room.is_refusing(), "nobody had to wait");
    room.refused(DeadLetterRefusal::Full, 10, seconds(1));
    assert!(!room.wants_probe(), "it has answered");

    let mut room = LetterRoom::default();
    room.refused(DeadLetterRefusal::Unanswered, 10, seconds(1));
    let mut reported = Vec::new();
    for at in (6..100).step_by(6) {
        assert!(room.wants_probe());
        room.probing(seconds(at - 1));
        assert_eq!(room.may_try(10, seconds(at)), Err(DeadLetterRefusal::Unanswered));
        room.probe_failed(seconds(at));
        for later in 0..6 {
            assert_eq!(room.may_try(10, seconds(at + later)), Err(DeadLetterRefusal::Unanswered));
        }
        reported.extend(room.report(Some(&ROOMY), seconds(at)));
    }
    assert_eq!(reported, [DeadLetterRoomChange::Began(DeadLetterRefusal::Unanswered)]);
    // With an answer it is tried again. One that is stored ends it.
    room.probe_answered(seconds(100));
    assert_eq!(room.may_try(10, seconds(100)), Ok(()));
    room.stored(10, seconds(100));
    assert!(!room.wants_probe());
    assert!(room.report(Some(&ROOMY), seconds(103)).is_some());

    // If nobody probes any more, dead letters are tried again.
    room.refused(DeadLetterRefusal::Unanswered, 10, seconds(200));
    room.probe_failed(seconds(205));
    assert_eq!(room.may_try(10, seconds(205) + SILENT_FOR), Ok(()));
}

#[test]
fn a_stream_that_answers_probes_only_is_tried_rarely() {
    let mut room = LetterRoom::default();
    let (mut now, mut tries) = (seconds(0), 0);
    while now < seconds(100) {
        if room.may_try(10, now).is_ok() {
            tries += 1;
            room.refused(DeadLetterRefusal::Unanswered, 10, now);
        }
        room.probe_answered(now);
        now += Duration::from_millis(100);
    }
    assert!((6..=8).contains(&tries), "{tries} in 100 s");
}

#[test]
fn envelopes_wait_longer_each_time_and_are_not_forgotten() {
    let waits: Vec<u64> = [0, 1, 2, 3, 4, 5, u32::MAX].map(|one| retry_after(one).as_secs()).to_vec();
    assert_eq!(waits, [5, 5, 10, 20, 30, 30, 30]);
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Refuse(DeadLetterRefusal, u64),
    Store(u64),
    Look(Option<u64>),
    Pass(u64),
    Probe(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let refusal = prop_oneof![
        Just(DeadLetterRefusal::Full),
        Just(DeadLetterRefusal::NoResources),
        Just(DeadLetterRefusal::Missing),
        Just(DeadLetterRefusal::TooLarge),
        Just(DeadLetterRefusal::Unanswered),
        Just(DeadLetterRefusal::Other),
    ];
    let step = prop_oneof![
        (refusal, 1..100_000_u64).prop_map(|(refusal, size)| Step::Refuse(refusal, size)),
        (1..100_000_u64).prop_map(Step::Store),
        proptest::option::of(0..=1_000_000_u64).prop_map(Step::Look),
        (0..30_000_u64).prop_map(Step::Pass),
        any::<bool>().prop_map(Step::Probe),
    ];
    proptest::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn changes_alternate_and_nothing_waits_for_ever(steps in steps()) {
        let mut room = LetterRoom::default();
        let (mut now, mut refused_at, mut is_reported) = (Duration::ZERO, None, false);
        for step in steps {
            match step {
                Step::Refuse(refusal, size) => {
                    room.refused(refusal, size, now);
                    refused_at = Some(now);
                }
                Step::Store(size) => room.stored(size, now),
                Step::Probe(true) => room.probe_answered(now),
                Step::Probe(false) => {
                    room.probe_failed(now);
                    refused_at = refused_at.map(|_| now);
                }
                Step::Look(used) => {
                    let look = used.map(full);
                    match room.report(look.as_ref(), now) {
                        Some(DeadLetterRoomChange::Began(_)) => {
                            prop_assert!(!is_reported);
                            is_reported = true;
                        }
                        Some(DeadLetterRoomChange::Ended { after }) => {
                            prop_assert!(is_reported && after <= now);
                            prop_assert!(used.is_some_and(|used| used < 1_000_000), "it is full");
                            prop_assert!(refused_at.is_none_or(|at| now - at >= QUIET), "a refusal just now");
                            is_reported = false;
                        }
                        None => {}
                    }
                }
                Step::Pass(milliseconds) => now += Duration::from_millis(milliseconds),
            }
            prop_assert!(!is_reported || room.is_refusing());
            prop_assert_eq!(room.is_reported(), is_reported);
            prop_assert_eq!(room.may_try(u64::MAX, now + LONGEST_PAUSE.max(SILENT_FOR)), Ok(()));
            prop_assert!(refused_at.is_some() || room.may_try(u64::MAX, now).is_ok());
        }
    }
}
