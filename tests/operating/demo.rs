//! `hub demo`: it succeeds, it fails if a part breaks, and it leaves no process or file behind.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::support::{http_client, nats_server};

const LIMIT: Duration = Duration::from_secs(120);

/// A running `hub demo` with its own folder for temporary files.
struct Demo {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
    read: String,
    temporary: TempDir,
}

impl Demo {
    fn start(args: &[&str]) -> Self {
        let temporary = tempfile::tempdir().expect("temporary folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_hub"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("HUB__") || text == "HUB_CONFIG" {
                command.env_remove(&name);
            }
        }
        let mut child = command
            .arg("demo")
            .args(args)
            .env("HUB_NATS_SERVER", nats_server())
            .env("TMPDIR", temporary.path())
            .current_dir(temporary.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the demo starts");
        let output = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, output, read: String::new(), temporary }
    }

    /// Reads up to a line that contains `text`, and returns that line.
    async fn line_with(&mut self, text: &str) -> String {
        let found = tokio::time::timeout(LIMIT, async {
            while let Some(line) = self.output.next_line().await.expect("the output is text") {
                self.read.push_str(&line);
                self.read.push('\n');
                if line.contains(text) {
                    return Some(line);
                }
            }
            None
        });
        let found = found.await.unwrap_or_else(|_| panic!("no {text:?} within {LIMIT:?}:\n{}", self.read));
        found.unwrap_or_else(|| panic!("the output ended without {text:?}:\n{}", self.read))
    }

    /// Reads to the end; returns the exit status and the text. Asserts that no process and no file is left.
    async fn end(mut self) -> (ExitStatus, String) {
        let ended = tokio::time::timeout(LIMIT, async {
            while let Some(line) = self.output.next_line().await.expect("the output is text") {
                self.read.push_str(&line);
                self.read.push('\n');
            }
            self.child.wait().await.expect("waited for")
        });
        let status = ended.await.unwrap_or_else(|_| panic!("it still runs after {LIMIT:?}:\n{}", self.read));
        let left: Vec<_> = std::fs::read_dir(self.temporary.path())
            .expect("the folder is there")
            .map(|entry| entry.expect("readable").path())
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        (status, self.read)
    }

    fn signal(&self, signal: Signal) {
        kill(self.child.id().expect("it runs"), signal);
    }

    /// The process id of its nats-server.
    fn server(&self) -> u32 {
        let folder = std::fs::read_dir(self.temporary.path()).expect("the folder is there").next();
        let folder = folder.expect("the demo has a folder").expect("readable").path();
        let lock = folder.join(Path::new("nats/nats-server.lock"));
        let pid = std::fs::read_to_string(lock).expect("the server runs");
        pid.trim().parse().expect("a process id")
    }
}

fn kill(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).expect("signalled");
}

#[tokio::test]
async fn every_step_holds_once() {
    let (status, output) = Demo::start(&["--once"]).end().await;
    assert_eq!(status.code(), Some(0), "{output}");
    let mut rest = output.as_str();
    for step in [
        "each with an outbox and a dead-letter stream (DLT), all empty",
        "every role is ready",
        "their credentials sealed",
        "it reached C",
        "nats pub hub.events.policy.updated '{\"policy\":\"p1\"}'",
        "A has it after",
        "B, attempt 1 of 4",
        "B, attempt 2 of 4",
        "B, attempt 3 of 4",
        "B, attempt 4 of 4",
        "HUB_OUTBOX_POLICY_CLIENT_DLT holds it: subscriber-b, exhausted, 4 attempts, 503",
        "the dead letter is in the policy DLT and in no other",
        "B has it, at attempt 5, under the same webhook-id",
        "the depth of the policy DLT is 0",
        "A has all 12",
        "it delayed only itself",
        "C has all 12 as well",
        "each subscriber has each of its events exactly once",
        "Every step held.",
    ] {
        let at =
            rest.find(step).unwrap_or_else(|| panic!("{step:?} is missing or out of order in\n{output}"));
        rest = &rest[at + step.len()..];
    }
    assert!(!output.contains("FAILED") && !output.contains('\u{1b}'), "{output}");
}

#[tokio::test]
async fn it_fails_when_the_server_dies_during_the_run() {
    let mut demo = Demo::start(&["--once"]);
    demo.line_with("B, attempt 1 of 4").await;
    kill(demo.server(), Signal::KILL);
    let (status, output) = demo.end().await;
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("FAILED") && output.contains("the nats-server ended by itself"), "{output}");
    assert!(output.contains("The end of the hub's log:"), "{output}");
    assert!(!output.contains("Every step held."), "{output}");
}

#[tokio::test]
async fn an_interrupted_demo_fails() {
    let mut demo = Demo::start(&["--once"]);
    demo.line_with("B, attempt 1 of 4").await;
    demo.signal(Signal::INT);
    let (status, output) = demo.end().await;
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(!output.contains("Every step held."), "{output}");
}

#[tokio::test]
async fn it_stays_up_and_what_it_suggests_works() {
    let mut demo = Demo::start(&[]);
    let publish = demo.line_with(" publish policy.updated").await;
    let off = demo.line_with("/off").await;
    let list = demo.line_with(" dlt list").await;
    demo.line_with("tail -f").await;

    let off = off.trim().strip_prefix("curl -X POST ").expect("a line to copy");
    let answer = http_client().post(off).send().await.expect("the receiver answers");
    assert_eq!(answer.status(), 200);
    demo.line_with("B is switched off").await;
    output_of(&publish).await;
    demo.line_with("B answers 503 to policy.updated {\"policy\":\"p2\"}, attempt 4").await;
    crate::support::eventually(LIMIT, "the dead letter is listed", async || {
        let listed = output_of(&list).await;
        if listed.contains("subscriber-b") { Ok(()) } else { Err(listed) }
    })
    .await;

    let on = off.strip_suffix("off").expect("it ends so").to_owned() + "on";
    let answer = http_client().post(on).send().await.expect("the receiver answers");
    assert_eq!(answer.status(), 200);
    demo.line_with("B answers 200 to policy.updated {\"policy\":\"p2\"}").await;
    demo.signal(Signal::TERM);
    let (status, output) = demo.end().await;
    assert_eq!(status.code(), Some(0), "{output}");
}

/// Runs a printed command in a shell, as a person would.
async fn output_of(line: &str) -> String {
    let command = Command::new("sh").arg("-c").arg(line.trim()).kill_on_drop(true).output();
    let output = tokio::time::timeout(LIMIT, command).await.expect("in time").expect("a shell");
    assert!(output.status.success(), "{line}: {}", crate::support::print_output(&output));
    String::from_utf8(output.stdout).expect("output is UTF-8")
}
