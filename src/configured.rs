//! What the settings say to each part of the hub, in that part's own words.

use secrecy::SecretString;

use crate::domain::outcome::RetryPolicy;
use crate::http_delivery::{AddressPolicy, HttpConfig, OpenSecret, Unopened};
use crate::nats::definitions::{Limits, Shape};
use crate::nats::{ConnectOptions, Tls};
use crate::seal::Sealer;
use crate::settings::Settings;

/// What the settings say of attempts.
pub fn retry_policy(settings: &Settings) -> RetryPolicy {
    RetryPolicy {
        max_deliver: settings.delivery.max_deliver,
        waits: settings.delivery.retry.clone(),
        max_retry_after: settings.delivery.max_retry_after,
    }
}

/// What the settings say of the HTTP deliveries.
pub fn http_config(settings: &Settings) -> HttpConfig {
    HttpConfig {
        addresses: AddressPolicy { allow: settings.delivery.allow_networks.clone() },
        response_limit: bytes(settings.delivery.response_limit),
        ..HttpConfig::default()
    }
}

/// What the settings say of the connection.
pub fn connect_options(settings: &Settings, name: &str) -> ConnectOptions {
    let nats = &settings.nats;
    ConnectOptions {
        url: nats.url.clone(),
        prefix: nats.prefix.clone(),
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

/// What the settings say of the streams and consumers.
pub fn shape(settings: &Settings) -> Shape {
    let limits = &settings.limits;
    Shape {
        prefix: settings.nats.prefix.clone(),
        domains: settings.domains.iter().map(|domain| domain.name.clone()).collect(),
        replicas: settings.nats.replicas,
        max_deliver: settings.delivery.max_deliver,
        ack_wait: settings.delivery.ack_wait,
        duplicate_window: limits.duplicate_window,
        limits: Limits {
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

pub(crate) fn bytes(size: bytesize::ByteSize) -> usize {
    usize::try_from(size.as_u64()).unwrap_or(usize::MAX)
}

/// Opens credentials with the master key, if there is one.
pub(crate) struct MasterKey(pub(crate) Option<Sealer>);

impl OpenSecret for MasterKey {
    fn open(&self, subscription: &str, sealed: &str) -> Result<SecretString, Unopened> {
        let Some(sealer) = &self.0 else {
            tracing::error!(subscription, "a sealed credential, but no secrets.master_key in the settings");
            return Err(Unopened);
        };
        sealer.open(subscription, sealed).map_err(|error| {
            tracing::error!(subscription, %error, "a sealed credential cannot be opened");
            Unopened
        })
    }
}
