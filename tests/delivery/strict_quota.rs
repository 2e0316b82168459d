//! Quotas of strict orders: an order whose endpoint works loses nothing, however full its outbox is.

use std::time::Duration;

use serde_json::json;

use super::strict::{accepted, assert_in_order, ids_of, publish_in_order, strict};
use crate::support::{
    Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, subscription,
};

const STEP: Duration = Duration::from_secs(90);
const DOMAIN: &str = "user-lifecycle";
const OUTBOX: &str = "HUB_OUTBOX_USER_LIFECYCLE";

struct Stage {
    broker: TestBroker,
    receiver: Receiver,
    hub: Hub,
    client: TestClient,
}

impl Stage {
    /// A small outbox, and this many subscriptions beside the strict one.
    async fn new(others: usize) -> Self {
        let broker = TestBroker::start().await;
        let receiver = Receiver::start().await;
        let settings = TestSettings::patient().with(|settings| {
            settings.events.max_size = Some(10_000);
            settings.limits.outbox = Some(2_000_000);
        });
        let mut hub = Hub::serve(&broker.url(), &settings, &[]);
        hub.ready().await;
        let client = TestClient::connect(&broker.url()).await;
        let mut all = vec![strict("strict", &receiver.url("/strict"), &json!({}))];
        all.extend((0..others).map(|other| {
            subscription(&format!("plain-{other}"), &["user.>"], &receiver.url(&format!("/plain-{other}")))
        }));
        client.subscribe(all).await;
        Self { broker, receiver, hub, client }
    }

    async fn pause(&self) {
        self.hub.cli_ok(&["domain", "pause", DOMAIN]).await;
    }

    async fn resume(&self) {
        self.hub.cli_ok(&["domain", "resume", DOMAIN]).await;
    }

    async fn nothing_is_lost(&self, events: &[String]) {
        eventually(STEP, "every event arrives at the strict subscription or is a dead letter", async || {
            let arrived = accepted(&self.receiver, "/strict", "subject").len();
            let letters = self.client.dead_letters(DOMAIN).await.len();
            if arrived + letters >= events.len() { Ok(()) } else { Err((arrived, letters)) }
        })
        .await;
        assert_eq!(self.client.dead_letters(DOMAIN).await.len(), 0, "dead letters");
        assert_in_order(&ids_of(accepted(&self.receiver, "/strict", "subject")), events);
        self.broker.nothing_pending_within(STEP).await;
    }
}

#[tokio::test]
async fn others_that_fill_the_outbox_in_a_pause_cost_a_strict_order_nothing() {
    let stage = Stage::new(20).await;
    stage.pause().await;
    let events = ids("event", 200);
    publish_in_order(&stage.client, &events).await;
    stage.hub.wait_for_log("domain outbox full", STEP).await;
    stage.resume().await;
    stage.nothing_is_lost(&events).await;
    for other in 0..20 {
        stage.receiver.wait_accepted(&format!("/plain-{other}"), events.len(), STEP).await;
    }
}

#[tokio::test]
async fn a_strict_order_that_fills_the_outbox_in_a_pause_drains_while_more_events_come() {
    let stage = Stage::new(0).await;
    stage.receiver.set("/strict", Behaviour::slow(Duration::from_millis(5)));
    stage.pause().await;
    let events = ids("event", 1_400);
    let (before, after) = events.split_at(1_200);
    publish_in_order(&stage.client, before).await;
    // A fifth is the quota of one subscription.
    eventually(STEP, "the outbox has two fifths", async || {
        let bytes = stage.client.stream(OUTBOX).await.state.bytes;
        if bytes > 800_000 { Ok(()) } else { Err(bytes) }
    })
    .await;
    stage.resume().await;
    publish_in_order(&stage.client, after).await;
    stage.nothing_is_lost(&events).await;
}
