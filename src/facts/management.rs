//! The operations of the command line and the API.

use super::Cause;
use super::limited::{About, limited};
use crate::domain::bulk_job::{BulkJob, BulkJobId, BulkJobState};
use crate::domain::subscription::SubscriptionRef;

/// A published event was stored, and the id that recognizes a repetition was not.
pub struct PublishedIdNotRecorded<'a> {
    pub error: Cause<'a>,
}

impl PublishedIdNotRecorded<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        limited!(WARN "could not record the id of a published event", About::default().cause(error); %error);
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
        limited!(
            WARN "could not write the progress of a bulk job", About::default().cause(error);
            %job, %error
        );
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
    pub subscription: &'a SubscriptionRef,
    pub field: &'a str,
    pub error: Cause<'a>,
}

impl CredentialNotOpened<'_> {
    pub fn emit(self) {
        let Self { subscription, field, error } = self;
        limited!(
            ERROR "cannot open a sealed credential", About::default().of(subscription).with(field);
            tenant = subscription.tenant(), subscription = subscription.id(), field, %error
        );
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
