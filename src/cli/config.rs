//! `hub config`: checks and prints the settings, which were loaded before.

use std::path::Path;

use clap::Subcommand;
use serde_json::json;

use super::error::{Answer, CliError};
use super::output::{Printer, warn};
use crate::domain::words::counted;
use crate::seal::{Sealer, open_settings};
use crate::serve::ServeError;
use crate::settings::{DEFAULT_FILE, Settings, SettingsError};
use hub_outbox::{Store, StoreOptions};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check the settings; a problem is reported with its key, its layer and a remedy
    Check,
    /// Print the effective settings as TOML, each with its layer; secrets are hidden
    Show,
}

pub(super) fn run(
    command: ConfigCommand,
    file: Option<&Path>,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    match command {
        ConfigCommand::Check => {
            // Checks that secrets.master_key_file exists and holds a key.
            let sealer = Sealer::from_settings(&settings.secrets)
                .map_err(|error| SettingsError::Invalid(vec![error.in_settings(settings)]))?;
            let opened = open_settings(settings, |_| true)?;
            if let Some(url) = &opened.outbox.database_url {
                // Checks the URL; opens no connection.
                Store::new(StoreOptions::new(url.clone())).map_err(ServeError::Store)?;
            }
            let cautions = settings.cautions();
            for caution in &cautions {
                warn(&caution.to_string());
            }
            let file = file.map(Path::to_owned).or_else(|| {
                let default = Path::new(DEFAULT_FILE);
                default.exists().then(|| default.to_owned())
            });
            let variables = variables();
            if printer.is_json() {
                printer.json(
                    &json!({"ok": true, "file": file, "environment": variables, "master_key": sealer.is_some(),
                        "warnings": cautions.iter().map(ToString::to_string).collect::<Vec<_>>()}),
                )?;
                return Ok(Answer::Yes);
            }
            let mut layers = vec!["the defaults".to_owned()];
            layers.extend(file.map(|file| file.display().to_string()));
            layers.extend(variables);
            let found = match cautions.len() {
                0 => String::new(),
                found => format!("; {}", counted(found, "warning")),
            };
            printer.line(&format!("ok: {}{found}", layers.join(", ")))?;
        }
        ConfigCommand::Show if printer.is_json() => {
            let table: toml::Table =
                toml::from_str(&settings.show()).map_err(|error| CliError::NotAsJson(Box::new(error)))?;
            printer.json(&table)?;
        }
        ConfigCommand::Show => printer.lines(settings.show().trim_end())?,
    }
    Ok(Answer::Yes)
}

/// The names of the settings in the environment, without their values, which may be secret.
fn variables() -> Vec<String> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("HUB__")).collect();
    names.sort();
    names
}
