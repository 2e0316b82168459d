//! Names of the consumers of readers in order: a few per process, used again and again, because dashboards keep a series for
//! each name that a server ever had.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A request of the last reader that is late must not reach the consumer of the next one with its name.
const REST: Duration = Duration::from_secs(5);
/// Time after which the server has deleted a consumer that nobody reads and that could not be deleted, three times its
/// `inactive_threshold`. Its name is not used before: the new reader would continue in the middle.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(180);

/// The numbers in the names of a process.
#[derive(Debug, Default)]
pub(super) struct ScanNames {
    numbers: Mutex<Numbers>,
}

#[derive(Debug, Default)]
struct Numbers {
    /// Random, so that no other process has the same names.
    process: String,
    /// Those that are not in use, with the time from which they may be used again.
    resting: BTreeMap<u32, Instant>,
    /// The highest that was ever used.
    highest: u32,
}

/// The name of one consumer. It may be used again some time after it is dropped.
#[derive(Debug)]
pub(super) struct ScanName {
    names: Arc<ScanNames>,
    number: u32,
    name: String,
    is_deleted: bool,
}

impl ScanNames {
    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name with the lowest number that may be used. `random`: the part for the process, if it has none yet.
    pub(super) fn take(self: &Arc<Self>, random: impl FnOnce() -> String) -> ScanName {
        let mut numbers = self.numbers();
        if numbers.process.is_empty() {
            numbers.process = random();
        }
        let now = Instant::now();
        let rested = numbers.resting.iter().find(|(_, until)| **until <= now).map(|(number, _)| *number);
        let number = rested.unwrap_or(numbers.highest + 1);
        numbers.resting.remove(&number);
        numbers.highest = numbers.highest.max(number);
        let name = format!("scan-{}-{number}", numbers.process);
        ScanName { names: Arc::clone(self), number, name, is_deleted: false }
    }
}

impl ScanName {
    pub(super) fn as_str(&self) -> &str {
        &self.name
    }

    /// The consumer does not exist any more.
    pub(super) fn deleted(mut self) {
        self.is_deleted = true;
    }
}

impl Drop for ScanName {
    fn drop(&mut self) {
        let rest = if self.is_deleted { REST } else { FORGOTTEN_AFTER };
        self.names.numbers().resting.insert(self.number, Instant::now() + rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_name_is_used_again_when_its_consumer_is_gone() {
        let names = Arc::<ScanNames>::default();
        let take = || names.take(|| "p".to_owned());
        let (one, two) = (take(), take());
        assert_eq!((one.as_str(), two.as_str()), ("scan-p-1", "scan-p-2"));
        one.deleted();
        let three = take();
        assert_eq!(three.as_str(), "scan-p-3");
        tokio::time::advance(REST).await;
        let one = names.take(|| "other".to_owned());
        assert_eq!(one.as_str(), "scan-p-1");
        // Without a deletion, its consumer may exist for a while.
        drop(one);
        two.deleted();
        tokio::time::advance(REST).await;
        let two = take();
        assert_eq!((two.as_str(), take().as_str()), ("scan-p-2", "scan-p-4"));
        tokio::time::advance(FORGOTTEN_AFTER - REST).await;
        assert_eq!(take().as_str(), "scan-p-1");
    }
}
