//! What still keeps the envelopes of an active subscription from being delivered: open circuits and paused domains.

use serde::Serialize;
use time::OffsetDateTime;

use super::circuits::{CircuitRow, CircuitState};
use super::{Management, ManagementError};
use crate::domain::key::KeyPattern;
use crate::nats::{StoredSubscription, UNTIL_RESUMED};

/// Why envelopes wait in a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaitReason {
    /// The domain is paused.
    DomainPaused,
    /// The endpoint keeps failing, and nothing is sent before the next probe.
    CircuitOpen,
    /// The endpoint kept failing, and the next envelope is the probe.
    CircuitHalfOpen,
}

/// Envelopes of a subscription wait in a domain.
#[derive(Debug, Clone, Serialize)]
pub struct DeliveryWait {
    pub domain: String,
    pub reason: WaitReason,
    /// The end of the pause, or the next probe; null if it is not known when the wait ends.
    #[serde(with = "time::serde::rfc3339::option")]
    pub until: Option<OffsetDateTime>,
    /// The last failure of the endpoint; null if the domain is paused.
    pub last_error: Option<String>,
}

impl Management {
    /// What the envelopes of an active subscription wait for, in the order of the domains, of which only those count whose
    /// events it selects.
    pub async fn waits(&self, stored: &StoredSubscription) -> Result<Vec<DeliveryWait>, ManagementError> {
        let selects = |patterns: &[KeyPattern]| {
            let events = &stored.subscription.events;
            patterns.iter().any(|pattern| events.iter().any(|event| event.overlaps(pattern)))
        };
        let mut waits = Vec::new();
        for domain in self.settings.domains.iter().filter(|domain| selects(&domain.events)) {
            let name = || domain.name.clone();
            let paused = self.js.pause_of_domain(&self.js.names().outbox_stream(&domain.name)).await?;
            if let Some(until) = paused {
                // A pause this long means "until resumed".
                let until = Some(until).filter(|until| *until < self.js.now() + UNTIL_RESUMED / 2);
                waits.push(DeliveryWait {
                    domain: name(),
                    reason: WaitReason::DomainPaused,
                    until,
                    last_error: None,
                });
            }
            let CircuitRow { state, next_probe, last_error, .. } = self.circuit(&domain.name, stored).await?;
            let reason = match state {
                CircuitState::Closed => continue,
                CircuitState::Open => WaitReason::CircuitOpen,
                CircuitState::HalfOpen => WaitReason::CircuitHalfOpen,
            };
            waits.push(DeliveryWait { domain: name(), reason, until: next_probe, last_error });
        }
        Ok(waits)
    }
}
