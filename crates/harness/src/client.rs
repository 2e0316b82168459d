//! The connection of a test: it publishes, subscribes, and accounts for every envelope.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, consumer, stream};
use bytes::Bytes;
use futures_util::{StreamExt, stream as futures};
use integration_hub::domain::subscription::Subscription;
use integration_hub::nats::{ConnectOptions, DeadLetterEntry, DeadLetterQuery, JetStream};
use serde_json::{Value, json};

use super::{POLL, Received, Receiver};

/// Maximum number of publications that wait for an acknowledgement.
const IN_FLIGHT: usize = 256;
/// Time limit of one publication: longer than the restart of a server.
const PUBLISH_LIMIT: Duration = Duration::from_secs(60);

/// Two connections to the broker: the hub's own adapter, and the plain client.
pub struct TestClient {
    pub js: JetStream,
    pub context: jetstream::Context,
}

impl TestClient {
    /// `url` may name several servers.
    pub async fn connect(url: &str) -> Self {
        let options = ConnectOptions {
            url: url.to_owned(),
            prefix: "hub".to_owned(),
            name: "test".to_owned(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            ..ConnectOptions::default()
        };
        let js = JetStream::connect(&options).await.unwrap_or_else(|error| panic!("connecting: {error}"));
        let servers: Vec<&str> = url.split(',').collect();
        let client = async_nats::ConnectOptions::new().max_reconnects(None).connect(servers).await;
        let client = client.unwrap_or_else(|error| panic!("connecting: {error}"));
        Self { js, context: jetstream::new(client) }
    }

    /// Writes subscriptions, without secrets, to the registry.
    pub async fn subscribe(&self, subscriptions: impl IntoIterator<Item = Value>) {
        futures::iter(subscriptions)
            .for_each_concurrent(IN_FLIGHT, |value| async move {
                let subscription = Subscription::from_value(value.clone())
                    .unwrap_or_else(|error| panic!("{error} in {value}"));
                self.js.put_subscription(&subscription, None).await.expect("the registry stores it");
            })
            .await;
    }

    /// Publishes bare JSON under an id until the stream has it; returns whether it was new.
    pub async fn publish(&self, key: &str, id: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        self.publish_with(key, id, headers).await
    }

    /// Publishes a CloudEvent in binary mode with this id and this `subject`.
    pub async fn publish_cloud_event(&self, key: &str, id: &str, subject: &str) -> bool {
        let mut headers = HeaderMap::new();
        let attributes =
            [("specversion", "1.0"), ("id", id), ("type", key), ("source", "test"), ("subject", subject)];
        for (name, value) in attributes {
            headers.insert(format!("ce-{name}"), value);
        }
        headers.insert("content-type", "application/json");
        self.publish_with(key, id, headers).await
    }

    async fn publish_with(&self, key: &str, id: &str, headers: HeaderMap) -> bool {
        let publish = async {
            loop {
                let body = Bytes::from(json!({ "user_id": id }).to_string());
                let sent =
                    self.context.publish_with_headers(format!("hub.events.{key}"), headers.clone(), body);
                if let Ok(acknowledgement) = sent.await
                    && let Ok(acknowledgement) = acknowledgement.await
                {
                    return !acknowledgement.duplicate;
                }
                // The server is unavailable or the stream is full: publish the same id again.
                tokio::time::sleep(POLL).await;
            }
        };
        let published = tokio::time::timeout(PUBLISH_LIMIT, publish).await;
        published.unwrap_or_else(|_| panic!("{key} {id} was not stored within {PUBLISH_LIMIT:?}"))
    }

    /// Publishes one event for each id, concurrently.
    pub async fn publish_all<'a>(&self, key: &str, ids: impl IntoIterator<Item = &'a String>) {
        futures::iter(ids)
            .for_each_concurrent(IN_FLIGHT, |id| async move {
                self.publish(key, id).await;
            })
            .await;
    }

    /// Every dead letter of a domain.
    pub async fn dead_letters(&self, domain: &str) -> Vec<DeadLetterEntry> {
        let page = self.js.dead_letters(domain, &DeadLetterQuery::default(), 1, usize::MAX).await;
        page.expect("the dead letters can be read").entries
    }

    pub async fn stream(&self, name: &str) -> stream::Info {
        self.context.get_stream(name).await.expect("the stream is there").cached_info().clone()
    }

    /// Gives a stream another subject, so that it stores nothing. A deleted stream would be created again by the hub.
    pub async fn detach_stream(&self, name: &str) {
        let mut config = self.stream(name).await.config;
        config.subjects = vec![format!("detached.{name}")];
        self.context.update_stream(config).await.expect("the stream is updated");
    }

    pub async fn consumer(&self, stream: &str, name: &str) -> consumer::Info {
        let stream = self.context.get_stream(stream).await.expect("the stream is there");
        stream.consumer_info(name).await.expect("the consumer is there")
    }
}

/// Writes the subscription of the dead letters that a test makes; it gets no events.
pub async fn register_owner(js: &JetStream, tenant: &str, id: &str) {
    let value = json!({
        "id": id, "tenant": tenant, "events": ["user.nothing-of-this-happens"],
        "delivery": {"url": "http://127.0.0.1:9/"},
    });
    let subscription = Subscription::from_value(value).expect("a subscription");
    js.put_subscription(&subscription, None).await.expect("the registry stores it");
}

/// A subscription with an endpoint as its target.
pub fn subscription(id: &str, events: &[&str], url: &str) -> Value {
    json!({ "id": id, "events": events, "delivery": { "url": url, "timeout": "2s" } })
}

/// Like [`subscription`], for [`TestSettings::patient`](super::TestSettings::patient).
pub fn patient(id: &str, events: &[&str], url: &str) -> Value {
    json!({ "id": id, "events": events, "delivery": { "url": url, "timeout": "60s" } })
}

/// `<prefix>-0`, `<prefix>-1`, …
pub fn ids(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

/// The results of all pairs of event and subscription.
#[derive(Debug, Default)]
pub struct Account {
    pub delivered: usize,
    pub dead: usize,
    /// Deliveries beyond the first.
    pub doubles: usize,
    /// Pairs that are neither delivered nor a dead letter.
    pub missing: Vec<(String, String)>,
    /// Dead letters of one pair beyond the first.
    pub dead_doubles: usize,
    /// Pairs that are delivered and also a dead letter.
    pub both: usize,
}

impl Account {
    /// Collects the results. `subscriptions` are ids, each with its path at the receiver.
    pub fn of(
        events: &[String],
        subscriptions: &[(&str, &str)],
        receiver: &Receiver,
        dead_letters: &[DeadLetterEntry],
    ) -> Self {
        let known: BTreeSet<&str> = events.iter().map(String::as_str).collect();
        for (subscription, path) in subscriptions {
            let accepted =
                receiver.received(path).into_iter().filter(is_accepted).map(|request| event_of(&request));
            let dead = dead_letters.iter().filter(|entry| entry.letter.subscription == *subscription);
            let all = accepted.chain(dead.map(|entry| entry.letter.event_id.clone()));
            let strange: Vec<String> = all.filter(|event| !known.contains(event.as_str())).collect();
            assert!(strange.is_empty(), "{subscription} has events that were not published: {strange:?}");
        }
        Self::of_some(events, subscriptions, receiver, dead_letters)
    }

    /// As [`Self::of`], for some of the events that were published.
    pub fn of_some(
        events: &[String],
        subscriptions: &[(&str, &str)],
        receiver: &Receiver,
        dead_letters: &[DeadLetterEntry],
    ) -> Self {
        let mut account = Self::default();
        for (subscription, path) in subscriptions {
            let mut accepted = BTreeMap::<String, usize>::new();
            for request in receiver.received(path) {
                if is_accepted(&request) {
                    *accepted.entry(event_of(&request)).or_default() += 1;
                }
            }
            let mut dead = BTreeMap::<&str, usize>::new();
            for entry in dead_letters.iter().filter(|entry| entry.letter.subscription == *subscription) {
                *dead.entry(&entry.letter.event_id).or_default() += 1;
            }
            for event in events {
                let times = accepted.get(event).copied().unwrap_or(0);
                let letters = dead.get(event.as_str()).copied().unwrap_or(0);
                account.delivered += times.min(1);
                account.doubles += times.saturating_sub(1);
                account.dead += letters.min(1);
                account.dead_doubles += letters.saturating_sub(1);
                account.both += usize::from(times > 0 && letters > 0);
                if times + letters == 0 {
                    account.missing.push((event.clone(), (*subscription).to_owned()));
                }
            }
        }
        account
    }

    /// Asserts that no pair is missing, and prints the counts.
    ///
    /// # Panics
    ///
    /// With the missing pairs.
    pub fn assert_complete(&self, what: &str) {
        let Self { delivered, dead, doubles, dead_doubles, both, missing } = self;
        println!(
            "{what}: {delivered} delivered, {dead} dead-lettered ({both} both), {doubles} duplicate deliveries, {dead_doubles} duplicate dead letters"
        );
        let shown = &missing[..missing.len().min(10)];
        assert!(missing.is_empty(), "{what}: {} pairs are lost, such as {shown:?}", missing.len());
    }
}

fn is_accepted(request: &Received) -> bool {
    request.answered.is_some_and(|status| (200..300).contains(&status))
}

fn event_of(request: &Received) -> String {
    request.json()["id"].as_str().expect("an event has an id").to_owned()
}
