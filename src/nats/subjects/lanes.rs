//! The names of lanes and of their durables.

use crate::domain::strict_order::PARTITIONS;
use crate::domain::subscription::SubscriptionRef;

/// The lane that every subscription starts in.
pub const SHARED_LANE: &str = "shared";

/// The name of a lane's durable, for example `lane-shared`.
pub fn lane_consumer(lane: &str) -> String {
    format!("lane-{lane}")
}

/// The lane of a durable's name.
pub fn lane_of_consumer(consumer: &str) -> Option<&str> {
    consumer.strip_prefix("lane-")
}

/// A small number of the lane of an outbox subject. Several lanes may share one, except for the shared lane, which has 0.
/// Notices between processes contain it, so it is the same in all of them.
pub fn lane_number(subject: &str) -> u8 {
    let lane = subject.rsplit('.').nth(1).unwrap_or_default();
    if lane == SHARED_LANE {
        return 0;
    }
    // FNV-1a.
    let hash = lane.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    1 + (hash % 255) as u8
}

/// The name of a subscription's own lane.
pub fn own_lane(subscription: &str) -> String {
    format!("own-{subscription}")
}

pub fn subscription_of_own_lane(lane: &str) -> Option<&str> {
    lane.strip_prefix("own-")
}

/// The name of a lane of a strict order, of which a subscription has one for each partition. The name shows that the
/// durable has one message in flight.
pub fn strict_lane(partition: u8, subscription: &str) -> String {
    format!("strict-{partition}-{subscription}")
}

/// Whether a lane belongs to a strict order.
pub fn is_strict_lane(lane: &str) -> bool {
    subscription_of_strict_lane(lane).is_some()
}

fn subscription_of_strict_lane(lane: &str) -> Option<&str> {
    let (partition, subscription) = lane.strip_prefix("strict-")?.split_once('-')?;
    let number: u8 = partition.parse().ok()?;
    (number < PARTITIONS && number.to_string() == partition).then_some(subscription)
}

/// The token of the subscription of an own lane or of a strict order's lane.
pub fn subscription_of_lane(lane: &str) -> Option<&str> {
    subscription_of_own_lane(lane).or_else(|| subscription_of_strict_lane(lane))
}

/// Whether a worker reads the lane: the shared lane, or a lane of a subscription. Another publisher may write to any
/// other one.
pub fn is_lane(lane: &str) -> bool {
    lane == SHARED_LANE || subscription_of_lane(lane).and_then(SubscriptionRef::from_token).is_some()
}
