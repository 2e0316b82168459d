//! A person deletes streams and consumers while the hub works: each is made again, and the work continues.

use std::time::Duration;

use async_nats::jetstream::stream;
use hub_testkit::broker_process::BrokerOptions;

use crate::support::{
    Account, Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, nats_server,
    patient, subscription,
};

const STEP: Duration = Duration::from_secs(60);
/// Limit until a deleted part is there again.
const AGAIN: Duration = Duration::from_secs(15);
const OUTBOX: &str = "HUB_OUTBOX_USER_LIFECYCLE";
const DLT: &str = "HUB_OUTBOX_USER_LIFECYCLE_DLT";

#[derive(Debug, Clone, Copy)]
enum Part {
    /// `may_lose`: it holds events or envelopes, which the operator deletes with it.
    Stream {
        name: &'static str,
        may_lose: bool,
    },
    Consumer {
        stream: &'static str,
        name: &'static str,
    },
}

const PARTS: [Part; 14] = [
    Part::Consumer { stream: "HUB_EVENTS", name: "event-processor" },
    Part::Consumer { stream: OUTBOX, name: "lane-shared" },
    Part::Consumer { stream: "HUB_ADVISORIES", name: "dlt-router" },
    Part::Consumer { stream: DLT, name: "dlt-processor" },
    Part::Consumer { stream: "HUB_REDRIVE", name: "dlt-processor" },
    Part::Stream { name: "HUB_ADVISORIES", may_lose: false },
    Part::Stream { name: "HUB_ATTEMPTS", may_lose: false },
    Part::Stream { name: "HUB_REDRIVE", may_lose: false },
    Part::Stream { name: "HUB_REJECTED", may_lose: false },
    Part::Stream { name: "HUB_PUBLISHED", may_lose: false },
    Part::Stream { name: DLT, may_lose: false },
    Part::Stream { name: OUTBOX, may_lose: true },
    Part::Stream { name: "HUB_EVENTS", may_lose: true },
    // Once more, so that its second successor is different from the first.
    Part::Stream { name: OUTBOX, may_lose: true },
];

impl Part {
    fn label(self) -> String {
        match self {
            Self::Stream { name, .. } => format!("stream {name}"),
            Self::Consumer { stream, name } => format!("consumer {stream}/{name}"),
        }
    }

    fn may_lose(self) -> bool {
        matches!(self, Self::Stream { may_lose: true, .. })
    }

    async fn delete(self, client: &TestClient) {
        match self {
            Self::Stream { name, .. } => drop(client.context.delete_stream(name).await.expect("deleted")),
            Self::Consumer { stream, name } => {
                let stream = client.context.get_stream(stream).await.expect("the stream is there");
                stream.delete_consumer(name).await.expect("deleted");
            }
        }
    }
}

/// Interval of the sweep, so that it makes nothing again.
const NEVER: Duration = Duration::from_secs(3_600);

fn settings() -> TestSettings {
    TestSettings::quick().with(|settings| settings.sweep.interval = Some(NEVER))
}

/// The lines that report a part as made again.
fn made(hub: &Hub, label: &str) -> usize {
    let quoted = format!("\"{label}\"");
    hub.log().lines().filter(|line| line.contains("created it again") && line.contains(&quoted)).count()
}

async fn wait_made(hub: &Hub, label: &str, times: usize) {
    eventually(AGAIN, &format!("{label} is made again"), async || {
        let found = made(hub, label);
        if found == times { Ok(()) } else { Err(found) }
    })
    .await;
}

async fn stream(client: &TestClient, part: Part) -> Option<stream::Info> {
    let Part::Stream { name, .. } = part else { return None };
    Some(client.stream(name).await)
}

#[tokio::test]
async fn each_part_is_made_again_and_the_work_continues() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &settings(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("crm", &["user.>"], &receiver.url("/crm"))]).await;

    for (number, part) in PARTS.into_iter().enumerate() {
        let label = part.label();
        let (during, after) = (ids(&format!("during-{number}"), 300), ids(&format!("after-{number}"), 50));
        let (before, known) = (stream(&client, part).await, made(&hub, &label));
        let deleting = async {
            receiver.wait_for("/crm", receiver.count("/crm") + 20, STEP).await;
            part.delete(&client).await;
        };
        tokio::join!(client.publish_all("user.created", &during), deleting);
        wait_made(&hub, &label, known + 1).await;
        client.publish_all("user.created", &after).await;
        let arrives = |events: &[String]| {
            let account = Account::of_some(events, &[("crm", "/crm")], &receiver, &[]);
            if account.missing.is_empty() { Ok(()) } else { Err(account.missing.len()) }
        };
        eventually(STEP, &format!("{label}: everything that followed arrives"), async || arrives(&after))
            .await;
        if !part.may_lose() {
            eventually(STEP, &format!("{label}: nothing is lost"), async || arrives(&during)).await;
        }
        if let (Some(before), Some(now)) = (before, stream(&client, part).await) {
            assert!(now.state.first_sequence > before.state.last_sequence, "{label}: a sequence is repeated");
        }
        hub.ready().await;
        println!("{label}: {} deliveries were repeated", receiver.doubles("/crm").len());
    }
    broker.nothing_pending_within(STEP).await;
    let check = hub.cli_json(&["provision", "--check"]).await;
    assert_eq!(check, serde_json::json!([]), "the new parts have their definitions");
    assert!(!hub.log().contains("is missing and not created"), "{}", hub.log());
}

#[tokio::test]
async fn the_lane_of_one_subscription_is_made_again_while_it_has_envelopes() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let (open, gate) = Behaviour::gate();
    receiver.set("/slow", gate);
    let settings = TestSettings::patient().with(|settings| {
        settings.sweep.interval = Some(NEVER);
        settings.delivery.queue_per_subscription = Some(4);
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([patient("slow", &["user.>"], &receiver.url("/slow"))]).await;
    let events = ids("event", 100);
    client.publish_all("user.created", &events).await;
    let outbox = client.context.get_stream(OUTBOX).await.expect("the stream is there");
    let lane = "lane-own-slow";
    eventually(STEP, "the lane has envelopes and a reader", async || {
        let info = outbox.consumer_info(lane).await.map_err(|error| error.to_string())?;
        if info.num_ack_pending > 0 { Ok(()) } else { Err(format!("{info:?}")) }
    })
    .await;
    outbox.delete_consumer(lane).await.expect("deleted");
    wait_made(&hub, &format!("consumer {OUTBOX}/{lane}"), 1).await;
    open.send_replace(true);
    receiver.wait_accepted("/slow", events.len(), STEP).await;
    broker.nothing_pending_within(STEP).await;
}

/// The envelope refers to a dead letter of the deleted stream, and must not count as resolved.
#[tokio::test]
async fn a_redriven_envelope_is_delivered_although_its_dead_letter_stream_was_deleted() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/crm", Behaviour::status(503));
    let mut hub = Hub::serve(&broker.url(), &settings(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("crm", &["user.>"], &receiver.url("/crm"))]).await;
    client.publish("user.created", "one").await;
    eventually(STEP, "it is a dead letter", async || match broker.messages(DLT).await {
        1 => Ok(()),
        other => Err(other),
    })
    .await;
    hub.cli_ok(&["domain", "pause", "user-lifecycle", "--for", "1h"]).await;
    hub.cli_ok(&["dlt", "replay", "--all"]).await;
    eventually(STEP, "the redriven envelope waits", async || match broker.messages(OUTBOX).await {
        1 => Ok(()),
        other => Err(other),
    })
    .await;
    client.context.delete_stream(DLT).await.expect("deleted");
    wait_made(&hub, &format!("stream {DLT}"), 1).await;
    receiver.set("/crm", Behaviour::ok());
    hub.cli_ok(&["domain", "resume", "user-lifecycle"]).await;
    receiver.wait_accepted("/crm", 1, STEP).await;
    broker.nothing_pending_within(STEP).await;
}

/// Users of single roles may not create streams.
#[tokio::test]
async fn without_the_permission_the_log_names_the_command_that_creates_the_part() {
    let accounts = r#"
accounts {
  HUB {
    jetstream: enabled
    users: [
      { user: admin, password: admin }
      { user: role, password: role, permissions: { publish: { deny: ["$JS.API.STREAM.CREATE.>"] } } }
    ]
  }
}"#;
    let options = BrokerOptions { extra_config: accounts.to_owned(), ..BrokerOptions::new(nats_server()) };
    let broker = TestBroker::start_with(options).await;
    let receiver = Receiver::start().await;
    let as_user = |name: &str| {
        settings().with(|settings| {
            settings.nats.user = Some(name.to_owned());
            settings.nats.password = Some(name.to_owned());
        })
    };
    let admin = Hub::not_started(&broker.url(), &as_user("admin"));
    admin.cli_ok(&["provision"]).await;
    let mut hub = Hub::serve(&broker.url(), &as_user("role"), &[]);
    hub.ready().await;
    let file = admin.folder().join("crm.json");
    let crm = subscription("crm", &["user.>"], &receiver.url("/crm"));
    std::fs::write(&file, crm.to_string()).expect("written");
    admin.cli_ok(&["subscription", "apply", "-f", file.to_str().expect("UTF-8")]).await;
    let login = async_nats::ConnectOptions::with_user_and_password("admin".to_owned(), "admin".to_owned());
    let context = async_nats::jetstream::new(login.connect(broker.url()).await.expect("connected"));
    context.delete_stream(OUTBOX).await.expect("deleted");
    hub.wait_for_log("run `hub provision` as a user that may create it", STEP).await;
    // The event waits until the outbox is there.
    admin.cli_ok(&["publish", "user.created", "{\"user_id\":\"u1\"}"]).await;
    admin.cli_ok(&["provision"]).await;
    receiver.wait_accepted("/crm", 1, STEP).await;
    hub.ready().await;
    let log = hub.log();
    assert_eq!(log.matches("is missing and not created").count(), 1, "{log}");
}
