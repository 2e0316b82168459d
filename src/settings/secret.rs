//! The secrets of the settings that may be sealed, and their names.

use std::fmt;
use std::str::FromStr;

use secrecy::SecretString;

use super::{Settings, is_external_broker};

const BROKERS: &str = "external_brokers";
const OF_BROKERS: [&str; 2] = ["password", "token"];
const ALONE: [&str; 5] = [
    "nats.password",
    "nats.token",
    "outbox.database_url",
    "subscriptions.token",
    "subscriptions.listen_token",
];

/// A secret setting that may be sealed: `nats.password`, `external_brokers.partner_events.password`. Displays as its
/// unique name. No subscription id equals it, because those contain no dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretName(Place);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Alone(&'static str),
    OfBroker { broker: String, field: &'static str },
}

/// The setting does not exist, or is not a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is not a setting that can be sealed; write external_brokers.NAME.password, \
     external_brokers.NAME.token, {}",
    ALONE.join(", ")
)]
pub struct NoSecret {
    name: String,
}

impl SecretName {
    fn of_broker(broker: &str, field: &'static str) -> Self {
        Self(Place::OfBroker { broker: broker.to_owned(), field })
    }

    /// The key in errors and in `hub config show`: `external_brokers[partner_events].password`.
    pub fn key(&self) -> String {
        match &self.0 {
            Place::Alone(name) => (*name).to_owned(),
            Place::OfBroker { broker, field } => format!("{BROKERS}[{broker}].{field}"),
        }
    }

    /// The external broker that the secret belongs to.
    pub fn broker(&self) -> Option<&str> {
        match &self.0 {
            Place::Alone(_) => None,
            Place::OfBroker { broker, .. } => Some(broker),
        }
    }

    /// Whether every process and command that connects to NATS or to the outbox database needs it.
    pub fn is_to_connect(&self) -> bool {
        matches!(self.0, Place::Alone("nats.password" | "nats.token" | "outbox.database_url"))
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Alone(name) => f.write_str(name),
            Place::OfBroker { broker, field } => write!(f, "{BROKERS}.{broker}.{field}"),
        }
    }
}

impl FromStr for SecretName {
    type Err = NoSecret;

    /// Reads both forms: the displayed name and the key.
    fn from_str(name: &str) -> Result<Self, NoSecret> {
        let no_secret = || NoSecret { name: name.to_owned() };
        if let Some(alone) = ALONE.into_iter().find(|alone| *alone == name) {
            return Ok(Self(Place::Alone(alone)));
        }
        let rest = name.strip_prefix(BROKERS).ok_or_else(no_secret)?;
        let (broker, field) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once("]."),
            None => rest.strip_prefix('.').and_then(|rest| rest.split_once('.')),
        }
        .filter(|(broker, _)| is_external_broker(broker))
        .ok_or_else(no_secret)?;
        let field = OF_BROKERS.into_iter().find(|known| *known == field).ok_or_else(no_secret)?;
        Ok(Self::of_broker(broker, field))
    }
}

impl Settings {
    /// The secrets that are set and may be sealed; not the master keys.
    pub fn secrets_mut(&mut self) -> Vec<(SecretName, &mut SecretString)> {
        let alone = [
            &mut self.nats.password,
            &mut self.nats.token,
            &mut self.outbox.database_url,
            &mut self.subscriptions.token,
            &mut self.subscriptions.listen_token,
        ];
        let alone =
            ALONE.into_iter().zip(alone).map(|(name, secret)| (SecretName(Place::Alone(name)), secret));
        let of_brokers = self.external_brokers.iter_mut().flat_map(|entry| {
            let secrets = [&mut entry.password, &mut entry.token];
            let name = |field| SecretName::of_broker(&entry.name, field);
            OF_BROKERS.map(name).into_iter().zip(secrets)
        });
        alone.chain(of_brokers).filter_map(|(name, secret)| Some((name, secret.as_mut()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_both_forms() {
        for name in ALONE {
            assert_eq!(name.parse::<SecretName>().unwrap().to_string(), name);
        }
        for field in OF_BROKERS {
            let name: SecretName = format!("external_brokers.partner_events.{field}").parse().unwrap();
            assert_eq!(name.key(), format!("external_brokers[partner_events].{field}"));
            assert_eq!(name.key().parse(), Ok(name.clone()));
            assert_eq!(name.broker(), Some("partner_events"));
        }
        for wrong in [
            "",
            "nats",
            "nats.url",
            "secrets.master_key",
            "external_brokers.password",
            "external_brokers.partner.url",
            "external_brokers.a.b.password",
            "external_brokers.Partner.password",
            "external_brokers.internal.password",
            "external_brokers[partner.password",
            "external_brokerspartner.password",
        ] {
            assert!(wrong.parse::<SecretName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_secret_that_is_set_is_found_under_its_name() {
        let mut settings = Settings::from_toml(
            "hub.toml",
            r#"
            [nats]
            user = "hub"
            password = "s0"
            [outbox]
            database_url = "s1"
            [subscriptions]
            token = "s2"
            listen_token = "s3"
            [[external_brokers]]
            name = "a"
            provider = "nats"
            url = "nats://127.0.0.1"
            token = "s4"
            [[external_brokers]]
            name = "b"
            provider = "redis"
            url = "redis://127.0.0.1"
            password = "s5"
            "#,
        )
        .unwrap();
        let names: Vec<String> = settings.secrets_mut().iter().map(|(name, _)| name.to_string()).collect();
        let expected = [
            "nats.password",
            "outbox.database_url",
            "subscriptions.token",
            "subscriptions.listen_token",
            "external_brokers.a.token",
            "external_brokers.b.password",
        ];
        assert_eq!(names, expected);
        // What `hub config show` hides and what may be sealed are the same, but for the master keys.
        assert_eq!(settings.show().matches("= \"***\"").count(), expected.len());
    }
}
