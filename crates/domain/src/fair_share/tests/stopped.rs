//! A stopped pool starts nothing, loses nothing, and continues at the end of the stop, or earlier on request.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_stop_ends_by_itself() {
    let mut fair = filled(8, 2, 3);
    fair.stop(Some(5 * SECOND));
    for now in [START, SECOND, 5 * SECOND - Duration::from_nanos(1)] {
        assert_eq!((fair.next(now), fair.next_wake(now)), (None, Some(5 * SECOND - now)));
    }
    assert_eq!(fair.waiting(), 6);
    assert!(fair.next(5 * SECOND).is_some());
}

#[test]
fn a_stop_is_ended_and_changed() {
    let mut fair = filled(8, 2, 3);
    // As long as the pause of a domain until it is resumed.
    fair.stop(Some(Duration::from_secs(100 * 365 * 24 * 3600)));
    assert_eq!(fair.next(SECOND), None);
    fair.stop(Some(2 * SECOND));
    assert_eq!((fair.next(SECOND), fair.next_wake(SECOND)), (None, Some(SECOND)));
    fair.stop(None);
    assert!(fair.next(SECOND).is_some());
}

#[test]
fn items_finish_and_are_queued_while_the_pool_is_stopped() {
    let mut fair = filled(8, 2, 3);
    assert_eq!(fair.next(START), Some((0, 0)));
    fair.stop(Some(10 * SECOND));
    fair.finished(&id(0), Finish::Healthy, START, SECOND);
    offer(&mut fair, 0, 3).unwrap();
    fair.offer_beyond(&id(1), 1, None, (1, 3), SECOND);
    assert_eq!((fair.next(SECOND), fair.in_flight(), fair.waiting()), (None, 0, 7));
    let mut seen = 0;
    fair.for_each_waiting(|_| seen += 1);
    assert_eq!(seen, 7, "each has its heartbeats");
    fair.stop(None);
    let mut ran = BTreeSet::from([(0, 0)]);
    while let Some(item) = fair.next(SECOND) {
        assert!(ran.insert(item));
        fair.finished(&id(item.0), Finish::Healthy, SECOND, SECOND);
    }
    assert_eq!(ran.len(), 8, "nothing is lost or runs twice");
}

#[test]
fn a_stopped_pool_moves_nothing_elsewhere() {
    let limits = PoolLimits { slots: 4, queue_per_subscription: 100, queue_per_tenant: 100, memory: 40 };
    let mut fair = FairShare::new(limits);
    let full = (0..100).take_while(|number| offer(&mut fair, *number as usize % 3, *number).is_ok()).count();
    while fair.next(START).is_some() {}
    // The rest of the memory, by others.
    for other in 3..40 {
        let _ = offer(&mut fair, other, 0);
    }
    fair.stop(Some(100 * SECOND));
    assert!(full > 4 && fair.relieve(10 * SECOND).is_empty());
    fair.stop(None);
    assert!(!fair.relieve(10 * SECOND).is_empty(), "the memory is short");
}
