//! An example consumer: a service that reads the user events of another team from an external broker, to which the
//! hub's outbox relay sends them, and translates them to its own commands.
//!
//! * [`broker`] reads from a Redis stream with a consumer group, or from a NATS JetStream consumer.
//! * [`event`] is the received envelope; only [`translation`] knows both it and the commands.
//! * [`customers`] is the domain of the service: a command and its effect.
//! * [`inbox`] commits the id of an event and its effect together, so that a repetition has no effect.
//! * [`handling`] connects them: read, apply, acknowledge, and set aside events that can never be applied.
//!
//! It depends on the envelope of the hub, and on no code of it.

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

/// Register a customer in an SQLite file for each user.created event of the accounts service.
///
/// Reads the events that `hub serve --role outbox-relay` sends to an external broker of provider "redis" or "nats".
/// Applies each event once, also after repetitions and crashes. Stores events that can never be applied in the table
/// `poison`, with the reason. SIGTERM and Ctrl-C end it after the current event.
#[derive(Debug, Parser)]
#[command(name = "subscriber")]
struct Options {
    /// Broker URL: redis://host:port[/database] or rediss://…, nats://host:port or tls://…. Set a URL with a password
    /// in the environment variable.
    #[arg(long, env = "SUBSCRIBER_BROKER", hide_env_values = true, default_value = "redis://127.0.0.1:6379")]
    broker: Url,
    /// Name of the Redis stream or the JetStream stream.
    #[arg(long, default_value = "user")]
    stream: String,
    /// Redis consumer group or durable consumer. Processes with the same group share the events.
    #[arg(long, default_value = "customers")]
    group: String,
    /// Name of this process in the group (Redis only). Must be unique among the running processes.
    #[arg(long, default_value = "customers-1")]
    consumer: String,
    /// SQLite file, created if it does not exist.
    #[arg(long, default_value = "customers.db")]
    database: PathBuf,
    /// Time after which an unacknowledged event is read again. Must be longer than the processing of a batch.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    reclaim_after: Duration,
    /// Most events per read.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1000))]
    batch: u16,
    /// Reads after which an event that was never acknowledged is set aside, because it may crash the process.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    attempts: u32,
    /// Retention of event ids and poison events. Must be longer than the hub may repeat an event.
    #[arg(long, default_value = "90days", value_parser = humantime::parse_duration)]
    remember: Duration,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    // For rediss:// and tls://. An error means that a provider is already installed.
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
    tokio::spawn(stop_on_signal(stop.clone()));
    let handling = Handling { source, inbox, attempts: options.attempts, remember: options.remember };
    let counts = handling.run(&stop).await;
    info!(?counts, "stopped");
    ExitCode::SUCCESS
}

/// Cancels `stop` on SIGTERM or Ctrl-C.
async fn stop_on_signal(stop: CancellationToken) {
    let mut terminate = signal(SignalKind::terminate()).expect("a handler for SIGTERM can be set");
    tokio::select! {
        _ = terminate.recv() => {}
        // An error means that Ctrl-C cannot be handled; SIGTERM still can.
        Ok(()) = tokio::signal::ctrl_c() => {}
    }
    stop.cancel();
}
