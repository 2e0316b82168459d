//! Passes the notifications of new rows from the database to all processors.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::OutboxRelaySettings;
use super::database::Database;
use crate::facts::NotificationsLost;
use hub_outbox::Store;

/// The state of the notifications, as a processor reads it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Notice {
    /// Grows with each notification: a processor that reads it before a claim misses none.
    count: u64,
    /// Whether notifications arrive. Without them, processors poll.
    is_heard: bool,
}

/// Longest pause between two polls without notifications, in units of `poll_min`.
const MOST_UNHEARD: u32 = 10;

impl Notice {
    pub(super) fn is_heard(self) -> bool {
        self.is_heard
    }

    /// Longest pause between two polls.
    pub(super) fn longest_pause(self, settings: &OutboxRelaySettings) -> Duration {
        if self.is_heard {
            settings.poll_max
        } else {
            (settings.poll_min * MOST_UNHEARD).min(settings.poll_max)
        }
    }
}

/// Listens until `stop`. After a lost connection, connects again and wakes all processors, since notifications may have
/// been missed.
pub(super) async fn listen(store: Store, notice: watch::Sender<Notice>, stop: CancellationToken) {
    let spread = |is_heard: bool| {
        notice.send_modify(|notice| *notice = Notice { count: notice.count.wrapping_add(1), is_heard });
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
            // The processors report a database that is unavailable.
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
