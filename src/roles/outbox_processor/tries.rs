//! Which deliveries of an envelope were attempts.
//!
//! A process remembers the attempts that it makes. Deliveries of which it knows nothing were to another process, or to
//! one that crashed: their attempts, if there were any, are in the delivery log. A delivery whose attempt is in neither
//! counts as not attempted.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use time::OffsetDateTime;

use crate::domain::attempt_record::LogChoice;
use crate::domain::carried::Carried;
use crate::domain::deliveries::Deliveries;
use crate::domain::envelope::Envelope;
use crate::nats::{Delivered, EnvelopeMessage, JetStream, LoggedAttempts};
use crate::panics;

/// Most envelopes in memory, of about 20 bytes each; above that, the oldest are looked up in the delivery log.
const MOST_ENVELOPES: usize = 100_000;

/// The attempts on the envelopes of one domain.
pub(super) struct Tries {
    js: JetStream,
    domain: String,
    logged: Option<LoggedAttempts>,
    /// Envelopes that wait for another delivery, by sequence in the outbox.
    memory: Mutex<BTreeMap<u64, EnvelopeTries>>,
}

/// What is known about the deliveries of one envelope.
#[derive(Debug, Clone, Copy, Default)]
struct EnvelopeTries {
    /// The last delivery here.
    delivery: u32,
    /// Attempts up to and including it.
    tried: u32,
}

impl Tries {
    pub(super) fn new(js: JetStream, domain: String, log: LogChoice) -> Self {
        let logged = (log != LogChoice::None).then(|| LoggedAttempts::new(js.clone()));
        Self { js, domain, logged, memory: Mutex::default() }
    }

    fn remembered(&self, message: &Delivered) -> EnvelopeTries {
        // Most messages are delivered once.
        if message.deliveries <= 1 {
            return EnvelopeTries::default();
        }
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let known = memory.get(&message.stream_sequence).copied().unwrap_or_default();
        // Another message has the sequence if the stream was made again.
        if known.delivery < message.deliveries { known } else { EnvelopeTries::default() }
    }

    /// What this process remembers.
    pub(super) fn known(&self, message: &Delivered) -> Deliveries {
        Deliveries::new(message.carried(), message.deliveries, self.remembered(message).tried)
    }

    /// What this process remembers, if it lacks no delivery.
    pub(super) fn known_here(&self, message: &Delivered) -> Option<Deliveries> {
        let known = self.remembered(message);
        let lacks_none = message.deliveries.saturating_sub(1) <= known.delivery;
        lacks_none.then(|| Deliveries::new(message.carried(), message.deliveries, known.tried))
    }

    /// What this process remembers; if it lacks deliveries, also what the delivery log has.
    pub(super) async fn look_up(&self, message: &Delivered) -> Deliveries {
        let known = self.remembered(message);
        let unknown = message.deliveries.saturating_sub(1).saturating_sub(known.delivery);
        let carried = message.carried();
        let mut tried = known.tried;
        if unknown > 0
            && let Some(logged) = &self.logged
            && let Ok(Ok(envelope)) = panics::catch(|| Envelope::read(&message.payload))
            && let Ok(stored_at) = OffsetDateTime::from_unix_timestamp_nanos(message.stored_at_nanos)
        {
            let highest = logged.highest(&self.domain, &envelope, stored_at).await;
            let most = known.tried.saturating_add(unknown);
            tried = highest.saturating_sub(carried.attempts).clamp(known.tried, most);
        }
        Deliveries::new(carried, message.deliveries, tried)
    }

    /// Remembers, before the message is handed back, how many attempts were made at its present place.
    pub(super) fn keep(&self, message: &Delivered, tried: u32) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.insert(message.stream_sequence, EnvelopeTries { delivery: message.deliveries, tried });
        if memory.len() > MOST_ENVELOPES {
            memory.pop_first();
        }
    }

    /// The message is settled.
    pub(super) fn forget(&self, message: &Delivered) {
        if message.deliveries <= 1 {
            return;
        }
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.remove(&message.stream_sequence);
    }

    /// A copy of the envelope for a subject of the outbox, with its counts. It takes the place of the message, which is
    /// acknowledged afterwards; the message id makes a repetition of both steps harmless.
    pub(super) fn copy(&self, message: &Delivered, counts: Carried, subject: String) -> EnvelopeMessage {
        let stream = self.js.names().outbox_stream(&self.domain);
        // Its age counts from the first place.
        let stored_at = u64::try_from(message.stored_at_nanos / 1_000_000).unwrap_or(0);
        let counts = Carried { queued_at: counts.queued_at.or(Some(stored_at)), ..counts };
        EnvelopeMessage {
            subject,
            message_id: format!("{stream}-{}", message.stream_sequence),
            payload: message.payload.clone().into(),
            headers: counts.to_headers(),
        }
    }
}
