//! The producer outbox on PostgreSQL and SQLite: setup, claims, settlement, operator commands and upkeep.
//!
//! Rules on both databases (statuses: `hub_domain::producer_outbox::Status`):
//!
//! * One holder claims a row until the claim expires, and only the holder settles it. A settling call returns how many
//!   rows the holder still held, which may be fewer than it passed.
//! * Rows of one broker and stream are claimed in insertion order. A row is not claimed while an earlier row of its
//!   stream is open, unless both are in the same claim.
//! * Each call is one transaction. No call retries; the caller decides with [`StoreError::is_transient`].
//!
//! Insertion order is the order of the calls of `publish`, as long as the transactions of one stream do not overlap: on
//! PostgreSQL, a transaction that commits later may have the earlier position. Producers that change the aggregate in
//! the same transaction hold its row lock, which prevents overlaps; others call `hub_outbox.lock_stream`.

use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
#[cfg(feature = "postgres")]
use sqlx::postgres::PgListener;

use crate::database_url::check_parameters;
use crate::error::StoreError;
#[cfg(feature = "postgres")]
use crate::postgres::Postgres;
use crate::rows::{
    Batch, BrokerStatus, BrokerSync, ClaimRequest, ClaimedRow, FailedAttempt, GivenUp, Retention, Row,
    RowCursor, RowSelection, SetUp,
};
#[cfg(feature = "sqlite")]
use crate::sqlite::Sqlite;
use crate::unreadable::NeverDueRow;

/// Connection timeout of the reachability check, so that the check answers within 3 s.
pub const CONNECT_LIMIT: Duration = Duration::from_millis(2_500);
/// Interval of [`Store::watch`]; together with its timeout, an outage is found within 3 s.
#[cfg(feature = "postgres")]
pub(crate) const WATCH_EVERY: Duration = Duration::from_millis(500);
#[cfg(feature = "postgres")]
pub(crate) const WATCH_LIMIT: Duration = CONNECT_LIMIT;
/// Maximum length of a stored error text, in bytes.
const MAX_ERROR_BYTES: usize = 2_000;
/// Timeout of a setup, which may wait for a concurrent setup.
const SETUP_LIMIT: Duration = Duration::from_secs(60);
/// Timeout of one batch of deletions, or of one scan.
const UPKEEP_LIMIT: Duration = Duration::from_secs(60);

/// Options of a connection to the database.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// `postgres://…` (libpq's parameters, such as `?sslmode=verify-full`) or `sqlite:…`.
    pub url: SecretString,
    /// Maximum number of connections; a listener uses one more.
    pub connections: u32,
    /// Timeout of one statement, including the wait for a connection.
    pub timeout: Duration,
    /// SQLite: create the file if it does not exist.
    pub create: bool,
    /// PostgreSQL is behind a pooler in transaction mode (`outbox.pooler = "transaction"`).
    pub is_pooled: bool,
}

impl StoreOptions {
    /// Default options: 4 connections, 15 s per statement, no file creation, no pooler.
    pub fn new(url: SecretString) -> Self {
        Self { url, connections: 4, timeout: Duration::from_secs(15), create: false, is_pooled: false }
    }
}

/// A producer outbox. Clones share the connection pool.
#[derive(Debug, Clone)]
pub struct Store {
    backend: Backend,
    timeout: Duration,
}

#[derive(Debug, Clone)]
enum Backend {
    #[cfg(feature = "postgres")]
    Postgres(Box<Postgres>),
    #[cfg(feature = "sqlite")]
    Sqlite(Sqlite),
}

/// Runs an operation on the configured database, with a timeout.
macro_rules! ask {
    ($store:ident, $operation:literal, $limit:expr, $backend:ident => $call:expr) => {
        match &$store.backend {
            #[cfg(feature = "postgres")]
            Backend::Postgres($backend) => within($operation, $limit, $call).await,
            #[cfg(feature = "sqlite")]
            Backend::Sqlite($backend) => within($operation, $limit, $call).await,
        }
    };
}

async fn within<T>(
    operation: &'static str,
    limit: Duration,
    asked: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => answer.map_err(|source| StoreError::of(operation, source)),
        Err(_) => Err(StoreError::Timeout { operation, limit }),
    }
}

impl Store {
    /// Parses the URL. Opens no connection: the first call connects, and calls reconnect after a loss.
    pub fn new(options: StoreOptions) -> Result<Self, StoreError> {
        let url = options.url.expose_secret();
        check_parameters(url)?;
        let (scheme, _) = url.split_once(':').ok_or(StoreError::Url { problem: "no scheme" })?;
        let backend = match scheme {
            #[cfg(feature = "postgres")]
            "postgres" | "postgresql" => Backend::Postgres(Box::new(Postgres::new(
                url,
                options.connections,
                options.timeout,
                options.is_pooled,
            )?)),
            #[cfg(feature = "sqlite")]
            "sqlite" => {
                Backend::Sqlite(Sqlite::new(url, options.connections, options.timeout, options.create)?)
            }
            _ => return Err(StoreError::Url { problem: "unknown scheme" }),
        };
        Ok(Self { backend, timeout: options.timeout })
    }

    /// Closes all connections after the calls in progress end.
    pub async fn close(&self) {
        match &self.backend {
            #[cfg(feature = "postgres")]
            Backend::Postgres(backend) => backend.close().await,
            #[cfg(feature = "sqlite")]
            Backend::Sqlite(backend) => backend.close().await,
        }
    }

    /// Creates the schema, or migrates it to this program's version. Safe to run at any time and concurrently.
    ///
    /// # Errors
    ///
    /// [`StoreError::TooOld`] for an old server, [`StoreError::Newer`] for a newer schema.
    pub async fn setup(&self) -> Result<SetUp, StoreError> {
        self.check_server().await?;
        let done = ask!(self, "setting up", SETUP_LIMIT, backend => backend.setup())?;
        let known = self.newest();
        if done.from > known { Err(StoreError::Newer { found: done.from, known }) } else { Ok(done) }
    }

    /// Checks that the schema exists and has this program's version.
    pub async fn check(&self) -> Result<(), StoreError> {
        self.check_server().await?;
        let known = self.newest();
        match ask!(self, "asking the schema's version", self.timeout, backend => backend.version())? {
            0 => Err(StoreError::NotSetUp),
            found if found < known => Err(StoreError::Outdated { found, known }),
            found if found > known => Err(StoreError::Newer { found, known }),
            _ => Ok(()),
        }
    }

    /// Waits until PostgreSQL is unreachable, and returns the cause. Never returns on SQLite.
    pub async fn watch(&self) -> StoreError {
        match &self.backend {
            #[cfg(feature = "postgres")]
            Backend::Postgres(backend) => backend.watch().await,
            #[cfg(feature = "sqlite")]
            Backend::Sqlite(_) => std::future::pending().await,
        }
    }

    async fn check_server(&self) -> Result<(), StoreError> {
        let asked = async {
            match &self.backend {
                #[cfg(feature = "postgres")]
                Backend::Postgres(backend) => backend.check_server().await,
                #[cfg(feature = "sqlite")]
                Backend::Sqlite(backend) => backend.check_server().await,
            }
        };
        let timeout = StoreError::Timeout { operation: "asking its version", limit: self.timeout };
        tokio::time::timeout(self.timeout, asked).await.map_err(|_| timeout)?
    }

    fn newest(&self) -> i64 {
        match &self.backend {
            #[cfg(feature = "postgres")]
            Backend::Postgres(_) => Postgres::newest(),
            #[cfg(feature = "sqlite")]
            Backend::Sqlite(_) => Sqlite::newest(),
        }
    }

    /// Registers the external brokers, which get a row for each published event.
    ///
    /// A registered broker that is not in `configured` is removed only with `prune`, so that a process with an old
    /// configuration does not remove it. Existing rows are kept in any case.
    pub async fn sync_brokers(&self, configured: &[String], prune: bool) -> Result<BrokerSync, StoreError> {
        ask!(self, "writing the brokers", self.timeout, backend => backend.sync_brokers(configured, prune))
    }

    /// Stores the hub's `events.max_size`, in bytes. `publish` refuses an event whose envelope is larger.
    pub async fn limit_events(&self, bytes: u64) -> Result<(), StoreError> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        ask!(self, "writing the limits", self.timeout, backend => backend.limit_events(bytes))
    }

    /// Claims at most `request.limit` due rows in insertion order. Skips rows whose stream has an earlier open row
    /// outside the claim. Returns an empty list if no row is due. A value that cannot be read is reported with its row
    /// ([`ClaimedRow::unreadable`]), and does not fail the claim.
    pub async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Vec<ClaimedRow>, StoreError> {
        ask!(self, "claiming", self.timeout, backend => backend.claim(request))
    }

    /// Marks claimed rows as published. Returns how many of them `holder` still held.
    pub async fn mark_published(
        &self,
        broker: &str,
        holder: &str,
        positions: &[i64],
    ) -> Result<u64, StoreError> {
        ask!(self, "marking as published", self.timeout, backend => backend.mark_published(broker, holder, positions))
    }

    /// Marks claimed rows as failed, due again after their waits. Later rows of their streams also wait, after they
    /// are [released](Self::release). Returns how many of them `holder` still held.
    pub async fn fail(
        &self,
        broker: &str,
        holder: &str,
        failed: &[FailedAttempt],
    ) -> Result<u64, StoreError> {
        ask!(self, "marking as failed", self.timeout, backend => backend.fail(broker, holder, failed))
    }

    /// Abandons claimed rows. Returns how many of them `holder` still held.
    pub async fn abandon(&self, broker: &str, holder: &str, rows: &[GivenUp]) -> Result<u64, StoreError> {
        ask!(self, "abandoning", self.timeout, backend => backend.abandon(broker, holder, rows))
    }

    /// Releases claimed rows without counting an attempt. Returns how many of them `holder` still held.
    pub async fn release(&self, broker: &str, holder: &str, positions: &[i64]) -> Result<u64, StoreError> {
        ask!(self, "releasing", self.timeout, backend => backend.release(broker, holder, positions))
    }

    /// Extends claims to `claim_time` from now. Returns how many of the rows `holder` still held.
    pub async fn extend(
        &self,
        broker: &str,
        holder: &str,
        positions: &[i64],
        claim_time: Duration,
    ) -> Result<u64, StoreError> {
        ask!(self, "extending claims", self.timeout, backend => backend.extend(broker, holder, positions, claim_time))
    }

    /// Time until the next open row of a broker is due or its claim expires; `None` if no row is open.
    pub async fn next_due(&self, broker: &str) -> Result<Option<Duration>, StoreError> {
        let wait = ask!(self, "asking what is due", self.timeout, backend => backend.next_due(broker))?;
        Ok(wait.map(|wait| Duration::from_millis(wait.max(0).unsigned_abs())))
    }

    /// Counts of rows by target broker and status. Reads every row.
    pub async fn status(&self) -> Result<Vec<BrokerStatus>, StoreError> {
        ask!(self, "counting", UPKEEP_LIMIT, backend => backend.status(false))
    }

    /// Counts of open rows only; `published` and `abandoned` are 0. Its cost does not depend on settled rows.
    pub async fn backlog(&self) -> Result<Vec<BrokerStatus>, StoreError> {
        ask!(self, "counting", self.timeout, backend => backend.status(true))
    }

    /// Rows of a selection in order of position, at most `limit`, after the cursor.
    pub async fn list(
        &self,
        selection: &RowSelection,
        after: &RowCursor,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        ask!(self, "listing", UPKEEP_LIMIT, backend => backend.list(selection, after, limit))
    }

    /// The envelope of one row, as JSON; `None` if there is no such row.
    pub async fn payload(&self, broker: &str, message_id: &str) -> Result<Option<String>, StoreError> {
        ask!(self, "reading a row", self.timeout, backend => backend.payload(broker, message_id))
    }

    /// Makes the failed and abandoned rows of a selection pending again with a full number of attempts: one batch of
    /// at most `limit` rows after the cursor. Later rows of its stream may have been sent before an abandoned row.
    pub async fn retry(
        &self,
        selection: &RowSelection,
        after: &RowCursor,
        limit: usize,
    ) -> Result<Batch, StoreError> {
        ask!(self, "ordering to retry", UPKEEP_LIMIT, backend => backend.retry(selection, after, limit))
    }

    /// Abandons the pending and failed rows of a selection: one batch of at most `limit`, after the cursor.
    pub async fn discard(
        &self,
        selection: &RowSelection,
        reason: &str,
        after: &RowCursor,
        limit: usize,
    ) -> Result<Batch, StoreError> {
        let reason = &storable(reason);
        ask!(self, "discarding", UPKEEP_LIMIT, backend => backend.discard(selection, reason, after, limit))
    }

    /// Deletes one batch of at most `limit` settled rows whose retention has ended. Returns how many; fewer than
    /// `limit` means that none is left. An external row is kept at least as long as the internal row of its event, so
    /// that [`reconcile`](Self::reconcile) does not write it again.
    pub async fn cleanup(&self, retention: Retention, limit: usize) -> Result<u64, StoreError> {
        ask!(self, "cleaning up", UPKEEP_LIMIT, backend => backend.cleanup(retention, limit))
    }

    /// Makes at most `limit` open rows due at once that would become due in more than two days: no wait and no claim of a
    /// relay lasts that long, and they would block their streams. Returns how many.
    pub async fn bring_forward(&self, limit: usize) -> Result<u64, StoreError> {
        ask!(self, "looking for rows that are due in days", UPKEEP_LIMIT, backend => backend.bring_forward(limit))
    }

    /// Abandons at most `limit` open rows that never become due, because another program wrote their due time. They would
    /// block their streams, and no claim finds them.
    pub async fn abandon_never_due(&self, limit: usize) -> Result<Vec<NeverDueRow>, StoreError> {
        ask!(self, "looking for rows that never become due", UPKEEP_LIMIT, backend => backend.abandon_never_due(limit))
    }

    /// Writes missing external rows: scans at most `limit` published events after the cursor, and derives each missing
    /// row from the internal row, at its position. A broker gets no events from before it was registered.
    pub async fn reconcile(&self, after: &RowCursor, limit: usize) -> Result<Batch, StoreError> {
        ask!(self, "reconciling", UPKEEP_LIMIT, backend => backend.reconcile(after.position, limit))
    }

    /// Listens for commits that raise events. Uses one connection on PostgreSQL. SQLite and poolers send no
    /// notifications, so callers must also poll.
    pub async fn wakeups(&self) -> Result<Wakeups, StoreError> {
        match &self.backend {
            #[cfg(feature = "postgres")]
            Backend::Postgres(backend) => {
                let listener = within("listening", self.timeout, backend.listen()).await?;
                Ok(Wakeups(listener))
            }
            #[cfg(feature = "sqlite")]
            Backend::Sqlite(_) => Ok(Wakeups(None)),
        }
    }
}

#[cfg(feature = "postgres")]
type Listener = PgListener;
#[cfg(not(feature = "postgres"))]
type Listener = std::convert::Infallible;

/// Notifications of raised events.
#[derive(Debug)]
pub struct Wakeups(Option<Listener>);

impl Wakeups {
    /// True if the database sends notifications; otherwise callers must poll.
    pub fn is_heard(&self) -> bool {
        self.0.is_some()
    }

    /// Waits for a notification; one may stand for several commits. Also returns after a lost connection, because
    /// notifications may have been lost with it. Never returns if the database sends none.
    ///
    /// If the future is dropped, at most one notification is lost, so callers must also poll. After an error the next
    /// call reconnects.
    pub async fn next(&mut self) -> Result<(), StoreError> {
        #[cfg(feature = "postgres")]
        if let Some(listener) = &mut self.0 {
            listener.try_recv().await.map_err(|source| StoreError::of("listening", source))?;
            while listener.next_buffered().is_some() {}
            return Ok(());
        }
        std::future::pending().await
    }
}

/// An error text as a row stores it: at most 2,000 bytes, without NUL, which PostgreSQL's text type does not allow.
pub(crate) fn storable(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_ERROR_BYTES);
    text[..end].replace('\0', "\u{fffd}")
}
