//! `hub secrets`: seals secrets, and rotates the master key.

mod rotate;
mod seal;

use clap::Subcommand;

use super::error::{Answer, CliError};
use super::output::Printer;
use crate::settings::{SecretName, Settings};

#[derive(Debug, Subcommand)]
pub(super) enum SecretsCommand {
    /// Reseal all stored credentials with the current key (secrets.key_id), and report settings sealed with an older key;
    /// safe to repeat
    Rotate,
    /// Seal a secret for the settings: read it from standard input, and print the sealed value
    #[command(after_help = "Example:\n  hub secrets seal nats.password < password.txt")]
    Seal {
        /// Setting, for example external_brokers.partner_events.password, nats.password or outbox.database_url
        setting: SecretName,
    },
}

pub(super) async fn run(
    command: SecretsCommand,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    match command {
        SecretsCommand::Rotate => rotate::run(settings, printer).await,
        SecretsCommand::Seal { setting } => seal::run(&setting, settings, printer),
    }
}
