//! Traces of findings.

use super::*;
use crate::outcome::Reason;

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000 + seconds).unwrap()
}

fn logged(subscription: &str, attempt: u32, outcome: Settled, redriven: bool) -> Logged {
    let record = AttemptRecord {
        envelope: format!("env_{subscription}").into(),
        event_id: "e".into(),
        event_key: "policy.updated".into(),
        event_time: Some(at(0).format(&Rfc3339).unwrap().into()),
        tenant: None,
        queued_at: at(if redriven { 50 } else { 1 }),
        at: at(1 + i64::from(attempt) + if redriven { 50 } else { 0 }),
        attempt,
        redriven,
        outcome,
        status: Some(if outcome == Settled::Delivered { 200 } else { 503 }),
        latency_ms: 3,
        error: None,
        fault: None,
        detail: None,
        answer: None,
    };
    Logged { domain: "policy-client".into(), subscription: subscription.into(), record }
}

fn letter(state: DeadLetterState) -> DeadLetter {
    DeadLetter {
        incarnation: Default::default(),
        id: "env_b".into(),
        domain: "policy-client".into(),
        subscription: "b".into(),
        tenant: "default".into(),
        event_id: "e".into(),
        event_key: "policy.updated".into(),
        reason: Reason::Exhausted,
        fault: Fault::Subscriber,
        state,
        attempts: 2,
        redrives: 0,
        last_status: Some(503),
        last_error: Some("503 Service Unavailable".into()),
        failed_at: at(10),
        next_redrive_at: Some(at(300)),
    }
}

fn pending(redriven: bool) -> PendingEnvelope {
    PendingEnvelope {
        domain: "policy-client".into(),
        subscription: "b".into(),
        tenant: "default".into(),
        envelope: "env_b".into(),
        event_time: None,
        at: at(if redriven { 50 } else { 1 }),
        redriven,
    }
}

fn state(findings: Findings) -> EnvelopeState {
    Trace::new("e", findings).unwrap().subscribers.pop().unwrap().state
}

#[test]
fn the_steps_are_ordered_by_time() {
    let findings = Findings {
        records: vec![
            logged("b", 3, Settled::Delivered, true),
            logged("a", 1, Settled::Delivered, false),
            logged("b", 2, Settled::Exhausted, false),
            logged("b", 1, Settled::Retried, false),
        ],
        last_words: vec![LastAttempt {
            domain: "policy-client".into(),
            subscription: "b".into(),
            envelope: "env_b".into(),
            tenant: None,
            at: at(3),
            words: LastWords {
                attempt: 2,
                status: Some(503),
                error: "503".into(),
                fault: Fault::Subscriber,
                latency_ms: 1,
                answer: None,
            },
        }],
        ..Findings::default()
    };
    let trace = Trace::new("e", findings).unwrap();
    let steps: Vec<String> = trace
        .timeline
        .iter()
        .map(|step| {
            let subscription = step.subscription.as_deref().unwrap_or("-");
            format!("{subscription} {} {}", step.what.as_str(), step.attempt.unwrap_or(0))
        })
        .collect();
    assert_eq!(
        steps,
        [
            "- published 0",
            "a queued 0",
            "b queued 0",
            "a attempt 1",
            "b attempt 1",
            "b attempt 2",
            "b redriven 0",
            "b attempt 3"
        ]
    );
    let states: Vec<_> = trace.subscribers.iter().map(|one| (one.state, one.attempts)).collect();
    assert_eq!(states, [(EnvelopeState::Delivered, 1), (EnvelopeState::Delivered, 3)]);
}

#[test]
fn the_last_state_of_a_subscriber_follows_from_the_findings() {
    let failed = || vec![logged("b", 1, Settled::Retried, false)];
    assert!(Trace::new("e", Findings::default()).is_none());
    assert_eq!(
        state(Findings { pending: vec![pending(false)], ..Findings::default() }),
        EnvelopeState::Waiting
    );
    assert_eq!(
        state(Findings { pending: vec![pending(false)], records: failed(), ..Findings::default() }),
        EnvelopeState::Retrying
    );
    assert_eq!(state(Findings { records: failed(), ..Findings::default() }), EnvelopeState::Gone);
    let parked = || vec![letter(DeadLetterState::Parked)];
    assert_eq!(
        state(Findings { dead_letters: parked(), records: failed(), ..Findings::default() }),
        EnvelopeState::DeadLettered
    );
    assert_eq!(
        state(Findings { dead_letters: parked(), pending: vec![pending(true)], ..Findings::default() }),
        EnvelopeState::Replaying
    );
    let letters = vec![letter(DeadLetterState::Replaying)];
    assert_eq!(state(Findings { dead_letters: letters, ..Findings::default() }), EnvelopeState::Replaying);
}

#[test]
fn a_tenant_sees_only_its_own_findings() {
    let mine = |mut one: Logged| {
        one.record.tenant = Some("acme".into());
        one
    };
    let words = |envelope: &str, tenant: Option<&str>| LastAttempt {
        domain: "policy-client".into(),
        subscription: "b".into(),
        envelope: envelope.into(),
        tenant: tenant.map(str::to_owned),
        at: at(3),
        words: LastWords {
            attempt: 2,
            status: None,
            error: "timeout".into(),
            fault: Fault::Subscriber,
            latency_ms: 1,
            answer: None,
        },
    };
    let rejected = |tenant: Option<&str>| Rejected {
        at: at(1),
        tenant: tenant.map(str::to_owned),
        reason: "no-domain".into(),
        detail: String::new(),
    };
    let waiting = |tenant: &str| UnreadEvent { at: at(0), key: "a.b".into(), tenant: tenant.into() };
    let mut findings = Findings {
        waiting: vec![waiting("acme"), waiting("default")],
        rejected: vec![rejected(None), rejected(Some("acme")), rejected(Some("default"))],
        pending: vec![
            pending(false),
            PendingEnvelope { tenant: "acme".into(), envelope: "env_o".into(), ..pending(false) },
        ],
        dead_letters: vec![
            letter(DeadLetterState::Parked),
            DeadLetter { tenant: "acme".into(), id: "env_d".into(), ..letter(DeadLetterState::Parked) },
            DeadLetter { tenant: String::new(), id: "env_x".into(), ..letter(DeadLetterState::Parked) },
        ],
        records: vec![
            mine(logged("a", 1, Settled::Delivered, false)),
            logged("b", 1, Settled::Delivered, false),
        ],
        last_words: vec![
            words("env_1", Some("acme")),
            words("env_d", None),
            words("env_x", None),
            words("env_d", Some("default")),
        ],
    };
    findings.keep_tenant("acme");
    assert_eq!((findings.waiting.len(), findings.rejected.len()), (1, 1));
    assert_eq!(findings.rejected[0].tenant.as_deref(), Some("acme"));
    assert_eq!(findings.pending.iter().map(|one| &*one.envelope).collect::<Vec<_>>(), ["env_o"]);
    assert_eq!(findings.dead_letters.iter().map(|one| &*one.id).collect::<Vec<_>>(), ["env_d"]);
    assert_eq!(findings.records.iter().map(|one| &*one.subscription).collect::<Vec<_>>(), ["a"]);
    assert_eq!(findings.last_words.iter().map(|one| &*one.envelope).collect::<Vec<_>>(), ["env_1", "env_d"]);
}
