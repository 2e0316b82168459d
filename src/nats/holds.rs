//! Hold notices between processes, over core NATS: at most once and not stored. A process that misses one gets the
//! same answer from the endpoint itself.

use std::time::Duration;

use async_nats::Subscriber;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};

use super::connection::JetStream;
use super::error::NatsError;
use super::subjects::SubjectNames;
use crate::domain::subscription::{Identity, Incarnation, SubscriptionRef};
use crate::facts::HoldNoticeIgnored;

/// An endpoint asked to receive no deliveries of a subscription for a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldNotice {
    pub subscription: Identity,
    /// Time from now, because processes do not share a clock.
    pub wait: Duration,
}

#[derive(Serialize, Deserialize)]
struct Body {
    wait_ms: u64,
    #[serde(default)]
    incarnation: Incarnation,
}

/// The hold notices of all processes, including this one.
pub struct HoldNotices {
    messages: Subscriber,
    names: SubjectNames,
}

impl JetStream {
    /// Publishes a notice to all listening processes, without an acknowledgement.
    pub async fn publish_hold(&self, notice: &HoldNotice) -> Result<(), NatsError> {
        let subject = self.names().hold(&notice.subscription.subscription.token());
        let wait_ms = u64::try_from(notice.wait.as_millis()).unwrap_or(u64::MAX);
        let body = serde_json::to_vec(&Body { wait_ms, incarnation: notice.subscription.incarnation })
            .map_err(|error| NatsError::encode(subject.as_str(), error))?;
        self.sent(&subject, self.client().publish(subject.clone(), body.into())).await
    }

    /// Subscribes to hold notices; the subscription survives reconnects.
    pub async fn hold_notices(&self) -> Result<HoldNotices, NatsError> {
        let subject = self.names().holds_filter();
        let messages = self.client().subscribe(subject.clone()).await;
        let messages = messages.map_err(|error| NatsError::transport(subject, error))?;
        Ok(HoldNotices { messages, names: self.names().clone() })
    }
}

impl HoldNotices {
    /// Waits for the next valid notice; `None` when the connection is closed for good.
    pub async fn next(&mut self) -> Option<HoldNotice> {
        loop {
            let message = self.messages.next().await?;
            match read(&self.names, &message.subject, &message.payload) {
                Some(notice) => return Some(notice),
                None => HoldNoticeIgnored { subject: &message.subject }.emit(),
            }
        }
    }
}

fn read(names: &SubjectNames, subject: &str, payload: &[u8]) -> Option<HoldNotice> {
    let subscription = SubscriptionRef::from_token(names.parse_hold(subject)?)?;
    let Body { wait_ms, incarnation } = serde_json::from_slice(payload).ok()?;
    let subscription = Identity { subscription, incarnation };
    Some(HoldNotice { subscription, wait: Duration::from_millis(wait_ms) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_notices_are_ignored() {
        let names = SubjectNames::new("hub");
        let notice = read(&names, "hub.holds.crm", br#"{"wait_ms":1500}"#).unwrap();
        assert_eq!(notice.subscription.to_string(), "crm");
        assert_eq!(
            (notice.subscription.incarnation, notice.wait),
            (Incarnation::LEGACY, Duration::from_millis(1500))
        );
        let body = br#"{"wait_ms":1,"incarnation":"0000000000000000000000000000002a"}"#;
        let notice = read(&names, "hub.holds.acme=crm", body).unwrap();
        assert_eq!(notice.subscription.subscription, SubscriptionRef::of("acme", "crm").unwrap());
        assert_eq!(notice.subscription.incarnation, Incarnation::new(42));
        for (subject, payload) in [
            ("hub.holds.crm", "soon"),
            ("hub.holds.crm", r#"{"wait_ms":-1}"#),
            ("hub.holds.Not An Id", r#"{"wait_ms":1}"#),
            ("hub.holds.default=crm", r#"{"wait_ms":1}"#),
            ("hub.events.crm", r#"{"wait_ms":1}"#),
        ] {
            assert_eq!(read(&names, subject, payload.as_bytes()), None, "{subject} {payload}");
        }
    }
}
