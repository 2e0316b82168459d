//! Sends the last acknowledgements again after a reconnect.
//!
//! A broker that is killed loses acknowledgements: those on their way, and those that it has not written to its disk,
//! also if it confirmed them. An acknowledgement of an acknowledged message has no effect, so after each reconnect all
//! that were sent lately are sent again. The others are covered by what the process remembers of its deliveries.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::connection::JetStream;
use super::message::Acker;
use crate::facts::AcknowledgementsRepeated;

/// Most acknowledgements that are sent again.
const MOST: usize = 16 * 1024;
/// Older ones are not sent again. A broker writes its state to its disk within a second.
const LATELY: Duration = Duration::from_secs(30);
/// Acknowledgements that are sent again between two flushes, which fail if the connection is lost meanwhile.
const AT_ONCE: usize = 1024;

/// The acknowledgements of one reader that were sent lately. Cheap to clone; all clones share them.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    sent: Arc<Mutex<VecDeque<Answer>>>,
}

#[derive(Debug, Clone)]
struct Answer {
    acker: Acker,
    at: Instant,
    /// The reason of a termination; `None` for an acknowledgement.
    terminated: Option<&'static str>,
}

impl Answers {
    /// Acknowledges a message, now and after a reconnect.
    pub async fn ack(&self, acker: &Acker) {
        self.remember(acker, None);
        acker.ack().await;
    }

    /// The same, and waits until the server has processed it. Returns false if no confirmation arrives within the limit.
    pub async fn ack_and_confirm(&self, acker: &Acker, limit: Duration) -> bool {
        self.remember(acker, None);
        acker.ack_and_confirm(limit).await
    }

    /// Stops the redelivery of a message, now and after a reconnect.
    pub async fn terminate(&self, acker: &Acker, reason: &'static str) {
        self.remember(acker, Some(reason));
        acker.terminate(reason).await;
    }

    fn remember(&self, acker: &Acker, terminated: Option<&'static str>) {
        let (acker, now) = (acker.detached(), Instant::now());
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        while sent.len() >= MOST || sent.front().is_some_and(|first| now.duration_since(first.at) > LATELY) {
            sent.pop_front();
        }
        sent.push_back(Answer { acker, at: now, terminated });
    }

    /// Sends them again after each reconnect, forever. May be dropped at any await.
    pub async fn repeat(self, js: JetStream) {
        let mut generation = js.generation();
        generation.mark_unchanged();
        loop {
            if generation.changed().await.is_err() {
                // The connection is closed for good.
                return std::future::pending().await;
            }
            let sent: Vec<Answer> =
                self.sent.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
            let mut count = 0;
            for answers in sent.chunks(AT_ONCE) {
                for answer in answers {
                    match answer.terminated {
                        None => answer.acker.ack().await,
                        Some(reason) => answer.acker.terminate(reason).await,
                    }
                }
                count += answers.len();
                if js.flush_at_stop().await.is_err() {
                    // The next reconnect starts again with the first.
                    break;
                }
            }
            if count > 0 {
                AcknowledgementsRepeated { count }.emit();
            }
        }
    }
}
