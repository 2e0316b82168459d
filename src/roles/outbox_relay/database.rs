//! Whether the database answers. The start and the end of an outage are logged once, by whichever task finds out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::domain::producer_outbox::Pauses;
use crate::facts::{DatabaseFailed, DatabaseRecovered};
use crate::health::ReadyFlag;
use hub_outbox::StoreError;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Shared by all tasks that use the database; sets the readiness of the relay.
#[derive(Clone)]
pub(super) struct Database {
    state: Arc<Mutex<State>>,
}

struct State {
    ready: ReadyFlag,
    /// `None` before the first answer.
    is_up: Option<bool>,
}

impl Database {
    pub(super) fn new(ready: ReadyFlag) -> Self {
        Self { state: Arc::new(Mutex::new(State { ready, is_up: None })) }
    }

    /// Pauses between retries of a statement.
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
