//! The interval of heartbeats (`in_progress`). It follows the `ack_wait` that the server has for the consumer, because
//! another process or an operator may have changed it.

use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio::time::Instant;

use super::connection::JetStream;
use super::stream_api::ConsumerInfo;
use crate::tasks::Task;

/// How often the consumer's configuration is read.
const LOOK: Duration = Duration::from_secs(2);
/// Shortest interval, whatever the consumer says.
const SHORTEST: Duration = Duration::from_millis(50);

/// Ticks three times within the shortest `ack_wait` of the stream's consumers.
pub struct Heartbeat {
    ack_wait: watch::Receiver<Duration>,
    last: Instant,
    _follower: Task<()>,
}

impl Heartbeat {
    /// Follows a consumer. `expected` applies until the server has answered. Consumers of the same stream that this process
    /// reads count too.
    pub fn follow(js: &JetStream, stream: String, consumer: String, expected: Duration) -> Self {
        let (sender, ack_wait) = watch::channel(expected);
        let (js, leases) = (js.clone(), js.leases(&stream, expected));
        let follower = Task::start("the watch of ack_wait", async move {
            loop {
                // A consumer that is missing or a server that does not answer changes nothing.
                if let Ok(info) = js.consumer_info(&stream, &consumer).await
                    && let Some(shared) = ack_wait_of(&info.config)
                {
                    let shortest =
                        js.shared().shortest_ack_wait(&stream).map_or(shared, |own| own.min(shared));
                    leases.follow(shortest);
                    sender.send_if_modified(|known| std::mem::replace(known, shortest) != shortest);
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        Self { ack_wait, last: Instant::now(), _follower: follower }
    }

    /// Waits for the next tick. Cancel-safe.
    pub async fn tick(&mut self) {
        loop {
            let interval = (*self.ack_wait.borrow_and_update() / 3).max(SHORTEST);
            tokio::select! {
                () = tokio::time::sleep_until(self.last + interval) => {
                    self.last = Instant::now();
                    return;
                }
                // The follower ends with this.
                Ok(()) = self.ack_wait.changed() => {}
            }
        }
    }
}

impl ConsumerInfo {
    /// Its `ack_wait`.
    pub fn ack_wait(&self) -> Option<Duration> {
        ack_wait_of(&self.config)
    }
}

/// The `ack_wait` of a consumer's configuration.
pub(super) fn ack_wait_of(config: &Map<String, Value>) -> Option<Duration> {
    config.get("ack_wait").and_then(Value::as_u64).filter(|nanos| *nanos > 0).map(Duration::from_nanos)
}
