//! `hub registry export`

use std::io::Write as _;
use std::path::Path;

use serde_json::json;

use crate::cli::connect;
use crate::cli::error::{Answer, CliError};
use crate::cli::output::{Printer, warn};
use crate::domain::registry_backup;
use crate::domain::subscription::Subscription;
use crate::domain::words::counted;
use crate::nats::{NatsError, RegistryListing};
use crate::settings::Settings;

pub(super) async fn run(
    file: Option<&Path>,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    let js = connect(settings).await?;
    // A backup of a lost registry would replace a good one.
    js.check_registry().await?;
    let RegistryListing { subscriptions, unreadable } = js.registry_listing().await?;
    // So would one that a server without a leader has, and that lacks the last changes.
    if let Some(domain) = settings.domains.first() {
        js.confirm_leader(&js.names().outbox_stream(&domain.name)).await?;
    }
    for entry in &unreadable {
        let kept = match entry.in_force {
            Some(revision) if revision > 0 => "its last readable revision is exported",
            _ => "it is not exported",
        };
        warn(&format!("{}: the entry is unreadable, {kept}: {}", entry.name, entry.reason));
    }
    let subscriptions: Vec<Subscription> =
        subscriptions.into_iter().map(|stored| stored.subscription).collect();
    let document = registry_backup::write(&subscriptions, js.now())
        .map_err(|error| NatsError::encode("the backup", error))?;
    match file {
        // Escaped for a terminal; still the same JSON.
        None => printer.json(&document)?,
        Some(path) => {
            write(path, &format!("{document:#}\n"))
                .map_err(|source| CliError::FileNotWritten { path: path.to_owned(), source })?;
            if printer.is_json() {
                printer.json(&json!({
                    "file": path.display().to_string(), "exported": subscriptions.len(), "unreadable": unreadable.len(),
                }))?;
            } else {
                let count = counted(subscriptions.len(), "subscription");
                printer.line(&format!("{count} exported to {}", path.display()))?;
            }
        }
    }
    Ok(if unreadable.is_empty() { Answer::Yes } else { Answer::No })
}

/// Writes the file as a whole, readable by its owner only: an interrupted export leaves the previous backup.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path).map(drop).map_err(|error| error.error)
}
