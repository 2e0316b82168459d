//! Reading what a stream holds without a consumer, so that work queues can be looked into as well:
//! batches of direct gets (ADR-31).

use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::connection::JetStream;
use super::error::NatsError;
use super::inspect::StoredMessage;
use super::message::header;

/// Messages, and bytes, asked for at once.
const BATCH: u64 = 1_000;
const BATCH_BYTES: u64 = 8 * 1024 * 1024;

impl JetStream {
    /// Shows `look` every message that the stream holds now and whose subject matches, oldest first,
    /// from the time `since` on.
    pub async fn browse(
        &self,
        stream: &str,
        filter: &str,
        since: Option<OffsetDateTime>,
        mut look: impl FnMut(StoredMessage),
    ) -> Result<(), NatsError> {
        let state = self.stream_info(stream).await?.state;
        let mut from = state.first_seq.max(1);
        let mut since = since.and_then(|since| since.format(&Rfc3339).ok());
        while from <= state.last_seq {
            let mut request = json!({"batch": BATCH, "max_bytes": BATCH_BYTES, "next_by_subj": filter});
            match since.take() {
                Some(since) => request["start_time"] = json!(since),
                None => request["seq"] = json!(from),
            }
            match self.browse_batch(stream, request.to_string().into(), &mut look).await? {
                Some(next) => from = next,
                None => break,
            }
        }
        Ok(())
    }

    /// Where the next batch begins; `None` at the end.
    async fn browse_batch(
        &self,
        stream: &str,
        request: Bytes,
        look: &mut impl FnMut(StoredMessage),
    ) -> Result<Option<u64>, NatsError> {
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        let transport = |reason: String| NatsError::Transport { subject: subject.clone(), reason };
        let inbox = self.client().new_inbox();
        let mut answers =
            self.client().subscribe(inbox.clone()).await.map_err(|error| transport(error.to_string()))?;
        self.client()
            .publish_with_reply(subject.clone(), inbox, request)
            .await
            .map_err(|error| transport(error.to_string()))?;
        let mut next = None;
        loop {
            let answer = tokio::time::timeout(self.request_timeout(), answers.next()).await;
            let seconds = self.request_timeout().as_secs();
            let answer = answer
                .map_err(|_| NatsError::Timeout { subject: subject.clone(), seconds })?
                .ok_or_else(|| transport("the connection was closed".to_owned()))?;
            let number = |name: &str| header(answer.headers.as_ref(), name)?.parse::<u64>().ok();
            match answer.status.map(|status| status.as_u16()) {
                None => {}
                // The end of a batch.
                Some(204) => return Ok(next.filter(|_| number("Nats-Num-Pending") != Some(0))),
                // Nothing there.
                Some(404) => return Ok(None),
                Some(503) => return Err(NatsError::NoResponders { subject }),
                Some(status) => {
                    let text = answer.description.unwrap_or_default();
                    return Err(NatsError::Answer { subject, reason: format!("status {status} {text}") });
                }
            }
            let text = |name: &str| header(answer.headers.as_ref(), name).map(str::to_owned);
            let (Some(sequence), Some(at), Some(time)) =
                (number("Nats-Sequence"), text("Nats-Subject"), text("Nats-Time-Stamp"))
            else {
                let reason = "a message came without its place in the stream".to_owned();
                return Err(NatsError::Answer { subject, reason });
            };
            next = Some(sequence + 1);
            look(StoredMessage {
                subject: at,
                sequence,
                headers: answer.headers,
                payload: answer.payload,
                time,
            });
        }
    }
}
