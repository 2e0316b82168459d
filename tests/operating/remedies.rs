//! Failed commands name the cause and its remedy, not that of another cause, and no subject of the API.

use std::time::Duration;

use hub_testkit::broker_process::BrokerOptions;

use crate::support::{Hub, TestBroker, TestClient, TestSettings, nats_server, print_output};

/// 32 bytes in base64.
const MASTER_KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

const COMMANDS: [&str; 8] = [
    "subscription list",
    "subscription show crm",
    "subscription pause crm",
    "subscription resume crm",
    "subscription match user.created",
    "subscription remove crm --yes",
    "secrets rotate",
    "registry export",
];

/// Each command fails with this exit code, and its error has all of these texts and none of the others.
async fn each_fails(hub: &Hub, args: &[&str], code: i32, texts: &[&str], others: &[&str]) {
    for command in COMMANDS {
        let mut line: Vec<&str> = command.split(' ').collect();
        line.extend(args);
        let output = hub.cli(&line).await;
        let (shown, error) = (print_output(&output), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{command}: {shown}");
        for text in texts {
            assert!(error.contains(text), "{command}: {text:?} is missing: {shown}");
        }
        for other in others {
            assert!(!error.contains(other), "{command}: {other:?}: {shown}");
        }
    }
}

#[tokio::test]
async fn a_registry_that_is_missing_is_told_from_a_hub_that_was_never_provisioned() {
    let broker = TestBroker::start().await;
    let hub = Hub::not_started(&broker.url(), &TestSettings::default().with_key(MASTER_KEY));
    let provision = "create the hub's streams with `hub provision`";
    let lost = "the subscription registry is missing";
    let others = ["permission", "$JS", "STREAM.", "CONSUMER.", "DIRECT.", "KV_"];
    let (never, now) = ([others.as_slice(), &[lost]].concat(), [others.as_slice(), &[provision]].concat());
    each_fails(&hub, &[], 1, &["bucket hub-subscriptions", provision], &never).await;
    hub.cli_ok(&["provision"]).await;
    let client = TestClient::connect(&broker.url()).await;
    client.context.delete_stream("KV_hub-subscriptions").await.expect("deleted");
    let import = "hub registry import --create-registry";
    each_fails(&hub, &[], 1, &[lost, import], &now).await;
}

#[tokio::test]
async fn a_missing_permission_is_named_as_the_server_reports_it() {
    let mut options = BrokerOptions::new(nats_server());
    options.extra_config =
        "authorization { users: [\n  {user: hub, password: right}\n  {user: less, password: right, \
                            permissions: {publish: {deny: [\"$JS.API.>\"]}}}\n] }\n"
            .to_owned();
    let broker = TestBroker::start_with(options).await;
    let settings = TestSettings::default().with_key(MASTER_KEY);
    let settings = settings.with(|settings| settings.nats.request_timeout = Some(Duration::from_secs(2)));
    let hub = Hub::not_started(&broker.url(), &settings);
    let login = |user| ["--set", user, "--set", "nats.password=right"];
    let mut provision = vec!["provision"];
    provision.extend(login("nats.user=hub"));
    hub.cli_ok(&provision).await;
    let (reported, remedy) = ("which reported: ", "give the NATS user this permission");
    let others = ["hub provision", "nats stream report"];
    each_fails(&hub, &login("nats.user=less"), 3, &[reported, "ermissions", remedy], &others).await;
}
