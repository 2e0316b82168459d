//! The events of a batch are stored in its order, also if one of them is rejected and the batch is sent again.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    ApiAnswer, ApiClient, FaultProxy, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually,
    subscription,
};

const STEP: Duration = Duration::from_secs(90);
const BATCH: &str = "application/cloudevents-batch+json";

fn event(id: &str, size: usize) -> Value {
    json!({
        "specversion": "1.0", "id": id, "source": "/idp", "type": "user.created", "subject": "key",
        "data": "x".repeat(size),
    })
}

async fn publish(api: &ApiClient, events: &[Value]) -> ApiAnswer {
    let body = Value::from(events).to_string().into_bytes();
    api.send("POST", "/v1/events", &[("content-type", BATCH)], Some(body)).await
}

fn strict(url: &str) -> Value {
    let mut one = subscription("strict", &["user.>"], url);
    one["delivery"]["ordering"] = json!("strict");
    one["delivery"]["ordering_key"] = json!("subject");
    one
}

/// The ids in the order of their first arrival.
fn arrivals(receiver: &Receiver, path: &str) -> Vec<String> {
    let mut requests = receiver.received(path);
    requests.sort_by_key(|request| request.arrived_at);
    let mut ids: Vec<String> = Vec::new();
    for request in requests {
        let id = request.json()["id"].as_str().expect("an id").to_owned();
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_arrive_in_their_order() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([strict(&receiver.url("/strict"))]).await;
    let api = ApiClient::with_scopes(&hub, "producer", "publish", None).await;
    let mut wanted = Vec::new();
    for round in 0..4 {
        // Small and large ones, which take a different time.
        let events: Vec<Value> =
            (0..100).map(|number| event(&format!("{round}-{number}"), (number % 7) * 2_000)).collect();
        let stored = publish(&api, &events).await.expect(202);
        let sequences: Vec<u64> = stored["events"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|one| one["sequence"].as_u64())
            .collect();
        assert!(sequences.is_sorted() && sequences.len() == 100, "{sequences:?}");
        wanted.extend(events.iter().map(|event| event["id"].as_str().expect("an id").to_owned()));
    }
    receiver.wait_accepted("/strict", wanted.len(), STEP).await;
    assert_eq!(arrivals(&receiver, "/strict"), wanted);
}

/// The large event does not fit into the stream, and the small ones behind it would.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_overtakes_an_event_that_is_rejected() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let settings = TestSettings::quick().with(|settings| {
        settings.events.max_size = Some(200_000);
        settings.limits.events = Some(400_000);
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &["--role", "api"]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([strict(&receiver.url("/strict"))]).await;
    let api = ApiClient::with_scopes(&hub, "producer", "publish", None).await;
    let fill: Vec<Value> = (0..10).map(|number| event(&format!("fill-{number}"), 30_000)).collect();
    publish(&api, &fill).await.expect(202);
    let batch: Vec<Value> = (0..40)
        .map(|number| event(&format!("event-{number}"), if number == 5 { 120_000 } else { 10 }))
        .collect();
    let ids = |events: &[Value]| -> Vec<String> {
        events.iter().map(|event| event["id"].as_str().expect("an id").to_owned()).collect()
    };
    for _ in 0..3 {
        let problem = publish(&api, &batch).await.expect(503);
        let fields: Vec<&str> = problem["errors"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|one| one["field"].as_str())
            .collect();
        assert_eq!(fields, (5..40).map(|number| format!("[{number}]")).collect::<Vec<_>>());
        let stored = client.stream("HUB_EVENTS").await.state.messages;
        assert_eq!(stored, 15, "those before it, once, and none behind it");
        assert!(
            problem["detail"].as_str().is_some_and(|text| text.contains("5 of 40 events are stored")),
            "{problem}"
        );
    }
    // There is room again, and the client repeats the batch.
    let mut worker =
        Hub::serve(&broker.url(), &settings, &["--role", "event-processor", "--role", "outbox-processor"]);
    worker.ready().await;
    eventually(STEP, "the batch is taken", async || {
        let answer = publish(&api, &batch).await;
        if answer.status == 202 { Ok(()) } else { Err(answer.text) }
    })
    .await;
    let wanted = [ids(&fill), ids(&batch)].concat();
    receiver.wait_accepted("/strict", wanted.len(), STEP).await;
    broker.nothing_pending_within(STEP).await;
    assert_eq!(arrivals(&receiver, "/strict"), wanted);
}

/// The connection breaks in the middle of a batch, again and again.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_keeps_the_order() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let proxy = FaultProxy::start(&broker.url()).await;
    let mut worker = Hub::serve(
        &broker.url(),
        &TestSettings::quick(),
        &["--role", "event-processor", "--role", "outbox-processor"],
    );
    worker.ready().await;
    let mut hub = Hub::serve(&proxy.url("nats"), &TestSettings::quick(), &["--role", "api"]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([strict(&receiver.url("/strict"))]).await;
    let api = ApiClient::with_scopes(&worker, "producer", "publish", None).await;
    let api = ApiClient::with_token(&hub, Some(api.token()));
    let batch: Vec<Value> = (0..300).map(|number| event(&format!("event-{number}"), 1_000)).collect();
    for _ in 0..3 {
        let cut = async {
            let before = client.stream("HUB_EVENTS").await.state.last_sequence;
            eventually(STEP, "some are stored", async || {
                let now = client.stream("HUB_EVENTS").await.state.last_sequence;
                if now >= before + 20 { Ok(()) } else { Err(now) }
            })
            .await;
            proxy.cut();
        };
        let (_, ()) = tokio::join!(publish(&api, &batch), async {
            let _ = tokio::time::timeout(Duration::from_secs(2), cut).await;
        });
    }
    eventually(STEP, "the batch is taken", async || {
        let answer = publish(&api, &batch).await;
        if answer.status == 202 { Ok(()) } else { Err(answer.text) }
    })
    .await;
    receiver.wait_accepted("/strict", batch.len(), STEP).await;
    broker.nothing_pending_within(STEP).await;
    let wanted: Vec<&str> = batch.iter().filter_map(|event| event["id"].as_str()).collect();
    assert_eq!(arrivals(&receiver, "/strict"), wanted);
}
