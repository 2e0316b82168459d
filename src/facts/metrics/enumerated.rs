//! Counters with labels of a fixed set of values, and the series of every such counter: each exists from the start, so that
//! `increase` sees its first occurrence.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::{
    FailureLabel, KindLabel, Metrics, OutcomeLabel, ReasonLabel, RejectedLabel, ResultLabel, TransitionLabel,
};
use crate::domain::event::RejectReason;
use crate::domain::outcome::{Fault, Reason, StatusClass, failure_kinds};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(in crate::facts) struct AttemptLabel {
    domain: String,
    outcome: &'static str,
    fault: &'static str,
    status: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(in crate::facts) struct ByLabel {
    domain: String,
    by: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(in crate::facts) struct FoundLabel {
    domain: String,
    result: &'static str,
}

families! {
    EnumeratedFamilies {
        attempts: Family<AttemptLabel, Counter> = "attempts",
            "Delivery attempts and probes of circuits, by domain, outcome (success, failure), whose fault a failure is \
             (none, subscriber, hub) and class of the status (2xx, 3xx, 4xx, 5xx, other, none)";
        exhausted_routed: Family<ByLabel, Counter> = "exhausted_routed",
            "Dead letters with the reason exhausted, by domain and what led to them (advisory, sweep, worker)";
        stranded_found: Family<FoundLabel, Counter> = "stranded_found",
            "Envelopes that the sweep found, by domain and what became of them (dead-lettered, published-again)";
        tokens: Family<ResultLabel, Counter> = "tokens",
            "Requests of OAuth2 tokens, by result (issued, refused, unreachable)";
        redrives: Family<OutcomeLabel, Counter> = "redrives",
            "Redrives and replays of dead letters, by domain and outcome (redriven and replayed: sent back to the outbox by \
             the schedule or by an operator; postponed, resolved, failed-again, dropped)";
    }
}

/// What led to a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetterBy {
    /// The advisory of the broker that the last delivery was used up.
    Advisory,
    Sweep,
    /// The outbox processor, which had the envelope.
    Worker,
    /// The event processor, before the envelope was in an outbox.
    EventProcessor,
}

impl LetterBy {
    /// Those that may lead to a dead letter with the reason exhausted.
    const OF_EXHAUSTED: [Self; 3] = [Self::Advisory, Self::Sweep, Self::Worker];

    fn as_str(self) -> &'static str {
        match self {
            Self::Advisory => "advisory",
            Self::Sweep => "sweep",
            Self::Worker => "worker",
            Self::EventProcessor => "event-processor",
        }
    }
}

/// What the sweep did with an envelope that it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrandedResult {
    DeadLettered,
    PublishedAgain,
}

impl StrandedResult {
    const ALL: [Self; 2] = [Self::DeadLettered, Self::PublishedAgain];

    fn as_str(self) -> &'static str {
        match self {
            Self::DeadLettered => "dead-lettered",
            Self::PublishedAgain => "published-again",
        }
    }
}

/// What became of the request of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenResult {
    Issued,
    /// The token endpoint answered, without a usable token.
    Refused,
    /// The token endpoint did not answer.
    Unreachable,
}

impl TokenResult {
    const ALL: [Self; 3] = [Self::Issued, Self::Refused, Self::Unreachable];

    fn as_str(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
        }
    }
}

/// What became of a redrive or replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::facts) enum Redrive {
    Redriven,
    Replayed,
    Postponed,
    Resolved,
    FailedAgain,
    Dropped,
}

impl Redrive {
    const ALL: [Self; 6] =
        [Self::Redriven, Self::Replayed, Self::Postponed, Self::Resolved, Self::FailedAgain, Self::Dropped];

    fn as_str(self) -> &'static str {
        match self {
            Self::Redriven => "redriven",
            Self::Replayed => "replayed",
            Self::Postponed => "postponed",
            Self::Resolved => "resolved",
            Self::FailedAgain => "failed-again",
            Self::Dropped => "dropped",
        }
    }
}

/// The attempts of a domain, one counter for each combination that occurs, looked up once.
#[derive(Clone)]
pub(in crate::facts) struct Attempts {
    succeeded: [Counter; StatusClass::ALL.len()],
    failed: [Counter; StatusClass::ALL.len()],
    failed_of_hub: Counter,
}

impl Attempts {
    /// Whose fault it is, if the attempt failed.
    pub(in crate::facts) fn of(&self, failed: Option<Fault>, status: Option<u16>) -> &Counter {
        let class = StatusClass::of(status) as usize;
        match failed {
            None => &self.succeeded[class],
            Some(Fault::Subscriber) => &self.failed[class],
            Some(Fault::Hub) => &self.failed_of_hub,
        }
    }
}

impl EnumeratedFamilies {
    pub(super) fn attempts_of(&self, domain: &str) -> Arc<Attempts> {
        let counter = |outcome, fault, class: StatusClass| {
            let label = AttemptLabel { domain: domain.to_owned(), outcome, fault, status: class.as_str() };
            self.attempts.get_or_create(&label).clone()
        };
        Arc::new(Attempts {
            // Only these two occur; what does not takes the place of none.
            succeeded: StatusClass::ALL.map(|class| match class {
                StatusClass::Success => counter("success", "none", class),
                _ => counter("success", "none", StatusClass::None),
            }),
            failed: StatusClass::ALL.map(|class| match class {
                StatusClass::Success => counter("failure", "subscriber", StatusClass::Other),
                _ => counter("failure", "subscriber", class),
            }),
            failed_of_hub: counter("failure", "hub", StatusClass::None),
        })
    }
}

impl Metrics {
    /// A dead letter with the reason exhausted was stored.
    pub(in crate::facts) fn exhausted_routed(&self, domain: &str, by: LetterBy) -> Counter {
        let label = ByLabel { domain: domain.to_owned(), by: by.as_str() };
        self.inner.enumerated.exhausted_routed.get_or_create(&label).clone()
    }

    pub(in crate::facts) fn stranded_found(&self, domain: &str, result: StrandedResult) -> Counter {
        let label = FoundLabel { domain: domain.to_owned(), result: result.as_str() };
        self.inner.enumerated.stranded_found.get_or_create(&label).clone()
    }

    pub(in crate::facts) fn redrive(&self, domain: &str, outcome: Redrive) -> Counter {
        let label = OutcomeLabel { domain: domain.to_owned(), outcome: outcome.as_str() };
        self.inner.enumerated.redrives.get_or_create(&label).clone()
    }

    pub(in crate::facts) fn tokens(&self, result: TokenResult) -> Counter {
        self.inner.enumerated.tokens.get_or_create(&ResultLabel { result: result.as_str() }).clone()
    }

    /// Makes the series of these domains, and those without a domain.
    pub fn make_series(&self, domains: &[String]) {
        let families = self.families();
        for reason in RejectReason::ALL.map(RejectReason::as_str) {
            let _ = families.rejected.get_or_create(&RejectedLabel { reason });
        }
        for kind in ["unavailable", "deadline", "not-admitted", "failed", "answer"] {
            let _ = families.resolver_failures.get_or_create(&KindLabel { kind });
        }
        for result in ["answered", "not-admitted", "invalid", "unavailable"] {
            let _ = families.resolver_served.get_or_create(&ResultLabel { result });
        }
        TokenResult::ALL.into_iter().for_each(|result| drop(self.tokens(result)));
        for domain in domains {
            let owned = || domain.clone();
            self.of_domain(domain);
            for reason in Reason::PRODUCED.map(Reason::as_str) {
                let _ = families.dead_lettered.get_or_create(&ReasonLabel { domain: owned(), reason });
            }
            for (fault, kind) in failure_kinds() {
                let label = FailureLabel { domain: owned(), fault: fault.as_str(), kind };
                let _ = families.failures.get_or_create(&label);
            }
            for to in ["open", "half-open", "closed"] {
                let _ = families.circuit_transitions.get_or_create(&TransitionLabel { domain: owned(), to });
            }
            self.redriven(domain);
            LetterBy::OF_EXHAUSTED.into_iter().for_each(|by| drop(self.exhausted_routed(domain, by)));
            StrandedResult::ALL.into_iter().for_each(|result| drop(self.stranded_found(domain, result)));
            Redrive::ALL.into_iter().for_each(|outcome| drop(self.redrive(domain, outcome)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_exists_from_the_start() {
        let metrics = Metrics::new();
        metrics.make_series(&["orders".to_owned()]);
        let text = metrics.encode().unwrap();
        let exist = [
            "hub_events_rejected_total{reason=\"no-domain\"} 0",
            "hub_dead_lettered_total{domain=\"orders\",reason=\"stranded\"} 0",
            "hub_failures_total{domain=\"orders\",fault=\"hub\",kind=\"sealed\"} 0",
            "hub_failures_total{domain=\"orders\",fault=\"subscriber\",kind=\"server-error\"} 0",
            "hub_circuit_transitions_total{domain=\"orders\",to=\"half-open\"} 0",
            "hub_deliveries_total{domain=\"orders\",outcome=\"exhausted\"} 0",
            "hub_attempts_total{domain=\"orders\",outcome=\"success\",fault=\"none\",status=\"2xx\"} 0",
            "hub_attempts_total{domain=\"orders\",outcome=\"failure\",fault=\"hub\",status=\"none\"} 0",
            "hub_exhausted_routed_total{domain=\"orders\",by=\"sweep\"} 0",
            "hub_stranded_found_total{domain=\"orders\",result=\"published-again\"} 0",
            "hub_redrives_total{domain=\"orders\",outcome=\"failed-again\"} 0",
        ];
        for line in exist {
            assert!(text.contains(&format!("{line}\n")), "{line}\n{text}");
        }
    }

    #[test]
    fn each_attempt_is_counted_once_where_it_belongs() {
        let metrics = Metrics::new();
        let attempts = metrics.of_domain("orders").attempts;
        for status in [Some(200), Some(204), Some(302), Some(404), Some(503), Some(999), None] {
            let failed = (!matches!(status, Some(200..=299))).then_some(Fault::Subscriber);
            attempts.of(failed, status).inc();
        }
        attempts.of(None, None).inc();
        attempts.of(Some(Fault::Hub), None).inc();
        let text = metrics.encode().unwrap();
        for (outcome, fault, status, count) in [
            ("success", "none", "2xx", 2),
            ("success", "none", "none", 1),
            ("failure", "subscriber", "3xx", 1),
            ("failure", "subscriber", "4xx", 1),
            ("failure", "subscriber", "5xx", 1),
            ("failure", "subscriber", "other", 1),
            ("failure", "subscriber", "none", 1),
            ("failure", "hub", "none", 1),
        ] {
            let labels = format!("outcome=\"{outcome}\",fault=\"{fault}\",status=\"{status}\"");
            let line = format!("hub_attempts_total{{domain=\"orders\",{labels}}} {count}\n");
            assert!(text.contains(&line), "{line}{text}");
        }
        assert_eq!(text.matches("hub_attempts_total{").count(), 8, "{text}");
    }
}
