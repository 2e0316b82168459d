//! Waits at the start until this process agrees with the others of its hub, and watches the agreement while it runs. A
//! process that does not agree is not ready, and takes no work; it finishes the work in progress.

use std::time::Duration;

use super::waiting::Waiting;
use crate::domain::shared_settings::{Difference, SharedSettings, UnreadableRecord, in_one_line};
use crate::facts::{
    BucketNotRestored, BucketRestored, DomainLeftBehind, RecordedAgain, RecordsNotMended, RecordsRight,
    RegistryFound, RegistryLost, SettingsAgree, SettingsDiffer, SettingsReplaced, SettingsUnreadable,
};
use crate::health::{Readiness, ReadyFlag};
use crate::nats::definitions::StreamParameters;
use crate::nats::provision::join::{self, Joinable, Joining};
use crate::nats::provision::mending;
use crate::nats::provision::{ProvisionError, Provisioned};
use crate::nats::{Agreement, Damage, JetStream, Looked, NatsError};

/// How often a process compares itself with what is recorded.
const LOOK: Duration = Duration::from_secs(2);
/// Looks between two tries after a failure: a minute.
const RETRY_AFTER: u32 = 30;
/// The parts at `/readyz`, and the subjects of its notes.
const NOTES: [&str; 2] = ["registry of the hub", "settings of the hub"];
/// The subject of the warning about damaged records, with which a process works on.
const RECORDS: &str = "records of the hub";

/// Watches the agreement of a process that has joined.
pub(super) struct Watch {
    js: JetStream,
    parameters: StreamParameters,
    settings: SharedSettings,
    report: Report,
    records: Retry,
    buckets: Retry,
}

/// Spaces the tries of something that has failed, which was logged.
#[derive(Default)]
struct Retry {
    /// Looks until the next try; 0 if the last one did not fail.
    looks: u32,
}

impl Retry {
    fn is_due(&mut self) -> bool {
        self.looks = self.looks.saturating_sub(u32::from(self.looks > 1));
        self.looks <= 1
    }

    /// True for the first failure in a row.
    fn failed(&mut self) -> bool {
        std::mem::replace(&mut self.looks, RETRY_AFTER) == 0
    }

    fn done(&mut self) {
        self.looks = 0;
    }
}

/// What prevents the process from working, at `/readyz` and in the log.
struct Report {
    readiness: Readiness,
    settings_ready: ReadyFlag,
    registry_ready: ReadyFlag,
    differences: Vec<Difference>,
    /// The recorded settings are unreadable.
    unreadable: Option<UnreadableRecord>,
    /// The reported loss of the registry.
    registry: Option<std::mem::Discriminant<NatsError>>,
    /// The reported damage of the records.
    damage: Option<String>,
}

impl Report {
    fn new(readiness: &Readiness) -> Self {
        Self {
            readiness: readiness.clone(),
            settings_ready: readiness.cause(NOTES[1]),
            registry_ready: readiness.cause(NOTES[0]),
            differences: Vec::new(),
            unreadable: None,
            registry: None,
            damage: None,
        }
    }

    fn is_good(&self) -> bool {
        self.differences.is_empty() && self.unreadable.is_none() && self.registry.is_none()
    }

    fn settings(&mut self, differences: Vec<Difference>, error: &(dyn std::error::Error + 'static)) {
        if self.differences != differences {
            self.readiness.note(NOTES[1], Some(error.to_string()));
            SettingsDiffer { error }.emit();
            self.differences = differences;
            self.unreadable = None;
        }
        self.settings_ready.set(false);
    }

    fn settings_unreadable(&mut self, source: UnreadableRecord) {
        if self.unreadable.as_ref() != Some(&source) {
            let error = NatsError::SettingsUnreadable { source: source.clone() };
            self.readiness.note(NOTES[1], Some(error.to_string()));
            SettingsUnreadable { error: &error }.emit();
            self.differences.clear();
            self.unreadable = Some(source);
        }
        self.settings_ready.set(false);
    }

    fn settings_agree(&mut self) {
        if !self.differences.is_empty() || self.unreadable.is_some() {
            self.differences.clear();
            self.unreadable = None;
            self.readiness.note(NOTES[1], None);
            SettingsAgree.emit();
        }
        self.settings_ready.set(true);
    }

    fn registry(&mut self, error: &NatsError) {
        let loss = Some(std::mem::discriminant(error));
        if self.registry != loss {
            self.readiness.note(NOTES[0], Some(error.to_string()));
            let only_its_id = matches!(error, NatsError::RegistryIdDamaged { .. });
            RegistryLost { error, only_its_id }.emit();
            self.registry = loss;
        }
        self.registry_ready.set(false);
    }

    /// The process works on, so it stays ready.
    fn damage(&mut self, damage: &Damage, error: &NatsError) {
        let damage = damage.error();
        let text = damage.to_string();
        if self.damage.as_ref() != Some(&text) {
            RecordsNotMended { damage: &damage, error }.emit();
            self.readiness.note(RECORDS, Some(text.clone()));
            self.damage = Some(text);
        }
    }

    fn no_damage(&mut self) {
        if self.damage.take().is_some() {
            self.readiness.note(RECORDS, None);
            RecordsRight.emit();
        }
    }

    fn registry_found(&mut self) {
        if self.registry.take().is_some() {
            self.readiness.note(NOTES[0], None);
            RegistryFound.emit();
        }
        self.registry_ready.set(true);
    }
}

/// Provisions, and waits until the registry is usable and the settings agree.
pub(super) async fn enter(
    js: &JetStream,
    parameters: &StreamParameters,
    settings: SharedSettings,
    readiness: &Readiness,
    waiting: &Waiting,
) -> Result<(Provisioned, Watch), ProvisionError> {
    let mut report = Report::new(readiness);
    let done = loop {
        match join::join(js, parameters, &settings, Joining::Serve).await {
            Ok(done) => break done,
            Err(ProvisionError::SettingsDiffer { differences, by }) => {
                report.registry_found();
                let error = ProvisionError::SettingsDiffer { differences: differences.clone(), by };
                report.settings(differences, &error);
            }
            Err(ProvisionError::Nats(NatsError::SettingsUnreadable { source })) => {
                report.registry_found();
                report.settings_unreadable(source);
            }
            Err(ProvisionError::Nats(error)) if error.is_registry_lost() => {
                // Both may be damaged.
                match join::check_joining(js, &settings).await {
                    Ok(Joinable { unreadable: Some(NatsError::SettingsUnreadable { source }), .. }) => {
                        report.settings_unreadable(source);
                    }
                    _ => report.settings_agree(),
                }
                report.registry(&error);
            }
            // Also of a new stream, whose leader is elected later. A process that waits for its settings or for the registry goes
            // on waiting.
            Err(error) if error.may_pass() && (waiting.has_time() || !report.is_good()) => {
                waiting.not_yet(&error);
                tokio::time::sleep(LOOK).await;
                continue;
            }
            Err(error) => return Err(error),
        }
        waiting.answered();
        tokio::time::sleep(LOOK).await;
    };
    waiting.answered();
    js.work_with(settings.clone());
    report.registry_found();
    report.settings_agree();
    if !done.replaced.is_empty() {
        SettingsReplaced { differences: &in_one_line(&done.replaced) }.emit();
    }
    for (domain, envelopes) in &done.left_behind {
        DomainLeftBehind { domain, envelopes: *envelopes }.emit();
    }
    for (bucket, lost) in &done.lost {
        BucketRestored { bucket, lost }.emit();
    }
    let (js, parameters) = (js.clone(), parameters.clone());
    let watch =
        Watch { js, parameters, settings, report, records: Retry::default(), buckets: Retry::default() };
    Ok((done, watch))
}

impl Watch {
    /// Never returns.
    pub(super) async fn run(mut self) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look().await;
        }
    }

    async fn look(&mut self) {
        // The connection's own state is at `/readyz` already.
        let Ok(looked) = self.js.look().await else { return };
        match &looked.registry {
            None => self.report.registry_found(),
            Some(error) => self.report.registry(error),
        }
        match &looked.agreement {
            Agreement::Agreed => self.report.settings_agree(),
            Agreement::Differs(differences) => {
                let error = NatsError::SettingsDiffer { differences: in_one_line(differences) };
                self.report.settings(differences.clone(), &error);
            }
            Agreement::Unreadable(source) if !looked.works() => {
                self.report.settings_unreadable(source.clone());
            }
            Agreement::NotRecorded | Agreement::Unreadable(_) => {}
        }
        self.mend_records(&looked).await;
        if self.report.is_good() {
            self.restore_buckets().await;
        }
    }

    /// Records again what is missing or damaged and known.
    async fn mend_records(&mut self, looked: &Looked) {
        let Some(damage) = looked.damage() else {
            self.records.done();
            return self.report.no_damage();
        };
        if !self.records.is_due() {
            return;
        }
        match mending::record_again(&self.js, &self.settings).await {
            Ok(true) => {
                RecordedAgain { problem: &damage.problem }.emit();
                self.records.done();
                self.report.no_damage();
            }
            // Another process changes them; the next look shows what is there.
            Ok(false) => {}
            // The connection's own state is at `/readyz` already.
            Err(_) if !self.js.is_answering() => {}
            // A user of a single role may not change streams.
            Err(error) => {
                self.records.failed();
                self.report.damage(&damage, &error);
            }
        }
    }

    /// Creates the other buckets again.
    async fn restore_buckets(&mut self) {
        if !self.buckets.is_due() {
            return;
        }
        match join::restore_other_buckets(&self.js, &self.parameters).await {
            Ok(restored) => {
                for (bucket, lost) in &restored {
                    BucketRestored { bucket, lost }.emit();
                }
                self.buckets.done();
            }
            // A user of a single role may not create buckets; `hub provision` does.
            Err(error) => {
                if self.buckets.failed() {
                    BucketNotRestored { error: &error }.emit();
                }
            }
        }
    }
}
