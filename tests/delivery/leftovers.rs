//! Events that their consumer has passed and that are still in `HUB_EVENTS`: what was processed is removed, and what was
//! not is processed. The server keeps the state of a stream and that of its consumer in different folders, so an older
//! copy of one makes both cases, as a full disk or a restored copy does.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::{Account, Hub, Receiver, TestBroker, TestClient, TestSettings, ids, patient};

const STEP: Duration = Duration::from_secs(60);
const CRM: [(&str, &str); 1] = [("crm", "/crm")];

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the folder is created");
    for entry in fs::read_dir(from).expect("the folder is read") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("its type").is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("the file is copied");
        }
    }
}

/// Subfolders of a stream at the server.
const MESSAGES: &str = "msgs";
const CONSUMERS: &str = "obs";

/// A subfolder of the events stream.
fn stored(folder: &Path, part: &str) -> PathBuf {
    let mut folders = vec![folder.join("jetstream")];
    while let Some(folder) = folders.pop() {
        if folder.file_name().is_some_and(|name| name == "HUB_EVENTS") {
            return folder.join(part);
        }
        let inside = fs::read_dir(&folder).expect("the folder is read").filter_map(Result::ok);
        folders.extend(inside.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    panic!("the stream is not stored");
}

struct Stage {
    broker: TestBroker,
    receiver: Receiver,
    settings: TestSettings,
}

impl Stage {
    /// Provisions, and subscribes; no hub runs.
    async fn new() -> Self {
        let broker = TestBroker::start().await;
        let receiver = Receiver::start().await;
        let stage = Self { broker, receiver, settings: TestSettings::patient() };
        let mut hub = stage.hub().await;
        let client = stage.client().await;
        client.subscribe([patient("crm", &["user.>"], &stage.receiver.url("/crm"))]).await;
        client.publish("user.created", "provisioned").await;
        stage.receiver.wait_accepted("/crm", 1, STEP).await;
        stage.broker.nothing_pending_within(STEP).await;
        hub.terminate().await;
        stage
    }

    async fn hub(&self) -> Hub {
        let mut hub = Hub::serve(&self.broker.url(), &self.settings, &[]);
        hub.ready().await;
        hub
    }

    async fn client(&self) -> TestClient {
        TestClient::connect(&self.broker.url()).await
    }

    /// Copies a part of the events stream.
    async fn save(&mut self, part: &str) -> TempDir {
        let saved = tempfile::tempdir().expect("temporary folder");
        let process = self.broker.process();
        process.stop().await.expect("the server stops");
        copy(&stored(process.folder(), part), saved.path());
        process.restart().await.expect("the server starts");
        saved
    }

    async fn restore(&mut self, part: &str, saved: &TempDir) {
        let process = self.broker.process();
        process.stop().await.expect("the server stops");
        let folder = stored(process.folder(), part);
        fs::remove_dir_all(&folder).expect("the part is removed");
        copy(saved.path(), &folder);
        process.restart().await.expect("the server starts");
    }

    /// Asserts that the stream has this number of events, all of which the consumer has passed.
    async fn assert_passed(&self, client: &TestClient, events: u64) {
        let stream = client.stream("HUB_EVENTS").await.state;
        let reader = client.consumer("HUB_EVENTS", "event-processor").await;
        assert_eq!((stream.messages, reader.num_pending, reader.num_ack_pending), (events, 0, 0));
        assert_eq!(reader.ack_floor.stream_sequence, stream.last_sequence);
    }

    /// Waits until nothing is left, and asserts that each of these events arrived once, and nothing else did.
    async fn assert_each_once(&self, client: &TestClient, events: &[String]) {
        self.broker.nothing_pending_within(STEP).await;
        let account =
            Account::of_some(events, &CRM, &self.receiver, &client.dead_letters("user-lifecycle").await);
        account.assert_complete("after the sweep");
        assert_eq!((account.delivered, account.doubles, account.dead), (events.len(), 0, 0));
        assert_eq!(self.receiver.count("/crm"), events.len() + 1, "and the one of the start");
    }
}

#[tokio::test]
async fn events_that_were_processed_are_removed() {
    let mut stage = Stage::new().await;
    let client = stage.client().await;
    let mut events = ids("processed", 20);
    client.publish_all("user.created", &events).await;
    // Without ids of their own: the stream names them.
    for number in 0..5 {
        let body = format!("{{\"user_id\":\"unnamed-{number}\"}}");
        let sent = client.context.publish("hub.events.user.created", body.into()).await.expect("sent");
        events.push(format!("HUB_EVENTS-{}", sent.await.expect("stored").sequence));
    }
    // No subscription selects them, or they are rejected.
    client.publish_all("token.refreshed", &ids("unmatched", 3)).await;
    client.publish_all("nothing.known", &ids("rejected", 3)).await;
    drop(client);
    let saved = stage.save(MESSAGES).await;
    let mut hub = stage.hub().await;
    stage.receiver.wait_accepted("/crm", 26, STEP).await;
    stage.broker.nothing_pending_within(STEP).await;
    hub.terminate().await;

    stage.restore(MESSAGES, &saved).await;
    let client = stage.client().await;
    stage.assert_passed(&client, 31).await;
    // Two processes, neither of which acknowledged them.
    let (mut first, mut second) = (stage.hub().await, stage.hub().await);
    let later = ids("later", 10);
    client.publish_all("user.created", &later).await;
    events.extend(later);
    stage.assert_each_once(&client, &events).await;
    assert_eq!(client.stream("HUB_REJECTED").await.state.messages, 3, "nothing is rejected twice");
    let logs = [first.log(), second.log()].concat();
    assert!(logs.contains("processed event was still in its stream, removing it"), "{logs}");
    first.terminate().await;
    second.terminate().await;
}

#[tokio::test]
async fn events_that_the_consumer_passed_over_are_processed() {
    let mut stage = Stage::new().await;
    let empty = stage.save(MESSAGES).await;
    let client = stage.client().await;
    let mut hub = stage.hub().await;
    let mut events = ids("before", 20);
    client.publish_all("user.created", &events).await;
    stage.receiver.wait_accepted("/crm", 21, STEP).await;
    stage.broker.nothing_pending_within(STEP).await;
    hub.terminate().await;
    drop(client);
    let ahead = stage.save(CONSUMERS).await;

    // The stream gives the sequences of those events to others.
    stage.restore(MESSAGES, &empty).await;
    let client = stage.client().await;
    let again = ids("again", 20);
    client.publish_all("user.created", &again).await;
    drop(client);
    stage.restore(CONSUMERS, &ahead).await;
    let client = stage.client().await;
    stage.assert_passed(&client, 20).await;
    let (mut first, mut second) = (stage.hub().await, stage.hub().await);
    stage.receiver.wait_accepted("/crm", 41, STEP).await;
    events.extend(again);
    stage.assert_each_once(&client, &events).await;
    let logs = [first.log(), second.log()].concat();
    assert!(logs.contains("event was passed over by its consumer, processing it"), "{logs}");
    first.terminate().await;
    second.terminate().await;
}
