//! Bulk orders in the background: taken at a desk, carried out by a runner, and kept in a KV bucket,
//! so that every replica can tell how far each has come and can ask for its cancelling.
//!
//! The selection is read twice, page by page, and only up to where each stream ended when the order
//! began: first to count, then to act. So memory does not grow with it, and what an order brings
//! back and fails again is not ordered a second time.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::dead_letters::{DeadLetterQuery, PAGE, Pages};
use super::orders::{Act, Removals, Selected};
use super::{Management, ManagementError};
use crate::domain::access::Caller;
use crate::domain::bulk_job::{BulkJob, BulkJobId, BulkJobKind, BulkJobState};
use crate::nats::{DeadLetterEntry, JetStream, NatsError, RedriveOrder};

/// Orders that one process carries out at once.
pub const MOST_ORDERS: usize = 4;
/// How often an order in hand is written: its progress, and that its process is alive.
const BEAT: Duration = Duration::from_secs(1);
/// How long the end of an order is tried to be written; then it shows as interrupted.
const LAST_WORD: Duration = Duration::from_secs(10);

/// What is asked for.
#[derive(Debug, Clone)]
pub struct BulkOrder {
    pub kind: BulkJobKind,
    pub filter: DeadLetterQuery,
    /// A replay also of what is on its way again already.
    pub force: bool,
}

/// Where orders are placed and asked about. Cheap to clone.
#[derive(Clone)]
pub struct OrderDesk {
    management: Management,
    jobs: mpsc::Sender<Job>,
    room: std::sync::Arc<tokio::sync::Semaphore>,
    tenants: OfTenants,
}

/// How many orders of each tenant are in hand. Cheap to clone.
#[derive(Clone, Default)]
struct OfTenants(std::sync::Arc<std::sync::Mutex<HashMap<String, usize>>>);

/// A tenant's place among its own; dropping it gives it back.
struct Place {
    tenant: String,
    of_tenants: OfTenants,
}

impl OfTenants {
    fn counts(&self) -> std::sync::MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn take(&self, tenant: &str, limit: usize) -> Option<Place> {
        let mut counts = self.counts();
        let count = counts.entry(tenant.to_owned()).or_default();
        if limit > 0 && *count >= limit {
            return None;
        }
        *count += 1;
        Some(Place { tenant: tenant.to_owned(), of_tenants: self.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.of_tenants.counts();
        if let Some(count) = counts.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.tenant);
            }
        }
    }
}

/// The task side: carries out what the desk takes.
pub struct OrderRunner {
    management: Management,
    jobs: mpsc::Receiver<Job>,
}

struct Job {
    order: BulkJob,
    revision: u64,
    filter: DeadLetterQuery,
    /// Its place among those that run at once.
    _room: tokio::sync::OwnedSemaphorePermit,
    /// The same among those of its tenant.
    _place: Option<Place>,
}

impl OrderDesk {
    pub fn new(management: Management) -> (Self, OrderRunner) {
        let (sender, jobs) = mpsc::channel(MOST_ORDERS);
        let room = std::sync::Arc::new(tokio::sync::Semaphore::new(MOST_ORDERS));
        let runner = OrderRunner { management: management.clone(), jobs };
        (Self { management, jobs: sender, room, tenants: OfTenants::default() }, runner)
    }

    /// Takes an order. It is kept before this returns, and begun at once.
    pub async fn place(&self, caller: &Caller, bulk: BulkOrder) -> Result<BulkJob, ManagementError> {
        self.management.domain_names(&bulk.filter.domains)?;
        let place = match caller.tenant() {
            None => None,
            Some(tenant) => {
                let quota = self.management.settings().bulk_job_quota(tenant);
                let full = |quota| ManagementError::TooManyOrdersOf { tenant: tenant.to_owned(), quota };
                Some(self.tenants.take(tenant, quota.limit).ok_or_else(|| full(quota))?)
            }
        };
        let full = |_| ManagementError::TooManyOrders { limit: MOST_ORDERS };
        let room = self.room.clone().try_acquire_owned().map_err(full)?;
        // There are as many slots as there is room for, so only a stop takes them away.
        let slot = self.jobs.try_reserve().map_err(|_| ManagementError::Stopping)?;
        let now = OffsetDateTime::now_utc();
        let order = BulkJob {
            id: BulkJobId::new(rand::random()),
            kind: bulk.kind,
            force: bulk.force,
            state: BulkJobState::Selecting,
            total: 0,
            done: 0,
            already_replaying: 0,
            removed: 0,
            cancelling: false,
            error: None,
            created_at: now,
            updated_at: now,
            ended_at: None,
            by: caller.name.clone(),
            tenant: bulk.filter.tenant.clone(),
        };
        let revision = self.management.js.put_order(&order, 0).await?;
        slot.send(Job { order: order.clone(), revision, filter: bulk.filter, _room: room, _place: place });
        Ok(order)
    }

    /// An order as it stands, whichever process has it, if the caller reaches it.
    pub async fn order(&self, caller: &Caller, id: &BulkJobId) -> Result<BulkJob, ManagementError> {
        Ok(self.stored(caller, id).await?.0.as_of(OffsetDateTime::now_utc()))
    }

    /// Those that are remembered and that the caller reaches, the newest first.
    pub async fn orders(&self, caller: &Caller, limit: usize) -> Result<Vec<BulkJob>, ManagementError> {
        let now = OffsetDateTime::now_utc();
        let mut orders: Vec<BulkJob> = self.management.js.orders().await?;
        orders.retain(|order| reaches(caller, order));
        orders.sort_by(|one, other| (other.created_at, &other.id).cmp(&(one.created_at, &one.id)));
        orders.truncate(limit);
        Ok(orders.into_iter().map(|order| order.as_of(now)).collect())
    }

    /// Asks the process that has it to stop, and gives the order as it stands: over already, or
    /// `cancelling`.
    pub async fn cancel(&self, caller: &Caller, id: &BulkJobId) -> Result<BulkJob, ManagementError> {
        let deadline = Instant::now() + self.management.js.request_timeout();
        loop {
            let (mut order, revision) = self.stored(caller, id).await?;
            let shown = order.clone().as_of(OffsetDateTime::now_utc());
            if shown.state.is_over() || shown.cancelling {
                return Ok(shown);
            }
            // Its process is what `updated_at` tells of: this is no sign of life of it.
            order.cancelling = true;
            match self.management.js.put_order(&order, revision).await {
                Ok(_) => return Ok(order),
                // It went on meanwhile.
                Err(error) if error.is_wrong_last_sequence() && Instant::now() < deadline => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn stored(&self, caller: &Caller, id: &BulkJobId) -> Result<(BulkJob, u64), ManagementError> {
        let found = self.management.js.order(id).await?.filter(|(order, _)| reaches(caller, order));
        found.ok_or_else(|| ManagementError::NoOrder { id: id.to_string() })
    }
}

/// A token that is bound to a tenant sees the orders that are limited to it.
fn reaches(caller: &Caller, order: &BulkJob) -> bool {
    caller.tenant().is_none_or(|tenant| order.tenant.as_deref() == Some(tenant))
}

impl OrderRunner {
    /// Carries out orders until told to stop; those in hand are then marked as interrupted.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Infallible> {
        let mut under_way = FuturesUnordered::new();
        let mut open = true;
        loop {
            tokio::select! {
                () = stop.cancelled(), if open && !self.jobs.is_closed() => self.jobs.close(),
                job = self.jobs.recv(), if open => match job {
                    Some(job) => under_way.push(InHand::new(&self.management.js, job).carry_out(&self.management, &stop)),
                    None => open = false,
                },
                Some(()) = under_way.next(), if !under_way.is_empty() => {}
                // Whoever places orders is gone, but nobody said stop.
                () = stop.cancelled(), if !open && under_way.is_empty() => return Ok(()),
            }
        }
    }
}

/// How far an order has come, as the work tells it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Progress {
    counted: bool,
    total: u64,
    done: u64,
    already_replaying: u64,
    removed: u64,
}

/// An order that is being carried out, and its record.
struct InHand {
    js: JetStream,
    order: BulkJob,
    revision: u64,
    filter: DeadLetterQuery,
    _room: tokio::sync::OwnedSemaphorePermit,
    _place: Option<Place>,
}

impl InHand {
    fn new(js: &JetStream, job: Job) -> Self {
        let Job { order, revision, filter, _room, _place } = job;
        Self { js: js.clone(), order, revision, filter, _room, _place }
    }

    async fn carry_out(mut self, management: &Management, stop: &CancellationToken) {
        let halt = CancellationToken::new();
        let (progress, seen) = watch::channel(Progress::default());
        let (kind, force, filter) = (self.order.kind, self.order.force, self.filter.clone());
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The order was written when it was placed.
        beat.reset();
        let mut stopped_as = None;
        let result = {
            let mut work = std::pin::pin!(work(management, &filter, kind, force, &halt, &progress));
            loop {
                tokio::select! {
                    result = &mut work => break result,
                    () = stop.cancelled(), if !halt.is_cancelled() => {
                        stopped_as = Some(BulkJobState::Interrupted);
                        halt.cancel();
                    }
                    _ = beat.tick() => {
                        self.note(*seen.borrow());
                        if let Err(error) = self.write().await {
                            tracing::warn!(order = %self.order.id, %error, "the order's progress is not written");
                        }
                        if self.order.cancelling && !halt.is_cancelled() {
                            stopped_as = Some(BulkJobState::Cancelled);
                            halt.cancel();
                        }
                    }
                }
            }
        };
        self.note(*seen.borrow());
        self.order.ended_at = Some(OffsetDateTime::now_utc());
        self.order.state = match result {
            // Told to halt when all was done already.
            Ok(()) if self.is_whole() => BulkJobState::Done,
            Ok(()) => stopped_as.unwrap_or(BulkJobState::Done),
            Err(error) => {
                tracing::error!(order = %self.order.id, %error, "an order on dead letters failed on its way");
                self.order.error = Some(reason(&error));
                BulkJobState::Failed
            }
        };
        self.last_word().await;
    }

    fn note(&mut self, progress: Progress) {
        if progress.counted && self.order.state == BulkJobState::Selecting {
            self.order.state = BulkJobState::Running;
        }
        let Progress { counted: _, total, done, already_replaying, removed } = progress;
        self.order.done = done;
        self.order.already_replaying = already_replaying;
        self.order.removed = removed;
        // What came to match between the two readings is among them too.
        self.order.total = total.max(done + already_replaying + removed);
    }

    /// All that was counted is dealt with.
    fn is_whole(&self) -> bool {
        let BulkJob { state, total, done, already_replaying, removed, .. } = &self.order;
        *state == BulkJobState::Running && done + already_replaying + removed >= *total
    }

    /// Writes the order, and learns whether somebody wants it cancelled: nobody else writes it, but
    /// for that.
    async fn write(&mut self) -> Result<(), NatsError> {
        self.order.updated_at = OffsetDateTime::now_utc();
        match self.js.put_order(&self.order, self.revision).await {
            Err(error) if error.is_wrong_last_sequence() => {}
            written => {
                self.revision = written?;
                return Ok(());
            }
        }
        // One that was forgotten meanwhile, or overwritten by something unreadable, is written anew.
        let (revision, stored) = self.js.order_at(&self.order.id).await?;
        self.order.cancelling |= stored.is_some_and(|order| order.cancelling);
        self.revision = revision;
        self.revision = self.js.put_order(&self.order, self.revision).await?;
        Ok(())
    }

    /// Writes how it ended, whatever the broker is up to.
    async fn last_word(&mut self) {
        let deadline = Instant::now() + LAST_WORD;
        let mut wait = Duration::from_millis(100);
        while let Err(error) = self.write().await {
            if Instant::now() + wait >= deadline {
                let state = self.order.state;
                tracing::error!(order = %self.order.id, %error, ?state, "the order's end is not written; it shows as interrupted");
                return;
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        let BulkJob { id, kind, state, total, done, by, .. } = &self.order;
        tracing::info!(order = %id, ?kind, ?state, total, done, by, "an order on dead letters has ended");
    }
}

/// What whoever asked is told; the broker's own words are for the log.
fn reason(error: &ManagementError) -> String {
    let what = if error.is_unreachable() {
        "the hub's broker does not answer"
    } else {
        "the hub's broker refused; the log of the hub says why"
    };
    format!("{what}. Place the same order again for the rest")
}

/// Counts, then acts. Told to halt, it ends early with what it has in hand done.
async fn work(
    management: &Management,
    filter: &DeadLetterQuery,
    kind: BulkJobKind,
    force: bool,
    halt: &CancellationToken,
    progress: &watch::Sender<Progress>,
) -> Result<(), ManagementError> {
    let act = match (kind, force) {
        (BulkJobKind::Replay, false) => Act::Order(RedriveOrder::Operator),
        (BulkJobKind::Replay, true) => Act::Order(RedriveOrder::OperatorForce),
        (BulkJobKind::Discard, _) => Act::Discard,
    };
    let leave_alone = |one: &Selected| kind == BulkJobKind::Replay && !force && one.replaying;
    let mut ends = Vec::new();
    for domain in management.domain_names(&filter.domains)? {
        let stream = management.js.names().dlt_stream(&domain);
        let end = management.js.stream_info(&stream).await?.state.last_seq;
        ends.push((domain, end));
    }
    for (domain, end) in &ends {
        let mut reading = Reading::new(management, filter, domain, *end);
        while let Some(page) = reading.next(halt).await? {
            progress.send_modify(|progress| progress.total += page.len() as u64);
        }
    }
    if halt.is_cancelled() {
        return Ok(());
    }
    progress.send_modify(|progress| progress.counted = true);
    let mut removals = Removals::default();
    for (domain, end) in &ends {
        let mut reading = Reading::new(management, filter, domain, *end);
        while let Some(page) = reading.next(halt).await? {
            let page: Vec<Selected> = page.into_iter().map(Selected::from).collect();
            if kind == BulkJobKind::Replay {
                management.look_up_owners(&page, &mut removals).await?;
            }
            let (removed, standing): (Vec<_>, Vec<_>) = page.iter().partition(|one| removals.has(one));
            let chosen: Vec<&Selected> = standing.iter().copied().filter(|one| !leave_alone(one)).collect();
            let left = (standing.len() - chosen.len()) as u64;
            progress.send_modify(|progress| {
                progress.already_replaying += left;
                progress.removed += removed.len() as u64;
            });
            let one_done = || progress.send_modify(|progress| progress.done += 1);
            management.each_until(halt, &chosen, act, one_done).await?;
        }
    }
    Ok(())
}

/// A domain's dead letters that the filter means, up to where their stream ended.
struct Reading<'a> {
    pages: Pages<'a>,
    end: u64,
}

impl<'a> Reading<'a> {
    fn new(management: &'a Management, filter: &DeadLetterQuery, domain: &str, end: u64) -> Self {
        Self { pages: Pages::new(&management.js, filter.clone(), vec![domain.to_owned()]), end }
    }

    /// The next page; `None` at the end, or when told to halt.
    async fn next(
        &mut self,
        halt: &CancellationToken,
    ) -> Result<Option<Vec<DeadLetterEntry>>, ManagementError> {
        if halt.is_cancelled() {
            return Ok(None);
        }
        let page = tokio::select! {
            page = self.pages.next(PAGE) => page?,
            () = halt.cancelled() => None,
        };
        let Some(mut page) = page else { return Ok(None) };
        page.retain(|entry| entry.sequence <= self.end);
        Ok((!page.is_empty()).then_some(page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_so_many_orders_in_hand_and_the_others_theirs() {
        let in_hand = OfTenants::default();
        let first = in_hand.take("acme", 2).unwrap();
        let _second = in_hand.take("acme", 2).unwrap();
        assert!(in_hand.take("acme", 2).is_none());
        let _other = in_hand.take("globex", 2).unwrap();
        assert!(in_hand.take("acme", 0).is_some(), "0 is no limit");
        drop(first);
        assert!(in_hand.take("acme", 2).is_some());
        assert_eq!(in_hand.counts().len(), 2);
    }
}
