//! The parts of the role outbox-relay, as the settings say.

use std::sync::Arc;

use super::{Role, ServeError, ServeOptions};
use crate::roles::outbox_relay::{ExternalTarget, OutboxRelaySettings};
use crate::settings::{ExternalBroker, Mechanism, Provider, Settings};
use crate::sinks::{self, Broker, SettingError, Timeouts, Tls, amqp, kafka, nats};
use crate::store::{Retention, Store};

/// What the role needs beside the hub's own connection.
pub(super) struct Relaying {
    pub(super) store: Store,
    pub(super) external: Vec<ExternalTarget>,
    pub(super) settings: OutboxRelaySettings,
}

/// None where the role is not asked for. Nothing connects yet.
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
    let external = settings.external_brokers.iter().map(|entry| {
        let of_entry = |source| ServeError::ExternalBroker { name: entry.name.clone(), source };
        let destination = entry
            .destination()
            .map_err(|error| ServeError::Destination { name: entry.name.clone(), source: error })?;
        Ok(ExternalTarget { name: entry.name.clone(), broker: broker(entry).map_err(of_entry)?, destination })
    });
    Ok(Some(Relaying {
        external: external.collect::<Result<_, ServeError>>()?,
        store,
        settings: OutboxRelaySettings {
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

/// The external broker of an entry. Connects with the first message.
pub(super) fn broker(entry: &ExternalBroker) -> Result<Arc<dyn Broker>, SettingError> {
    let url = &entry.url;
    let tls = Tls {
        required: entry.tls_required,
        ca_file: entry.tls_ca_file.clone(),
        cert_file: entry.tls_cert_file.clone(),
        key_file: entry.tls_key_file.clone(),
    };
    let timeouts = Timeouts { publish: entry.timeout, ..Timeouts::default() };
    let (user, password) = (entry.user.clone(), entry.password.clone());
    Ok(match entry.provider {
        Provider::Nats => Arc::new(nats::Nats::new(nats::Options {
            mode: if entry.jetstream { nats::Mode::JetStream } else { nats::Mode::Core },
            credentials_file: entry.credentials_file.clone(),
            nkey_seed_file: entry.nkey_seed_file.clone(),
            user,
            password,
            token: entry.token.clone(),
            tls,
            timeouts,
            ..nats::Options::new(url)
        })?),
        Provider::Redis => Arc::new(sinks::redis::Redis::new(sinks::redis::Options {
            user,
            password,
            tls,
            max_len: entry.max_len,
            timeouts,
            ..sinks::redis::Options::new(url)
        })?),
        Provider::Amqp => Arc::new(amqp::Amqp::new(amqp::Options {
            user,
            password,
            tls,
            exchange: entry.exchange.clone(),
            timeouts,
            ..amqp::Options::new(url)
        })?),
        Provider::Kafka => Arc::new(kafka::Kafka::new(kafka::Options {
            user,
            password,
            mechanism: match entry.mechanism {
                Mechanism::Plain => kafka::Mechanism::Plain,
                Mechanism::ScramSha256 => kafka::Mechanism::ScramSha256,
                Mechanism::ScramSha512 => kafka::Mechanism::ScramSha512,
            },
            tls,
            timeouts,
            ..kafka::Options::new(url)
        })?),
    })
}
