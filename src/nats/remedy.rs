//! What an operator does about a failed request: the one mapping from an error of the NATS adapter to its remedy, by the kind
//! of the error and JetStream's code. Commands, the API and the log show it as the last part of the error.

use super::error::ApiError;
use super::subjects::{Described, described};

const LATER: &str = "try again later, and check the NATS servers (`nats stream report`) if it lasts";
const SOON: &str = "try again in a few seconds";
const ENABLE: &str = "start nats-server with JetStream (`nats-server -js`), or add `jetstream` to the account of the NATS user";
const MORE_ROOM: &str =
    "free space, or raise the JetStream limits of the account or of the server (max_file_store)";
const MORE_CONSUMERS: &str = "raise max_consumers of the stream or of the account";
const PERMIT: &str = "give the NATS user this permission; nats/accounts.conf lists those of each role";
const LEADING: &str = "JetStream is temporarily unavailable: it has no leader, or no quorum of its servers";

/// The remedy of an answer of JetStream; `None` if the caller knows better.
fn of_code(err_code: u16) -> Option<&'static str> {
    let is_one_of = |codes: &[u16]| codes.contains(&err_code);
    match err_code {
        _ if is_one_of(&ApiError::WITHOUT_LEADER) => Some(LATER),
        _ if is_one_of(&ApiError::BUSY) => Some(SOON),
        _ if is_one_of(&ApiError::NOT_ENABLED) => Some(ENABLE),
        _ if is_one_of(&ApiError::NO_RESOURCES) => Some(MORE_ROOM),
        ApiError::TOO_MANY_CONSUMERS => Some(MORE_CONSUMERS),
        _ => None,
    }
}

/// The problem of an answer of JetStream, with its remedy.
pub(super) fn shown(ApiError { description, err_code, .. }: &ApiError) -> String {
    let problem = match ApiError::WITHOUT_LEADER.contains(err_code) {
        true => format!("{LEADING} (error {err_code})"),
        false => format!("{description} (JetStream error {err_code})"),
    };
    of_code(*err_code).map_or_else(|| problem.clone(), |remedy| format!("{problem}; {remedy}"))
}

/// What a request was about.
pub(super) fn about(subject: &str) -> String {
    described(subject).what
}

/// No answer came in time. `reported`: what the server reported meanwhile, on the connection.
pub(super) fn unanswered(subject: &str, seconds: u64, reported: Option<&str>) -> String {
    let Described { what, is_read, .. } = described(subject);
    let problem = format!("{what}: no answer from the server within {seconds} s");
    match reported {
        Some(reported) => format!("{problem}, which reported: {reported}; {PERMIT}"),
        None if is_read => format!("{problem}; {LATER}"),
        None => format!(
            "{problem}; a change may have been made all the same, so look before you repeat it, and check the NATS servers \
             (`nats stream report`) if it lasts"
        ),
    }
}

/// Nobody listens to the subject: JetStream is off, or the stream does not exist.
pub(super) fn nobody(subject: &str) -> String {
    let request = described(subject);
    let what = &request.what;
    match request.stream {
        _ if request.is_registry() => {
            format!(
                "{what}: no responders; JetStream is off, or the bucket is missing: check it with `hub provision --check`"
            )
        }
        Some(_) if !subject.contains("DIRECT.GET") => {
            format!("{what}: no responders; JetStream is off: {ENABLE}")
        }
        _ if what == "JetStream" => format!("{what}: no responders; JetStream is off: {ENABLE}"),
        _ => format!(
            "{what}: no responders; JetStream is off or the stream does not exist: run `hub provision`"
        ),
    }
}

/// The stream had no leader.
pub(super) fn leaderless(subject: &str) -> String {
    format!("{}: JetStream is temporarily unavailable: the stream has no leader; {LATER}", about(subject))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::NatsError;

    const SUBJECTS: [&str; 6] = [
        "INFO",
        "STREAM.INFO.HUB_EVENTS",
        "CONSUMER.CREATE.KV_hub-subscriptions.scan-1.$KV.hub-subscriptions.>",
        "$JS.API.DIRECT.GET.KV_hub-subscriptions",
        "$JS.API.CONSUMER.NAMES.HUB_OUTBOX_ORGANIZATION",
        "hub.events.user.created",
    ];
    const REMEDIES: [&str; 8] = [
        LATER,
        SOON,
        ENABLE,
        MORE_ROOM,
        MORE_CONSUMERS,
        PERMIT,
        "run `hub provision`",
        "check it with `hub provision --check`",
    ];

    /// The text has this remedy and no other, and no subject of the API as a name.
    fn has(error: &NatsError, remedy: Option<&str>) {
        let text = error.to_string();
        let found: Vec<&str> = REMEDIES.into_iter().filter(|one| text.contains(one)).collect();
        assert_eq!(found, remedy.into_iter().collect::<Vec<_>>(), "{text}");
        assert!(!text.contains("$JS.API") && !text.contains("STREAM.INFO"), "{text}");
        assert!(remedy != Some(LATER) || !text.contains("permission"), "{text}");
    }

    #[test]
    fn each_kind_of_failure_has_its_remedy_and_no_other() {
        for subject in SUBJECTS.map(str::to_owned) {
            for (code, err_code, remedy) in [
                (503, 10008, Some(LATER)),
                (503, 10004, Some(LATER)),
                (500, 10009, Some(LATER)),
                (500, 10118, Some(LATER)),
                (500, 10119, Some(LATER)),
                (429, 10167, Some(SOON)),
                (429, 10163, Some(SOON)),
                (503, 10076, Some(ENABLE)),
                (503, 10039, Some(ENABLE)),
                (503, 10023, Some(MORE_ROOM)),
                (500, 10047, Some(MORE_ROOM)),
                (400, 10002, Some(MORE_ROOM)),
                (400, 10026, Some(MORE_CONSUMERS)),
                // The caller knows what is missing, or full.
                (404, 10059, None),
                (404, 10014, None),
                (503, 10077, None),
                (400, 10003, None),
            ] {
                let source = ApiError { code, err_code, description: "as the server says it".to_owned() };
                has(&NatsError::Api { subject: subject.clone(), source }, remedy);
            }
            let silent = NatsError::Timeout { subject: subject.clone(), seconds: 5, reported: None };
            let is_read = described(&subject).is_read;
            has(&silent, is_read.then_some(LATER));
            assert_eq!(silent.to_string().contains("look before you repeat it"), !is_read, "{silent}");
            let reported = Some("Permissions Violation for Publish".to_owned());
            has(&NatsError::Timeout { subject: subject.clone(), seconds: 5, reported }, Some(PERMIT));
            has(&NatsError::NoLeader { subject: subject.clone() }, Some(LATER));
        }
        for (subject, remedy) in [
            ("$JS.API.INFO", ENABLE),
            ("$JS.API.STREAM.INFO.HUB_EVENTS", ENABLE),
            ("$JS.API.DIRECT.GET.HUB_EVENTS", "run `hub provision`"),
            ("$JS.API.DIRECT.GET.KV_hub-subscriptions", "check it with `hub provision --check`"),
            ("hub.events.user.created", "run `hub provision`"),
        ] {
            has(&NatsError::NoResponders { subject: subject.to_owned() }, Some(remedy));
        }
    }
}
