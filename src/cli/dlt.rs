//! `hub dlt`: lists, replays and discards dead letters.

mod drain;
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
pub(super) enum DltCommand {
    /// List dead letters by domain, oldest first
    #[command(after_help = "Example:\n  hub dlt list --domain user-lifecycle --reason exhausted --since 2h")]
    List(list::DltListOptions),
    /// Show a dead letter with its event, its delivery settings and its last attempt
    Show {
        /// Id, as printed by `hub dlt list`
        id: String,
    },
    /// Replay dead letters now, in the order of their streams
    #[command(
        after_help = "Examples:\n  hub dlt replay env_a env_b --wait\n  hub dlt replay --subscription acme/crm\n  hub dlt replay --all --drain"
    )]
    Replay(settle::ReplayOptions),
    /// Discard dead letters without delivering them
    #[command(after_help = "Example:\n  hub dlt discard --subscription acme/crm --until 7d --yes")]
    Discard(settle::DiscardOptions),
    /// Count dead letters by domain, reason and state, and by subscription
    Stats {
        /// Domains; repeatable, or separated by commas [default: all]
        #[arg(long = "domain", value_name = "NAME", value_delimiter = ',')]
        domains: Vec<String>,
    },
}

pub(super) async fn run(
    command: DltCommand,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    match command {
        DltCommand::List(options) => list::run(options, settings, printer).await,
        DltCommand::Show { id } => show::run(&id, settings, printer).await,
        DltCommand::Replay(options) => settle::replay(options, settings, printer).await,
        DltCommand::Discard(options) => settle::discard(options, settings, printer).await,
        DltCommand::Stats { domains } => stats::run(&domains, settings, printer).await,
    }
}
