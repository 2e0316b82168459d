//! Whether the database answers: told once when it stops and once when it is back, whoever finds out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::domain::producer_outbox::Pauses;
use crate::facts::{DatabaseFailed, DatabaseRecovered};
use crate::health::ReadyFlag;
use hub_outbox::StoreError;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Shared by all that ask the database. Readiness goes with it.
#[derive(Clone)]
pub(super) struct Database {
    state: Arc<Mutex<State>>,
}

struct State {
    ready: ReadyFlag,
    /// None before the first answer.
    is_up: Option<bool>,
}

impl Database {
    pub(super) fn new(ready: ReadyFlag) -> Self {
        Self { state: Arc::new(Mutex::new(State { ready, is_up: None })) }
    }

    /// The waits of one who asks in vain.
    pub(super) fn pauses() -> Pauses {
        Pauses::new(FIRST_PAUSE, LONGEST_PAUSE)
    }

    pub(super) fn worked(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.is_up.replace(true) {
            Some(true) => return,
            Some(false) => DatabaseRecovered.emit(),
            None => {}
        }
        state.ready.set(true);
    }

    pub(super) fn failed(&self, error: &StoreError) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_up.replace(false) != Some(false) {
            DatabaseFailed { error }.emit();
            state.ready.set(false);
        }
    }
}
