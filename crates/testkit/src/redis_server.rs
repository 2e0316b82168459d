//! A private Redis server.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::ServerError;
use crate::owned_process::Plan;
use crate::server_process::{Ready, ServerProcess};

const PROGRAM: &str = "redis-server";

/// One Redis server on a free loopback port. Its data is removed with it; its arguments decide what a restart keeps.
pub struct RedisServer {
    // Dropped in this order: the process is gone before its folder is removed.
    process: ServerProcess,
    _folder: TempDir,
}

/// The given program, or the one on `PATH`.
pub fn find(given: Option<&Path>) -> Option<PathBuf> {
    if let Some(program) = given {
        return program.is_file().then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(PROGRAM)).find(|program| program.is_file())
}

impl RedisServer {
    /// Starts `program` with further `arguments`, and waits until it listens.
    ///
    /// # Errors
    ///
    /// As [`ServerProcess::start`], or the folder or port is not available.
    pub async fn start(program: &Path, arguments: &[&str]) -> Result<Self, ServerError> {
        let port = crate::free_port().map_err(ServerError::NoPort)?;
        Self::start_on(program, port, "--port", arguments).await
    }

    /// The same, listening with TLS only; `arguments` name the certificates.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_tls(program: &Path, arguments: &[&str]) -> Result<Self, ServerError> {
        let port = crate::free_port().map_err(ServerError::NoPort)?;
        let arguments = [&["--port", "0"], arguments].concat();
        Self::start_on(program, port, "--tls-port", &arguments).await
    }

    async fn start_on(
        program: &Path,
        port: u16,
        port_option: &'static str,
        arguments: &[&str],
    ) -> Result<Self, ServerError> {
        let folder = crate::folder("hub-redis-")?;
        let (path, program) = (folder.path().to_owned(), program.to_owned());
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let plan = move || {
            Plan::new(&program)
                .args([port_option, &port.to_string(), "--bind", "127.0.0.1", "--dir"])
                .arg(&path)
                .args(&arguments)
                .with_folder(&path)
        };
        let log = folder.path().join("log");
        let process = ServerProcess::start(PROGRAM, port, &log, Ready::Listening, plan).await?;
        Ok(Self { process, _folder: folder })
    }

    pub fn port(&self) -> u16 {
        self.process.port()
    }

    /// `redis://127.0.0.1:<port>`
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port())
    }

    /// To kill and restart it.
    pub fn process(&mut self) -> &mut ServerProcess {
        &mut self.process
    }
}
