//! The PostgreSQL server of the measurement: a private one with default settings, or a given one, on which the bench creates
//! its own databases.

use std::path::Path;
use std::str::FromStr as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use hub_testkit::postgres::{self, PostgresServer};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _};
use url::Url;

use crate::error::BenchError;

/// `insufficient_privilege`
const NOT_PERMITTED: &str = "42501";
/// Settings that durability and speed depend on.
const REPORTED: [&str; 6] =
    ["server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size"];

/// A server, and the databases that the bench has created on it.
pub(crate) struct Postgres {
    /// Options of the database that is used to create others.
    url: Url,
    /// Prefix of the names of the databases of this run.
    prefix: String,
    made: AtomicU32,
    databases: Mutex<Vec<String>>,
    /// `None` for a given server.
    _own: Option<PostgresServer>,
}

/// An empty database, or a copy of its template.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    name: String,
    /// Contains the password.
    pub(crate) url: String,
}

impl Postgres {
    /// Uses the server of the URL, or starts one with the programs in `binaries`, on `PATH`, or of Debian.
    pub(crate) async fn start(url: Option<Url>, binaries: Option<&Path>) -> Result<Self, BenchError> {
        let (url, own) = match url {
            Some(url) => {
                tracing::info!("measuring on the server of --database-url, in new databases");
                (url, None)
            }
            None => {
                let looked = || {
                    binaries.map_or_else(
                        || format!("PATH and {}", postgres::DEBIAN),
                        |path| path.display().to_string(),
                    )
                };
                let binaries =
                    postgres::find(binaries).ok_or_else(|| BenchError::NoPostgres { looked: looked() })?;
                tracing::info!("starting a private PostgreSQL server from {}", binaries.display());
                let own = PostgresServer::start(&binaries, &format!("{:032x}", rand::random::<u128>()), &[])
                    .await?;
                let url = Url::parse(&own.url("postgres")).expect("an address and a name make a URL");
                (url, Some(own))
            }
        };
        let prefix = format!("hub_bench_{:08x}", rand::random::<u32>());
        let postgres = Self { url, prefix, made: AtomicU32::new(0), databases: Mutex::default(), _own: own };
        drop(postgres.maintenance().await?);
        Ok(postgres)
    }

    async fn maintenance(&self) -> Result<PgConnection, BenchError> {
        PgConnection::connect_with(&options(self.url.as_str())?).await.map_err(BenchError::Database)
    }

    /// Creates a database: a copy of `template`, which must not have connections, or an empty one.
    pub(crate) async fn database(&self, template: Option<&Database>) -> Result<Database, BenchError> {
        let name = format!("{}_{}", self.prefix, self.made.fetch_add(1, Ordering::Relaxed));
        let copied = template.map(|template| format!(" TEMPLATE {}", template.name)).unwrap_or_default();
        let mut connection = self.maintenance().await?;
        connection.execute(sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}{copied}")))).await?;
        self.databases.lock().expect("nobody panics with it").push(name.clone());
        if template.is_some() {
            self.checkpoint().await?;
        }
        let mut url = self.url.clone();
        url.set_path(&name);
        Ok(Database { name, url: url.into() })
    }

    /// Writes all changes to the disk, so that a run does not pay for the load before it. Does nothing if the role may not
    /// do so.
    pub(crate) async fn checkpoint(&self) -> Result<(), BenchError> {
        let mut connection = self.maintenance().await?;
        match connection.execute(sqlx::raw_sql("CHECKPOINT")).await {
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(NOT_PERMITTED) => Ok(()),
            done => done.map(drop).map_err(BenchError::Database),
        }
    }

    /// Removes a database, and ends its connections.
    pub(crate) async fn remove(&self, database: Database) -> Result<(), BenchError> {
        self.drop_database(&database.name).await?;
        self.databases.lock().expect("nobody panics with it").retain(|name| *name != database.name);
        Ok(())
    }

    async fn drop_database(&self, name: &str) -> Result<(), BenchError> {
        let mut connection = self.maintenance().await?;
        let statement = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
        connection.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await?;
        Ok(())
    }

    /// Removes the remaining databases; ends a private server.
    pub(crate) async fn close(self) -> Result<(), BenchError> {
        let left = std::mem::take(&mut *self.databases.lock().expect("nobody panics with it"));
        for name in left {
            self.drop_database(&name).await?;
        }
        Ok(())
    }

    /// The version and the relevant settings of the server, for the report.
    pub(crate) async fn conditions(&self) -> Result<String, BenchError> {
        let mut connection = self.maintenance().await?;
        let mut reported = Vec::new();
        for name in REPORTED {
            let value: String = sqlx::query_scalar("SELECT current_setting($1)")
                .bind(name)
                .fetch_one(&mut connection)
                .await?;
            reported.push(format!("{name} {value}"));
        }
        Ok(format!("PostgreSQL: {}", reported.join(", ")))
    }
}

/// Without the log of slow statements, because loading is slow.
fn options(url: &str) -> Result<PgConnectOptions, BenchError> {
    let options = PgConnectOptions::from_str(url).map_err(BenchError::Database)?;
    Ok(options.application_name("integration-hub bench").disable_statement_logging())
}

impl Database {
    pub(crate) async fn pool(&self, connections: u32) -> Result<PgPool, BenchError> {
        PgPoolOptions::new()
            .max_connections(connections)
            .connect_with(options(&self.url)?)
            .await
            .map_err(BenchError::Database)
    }
}
