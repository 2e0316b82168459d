use super::*;
use crate::subscription::{Incarnation, SubscriptionRef};

fn named(id: &str, random: u128) -> Identity {
    Identity {
        subscription: SubscriptionRef::of("acme", id).expect("valid"),
        incarnation: Incarnation::new(random),
    }
}

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn a_hold_begins_once_and_is_prolonged_when_it_grows() {
    let mut holds = Holds::default();
    let crm = named("crm", 1);
    let mut asked = |until, now| holds.asked(&crm, at(until), 503, 1, at(now));
    assert_eq!(asked(5_000, 0), HoldChange::Began);
    assert_eq!(asked(5_000, 1), HoldChange::None, "answered alike");
    assert_eq!(asked(6_000, 1_000), HoldChange::None);
    assert_eq!(asked(1_000, 500), HoldChange::None, "a shorter one");
    assert_eq!(asked(9_000, 1_500), HoldChange::Prolonged, "a longer one");
    assert_eq!(
        asked(9_500, 9_100),
        HoldChange::Prolonged,
        "the one before is over: it was tried, and asked again"
    );
    assert_eq!(holds.get(&crm, at(9_200)).map(|hold| (hold.since, hold.until)), Some((at(0), at(9_500))));
    assert_eq!(holds.get(&crm, at(9_500)), None);
    assert_eq!(
        holds.asked(&named("crm", 2), at(9_500), 503, 1, at(9_200)),
        HoldChange::Began,
        "created again"
    );
    assert_eq!(
        holds.asked(&crm, at(60_000), 503, 1, at(19_500)),
        HoldChange::Began,
        "long after the last one"
    );
}

#[test]
fn an_end_is_reported_by_the_process_that_reported_the_beginning() {
    let mut holds = Holds::default();
    let [mine, other, passed] = ["mine", "other", "passed"].map(|id| named(id, 1));
    let hold = Hold { since: at(0), until: at(5_000), status: 429, revision: 3 };
    for subscription in [&mine, &passed] {
        holds.asked(subscription, at(5_000), 429, 3, at(0));
        holds.reported(subscription);
    }
    assert!(holds.heard(&other, hold, at(0)));
    assert!(!holds.heard(&other, hold, at(0)), "it is known");
    assert!(!holds.heard(&passed, hold, at(0)), "heard of oneself");
    assert!(holds.end(&mine) && !holds.end(&mine), "once");
    assert!(!holds.end(&other));
    assert_eq!(holds.passed(at(14_999)), []);
    assert_eq!(holds.passed(at(15_000)), [passed]);
    assert_eq!(holds.all(at(0)).count(), 0);
}

#[test]
fn what_the_broker_has_is_what_others_stored_or_this_process_did() {
    let mut holds = Holds::default();
    let [here, there] = ["here", "there"].map(|id| named(id, 1));
    holds.asked(&here, at(5_000), 429, 3, at(0));
    holds.heard(&there, Hold { since: at(0), until: at(9_000), status: 503, revision: 3 }, at(0));
    let stored = |holds: &Holds, now| holds.all_stored(at(now)).cloned().collect::<Vec<_>>();
    assert_eq!(stored(&holds, 1), std::slice::from_ref(&there));
    holds.stored(&here);
    assert_eq!(stored(&holds, 1).len(), 2);
    assert_eq!(stored(&holds, 6_000), [there]);
    assert_eq!(holds.asked(&here, at(9_000), 429, 3, at(6_000)), HoldChange::Prolonged);
    assert_eq!(stored(&holds, 6_000).len(), 1, "the longer one is not stored yet");
}

#[test]
fn the_number_of_known_holds_is_bounded() {
    let mut holds = Holds::default();
    let known = |number| named(&format!("s-{number}"), 1);
    for number in 0..MOST {
        assert_eq!(holds.asked(&known(number), at(1_000), 503, 1, at(0)), HoldChange::Began);
    }
    assert_eq!(holds.asked(&known(MOST), at(1_000), 503, 1, at(0)), HoldChange::None, "full");
    assert_eq!(holds.all(at(0)).count(), MOST);
    assert_eq!(
        holds.asked(&known(MOST), at(2_000), 503, 1, at(1_000)),
        HoldChange::Began,
        "the others are over"
    );
}
