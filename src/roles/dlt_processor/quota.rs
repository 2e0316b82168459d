//! Postpones the redrive of an envelope over quota while the backlog of its subscription is still full.
//!
//! The dead letter is stored again as if the redrive had failed, so the schedule bounds the number of tries. A replay by an
//! operator is never postponed. If the dead-letter stream has no room for it, the present one stays and gets a new timer:
//! the request must not wait, because it would take the place of the requests of others.

use std::time::Duration;

use crate::domain::backlog::{BacklogLimits, Usage, size};
use crate::domain::dead_letter::{DeadLetter, Failed, Origin};
use crate::domain::outcome::Reason;
use crate::facts::{Metrics, RedrivePostponed};
use crate::nats::{Fate, JetStream, NatsError, StoredMessage};

/// Least wait before a redrive that is postponed without a new dead letter.
const LEAST_WAIT: Duration = Duration::from_secs(60);

/// The quotas of subscriptions.
#[derive(Debug, Clone, Default)]
pub struct RedriveQuota {
    /// The limits of every subscription.
    pub limits: BacklogLimits,
    /// The most bytes that an outbox holds (`limits.outbox`).
    pub outbox_size: u64,
    /// Waits before the redrives of a dead letter.
    pub schedule: Vec<Duration>,
}

impl RedriveQuota {
    /// Returns whether the redrive of this dead letter, which is due by its schedule, is postponed.
    pub(super) async fn postpone(
        &self,
        js: &JetStream,
        entry: &StoredMessage,
        letter: &DeadLetter,
        metrics: &Metrics,
    ) -> Result<bool, NatsError> {
        if letter.reason != Reason::OverQuota {
            return Ok(false);
        }
        let Some(reference) = letter.reference() else { return Ok(false) };
        let stored = js.subscription(&reference).await?;
        let own = stored.map(|stored| stored.subscription.delivery.backlog()).unwrap_or_default();
        let look = js.backlogs(&letter.domain, Some(&reference.token())).await?;
        let (own_lane, messages) =
            look.backlogs.first().map_or((0, 0), |backlog| (backlog.own, backlog.own + backlog.shared));
        let usage = Usage {
            messages,
            bytes: messages.saturating_mul(look.bytes.checked_div(look.messages).unwrap_or(0)),
            own_lane: own_lane > 0,
            free: self.outbox_size.saturating_sub(look.bytes),
            grace: 0,
        };
        let size = entry.payload.len() as u64;
        let Some(exceeded) = own.within(self.limits).exceeded(&usage, size) else { return Ok(false) };
        let why =
            format!("the backlog has {messages} envelopes, about {}; {exceeded}", size::shown(usage.bytes));
        let origin = Origin {
            id: letter.id.clone(),
            subscription: letter.subscription.clone(),
            tenant: letter.tenant.clone(),
            incarnation: letter.incarnation,
            event_id: letter.event_id.clone(),
            event_key: letter.event_key.clone(),
        };
        let failed = Failed {
            reason: Reason::OverQuota,
            fault: letter.fault,
            attempts: letter.attempts,
            redrives: letter.redrives.saturating_add(1),
            status: letter.last_status,
            error: Some(why),
            at: js.now(),
        };
        let postponed = DeadLetter::new(&letter.domain, origin, failed, &self.schedule);
        match js.refile_dead_letter(entry, &postponed).await {
            Ok(()) => {}
            Err(error) if error.fate() == Fate::Unknown => return Err(error),
            Err(_) => {
                let wait = self.schedule.last().copied().unwrap_or_default().max(LEAST_WAIT);
                js.schedule_redrive(&letter.domain, entry.sequence, js.now() + wait).await?;
            }
        }
        RedrivePostponed {
            domain: &letter.domain,
            tenant: &letter.tenant,
            subscription: &letter.subscription,
            envelope: &letter.id,
            reason: postponed.last_error.as_deref().unwrap_or_default(),
        }
        .emit(metrics);
        Ok(true)
    }
}
