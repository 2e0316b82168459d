//! Readiness (`/readyz`): which parts of this process are bound to their consumers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The parts of a process and whether each is ready. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    parts: Arc<Mutex<BTreeMap<String, bool>>>,
    notes: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

/// The flag of one part; not ready at first.
#[derive(Debug, Clone)]
pub struct ReadyFlag {
    name: String,
    readiness: Readiness,
}

impl Readiness {
    pub fn part(&self, name: impl Into<String>) -> ReadyFlag {
        let flag = ReadyFlag { name: name.into(), readiness: self.clone() };
        flag.set(false);
        flag
    }

    /// Sets a warning that `/readyz` shows although the process is ready; `None` removes it.
    pub fn note(&self, subject: &'static str, text: Option<String>) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        match text {
            Some(text) => drop(notes.insert(subject, text)),
            None => drop(notes.remove(subject)),
        }
    }

    /// The warnings, one line each.
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The parts that are not ready; empty when all are.
    pub fn missing(&self) -> Vec<String> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().filter(|(_, ready)| !**ready).map(|(name, _)| name.clone()).collect()
    }
}

impl ReadyFlag {
    pub fn set(&self, ready: bool) {
        let mut parts = self.readiness.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.insert(self.name.clone(), ready);
    }
}
