//! What the server reports on the connection about permissions that the client lacks. The protocol has a sentence and no code
//! for it (`-ERR`), so the sentence is parsed when it comes, here and nowhere else; decisions use the parsed form.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use async_nats::ServerError;
use tokio::time::Instant;

/// Reports that are kept. A client line of the server has at most 4 KB.
const MOST_REPORTS: usize = 16;

/// A permission that the client lacks, with the subject.
#[derive(Debug, Clone, PartialEq, Eq)]
enum MissingPermission {
    Publish(String),
    /// To receive an answer at this subject.
    Reply(String),
    Subscribe(String),
}

impl MissingPermission {
    /// `None`: the report is about something else.
    fn parse(report: &str) -> Option<Self> {
        type Kind = fn(String) -> MissingPermission;
        let kinds: [(&str, Kind); 3] = [
            ("Publish to ", Self::Publish),
            ("Publish with Reply of ", Self::Reply),
            ("Subscription to ", Self::Subscribe),
        ];
        let rest = report.strip_prefix("Permissions Violation for ")?;
        let (quoted, kind) =
            kinds.into_iter().find_map(|(what, kind)| rest.strip_prefix(what).map(|rest| (rest, kind)))?;
        // The server quotes as Go does, which for subjects is as JSON does. A queue may follow.
        let subject = serde_json::Deserializer::from_str(quoted).into_iter::<String>().next()?.ok()?;
        Some(kind(subject))
    }

    /// Whether a request to this subject, whose answer comes to an inbox with this prefix, needs the permission.
    fn concerns(&self, subject: &str, inbox_prefix: &str) -> bool {
        match self {
            Self::Publish(refused) => refused == subject,
            Self::Reply(inbox) | Self::Subscribe(inbox) => {
                inbox.strip_prefix(inbox_prefix).is_some_and(|rest| rest.starts_with('.'))
            }
        }
    }
}

#[derive(Debug)]
struct Report {
    at: Instant,
    missing: MissingPermission,
    /// As the server wrote it, for people.
    text: String,
}

/// The last reports of a connection.
#[derive(Debug, Default)]
pub(super) struct ServerReports(Mutex<VecDeque<Report>>);

impl ServerReports {
    /// Keeps a report about a permission.
    pub(super) fn add(&self, error: &ServerError) {
        let ServerError::Other(sentence) = error else { return };
        let Some(missing) = MissingPermission::parse(sentence) else { return };
        let mut reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if reports.len() == MOST_REPORTS {
            reports.pop_front();
        }
        reports.push_back(Report { at: Instant::now(), missing, text: error.to_string() });
    }

    /// The last report since `sent` that explains why a request has no answer.
    pub(super) fn about(&self, subject: &str, inbox_prefix: &str, sent: Instant) -> Option<String> {
        let reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut since = reports.iter().rev().take_while(|report| report.at >= sent);
        since.find(|report| report.missing.concerns(subject, inbox_prefix)).map(|report| report.text.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBJECT: &str = "$JS.API.STREAM.INFO.HUB_EVENTS";
    const INBOX: &str = "_INBOX_api";

    fn report(reports: &ServerReports, sentence: &str) {
        reports.add(&ServerError::Other(sentence.to_owned()));
    }

    fn is_about(sentence: &str) -> bool {
        let reports = ServerReports::default();
        let sent = Instant::now();
        report(&reports, sentence);
        reports.about(SUBJECT, INBOX, sent).is_some()
    }

    #[test]
    fn a_report_explains_the_requests_that_need_the_permission() {
        for own in [
            r#"Permissions Violation for Publish to "$JS.API.STREAM.INFO.HUB_EVENTS""#,
            r#"Permissions Violation for Publish with Reply of "_INBOX_api.abc.1""#,
            r#"Permissions Violation for Subscription to "_INBOX_api.abc.*""#,
            r#"Permissions Violation for Subscription to "_INBOX_api.abc.*" using queue "q""#,
        ] {
            assert!(is_about(own), "{own}");
        }
        for other in [
            // Its subject begins with that of the request, or contains it.
            r#"Permissions Violation for Publish to "$JS.API.STREAM.INFO.HUB_EVENTS_2""#,
            r#"Permissions Violation for Publish to "x.$JS.API.STREAM.INFO.HUB_EVENTS""#,
            r#"Permissions Violation for Publish to "x\" $JS.API.STREAM.INFO.HUB_EVENTS""#,
            r#"Permissions Violation for Subscription to "$JS.API.STREAM.INFO.HUB_EVENTS""#,
            r#"Permissions Violation for Subscription to "_INBOX_api-2.abc.*""#,
            r#"Permissions Violation for Subscription to "hub.settled.*""#,
            "Permissions Violation for Publish to $JS.API.STREAM.INFO.HUB_EVENTS",
            r#"Permissions Violation for Publish to "$JS.API.STREAM.INFO.HUB_EVENTS"#,
            "Unknown Protocol Operation: $JS.API.STREAM.INFO.HUB_EVENTS",
            "",
        ] {
            assert!(!is_about(other), "{other}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn later_reports_about_others_hide_none_and_earlier_ones_do_not_count() {
        let reports = ServerReports::default();
        let sent = Instant::now();
        report(&reports, r#"Permissions Violation for Publish to "$JS.API.STREAM.INFO.HUB_EVENTS""#);
        report(&reports, r#"Permissions Violation for Publish to "$JS.API.INFO""#);
        reports.add(&ServerError::AuthorizationViolation);
        let text = reports.about(SUBJECT, INBOX, sent).expect("it is kept");
        assert!(text.contains("Permissions Violation for Publish to \"$JS.API.STREAM"), "{text}");
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        assert_eq!(reports.about(SUBJECT, INBOX, Instant::now()), None);
        for _ in 0..2 * MOST_REPORTS {
            report(&reports, r#"Permissions Violation for Publish to "$JS.API.INFO""#);
        }
        assert_eq!(reports.0.lock().expect("nobody panicked").len(), MOST_REPORTS);
        assert_eq!(reports.about(SUBJECT, INBOX, sent), None);
    }
}
