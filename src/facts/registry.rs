//! The registry and the other buckets: their loss and their return.

use super::Cause;

/// The registry is missing or was replaced.
pub struct RegistryLost<'a> {
    pub error: Cause<'a>,
}

impl RegistryLost<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::error!(%error, "the subscription registry is lost, events wait");
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
