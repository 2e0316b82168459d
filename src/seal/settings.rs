//! Sealed secrets of the settings: `sealed:v1.<key id>.<base64url>`, as `hub secrets seal` prints it.
//!
//! The prefix distinguishes it from a plain secret, which therefore must not begin with it. The setting's name is the
//! associated data, so a text that is sealed for one setting opens in no other setting and in no subscription.

use secrecy::{ExposeSecret, SecretString};

use super::{MasterKeyError, SealError, Sealer};
use crate::settings::{SecretName, Settings, SettingsError};

/// Prefix of a sealed secret in the settings.
pub const PREFIX: &str = "sealed:";

/// Why secrets of the settings cannot be opened. The text contains nothing of them.
#[derive(Debug, thiserror::Error)]
pub enum OpenSettingsError {
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    /// Each secret that cannot be opened, with its layer and the remedy.
    #[error(transparent)]
    Settings(#[from] SettingsError),
}

/// A secret of the settings that is sealed with a previous key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outdated {
    pub name: SecretName,
    /// The key that it is sealed with.
    pub key_id: String,
    /// The replacement, sealed with the current key; or why the secret cannot be opened.
    pub anew: Result<String, SealError>,
}

/// Opens the sealed secrets for which `is_needed` is true; the others stay sealed. Reads the master key only if one of
/// them is sealed.
pub fn open_settings(
    settings: &Settings,
    is_needed: impl Fn(&SecretName) -> bool,
) -> Result<Settings, OpenSettingsError> {
    let mut opened = settings.clone();
    let mut secrets = opened.secrets_mut();
    secrets.retain(|(name, secret)| is_sealed(secret) && is_needed(name));
    if secrets.is_empty() {
        return Ok(opened);
    }
    let sealer = Sealer::from_settings(&settings.secrets)?;
    let mut problems = Vec::new();
    for (name, secret) in secrets {
        match open(sealer.as_ref(), &name, secret) {
            Ok(plain) => *secret = plain,
            Err(error) => problems.push(settings.problem(&name.key(), error.to_string())),
        }
    }
    if problems.is_empty() { Ok(opened) } else { Err(SettingsError::Invalid(problems).into()) }
}

fn is_sealed(secret: &SecretString) -> bool {
    secret.expose_secret().starts_with(PREFIX)
}

/// Why a secret of the settings cannot be opened: the problem and the remedy.
#[derive(Debug, thiserror::Error)]
enum SettingNotOpened {
    #[error("is sealed, but no master key is set; set secrets.master_key (or secrets.master_key_file)")]
    NoMasterKey,
    #[error("{}", problem(name, source))]
    Sealed { name: String, source: SealError },
}

fn open(
    sealer: Option<&Sealer>,
    name: &SecretName,
    secret: &SecretString,
) -> Result<SecretString, SettingNotOpened> {
    let sealer = sealer.ok_or(SettingNotOpened::NoMasterKey)?;
    let sealed = secret.expose_secret().strip_prefix(PREFIX).unwrap_or_default();
    let name = name.to_string();
    sealer.open(&name, sealed).map_err(|source| SettingNotOpened::Sealed { name, source })
}

fn problem(name: &str, error: &SealError) -> String {
    match error {
        SealError::MissingKey { key_id } => format!(
            "is sealed with the key {key_id:?}, which this process does not have; set secrets.key_id and \
             secrets.master_key to it, add it to secrets.previous_keys, or seal the secret again with \
             `hub secrets seal {name}`"
        ),
        SealError::Forged => format!(
            "cannot be opened: it was sealed with another key of the same secrets.key_id, for another setting, or \
             was changed; seal the secret again with `hub secrets seal {name}`"
        ),
        SealError::Malformed => format!(
            "begins with {PREFIX:?} but is not in sealed form ({PREFIX}v1.<key id>.<base64url>); seal the secret with \
             `hub secrets seal {name}`, or choose a secret with another beginning"
        ),
    }
}

impl Sealer {
    /// The sealed text for the settings.
    pub fn seal_setting(&self, name: &SecretName, secret: &SecretString) -> String {
        format!("{PREFIX}{}", self.seal(&name.to_string(), secret))
    }

    /// The secrets of the settings that are sealed with a previous key.
    pub fn outdated_settings(&self, settings: &Settings) -> Vec<Outdated> {
        let mut settings = settings.clone();
        let secrets = settings.secrets_mut().into_iter().filter_map(|(name, secret)| {
            let sealed = secret.expose_secret().strip_prefix(PREFIX)?;
            let key_id = sealed.split('.').nth(1).unwrap_or_default();
            if key_id == self.key_id {
                return None;
            }
            let opened = self.open(&name.to_string(), sealed);
            let anew = opened.map(|plain| self.seal_setting(&name, &plain));
            Some(Outdated { key_id: key_id.to_owned(), anew, name })
        });
        secrets.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const OTHER: &str = "IAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn settings(secrets: &str, password: &str, token: &str) -> Settings {
        let text = format!(
            "[secrets]\n{secrets}\n\
             [[external_brokers]]\nname = 'redis'\nprovider = 'redis'\nurl = 'redis://127.0.0.1'\npassword = '{password}'\n\
             [[external_brokers]]\nname = 'nats'\nprovider = 'nats'\nurl = 'nats://127.0.0.1'\ntoken = '{token}'\n"
        );
        Settings::from_toml("hub.toml", &text).unwrap()
    }

    fn sealed(secrets: &str, name: &str, secret: &str) -> String {
        let sealer = Sealer::from_settings(&settings(secrets, "", "").secrets).unwrap().unwrap();
        sealer.seal_setting(&name.parse().unwrap(), &SecretString::from(secret))
    }

    fn refusal(settings: &Settings) -> String {
        let error = open_settings(settings, |_| true).expect_err("does not open").to_string();
        assert!(!error.contains("hush"), "{error}");
        error
    }

    #[test]
    fn sealed_secrets_open_where_they_belong_and_plain_ones_stay() {
        let with_key = format!("master_key = '{KEY}'");
        let password = sealed(&with_key, "external_brokers.redis.password", "hush");
        assert!(password.starts_with("sealed:v1.k1.") && !password.contains("hush"), "{password}");
        let given = settings(&with_key, &password, "plain");
        let opened = open_settings(&given, |_| true).unwrap();
        let secrets = |settings: &Settings| {
            settings
                .clone()
                .secrets_mut()
                .iter()
                .map(|(_, secret)| secret.expose_secret().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(secrets(&opened), ["hush", "plain"]);
        assert_eq!(secrets(&open_settings(&opened, |_| true).unwrap()), ["hush", "plain"], "once is enough");
        assert_eq!(secrets(&open_settings(&given, |_| false).unwrap()), [password.as_str(), "plain"]);
        assert!(!opened.show().contains("hush") && !format!("{opened:?}").contains("hush"));
        assert!(!given.show().contains(&password), "hidden as ever");

        // Copied to another setting it does not open.
        let moved = refusal(&settings(&with_key, "", &password));
        assert!(moved.starts_with("external_brokers[nats].token: cannot be opened"), "{moved}");
        assert!(moved.contains("hub secrets seal external_brokers.nats.token"), "{moved}");
    }

    #[test]
    fn every_secret_that_does_not_open_is_named_with_the_remedy() {
        let with_key = format!("master_key = '{KEY}'");
        let password = sealed(&with_key, "external_brokers.redis.password", "hush");
        let token = sealed(&with_key, "external_brokers.nats.token", "hush");

        let none = refusal(&settings("", &password, &token));
        let lines: Vec<&str> = none.lines().collect();
        assert_eq!(lines.len(), 2, "{none}");
        assert!(
            lines[0].starts_with("external_brokers[redis].password: is sealed, but no master key is set"),
            "{none}"
        );
        assert!(
            lines[1].starts_with("external_brokers[nats].token: ") && lines[1].ends_with("(hub.toml)"),
            "{none}"
        );

        let missing = refusal(&settings(&format!("master_key = '{OTHER}'\nkey_id = 'k2'"), &password, ""));
        assert!(missing.contains("the key \"k1\"") && missing.contains("secrets.previous_keys"), "{missing}");

        let other = refusal(&settings(&format!("master_key = '{OTHER}'"), &password, ""));
        assert!(other.contains("another key of the same secrets.key_id"), "{other}");

        let last = password.chars().next_back().unwrap();
        let changed = format!("{}{}", &password[..password.len() - 1], if last == 'A' { 'Q' } else { 'A' });
        for text in [changed.as_str(), "sealed:", "sealed:hush", "sealed:v1.k1.!", "sealed:v2.k1.AAAA"] {
            let error = refusal(&settings(&with_key, text, ""));
            assert!(error.starts_with("external_brokers[redis].password: "), "{error}");
            assert!(error.contains("hub secrets seal external_brokers.redis.password"), "{error}");
        }
        let unreadable = settings("master_key_file = '/nowhere/key'", &password, "");
        assert!(refusal(&unreadable).contains("/nowhere/key"));
    }

    #[test]
    fn what_an_older_key_seals_is_told_with_its_replacement() {
        let old = format!("master_key = '{KEY}'");
        let both = format!("master_key = '{OTHER}'\nkey_id = 'k2'\nprevious_keys = ['k1:{KEY}']");
        let current = sealed(&both, "external_brokers.nats.token", "hush-2");
        let given = settings(&both, &sealed(&old, "external_brokers.redis.password", "hush-1"), &current);
        let sealer = Sealer::from_settings(&given.secrets).unwrap().unwrap();
        let outdated = sealer.outdated_settings(&given);
        let [Outdated { name, key_id, anew: Ok(anew) }] = &outdated[..] else { panic!("{outdated:?}") };
        assert_eq!((name.to_string().as_str(), key_id.as_str()), ("external_brokers.redis.password", "k1"));

        let alone = format!("master_key = '{OTHER}'\nkey_id = 'k2'");
        let replaced = settings(&alone, anew, &current);
        let mut opened = open_settings(&replaced, |_| true).unwrap();
        assert_eq!(opened.secrets_mut()[0].1.expose_secret(), "hush-1");
        let sealer = Sealer::from_settings(&replaced.secrets).unwrap().unwrap();
        assert_eq!(sealer.outdated_settings(&replaced), []);
        assert!(matches!(&sealer.outdated_settings(&given)[..], [Outdated { anew: Err(_), .. }]));
    }
}
