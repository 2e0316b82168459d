//! What must not be under way twice in this process: of two with the same name the second waits for the first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

#[derive(Default)]
pub(super) struct OneAtATime(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl OneAtATime {
    /// Names remembered before those that nobody waits for are dropped.
    const MOST: usize = 1024;

    /// Waits for the turn of that name; dropping it gives it to the next.
    pub(super) async fn turn(&self, name: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if turns.len() >= Self::MOST {
                turns.retain(|_, turn| turn.strong_count() > 0);
            }
            match turns.get(name).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::default();
                    turns.insert(name.to_owned(), Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
    }
}
