//! Feeds the decoders with random bytes and damaged inputs: they must return without a panic, and what they accept must
//! be readable by the next reader.

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use crate::domain::access::StoredToken;
use crate::domain::attempt_record::AttemptRecord;
use crate::domain::bulk_job::BulkJob;
use crate::domain::dead_letter::DeadLetter;
use crate::domain::envelope::Envelope;
use crate::domain::event::{Publication, binary_parts};
use crate::domain::last_words::LastWords;
use crate::domain::producer_outbox::ExternalMessage;
use crate::domain::subscription::Subscription;
use crate::nats::Advisory;

const SEEDS: [&str; 5] = [
    r#"{"specversion":"1.0","id":"e 1","source":"/idp","type":"user.created","tenant":"acme","time":"2026-01-31T12:00:00Z","published":true,"data":{"user_id":"u1"}}"#,
    r#"{"id":"env_1","domain":"d","subscription":"crm","tenant":"acme","event_id":"e1","event_key":"user.created","event":{"id":"e1"},"delivery":{"url":"https://crm.example/","max_in_flight":3}}"#,
    r#"{"type":"io.nats.jetstream.advisory.v1.max_deliver","stream":"S","consumer":"lane-shared","stream_seq":7,"deliveries":5}"#,
    r#"{"id":"crm","events":["user.>"],"filter":[{"any":[{"exact":{"source":"idp"}}]}],"delivery":{"url":"https://crm.example/"}}"#,
    r#"{"id":"1","data":{"n":1},"metadata":{"headers":{"id":"1","type":"user.created","stream":"s"},"domain":{},"envelope":{"specversion":"1.0"},"extensions":{}}}"#,
];
const HEADERS: [(&str, &str); 8] = [
    ("content-type", "application/cloudevents+json"),
    ("content-type", "application/vnd.integration-hub.envelope+json"),
    ("ce-id", "1"),
    ("ce-source", "%ff\""),
    ("ce-type", "user.created"),
    ("ce-specversion", "1.0"),
    ("Hub-Tenant", "acme"),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
];

/// Any bytes, or a seed with a piece of it replaced by something else, or by something deep.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20),
        (
            prop::sample::select(vec!["[", "{\"a\":", "\"\\ud800\"", "1e999", "\\u0000", "]", "}"]),
            1..20_000usize
        )
            .prop_map(|(text, times)| text.repeat(times).into_bytes()),
    ];
    let damaged =
        (0..SEEDS.len(), any::<Index>(), any::<Index>(), piece).prop_map(|(seed, from, to, piece)| {
            let seed = SEEDS[seed].as_bytes();
            let (from, to) = (from.index(seed.len()), to.index(seed.len()));
            [&seed[..from.min(to)], &piece, &seed[from.max(to)..]].concat()
        });
    prop_oneof![prop::collection::vec(any::<u8>(), 0..200), damaged]
}

fn headers() -> impl Strategy<Value = Vec<(String, String)>> {
    let known = prop::sample::select(HEADERS.to_vec()).prop_map(|(n, v)| (n.to_owned(), v.to_owned()));
    let odd = ("[!-9;-~]{0,12}", "[^\r\n]{0,40}");
    prop::collection::vec(prop_oneof![3 => known, 1 => odd], 0..8)
}

proptest! {
    #[test]
    fn any_publication_is_an_event_or_refused(tail in "[^ \t\r\n]{0,40}", headers in headers(), body in body()) {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let publication = Publication {
            subject_tail: &tail,
            tenant_token: None,
            headers: &headers,
            body: &body,
            stream: "HUB_EVENTS",
            sequence: 7,
            time: OffsetDateTime::UNIX_EPOCH,
            max_size: 1_000_000,
        };
        match publication.decode() {
            Ok(event) => {
                let text = event.to_cloudevent();
                prop_assert!(serde_json::from_str::<Box<RawValue>>(text.get()).is_ok());
                prop_assert!(binary_parts(text.get()).is_ok());
                // Refused or not: it returns.
                let _ = ExternalMessage::new(text.get(), event.external_metadata.as_deref());
            }
            Err(rejection) => prop_assert!(!rejection.detail.is_empty()),
        }
    }

    #[test]
    fn any_stored_bytes_are_read_or_refused(body in body(), value in "\\PC{0,40}") {
        if let Ok(envelope) = Envelope::read(&body) {
            envelope.share();
        }
        Advisory::read(&body);
        AttemptRecord::read_lines(&body).for_each(drop);
        let _ = serde_json::from_slice::<Subscription>(&body);
        let _ = serde_json::from_slice::<StoredToken>(&body);
        let _ = serde_json::from_slice::<BulkJob>(&body);
        let _ = serde_json::from_slice::<LastWords>(&body);
        DeadLetter::from_headers(|_| Some(&value));
    }
}
