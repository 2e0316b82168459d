//! Moves registry entries that older versions stored under the bare id to the key of their tenant and id. A crash between
//! the two writes leaves both entries; the next start removes the old one, and the one under the new key is in effect.

use bytes::Bytes;

use super::KeyRevision;
use crate::domain::subscription::{DEFAULT_TENANT, Subscription, SubscriptionRef};
use crate::facts::RegistryEntryMoved;
use crate::nats::connection::JetStream;
use crate::nats::error::NatsError;
use crate::nats::subjects::SubjectNames;

/// An entry under the bare id that belongs to a tenant other than `default`.
#[derive(Debug)]
pub(super) struct MisplacedEntry {
    key: String,
    revision: u64,
    name: SubscriptionRef,
    value: Bytes,
}

impl MisplacedEntry {
    pub(super) fn name(&self) -> &SubscriptionRef {
        &self.name
    }

    /// `None` for an entry under its own key, and for an unreadable one.
    pub(super) fn find(names: &SubjectNames, key: &str, revision: &KeyRevision<'_>) -> Option<Self> {
        let at = SubscriptionRef::from_token(names.subscription_of_key(key)?)?;
        // Keys with a tenant are correct, so their values need not be parsed here.
        if at.tenant() != DEFAULT_TENANT {
            return None;
        }
        let value = revision.value()?;
        let name = serde_json::from_slice::<Subscription>(value).ok()?.reference().ok()?;
        let misplaced = at != name && at.id() == name.id();
        let value = Bytes::copy_from_slice(value);
        misplaced.then(|| Self { key: key.to_owned(), revision: revision.sequence, name, value })
    }
}

impl JetStream {
    /// Moves one entry. Any number of processes may move the same entry at once.
    pub(super) async fn move_entry(&self, entry: &MisplacedEntry) -> Result<(), NatsError> {
        let key = self.names().subscription_key(&entry.name);
        match self.write_key(&key, entry.value.clone(), Some(0), &[]).await {
            Ok(_) => RegistryEntryMoved { subscription: &entry.name, from: &entry.key }.emit(),
            // Already moved; the entry under the new key is in effect, even if it has changed since.
            Err(error) if error.is_wrong_last_sequence() => {}
            Err(error) => return Err(error),
        }
        match self.write_key(&entry.key, Bytes::new(), Some(entry.revision), &PURGE).await {
            // Removed by another process, or replaced by the subscription that belongs there.
            Err(error) if !error.is_wrong_last_sequence() => Err(error),
            _ => Ok(()),
        }
    }

    /// Moves all misplaced entries and returns their number. A process that follows the registry does this by itself.
    pub async fn move_misplaced_entries(&self) -> Result<usize, NatsError> {
        let names = self.names().clone();
        let entries = self.registry_entries().await?;
        let misplaced: Vec<MisplacedEntry> = entries
            .iter()
            .filter_map(|(key, newest)| MisplacedEntry::find(&names, key, &KeyRevision::delivered(newest)))
            .collect();
        for entry in &misplaced {
            self.move_entry(entry).await?;
        }
        Ok(misplaced.len())
    }
}

/// Headers that remove a key with its history, because old revisions hold sealed credentials.
const PURGE: [(&str, &str); 2] = [("KV-Operation", "PURGE"), ("Nats-Rollup", "sub")];
