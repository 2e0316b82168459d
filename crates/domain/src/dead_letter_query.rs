//! The query for dead letters that command line, API, bulk jobs and the NATS adapter share.

use std::collections::BTreeSet;

use time::OffsetDateTime;

use super::dead_letter::{DeadLetter, DeadLetterState};
use super::key::EventKey;
use super::outcome::Reason;

/// Conditions on a dead letter; all that are set must hold.
#[derive(Debug, Clone, Default)]
pub struct DeadLetterQuery {
    /// Names of domains; all if empty. Selects the streams to read, so `matches` does not check it.
    pub domains: Vec<String>,
    /// A dead letter whose envelope cannot be read has no tenant.
    pub tenant: Option<String>,
    pub subscription: Option<String>,
    pub reason: Option<Reason>,
    pub state: Option<DeadLetterState>,
    pub event_key: Option<EventKey>,
    pub event_id: Option<String>,
    /// Failed at this time or later.
    pub since: Option<OffsetDateTime>,
    /// Failed before this time.
    pub until: Option<OffsetDateTime>,
    /// Ids of dead letters; all if empty.
    pub ids: BTreeSet<String>,
}

impl DeadLetterQuery {
    /// True if no condition is set; the tenant does not count as one.
    pub fn means_all(&self) -> bool {
        let Self { domains, tenant: _, subscription, reason, state, event_key, event_id, since, until, ids } =
            self;
        domains.is_empty()
            && subscription.is_none()
            && reason.is_none()
            && state.is_none()
            && event_key.is_none()
            && event_id.is_none()
            && since.is_none()
            && until.is_none()
            && ids.is_empty()
    }

    /// True if a dead letter meets every condition.
    pub fn accepts(&self, letter: &DeadLetter) -> bool {
        fn is<T: PartialEq + ?Sized>(wanted: Option<&T>, value: &T) -> bool {
            wanted.is_none_or(|wanted| wanted == value)
        }
        (self.domains.is_empty() || self.domains.contains(&letter.domain))
            && is(self.tenant.as_deref(), &letter.tenant)
            && is(self.subscription.as_deref(), &letter.subscription)
            && is(self.reason.as_ref(), &letter.reason)
            && is(self.state.as_ref(), &letter.state)
            && is(self.event_key.as_ref().map(EventKey::as_str), &letter.event_key)
            && is(self.event_id.as_deref(), &letter.event_id)
            && self.since.is_none_or(|since| letter.failed_at >= since)
            && self.until.is_none_or(|until| letter.failed_at < until)
            && (self.ids.is_empty() || self.ids.contains(&letter.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Fault;
    use crate::subscription::Incarnation;

    #[test]
    fn each_condition_excludes_by_itself_and_all_together_hold() {
        let at = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let letter = DeadLetter {
            id: "env_1".into(),
            domain: "policy-client".into(),
            subscription: "crm".into(),
            tenant: "acme".into(),
            incarnation: Incarnation::new(7),
            event_id: "e1".into(),
            event_key: "policy.updated".into(),
            reason: Reason::Exhausted,
            fault: Fault::Subscriber,
            state: DeadLetterState::Scheduled,
            attempts: 5,
            redrives: 1,
            last_status: None,
            last_error: None,
            failed_at: at,
            next_redrive_at: None,
        };
        let second = time::Duration::SECOND;
        let holds = DeadLetterQuery {
            domains: vec!["organization".into(), "policy-client".into()],
            tenant: Some("acme".into()),
            subscription: Some("crm".into()),
            reason: Some(Reason::Exhausted),
            state: Some(DeadLetterState::Scheduled),
            event_key: Some("policy.updated".parse().unwrap()),
            event_id: Some("e1".into()),
            since: Some(at),
            until: Some(at + second),
            ids: ["env_1".to_owned()].into(),
        };
        assert!(holds.accepts(&letter) && DeadLetterQuery::default().accepts(&letter));
        let none = DeadLetterQuery::default;
        for excludes in [
            DeadLetterQuery { domains: vec!["organization".into()], ..none() },
            DeadLetterQuery { tenant: Some("globex".into()), ..none() },
            DeadLetterQuery { subscription: Some("audit".into()), ..none() },
            DeadLetterQuery { reason: Some(Reason::Permanent), ..none() },
            DeadLetterQuery { state: Some(DeadLetterState::Parked), ..none() },
            DeadLetterQuery { event_key: Some("policy.made".parse().unwrap()), ..none() },
            DeadLetterQuery { event_id: Some("e2".into()), ..none() },
            DeadLetterQuery { since: Some(at + second), ..none() },
            DeadLetterQuery { until: Some(at), ..none() },
            DeadLetterQuery { ids: ["env_2".to_owned()].into(), ..none() },
        ] {
            assert!(!excludes.accepts(&letter), "{excludes:?}");
            assert_eq!(excludes.means_all(), excludes.tenant.is_some(), "{excludes:?}");
        }
        assert!(none().means_all());
    }
}
