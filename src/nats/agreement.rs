//! What a process must agree on with the others of its hub before it works: the shared settings, and the identity of the
//! registry. Both are recorded as metadata of the events stream, which every role may read and which lives exactly as
//! long as the events.
//!
//! The registry's bucket carries an id (its creation time when it was recorded). If the bucket is missing, or is not the
//! recorded one, nobody may conclude from its contents that a subscription does not exist.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

use super::clock::ServerClock;
use super::connection::JetStream;
use super::error::NatsError;
use super::stream_api::StreamInfo;
use crate::domain::shared_settings::{
    Difference, RecordedBy, RecordedSettings, SharedSettings, UnreadableRecord, in_one_line,
};

/// Key of the recorded settings in the metadata of the events stream.
pub(super) const SETTINGS: &str = "hub.settings";
/// Key of the registry's id in the metadata of the events stream and of the bucket.
pub(super) const REGISTRY: &str = "hub.registry";

/// State that all clones of a connection share.
#[derive(Debug)]
pub(super) struct SharedState {
    pub(super) clock: ServerClock,
    /// What this process works with; unset in commands.
    settings: OnceLock<SharedSettings>,
    /// True while this process may take work.
    open: watch::Sender<bool>,
    /// The recorded id of the registry, as this process last read it.
    registry: Mutex<Option<String>>,
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
        self.registry()
            .as_deref()
            .is_none_or(|id| RegistryState::of_bucket(id, bucket) == RegistryState::Present)
    }

    fn registry(&self) -> MutexGuard<'_, Option<String>> {
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
        let Some(own) = self.shared().settings.get() else { return Ok(Agreement::Agreed) };
        let recorded = match self.stream_info(&self.names().events_stream()).await {
            Ok(events) => recorded_settings(&events),
            Err(error) if error.is_stream_missing() => Ok(None),
            Err(error) => return Err(error),
        };
        let (agreement, open) = match recorded {
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
        Ok(agreement)
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

    /// Who had recorded the settings when those of this process agreed last.
    pub(super) fn agreed_with(&self) -> Option<RecordedBy> {
        *self.shared().recorded_by()
    }

    /// Records settings, and the id of the registry if it is known, in the events stream. A later writer wins: each
    /// process compares after it has written.
    pub(super) async fn record(
        &self,
        settings: &SharedSettings,
        by: RecordedBy,
        registry: Option<&str>,
    ) -> Result<(), NatsError> {
        let stream = self.names().events_stream();
        let info = self.stream_info(&stream).await?;
        let record = RecordedSettings { by, settings: settings.clone() };
        let mut fields = vec![(SETTINGS, record.to_text())];
        fields.extend(registry.map(|id| (REGISTRY, id.to_owned())));
        self.set_metadata(&stream, &info, &fields).await
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

    /// Reads which bucket is recorded as the registry, and fails if the bucket is missing or another one. Whoever concludes
    /// from the bucket that a subscription does not exist calls this first.
    pub async fn check_registry(&self) -> Result<(), NatsError> {
        let events = self.find_stream(&self.names().events_stream()).await?;
        let bucket = self.names().subscriptions_stream();
        let info = self.find_stream(&bucket).await?;
        let recorded = events.as_ref().and_then(|events| metadata(events, REGISTRY)).map(str::to_owned);
        // If somebody removed the record, this process still knows which bucket it was.
        let id = recorded.or_else(|| self.shared().registry().clone());
        let state = match (&info, &id) {
            (Some(info), Some(id)) => RegistryState::of_bucket(id, info),
            _ => RegistryState::of(events.as_ref(), info.as_ref()),
        };
        if let Some(lost) = state.loss(bucket) {
            return Err(lost);
        }
        *self.shared().registry() = id;
        Ok(())
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

/// The registry's bucket compared with what the events stream records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RegistryState {
    /// Neither the events stream nor the bucket exists.
    New,
    /// The bucket exists, and is the recorded one or none is recorded.
    Present,
    /// The events stream exists, and the bucket does not.
    Missing,
    /// The bucket is not the recorded one: it was deleted and created again.
    Replaced,
    /// The recorded id is not one that a bucket can have.
    Damaged,
}

impl RegistryState {
    /// `events` must be read first: provisioning creates the bucket before the events stream.
    pub(super) fn of(events: Option<&StreamInfo>, bucket: Option<&StreamInfo>) -> Self {
        match (events, bucket) {
            (None, None) => Self::New,
            (Some(_), None) => Self::Missing,
            (events, Some(bucket)) => {
                let id = events.and_then(|events| metadata(events, REGISTRY));
                id.map_or(Self::Present, |id| Self::of_bucket(id, bucket))
            }
        }
    }

    /// A bucket compared with the recorded id.
    fn of_bucket(id: &str, bucket: &StreamInfo) -> Self {
        // An empty bucket with a copied configuration has the id, but not the creation time. The recorded bucket has the
        // creation time, whatever somebody did to its configuration.
        let carries_id = metadata(bucket, REGISTRY) == Some(id) && bucket.state.last_seq > 0;
        if !is_registry_id(id) {
            Self::Damaged
        } else if bucket.created == id || carries_id {
            Self::Present
        } else {
            Self::Replaced
        }
    }

    /// The error of a bucket in this state that is not the registry.
    pub(super) fn loss(self, bucket: String) -> Option<NatsError> {
        match self {
            Self::Present => None,
            Self::New | Self::Missing => Some(NatsError::RegistryMissing { bucket }),
            Self::Replaced => Some(NatsError::RegistryReplaced { bucket }),
            Self::Damaged => Some(NatsError::RegistryIdDamaged { bucket }),
        }
    }
}

/// Whether a text can be the id of a registry, which is the creation time of its bucket.
pub(super) fn is_registry_id(text: &str) -> bool {
    text.len() <= 64 && OffsetDateTime::parse(text, &Rfc3339).is_ok()
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

    fn stream(created: &str, last_seq: u64, id: Option<&str>) -> StreamInfo {
        let metadata = id.map_or_else(|| json!({}), |id| json!({REGISTRY: id}));
        serde_json::from_value(json!({
            "created": created, "config": {"metadata": metadata},
            "state": {"messages": last_seq, "bytes": 0, "first_seq": 1, "last_seq": last_seq},
        }))
        .unwrap()
    }

    const T1: &str = "2027-01-15T08:00:00.123456789Z";
    const T2: &str = "2027-01-15T09:00:00Z";

    #[test]
    fn only_the_recorded_bucket_is_the_registry() {
        use RegistryState::{Missing, New, Present, Replaced};
        let recorded = stream("e", 9, Some(T1));
        let older = stream("e", 9, None);
        let cases = [
            (None, None, New),
            (Some(&recorded), None, Missing),
            (Some(&older), None, Missing),
            (None, Some(stream(T1, 3, Some(T1))), Present),
            (Some(&older), Some(stream(T1, 3, None)), Present),
            (Some(&recorded), Some(stream(T1, 3, Some(T1))), Present),
            (Some(&recorded), Some(stream(T1, 0, Some(T1))), Present),
            // Somebody removed or damaged the metadata of the bucket.
            (Some(&recorded), Some(stream(T1, 3, None)), Present),
            (Some(&recorded), Some(stream(T1, 3, Some("nonsense"))), Present),
            (Some(&recorded), Some(stream(T1, 0, Some(T2))), Present),
            // Restored from a snapshot of the stream.
            (Some(&recorded), Some(stream(T2, 3, Some(T1))), Present),
            (Some(&recorded), Some(stream(T2, 0, Some(T1))), Replaced),
            (Some(&recorded), Some(stream(T2, 0, None)), Replaced),
            (Some(&recorded), Some(stream(T2, 5, None)), Replaced),
            (Some(&recorded), Some(stream(T2, 5, Some(T2))), Replaced),
        ];
        for (events, bucket, expected) in cases {
            assert_eq!(RegistryState::of(events, bucket.as_ref()), expected, "{events:?} {bucket:?}");
        }
    }

    #[test]
    fn a_damaged_id_is_no_registry_even_if_the_bucket_has_the_same() {
        let huge = "9".repeat(100_000);
        for id in ["", " ", "nonsense", "{}", "2027-01-15", "2027-99-15T08:00:00Z", "*", &huge] {
            let events = stream("e", 9, Some(id));
            for bucket in [stream(T1, 3, Some(T1)), stream(T1, 3, Some(id)), stream(T1, 0, None)] {
                assert_eq!(RegistryState::of(Some(&events), Some(&bucket)), RegistryState::Damaged);
            }
            assert_eq!(RegistryState::of(Some(&events), None), RegistryState::Missing);
        }
    }
}
