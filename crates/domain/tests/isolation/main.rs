//! The scheduler against simulated endpoints and lanes, with a virtual clock: endpoints that fail in one way or another
//! do not slow down the ones that work.
//!
//! Each scenario runs with a few seeds; `HUB_SIMULATION_SEEDS` sets their number.
#![expect(
    clippy::disallowed_macros,
    clippy::disallowed_methods,
    reason = "a test may read settings and print figures"
)]

mod endpoint;
mod simulation;

use std::time::Duration;

use endpoint::Endpoint;
use simulation::{Measured, Simulation, Traffic};

const HEALTHY: usize = 50;
/// Of all healthy subscriptions together.
const HEALTHY_RATE: f64 = 500.0;
const FAILING_RATE: f64 = 240.0;
const BEFORE: Duration = Duration::from_secs(5);
const DURING: Duration = Duration::from_secs(40);

fn seeds() -> u64 {
    std::env::var("HUB_SIMULATION_SEEDS").map_or(2, |seeds| seeds.parse().expect("a number of seeds"))
}

/// Runs `failing` beside the healthy subscriptions, and compares these with the time before.
fn check(scenario: &str, failing: &[Traffic]) {
    for seed in 0..seeds() {
        let mut simulation = Simulation::new(seed);
        for _ in 0..HEALTHY {
            simulation.add(&Traffic {
                rate: HEALTHY_RATE / HEALTHY as f64,
                endpoint: Endpoint::answers_after(Duration::from_millis(10)),
                ..Traffic::default()
            });
        }
        let healthy = 0..HEALTHY;
        simulation.run_for(BEFORE);
        let before = simulation.measure(healthy.clone());
        failing.iter().for_each(|traffic| simulation.add(traffic));
        let mut worst_second = f64::MAX;
        let mut during = Measured::default();
        for _ in 0..DURING.as_secs() {
            simulation.run_for(Duration::from_secs(1));
            let second = simulation.measure(healthy.clone());
            worst_second = worst_second.min(second.delivered as f64);
            during.add(second);
        }
        let (published, delivered) = (during.published as f64, during.delivered as f64);
        let (p99_before, p99) = (before.p99(), during.p99());
        println!(
            "{scenario}, seed {seed}: {:.3} of the rate, worst second {worst_second}, p99 {p99:?} (before {p99_before:?}), \
             most in memory {}",
            delivered / published,
            simulation.most_in_memory(),
        );
        assert!(delivered >= 0.98 * published, "{scenario}, seed {seed}: {delivered} of {published}");
        assert!(worst_second >= 0.8 * HEALTHY_RATE, "{scenario}, seed {seed}: {worst_second} in a second");
        let limit = p99_before.mul_f64(1.5).max(Duration::from_millis(50));
        assert!(p99 <= limit, "{scenario}, seed {seed}: p99 {p99:?}, before {p99_before:?}");
        simulation.assert_none_lost();
    }
}

/// `count` subscriptions that share the failing rate.
fn failing(count: usize, endpoint: Endpoint) -> Vec<Traffic> {
    let rate = FAILING_RATE / count as f64;
    vec![Traffic { rate, endpoint, ..Traffic::default() }; count]
}

#[test]
fn endpoints_that_accept_and_never_answer() {
    for count in [1, 4, 10, 100] {
        check(&format!("{count} hang"), &failing(count, Endpoint::hangs()));
    }
}

#[test]
fn endpoints_that_fail_at_once_or_after_a_while() {
    check("10 reset", &failing(10, Endpoint::fails_after(Duration::from_millis(1))));
    check("10 with names that do not resolve", &failing(10, Endpoint::fails_after(Duration::from_secs(5))));
    check("10 × 503", &failing(10, Endpoint::fails_after(Duration::from_millis(10))));
}

#[test]
fn endpoints_that_ask_for_a_pause() {
    check("5 with Retry-After 9", &failing(5, Endpoint::retry_after(Duration::from_secs(9))));
    check("5 with Retry-After 3600", &failing(5, Endpoint::retry_after(Duration::from_secs(3600))));
}

#[test]
fn endpoints_with_a_rate_limit() {
    let limited: Vec<Traffic> = failing(5, Endpoint::answers_after(Duration::from_millis(10)))
        .into_iter()
        .map(|traffic| Traffic { rate_limit: Some(1.0), ..traffic })
        .collect();
    check("5 with rate_limit 1/s", &limited);
}

#[test]
fn warm_endpoints_that_begin_to_hang_or_to_be_slow() {
    let warm = |then: Endpoint, count: usize| -> Vec<Traffic> {
        let warm = Endpoint::answers_after(Duration::from_millis(10)).then(Duration::from_secs(10), then);
        let traffic = failing(count, warm).into_iter();
        traffic.map(|traffic| Traffic { max_in_flight: 1_000, ..traffic }).collect()
    };
    check("1 warm begins to hang", &warm(Endpoint::hangs(), 1));
    check("2 warm begin to hang", &warm(Endpoint::hangs(), 2));
    check("2 warm answer after 5 s", &warm(Endpoint::answers_after(Duration::from_secs(5)), 2));
    check("10 warm begin to hang", &warm(Endpoint::hangs(), 10));
}

#[test]
fn endpoints_that_flap() {
    let (on, off) = (Duration::from_secs(3), Duration::from_secs(3));
    check("10 flap", &failing(10, Endpoint::flaps(on, off)));
}

#[test]
fn endpoints_that_are_slower_than_their_events() {
    check("1 trickles", &failing(1, Endpoint::answers_after(Duration::from_secs(20))));
    let mut slow = failing(1, Endpoint::answers_after(Duration::from_millis(400)));
    slow[0].max_in_flight = 10;
    check("1 with 10 times what it can take", &slow);
}

/// Endpoints that work stay in the shared lane: there are many other lanes then, which take turns.
#[test]
fn a_burst_of_many_endpoints_that_hang_moves_only_their_own_envelopes() {
    for seed in 0..seeds() {
        let mut simulation = Simulation::new(seed);
        for _ in 0..HEALTHY {
            simulation.add(&Traffic { rate: HEALTHY_RATE / HEALTHY as f64, ..Traffic::default() });
        }
        simulation.run_for(BEFORE);
        failing(300, Endpoint::hangs()).iter().for_each(|traffic| simulation.add(traffic));
        simulation.add_backlog(300, 20);
        for second in 0..40 {
            simulation.run_for(Duration::from_secs(1));
            let p99 = simulation.measure(0..HEALTHY).p99();
            assert!(p99 <= Duration::from_millis(100), "seed {seed}, second {second}: p99 {p99:?}");
        }
        assert_eq!(simulation.with_lanes(0..HEALTHY), 0, "seed {seed}");
        simulation.assert_none_lost();
    }
}

/// Nothing is known of the subscriptions of a process that has just started, and what the failing ones could not take comes
/// first.
#[test]
fn a_new_process_with_the_backlog_of_endpoints_that_hang() {
    for count in [20, 100, 200] {
        for seed in 0..seeds() {
            let mut simulation = Simulation::new(seed);
            failing(count, Endpoint::hangs()).iter().for_each(|traffic| simulation.add(traffic));
            simulation.add_backlog(count, 60);
            simulation.add(&Traffic { rate: 5.0, ..Traffic::default() });
            simulation.run_for(Duration::from_secs(20));
            let measured = simulation.measure(count..count + 1);
            println!(
                "{count} hang, seed {seed}: {} of {}, p99 {:?}",
                measured.delivered,
                measured.published,
                measured.p99()
            );
            assert!(
                measured.p99() <= Duration::from_secs(6),
                "{count} hang, seed {seed}: p99 {:?}",
                measured.p99()
            );
            simulation.run_for(Duration::from_secs(20));
            let measured = simulation.measure(count..count + 1);
            assert!(
                measured.p99() <= Duration::from_millis(50),
                "{count} hang, seed {seed}: {:?}",
                measured.p99()
            );
            simulation.assert_none_lost();
        }
    }
}

#[test]
fn many_lanes_of_their_own() {
    for count in [300, 1000] {
        check(&format!("{count} with lanes of their own"), &failing(count, Endpoint::hangs()));
    }
}

/// Moving them would cost the broker as much as their delivery, and nothing would start sooner.
#[test]
fn a_backlog_of_endpoints_that_use_the_whole_pool_stays_in_the_shared_lane() {
    for count in [5, 10, 50] {
        for seed in 0..seeds() {
            let mut simulation = Simulation::new(seed);
            let endpoint = Endpoint::answers_after(Duration::from_millis(3));
            for _ in 0..count {
                simulation.add(&Traffic {
                    endpoint: endpoint.clone(),
                    max_in_flight: 32,
                    ..Traffic::default()
                });
            }
            simulation.add_backlog(count, 60_000 / count);
            simulation.run_for(Duration::from_secs(10));
            assert!(simulation.pending() < 100, "{} are left", simulation.pending());
            assert!(simulation.spilled() < 600, "{count}, seed {seed}: {} moved", simulation.spilled());
            simulation.assert_none_lost();
        }
    }
}

#[test]
fn endpoints_that_use_the_whole_pool_and_begin_to_hang() {
    for count in [3, 10] {
        for seed in 0..seeds() {
            let mut simulation = Simulation::new(seed);
            let quick = Endpoint::answers_after(Duration::from_millis(10));
            for _ in 0..HEALTHY {
                let rate = HEALTHY_RATE / HEALTHY as f64;
                simulation.add(&Traffic { rate, endpoint: quick.clone(), ..Traffic::default() });
            }
            simulation.run_for(BEFORE);
            let warm = quick.then(Duration::from_secs(5), Endpoint::hangs());
            for _ in 0..count {
                simulation.add(&Traffic { endpoint: warm.clone(), max_in_flight: 32, ..Traffic::default() });
            }
            simulation.add_backlog(count, 60_000 / count);
            simulation.run_for(Duration::from_secs(5));
            simulation.measure(0..HEALTHY);
            simulation.run_for(Duration::from_secs(2));
            let at_once = simulation.measure(0..HEALTHY);
            // What was behind the backlog has arrived by then.
            simulation.run_for(Duration::from_secs(5));
            simulation.measure(0..HEALTHY);
            simulation.run_for(Duration::from_secs(5));
            let later = simulation.measure(0..HEALTHY);
            println!("{count} hang, seed {seed}: {} of {} at once", at_once.delivered, at_once.published);
            let delivered = at_once.delivered as f64;
            assert!(delivered >= 0.98 * at_once.published as f64, "{count}, seed {seed}: {delivered}");
            assert!(later.delivered as f64 >= 0.98 * later.published as f64, "{count}, seed {seed}");
            assert!(later.p99() <= Duration::from_millis(50), "{count}, seed {seed}: {:?}", later.p99());
            simulation.assert_none_lost();
        }
    }
}

/// They answer in time, so they are not on probation; but what they have would be in memory for a minute.
#[test]
fn busy_endpoints_that_need_half_a_second_do_not_stop_the_reader() {
    let slow = Endpoint::answers_after(Duration::from_millis(500));
    let traffic = Traffic { rate: 100.0, endpoint: slow, max_in_flight: 32, ..Traffic::default() };
    check("5 busy ones need half a second", &vec![traffic; 5]);
}
