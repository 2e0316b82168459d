//! `hub serve --dev`: a private server with persistent data, and the output for another terminal.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use crate::support::{Receiver, free_port, http_client, nats_server, print_output};

const LIMIT: Duration = Duration::from_secs(60);

/// The built binary without the settings of this test run's environment.
fn hub(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hub"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("HUB__") || text == "HUB_CONFIG" {
            command.env_remove(&name);
        }
    }
    command.current_dir(folder).env("XDG_DATA_HOME", folder).env("HUB_NATS_SERVER", nats_server());
    command.kill_on_drop(true);
    command
}

/// Starts it; returns the variables that it prints for another terminal to export.
async fn start(folder: &Path, port: u16) -> (Child, Vec<(String, String)>) {
    let (child, exports, _) = start_with(folder, port, &[]).await;
    (child, exports)
}

/// As [`Self::start`] with more arguments; also returns the printed lines.
async fn start_with(folder: &Path, port: u16, args: &[&str]) -> (Child, Vec<(String, String)>, Vec<String>) {
    let mut child = hub(folder)
        .env("RUST_LOG", "warn")
        .args(["--set", "api.listen=127.0.0.1:0", "--set", "health.listen=127.0.0.1:0"])
        .args(args)
        .args(["serve", "--dev"])
        .args(["--nats-url", &format!("nats://127.0.0.1:{port}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let told = tokio::time::timeout(LIMIT, async {
        let (mut exports, mut told) = (Vec::new(), Vec::new());
        while let Some(line) = lines.next_line().await.expect("text") {
            if let Some(line) = line.trim().strip_prefix("export ") {
                exports = line.split(' ').filter_map(|word| word.split_once('=')).map(owned).collect();
            }
            if line.contains("Ctrl-C") {
                return (exports, told);
            }
            told.push(line);
        }
        panic!("it ended before it was ready");
    });
    let (exports, told) = told.await.expect("ready in time");
    (child, exports, told)
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

async fn stop(mut child: Child) {
    let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    kill_process(pid.expect("it runs"), Signal::INT).expect("signalled");
    let status = tokio::time::timeout(LIMIT, child.wait()).await.expect("in time").expect("waited for");
    assert!(status.success(), "{status}");
}

/// Another terminal, after the export.
async fn other(folder: &Path, exports: &[(String, String)], args: &[&str], input: &str) -> Output {
    let mut child = hub(folder)
        .args(args)
        .envs(exports.iter().cloned())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).await.expect("it reads or has ended well");
    drop(stdin);
    tokio::time::timeout(LIMIT, child.wait_with_output()).await.expect("in time").expect("waited for")
}

#[tokio::test]
async fn another_terminal_works_with_it_and_its_data_lasts() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let folder = folder.path();
    let port = free_port();
    let receiver = Receiver::start().await;
    let (first, exports) = start(folder, port).await;
    for needed in ["HUB__NATS__URL", "HUB__SECRETS__MASTER_KEY_FILE", "HUB__DELIVERY__ALLOW_NETWORKS"] {
        assert!(exports.iter().any(|(name, _)| name == needed), "{needed} is missing in {exports:?}");
    }

    let subscription = serde_json::json!({
        "id": "kept",
        "events": ["user.>"],
        "delivery": {"url": receiver.url("/"), "auth": {"type": "bearer", "token": "a secret"}},
    });
    let applied =
        other(folder, &exports, &["subscription", "apply", "-f", "-"], &subscription.to_string()).await;
    assert!(applied.status.success(), "{}", print_output(&applied));

    // A second process with the same folder is refused, and does not disturb the first.
    let url = format!("nats://127.0.0.1:{port}");
    let second = other(folder, &[], &["serve", "--dev", "--nats-url", &url], "").await;
    assert_eq!(second.status.code(), Some(1));
    let text = print_output(&second);
    assert!(
        text.contains("is in use by another `hub serve --dev`") && text.contains("XDG_DATA_HOME"),
        "{text}"
    );
    // A process with another folder finds the port in use.
    let elsewhere = tempfile::tempdir().expect("temporary folder");
    let third = other(elsewhere.path(), &[], &["serve", "--dev", "--nats-url", &url], "").await;
    assert_eq!(third.status.code(), Some(1));
    let text = print_output(&third);
    assert!(text.contains(&format!("port {port} of this machine is in use")), "{text}");

    stop(first).await;
    let (again, exports) = start(folder, port).await;
    let published = other(folder, &exports, &["publish", "user.created", r#"{"user_id":"u1"}"#], "").await;
    assert!(published.status.success(), "{}", print_output(&published));
    let received = receiver.wait_for("/", 1, LIMIT).await;
    let token = received[0].header("authorization");
    assert_eq!(token, "Bearer a secret", "subscription, key and credential have lasted");
    stop(again).await;
}

/// Every error about a missing master key names the key of `hub serve --dev`, if there is one.
#[tokio::test]
async fn a_missing_master_key_names_the_key_of_the_private_hub() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let own = folder.path().join("integration-hub");
    std::fs::create_dir(&own).expect("created");
    let with_secret = r#"{"id":"a","events":["user.>"],"delivery":{"url":"https://a.example/","auth":{"type":"bearer","token":"x"}}}"#;
    let commands: [(&[&str], &str); 3] = [
        (&["secrets", "seal", "nats.password"], "hush"),
        (&["secrets", "rotate"], ""),
        (&["subscription", "apply", "-f", "-"], with_secret),
    ];
    for exists in [false, true] {
        if exists {
            std::fs::write(own.join("master.key"), "x").expect("written");
        }
        for (args, input) in commands {
            let output = other(folder.path(), &[], args, input).await;
            let text = print_output(&output);
            assert_eq!(output.status.code(), Some(1), "{text}");
            assert!(text.contains("secrets.master_key: not set"), "{text}");
            assert_eq!(text.contains("HUB__SECRETS__MASTER_KEY_FILE="), exists, "{args:?}: {text}");
        }
    }
}

#[tokio::test]
async fn its_api_is_open_to_local_programs_but_not_to_web_pages_by_default() {
    for (args, status) in [(&[][..], 200), (&["--set", "api.anonymous=false"], 401)] {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (child, _, told) = start_with(folder.path(), free_port(), args).await;
        let url = told.iter().find_map(|line| {
            let at = line.find("http://")?;
            line.ends_with("/v1/subscriptions").then(|| line[at..].to_owned())
        });
        let url = url.unwrap_or_else(|| panic!("no line for curl in {told:?}"));
        let answer = http_client().get(&url).send().await.expect("it answers");
        assert_eq!(answer.status(), status, "{args:?}");
        assert_eq!(told.iter().any(|line| line.contains("token create")), status == 401, "{told:?}");
        let page = http_client().get(&url).header("origin", "http://evil.example").send().await;
        assert_eq!(page.expect("it answers").status(), if status == 200 { 403 } else { 401 });
        let rebound = http_client().get(&url).header("host", "evil.example").send().await;
        assert_eq!(rebound.expect("it answers").status(), if status == 200 { 403 } else { 401 });
        stop(child).await;
    }
}
