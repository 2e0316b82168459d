//! Several processes that hear each other's notices: the limits hold for all of them together, and nobody starves.

mod processes;
mod scenarios;

use std::time::Duration;

use super::*;
use crate::subscription::{Incarnation, SubscriptionRef};

fn named(name: &str) -> Identity {
    let subscription = SubscriptionRef::of("acme", name).unwrap();
    Identity { subscription, incarnation: Incarnation::new(1) }
}

fn crm() -> Identity {
    named("crm")
}

fn limits(max_in_flight: u32, rate: Option<(f64, u32)>) -> FlowLimits {
    let rate = rate.map(|(per_second, burst)| RateLimit { per_second, burst });
    FlowLimits { max_in_flight, rate, offered: Duration::ZERO }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
