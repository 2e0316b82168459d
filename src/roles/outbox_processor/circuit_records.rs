//! The circuits that a process knows, as the broker has stored them.
//!
//! A circuit is stored in the configuration of a durable, and the broker has no conditional update: provisioning, or
//! another process, may write an older copy of the configuration at the moment at which a circuit opens. The pause remains
//! then, because an update does not change it, and the record is gone: nothing would end the pause when the endpoint works.
//! So each process that knows the circuit writes the record again.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::nats::{CircuitRecord, ConsumerInfo};

/// By lane; at most one for each own lane that the last look has found.
#[derive(Default)]
pub(super) struct KnownCircuits(Mutex<HashMap<String, KnownRecord>>);

struct KnownRecord {
    circuit: CircuitRecord,
    at: Instant,
}

impl KnownCircuits {
    pub(super) fn note(&self, lane: &str, circuit: &CircuitRecord) {
        self.lock().insert(lane.to_owned(), KnownRecord { circuit: circuit.clone(), at: Instant::now() });
    }

    pub(super) fn forget(&self, lane: &str) {
        self.lock().remove(lane);
    }

    /// The circuit whose record the durable has lost. Forgets it if it was closed; not one that was noted since `asked`,
    /// the time at which the durable was read.
    pub(super) fn lost_by(&self, lane: &str, info: &ConsumerInfo, asked: Instant) -> Option<CircuitRecord> {
        let mut known = self.lock();
        let KnownRecord { circuit, at } = known.get(lane)?;
        if info.has_lost(circuit) {
            return Some(circuit.clone());
        }
        if *at < asked {
            known.remove(lane);
        }
        None
    }

    /// Forgets the circuits of lanes that do not exist, as of `asked`.
    pub(super) fn keep(&self, exists: impl Fn(&str) -> bool, asked: Instant) {
        self.lock().retain(|lane, KnownRecord { at, .. }| *at >= asked || exists(lane));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, KnownRecord>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
