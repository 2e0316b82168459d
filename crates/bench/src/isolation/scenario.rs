//! The scenarios: what disturbs, and how much.

use std::time::Duration;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::endpoints::Face;

/// Events per second for all disturbing endpoints together.
const DISTURBING: f64 = 240.0;
/// Deliveries per second that the endpoint of a backlog can take: its own pace.
pub(super) const OWN_PACE: f64 = 1_000.0;
/// Length of the disturbance for which the scenarios have their full size.
pub(super) const FULL_LENGTH: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// One endpoint accepts connections and never answers
    #[value(name = "hang-1")]
    Hang1,
    /// Four of these
    #[value(name = "hang-4")]
    Hang4,
    /// Ten of these
    #[value(name = "hang-10")]
    Hang10,
    /// A hundred of these
    #[value(name = "hang-100")]
    Hang100,
    /// Ten endpoints whose names do not resolve
    #[value(name = "dns-10")]
    Dns10,
    /// Ten that reset each connection
    #[value(name = "reset-10")]
    Reset10,
    /// Ten that answer 503
    #[value(name = "status503-10")]
    Status503,
    /// Five that answer 429 with a Retry-After of 9 s
    #[value(name = "retry-after-5")]
    RetryAfter,
    /// Five that answer 429 with a Retry-After of an hour
    #[value(name = "retry-after-long-5")]
    RetryAfterLong,
    /// Five well ones with a rate_limit of one delivery per second
    #[value(name = "rate-limit-5")]
    RateLimit,
    /// A warm one, with the largest max_in_flight and timeout, begins to hang
    #[value(name = "warm-hang")]
    WarmHang,
    /// Two that answer 200 after 5 s
    #[value(name = "slow-2")]
    Slow2,
    /// One that sends one byte per second
    #[value(name = "trickle-1")]
    Trickle1,
    /// One that gets ten times what it can take, for ten times as long as the others
    #[value(name = "overload-1")]
    Overload1,
    /// 300 subscriptions in lanes of their own
    #[value(name = "lanes-300")]
    Lanes300,
    /// 50,000 envelopes wait for an endpoint that comes back
    #[value(name = "backlog")]
    Backlog,
    /// 20,000 dead letters are replayed
    #[value(name = "replay")]
    Replay,
    /// One endpoint never answers, and gets the events of an hour within ten times the length of the others
    #[value(name = "hour-1")]
    Hour1,
}

/// What happens between the calm window and the disturbed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prelude {
    Nothing,
    /// A number of events for all disturbing subscriptions together, all at once.
    Burst(u64),
    /// Envelopes for the first disturbing endpoint, which wait in the outbox.
    Waiting(u64),
    /// Dead letters of the first disturbing endpoint; the disturbance is their replay.
    DeadLetters(u64),
}

pub(super) struct Disturbance {
    pub(super) endpoints: usize,
    /// Until the disturbance begins.
    pub(super) before: Face,
    pub(super) during: Face,
    /// Events per second, in turn for each of the endpoints. Without a warm endpoint only during the disturbance.
    pub(super) per_second: f64,
    pub(super) warm: bool,
    /// The names of the endpoints do not resolve.
    pub(super) unresolved: bool,
    /// Fields of `delivery` besides the URL.
    pub(super) delivery: Value,
    pub(super) prelude: Prelude,
    /// The disturbance is this many times as long as others.
    pub(super) times: u32,
    /// No second without a delivery.
    pub(super) every_second: bool,
    /// More events per second than the table is about: nothing may be refused or lost, and memory is bounded, but the
    /// latency is not judged.
    pub(super) compressed: bool,
}

impl Scenario {
    pub(super) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    pub(super) fn disturbance(self) -> Disturbance {
        let steady = |endpoints: usize, face: Face| Disturbance {
            endpoints,
            before: face,
            during: face,
            per_second: DISTURBING,
            warm: false,
            unresolved: false,
            delivery: json!({}),
            prelude: Prelude::Nothing,
            times: 1,
            every_second: false,
            compressed: false,
        };
        match self {
            Self::Hang1 => steady(1, Face::Hang),
            Self::Hang4 => steady(4, Face::Hang),
            Self::Hang10 => steady(10, Face::Hang),
            Self::Hang100 => steady(100, Face::Hang),
            Self::Dns10 => Disturbance { unresolved: true, ..steady(10, Face::Hang) },
            Self::Reset10 => steady(10, Face::Reset),
            Self::Status503 => steady(10, Face::Answer(503)),
            Self::RetryAfter => steady(5, Face::RetryAfter(9)),
            Self::RetryAfterLong => steady(5, Face::RetryAfter(3_600)),
            Self::RateLimit => Disturbance {
                delivery: json!({"rate_limit": {"per_second": 1.0, "burst": 1}}),
                ..steady(5, Face::Answer(200))
            },
            Self::WarmHang => Disturbance {
                before: Face::Answer(200),
                warm: true,
                delivery: json!({"max_in_flight": 10_000, "timeout": "60s"}),
                every_second: true,
                ..steady(1, Face::Hang)
            },
            Self::Slow2 => Disturbance { every_second: true, ..steady(2, Face::Slow(5)) },
            Self::Trickle1 => steady(1, Face::Trickle),
            Self::Overload1 => Disturbance { times: 10, ..steady(1, Face::Limited(DISTURBING / 10.0)) },
            Self::Lanes300 => Disturbance { prelude: Prelude::Burst(20 * 300), ..steady(300, Face::Hang) },
            Self::Backlog => Disturbance {
                before: Face::Answer(503),
                per_second: 0.0,
                prelude: Prelude::Waiting(50_000),
                times: 3,
                ..steady(1, Face::Limited(OWN_PACE))
            },
            Self::Replay => Disturbance {
                before: Face::Answer(400),
                per_second: 0.0,
                prelude: Prelude::DeadLetters(20_000),
                ..steady(1, Face::Answer(200))
            },
            // The hour is that of 240 events per second.
            Self::Hour1 => Disturbance {
                per_second: DISTURBING * 3_600.0 / (10.0 * FULL_LENGTH.as_secs_f64()),
                times: 10,
                compressed: true,
                ..steady(1, Face::Hang)
            },
        }
    }
}

impl Prelude {
    /// The number for a disturbance of this length.
    pub(super) fn scaled(self, length: Duration) -> Self {
        let scaled = |full: u64| {
            let part = (full as f64 * length.as_secs_f64() / FULL_LENGTH.as_secs_f64()) as u64;
            part.clamp(1, full)
        };
        match self {
            Self::Nothing => Self::Nothing,
            Self::Burst(full) => Self::Burst(scaled(full)),
            Self::Waiting(full) => Self::Waiting(scaled(full)),
            Self::DeadLetters(full) => Self::DeadLetters(scaled(full)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scenario_has_endpoints_and_something_to_do() {
        for scenario in Scenario::value_variants() {
            let Disturbance { endpoints, per_second, prelude, times, .. } = scenario.disturbance();
            assert!(endpoints > 0 && times > 0, "{scenario:?}");
            assert!(per_second > 0.0 || prelude != Prelude::Nothing, "{scenario:?}");
            assert!(scenario.name().chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{scenario:?}");
        }
    }

    #[test]
    fn numbers_are_scaled_with_the_length_up_to_the_full_one() {
        let full = Prelude::Waiting(30_000);
        assert_eq!(full.scaled(FULL_LENGTH), full);
        assert_eq!(full.scaled(FULL_LENGTH * 2), full);
        assert_eq!(full.scaled(Duration::from_secs(1)), Prelude::Waiting(1_000));
    }
}
