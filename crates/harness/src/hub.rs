//! The built `hub` as a child process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{ShiftedClock, TestSettings, eventually, free_port};

const READY_LIMIT: Duration = Duration::from_secs(30);
/// Limit of a stop; the grace period of the hub is shorter.
const STOP_LIMIT: Duration = Duration::from_secs(60);
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// `hub serve` with its own settings file.
///
/// Its output goes to a file, so that an unread pipe cannot block it. When it is dropped, the process is killed, and if
/// the test fails, the end of its log is printed.
pub struct Hub {
    folder: TempDir,
    listen: String,
    health: String,
    args: Vec<String>,
    child: Option<Child>,
    clock: Option<Arc<ShiftedClock>>,
    http: reqwest::Client,
}

impl Hub {
    /// Writes the settings and starts `hub serve --config <them> <args>`, without waiting for it.
    ///
    /// `nats.url`, `api.listen` and `health.listen` (free ports) and `delivery.allow_networks` (loopback) are
    /// added if `settings` does not set them.
    pub fn serve(broker_url: &str, settings: &TestSettings, args: &[&str]) -> Self {
        let mut hub = Self::not_started(broker_url, settings);
        hub.set_args(args);
        hub.start();
        hub
    }

    /// Only writes the settings, for tests that run commands only.
    pub fn not_started(broker_url: &str, settings: &TestSettings) -> Self {
        let (text, addresses) = complete(settings.clone(), broker_url);
        Self::with_file(&text, addresses)
    }

    /// Starts `hub serve` with this text as settings file, for tests of invalid settings.
    pub fn serve_file(text: &str) -> Self {
        let mut hub = Self::with_file(text, Default::default());
        hub.start();
        hub
    }

    fn with_file(text: &str, [listen, health]: [String; 2]) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        fs::write(folder.path().join("hub.toml"), text).expect("the settings are written");
        Self { folder, listen, health, args: Vec::new(), child: None, clock: None, http: http_client() }
    }

    /// Gives its processes this clock, from their next start on; commands as well.
    pub fn set_clock(&mut self, clock: Arc<ShiftedClock>) {
        self.clock = Some(clock);
    }

    /// Sets its arguments, for a hub that was only configured.
    pub fn set_args(&mut self, args: &[&str]) {
        self.args = args.iter().map(|arg| (*arg).to_owned()).collect();
    }

    /// Starts it (again) with the same settings and arguments.
    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.log_path()).expect("the log opens");
        let mut command = self.command();
        command.stdout(log.try_clone().expect("the log's descriptor is shared")).stderr(log);
        self.start_with(command);
    }

    /// The command that starts it, for tests that set standard output and standard error.
    pub fn command(&self) -> Command {
        let mut command = self.hub_command();
        command.arg("serve").arg("--config").arg(self.config()).args(&self.args).stdin(Stdio::null());
        command
    }

    fn hub_command(&self) -> Command {
        let mut command = hub_command();
        if let Some(clock) = &self.clock {
            clock.give(&mut command);
        }
        command
    }

    /// Starts it with that command after the test's changes.
    pub fn start_with(&mut self, mut command: Command) {
        assert!(self.child.is_none(), "this hub is running");
        self.child = Some(command.spawn().expect("the hub starts"));
    }

    /// Waits until `GET /readyz` answers 200.
    ///
    /// # Panics
    ///
    /// After 30 s, or as soon as the process has ended.
    pub async fn ready(&mut self) {
        let url = self.health_url("/readyz");
        let Self { child, http, .. } = self;
        let child = child.as_mut().expect("the hub was started");
        eventually(READY_LIMIT, "the hub is ready", async || {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("the hub ended before it was ready: {status}");
            }
            match http.get(&url).send().await {
                Ok(answer) if answer.status() == 200 => Ok(()),
                Ok(answer) => {
                    let status = answer.status();
                    Err(format!("{status} {}", answer.text().await.unwrap_or_default()))
                }
                Err(error) => Err(format!("{error:?}")),
            }
        })
        .await;
    }

    /// The answer to `GET /readyz`: whether it is 200, and the text.
    pub async fn readiness(&self) -> (bool, String) {
        let answer = self.http.get(self.health_url("/readyz")).send().await.expect("the hub answers");
        (answer.status() == 200, answer.text().await.unwrap_or_default())
    }

    /// The settings file.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("hub.toml")
    }

    /// A folder for files of the test; deleted with the hub.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `http://<api.listen><path>`
    pub fn api_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listen)
    }

    /// `http://<health.listen><path>`, which every process has.
    pub fn health_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.health)
    }

    /// The text of `/metrics`.
    pub async fn metrics(&self) -> String {
        let answer = self.http.get(self.health_url("/metrics")).send().await.expect("the hub answers");
        assert_eq!(answer.status(), 200);
        answer.text().await.expect("to the end")
    }

    /// The sum of the samples of a metric whose labels contain all of `labels` (each as `name="value"`); 0 without
    /// samples.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        sum_of(&self.metrics().await, name, labels)
    }

    /// Waits until [`metric`](Self::metric) is above `bound`.
    ///
    /// # Panics
    ///
    /// After `limit`.
    pub async fn metric_above(&self, name: &str, labels: &[&str], bound: f64, limit: Duration) {
        eventually(limit, &format!("{name} is above {bound}"), async || {
            let value = self.metric(name, labels).await;
            if value > bound { Ok(()) } else { Err(value) }
        })
        .await;
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Sends SIGKILL, like a crash, and waits until the process has ended.
    pub async fn kill(&mut self) {
        let mut child = self.child.take().expect("the hub is running");
        child.kill().await.expect("the hub is killed");
    }

    /// Sends SIGTERM, and waits until the process has ended.
    ///
    /// # Panics
    ///
    /// If it has not ended after 60 s.
    pub async fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the hub is running");
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        kill_process(pid.expect("the hub has not been waited for"), Signal::TERM).expect("signalled");
        let ended = tokio::time::timeout(STOP_LIMIT, child.wait()).await;
        ended.unwrap_or_else(|_| panic!("the hub ignores SIGTERM for {STOP_LIMIT:?}")).expect("waited for")
    }

    /// Stops the process (SIGSTOP), as a machine that hangs, until [`thaw`](Self::thaw). It remains a child that can be
    /// killed.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Ends a [`freeze`](Self::freeze).
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        let pid = self.pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        kill_process(pid.expect("the hub runs"), signal).expect("signalled");
    }

    /// The exit status, if the process has ended by itself; it can then be started again.
    pub fn ended_by_itself(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().expect("the hub can be waited for")?;
        self.child = None;
        Some(status)
    }

    /// Waits until the process ends by itself.
    ///
    /// # Panics
    ///
    /// After `limit`.
    pub async fn ended(&mut self, limit: Duration) -> ExitStatus {
        let child = self.child.as_mut().expect("the hub was started");
        let ended = tokio::time::timeout(limit, child.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("the hub still runs after {limit:?}"));
        self.child = None;
        status.expect("waited for")
    }

    /// Runs a `hub` command with the same settings (by `HUB_CONFIG`).
    ///
    /// # Panics
    ///
    /// If it has not ended after 60 s.
    pub async fn cli(&self, args: &[&str]) -> Output {
        let output = tokio::time::timeout(COMMAND_LIMIT, self.cli_command(args).output()).await;
        output.unwrap_or_else(|_| panic!("`hub {}` still runs", args.join(" "))).expect("the command runs")
    }

    /// A `hub` command with the same settings, to be started by the test.
    pub fn cli_command(&self, args: &[&str]) -> Command {
        let mut command = self.hub_command();
        command.args(args).env("HUB_CONFIG", self.config()).stdin(Stdio::null());
        command
    }

    /// Runs a command that must succeed, and returns its standard output.
    pub async fn cli_ok(&self, args: &[&str]) -> String {
        let output = self.cli(args).await;
        assert!(output.status.success(), "`hub {}`: {}", args.join(" "), print_output(&output));
        String::from_utf8(output.stdout).expect("output is UTF-8")
    }

    /// Runs a command with `--output json` that must succeed, and parses its standard output.
    pub async fn cli_json(&self, args: &[&str]) -> serde_json::Value {
        let mut args = args.to_vec();
        args.extend(["--output", "json"]);
        let text = self.cli_ok(&args).await;
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("`hub {}`: {error}: {text}", args.join(" ")))
    }

    /// The whole log, of all starts.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the log contains `text`.
    ///
    /// # Panics
    ///
    /// After `limit`.
    pub async fn wait_for_log(&self, text: &str, limit: Duration) {
        eventually(limit, &format!("the log contains {text:?}"), async || {
            let log = self.log();
            if log.contains(text) { Ok(()) } else { Err(log.lines().last().unwrap_or_default().to_owned()) }
        })
        .await;
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("hub.log")
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Fails if the process has already ended, which is fine.
            let _ = child.start_kill();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let shown = lines.len().saturating_sub(200);
            eprintln!("---- hub on {}, its last lines ----\n{}", self.listen, lines[shown..].join("\n"));
        }
    }
}

/// Status, standard output and standard error, for a failed assertion.
pub fn print_output(output: &Output) -> String {
    format!(
        "{}\n---- stdout\n{}\n---- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The path of the built `hub`: cargo writes it to the parent of the folder of the test binaries.
fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let folder = test.parent().and_then(Path::parent).expect("tests are in <profile>/deps");
    folder.join("hub")
}

/// A command of the built `hub`, without settings from the environment of the tests.
fn hub_command() -> Command {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("HUB__") || text == "HUB_CONFIG" {
            command.env_remove(&name);
        }
    }
    command.kill_on_drop(true);
    command
}

/// An HTTP client for tests; it ignores proxies of the environment.
pub fn http_client() -> reqwest::Client {
    // The client requires a TLS provider even for plain HTTP; a second installation has no effect.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client =
        reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).timeout(Duration::from_secs(10));
    client.build().expect("a client without special settings")
}

/// Adds the settings that every test needs, if not set. Returns the settings file, `api.listen` and
/// `health.listen`.
pub fn complete(mut settings: TestSettings, broker_url: &str) -> (String, [String; 2]) {
    settings.nats.url.get_or_insert_with(|| broker_url.to_owned());
    settings.delivery.allow_networks.get_or_insert_with(|| vec!["127.0.0.0/8".to_owned()]);
    let api = free_port();
    let health = (0..1000).map(|_| free_port()).find(|port| *port != api).expect("another port is free");
    let api = settings.api.listen.get_or_insert_with(|| format!("127.0.0.1:{api}")).clone();
    let health = settings.health.listen.get_or_insert_with(|| format!("127.0.0.1:{health}")).clone();
    (settings.to_toml(), [api, health])
}

/// Adds up the samples in Prometheus' text form: `name{labels} value`.
pub fn sum_of(text: &str, name: &str, labels: &[&str]) -> f64 {
    let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (found, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        let value = value.split(' ').next()?.parse::<f64>().ok()?;
        labels.iter().all(|label| found.contains(label)).then_some(value)
    });
    samples.sum()
}
