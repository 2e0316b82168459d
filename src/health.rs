//! Readiness (`/readyz`): which parts of this process work, as the answers of the server show.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A part that [`ReadyFlag::answered`] reports is ready for this long: twice the time after which a reader repeats a
/// request without an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// The parts of a process and whether each is ready. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    parts: Arc<Mutex<BTreeMap<String, Arc<Part>>>>,
    notes: Arc<Mutex<BTreeMap<String, String>>>,
}

/// The flag of one part; not ready at first. Cheap to clone and to change.
#[derive(Debug, Clone)]
pub struct ReadyFlag {
    part: Arc<Part>,
}

#[derive(Debug)]
struct Part {
    start: Instant,
    /// While it is not ready, the others are not for this reason.
    is_cause: bool,
    /// [`NOT_READY`], [`READY`], or the time of the last answer in milliseconds after `start`, plus [`ANSWERED`].
    state: AtomicU64,
}

const NOT_READY: u64 = 0;
const READY: u64 = 1;
const ANSWERED: u64 = 2;

impl Part {
    fn new(is_cause: bool, state: u64) -> Self {
        Self { start: Instant::now(), is_cause, state: AtomicU64::new(state) }
    }

    fn is_ready(&self) -> bool {
        match self.state.load(Ordering::Relaxed) {
            NOT_READY => false,
            READY => true,
            answered => {
                let at = Duration::from_millis(answered - ANSWERED);
                self.start.elapsed().saturating_sub(at) <= ANSWER_LIMIT
            }
        }
    }
}

impl Readiness {
    pub fn part(&self, name: impl Into<String>) -> ReadyFlag {
        self.add(name.into(), Part::new(false, NOT_READY))
    }

    /// A part without which the others take no work. It is ready until something is known to be wrong with it; then only such
    /// parts are named.
    pub fn cause(&self, name: impl Into<String>) -> ReadyFlag {
        self.add(name.into(), Part::new(true, READY))
    }

    fn add(&self, name: String, part: Part) -> ReadyFlag {
        let part = Arc::new(part);
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.insert(name, part.clone());
        ReadyFlag { part }
    }

    /// Sets a warning that `/readyz` shows although the process is ready; `None` removes it.
    pub fn note(&self, subject: impl Into<String>, text: Option<String>) {
        let subject = subject.into();
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        match text {
            Some(text) => drop(notes.insert(subject, text)),
            None => drop(notes.remove(&subject)),
        }
    }

    /// The warnings, one line each.
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Every part, and whether it is ready.
    pub fn parts(&self) -> Vec<(String, bool)> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().map(|(name, part)| (name.clone(), part.is_ready())).collect()
    }

    /// The parts that are not ready, without those that only wait for a [cause](Self::cause); empty when all are ready.
    pub fn missing(&self) -> Vec<String> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let (causes, others): (Vec<_>, Vec<_>) =
            parts.iter().filter(|(_, part)| !part.is_ready()).partition(|(_, part)| part.is_cause);
        let named = if causes.is_empty() { others } else { causes };
        named.into_iter().map(|(name, _)| name.clone()).collect()
    }
}

impl ReadyFlag {
    /// Sets the state until the next change.
    pub fn set(&self, ready: bool) {
        self.part.state.store(if ready { READY } else { NOT_READY }, Ordering::Relaxed);
    }

    /// Whether the part is ready.
    pub fn is_ready(&self) -> bool {
        self.part.is_ready()
    }

    /// The server has answered this part, which is ready until the next answer is overdue.
    pub fn answered(&self) {
        let now = u64::try_from(self.part.start.elapsed().as_millis()).unwrap_or(u64::MAX - ANSWERED);
        self.part.state.store(ANSWERED + now, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_counts_for_a_while_and_a_state_until_it_changes() {
        let readiness = Readiness::default();
        let (reader, api) = (readiness.part("reader"), readiness.part("api"));
        assert_eq!(readiness.missing(), ["api", "reader"]);
        reader.answered();
        api.set(true);
        assert!(readiness.missing().is_empty());
        tokio::time::advance(ANSWER_LIMIT).await;
        assert!(readiness.missing().is_empty());
        tokio::time::advance(Duration::from_millis(10)).await;
        assert_eq!(readiness.missing(), ["reader"]);
        // It waits for room in this process and asks nothing.
        reader.set(true);
        tokio::time::advance(2 * ANSWER_LIMIT).await;
        assert!(readiness.missing().is_empty());
        reader.set(false);
        assert_eq!(readiness.missing(), ["reader"]);
    }

    #[test]
    fn what_only_waits_for_a_cause_is_not_named() {
        let readiness = Readiness::default();
        let (_start, settings) = (readiness.part("start"), readiness.cause("settings"));
        let registry = readiness.cause("registry");
        assert_eq!(readiness.missing(), ["start"], "nothing is known to be wrong with the others");
        settings.set(false);
        assert_eq!(readiness.missing(), ["settings"]);
        registry.set(false);
        assert_eq!(readiness.missing(), ["registry", "settings"]);
        registry.set(true);
        settings.set(true);
        assert_eq!(readiness.missing(), ["start"]);
    }
}
