//! `hub bench`: the hub's figures on this machine, each beside a bare HTTP client loop against the
//! same receiver in the same run.
//!
//! The broker, the hub and the bare loop are processes of their own; this process holds the
//! receiver and the load. Each figure starts on an empty broker, checks that every delivery
//! arrived, and counts those that came twice.

mod change;
mod child;
mod credentials;
mod delivery_log;
mod drain;
mod end_to_end;
mod error;
mod latency;
mod load;
mod memory;
mod outbox;
mod process;
mod receiver;
mod report;
mod rig;
mod startup;
mod statistics;
mod tally;

use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use tokio::io::AsyncWriteExt as _;
use url::Url;

pub use error::BenchError;
pub use report::Figure;

use crate::http_delivery::bare::BareClient;
use crate::signals::Signals;
use child::BareLoop;
use hub_testkit::broker_process::SyncInterval;
use tally::WebhookId;

#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    part: Option<Part>,
    /// a: draining a preloaded outbox, b: end to end with a fan-out of 10, c: latency, d: memory, l: draining
    /// with every attempt logged beside draining with none logged, o: draining with OAuth2 and signatures
    /// beside draining with neither, in pairs, r: how soon a change of a subscription is in effect in three replicas,
    /// s: from the start to ready
    #[arg(long, value_delimiter = ',', default_value = "a,b,c,d")]
    figures: Vec<Letter>,
    /// The server's sync_interval: its default, always (fsync before each acknowledgement), or one after
    /// the other
    #[arg(long, default_value = "both")]
    sync: SyncChoice,
    /// Deliveries of the figures a, b, l and o; rounded up to tens
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    messages: u64,
    /// How long figure c publishes, and figure r changes a subscription ten times a second
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Numbers of subscriptions of the figures d and s
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "10,10000,100000", value_parser = clap::value_parser!(u32).range(1..))]
    subscriptions: Vec<u32>,
}

/// A part of the bench that runs as a process of its own.
#[derive(Debug, Subcommand)]
enum Part {
    /// The transactional outbox: PostgreSQL through the relay to NATS and Redis
    Outbox(outbox::Options),
    /// The bare HTTP client loop
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

/// When the server forces what it stored to the disk.
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

/// Events for so many deliveries, ten for each.
trait Tenth {
    fn tenth(self) -> u64;
}

impl Tenth for u64 {
    fn tenth(self) -> u64 {
        self.div_ceil(10)
    }
}

/// Measures, and tells each figure on standard output: a line as soon as it is there, or all of them
/// as JSON at the end. Returns whether everything arrived that was to arrive.
///
/// SIGINT, SIGTERM and SIGHUP end it at once: what is under way is dropped, and with it go its processes and
/// folders.
pub async fn run(options: Options, json: bool) -> Result<bool, BenchError> {
    let mut figures = Figures { json, all: Vec::new() };
    match options.part {
        // A child of the bench, which ends it.
        Some(Part::BareLoop { url, body_bytes, in_flight, requests }) => {
            return bare_loop(&url, body_bytes, in_flight, requests).await.map(|()| true);
        }
        Some(Part::Outbox(outbox)) => {
            outbox::run(outbox, &mut figures, &mut Signals::new().map_err(BenchError::Signals)?).await?;
        }
        None => {
            let mut signals = Signals::new().map_err(BenchError::Signals)?;
            tokio::select! {
                measured = measure(options, &mut figures) => measured?,
                () = signals.next() => return Err(BenchError::Stopped),
            }
        }
    }
    if json {
        let text = serde_json::to_string_pretty(&figures.all);
        say(&text.map_err(|error| BenchError::Output(error.into()))?).await?;
    }
    Ok(!figures.all.iter().any(Figure::lost))
}

/// What was measured so far.
struct Figures {
    json: bool,
    all: Vec<Figure>,
}

impl Figures {
    /// Shows it at once, unless all are shown as JSON at the end.
    async fn tell(&mut self, figure: Figure) -> Result<(), BenchError> {
        if !self.json {
            say(&figure.line()).await?;
        }
        self.all.push(figure);
        Ok(())
    }
}

async fn measure(options: Options, figures: &mut Figures) -> Result<(), BenchError> {
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
                // Nothing of these depends on the disk: once is enough.
                Letter::D | Letter::S if sync == SyncMode::Always && modes.len() > 1 => continue,
                Letter::D => memory::measure(sync, &counts).await?,
                Letter::S => startup::measure(sync, &counts).await?,
            };
            figures.tell(figure).await?;
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
    say(&serde_json::to_string(&done).map_err(|error| BenchError::Output(error.into()))?).await
}

/// Not written by this thread: a signal ends the bench even if nobody reads what it says.
async fn say(text: &str) -> Result<(), BenchError> {
    let mut out = tokio::io::stdout();
    out.write_all(format!("{text}\n").as_bytes()).await.map_err(BenchError::Output)?;
    out.flush().await.map_err(BenchError::Output)
}
