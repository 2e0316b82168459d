//! The events that are read and not planned yet: one queue per tenant, served in turns by the work that they cause.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::resolver::Source;
use crate::domain::event::Event;
use crate::domain::index::{IndexEntry, Matching};
use crate::domain::turns::Turns;
use crate::nats::{Acker, Delivered};
use crate::panics::{self, Panicked};

/// Steps of work of one turn. A step is the comparison of one filter, or as much work on envelopes (about 10 ns).
pub(super) const TURN: usize = 4_096;
/// Most steps of one tenant that wait here while other events are behind them in the stream. Further events of the
/// tenant are handed back to the stream for a while, so that the others are read.
const MOST_WORK: u64 = 4_000_000;
/// Delay of an event that is handed back; it grows with each delivery.
const PUT_ASIDE: Duration = Duration::from_secs(1);
const LONGEST_PUT_ASIDE: u32 = 15;

/// An event on its way to its envelopes.
pub(super) struct Work {
    pub(super) message: Delivered,
    /// Released when the event is settled.
    pub(super) permit: OwnedSemaphorePermit,
    pub(super) event: Event,
    source: Source,
    matching: Option<Matching>,
    /// Steps done for it.
    steps: usize,
}

/// The waiting events. One planning at a time owns it.
#[derive(Default)]
pub(super) struct EventsToPlan {
    turns: Turns<Work>,
}

/// Result of a turn.
pub(super) enum Turn {
    /// The event needs further turns.
    Unfinished,
    /// These subscriptions want the event.
    Matched(Box<Work>, Vec<Arc<IndexEntry>>),
    /// The matching panicked.
    Panicked(Box<Work>, Panicked),
}

impl Work {
    pub(super) fn new(
        message: Delivered,
        permit: OwnedSemaphorePermit,
        event: Event,
        source: Source,
    ) -> Self {
        // Decoding was work as well.
        let steps = 1 + message.payload.len() / 1024;
        Self { message, permit, event, source, matching: None, steps }
    }
}

impl EventsToPlan {
    pub(super) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Adds an event. If its tenant has much work waiting, and other events are behind this one, returns it with the
    /// delay after which the stream is to deliver it again.
    pub(super) fn add(&mut self, work: Work) -> Result<(), (Box<Work>, Duration)> {
        let tenant = &work.event.tenant;
        if work.message.pending > 0 && self.turns.work_waiting(tenant) > MOST_WORK {
            let times = work.message.deliveries.clamp(1, LONGEST_PUT_ASIDE);
            return Err((Box::new(work), PUT_ASIDE * times));
        }
        let tenant = tenant.clone();
        self.turns.push(&tenant, work);
        Ok(())
    }

    /// Does one turn of the tenant with the least work done; returns the steps. `None` if no event waits.
    pub(super) fn turn(&mut self) -> Option<(Turn, usize)> {
        let (tenant, mut work) = self.turns.take_next()?;
        let advanced = panics::catch(|| {
            let matching =
                work.matching.get_or_insert_with(|| Matching::new(work.source.candidates(&work.event)));
            (1 + matching.advance(&work.event, TURN), matching.is_done())
        });
        let (steps, is_done) = match advanced {
            Ok(advanced) => advanced,
            Err(panicked) => return Some((Turn::Panicked(Box::new(work), panicked), 1)),
        };
        work.steps += steps;
        self.turns.charge(&tenant, steps as u64);
        if !is_done {
            self.turns.put_back(&tenant, work);
            return Some((Turn::Unfinished, steps));
        }
        let wanting = work.matching.take().map(Matching::into_wanting).unwrap_or_default();
        Some((Turn::Matched(Box::new(work), wanting), steps))
    }

    /// Completes an event of this tenant. `made`: steps of work on its envelopes.
    pub(super) fn done(&mut self, tenant: &str, steps: usize, made: usize) {
        self.turns.charge(tenant, made as u64);
        self.turns.done(tenant, (steps + made) as u64);
    }

    pub(super) fn ackers(&self) -> impl Iterator<Item = &Acker> {
        self.turns.iter().map(|work| &work.message.acker)
    }
}

impl Work {
    pub(super) fn steps(&self) -> usize {
        self.steps
    }
}
