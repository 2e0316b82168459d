//! A private PostgreSQL server, and a database for each test.

use std::path::PathBuf;
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use hub_testkit::postgres::{PostgresServer, find, psql};
use sqlx::Connection;
use sqlx::postgres::PgConnection;
use tokio::sync::Mutex;

use super::require_tool;

/// The password of the database; no error, log or output may contain it.
pub const PASSWORD: &str = "pg-tell-nobody";

/// A database on a server with production settings (including fsync), over TCP with a password. Concurrent tests share
/// the server, which ends with the last of them.
pub struct TestPostgres {
    server: Arc<SharedPostgres>,
    database: String,
}

struct SharedPostgres {
    binaries: PathBuf,
    port: u16,
    process: Mutex<PostgresServer>,
    databases: AtomicU32,
}

static SHARED: Mutex<Weak<SharedPostgres>> = Mutex::const_new(Weak::new());

/// The folder of the binaries of the server: `HUB_TEST_POSTGRES`, the folder of `postgres` on `PATH`, or Debian's.
fn binaries() -> Option<PathBuf> {
    let given = std::env::var_os("HUB_TEST_POSTGRES").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let found = find(given.as_deref());
    assert!(given.is_none() || found.is_some(), "HUB_TEST_POSTGRES names {given:?}");
    found
}

impl SharedPostgres {
    async fn new(binaries: PathBuf) -> Self {
        let process = PostgresServer::start(&binaries, PASSWORD, &["max_connections=200"]).await;
        let process = process.unwrap_or_else(|error| panic!("{error}"));
        Self { binaries, port: process.port(), process: Mutex::new(process), databases: AtomicU32::default() }
    }

    fn url(&self, database: &str) -> String {
        url_at(self.port, database)
    }
}

fn url_at(port: u16, database: &str) -> String {
    format!("postgres://hub:{PASSWORD}@127.0.0.1:{port}/{database}")
}

impl TestPostgres {
    /// A new, empty database. `None`, with a message, if PostgreSQL is not installed.
    pub async fn start() -> Option<Self> {
        let binaries = require_tool("PostgreSQL", binaries())?;
        let mut shared = SHARED.lock().await;
        let server = match shared.upgrade() {
            Some(server) => server,
            None => {
                let server = Arc::new(SharedPostgres::new(binaries).await);
                *shared = Arc::downgrade(&server);
                server
            }
        };
        drop(shared);
        Some(Self::on(server).await)
    }

    /// The same on a server for this test only, to crash it.
    pub async fn start_alone() -> Option<Self> {
        let binaries = require_tool("PostgreSQL", binaries())?;
        Some(Self::on(Arc::new(SharedPostgres::new(binaries).await)).await)
    }

    async fn on(server: Arc<SharedPostgres>) -> Self {
        let database = format!("test_{}", server.databases.fetch_add(1, Ordering::Relaxed));
        let mut connection =
            PgConnection::connect(&server.url("postgres")).await.expect("the server answers");
        sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {database}")))
            .execute(&mut connection)
            .await
            .expect("the database is made");
        Self { server, database }
    }

    /// The URL, with the password.
    pub fn url(&self) -> String {
        self.server.url(&self.database)
    }

    /// The same at another port, such as that of a proxy or a pooler.
    pub fn url_at(&self, port: u16) -> String {
        url_at(port, &self.database)
    }

    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// Kills all its processes (SIGKILL), as in a power failure, and waits until the last is gone.
    pub async fn crash(&self) {
        self.server.process.lock().await.crash().await.expect("the processes can be killed");
    }

    /// Starts it again after a crash, and waits until it has recovered.
    pub async fn restart(&self) {
        let restarted = self.server.process.lock().await.restart().await;
        restarted.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Runs a script with `psql`, which stops at the first error.
    pub fn psql(&self, script: &str) -> Output {
        psql(&self.server.binaries, &self.url(), script).expect("psql runs")
    }
}
