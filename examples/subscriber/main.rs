//! The other side: a service that hears of another team's users through an external broker, which the hub's
//! outbox relay fills, and turns what it hears into commands of its own.
//!
//! * [`broker`] reads: a Redis stream with a consumer group, or a NATS JetStream consumer.
//! * [`event`] is what arrives, [`translation`] the only place that knows both it and our own words.
//! * [`customers`] is our side: a command and its effect.
//! * [`inbox`] commits the id of an event and its effect together, so that a repetition changes nothing.
//! * [`handling`] joins them: read, apply, acknowledge, and put aside what can never be applied.
//!
//! It needs nothing of the hub: only its envelope.

mod broker;
mod customers;
mod event;
mod handling;
mod inbox;
mod translation;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use url::Url;

use crate::broker::Source;
use crate::handling::Handling;
use crate::inbox::Inbox;

/// Registers a customer for each user that the accounts service tells of, once, in an SQLite file.
///
/// Reads what `hub serve --role outbox-relay` sends to an external broker of provider "redis" or "nats". Each
/// event is applied once, whatever is sent twice or crashes; what can never be applied is put aside in the table
/// `poison` with its reason. SIGTERM and Ctrl-C end it after the event in hand.
#[derive(Debug, Parser)]
#[command(name = "subscriber")]
struct Options {
    /// redis://host:port[/database] or rediss://…; nats://host:port or tls://… . A password belongs into the
    /// environment variable.
    #[arg(long, env = "SUBSCRIBER_BROKER", hide_env_values = true, default_value = "redis://127.0.0.1:6379")]
    broker: Url,
    /// The Redis stream, or the name of the JetStream stream.
    #[arg(long, default_value = "user")]
    stream: String,
    /// Whoever has the same name shares the events: the Redis consumer group, or the durable consumer.
    #[arg(long, default_value = "customers")]
    group: String,
    /// This process among those of the group (Redis only). Each running process needs a name of its own.
    #[arg(long, default_value = "customers-1")]
    consumer: String,
    /// Our own database, made where it is not there.
    #[arg(long, default_value = "customers.db")]
    database: PathBuf,
    /// An event that was read and not acknowledged for so long is read again, by whichever process: longer
    /// than a batch takes.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    reclaim_after: Duration,
    /// The most events read at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1000))]
    batch: u16,
    /// An event that has been read so often without being applied ends whoever handles it: it is put aside.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    attempts: u32,
    /// How long the inbox knows an event, and poison is kept: longer than the hub may send it again.
    #[arg(long, default_value = "90days", value_parser = humantime::parse_duration)]
    remember: Duration,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    // For rediss:// and tls://; an error says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();

    let source = Source {
        url: options.broker,
        stream: options.stream,
        group: options.group,
        consumer: options.consumer,
        reclaim_after: options.reclaim_after,
        batch: options.batch.into(),
    };
    let inbox = match Inbox::open(&options.database).await {
        Ok(inbox) => inbox,
        Err(error) => {
            error!("--database {}: {error}", options.database.display());
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = source.check() {
        error!("--broker: {error}");
        return ExitCode::FAILURE;
    }
    let stop = CancellationToken::new();
    tokio::spawn(stop_when_told(stop.clone()));
    let handling = Handling { source, inbox, attempts: options.attempts, remember: options.remember };
    let counts = handling.run(&stop).await;
    info!(?counts, "stopped");
    ExitCode::SUCCESS
}

/// Ends with the process.
async fn stop_when_told(stop: CancellationToken) {
    let mut terminate = signal(SignalKind::terminate()).expect("a handler for SIGTERM can be set");
    tokio::select! {
        _ = terminate.recv() => {}
        // An error says that Ctrl-C cannot be heard; SIGTERM still is.
        Ok(()) = tokio::signal::ctrl_c() => {}
    }
    stop.cancel();
}
