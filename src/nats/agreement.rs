//! What a process must agree on with the others of its hub before it works: the shared settings, and the identity of the
//! registry. Both are recorded as metadata of the events stream, which every role may read and which lives exactly as
//! long as the events.
//!
//! The registry's bucket carries an id (its creation time when it was recorded). If the bucket is missing, or is not the
//! recorded one, nobody may conclude from its contents that a subscription does not exist. `agreement` in the core decides
//! what a look at these records means.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::clock::ServerClock;
use super::connection::JetStream;
use super::error::NatsError;
use super::stream_api::StreamInfo;
use super::subjects::SubjectNames;
use crate::domain::agreement::{
    AgreementDecision, KnownRegistry, RecordsLook, RegistryBucket, RegistryState, SettingsRecord, is_known,
    is_registry_id,
};
use crate::domain::shared_settings::{
    Difference, RecordedBy, RecordedSettings, SharedSettings, UnreadableRecord, in_one_line,
};

/// Key of the recorded settings in the metadata of the events stream.
pub(super) const SETTINGS: &str = "hub.settings";
/// Key of the registry's id in the metadata of the events stream and of the bucket.
pub(super) const REGISTRY: &str = "hub.registry";
/// Key, in the metadata of the bucket, of the creation time of the bucket that an operator accepted as the registry.
pub(super) const ACCEPTED: &str = "hub.registry.accepted";

/// State that all clones of a connection share.
#[derive(Debug)]
pub(super) struct SharedState {
    pub(super) clock: ServerClock,
    /// What this process works with; unset in commands.
    settings: OnceLock<SharedSettings>,
    /// True while this process may take work.
    open: watch::Sender<bool>,
    /// The registry, as this process last found it.
    registry: Mutex<Option<KnownRegistry>>,
    /// Who had recorded the settings when they agreed last.
    recorded_by: Mutex<Option<RecordedBy>>,
    /// The shortest `ack_wait` of the consumers that this process reads, by stream.
    ack_waits: Mutex<HashMap<String, Duration>>,
}

impl Default for SharedState {
    fn default() -> Self {
        Self {
            clock: ServerClock::default(),
            settings: OnceLock::new(),
            open: watch::Sender::new(true),
            registry: Mutex::default(),
            recorded_by: Mutex::default(),
            ack_waits: Mutex::default(),
        }
    }
}

impl SharedState {
    pub(super) fn gate(&self) -> WorkGate {
        WorkGate(self.open.subscribe())
    }

    pub(super) fn note_ack_wait(&self, stream: &str, ack_wait: Duration) {
        let mut known = self.ack_waits.lock().unwrap_or_else(PoisonError::into_inner);
        let shortest = known.entry(stream.to_owned()).or_insert(ack_wait);
        *shortest = ack_wait.min(*shortest);
    }

    pub(super) fn shortest_ack_wait(&self, stream: &str) -> Option<Duration> {
        self.ack_waits.lock().unwrap_or_else(PoisonError::into_inner).get(stream).copied()
    }

    /// Whether a bucket is the registry, as far as this process knows.
    fn is_registry(&self, bucket: &StreamInfo) -> bool {
        self.registry().as_ref().is_none_or(|known| is_known(&as_bucket(bucket), known))
    }

    fn registry(&self) -> MutexGuard<'_, Option<KnownRegistry>> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recorded_by(&self) -> MutexGuard<'_, Option<RecordedBy>> {
        self.recorded_by.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Open while the settings of this process agree with the recorded ones. Readers request nothing while it is closed.
#[derive(Debug, Clone)]
pub struct WorkGate(watch::Receiver<bool>);

impl WorkGate {
    pub fn is_open(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is open. Cancel-safe.
    pub async fn opened(&mut self) {
        self.wait_for(true).await;
    }

    /// Waits until it is closed. Cancel-safe.
    pub async fn closed(&mut self) {
        self.wait_for(false).await;
    }

    async fn wait_for(&mut self, open: bool) {
        // The connection, which has the sender, ends only with the process.
        if self.0.wait_for(|now| *now == open).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Whether the settings of this process are the recorded ones.
#[derive(Debug, Clone, PartialEq)]
pub enum Agreement {
    Agreed,
    /// Nothing is recorded, or there is no events stream.
    NotRecorded,
    /// Something else is recorded. If it is damaged, a process that agreed before goes on, and records its settings again.
    Unreadable(UnreadableRecord),
    Differs(Vec<Difference>),
}

/// What a look at the records of the hub has found.
#[derive(Debug)]
pub struct Looked {
    /// Why the registry cannot be used.
    pub registry: Option<NatsError>,
    pub agreement: Agreement,
    pub(super) decision: AgreementDecision,
    pub(super) records: Records,
}

/// The parts of the hub that have its records.
#[derive(Debug)]
pub(super) struct Records {
    pub(super) events: Option<StreamInfo>,
    /// Another stream or bucket exists; not read if the events stream exists.
    has_others: bool,
    pub(super) bucket: Option<StreamInfo>,
}

/// Records that are missing or damaged, although this process knows them.
#[derive(Debug)]
pub struct Damage {
    pub problem: String,
    /// Nobody else can know that the bucket is the registry.
    accept: bool,
}

impl Damage {
    /// The error of a process that cannot record them again.
    pub fn error(&self) -> NatsError {
        NatsError::RecordsDamaged { problem: self.problem.clone(), accept: self.accept }
    }
}

impl Looked {
    /// Whether this process takes work and makes deleted parts again.
    pub fn works(&self) -> bool {
        self.decision.works
    }

    /// What this process is to record again; `None` if the records are right, or it cannot know them.
    pub fn damage(&self) -> Option<Damage> {
        let AgreementDecision { write_settings, write_id, write_bucket, .. } = &self.decision;
        let mut problems = Vec::new();
        if *write_settings {
            problems.push(match &self.agreement {
                Agreement::Unreadable(source) => format!("settings: {source}"),
                _ => "the settings are missing".to_owned(),
            });
        }
        let recorded = self.records.events.as_ref().and_then(|events| metadata(events, REGISTRY));
        if write_id.is_some() {
            problems.push(match recorded {
                None => "the id of the registry is missing".to_owned(),
                Some(id) if is_registry_id(id) => "the id is that of another registry".to_owned(),
                Some(_) => "the id of the registry is damaged".to_owned(),
            });
        }
        if write_bucket.is_some() {
            problems.push("the bucket of the registry lacks its id".to_owned());
        }
        let accept = write_id.is_some() && recorded.is_some();
        (!problems.is_empty()).then(|| Damage { problem: problems.join(", "), accept })
    }
}

impl JetStream {
    /// The time of the server.
    pub fn now(&self) -> OffsetDateTime {
        self.shared().clock.now()
    }

    /// Open while this process may take work.
    pub fn gate(&self) -> WorkGate {
        self.shared().gate()
    }

    /// Sets what this process works with. Later calls have no effect.
    pub fn work_with(&self, settings: SharedSettings) {
        self.shared().settings.get_or_init(|| settings);
    }

    /// Compares the settings of this process with the recorded ones, and opens or closes the gate. A connection without
    /// settings, such as that of a command, always agrees.
    pub async fn settings_agree(&self) -> Result<Agreement, NatsError> {
        if self.shared().settings.get().is_none() {
            return Ok(Agreement::Agreed);
        }
        let events = self.find_stream(&self.names().events_stream()).await?;
        Ok(self.compare(events.as_ref()))
    }

    fn compare(&self, events: Option<&StreamInfo>) -> Agreement {
        let Some(own) = self.shared().settings.get() else { return Agreement::Agreed };
        let (agreement, open) = match events.map_or(Ok(None), recorded_settings) {
            Ok(None) => (Agreement::NotRecorded, None),
            Ok(Some(recorded)) => match own.differences(&recorded.settings) {
                differences if differences.is_empty() => {
                    *self.shared().recorded_by() = Some(recorded.by);
                    (Agreement::Agreed, Some(true))
                }
                differences => (Agreement::Differs(differences), Some(false)),
            },
            Err(newer) if newer.is_newer() => (Agreement::Unreadable(newer), Some(false)),
            // What is not known changes nothing.
            Err(damaged) => (Agreement::Unreadable(damaged), None),
        };
        if let Some(open) = open {
            self.shared().open.send_if_modified(|now| std::mem::replace(now, open) != open);
        }
        agreement
    }

    /// Whether this process may make deleted streams and consumers again: not if its settings differ from the recorded
    /// ones, because the others need other parts. Damage of the records changes nothing.
    pub(super) async fn makes_parts(&self) -> bool {
        self.settings_agree().await.is_ok() && self.gate().is_open()
    }

    /// Fails if the settings of this process differ from the recorded ones now. Called before input is set aside because
    /// of a setting.
    pub async fn confirm_settings(&self) -> Result<(), NatsError> {
        match self.settings_agree().await? {
            Agreement::Differs(differences) => {
                Err(NatsError::SettingsDiffer { differences: in_one_line(&differences) })
            }
            Agreement::Unreadable(source) => Err(NatsError::SettingsUnreadable { source }),
            Agreement::Agreed | Agreement::NotRecorded => Ok(()),
        }
    }

    /// Records settings and the id of the registry in the events stream. A later writer wins: each process compares after
    /// it has written.
    pub(super) async fn record(
        &self,
        settings: &SharedSettings,
        by: RecordedBy,
        registry: &str,
    ) -> Result<(), NatsError> {
        let stream = self.names().events_stream();
        let info = self.stream_info(&stream).await?;
        self.set_metadata(&stream, &info, &record_fields(settings, by, registry)).await
    }

    /// What the events stream records, as this process knows it; empty if it does not know all of it.
    pub(super) fn known_records(&self) -> Vec<(&'static str, String)> {
        let (settings, registry) = (self.shared().settings.get(), self.shared().registry().clone());
        let (Some(settings), Some(registry)) = (settings, registry) else { return Vec::new() };
        record_fields(settings, self.recorded_by(), &registry.id).into()
    }

    /// Who had recorded the settings of this process.
    pub(super) fn recorded_by(&self) -> RecordedBy {
        self.shared().recorded_by().unwrap_or(RecordedBy::Serve)
    }

    /// Sets fields of a stream's metadata; writes nothing if they have these values.
    pub(super) async fn set_metadata(
        &self,
        stream: &str,
        info: &StreamInfo,
        fields: &[(&str, String)],
    ) -> Result<(), NatsError> {
        if fields.iter().all(|(key, value)| metadata(info, key) == Some(value.as_str())) {
            return Ok(());
        }
        let mut config = info.config.clone();
        put_metadata(&mut config, fields);
        self.api::<Value>(&format!("STREAM.UPDATE.{stream}"), &config).await.map(drop)
    }

    /// The registry's bucket, if it is the one that this process knows.
    pub(super) async fn registry_info(&self) -> Result<StreamInfo, NatsError> {
        let bucket = self.names().subscriptions_stream();
        match self.stream_info(&bucket).await {
            Ok(info) if self.shared().is_registry(&info) => Ok(info),
            Ok(_) => Err(NatsError::RegistryReplaced { bucket }),
            Err(error) if error.is_stream_missing() => Err(NatsError::RegistryMissing { bucket }),
            Err(error) => Err(error),
        }
    }

    /// Compares the bucket with what is recorded and known, and fails if it is missing or another one. Whoever concludes
    /// from the bucket that a subscription does not exist calls this first.
    pub async fn check_registry(&self) -> Result<(), NatsError> {
        let records = self.read_records(&self.own_domains()).await?;
        let AgreementDecision { registry, .. } = self.decide(&records);
        self.take_note(&registry).map_or(Ok(()), Err)
    }

    /// Looks at the records, and opens or closes the gate.
    pub async fn look(&self) -> Result<Looked, NatsError> {
        let records = self.read_records(&self.own_domains()).await?;
        let agreement = self.compare(records.events.as_ref());
        let decision = self.decide(&records);
        let registry = self.take_note(&decision.registry);
        Ok(Looked { registry, agreement, decision, records })
    }

    /// Remembers the registry if it is present; otherwise returns why it cannot be used.
    fn take_note(&self, registry: &RegistryState) -> Option<NatsError> {
        if let RegistryState::Present(known) = registry {
            self.know_registry(known.clone());
        }
        loss(registry, self.names().subscriptions_stream())
    }

    pub(super) fn know_registry(&self, known: KnownRegistry) {
        *self.shared().registry() = Some(known);
    }

    /// The domains of this process; none in commands.
    fn own_domains(&self) -> Vec<&str> {
        self.shared().settings.get().map(SharedSettings::domains).unwrap_or_default()
    }

    /// The events stream and the bucket of the registry, in the order that a [`RecordsLook`] requires.
    pub(super) async fn read_records(&self, domains: &[&str]) -> Result<Records, NatsError> {
        let events = self.find_stream(&self.names().events_stream()).await?;
        let mut has_others = false;
        if events.is_none() {
            for stream in other_streams(self.names(), domains) {
                has_others = self.find_stream(&stream).await?.is_some();
                if has_others {
                    break;
                }
            }
        }
        let bucket = self.find_stream(&self.names().subscriptions_stream()).await?;
        Ok(Records { events, has_others, bucket })
    }

    /// What follows from these records.
    pub(super) fn decide(&self, records: &Records) -> AgreementDecision {
        let events = records.events.as_ref();
        let own = self.shared().settings.get();
        let settings = match events.map_or(Ok(None), recorded_settings) {
            Ok(None) => SettingsRecord::Missing,
            Ok(Some(there)) if own.is_some_and(|own| !own.differences(&there.settings).is_empty()) => {
                SettingsRecord::Differs
            }
            Ok(Some(_)) => SettingsRecord::Agrees,
            Err(newer) if newer.is_newer() => SettingsRecord::Newer,
            Err(_) => SettingsRecord::Damaged,
        };
        let known = self.shared().registry().clone();
        let look = RecordsLook {
            has_events: events.is_some(),
            has_others: records.has_others,
            settings,
            id: events.and_then(|events| metadata(events, REGISTRY)),
            bucket: records.bucket.as_ref().map(as_bucket),
            known: known.as_ref(),
            at_work: own.is_some() && self.gate().is_open(),
        };
        look.decide()
    }

    /// A stream's state; `None` if it does not exist.
    pub(super) async fn find_stream(&self, stream: &str) -> Result<Option<StreamInfo>, NatsError> {
        match self.stream_info(stream).await {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.is_stream_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The error of a bucket in this state that is not the registry.
pub(super) fn loss(state: &RegistryState, bucket: String) -> Option<NatsError> {
    match state {
        RegistryState::Present(_) => None,
        RegistryState::New | RegistryState::Missing => Some(NatsError::RegistryMissing { bucket }),
        RegistryState::Replaced => Some(NatsError::RegistryReplaced { bucket }),
        RegistryState::Damaged => Some(NatsError::RegistryIdDamaged { bucket }),
    }
}

fn as_bucket(info: &StreamInfo) -> RegistryBucket<'_> {
    RegistryBucket {
        created: &info.created,
        id: metadata(info, REGISTRY),
        accepted: metadata(info, ACCEPTED),
        is_empty: info.state.last_seq == 0,
    }
}

/// The streams and buckets of a hub that have none of its records. Those of the domains come first, because envelopes wait
/// there.
fn other_streams(names: &SubjectNames, domains: &[&str]) -> Vec<String> {
    let of_domain = |domain: &&str| [names.outbox_stream(domain), names.dlt_stream(domain)];
    let fixed = [
        names.advisories_stream(),
        names.redrive_stream(),
        names.rejected_stream(),
        names.attempts_stream(),
        names.published_stream(),
        names.tokens_stream(),
        names.bulk_jobs_stream(),
        names.keys_stream(),
    ];
    domains.iter().flat_map(of_domain).chain(fixed).collect()
}

/// The fields by which the events stream records settings and registry.
pub(super) fn record_fields(
    settings: &SharedSettings,
    by: RecordedBy,
    registry: &str,
) -> [(&'static str, String); 2] {
    let record = RecordedSettings { by, settings: settings.clone() };
    [(SETTINGS, record.to_text()), (REGISTRY, registry.to_owned())]
}

/// A field of a stream's metadata.
pub(super) fn metadata<'a>(info: &'a StreamInfo, key: &str) -> Option<&'a str> {
    info.config.get("metadata")?.get(key)?.as_str()
}

/// Sets fields of the metadata of a configuration.
pub(super) fn put_metadata(config: &mut Map<String, Value>, fields: &[(&str, String)]) {
    let entry = config.entry("metadata").or_insert_with(|| json!({}));
    if !entry.is_object() {
        *entry = json!({});
    }
    for (key, value) in fields {
        entry[*key] = json!(value);
    }
}

/// The settings that the events stream records, if any.
pub(super) fn recorded_settings(events: &StreamInfo) -> Result<Option<RecordedSettings>, UnreadableRecord> {
    metadata(events, SETTINGS).map(RecordedSettings::read).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::definitions;

    #[test]
    fn every_part_of_a_hub_shows_that_it_existed() {
        let parameters = definitions::tests::parameters();
        let names = SubjectNames::new(&parameters.prefix);
        let domains: Vec<&str> = parameters.domains.iter().map(String::as_str).collect();
        let mut all = other_streams(&names, &domains);
        all.extend([names.events_stream(), names.subscriptions_stream()]);
        let mut rendered: Vec<String> =
            definitions::render(&parameters).into_iter().map(|stream| stream.name).collect();
        all.sort_unstable();
        rendered.sort_unstable();
        assert_eq!(all, rendered);
    }
}
