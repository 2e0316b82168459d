//! Publishing an event, acknowledged by JetStream.

use bytes::Bytes;
use serde::Serialize;
use time::OffsetDateTime;

use super::{Management, ManagementError};
use crate::domain::event::{Event, Publication, RejectReason, Rejection};
use crate::domain::field_error::FieldError;
use crate::domain::key::EventKey;
use crate::nats::NatsError;

const TENANT_HEADER: &str = "Hub-Tenant";
const MESSAGE_ID_HEADER: &str = "Nats-Msg-Id";

/// An event as it is to be published, in any of the forms that the hub takes: bare JSON, or
/// CloudEvents in binary or structured mode.
#[derive(Debug, Clone)]
pub struct EventForm<'a> {
    /// The subject below `<prefix>.events.`: the event key of bare JSON. `None`: a CloudEvent, whose
    /// type is taken.
    pub key: Option<&'a EventKey>,
    /// Names and values, each name once.
    pub headers: Vec<(&'a str, &'a str)>,
    pub body: Bytes,
}

/// An event that was checked and is to be published.
#[derive(Debug, Clone)]
pub struct Checked<'a> {
    form: EventForm<'a>,
    event: Event,
}

/// The stream has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Published {
    /// The events stream
    pub stream: String,
    /// Its sequence there
    pub sequence: u64,
    /// The event's
    pub id: String,
    /// The stream had it already, and stored nothing
    pub duplicate: bool,
}

impl From<Rejection> for ManagementError {
    fn from(rejection: Rejection) -> Self {
        match (rejection.reason, rejection.field) {
            (RejectReason::TooLarge, _) => Self::TooLarge(rejection.detail),
            (_, Some(field)) => Self::Invalid(vec![FieldError::new(field, rejection.detail)]),
            (_, None) => Self::EventRejected(rejection.detail),
        }
    }
}

impl Management {
    /// Publishes what the event-processor will take, and nothing else; with a tenant, for that tenant
    /// alone: an event that names none becomes its own.
    pub async fn publish(
        &self,
        form: EventForm<'_>,
        tenant: Option<&str>,
    ) -> Result<Published, ManagementError> {
        self.publish_checked(&self.check_publication(form, tenant)?).await
    }

    /// Checks what [`Management::publish`] checks, and publishes nothing yet.
    pub fn check_publication<'a>(
        &self,
        mut form: EventForm<'a>,
        tenant: Option<&'a str>,
    ) -> Result<Checked<'a>, ManagementError> {
        if let Some(tenant) = tenant
            && !form.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(TENANT_HEADER))
        {
            form.headers.push((TENANT_HEADER, tenant));
        }
        let event = self.check_event(&form)?;
        if let Some(tenant) = tenant.filter(|tenant| *tenant != event.tenant) {
            let problem =
                format!("is {:?}, and you publish for {tenant:?} alone; leave it out", event.tenant);
            return Err(ManagementError::Invalid(vec![FieldError::new("tenant", problem)]));
        }
        Ok(Checked { form, event })
    }

    /// Publishes what was checked.
    pub async fn publish_checked(&self, checked: &Checked<'_>) -> Result<Published, ManagementError> {
        let Checked { form, event } = checked;
        let EventForm { headers, body, .. } = form.clone();
        self.send(EventForm { key: Some(&event.key), headers, body }, Some(event)).await
    }

    /// What the event-processor would make of it, where it would take it.
    pub fn check_event(&self, form: &EventForm<'_>) -> Result<Event, ManagementError> {
        check_headers(&form.headers).map_err(|error| ManagementError::Invalid(vec![error]))?;
        let event = self.decode(form)?;
        match self.categories().domain_of(&event.key) {
            Some(_) => Ok(event),
            None => Err(Rejection::no_domain(&event.key).into()),
        }
    }

    fn decode(&self, form: &EventForm<'_>) -> Result<Event, Rejection> {
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

    /// Publishes what can be read as an event, whatever its key: if no domain takes it, the event-processor keeps it as
    /// rejected. The id is the event's own; the stream's sequence makes one where there is none.
    pub async fn send_event(&self, form: EventForm<'_>) -> Result<Published, ManagementError> {
        let event = self.decode(&form)?;
        self.send(form, Some(&event)).await
    }

    /// A publisher who got no answer publishes again: what was published within the duplicate window is
    /// known, and not stored again. Two replicas that are asked at the same moment may both store it; the
    /// outbox then drops the repetition.
    async fn send(&self, form: EventForm<'_>, event: Option<&Event>) -> Result<Published, ManagementError> {
        let Some(event) = event.filter(|event| event.has_given_id()) else {
            return self.store_event(&form, None).await;
        };
        let message_id = event.message_id(self.message_ids().await?);
        let _turn = self.publishing.turn(&message_id).await;
        if let Some(sequence) = self.js.published_as(&message_id).await? {
            let stream = self.js.names().events_stream();
            return Ok(Published { stream, sequence, id: event.id.clone(), duplicate: true });
        }
        let mut headers = form.headers.clone();
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(MESSAGE_ID_HEADER)) {
            headers.push((MESSAGE_ID_HEADER, &message_id));
        }
        let form = EventForm { key: form.key, headers, body: form.body };
        let published = self.store_event(&form, Some(event.id.clone())).await?;
        if let Err(error) = self.js.remember_published(&message_id, published.sequence).await {
            // Whoever publishes it again is not told that it is known; the outbox knows it.
            tracing::warn!(%error, "the id of a published event is not remembered");
        }
        Ok(published)
    }

    async fn store_event(
        &self,
        form: &EventForm<'_>,
        id: Option<String>,
    ) -> Result<Published, ManagementError> {
        let subject = self.js.names().event(form.key.map(EventKey::as_str).unwrap_or_default());
        let ack = self.js.publish(&subject, form.body.clone(), &form.headers).await;
        let ack = ack.map_err(|error| match error {
            source if source.is_full() => ManagementError::Full { source },
            error @ NatsError::TooLarge { .. } => ManagementError::TooLarge(error.to_string()),
            other => other.into(),
        })?;
        let id = id.unwrap_or_else(|| format!("{}-{}", ack.stream, ack.seq));
        Ok(Published { stream: ack.stream, sequence: ack.seq, id, duplicate: ack.duplicate })
    }
}

/// What is checked must be what is read later. A header that comes twice, in whatever case, is read
/// in no certain order; a line break ends one and begins another; and the headers of JetStream's own
/// say what the stream does, not what the event is.
fn check_headers(headers: &[(&str, &str)]) -> Result<(), FieldError> {
    for (at, (name, value)) in headers.iter().enumerate() {
        let refuse = |problem: &str| Err(FieldError::new(*name, problem));
        if !name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':') || name.is_empty() {
            return refuse("is no header name; use letters, digits and '-'");
        }
        if value.contains(char::is_control) {
            return refuse("holds a control character; leave it out, or encode it");
        }
        if name.to_ascii_lowercase().starts_with("nats-") && !name.eq_ignore_ascii_case(MESSAGE_ID_HEADER) {
            return refuse("is a header of JetStream's own; of those only Nats-Msg-Id is taken");
        }
        if headers[..at].iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
            return refuse("is given twice; give it once");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_headers_that_read_the_same_later_are_taken() {
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
