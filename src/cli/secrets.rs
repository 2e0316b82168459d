//! `hub secrets`: the master keys, and what they seal.

mod rotate;
mod seal;

use clap::Subcommand;

use super::error::{Answer, CliError};
use super::output::Printer;
use crate::settings::{SecretName, Settings};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Seal every credential anew with the current key (secrets.key_id) and in the current form, and tell what of the settings an older
    /// one seals. May be run again at any time
    Rotate,
    /// Seal a secret of the settings, read from standard input (from a terminal without an echo), and print the
    /// text that takes its place there
    Seal {
        /// The setting, such as external_brokers.partner_events.password, nats.password or outbox.database_url
        setting: SecretName,
    },
}

pub async fn run(command: Command, settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    match command {
        Command::Rotate => rotate::run(settings, printer).await,
        Command::Seal { setting } => seal::run(&setting, settings, printer),
    }
}
