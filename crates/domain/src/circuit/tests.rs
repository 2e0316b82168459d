use proptest::prelude::*;

use super::*;
use crate::subscription::{Incarnation, SubscriptionRef};

fn policy() -> CircuitPolicy {
    CircuitPolicy {
        enabled: true,
        failures: 10,
        failing_for: seconds(30),
        first_pause: seconds(5),
        longest_pause: seconds(600),
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn named(id: &str) -> Identity {
    Identity { subscription: SubscriptionRef::of("acme", id).unwrap(), incarnation: Incarnation::new(1) }
}

/// The failures of the given envelopes at the given seconds; returns at which failures the circuit opens.
fn failures(circuits: &mut Circuits, crm: &Identity, failures: &[(&str, u64)]) -> Vec<usize> {
    let opens = failures.iter().enumerate().filter(|(_, (id, at))| circuits.fails(crm, id, seconds(*at)));
    opens.map(|(position, _)| position + 1).collect()
}

#[test]
fn it_opens_after_failures_in_a_row_of_several_envelopes_over_a_time() {
    let crm = named("crm");
    let two: Vec<(&str, u64)> = (0..20).map(|number| (["a", "b"][number % 2], 4 * number as u64)).collect();
    let mut circuits = Circuits::new(policy());
    assert_eq!(failures(&mut circuits, &crm, &two), [10], "asked once only");
    circuits.not_opened(&crm);
    assert!(circuits.fails(&crm, "a", seconds(81)), "asked again");
    circuits.opened(&crm, seconds(82));
    assert!(circuits.is_tripped(&crm) && circuits.tripped() == 1);
    assert!(!circuits.fails(&crm, "a", seconds(200)), "it is open");
    circuits.closed(&crm, seconds(201));
    assert_eq!(failures(&mut circuits, &crm, &two[..9]), [] as [usize; 0], "counted from the start");

    let one: Vec<(&str, u64)> = (0..100).map(|number| ("a", number)).collect();
    assert_eq!(failures(&mut Circuits::new(policy()), &crm, &one), [] as [usize; 0], "one envelope");
    let burst: Vec<(&str, u64)> = (0..100).map(|number| (["a", "b"][number % 2], 29)).collect();
    let mut circuits = Circuits::new(policy());
    assert!(!circuits.fails(&crm, "a", seconds(0)));
    assert_eq!(failures(&mut circuits, &crm, &burst), [] as [usize; 0], "for less than the time");
    let mut off = Circuits::new(CircuitPolicy { enabled: false, ..policy() });
    assert_eq!(failures(&mut off, &crm, &two), [] as [usize; 0]);
}

/// With the default retries, an envelope whose endpoint fails has its five attempts after 51 s.
#[test]
fn two_envelopes_with_the_default_retries_are_exhausted_before_it_opens() {
    let (crm, retries) = (named("crm"), [0, 1, 6, 21, 51]);
    let both: Vec<(&str, u64)> = retries.iter().flat_map(|at| [("a", *at), ("b", *at)]).collect();
    assert_eq!(failures(&mut Circuits::new(policy()), &crm, &both), [10]);
    let many: Vec<(String, u64)> =
        retries.iter().flat_map(|at| (0..50).map(|id| (id.to_string(), *at))).collect();
    let many: Vec<(&str, u64)> = many.iter().map(|(id, at)| (id.as_str(), *at)).collect();
    let opens = failures(&mut Circuits::new(policy()), &crm, &many);
    assert_eq!(opens, [201], "at the first failure after 30 s");
}

#[test]
fn what_works_ends_the_run_of_failures() {
    let (crm, mut circuits) = (named("crm"), Circuits::new(policy()));
    for round in 0..100 {
        let at = 100 * round;
        let nine: Vec<(String, u64)> = (0..9).map(|number| (number.to_string(), at + 10 * number)).collect();
        for (id, at) in &nine {
            assert!(!circuits.fails(&crm, id, seconds(*at)));
        }
        circuits.works(&crm);
    }
}

#[test]
fn pauses_double_up_to_the_longest() {
    let policy = policy();
    let mut last = None;
    let mut all = Vec::new();
    for _ in 0..9 {
        let pause = policy.next_pause(last, 0.5);
        all.push(pause.as_secs());
        last = Some(pause);
    }
    assert_eq!(all, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
    assert_eq!(
        policy.next_pause(Some(Duration::ZERO), 0.5),
        seconds(5),
        "a stored value that somebody changed"
    );
    assert_eq!(policy.next_pause(Some(Duration::MAX), 0.5), seconds(600));
    assert_eq!(policy.next_pause(None, 0.0), Duration::from_millis(4_500));
    assert_eq!(policy.next_pause(None, 1.0), Duration::from_millis(5_500));
}

#[test]
fn every_outcome_has_its_sign() {
    let answered = |status, retry_after| Outcome::Answered { status, retry_after };
    let of = |outcome| sign(&outcome, &Statuses::default());
    for status in [200, 204, 302, 400, 401, 404, 408, 409, 410, 422, 429, 501] {
        assert_eq!(of(answered(status, None)), Sign::Works, "{status}");
    }
    for status in [500, 502, 503, 504, 599] {
        assert_eq!(of(answered(status, None)), Sign::Fails, "{status}");
        assert_eq!(of(answered(status, Some(Duration::ZERO))), Sign::Fails, "{status}");
        assert_eq!(of(answered(status, Some(seconds(1)))), Sign::Works, "{status} asks for a hold");
    }
    assert_eq!(of(Outcome::Acknowledged), Sign::Works);
    use Failure::{
        AddressRefused, Broken, BrokerRefused, BrokerUnavailable, Connect, Dns, Malformed, Request, Sealed,
        Timeout, Tls, Token, UnknownBroker, Unpublishable,
    };
    for failure in [Timeout, Dns, Connect, Tls, Broken, Malformed, Token, BrokerUnavailable, BrokerRefused] {
        assert_eq!(of(Outcome::Failed(failure)), Sign::Fails, "{failure}");
    }
    for failure in [AddressRefused, Unpublishable, Sealed, Request, UnknownBroker] {
        assert_eq!(of(Outcome::Failed(failure)), Sign::None, "{failure}");
    }
}

#[test]
fn an_answer_of_the_broker_does_not_undo_what_is_newer() {
    let (crm, erp, mut circuits) = (named("crm"), named("erp"), Circuits::new(policy()));
    let change = circuits.listed(std::slice::from_ref(&crm), true, seconds(1), seconds(2));
    assert_eq!(change, [CircuitChange::Tripped(crm.clone())]);
    assert_eq!(circuits.listed(std::slice::from_ref(&crm), true, seconds(3), seconds(4)), []);
    circuits.closed(&crm, seconds(6));
    circuits.opened(&erp, seconds(6));
    assert_eq!(circuits.listed(std::slice::from_ref(&crm), true, seconds(5), seconds(7)), [], "asked before");
    assert!(!circuits.is_tripped(&crm) && circuits.is_tripped(&erp));
    let part = circuits.listed(std::slice::from_ref(&crm), false, seconds(8), seconds(9));
    assert_eq!(part, [CircuitChange::Tripped(crm.clone())]);
    let changes = circuits.listed(&[], true, seconds(9), seconds(10));
    assert_eq!(changes, [CircuitChange::Closed(erp)], "the other became known in the meantime");
}

#[test]
fn the_number_of_counted_subscriptions_is_bounded() {
    let mut circuits = Circuits::new(policy());
    for number in 0..3 * MOST_RUNS {
        assert!(!circuits.fails(&named(&format!("s-{number}")), "a", Duration::from_millis(number as u64)));
        assert!(circuits.runs.len() <= MOST_RUNS);
    }
}

/// A process of the model, with the answer of the broker that it has not processed yet.
struct Process {
    circuits: Circuits,
    answer: Option<(Vec<Identity>, Duration)>,
}

proptest! {
    /// Two processes and a broker that holds the circuit: whatever the order of events, both agree with the broker after
    /// each has asked it once more, and a circuit opens only by failures.
    #[test]
    fn processes_agree_with_the_broker(steps in proptest::collection::vec((0..2usize, 0..6u8), 1..200)) {
        let crm = named("crm");
        let policy = CircuitPolicy { failures: 2, failing_for: Duration::ZERO, ..policy() };
        let new = || Process { circuits: Circuits::new(policy.clone()), answer: None };
        let mut processes = [new(), new()];
        let (mut broker, mut failed) = (false, false);
        let mut now = Duration::ZERO;
        for (position, (process, step)) in steps.into_iter().enumerate() {
            now += Duration::from_millis(1);
            let process = &mut processes[process];
            match step {
                0 | 1 => {
                    failed = true;
                    if process.circuits.fails(&crm, &position.to_string(), now) {
                        broker = true;
                        process.circuits.opened(&crm, now);
                    }
                }
                2 if process.circuits.is_tripped(&crm) => {
                    broker = false;
                    process.circuits.closed(&crm, now);
                }
                2 | 3 => process.circuits.works(&crm),
                4 => process.answer = Some((if broker { vec![crm.clone()] } else { Vec::new() }, now)),
                _ => {
                    if let Some((found, asked)) = process.answer.take() {
                        process.circuits.listed(&found, true, asked, now);
                    }
                }
            }
            prop_assert!(failed || !broker);
            prop_assert!(process.circuits.closed.len() <= 1 && process.circuits.runs.len() <= 1);
        }
        for process in &mut processes {
            now += Duration::from_millis(1);
            let found = if broker { vec![crm.clone()] } else { Vec::new() };
            process.circuits.listed(&found, true, now, now + Duration::from_millis(1));
            prop_assert_eq!(process.circuits.is_tripped(&crm), broker);
        }
    }

    #[test]
    fn a_pause_is_never_longer_than_the_longest_with_its_jitter(last in any::<u64>(), jitter in 0.0..1.0f64) {
        let policy = policy();
        let pause = policy.next_pause(Some(Duration::from_millis(last)), jitter);
        prop_assert!(pause >= policy.first_pause.mul_f64(0.9) && pause <= policy.longest_pause.mul_f64(1.1));
    }
}
