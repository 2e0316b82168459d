//! Consumer advisories: the server reports that a message used up its deliveries or was terminated.

use serde::Deserialize;

/// `io.nats.jetstream.advisory.v1.max_deliver` and `…v1.terminated`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advisory {
    pub kind: AdvisoryKind,
    pub stream: String,
    pub consumer: String,
    pub stream_sequence: u64,
    pub deliveries: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdvisoryKind {
    MaxDeliveries,
    Terminated { reason: Option<String> },
}

impl Advisory {
    /// Parses an advisory; `None` for any other message.
    pub fn read(payload: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Wire {
            #[serde(rename = "type")]
            kind: String,
            stream: String,
            consumer: String,
            stream_seq: u64,
            #[serde(default)]
            deliveries: u32,
            #[serde(default)]
            reason: Option<String>,
        }
        let wire: Wire = serde_json::from_slice(payload).ok()?;
        let kind = match wire.kind.as_str() {
            "io.nats.jetstream.advisory.v1.max_deliver" => AdvisoryKind::MaxDeliveries,
            "io.nats.jetstream.advisory.v1.terminated" => AdvisoryKind::Terminated { reason: wire.reason },
            _ => return None,
        };
        Some(Self {
            kind,
            stream: wire.stream,
            consumer: wire.consumer,
            stream_sequence: wire.stream_seq,
            deliveries: wire.deliveries,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_server_sends() {
        let advisory = Advisory::read(
            br#"{"type":"io.nats.jetstream.advisory.v1.max_deliver","id":"x","timestamp":"2026-01-01T00:00:00Z","stream":"HUB_OUTBOX_ORGANIZATION","consumer":"lane-shared","stream_seq":7,"deliveries":5}"#,
        )
        .unwrap();
        assert_eq!((advisory.stream_sequence, advisory.deliveries), (7, 5));
        assert_eq!(advisory.kind, AdvisoryKind::MaxDeliveries);
        assert_eq!(Advisory::read(b"{}"), None);
    }
}
