//! Holds, told from process to process over core NATS: at most once, and kept by nobody. Whoever
//! misses one hears it from the endpoint itself.

use std::time::Duration;

use async_nats::Subscriber;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};

use super::connection::JetStream;
use super::error::{BoxError, NatsError};
use super::subjects::Names;
use crate::domain::subscription::{Identity, Incarnation, SubscriptionRef};

/// An endpoint asked for its subscription to be left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldNotice {
    pub subscription: Identity,
    /// From now on: processes do not share a clock.
    pub wait: Duration,
}

#[derive(Serialize, Deserialize)]
struct Body {
    wait_ms: u64,
    #[serde(default)]
    incarnation: Incarnation,
}

/// What other processes tell, and this one too.
pub struct HoldNotices {
    messages: Subscriber,
    names: Names,
}

impl JetStream {
    /// Tells it to whoever listens. Returns when it is on its way; nobody acknowledges it.
    pub async fn tell_hold(&self, notice: &HoldNotice) -> Result<(), NatsError> {
        let subject = self.names().hold(&notice.subscription.subscription.token());
        let failed = |source: BoxError| NatsError::transport(subject.clone(), source);
        let wait_ms = u64::try_from(notice.wait.as_millis()).unwrap_or(u64::MAX);
        let body = serde_json::to_vec(&Body { wait_ms, incarnation: notice.subscription.incarnation })
            .map_err(|error| failed(error.into()))?;
        let sent = self.client().publish(subject.clone(), body.into());
        match tokio::time::timeout(self.request_timeout(), sent).await {
            Ok(sent) => sent.map_err(|error| failed(error.into())),
            Err(_) => Err(NatsError::Timeout { subject, seconds: self.request_timeout().as_secs() }),
        }
    }

    /// Listens from now on, over reconnects.
    pub async fn hold_notices(&self) -> Result<HoldNotices, NatsError> {
        let subject = self.names().holds_filter();
        let messages = self.client().subscribe(subject.clone()).await;
        let messages = messages.map_err(|error| NatsError::transport(subject, error))?;
        Ok(HoldNotices { messages, names: self.names().clone() })
    }
}

impl HoldNotices {
    /// The next that can be read; None when the connection is closed for good.
    pub async fn next(&mut self) -> Option<HoldNotice> {
        loop {
            let message = self.messages.next().await?;
            match read(&self.names, &message.subject, &message.payload) {
                Some(notice) => return Some(notice),
                None => tracing::debug!(subject = %message.subject, "what is no notice of a hold is ignored"),
            }
        }
    }
}

fn read(names: &Names, subject: &str, payload: &[u8]) -> Option<HoldNotice> {
    let subscription = SubscriptionRef::from_token(names.parse_hold(subject)?)?;
    let Body { wait_ms, incarnation } = serde_json::from_slice(payload).ok()?;
    let subscription = Identity { subscription, incarnation };
    Some(HoldNotice { subscription, wait: Duration::from_millis(wait_ms) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_notice_is_ignored() {
        let names = Names::new("hub");
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
