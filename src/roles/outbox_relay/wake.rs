//! Word of new rows, from the database to all processors.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::OutboxRelaySettings;
use super::database::Database;
use crate::facts::NotificationsLost;
use hub_outbox::Store;

/// What a processor sees when it looks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Word {
    /// Grows with each word: whoever has seen the number before it looked at the rows misses none.
    count: u64,
    /// Whether word is to be had at the moment. Without it only looking helps.
    is_heard: bool,
}

/// The longest time between two looks where no word is to be had, in shortest ones: nobody who polls is
/// to wait as long as one who would be told.
const MOST_UNHEARD: u32 = 10;

impl Word {
    pub(super) fn is_heard(self) -> bool {
        self.is_heard
    }

    /// Between two looks at rows that nobody told of.
    pub(super) fn longest_pause(self, settings: &OutboxRelaySettings) -> Duration {
        if self.is_heard {
            settings.poll_max
        } else {
            (settings.poll_min * MOST_UNHEARD).min(settings.poll_max)
        }
    }
}

/// Listens until it is stopped. A connection that is lost is made anew, and everybody looks then, for
/// word may have been missed.
pub(super) async fn listen(store: Store, word: watch::Sender<Word>, stop: CancellationToken) {
    let spread = |is_heard: bool| {
        word.send_modify(|word| *word = Word { count: word.count.wrapping_add(1), is_heard });
    };
    let listening = async {
        let mut pauses = Database::pauses();
        loop {
            let error = match store.wakeups().await {
                Ok(mut wakeups) => {
                    spread(wakeups.is_heard());
                    loop {
                        match wakeups.next().await {
                            Ok(()) => {
                                pauses.reset();
                                spread(true);
                            }
                            Err(error) => break error,
                        }
                    }
                }
                Err(error) => error,
            };
            // The processors tell of a database that is away.
            NotificationsLost { error: &error }.emit();
            spread(false);
            tokio::time::sleep(pauses.next(rand::random())).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = listening => {}
    }
}
