//! What the outbox processors have delivered lately, as they announce it.
//!
//! A server that cannot write to its disk may keep an acknowledgement and the message as well. The sweep then finds a message
//! that no consumer delivers again. It was delivered, so it is removed, and does not become a dead letter.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use crate::domain::lately::{Lately, Stored};
use crate::nats::{JetStream, SettledNotice, StoredMessage};

/// Messages of one generation of each domain; there are two, of at most 3 MB together.
const MOST: usize = 32 * 1024;
/// Life of a generation.
const TIME: Duration = Duration::from_secs(15 * 60);

pub(super) struct Deliveries {
    js: JetStream,
    domains: HashMap<String, Mutex<Lately<Stored, ()>>>,
    started: Instant,
}

impl Deliveries {
    pub(super) fn new(js: JetStream, domains: &[String]) -> Self {
        let lately = |domain: &String| (domain.clone(), Mutex::new(Lately::new(MOST, TIME)));
        Self { js, domains: domains.iter().map(lately).collect(), started: Instant::now() }
    }

    /// Whether this message of an outbox was delivered.
    pub(super) fn has(&self, domain: &str, message: &StoredMessage) -> bool {
        let Ok(at) = OffsetDateTime::parse(&message.time, &Rfc3339) else { return false };
        let stored = Stored::new(message.sequence, at.unix_timestamp_nanos());
        let Some(lately) = self.domains.get(domain) else { return false };
        let mut lately = lately.lock().unwrap_or_else(PoisonError::into_inner);
        lately.of(&stored, self.started.elapsed()).is_some()
    }

    /// Follows the announcements about a domain. Never returns. May be dropped at any point.
    pub(super) async fn follow(&self, domain: &str) {
        let Some(lately) = self.domains.get(domain) else { return std::future::pending().await };
        // It fails only if the connection is closed for good, which ends the process.
        let Ok(mut notices) = self.js.settled_notices(domain).await else {
            return std::future::pending().await;
        };
        let (mut reconnects, process) = (self.js.reconnects(), rand::random());
        loop {
            // Without an answer, what is announced from now on is known.
            let _ = self.js.publish_settled_notice(domain, process, &SettledNotice::Ask).await;
            loop {
                let notice = tokio::select! {
                    (_, notice) = notices.next() => notice,
                    () = reconnects.next() => break,
                };
                if let SettledNotice::Delivered { envelopes, .. } = notice {
                    let (mut lately, now) =
                        (lately.lock().unwrap_or_else(PoisonError::into_inner), self.started.elapsed());
                    for envelope in envelopes {
                        lately.remember(envelope.stored, (), now);
                    }
                }
            }
        }
    }
}
