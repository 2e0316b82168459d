//! Reports, in the log, in the metrics and at `/readyz`, when dead letters cannot be stored, and when they can again. The
//! process stays ready: envelopes wait in their outboxes. Sends the probes to streams that do not answer, so that nobody
//! else waits for them.

use std::time::Duration;

use futures_util::future::join_all;
use time::format_description::well_known::Rfc3339;

use crate::domain::dead_letter_room::DeadLetterRoomChange;
use crate::facts::{DeadLettersBlocked, DeadLettersUnblocked, DomainMetrics, Metrics};
use crate::health::Readiness;
use crate::nats::JetStream;

/// Interval of the looks at streams that refuse dead letters.
const INTERVAL: Duration = Duration::from_secs(5);
/// Shortest time between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// Each process runs one.
pub struct LetterWatch {
    js: JetStream,
    domains: Vec<(String, DomainMetrics)>,
    readiness: Readiness,
}

impl LetterWatch {
    pub fn new(js: JetStream, domains: &[String], metrics: &Metrics, readiness: &Readiness) -> Self {
        let domains = domains.iter().map(|domain| (domain.clone(), metrics.of_domain(domain))).collect();
        Self { js, domains, readiness: readiness.clone() }
    }

    /// Never returns. May be dropped at any point.
    pub async fn run(self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = self.js.letter_refused() => {}
            }
            // Without the server nothing can be stored, which is reported elsewhere.
            if self.js.is_answering() {
                // A stream that does not answer delays no other.
                join_all(self.domains.iter().map(|(domain, metrics)| self.probe_and_look(domain, metrics)))
                    .await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn probe_and_look(&self, domain: &str, metrics: &DomainMetrics) {
        self.js.probe_letters(domain).await;
        self.look(domain, metrics).await;
    }

    async fn look(&self, domain: &str, metrics: &DomainMetrics) {
        let Some((change, error)) = self.js.letter_room_change(domain).await else { return };
        let (stream, subject) = (self.js.names().dlt_stream(domain), format!("dead letters of {domain}"));
        match change {
            DeadLetterRoomChange::Began(refusal) => {
                let now = self.js.now();
                let since = now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default();
                let remedy = refusal.remedy();
                let note =
                    format!("{subject} cannot be stored in {stream} since {since}: {refusal}; {remedy}");
                self.readiness.note(subject, Some(note));
                DeadLettersBlocked { error: &error, refusal, stream: &stream }.emit(metrics);
            }
            DeadLetterRoomChange::Ended { after } => {
                self.readiness.note(subject, None);
                DeadLettersUnblocked { stream: &stream, after }.emit(metrics);
            }
        }
    }
}
