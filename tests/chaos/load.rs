//! The events of a plan, and the subscriptions that select them.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::accounts::{Published, Subscriber};
use crate::plan::LENGTH;
use crate::support::Behaviour;

/// Keys, each with its domain and the outbox of that domain.
pub(crate) const KEYS: [(&str, &str, &str); 4] = [
    ("user.created", "user-lifecycle", "HUB_OUTBOX_USER_LIFECYCLE"),
    ("token.refreshed", "access-session", "HUB_OUTBOX_ACCESS_SESSION"),
    ("policy.updated", "policy-client", "HUB_OUTBOX_POLICY_CLIENT"),
    ("member.invited", "organization", "HUB_OUTBOX_ORGANIZATION"),
];
const ALL: &[&str] = &["user.created", "token.refreshed", "policy.updated", "member.invited"];
/// `healthy` always answers; faults apply to the endpoints of the others.
const SUBSCRIBERS: [Subscriber; 5] = [
    Subscriber { id: "healthy", keys: ALL, strict: false },
    Subscriber { id: "flapping", keys: ALL, strict: false },
    Subscriber { id: "hanging", keys: &["user.created", "policy.updated"], strict: false },
    Subscriber { id: "refusing", keys: &["user.created", "token.refreshed"], strict: false },
    Subscriber { id: "strict", keys: &["token.refreshed"], strict: true },
];
/// Events come in bursts, so that a fault interrupts several deliveries at once.
const BURST: u32 = 25;
const EVERY: Duration = Duration::from_millis(500);
/// An event without an acknowledgement after this time counts as neither stored nor refused.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(8);
/// Padding of an event, so that a few of them fill a small outbox.
const PADDING: usize = 300;

/// The time that an endpoint takes for an answer.
const ANSWERS_AFTER: Duration = Duration::from_millis(100);

/// The answers of an endpoint without a fault.
pub(crate) fn well() -> Behaviour {
    Behaviour::slow(ANSWERS_AFTER)
}

/// The subscriptions of a run. With a small outbox none is strict: an envelope over quota leaves its place in the order.
pub(crate) fn subscribers(small_outbox: bool) -> Vec<Subscriber> {
    let kept = |one: Subscriber| Subscriber { strict: one.strict && !small_outbox, ..one };
    SUBSCRIBERS.into_iter().map(kept).collect()
}

/// The path of a subscription at the receiver.
pub(crate) fn path(subscription: &str) -> String {
    format!("/{subscription}")
}

/// A subscription whose timeout a busy machine does not exceed: a late answer would be delivered again.
pub(crate) fn subscription(subscriber: &Subscriber, url: &str) -> Value {
    let timeout = if subscriber.id == "hanging" { "2s" } else { "4s" };
    let mut delivery = json!({ "url": url, "timeout": timeout });
    if subscriber.strict {
        delivery["ordering"] = "strict".into();
    }
    json!({ "id": subscriber.id, "events": subscriber.keys, "delivery": delivery })
}

/// Publishes at a fixed pace, without waiting for acknowledgements, and each event once: a second publication could be a
/// double that no fault of the hub explains.
pub(crate) async fn publish(context: &jetstream::Context, started: Instant) -> Vec<Published> {
    let count = (LENGTH.as_millis() / EVERY.as_millis()) as u32 * BURST;
    join_all((0..count).map(|number| async move {
        tokio::time::sleep_until(started + EVERY * (number / BURST)).await;
        let (key, ..) = KEYS[number as usize % KEYS.len()];
        let id = format!("event-{number}");
        let sent = tokio::time::timeout(ACKNOWLEDGED_WITHIN, send(context, key, &id)).await;
        Published { id, key, sequence: sent.unwrap_or_default() }
    }))
    .await
}

/// Returns the sequence of the event, if the stream acknowledges it.
async fn send(context: &jetstream::Context, key: &str, id: &str) -> Option<u64> {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", id);
    let body = json!({ "user_id": id, "padding": "x".repeat(PADDING) }).to_string();
    let sent = context.publish_with_headers(format!("hub.events.{key}"), headers, body.into()).await;
    Some(sent.ok()?.await.ok()?.sequence)
}
