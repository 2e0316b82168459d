//! A child process: an example, or a script of the tests.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

const STOP_LIMIT: Duration = Duration::from_secs(30);

/// A child process with its output in a file. When it is dropped, it is killed, and if the test fails, the end of its
/// output is printed.
pub struct ChildProcess {
    child: Option<Child>,
    log: PathBuf,
}

impl ChildProcess {
    /// Starts it, and appends its output to `log`.
    pub fn start(mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("the log opens");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a file")).stderr(file);
        command.kill_on_drop(true);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child: Some(child), log: log.to_owned() }
    }

    /// The whole log, including that of earlier processes.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Sends SIGKILL, like a crash, and waits until the process has ended.
    pub async fn kill(&mut self) {
        self.child.take().expect("it is running").kill().await.expect("it is killed");
    }

    /// Sends SIGTERM, and waits until the process has ended.
    ///
    /// # Panics
    ///
    /// If it is still running after 30 s.
    pub async fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it is running");
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        kill_process(pid.expect("it has not been waited for"), Signal::TERM).expect("signalled");
        let ended = tokio::time::timeout(STOP_LIMIT, child.wait()).await;
        ended.unwrap_or_else(|_| panic!("it ignores SIGTERM for {STOP_LIMIT:?}")).expect("waited for")
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let shown = lines.len().saturating_sub(80);
            eprintln!("---- {}, its last lines ----\n{}", self.log.display(), lines[shown..].join("\n"));
        }
    }
}

/// The path of an example, which is built first, because `cargo test` of a single test builds no examples.
pub fn example(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut cargo = std::process::Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--locked", "--offline", "--examples", "--manifest-path"]);
        cargo.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml"));
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        // With these variables of the cargo that runs this test, dependencies would seem changed.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                cargo.env_remove(&*name);
            }
        }
        let status = cargo.status().expect("cargo runs");
        assert!(status.success(), "the examples do not build: {status}");
    });
    let test = std::env::current_exe().expect("a test has a path");
    let folder = test.parent().and_then(Path::parent).expect("tests are in <profile>/deps");
    folder.join("examples").join(name)
}
