//! A burst of events: fanned out as fast as the outbox accepts envelopes, and each event delivered once.

use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use serde_json::json;

use crate::support::{Hub, TestBroker, TestSettings, eventually};

const EVENTS: usize = 1_000;
const SUBSCRIPTIONS: usize = 10;
const LIMIT: Duration = Duration::from_secs(60);

/// The committer of the domain is busy most of the time, and there is room for few events before it.
/// Events that find no room wait in the role; handed back, they would
/// come again only a second later, and the hub would idle meanwhile.
#[tokio::test]
async fn events_that_find_the_committer_busy_wait_and_are_not_handed_back() {
    let broker = TestBroker::start().await;
    // Room for 16 events before each domain's committer.
    let settings = TestSettings::default().with(|settings| {
        settings.events.held = Some(128);
        settings.events.batch = Some(128);
    });
    let hub = Hub::not_started(&broker.url(), &settings);
    hub.cli_ok(&["provision"]).await;
    let subscriptions: Vec<_> = (0..SUBSCRIPTIONS)
        .map(|n| json!({"id": format!("s{n}"), "events": ["user.>"], "delivery": {"url": "http://127.0.0.1:9/"}}))
        .collect();
    let file = hub.folder().join("subscriptions.json");
    std::fs::write(&file, serde_json::to_vec(&subscriptions).expect("JSON")).expect("written");
    hub.cli_ok(&["subscription", "apply", "-f", file.to_str().expect("UTF-8")]).await;

    // They wait in the stream before the role starts, so the speed of the publisher does not matter.
    let jetstream = broker.jetstream().await;
    let acknowledged = stream::iter(0..EVENTS)
        .map(async |n| {
            let body = format!("{{\"user_id\":\"u{n}\"}}");
            let stored = jetstream.publish("hub.events.user.created", body.into()).await;
            stored.expect("published").await.expect("acknowledged");
        })
        .buffer_unordered(256)
        .count();
    assert_eq!(acknowledged.await, EVENTS);
    let mut processor = Hub::serve(&broker.url(), &settings, &["--role", "event-processor"]);
    processor.ready().await;

    eventually(LIMIT, "every event is fanned out and acknowledged", async || {
        let envelopes = broker.messages("HUB_OUTBOX_USER_LIFECYCLE").await;
        let events = broker.messages("HUB_EVENTS").await;
        if (envelopes, events) == ((EVENTS * SUBSCRIPTIONS) as u64, 0) {
            Ok(())
        } else {
            Err((envelopes, events))
        }
    })
    .await;
    let stream = jetstream.get_stream("HUB_EVENTS").await.expect("the events stream");
    let consumer = stream.consumer_info("event-processor").await.expect("its consumer");
    assert_eq!(consumer.delivered.consumer_sequence, EVENTS as u64, "an event was delivered more than once");
}
