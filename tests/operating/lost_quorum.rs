//! A cluster that has lost its quorum: every command says that JetStream is temporarily unavailable, with the exit code of
//! what passes.

use std::process::Output;
use std::time::Duration;

use hub_testkit::broker_process::{BrokerCluster, BrokerOptions};

use crate::support::{Hub, TestSettings, eventually, nats_server, print_output};

const STEP: Duration = Duration::from_secs(120);
/// The exit code of a command that may succeed later.
const LATER: Option<i32> = Some(3);

fn says_that_it_passes(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stderr).contains("JetStream is temporarily unavailable")
}

#[tokio::test]
async fn commands_say_that_jetstream_is_temporarily_unavailable() {
    let options = BrokerOptions { server_name: Some("node".to_owned()), ..BrokerOptions::new(nats_server()) };
    let mut cluster = BrokerCluster::start(3, &options).await.unwrap_or_else(|error| panic!("{error}"));
    let settings = TestSettings::quick().with(|settings| settings.nats.replicas = Some(3));
    let hub = Hub::configured(&cluster.url(), &settings);
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
        "dlt discard --all --yes",
        "event trace unknown",
        "registry export",
        "publish user.created {} --id during",
        "publish user.created {}",
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
    }
    // A follower may answer these.
    for command in ["subscription list", "token list", "dlt stats", "provision --check", "event trace before"]
    {
        let args: Vec<&str> = command.split(' ').collect();
        let output = hub.cli(&args).await;
        let (code, text) = (output.status.code(), print_output(&output));
        assert!(code == Some(0) || code == LATER && says_that_it_passes(&output), "{command}: {text}");
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
