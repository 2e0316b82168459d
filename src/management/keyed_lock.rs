//! A lock per key within this process.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

#[derive(Default)]
pub(super) struct KeyedLock(Mutex<Locks>);

#[derive(Default)]
struct Locks {
    by_key: HashMap<String, Weak<tokio::sync::Mutex<()>>>,
    /// Keys in use when the unused ones were removed last.
    used: usize,
}

impl KeyedLock {
    /// Number of keys from which on unused ones are removed.
    const MOST: usize = 1024;

    /// Waits for the locks of several keys. Whoever holds several has them from here: they are taken in the order of the
    /// keys, so that two callers never wait for each other.
    pub(super) async fn lock_all(&self, keys: BTreeSet<&str>) -> Vec<OwnedMutexGuard<()>> {
        let mut guards = Vec::with_capacity(keys.len());
        for key in keys {
            guards.push(self.lock(key).await);
        }
        guards
    }

    /// Waits for the lock of a key. Dropping the guard releases it.
    pub(super) async fn lock(&self, key: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if locks.by_key.len() >= Self::MOST.max(2 * locks.used) {
                locks.by_key.retain(|_, lock| lock.strong_count() > 0);
                locks.used = locks.by_key.len();
            }
            match locks.by_key.get(key).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::default();
                    locks.by_key.insert(key.to_owned(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn callers_of_several_keys_do_not_wait_for_each_other_and_none_has_a_key_twice() {
        let (locks, held) = (KeyedLock::default(), Mutex::new(BTreeSet::new()));
        let callers = (0..60_usize).map(|caller| {
            let keys: Vec<String> = (0..50).map(|n| ((n * (caller + 1)) % 53).to_string()).collect();
            let (locks, held) = (&locks, &held);
            async move {
                let keys: BTreeSet<&str> = keys.iter().map(String::as_str).collect();
                let guards = locks.lock_all(keys.clone()).await;
                assert_eq!(guards.len(), keys.len());
                for key in &keys {
                    assert!(held.lock().unwrap().insert((*key).to_owned()), "{key} is held");
                }
                tokio::task::yield_now().await;
                for key in keys {
                    held.lock().unwrap().remove(key);
                }
            }
        });
        futures_util::future::join_all(callers).await;
    }

    #[tokio::test]
    async fn unused_keys_are_removed() {
        let locks = KeyedLock::default();
        let used = locks.lock_all(["a", "b"].into()).await;
        for number in 0..10 * KeyedLock::MOST {
            drop(locks.lock(&number.to_string()).await);
        }
        assert!(locks.0.lock().unwrap().by_key.len() <= KeyedLock::MOST + 1);
        drop(used);
    }
}
