//! The command line: `hub`. One file per group of commands; each reads its options, does one
//! thing through the management layer or the adapters, and prints an answer.

mod config;
mod dlt;
mod domain;
mod error;
mod event;
pub mod logging;
mod outbox;
mod output;
mod provision;
mod publish;
mod secrets;
mod serve;
mod subscription;
mod token;

use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};

pub use error::{Answer, CliError};
use logging::LogPlan;
use output::{Format, Printer};

use crate::demo;
use crate::domain::access::Caller;
use crate::management::Management;
use crate::nats::JetStream;
use crate::nats::provision::{OLDEST_SERVER, ProvisionError, version};
use crate::seal::open_settings;
use crate::settings::{SecretName, Settings, SettingsError};

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  the answer is no: drift found, nothing matched, the event rejected, settings or input invalid
  2  usage error
  3  the NATS server or another service cannot be reached";

/// Integration Hub: events on NATS JetStream, delivered to each subscriber on its own.
#[derive(Debug, Parser)]
#[command(name = "hub", version, after_help = AFTER_HELP, propagate_version = true)]
pub struct Cli {
    /// The settings file; hub.toml in the working directory where not given, if it is there
    #[arg(long, global = true, env = "HUB_CONFIG", value_name = "FILE", help_heading = "Global options")]
    config: Option<PathBuf>,
    /// The NATS server: goes before nats.url of the settings
    #[arg(long, global = true, value_name = "URL", help_heading = "Global options")]
    nats_url: Option<String>,
    /// Override one setting, such as --set nats.prefix=test; repeat it for more
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = key_and_value, help_heading = "Global options")]
    set: Vec<(String, String)>,
    /// How the answer is printed
    #[arg(
        long,
        short,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        help_heading = "Global options"
    )]
    output: Format,
    /// Tell on standard error what is done (RUST_LOG says more precisely what)
    #[arg(long, short, global = true, help_heading = "Global options")]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// See the hub at work on this machine, step by step, with a server and subscribers of its own
    Demo(demo::Options),
    /// Run the hub: all roles, or those named, until told to stop
    Serve(serve::Options),
    /// Make the streams and consumers, or tell where the server's differ
    Provision(provision::Options),
    /// Publish one event
    Publish(publish::Options),
    /// Who wants which events, and where
    #[command(subcommand)]
    Subscription(subscription::Command),
    /// The master keys that credentials are sealed with
    #[command(subcommand)]
    Secrets(secrets::Command),
    /// Tokens: who may use the HTTP API
    #[command(subcommand)]
    Token(token::Command),
    /// The domains: what they owe, and whether they deliver
    #[command(subcommand)]
    Domain(domain::Command),
    /// Dead letters: what could not be delivered
    #[command(subcommand)]
    Dlt(dlt::Command),
    /// One event: what became of it
    #[command(subcommand)]
    Event(event::Command),
    /// The transactional outbox in the producer's database
    Outbox(outbox::Options),
    /// The settings: whether they are valid, and what is in force
    #[command(subcommand)]
    Config(config::Command),
    /// Measure the hub on this machine, with a receiver and a load of its own
    Bench(crate::bench::Options),
}

/// Global options that take a value, beside `--set`.
const WITH_VALUE: [&str; 4] = ["--config", "--nats-url", "--output", "-o"];

/// What stands as `--set` before the command.
fn set_before_the_command(args: &[OsString]) -> Vec<(String, String)> {
    let mut args = args.iter().skip(1).filter_map(|arg| arg.to_str());
    let mut found = Vec::new();
    while let Some(arg) = args.next().filter(|arg| arg.starts_with('-')) {
        let pair = match arg.strip_prefix("--set") {
            Some("") => args.next(),
            Some(rest) => rest.strip_prefix('='),
            None => {
                if WITH_VALUE.contains(&arg) {
                    args.next();
                }
                None
            }
        };
        found.extend(pair.and_then(|pair| key_and_value(pair).ok()));
    }
    found
}

/// The exit code of a usage error, as clap has it.
const USAGE_ERROR: u8 = 2;

impl Cli {
    /// Reads the command line. Help and version are printed here, and so is a usage error; then the exit code is
    /// given. Of a global option that stands before and after the command, clap keeps what stands after it.
    pub fn read() -> Result<Self, ExitCode> {
        Self::read_from(std::env::args_os().collect()).map_err(|error| {
            if !error.use_stderr() {
                error.exit();
            }
            // It quotes the arguments, which may come from strangers.
            output::usage_error(&error.render().to_string());
            ExitCode::from(USAGE_ERROR)
        })
    }

    fn read_from(args: Vec<OsString>) -> Result<Self, clap::Error> {
        let before = set_before_the_command(&args);
        let mut cli = Self::try_parse_from(args)?;
        if !cli.set.starts_with(&before) {
            cli.set.splice(0..0, before);
        }
        Ok(cli)
    }

    /// The settings in all their layers. The demo and the bench bring their own: whatever lies in
    /// the working directory is not theirs.
    pub fn settings(&self) -> Result<Settings, SettingsError> {
        match self.command {
            Command::Demo(_) | Command::Bench(_) => Ok(Settings::defaults()),
            _ => {
                for (name, meant) in Settings::misspelt_variables() {
                    output::warn(&format!("the variable {name} is not read; write {meant}"));
                }
                Settings::load(self.config.as_deref(), &self.overrides())
            }
        }
    }

    /// The settings given by flags.
    fn overrides(&self) -> Vec<(String, String)> {
        let url = self.nats_url.iter().map(|url| ("nats.url".to_owned(), url.clone()));
        self.set.iter().cloned().chain(url).collect()
    }

    pub fn log_plan(&self) -> LogPlan {
        match self.command {
            Command::Serve(_) => LogPlan::Service,
            Command::Demo(_) => LogPlan::Elsewhere,
            _ => LogPlan::Command { verbose: self.verbose },
        }
    }

    /// All cores for what runs for long; a single thread for what asks and answers.
    pub fn runtime(&self) -> Result<Runtime, CliError> {
        let mut builder =
            if self.is_service() { Builder::new_multi_thread() } else { Builder::new_current_thread() };
        builder.enable_all().build().map_err(CliError::Runtime)
    }

    fn is_service(&self) -> bool {
        matches!(self.command, Command::Serve(_) | Command::Demo(_) | Command::Bench(_))
    }

    pub async fn run(self, settings: Settings) -> Result<Answer, CliError> {
        let printer = Printer::new(self.output);
        // What is about the settings themselves sees them as they are written; `hub serve` needs all of them.
        let settings = match self.command {
            Command::Config(_) | Command::Secrets(_) | Command::Serve(_) => settings,
            _ => open_settings(&settings, SecretName::is_to_connect)?,
        };
        match self.command {
            Command::Demo(options) => match demo::run(options).await? {
                demo::Verdict::Held => Ok(Answer::Yes),
                demo::Verdict::NotHeld => Ok(Answer::No),
            },
            Command::Serve(options) => serve::run(options, settings).await,
            Command::Provision(options) => provision::run(options, &settings, printer).await,
            Command::Publish(options) => publish::run(options, &settings, printer).await,
            Command::Subscription(command) => subscription::run(command, &settings, printer).await,
            Command::Secrets(command) => secrets::run(command, &settings, printer).await,
            Command::Token(command) => token::run(command, &settings, printer).await,
            Command::Domain(command) => domain::run(command, &settings, printer).await,
            Command::Dlt(command) => dlt::run(command, &settings, printer).await,
            Command::Event(command) => event::run(command, &settings, printer).await,
            Command::Outbox(options) => outbox::run(options, &settings, printer).await,
            Command::Config(command) => config::run(command, self.config.as_deref(), &settings, printer),
            Command::Bench(options) => {
                let complete = crate::bench::run(options, printer.is_json()).await?;
                Ok(if complete { Answer::Yes } else { Answer::No })
            }
        }
    }
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE, such as nats.prefix=test".to_owned()),
    }
}

/// A connection to a server that is new enough.
async fn connect(settings: &Settings) -> Result<JetStream, CliError> {
    let js = JetStream::connect(&crate::from_settings::connect_options(settings, "hub command line")).await?;
    let found = js.server_version();
    if version(&found) < OLDEST_SERVER {
        return Err(ProvisionError::TooOld { name: js.server_name(), found }.into());
    }
    Ok(js)
}

/// The hub to operate, with its master key.
async fn manage_sealed(settings: &Settings) -> Result<Management, CliError> {
    let settings = open_settings(settings, |_| true)?;
    Ok(Management::new(connect(&settings).await?, Arc::new(settings))?)
}

/// Who the command line is: whoever has the broker and the settings may do everything.
fn operator() -> Caller {
    Caller::unbound("command line")
}

/// The hub to operate, for what touches no credential.
async fn manage(settings: &Settings) -> Result<Management, CliError> {
    Ok(Management::without_secrets(connect(settings).await?, Arc::new(settings.clone())))
}

/// A file's content; `-` is standard input.
fn read_input(file: &Path) -> Result<Vec<u8>, CliError> {
    if file == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).map_err(CliError::Stdin)?;
        return Ok(bytes);
    }
    std::fs::read(file).map_err(|source| CliError::File { path: file.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_may_stand_before_and_after_the_command() {
        let read = |line: &str| {
            let cli = Cli::read_from(line.split(' ').map(OsString::from).collect()).expect("a command line");
            cli.set.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
        };
        for (line, set) in [
            ("hub --set a.b=1 serve --dev", "a.b=1"),
            ("hub serve --dev --set a.b=1", "a.b=1"),
            ("hub --set a.b=1 --config x serve --set c.d=2", "a.b=1 c.d=2"),
            (
                "hub -v --output json --set=a.b=1 --nats-url nats://x --set e.f=3 serve --set=a.b=2",
                "a.b=1 e.f=3 a.b=2",
            ),
            ("hub serve", ""),
        ] {
            assert_eq!(read(line), set, "{line}");
        }
    }
}
