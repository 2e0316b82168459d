//! Stores publications that cannot become envelopes in the rejected stream, with the reason.

use super::committer::BUSY_DELAY;
use crate::domain::event::{RejectReason, Rejection};
use crate::facts::{EventNotRejected, EventRejected, Metrics};
use crate::nats::{Delivered, JetStream};
use crate::panics::{self, Panicked};

/// Whether a rejection follows from a shared setting.
fn depends_on_settings(reason: RejectReason) -> bool {
    matches!(reason, RejectReason::NoDomain | RejectReason::TooLarge)
}

/// Rejects publications. Cheap to clone.
#[derive(Clone)]
pub(super) struct Rejecter {
    js: JetStream,
    metrics: Metrics,
}

impl Rejecter {
    pub(super) fn new(js: JetStream, metrics: Metrics) -> Self {
        Self { js, metrics }
    }

    /// Hands a publication that caused a panic back, or rejects it after [`panics::TRIES`] deliveries.
    pub(super) async fn panicked(&self, message: &Delivered, panicked: &Panicked) {
        let stream = self.js.names().events_stream();
        if panicked.on_input(&stream, message.stream_sequence, message.deliveries) {
            self.reject(message, &Rejection::new(RejectReason::InternalError, panicked.to_string())).await;
        } else {
            message.acker.nak(Some(BUSY_DELAY)).await;
        }
    }

    /// Stores a publication with the reason and acknowledges it; hands it back if that fails.
    pub(super) async fn reject(&self, message: &Delivered, rejection: &Rejection) {
        // Another process may accept it by newer settings.
        if depends_on_settings(rejection.reason)
            && let Err(error) = self.js.confirm_settings().await
        {
            let (subject, sequence) = (&message.subject, message.stream_sequence);
            EventNotRejected { error: &error, subject, sequence }.emit();
            return message.acker.nak(Some(BUSY_DELAY)).await;
        }
        let reason = rejection.reason.as_str();
        let kept = self.js.reject(message, reason, &rejection.detail);
        let kept = match panics::catch_async(kept).await {
            Ok(kept) => kept,
            Err(panicked) => {
                let stream = self.js.names().events_stream();
                panicked.on_input(&stream, message.stream_sequence, message.deliveries);
                return message.acker.nak(Some(BUSY_DELAY)).await;
            }
        };
        match kept {
            Ok(()) => {
                EventRejected {
                    subject: &message.subject,
                    sequence: message.stream_sequence,
                    reason,
                    detail: &rejection.detail,
                }
                .emit(&self.metrics);
                message.acker.ack().await;
            }
            Err(error) => {
                EventNotRejected {
                    error: &error,
                    subject: &message.subject,
                    sequence: message.stream_sequence,
                }
                .emit();
                message.acker.nak(Some(BUSY_DELAY)).await;
            }
        }
    }
}
