//! Notices that the whole process stood still: it was suspended (SIGSTOP, a frozen container, a machine that slept), or got
//! no processor time.
//!
//! Meanwhile nobody said for the messages that it had read that they are worked on, so the server has delivered them to
//! other processes. What these did may be so long ago that no stream recognizes the repetition. A message therefore has a
//! [`Lease`], which ends with a standstill of most of its `ack_wait`: it is then dropped, and the server delivers it again
//! if nobody has settled it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::facts::ProcessStoodStill;
use crate::tasks::Task;

/// Interval of the looks at the clock; a standstill is seen by whoever looks first after it.
const LOOK: Duration = Duration::from_secs(1);
/// What is shorter is none, whatever `ack_wait` is.
const SHORTEST: Duration = Duration::from_secs(3);

/// The standstills of this process.
#[derive(Debug, Default)]
pub(crate) struct Standstills {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    looked: Option<Duration>,
    /// By stream.
    limits: HashMap<String, Arc<Limit>>,
}

#[derive(Debug)]
struct Limit {
    /// In milliseconds.
    ack_wait: AtomicU64,
    /// Standstills that took most of it.
    count: AtomicU32,
}

/// How long the messages of the consumers of one stream are this process's own.
#[derive(Debug, Clone)]
pub struct Leases {
    standstills: Arc<Standstills>,
    limit: Arc<Limit>,
}

/// Of a message, from when it was read. The default never ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lease(Option<u32>);

impl Standstills {
    /// Looks at the clock while the task lives.
    pub(crate) fn watch(self: &Arc<Self>) -> Task<()> {
        let standstills = self.clone();
        Task::start("the watch for standstills", async move {
            loop {
                standstills.look(now());
                tokio::time::sleep(LOOK).await;
            }
        })
    }

    /// The leases of a stream's messages. `expected` is the `ack_wait` of its consumers until [`Leases::follow`].
    pub(crate) fn leases(self: &Arc<Self>, stream: &str, expected: Duration) -> Leases {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = state.limits.entry(stream.to_owned()).or_insert_with(|| {
            Arc::new(Limit { ack_wait: AtomicU64::new(millis(expected)), count: AtomicU32::new(0) })
        });
        Leases { limit: limit.clone(), standstills: self.clone() }
    }

    fn look(&self, now: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let stood = state.looked.map_or(Duration::ZERO, |looked| now.saturating_sub(looked));
        state.looked = Some(now);
        let mut any = false;
        for limit in state.limits.values() {
            // Heartbeats are sent three times within `ack_wait`; the last one may have been sent that long before.
            let least = limit.ack_wait.load(Ordering::Relaxed) * 2 / 3;
            if millis(stood) >= least.max(millis(SHORTEST)) {
                limit.count.fetch_add(1, Ordering::Relaxed);
                any = true;
            }
        }
        drop(state);
        if any {
            ProcessStoodStill { stood }.emit();
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 2)
}

impl Leases {
    /// The server has this `ack_wait` for the consumers.
    pub fn follow(&self, ack_wait: Duration) {
        self.limit.ack_wait.store(millis(ack_wait), Ordering::Relaxed);
    }

    /// A lease from now on.
    pub fn look(&self) -> Lease {
        self.standstills.look(now());
        self.current()
    }

    /// The same as at the last look of anybody, which costs less.
    pub fn current(&self) -> Lease {
        Lease(Some(self.limit.count.load(Ordering::Relaxed)))
    }

    /// False if the process stood still after it was given, as far as [`Self::look`] or the watch has seen.
    pub fn holds(&self, lease: Lease) -> bool {
        lease.0.is_none() || lease == self.current()
    }
}

/// Of a clock that never goes back, and goes on while the machine sleeps.
fn now() -> Duration {
    #[cfg(target_os = "linux")]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
    let now = rustix::time::clock_gettime(CLOCK);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_lease_ends_with_a_standstill_of_most_of_its_ack_wait() {
        let standstills = Arc::new(Standstills::default());
        let (events, outbox) = (standstills.leases("E", at(30)), standstills.leases("O", at(75)));
        standstills.look(at(1_000));
        let (event, envelope) = (events.current(), outbox.current());
        for now in [1_001, 1_010, 1_029] {
            standstills.look(at(now));
        }
        assert!(events.holds(event) && outbox.holds(envelope), "19 s are within every ack_wait");
        standstills.look(at(1_049));
        assert!(!events.holds(event) && outbox.holds(envelope), "20 s are too long for the events");
        let event = events.current();
        assert!(events.holds(event), "what is read afterwards is this process's own");
        standstills.look(at(1_099));
        assert!(!events.holds(event) && !outbox.holds(envelope));
    }

    #[test]
    fn a_clock_that_goes_back_ends_no_lease() {
        let standstills = Arc::new(Standstills::default());
        let leases = standstills.leases("E", at(30));
        standstills.look(at(1_000));
        let lease = leases.current();
        standstills.look(at(10));
        standstills.look(at(20));
        assert!(leases.holds(lease));
        assert!(leases.holds(Lease::default()), "a message that was not delivered has no lease");
    }

    #[test]
    fn the_consumers_of_a_stream_share_the_ack_wait_that_the_server_has() {
        let standstills = Arc::new(Standstills::default());
        let (one, other) = (standstills.leases("E", at(30)), standstills.leases("E", at(30)));
        one.follow(at(6));
        standstills.look(at(1));
        let lease = one.current();
        standstills.look(at(4));
        assert!(other.holds(lease));
        standstills.look(at(8));
        assert!(!other.holds(lease) && other.holds(one.current()));
    }
}
