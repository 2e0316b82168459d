//! `hub config`: the settings. They were read and checked before this runs.

use std::path::Path;

use clap::Subcommand;
use serde_json::json;

use super::error::{Answer, CliError};
use super::output::Printer;
use crate::seal::{Sealer, open_settings};
use crate::settings::{DEFAULT_FILE, Settings};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check the settings; every problem is told with its key, its layer and the remedy
    Check,
    /// Print the settings in force as TOML, each with the layer it comes from; secrets are hidden
    Show,
}

pub fn run(
    command: Command,
    file: Option<&Path>,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    match command {
        Command::Check => {
            // The file it names has to be there and hold a key.
            let sealer = Sealer::from_settings(&settings.secrets)?;
            open_settings(settings, |_| true)?;
            let file = file.map(Path::to_owned).or_else(|| {
                let default = Path::new(DEFAULT_FILE);
                default.exists().then(|| default.to_owned())
            });
            let variables = variables();
            if printer.is_json() {
                printer.json(
                    &json!({"ok": true, "file": file, "environment": variables, "master_key": sealer.is_some()}),
                )?;
                return Ok(Answer::Yes);
            }
            let mut layers = vec!["the defaults".to_owned()];
            layers.extend(file.map(|file| file.display().to_string()));
            layers.extend(variables);
            printer.line(&format!("ok: {}", layers.join(", ")))?;
        }
        Command::Show if printer.is_json() => {
            let table: toml::Table = toml::from_str(&settings.show()).map_err(|error| {
                CliError::Usage(format!(
                    "the settings cannot be shown as JSON ({error}); leave out --output json"
                ))
            })?;
            printer.json(&table)?;
        }
        Command::Show => printer.lines(settings.show().trim_end())?,
    }
    Ok(Answer::Yes)
}

/// The names of the environment's settings; the values may be secret.
fn variables() -> Vec<String> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("HUB__")).collect();
    names.sort();
    names
}
