//! The allotments, as the pools of a process share them.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Allotments, FlowLimits, MemberId, MemberNotice, Pool, Refused};
use crate::subscription::Identity;

/// Wakes a pool, so that it calls [`FairShare::wake`](crate::fair_share::FairShare::wake).
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// The limits of subscriptions, shared by the pools of a process, and divided among processes by their notices. Cheap to
/// clone. Callers pass the time as the duration since a fixed start, the same for all pools.
#[derive(Clone)]
pub struct SharedAllotments {
    allotments: Arc<Mutex<Allotments>>,
    wakes: Arc<[Wake]>,
}

/// The access of one pool.
#[derive(Debug, Clone)]
pub struct Sharer {
    shared: SharedAllotments,
    pool: Pool,
}

impl Sharer {
    /// Number of other processes that deliver.
    pub fn others(&self) -> usize {
        self.shared.others()
    }
}

impl SharedAllotments {
    /// One waker for each pool.
    pub fn new(me: MemberId, wakes: Vec<Wake>) -> Self {
        let allotments = Arc::new(Mutex::new(Allotments::new(me, wakes.len())));
        Self { allotments, wakes: wakes.into() }
    }

    /// The access of the pool with that waker.
    ///
    /// # Panics
    ///
    /// If there is no such waker.
    pub fn sharer(&self, pool: usize) -> Sharer {
        assert!(pool < self.wakes.len(), "each pool has a waker");
        Sharer { shared: self.clone(), pool }
    }

    fn lock(&self) -> MutexGuard<'_, Allotments> {
        self.allotments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something, and then wakes the pools that can go on.
    fn then_wake<T>(&self, act: impl FnOnce(&mut Allotments) -> T) -> T {
        let (result, to_wake) = {
            let mut allotments = self.lock();
            let result = act(&mut allotments);
            (result, allotments.take_to_wake())
        };
        to_wake.into_iter().filter_map(|pool| self.wakes.get(pool)).for_each(|wake| wake());
        result
    }

    /// Whether this process has listened to the others for long enough to deliver.
    pub fn has_joined(&self, now: Duration) -> bool {
        self.lock().has_joined(now)
    }

    /// Number of other processes that deliver.
    pub fn others(&self) -> usize {
        self.lock().others()
    }

    /// Announces from now on that this process stops.
    pub fn stop(&self) {
        self.lock().stop();
    }

    /// The notice to send every [`BEAT`](super::BEAT).
    pub fn beat(&self, now: Duration) -> MemberNotice {
        self.lock().beat(now)
    }

    /// A notice to send at once, if the other processes should learn of a change.
    pub fn urgent_notice(&self, now: Duration) -> Option<MemberNotice> {
        self.lock().urgent_notice(now)
    }

    /// The notice to send at the end.
    pub fn goodbye(&self) -> MemberNotice {
        self.lock().goodbye()
    }

    /// Takes note of the notice of a process, this one included.
    pub fn hear(&self, notice: &MemberNotice, now: Duration) {
        self.lock().hear(notice, now);
    }
}

impl fmt::Debug for SharedAllotments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedAllotments").finish_non_exhaustive()
    }
}

impl Sharer {
    /// For a single pool, which shares with nobody.
    pub(crate) fn alone() -> Self {
        SharedAllotments::new(MemberId::new(0), vec![Box::new(|| {})]).sharer(0)
    }

    pub(crate) fn take(
        &self,
        id: &Identity,
        limits: FlowLimits,
        waiting: usize,
        now: Duration,
    ) -> Result<(), Refused> {
        self.shared.then_wake(|allotments| allotments.take(self.pool, id, limits, waiting, now))
    }

    pub(crate) fn put_back(&self, id: &Identity) {
        self.shared.lock().put_back(id);
    }

    pub(crate) fn release(&self, id: &Identity, now: Duration) {
        self.shared.then_wake(|allotments| allotments.release(self.pool, id, now));
    }

    pub(crate) fn freed(&self) -> HashSet<Identity> {
        self.shared.lock().freed(self.pool)
    }
}
