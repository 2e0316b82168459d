//! `hub subscription resume`: what still delays the envelopes of an active subscription.

use crate::cli::output::{cell, time, warn};
use crate::management::Management;
use crate::management::waits::{DeliveryWait, WaitReason};
use crate::nats::StoredSubscription;

/// What still delays its envelopes. A failure is a warning, because the subscription is resumed.
pub(super) async fn found(management: &Management, stored: &StoredSubscription) -> Vec<DeliveryWait> {
    match management.waits(stored).await {
        Ok(waits) => waits,
        Err(error) => {
            warn(&format!("it is not known whether a circuit or a pause delays its envelopes: {error}"));
            Vec::new()
        }
    }
}

/// One line, with the command that helps. `name`: that of the subscription.
pub(super) fn text(DeliveryWait { domain, reason, until, last_error }: &DeliveryWait, name: &str) -> String {
    let because = last_error.as_deref().map(|error| format!(" ({})", cell(error, 120))).unwrap_or_default();
    match (reason, until.map(time)) {
        (WaitReason::DomainPaused, Some(until)) => {
            format!(
                "{domain}: the domain is paused until {until}; resume it with `hub domain resume {domain}`"
            )
        }
        (WaitReason::DomainPaused, None) => {
            format!("{domain}: the domain is paused; resume it with `hub domain resume {domain}`")
        }
        (WaitReason::CircuitOpen, Some(until)) => format!(
            "{domain}: the circuit is open{because}, next probe at {until}; to send one at once, repair the endpoint and run \
             `hub subscription resume {name}`"
        ),
        // The domain is paused as well.
        (WaitReason::CircuitOpen, None) => {
            format!("{domain}: the circuit is open{because}; a probe follows when the domain is resumed")
        }
        (WaitReason::CircuitHalfOpen, _) => format!(
            "{domain}: the circuit is half-open{because}, the next envelope is a probe; see its result with `hub subscription \
             show {name} --circuits`"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::OffsetDateTime;

    #[test]
    fn each_wait_has_its_end_and_its_command() {
        use WaitReason::{CircuitHalfOpen, CircuitOpen, DomainPaused};
        let at = Some(OffsetDateTime::UNIX_EPOCH);
        for (reason, until, has) in [
            (DomainPaused, at, "paused until 1970-01-01T00:00:00Z; resume it with `hub domain resume a`"),
            (DomainPaused, None, "paused; resume it with `hub domain resume a`"),
            (CircuitOpen, at, "open (status 500), next probe at 1970-01-01T00:00:00Z;"),
            (CircuitOpen, at, "`hub subscription resume acme/crm`"),
            (CircuitOpen, None, "a probe follows when the domain is resumed"),
            (CircuitHalfOpen, None, "`hub subscription show acme/crm --circuits`"),
        ] {
            let last_error = (reason != DomainPaused).then(|| "status 500".to_owned());
            let wait = DeliveryWait { domain: "a".to_owned(), reason, until, last_error };
            let text = text(&wait, "acme/crm");
            assert!(text.starts_with("a: ") && text.contains(has), "{text}");
        }
    }
}
