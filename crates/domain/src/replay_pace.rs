//! The pace of a replay of many dead letters: which of them are replayed, and how many at a time.
//!
//! A replayed envelope has no quota, and goes to the shared lane. Many at once would fill the outbox, and take the quota of
//! their subscription, so that its new events become dead letters (`over-quota`) while the old ones are replayed. So each
//! subscription gets replays only up to half of its quota, and at most [`WINDOW`] envelopes of it wait.

use time::OffsetDateTime;

use crate::backlog::{BacklogLimits, Usage};
use crate::dead_letter::{DeadLetter, DeadLetterState};
use crate::outcome::Reason;

/// Most envelopes of a subscription that wait in the outbox while its dead letters are replayed.
pub const WINDOW: u64 = 1_000;
/// Most replays of a subscription at a time, so that those of others are not delayed.
pub const MOST_AT_ONCE: u64 = 256;
/// Percent of a quota up to which replays may use it.
const PERCENT: u64 = 50;

/// Why a dead letter is not replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftBecause {
    /// A replay of it is in progress.
    Replaying,
    /// Its subscription was removed.
    Removed,
    /// Its envelope cannot be read.
    Undecodable,
    /// It failed after the start, perhaps after a replay. It would be replayed without end.
    FailedSince,
}

/// Whether a dead letter is replayed.
///
/// * `removed`: its subscription was removed
/// * `started`: when the whole replay started
pub fn is_left(letter: &DeadLetter, removed: bool, started: OffsetDateTime) -> Option<LeftBecause> {
    // An envelope that the fan-out refused was never sent. It is new, and as good as those before it.
    let is_refused_by_fan_out = letter.reason == Reason::OverQuota && letter.redrives == 0;
    if letter.reason == Reason::Undecodable {
        Some(LeftBecause::Undecodable)
    } else if letter.state == DeadLetterState::Replaying {
        Some(LeftBecause::Replaying)
    } else if removed {
        Some(LeftBecause::Removed)
    } else if letter.failed_at > started && !is_refused_by_fan_out {
        Some(LeftBecause::FailedSince)
    } else {
        None
    }
}

/// How many dead letters of a subscription may be replayed now, by its quota and its backlog.
pub fn room(limits: &BacklogLimits, usage: &Usage) -> u64 {
    let part = |limit: u64| limit.saturating_mul(PERCENT) / 100;
    let left = |used: u64, limit: u64| part(limit).saturating_sub(used);
    if usage.messages == 0 {
        // An empty backlog has room for any envelope.
        return limits.messages.map_or(MOST_AT_ONCE, |most| part(most).clamp(1, MOST_AT_ONCE));
    }
    if limits.percent(usage) >= PERCENT {
        return 0;
    }
    let average = (usage.bytes / usage.messages).max(1);
    let by_messages = limits.messages.map_or(WINDOW, |most| left(usage.messages, most));
    let by_bytes = limits.bytes.map_or(WINDOW, |most| left(usage.bytes, most) / average);
    WINDOW.saturating_sub(usage.messages).min(by_messages).min(by_bytes).min(MOST_AT_ONCE)
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;
    use crate::outcome::Fault;
    use crate::subscription::Incarnation;

    fn letter(
        reason: Reason,
        state: DeadLetterState,
        redrives: u32,
        failed_at: OffsetDateTime,
    ) -> DeadLetter {
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
            attempts: 5,
            redrives,
            last_status: None,
            last_error: None,
            failed_at,
            next_redrive_at: None,
        }
    }

    #[test]
    fn what_fails_again_is_left_and_what_was_never_sent_is_replayed() {
        use DeadLetterState::{Parked, Replaying, Scheduled};
        let started = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let (before, after) = (started - Duration::HOUR, started + Duration::SECOND);
        for (reason, state, redrives, at, removed, expected) in [
            (Reason::Exhausted, Scheduled, 0, before, false, None),
            (Reason::Permanent, Parked, 3, started, false, None),
            (Reason::Exhausted, Scheduled, 0, after, false, Some(LeftBecause::FailedSince)),
            (Reason::OverQuota, Scheduled, 0, after, false, None),
            (Reason::OverQuota, Scheduled, 1, after, false, Some(LeftBecause::FailedSince)),
            (Reason::OverQuota, Scheduled, 1, before, false, None),
            (Reason::Exhausted, Replaying, 0, before, false, Some(LeftBecause::Replaying)),
            (Reason::Exhausted, Scheduled, 0, before, true, Some(LeftBecause::Removed)),
            (Reason::OverQuota, Scheduled, 0, after, true, Some(LeftBecause::Removed)),
            (Reason::Undecodable, Parked, 0, before, false, Some(LeftBecause::Undecodable)),
        ] {
            let letter = letter(reason, state, redrives, at);
            assert_eq!(is_left(&letter, removed, started), expected, "{letter:?}");
        }
    }

    #[test]
    fn a_subscription_gets_replays_up_to_half_of_its_quota() {
        let limits = |messages, bytes| BacklogLimits { messages, bytes, age: None };
        let usage =
            |messages: u64| Usage { messages, bytes: messages * 100, own_lane: true, free: 1_000_000_000 };
        let none = limits(None, None);
        assert_eq!(room(&none, &usage(0)), MOST_AT_ONCE);
        assert_eq!(room(&none, &usage(900)), 100);
        assert_eq!(room(&none, &usage(1_000)), 0);
        assert_eq!(room(&limits(Some(20), None), &usage(0)), 10);
        assert_eq!(room(&limits(Some(20), None), &usage(9)), 1);
        assert_eq!(room(&limits(Some(20), None), &usage(10)), 0);
        assert_eq!(room(&limits(Some(1), None), &usage(0)), 1, "one at a time");
        assert_eq!(room(&limits(None, Some(10_000)), &usage(40)), 10);
        assert_eq!(room(&limits(None, Some(10_000)), &usage(50)), 0);
        // With a lane of its own, it may have a quarter of what is free.
        assert_eq!(room(&none, &Usage { free: 79_999, ..usage(100) }), 0);
        assert!(room(&none, &Usage { free: 100_000, ..usage(100) }) > 0);
        assert!(room(&none, &Usage { free: 0, own_lane: false, ..usage(100) }) > 0);
    }

    /// Replays alone never bring a backlog beyond its quota.
    #[test]
    fn replays_never_exceed_a_quota() {
        for most in 1..200 {
            let limits = BacklogLimits { messages: Some(most), bytes: Some(most * 150), age: None };
            let mut usage = Usage { free: u64::MAX, ..Usage::default() };
            while let more @ 1.. = room(&limits, &usage) {
                usage.messages += more;
                usage.bytes += more * 100;
                assert!(usage.messages <= most.div_ceil(2).max(1), "{usage:?} of {most}");
            }
        }
    }
}
