//! Holds at the broker: the redrive stream stores the hold of a subscription until it is over, one message per subscription,
//! which every process can read. The processes that deliver listen to the same subject, so that one publication stores
//! the hold and notifies all of them. A message without a wait ends a hold.

use std::time::Duration;

use async_nats::Subscriber;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::connection::JetStream;
use super::error::NatsError;
use super::stream_api::StoredMessage;
use super::subjects::SubjectNames;
use crate::domain::subscription::{Identity, Incarnation, SubscriptionRef};
use crate::facts::HoldNoticeIgnored;

/// A stored hold is replaced again if another process stores one meanwhile, at most this often.
const MOST_STORES: usize = 4;
/// A stored hold that ends less than this earlier stays.
const ALIKE: Duration = Duration::from_secs(1);
/// Time for which the end of a hold stays stored, so that no process takes the hold for one that it missed.
const ENDED_TTL: &str = "10s";

/// A hold of a subscription, or its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldNotice {
    pub subscription: Identity,
    /// Time from now, because processes do not share a clock. Zero ends a hold.
    pub wait: Duration,
    /// Time since it began.
    pub held_for: Duration,
    /// The status of the endpoint's answer.
    pub status: u16,
    /// The revision of the subscription that is held.
    pub revision: u64,
    /// The process that publishes it.
    pub process: u64,
}

/// A stored hold, by the clock of the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredHold {
    pub notice: HoldNotice,
    pub since: OffsetDateTime,
    pub until: OffsetDateTime,
}

/// What storing a hold did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HoldStored {
    /// None was stored.
    New,
    Replaced,
    /// Another process stored this one, which lasts as long; nothing was changed.
    Known(HoldNotice),
}

#[derive(Serialize, Deserialize)]
struct HoldBody {
    wait_ms: u64,
    #[serde(default)]
    held_ms: u64,
    #[serde(default)]
    status: u16,
    #[serde(default)]
    revision: u64,
    #[serde(default)]
    incarnation: Incarnation,
    #[serde(default)]
    process: u64,
}

/// The hold notices of all processes, including this one.
pub struct HoldNotices {
    messages: Subscriber,
    names: SubjectNames,
}

impl JetStream {
    /// Stores a hold until it is over, for all processes. A stored one that lasts as long stays.
    pub async fn store_hold(&self, notice: &HoldNotice) -> Result<HoldStored, NatsError> {
        let subject = self.names().hold(&notice.subscription.subscription.token());
        // Not before its end, whatever the server rounds.
        let ttl = format!("{}s", notice.wait.as_secs().saturating_add(2));
        let (mut expected, mut done) = (0, HoldStored::New);
        for _ in 0..MOST_STORES {
            let expected_text = expected.to_string();
            let headers = [
                ("Nats-TTL", ttl.as_str()),
                ("Nats-Rollup", "sub"),
                ("Nats-Expected-Last-Subject-Sequence", &expected_text),
            ];
            match self.publish(&subject, body(&subject, notice)?.into(), &headers).await {
                Ok(_) => return Ok(done),
                Err(error) if error.is_wrong_last_sequence() => {}
                Err(error) => return Err(error),
            }
            let last = self.get_last(&self.names().redrive_stream(), &subject).await?;
            expected = last.as_ref().map_or(0, |message| message.sequence);
            let before = last.and_then(|message| self.current(&message));
            // A hold of an earlier revision has ended.
            let before = before.filter(|before| {
                before.subscription == notice.subscription && before.revision >= notice.revision
            });
            done = match before {
                Some(before) if before.wait + ALIKE >= notice.wait => return Ok(HoldStored::Known(before)),
                Some(_) => HoldStored::Replaced,
                None => HoldStored::New,
            };
        }
        // Other processes keep storing theirs.
        Ok(HoldStored::Replaced)
    }

    /// Ends the hold of a subscription in all processes.
    pub async fn end_hold(&self, subscription: &Identity) -> Result<(), NatsError> {
        let subject = self.names().hold(&subscription.subscription.token());
        let notice = HoldNotice {
            subscription: subscription.clone(),
            wait: Duration::ZERO,
            held_for: Duration::ZERO,
            status: 0,
            revision: 0,
            process: 0,
        };
        let headers = [("Nats-TTL", ENDED_TTL), ("Nats-Rollup", "sub")];
        self.publish(&subject, body(&subject, &notice)?.into(), &headers).await.map(drop)
    }

    /// The hold of a subscription that the broker has, if it is not over.
    pub async fn stored_hold(&self, subscription: &SubscriptionRef) -> Result<Option<StoredHold>, NatsError> {
        let subject = self.names().hold(&subscription.token());
        let Some(message) = self.get_last(&self.names().redrive_stream(), &subject).await? else {
            return Ok(None);
        };
        let Some(notice) = self.current(&message) else { return Ok(None) };
        let (Some(at), Some(stored)) =
            (stored_at(&message), read(self.names(), &message.subject, &message.payload))
        else {
            return Ok(None);
        };
        let shifted = |by: Duration, sign: i32| {
            let by = time::Duration::try_from(by).ok()?.checked_mul(sign)?;
            at.checked_add(by)
        };
        Ok(shifted(stored.held_for, -1).zip(shifted(stored.wait, 1)).map(|(since, until)| StoredHold {
            notice,
            since,
            until,
        }))
    }

    /// The subscriptions of which the broker has a hold, or lately had one.
    pub async fn stored_holds(&self) -> Result<Vec<SubscriptionRef>, NatsError> {
        let names = self.names();
        let subjects = self.stream_subjects(&names.redrive_stream(), &names.holds_filter()).await?;
        let tokens = subjects.iter().filter_map(|(subject, _)| names.parse_hold(subject));
        Ok(tokens.filter_map(SubscriptionRef::from_token).collect())
    }

    /// The rest of a stored hold, as of now; `None` if it is over.
    fn current(&self, message: &StoredMessage) -> Option<HoldNotice> {
        let mut notice = read(self.names(), &message.subject, &message.payload)?;
        let age = self.shared().clock.now() - stored_at(message)?;
        // A clock that is behind adds nothing.
        let age = Duration::try_from(age).unwrap_or_default();
        notice.wait = notice.wait.checked_sub(age).filter(|rest| !rest.is_zero())?;
        notice.held_for = notice.held_for.saturating_add(age);
        Some(notice)
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

fn stored_at(message: &StoredMessage) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(&message.time, &Rfc3339).ok()
}

fn body(subject: &str, notice: &HoldNotice) -> Result<Vec<u8>, NatsError> {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let HoldNotice { subscription, wait, held_for, status, revision, process } = notice;
    let (wait_ms, held_ms) = (millis(*wait), millis(*held_for));
    let body = HoldBody {
        wait_ms,
        held_ms,
        status: *status,
        revision: *revision,
        incarnation: subscription.incarnation,
        process: *process,
    };
    serde_json::to_vec(&body).map_err(|error| NatsError::encode(subject, error))
}

fn read(names: &SubjectNames, subject: &str, payload: &[u8]) -> Option<HoldNotice> {
    let subscription = SubscriptionRef::from_token(names.parse_hold(subject)?)?;
    let HoldBody { wait_ms, held_ms, status, revision, incarnation, process } =
        serde_json::from_slice(payload).ok()?;
    Some(HoldNotice {
        subscription: Identity { subscription, incarnation },
        wait: Duration::from_millis(wait_ms),
        held_for: Duration::from_millis(held_ms),
        status,
        revision,
        process,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_round_trip() {
        let names = SubjectNames::new("hub");
        let notice = HoldNotice {
            subscription: Identity {
                subscription: SubscriptionRef::of("acme", "crm").unwrap(),
                incarnation: Incarnation::new(42),
            },
            wait: Duration::from_secs(3_600),
            held_for: Duration::from_millis(1),
            status: 503,
            revision: u64::MAX,
            process: u64::MAX,
        };
        let subject = names.hold("acme=crm");
        assert_eq!(read(&names, &subject, &body(&subject, &notice).unwrap()), Some(notice));
    }

    #[test]
    fn invalid_notices_are_ignored() {
        let names = SubjectNames::new("hub");
        let notice = read(&names, "hub.redrive.held.crm", br#"{"wait_ms":1500}"#).unwrap();
        assert_eq!(notice.subscription.to_string(), "crm");
        assert_eq!(
            (notice.subscription.incarnation, notice.wait),
            (Incarnation::LEGACY, Duration::from_millis(1500))
        );
        for (subject, payload) in [
            ("hub.redrive.held.crm", "soon"),
            ("hub.redrive.held.crm", r#"{"wait_ms":-1}"#),
            ("hub.redrive.held.crm", r#"{"wait_ms":1,"status":70000}"#),
            ("hub.redrive.held.Not An Id", r#"{"wait_ms":1}"#),
            ("hub.redrive.held.default=crm", r#"{"wait_ms":1}"#),
            ("hub.events.crm", r#"{"wait_ms":1}"#),
        ] {
            assert_eq!(read(&names, subject, payload.as_bytes()), None, "{subject} {payload}");
        }
    }
}
