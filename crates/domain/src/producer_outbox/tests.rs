//! Raised events, statuses, and waits.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::raised::{MAX_EXTENSIONS_BYTES, MAX_TEXT_BYTES};
use super::*;

fn event() -> Value {
    json!({"type": "user.created", "stream": "user-u1", "data": {"user_id": "u1"}})
}

fn read(change: impl FnOnce(&mut Value)) -> Result<RaisedEvent, String> {
    let mut event = event();
    change(&mut event);
    RaisedEvent::from_json(&event.to_string()).map_err(|error| error.to_string())
}

#[test]
fn three_fields_are_enough() {
    let event = read(|_| {}).unwrap();
    assert_eq!(
        (event.key.as_str(), event.stream.as_str(), event.published),
        ("user.created", "user-u1", false)
    );
    assert_eq!(event.priority, Priority::Live);
    let event = RaisedEvent::new("user.created".parse().unwrap(), "user-u1", &json!([1])).unwrap();
    event.validate().unwrap();
    assert_eq!(
        serde_json::to_value(&event).unwrap(),
        json!({"type": "user.created", "stream": "user-u1", "data": [1], "published": false, "priority": "live"})
    );
}

#[test]
fn null_is_not_given_and_data_may_be_null() {
    let event = read(|event| {
        for field in ["id", "source", "published", "priority", "version", "sequence_id", "extensions", "data"]
        {
            event[field] = Value::Null;
        }
    })
    .unwrap();
    assert_eq!((event.id, event.version, event.data.get()), (None, None, "null"));
}

#[test]
fn a_bad_field_is_named() {
    let long = "x".repeat(MAX_TEXT_BYTES + 1);
    for (field, value) in [
        ("id", json!("")),
        ("id", json!("a\nb")),
        ("id", json!(1)),
        ("id", json!(long)),
        ("type", json!("user")),
        ("type", json!(7)),
        ("stream", json!("")),
        ("stream", Value::Null),
        ("source", json!("")),
        ("time", json!("yesterday")),
        ("tenant", json!("a b")),
        ("published", json!("yes")),
        ("priority", json!("urgent")),
        ("traceparent", json!("00-x")),
        ("version", json!(0)),
        ("version", json!(1.5)),
        ("kind", json!("QUERY")),
        ("sequence_id", json!(1.5)),
        ("expected_version", json!("3")),
        ("asynchronous", json!(1)),
        ("event_store", json!([])),
        ("extensions", json!("x")),
        ("extensions", json!({"x": "y".repeat(MAX_EXTENSIONS_BYTES)})),
        ("colour", json!("red")),
    ] {
        let error = read(|event| event[field] = value.clone()).expect_err(field);
        assert!(error.contains(field), "{field} {value}: {error}");
    }
    for reserved in ["source", "tenant", "id", "data"] {
        let error = read(|event| event["extensions"] = json!({reserved: "x"})).expect_err(reserved);
        assert!(error.starts_with(&format!("extensions.{reserved}: ")), "{error}");
    }
    for required in ["type", "stream", "data"] {
        let error = read(|event| drop(event.as_object_mut().unwrap().remove(required))).expect_err(required);
        assert!(error.contains(required), "{error}");
    }
    assert!(RaisedEvent::from_json("[]").is_err() && RaisedEvent::from_json("{} x").is_err());
}

#[test]
fn a_sequence_id_may_be_a_number() {
    assert_eq!(read(|event| event["sequence_id"] = json!(7)).unwrap().sequence_id.as_deref(), Some("7"));
    assert_eq!(
        read(|event| event["sequence_id"] = json!("0.1")).unwrap().sequence_id.as_deref(),
        Some("0.1")
    );
}

#[test]
fn names_of_external_brokers() {
    for good in ["partner_events", "a", "0-x"] {
        assert!(is_external_broker(good), "{good}");
    }
    for bad in ["", "internal", "Partner", "-x", "a.b", &"x".repeat(65)] {
        assert!(!is_external_broker(bad), "{bad}");
        assert_eq!(is_target_broker(bad), bad == INTERNAL, "{bad}");
    }
}

/// Only an operator changes a settled row, and only the holder of the claim changes a claimed one.
#[test]
fn steps_lead_where_the_table_says() {
    let held = [
        (RowStep::Publish { held: true }, Status::Published),
        (RowStep::Fail { held: true }, Status::Failed),
        (RowStep::Abandon { held: true }, Status::Abandoned),
        (RowStep::Release { held: true }, Status::Pending),
    ];
    for status in Status::ALL {
        assert_eq!(status.as_str().parse(), Ok(status));
        assert_eq!(
            status.after(RowStep::Claim { due: true }),
            status.is_open().then_some(Status::Processing)
        );
        assert_eq!(status.after(RowStep::Claim { due: false }), None);
        for (step, to) in held {
            assert_eq!(status.after(step), (status == Status::Processing).then_some(to));
        }
        for lost in [
            RowStep::Publish { held: false },
            RowStep::Fail { held: false },
            RowStep::Abandon { held: false },
            RowStep::Release { held: false },
        ] {
            assert_eq!(status.after(lost), None);
        }
        let retried = matches!(status, Status::Failed | Status::Abandoned).then_some(Status::Pending);
        assert_eq!(status.after(RowStep::Retry), retried);
        let discarded = matches!(status, Status::Pending | Status::Failed).then_some(Status::Abandoned);
        assert_eq!(status.after(RowStep::Discard), discarded);
    }
    assert!("done".parse::<Status>().unwrap_err().to_string().contains("pending"));
}

fn policy() -> RelayRetryPolicy {
    RelayRetryPolicy { max_attempts: 4, waits: [1, 5].map(Duration::from_secs).to_vec() }
}

#[test]
fn the_last_wait_repeats_and_the_last_attempt_abandons() {
    let after = |attempts| policy().after_failure(attempts, false, 0.5);
    assert_eq!(after(0), AfterFailure::Retry { after: Duration::from_secs(1) });
    assert_eq!(after(1), AfterFailure::Retry { after: Duration::from_secs(5) });
    assert_eq!(after(2), AfterFailure::Retry { after: Duration::from_secs(5) });
    assert_eq!(after(3), AfterFailure::Abandon);
    assert_eq!(after(u32::MAX), AfterFailure::Abandon);
    assert_eq!(policy().after_failure(0, true, 0.5), AfterFailure::Abandon);
}

proptest! {
    #[test]
    fn jitter_keeps_a_wait_within_a_fifth(attempts in 0u32..3, jitter in 0.0f64..1.0) {
        let AfterFailure::Retry { after } = policy().after_failure(attempts, false, jitter) else {
            panic!("attempts are left")
        };
        let wait = if attempts == 0 { 1.0 } else { 5.0 };
        prop_assert!((wait * 0.799..=wait * 1.201).contains(&after.as_secs_f64()), "{after:?}");
    }

    #[test]
    fn reading_never_panics(text in "\\PC{0,60}") {
        let _ = RaisedEvent::from_json(&text);
        let _ = FullEnvelope::from_json(&text);
    }
}
