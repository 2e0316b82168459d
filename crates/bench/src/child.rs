//! The measured processes: the hub and the bare loop. Each is this program as a child process.

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::time::Instant;
use url::Url;

use super::error::BenchError;
use crate::bare_client::BareClient;
use hub_testkit::owned_process::{HUB, OwnedProcess, Plan};

/// Time limit until a hub is ready; it reads all subscriptions first.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// Polling interval of readiness and metrics.
const POLL: Duration = Duration::from_millis(20);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const BARE_LIMIT: Duration = Duration::from_secs(600);
/// Time limit of a command, which may act on many dead letters.
const COMMAND_LIMIT: Duration = Duration::from_secs(600);
const LOG_LINES: usize = 20;

/// The settings of the hub under test: the defaults, except for addresses, the sizes of preloaded streams, and a master key
/// (32 bytes in base64) for subscriptions with credentials.
pub(crate) fn settings(broker_url: &str, outbox: u64, events: u64, listen: &str, master_key: &str) -> String {
    format!(
        "[nats]\nurl = {broker_url:?}\n\
         [delivery]\nallow_networks = [\"127.0.0.0/8\"]\n\
         [limits]\noutbox = \"{outbox}B\"\nevents = \"{events}B\"\n\
         [api]\nlisten = \"127.0.0.1:0\"\n\
         [health]\nlisten = {listen:?}\n\
         [secrets]\nmaster_key = {master_key:?}\n\
         [log]\nlevel = \"warn\"\n",
    )
}

/// A free loopback address.
pub(crate) fn free_address() -> Result<String, BenchError> {
    let port = hub_testkit::free_port().map_err(BenchError::NoPort)?;
    Ok(format!("{}:{port}", Ipv4Addr::LOCALHOST))
}

/// Without the hub settings in the environment of the bench.
fn this_program() -> Result<Plan, BenchError> {
    let path =
        std::env::current_exe().map_err(|source| BenchError::Spawn { what: "this program", source })?;
    Ok(Plan::new(path).pass(HUB))
}

/// A temporary folder for one child, removed when it is dropped.
pub(crate) fn folder() -> Result<TempDir, BenchError> {
    let folder = tempfile::Builder::new().prefix("hub-bench-").tempdir();
    folder.map_err(|source| BenchError::File { path: std::env::temp_dir(), source })
}

/// `hub serve` as a child process. Dropping it kills it.
pub(crate) struct HubProcess {
    // Dropped in this order: the process is gone before its folder is removed.
    process: OwnedProcess,
    listen: String,
    folder: TempDir,
}

impl HubProcess {
    /// Starts it with `settings` and further arguments of `hub serve`; `listen` is the `health.listen` of both.
    pub(crate) fn start(settings: &str, listen: &str, args: &[String]) -> Result<Self, BenchError> {
        let folder = folder()?;
        let file = |path: &std::path::Path, source| BenchError::File { path: path.to_owned(), source };
        let config = folder.path().join("hub.toml");
        std::fs::write(&config, settings).map_err(|source| file(&config, source))?;
        let log = folder.path().join("hub.log");
        let output = File::create(&log).map_err(|source| file(&log, source))?;
        let errors = output.try_clone().map_err(|source| file(&log, source))?;
        let plan = this_program()?.arg("hub").arg("--config").arg(&config).arg("serve").args(args);
        let process = plan.stdout(output).stderr(errors).with_folder(folder.path()).spawn();
        let process = process.map_err(|source| BenchError::Spawn { what: "the hub", source })?;
        Ok(Self { process, listen: listen.to_owned(), folder })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits until `/readyz` answers 200.
    pub(crate) async fn wait_until_ready(&mut self, client: &BareClient) -> Result<(), BenchError> {
        let deadline = Instant::now() + READY_LIMIT;
        let url = format!("http://{}/readyz", self.listen);
        let mut missing = String::new();
        while Instant::now() < deadline {
            self.check()?;
            match client.get(&url).await {
                Ok((200, _)) => return Ok(()),
                Ok((_, text)) => missing = text.trim().to_owned(),
                Err(error) => missing = error.to_string(),
            }
            tokio::time::sleep(POLL).await;
        }
        Err(BenchError::NotReady { waited: READY_LIMIT, missing, log: self.log_tail() })
    }

    /// Waits until a gauge of `/metrics` without labels has a value; the hub updates its gauges at intervals.
    pub(crate) async fn wait_until_gauge(
        &mut self,
        client: &BareClient,
        name: &str,
        wanted: f64,
    ) -> Result<(), BenchError> {
        let deadline = Instant::now() + READY_LIMIT;
        let url = format!("http://{}/metrics", self.listen);
        let mut found = None;
        while Instant::now() < deadline {
            self.check()?;
            let (_, text) = client.get(&url).await?;
            found =
                text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<f64>().ok());
            if found == Some(wanted) {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        let missing = format!("{name} is {found:?}, not {wanted}");
        Err(BenchError::NotReady { waited: READY_LIMIT, missing, log: self.log_tail() })
    }

    /// Runs another command of `hub` with the same settings, which must succeed.
    pub(crate) async fn run(&self, args: &[&str]) -> Result<(), BenchError> {
        let what = "a command of the hub";
        let plan = this_program()?.arg("hub").arg("--config").arg(self.folder.path().join("hub.toml"));
        let plan = plan.args(args.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let process = plan.spawn().map_err(|source| BenchError::Spawn { what, source })?;
        let output = tokio::time::timeout(COMMAND_LIMIT, process.output())
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(|source| BenchError::Spawn { what, source })?;
        if output.status.success() {
            return Ok(());
        }
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(BenchError::Ended { what, status: output.status, log })
    }

    /// Stops it (SIGTERM), and waits until it is gone.
    pub(crate) async fn stop(mut self) -> Result<(), BenchError> {
        self.check()?;
        let stopped = self.process.stop(STOP_LIMIT).await;
        if !stopped.map_err(|source| BenchError::Spawn { what: "the signal to the hub", source })? {
            tracing::warn!("the hub did not stop within {} s and was killed", STOP_LIMIT.as_secs());
        }
        Ok(())
    }

    /// Fails if it has ended by itself.
    pub(crate) fn check(&mut self) -> Result<(), BenchError> {
        let ended = self.process.try_wait();
        match ended.map_err(|source| BenchError::Spawn { what: "the hub", source })? {
            None => Ok(()),
            Some(status) => Err(BenchError::Ended { what: "the hub", status, log: self.log_tail() }),
        }
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.folder.path().join("hub.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

/// The result that the child of [`bare_loop`] writes to its standard output.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct BareLoop {
    pub(crate) requests: u64,
    pub(crate) seconds: f64,
    pub(crate) resident_bytes: u64,
}

impl BareLoop {
    pub(crate) fn per_second(&self) -> f64 {
        super::statistics::per_second(self.requests, Duration::from_secs_f64(self.seconds)).unwrap_or(0.0)
    }
}

/// Runs the bare loop against `url` in a child process.
pub(crate) async fn bare_loop(
    url: &Url,
    body_bytes: usize,
    in_flight: usize,
    requests: u64,
) -> Result<BareLoop, BenchError> {
    let what = "the bare loop";
    let plan = this_program()?
        .args(["bare-loop", "--url", url.as_str()])
        .args(["--body-bytes", &body_bytes.to_string(), "--in-flight", &in_flight.to_string()])
        .args(["--requests", &requests.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let process = plan.spawn().map_err(|source| BenchError::Spawn { what, source })?;
    let output = tokio::time::timeout(BARE_LIMIT, process.output())
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        .map_err(|source| BenchError::Spawn { what, source })?;
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(BenchError::Ended { what, status: output.status, log });
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|_| BenchError::Answer { what, text: String::from_utf8_lossy(&output.stdout).into_owned() })
}
