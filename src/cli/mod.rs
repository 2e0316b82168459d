//! The command line `hub`. One file per group of commands: each parses its options, calls the management layer or an
//! adapter, and prints the result.

mod config;
mod dlt;
mod domain;
mod error;
mod event;
mod explained;
pub mod logging;
mod outbox;
mod output;
mod provision;
mod publish;
mod registry;
mod secrets;
mod serve;
mod subscription;
mod token;

use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};

pub use error::{Answer, CliError};
use logging::LogPlan;
use output::{Format, Printer};

use crate::demo;
use crate::domain::access::{Caller, check_tenant};
use crate::domain::key::EventKey;
use crate::domain::subscription::{InvalidTenant, SubscriptionId};
use crate::management::{Management, SubscriptionSelector, categories};
use crate::nats::JetStream;
use crate::nats::provision::{OLDEST_SERVER, ProvisionError, version};
use crate::seal::open_settings;
use crate::settings::{SecretName, Settings, SettingsError};
use crate::{huge_pages, open_files};

const AFTER_HELP: &str = "\
Examples:
  hub demo                                          see the hub work on this machine
  hub serve --dev                                   run the hub with its own NATS server
  hub subscription apply --file crm.json            create or replace a subscription
  hub publish user.created '{\"user_id\":\"u1\"}'       publish an event
  hub event trace <ID>                              trace an event
  hub dlt list                                      list dead letters

Exit codes:
  0  success
  1  negative result: drift found, nothing matched, event rejected, invalid settings or input
  2  usage error
  3  the NATS server or another service is unavailable";

/// Integration Hub: distributes events on NATS JetStream, and delivers them to each subscriber independently
#[derive(Debug, Parser)]
#[command(name = "hub", version, after_help = AFTER_HELP, propagate_version = true)]
pub struct Cli {
    /// Settings file [default: hub.toml in the working directory, if it exists]
    #[arg(long, global = true, env = "HUB_CONFIG", value_name = "FILE", help_heading = "Global options")]
    config: Option<PathBuf>,
    /// URL of the NATS server; overrides nats.url, for example nats://127.0.0.1:4222
    #[arg(long, global = true, value_name = "URL", help_heading = "Global options")]
    nats_url: Option<String>,
    /// Value of one setting, for example --set nats.prefix=test; repeatable
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = key_and_value, help_heading = "Global options")]
    set: Vec<(String, String)>,
    /// Output format
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
    /// Log at level info to standard error; RUST_LOG sets the levels exactly
    #[arg(long, short, global = true, help_heading = "Global options")]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a demonstration of the hub on this machine, with its own NATS server and subscribers
    Demo(demo::DemoOptions),
    /// Run the hub until it receives a stop signal
    Serve(serve::ServeArguments),
    /// Create and update streams and consumers, or report differences
    Provision(provision::ProvisionOptions),
    /// Publish an event
    Publish(publish::PublishOptions),
    /// Trace events
    #[command(subcommand)]
    Event(event::EventCommand),
    /// Manage subscriptions
    #[command(subcommand)]
    Subscription(subscription::SubscriptionCommand),
    /// Back up and restore the subscription registry
    #[command(subcommand)]
    Registry(registry::RegistryCommand),
    /// List, replay and discard dead letters
    #[command(subcommand)]
    Dlt(dlt::DltCommand),
    /// List, pause and resume domains
    #[command(subcommand)]
    Domain(domain::DomainCommand),
    /// Manage the producer outbox
    Outbox(outbox::OutboxOptions),
    /// Manage tokens of the HTTP API
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Seal secrets, and rotate the master key
    #[command(subcommand)]
    Secrets(secrets::SecretsCommand),
    /// Check and print the settings
    #[command(subcommand)]
    Config(config::ConfigCommand),
}

/// Global options with a value, except `--set`.
const WITH_VALUE: [&str; 4] = ["--config", "--nats-url", "--output", "-o"];

/// The options of every command except the demo.
const GLOBAL_OPTIONS: [&str; 5] = ["config", "nats-url", "set", "output", "verbose"];

/// Returns the `--set` options before the command.
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

/// The exit code of a usage error, the same as clap's.
const USAGE_ERROR: u8 = 2;

impl Cli {
    /// Parses the command line. Prints help, version or a usage error, and then returns the exit code. If a global option
    /// is before and after the command, clap keeps the one after it.
    pub fn read() -> Result<Self, ExitCode> {
        Self::read_from(std::env::args_os().collect()).map_err(|error| {
            if !error.use_stderr() {
                error.exit();
            }
            // The error quotes the arguments, which may be untrusted text.
            output::usage_error(&error.render().to_string());
            ExitCode::from(USAGE_ERROR)
        })
    }

    fn read_from(args: Vec<OsString>) -> Result<Self, clap::Error> {
        let before = set_before_the_command(&args);
        let mut matches = Self::command().try_get_matches_from(args)?;
        let given = |option: &str| matches.value_source(option) == Some(ValueSource::CommandLine);
        let given = GLOBAL_OPTIONS.into_iter().find(|option| given(&option.replace('-', "_")));
        let mut cli = Self::from_arg_matches_mut(&mut matches)?;
        if let (Command::Demo(_), Some(option)) = (&cli.command, given) {
            let problem = format!(
                "--{option}: not available for the demo, which runs with its own settings and prints text; to use your own \
                 settings, run `hub serve`"
            );
            return Err(Self::command().error(ErrorKind::ArgumentConflict, problem));
        }
        if !cli.set.starts_with(&before) {
            cli.set.splice(0..0, before);
        }
        Ok(cli)
    }

    /// Loads the settings, starts the log and the runtime, runs the command, and converts its answer to the exit code. A
    /// command stops everything that it started before it returns. The last log lines are written at the end.
    pub fn execute(self) -> ExitCode {
        let answer = (|| {
            let settings = self.settings()?;
            logging::start(self.log_plan(), &settings.log);
            open_files::raise();
            huge_pages::disable();
            let runtime = self.runtime()?;
            let answer = runtime.block_on(self.run(settings));
            // Does not wait for what the command left behind, such as an interrupted download.
            runtime.shutdown_background();
            answer
        })();
        let code = match answer {
            Ok(answer) => answer.into(),
            Err(error) => error.report(),
        };
        logging::finish();
        code
    }

    /// Loads the settings from all layers. The demo uses the defaults, whatever the working directory and the environment
    /// contain.
    fn settings(&self) -> Result<Settings, SettingsError> {
        match self.command {
            Command::Demo(_) => Ok(Settings::defaults()),
            _ => {
                for (name, meant) in Settings::misspelt_variables() {
                    output::warn(&format!("{name}: unknown variable, ignored; did you mean {meant}?"));
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

    fn log_plan(&self) -> LogPlan {
        match self.command {
            Command::Serve(_) => LogPlan::Service,
            Command::Demo(_) => LogPlan::Elsewhere,
            _ => LogPlan::Command { verbose: self.verbose },
        }
    }

    /// Builds the runtime: all cores for a service, a single thread for a short command.
    fn runtime(&self) -> Result<Runtime, CliError> {
        let mut builder =
            if self.is_service() { Builder::new_multi_thread() } else { Builder::new_current_thread() };
        builder.enable_all().build().map_err(CliError::Runtime)
    }

    fn is_service(&self) -> bool {
        matches!(self.command, Command::Serve(_) | Command::Demo(_))
    }

    async fn run(self, settings: Settings) -> Result<Answer, CliError> {
        // Commands about settings see sealed settings unchanged; `hub serve` opens all of them itself.
        let settings = match self.command {
            Command::Config(_) | Command::Secrets(_) | Command::Serve(_) => settings,
            _ => open_settings(&settings, SecretName::is_to_connect)?,
        };
        match self.run_with(settings.clone()).await {
            Err(error) => Err(explained::explained(error, &settings).await),
            answer => answer,
        }
    }

    async fn run_with(self, settings: Settings) -> Result<Answer, CliError> {
        let printer = Printer::new(self.output);
        match self.command {
            Command::Demo(options) => match demo::run(options).await? {
                demo::Verdict::Passed => Ok(Answer::Yes),
                demo::Verdict::Failed => Ok(Answer::No),
            },
            Command::Serve(options) => serve::run(options, settings).await,
            Command::Provision(options) => provision::run(options, &settings, printer).await,
            Command::Publish(options) => publish::run(options, &settings, printer).await,
            Command::Subscription(command) => subscription::run(command, &settings, printer).await,
            Command::Registry(command) => registry::run(command, &settings, printer).await,
            Command::Secrets(command) => secrets::run(command, &settings, printer).await,
            Command::Token(command) => token::run(command, &settings, printer).await,
            Command::Domain(command) => domain::run(command, &settings, printer).await,
            Command::Dlt(command) => dlt::run(command, &settings, printer).await,
            Command::Event(command) => event::run(command, &settings, printer).await,
            Command::Outbox(options) => outbox::run(options, &settings, printer).await,
            Command::Config(command) => config::run(command, self.config.as_deref(), &settings, printer),
        }
    }
}

/// Parses `--tenant`.
fn tenant(text: &str) -> Result<String, InvalidTenant> {
    check_tenant(text).map(|()| text.to_owned())
}

/// Parses the name of a subscription: `ID` or `TENANT/ID`.
fn selector(text: &str) -> Result<SubscriptionSelector, Box<dyn std::error::Error + Send + Sync>> {
    let (named, id) = match text.split_once('/') {
        Some((named, id)) => (Some(tenant(named)?), id),
        None => (None, text),
    };
    Ok(SubscriptionSelector { id: SubscriptionId::try_from(id.to_owned())?, tenant: named })
}

/// Parses `--set`.
fn key_and_value(text: &str) -> Result<(String, String), String> {
    pair(text).ok_or_else(|| "must be KEY=VALUE, such as nats.prefix=test".to_owned())
}

/// The parts of `NAME=VALUE`.
fn pair(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let name = name.trim();
    (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
}

/// Connects to the NATS server, and checks its version.
async fn connect(settings: &Settings) -> Result<JetStream, CliError> {
    let js = JetStream::connect(&crate::from_settings::connect_options(settings, "hub command line")).await?;
    let found = js.server_version();
    if version(&found) < OLDEST_SERVER {
        return Err(ProvisionError::TooOld { name: js.server_name(), found }.into());
    }
    Ok(js)
}

/// Returns the management layer with the master key.
async fn manage_sealed(settings: &Settings) -> Result<Management, CliError> {
    let settings = open_settings(settings, |_| true)?;
    Ok(Management::new(connect(&settings).await?, Arc::new(settings))?)
}

/// The caller of the command line. It may do everything, because it has access to the broker and the settings.
fn operator() -> Caller {
    Caller::unbound("command line")
}

/// Returns the management layer without the master key, for commands that use no credential.
async fn manage(settings: &Settings) -> Result<Management, CliError> {
    Ok(Management::without_secrets(connect(settings).await?, Arc::new(settings.clone())))
}

/// Warns if these settings have no domain for a key. Only the settings of the running hub decide what happens to its
/// events. Returns whether there is a domain.
fn warn_without_domain(settings: &Settings, key: &EventKey) -> bool {
    let has_domain = categories(settings).domain_of(key).is_some();
    if !has_domain {
        output::warn(&format!(
            "{key}: these settings have no domain for the key; the running hub decides by its own. Add the key to a \
             [[domains]] entry of every process and of the command line"
        ));
    }
    has_domain
}

/// Reads a file; `-` means standard input.
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
    fn settings_are_accepted_before_and_after_the_command() {
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

    fn refusal(line: &str) -> Option<String> {
        let read = Cli::read_from(line.split(' ').map(OsString::from).collect());
        read.err().map(|error| error.render().to_string())
    }

    #[test]
    fn the_demo_refuses_the_options_that_it_would_ignore() {
        for option in ["--config=x", "--nats-url=nats://x", "--set=a.b=1", "--output=json", "--verbose"] {
            for line in [format!("hub {option} demo --once"), format!("hub demo --once {option}")] {
                let error = refusal(&line).unwrap_or_else(|| panic!("`{line}` is accepted"));
                let name = option.split('=').next().expect("a name");
                assert!(error.contains(&format!("{name}: not available for the demo")), "{error}");
            }
            assert_eq!(refusal(&format!("hub {option} serve")), None);
        }
        assert_eq!(refusal("hub demo --once"), None);
    }

    /// Every command and value has a help text that a reader of the source would not mistake for a comment.
    #[test]
    fn every_command_option_and_value_is_described() {
        let mut commands = vec![Cli::command()];
        while let Some(command) = commands.pop() {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name}: no help");
            for argument in command.get_arguments() {
                let argument_name = argument.get_id();
                assert!(argument.get_help().is_some(), "{name} {argument_name}: no help");
                let values = argument.get_possible_values();
                for value in values.iter().filter(|value| !["true", "false"].contains(&value.get_name())) {
                    let help = value.get_help().map(ToString::to_string).unwrap_or_default();
                    let value = value.get_name();
                    assert!(
                        !help.is_empty() && !help.contains('`'),
                        "{name} {argument_name}={value}: {help:?}"
                    );
                }
            }
            commands.extend(command.get_subcommands().cloned());
        }
    }

    #[test]
    fn the_usage_of_publish_shows_both_sources_of_the_data() {
        let usage =
            Cli::command().find_subcommand_mut("publish").expect("a command").render_usage().to_string();
        assert!(usage.contains("<DATA|--file <FILE>>"), "{usage}");
        let error = refusal("hub publish user.created").expect("data is required");
        assert!(error.contains("--file"), "{error}");
        assert!(refusal("hub publish user.created {} --file x").is_some());
    }
}
