//! What a process must agree on with the others of its hub: shared settings and the registry.

use super::{Cause, Shown};

/// The settings of this process differ from the recorded ones: it takes no work.
pub struct SettingsDiffer<'a> {
    pub error: Cause<'a>,
}

impl SettingsDiffer<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::error!(%error, "shared settings differ, this process takes no work");
    }
}

/// The settings of this process are the recorded ones again.
pub struct SettingsAgree;

impl SettingsAgree {
    pub fn emit(self) {
        tracing::info!("shared settings agree, this process takes work");
    }
}

/// This process replaced the recorded settings, because no other process was at work.
pub struct SettingsReplaced<'a> {
    pub differences: Shown<'a>,
}

impl SettingsReplaced<'_> {
    pub fn emit(self) {
        let Self { differences } = self;
        tracing::info!(%differences, "recorded the settings of this process, no other process was at work");
    }
}

/// The settings no longer have a domain whose outbox has envelopes.
pub struct DomainLeftBehind<'a> {
    pub domain: &'a str,
    pub envelopes: usize,
}

impl DomainLeftBehind<'_> {
    pub fn emit(self) {
        let Self { domain, envelopes } = self;
        tracing::warn!(
            domain,
            envelopes,
            "a removed domain has envelopes in its outbox, add it again to deliver them"
        );
    }
}

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

/// The agreement could not be checked, recorded or restored; it is tried again.
pub struct AgreementNotKept<'a> {
    pub error: Cause<'a>,
}

impl AgreementNotKept<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::warn!(%error, "cannot record shared settings or create a missing bucket, will retry");
    }
}
