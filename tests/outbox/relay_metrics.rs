//! Metrics of the relay by target broker, and log lines that distinguish events for the internal broker from
//! those for external ones.

use std::time::Duration;

use integration_hub::domain::producer_outbox::Status;
use serde_json::{Value, json};

use crate::support::relay::{RELAY, SOON, partner, public, raise, settings, wait_for};
use crate::support::settings::external;
use crate::support::{Hub, TestBroker, TestDatabase, eventually, free_port};

/// The log lines with this message, with their fields as `<name>=<value>`.
fn lines(hub: &Hub, message: &str) -> Vec<String> {
    hub.log().lines().filter(|line| line.contains(message)).map(str::to_owned).collect()
}

async fn metric_is(hub: &Hub, name: &str, broker: &str, wanted: f64) {
    let label = format!("broker=\"{broker}\"");
    eventually(SOON, &format!("{name}{{{broker}}} is {wanted}"), async || {
        let found = hub.metric(name, &[&label]).await;
        if (found - wanted).abs() < f64::EPSILON { Ok(()) } else { Err(found) }
    })
    .await;
}

#[tokio::test]
async fn metrics_and_log_lines_tell_the_brokers_apart() {
    let database = TestDatabase::sqlite().await.expect("SQLite is always there");
    // No relay has the settings of `left`, so its rows wait.
    let store = database.outbox(&["left", "partner", "dead"]).await;
    let (broker, partner) = (TestBroker::start().await, partner().await);
    let nobody = format!("nats://127.0.0.1:{}", free_port());
    let brokers = [external("partner", "nats", &partner.url()), external("dead", "nats", &nobody)];
    let settings = settings(&database.url()).with_brokers(brokers).with(|settings| {
        settings.log.level = Some("integration_hub=debug".to_owned());
        settings.outbox.retry = Some(vec![Duration::from_millis(50)]);
        settings.outbox.max_attempts = Some(2);
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &RELAY);
    hub.ready().await;
    // The partner has no stream for this one, so its server rejects it twice.
    let mut refused = public("e-no", "s2");
    refused["type"] = json!("order.placed");
    raise(&database, &[public("e-yes", "s1"), refused]).await;
    wait_for(&store, "internal", Status::Published, 2).await;
    wait_for(&store, "partner", Status::Abandoned, 1).await;
    wait_for(&store, "partner", Status::Published, 1).await;

    for (broker, published, failed, abandoned) in
        [("internal", 2.0, 0.0, 0.0), ("partner", 1.0, 1.0, 1.0), ("dead", 0.0, 0.0, 0.0)]
    {
        metric_is(&hub, "hub_relay_published_total", broker, published).await;
        metric_is(&hub, "hub_relay_failed_total", broker, failed).await;
        metric_is(&hub, "hub_relay_abandoned_total", broker, abandoned).await;
        metric_is(&hub, "hub_relay_lag_seconds_count", broker, published).await;
    }
    metric_is(&hub, "hub_relay_broker_up", "dead", 0.0).await;
    metric_is(&hub, "hub_relay_broker_up", "partner", 1.0).await;
    // Of the whole database, including a broker without a relay.
    for (broker, open) in [("internal", 0.0), ("partner", 0.0), ("dead", 2.0), ("left", 2.0)] {
        metric_is(&hub, "hub_relay_open_rows", broker, open).await;
    }
    for broker in ["dead", "left"] {
        hub.metric_above("hub_relay_oldest_seconds", &[&format!("broker=\"{broker}\"")], 0.5, SOON).await;
    }
    metric_is(&hub, "hub_relay_oldest_seconds", "internal", 0.0).await;

    let told = |message: &str, fields: &[&str]| {
        let found = lines(&hub, message);
        let matching = found.iter().filter(|line| fields.iter().all(|field| line.contains(field))).count();
        assert_eq!(matching, 1, "{message}, {fields:?}: {found:#?}");
    };
    let (inside, outside) =
        ("broker=\"internal\" scope=\"internal\"", "broker=\"partner\" scope=\"external\"");
    told("row published", &[inside, "id=\"e-yes\"", "event_type=\"user.created\"", "stream=\"s1\""]);
    told("row published", &[inside, "id=\"e-no\"", "event_type=\"order.placed\""]);
    told("row published", &[outside, "id=\"e-yes\""]);
    told("row refused", &[outside, "id=\"e-no\"", "attempts=1"]);
    told("row abandoned", &[outside, "id=\"e-no\"", "stream=\"s2\""]);
    told("broker unavailable, its rows wait", &["broker=\"dead\" scope=\"external\""]);

    // A removed broker without open rows is reported a last time.
    let hub_cli = async |args: &[&str]| -> Value { hub.cli_json(args).await };
    assert_eq!(hub_cli(&["outbox", "setup", "--prune"]).await["brokers"]["removed"], json!(["left"]));
    let discarded = hub_cli(&["outbox", "discard", "--broker", "left", "--yes"]).await;
    assert_eq!(discarded, json!({"discarded": 2}));
    metric_is(&hub, "hub_relay_open_rows", "left", 0.0).await;
    metric_is(&hub, "hub_relay_oldest_seconds", "left", 0.0).await;
}
