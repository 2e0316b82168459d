//! The parts of the role outbox-relay, from the settings.

use super::{Role, ServeError, ServeOptions};
use crate::from_settings::external_broker;
use crate::roles::outbox_relay::{ExternalTarget, OutboxRelaySettings};
use crate::settings::{ExternalBroker, Settings};
use crate::sinks::NamedBroker;
use hub_outbox::{Retention, Store};

/// What the role needs besides the hub's own connection.
pub(super) struct Relaying {
    pub(super) store: Store,
    pub(super) external: Vec<ExternalTarget>,
    pub(super) settings: OutboxRelaySettings,
}

/// The parts of the role; `None` if this process does not run it. Opens no connection.
pub(super) fn relaying(
    settings: &Settings,
    options: &ServeOptions,
    store: Option<&Store>,
) -> Result<Option<Relaying>, ServeError> {
    if !options.roles.contains(&Role::OutboxRelay) {
        return Ok(None);
    }
    let store = store.cloned().ok_or(ServeError::NoDatabase)?;
    let outbox = &settings.outbox;
    let external = settings.outbox_brokers().map(|entry| {
        let (name, broker) = named(entry)?;
        let destination = entry
            .destination()
            .map_err(|error| ServeError::Destination { name: name.clone(), source: error })?;
        Ok(ExternalTarget { name, broker, destination })
    });
    Ok(Some(Relaying {
        external: external.collect::<Result<_, ServeError>>()?,
        store,
        settings: OutboxRelaySettings {
            largest_event: settings.events.max_size.as_u64(),
            batch: outbox.batch,
            claim_time: outbox.claim_time,
            retry: outbox.retry_policy(),
            poll_min: outbox.poll_min,
            poll_max: outbox.poll_max,
            retention: Retention {
                published: outbox.published_retention,
                abandoned: outbox.abandoned_retention,
            },
            cleanup_interval: outbox.cleanup_interval,
            cleanup_batch: outbox.cleanup_batch,
            reconcile_interval: outbox.reconcile_interval,
            grace: settings.delivery.grace,
        },
    }))
}

/// The external brokers, in the order of the settings. Each role has its own connections, which it opens with the first
/// message and closes at the end, so a backlog of the relay does not delay deliveries.
pub(super) fn brokers(settings: &Settings) -> Result<Vec<NamedBroker>, ServeError> {
    settings.external_brokers.iter().map(named).collect()
}

fn named(entry: &ExternalBroker) -> Result<NamedBroker, ServeError> {
    let name = entry.name.clone();
    match external_broker(entry) {
        Ok(broker) => Ok((name, broker)),
        Err(source) => Err(ServeError::ExternalBroker { name, source }),
    }
}
