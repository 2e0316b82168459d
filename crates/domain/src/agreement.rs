//! What a process concludes from one look at the records of its hub: the settings and the id of the registry in the
//! metadata of the events stream, and the bucket of the registry.
//!
//! Anybody who may change a stream may have written anything there, or removed it. A process at work knows what was
//! recorded, and which bucket it followed. So nonsense changes nothing for it, and it writes the records again. It neither
//! follows nor records another bucket than the one that it knows: only an operator accepts another registry. A bucket is
//! new only if nothing else of the hub exists: otherwise, the events stream and the bucket were deleted.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Most bytes of an id.
const LONGEST_ID: usize = 64;

/// The recorded settings, compared with those of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettingsRecord {
    Missing,
    Agrees,
    Differs,
    /// Of a newer version of the hub, whose processes may be at work.
    Newer,
    /// Anything else.
    Damaged,
}

/// The bucket of the registry, as it is now.
#[derive(Debug, Clone, Copy)]
pub struct RegistryBucket<'a> {
    /// Its creation time, which nobody can edit.
    pub created: &'a str,
    /// The id in its metadata.
    pub id: Option<&'a str>,
    /// The creation time, in its metadata, of the bucket that a command of an operator accepted.
    pub accepted: Option<&'a str>,
    /// Nothing was ever stored in it.
    pub is_empty: bool,
}

/// The registry as a process knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownRegistry {
    pub id: String,
    /// The creation time of its bucket. It differs from the id if the bucket was restored.
    pub created: String,
}

/// What one look has found. The bucket is read last, because provisioning creates it first.
#[derive(Debug, Clone, Copy)]
pub struct RecordsLook<'a> {
    /// Whether the events stream exists.
    pub has_events: bool,
    /// Whether another stream or bucket of the hub exists. It counts only if the events stream does not.
    pub has_others: bool,
    pub settings: SettingsRecord,
    /// The recorded id of the registry.
    pub id: Option<&'a str>,
    pub bucket: Option<RegistryBucket<'a>>,
    /// The registry that this process worked with until now; `None` at its start.
    pub known: Option<&'a KnownRegistry>,
    /// Whether this process worked with its settings until now.
    pub at_work: bool,
}

/// The bucket compared with what is recorded and known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryState {
    /// Nothing of the hub exists, and no registry is known.
    New,
    /// The bucket is the registry.
    Present(KnownRegistry),
    Missing,
    /// The bucket is another one: the registry was deleted and created again.
    Replaced,
    /// Nobody knows whether the bucket is the registry: the recorded id is damaged or was removed.
    Damaged,
}

/// What a process does after a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgreementDecision {
    pub registry: RegistryState,
    /// It takes work, and makes deleted streams and consumers again. Damage alone changes nothing.
    pub works: bool,
    /// It records its settings again.
    pub write_settings: bool,
    /// The id of the registry to record again.
    pub write_id: Option<String>,
    /// The id to write into the bucket.
    pub write_bucket: Option<String>,
}

impl AgreementDecision {
    /// Whether something is to be recorded again.
    pub fn writes(&self) -> bool {
        self.write_settings || self.write_id.is_some() || self.write_bucket.is_some()
    }
}

/// Whether a text can be the id of a registry, which is the creation time of its bucket when it was recorded first.
pub fn is_registry_id(text: &str) -> bool {
    text.len() <= LONGEST_ID && OffsetDateTime::parse(text, &Rfc3339).is_ok()
}

impl RegistryBucket<'_> {
    fn is(&self, id: &str) -> bool {
        // An empty bucket with a copied configuration has the id, but not the creation time. The recorded bucket has the
        // creation time, whatever somebody did to its configuration.
        self.created == id || (self.id == Some(id) && !self.is_empty)
    }

    /// Whether an operator accepted it. A copied configuration names another bucket.
    fn is_accepted(&self) -> bool {
        self.accepted == Some(self.created)
    }

    fn as_registry(&self, id: &str) -> RegistryState {
        RegistryState::Present(KnownRegistry { id: id.to_owned(), created: self.created.to_owned() })
    }
}

/// Whether a bucket is the registry that a process knows.
pub fn is_known(bucket: &RegistryBucket<'_>, known: &KnownRegistry) -> bool {
    bucket.created == known.created || bucket.is(&known.id)
}

impl RecordsLook<'_> {
    pub fn decide(&self) -> AgreementDecision {
        let registry = self.registry();
        let works = match self.settings {
            SettingsRecord::Agrees => true,
            SettingsRecord::Differs | SettingsRecord::Newer => false,
            // What is not known changes nothing.
            SettingsRecord::Missing | SettingsRecord::Damaged => self.at_work,
        };
        let mut decision =
            AgreementDecision { registry, works, write_settings: false, write_id: None, write_bucket: None };
        if works && self.has_events {
            self.mend(&mut decision);
        }
        decision
    }

    fn registry(&self) -> RegistryState {
        let Some(bucket) = &self.bucket else {
            let is_new = !self.has_events && !self.has_others && self.known.is_none();
            return if is_new { RegistryState::New } else { RegistryState::Missing };
        };
        let recorded = self.id.filter(|id| is_registry_id(id));
        if let Some(known) = self.known.filter(|known| known.created == bucket.created) {
            // The same bucket as before, whatever the records say. An operator accepts a bucket under its creation time.
            let accepted = recorded.filter(|id| *id == bucket.created);
            return bucket.as_registry(accepted.unwrap_or(&known.id));
        }
        // A process that knows a registry follows another one only if an operator accepted it, whatever the records say.
        let follows = self.known.is_none_or(|known| is_known(bucket, known) || bucket.is_accepted());
        if let Some(id) = recorded.filter(|id| follows && bucket.is(id)) {
            return bucket.as_registry(id);
        }
        match (self.known, recorded, self.id) {
            // It was restored, and the record is of no use.
            (Some(known), None, _) if bucket.is(&known.id) => bucket.as_registry(&known.id),
            (Some(_), _, _) | (None, Some(_), _) => RegistryState::Replaced,
            (None, None, Some(_)) => RegistryState::Damaged,
            (None, None, None) => self.unrecorded(bucket),
        }
    }

    /// The bucket, if no id is recorded and this process starts.
    fn unrecorded(&self, bucket: &RegistryBucket<'_>) -> RegistryState {
        let own = bucket.id.filter(|id| is_registry_id(id));
        let nothing_recorded = self.settings == SettingsRecord::Missing;
        match own {
            // Only a registry that was accepted has its creation time as its id.
            Some(own) if own == bucket.created => bucket.as_registry(own),
            // The first start: the bucket has its id before any other part exists.
            _ if !self.has_events && !self.has_others => bucket.as_registry(own.unwrap_or(bucket.created)),
            // The bucket was restored, and the streams were created by hand, or the events stream was deleted.
            Some(own) if nothing_recorded && !bucket.is_empty => bucket.as_registry(own),
            Some(_) if nothing_recorded => RegistryState::Replaced,
            // A hub of a version that recorded nothing. If its events stream was deleted, an empty bucket may be a new one.
            None if nothing_recorded && bucket.id.is_none() => {
                if self.has_events || !bucket.is_empty {
                    bucket.as_registry(bucket.created)
                } else {
                    RegistryState::Replaced
                }
            }
            // Settings are never recorded without an id, so somebody removed it.
            _ => RegistryState::Damaged,
        }
    }

    /// Decides what is recorded again: what is missing or damaged, and known for certain.
    fn mend(&self, decision: &mut AgreementDecision) {
        match &decision.registry {
            RegistryState::Present(registry) => {
                let id = &registry.id;
                decision.write_id = (self.id != Some(id)).then(|| id.clone());
                let in_bucket = self.bucket.as_ref().and_then(|bucket| bucket.id);
                decision.write_bucket = (in_bucket != Some(id)).then(|| id.clone());
            }
            // With the id, no other bucket counts as the registry.
            _ if self.id.is_none() => decision.write_id = self.known.map(|known| known.id.clone()),
            _ => {}
        }
        let is_lost = matches!(self.settings, SettingsRecord::Missing | SettingsRecord::Damaged);
        // Never without an id of the registry.
        decision.write_settings = is_lost && (self.id.is_some() || decision.write_id.is_some());
    }
}

#[cfg(test)]
mod tests;
