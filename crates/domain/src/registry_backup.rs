//! A backup of the subscription registry: each subscription as it is stored, with its incarnation and its sealed
//! secrets, so that waiting envelopes still belong to the restored subscriptions.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use super::index::{EntryError, IndexEntry};
use super::subscription::{Secret, Subscription, SubscriptionRef};

const FORMAT: &str = "integration-hub-registry";
const VERSION: u32 = 1;

/// The file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    version: u32,
    #[serde(with = "time::serde::rfc3339")]
    exported_at: OffsetDateTime,
    subscriptions: Vec<Value>,
}

/// Why a file cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("not a backup of the registry: {0}; use a file that `hub registry export` wrote")]
    NotABackup(#[source] serde_json::Error),
    #[error(
        "not a backup of the registry: format {format:?} version {version}; this version of the hub reads {FORMAT:?} version {VERSION}"
    )]
    OtherFormat { format: String, version: u32 },
    #[error("invalid subscriptions:{}", lines(.0))]
    Invalid(Vec<InvalidBackupEntry>),
}

/// One entry of `subscriptions` that cannot be imported. `position` begins with 0.
#[derive(Debug, thiserror::Error)]
#[error("subscriptions[{position}]: {problem}")]
pub struct InvalidBackupEntry {
    pub position: usize,
    #[source]
    pub problem: BackupEntryError,
}

/// Why an entry cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum BackupEntryError {
    #[error(transparent)]
    NotASubscription(#[from] serde_json::Error),
    #[error("contains a secret that is not sealed; use `hub subscription apply` for it")]
    NotSealed,
    #[error(transparent)]
    Unusable(#[from] EntryError),
    #[error("{name} occurs twice")]
    Twice { name: SubscriptionRef },
}

fn lines(problems: &[InvalidBackupEntry]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

/// A backup as JSON.
pub fn write(
    subscriptions: &[Subscription],
    exported_at: OffsetDateTime,
) -> Result<Value, serde_json::Error> {
    let subscriptions = subscriptions.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    let document = Document { format: FORMAT.to_owned(), version: VERSION, exported_at, subscriptions };
    serde_json::to_value(&document)
}

/// Reads and validates a backup as a whole.
pub fn read(bytes: &[u8]) -> Result<Vec<(SubscriptionRef, Subscription)>, BackupError> {
    let document: Document = serde_json::from_slice(bytes).map_err(BackupError::NotABackup)?;
    let Document { format, version, subscriptions, .. } = document;
    if format != FORMAT || version != VERSION {
        return Err(BackupError::OtherFormat { format, version });
    }
    let (mut read, mut problems, mut names) = (Vec::new(), Vec::new(), HashSet::new());
    for (position, value) in subscriptions.into_iter().enumerate() {
        match entry(value) {
            Ok((name, _)) if !names.insert(name.clone()) => {
                problems.push(InvalidBackupEntry { position, problem: BackupEntryError::Twice { name } });
            }
            Ok(entry) => read.push(entry),
            Err(problem) => problems.push(InvalidBackupEntry { position, problem }),
        }
    }
    if problems.is_empty() { Ok(read) } else { Err(BackupError::Invalid(problems)) }
}

fn entry(value: Value) -> Result<(SubscriptionRef, Subscription), BackupEntryError> {
    let subscription: Subscription = serde_json::from_value(value)?;
    if subscription.clone().secrets_mut().iter().any(|secret| matches!(secret, Secret::Plain(_))) {
        return Err(BackupEntryError::NotSealed);
    }
    let entry = IndexEntry::new(subscription.clone(), 0)?;
    Ok((entry.subscription.reference.clone(), subscription))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stored(id: &str) -> Subscription {
        Subscription::from_value(json!({
            "id": id, "tenant": "acme", "events": ["user.*"], "delivery": {"url": "https://crm.example/hook"}
        }))
        .expect("a subscription")
    }

    fn document(subscriptions: Value) -> Vec<u8> {
        let document = json!({
            "format": FORMAT, "version": VERSION, "exported_at": "2026-01-01T00:00:00Z",
            "subscriptions": subscriptions,
        });
        serde_json::to_vec(&document).expect("JSON")
    }

    #[test]
    fn a_backup_reads_back_as_it_was() {
        let all = [stored("a"), stored("b")];
        let text = write(&all, OffsetDateTime::UNIX_EPOCH).expect("JSON").to_string();
        let read = read(text.as_bytes()).expect("a backup");
        let values = |all: &[&Subscription]| {
            all.iter().map(|one| serde_json::to_value(one).expect("JSON")).collect::<Vec<_>>()
        };
        let back: Vec<&Subscription> = read.iter().map(|(_, one)| one).collect();
        assert_eq!(values(&back), values(&all.iter().collect::<Vec<_>>()));
        assert_eq!(read[0].0.to_string(), "acme/a");
    }

    #[test]
    fn each_problem_is_named_and_nothing_is_read() {
        let mut open = serde_json::to_value(stored("c")).expect("JSON");
        open["delivery"]["auth"] = json!({"type": "bearer", "token": "plain"});
        let one = serde_json::to_value(stored("a")).expect("JSON");
        let error = read(&document(json!([one, one, 5, open]))).expect_err("invalid").to_string();
        for problem in ["[1]: acme/a occurs twice", "[2]: ", "[3]: contains a secret that is not sealed"] {
            assert!(error.contains(problem), "{problem} in {error}");
        }
    }

    #[test]
    fn other_files_are_refused() {
        for bytes in [&b""[..], b"[]", b"{\"subscriptions\":[]}", &[0xff, 0xfe]] {
            assert!(matches!(read(bytes), Err(BackupError::NotABackup(_))));
        }
        let other = br#"{"format":"x","version":9,"exported_at":"2026-01-01T00:00:00Z","subscriptions":[]}"#;
        assert!(matches!(read(other), Err(BackupError::OtherFormat { version: 9, .. })));
    }
}
