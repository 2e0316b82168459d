//! How long an event took to its delivery, and by which path.

use std::time::Duration;

use time::OffsetDateTime;

use crate::domain::carried::Carried;
use crate::facts::{DeliveryPath, EnvelopeDelivered};

/// `published_at`: when the events stream stored the event, in milliseconds since 1970; `deliveries`: of the broker, with
/// this one. A time in the future counts as now.
pub(super) fn delivered(
    published_at: Option<u64>,
    now: impl FnOnce() -> OffsetDateTime,
    carried: Carried,
    deliveries: u32,
) -> EnvelopeDelivered {
    let latency = published_at.map(|published_at| {
        let now = u64::try_from(now().unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
        Duration::from_millis(now.saturating_sub(published_at))
    });
    let path = match carried.dead_letter {
        Some(_) => DeliveryPath::Redriven,
        None if deliveries > 1 || carried.attempts > 0 => DeliveryPath::Retried,
        None => DeliveryPath::First,
    };
    EnvelopeDelivered { path, latency }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_that_of_the_envelope_and_the_time_that_of_the_event() {
        let now = || OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let of = |carried, deliveries| delivered(None, now, carried, deliveries).path;
        let moved = Carried { queued_at: Some(7), ..Carried::default() };
        let tried = Carried { attempts: 1, ..moved };
        let redriven = Carried { dead_letter: Some(3), attempts: 5, ..Carried::default() };
        assert_eq!((of(Carried::default(), 1), of(moved, 1)), (DeliveryPath::First, DeliveryPath::First));
        assert_eq!((of(moved, 2), of(tried, 1)), (DeliveryPath::Retried, DeliveryPath::Retried));
        assert_eq!((of(redriven, 1), of(redriven, 4)), (DeliveryPath::Redriven, DeliveryPath::Redriven));

        let after = |published_at| delivered(published_at, now, Carried::default(), 1).latency;
        assert_eq!(after(None), None);
        assert_eq!(after(Some(1_799_999_998_500)), Some(Duration::from_millis(1_500)));
        assert_eq!(after(Some(u64::MAX)), Some(Duration::ZERO));
        assert_eq!(after(Some(0)), Some(Duration::from_secs(1_800_000_000)));
    }
}
