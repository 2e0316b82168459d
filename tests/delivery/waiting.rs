//! What `hub subscription show --circuits` and the API count as waiting: every envelope of the subscription that is not
//! delivered yet, whatever its lane.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    ApiClient, Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, patient,
};

const STEP: Duration = Duration::from_secs(90);
const DOMAIN: &str = "policy-client";

#[tokio::test]
async fn it_counts_the_envelopes_of_every_lane() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let settings = TestSettings::patient().with(|settings| {
        settings.delivery.held = Some(64);
        settings.delivery.queue_per_subscription = Some(8);
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let of = |id: &str, more: Value| {
        let mut one = patient(id, &["policy.>"], &receiver.url(&format!("/{id}")));
        for (name, value) in more.as_object().into_iter().flatten() {
            one["delivery"][name] = value.clone();
        }
        one
    };
    let keyed = json!({"ordering": "strict", "ordering_key": "id"});
    client.subscribe([of("hanging", json!({})), of("ordered", keyed), of("well", json!({}))]).await;
    let (open, gate) = Behaviour::gate();
    for path in ["/hanging", "/ordered"] {
        receiver.set(path, gate.clone());
    }
    let api = ApiClient::with_scopes(&hub, "reader", "read", None).await;
    let waiting = async |id: &str| {
        let shown = hub.cli_json(&["subscription", "show", id, "--circuits"]).await;
        let answer = api.get(&format!("/v1/subscriptions/{id}/circuits")).await.expect(200);
        let of = |rows: &Value| {
            let rows = rows.as_array().cloned().unwrap_or_default();
            let row = rows.iter().find(|row| row["domain"] == DOMAIN).expect("a row of the domain");
            assert!(rows.iter().all(|row| row["domain"] == DOMAIN || row["waiting"] == 0));
            row["waiting"].as_u64().expect("a number")
        };
        (of(&shown), of(&answer["circuits"]))
    };
    // A few stay in the shared lane.
    client.publish_all("policy.updated", &ids("few", 5)).await;
    receiver.wait_accepted("/well", 5, STEP).await;
    assert_eq!((waiting("hanging").await, waiting("ordered").await), ((5, 5), (5, 5)));
    // Many move to a lane of their own; those of the strict order are in its lanes.
    client.publish_all("policy.updated", &ids("many", 300)).await;
    receiver.wait_accepted("/well", 305, STEP).await;
    eventually(STEP, "there are own lanes", async || {
        let look = client.js.backlogs(DOMAIN, None).await.expect("the backlogs");
        let of = |id: &str| {
            let backlog = look.backlogs.iter().find(|backlog| backlog.token.ends_with(id));
            backlog.map_or((0, 0), |backlog| (backlog.own, backlog.shared))
        };
        let (hanging, ordered) = (of("hanging"), of("ordered"));
        let is = hanging.0 > 0 && hanging.0 + hanging.1 == 305 && ordered == (305, 0);
        if is { Ok(()) } else { Err((hanging, ordered)) }
    })
    .await;
    for id in ["hanging", "ordered"] {
        assert_eq!(waiting(id).await, (305, 305), "{id}");
    }
    assert_eq!(waiting("well").await, (0, 0));
    open.send_replace(true);
    broker.nothing_pending_within(STEP).await;
    for id in ["hanging", "ordered"] {
        assert_eq!(waiting(id).await, (0, 0), "{id}");
    }
}
