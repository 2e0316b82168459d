//! The events that are read and not yet planned: each tenant's in a queue of its own, in turns by the work that they
//! make.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::resolver::Source;
use crate::domain::event::Event;
use crate::domain::index::{IndexEntry, Matching};
use crate::domain::turns::Turns;
use crate::nats::{Acker, Delivered};
use crate::panics::{self, Panicked};

/// Steps of work of one turn: comparisons of filters, and as much for what is made (a step is some ten nanoseconds).
pub(super) const TURN: usize = 4_096;
/// Work of one tenant that is kept waiting here while other events are behind it in the stream. What is more goes
/// back to the stream for a moment, so that those are read.
const MOST_WORK: u64 = 4_000_000;
/// How long it goes back: longer each time.
const PUT_ASIDE: Duration = Duration::from_secs(1);
const LONGEST_PUT_ASIDE: u32 = 15;

/// An event on its way to its envelopes.
pub(super) struct Work {
    pub(super) message: Delivered,
    /// Its place in memory.
    pub(super) permit: OwnedSemaphorePermit,
    pub(super) event: Event,
    source: Source,
    matching: Option<Matching>,
    /// Steps taken for it.
    steps: usize,
}

/// What waits. One planning at a time has it.
#[derive(Default)]
pub(super) struct Backlog {
    turns: Turns<Work>,
}

/// What came of a turn.
pub(super) enum Turn {
    /// Its event has more to be done.
    Unfinished,
    /// These want the event.
    Matched(Box<Work>, Vec<Arc<IndexEntry>>),
    /// Nobody can say who wants it.
    Panicked(Box<Work>, Panicked),
}

impl Work {
    pub(super) fn new(
        message: Delivered,
        permit: OwnedSemaphorePermit,
        event: Event,
        source: Source,
    ) -> Self {
        // To have read it was work as well.
        let steps = 1 + message.payload.len() / 1024;
        Self { message, permit, event, source, matching: None, steps }
    }
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Takes an event in. Where its tenant has much work waiting already, and other events are behind this one, it is
    /// given back with how long it is to go back to the stream.
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

    /// One turn of the tenant that has had least; gives the steps taken. `None`: nothing waits.
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

    /// An event of this tenant is done; `made`: the steps that its envelopes were worth.
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
