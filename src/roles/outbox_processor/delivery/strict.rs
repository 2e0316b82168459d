//! The place of an envelope in a strict order.

use super::{DeliveryParts, EnvelopeDelivery, Evidence, Health, Tried};
use crate::domain::attempt::Attempt;
use crate::domain::deliveries::Deliveries;
use crate::domain::envelope::Envelope;
use crate::domain::status::Statuses;
use crate::domain::strict_order::StrictOrder;
use crate::domain::subscription::{Identity, OnDeadLetter};
use crate::nats::{Delivered, NatsError};
use crate::roles::outbox_processor::Subscriptions;
use crate::roles::outbox_processor::settle::strict::Turn;

pub(super) enum StrictPlace {
    /// It is its turn.
    InOrder(Turn),
    /// It is settled without an attempt.
    Settled,
}

impl EnvelopeDelivery {
    /// The place of an envelope of a strict lane.
    pub(super) async fn place(
        &self,
        message: &Delivered,
        envelope: &Envelope<'_>,
        identity: &Identity,
    ) -> StrictPlace {
        let settle = &self.inner.settle;
        let read = async {
            let letter = settle.stopping_letter(message, envelope).await?;
            Ok::<_, NatsError>((letter, self.inner.on_dead_letter(identity, envelope).await?))
        };
        match read.await {
            Ok((Some(letter), policy)) if !letter.is_replaying => {
                match policy {
                    Some(OnDeadLetter::Stop) => settle.stays(message).await,
                    Some(OnDeadLetter::Skip) | None => settle.passes(message).await,
                }
                StrictPlace::Settled
            }
            Ok((letter, policy)) => StrictPlace::InOrder(Turn { policy, letter }),
            Err(error) => {
                settle.not_checked(message, envelope, &error).await;
                StrictPlace::Settled
            }
        }
    }

    /// Settles an attempt in a strict lane. It counts for no circuit, which would move envelopes to another lane.
    pub(super) async fn settle_in_order(
        &self,
        message: &Delivered,
        envelope: &Envelope<'_>,
        attempt: &Attempt,
        statuses: &Statuses,
        known: &Deliveries,
        turn: &Turn,
    ) -> Health {
        let settle = &self.inner.settle;
        let decision = settle.decide_in_order(&attempt.outcome, known, statuses);
        let hold = self.inner.hold(attempt, statuses);
        let tried = Tried::once(attempt).holding(hold.map(|hold| hold.wait));
        settle.settle_in(Some(turn), message, envelope, decision, tried, known).await;
        Health { finish: attempt.outcome.finish(), hold, evidence: Evidence::None }
    }
}

impl DeliveryParts {
    /// What a dead letter does to the order; `None` if the subscription has no strict order, or is removed.
    async fn on_dead_letter(
        &self,
        identity: &Identity,
        envelope: &Envelope<'_>,
    ) -> Result<Option<OnDeadLetter>, NatsError> {
        let Subscriptions::Registry(registry) = &self.subscriptions else {
            return Ok(envelope.on_dead_letter());
        };
        let known = registry.read().get(&identity.subscription).cloned();
        if let Some(entry) = known.filter(|entry| entry.subscription.incarnation == identity.incarnation) {
            return Ok(entry.order().map(|order| order.on_dead_letter));
        }
        // The index may be behind.
        let stored = self.js.subscription(&identity.subscription).await?;
        let stored = stored.filter(|stored| stored.subscription.incarnation == identity.incarnation);
        Ok(stored
            .and_then(|stored| StrictOrder::of(&stored.subscription.delivery))
            .map(|order| order.on_dead_letter))
    }
}
