//! Waits at the start until this process agrees with the others of its hub, and watches the agreement while it runs. A
//! process that does not agree is not ready, and takes no work; it finishes the work in progress.

use std::time::Duration;

use crate::domain::shared_settings::{Difference, SharedSettings, UnreadableRecord, in_one_line};
use crate::facts::{
    BucketNotRestored, BucketRestored, DomainLeftBehind, NotProvisionedYet, RecordedAgain, RegistryFound,
    RegistryLost, SettingsAgree, SettingsDiffer, SettingsNotRecorded, SettingsReplaced, SettingsUnreadable,
};
use crate::health::{Readiness, ReadyFlag};
use crate::nats::definitions::StreamParameters;
use crate::nats::provision::join::{self, Joining};
use crate::nats::provision::{ProvisionError, Provisioned};
use crate::nats::{Agreement, JetStream, NatsError};

/// How often a process compares itself with what is recorded.
const LOOK: Duration = Duration::from_secs(2);
/// Looks between two tries after a failure: a minute.
const RETRY_AFTER: u32 = 30;
/// The parts at `/readyz`, and the subjects of its notes.
const NOTES: [&str; 2] = ["registry of the hub", "settings of the hub"];

/// Watches the agreement of a process that has joined.
pub(super) struct Watch {
    js: JetStream,
    parameters: StreamParameters,
    settings: SharedSettings,
    report: Report,
    /// Looks until something missing is created again after a failure, which was logged.
    retry_in: u32,
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
}

impl Report {
    fn new(readiness: &Readiness) -> Self {
        Self {
            readiness: readiness.clone(),
            settings_ready: readiness.part(NOTES[1]),
            registry_ready: readiness.part(NOTES[0]),
            differences: Vec::new(),
            unreadable: None,
            registry: None,
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

    fn registry_found(&mut self) {
        if self.registry.take().is_some() {
            self.readiness.note(NOTES[0], None);
            RegistryFound.emit();
        }
        self.registry_ready.set(true);
    }
}

/// Provisions, and waits until the registry is usable and the settings agree. `patience`: how long an answer of a starting
/// server may take.
pub(super) async fn enter(
    js: &JetStream,
    parameters: &StreamParameters,
    settings: SharedSettings,
    readiness: &Readiness,
    patience: Duration,
) -> Result<(Provisioned, Watch), ProvisionError> {
    let mut report = Report::new(readiness);
    let deadline = tokio::time::Instant::now() + patience;
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
                report.settings_agree();
                report.registry(&error);
            }
            // On a cluster a new stream answers only after its leader is elected.
            Err(ProvisionError::Nats(
                error @ (NatsError::Timeout { .. } | NatsError::ConnectionLost { .. }),
            )) if tokio::time::Instant::now() < deadline || !report.is_good() => {
                NotProvisionedYet { error: &error }.emit();
                continue;
            }
            // A process that already waits goes on waiting.
            Err(ProvisionError::Nats(error)) if error.is_unreachable() && !report.is_good() => {
                NotProvisionedYet { error: &error }.emit();
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(LOOK).await;
    };
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
    let watch = Watch { js: js.clone(), parameters: parameters.clone(), settings, report, retry_in: 0 };
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
        match self.js.check_registry().await {
            Ok(()) => self.report.registry_found(),
            Err(error) if error.is_registry_lost() => self.report.registry(&error),
            // The connection's own state is at `/readyz` already.
            Err(_) => return,
        }
        match self.js.settings_agree().await {
            Ok(Agreement::Agreed) => self.report.settings_agree(),
            Ok(Agreement::Differs(differences)) => {
                let error = NatsError::SettingsDiffer { differences: in_one_line(&differences) };
                self.report.settings(differences, &error);
            }
            Ok(Agreement::Unreadable(newer)) if newer.is_newer() => self.report.settings_unreadable(newer),
            Ok(Agreement::NotRecorded | Agreement::Unreadable(_)) | Err(_) => {}
        }
        if self.report.is_good() {
            self.keep().await;
        }
    }

    /// Records again what is missing, and creates the other buckets again.
    async fn keep(&mut self) {
        if self.retry_in > 1 {
            self.retry_in -= 1;
            return;
        }
        let is_new = self.retry_in == 0;
        match join::record_again(&self.js, &self.settings).await {
            Ok(Some(done)) => RecordedAgain { unreadable: done.unreadable.as_ref() }.emit(),
            Ok(None) => {}
            // It was lost since the look.
            Err(error) if error.is_registry_lost() => return self.report.registry(&error),
            Err(error) => {
                if is_new {
                    SettingsNotRecorded { error: &error }.emit();
                }
                self.retry_in = RETRY_AFTER;
                return;
            }
        }
        match join::restore_other_buckets(&self.js, &self.parameters).await {
            Ok(restored) => {
                for (bucket, lost) in &restored {
                    BucketRestored { bucket, lost }.emit();
                }
                self.retry_in = 0;
            }
            // A user of a single role may not create buckets; `hub provision` does.
            Err(error) => {
                if is_new {
                    BucketNotRestored { error: &error }.emit();
                }
                self.retry_in = RETRY_AFTER;
            }
        }
    }
}
