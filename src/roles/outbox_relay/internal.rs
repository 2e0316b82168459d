//! The hub's own events stream as target broker.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::domain::key::EventKey;
use crate::domain::message_id::MessageIds;
use crate::nats::{JetStream, NatsError};
use crate::sinks::{Broker, OutgoingMessage, PublishError, PublishedGroup};

/// Publishes over the hub's own connection. The domain outbox drops duplicates. The message id is not that of the row,
/// which another producer could guess and use first.
pub(super) struct Internal {
    js: JetStream,
    message_ids: MessageIds,
}

impl Internal {
    pub(super) fn new(js: JetStream, message_ids: MessageIds) -> Self {
        Self { js, message_ids }
    }

    async fn publish_one(&self, message: &OutgoingMessage) -> Result<(), NatsError> {
        // The table may contain any text as event type.
        let names = self.js.names();
        if names.parse_event(&message.stream).is_none_or(|place| place.tail.parse::<EventKey>().is_err()) {
            let subject = message.stream.chars().take(80).collect();
            return Err(NatsError::Subject { subject, reason: "the event's type is not an event key" });
        }
        let message_id = self.message_ids.id(&["outbox", &message.id]);
        let mut headers = vec![("Nats-Msg-Id", message_id.as_str())];
        headers.extend(message.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        self.js.publish(&message.stream, message.body.clone(), &headers).await?;
        Ok(())
    }

    /// Without a connection the client would hold the message, and the round with it.
    fn connected(&self) -> Result<(), PublishError> {
        if self.js.is_connected() {
            Ok(())
        } else {
            Err(PublishError::unavailable("the connection to NATS is lost"))
        }
    }
}

/// A stream that is full or missing, or a server that does not answer, is not caused by the message: all rows wait. A
/// message that is too large is a permanent error.
fn meaning(error: NatsError) -> PublishError {
    let reason = error.to_string();
    let failed = if error.is_too_large() || matches!(error, NatsError::Subject { .. }) {
        PublishError::permanent(reason)
    } else if error.is_full() || error.api().is_none_or(|answer| waits(answer.code, answer.err_code)) {
        PublishError::unavailable(reason)
    } else {
        PublishError::refused(reason)
    };
    failed.caused_by(error)
}

/// JetStream is off, has no leader, or is out of resources, or the account is (10002, 10023).
fn waits(code: u16, err_code: u16) -> bool {
    code == 429 || code >= 500 || matches!(err_code, 10_002 | 10_023)
}

impl Broker for Internal {
    /// One by one: each is sent after the one before is stored.
    fn publish<'a>(&'a self, group: &'a [OutgoingMessage]) -> BoxFuture<'a, PublishedGroup> {
        async move {
            if let Err(error) = self.connected() {
                return PublishedGroup { acknowledged: 0, error: Some(error) };
            }
            for (acknowledged, message) in group.iter().enumerate() {
                if let Err(error) = self.publish_one(message).await {
                    return PublishedGroup { acknowledged, error: Some(meaning(error)) };
                }
            }
            PublishedGroup { acknowledged: group.len(), error: None }
        }
        .boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), PublishError>> {
        async {
            self.connected()?;
            let stream = self.js.names().events_stream();
            let info = self.js.stream_info(&stream).await;
            info.map(drop).map_err(|error| PublishError::unavailable(error.to_string()).caused_by(error))
        }
        .boxed()
    }

    /// The connection belongs to the process.
    fn close(&self) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::ApiError;

    fn answer(code: u16, err_code: u16) -> NatsError {
        let source = ApiError { code, err_code, description: String::new() };
        NatsError::Api { subject: "s".to_owned(), source }
    }

    #[test]
    fn only_what_no_attempt_can_mend_is_permanent() {
        let subject = || "s".to_owned();
        for all_wait in [
            answer(503, ApiError::STORE_FAILED),
            answer(400, ApiError::STORE_FAILED),
            answer(503, 10_008),
            answer(503, 10_023),
            answer(400, 10_002),
            answer(429, 10_167),
            NatsError::timeout(subject(), std::time::Duration::from_secs(5)),
            NatsError::NoResponders { subject: subject() },
            NatsError::transport(subject(), "lost".to_owned()),
        ] {
            let text = all_wait.to_string();
            assert!(matches!(meaning(all_wait), PublishError::Unavailable { .. }), "{text}");
        }
        for too_large in [
            answer(400, 10_054),
            NatsError::TooLarge { subject: subject(), size: 2_000_000, limit: 1_048_576 },
            NatsError::Subject { subject: subject(), reason: "is none" },
        ] {
            let text = too_large.to_string();
            assert!(matches!(meaning(too_large), PublishError::Permanent { .. }), "{text}");
        }
        assert!(matches!(meaning(answer(400, 10_060)), PublishError::Refused { .. }));
    }
}
