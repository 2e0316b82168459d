//! The maps of the core have random hash seeds, and no result depends on them. Each test runs the same steps on two values,
//! whose maps have different seeds, and compares all results.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::time::Duration;

use hub_domain::allotment::{MemberId, SharedAllotments};
use hub_domain::api_changes::{ApiChange, ApiChanges};
use hub_domain::backlog::{Backlog, BacklogLimits, Ledger, OutboxLook};
use hub_domain::circuit::{CircuitPolicy, Circuits};
use hub_domain::fair_share::{FairShare, Finish, PoolLimits};
use hub_domain::holds::Holds;
use hub_domain::repeated_lines::{RepeatedLines, Thing};
use hub_domain::replay_pace::{LaneLook, UsedUp};
use hub_domain::subscription::{Identity, Incarnation, SubscriptionRef};

const SUBSCRIPTIONS: usize = 100;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn name(number: usize) -> String {
    format!("s{number}")
}

fn subscriptions() -> Vec<Identity> {
    let named = |number| SubscriptionRef::of("acme", &name(number)).expect("a valid name");
    let identity = |number| Identity { subscription: named(number), incarnation: Incarnation::new(1) };
    (0..SUBSCRIPTIONS).map(identity).collect()
}

#[track_caller]
fn assert_same<R: PartialEq + Debug>(run: impl Fn() -> R) {
    let first = run();
    for _ in 0..5 {
        assert_eq!(first, run());
    }
}

/// Otherwise the other tests show nothing.
#[test]
fn two_maps_have_different_orders() {
    let order = || (0..SUBSCRIPTIONS).collect::<HashSet<_>>().into_iter().collect::<Vec<_>>();
    assert_ne!(order(), order());
    let fast = || (0..SUBSCRIPTIONS).collect::<HashSet<_, foldhash::fast::RandomState>>();
    let order = || fast().into_iter().collect::<Vec<_>>();
    assert!((0..5).any(|_| order() != order()));
}

/// Two pools share the slots of many subscriptions, so that each waits for the other again and again.
#[test]
fn deliveries_begin_in_one_order() {
    assert_same(|| {
        let limits =
            PoolLimits { slots: 40, queue_per_subscription: 100, queue_per_tenant: 4_000, memory: 4_000 };
        let shared = SharedAllotments::new(MemberId::new(1), vec![Box::new(|| {}), Box::new(|| {})]);
        let mut pools: Vec<FairShare<(usize, usize)>> =
            (0..2).map(|pool| FairShare::sharing(limits, shared.sharer(pool))).collect();
        let subscriptions = subscriptions();
        let mut begun = Vec::new();
        for turn in 0..10 {
            for (number, subscription) in subscriptions.iter().enumerate() {
                for pool in &mut pools {
                    pool.offer(subscription, 1, None, (number, turn), seconds(0)).expect("there is room");
                }
            }
        }
        let mut running: [Vec<(usize, Duration)>; 2] = Default::default();
        for step in 1..400_u64 {
            let now = Duration::from_millis(10 * step);
            for (index, pool) in pools.iter_mut().enumerate() {
                pool.wake();
                while let Some((number, turn)) = pool.next(now) {
                    begun.push((step, index, number, turn));
                    running[index].push((number, now));
                }
            }
            for (index, pool) in pools.iter_mut().enumerate() {
                for (number, started) in running[index].drain(..) {
                    pool.finished(&subscriptions[number], Finish::Healthy, started, now);
                }
            }
        }
        assert_eq!(begun.len(), 2 * 10 * SUBSCRIPTIONS, "all are delivered");
        begun
    });
}

#[test]
fn changes_of_circuits_have_one_order() {
    let policy = CircuitPolicy {
        enabled: true,
        failures: 3,
        failing_for: seconds(1),
        first_pause: seconds(1),
        longest_pause: seconds(60),
    };
    assert_same(|| {
        let mut circuits = Circuits::new(policy.clone());
        subscriptions().iter().for_each(|subscription| circuits.opened(subscription, seconds(1)));
        circuits.listed(&[], true, seconds(2), seconds(3))
    });
}

#[test]
fn holds_pass_in_one_order() {
    assert_same(|| {
        let mut holds = Holds::default();
        for subscription in subscriptions() {
            holds.asked(&subscription, seconds(5), 503, 1, seconds(1));
            holds.reported(&subscription);
        }
        let passed = holds.passed(seconds(1_000));
        assert_eq!(passed.len(), SUBSCRIPTIONS);
        passed
    });
}

/// There are more counts than lines, so the order decides which get one.
#[test]
fn the_same_counts_get_lines() {
    assert_same(|| {
        let mut lines = RepeatedLines::new(seconds(60));
        let names: Vec<String> = (0..25).map(name).collect();
        for _ in 0..3 {
            for (name, kind) in names.iter().zip([1, 2].into_iter().cycle()) {
                lines.turn(kind, Thing { tenant: name, ..Thing::default() }, seconds(1));
            }
        }
        for number in 0..29 {
            lines.turn(1, Thing { detail: &name(number), ..Thing::default() }, seconds(62));
        }
        (lines.due(seconds(63)), lines.rest())
    });
}

#[test]
fn changes_through_the_api_have_one_order() {
    assert_same(|| {
        let mut changes = ApiChanges::new(seconds(60));
        for number in 0..50_000 {
            let (caller, tenant) = (name(number % 20), name(number % 7));
            let change =
                ApiChange { bound: None, caller: &caller, tenant: &tenant, method: "PUT", route: "/v1" };
            changes.has_line(change, seconds(1));
        }
        let rest = changes.rest();
        assert!(rest.len() > 20, "{}", rest.len());
        rest
    });
}

#[test]
fn backlogs_are_reported_in_one_order() {
    let limits = BacklogLimits { messages: Some(100), ..BacklogLimits::default() };
    assert_same(|| {
        let mut ledger = Ledger::new(limits, 1 << 30);
        let backlogs: Vec<Backlog> =
            (0..SUBSCRIPTIONS).map(|number| Backlog { token: name(number), own: 0, shared: 99 }).collect();
        let (messages, bytes) = (99 * SUBSCRIPTIONS as u64, 9_900 * SUBSCRIPTIONS as u64);
        let reported = ledger.note(&OutboxLook { messages, bytes, backlogs }, seconds(1));
        assert_eq!(reported.1.len(), SUBSCRIPTIONS);
        reported
    });
}

#[test]
fn used_up_envelopes_have_one_order() {
    assert_same(|| {
        let envelopes: HashMap<String, u64> = (0..SUBSCRIPTIONS).map(|number| (name(number), 2)).collect();
        let used_up = UsedUp::of(&[LaneLook { envelopes, active: Some(1) }]);
        used_up.tokens().map(str::to_owned).collect::<Vec<_>>()
    });
}
