//! The settings on which the processes of a hub must agree.

use super::limited::{About, limited};
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

/// Something else is recorded in the place of the shared settings: this process takes no work.
pub struct SettingsUnreadable<'a> {
    pub error: Cause<'a>,
}

impl SettingsUnreadable<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::error!(%error, "recorded settings are unreadable, this process takes no work");
    }
}

/// The records of settings and registry were missing or damaged; this process, which had agreed with them, wrote them
/// again.
pub struct RecordedAgain<'a> {
    pub problem: &'a str,
}

impl RecordedAgain<'_> {
    pub fn emit(self) {
        let Self { problem } = self;
        limited!(WARN "recorded the settings and the registry of the hub again", About::detail(problem); problem);
    }
}

/// The records are damaged, and this process may not write them. It works on.
pub struct RecordsNotMended<'a> {
    /// With the remedy.
    pub damage: Cause<'a>,
    pub error: Cause<'a>,
}

impl RecordsNotMended<'_> {
    pub fn emit(self) {
        let Self { damage, error } = self;
        limited!(ERROR "records of the hub are damaged and cannot be written, will retry", About::default();
            problem = %damage, %error);
    }
}

/// The damaged records are right again.
pub struct RecordsRight;

impl RecordsRight {
    pub fn emit(self) {
        tracing::info!("records of the hub are right again");
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
