//! One running nats-server.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::error::BrokerProcessError;
use super::folder::{DataFolder, Ports};
use super::options::BrokerOptions;
use super::probe;

/// From the start of the process until it accepts connections; after a crash it recovers large streams
/// first.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long a restart tries to get its port back.
const PORT_LIMIT: Duration = Duration::from_secs(10);
/// For a stop in good order; the server syncs its streams.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// The server's only sign of being ready is a file, so the file is looked for.
const POLL: Duration = Duration::from_millis(10);

/// A nats-server that runs as a child of this process, on loopback.
///
/// It is in a process group of its own, so that ctrl-c reaches its owner alone: the owner finishes its
/// work and then calls [`stop`](Self::stop). Dropping it kills the server. Should the owner be killed,
/// a small watchdog process asks the server to stop.
#[derive(Debug)]
pub struct BrokerProcess {
    // Dropped in this order: the server is gone before its folder is removed.
    running: Option<Running>,
    folder: DataFolder,
    options: BrokerOptions,
    ports: Ports,
}

impl BrokerProcess {
    /// Starts a server, and returns once it accepts connections.
    ///
    /// # Errors
    ///
    /// The data folder is in use or not writable, the binary does not start, or the server is not ready
    /// within 30 s; the last lines of its log are part of the error.
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
        self.running.as_ref().map(|running| running.pid)
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
        let status = running.wait().await?;
        self.running = None;
        Ok(status)
    }

    /// Ends the server at once (SIGKILL), as a crash would, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// It does not run, or the system refuses.
    pub async fn kill(&mut self) -> Result<(), BrokerProcessError> {
        let mut running = self.running.take().ok_or(BrokerProcessError::NotRunning)?;
        running.dismiss_watchdog().await;
        running.signal(Signal::KILL)?;
        running.wait().await.map(drop)
    }

    /// Ends the server in good order (SIGTERM), and waits until it is gone, for 10 s at most.
    ///
    /// # Errors
    ///
    /// It does not run, the system refuses, or it had to be killed.
    pub async fn stop(&mut self) -> Result<(), BrokerProcessError> {
        let mut running = self.running.take().ok_or(BrokerProcessError::NotRunning)?;
        running.dismiss_watchdog().await;
        running.signal(Signal::TERM)?;
        match tokio::time::timeout(STOP_LIMIT, running.wait()).await {
            Ok(ended) => ended.map(drop),
            Err(_) => {
                running.signal(Signal::KILL)?;
                running.wait().await?;
                Err(BrokerProcessError::StopTimedOut { pid: running.pid, waited: STOP_LIMIT })
            }
        }
    }

    /// Starts the server again on the same ports and the same store; one that still runs is stopped
    /// first.
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
                // While it was down, an outgoing connection of any process may have been given its
                // port; such a one does not last.
                Err(BrokerProcessError::Exited { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(POLL * 10).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// What the server says of itself on the monitoring port.
    pub(super) async fn health(&self) -> std::io::Result<probe::Health> {
        probe::health(self.ports.monitoring).await
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        if let Some(mut watchdog) = running.watchdog.take() {
            // Gone already, then: it has nothing to watch over any more either way.
            let _ = watchdog.start_kill();
        }
        if running.child.start_kill().is_err() {
            return;
        }
        // Until it is gone it may write to the folder that is removed next. A killed process goes within
        // milliseconds; there is nothing to await in a drop, so it is asked for, for a second at most.
        for _ in 0..1000 {
            if !matches!(running.child.try_wait(), Ok(None)) {
                return;
            }
            #[expect(clippy::disallowed_methods, reason = "a drop cannot await")]
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The processes of a server that has been started.
#[derive(Debug)]
struct Running {
    /// Ends the server if this process dies. Dropped first: once the server has been waited for, its
    /// process id may belong to somebody else.
    watchdog: Option<Child>,
    child: Child,
    pid: u32,
}

impl Running {
    fn signal(&self, signal: Signal) -> Result<(), BrokerProcessError> {
        let failed = |source| BrokerProcessError::Control { action: "signal", pid: self.pid, source };
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| failed(std::io::ErrorKind::InvalidInput.into()))?;
        kill_process(pid, signal).map_err(|error| failed(error.into()))
    }

    async fn wait(&mut self) -> Result<ExitStatus, BrokerProcessError> {
        let pid = self.pid;
        let ended = self.child.wait().await;
        ended.map_err(|source| BrokerProcessError::Control { action: "wait for", pid, source })
    }

    async fn dismiss_watchdog(&mut self) {
        if let Some(mut watchdog) = self.watchdog.take()
            && let Err(error) = watchdog.kill().await
        {
            tracing::debug!(%error, "the watchdog of the private nats-server was gone already");
        }
    }
}

/// Starts the process and waits until it accepts connections.
async fn launch(
    options: &BrokerOptions,
    folder: &mut DataFolder,
    ports: Option<Ports>,
) -> Result<(Running, Ports), BrokerProcessError> {
    folder.forget_ports()?;
    let config = folder.config();
    std::fs::write(&config, options.config(&folder.store()))
        .map_err(|source| BrokerProcessError::Folder { action: "write", path: config.clone(), source })?;
    let (log, log_start) = folder.open_log()?;
    // The server takes -1 for "a free one".
    let argument = |port: Option<u16>| port.map_or_else(|| "-1".to_owned(), |port| port.to_string());
    let mut child = Command::new(&options.binary)
        .arg("--config")
        .arg(&config)
        .args(["--port", &argument(ports.map(|ports| ports.client).or(options.port))])
        .args(["--http_port", &argument(ports.map(|ports| ports.monitoring))])
        .arg("--ports_file_dir")
        .arg(folder.ports())
        .stdin(folder.lock_to_share()?)
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| BrokerProcessError::Spawn { path: options.binary.clone(), source })?;
    let pid = child.id().expect("a child that has not been waited for has a process id");
    let watchdog = watch_over(pid);
    folder.note_pid(pid)?;
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        if let Some(ports) = folder.read_ports(pid) {
            return Ok((Running { watchdog, child, pid }, ports));
        }
        let tail = || (folder.log(), folder.log_tail(log_start));
        if Instant::now() >= deadline {
            let (log, tail) = tail();
            return Err(BrokerProcessError::NotReady { waited: READY_LIMIT, log, tail });
        }
        if let Ok(status) = tokio::time::timeout(POLL, child.wait()).await {
            let status =
                status.map_err(|source| BrokerProcessError::Control { action: "wait for", pid, source })?;
            let (log, tail) = tail();
            return Err(BrokerProcessError::Exited { status, log, tail });
        }
    }
}

/// A process that asks the server to stop when ours is gone: it waits for the end of a pipe that only
/// we hold open. (The parent-death signal of Linux is bound to a thread, and needs unsafe code.)
fn watch_over(pid: u32) -> Option<Child> {
    Command::new("sh")
        .args(["-c", r#"read -r _; kill -TERM "$1" 2>/dev/null"#, "nats-server-watchdog"])
        .arg(pid.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .inspect_err(|error| {
            tracing::warn!(%error, "no watchdog: if this process is killed, its nats-server goes on running");
        })
        .ok()
}
