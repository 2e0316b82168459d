//! The numbers of failed attempts, from the delivery log: after a crash it alone knows which deliveries were attempts.
//!
//! The log has one subject per subscription. Its messages are read once, from the time at which the oldest envelope in
//! question was stored, and then from where the last read ended.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use super::connection::JetStream;
use super::error::NatsError;
use crate::domain::attempt_record::{AttemptRecord, Settled};
use crate::domain::envelope::Envelope;
use crate::facts::AttemptsNotLookedUp;

/// Longest time that a look-up takes. What it has not read counts as not attempted.
const LIMIT: Duration = Duration::from_secs(5);
/// How far before the first envelope a read begins, for others of about its age.
const MARGIN: time::Duration = time::Duration::minutes(5);
/// Most subscriptions in memory.
const MOST_SUBSCRIPTIONS: usize = 64;
/// Most envelopes of one subscription in memory, of 16 bytes each.
const MOST_ENVELOPES: usize = 16_384;

/// Looks attempts up in the delivery log. Cheap to clone.
#[derive(Clone)]
pub struct LoggedAttempts {
    js: JetStream,
    subscriptions: Arc<Mutex<Subscriptions>>,
}

type Subscriptions = HashMap<(String, String), Arc<AsyncMutex<Known>>>;

/// What is known about one subscription in one domain.
#[derive(Default)]
struct Known {
    /// The time from which on the log was read.
    since: Option<OffsetDateTime>,
    /// The sequence at which the next read begins; 0 before the first one.
    next: u64,
    read_at: Option<Instant>,
    /// The highest number of a failed attempt by the hash of its envelope's id.
    highest: HashMap<u64, u32>,
}

impl LoggedAttempts {
    pub fn new(js: JetStream) -> Self {
        Self { js, subscriptions: Arc::default() }
    }

    /// The highest number of a logged attempt of an envelope that was stored at `since`; 0 if there is none, or if the
    /// log cannot be read.
    pub async fn highest(&self, domain: &str, envelope: &Envelope<'_>, since: OffsetDateTime) -> u32 {
        let Some(token) = envelope.token() else { return 0 };
        let (known, asked_at) = (self.known(domain, &token), Instant::now());
        let looked_up = async {
            let mut known = known.lock().await;
            if known.since.is_none_or(|from| since < from) {
                *known =
                    Known { since: Some(since.checked_sub(MARGIN).unwrap_or(since)), ..Known::default() };
            }
            // Another look-up may have read the log since this one began.
            if known.read_at.is_none_or(|at| at < asked_at) {
                known.read_at = Some(Instant::now());
                let read = self.read_on(domain, &token, &mut known).await;
                if let Err(error) = read {
                    AttemptsNotLookedUp { error: &error, domain }.emit();
                }
            }
            known.highest.get(&hash(&envelope.id)).copied().unwrap_or(0)
        };
        match tokio::time::timeout(LIMIT, looked_up).await {
            Ok(highest) => highest,
            Err(error) => {
                AttemptsNotLookedUp { error: &error, domain }.emit();
                0
            }
        }
    }

    fn known(&self, domain: &str, token: &str) -> Arc<AsyncMutex<Known>> {
        let mut subscriptions = self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (domain.to_owned(), token.to_owned());
        if subscriptions.len() >= MOST_SUBSCRIPTIONS && !subscriptions.contains_key(&key) {
            subscriptions.clear();
        }
        subscriptions.entry(key).or_default().clone()
    }

    /// If it is dropped, the next read continues where it ended.
    async fn read_on(&self, domain: &str, token: &str, known: &mut Known) -> Result<(), NatsError> {
        let names = self.js.names();
        let (stream, subject) = (names.attempts_stream(), names.attempts(domain, token));
        let Known { since, next, highest, .. } = known;
        let (from, since) = (*next, *since);
        self.js
            .for_each_stored_from(&stream, &subject, from, since, |message| {
                *next = message.sequence + 1;
                for line in message.payload.split(|byte| *byte == b'\n') {
                    add(line, highest);
                }
            })
            .await
    }
}

/// Adds the record of a failed attempt. Successes, which are most records, are recognized without parsing them.
fn add(line: &[u8], highest: &mut HashMap<u64, u32>) {
    const DELIVERED: &[u8] = br#""outcome":"delivered""#;
    if line.windows(DELIVERED.len()).any(|window| window == DELIVERED) {
        return;
    }
    for record in AttemptRecord::read_lines(line) {
        if record.outcome == Settled::Delivered {
            continue;
        }
        let envelope = hash(&record.envelope);
        if highest.len() >= MOST_ENVELOPES && !highest.contains_key(&envelope) {
            // What is forgotten is tried once more.
            highest.clear();
        }
        let number = highest.entry(envelope).or_default();
        *number = record.attempt.max(*number);
    }
}

fn hash(envelope: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    envelope.hash(&mut hasher);
    hasher.finish()
}
