//! `hub registry`: backup and restore of the subscription registry.

mod export;
mod import;

use std::path::PathBuf;

use clap::Subcommand;

use super::error::{Answer, CliError};
use super::output::Printer;
use crate::settings::Settings;

#[derive(Debug, Subcommand)]
pub(super) enum RegistryCommand {
    /// Write all subscriptions, with their incarnations and sealed secrets, as JSON
    Export {
        /// File to write; standard output without it
        #[arg(long, short, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Restore the subscriptions of a backup
    Import(import::ImportOptions),
}

pub(super) async fn run(
    command: RegistryCommand,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    match command {
        RegistryCommand::Export { file } => export::run(file.as_deref(), settings, printer).await,
        RegistryCommand::Import(options) => import::run(options, settings, printer).await,
    }
}
