//! Figure `archive`: the cost of published rows in the table for a claim. Claims alternate between two outboxes, one of them
//! with an archive, so that other load on the machine affects both.

use std::time::{Duration, Instant};

use sqlx::PgPool;

use super::Bench;
use super::load::{self, empty, running};
use super::postgres::Database;
use crate::error::BenchError;
use crate::report::{Figure, Goal, Measure, Unit, grouped};
use crate::statistics::{middle, ratio};
use crate::tally::Account;
use hub_outbox::{ClaimRequest, Store};
use integration_hub::domain::producer_outbox::{INTERNAL, Priority};

/// Rows of a claim, each of its own stream.
const CLAIMED: u64 = 100;
const ROUNDS: u64 = 60;
/// Claims that are not measured, to prepare statements and fill caches.
const WARM_UP: u64 = 5;
const CLAIM_TIME: Duration = Duration::from_secs(60);

struct Side {
    database: Database,
    pool: PgPool,
    store: Store,
    claims: Vec<f64>,
    claimed: u64,
}

pub(crate) async fn measure(bench: &Bench<'_>) -> Result<Figure, BenchError> {
    let mut sides = [Side::new(bench, 0).await?, Side::new(bench, bench.archive_rows).await?];
    let progress = running(WARM_UP + ROUNDS, "claiming in turns");
    for round in 0..WARM_UP + ROUNDS {
        for side in &mut sides {
            if round == WARM_UP {
                side.tidy_up(bench).await?;
            }
            let took = side.claim(round).await?;
            if round >= WARM_UP {
                side.claims.push(took.as_secs_f64() * 1e3);
            }
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    let [empty, full] = [&sides[0], &sides[1]].map(|side| middle(&side.claims));
    let times = ratio(full, empty).unwrap_or(f64::INFINITY);
    let expected = 2 * (WARM_UP + ROUNDS) * CLAIMED;
    let missing = expected - sides.iter().map(|side| side.claimed).sum::<u64>();
    for side in sides {
        side.pool.close().await;
        side.store.close().await;
        bench.postgres.remove(side.database).await?;
    }
    let name = format!("beside {} published rows", grouped(bench.archive_rows));
    Ok(Figure {
        figure: "archive",
        title: "a claim of 100 rows",
        sync: "default",
        measures: vec![
            Measure::new(name, full, Unit::Milliseconds, Some(empty))
                .against("an empty table")
                .aim(Some(Goal::at_most(times, 1.5, "1.50 of an empty table's"))),
        ],
        arrivals: Account { expected, missing, ..Account::default() },
        still_owed: 0,
        processor: None,
        with: bench.conditions.clone(),
    })
}

impl Side {
    async fn new(bench: &Bench<'_>, archive: u64) -> Result<Self, BenchError> {
        let database = empty(bench.postgres, &[]).await?;
        let (pool, store) = (database.pool(1).await?, load::store(&database)?);
        let progress = running(archive, "writing the archive");
        sqlx::query(
            "INSERT INTO hub_outbox.messages (position, broker, message_id, event_type, stream, lane, is_public, payload,
                 status, settled_at)
             SELECT nextval('hub_outbox.positions'), 'internal', 'old-' || n, 'user.created', 's' || n % 1000, 'live',
                 false, '{\"data\": 1}', 'published', now()
             FROM generate_series(1, $1) AS n",
        )
        .bind(i64::try_from(archive).unwrap_or(i64::MAX))
        .execute(&pool)
        .await?;
        progress.finish_and_clear();
        let side = Self { database, pool, store, claims: Vec::new(), claimed: 0 };
        side.tidy_up(bench).await?;
        Ok(side)
    }

    /// Does the maintenance of new rows before the measurement, and updates the statistics of the planner.
    async fn tidy_up(&self, bench: &Bench<'_>) -> Result<(), BenchError> {
        sqlx::raw_sql("VACUUM (ANALYZE) hub_outbox.messages").execute(&self.pool).await?;
        bench.postgres.checkpoint().await
    }

    /// The time of one claim; its rows are settled afterwards.
    async fn claim(&mut self, round: u64) -> Result<Duration, BenchError> {
        let numbers = round * CLAIMED..(round + 1) * CLAIMED;
        let events: Vec<String> = numbers.map(|number| load::event(number, CLAIMED, false)).collect();
        sqlx::query("SELECT count(hub_outbox.publish(e::jsonb)) FROM unnest($1::text[]) AS e")
            .bind(events)
            .execute(&self.pool)
            .await?;
        let holder = format!("bench-{round}");
        let request = ClaimRequest {
            broker: INTERNAL,
            priority: Priority::Live,
            holder: &holder,
            limit: CLAIMED as usize,
            claim_time: CLAIM_TIME,
            passed_over: &[],
        };
        let started = Instant::now();
        let rows = self.store.claim(&request).await?;
        let took = started.elapsed();
        let positions: Vec<i64> = rows.iter().map(|row| row.position).collect();
        self.claimed += self.store.mark_published(INTERNAL, &holder, &positions).await?;
        Ok(took)
    }
}
