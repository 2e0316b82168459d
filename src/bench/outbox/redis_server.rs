//! The Redis that is measured with: a server of the bench's own, as it comes, that keeps nothing on the disk
//! beyond its snapshots.

use std::path::{Path, PathBuf};
use std::time::Duration;

use redis::Client;
use redis::aio::MultiplexedConnection;
use tempfile::TempDir;
use tokio::time::Instant;

use super::ledger::{Ledger, Span};
use crate::bench::child::{self, free_address};
use crate::bench::error::BenchError;
use hub_testkit::owned_process::{OwnedProcess, Plan};

const READY_LIMIT: Duration = Duration::from_secs(30);
/// What a server can only be asked for.
const POLL: Duration = Duration::from_millis(10);
/// Entries that are read at a time.
const PAGE: usize = 5_000;

/// Dropping it kills it.
pub struct RedisServer {
    pub url: String,
    pub version: String,
    // Dropped in this order: the process is gone before its folder is removed.
    _process: OwnedProcess,
    _folder: TempDir,
}

/// An entry's id and its fields.
type Entry = (String, Vec<(String, String)>);

/// The program that was given, or that of `PATH`.
pub fn find(given: Option<&Path>) -> Option<PathBuf> {
    if let Some(program) = given {
        return program.is_file().then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join("redis-server")).find(|program| program.is_file())
}

impl RedisServer {
    pub async fn start(program: &Path) -> Result<Self, BenchError> {
        let what = "redis-server";
        let folder = child::folder()?;
        let address = free_address()?;
        let port = address.rsplit(':').next().unwrap_or_default();
        let process = Plan::new(program)
            .args(["--bind", "127.0.0.1", "--port", port, "--dir"])
            .arg(folder.path())
            .with_folder(folder.path())
            .spawn()
            .map_err(|source| BenchError::Spawn { what, source })?;
        let url = format!("redis://{address}");
        let mut server = Self { url, version: String::new(), _process: process, _folder: folder };
        let deadline = Instant::now() + READY_LIMIT;
        let mut connection = loop {
            match server.connect().await {
                Ok(connection) => break connection,
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => tokio::time::sleep(POLL).await,
            }
        };
        let told: String = redis::cmd("INFO").arg("server").query_async(&mut connection).await?;
        let version = told.lines().find_map(|line| line.strip_prefix("redis_version:"));
        server.version = version.unwrap_or_default().trim().to_owned();
        Ok(server)
    }

    async fn connect(&self) -> Result<MultiplexedConnection, BenchError> {
        Ok(Client::open(self.url.as_str())?.get_multiplexed_async_connection().await?)
    }

    /// Waits until a stream has so many entries, or no more come. Gives how many there are.
    pub async fn wait_for(
        &self,
        stream: &str,
        entries: u64,
        patience: Duration,
        mut alive: impl FnMut() -> Result<(), BenchError>,
    ) -> Result<u64, BenchError> {
        let mut connection = self.connect().await?;
        let (mut most, mut since) = (0, Instant::now());
        loop {
            let there: u64 = redis::cmd("XLEN").arg(stream).query_async(&mut connection).await?;
            if there > most {
                (most, since) = (there, Instant::now());
            }
            if there >= entries || since.elapsed() >= patience {
                return Ok(there);
            }
            alive()?;
            tokio::time::sleep(POLL).await;
        }
    }

    /// Writes down what a stream holds, by the id in each envelope, and from when to when it came, by the
    /// server's clock in milliseconds.
    pub async fn read(&self, stream: &str, ledger: &mut Ledger) -> Result<Option<Span>, BenchError> {
        let mut connection = self.connect().await?;
        let (mut from, mut span) = ("-".to_owned(), None::<Span>);
        loop {
            let page: Vec<Entry> = redis::cmd("XRANGE")
                .arg(stream)
                .arg(&from)
                .arg("+")
                .arg("COUNT")
                .arg(PAGE)
                .query_async(&mut connection)
                .await?;
            for (id, fields) in &page {
                let millis = id.split('-').next().and_then(|millis| millis.parse().ok()).unwrap_or(0);
                let at = Duration::from_millis(millis);
                span = Some(span.map_or(Span { first: at, last: at }, |span| span.and(at)));
                let data = fields.iter().find(|(name, _)| name == "data").map_or("", |(_, value)| value);
                ledger.arrived(&id_of(data));
            }
            match page.last() {
                Some((last, _)) if page.len() == PAGE => from = format!("({last}"),
                _ => return Ok(span),
            }
        }
    }
}

/// The message id in an envelope's headers; empty where there is none.
fn id_of(envelope: &str) -> String {
    let envelope: serde_json::Value = serde_json::from_str(envelope).unwrap_or_default();
    envelope["metadata"]["headers"]["id"].as_str().unwrap_or_default().to_owned()
}
