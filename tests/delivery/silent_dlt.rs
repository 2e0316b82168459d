//! A dead-letter stream that neither stores nor refuses: its leader is gone, or the network swallows the messages to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::support::{
    Account, Behaviour, Hub, Receiver, RequestProxy, TestBroker, TestClient, TestSettings, Treatment,
    eventually, ids, patient,
};

const STEP: Duration = Duration::from_secs(90);
const DOMAIN: &str = "policy-client";

#[tokio::test]
async fn nobody_waits_for_a_dead_letter_stream_that_does_not_answer() {
    let broker = TestBroker::start().await;
    let proxy = RequestProxy::bind(&broker.url()).await.expect("the proxy listens");
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&proxy.url(), &TestSettings::patient(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let mut stuck = patient("stuck", &["policy.>"], &receiver.url("/stuck"));
    stuck["delivery"]["max_backlog"] = json!(20);
    client.subscribe([stuck, patient("well", &["policy.>"], &receiver.url("/well"))]).await;
    let (open, gate) = Behaviour::gate();
    receiver.set("/stuck", gate);
    let (letters, probes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (of_letters, of_probes) = (letters.clone(), probes.clone());
    proxy.set(move |subject| {
        if !subject.ends_with(".DLT") {
            return Treatment::Forward;
        }
        let count = if subject.contains(".probe.") { &of_probes } else { &of_letters };
        count.fetch_add(1, Ordering::Relaxed);
        Treatment::Swallow
    });
    let mut events = ids("first", 100);
    client.publish_all("policy.updated", &events).await;
    receiver.wait_accepted("/well", events.len(), STEP).await;
    eventually(STEP, "the stream is probed", async || match probes.load(Ordering::Relaxed) {
        0 => Err(0),
        _ => Ok(()),
    })
    .await;
    // The pauses between tries end, and nobody tries: the next envelopes over quota stay in the outbox at once.
    let tried = letters.load(Ordering::Relaxed);
    assert!(tried > 0);
    let mut round = 0;
    while probes.load(Ordering::Relaxed) < 4 {
        let more = ids(&format!("round-{round}"), 10);
        client.publish_all("policy.updated", &more).await;
        events.extend(more);
        receiver.wait_accepted("/well", events.len(), STEP).await;
        round += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(letters.load(Ordering::Relaxed), tried, "only probes are sent");
    hub.wait_for_log("dead letters cannot be stored", STEP).await;
    assert!(client.dead_letters(DOMAIN).await.is_empty());

    proxy.set(|_| Treatment::Forward);
    eventually(STEP, "the excess is dead-lettered", async || {
        let more = ids(&format!("round-{round}"), 5);
        client.publish_all("policy.updated", &more).await;
        events.extend(more);
        round += 1;
        receiver.wait_accepted("/well", events.len(), STEP).await;
        let letters = client.dead_letters(DOMAIN).await.len();
        if letters > 0 { Ok(()) } else { Err(letters) }
    })
    .await;
    let stream = client.stream("HUB_OUTBOX_POLICY_CLIENT_DLT").await;
    let stored = client.dead_letters(DOMAIN).await.len() as u64;
    assert_eq!(stream.state.messages, stored, "a probe is not stored");
    open.send_replace(true);
    eventually(STEP, "the outbox is empty", async || {
        match broker.messages("HUB_OUTBOX_POLICY_CLIENT").await {
            0 => Ok(()),
            left => Err(left),
        }
    })
    .await;
    hub.cli_ok(&["dlt", "replay", "--all"]).await;
    receiver.wait_accepted("/stuck", events.len(), STEP).await;
    broker.nothing_pending_within(STEP).await;
    let both = [("stuck", "/stuck"), ("well", "/well")];
    let account = Account::of(&events, &both, &receiver, &client.dead_letters(DOMAIN).await);
    account.assert_complete("after the replay");
    assert_eq!((account.delivered, account.doubles, account.dead), (2 * events.len(), 0, 0));
}
