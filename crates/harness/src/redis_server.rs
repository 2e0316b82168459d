//! A Redis server of the test's own.

use std::path::PathBuf;

use tempfile::TempDir;
use tokio::process::Command;

use super::external_broker::{Certificates, ServerProcess};
use super::{free_port, require_tool, tool};

/// One Redis server on a free port of loopback, appending to a file that survives a restart.
pub struct RedisServer {
    pub process: ServerProcess,
    port: u16,
    _folder: TempDir,
}

impl RedisServer {
    /// None, with a message, where there is no Redis: `HUB_TEST_REDIS_SERVER`, or `redis-server` on `PATH`.
    pub async fn start(arguments: &[&str]) -> Option<Self> {
        Self::start_on(binary()?, free_port(), 0, arguments).await
    }

    /// TLS only, with the certificates.
    pub async fn start_tls(certificates: &Certificates, arguments: &[&str]) -> Option<Self> {
        let files = [certificates.ca(), certificates.cert(), certificates.key()];
        let [ca, cert, key] = files.each_ref().map(|path| path.to_str().expect("UTF-8"));
        let port = free_port();
        let text = port.to_string();
        let mut all = vec!["--tls-port", &text, "--tls-ca-cert-file", ca];
        all.extend(["--tls-cert-file", cert, "--tls-key-file", key, "--tls-auth-clients", "no"]);
        all.extend(arguments);
        Self::start_on(binary()?, 0, port, &all).await
    }

    async fn start_on(binary: PathBuf, port: u16, tls_port: u16, arguments: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_owned();
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let command = move || {
            let mut command = Command::new(&binary);
            command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--appendonly", "yes"]);
            // On disk before it is answered: a kill takes nothing along.
            command.args(["--appendfsync", "always", "--save", "", "--dir"]).arg(&path).args(&arguments);
            command
        };
        let port = port.max(tls_port);
        let process = ServerProcess::start(port, &folder.path().join("log"), command).await;
        Some(Self { process, port, _folder: folder })
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn tls_url(&self) -> String {
        format!("rediss://localhost:{}", self.port)
    }

    /// A connection of the test's own.
    pub async fn connect(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(self.url()).expect("an address");
        client.get_multiplexed_async_connection().await.expect("Redis answers")
    }
}

fn binary() -> Option<PathBuf> {
    require_tool("redis-server", tool("redis-server", "HUB_TEST_REDIS_SERVER"))
}
