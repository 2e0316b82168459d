//! The table of decisions, line by line, and for every outcome and attempt.

use proptest::prelude::*;

use super::*;

fn policy() -> RetryPolicy {
    RetryPolicy {
        max_deliver: 5,
        waits: [1, 5, 15, 30].map(Duration::from_secs).to_vec(),
        max_retry_after: Duration::from_secs(3600),
    }
}

/// A subscription with the default statuses.
const NONE: Statuses = Statuses { retry: Vec::new(), permanent: Vec::new() };

fn answered(status: u16) -> Outcome {
    Outcome::Answered { status, retry_after: None }
}

const FAILURES: [Failure; 14] = [
    Failure::Timeout,
    Failure::Dns,
    Failure::Connect,
    Failure::Tls,
    Failure::Broken,
    Failure::Malformed,
    Failure::AddressRefused,
    Failure::Token,
    Failure::Sealed,
    Failure::Request,
    Failure::BrokerUnavailable,
    Failure::BrokerRefused,
    Failure::Unpublishable,
    Failure::UnknownBroker,
];

/// With a `jitter` of 0.5, a wait is as configured.
fn decisions(outcome: &Outcome) -> (DeliveryDecision, DeliveryDecision) {
    (decide(outcome, 1, &policy(), &NONE, 0.5), decide(outcome, 5, &policy(), &NONE, 0.5))
}

#[test]
fn the_table_line_by_line() {
    let retry = DeliveryDecision::Retry { after: Duration::from_secs(1) };
    let dead = |reason, fault| DeliveryDecision::DeadLetter { reason, fault };
    let exhausted = dead(Reason::Exhausted, Fault::Subscriber);
    let permanent = dead(Reason::Permanent, Fault::Subscriber);
    for status in 200..=299 {
        assert_eq!(decisions(&answered(status)), (DeliveryDecision::Ack, DeliveryDecision::Ack), "{status}");
    }
    for status in [400, 410, 413, 414, 415, 422, 501] {
        assert_eq!(decisions(&answered(status)), (permanent, permanent), "{status}");
    }
    for status in [
        0, 100, 101, 199, 300, 301, 302, 303, 304, 307, 308, 401, 402, 403, 404, 405, 408, 409, 412, 418,
        421, 425, 428, 429, 451, 499, 500, 502, 503, 504, 505, 507, 599, 600, 999,
    ] {
        assert_eq!(decisions(&answered(status)), (retry, exhausted), "{status}");
    }
    for (failure, expected) in [
        (Failure::Timeout, (retry, exhausted)),
        (Failure::Dns, (retry, exhausted)),
        (Failure::Connect, (retry, exhausted)),
        (Failure::Tls, (retry, exhausted)),
        (Failure::Broken, (retry, exhausted)),
        (Failure::Malformed, (retry, exhausted)),
        (Failure::Token, (retry, exhausted)),
        (Failure::AddressRefused, (permanent, permanent)),
        (Failure::Sealed, (retry, dead(Reason::Exhausted, Fault::Hub))),
        (Failure::Request, (retry, dead(Reason::Exhausted, Fault::Hub))),
        (Failure::BrokerUnavailable, (retry, exhausted)),
        (Failure::BrokerRefused, (retry, exhausted)),
        (Failure::Unpublishable, (permanent, permanent)),
        (Failure::UnknownBroker, (retry, dead(Reason::Exhausted, Fault::Hub))),
    ] {
        assert_eq!(decisions(&Outcome::Failed(failure)), expected, "{failure:?}");
    }
}

#[test]
fn outcomes_of_a_broker_have_no_status() {
    let acknowledged = Outcome::Acknowledged;
    assert_eq!(decisions(&acknowledged), (DeliveryDecision::Ack, DeliveryDecision::Ack));
    assert_eq!(
        (acknowledged.status(), acknowledged.kind(), acknowledged.error_text()),
        (None, None, String::new())
    );
    assert!(acknowledged.finish() == Finish::Healthy && !disables(&acknowledged, &NONE));
    for (failure, finish) in [
        (Failure::BrokerUnavailable, Finish::Unhealthy),
        (Failure::BrokerRefused, Finish::Unhealthy),
        (Failure::Unpublishable, Finish::Untried),
        (Failure::UnknownBroker, Finish::Untried),
    ] {
        let outcome = Outcome::Failed(failure);
        assert_eq!((outcome.finish(), outcome.status()), (finish, None), "{failure:?}");
    }
}

#[test]
fn a_subscription_may_override_statuses_line_by_line() {
    let statuses: Statuses =
        serde_json::from_str(r#"{"retry": [400, "4xx"], "permanent": [404, 503]}"#).unwrap();
    let both = |outcome: &Outcome| {
        (decide(outcome, 1, &policy(), &statuses, 0.5), decide(outcome, 5, &policy(), &statuses, 0.5))
    };
    let retry = DeliveryDecision::Retry { after: Duration::from_secs(1) };
    let dead = |reason| DeliveryDecision::DeadLetter { reason, fault: Fault::Subscriber };
    let (retried, permanent) =
        ((retry, dead(Reason::Exhausted)), (dead(Reason::Permanent), dead(Reason::Permanent)));
    for (status, expected) in [
        (200, (DeliveryDecision::Ack, DeliveryDecision::Ack)),
        (400, retried),
        (422, retried),
        (404, permanent),
        (410, permanent),
        (500, retried),
        (501, permanent),
        (503, permanent),
    ] {
        assert_eq!(both(&answered(status)), expected, "{status}");
    }
    assert_eq!(both(&Outcome::Failed(Failure::AddressRefused)), permanent);
}

#[test]
fn only_a_410_disables_unless_the_subscription_overrides_it() {
    let own = |json: &str| serde_json::from_str::<Statuses>(json).unwrap();
    for status in 100..=599 {
        assert_eq!(disables(&answered(status), &NONE), status == 410, "{status}");
    }
    assert!(disables(&answered(410), &own(r#"{"retry": ["4xx"]}"#)));
    assert!(!disables(&answered(410), &own(r#"{"retry": [410]}"#)));
    assert!(!disables(&answered(410), &own(r#"{"permanent": [410]}"#)));
    assert!(FAILURES.iter().all(|failure| !disables(&Outcome::Failed(*failure), &NONE)));
}

#[test]
fn retry_after_holds_the_subscription_within_the_bound() {
    let hold = |status, seconds: u64| {
        let retry_after = Some(Duration::from_secs(seconds));
        hold(&Outcome::Answered { status, retry_after }, &policy(), &NONE)
    };
    assert_eq!(hold(429, 3), Some(Duration::from_secs(3)));
    assert_eq!(hold(503, 1_000_000), Some(Duration::from_secs(3600)));
    assert_eq!(hold(429, 0), None);
    assert_eq!(hold(200, 9), None);
    assert_eq!(hold(400, 9), None, "a permanent refusal asks for no pause");
}

#[test]
fn each_failure_has_a_kind_of_its_own() {
    let kinds: std::collections::BTreeSet<_> =
        FAILURES.iter().map(|failure| Outcome::Failed(*failure).kind()).collect();
    assert_eq!(kinds.len(), FAILURES.len());
    for failure in FAILURES {
        assert_eq!(serde_json::to_value(failure).unwrap(), failure.kind());
    }
    for (status, kind) in [
        (204, None),
        (302, Some("redirect")),
        (404, Some("client-error")),
        (410, Some("gone")),
        (429, Some("throttled")),
        (503, Some("server-error")),
        (999, Some("odd-status")),
    ] {
        assert_eq!(answered(status).kind(), kind, "{status}");
    }
}

#[test]
fn waits_follow_the_schedule_and_its_last_entry_repeats() {
    let wait = |attempt, jitter| match decide(
        &answered(503),
        attempt,
        &RetryPolicy { max_deliver: 9, ..policy() },
        &NONE,
        jitter,
    ) {
        DeliveryDecision::Retry { after } => after.as_secs_f64(),
        other => panic!("{other:?}"),
    };
    for (attempt, seconds) in [(1, 1.0), (2, 5.0), (3, 15.0), (4, 30.0), (5, 30.0), (8, 30.0)] {
        assert!((wait(attempt, 0.5) - seconds).abs() < 1e-6);
    }
    assert!((wait(3, 0.0) - 13.5).abs() < 1e-6);
    assert!((wait(3, 0.999_999) - 16.5).abs() < 1e-3);
    let none = RetryPolicy { waits: Vec::new(), ..policy() };
    assert_eq!(
        decide(&answered(503), 1, &none, &NONE, 0.9),
        DeliveryDecision::Retry { after: Duration::ZERO }
    );
}

#[test]
fn retry_after_lengthens_the_wait_within_its_bound() {
    let wait = |seconds| {
        let retry_after = Some(Duration::from_secs(seconds));
        decide(&Outcome::Answered { status: 429, retry_after }, 2, &policy(), &NONE, 0.5)
    };
    assert_eq!(wait(120), DeliveryDecision::Retry { after: Duration::from_secs(120) });
    assert_eq!(wait(0), DeliveryDecision::Retry { after: Duration::from_secs(5) });
    assert_eq!(wait(1_000_000), DeliveryDecision::Retry { after: Duration::from_secs(3600) });
    let last = Outcome::Answered { status: 503, retry_after: Some(Duration::from_secs(9)) };
    assert!(matches!(
        decide(&last, 5, &policy(), &NONE, 0.5),
        DeliveryDecision::DeadLetter { reason: Reason::Exhausted, .. }
    ));
}

#[test]
fn outcomes_have_texts_for_display() {
    assert_eq!(answered(503).error_text(), "503 Service Unavailable");
    assert_eq!(answered(599).error_text(), "status 599");
    assert_eq!(answered(204).error_text(), "");
    assert_eq!(Outcome::Failed(Failure::Timeout).error_text(), "timed out");
    assert_eq!((answered(404).status(), Outcome::Failed(Failure::Dns).status()), (Some(404), None));
    assert!(FAILURES.iter().all(|failure| !failure.to_string().is_empty()));
}

#[test]
fn dead_endpoints_are_unhealthy_and_rejecting_ones_healthy() {
    for (status, healthy) in
        [(200, true), (301, true), (401, true), (404, true), (429, false), (500, false), (503, false)]
    {
        let finish = if healthy { Finish::Healthy } else { Finish::Unhealthy };
        assert_eq!(answered(status).finish(), finish, "{status}");
    }
    for failure in FAILURES {
        let not_theirs = matches!(
            failure,
            Failure::Sealed | Failure::Request | Failure::UnknownBroker | Failure::Unpublishable
        );
        let finish = if not_theirs { Finish::Untried } else { Finish::Unhealthy };
        assert_eq!(Outcome::Failed(failure).finish(), finish, "{failure:?}");
    }
}

#[test]
fn names_read_back() {
    for reason in Reason::ALL {
        assert_eq!(Reason::read_stored(reason.as_str()), Some(reason));
        assert_eq!(reason.to_string().parse::<Reason>().is_ok(), Reason::PRODUCED.contains(&reason));
        assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
    }
    for fault in [Fault::Subscriber, Fault::Hub] {
        assert_eq!(fault.to_string().parse(), Ok(fault));
        assert_eq!(serde_json::to_value(fault).unwrap(), fault.to_string());
    }
    let error = "gone".parse::<Reason>().unwrap_err().to_string();
    assert!(error.contains("disabled") && !error.contains("circuit-open"), "{error}");
    assert_eq!(Reason::read_stored("gone"), None);
    assert!("Hub".parse::<Fault>().is_err());
}

fn any_outcome() -> impl Strategy<Value = Outcome> {
    let seconds = proptest::option::of(any::<u64>());
    prop_oneof![
        (any::<u16>(), seconds).prop_map(|(status, seconds)| Outcome::Answered {
            status,
            retry_after: seconds.map(Duration::from_secs)
        }),
        proptest::sample::select(&FAILURES[..]).prop_map(Outcome::Failed),
    ]
}

proptest! {
    #[test]
    fn each_outcome_of_each_attempt_has_one_decision_and_the_last_never_retries(
        outcome in any_outcome(),
        attempt in any::<u32>(),
        max_deliver in 1u32..20,
        waits in proptest::collection::vec(0u64..1_000_000, 0..6),
        jitter in 0.0..1.0f64,
    ) {
        let waits: Vec<Duration> = waits.into_iter().map(Duration::from_millis).collect();
        let longest = waits.iter().max().copied().unwrap_or_default().mul_f64(1.1);
        let policy = RetryPolicy { max_deliver, waits, max_retry_after: Duration::from_secs(3600) };
        let success = outcome.status().is_some_and(|status| (200..300).contains(&status));
        match decide(&outcome, attempt, &policy, &NONE, jitter) {
            DeliveryDecision::Ack => prop_assert!(success),
            DeliveryDecision::Retry { after } => {
                prop_assert!(!success && attempt < max_deliver);
                prop_assert!(after <= longest.max(policy.max_retry_after));
            }
            DeliveryDecision::DeadLetter { reason: Reason::Exhausted, .. } => prop_assert!(!success && attempt >= max_deliver),
            DeliveryDecision::DeadLetter { reason, fault } => {
                prop_assert!(!success && reason == Reason::Permanent && fault == Fault::Subscriber);
            }
        }
    }
}
