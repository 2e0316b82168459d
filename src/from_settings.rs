//! Translates the settings to the options of each part of the hub.

use std::sync::Arc;

use secrecy::SecretString;

use crate::domain::backlog::BacklogLimits;
use crate::domain::circuit::CircuitPolicy;
use crate::domain::message_id::MessageIds;
use crate::domain::outcome::RetryPolicy;
use crate::domain::shared_settings::SharedSettings;
use crate::domain::subscription::Identity;
use crate::facts::CredentialNotOpened;
use crate::http_delivery::{AddressPolicy, Clock, HttpConfig, HttpDelivery, OpenSecret, SecretNotOpened};
use crate::nats::definitions::{StreamLimits, StreamParameters};
use crate::nats::{ConnectOptions, JetStream, NatsError, Tls};
use crate::roles::dlt_processor::RedriveQuota;
use crate::seal::{Place, Sealer};
#[cfg(feature = "kafka")]
use crate::settings::Mechanism;
use crate::settings::{ExternalBroker, Provider, Settings};
use crate::sinks::{self, Broker, SettingError};

/// The retries of a delivery.
pub fn retry_policy(settings: &Settings) -> RetryPolicy {
    RetryPolicy {
        max_deliver: settings.delivery.max_deliver,
        waits: settings.delivery.retry.clone(),
        max_retry_after: settings.delivery.max_retry_after,
    }
}

/// The limits of the backlog of every subscription.
pub fn backlog_limits(settings: &Settings) -> BacklogLimits {
    let delivery = &settings.delivery;
    BacklogLimits {
        messages: Some(delivery.max_backlog).filter(|most| *most > 0),
        bytes: Some(delivery.max_backlog_bytes.as_u64()).filter(|most| *most > 0),
        age: Some(delivery.max_age).filter(|most| !most.is_zero()),
    }
}

/// The quotas that redrives are checked against.
pub fn redrive_quota(settings: &Settings) -> RedriveQuota {
    RedriveQuota {
        limits: backlog_limits(settings),
        outbox_size: settings.limits.outbox.as_u64(),
        schedule: settings.redrive.schedule.clone(),
    }
}

/// The circuit breaker of a subscription.
pub fn circuit_policy(settings: &Settings) -> CircuitPolicy {
    let circuit = &settings.circuit;
    CircuitPolicy {
        enabled: circuit.enabled,
        failures: circuit.failures,
        failing_for: circuit.failing_for,
        first_pause: circuit.first_pause,
        longest_pause: circuit.longest_pause,
    }
}

/// HTTP deliveries by the clock of the NATS server, which is the same for all processes.
pub fn http_delivery(settings: &Settings, js: &JetStream) -> HttpDelivery {
    let js = js.clone();
    HttpDelivery::with_clock(http_config(settings), Clock::new(move || js.now().into()))
}

/// The options of HTTP deliveries.
pub fn http_config(settings: &Settings) -> HttpConfig {
    HttpConfig {
        addresses: AddressPolicy { allow: settings.delivery.allow_networks.clone() },
        response_limit: bytes(settings.delivery.response_limit),
        ..HttpConfig::default()
    }
}

/// The options of the connection to NATS. `name` is the connection's name on the server.
pub fn connect_options(settings: &Settings, name: &str) -> ConnectOptions {
    let nats = &settings.nats;
    ConnectOptions {
        url: nats.url.clone(),
        prefix: nats.prefix.clone(),
        inbox_prefix: nats.inbox_prefix.clone(),
        name: name.to_owned(),
        credentials_file: nats.credentials_file.clone(),
        nkey_seed_file: nats.nkey_seed_file.clone(),
        user: nats.user.clone(),
        password: nats.password.clone(),
        token: nats.token.clone(),
        tls: Tls {
            required: nats.tls_required,
            ca_file: nats.tls_ca_file.clone(),
            cert_file: nats.tls_cert_file.clone(),
            key_file: nats.tls_key_file.clone(),
        },
        connect_timeout: nats.connect_timeout,
        request_timeout: nats.request_timeout,
    }
}

/// The streams and consumers.
pub fn stream_parameters(settings: &Settings) -> StreamParameters {
    let limits = &settings.limits;
    StreamParameters {
        prefix: settings.nats.prefix.clone(),
        domains: settings.domains.iter().map(|domain| domain.name.clone()).collect(),
        replicas: settings.nats.replicas,
        max_deliver: settings.delivery.max_deliver,
        ack_wait: settings.delivery.ack_wait,
        duplicate_window: limits.duplicate_window,
        limits: StreamLimits {
            events: limits.events.as_u64(),
            outbox: limits.outbox.as_u64(),
            dlt: limits.dlt.as_u64(),
            attempts: limits.attempts.as_u64(),
            rejected: limits.rejected.as_u64(),
            advisories: limits.advisories.as_u64(),
            attempts_max_age: limits.attempts_max_age,
            rejected_max_age: limits.rejected_max_age,
        },
    }
}

/// The settings on which all processes of the hub must agree.
pub fn shared_settings(settings: &Settings) -> SharedSettings {
    let limits = &settings.limits;
    let domains = settings.domains.iter().map(|domain| {
        (domain.name.as_str(), domain.events.iter().map(|pattern| pattern.as_str().to_owned()).collect())
    });
    let mut shared = SharedSettings::default()
        .with_domains(domains)
        .with("nats.replicas", settings.nats.replicas)
        .with("delivery.max_deliver", settings.delivery.max_deliver);
    for (setting, size) in [
        ("events.max_size", settings.events.max_size),
        ("limits.events", limits.events),
        ("limits.outbox", limits.outbox),
        ("limits.dlt", limits.dlt),
        ("limits.attempts", limits.attempts),
        ("limits.rejected", limits.rejected),
        ("limits.advisories", limits.advisories),
    ] {
        shared = shared.with(setting, format_args!("{}B", size.as_u64()));
    }
    for (setting, time) in [
        ("delivery.ack_wait", settings.delivery.ack_wait),
        ("limits.duplicate_window", limits.duplicate_window),
        ("limits.attempts_max_age", limits.attempts_max_age),
        ("limits.rejected_max_age", limits.rejected_max_age),
    ] {
        shared = shared.with(setting, humantime::format_duration(time));
    }
    shared
}

/// The external broker of an entry. The first publish connects.
pub fn external_broker(entry: &ExternalBroker) -> Result<Arc<dyn Broker>, SettingError> {
    let url = &entry.url;
    let tls = sinks::BrokerTls {
        required: entry.tls_required,
        ca_file: entry.tls_ca_file.clone(),
        cert_file: entry.tls_cert_file.clone(),
        key_file: entry.tls_key_file.clone(),
    };
    let timeouts = sinks::Timeouts { publish: entry.timeout, ..sinks::Timeouts::default() };
    let (user, password) = (entry.user.clone(), entry.password.clone());
    Ok(match entry.provider {
        Provider::Nats => Arc::new(sinks::nats::Nats::new(sinks::nats::NatsOptions {
            mode: if entry.jetstream { sinks::nats::Mode::JetStream } else { sinks::nats::Mode::Core },
            credentials_file: entry.credentials_file.clone(),
            nkey_seed_file: entry.nkey_seed_file.clone(),
            user,
            password,
            token: entry.token.clone(),
            tls,
            timeouts,
            ..sinks::nats::NatsOptions::new(url)
        })?),
        #[cfg(feature = "redis")]
        Provider::Redis => Arc::new(sinks::redis::Redis::new(sinks::redis::RedisOptions {
            user,
            password,
            tls,
            max_len: entry.max_len,
            timeouts,
            ..sinks::redis::RedisOptions::new(url)
        })?),
        #[cfg(feature = "amqp")]
        Provider::Amqp => Arc::new(sinks::amqp::Amqp::new(sinks::amqp::AmqpOptions {
            user,
            password,
            tls,
            exchange: entry.exchange.clone(),
            timeouts,
            ..sinks::amqp::AmqpOptions::new(url)
        })?),
        #[cfg(feature = "kafka")]
        Provider::Kafka => Arc::new(sinks::kafka::Kafka::new(sinks::kafka::KafkaOptions {
            user,
            password,
            mechanism: match entry.mechanism {
                Mechanism::Plain => sinks::kafka::SaslMechanism::Plain,
                Mechanism::ScramSha256 => sinks::kafka::SaslMechanism::ScramSha256,
                Mechanism::ScramSha512 => sinks::kafka::SaslMechanism::ScramSha512,
            },
            tls,
            timeouts,
            ..sinks::kafka::KafkaOptions::new(url)
        })?),
        // Validating the settings rejects it already.
        #[cfg(not(all(feature = "redis", feature = "amqp", feature = "kafka")))]
        provider => return Err(SettingError::new("provider", provider.not_built_in())),
    })
}

pub(crate) fn bytes(size: bytesize::ByteSize) -> usize {
    usize::try_from(size.as_u64()).unwrap_or(usize::MAX)
}

/// The server's `max_payload`, if it is less than `events.max_size`.
pub(crate) fn less_than_events(settings: &Settings, js: &JetStream) -> Option<u64> {
    let max_payload = u64::try_from(js.max_payload()).unwrap_or(u64::MAX);
    (max_payload < settings.events.max_size.as_u64()).then_some(max_payload)
}

/// The source of message ids: a secret derived from the master key, or, without one, a secret in NATS that all
/// processes of this hub share.
pub(crate) async fn message_ids(js: &JetStream, sealer: Option<&Sealer>) -> Result<MessageIds, NatsError> {
    match sealer {
        Some(sealer) => Ok(sealer.message_ids()),
        None => Ok(MessageIds::new(js.message_id_secret().await?)),
    }
}

/// Opens credentials with the master key, if one is set.
pub(crate) struct MasterKey(pub(crate) Option<Sealer>);

impl OpenSecret for MasterKey {
    fn open(
        &self,
        subscription: &Identity,
        field: &str,
        sealed: &str,
    ) -> Result<SecretString, SecretNotOpened> {
        open_credential(self.0.as_ref(), subscription, field, sealed).inspect_err(|error| {
            CredentialNotOpened { subscription: &subscription.subscription, field, error }.emit();
        })
    }
}

/// Opens a subscription's credential.
pub(crate) fn open_credential(
    sealer: Option<&Sealer>,
    subscription: &Identity,
    field: &str,
    sealed: &str,
) -> Result<SecretString, SecretNotOpened> {
    let sealer = sealer.ok_or(SecretNotOpened::NoMasterKey)?;
    sealer.open_at(&place(subscription, field), sealed).map_err(|error| SecretNotOpened::Sealed(error.into()))
}

/// The place that a subscription's credential is sealed for.
fn place<'a>(subscription: &'a Identity, field: &'a str) -> Place<'a> {
    let Identity { subscription, incarnation } = subscription;
    Place { tenant: subscription.tenant(), id: subscription.id(), incarnation: *incarnation, field }
}
