//! Whether the server answers on the connection. The client pings a quiet connection; any byte from the server counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use super::connection::JetStream;

/// Interval of the client's pings on a connection without other traffic. After two unanswered pings, at the time of the
/// third, the client drops the connection and connects to another server.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Without a byte from the server for this long, the connection counts as silent: a ping and its answer are overdue.
const SILENT_AFTER: Duration = Duration::from_secs(9);
/// Interval of the look at the received bytes.
const LOOK: Duration = Duration::from_secs(1);

/// When the server was last heard.
#[derive(Debug)]
pub(super) struct Liveness {
    start: Instant,
    /// Milliseconds from `start` to the last look that found new bytes.
    heard: AtomicU64,
}

impl Liveness {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), heard: AtomicU64::new(0) }
    }

    fn heard(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard.store(now, Ordering::Relaxed);
    }

    fn is_silent(&self) -> bool {
        let heard = Duration::from_millis(self.heard.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(heard) > SILENT_AFTER
    }
}

impl JetStream {
    /// Observes the connection for [`Self::is_answering`]; one task for all clones. Never returns.
    pub async fn watch_answers(&self) {
        let statistics = self.client().statistics();
        let mut seen = 0;
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let received = statistics.in_bytes.load(Ordering::Relaxed);
            if received != std::mem::replace(&mut seen, received) {
                self.liveness().heard();
            }
        }
    }

    /// Whether there is a connection, and the server has sent something on it within the last seconds. Requires
    /// [`Self::watch_answers`] to run.
    pub fn is_answering(&self) -> bool {
        self.is_connected() && !self.liveness().is_silent()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_silent_after_a_ping_remains_unanswered() {
        let liveness = Liveness::new();
        tokio::time::advance(PING_INTERVAL + 2 * LOOK).await;
        assert!(!liveness.is_silent(), "the answer to the first ping is not overdue yet");
        tokio::time::advance(SILENT_AFTER).await;
        assert!(liveness.is_silent());
        liveness.heard();
        assert!(!liveness.is_silent());
    }
}
