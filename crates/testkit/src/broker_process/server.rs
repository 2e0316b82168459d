//! One running nats-server.

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::time::Instant;

use super::error::BrokerProcessError;
use super::folder::{DataFolder, Ports};
use super::options::BrokerOptions;
use super::probe;
use crate::owned_process::{OwnedProcess, Plan};

/// Time limit from the start of the process until it accepts connections; after a crash it first recovers its streams.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// Time limit of a restart to get the same port.
const PORT_LIMIT: Duration = Duration::from_secs(10);
/// Time limit of a stop; the server syncs its streams.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Polling interval of the ports file, which shows that the server is ready.
const POLL: Duration = Duration::from_millis(10);

/// A nats-server that runs as a child of this process, on loopback.
///
/// Ctrl-c reaches only its owner, which finishes its work and then calls [`stop`](Self::stop). Dropping it kills the
/// server. If the owner is killed, the server ends, too, and a temporary folder is removed.
#[derive(Debug)]
pub struct BrokerProcess {
    // Dropped in this order: the server is gone before its folder is removed.
    running: Option<OwnedProcess>,
    folder: DataFolder,
    options: BrokerOptions,
    ports: Ports,
}

impl BrokerProcess {
    /// Starts a server, and returns once it accepts connections.
    ///
    /// # Errors
    ///
    /// The data folder is in use or not writable, the binary does not start, or the server is not ready within 30 s. The
    /// error contains the last lines of the log.
    pub async fn start(options: BrokerOptions) -> Result<Self, BrokerProcessError> {
        let mut folder = DataFolder::open(&options.data)?;
        let (running, ports) = launch(&options, &mut folder, None).await?;
        Ok(Self { running: Some(running), folder, options, ports })
    }

    /// `nats://127.0.0.1:<port>`; the same after a restart.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.ports.client)
    }

    /// `http://127.0.0.1:<port>`, where `/healthz`, `/jsz` and `/varz` are; the same after a restart.
    pub fn monitoring_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.monitoring)
    }

    /// The process id, while the server runs.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(OwnedProcess::pid)
    }

    /// The folder with the server's streams (`jetstream`), configuration and log (`nats-server.log`).
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Waits until the server ends by itself. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`BrokerProcessError::NotRunning`] if it was stopped or killed before.
    pub async fn ended(&mut self) -> Result<ExitStatus, BrokerProcessError> {
        let running = self.running.as_mut().ok_or(BrokerProcessError::NotRunning)?;
        let pid = running.pid();
        let status = running.wait().await.map_err(|source| control("wait for", pid, source))?;
        self.running = None;
        Ok(status)
    }

    /// Kills the server (SIGKILL), as in a crash, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// It does not run, or the system refuses.
    pub async fn kill(&mut self) -> Result<(), BrokerProcessError> {
        let mut running = self.running.take().ok_or(BrokerProcessError::NotRunning)?;
        let pid = running.pid();
        running.kill().await.map_err(|source| control("kill", pid, source))
    }

    /// Stops the server (SIGTERM), and waits at most 10 s until it is gone; then kills it.
    ///
    /// # Errors
    ///
    /// It does not run, the system refuses, or it was killed.
    pub async fn stop(&mut self) -> Result<(), BrokerProcessError> {
        let mut running = self.running.take().ok_or(BrokerProcessError::NotRunning)?;
        let pid = running.pid();
        match running.stop(STOP_LIMIT).await.map_err(|source| control("stop", pid, source))? {
            true => Ok(()),
            false => Err(BrokerProcessError::StopTimedOut { pid, waited: STOP_LIMIT }),
        }
    }

    /// Starts the server again on the same ports with the same data. A running server is stopped first.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start) and [`stop`](Self::stop).
    pub async fn restart(&mut self) -> Result<(), BrokerProcessError> {
        if self.running.is_some() {
            self.stop().await?;
        }
        let deadline = Instant::now() + PORT_LIMIT;
        loop {
            match launch(&self.options, &mut self.folder, Some(self.ports)).await {
                Ok((running, ports)) => {
                    (self.running, self.ports) = (Some(running), ports);
                    return Ok(());
                }
                // While it was down, an outgoing connection of another process may have got its port, for a short
                // time.
                Err(BrokerProcessError::Exited { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(POLL * 10).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The state that the monitoring port reports.
    pub(super) async fn health(&self) -> std::io::Result<probe::Health> {
        probe::health(self.ports.monitoring).await
    }
}

fn control(action: &'static str, pid: u32, source: std::io::Error) -> BrokerProcessError {
    BrokerProcessError::Control { action, pid, source }
}

/// Starts the process and waits until it accepts connections.
async fn launch(
    options: &BrokerOptions,
    folder: &mut DataFolder,
    ports: Option<Ports>,
) -> Result<(OwnedProcess, Ports), BrokerProcessError> {
    folder.forget_ports()?;
    let config = folder.config();
    std::fs::write(&config, options.config(&folder.store()))
        .map_err(|source| BrokerProcessError::Folder { action: "write", path: config.clone(), source })?;
    let (log, log_start) = folder.open_log()?;
    // The server chooses a free port for -1.
    let argument = |port: Option<u16>| port.map_or_else(|| "-1".to_owned(), |port| port.to_string());
    let mut plan = Plan::new(&options.binary)
        .arg("--config")
        .arg(&config)
        .args(["--port", &argument(ports.map(|ports| ports.client).or(options.port))])
        .args(["--http_port", &argument(ports.map(|ports| ports.monitoring))])
        .arg("--ports_file_dir")
        .arg(folder.ports())
        .holding(folder.lock_to_share()?)
        .stderr(log);
    if let Some(goes) = options.owner_folder.as_deref().or(folder.temporary()) {
        plan = plan.with_folder(goes);
    }
    let mut process =
        plan.spawn().map_err(|source| BrokerProcessError::Spawn { path: options.binary.clone(), source })?;
    let pid = process.pid();
    folder.note_pid(pid)?;
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        if let Some(ports) = folder.read_ports(pid) {
            return Ok((process, ports));
        }
        let tail = || (folder.log(), folder.log_tail(log_start));
        if Instant::now() >= deadline {
            let (log, tail) = tail();
            return Err(BrokerProcessError::NotReady { waited: READY_LIMIT, log, tail });
        }
        if let Ok(status) = tokio::time::timeout(POLL, process.wait()).await {
            let status = status.map_err(|source| control("wait for", pid, source))?;
            let (log, tail) = tail();
            return Err(BrokerProcessError::Exited { status, log, tail });
        }
    }
}
