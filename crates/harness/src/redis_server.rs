//! A private Redis server.

use std::path::PathBuf;

use hub_testkit::redis_server::{RedisServer as Launched, find};

use super::external_broker::Certificates;
use super::require_tool;

/// A Redis server on a free loopback port. Its data is in an append-only file, which survives a restart.
pub struct RedisServer(Launched);

/// Writes each command to the disk before the answer, so that a kill loses nothing.
const DURABLE: [&str; 6] = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""];

impl RedisServer {
    /// `None`, with a message, if there is no Redis: `HUB_TEST_REDIS_SERVER`, or `redis-server` on `PATH`.
    pub async fn start(arguments: &[&str]) -> Option<Self> {
        let server = Launched::start(&binary()?, &[&DURABLE, arguments].concat()).await;
        Some(Self(server.unwrap_or_else(|error| panic!("{error}"))))
    }

    /// Starts a server that accepts only TLS, with these certificates.
    pub async fn start_tls(certificates: &Certificates, arguments: &[&str]) -> Option<Self> {
        let files = [certificates.ca(), certificates.cert(), certificates.key()];
        let [ca, cert, key] = files.each_ref().map(|path| path.to_str().expect("UTF-8"));
        let mut all = DURABLE.to_vec();
        all.extend(["--tls-ca-cert-file", ca, "--tls-cert-file", cert, "--tls-key-file", key]);
        all.extend(["--tls-auth-clients", "no"]);
        all.extend(arguments);
        let server = Launched::start_tls(&binary()?, &all).await;
        Some(Self(server.unwrap_or_else(|error| panic!("{error}"))))
    }

    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// Kills it (SIGKILL), and waits until it is gone.
    pub async fn kill(&mut self) {
        self.0.process().kill().await.expect("it is running");
    }

    /// Starts it again, on the same port with the same data.
    pub async fn restart(&mut self) {
        self.0.process().restart().await.unwrap_or_else(|error| panic!("{error}"));
    }

    pub fn url(&self) -> String {
        self.0.url()
    }

    pub fn tls_url(&self) -> String {
        format!("rediss://localhost:{}", self.port())
    }

    /// A new connection.
    pub async fn connect(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(self.url()).expect("an address");
        client.get_multiplexed_async_connection().await.expect("Redis answers")
    }
}

fn binary() -> Option<PathBuf> {
    let given = std::env::var_os("HUB_TEST_REDIS_SERVER").filter(|path| !path.is_empty()).map(PathBuf::from);
    require_tool("redis-server", find(given.as_deref()))
}
