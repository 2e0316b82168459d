//! Bulk jobs run in the background of one process and are stored in a KV bucket, so that every replica can show their
//! progress and cancel them.
//!
//! A job reads its selection twice, page by page: first to count, then to act. It reads each stream only up to its end
//! at the start of the job. So memory does not grow with the selection, and an envelope that fails again is not replayed
//! a second time.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::dead_letter_actions::{DeadLetterAction, RemovedOwners, SelectedDeadLetter};
use super::dead_letters::{DeadLetterQuery, PAGE, Pages};
use super::{Management, ManagementError};
use crate::domain::access::Caller;
use crate::domain::bulk_job::{BulkJob, BulkJobId, BulkJobKind, BulkJobState};
use crate::facts::{BulkJobEndNotWritten, BulkJobEnded, BulkJobFailed, BulkJobProgressNotWritten};
use crate::nats::{DeadLetterEntry, JetStream, NatsError, RedriveTrigger};

/// Maximum number of bulk jobs that one process runs at once.
pub const MAX_RUNNING_JOBS: usize = 4;
/// How often the state of a running job is written, which also shows that its process is alive.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// How long to try to write the final state of a job; after that it shows as interrupted.
const FINAL_WRITE_LIMIT: Duration = Duration::from_secs(10);

/// A bulk job to start.
#[derive(Debug, Clone)]
pub struct NewBulkJob {
    pub kind: BulkJobKind,
    pub filter: DeadLetterQuery,
    /// Also replay dead letters that are being replayed already.
    pub force: bool,
}

/// Starts, lists and cancels bulk jobs. Cheap to clone.
#[derive(Clone)]
pub struct BulkJobs {
    management: Management,
    jobs: mpsc::Sender<Job>,
    room: std::sync::Arc<tokio::sync::Semaphore>,
    tenants: TenantJobCounts,
}

/// The number of running jobs of each tenant. Cheap to clone.
#[derive(Clone, Default)]
struct TenantJobCounts(std::sync::Arc<std::sync::Mutex<HashMap<String, usize>>>);

/// One running job of a tenant. Dropping it decrements the tenant's count.
struct TenantSlot {
    tenant: String,
    of_tenants: TenantJobCounts,
}

impl TenantJobCounts {
    fn counts(&self) -> std::sync::MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn take(&self, tenant: &str, limit: usize) -> Option<TenantSlot> {
        let mut counts = self.counts();
        let count = counts.entry(tenant.to_owned()).or_default();
        if limit > 0 && *count >= limit {
            return None;
        }
        *count += 1;
        Some(TenantSlot { tenant: tenant.to_owned(), of_tenants: self.clone() })
    }
}

impl Drop for TenantSlot {
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

/// The task that runs the jobs.
pub struct BulkJobRunner {
    management: Management,
    jobs: mpsc::Receiver<Job>,
}

struct Job {
    job: BulkJob,
    revision: u64,
    filter: DeadLetterQuery,
    /// Held while the job runs.
    _room: tokio::sync::OwnedSemaphorePermit,
    /// Held while the job runs; `None` for a caller without a tenant.
    _place: Option<TenantSlot>,
}

impl BulkJobs {
    pub fn new(management: Management) -> (Self, BulkJobRunner) {
        let (sender, jobs) = mpsc::channel(MAX_RUNNING_JOBS);
        let room = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_RUNNING_JOBS));
        let runner = BulkJobRunner { management: management.clone(), jobs };
        (Self { management, jobs: sender, room, tenants: TenantJobCounts::default() }, runner)
    }

    /// Stores a job and starts it at once.
    pub async fn start(&self, caller: &Caller, bulk: NewBulkJob) -> Result<BulkJob, ManagementError> {
        self.management.domain_names(&bulk.filter.domains)?;
        let place = match caller.tenant() {
            None => None,
            Some(tenant) => {
                let quota = self.management.settings().bulk_job_quota(tenant);
                let full =
                    |quota| ManagementError::TooManyBulkJobsOfTenant { tenant: tenant.to_owned(), quota };
                Some(self.tenants.take(tenant, quota.limit).ok_or_else(|| full(quota))?)
            }
        };
        let full = |_| ManagementError::TooManyBulkJobs { limit: MAX_RUNNING_JOBS };
        let room = self.room.clone().try_acquire_owned().map_err(full)?;
        // The channel has a slot for every permit, so this fails only when the process stops.
        let slot = self.jobs.try_reserve().map_err(|_| ManagementError::Stopping)?;
        let now = self.management.now();
        let job = BulkJob {
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
        let revision = self.management.js.put_bulk_job(&job, 0).await?;
        slot.send(Job { job: job.clone(), revision, filter: bulk.filter, _room: room, _place: place });
        Ok(job)
    }

    /// The current state of a job in any process, if the caller may see it.
    pub async fn job(&self, caller: &Caller, id: &BulkJobId) -> Result<BulkJob, ManagementError> {
        Ok(self.stored(caller, id).await?.0.as_of(self.management.now()))
    }

    /// The stored jobs that the caller may see, newest first. That there is none is confirmed by a leader.
    pub async fn jobs(&self, caller: &Caller, limit: usize) -> Result<Vec<BulkJob>, ManagementError> {
        let now = self.management.now();
        let mut jobs: Vec<BulkJob> = self.management.js.bulk_jobs().await?;
        if jobs.is_empty() {
            self.confirm_leader().await?;
        }
        jobs.retain(|job| reaches(caller, job));
        jobs.sort_by(|one, other| (other.created_at, &other.id).cmp(&(one.created_at, &one.id)));
        jobs.truncate(limit);
        Ok(jobs.into_iter().map(|job| job.as_of(now)).collect())
    }

    /// Asks the process that runs the job to stop. Returns the job, which is either over or `cancelling`.
    pub async fn cancel(&self, caller: &Caller, id: &BulkJobId) -> Result<BulkJob, ManagementError> {
        let deadline = Instant::now() + self.management.js.request_timeout();
        loop {
            let (mut job, revision) = self.stored(caller, id).await?;
            let shown = job.clone().as_of(self.management.now());
            if shown.state.is_over() || shown.cancelling {
                return Ok(shown);
            }
            // `updated_at` is left alone, because it shows when the job's own process last wrote.
            job.cancelling = true;
            match self.management.js.put_bulk_job(&job, revision).await {
                Ok(_) => return Ok(job),
                // The job made progress in the meantime.
                Err(error) if error.is_wrong_last_sequence() && Instant::now() < deadline => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn confirm_leader(&self) -> Result<(), NatsError> {
        let js = &self.management.js;
        js.confirm_leader_of(&js.names().bulk_jobs_stream()).await
    }

    async fn stored(&self, caller: &Caller, id: &BulkJobId) -> Result<(BulkJob, u64), ManagementError> {
        let found = self.management.js.bulk_job(id).await?;
        if found.is_none() {
            self.confirm_leader().await?;
        }
        let found = found.filter(|(job, _)| reaches(caller, job));
        found.ok_or_else(|| ManagementError::NoBulkJob { id: id.to_string() })
    }
}

/// A caller that is bound to a tenant may see only the jobs of that tenant.
fn reaches(caller: &Caller, job: &BulkJob) -> bool {
    caller.tenant().is_none_or(|tenant| job.tenant.as_deref() == Some(tenant))
}

impl BulkJobRunner {
    /// Runs jobs until `stop`; the running ones are then marked as interrupted.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Infallible> {
        let mut under_way = FuturesUnordered::new();
        let mut open = true;
        loop {
            tokio::select! {
                () = stop.cancelled(), if open && !self.jobs.is_closed() => self.jobs.close(),
                job = self.jobs.recv(), if open => match job {
                    Some(job) => under_way.push(RunningJob::new(&self.management.js, job).carry_out(&self.management, &stop)),
                    None => open = false,
                },
                Some(()) = under_way.next(), if !under_way.is_empty() => {}
                // All `BulkJobs` are dropped, but `stop` has not come yet.
                () = stop.cancelled(), if !open && under_way.is_empty() => return Ok(()),
            }
        }
    }
}

/// The progress of a job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Progress {
    counted: bool,
    total: u64,
    done: u64,
    already_replaying: u64,
    removed: u64,
}

/// A running job and its stored record.
struct RunningJob {
    js: JetStream,
    job: BulkJob,
    revision: u64,
    filter: DeadLetterQuery,
    _room: tokio::sync::OwnedSemaphorePermit,
    _place: Option<TenantSlot>,
}

impl RunningJob {
    fn new(js: &JetStream, job: Job) -> Self {
        let Job { job, revision, filter, _room, _place } = job;
        Self { js: js.clone(), job, revision, filter, _room, _place }
    }

    async fn carry_out(mut self, management: &Management, stop: &CancellationToken) {
        let halt = CancellationToken::new();
        let (progress, seen) = watch::channel(Progress::default());
        let (kind, force, filter) = (self.job.kind, self.job.force, self.filter.clone());
        let mut beat = tokio::time::interval(PROGRESS_INTERVAL);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The job was already written when it was started.
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
                            BulkJobProgressNotWritten { job: &self.job.id, error: &error }.emit();
                        }
                        if self.job.cancelling && !halt.is_cancelled() {
                            stopped_as = Some(BulkJobState::Cancelled);
                            halt.cancel();
                        }
                    }
                }
            }
        };
        self.note(*seen.borrow());
        self.job.ended_at = Some(self.js.now());
        self.job.state = match result {
            // Stopped when everything was done already.
            Ok(()) if self.is_whole() => BulkJobState::Done,
            Ok(()) => stopped_as.unwrap_or(BulkJobState::Done),
            Err(error) => {
                BulkJobFailed { job: &self.job.id, error: &error }.emit();
                self.job.error = Some(reason(&error));
                BulkJobState::Failed
            }
        };
        self.write_final_state().await;
    }

    fn note(&mut self, progress: Progress) {
        if progress.counted && self.job.state == BulkJobState::Selecting {
            self.job.state = BulkJobState::Running;
        }
        let Progress { counted: _, total, done, already_replaying, removed } = progress;
        self.job.done = done;
        self.job.already_replaying = already_replaying;
        self.job.removed = removed;
        // Dead letters that began to match between the two reads count too.
        self.job.total = total.max(done + already_replaying + removed);
    }

    /// Whether everything that was counted has been processed.
    fn is_whole(&self) -> bool {
        let BulkJob { state, total, done, already_replaying, removed, .. } = &self.job;
        *state == BulkJobState::Running && done + already_replaying + removed >= *total
    }

    /// Writes the job. A conflict means that it was cancelled, because that is the only write by others.
    async fn write(&mut self) -> Result<(), NatsError> {
        self.job.updated_at = self.js.now();
        match self.js.put_bulk_job(&self.job, self.revision).await {
            Err(error) if error.is_wrong_last_sequence() => {}
            written => {
                self.revision = written?;
                return Ok(());
            }
        }
        // A job that was deleted or overwritten with an unreadable value is written again.
        let (revision, stored) = self.js.bulk_job_at(&self.job.id).await?;
        self.job.cancelling |= stored.is_some_and(|job| job.cancelling);
        self.revision = revision;
        self.revision = self.js.put_bulk_job(&self.job, self.revision).await?;
        Ok(())
    }

    /// Writes the final state, retrying for [`FINAL_WRITE_LIMIT`].
    async fn write_final_state(&mut self) {
        let deadline = Instant::now() + FINAL_WRITE_LIMIT;
        let mut wait = Duration::from_millis(100);
        while let Err(error) = self.write().await {
            if Instant::now() + wait >= deadline {
                let state = self.job.state;
                BulkJobEndNotWritten { job: &self.job.id, error: &error, state }.emit();
                return;
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        BulkJobEnded { job: &self.job }.emit();
    }
}

/// The error that the job shows; the log has the details.
fn reason(error: &ManagementError) -> String {
    let what = if error.is_unavailable() {
        "the NATS server does not answer"
    } else {
        "the NATS server returned an error; see the hub's log"
    };
    format!("{what}; start the same job again for the rest")
}

/// Counts the selection, then acts on it. On `halt` it finishes the operations in progress and returns early.
async fn work(
    management: &Management,
    filter: &DeadLetterQuery,
    kind: BulkJobKind,
    force: bool,
    halt: &CancellationToken,
    progress: &watch::Sender<Progress>,
) -> Result<(), ManagementError> {
    let act = match (kind, force) {
        (BulkJobKind::Replay, false) => DeadLetterAction::Redrive(RedriveTrigger::Operator),
        (BulkJobKind::Replay, true) => DeadLetterAction::Redrive(RedriveTrigger::OperatorForce),
        (BulkJobKind::Discard, _) => DeadLetterAction::Discard,
    };
    let leave_alone = |one: &SelectedDeadLetter| kind == BulkJobKind::Replay && !force && one.replaying;
    let mut ends = Vec::new();
    for domain in management.domain_names(&filter.domains)? {
        let stream = management.js.names().dlt_stream(&domain);
        let end = management.js.stream_info_of_leader(&stream).await?.state.last_seq;
        ends.push((domain, end));
    }
    for (domain, end) in &ends {
        let mut reading = SelectionReader::new(management, filter, domain, *end);
        while let Some(page) = reading.next(halt).await? {
            progress.send_modify(|progress| progress.total += page.len() as u64);
        }
    }
    if halt.is_cancelled() {
        return Ok(());
    }
    progress.send_modify(|progress| progress.counted = true);
    let mut removals = RemovedOwners::default();
    for (domain, end) in &ends {
        let mut reading = SelectionReader::new(management, filter, domain, *end);
        while let Some(page) = reading.next(halt).await? {
            let page: Vec<SelectedDeadLetter> = page.into_iter().map(SelectedDeadLetter::from).collect();
            if kind == BulkJobKind::Replay {
                management.look_up_owners(&page, &mut removals).await?;
            }
            let (removed, standing): (Vec<_>, Vec<_>) = page.iter().partition(|one| removals.has(one));
            let chosen: Vec<&SelectedDeadLetter> =
                standing.iter().copied().filter(|one| !leave_alone(one)).collect();
            let left = (standing.len() - chosen.len()) as u64;
            progress.send_modify(|progress| {
                progress.already_replaying += left;
                progress.removed += removed.len() as u64;
            });
            let one_done = |_: &SelectedDeadLetter| progress.send_modify(|progress| progress.done += 1);
            management.each_until(halt, &chosen, act, one_done).await?;
        }
    }
    Ok(())
}

/// Reads a domain's dead letters that match a filter, up to the end of the stream at the start of the job.
struct SelectionReader<'a> {
    pages: Pages<'a>,
    end: u64,
}

impl<'a> SelectionReader<'a> {
    fn new(management: &'a Management, filter: &DeadLetterQuery, domain: &str, end: u64) -> Self {
        Self { pages: Pages::new(&management.js, filter.clone(), vec![domain.to_owned()]), end }
    }

    /// The next page; `None` at the end, or on `halt`.
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
    fn each_tenant_has_its_own_limit_of_running_jobs() {
        let in_hand = TenantJobCounts::default();
        let first = in_hand.take("acme", 2).unwrap();
        let _second = in_hand.take("acme", 2).unwrap();
        assert!(in_hand.take("acme", 2).is_none());
        let _other = in_hand.take("globex", 2).unwrap();
        assert!(in_hand.take("acme", 0).is_some(), "0 means no limit");
        drop(first);
        assert!(in_hand.take("acme", 2).is_some());
        assert_eq!(in_hand.counts().len(), 2);
    }
}
