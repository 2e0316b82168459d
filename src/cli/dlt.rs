//! `hub dlt`: looking at dead letters, and settling them.

mod list;
mod select;
mod settle;
mod show;
mod stats;

use clap::Subcommand;

pub(super) use self::select::Moment;

use super::error::{Answer, CliError};
use super::output::Printer;
use crate::settings::Settings;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Dead letters, by domain, oldest first
    List(list::Options),
    /// One dead letter with its event, its delivery and its last attempt
    Show {
        /// The id, as `hub dlt list` shows it
        id: String,
    },
    /// Send dead letters again now, in the order of their streams
    Replay(settle::ReplayOptions),
    /// Remove dead letters for good, undelivered
    Discard(settle::DiscardOptions),
    /// How many there are, by domain, reason and state, and by subscription
    Stats {
        /// Of these domains alone; repeat it or separate by commas
        #[arg(long = "domain", value_name = "NAME", value_delimiter = ',')]
        domains: Vec<String>,
    },
}

pub async fn run(command: Command, settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    match command {
        Command::List(options) => list::run(options, settings, printer).await,
        Command::Show { id } => show::run(&id, settings, printer).await,
        Command::Replay(options) => settle::replay(options, settings, printer).await,
        Command::Discard(options) => settle::discard(options, settings, printer).await,
        Command::Stats { domains } => stats::run(&domains, settings, printer).await,
    }
}
