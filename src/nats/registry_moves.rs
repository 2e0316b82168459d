//! Entries of the registry that a version before ids belonged to their tenant stored under the bare
//! id: each is moved to the key of its name. A crash between the two writes leaves both, and the
//! next start removes the old one: the key of the name counts.

use bytes::Bytes;

use super::connection::JetStream;
use super::error::NatsError;
use super::registry::Revision;
use super::subjects::Names;
use crate::domain::subscription::{DEFAULT_TENANT, Subscription, SubscriptionRef};

/// An entry under the bare id, of a tenant other than `default`.
#[derive(Debug)]
pub(super) struct Misplaced {
    key: String,
    revision: u64,
    name: SubscriptionRef,
    value: Bytes,
}

impl Misplaced {
    pub(super) fn name(&self) -> &SubscriptionRef {
        &self.name
    }

    /// `None` for an entry under its own key, and for one that cannot be read.
    pub(super) fn find(names: &Names, key: &str, revision: &Revision<'_>) -> Option<Self> {
        let at = SubscriptionRef::from_token(names.subscription_of_key(key)?)?;
        // The keys of other tenants are as they should be, and need not be read here as well.
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
    /// Any number of processes may move the same entry at once.
    pub(super) async fn move_entry(&self, entry: &Misplaced) -> Result<(), NatsError> {
        let key = self.names().subscription_key(&entry.name);
        match self.write_key(&key, entry.value.clone(), Some(0), &[]).await {
            Ok(_) => tracing::info!(
                subscription = %entry.name,
                from = entry.key,
                "a registry entry is moved to the key of its tenant"
            ),
            // It was moved before; what has become of it since counts.
            Err(error) if error.is_wrong_last_sequence() => {}
            Err(error) => return Err(error),
        }
        match self.write_key(&entry.key, Bytes::new(), Some(entry.revision), &PURGE).await {
            // Removed by another process, or replaced by the subscription that belongs there.
            Err(error) if !error.is_wrong_last_sequence() => Err(error),
            _ => Ok(()),
        }
    }

    /// Moves all of them; returns how many there were. A process that follows the registry does so
    /// by itself.
    pub async fn move_misplaced_entries(&self) -> Result<usize, NatsError> {
        let names = self.names().clone();
        let entries = self.registry_entries().await?;
        let misplaced: Vec<Misplaced> = entries
            .iter()
            .filter_map(|(key, newest)| Misplaced::find(&names, key, &Revision::delivered(newest)))
            .collect();
        for entry in &misplaced {
            self.move_entry(entry).await?;
        }
        Ok(misplaced.len())
    }
}

/// Removes a key with its history: the old revisions hold sealed credentials.
const PURGE: [(&str, &str); 2] = [("KV-Operation", "PURGE"), ("Nats-Rollup", "sub")];
