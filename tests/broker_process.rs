//! A private nats-server: start, kill, restart, lock of its folder, and no remaining process.

use hub_harness as support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use hub_testkit::broker_process::{
    BrokerCluster, BrokerOptions, BrokerProcess, BrokerProcessError, Data, SyncInterval,
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use support::{TestBroker, eventually, nats_server};

fn lives(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    test_kill_process(pid).is_ok()
}

fn lasting(folder: &Path) -> BrokerOptions {
    BrokerOptions { data: Data::Lasting(folder.to_path_buf()), ..BrokerOptions::new(nats_server()) }
}

#[tokio::test]
async fn a_stored_message_survives_kill_and_restart_on_the_same_port() {
    let mut broker = TestBroker::start().await;
    let jetstream = broker.jetstream().await;
    jetstream
        .create_stream(async_nats::jetstream::stream::Config {
            name: "KEPT".into(),
            subjects: vec!["kept.>".into()],
            ..Default::default()
        })
        .await
        .expect("the stream is made");
    let stored = jetstream.publish("kept.one", "still here".into()).await.expect("sent");
    assert_eq!(stored.await.expect("acknowledged").sequence, 1);

    let (url, pid) = (broker.url(), broker.process().pid().expect("it runs"));
    broker.process().kill().await.expect("killed");
    assert!(!lives(pid), "kill waits until the process is gone");
    assert!(matches!(broker.process().stop().await, Err(BrokerProcessError::NotRunning)));
    broker.process().restart().await.expect("restarted");
    assert_eq!(broker.url(), url);

    let stream = broker.jetstream().await.get_stream("KEPT").await.expect("the stream is there again");
    let message = stream.get_raw_message(1).await.expect("and its message");
    assert_eq!(message.payload.as_ref(), b"still here");
}

#[tokio::test]
async fn the_options_reach_the_server() {
    let options = BrokerOptions {
        max_payload: Some(2 * 1024 * 1024),
        sync_interval: SyncInterval::Always,
        server_name: Some("mine\"1\"".to_owned()),
        extra_config: "max_connections: 7".to_owned(),
        ..BrokerOptions::new(nats_server())
    };
    let broker = TestBroker::start_with(options).await;
    let client = broker.client().await;
    let info = client.server_info();
    assert_eq!((info.max_payload, info.server_name.as_str()), (2 * 1024 * 1024, "mine\"1\""));
    let varz = broker.varz().await;
    assert_eq!(varz["max_connections"], 7);
    assert_eq!(varz["jetstream"]["config"]["sync_always"], true);

    let plain =
        TestBroker::start_with(BrokerOptions { jetstream: false, ..BrokerOptions::new(nats_server()) });
    assert!(!plain.await.client().await.server_info().jetstream);
}

#[tokio::test]
async fn two_servers_never_share_a_data_folder() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut first = BrokerProcess::start(lasting(folder.path())).await.expect("the first starts");
    let pid = first.pid().expect("it runs");
    // The server holds the lock as well, so it outlasts a killed owner.
    #[cfg(target_os = "linux")]
    assert!(
        std::fs::read_link(format!("/proc/{pid}/fd/0")).expect("its input").ends_with("nats-server.lock")
    );
    let refused = BrokerProcess::start(lasting(folder.path())).await.expect_err("the folder is taken");
    assert!(
        matches!(&refused, BrokerProcessError::InUse { pid: Some(named), .. } if *named == pid),
        "{refused}"
    );
    assert!(refused.to_string().contains(&format!("process id {pid}")), "{refused}");

    first.stop().await.expect("stopped");
    drop(first);
    let mut next = BrokerProcess::start(lasting(folder.path())).await.expect("the folder is free again");
    next.stop().await.expect("stopped");
}

#[tokio::test]
async fn a_server_that_cannot_start_shows_its_last_words() {
    let options =
        BrokerOptions { extra_config: "no_such_setting: 1".to_owned(), ..BrokerOptions::new(nats_server()) };
    let error = BrokerProcess::start(options).await.expect_err("the setting is unknown");
    assert!(matches!(error, BrokerProcessError::Exited { .. }));
    assert!(error.to_string().contains("no_such_setting"), "{error}");

    let error = BrokerProcess::start(BrokerOptions::new("/nowhere/nats-server")).await;
    assert!(matches!(error, Err(BrokerProcessError::Spawn { .. })));
}

#[tokio::test]
async fn a_dropped_server_is_gone_and_so_is_its_folder() {
    let broker = BrokerProcess::start(BrokerOptions::new(nats_server())).await.expect("it starts");
    let (pid, folder) = (broker.pid().expect("it runs"), broker.folder().to_path_buf());
    assert!(lives(pid) && folder.is_dir());
    drop(broker);
    assert!(!lives(pid) && !folder.exists());
}

#[tokio::test]
async fn the_end_of_a_server_is_noticed() {
    let mut broker = BrokerProcess::start(BrokerOptions::new(nats_server())).await.expect("it starts");
    let pid = i32::try_from(broker.pid().expect("it runs")).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a process id"), Signal::KILL).expect("signalled");
    let ended = tokio::time::timeout(Duration::from_secs(5), broker.ended()).await.expect("noticed in time");
    assert!(!ended.expect("waited for").success());
    assert!(broker.pid().is_none());
}

#[tokio::test]
async fn a_cluster_elects_a_leader_again_when_one_server_is_lost() {
    let mut cluster =
        BrokerCluster::start(3, &BrokerOptions::new(nats_server())).await.expect("the cluster starts");
    let client = async_nats::connect(cluster.url().split(',').collect::<Vec<_>>()).await.expect("connected");
    let jetstream = async_nats::jetstream::new(client);
    let config =
        async_nats::jetstream::stream::Config { name: "THREE".into(), num_replicas: 3, ..Default::default() };
    jetstream.create_stream(config).await.expect("three replicas are to be had");

    cluster.server(0).expect("three servers").kill().await.expect("killed");
    cluster.wait_for_leader().await.expect("two of three still have a leader");
    cluster.server(0).expect("three servers").restart().await.expect("restarted");
    cluster.wait_for_leader().await.expect("it has joined again");
    cluster.stop().await.expect("stopped");
}

/// Not a test: the process that the next test kills.
#[tokio::test]
#[ignore = "run by no_server_outlives_a_killed_owner"]
async fn owner_of_a_server() {
    let folder = std::env::var_os("TEST_DATA_FOLDER").expect("set by the test that runs this");
    let broker = BrokerProcess::start(lasting(Path::new(&folder))).await.expect("it starts");
    println!("server {}", broker.pid().expect("it runs"));
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn no_server_outlives_a_killed_owner() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut owner = Command::new(std::env::current_exe().expect("this test's binary"))
        .args(["--exact", "owner_of_a_server", "--ignored", "--nocapture"])
        .env("TEST_DATA_FOLDER", folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the owner starts");
    let output = BufReader::new(owner.stdout.take().expect("piped"));
    let pid = output
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.split_once("server ").and_then(|(_, pid)| pid.parse().ok()));
    owner.kill().expect("killed");
    owner.wait().expect("waited for");
    let _: u32 = pid.expect("the owner has started a server");
    // The server holds the lock of its folder until it ends. (Its process id may exist longer, until its parent waits
    // for it.)
    let mut next = eventually(Duration::from_secs(10), "the server of a killed owner stops", async || {
        BrokerProcess::start(lasting(folder.path())).await
    })
    .await;
    next.stop().await.expect("stopped");
}
