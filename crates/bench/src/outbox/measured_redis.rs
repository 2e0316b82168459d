//! The Redis server of the measurement: private, with default settings, which store snapshots only.

use std::path::Path;
use std::time::Duration;

use hub_testkit::redis_server::RedisServer;
use redis::Client;
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

use super::ledger::{Ledger, Span};
use crate::error::BenchError;

/// Polling interval of the length of a stream.
const POLL: Duration = Duration::from_millis(10);
/// Entries of one read.
const PAGE: usize = 5_000;

/// The server, with reads of its streams.
pub(crate) struct MeasuredRedis {
    pub(crate) url: String,
    pub(crate) version: String,
    _server: RedisServer,
}

/// The id of an entry and its fields.
type Entry = (String, Vec<(String, String)>);

impl MeasuredRedis {
    pub(crate) async fn start(program: &Path) -> Result<Self, BenchError> {
        let server = RedisServer::start(program, &[]).await?;
        let mut redis = Self { url: server.url(), version: String::new(), _server: server };
        let mut connection = redis.connect().await?;
        let info: String = redis::cmd("INFO").arg("server").query_async(&mut connection).await?;
        let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
        redis.version = version.unwrap_or_default().trim().to_owned();
        Ok(redis)
    }

    async fn connect(&self) -> Result<MultiplexedConnection, BenchError> {
        Ok(Client::open(self.url.as_str())?.get_multiplexed_async_connection().await?)
    }

    /// Waits until a stream has a number of entries, or no more arrive. Returns their number.
    pub(crate) async fn wait_for(
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

    /// Reads a stream, by the id in each envelope. Returns the first and last arrival by the clock of the server, in
    /// milliseconds.
    pub(crate) async fn read(&self, stream: &str, ledger: &mut Ledger) -> Result<Option<Span>, BenchError> {
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

/// The message id in the headers of an envelope; empty if it is absent.
fn id_of(envelope: &str) -> String {
    let envelope: serde_json::Value = serde_json::from_str(envelope).unwrap_or_default();
    envelope["metadata"]["headers"]["id"].as_str().unwrap_or_default().to_owned()
}
