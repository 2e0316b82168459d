//! A process that starts before its NATS server, or while JetStream has no quorum: it serves health, is not ready, and
//! continues by itself. What no wait mends ends it at once.

use std::path::PathBuf;
use std::time::Duration;

use crate::support::{
    FaultProxy, Hub, TestBroker, TestSettings, eventually, free_port, http_client, nats_server, require_tool,
};
use hub_testkit::broker_process::{BrokerCluster, BrokerOptions};

const STEP: Duration = Duration::from_secs(120);
/// Longer than the patience of the demo and of `--dev`.
const LATER: Duration = Duration::from_secs(22);

/// Waits until health is served, and `/readyz` is 503 with all of these texts.
async fn waits_for(hub: &Hub, texts: &[&str]) {
    eventually(STEP, &format!("/readyz is 503 with {texts:?}"), async || {
        let answer = http_client().get(hub.health_url("/readyz")).send().await.map_err(|e| e.to_string())?;
        let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
        let is_right = status == 503 && texts.iter().all(|part| text.contains(part));
        if is_right { Ok(()) } else { Err(format!("{status} {text}")) }
    })
    .await;
    let alive = http_client().get(hub.health_url("/healthz")).send().await.expect("health is served");
    assert_eq!(alive.status(), 200);
}

/// The first answer of `/readyz`, at the moment at which health is served.
async fn has_a_reason_at_once(hub: &Hub) {
    let (status, text) = eventually(STEP, "health is served", async || {
        let answer = http_client().get(hub.health_url("/readyz")).send().await.map_err(|e| e.to_string())?;
        Ok::<_, String>((answer.status(), answer.text().await.unwrap_or_default()))
    })
    .await;
    let is_reason = |line: &str| {
        line.starts_with("warning: starting: waiting for ") || line.starts_with("warning: waiting for ")
    };
    assert!(status == 503 && text.lines().any(is_reason), "{status} {text}");
}

#[tokio::test]
async fn a_process_without_a_server_waits_for_it() {
    let port = free_port();
    let settings = TestSettings::quick().with(|settings| settings.log.repeat_interval = Some(LATER));
    let mut hub = Hub::serve(&format!("nats://127.0.0.1:{port}"), &settings, &[]);
    waits_for(&hub, &["not ready: connection to the NATS server", "cannot connect to nats://127.0.0.1"])
        .await;
    assert!(hub.metrics().await.contains("\nhub_nats_connected 0\n"));
    let line = "not connected yet, will retry";
    hub.wait_for_log(line, STEP).await;
    // Once at the start, and then once per interval.
    hub.wait_for_log("repeated=", STEP).await;
    assert!(hub.log().matches(line).count() <= 2, "{}", hub.log());
    assert_eq!(hub.ended_by_itself(), None);

    let broker =
        TestBroker::start_with(BrokerOptions { port: Some(port), ..BrokerOptions::new(nats_server()) }).await;
    hub.ready().await;
    assert!(hub.metrics().await.contains("\nhub_nats_connected 1\n"));
    let (_, text) = hub.readiness().await;
    assert_eq!(text.trim(), "ready", "no warning is left");
    drop(broker);
}

#[tokio::test]
async fn a_process_waits_for_a_server_that_accepts_connections_and_says_nothing() {
    let broker = TestBroker::start().await;
    let proxy = FaultProxy::start(&broker.url()).await;
    proxy.freeze();
    let limit = ["--set", "nats.connect_timeout=2s"];
    let mut hub = Hub::serve(&proxy.url("nats"), &TestSettings::quick(), &limit);
    has_a_reason_at_once(&hub).await;
    waits_for(&hub, &["not ready: connection to the NATS server", "timed out"]).await;
    proxy.thaw();
    hub.ready().await;
}

/// Permissions may be granted without a restart of the hub, so it waits, and says which one is missing.
#[tokio::test]
async fn a_process_without_a_permission_says_which_one() {
    let mut options = BrokerOptions::new(nats_server());
    options.extra_config =
        "authorization { users: [{user: hub, password: right, permissions: {publish: {deny: \
                            [\"$JS.API.>\"]}}}] }\n"
            .to_owned();
    let broker = TestBroker::start_with(options).await;
    let settings = TestSettings::quick();
    let settings = settings.with(|settings| settings.nats.request_timeout = Some(Duration::from_secs(2)));
    let login = ["--set", "nats.user=hub", "--set", "nats.password=right"];
    let mut hub = Hub::serve(&broker.url(), &settings, &login);
    waits_for(&hub, &["not ready: JetStream\n", "which reported: ", "$JS.API.INFO", "give the NATS user"])
        .await;
    assert_eq!(hub.terminate().await.code(), Some(0));
}

#[tokio::test]
async fn a_signal_ends_a_process_that_waits() {
    let mut hub = Hub::serve(&format!("nats://127.0.0.1:{}", free_port()), &TestSettings::quick(), &[]);
    waits_for(&hub, &["connection to the NATS server"]).await;
    // Only the signal ends it: no server ever starts on that port.
    assert_eq!(hub.terminate().await.code(), Some(0));
}

#[tokio::test]
async fn a_process_without_a_quorum_waits_for_it() {
    let options = BrokerOptions { server_name: Some("node".to_owned()), ..BrokerOptions::new(nats_server()) };
    let mut cluster = BrokerCluster::start(3, &options).await.unwrap_or_else(|error| panic!("{error}"));
    let url = cluster.url();
    for node in [1, 2] {
        cluster.server(node).expect("three nodes").kill().await.expect("the node is killed");
    }
    let settings = TestSettings::quick().with(|settings| settings.nats.replicas = Some(3));
    let mut hub = Hub::serve(&url, &settings, &[]);
    // Before its last node knows that it is alone, requests have no answer.
    waits_for(&hub, &["not ready: JetStream\n", "JetStream is temporarily unavailable", "quorum"]).await;
    hub.wait_for_log("not provisioned yet, will retry", STEP).await;
    // A second one ends at a signal.
    let mut second = Hub::serve(&url, &settings, &[]);
    has_a_reason_at_once(&second).await;
    waits_for(&second, &["not ready: JetStream\n"]).await;
    assert_eq!(second.terminate().await.code(), Some(0));
    for node in [1, 2] {
        cluster.server(node).expect("three nodes").restart().await.expect("the node starts");
    }
    cluster.wait_for_leader().await.unwrap_or_else(|error| panic!("{error}"));
    eventually(STEP, "the hub is ready", async || match hub.readiness().await {
        (true, text) if text.trim() == "ready" => Ok(()),
        other => Err(other),
    })
    .await;
    assert_eq!(hub.ended_by_itself(), None);
}

/// The process ends with this exit code and text, and has tried nothing twice.
async fn ends_with(broker_url: &str, args: &[&str], code: i32, text: &str) {
    let mut hub = Hub::serve(broker_url, &TestSettings::quick(), args);
    let status = hub.ended(STEP).await;
    assert_eq!(status.code(), Some(code), "{}", hub.log());
    let log = hub.log();
    assert!(log.contains(&format!("error: {text}")), "{text:?}: {log}");
    assert!(!log.contains("will retry"), "{text:?}: {log}");
}

#[tokio::test]
async fn what_no_wait_mends_ends_the_start_at_once() {
    let plain = TestBroker::start().await;
    let unused = format!("nats://127.0.0.1:{}", free_port());
    // Settings, also without a server.
    let missing = ["--set", "nats.credentials_file=/nope"];
    ends_with(&unused, &missing, 1, "nats.credentials_file: cannot use /nope").await;
    ends_with(&unused, &["--domain", "nope"], 1, "--domain nope: unknown domain").await;
    // TLS with a server that has none.
    let tls = plain.url().replace("nats://", "tls://");
    ends_with(&tls, &[], 1, "cannot use TLS with the NATS server").await;
    // Credentials that the server refuses.
    let mut options = BrokerOptions::new(nats_server());
    options.extra_config = "authorization { user: hub, password: right }\n".to_owned();
    let guarded = TestBroker::start_with(options).await;
    let wrong = ["--set", "nats.user=hub", "--set", "nats.password=wrong"];
    ends_with(&guarded.url(), &wrong, 1, "cannot log in to the NATS server").await;
    let hub = Hub::not_started(&guarded.url(), &TestSettings::quick());
    let listed = hub.cli(&[&wrong[..], &["subscription", "list"]].concat()).await;
    assert_eq!(listed.status.code(), Some(1), "{listed:?}");
    // A server without JetStream.
    let mut options = BrokerOptions::new(nats_server());
    options.jetstream = false;
    let without = TestBroker::start_with(options).await;
    ends_with(&without.url(), &[], 1, "NATS server").await;
    // More replicas than a server without a cluster has.
    ends_with(&plain.url(), &["--set", "nats.replicas=3"], 1, "stream ").await;
}

#[tokio::test]
async fn a_server_that_is_too_old_ends_the_start_at_once() {
    let path = std::env::var_os("HUB_TEST_OLD_NATS_SERVER").map(PathBuf::from);
    let Some(old) = require_tool("a nats-server older than 2.12.9 (HUB_TEST_OLD_NATS_SERVER)", path) else {
        return;
    };
    let broker = TestBroker::start_with(BrokerOptions::new(old)).await;
    ends_with(&broker.url(), &[], 1, "NATS server").await;
}
