//! What the metrics of a running hub show: attempts, what waits and for how long, pauses, dead letters, the registry and the
//! connection.

use std::time::Duration;

use crate::support::{
    Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, patient,
};

const STEP: Duration = Duration::from_secs(120);
const DOMAIN: &str = "domain=\"policy-client\"";
const SHARED: &str = "lane=\"shared\"";

async fn metric_is(hub: &Hub, name: &str, labels: &[&str], wanted: f64) {
    eventually(STEP, &format!("{name}{labels:?} is {wanted}"), async || {
        let found = hub.metric(name, labels).await;
        let is = (found - wanted).abs() < f64::EPSILON || found.total_cmp(&wanted).is_eq();
        if is { Ok(()) } else { Err(found) }
    })
    .await;
}

#[tokio::test]
async fn metrics_show_attempts_and_what_waits() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
    hub.ready().await;
    // Before anything has happened.
    let text = hub.metrics().await;
    for series in [
        "hub_events_rejected_total{reason=\"no-domain\"} 0",
        "hub_dead_lettered_total{domain=\"policy-client\",reason=\"stranded\"} 0",
        "hub_failures_total{domain=\"policy-client\",fault=\"hub\",kind=\"sealed\"} 0",
        "hub_redrives_total{domain=\"policy-client\",outcome=\"redriven\"} 0",
        "hub_attempts_total{domain=\"policy-client\",outcome=\"success\",fault=\"none\",status=\"2xx\"} 0",
        "hub_stranded_found_total{domain=\"policy-client\",result=\"dead-lettered\"} 0",
        "hub_exhausted_routed_total{domain=\"policy-client\",by=\"advisory\"} 0",
        "hub_ready{part=\"outbox-processor policy-client\"} 1",
        "hub_nats_connected 1",
    ] {
        assert!(text.contains(&format!("{series}\n")), "{series}\n{text}");
    }
    for name in ["hub_build_info", "process_start_time_seconds", "process_resident_memory_bytes"] {
        assert!(hub.metric(name, &[]).await > 0.0, "{name}");
    }

    let client = TestClient::connect(&broker.url()).await;
    receiver.set("/no", Behaviour::status(400));
    let subscriptions =
        [("yes", "policy.>", "/yes"), ("also", "policy.>", "/also"), ("no", "policy.refused", "/no")];
    let subscriptions = subscriptions.map(|(id, events, path)| patient(id, &[events], &receiver.url(path)));
    client.subscribe(subscriptions).await;
    metric_is(&hub, "hub_subscriptions_by_state", &["state=\"active\""], 3.0).await;
    metric_is(&hub, "hub_registry_entries", &[], 3.0).await;
    metric_is(&hub, "hub_registry_revision_lag", &[], 0.0).await;
    hub.metric_above("hub_registry_bytes", &[], 100.0, STEP).await;
    client.publish("policy.updated", "e-1").await;
    client.publish("policy.refused", "e-2").await;
    let attempts = "hub_attempts_total";
    metric_is(&hub, attempts, &[DOMAIN, "outcome=\"success\"", "fault=\"none\"", "status=\"2xx\""], 4.0)
        .await;
    metric_is(
        &hub,
        attempts,
        &[DOMAIN, "outcome=\"failure\"", "fault=\"subscriber\"", "status=\"4xx\""],
        1.0,
    )
    .await;
    metric_is(&hub, attempts, &[DOMAIN], 5.0).await;
    metric_is(&hub, "hub_subscription_failed_total", &[DOMAIN, "subscription=\"no\""], 1.0).await;
    metric_is(&hub, "hub_subscription_failed_total", &[], 1.0).await;
    metric_is(&hub, "hub_fan_out_envelopes_sum", &[DOMAIN], 5.0).await;
    metric_is(&hub, "hub_fan_out_envelopes_count", &[DOMAIN], 2.0).await;

    metric_is(&hub, "hub_delivered_seconds_count", &[DOMAIN, "path=\"first\""], 4.0).await;
    hub.cli_ok(&["domain", "pause", "policy-client"]).await;
    metric_is(&hub, "hub_domain_paused", &[DOMAIN], 1.0).await;
    metric_is(&hub, "hub_domain_paused_until_seconds", &[DOMAIN], f64::INFINITY).await;
    metric_is(&hub, "hub_domain_paused", &[], 1.0).await;
    client.publish("policy.updated", "e-3").await;
    metric_is(&hub, "hub_lane_pending", &[DOMAIN, SHARED], 2.0).await;
    hub.metric_above("hub_lane_oldest_seconds", &[DOMAIN, SHARED], 0.5, STEP).await;
    hub.metric_above("hub_outbox_oldest_seconds", &[DOMAIN], 0.5, STEP).await;
    hub.cli_ok(&["domain", "pause", "policy-client", "--for", "1h"]).await;
    eventually(STEP, "the pause has an end", async || {
        let until = hub.metric("hub_domain_paused_until_seconds", &[DOMAIN]).await;
        if until.is_finite() && until > 1_700_000_000.0 { Ok(()) } else { Err(until) }
    })
    .await;
    hub.cli_ok(&["domain", "resume", "policy-client"]).await;
    receiver.wait_accepted("/yes", 3, STEP).await;
    for (name, labels) in [
        ("hub_lane_pending", &[DOMAIN, SHARED][..]),
        ("hub_lane_oldest_seconds", &[DOMAIN, SHARED]),
        ("hub_outbox_oldest_seconds", &[DOMAIN]),
        ("hub_events_oldest_seconds", &[]),
        ("hub_domain_paused", &[DOMAIN]),
        ("hub_domain_paused_until_seconds", &[DOMAIN]),
    ] {
        metric_is(&hub, name, labels, 0.0).await;
    }

    // The dead letter of the refused event, delivered by a replay.
    metric_is(&hub, "hub_dlt_letters", &[DOMAIN], 1.0).await;
    hub.metric_above("hub_dlt_oldest_seconds", &[DOMAIN], 0.5, STEP).await;
    receiver.set("/no", Behaviour::ok());
    hub.cli_ok(&["dlt", "replay", "--all"]).await;
    for (outcome, count) in [("replayed", 1.0), ("resolved", 1.0), ("redriven", 0.0), ("failed-again", 0.0)] {
        metric_is(&hub, "hub_redrives_total", &[DOMAIN, &format!("outcome=\"{outcome}\"")], count).await;
    }
    metric_is(&hub, "hub_delivered_seconds_count", &[DOMAIN, "path=\"redriven\""], 1.0).await;
    // It counts from the publication of the event, before the pause.
    hub.metric_above("hub_delivered_seconds_sum", &[DOMAIN, "path=\"redriven\""], 1.0, STEP).await;
    metric_is(&hub, "hub_dlt_letters", &[DOMAIN], 0.0).await;
    metric_is(&hub, "hub_dlt_oldest_seconds", &[DOMAIN], 0.0).await;
}

#[tokio::test]
async fn metrics_show_the_connection_and_the_age_of_the_gauges() {
    let mut broker = TestBroker::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::patient(), &["--role", "api"]);
    hub.ready().await;
    eventually(STEP, "the depths were read", async || {
        let age = hub.metric("hub_gauges_age_seconds", &[]).await;
        if age < 6.0 { Ok(()) } else { Err(age) }
    })
    .await;
    broker.process().kill().await.expect("killed");
    metric_is(&hub, "hub_nats_connected", &[], 0.0).await;
    hub.metric_above("hub_gauges_age_seconds", &[], 8.0, STEP).await;
    broker.process().restart().await.expect("started");
    metric_is(&hub, "hub_nats_connected", &[], 1.0).await;
    hub.metric_above("hub_nats_reconnects_total", &[], 0.5, STEP).await;
    eventually(STEP, "the depths were read again", async || {
        let age = hub.metric("hub_gauges_age_seconds", &[]).await;
        if age < 6.0 { Ok(()) } else { Err(age) }
    })
    .await;
}

/// The envelopes of an endpoint that keeps failing wait in a lane of their own, and arrive late.
#[tokio::test]
async fn metrics_show_lanes_of_their_own_and_the_worst_subscriptions() {
    const EVENTS: usize = 12;
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let settings = TestSettings::patient().with(|settings| {
        settings.circuit.failures = Some(4);
        settings.circuit.failing_for = Some(Duration::ZERO);
        settings.circuit.first_pause = Some(Duration::from_secs(1));
        settings.circuit.longest_pause = Some(Duration::from_secs(2));
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    receiver.set("/broken", Behaviour::status(503));
    let both = ["broken", "well"].map(|id| patient(id, &["policy.>"], &receiver.url(&format!("/{id}"))));
    client.subscribe(both).await;
    client.publish_all("policy.updated", &ids("event", EVENTS)).await;
    receiver.wait_accepted("/well", EVENTS, STEP).await;

    let own = [DOMAIN, "lane=\"own\""];
    let broken = [DOMAIN, "tenant=\"default\"", "subscription=\"broken\""];
    metric_is(&hub, "hub_lanes", &own, 1.0).await;
    metric_is(&hub, "hub_lane_pending", &own, EVENTS as f64).await;
    metric_is(&hub, "hub_lane_pending", &[DOMAIN, SHARED], 0.0).await;
    metric_is(&hub, "hub_subscription_pending", &broken, EVENTS as f64).await;
    for (name, labels) in
        [("hub_lane_oldest_seconds", &own[..]), ("hub_subscription_oldest_seconds", &broken[..])]
    {
        hub.metric_above(name, labels, 1.0, STEP).await;
    }
    hub.metric_above("hub_subscription_failed_total", &broken, 3.5, STEP).await;
    metric_is(&hub, "hub_subscription_pending", &[], EVENTS as f64).await;

    receiver.set("/broken", Behaviour::ok());
    receiver.wait_accepted("/broken", EVENTS, STEP).await;
    metric_is(&hub, "hub_lane_pending", &own, 0.0).await;
    metric_is(&hub, "hub_lane_oldest_seconds", &own, 0.0).await;
    metric_is(&hub, "hub_subscription_pending", &[], 0.0).await;
    metric_is(&hub, "hub_delivered_seconds_count", &[DOMAIN], 2.0 * EVENTS as f64).await;
    // They count from their publication, whatever lanes they were in.
    hub.metric_above("hub_delivered_seconds_sum", &[DOMAIN], EVENTS as f64, STEP).await;
}
