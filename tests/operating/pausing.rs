//! Pausing a domain, stopping and restarting the hub, and the limit of envelopes in memory.

use std::path::Path;
use std::time::Duration;

use crate::support::{
    Account, Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, nats_cli,
    patient, print_output, require_tool, subscription,
};

const STEP: Duration = Duration::from_secs(30);
const OUTBOX: &str = "HUB_OUTBOX_POLICY_CLIENT";
const LANE: &str = "lane-shared";

/// Runs the real `nats` command, which must succeed, with a separate home folder.
async fn nats(cli: &Path, hub: &Hub, url: &str, args: &[&str]) -> String {
    let mut command = tokio::process::Command::new(cli);
    command.args(["--server", url]).args(args).env("HOME", hub.folder()).env_remove("XDG_CONFIG_HOME");
    let output = tokio::time::timeout(STEP, command.kill_on_drop(true).output()).await;
    let output = output.expect("nats ends").expect("nats runs");
    assert!(output.status.success(), "`nats {}`: {}", args.join(" "), print_output(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Publishes for the paused domain and for another, and asserts that only the other delivers.
async fn assert_held(client: &TestClient, receiver: &Receiver, name: &str, held_before: usize) {
    let events = ids(name, 40);
    client.publish_all("policy.updated", &events).await;
    client.publish_all("user.created", &ids(&format!("{name}-other"), 40)).await;
    receiver.wait_accepted("/other", held_before + 40, STEP).await;
    eventually(STEP, "the envelopes are in the outbox", async || {
        let lane = client.consumer(OUTBOX, LANE).await;
        let seen = (lane.num_pending, lane.num_ack_pending);
        if seen == (40, 0) { Ok(()) } else { Err(seen) }
    })
    .await;
    assert_eq!(receiver.count("/paused"), held_before, "nothing was delivered while paused");
}

#[tokio::test]
async fn a_domain_paused_by_anyone_holds_its_deliveries() {
    let Some(cli) = require_tool("nats", nats_cli()) else { return };
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client
        .subscribe([
            patient("paused", &["policy.>"], &receiver.url("/paused")),
            patient("other", &["user.>"], &receiver.url("/other")),
        ])
        .await;

    hub.cli_ok(&["domain", "pause", "policy-client", "--for", "1h"]).await;
    let info = nats(&cli, &hub, &broker.url(), &["consumer", "info", OUTBOX, LANE, "--json"]).await;
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["paused"], true, "{info}");
    assert_held(&client, &receiver, "by-hub", 0).await;
    // Only of the subscription whose events the domain has.
    let resumed = hub.cli_ok(&["subscription", "resume", "paused"]).await;
    let (first, second) = resumed.trim_end().split_once('\n').expect("two lines");
    assert_eq!(first, "paused: already active");
    assert!(second.starts_with("  policy-client: the domain is paused until "), "{second}");
    assert!(second.ends_with("`hub domain resume policy-client`"), "{second}");
    let resumed = hub.cli_json(&["subscription", "resume", "paused"]).await;
    assert_eq!(resumed["waits"][0]["reason"], "domain-paused", "{resumed}");
    assert_eq!(hub.cli_ok(&["subscription", "resume", "other"]).await.trim(), "other: already active");
    // A pause outlasts the process.
    assert!(hub.terminate().await.success());
    hub.start();
    hub.ready().await;
    assert!(client.consumer(OUTBOX, LANE).await.paused, "still paused after a restart");
    assert_eq!(receiver.count("/paused"), 0);
    hub.cli_ok(&["domain", "resume", "policy-client"]).await;
    receiver.wait_accepted("/paused", 40, STEP).await;

    let until = time::OffsetDateTime::now_utc() + Duration::from_secs(3600);
    let until = until.format(&time::format_description::well_known::Rfc3339).expect("a time");
    let until = format!("{} {}", &until[..10], &until[11..19]);
    nats(&cli, &hub, &broker.url(), &["consumer", "pause", OUTBOX, LANE, &until, "--force"]).await;
    let listed = hub.cli_json(&["domain", "list"]).await;
    let domain = listed.as_array().and_then(|list| list.iter().find(|one| one["name"] == "policy-client"));
    assert_eq!(domain.map(|domain| &domain["paused"]), Some(&true.into()), "{listed}");
    assert_held(&client, &receiver, "by-nats", 40).await;
    nats(&cli, &hub, &broker.url(), &["consumer", "resume", OUTBOX, LANE, "--force"]).await;
    receiver.wait_accepted("/paused", 80, STEP).await;
    broker.nothing_pending_within(STEP).await;
    assert!(receiver.doubles("/paused").is_empty());
}

#[tokio::test]
async fn a_stopped_process_finishes_what_is_in_flight_and_hands_back_the_rest() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set("/slow", Behaviour::slow(Duration::from_millis(700)));
    // An envelope that is not handed back is redelivered only after this wait, which is longer than the test.
    let settings =
        TestSettings::quick().with(|settings| settings.delivery.ack_wait = Some(Duration::from_secs(600)));
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("slow", &["policy.>"], &receiver.url("/slow"))]).await;
    let events = ids("event", 150);
    client.publish_all("policy.updated", &events).await;
    receiver.wait_for("/slow", 20, STEP).await;
    let waiting = client.consumer(OUTBOX, LANE).await.num_ack_pending;
    assert!(waiting > 60, "{waiting} envelopes are in the process, in flight or waiting");
    assert!(hub.terminate().await.success(), "a stop by SIGTERM succeeds");

    let requests = receiver.received("/slow");
    let answered = requests.iter().filter(|request| request.answered == Some(200)).count();
    assert_eq!(answered, requests.len(), "each delivery that had begun was finished");
    assert!(answered < 150, "there was something left");
    let pending = broker.messages(OUTBOX).await;
    assert_eq!(pending as usize, 150 - answered, "delivered envelopes are acknowledged");

    receiver.set("/slow", Behaviour::ok());
    hub.start();
    hub.ready().await;
    receiver.wait_accepted("/slow", 150, STEP).await;
    broker.nothing_pending_within(STEP).await;
    let account = Account::of(&events, &[("slow", "/slow")], &receiver, &[]);
    account.assert_complete("stopped and started");
    assert_eq!((account.delivered, account.doubles), (150, 0));
}

#[tokio::test]
async fn envelopes_beyond_the_memory_move_to_lanes_of_their_own() {
    const HELD: u64 = 200;
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let hanging = || (0..100).map(|number| format!("/hanging-{number}"));
    hanging().for_each(|path| receiver.set(&path, Behaviour::Hang));
    // No attempt ends during the test: every envelope taken from the broker stays in memory.
    let settings = TestSettings::default().with(|settings| {
        settings.delivery.max_timeout = Some(Duration::from_secs(60));
        settings.delivery.ack_wait = Some(Duration::from_secs(75));
        settings.delivery.held = Some(HELD as usize);
        settings.delivery.queue_per_subscription = Some(HELD as usize);
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let all = hanging().map(|path| {
        let mut subscription = subscription(&path[1..], &["policy.>"], &receiver.url(&path));
        subscription["delivery"]["timeout"] = "60s".into();
        subscription
    });
    client.subscribe(all).await;
    client.publish_all("policy.updated", &ids("event", 100)).await;
    // The shared lane is read to its end: what does not fit into the memory moves to the lanes of the subscriptions.
    eventually(Duration::from_secs(120), "the shared lane has no unread envelope", async || {
        let shared = client.consumer(OUTBOX, LANE).await;
        assert!(
            shared.num_ack_pending as u64 <= HELD,
            "{} of the shared lane in memory",
            shared.num_ack_pending
        );
        if shared.num_pending == 0 { Ok(()) } else { Err(shared.num_pending) }
    })
    .await;
    eventually(STEP, "each envelope is stored once", async || {
        let stored = client.stream(OUTBOX).await.state.messages;
        if stored == 10_000 { Ok(()) } else { Err(stored) }
    })
    .await;
    // Envelopes of endpoints that hang leave the shared lane for a while yet, and the server counts a moved envelope until it
    // has processed the acknowledgement.
    eventually(STEP, "each lane has no more than its memory", async || {
        for name in client.js.consumer_names(OUTBOX).await.expect("listed") {
            let held = client.consumer(OUTBOX, &name).await.num_ack_pending as u64;
            if held > if name == LANE { HELD } else { 64 } {
                return Err(format!("{held} of {name}"));
            }
        }
        Ok(())
    })
    .await;
    // The pool has 64 slots. Attempts that take more than a second leave them, at most a quarter of `delivery.held`.
    const MOST: usize = 64 + HELD as usize / 4;
    let in_flight = hub.metric("hub_deliveries_in_flight", &["domain=\"policy-client\""]).await;
    let open: usize = hanging().map(|path| receiver.most_open(&path)).sum();
    assert!((1..=MOST).contains(&open), "{open} at the endpoints, at most {MOST}");
    assert!(in_flight <= MOST as f64, "{in_flight} in flight, at most {MOST}");
}
