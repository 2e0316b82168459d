//! The process itself: its log, readers of its output that disappear, and the signals that stop it.

use std::io::{BufRead as _, BufReader, PipeReader, pipe};
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use crate::support::{Hub, TestBroker, TestClient, TestSettings, eventually, print_output, with_hangup};

const LIMIT: Duration = Duration::from_secs(60);

/// Publishes events without a domain until `rejected` of them are stored; each writes a warning to the log.
async fn reject(client: &TestClient, rejected: u64) {
    for number in 0..rejected {
        let body = format!("{{\"n\":{number}}}").into();
        let sent = client.context.publish("hub.events.invoice.paid", body).await.expect("sent");
        sent.await.expect("the stream stores it; the hub rejects it");
    }
    eventually(LIMIT, "every event without a domain is kept", async || {
        let kept = client.stream("HUB_REJECTED").await.state.messages;
        if kept == rejected { Ok(()) } else { Err(kept) }
    })
    .await;
}

/// The state of standard error while the hub runs.
enum Log {
    /// Its reader closes it after the first line.
    ReaderGoes,
    /// No process reads it, and it is full.
    NobodyReads,
    /// The disk is full.
    DiskFull,
    /// Closed from the start, and so is standard output.
    Closed,
}

async fn goes_on_and_ends_in_good_order(log: Log) {
    let broker = TestBroker::start().await;
    // Each rejected event has its line.
    let settings =
        TestSettings::default().with(|settings| settings.log.repeat_interval = Some(Duration::ZERO));
    let mut hub = Hub::not_started(&broker.url(), &settings);
    let mut command = hub.command();
    let mut reader: Option<PipeReader> = None;
    match log {
        Log::ReaderGoes | Log::NobodyReads => {
            let (read, write) = pipe().expect("a pipe");
            command.stdout(write.try_clone().expect("shared")).stderr(write);
            reader = Some(read);
        }
        Log::DiskFull => {
            let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
            command.stdout(full.try_clone().expect("shared")).stderr(full);
        }
        Log::Closed => {
            let mut closing = Command::new("sh");
            closing.args(["-c", r#"exec "$0" "$@" >&- 2>&-"#]).arg(command.as_std().get_program());
            closing.args(command.as_std().get_args()).stdin(Stdio::null()).kill_on_drop(true);
            command = closing;
        }
    }
    hub.start_with(command);
    hub.ready().await;
    if matches!(log, Log::ReaderGoes) {
        let mut first = String::new();
        BufReader::new(reader.take().expect("it reads")).read_line(&mut first).expect("a line");
        assert!(first.contains("INFO"), "{first}");
    }
    let client = TestClient::connect(&broker.url()).await;
    // More lines than a pipe and the queue hold, if no process reads them.
    reject(&client, if matches!(log, Log::NobodyReads) { 6_000 } else { 3 }).await;
    // Standard error that is closed is /dev/null to a Rust program: nothing is lost there.
    if !matches!(log, Log::Closed) {
        hub.metric_above("hub_log_lines_lost_total", &[], 0.0, LIMIT).await;
    }
    let status = hub.terminate().await;
    assert_eq!(status.code(), Some(0), "{status}");
    drop(reader);
}

#[tokio::test]
async fn a_log_reader_that_disappears_ends_nothing() {
    goes_on_and_ends_in_good_order(Log::ReaderGoes).await;
}

#[tokio::test]
async fn an_unread_log_blocks_nothing() {
    goes_on_and_ends_in_good_order(Log::NobodyReads).await;
}

#[tokio::test]
async fn a_full_disk_under_the_log_ends_nothing() {
    goes_on_and_ends_in_good_order(Log::DiskFull).await;
}

#[tokio::test]
async fn closed_standard_output_and_error_end_nothing() {
    goes_on_and_ends_in_good_order(Log::Closed).await;
}

#[tokio::test]
async fn each_signal_stops_the_hub_in_good_order_and_a_second_one_changes_nothing() {
    let broker = TestBroker::start().await;
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut hub = Hub::not_started(&broker.url(), &TestSettings::default());
        let command = with_hangup(&hub.command());
        hub.start_with(command);
        hub.ready().await;
        let pid = Pid::from_raw(i32::try_from(hub.pid().expect("it runs")).expect("a process id"));
        for _ in 0..2 {
            kill_process(pid.expect("not 0"), signal).expect("signalled");
        }
        assert_eq!(hub.ended(LIMIT).await.code(), Some(0), "{signal:?}");
    }
}

/// Runs a command whose standard output, or both outputs, no process reads.
async fn unread(hub: &Hub, args: &[&str], both: bool) -> Output {
    let closed = || {
        let (reader, writer) = pipe().expect("a pipe");
        drop(reader);
        Stdio::from(writer)
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_hub"));
    command.args(args).env("HUB_CONFIG", hub.config()).stdin(Stdio::null()).kill_on_drop(true);
    command.stdout(closed()).stderr(if both { closed() } else { Stdio::piped() });
    let child = command.spawn().expect("the command starts");
    tokio::time::timeout(LIMIT, child.wait_with_output()).await.expect("in time").expect("it runs")
}

#[tokio::test]
async fn a_command_whose_reader_has_gone_ends_quietly_with_its_own_answer() {
    let broker = TestBroker::start().await;
    let hub = Hub::not_started(&broker.url(), &TestSettings::default());
    let nowhere = Hub::not_started("nats://127.0.0.1:1", &TestSettings::default());
    let id = "00000000-0000-0000-0000-000000000000";
    let commands: [(&Hub, &[&str], i32); 17] = [
        // The answer is "no" before the first provisioning, whether it is read or not.
        (&hub, &["provision", "--check"], 1),
        (&hub, &["provision"], 0),
        (&hub, &["provision", "--check"], 0),
        (&hub, &["dlt", "list"], 0),
        (&hub, &["dlt", "list", "--output", "json"], 0),
        (&hub, &["dlt", "stats"], 0),
        (&hub, &["subscription", "list"], 0),
        (&hub, &["subscription", "list", "--output", "json"], 0),
        (&hub, &["domain", "list"], 0),
        (&hub, &["publish", "user.created", "{}"], 0),
        (&hub, &["publish", "invoice.paid", "{}"], 0),
        (&hub, &["dlt", "show", id], 1),
        (&hub, &["config", "show"], 0),
        (&hub, &["--help"], 0),
        (&hub, &["no-such-command"], 2),
        (&nowhere, &["dlt", "list"], 3),
        (&nowhere, &["publish", "user.created", "{}", "--verbose"], 3),
    ];
    for both in [false, true] {
        for (hub, args, code) in commands {
            // With its streams made, the first answer is "yes" as well.
            let code = if both && args == ["provision", "--check"] { 0 } else { code };
            let output = unread(hub, args, both).await;
            assert_eq!(output.status.code(), Some(code), "{args:?}: {}", print_output(&output));
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(!errors.contains("panicked"), "{args:?}: {errors}");
        }
    }
}
