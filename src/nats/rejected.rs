//! Keeping what was refused: the original bytes and headers, with the reason.

use bytes::Bytes;

use super::connection::JetStream;
use super::error::NatsError;
use super::message::Delivered;
use super::publish::{header_map, one_line};

/// Room for the headers that are added to the original.
const HEADER_ROOM: usize = 8 * 1024;

impl JetStream {
    /// Stores a refused publication under `<prefix>.rejected.<reason>`. What together with its
    /// reason is larger than the server's max_payload is stored in parts (`Hub-Part: 1/2`).
    pub async fn reject(&self, message: &Delivered, reason: &str, detail: &str) -> Result<(), NatsError> {
        let subject = self.names().rejected(reason);
        let identity = format!("{}-{}", self.names().events_stream(), message.stream_sequence);
        let original_headers = message.headers.as_ref().map_or(0, |headers| {
            headers
                .iter()
                .map(|(name, values)| {
                    let name: &str = name.as_ref();
                    values.iter().map(|value| name.len() + value.as_str().len() + 4).sum::<usize>()
                })
                .sum()
        });
        let room = self.max_payload().saturating_sub(HEADER_ROOM + original_headers).max(1024);
        let parts = message.payload.len().div_ceil(room).max(1);
        for part in 0..parts {
            let chunk = message.payload.slice(part * room..message.payload.len().min((part + 1) * room));
            let mut headers = message.headers.clone().unwrap_or_default();
            // The original's own instructions to its stream are not meant for this one.
            let foreign: Vec<String> = headers
                .iter()
                .map(|(name, _)| name.to_string())
                .filter(|name| name.starts_with("Nats-"))
                .collect();
            for name in foreign {
                let value = headers.get(name.as_str()).map(|v| v.as_str().to_owned()).unwrap_or_default();
                headers.insert(format!("Hub-Original-{name}"), value);
                headers = without(headers, &name);
            }
            let short: String = detail.chars().take(2_000).collect();
            for (name, value) in header_map(&[
                ("Hub-Reason", reason),
                ("Hub-Error", &short),
                ("Hub-Subject", &message.subject),
                ("Hub-Sequence", &message.stream_sequence.to_string()),
            ])
            .iter()
            {
                for value in value {
                    headers.insert(name.clone(), one_line(value.as_str()).as_ref());
                }
            }
            let mut id = identity.clone();
            if parts > 1 {
                id = format!("{identity}-{}", part + 1);
                headers.insert("Hub-Part", format!("{}/{parts}", part + 1));
            }
            headers.insert("Nats-Msg-Id", id);
            self.publish_map(&subject, Bytes::clone(&chunk), headers).await?;
        }
        Ok(())
    }
}

fn without(headers: async_nats::HeaderMap, dropped: &str) -> async_nats::HeaderMap {
    let mut kept = async_nats::HeaderMap::new();
    for (name, values) in headers.iter() {
        if name.to_string() != dropped {
            for value in values {
                kept.append(name.clone(), value.as_str());
            }
        }
    }
    kept
}
