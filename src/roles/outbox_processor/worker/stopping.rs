//! The end of a worker: its messages go back to the server.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::{Running, Worker};
use crate::facts::{AcknowledgementsNotFlushed, DeliveryCut, EnvelopesNotHandedBack, WorkerStopping};
use crate::nats::{Delivered, EnvelopeMessage};
use crate::roles::outbox_processor::delivery::Finished;

/// Messages on their last delivery that are handed back together.
const HANDED_BACK_TOGETHER: usize = 256;
/// Time for the messages of cut deliveries, if the grace period is used up.
const LEAST_CLEANUP: Duration = Duration::from_secs(1);

impl Worker {
    /// The readers have ended: starts what may be started, once more.
    pub(super) fn start_the_last(&self, running: &mut Running, done: &mut mpsc::Receiver<Finished>) {
        let now = running.started.elapsed();
        while let Ok(finished) = done.try_recv() {
            self.finish(running, &finished, now);
        }
        while let Some(held) = running.pool.next(now) {
            self.start(running, held, now);
        }
    }

    /// Hands the waiting messages back, lets deliveries finish, and hands the rest back, all within the grace period after
    /// the stop, whether or not the server answers. The readers have ended, so what is handed back does not come here again.
    pub(super) async fn shut_down(
        &self,
        mut running: Running,
        waiting: Vec<Delivered>,
        mut done: mpsc::Receiver<Finished>,
        stopped: Instant,
    ) {
        let deadline = stopped + self.settings.grace;
        let waiting = self.not_settled_here(&mut running, waiting);
        WorkerStopping { in_flight: running.in_flight.len(), handed_back: waiting.len() }.emit(&self.metrics);
        let (in_flight, pool, started) = (&mut running.in_flight, &mut running.pool, running.started);
        let finishing = async {
            while !in_flight.is_empty()
                && let Some(finished) = done.recv().await
            {
                in_flight.remove(&finished.sequence);
                // Frees its part of the limits of its subscription for other processes.
                let Finished { subscription, health, started: since, .. } = &finished;
                pool.finished(subscription, health.finish, *since, started.elapsed());
            }
        };
        let left = AtomicUsize::new(waiting.len());
        let handing_back = async {
            if let Err(error) = timeout_at(deadline, self.hand_back_all(waiting, &left)).await {
                EnvelopesNotHandedBack { error: &error, count: left.load(Ordering::Relaxed) }
                    .emit(&self.metrics);
            }
        };
        let _ = tokio::join!(handing_back, timeout_at(deadline, finishing));
        running.deliveries.shutdown().await;
        let cut = async {
            for (sequence, acker) in running.in_flight {
                DeliveryCut { sequence }.emit(&self.metrics);
                acker.nak(None).await;
            }
            running.spills.join().await;
        };
        let _ = timeout_at(deadline.max(Instant::now() + LEAST_CLEANUP), cut).await;
        if let Err(error) = self.js.flush_at_stop().await {
            AcknowledgementsNotFlushed { error: &error }.emit();
        }
    }

    /// Leaves out the copies of messages that are being delivered, that were settled lately, or that wait here as well: the
    /// broker delivers them again after a restart, and they may not have been looked at before the stop.
    fn not_settled_here(&self, running: &mut Running, waiting: Vec<Delivered>) -> Vec<Delivered> {
        let mut left: HashMap<u64, Delivered> = HashMap::with_capacity(waiting.len());
        for message in waiting {
            if let Some((message, ())) = self.settles_elsewhere(running, message, ()) {
                let known = left.get(&message.stream_sequence);
                if known.is_none_or(|known| known.deliveries < message.deliveries) {
                    left.insert(message.stream_sequence, message);
                }
            }
        }
        let mut left: Vec<Delivered> = left.into_values().collect();
        // The order of a lane.
        left.sort_unstable_by_key(|message| message.stream_sequence);
        left
    }

    /// Hands back messages that were not tried. Those whose last delivery this was would be dead-lettered untried: they
    /// are published again instead, with the number of their attempts, and then acknowledged. If the server does not
    /// answer, the rest is left to `ack_wait` and the router. `left`: those that are not handed back yet.
    async fn hand_back_all(&self, waiting: Vec<Delivered>, left: &AtomicUsize) {
        let (last, others): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|message| {
            // A strict lane delivers without end, and a copy would lose its place.
            message.deliveries >= self.settings.retry.max_deliver
                && !self.js.names().is_in_strict_lane(&message.subject)
        });
        for message in others {
            message.acker.nak(None).await;
            left.fetch_sub(1, Ordering::Relaxed);
        }
        for chunk in last.chunks(HANDED_BACK_TOGETHER) {
            let mut again: Vec<EnvelopeMessage> = Vec::with_capacity(chunk.len());
            for message in chunk {
                let counts = self.delivery.tries().look_up(message).await.moved();
                again.push(self.delivery.tries().copy(message, counts, message.subject.clone()));
            }
            if let Err(error) = self.js.publish_each(&again).await {
                let count = left.load(Ordering::Relaxed);
                return EnvelopesNotHandedBack { error: &error, count }.emit(&self.metrics);
            }
            for message in chunk {
                message.acker.ack().await;
                left.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}
