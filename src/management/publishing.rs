//! Publishes events, acknowledged by JetStream.

mod batch;

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use time::OffsetDateTime;

use super::{Management, ManagementError};
use crate::domain::event::{Event, Publication, RejectReason, Rejection};
use crate::domain::field_error::FieldError;
use crate::domain::headers;
use crate::domain::key::EventKey;
use crate::facts::PublishedIdNotRecorded;
use crate::nats::NatsError;

pub use batch::{Batch, BatchTime, Stopped};

const TENANT_HEADER: &str = headers::TENANT;
const MESSAGE_ID_HEADER: &str = "Nats-Msg-Id";

/// An undecoded event in one of the accepted formats: bare JSON, or a CloudEvent in binary or structured mode.
#[derive(Debug, Clone)]
pub struct RawEvent<'a> {
    /// The subject after `<prefix>.events.`, which is the event key of bare JSON. `None` for a CloudEvent, whose `type` is
    /// the event key.
    pub key: Option<&'a EventKey>,
    /// Names and values; each name occurs once.
    pub headers: Vec<(&'a str, &'a str)>,
    pub body: Bytes,
}

/// A valid event, ready to be published.
#[derive(Debug, Clone)]
pub struct CheckedEvent<'a> {
    form: RawEvent<'a>,
    event: Event,
}

impl CheckedEvent<'_> {
    fn form(&self) -> RawEvent<'_> {
        let RawEvent { headers, body, .. } = self.form.clone();
        RawEvent { key: Some(&self.event.key), headers, body }
    }
}

/// The result of a publication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Published {
    /// Name of the events stream
    pub stream: String,
    /// Sequence of the event in the stream
    pub sequence: u64,
    /// Id of the event
    pub id: String,
    /// True if the event was published before and nothing was stored
    pub duplicate: bool,
}

impl From<Rejection> for ManagementError {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection { reason: RejectReason::TooLarge, .. } => Self::TooLarge(rejection),
            Rejection { field: Some(field), detail, .. } => {
                Self::Invalid(vec![FieldError::new(field, detail)])
            }
            Rejection { field: None, .. } => Self::EventRejected(rejection),
        }
    }
}

impl Management {
    /// Publishes an event that the event-processor will accept, and rejects any other. With a tenant, the event must be
    /// that tenant's; one without a tenant becomes that tenant's.
    pub async fn publish(
        &self,
        form: RawEvent<'_>,
        tenant: Option<&str>,
    ) -> Result<Published, ManagementError> {
        self.publish_checked(&self.check_publication(form, tenant)?).await
    }

    /// Performs the checks of [`Management::publish`] without publishing.
    pub fn check_publication<'a>(
        &self,
        mut form: RawEvent<'a>,
        tenant: Option<&'a str>,
    ) -> Result<CheckedEvent<'a>, ManagementError> {
        if let Some(tenant) = tenant
            && !form.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(TENANT_HEADER))
        {
            form.headers.push((TENANT_HEADER, tenant));
        }
        let event = self.check_event(&form)?;
        if let Some(tenant) = tenant.filter(|tenant| *tenant != event.tenant) {
            let problem = format!("is {:?}, but you may publish only for {tenant:?}; omit it", event.tenant);
            return Err(ManagementError::Invalid(vec![FieldError::new("tenant", problem)]));
        }
        Ok(CheckedEvent { form, event })
    }

    /// Publishes a checked event.
    pub async fn publish_checked(&self, checked: &CheckedEvent<'_>) -> Result<Published, ManagementError> {
        self.send(checked.form(), Some(&checked.event)).await
    }

    /// Decodes the event as the event-processor will. Fails if the event-processor would reject it.
    pub fn check_event(&self, form: &RawEvent<'_>) -> Result<Event, ManagementError> {
        check_headers(&form.headers).map_err(|error| ManagementError::Invalid(vec![error]))?;
        let event = self.decode(form)?;
        match self.categories().domain_of(&event.key) {
            Some(_) => Ok(event),
            None => Err(Rejection::no_domain(&event.key).into()),
        }
    }

    fn decode(&self, form: &RawEvent<'_>) -> Result<Event, Rejection> {
        let stream = self.js.names().events_stream();
        Publication {
            subject_tail: form.key.map(EventKey::as_str).unwrap_or_default(),
            tenant_token: None,
            headers: &form.headers,
            body: &form.body,
            stream: &stream,
            sequence: 0,
            time: OffsetDateTime::now_utc(),
            max_size: usize::try_from(self.settings.events.max_size.as_u64()).unwrap_or(usize::MAX),
        }
        .decode()
    }

    /// Publishes a decodable event even if no domain accepts its key; the event-processor then rejects it. An event
    /// without an id gets one from its sequence in the stream.
    pub async fn send_event(&self, form: RawEvent<'_>) -> Result<Published, ManagementError> {
        let event = self.decode(&form)?;
        self.send(form, Some(&event)).await
    }

    /// Publishes unless the same event was published within the duplicate window, so that a publisher without an answer
    /// can publish again. Two replicas may both store the event if they get it at the same moment; the domain outbox
    /// then drops the duplicate envelopes.
    async fn send(&self, form: RawEvent<'_>, event: Option<&Event>) -> Result<Published, ManagementError> {
        let Some(event) = event.filter(|event| event.has_given_id()) else {
            return self.store_event(&form, None).await;
        };
        let message_id = event.message_id(self.message_ids().await?);
        let _turn = self.publishing.lock(&message_id).await;
        if let Some(sequence) = self.js.published_sequence(&message_id).await? {
            let stream = self.js.names().events_stream();
            return Ok(Published { stream, sequence, id: event.id.clone(), duplicate: true });
        }
        let published = self.store_with_id(form, event, &message_id).await?;
        self.remember(&message_id, published.sequence).await;
        Ok(published)
    }

    /// Stores an event with the message id by which it is known.
    async fn store_with_id(
        &self,
        form: RawEvent<'_>,
        event: &Event,
        message_id: &str,
    ) -> Result<Published, ManagementError> {
        let mut headers = form.headers.clone();
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(MESSAGE_ID_HEADER)) {
            headers.push((MESSAGE_ID_HEADER, message_id));
        }
        let form = RawEvent { key: form.key, headers, body: form.body };
        self.store_event(&form, Some(event.id.clone())).await
    }

    async fn remember(&self, message_id: &str, sequence: u64) {
        if let Err(error) = self.js.remember_published(message_id, sequence).await {
            // A repetition is then stored again; the domain outbox drops its duplicate envelopes.
            PublishedIdNotRecorded { error: &error }.emit();
        }
    }

    async fn store_event(
        &self,
        form: &RawEvent<'_>,
        id: Option<String>,
    ) -> Result<Published, ManagementError> {
        let subject = self.js.names().event(form.key.map(EventKey::as_str).unwrap_or_default());
        let ack = self.js.publish(&subject, form.body.clone(), &form.headers).await;
        let ack = ack.map_err(|error| match error {
            source if source.is_full() => ManagementError::Full { source },
            error @ NatsError::TooLarge { .. } => ManagementError::TooLargeForServer(error),
            other => other.into(),
        })?;
        let id = id.unwrap_or_else(|| format!("{}-{}", ack.stream, ack.seq));
        Ok(Published { stream: ack.stream, sequence: ack.seq, id, duplicate: ack.duplicate })
    }
}

/// What the running hub did with a stored event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The hub has not processed it yet.
    Waiting,
    Accepted,
    Rejected {
        problem: String,
    },
}

/// Time between two looks at the event processor's progress.
const VERDICT_POLL: Duration = Duration::from_millis(50);
/// How far the clocks of several servers may differ, and how long the wait may have been.
const CLOCK_TOLERANCE: time::Duration = time::Duration::hours(1);

impl Management {
    /// Waits until the running hub has processed a stored event, at most `limit`. The settings of the running hub decide,
    /// which may differ from those of this process.
    pub async fn verdict(&self, published: &Published, limit: Duration) -> Result<Verdict, ManagementError> {
        let handled = async {
            while !self.js.has_handled(published.sequence).await? {
                tokio::time::sleep(VERDICT_POLL).await;
            }
            Ok::<_, NatsError>(())
        };
        match tokio::time::timeout(limit, handled).await {
            Err(_) => return Ok(Verdict::Waiting),
            Ok(handled) => handled?,
        }
        // A duplicate was published within the duplicate window.
        let since = self.js.now() - CLOCK_TOLERANCE - self.settings.limits.duplicate_window;
        let problem = self.js.rejection_of(published.sequence, since).await?;
        Ok(problem.map_or(Verdict::Accepted, |problem| Verdict::Rejected { problem }))
    }
}

/// Rejects headers that the event-processor could read differently: names that occur twice (in any case), because their
/// order is undefined; control characters, because a line break starts another header; and JetStream's own headers,
/// because they control the stream.
fn check_headers(headers: &[(&str, &str)]) -> Result<(), FieldError> {
    for (at, (name, value)) in headers.iter().enumerate() {
        let refuse = |problem: &str| Err(FieldError::new(*name, problem));
        if !name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':') || name.is_empty() {
            return refuse("is not a valid header name; use letters, digits and '-'");
        }
        if value.contains(char::is_control) {
            return refuse("contains a control character; remove it, or encode it");
        }
        if name.to_ascii_lowercase().starts_with("nats-") && !name.eq_ignore_ascii_case(MESSAGE_ID_HEADER) {
            return refuse("is reserved for JetStream; of these only Nats-Msg-Id is allowed");
        }
        if headers[..at].iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
            return refuse("occurs twice; write it once");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ambiguous_headers_are_rejected() {
        let good = [("ce-id", "1 é"), ("Nats-Msg-Id", "a"), ("Hub-Tenant", "acme")];
        assert_eq!(check_headers(&good), Ok(()));
        for bad in [
            &[("", "x")][..],
            &[("a b", "x")],
            &[("a:b", "x")],
            &[("é", "x")],
            &[("ce-id", "1\r\nNats-TTL: 1s")],
            &[("Nats-TTL", "1s")],
            &[("nats-rollup", "all")],
            &[("ce-tenant", "acme"), ("Ce-Tenant", "globex")],
        ] {
            let error = check_headers(bad).expect_err("it is refused");
            assert_eq!(error.field, bad.last().expect("not empty").0);
        }
    }
}
