//! A cluster that has lost its quorum: every command says that JetStream is temporarily unavailable, with the exit code of
//! what passes, and a running hub says so at `/readyz` and in its metrics until it is back.

use std::process::Output;
use std::time::Duration;

use hub_testkit::broker_process::{BrokerCluster, BrokerOptions};

use crate::support::{
    ApiClient, Hub, Receiver, TestClient, TestSettings, eventually, nats_server, print_output, subscription,
};

const STEP: Duration = Duration::from_secs(120);
/// 32 bytes in base64.
const MASTER_KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// The exit code of a command that may succeed later.
const LATER: Option<i32> = Some(3);

fn says_that_it_passes(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stderr).contains("JetStream is temporarily unavailable")
}

#[tokio::test]
async fn commands_say_that_jetstream_is_temporarily_unavailable() {
    let options = BrokerOptions { server_name: Some("node".to_owned()), ..BrokerOptions::new(nats_server()) };
    let mut cluster = BrokerCluster::start(3, &options).await.unwrap_or_else(|error| panic!("{error}"));
    let settings = TestSettings::quick().with_key(MASTER_KEY);
    let settings = settings.with(|settings| settings.nats.replicas = Some(3));
    let hub = Hub::not_started(&cluster.url(), &settings);
    hub.cli_ok(&["provision"]).await;
    hub.cli_ok(&["publish", "user.created", "{}", "--id", "before"]).await;
    for node in [1, 2] {
        cluster.server(node).expect("three nodes").kill().await.expect("the node is killed");
    }
    for command in [
        "domain list",
        "dlt list",
        "dlt list --output json",
        "dlt replay --all",
        "dlt replay --all --drain --patience 1s",
        "dlt discard --all --yes",
        "event trace unknown",
        "event trace before",
        "provision --check",
        "registry export",
        "publish user.created {} --id during",
        "publish user.created {}",
        "provision",
        "domain pause organization",
        "subscription show nope",
        "subscription pause nope",
        "subscription resume nope",
        "subscription remove nope --yes",
        "subscription match user.created",
        "secrets rotate",
        "subscription list",
        "token list",
        "dlt stats",
        "dlt show nope",
    ] {
        let args: Vec<&str> = command.split(' ').collect();
        // Until a leader on the last node knows that it is alone, it is silent, or answers as before.
        let output = eventually(STEP, &format!("`hub {command}` says that it passes"), async || {
            let output = hub.cli(&args).await;
            if says_that_it_passes(&output) { Ok(output) } else { Err(print_output(&output)) }
        })
        .await;
        assert_eq!(output.status.code(), LATER, "{command}: {}", print_output(&output));
        assert!(output.stdout.is_empty(), "{command}: {}", print_output(&output));
        let text = String::from_utf8_lossy(&output.stderr);
        for wrong in ["hub provision", "permission", "accounts.conf", "$JS", "STREAM.", "CONSUMER.", "INFO:"]
        {
            assert!(!text.contains(wrong), "{command}: {wrong:?}: {text}");
        }
    }
    for node in [1, 2] {
        cluster.server(node).expect("three nodes").restart().await.expect("the node starts");
    }
    cluster.wait_for_leader().await.unwrap_or_else(|error| panic!("{error}"));
    eventually(STEP, "the command succeeds", async || {
        let output = hub.cli(&["event", "trace", "before"]).await;
        if output.status.success() { Ok(()) } else { Err(print_output(&output)) }
    })
    .await;
}

#[tokio::test]
async fn a_running_hub_says_so_until_the_quorum_is_back() {
    let options = BrokerOptions { server_name: Some("node".to_owned()), ..BrokerOptions::new(nats_server()) };
    let mut cluster = BrokerCluster::start(3, &options).await.unwrap_or_else(|error| panic!("{error}"));
    let receiver = Receiver::start().await;
    let settings = TestSettings::quick().with(|settings| {
        settings.nats.replicas = Some(3);
        settings.api.anonymous = Some(true);
    });
    let mut hub = Hub::serve(&cluster.servers()[0].url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&cluster.url()).await;
    client.subscribe([subscription("crm", &["user.>"], &receiver.url("/crm"))]).await;
    client.publish("user.created", "before").await;
    receiver.wait_accepted("/crm", 1, STEP).await;
    for node in [1, 2] {
        cluster.server(node).expect("three nodes").kill().await.expect("the node is killed");
    }
    eventually(STEP, "/readyz says that there is no quorum, and nothing else", async || {
        match hub.readiness().await {
            (false, text)
                if text.starts_with("not ready: JetStream\n") && text.contains("JetStream: no quorum") =>
            {
                Ok(())
            }
            other => Err(other),
        }
    })
    .await;
    let api = ApiClient::with_token(&hub, None);
    for path in [
        "/v1/dead-letters",
        "/v1/dead-letters/stats",
        "/v1/domains",
        "/v1/events/unknown",
        "/v1/orders",
        "/v1/orders/ord_00000000000000000000000000000000",
        "/v1/subscriptions/unknown",
        "/v1/subscriptions/unknown/circuits",
    ] {
        api.get(path).await.expect(503);
    }
    let metrics = hub.metrics().await;
    for line in ["hub_nats_connected 0", "hub_ready{part=\"JetStream\"} 0"] {
        assert!(metrics.contains(&format!("\n{line}\n")), "{line}: {metrics}");
    }
    // Longer than between two looks.
    hub.metric_above("hub_gauges_age_seconds", &[], 12.0, STEP).await;
    hub.wait_for_log("streams have no leader", STEP).await;
    for node in [1, 2] {
        cluster.server(node).expect("three nodes").restart().await.expect("the node starts");
    }
    cluster.wait_for_leader().await.unwrap_or_else(|error| panic!("{error}"));
    eventually(STEP, "the hub is ready, without a warning", async || match hub.readiness().await {
        (true, text) if text.trim() == "ready" => Ok(()),
        other => Err(other),
    })
    .await;
    hub.wait_for_log("all streams have leaders again", STEP).await;
    let age = hub.metric("hub_gauges_age_seconds", &[]).await;
    assert!(age < 12.0, "{age}");
    assert!(hub.metrics().await.contains("\nhub_nats_connected 1\n"));
    client.publish("user.created", "after").await;
    receiver.wait_accepted("/crm", 2, STEP).await;
}

/// The streams that the hub looks at, beside that of the events.
const WATCHED: [&str; 4] = [
    "HUB_OUTBOX_USER_LIFECYCLE",
    "HUB_OUTBOX_USER_LIFECYCLE_DLT",
    "HUB_OUTBOX_ORGANIZATION",
    "HUB_OUTBOX_POLICY_CLIENT",
];

#[tokio::test]
async fn streams_whose_only_server_is_gone_are_named_while_the_others_work() {
    let options = BrokerOptions { server_name: Some("node".to_owned()), ..BrokerOptions::new(nats_server()) };
    let mut cluster = BrokerCluster::start(3, &options).await.unwrap_or_else(|error| panic!("{error}"));
    let mut hub = Hub::serve(&cluster.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&cluster.url()).await;
    let mut nodes = Vec::new();
    for stream in ["HUB_EVENTS"].iter().chain(&WATCHED) {
        let cluster = client.stream(stream).await.cluster.expect("a cluster");
        nodes.push((*stream, cluster.leader.expect("one server")));
    }
    let events = nodes.remove(0).1;
    let mut letters = Vec::new();
    for domain in ["USER_LIFECYCLE", "ACCESS_SESSION", "POLICY_CLIENT", "ORGANIZATION"] {
        let stream = client.stream(&format!("HUB_OUTBOX_{domain}_DLT")).await;
        letters.push(stream.cluster.and_then(|cluster| cluster.leader).expect("one server"));
    }
    // One whose loss leaves the events; where all streams are on one server, the test shows nothing.
    let Some(lost) = nodes.iter().map(|(_, node)| node.clone()).find(|node| *node != events) else { return };
    let named: Vec<&str> =
        nodes.iter().filter(|(_, node)| *node == lost).map(|(stream, _)| *stream).collect();
    let index: usize = lost.trim_start_matches("node-").parse().expect("the name of a node");
    cluster.server(index - 1).expect("three nodes").kill().await.expect("the node is killed");
    eventually(STEP, &format!("/readyz names {named:?}"), async || {
        let (_, text) = hub.readiness().await;
        let has_note = text.lines().any(|line| {
            line.starts_with("warning: no leader, or no answer, of ")
                && named.iter().all(|stream| line.contains(stream))
        });
        if has_note && !text.contains("not ready: JetStream") { Ok(()) } else { Err(text) }
    })
    .await;
    let mut commands = vec!["provision", "provision --check", "domain list"];
    // JetStream has a leader, and answers as if these streams were empty.
    if letters.contains(&lost) {
        commands.extend([
            "dlt list",
            "dlt stats",
            "dlt replay --all",
            "dlt replay --all --drain --patience 1s",
        ]);
    }
    for command in commands {
        let output = hub.cli(&command.split(' ').collect::<Vec<_>>()).await;
        assert_eq!(output.status.code(), LATER, "{command}: {}", print_output(&output));
        assert!(output.stdout.is_empty(), "{command}: {}", print_output(&output));
    }
    cluster.server(index - 1).expect("three nodes").restart().await.expect("the node starts");
    eventually(STEP, "the hub is ready, without a warning", async || match hub.readiness().await {
        (true, text) if text.trim() == "ready" => Ok(()),
        other => Err(other),
    })
    .await;
}
