//! The parts of a measurement: an empty private broker, the receiver, and on demand the hub as a child process.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::child::{self, BareLoop, HubProcess};
use super::counting_receiver::CountingReceiver;
use super::error::BenchError;
use super::load::{DOMAIN, NewEvent};
use super::process::processor_time;
use super::report::Processor;
use super::tally::WebhookId;
use crate::bare_client::BareClient;
use hub_testkit::broker_process::{BrokerOptions, BrokerProcess, SyncInterval, find_or_fetch};
use integration_hub::domain::subscription::Subscription;
use integration_hub::nats::{JetStream, provision};
use integration_hub::seal::{Sealer, seal_subscription};
use integration_hub::settings::Settings;

/// Concurrent deliveries: the default pool of a domain, and that of the bare loop.
pub(crate) const IN_FLIGHT: usize = 64;
/// If nothing arrives for this time, the rest is lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Polling interval of the number of messages in a stream.
const POLL: Duration = Duration::from_millis(10);
/// Size of an outbox in the default settings.
const OUTBOX_BYTES: u64 = 2_000_000_000;
/// Size of the events stream in the default settings.
const EVENTS_BYTES: u64 = 1_000_000_000;
/// Upper limit of the size of an envelope in a stream.
const ENVELOPE_BYTES: u64 = 4_000;

pub(crate) struct Rig {
    pub(crate) js: JetStream,
    pub(crate) receiver: CountingReceiver,
    pub(crate) client: BareClient,
    broker: BrokerProcess,
    listen: String,
    settings: String,
    sealer: Sealer,
}

/// The final state of an outbox.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settled {
    /// When it reached its smallest number of envelopes.
    pub(crate) at: std::time::Instant,
    /// That number.
    pub(crate) still_owed: u64,
}

/// Processor time of the three processes at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clocks {
    hub: Duration,
    broker: Duration,
    bench: Duration,
}

impl Rig {
    /// Starts a broker and provisions it, with room for `messages` in an outbox.
    pub(crate) async fn start(sync: SyncInterval, messages: u64) -> Result<Self, BenchError> {
        Self::start_at(None, sync, messages).await
    }

    /// The same with the broker on this loopback port.
    pub(crate) async fn start_at(
        port: Option<u16>,
        sync: SyncInterval,
        messages: u64,
    ) -> Result<Self, BenchError> {
        let find = || find_or_fetch(None, &|text| tracing::info!("{text}"));
        let binary = tokio::task::spawn_blocking(find).await.map_err(|_| BenchError::Interrupted)??;
        let broker =
            BrokerProcess::start(BrokerOptions { port, sync_interval: sync, ..BrokerOptions::new(binary) })
                .await?;
        let listen = child::free_address()?;
        let needed = messages.saturating_mul(ENVELOPE_BYTES);
        let (outbox, events) = (OUTBOX_BYTES.max(needed), EVENTS_BYTES.max(needed));
        let master_key = STANDARD.encode(rand::random::<[u8; 32]>());
        let text = child::settings(&broker.url(), outbox, events, &listen, &master_key);
        let settings = Settings::from_toml("the bench", &text)?;
        let sealer = Sealer::from_settings(&settings.secrets)?.ok_or(BenchError::NoMasterKey)?;
        let js = JetStream::connect(&integration_hub::from_settings::connect_options(
            &settings,
            "integration-hub bench",
        ))
        .await?;
        provision::apply(&js, &integration_hub::from_settings::stream_parameters(&settings)).await?;
        let (receiver, client) = (CountingReceiver::start()?, BareClient::new()?);
        Ok(Self { js, receiver, client, broker, listen, settings: text, sealer })
    }

    /// Runs the bare loop against the receiver, with bodies as large as those of deliveries.
    pub(crate) async fn bare_loop(&self, requests: u64) -> Result<BareLoop, BenchError> {
        let body = NewEvent::new(self.js.names(), 0, "default")?.delivered_bytes();
        self.receiver.clear();
        let done = child::bare_loop(self.receiver.url(), body, IN_FLIGHT, requests).await?;
        let arrived = self.receiver.tally().distinct() as u64;
        self.receiver.clear();
        if arrived == requests {
            Ok(done)
        } else {
            let text = format!("{arrived} of {requests} requests arrived");
            Err(BenchError::Answer { what: "the bare loop", text })
        }
    }

    /// Starts the hub with these roles; with all if `roles` is empty.
    pub(crate) fn hub(&self, roles: &[&str]) -> Result<HubProcess, BenchError> {
        self.hub_with(roles, &[])
    }

    /// The same with settings (`key=value`) that override those of the bench.
    pub(crate) fn hub_with(&self, roles: &[&str], set: &[&str]) -> Result<HubProcess, BenchError> {
        let role = roles.iter().flat_map(|role| ["--role", role]);
        let set = set.iter().flat_map(|setting| ["--set", setting]);
        let args: Vec<String> = role.chain(set).map(str::to_owned).collect();
        HubProcess::start(&self.settings, &self.listen, &args)
    }

    /// Starts the role outbox-relay only, with further settings (TOML).
    pub(crate) fn relay(&self, more: &str) -> Result<HubProcess, BenchError> {
        let args = ["--role", "outbox-relay"].map(str::to_owned);
        HubProcess::start(&format!("{}{more}", self.settings), &self.listen, &args)
    }

    /// The URL of the broker.
    pub(crate) fn broker_url(&self) -> String {
        self.broker.url()
    }

    /// Starts one of several hubs, with all roles and the deliveries of one domain. It listens on an address of its own.
    pub(crate) fn replica(&self, domain: &str) -> Result<HubProcess, BenchError> {
        let listen = child::free_address()?;
        let setting = format!("health.listen={listen}");
        let args = ["--domain", domain, "--set", &setting].map(str::to_owned);
        HubProcess::start(&self.settings, &listen, &args)
    }

    /// Seals the credentials of a subscription for the hub under test.
    pub(crate) fn seal(&self, subscription: &mut Subscription) {
        seal_subscription(&self.sealer, subscription);
    }

    /// Starts the hub with all roles and waits until each is ready.
    pub(crate) async fn whole_hub(&self) -> Result<HubProcess, BenchError> {
        let mut hub = self.hub(&[])?;
        hub.wait_until_ready(&self.client).await?;
        Ok(hub)
    }

    /// Waits until all expected ids have arrived, or no more arrive.
    pub(crate) async fn wait_for(&self, expected: &[WebhookId], bar: &ProgressBar) {
        self.receiver.wait_for(expected.len(), PATIENCE, |count| bar.set_position(count as u64)).await;
    }

    /// Waits until the outbox is empty, or no longer becomes smaller.
    pub(crate) async fn wait_until_settled(&self) -> Result<Settled, BenchError> {
        let stream = self.js.names().outbox_stream(DOMAIN);
        let (mut least, mut since) = (u64::MAX, Instant::now());
        loop {
            let owed = self.js.stream_info(&stream).await?.state.messages;
            if owed < least {
                (least, since) = (owed, Instant::now());
            }
            if owed == 0 || since.elapsed() >= PATIENCE {
                return Ok(Settled { at: since.into_std(), still_owed: owed });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until the events stream has a number of events, or no more arrive, while `hub` runs.
    pub(crate) async fn wait_for_events(&self, count: u64, hub: &mut HubProcess) -> Result<(), BenchError> {
        let stream = self.js.names().events_stream();
        let (mut most, mut since) = (0, Instant::now());
        loop {
            let there = self.js.stream_info(&stream).await?.state.messages;
            if there > most {
                (most, since) = (there, Instant::now());
            }
            if there >= count || since.elapsed() >= PATIENCE {
                return Ok(());
            }
            hub.check()?;
            tokio::time::sleep(POLL).await;
        }
    }

    pub(crate) fn clocks(&self, hub: &HubProcess) -> Result<Clocks, BenchError> {
        let broker = self.broker.pid().map_or(Ok(Duration::ZERO), processor_time)?;
        let (hub, bench) = (processor_time(hub.pid())?, processor_time(std::process::id())?);
        Ok(Clocks { hub, broker, bench })
    }

    pub(crate) async fn stop(self) -> Result<(), BenchError> {
        let Self { js, mut broker, .. } = self;
        // Before the broker, otherwise the client reports a lost connection.
        drop(js);
        broker.stop().await?;
        Ok(())
    }
}

impl Clocks {
    /// The processor time since `before`, for each of `deliveries`.
    pub(crate) fn since(self, before: Self, deliveries: u64) -> Option<Processor> {
        let each = |now: Duration, before: Duration| {
            now.saturating_sub(before).as_secs_f64() * 1e6 / deliveries as f64
        };
        (deliveries > 0).then(|| Processor {
            hub: each(self.hub, before.hub),
            broker: each(self.broker, before.broker),
            bench: each(self.bench, before.bench),
        })
    }
}

/// A progress bar on standard error, if that is a terminal.
pub(crate) fn bar(total: u64, what: String) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {per_sec}")
        .expect("the template is constant and names known keys");
    ProgressBar::new(total).with_style(style).with_message(what)
}
