//! Holds: an endpoint asks for a pause with `Retry-After`. Every process knows it, operators see it, and end it.

use std::time::Duration;

use async_nats::HeaderMap;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::{
    ApiClient, Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, patient,
    subscription,
};

const STEP: Duration = Duration::from_secs(60);
const HELD: &str = "endpoint sent Retry-After, subscription held";
const ENDED: &str = "hold ended";
/// A hold and its end reach all processes within about a second; a busy machine takes longer.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Waits until each of the hubs knows this number of held subscriptions.
async fn all_hold(hubs: &[&Hub], number: f64) {
    eventually(AT_ONCE, &format!("each process knows {number} held subscriptions"), async || {
        let mut known = Vec::new();
        for hub in hubs {
            known.push(hub.metric("hub_subscriptions_held", &[]).await);
        }
        if known.iter().all(|one| *one == number) { Ok(()) } else { Err(known) }
    })
    .await;
}

/// Waits until an envelope that the hold keeps back is in the lane of the subscription.
async fn is_in_lane(client: &TestClient, stream: &str, lane: &str, envelopes: u64) {
    eventually(STEP, &format!("{envelopes} envelopes wait in {lane}"), async || {
        let lane = client.js.consumer_info(stream, lane).await.map_err(|error| error.to_string())?;
        let waiting = lane.num_pending + lane.num_ack_pending;
        if waiting >= envelopes { Ok(()) } else { Err(waiting.to_string()) }
    })
    .await;
}

fn lines(hubs: &[&Hub], text: &str) -> usize {
    hubs.iter().map(|hub| hub.log().matches(text).count()).sum()
}

/// The holds of a list of circuits, of which there is one for each domain.
fn holds(list: &Value) -> Vec<&Value> {
    list.as_array().expect("a list").iter().map(|row| &row["hold"]).collect()
}

fn time(value: &Value) -> OffsetDateTime {
    OffsetDateTime::parse(value.as_str().expect("a time"), &Rfc3339).expect("RFC 3339")
}

#[tokio::test]
async fn a_hold_is_shown_and_ended_by_a_process_that_delivers_nothing() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/held", Behaviour::retry_after(503, 3_600));
    let settings = TestSettings::patient();
    let mut worker = Hub::serve(&broker.url(), &settings, &["--role", "event-processor,outbox-processor"]);
    let mut api = Hub::serve(&broker.url(), &settings, &["--role", "api"]);
    for hub in [&mut worker, &mut api] {
        hub.ready().await;
    }
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([patient("held", &["user.>", "policy.>"], &receiver.url("/held"))]).await;
    let manager = ApiClient::with_scopes(&api, "manager", "read,manage", None).await;
    let list = manager.get("/v1/subscriptions/held/circuits").await.expect(200);
    assert!(holds(&list["circuits"]).iter().all(|hold| hold.is_null()), "{list}");

    client.publish("user.created", "first").await;
    all_hold(&[&worker], 1.0).await;
    let tried = receiver.count("/held");
    // The hold applies in all domains.
    let (users, policies) = (ids("user", 20), ids("policy", 20));
    client.publish_all("user.created", &users).await;
    client.publish_all("policy.updated", &policies).await;
    is_in_lane(&client, "HUB_OUTBOX_USER_LIFECYCLE", "lane-own-held", 20).await;
    is_in_lane(&client, "HUB_OUTBOX_POLICY_CLIENT", "lane-own-held", 20).await;

    let list = manager.get("/v1/subscriptions/held/circuits").await.expect(200);
    let shown = holds(&list["circuits"]);
    assert!(shown.len() > 1 && shown.iter().all(|hold| *hold == shown[0]), "{list}");
    assert_eq!(
        (&shown[0]["status"], &shown[0]["reason"]),
        (&json!(503), &json!("the endpoint answered 503 with Retry-After"))
    );
    let lasts = time(&shown[0]["until"]) - time(&shown[0]["since"]);
    assert!((3_590..=3_610).contains(&lasts.whole_seconds()), "{list}");
    let listed = api.cli_json(&["subscription", "show", "held", "--circuits"]).await;
    assert_eq!(holds(&listed), shown, "the command line shows the same");
    let fields = api.cli_ok(&["subscription", "show", "held"]).await;
    assert!(fields.contains("hold.until") && fields.contains("503 with Retry-After"), "{fields}");
    let table = api.cli_ok(&["subscription", "show", "held", "--circuits"]).await;
    assert!(table.contains("HELD UNTIL") && table.contains("503 with Retry-After"), "{table}");
    assert_eq!(receiver.count("/held"), tried);

    // Resumed by the API, in a process without a worker. The envelope that got the answer comes with the others.
    receiver.set("/held", Behaviour::ok());
    let resumed = manager.post("/v1/subscriptions/held/resume", &Value::Null).await;
    assert_eq!((&resumed.expect(200)["state"], resumed.header("hub-hold-ended")), (&json!("active"), "true"));
    receiver.wait_accepted("/held", 41, STEP).await;
    all_hold(&[&worker], 0.0).await;
    let list = manager.get("/v1/subscriptions/held/circuits").await.expect(200);
    assert!(holds(&list["circuits"]).iter().all(|hold| hold.is_null()), "{list}");
    let again = manager.post("/v1/subscriptions/held/resume", &Value::Null).await;
    again.expect(200);
    assert_eq!((again.header("hub-hold-ended"), again.header("etag")), ("false", resumed.header("etag")));
    worker.wait_for_log(ENDED, STEP).await;
    assert_eq!((lines(&[&worker, &api], HELD), lines(&[&worker, &api], ENDED)), (1, 1));
}

#[tokio::test]
async fn a_hold_of_two_domains_in_two_processes_is_reported_once_and_ends_in_both() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/held", Behaviour::retry_after(429, 3_600));
    let settings = TestSettings::patient();
    let mut users = Hub::serve(&broker.url(), &settings, &["--domain", "user-lifecycle"]);
    let mut policies = Hub::serve(&broker.url(), &settings, &["--domain", "policy-client"]);
    for hub in [&mut users, &mut policies] {
        hub.ready().await;
    }
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([patient("held", &["user.>", "policy.>"], &receiver.url("/held"))]).await;
    // Both domains may get the answer at the same time.
    tokio::join!(client.publish("user.created", "user"), client.publish("policy.updated", "policy"));
    all_hold(&[&users, &policies], 1.0).await;
    let tried = receiver.count("/held");
    let (more_users, more_policies) = (ids("user", 10), ids("policy", 10));
    client.publish_all("user.created", &more_users).await;
    client.publish_all("policy.updated", &more_policies).await;
    is_in_lane(&client, "HUB_OUTBOX_USER_LIFECYCLE", "lane-own-held", 10).await;
    is_in_lane(&client, "HUB_OUTBOX_POLICY_CLIENT", "lane-own-held", 10).await;
    assert_eq!(receiver.count("/held"), tried);

    receiver.set("/held", Behaviour::ok());
    let resumed = users.cli_ok(&["subscription", "resume", "held"]).await;
    assert_eq!(resumed.trim(), "held: already active, hold ended");
    receiver.wait_accepted("/held", 20, STEP).await;
    all_hold(&[&users, &policies], 0.0).await;
    let again = users.cli_json(&["subscription", "resume", "held"]).await;
    assert_eq!((&again["changed"], &again["hold_ended"]), (&json!(false), &json!(false)));
    assert_eq!(lines(&[&users, &policies], HELD), 1, "{}{}", users.log(), policies.log());
    eventually(STEP, "its end is reported", async || match lines(&[&users, &policies], ENDED) {
        1 => Ok(()),
        other => Err(other),
    })
    .await;
}

#[tokio::test]
async fn a_tenant_sees_and_ends_only_its_own_holds() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    for tenant in ["acme", "globex"] {
        let mut crm = patient("crm", &["user.>"], &receiver.url(&format!("/{tenant}")));
        crm["tenant"] = tenant.into();
        client.subscribe([crm]).await;
    }
    receiver.set("/acme", Behaviour::retry_after(503, 3_600));
    for (tenant, id) in [("acme", "a"), ("globex", "g")] {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        headers.insert("Hub-Tenant", tenant);
        let sent = client.context.publish_with_headers("hub.events.user.created", headers, "{}".into()).await;
        sent.expect("sent").await.expect("stored");
    }
    receiver.wait_accepted("/globex", 1, STEP).await;
    all_hold(&[&hub], 1.0).await;
    let acme = ApiClient::with_scopes(&hub, "of-acme", "read,manage", Some("acme")).await;
    let globex = ApiClient::with_scopes(&hub, "of-globex", "read,manage", Some("globex")).await;
    let is_held = async |api: &ApiClient| {
        let list = api.get("/v1/subscriptions/crm/circuits").await.expect(200);
        holds(&list["circuits"]).iter().any(|hold| !hold.is_null())
    };
    assert!(is_held(&acme).await);
    assert!(!is_held(&globex).await);
    globex.get("/v1/subscriptions/crm/circuits?tenant=acme").await.expect_field(403, "tenant");
    let resumed = globex.post("/v1/subscriptions/crm/resume", &Value::Null).await;
    resumed.expect(200);
    assert_eq!(resumed.header("hub-hold-ended"), "false");
    assert!(is_held(&acme).await);
    let log = hub.log();
    let line = log.lines().find(|line| line.contains(HELD)).expect("it is reported");
    for field in ["acme", "crm", "user-lifecycle", "503", "until"] {
        assert!(line.contains(field), "no {field} in {line}");
    }
    let resumed = acme.post("/v1/subscriptions/crm/resume", &Value::Null).await;
    resumed.expect(200);
    assert_eq!(resumed.header("hub-hold-ended"), "true");
    assert!(!is_held(&acme).await);
    all_hold(&[&hub], 0.0).await;
}

#[tokio::test]
async fn a_hold_survives_a_restart_and_ends_if_the_broker_has_it_no_longer() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/held", Behaviour::retry_after(503, 3_600));
    let mut hub = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([patient("held", &["user.>"], &receiver.url("/held"))]).await;
    client.publish("user.created", "first").await;
    hub.wait_for_log(HELD, STEP).await;
    let tried = receiver.count("/held");

    hub.kill().await;
    hub.start();
    hub.ready().await;
    all_hold(&[&hub], 1.0).await;
    client.publish_all("user.created", &ids("event", 5)).await;
    is_in_lane(&client, "HUB_OUTBOX_USER_LIFECYCLE", "lane-own-held", 5).await;
    assert_eq!(receiver.count("/held"), tried, "it is still held");

    receiver.set("/held", Behaviour::ok());
    let stream = client.context.get_stream("HUB_REDRIVE").await.expect("the stream is there");
    stream.purge().filter("hub.redrive.held.held").await.expect("purged");
    receiver.wait_accepted("/held", 5, STEP).await;
    all_hold(&[&hub], 0.0).await;
    assert_eq!(lines(&[&hub], HELD), 1);
}

#[tokio::test]
async fn a_changed_subscription_is_tried_before_the_end_of_its_hold() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/held", Behaviour::retry_after(503, 3_600));
    let mut hubs = [0, 1].map(|_| Hub::serve(&broker.url(), &TestSettings::quick(), &[]));
    for hub in &mut hubs {
        hub.ready().await;
    }
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("held", &["user.>"], &receiver.url("/held"))]).await;
    client.publish("user.created", "first").await;
    all_hold(&hubs.each_ref(), 1.0).await;
    let tried = receiver.count("/held");
    let events = ids("event", 50);
    client.publish_all("user.created", &events).await;

    // A new URL; the old one gets nothing more. The server keeps the envelope that got the answer, as its endpoint asked.
    let file = hubs[0].folder().join("held.json");
    let changed = subscription("held", &["user.>"], &receiver.url("/other")).to_string();
    std::fs::write(&file, changed).expect("the file is written");
    hubs[0].cli_ok(&["subscription", "apply", "-f", &file.to_string_lossy()]).await;
    receiver.wait_accepted("/other", events.len(), STEP).await;
    assert_eq!(receiver.count("/held"), tried);
}

#[tokio::test]
async fn a_strict_order_goes_on_after_a_resume() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/held", Behaviour::retry_after(503, 3_600));
    let mut hub = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let mut strict = subscription("held", &["user.>"], &receiver.url("/held"));
    strict["delivery"]["ordering"] = json!("strict");
    client.subscribe([strict]).await;
    let events = ids("event", 5);
    for id in &events {
        client.publish("user.created", id).await;
    }
    all_hold(&[&hub], 1.0).await;
    receiver.set("/held", Behaviour::ok());
    let tried = receiver.count("/held");
    hub.cli_ok(&["subscription", "resume", "held"]).await;
    receiver.wait_accepted("/held", events.len(), STEP).await;
    let arrived: Vec<Value> =
        receiver.received("/held")[tried..].iter().map(|one| one.json()["id"].clone()).collect();
    assert_eq!(json!(arrived), json!(events), "the order holds");
}
