//! Helpers for tests of subscriptions with a broker.

use std::collections::BTreeSet;

use integration_hub::nats::DeadLetterEntry;
use serde_json::{Value, json};

use super::relay::SOON;
use super::{RedisServer, TestClient, eventually};

pub const DOMAIN: &str = "user-lifecycle";

/// A subscription with a stream of a broker as its target.
pub fn to_broker(id: &str, events: &[&str], broker: &str, stream: &str) -> Value {
    json!({"id": id, "events": events, "delivery": {"broker": broker, "stream": stream, "timeout": "2s"}})
}

/// The messages of a Redis stream.
pub async fn entries(redis: &RedisServer, stream: &str) -> Vec<Value> {
    let mut connection = redis.connect().await;
    let entries: Vec<(String, Vec<(String, String)>)> = redis::cmd("XRANGE")
        .arg(stream)
        .arg("-")
        .arg("+")
        .query_async(&mut connection)
        .await
        .expect("Redis answers");
    let bodies = entries.into_iter().map(|(_, fields)| {
        let [(name, body)] = &fields[..] else { panic!("one field each: {fields:?}") };
        assert_eq!(name, "data");
        serde_json::from_str(body).expect("an envelope is JSON")
    });
    bodies.collect()
}

/// Waits until a Redis stream has that many messages.
pub async fn arrived(redis: &RedisServer, stream: &str, count: usize) -> Vec<Value> {
    eventually(SOON, &format!("{count} messages are in {stream}"), async || {
        let found = entries(redis, stream).await;
        if found.len() >= count { Ok(found) } else { Err(found.len()) }
    })
    .await
}

pub fn event_ids(messages: &[Value]) -> BTreeSet<&str> {
    messages.iter().filter_map(|body| body["metadata"]["headers"]["id"].as_str()).collect()
}

/// Waits for the dead letters of a subscription.
pub async fn dead_letters(client: &TestClient, subscription: &str, count: usize) -> Vec<DeadLetterEntry> {
    eventually(SOON, &format!("{count} dead letters of {subscription}"), async || {
        let mut letters = client.dead_letters(DOMAIN).await;
        letters.retain(|entry| entry.letter.subscription == subscription);
        if letters.len() == count { Ok(letters) } else { Err(letters.len()) }
    })
    .await
}
