//! A database with a producer outbox, on PostgreSQL or SQLite.

use hub_outbox::{ClaimRequest, ClaimedRow, RowSelection, Store, StoreOptions};
use hub_outbox::{RaiseError, publish};
use integration_hub::domain::producer_outbox::{Priority, RaisedEvent};
use serde_json::{Value, json};
use sqlx::postgres::PgPool;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use tempfile::TempDir;

use super::TestPostgres;

/// The database of a producer outbox.
pub enum TestDatabase {
    Postgres { server: TestPostgres, pool: PgPool },
    Sqlite { folder: TempDir, pool: SqlitePool },
}

/// An event as JSON.
pub fn event(id: &str, stream: &str) -> Value {
    json!({"id": id, "type": "user.created", "stream": stream, "data": {"user_id": id}})
}

impl TestDatabase {
    /// `None` if this machine has no PostgreSQL.
    pub async fn postgres() -> Option<Self> {
        let server = TestPostgres::start().await?;
        let pool = PgPool::connect(&server.url()).await.expect("the server answers");
        Some(Self::Postgres { server, pool })
    }

    pub async fn sqlite() -> Option<Self> {
        let folder = tempfile::tempdir().expect("temporary folder");
        let options =
            SqliteConnectOptions::new().filename(folder.path().join("app.db")).create_if_missing(true);
        let pool = SqlitePool::connect_with(options).await.expect("the file is made");
        Some(Self::Sqlite { folder, pool })
    }

    pub fn url(&self) -> String {
        match self {
            Self::Postgres { server, .. } => server.url(),
            Self::Sqlite { folder, .. } => format!("sqlite://{}", folder.path().join("app.db").display()),
        }
    }

    /// A store with its own connections, like that of a relay.
    pub fn store(&self) -> Store {
        Store::new(StoreOptions::new(self.url().into())).expect("the URL is good")
    }

    /// Creates the schema, and registers these external brokers.
    pub async fn outbox(&self, brokers: &[&str]) -> Store {
        let store = self.store();
        store.setup().await.expect("it is set up");
        let brokers: Vec<String> = brokers.iter().map(|name| (*name).to_owned()).collect();
        store.sync_brokers(&brokers, true).await.expect("the brokers are written");
        store
    }

    /// Runs statements; `{messages}` and `{brokers}` are replaced by the names of the tables.
    pub async fn sql(&self, script: &str) -> Result<(), sqlx::Error> {
        let prefix = match self {
            Self::Postgres { .. } => "hub_outbox.",
            Self::Sqlite { .. } => "hub_outbox_",
        };
        let script = script
            .replace("{messages}", &format!("{prefix}messages"))
            .replace("{brokers}", &format!("{prefix}brokers"));
        let script = sqlx::raw_sql(sqlx::AssertSqlSafe(script));
        match self {
            Self::Postgres { pool, .. } => script.execute(pool).await.map(drop),
            Self::Sqlite { pool, .. } => script.execute(pool).await.map(drop),
        }
    }

    /// Raises an event with SQL, like a producer in another language.
    pub async fn raise(&self, event: &Value) -> Result<(), sqlx::Error> {
        match self {
            Self::Postgres { pool, .. } => {
                sqlx::query("SELECT hub_outbox.publish($1::jsonb)")
                    .bind(event.to_string())
                    .execute(pool)
                    .await?;
            }
            Self::Sqlite { pool, .. } => {
                sqlx::query("INSERT INTO hub_outbox_publish (event) VALUES (?1)")
                    .bind(event.to_string())
                    .execute(pool)
                    .await?;
            }
        }
        Ok(())
    }

    /// Raises events from Rust in one transaction, which is committed or rolled back.
    pub async fn publish(&self, events: &[RaisedEvent], commit: bool) -> Result<Vec<String>, RaiseError> {
        let mut ids = Vec::new();
        macro_rules! in_transaction {
            ($pool:expr) => {{
                let mut transaction = $pool.begin().await.expect("a transaction begins");
                for event in events {
                    ids.push(publish(&mut transaction, event).await?);
                }
                let ended = if commit { transaction.commit().await } else { transaction.rollback().await };
                ended.expect("the transaction ends");
            }};
        }
        match self {
            Self::Postgres { pool, .. } => in_transaction!(pool),
            Self::Sqlite { pool, .. } => in_transaction!(pool),
        }
        Ok(ids)
    }

    /// The envelope of a row.
    pub async fn envelope(&self, broker: &str, id: &str) -> Option<Value> {
        let payload = self.store().payload(broker, id).await.expect("the row is read");
        payload.map(|payload| serde_json::from_str(&payload).expect("the payload is JSON"))
    }
}

/// Claims live rows of the internal broker for a minute.
pub async fn claim(store: &Store, holder: &str, limit: usize) -> Vec<ClaimedRow> {
    claim_of(store, "internal", Priority::Live, holder, limit).await
}

pub async fn claim_of(
    store: &Store,
    broker: &str,
    priority: Priority,
    holder: &str,
    limit: usize,
) -> Vec<ClaimedRow> {
    let claim_time = std::time::Duration::from_secs(60);
    let request = ClaimRequest { broker, priority, holder, limit, claim_time, passed_over: &[] };
    store.claim(&request).await.expect("a claim is answered")
}

pub fn ids(rows: &[ClaimedRow]) -> Vec<&str> {
    rows.iter().map(|row| row.message_id.as_str()).collect()
}

pub fn positions(rows: &[ClaimedRow]) -> Vec<i64> {
    rows.iter().map(|row| row.position).collect()
}

/// The rows of a broker, or of all brokers.
pub fn of_broker(broker: Option<&str>) -> RowSelection {
    RowSelection { broker: broker.map(str::to_owned), ..RowSelection::default() }
}

/// Runs each of these tests on both databases. The brackets before them contain the arguments of `tokio::test`.
#[macro_export]
macro_rules! on_both {
    (@each $database:ident, $runtime:tt, $($name:ident),*) => {
        $($crate::on_both!(@one $database, $runtime, $name);)*
    };
    (@one $database:ident, ($($runtime:tt)*), $name:ident) => {
        #[tokio::test($($runtime)*)]
        async fn $name() {
            let Some(database) = $crate::TestDatabase::$database().await else { return };
            super::$name(&database).await;
        }
    };
    ($(($($runtime:tt)*),)? $($name:ident),* $(,)?) => {
        mod on_postgres {
            $crate::on_both!(@each postgres, ($($($runtime)*)?), $($name),*);
        }
        mod on_sqlite {
            $crate::on_both!(@each sqlite, ($($($runtime)*)?), $($name),*);
        }
    };
}
pub use crate::on_both;
