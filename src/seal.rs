//! Credentials at rest: sealed with a master key, and opened only when a request is made. Previous keys still open
//! what they sealed; `hub secrets rotate` seals it with the current key.
//!
//! XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) with a random 192-bit nonce, which is long enough for any number of
//! secrets with one key. The associated data name the place that a text is sealed for, so that it opens nowhere else:
//! see `seal/subscriptions.rs`, and `seal/settings.rs` for the secrets of the settings.

mod settings;
mod subscriptions;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, STANDARD, URL_SAFE_NO_PAD};
use chacha20poly1305::aead::{Aead, AeadCore, KeyInit, OsRng, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use secrecy::{ExposeSecret, SecretString};

use crate::domain::message_id::MessageIds;
use crate::settings::{Secrets, SettingProblem, Settings};

pub use settings::{OpenSettingsError, Outdated, PREFIX, open_settings};
pub use subscriptions::{Place, is_bound, open_subscription, reseal_subscription, seal_subscription};

const V1: &str = "v1.";
/// Largest key file in bytes.
const MOST_KEY_FILE: u64 = 4096;
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;
const ENCODING: GeneralPurpose = URL_SAFE_NO_PAD;

/// Seals credentials with the current master key, and opens those sealed with it or a previous key.
#[derive(Clone)]
pub struct Sealer {
    /// By key id.
    ciphers: HashMap<String, XChaCha20Poly1305>,
    /// The id of the key that seals.
    key_id: String,
    message_ids: MessageIds,
}

/// Why a sealed credential cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error(
        "the credential is sealed with the key {key_id:?}, which this process does not have; set secrets.key_id and secrets.master_key (or secrets.master_key_file) to it, or add it to secrets.previous_keys (or secrets.previous_key_files)"
    )]
    MissingKey { key_id: String },
    #[error(
        "the credential cannot be opened: it was sealed with another key of the same secrets.key_id, for another subscription or field, or was changed; apply the subscription again"
    )]
    Forged,
    #[error("the credential is not in sealed form (v2.<key id>.<base64url>); apply the subscription again")]
    Malformed,
}

/// Why the master key of the settings is unusable. The text contains nothing of the key.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    #[error("{setting}: {} cannot be read: {source}; correct the path or the file's permissions", file.display())]
    Read { setting: &'static str, file: PathBuf, source: std::io::Error },
    #[error("{setting}: is not 32 bytes in base64; create a key with `openssl rand -base64 32`")]
    NotAKey { setting: &'static str },
}

impl MasterKeyError {
    /// The error with the layer of the setting.
    pub(crate) fn in_settings(&self, settings: &Settings) -> SettingProblem {
        let (Self::Read { setting, .. } | Self::NotAKey { setting }) = self;
        let text = self.to_string();
        let problem = text.strip_prefix(&format!("{setting}: ")).unwrap_or(&text);
        settings.problem(setting, problem)
    }
}

impl Sealer {
    /// The sealer with the settings' master keys; `None` without a current key.
    pub fn from_settings(secrets: &Secrets) -> Result<Option<Self>, MasterKeyError> {
        let (setting, text) = match (&secrets.master_key, &secrets.master_key_file) {
            (Some(key), _) => ("secrets.master_key", key.clone()),
            (None, Some(file)) => ("secrets.master_key_file", read("secrets.master_key_file", file)?),
            (None, None) => return Ok(None),
        };
        let mut ciphers = HashMap::from([(secrets.key_id.clone(), cipher(setting, &text)?)]);
        for entry in &secrets.previous_keys {
            let setting = "secrets.previous_keys";
            let (id, key) =
                entry.expose_secret().split_once(':').ok_or(MasterKeyError::NotAKey { setting })?;
            ciphers.entry(id.to_owned()).or_insert(cipher(setting, &SecretString::from(key))?);
        }
        for entry in &secrets.previous_key_files {
            let setting = "secrets.previous_key_files";
            let (id, file) = entry.split_once(':').ok_or(MasterKeyError::NotAKey { setting })?;
            ciphers.entry(id.to_owned()).or_insert(cipher(setting, &read(setting, Path::new(file))?)?);
        }
        let message_ids = MessageIds::derived_from(text.expose_secret().trim().as_bytes());
        Ok(Some(Self { ciphers, key_id: secrets.key_id.clone(), message_ids }))
    }

    /// The source of message ids, with a secret that is derived from the current key.
    pub fn message_ids(&self) -> MessageIds {
        self.message_ids.clone()
    }

    /// The id of the key that seals.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Seals the secret of the setting `name`. Each call returns a different text.
    pub fn seal(&self, name: &str, secret: &SecretString) -> String {
        self.seal_as(V1, name.as_bytes(), secret)
    }

    /// Opens a text that was sealed for `name`: a setting, or, before `v2`, a subscription's id.
    pub fn open(&self, name: &str, sealed: &str) -> Result<SecretString, SealError> {
        self.open_as(V1, name.as_bytes(), sealed)
    }

    /// `<version><key id>.<base64url of nonce and ciphertext, unpadded>`; `version` with its dot.
    fn seal_as(&self, version: &str, associated: &[u8], secret: &SecretString) -> String {
        let nonce = XChaCha20Poly1305::generate_nonce(&mut OsRng);
        let payload = Payload { msg: secret.expose_secret().as_bytes(), aad: associated };
        let cipher = self.ciphers.get(&self.key_id).expect("from_settings inserts the current key");
        let ciphertext = cipher.encrypt(&nonce, payload).expect("only a text of 256 GiB or more fails");
        let bytes = [nonce.as_slice(), &ciphertext].concat();
        format!("{version}{}.{}", self.key_id, ENCODING.encode(bytes))
    }

    fn open_as(&self, version: &str, associated: &[u8], sealed: &str) -> Result<SecretString, SealError> {
        let (key_id, encoded) =
            sealed.strip_prefix(version).and_then(|rest| rest.split_once('.')).ok_or(SealError::Malformed)?;
        let bytes = ENCODING.decode(encoded).map_err(|_| SealError::Malformed)?;
        let (nonce, ciphertext) = bytes.split_at_checked(NONCE_BYTES).ok_or(SealError::Malformed)?;
        let cipher =
            self.ciphers.get(key_id).ok_or_else(|| SealError::MissingKey { key_id: key_id.to_owned() })?;
        let payload = Payload { msg: ciphertext, aad: associated };
        let plain = cipher.decrypt(XNonce::from_slice(nonce), payload).map_err(|_| SealError::Forged)?;
        String::from_utf8(plain).map(SecretString::from).map_err(|_| SealError::Malformed)
    }
}

fn read(setting: &'static str, file: &Path) -> Result<SecretString, MasterKeyError> {
    let text = read_small(file);
    text.map(SecretString::from).map_err(|source| MasterKeyError::Read {
        setting,
        file: file.to_owned(),
        source,
    })
}

/// Reads a small regular file. Reading a pipe or a device might never end.
fn read_small(file: &Path) -> io::Result<String> {
    let length = match std::fs::metadata(file)? {
        about if about.is_file() => about.len(),
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    };
    if length > MOST_KEY_FILE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("the file has {length} bytes, too many for a key"),
        ));
    }
    std::fs::read_to_string(file)
}

fn cipher(setting: &'static str, text: &SecretString) -> Result<XChaCha20Poly1305, MasterKeyError> {
    let key = STANDARD.decode(text.expose_secret().trim()).ok().filter(|key| key.len() == KEY_BYTES);
    key.map(|key| XChaCha20Poly1305::new(Key::from_slice(&key))).ok_or(MasterKeyError::NotAKey { setting })
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::subscription::{Secret, Subscription};
    use crate::settings::Settings;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const OTHER: &str = "IAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn sealer(key: &str, key_id: &str) -> Sealer {
        let mut secrets = Settings::defaults().secrets;
        secrets.master_key = Some(SecretString::from(key));
        secrets.key_id = key_id.to_owned();
        Sealer::from_settings(&secrets).unwrap().unwrap()
    }

    #[test]
    fn opens_what_it_sealed_and_nothing_else() {
        let ours = sealer(KEY, "k1");
        let secret = SecretString::from("correct horse");
        let sealed = ours.seal("billing-crm", &secret);
        assert!(sealed.starts_with("v1.k1."));
        assert!(!sealed.contains("horse"));
        assert_ne!(sealed, ours.seal("billing-crm", &secret), "a nonce was used twice");
        assert_eq!(ours.open("billing-crm", &sealed).unwrap().expose_secret(), "correct horse");

        let refused = |sealer: &Sealer, aad: &str, text: &str| sealer.open(aad, text).unwrap_err();
        assert_eq!(refused(&ours, "another", &sealed), SealError::Forged);
        assert_eq!(refused(&sealer(OTHER, "k1"), "billing-crm", &sealed), SealError::Forged);
        let missing = SealError::MissingKey { key_id: "k1".to_owned() };
        assert_eq!(refused(&sealer(KEY, "k2"), "billing-crm", &sealed), missing);

        let (head, encoded) = sealed.rsplit_once('.').unwrap();
        let mut bytes = ENCODING.decode(encoded).unwrap();
        for position in 0..bytes.len() {
            bytes[position] ^= 1;
            let changed = format!("{head}.{}", ENCODING.encode(&bytes));
            assert_eq!(refused(&ours, "billing-crm", &changed), SealError::Forged, "byte {position}");
            bytes[position] ^= 1;
        }
        for text in ["", "v1.k1", "v2.k1.AAAA", "v1.k1.AAAA", "v1.k1.?", "v1.k1.AAAA.AAAA", "plain"] {
            assert_eq!(refused(&ours, "billing-crm", text), SealError::Malformed, "{text:?}");
        }
    }

    #[test]
    fn a_previous_key_opens_and_never_seals() {
        let old = sealer(KEY, "k1");
        let text = format!(
            r#"{{"id":"crm","events":["user.>"],"delivery":{{"url":"https://crm.example/",
            "auth":{{"type":"bearer","token":"{}"}},"signing":{{"secret":"hush-2",
            "previous":{{"secret":"hush-3","until":"2030-01-01T00:00:00Z"}}}}}}}}"#,
            "hush-1"
        );
        let mut subscription: Subscription = serde_json::from_str(&text).unwrap();
        seal_subscription(&old, &mut subscription);

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("k1");
        std::fs::write(&file, format!("{KEY}\n")).unwrap();
        let mut secrets = Settings::defaults().secrets;
        secrets.master_key = Some(SecretString::from(OTHER));
        secrets.key_id = "k2".to_owned();
        let without = Sealer::from_settings(&secrets).unwrap().unwrap();
        let missing = SealError::MissingKey { key_id: "k1".to_owned() };
        let before = serde_json::to_string(&subscription).unwrap();
        assert_eq!(reseal_subscription(&without, &mut subscription), Err(missing));
        assert_eq!(serde_json::to_string(&subscription).unwrap(), before);

        let mut with_file = secrets.clone();
        with_file.previous_key_files = vec![format!("k1:{}", file.display())];
        secrets.previous_keys = vec![SecretString::from(format!("k1:{KEY}"))];
        for secrets in [with_file, secrets] {
            let new = Sealer::from_settings(&secrets).unwrap().unwrap();
            let mut rotated = subscription.clone();
            assert_eq!(reseal_subscription(&new, &mut rotated), Ok(3));
            assert_eq!(reseal_subscription(&new, &mut rotated), Ok(0), "sealed again without need");
            assert!(!serde_json::to_string(&rotated).unwrap().contains(".k1."));
            open_subscription(&without, &mut rotated).unwrap();
            assert!(open_subscription(&old, &mut subscription.clone()).is_ok());
        }
        let mut bad = Settings::defaults().secrets;
        bad.master_key = Some(SecretString::from(OTHER));
        bad.previous_keys = vec![SecretString::from("k0:hush")];
        let error = Sealer::from_settings(&bad).unwrap_err();
        assert!(matches!(error, MasterKeyError::NotAKey { setting: "secrets.previous_keys" }));
        assert!(!error.to_string().contains("hush"));
    }

    #[test]
    fn the_master_key_comes_from_the_settings_or_a_file() {
        let mut secrets = Settings::defaults().secrets;
        assert!(Sealer::from_settings(&secrets).unwrap().is_none());

        secrets.master_key = Some(SecretString::from("dG9vIHNob3J0"));
        let error = Sealer::from_settings(&secrets).unwrap_err();
        assert!(matches!(error, MasterKeyError::NotAKey { setting: "secrets.master_key" }));
        assert!(!error.to_string().contains("dG9v"));

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        secrets.master_key = None;
        secrets.master_key_file = Some(file.clone());
        assert!(matches!(Sealer::from_settings(&secrets), Err(MasterKeyError::Read { .. })));
        std::fs::write(&file, format!("{KEY}\n")).unwrap();
        let from_file = Sealer::from_settings(&secrets).unwrap().unwrap();
        let sealed = sealer(KEY, "k1").seal("a", &SecretString::from("s"));
        assert_eq!(from_file.open("a", &sealed).unwrap().expose_secret(), "s");
        assert!(!format!("{from_file:?}").contains("AAEC"));
    }

    #[test]
    fn every_credential_of_a_subscription_is_sealed_and_opened() {
        let auths = [
            r#"{"type":"none"}"#,
            r#"{"type":"api_key","key":"hush-1"}"#,
            r#"{"type":"basic","username":"u","password":"hush-1"}"#,
            r#"{"type":"bearer","token":"hush-1"}"#,
            r#"{"type":"oauth2","token_url":"https://idp.example/t","client_id":"c","client_secret":"hush-1"}"#,
        ];
        for auth in auths {
            let text = format!(
                r#"{{"id":"crm","events":["user.>"],"delivery":{{"url":"https://crm.example/","auth":{auth},
                "signing":{{"secret":"hush-2"}}}}}}"#
            );
            let mut subscription: Subscription = serde_json::from_str(&text).unwrap();
            assert!(serde_json::to_string(&subscription).is_err(), "a plain secret was written");

            let sealer = sealer(KEY, "k1");
            seal_subscription(&sealer, &mut subscription);
            let stored = serde_json::to_string(&subscription).unwrap();
            assert!(!stored.contains("hush"), "{stored}");

            let mut read: Subscription = serde_json::from_str(&stored).unwrap();
            seal_subscription(&sealer, &mut read);
            assert_eq!(serde_json::to_string(&read).unwrap(), stored, "sealed twice");

            open_subscription(&sealer, &mut read).unwrap();
            let opened: Vec<String> = read
                .secrets_mut()
                .into_iter()
                .map(|secret| match secret {
                    Secret::Plain(plain) => plain.expose_secret().to_owned(),
                    Secret::Sealed(_) => panic!("still sealed"),
                })
                .collect();
            let expected: &[&str] = if auth.contains("none") { &["hush-2"] } else { &["hush-1", "hush-2"] };
            assert_eq!(opened, expected);
        }
    }
}
