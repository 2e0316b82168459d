//! Validation of ranges, and of values that depend on each other.

use std::collections::HashSet;
use std::time::Duration;

use bytesize::ByteSize;
use secrecy::ExposeSecret;

use super::size::written;
use super::{Secrets, SettingProblem, Settings, SettingsError, SubscriptionSource};
use crate::domain::subscription::is_credential_parameter;

/// Largest `held`. It bounds memory; JetStream's own limit on `max_ack_pending` is higher.
const MOST_HELD: usize = 1_000_000;
/// Longest `log.repeat_interval`. What an alarm waits for must not be left out for longer.
const LONGEST_REPEAT_INTERVAL: Duration = Duration::from_secs(3_600);

impl Settings {
    /// Checks ranges and dependencies between values. The error lists every problem.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let mut found = Findings { settings: self, problems: Vec::new() };
        found.nats();
        found.domains();
        found.events_and_delivery();
        found.circuit();
        found.limits();
        found.subscriptions();
        found.outbox();
        found.external_brokers();
        found.tenants();
        found.rest();
        if found.problems.is_empty() { Ok(()) } else { Err(SettingsError::Invalid(found.problems)) }
    }
}

/// Whether `text` is 1 to 32 of a-z, 0-9 and '-', and starts with a letter or digit.
fn is_name(text: &str) -> bool {
    text.len() <= 32
        && text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Whether `text` is one or more tokens without wildcards and server prefixes (`$JS`, `$KV`).
fn is_inbox_prefix(text: &str) -> bool {
    text.len() <= 64
        && text.split('.').all(|token| {
            !token.is_empty() && token.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        })
}

const NAME: &str = "must be 1 to 32 of a-z, 0-9 and '-', and start with a letter or digit";

pub(super) struct Findings<'a> {
    pub(super) settings: &'a Settings,
    problems: Vec<SettingProblem>,
}

impl Findings<'_> {
    pub(super) fn require(&mut self, holds: bool, key: &str, problem: impl Into<String>) {
        if !holds {
            self.problems.push(self.settings.problem(key, problem));
        }
    }

    pub(super) fn positive(&mut self, key: &str, value: Duration) {
        self.require(!value.is_zero(), key, "must be more than zero");
    }

    pub(super) fn within(&mut self, key: &str, value: usize, least: usize, most: usize) {
        self.require((least..=most).contains(&value), key, format!("is {value}; must be {least} to {most}"));
    }

    fn nats(&mut self) {
        let nats = &self.settings.nats;
        for server in nats.url.split(',').map(str::trim) {
            // The error does not quote the URL, because it may contain a password.
            match url::Url::parse(server) {
                Ok(url) => {
                    self.require(
                        matches!(url.scheme(), "nats" | "tls") && url.has_host(),
                        "nats.url",
                        "must be nats://host:port or tls://host:port; separate several with commas",
                    );
                    self.require(
                        url.username().is_empty()
                            && url.password().is_none()
                            && !url.query_pairs().any(|(name, _)| is_credential_parameter(&name)),
                        "nats.url",
                        "must not contain a user or password; set nats.user and nats.password, or nats.token",
                    );
                }
                Err(_) => self.require(
                    false,
                    "nats.url",
                    "is not a URL; write nats://host:port, and separate several with commas",
                ),
            }
        }
        self.require(is_name(&nats.prefix), "nats.prefix", NAME);
        self.require(
            is_inbox_prefix(&nats.inbox_prefix),
            "nats.inbox_prefix",
            "must be 1 to 64 of A-Z, a-z, 0-9, '_', '-' and '.', without an empty token",
        );
        self.require(
            nats.inbox_prefix.split('.').next() != Some(nats.prefix.as_str()),
            "nats.inbox_prefix",
            "must not begin with nats.prefix, or streams would store the answers; choose another prefix",
        );
        self.require(
            matches!(nats.replicas, 1 | 3 | 5),
            "nats.replicas",
            format!("is {}; must be 1, 3 or 5", nats.replicas),
        );
        self.require(
            nats.user.is_some() == nats.password.is_some(),
            if nats.user.is_some() { "nats.user" } else { "nats.password" },
            "set nats.user and nats.password both, or neither",
        );
        let logins = [
            ("nats.credentials_file", nats.credentials_file.is_some()),
            ("nats.nkey_seed_file", nats.nkey_seed_file.is_some()),
            ("nats.user", nats.user.is_some()),
            ("nats.token", nats.token.is_some()),
        ];
        let given: Vec<&str> = logins.iter().filter(|(_, given)| *given).map(|(key, _)| *key).collect();
        if let [_, second, ..] = given[..] {
            self.require(
                false,
                second,
                format!("only one kind of login is allowed; keep one of {}", given.join(", ")),
            );
        }
        self.require(
            nats.tls_cert_file.is_some() == nats.tls_key_file.is_some(),
            if nats.tls_cert_file.is_some() { "nats.tls_cert_file" } else { "nats.tls_key_file" },
            "set nats.tls_cert_file and nats.tls_key_file both, or neither",
        );
        self.positive("nats.connect_timeout", nats.connect_timeout);
        self.positive("nats.request_timeout", nats.request_timeout);
    }

    fn domains(&mut self) {
        let domains = &self.settings.domains;
        self.require(!domains.is_empty(), "domains", "needs at least one domain; add a [[domains]] entry");
        for domain in domains {
            let key = |field: &str| format!("domains[{}].{field}", domain.name);
            self.require(is_name(&domain.name), &key("name"), format!("{:?} {NAME}", domain.name));
            // Its outbox stream would have the same name as the dead-letter stream of another domain.
            self.require(
                !domain.name.ends_with("-dlt"),
                &key("name"),
                format!(
                    "{:?} must not end in \"-dlt\", which is reserved for dead-letter streams",
                    domain.name
                ),
            );
            self.require(
                !domain.events.is_empty(),
                &key("events"),
                "needs at least one pattern, such as \"user.>\"",
            );
            for (position, pattern) in domain.events.iter().enumerate() {
                if let Some(problem) = pattern.never_matches() {
                    self.require(false, &key(&format!("events[{position}]")), problem);
                }
            }
            self.within(&key("concurrency"), domain.concurrency, 1, 10_000);
        }
    }

    fn events_and_delivery(&mut self) {
        let events = &self.settings.events;
        self.require(
            (ByteSize::kb(1)..=ByteSize::mib(64)).contains(&events.max_size),
            "events.max_size",
            "must be 1KB to 64MiB",
        );
        self.within("events.held", events.held, 1, MOST_HELD);
        self.within("events.batch", events.batch, 1, events.held.max(1));
        self.held_bytes("events.held_bytes", events.held_bytes);

        let delivery = &self.settings.delivery;
        self.within("delivery.max_deliver", delivery.max_deliver as usize, 1, 1_000);
        self.require(
            !delivery.retry.is_empty(),
            "delivery.retry",
            "needs at least one wait, such as [\"5s\"]",
        );
        self.positive("delivery.max_retry_after", delivery.max_retry_after);
        self.require(
            delivery.max_timeout >= Duration::from_millis(100),
            "delivery.max_timeout",
            "must be at least 100ms",
        );
        self.require(
            delivery.ack_wait > delivery.max_timeout,
            "delivery.ack_wait",
            "must be longer than delivery.max_timeout; otherwise another process repeats an attempt that is still running",
        );
        self.within("delivery.held", delivery.held, 1, MOST_HELD);
        self.held_bytes("delivery.held_bytes", delivery.held_bytes);
        self.within(
            "delivery.queue_per_subscription",
            delivery.queue_per_subscription,
            1,
            delivery.held.max(1),
        );
        let outbox = self.settings.limits.outbox;
        self.require(
            delivery.max_backlog_bytes <= outbox,
            "delivery.max_backlog_bytes",
            format!("must be at most limits.outbox ({})", written(outbox)),
        );
        self.require(
            delivery.max_age.is_zero() || delivery.max_age >= Duration::from_secs(1),
            "delivery.max_age",
            "must be at least 1s; write 0s for no limit",
        );
        self.require(
            (ByteSize::kb(1)..=ByteSize::mib(16)).contains(&delivery.response_limit),
            "delivery.response_limit",
            "must be 1KB to 16MiB",
        );
    }

    fn held_bytes(&mut self, key: &str, value: ByteSize) {
        let allowed = ByteSize::mib(1)..=ByteSize::gib(3);
        self.require(allowed.contains(&value), key, format!("is {}; must be 1MiB to 3GiB", written(value)));
    }

    fn limits(&mut self) {
        let limits = &self.settings.limits;
        let largest = self.settings.events.max_size;
        for (key, size) in [
            ("limits.events", limits.events),
            ("limits.outbox", limits.outbox),
            ("limits.dlt", limits.dlt),
            ("limits.attempts", limits.attempts),
            ("limits.rejected", limits.rejected),
            ("limits.advisories", limits.advisories),
        ] {
            self.require(
                size > largest,
                key,
                format!("must be more than events.max_size ({})", written(largest)),
            );
        }
        self.positive("limits.rejected_max_age", limits.rejected_max_age);
        self.positive("limits.attempts_max_age", limits.attempts_max_age);
        // The server's minimum.
        self.require(
            limits.duplicate_window >= Duration::from_millis(100),
            "limits.duplicate_window",
            "must be at least 100ms",
        );
    }

    fn subscriptions(&mut self) {
        let subscriptions = &self.settings.subscriptions;
        self.require(
            subscriptions.source == SubscriptionSource::Registry || subscriptions.grpc_url.is_some(),
            "subscriptions.grpc_url",
            "is required with subscriptions.source = \"grpc\"; write http://host:port or https://host:port",
        );
        let url = subscriptions.grpc_url.as_deref().map(url::Url::parse);
        let is_tls = matches!(&url, Some(Ok(url)) if url.scheme() == "https");
        if let Some(url) = url {
            // The text of the URL stays out of the error: it may hold a password.
            let usable = url.is_ok_and(|url| {
                matches!(url.scheme(), "http" | "https")
                    && url.has_host()
                    && url.username().is_empty()
                    && url.password().is_none()
                    && !url.query_pairs().any(|(name, _)| is_credential_parameter(&name))
            });
            self.require(
                usable,
                "subscriptions.grpc_url",
                "must be http://host:port or https://host:port, without user and password; set subscriptions.token instead",
            );
        }
        for (key, file) in [
            ("subscriptions.tls_ca_file", &subscriptions.tls_ca_file),
            ("subscriptions.tls_cert_file", &subscriptions.tls_cert_file),
        ] {
            self.require(
                file.is_none() || is_tls,
                key,
                "requires TLS; write subscriptions.grpc_url with https://",
            );
        }
        for (cert, key, files) in [
            (
                "subscriptions.tls_cert_file",
                "subscriptions.tls_key_file",
                (&subscriptions.tls_cert_file, &subscriptions.tls_key_file),
            ),
            (
                "subscriptions.listen_tls_cert_file",
                "subscriptions.listen_tls_key_file",
                (&subscriptions.listen_tls_cert_file, &subscriptions.listen_tls_key_file),
            ),
        ] {
            self.require(
                files.0.is_some() == files.1.is_some(),
                if files.0.is_some() { cert } else { key },
                format!("set {cert} and {key} both, or neither"),
            );
        }
        self.require(
            subscriptions.listen_tls_client_ca_file.is_none() || subscriptions.listen_tls_cert_file.is_some(),
            "subscriptions.listen_tls_client_ca_file",
            "requires TLS; set subscriptions.listen_tls_cert_file and subscriptions.listen_tls_key_file",
        );
        self.require(
            !(subscriptions.listen_anonymous && subscriptions.listen_token.is_some()),
            "subscriptions.listen_anonymous",
            "is true, but subscriptions.listen_token is set; keep one of them",
        );
        self.require(
            (Duration::from_millis(10)..=Duration::from_secs(10)).contains(&subscriptions.deadline),
            "subscriptions.deadline",
            "must be 10ms to 10s",
        );
        self.require(
            subscriptions.max_staleness <= Duration::from_secs(3600),
            "subscriptions.max_staleness",
            "must be at most 1h",
        );
        self.within("subscriptions.cache_entries", subscriptions.cache_entries, 1, 10_000_000);
    }

    /// The errors do not quote an entry, because it may contain a key.
    fn previous_keys(&mut self, secrets: &Secrets) {
        let keys = secrets.previous_keys.iter().map(|entry| ("secrets.previous_keys", entry.expose_secret()));
        let files = secrets.previous_key_files.iter().map(|entry| ("secrets.previous_key_files", &**entry));
        let mut seen = HashSet::from([secrets.key_id.clone()]);
        for (setting, entry) in keys.chain(files) {
            let id = entry.split_once(':').map_or("", |(id, _)| id);
            self.require(
                is_name(id),
                setting,
                "an entry has no valid key id; write the id before the key, as in \"k1:…\", with 1 to 32 of a-z, 0-9 and '-'",
            );
            self.require(
                seen.insert(id.to_owned()),
                setting,
                "a key id occurs twice, or equals secrets.key_id; give each key an id of its own",
            );
            self.require(
                secrets.master_key.is_some() || secrets.master_key_file.is_some(),
                setting,
                "requires a current key; set secrets.master_key or secrets.master_key_file",
            );
        }
    }

    fn rest(&mut self) {
        let settings = self.settings;
        for wait in &settings.redrive.schedule {
            self.positive("redrive.schedule", *wait);
        }
        self.positive("sweep.interval", settings.sweep.interval);
        self.within("api.connections", settings.api.connections, 1, 100_000);
        self.within("api.requests", settings.api.requests, 1, 10_000);
        for host in &settings.api.allowed_hosts {
            self.require(
                !host.is_empty() && !host.contains(['/', '*', ' ', '@', '[']) && !host.ends_with('.'),
                "api.allowed_hosts",
                format!("{host:?} is not a host name; write only the name, such as \"hub.internal\""),
            );
        }
        self.require(
            settings.health.listen != settings.api.listen || settings.health.listen.port() == 0,
            "health.listen",
            format!("is {}, which is also api.listen; set another port", settings.health.listen),
        );
        self.within("metrics.subscriptions", settings.metrics.subscriptions, 0, 1_000);
        let secrets = &settings.secrets;
        self.require(
            secrets.master_key.is_none() || secrets.master_key_file.is_none(),
            "secrets.master_key_file",
            "set secrets.master_key or secrets.master_key_file, not both",
        );
        self.require(is_name(&secrets.key_id), "secrets.key_id", NAME);
        self.previous_keys(secrets);
        self.require(
            settings.log.repeat_interval <= LONGEST_REPEAT_INTERVAL,
            "log.repeat_interval",
            "must be at most 1h; write 0s to log every line",
        );
        self.require(
            is_log_filter(&settings.log.level),
            "log.level",
            format!(
                "{:?} is not a log filter; write error, warn, info, debug or trace, or \"info,integration_hub=debug\"",
                settings.log.level
            ),
        );
    }
}

/// Whether `text` is a log filter. The filter's parser would take a misspelt level for a module name, and log nothing.
fn is_log_filter(text: &str) -> bool {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    tracing_subscriber::EnvFilter::try_new(text).is_ok()
        && text
            .split(',')
            .map(str::trim)
            .all(|part| part.is_empty() || part.contains(['=', '[']) || is_level(part))
}
