//! The operations of the command line and the API.

use super::{Cause, Shown};
use crate::domain::bulk_job::{BulkJob, BulkJobId, BulkJobState};

/// A published event was stored, and the id that recognizes a repetition was not.
pub struct PublishedIdNotRecorded<'a> {
    pub error: Cause<'a>,
}

impl PublishedIdNotRecorded<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::warn!(%error, "could not record the id of a published event");
    }
}

/// The connection that a sample used did not close in time.
pub struct SampleConnectionDropped<'a> {
    pub broker: &'a str,
}

impl SampleConnectionDropped<'_> {
    pub fn emit(self) {
        let Self { broker } = self;
        tracing::debug!(broker, "closing the broker connection of a sample timed out, dropping it");
    }
}

/// The progress of a running job could not be stored.
pub struct BulkJobProgressNotWritten<'a> {
    pub job: &'a BulkJobId,
    pub error: Cause<'a>,
}

impl BulkJobProgressNotWritten<'_> {
    pub fn emit(self) {
        let Self { job, error } = self;
        tracing::warn!(%job, %error, "could not write the progress of a bulk job");
    }
}

/// A job ended with an error.
pub struct BulkJobFailed<'a> {
    pub job: &'a BulkJobId,
    pub error: Cause<'a>,
}

impl BulkJobFailed<'_> {
    pub fn emit(self) {
        let Self { job, error } = self;
        tracing::error!(%job, %error, "bulk job failed");
    }
}

/// The end of a job could not be stored.
pub struct BulkJobEndNotWritten<'a> {
    pub job: &'a BulkJobId,
    pub error: Cause<'a>,
    pub state: BulkJobState,
}

impl BulkJobEndNotWritten<'_> {
    pub fn emit(self) {
        let Self { job, error, state } = self;
        tracing::error!(
            %job, %error, %state,
            "could not write the final state of a bulk job; it shows as interrupted"
        );
    }
}

/// A sealed credential of a subscription could not be opened.
pub struct CredentialNotOpened<'a> {
    pub subscription: Shown<'a>,
    pub field: &'a str,
    pub error: Cause<'a>,
}

impl CredentialNotOpened<'_> {
    pub fn emit(self) {
        let Self { subscription, field, error } = self;
        tracing::error!(%subscription, field, %error, "cannot open a sealed credential");
    }
}

/// A job ended, and its final state is stored.
pub struct BulkJobEnded<'a> {
    pub job: &'a BulkJob,
}

impl BulkJobEnded<'_> {
    pub fn emit(self) {
        let BulkJob { id, kind, state, total, done, by, .. } = self.job;
        tracing::info!(job = %id, %kind, %state, total, done, by, "bulk job ended");
    }
}
