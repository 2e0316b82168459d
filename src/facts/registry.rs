//! The registry and the other buckets: their loss and their return.

use super::Cause;

/// The registry is missing or was replaced.
pub struct RegistryLost<'a> {
    pub error: Cause<'a>,
    /// Its recorded id is damaged. A process at work goes on with the bucket that it knows.
    pub only_its_id: bool,
}

impl RegistryLost<'_> {
    pub fn emit(self) {
        let Self { error, only_its_id } = self;
        if only_its_id {
            tracing::error!(%error, "the recorded id of the subscription registry is damaged");
        } else {
            tracing::error!(%error, "the subscription registry is lost, events wait");
        }
    }
}

/// The registry was restored or accepted.
pub struct RegistryFound;

impl RegistryFound {
    pub fn emit(self) {
        tracing::info!("the subscription registry is usable again");
    }
}

/// A bucket of a running hub was missing and is created again, empty.
pub struct BucketRestored<'a> {
    pub bucket: &'a str,
    pub lost: &'a str,
}

impl BucketRestored<'_> {
    pub fn emit(self) {
        let Self { bucket, lost } = self;
        tracing::error!(bucket, lost, "a bucket was missing and is created again, empty");
    }
}

/// A missing bucket could not be created again.
pub struct BucketNotRestored<'a> {
    pub error: Cause<'a>,
}

impl BucketNotRestored<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::warn!(
            %error,
            remedy = "run `hub provision` as a user that may create buckets",
            "a missing bucket is not created again, will retry"
        );
    }
}
