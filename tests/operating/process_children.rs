//! The processes that the hub starts: their environment, and that no process and no folder is left behind,
//! however and whenever the hub ends. The same for the bench is in crates/bench/tests/bench/processes.rs.

use std::time::Duration;

use rustix::process::Signal;
use tokio::process::Command;

use crate::support::observed_run::{
    ObservedRun, closed_terminal, each_signal_at, get_no_secret, interrupted_download,
};
use crate::support::{eventually, free_port, http_client, require_tool, tool, wrapped};

const LIMIT: Duration = Duration::from_secs(180);
const HUB: &str = env!("CARGO_BIN_EXE_hub");

fn dev_args(port: u16) -> Vec<String> {
    ["serve", "--dev", "--set", "api.listen=127.0.0.1:0", "--nats-url"]
        .map(str::to_owned)
        .into_iter()
        .chain([format!("nats://127.0.0.1:{port}")])
        .chain(["--set", "health.listen=127.0.0.1:0"].map(str::to_owned))
        .collect()
}

#[tokio::test]
async fn serve_dev_leaves_nothing_whichever_signal_ends_it() {
    let args = dev_args(free_port());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    // While the server is probed, and while it starts.
    each_signal_at(HUB, &args, &["hub-watch", "--ports_file_dir"], 0).await;
}

#[tokio::test]
async fn the_demo_leaves_nothing_whichever_signal_ends_it() {
    each_signal_at(HUB, &["demo"], &["hub-watch", "--ports_file_dir"], 1).await;
}

#[tokio::test]
async fn one_that_is_killed_takes_its_processes_and_folders_along() {
    let dev = dev_args(free_port());
    for args in [dev.iter().map(String::as_str).collect(), vec!["demo"]] {
        let mut run = ObservedRun::start(HUB, &args);
        run.process("--ports_file_dir").await;
        run.signal(Signal::KILL);
        run.ended().await;
    }
}

#[tokio::test]
async fn a_terminal_that_is_closed_leaves_nothing() {
    let Some(python) = require_tool("python3", tool("python3", "HUB_TEST_PYTHON")) else { return };
    let dev = dev_args(free_port());
    for args in [dev.iter().map(String::as_str).collect(), vec!["demo"]] {
        closed_terminal(HUB, &args, "--ports_file_dir", &python).await;
    }
}

#[tokio::test]
async fn a_download_ends_with_the_hub_and_gets_no_secret() {
    interrupted_download(HUB, &["demo"], Signal::TERM).await;
    interrupted_download(HUB, &["serve", "--dev"], Signal::HUP).await;
}

#[tokio::test]
async fn no_child_gets_the_secrets_of_the_hub() {
    let dev = dev_args(free_port());
    let dev: Vec<&str> = dev.iter().map(String::as_str).collect();
    get_no_secret(HUB, &dev, &["--ports_file_dir"]).await;
    get_no_secret(HUB, &["demo"], &["--ports_file_dir"]).await;
}

/// `nohup hub serve --dev &` outlives its terminal.
#[tokio::test]
async fn a_hangup_that_was_ignored_from_the_start_ends_nothing() {
    let mut args = dev_args(free_port());
    let listen = format!("127.0.0.1:{}", free_port());
    args[3] = format!("api.listen={listen}");
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut run = ObservedRun::start_with(HUB, &args, |command, _| {
        let mut ignoring = Command::new("sh");
        ignoring.args(["-c", r#"trap '' HUP; exec "$0" "$@""#]);
        wrapped(ignoring, &command)
    });
    run.process("--ports_file_dir").await;
    run.signal(Signal::HUP);
    let client = http_client();
    eventually(LIMIT, "it continues and becomes ready", async || {
        let answer = client.get(format!("http://{listen}/readyz")).send().await;
        let status = answer.map(|answer| answer.status().as_u16()).map_err(|error| error.to_string());
        if status == Ok(200) { Ok(()) } else { Err(status) }
    })
    .await;
    run.signal(Signal::TERM);
    assert_eq!(run.ended().await.code(), Some(0));
}
