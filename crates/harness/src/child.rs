//! A program of another side as a child process: an example, or a script of the tests.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Its output goes to a file beside the database that it writes; killed with its owner, when the end of its
/// output is printed if the test is failing.
pub struct ChildProcess {
    child: Option<Child>,
    log: PathBuf,
}

impl ChildProcess {
    /// Its output is appended to `log`.
    pub fn start(mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("the log opens");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a file")).stderr(file);
        command.kill_on_drop(true);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child: Some(child), log: log.to_owned() }
    }

    /// Everything that this log has taken, of earlier processes as well.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// SIGKILL, as a crash would end it, and waits until it is gone.
    pub async fn kill(&mut self) {
        self.child.take().expect("it is running").kill().await.expect("it is killed");
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Panics
    ///
    /// If it has not ended after 30 s.
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

/// The example of this name, built of the sources as they are: `cargo test` of one test alone builds none.
pub fn example(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut cargo = std::process::Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--locked", "--offline", "--examples", "--manifest-path"]);
        cargo.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml"));
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        // What the cargo that runs this test says of this package would make dependencies seem changed.
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
