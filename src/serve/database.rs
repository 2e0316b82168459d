//! The outbox's database, for whoever of the process has to do with it.

use super::{Role, ServeError, ServeOptions};
use crate::management::outbox::{Outbox, OutboxDesk};
use crate::settings::{Pooler, Settings};
use hub_outbox::{Store, StoreOptions};

/// The outbox's database, as this process needs it: one set of connections, whoever asks.
pub(super) struct Stores {
    pub(super) store: Option<Store>,
    /// What the API has of it.
    pub(super) api: Option<OutboxDesk>,
}

/// Nothing connects yet. Neither is there where the settings name no database.
pub(super) fn stores(settings: &Settings, options: &ServeOptions) -> Result<Stores, ServeError> {
    let (relays, serves) = (options.roles.contains(&Role::OutboxRelay), options.roles.contains(&Role::Api));
    let outbox = &settings.outbox;
    let url = outbox.database_url.clone().filter(|_| relays || serves);
    let Some(url) = url else { return Ok(Stores { store: None, api: None }) };
    let mut of_store = StoreOptions::new(url);
    of_store.timeout = outbox.timeout;
    of_store.is_pooled = outbox.pooler == Pooler::Transaction;
    of_store.connections = 0;
    if relays {
        // Each target broker has two workers, beside the upkeep.
        let workers = u32::try_from(2 * (settings.outbox_brokers().count() + 1) + 1).unwrap_or(u32::MAX);
        of_store.connections = outbox.connections.max(workers);
    }
    if serves {
        of_store.connections = of_store.connections.saturating_add(OutboxDesk::TURNS);
    }
    let store = Store::new(of_store)?;
    let api = serves.then(|| OutboxDesk::new(Outbox::new(store.clone(), settings)));
    Ok(Stores { store: Some(store), api })
}
