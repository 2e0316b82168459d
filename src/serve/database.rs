//! The database of the producer outbox, for the relay and the API.

use super::{Role, ServeError, ServeOptions};
use crate::management::producer_outbox::{ProducerOutbox, ProducerOutboxAdmin};
use crate::settings::{Pooler, Settings};
use hub_outbox::{Store, StoreOptions};

/// The outbox database. Relay and API share one connection pool.
pub(super) struct Stores {
    pub(super) store: Option<Store>,
    /// The API's access to it.
    pub(super) api: Option<ProducerOutboxAdmin>,
}

/// Opens no connection. Both fields are `None` if no database is configured.
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
        of_store.connections = outbox.connections.max(settings.relay_connections());
    }
    if serves {
        of_store.connections = of_store.connections.saturating_add(ProducerOutboxAdmin::SESSIONS);
    }
    let store = Store::new(of_store)?;
    let api = serves.then(|| ProducerOutboxAdmin::new(ProducerOutbox::new(store.clone(), settings)));
    Ok(Stores { store: Some(store), api })
}
