//! The outbox in the producer's database, on PostgreSQL and on SQLite: setting it up, raising events in
//! the producer's transaction, and all that the relay and the operators do with the rows.
//!
//! The rules that hold on both, whoever asks (statuses: `domain::producer_outbox::Status`):
//!
//! * A row is claimed by one holder until its claim expires; only the holder settles it. What a settling
//!   call counts less than it was given, was no longer the holder's.
//! * Rows of one broker and stream are claimed in order of insertion: none while an earlier one is open
//!   that is not in the same claim.
//! * Each call is one transaction. Nothing here is retried: whoever calls decides, by
//!   [`StoreError::is_transient`].
//!
//! The order of insertion is that of the calls of `publish`, as far as the transactions of one stream do
//! not overlap: on PostgreSQL one that commits later may have the earlier position. Producers change the
//! aggregate in the same transaction, whose row lock sees to that; for others there is
//! `hub_outbox.lock_stream`.

use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
#[cfg(feature = "postgres")]
use sqlx::postgres::PgListener;

use crate::error::StoreError;
#[cfg(feature = "postgres")]
use crate::postgres::Postgres;
use crate::rows::{
    Batch, BrokerStatus, BrokerSync, ClaimRequest, ClaimedRow, FailedAttempt, GivenUp, Retention, Row,
    RowCursor, RowSelection, SetUp,
};
#[cfg(feature = "sqlite")]
use crate::sqlite::Sqlite;

/// Longest wait for a connection when the database is asked whether it is there: whoever asks is told within 3 s.
pub const CONNECT_LIMIT: Duration = Duration::from_millis(2_500);
/// How often a database is asked that is watched, and the longest wait for its answer: an outage is seen within 3 s.
#[cfg(feature = "postgres")]
pub(crate) const WATCH_EVERY: Duration = Duration::from_millis(500);
#[cfg(feature = "postgres")]
pub(crate) const WATCH_LIMIT: Duration = CONNECT_LIMIT;
/// The most that is kept of an error's text.
const MAX_ERROR_BYTES: usize = 2_000;
/// Setting up may wait for another who does, and writes tables.
const SETUP_LIMIT: Duration = Duration::from_secs(60);
/// One batch of deletions, or of rows looked through.
const UPKEEP_LIMIT: Duration = Duration::from_secs(60);

/// How to reach the database.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// `postgres://…` (libpq's parameters, such as `?sslmode=verify-full`) or `sqlite:…`.
    pub url: SecretString,
    /// The most connections at once; one more while someone listens.
    pub connections: u32,
    /// Longest wait for one statement, the connection included.
    pub timeout: Duration,
    /// On SQLite: makes the file where there is none.
    pub create: bool,
    /// PostgreSQL is reached by way of a pooler in transaction mode (`outbox.pooler = "transaction"`).
    pub is_pooled: bool,
}

impl StoreOptions {
    pub fn new(url: SecretString) -> Self {
        Self { url, connections: 4, timeout: Duration::from_secs(15), create: false, is_pooled: false }
    }
}

/// The outbox. Clones share the connections.
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

/// Does one thing on whichever database it is, within a time.
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
    /// Reads the URL. Connects when the first call needs it, and again after each loss.
    pub fn new(options: StoreOptions) -> Result<Self, StoreError> {
        let url = options.url.expose_secret();
        let (scheme, _) = url.split_once(':').ok_or(StoreError::Url { problem: "has no scheme" })?;
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
            _ => return Err(StoreError::Url { problem: "names neither PostgreSQL nor SQLite" }),
        };
        Ok(Self { backend, timeout: options.timeout })
    }

    /// Ends all connections, when the calls under way are done.
    pub async fn close(&self) {
        match &self.backend {
            #[cfg(feature = "postgres")]
            Backend::Postgres(backend) => backend.close().await,
            #[cfg(feature = "sqlite")]
            Backend::Sqlite(backend) => backend.close().await,
        }
    }

    /// Makes the schema, or brings it to this program's version. May be run at any time, by several at
    /// once. Refuses a server that is too old and a schema that is newer.
    pub async fn setup(&self) -> Result<SetUp, StoreError> {
        self.check_server().await?;
        let done = ask!(self, "setting up", SETUP_LIMIT, backend => backend.setup())?;
        let known = self.newest();
        if done.from > known { Err(StoreError::Newer { found: done.from, known }) } else { Ok(done) }
    }

    /// Whether the outbox is there, and of the version that this program needs.
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

    /// Returns when the database cannot be reached, with the cause. A file is there or not, and whoever asks is told.
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

    /// Tells the database the external brokers that published events are forked to. One that is no longer
    /// `configured` stays unless `prune` says otherwise: a program with an old file must not take events
    /// from it. Rows that are there already stay in any case.
    pub async fn sync_brokers(&self, configured: &[String], prune: bool) -> Result<BrokerSync, StoreError> {
        ask!(self, "writing the brokers", self.timeout, backend => backend.sync_brokers(configured, prune))
    }

    /// Tells the database the hub's `events.max_size`, in bytes: `publish` refuses an event whose envelope is larger.
    pub async fn limit_events(&self, bytes: u64) -> Result<(), StoreError> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        ask!(self, "writing the limits", self.timeout, backend => backend.limit_events(bytes))
    }

    /// Claims due rows, in order of insertion: at most `limit`, and none whose stream has an earlier open
    /// row that is not among them. Empty where nothing is due.
    pub async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Vec<ClaimedRow>, StoreError> {
        ask!(self, "claiming", self.timeout, backend => backend.claim(request))
    }

    /// The target broker has these rows. Gives how many were still the holder's.
    pub async fn mark_published(
        &self,
        broker: &str,
        holder: &str,
        positions: &[i64],
    ) -> Result<u64, StoreError> {
        ask!(self, "marking as published", self.timeout, backend => backend.mark_published(broker, holder, positions))
    }

    /// These attempts failed and come again after their waits; the rows behind them in their streams wait
    /// as well, once they are [released](Self::release). Gives how many were still the holder's.
    pub async fn fail(
        &self,
        broker: &str,
        holder: &str,
        failed: &[FailedAttempt],
    ) -> Result<u64, StoreError> {
        ask!(self, "marking as failed", self.timeout, backend => backend.fail(broker, holder, failed))
    }

    /// These rows are given up. Gives how many were still the holder's.
    pub async fn abandon(&self, broker: &str, holder: &str, rows: &[GivenUp]) -> Result<u64, StoreError> {
        ask!(self, "abandoning", self.timeout, backend => backend.abandon(broker, holder, rows))
    }

    /// Gives claimed rows back untried. Gives how many were still the holder's.
    pub async fn release(&self, broker: &str, holder: &str, positions: &[i64]) -> Result<u64, StoreError> {
        ask!(self, "releasing", self.timeout, backend => backend.release(broker, holder, positions))
    }

    /// Lets the claims expire only `claim_time` from now. Gives how many were still the holder's.
    pub async fn extend(
        &self,
        broker: &str,
        holder: &str,
        positions: &[i64],
        claim_time: Duration,
    ) -> Result<u64, StoreError> {
        ask!(self, "extending claims", self.timeout, backend => backend.extend(broker, holder, positions, claim_time))
    }

    /// How long until an open row of this broker is due: a wait that ends, or a claim that expires. None
    /// where no row is open.
    pub async fn next_due(&self, broker: &str) -> Result<Option<Duration>, StoreError> {
        let wait = ask!(self, "asking what is due", self.timeout, backend => backend.next_due(broker))?;
        Ok(wait.map(|wait| Duration::from_millis(wait.max(0).unsigned_abs())))
    }

    /// How the rows stand, by target broker. Reads every row.
    pub async fn status(&self) -> Result<Vec<BrokerStatus>, StoreError> {
        ask!(self, "counting", UPKEEP_LIMIT, backend => backend.status(false))
    }

    /// The same of the open rows alone, which is quick, however many were published: `published` and
    /// `abandoned` are 0.
    pub async fn backlog(&self) -> Result<Vec<BrokerStatus>, StoreError> {
        ask!(self, "counting", self.timeout, backend => backend.status(true))
    }

    /// The rows of a selection by position, at most `limit`, after the cursor.
    pub async fn list(
        &self,
        selection: &RowSelection,
        after: &RowCursor,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        ask!(self, "listing", UPKEEP_LIMIT, backend => backend.list(selection, after, limit))
    }

    /// The envelope of one row.
    pub async fn payload(&self, broker: &str, message_id: &str) -> Result<Option<String>, StoreError> {
        ask!(self, "reading a row", self.timeout, backend => backend.payload(broker, message_id))
    }

    /// Makes the failed and abandoned rows of a selection pending anew, with all their attempts: one batch
    /// of at most `limit`, after the cursor. What was abandoned goes out after what overtook it.
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

    /// Deletes one batch of at most `limit` rows that were published or abandoned longer ago than they are
    /// kept. Gives how many; fewer than `limit` were the last. An external row stays at least as long as
    /// the internal row of its event, so that [reconciling](Self::reconcile) does not take it for missing.
    pub async fn cleanup(&self, retention: Retention, limit: usize) -> Result<u64, StoreError> {
        ask!(self, "cleaning up", UPKEEP_LIMIT, backend => backend.cleanup(retention, limit))
    }

    /// The gap check: looks through at most `limit` published events after the cursor, and writes each
    /// external row that is missing, from the internal one and at its position. Events from before a broker
    /// was added are not sent to it.
    pub async fn reconcile(&self, after: &RowCursor, limit: usize) -> Result<Batch, StoreError> {
        ask!(self, "reconciling", UPKEEP_LIMIT, backend => backend.reconcile(after.position, limit))
    }

    /// Hears of each commit that raised an event, from now on. Takes a connection on PostgreSQL; on SQLite, and
    /// behind a pooler, there is nothing to hear, so whoever waits also looks from time to time.
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

/// Word that events were raised.
#[derive(Debug)]
pub struct Wakeups(Option<Listener>);

impl Wakeups {
    /// Whether there is word to be had, or only looking helps.
    pub fn is_heard(&self) -> bool {
        self.0.is_some()
    }

    /// Waits for word; several commits may come as one. Also returns when the connection was lost, since
    /// word may have been missed. Never returns where none is to be had. May be dropped while it waits: at
    /// worst one word is missed, so whoever waits also looks from time to time.
    ///
    /// After an error the next call connects anew.
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

/// An error's text as a row keeps it: bounded, and without the NUL that PostgreSQL's text cannot hold.
pub(crate) fn storable(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_ERROR_BYTES);
    text[..end].replace('\0', "\u{fffd}")
}
