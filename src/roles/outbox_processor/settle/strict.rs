//! Settles the envelopes of strict lanes, which stay at their places until they are delivered or given up.

use std::time::Duration;

use super::{RETRY_DELAY, Settle, Settlement, Tried};
use crate::domain::dead_letter::{DeadLetter, Failed, Origin};
use crate::domain::dead_letter_room::retry_after;
use crate::domain::deliveries::Deliveries;
use crate::domain::envelope::Envelope;
use crate::domain::outcome::{DeliveryDecision, Outcome, Reason, decide};
use crate::domain::status::Statuses;
use crate::domain::subscription::OnDeadLetter;
use crate::facts::{
    DeadLetterNotRemoved, DeadLetterNotWritten, DeadLetterResolved, DeliveryDeadLettered, OrderNotChecked,
    OrderStopped,
};
use crate::nats::{Delivered, NatsError, StoppingLetter};

/// Delay before an envelope that stops its lane is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// An envelope whose turn it is in its strict lane.
pub(in super::super) struct Turn {
    /// What a dead letter does; `None` if the subscription has no strict order any more.
    pub(in super::super) policy: Option<OnDeadLetter>,
    /// The dead letter that is replayed.
    pub(in super::super) letter: Option<StoppingLetter>,
}

impl Settle {
    pub(in super::super) fn is_in_strict_lane(&self, message: &Delivered) -> bool {
        self.js.names().is_in_strict_lane(&message.subject)
    }

    /// The dead letter with which an envelope stops its lane.
    pub(in super::super) async fn stopping_letter(
        &self,
        message: &Delivered,
        envelope: &Envelope<'_>,
    ) -> Result<Option<StoppingLetter>, NatsError> {
        let (subject, sequence) = (&message.subject, message.stream_sequence);
        self.js.stopping_letter(&self.domain, subject, sequence, &envelope.id).await
    }

    /// The envelope stays in its lane, untried.
    pub(in super::super) async fn stays(&self, message: &Delivered) {
        self.tries.keep(message, self.tries.known(message).tried());
        message.acker.nak(Some(LOOK_AGAIN)).await;
    }

    /// Whether the envelope stops its lane cannot be read.
    pub(in super::super) async fn not_checked(
        &self,
        message: &Delivered,
        envelope: &Envelope<'_>,
        error: &NatsError,
    ) {
        OrderNotChecked { error, envelope: &envelope.id, retry_in: LOOK_AGAIN }.emit(&self.metrics);
        self.stays(message).await;
    }

    /// The order does not stop any more for an envelope that has its dead letter.
    pub(in super::super) async fn passes(&self, message: &Delivered) {
        self.tries.forget(message);
        self.remembered.answers.terminate(&message.acker, "the order goes on").await;
    }

    pub(in super::super) fn decide_in_order(
        &self,
        outcome: &Outcome,
        known: &Deliveries,
        statuses: &Statuses,
    ) -> DeliveryDecision {
        let attempt = known.next_attempt_in_order(self.policy.max_deliver);
        decide(outcome, attempt, &self.policy, statuses, rand::random::<f64>())
    }

    /// As [`Settle::settle`], in a strict lane if `turn` is given.
    pub(in super::super) async fn settle_in(
        &self,
        turn: Option<&Turn>,
        message: &Delivered,
        envelope: &Envelope<'_>,
        decision: DeliveryDecision,
        tried: Tried<'_>,
        known: &Deliveries,
    ) {
        let Some(turn) = turn else {
            return self.settle(message, envelope, decision, tried, known).await;
        };
        match (decision, &turn.letter) {
            (DeliveryDecision::DeadLetter { .. }, _) => {
                self.dead_letter_in_order(turn, message, envelope, decision, tried, known).await;
            }
            (DeliveryDecision::Ack, Some(letter)) => {
                let id: &str = &envelope.id;
                match self.js.resolve_dead_letter(&self.domain, letter.sequence, Some(id)).await {
                    Ok(is_removed) => {
                        if is_removed {
                            DeadLetterResolved { envelope: id }.emit(&self.metrics);
                        }
                        self.settle(message, envelope, decision, tried, known).await;
                    }
                    Err(error) => {
                        // As in `acknowledge`: a second delivery is better than a dead letter that stays.
                        let attempts = known.attempts().saturating_add(1);
                        self.record(message, envelope, decision, &tried, attempts);
                        DeadLetterNotRemoved { error: &error, envelope: id, retry_in: RETRY_DELAY }
                            .emit(&self.metrics);
                        self.tries.keep(message, known.tried().saturating_add(1));
                        message.acker.nak(Some(RETRY_DELAY)).await;
                    }
                }
            }
            _ => self.settle(message, envelope, decision, tried, known).await,
        }
    }

    /// Writes the dead letter. The envelope stays if it stops the order.
    async fn dead_letter_in_order(
        &self,
        turn: &Turn,
        message: &Delivered,
        envelope: &Envelope<'_>,
        decision: DeliveryDecision,
        tried: Tried<'_>,
        known: &Deliveries,
    ) {
        let DeliveryDecision::DeadLetter { reason, fault } = decision else { return };
        let made = u32::from(tried.tried);
        let attempts = known.attempts().saturating_add(made);
        self.record(message, envelope, decision, &tried, attempts);
        self.tries.keep(message, known.tried().saturating_add(made));
        if tried.tried {
            self.keep_last_words(envelope, attempts, fault, &tried).await;
        }
        let failed = Failed {
            reason,
            fault,
            attempts,
            redrives: turn.letter.map_or(message.carried().redrives, |letter| letter.redrives),
            status: tried.status,
            error: Some(tried.error),
            at: self.js.now(),
        };
        let stops =
            turn.policy == Some(OnDeadLetter::Stop) && !matches!(reason, Reason::Removed | Reason::Expired);
        // A scheduled redrive of an envelope that was skipped would be out of order.
        let schedule = if turn.policy == Some(OnDeadLetter::Skip) { &[][..] } else { &self.schedule };
        let letter = DeadLetter::new(&self.domain, Origin::of(envelope), failed, schedule);
        if let Err(error) = self.put_in_order(turn, message, &letter, stops).await {
            let retry_in = retry_after(message.deliveries);
            if !self.js.letters_are_reported(&self.stream()) {
                DeadLetterNotWritten { error: &error, envelope: &letter.id, retry_in }.emit(&self.metrics);
            }
            return message.acker.nak(Some(retry_in)).await;
        }
        DeliveryDeadLettered { letter: &letter, is_redriven: turn.letter.is_some() }.emit(&self.metrics);
        if stops {
            let subject = self.js.names().parse_outbox(&message.subject);
            let lane = subject.map_or("", |subject| subject.lane);
            let Envelope { tenant, subscription, id, .. } = envelope;
            OrderStopped { tenant, subscription, lane, envelope: id }.emit(&self.metrics);
            message.acker.nak(Some(LOOK_AGAIN)).await;
        } else {
            self.tries.forget(message);
            self.remembered.remember(message, Settlement::DeadLettered(letter.reason));
            self.remembered.answers.terminate(&message.acker, letter.reason.as_str()).await;
        }
    }

    async fn put_in_order(
        &self,
        turn: &Turn,
        message: &Delivered,
        letter: &DeadLetter,
        stops: bool,
    ) -> Result<(), NatsError> {
        let before = turn.letter.map(|letter| letter.sequence);
        let (sequence, body) = (message.stream_sequence, message.payload.clone());
        self.js.put_letter_in_order(&message.subject, sequence, letter, body, stops, before).await?;
        match before {
            Some(before) => {
                self.js.resolve_dead_letter(&self.domain, before, Some(&letter.id)).await.map(drop)
            }
            None => Ok(()),
        }
    }
}
