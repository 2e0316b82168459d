//! Reads a stream without a consumer, in batches of direct gets (ADR-31). This works on work-queue streams too.

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use super::connection::JetStream;
use super::error::NatsError;
use super::message::header;
use super::stream_api::StoredMessage;
use crate::facts::StoredMessageSkipped;

/// Messages and bytes per request.
const BATCH: u64 = 1_000;
const BATCH_BYTES: u64 = 8 * 1024 * 1024;

impl JetStream {
    /// Calls `look` with each message that the stream holds now and whose subject matches, oldest first,
    /// starting at the time `since`.
    pub async fn for_each_stored(
        &self,
        stream: &str,
        filter: &str,
        since: Option<OffsetDateTime>,
        look: impl FnMut(StoredMessage),
    ) -> Result<(), NatsError> {
        self.for_each_stored_from(stream, filter, 0, since, look).await
    }

    /// As [`Self::for_each_stored`], starting at a sequence that an earlier read found. `since` applies if it is 0, or if
    /// the stream was made again in the meantime.
    pub async fn for_each_stored_from(
        &self,
        stream: &str,
        filter: &str,
        from: u64,
        since: Option<OffsetDateTime>,
        mut look: impl FnMut(StoredMessage),
    ) -> Result<(), NatsError> {
        let state = self.stream_info(stream).await?.state;
        let continues = from > 0 && from <= state.last_seq.saturating_add(1);
        let since = if continues { None } else { since };
        let mut from = if continues { from } else { state.first_seq.max(1) };
        let mut since = since.and_then(|since| since.format(&Rfc3339).ok());
        while from <= state.last_seq {
            let mut request = json!({"batch": BATCH, "max_bytes": BATCH_BYTES, "next_by_subj": filter});
            match since.take() {
                Some(since) => request["start_time"] = json!(since),
                None => request["seq"] = json!(from),
            }
            match self.direct_get_batch(stream, request.to_string().into(), &mut look).await? {
                Some(next) => from = next,
                None => break,
            }
        }
        Ok(())
    }

    /// Reads one batch. Returns the sequence where the next one begins; `None` at the end.
    async fn direct_get_batch(
        &self,
        stream: &str,
        request: Bytes,
        look: &mut impl FnMut(StoredMessage),
    ) -> Result<Option<u64>, NatsError> {
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        let sent = Instant::now();
        let inbox = self.client().new_inbox();
        let mut answers = self.sent(&subject, self.client().subscribe(inbox.clone())).await?;
        self.sent(&subject, self.client().publish_with_reply(subject.clone(), inbox, request)).await?;
        let mut next = None;
        loop {
            let answer = tokio::time::timeout(self.request_timeout(), answers.next()).await;
            let answer = answer
                .map_err(|_| self.unanswered(&subject, sent))?
                .ok_or_else(|| NatsError::Closed { subject: subject.clone() })?;
            let number = |name: &str| header(answer.headers.as_ref(), name)?.parse::<u64>().ok();
            // Checked before the status: a publisher may have written a status into the stored message.
            if let Some(message) = stored(stream, &answer) {
                next = Some(message.sequence + 1);
                look(message);
                continue;
            }
            match answer.status.map(|status| status.as_u16()) {
                None => StoredMessageSkipped { stream, after: next }.emit(),
                // The end of a batch.
                Some(204) => return Ok(next.filter(|_| number("Nats-Num-Pending") != Some(0))),
                // No message.
                Some(404) => return Ok(None),
                Some(503) => return Err(NatsError::NoResponders { subject }),
                Some(status) => {
                    let description = answer.description.unwrap_or_default().to_string();
                    return Err(NatsError::Status { subject, status, description });
                }
            }
        }
    }
}

/// The stored message in an answer, if it holds one. The server appends stream, subject and sequence to the end of
/// the publisher's header block, so they are found even if the rest is unreadable, and cannot be forged by the
/// publisher.
fn stored(stream: &str, answer: &async_nats::Message) -> Option<StoredMessage> {
    let headers = answer.headers.as_ref()?;
    let payload = answer.payload.clone();
    if let Some(block) = headers.unparsed() {
        let place = format!("Nats-Stream: {stream}\r\nNats-Subject: ");
        let at = block.windows(place.len()).rposition(|window| window == place.as_bytes())?;
        let (original, added) = (block.slice(..at), String::from_utf8_lossy(&block[at..]));
        let added = |name: &str| added.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let whole = Bytes::from([&original[..], b"\r\n"].concat());
        return Some(StoredMessage {
            subject: added("Nats-Subject")?.to_owned(),
            sequence: added("Nats-Sequence")?.parse().ok()?,
            headers: Some(HeaderMap::from_block(whole)),
            payload,
            time: added("Nats-Time-Stamp")?.to_owned(),
        });
    }
    let last = |name: &str| headers.get_last(name).map(|value| value.as_str());
    Some(StoredMessage {
        subject: last("Nats-Subject")?.to_owned(),
        sequence: last("Nats-Sequence")?.parse().ok()?,
        headers: Some(match answer.status {
            None => headers.clone(),
            // The publisher wrote the status; no stored message has one, so the headers are malformed.
            Some(status) => HeaderMap::from_block(format!("NATS/1.0 {}\r\n\r\n", status.as_u16()).into()),
        }),
        payload,
        time: last("Nats-Time-Stamp")?.to_owned(),
    })
}
