//! Sends the last acknowledgements again after a reconnect.
//!
//! A broker that is killed loses acknowledgements: those on their way, and those that it has not written to its disk,
//! also if it confirmed them. An acknowledgement of an acknowledged message has no effect, so after each reconnect all
//! that were sent lately are sent again. The others are covered by what the process remembers of its deliveries.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::Subject;
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
    sent: Arc<Mutex<SentAnswers>>,
}

/// The text of the subjects is in one buffer: an allocation for each answer, freed half a minute later, takes more time
/// than the answer itself.
#[derive(Debug, Default)]
struct SentAnswers {
    answers: VecDeque<Answer>,
    /// The subjects of these, one after the other.
    subjects: VecDeque<u8>,
}

#[derive(Debug)]
struct Answer {
    /// Bytes of its subject.
    subject: usize,
    at: Instant,
    /// The reason of a termination; `None` for an acknowledgement.
    terminated: Option<&'static str>,
}

impl SentAnswers {
    fn push(&mut self, subject: &str, terminated: Option<&'static str>, now: Instant) {
        while self.answers.len() >= MOST
            || self.answers.front().is_some_and(|first| now.duration_since(first.at) > LATELY)
        {
            if let Some(first) = self.answers.pop_front() {
                self.subjects.drain(..first.subject);
            }
        }
        self.subjects.extend(subject.as_bytes());
        self.answers.push_back(Answer { subject: subject.len(), at: now, terminated });
    }

    /// The subject of each answer, and the reason of a termination.
    fn all(&self) -> Vec<(String, Option<&'static str>)> {
        let mut from = 0;
        let answers = self.answers.iter().map(|answer| {
            let to = from + answer.subject;
            let subject: Vec<u8> = self.subjects.range(from..to).copied().collect();
            from = to;
            (String::from_utf8_lossy(&subject).into_owned(), answer.terminated)
        });
        answers.collect()
    }
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
        let now = Instant::now();
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).push(acker.subject(), terminated, now);
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
            let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner).all();
            let mut count = 0;
            for answers in sent.chunks(AT_ONCE) {
                for (subject, terminated) in answers {
                    let acker = Acker::new(js.client().clone(), Subject::from(subject.as_str()));
                    match terminated {
                        None => acker.ack().await,
                        Some(reason) => acker.terminate(reason).await,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_answers_are_kept_with_their_subjects() {
        let mut sent = SentAnswers::default();
        let now = Instant::now();
        let subject = |number: usize| format!("$JS.ACK.{}{number}", "x".repeat(number % 7));
        let reason = |number: usize| number.is_multiple_of(3).then_some("poison");
        for number in 0..MOST + 100 {
            sent.push(&subject(number), reason(number), now);
        }
        let expected: Vec<_> = (100..MOST + 100).map(|number| (subject(number), reason(number))).collect();
        assert_eq!(sent.all(), expected);
        assert_eq!(sent.subjects.len(), expected.iter().map(|(subject, _)| subject.len()).sum::<usize>());
    }

    #[test]
    fn older_answers_are_forgotten() {
        let mut sent = SentAnswers::default();
        let now = Instant::now();
        sent.push("first", None, now);
        sent.push("", Some("poison"), now + LATELY);
        assert_eq!(sent.all().len(), 2);
        sent.push("third", None, now + LATELY + Duration::from_millis(1));
        assert_eq!(sent.all(), [(String::new(), Some("poison")), ("third".to_owned(), None)]);
    }
}
