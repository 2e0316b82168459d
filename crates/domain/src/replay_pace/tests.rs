use proptest::prelude::*;
use time::OffsetDateTime;

use super::*;
use crate::outcome::Fault;
use crate::subscription::Incarnation;

fn letter(reason: Reason, state: DeadLetterState, attempts: u32, redrives: u32) -> DeadLetter {
    DeadLetter {
        id: "env_1".into(),
        domain: "policy-client".into(),
        subscription: "crm".into(),
        tenant: "acme".into(),
        incarnation: Incarnation::new(7),
        event_id: "e1".into(),
        event_key: "policy.updated".into(),
        reason,
        fault: Fault::Subscriber,
        state,
        attempts,
        redrives,
        last_status: None,
        last_error: None,
        failed_at: OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap(),
        next_redrive_at: None,
    }
}

#[test]
fn what_fails_again_is_left_and_what_was_never_sent_is_replayed() {
    use DeadLetterState::{Parked, Replaying, Scheduled};
    use LeftBecause::{FailedSince, NewSince, Removed, Undecodable};
    // 100 dead letters at the start, and 50 that the events of that time became.
    let none = WaitingEvents { first: 2, last: 1 };
    let mut extent = Extent::new(WaitingEvents { first: 1, last: 1 }, 100, std::time::Duration::ZERO);
    extent.look(none, 150, std::time::Duration::ZERO);
    for (reason, state, attempts, redrives, sequence, removed, expected) in [
        (Reason::Exhausted, Scheduled, 5, 0, 100, false, None),
        (Reason::Permanent, Parked, 1, 3, 1, false, None),
        (Reason::Exhausted, Scheduled, 5, 0, 101, false, Some(FailedSince)),
        (Reason::Exhausted, Scheduled, 5, 0, 151, false, Some(FailedSince)),
        // Refused by the fan-out, and postponed by the schedule: never sent.
        (Reason::OverQuota, Scheduled, 0, 0, 101, false, None),
        (Reason::OverQuota, Scheduled, 0, 4, 150, false, None),
        (Reason::OverQuota, Parked, 0, 9, 150, false, None),
        // New ones would extend the replay without end.
        (Reason::OverQuota, Scheduled, 0, 0, 151, false, Some(NewSince)),
        (Reason::OverQuota, Scheduled, 0, 1, 151, false, Some(NewSince)),
        (Reason::OverQuota, Scheduled, 3, 1, 120, false, Some(FailedSince)),
        (Reason::Exhausted, Replaying, 5, 0, 100, false, Some(LeftBecause::Replaying)),
        (Reason::Exhausted, Scheduled, 5, 0, 100, true, Some(Removed)),
        (Reason::OverQuota, Scheduled, 0, 0, 101, true, Some(Removed)),
        (Reason::Undecodable, Parked, 0, 0, 100, false, Some(Undecodable)),
    ] {
        let letter = letter(reason, state, attempts, redrives);
        assert_eq!(is_left(&letter, sequence, None, removed, &extent), expected, "{sequence} {letter:?}");
    }
}

/// An envelope that had failed before the start becomes a dead letter late, when there is room. Its replay has a later place
/// in the outbox, so that it is not replayed twice.
#[test]
fn what_waited_in_the_outbox_is_replayed_once() {
    let (zero, none) = (std::time::Duration::ZERO, WaitingEvents::NONE);
    let without = Extent::new(none, 100, zero);
    let mut extent = without.with_used_up(20, 900);
    extent.look(none, 150, zero);
    let letter = letter(Reason::Exhausted, DeadLetterState::Scheduled, 5, 0);
    let left = |sequence, envelope, extent| is_left(&letter, sequence, envelope, false, extent);
    assert_eq!(left(120, Some(900), &extent), None);
    assert_eq!(left(120, Some(901), &extent), Some(LeftBecause::FailedSince));
    assert_eq!(left(120, None, &extent), Some(LeftBecause::FailedSince));
    assert_eq!(
        left(151, Some(900), &extent),
        Some(LeftBecause::NewSince),
        "the same command again replays it"
    );
    assert_eq!(left(120, Some(900), &without), Some(LeftBecause::FailedSince));
}

fn limits(messages: Option<u64>, bytes: Option<u64>) -> BacklogLimits {
    BacklogLimits { messages, bytes, age: None }
}

#[test]
fn a_subscription_gets_replays_up_to_half_of_its_quota() {
    let usage = |messages: u64| Usage {
        messages,
        bytes: messages * 100,
        own_lane: true,
        free: 1_000_000_000,
        grace: 0,
    };
    let room = |messages, bytes, waiting| {
        let mut room = ReplayRoom::of_subscription(&limits(messages, bytes), &usage(waiting));
        let mut count = 0;
        while room.fits(100) {
            room.take(100);
            count += 1;
        }
        count
    };
    assert_eq!(room(None, None, 0), MOST_AT_ONCE);
    assert_eq!(room(None, None, 900), 100);
    assert_eq!(room(None, None, 1_000), 0);
    assert_eq!(room(Some(20), None, 0), 10);
    assert_eq!(room(Some(20), None, 9), 1);
    assert_eq!(room(Some(20), None, 10), 0);
    assert_eq!(room(Some(1), None, 0), 1, "one at a time");
    assert_eq!(room(None, Some(10_000), 40), 10);
    assert_eq!(room(None, Some(10_000), 50), 0);
    assert_eq!(room(None, Some(1), 0), 1, "an empty backlog has room for one of any size");
    // With a lane of its own, it may have a quarter of what is free, and replays half of that.
    let with = |free, own_lane| {
        let usage = Usage { free, own_lane, ..usage(100) };
        ReplayRoom::of_subscription(&limits(None, None), &usage)
    };
    assert!(with(80_000, true).is_none() && !with(100_000, true).is_none() && !with(0, false).is_none());
}

#[test]
fn as_many_are_read_as_have_room() {
    let room = ReplayRoom { messages: 256, bytes: 500_000, one: 0 };
    assert_eq!(
        (room.count(0), room.count(1_000), room.count(200_000), room.count(u64::MAX)),
        (256, 256, 3, 1)
    );
}

#[test]
fn a_few_go_on_beside_used_up_envelopes() {
    assert_eq!(ReplayRoom::of_few(0).messages, FEW);
    assert!(
        ReplayRoom::of_few(FEW).is_none()
            && ReplayRoom::of_few(u64::MAX).is_none()
            && ReplayRoom::of_few(1).fits(u64::MAX)
    );
    let fill = |bytes| Fill { bytes, messages: 100, max_bytes: Some(1_000_000), max_messages: None };
    let room = ReplayRoom::beside_used_up(&fill(900_000), 0, 0);
    assert!(room.fits(100_000), "one may use all that is free");
    assert!(!room.fits(100_001), "the outbox would reject it");
    let room = ReplayRoom::beside_used_up(&fill(900_000), 1, 10_000);
    assert!(room.fits(40_000) && !room.fits(40_001));
    assert!(ReplayRoom::beside_used_up(&fill(1_000_000), 0, 0).is_none());
    assert!(ReplayRoom::beside_used_up(&fill(0), FEW_OF_ALL, 0).is_none());
}

proptest! {
    /// A full dead-letter stream, and an outbox of used-up envelopes: as long as the outbox has room for one more, the
    /// replay goes on until nothing is left, whatever the sizes and the quota are. It never fills the outbox.
    #[test]
    fn a_replay_makes_room_for_used_up_envelopes(
        used_up in prop::collection::vec(1..20_000u64, 1..200),
        letters in prop::collection::vec(1..20_000u64, 1..200),
        most in 1..100u64,
        is_known in any::<bool>(),
        free in 20_000..200_000u64,
    ) {
        let limits = limits(Some(most), Some(most * 1_000));
        let (mut letters, mut waiting) = (VecDeque::from(letters), used_up);
        let limit = waiting.iter().sum::<u64>() + free;
        let dlt: u64 = letters.iter().sum();
        let mut looks = 0;
        while !letters.is_empty() {
            looks += 1;
            prop_assert!(looks < 10_000, "{} letters, {} used up", letters.len(), waiting.len());
            let stored: u64 = waiting.iter().sum();
            let count = waiting.len() as u64;
            let fill = Fill { bytes: stored, messages: count, max_bytes: Some(limit), max_messages: None };
            let mut space = Allowance::new(ReplayRoom::of_outbox(&fill, 0, 0), Some(ReplayRoom::beside_used_up(&fill, 0, 0)));
            let active = if is_known { 0 } else { count };
            let usage = Usage { messages: active, bytes: active * 1_000, own_lane: true, free: limit - stored, grace: 0 };
            let few = (!is_known).then(|| ReplayRoom::of_few(0));
            let mut room = Allowance::new(ReplayRoom::of_subscription(&limits, &usage), few);
            let mut sent = 0;
            while let Some(size) = letters.front().copied()
                && let (Some(fit), Some(fit_of_outbox)) = (room.fit(size), space.fit(size))
            {
                room.take(size, fit);
                space.take(size, fit_of_outbox);
                sent += size;
                letters.pop_front();
            }
            prop_assert!(sent > 0 && stored + sent <= limit, "{sent} sent, {stored} of {limit}");
            // All are delivered, and used-up envelopes become dead letters.
            let mut free = dlt - letters.iter().sum::<u64>();
            waiting.retain(|size| {
                let fits = *size <= free;
                if fits {
                    free -= size;
                    letters.push_back(*size);
                }
                !fits
            });
        }
        prop_assert!(waiting.iter().all(|size| *size > dlt), "only what never fits is left");
    }

    /// Replays never bring a backlog beyond half of its quota, nor the outbox beyond what is kept free, whatever their
    /// sizes are, in whatever order they are delivered, and whatever average size the outbox has. Only a single envelope
    /// may be larger.
    #[test]
    fn replays_never_exceed_a_quota(
        most in 1..400u64,
        most_bytes in 1..4_000_000u64,
        outbox in 1_000_000..100_000_000u64,
        average in 0..2_000u64,
        sizes in prop::collection::vec(prop_oneof![1..2_000u64, 100_000..1_048_576u64], 1..400),
        deliveries in prop::collection::vec((0..40usize, 0..1_000usize), 1..60),
    ) {
        let limits = limits(Some(most), Some(most_bytes));
        let (mut next, mut backlog, mut replayed) = (sizes.iter().copied(), Vec::<u64>::new(), ReplayedSizes::default());
        let mut peeked = next.next();
        for (count, offset) in deliveries {
            let messages = backlog.len() as u64;
            let stored: u64 = backlog.iter().sum();
            let bytes = (messages * average).max(replayed.most_bytes_of(messages));
            prop_assert!(bytes >= stored, "{bytes} of {stored}");
            let usage = Usage { messages, bytes, own_lane: false, free: u64::MAX, grace: 0 };
            let fill = Fill { bytes: stored, messages, max_bytes: Some(outbox), max_messages: None };
            let mut room = ReplayRoom::of_subscription(&limits, &usage);
            let mut space = ReplayRoom::of_outbox(&fill, 0, 0);
            while let Some(size) = peeked.filter(|size| room.fits(*size) && space.fits(*size)) {
                room.take(size);
                space.take(size);
                replayed.add(size);
                backlog.push(size);
                peeked = next.next();
            }
            let stored: u64 = backlog.iter().sum();
            prop_assert!(backlog.len() as u64 <= (most / 2).max(1), "{} of {most}", backlog.len());
            prop_assert!(backlog.len() <= 1 || stored <= most_bytes / 2, "{stored} of {most_bytes}");
            prop_assert!(backlog.len() <= 1 || outbox - stored >= outbox / 8, "{stored} of {outbox}");
            for _ in 0..count.min(backlog.len()) {
                backlog.swap_remove(offset % backlog.len());
            }
        }
    }

    /// What is requested and not in the outbox yet is not free.
    #[test]
    fn many_subscriptions_share_one_outbox(
        sizes in prop::collection::vec(1..1_048_576u64, 1..2_000),
        limit in 1_000_000..64_000_000u64,
        looks in 1..20u64,
    ) {
        let fill = Fill { bytes: 1, messages: 1, max_bytes: Some(limit), max_messages: None };
        let (mut pending, mut bytes) = (0, 0);
        for _ in 0..looks {
            let mut space = ReplayRoom::of_outbox(&fill, pending, bytes);
            for size in sizes.iter().filter(|_| !space.is_none()).copied().collect::<Vec<_>>() {
                if space.fits(size) {
                    space.take(size);
                    (pending, bytes) = (pending + 1, bytes + size);
                }
            }
        }
        prop_assert!(bytes <= limit - limit / 8, "{bytes} of {limit}");
    }
}
