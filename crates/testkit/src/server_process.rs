//! A server as a child process, started again on the same port with the same data.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::ServerError;
use crate::owned_process::{OwnedProcess, Plan};

/// RabbitMQ takes the longest.
const READY_LIMIT: Duration = Duration::from_secs(90);
/// A server does not report when it starts to listen.
const POLL: Duration = Duration::from_millis(20);

/// How a server shows that it accepts requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// Its port accepts connections.
    Listening,
    /// Its output of this start contains this text.
    Logged(&'static str),
}

/// A server on a loopback port. Dropping it ends the server.
pub struct ServerProcess {
    program: &'static str,
    plan: Box<dyn Fn() -> Plan + Send + Sync>,
    /// `None` while it is down.
    process: Option<OwnedProcess>,
    port: u16,
    log: PathBuf,
    ready: Ready,
}

impl ServerProcess {
    /// Starts it and waits until it is ready, 90 s at most. `plan` is called for each start; the output is appended to
    /// `log`.
    ///
    /// # Errors
    ///
    /// The program does not start, ends, or is not ready in time; the last two contain its output.
    pub async fn start(
        program: &'static str,
        port: u16,
        log: &Path,
        ready: Ready,
        plan: impl Fn() -> Plan + Send + Sync + 'static,
    ) -> Result<Self, ServerError> {
        let plan = Box::new(plan);
        let mut server = Self { program, plan, process: None, port, log: log.to_owned(), ready };
        server.restart().await?;
        Ok(server)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(OwnedProcess::pid)
    }

    /// Kills the server (SIGKILL) with the processes of its group, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// It is not running, or the system refuses.
    pub async fn kill(&mut self) -> Result<(), ServerError> {
        let program = self.program;
        let mut process = self.process.take().ok_or(ServerError::NotRunning { program })?;
        // Dropping it kills what the server has started.
        process.kill().await.map_err(|source| ServerError::Run { program, source })
    }

    /// Starts the server again on the same port with the same data.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        let at = |source| ServerError::File { path: self.log.clone(), source };
        let file = File::options().create(true).append(true).open(&self.log).map_err(at)?;
        let start = file.metadata().map_err(at)?.len();
        let output = file.try_clone().map_err(at)?;
        let program = self.program;
        let failed = |source| ServerError::Run { program, source };
        let mut process = (self.plan)().stdout(output).stderr(file).spawn().map_err(failed)?;
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            if let Some(status) = process.try_wait().map_err(failed)? {
                return Err(ServerError::Ended { program, status, log: self.output_from(start) });
            }
            let ready = match self.ready {
                Ready::Listening => TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.is_ok(),
                Ready::Logged(text) => self.output_from(start).contains(text),
            };
            if ready {
                self.process = Some(process);
                return Ok(());
            }
            if Instant::now() >= deadline {
                let log = self.output_from(start);
                return Err(ServerError::NotReady { program, waited: READY_LIMIT, log });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The output since the log was `start` bytes long.
    fn output_from(&self, start: u64) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let start = usize::try_from(start).unwrap_or(usize::MAX).min(bytes.len());
        String::from_utf8_lossy(&bytes[start..]).into_owned()
    }
}
