//! Bulk jobs: a KV bucket (ADR-8) that holds the progress of each, so that every replica can show it. The limits of
//! the bucket bound their number and age; the oldest are deleted first.

use super::connection::JetStream;
use super::error::NatsError;
use crate::domain::bulk_job::{BulkJob, BulkJobId};
use crate::facts::BulkJobUnreadable;

impl JetStream {
    /// Writes a bulk job. `expected` is the revision it must have now, 0 for a new one. Returns the new revision.
    pub async fn put_bulk_job(&self, job: &BulkJob, expected: u64) -> Result<u64, NatsError> {
        let key = self.names().bulk_job_key(&job.id);
        let value = serde_json::to_vec(job).map_err(|error| NatsError::encode(key.clone(), error))?;
        self.write_key(&key, value.into(), Some(expected), &[]).await
    }

    /// A bulk job and its revision; `None` if it is unknown, deleted or unreadable.
    pub async fn bulk_job(&self, id: &BulkJobId) -> Result<Option<(BulkJob, u64)>, NatsError> {
        let (revision, job) = self.bulk_job_at(id).await?;
        Ok(job.map(|job| (job, revision)))
    }

    /// A bulk job, and the revision that its next write must expect. An unreadable value has a revision too, so that the
    /// process that runs the job can write it again.
    pub async fn bulk_job_at(&self, id: &BulkJobId) -> Result<(u64, Option<BulkJob>), NatsError> {
        let key = self.names().bulk_job_key(id);
        let Some(message) = self.get_last(&self.names().bulk_jobs_stream(), &key).await? else {
            return Ok((0, None));
        };
        if message.header("KV-Operation").is_some() {
            return Ok((message.sequence, None));
        }
        if let Some(error) = message.malformed() {
            BulkJobUnreadable { key: &key, error: &error }.emit();
            return Ok((message.sequence, None));
        }
        let read = serde_json::from_slice(&message.payload);
        let job = read.inspect_err(|error| BulkJobUnreadable { key: &key, error }.emit()).ok();
        Ok((message.sequence, job))
    }

    /// All stored bulk jobs, unsorted.
    pub async fn bulk_jobs(&self) -> Result<Vec<BulkJob>, NatsError> {
        let (stream, filter) = (self.names().bulk_jobs_stream(), self.names().bulk_jobs_filter());
        let mut jobs = Vec::new();
        self.for_each_stored(&stream, &filter, None, |message| {
            if message.header("KV-Operation").is_some() {
                return;
            }
            if let Some(error) = message.malformed() {
                BulkJobUnreadable { key: &message.subject, error: &error }.emit();
                return;
            }
            match serde_json::from_slice(&message.payload) {
                Ok(job) => jobs.push(job),
                Err(error) => BulkJobUnreadable { key: &message.subject, error: &error }.emit(),
            }
        })
        .await?;
        Ok(jobs)
    }
}
