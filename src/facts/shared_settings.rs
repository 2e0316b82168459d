//! The settings on which the processes of a hub must agree.

use super::{Cause, Shown};
use crate::domain::shared_settings::UnreadableRecord;

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

/// The record of settings and registry was missing or damaged; this process, which had agreed with it, wrote it again.
pub struct RecordedAgain<'a> {
    /// What was wrong with the settings; `None` if something was missing.
    pub unreadable: Option<&'a UnreadableRecord>,
}

impl RecordedAgain<'_> {
    pub fn emit(self) {
        let Self { unreadable } = self;
        let problem = unreadable.map_or_else(|| "it was incomplete".to_owned(), ToString::to_string);
        tracing::warn!(problem, "recorded the settings and the registry of the hub again");
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

/// The settings of this process could not be recorded in the events stream, which was created again.
pub struct SettingsNotRecorded<'a> {
    pub error: Cause<'a>,
}

impl SettingsNotRecorded<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::warn!(%error, "shared settings not recorded, will retry");
    }
}
