//! `hub-bench`: measures the hub on this machine. Figures are compared with a bare HTTP client loop against the same receiver
//! in the same run.
//!
//! The broker, the hub and the bare loop are child processes; the last two are this program. This process runs the receiver
//! and the load. Each figure starts with an empty broker, checks that every delivery arrived, and counts those that arrived
//! twice.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod bare_client;
mod change;
mod child;
mod counting_receiver;
mod credentials;
mod delivery_log;
#[cfg(test)]
mod documented;
mod drain;
mod end_to_end;
mod error;
mod isolation;
mod latency;
mod load;
mod memory;
mod outbox;
mod process;
mod report;
mod rig;
mod startup;
mod statistics;
mod tally;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Parser, Subcommand, ValueEnum};
use hub_testkit::broker_process::SyncInterval;
use integration_hub::cli::{Cli, logging};
use integration_hub::settings::Settings;
use integration_hub::signals::Signals;
use integration_hub::{open_files, queued_writer};
use tokio::io::AsyncWriteExt as _;
use url::Url;

use bare_client::BareClient;
use child::BareLoop;
use error::BenchError;
use report::Figure;
use tally::WebhookId;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const AFTER_HELP: &str = "\
Exit codes:
  0  every delivery arrived
  1  a delivery is lost, or a figure could not be measured
  2  usage error";

/// Measure Integration Hub on this machine, with its own receiver and load
#[derive(Debug, Parser)]
#[command(name = "hub-bench", version, after_help = AFTER_HELP, propagate_version = true)]
struct CommandLine {
    /// Output format
    #[arg(long, short, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    /// Log at level info to standard error (RUST_LOG overrides it)
    #[arg(long, short, global = true)]
    verbose: bool,
    #[command(flatten)]
    figures: FigureOptions,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    #[default]
    Table,
    Json,
}

#[derive(Debug, Args)]
struct FigureOptions {
    /// Figures to measure. a: drain a preloaded outbox; b: end to end with a fan-out of 10; c: latency; d: memory;
    /// l: drain with every attempt logged, and with none logged; o: drain with OAuth2 and signatures, and with neither,
    /// in pairs; r: time until a change of a subscription is in effect in three replicas; s: time from start to ready
    #[arg(long, value_delimiter = ',', default_value = "a,b,c,d")]
    figures: Vec<Letter>,
    /// The server's sync_interval: its default, always (fsync before each acknowledgement), or one after the other
    #[arg(long, default_value = "both")]
    sync: SyncChoice,
    /// Deliveries of figures a, b, l and o, rounded up to tens
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    messages: u64,
    /// Time that figure c publishes, and that figure r changes a subscription ten times a second
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Numbers of subscriptions of figures d and s
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "10,10000,100000", value_parser = clap::value_parser!(u32).range(1..))]
    subscriptions: Vec<u32>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure the producer outbox: PostgreSQL through the relay to NATS and Redis
    Outbox(outbox::OutboxOptions),
    /// Measure what healthy subscriptions keep while other endpoints misbehave
    Isolation(isolation::IsolationOptions),
    /// Run the bare HTTP client loop
    #[command(hide = true)]
    BareLoop {
        #[arg(long)]
        url: Url,
        #[arg(long)]
        body_bytes: usize,
        #[arg(long)]
        in_flight: usize,
        #[arg(long)]
        requests: u64,
    },
    /// Run the hub with these arguments, as `hub` does
    #[command(hide = true, disable_help_flag = true)]
    Hub {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Letter {
    A,
    B,
    C,
    D,
    L,
    O,
    R,
    S,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SyncChoice {
    Default,
    Always,
    Both,
}

/// When the server writes stored messages to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SyncMode {
    Default,
    Always,
}

impl SyncMode {
    fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Always => "always",
        }
    }

    fn interval(self) -> SyncInterval {
        match self {
            Self::Default => SyncInterval::Default,
            Self::Always => SyncInterval::Always,
        }
    }
}

/// The number of events for a number of deliveries, at ten deliveries per event.
trait Tenth {
    fn tenth(self) -> u64;
}

impl Tenth for u64 {
    fn tenth(self) -> u64 {
        self.div_ceil(10)
    }
}

fn main() -> ExitCode {
    let mut command_line = CommandLine::parse();
    if let Some(Command::Hub { args }) = &mut command_line.command {
        let args = std::mem::take(args);
        return Cli::parse_from(std::iter::once("hub".into()).chain(args)).execute();
    }
    let defaults = Settings::defaults();
    logging::start(logging::LogPlan::Command { verbose: command_line.verbose }, &defaults.log);
    open_files::raise();
    let measured = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(BenchError::Runtime)
        .and_then(|runtime| {
            let measured = runtime.block_on(run(command_line));
            // Does not wait for blocking tasks, such as a download that a signal interrupted.
            runtime.shutdown_background();
            measured
        });
    let code = match measured {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            queued_writer::stderr().put(format!("error: {error}\n"));
            ExitCode::FAILURE
        }
    };
    logging::finish();
    code
}

/// Measures, and writes each figure to standard output: one line as soon as it is measured, or all figures as JSON at
/// the end. Returns true if nothing is lost.
///
/// SIGINT, SIGTERM and SIGHUP end it at once: the measurement in progress is dropped, and its processes and folders are
/// removed with it.
async fn run(command_line: CommandLine) -> Result<bool, BenchError> {
    let json = command_line.output == Format::Json;
    let mut figures = Figures { json, all: Vec::new() };
    match command_line.command {
        // A child of the bench, which stops it.
        Some(Command::BareLoop { url, body_bytes, in_flight, requests }) => {
            return bare_loop(&url, body_bytes, in_flight, requests).await.map(|()| true);
        }
        Some(Command::Outbox(outbox)) => {
            outbox::run(outbox, &mut figures, &mut Signals::new().map_err(BenchError::Signals)?).await?;
        }
        Some(Command::Isolation(isolation)) => {
            let mut signals = Signals::new().map_err(BenchError::Signals)?;
            return tokio::select! {
                measured = isolation::run(isolation, json) => measured,
                () = signals.next() => Err(BenchError::Stopped),
            };
        }
        // `main` runs the hub by itself.
        Some(Command::Hub { .. }) => {}
        None => {
            let mut signals = Signals::new().map_err(BenchError::Signals)?;
            tokio::select! {
                measured = measure(command_line.figures, &mut figures) => measured?,
                () = signals.next() => return Err(BenchError::Stopped),
            }
        }
    }
    if json {
        let text = serde_json::to_string_pretty(&figures.all);
        write_line(&text.map_err(|error| BenchError::Output(error.into()))?).await?;
    }
    Ok(!figures.all.iter().any(Figure::lost))
}

/// The figures measured so far.
struct Figures {
    json: bool,
    all: Vec<Figure>,
}

impl Figures {
    /// Writes the figure at once, unless all are written as JSON at the end.
    async fn add(&mut self, figure: Figure) -> Result<(), BenchError> {
        if !self.json {
            write_line(&figure.line()).await?;
        }
        self.all.push(figure);
        Ok(())
    }
}

async fn measure(options: FigureOptions, figures: &mut Figures) -> Result<(), BenchError> {
    let modes: &[SyncMode] = match options.sync {
        SyncChoice::Default => &[SyncMode::Default],
        SyncChoice::Always => &[SyncMode::Always],
        SyncChoice::Both => &[SyncMode::Default, SyncMode::Always],
    };
    let counts: Vec<usize> = options.subscriptions.iter().map(|count| *count as usize).collect();
    for &sync in modes {
        for letter in &options.figures {
            let figure = match letter {
                Letter::A => drain::measure(sync, options.messages).await?,
                Letter::B => end_to_end::measure(sync, options.messages).await?,
                Letter::C => latency::measure(sync, options.duration).await?,
                Letter::L => delivery_log::measure(sync, options.messages).await?,
                Letter::O => credentials::measure(sync, options.messages).await?,
                Letter::R => change::measure(sync, options.duration).await?,
                // These do not depend on the disk: once is enough.
                Letter::D | Letter::S if sync == SyncMode::Always && modes.len() > 1 => continue,
                Letter::D => memory::measure(sync, &counts).await?,
                Letter::S => startup::measure(sync, &counts).await?,
            };
            figures.add(figure).await?;
        }
    }
    Ok(())
}

async fn bare_loop(url: &Url, bytes: usize, in_flight: usize, requests: u64) -> Result<(), BenchError> {
    let client = BareClient::new()?;
    let body = Bytes::from(vec![b'x'; bytes]);
    let took = client.drive(url, &body, in_flight, requests, WebhookId::text).await?;
    let done = BareLoop {
        requests,
        seconds: took.as_secs_f64(),
        resident_bytes: process::resident_bytes(std::process::id())?,
    };
    write_line(&serde_json::to_string(&done).map_err(|error| BenchError::Output(error.into()))?).await
}

/// Does not block this thread: a signal ends the bench even if nobody reads its output.
async fn write_line(text: &str) -> Result<(), BenchError> {
    let mut out = tokio::io::stdout();
    out.write_all(format!("{text}\n").as_bytes()).await.map_err(BenchError::Output)?;
    out.flush().await.map_err(BenchError::Output)
}
