//! A private nats-server of a test.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use futures_util::TryStreamExt;
use hub_testkit::broker_process::{BrokerOptions, BrokerProcess};
use rustix::process::{Pid, Signal, kill_process};

use super::{eventually, http_client, nats_server};

/// One nats-server with JetStream on free ports, with its data in a temporary folder.
pub struct TestBroker {
    process: BrokerProcess,
}

impl TestBroker {
    pub async fn start() -> Self {
        Self::start_with(BrokerOptions::new(nats_server())).await
    }

    pub async fn start_with(options: BrokerOptions) -> Self {
        let process = BrokerProcess::start(options).await;
        Self {
            process: process
                .unwrap_or_else(|error| panic!("cannot start the nats-server of the test: {error}")),
        }
    }

    pub fn url(&self) -> String {
        self.process.url()
    }

    /// To kill, stop and restart it.
    pub fn process(&mut self) -> &mut BrokerProcess {
        &mut self.process
    }

    /// A new connection.
    pub async fn client(&self) -> async_nats::Client {
        async_nats::connect(self.url()).await.unwrap_or_else(|error| panic!("connecting: {error}"))
    }

    /// JetStream on a new connection.
    pub async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.client().await)
    }

    /// Stops the process, as a machine that hangs, and waits until each of its threads has stopped: until then it may still
    /// answer.
    pub async fn freeze(&mut self) {
        freeze(&self.process).await;
    }

    /// Ends a [`freeze`](Self::freeze).
    pub fn thaw(&mut self) {
        signal(&self.process, Signal::CONT);
    }

    /// The answer of the monitoring port to `/varz`.
    pub async fn varz(&self) -> serde_json::Value {
        let answer = http_client()
            .get(format!("{}/varz", self.process.monitoring_url()))
            .send()
            .await
            .expect("the monitoring port answers");
        serde_json::from_slice(&answer.bytes().await.expect("to the end")).expect("in JSON")
    }

    /// The state of each stream, ordered by name.
    pub async fn streams(&self) -> Vec<stream::Info> {
        let jetstream = self.jetstream().await;
        let mut streams: Vec<stream::Info> =
            jetstream.streams().try_collect().await.expect("the streams can be listed");
        streams.sort_by(|a, b| a.config.name.cmp(&b.config.name));
        streams
    }

    /// The number of messages in a stream; 0 if the stream does not exist.
    pub async fn messages(&self, stream: &str) -> u64 {
        let streams = self.streams().await;
        streams.iter().find(|info| info.config.name == stream).map_or(0, |info| info.state.messages)
    }

    /// Every message of every stream as text: stream, subject, headers, body.
    pub async fn dump(&self) -> String {
        let mut stored = String::new();
        let jetstream = self.jetstream().await;
        for stream in self.streams().await {
            let name = &stream.config.name;
            let handle = jetstream.get_stream(name).await.expect("it was just listed");
            for sequence in stream.state.first_sequence..=stream.state.last_sequence {
                // A message that was acknowledged meanwhile does not exist.
                let Ok(message) = handle.get_raw_message(sequence).await else { continue };
                let payload = String::from_utf8_lossy(&message.payload);
                stored.push_str(&format!("{name} {} {:?} {payload}\n", message.subject, message.headers));
            }
        }
        stored
    }

    /// The streams with pending events, envelopes or advisories, with their counts. Dead letters do not count: they are kept
    /// until they are resolved.
    pub async fn pending(&self) -> Vec<(String, u64)> {
        let streams = self.streams().await;
        assert!(
            streams.iter().any(|info| info.config.name.contains("OUTBOX")),
            "the server has no domain outbox; provision it first"
        );
        streams
            .into_iter()
            .filter(|info| is_pending(&info.config.name) && info.state.messages > 0)
            .map(|info| (info.config.name, info.state.messages))
            .collect()
    }

    /// # Panics
    ///
    /// If an event, an envelope or an advisory is left.
    pub async fn assert_nothing_pending(&self) {
        let pending = self.pending().await;
        assert!(pending.is_empty(), "still pending: {pending:?}");
    }

    /// Waits until no event, envelope or advisory is left.
    pub async fn nothing_pending_within(&self, limit: Duration) {
        eventually(limit, "nothing is pending any more", async || {
            let pending = self.pending().await;
            if pending.is_empty() { Ok(()) } else { Err(pending) }
        })
        .await;
    }
}

/// Stops a server, as [`TestBroker::freeze`] does.
pub async fn freeze(server: &BrokerProcess) {
    let pid = signal(server, Signal::STOP);
    eventually(Duration::from_secs(10), "every thread of the server is stopped", async || {
        let running = running_threads(pid);
        if running == 0 { Ok(()) } else { Err(running) }
    })
    .await;
}

fn signal(server: &BrokerProcess, signal: Signal) -> u32 {
    let pid = server.pid().expect("the server runs");
    let of_the_server = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(of_the_server, signal).expect("signalled");
    pid
}

fn is_pending(stream: &str) -> bool {
    (stream.contains("OUTBOX") && !stream.ends_with("_DLT"))
        || stream.ends_with("_EVENTS")
        || stream.ends_with("_ADVISORIES")
}

/// Number of threads that are not stopped, by their state in `/proc` (proc_pid_stat(5)).
fn running_threads(pid: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the threads of the process");
    let states = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
    // The state follows the name, which is in parentheses and may contain some itself.
    states.filter(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with('T'))).count()
}
