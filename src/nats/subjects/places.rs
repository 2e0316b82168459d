//! Which stream has a subject.

use super::SubjectNames;

impl SubjectNames {
    /// The stream that stores what is published to a subject, or that a direct get reads. `None` for other subjects.
    pub fn stream_of(&self, subject: &str) -> Option<String> {
        if let Some(key) = subject.strip_prefix("$KV.") {
            return Some(format!("KV_{}", key.split('.').next()?));
        }
        if let Some(stream) = subject.strip_prefix("$JS.API.DIRECT.GET.") {
            return Some(stream.split('.').next()?.to_owned());
        }
        if self.parse_event(subject).is_some() {
            return Some(self.events_stream());
        }
        if let Some(parsed) = self.parse_dead_letter(subject) {
            return Some(self.dlt_stream(parsed.domain));
        }
        if let Some(parsed) = self.parse_outbox(subject) {
            return Some(self.outbox_stream(parsed.domain));
        }
        let own = subject.strip_prefix(self.prefix.as_str())?.strip_prefix('.')?;
        match own.split('.').next()? {
            "redrive" => Some(self.redrive_stream()),
            "attempts" => Some(self.attempts_stream()),
            "rejected" => Some(self.rejected_stream()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_subject_has_its_stream() {
        let names = SubjectNames::new("hub");
        let outbox = names.outbox("user-lifecycle", "shared", "crm");
        for (subject, stream) in [
            ("hub.events.user.created".to_owned(), Some(names.events_stream())),
            (names.event_from("acme", "user.created"), Some(names.events_stream())),
            (outbox.clone(), Some(names.outbox_stream("user-lifecycle"))),
            (names.dead_letter(&outbox), Some(names.dlt_stream("user-lifecycle"))),
            (names.redrive_due("user-lifecycle", 7), Some(names.redrive_stream())),
            (names.attempts("user-lifecycle", "crm"), Some(names.attempts_stream())),
            (names.rejected("key"), Some(names.rejected_stream())),
            ("$KV.hub-tokens.one".to_owned(), Some("KV_hub-tokens".to_owned())),
            ("$JS.API.DIRECT.GET.HUB_EVENTS".to_owned(), Some(names.events_stream())),
            ("$JS.API.STREAM.INFO.HUB_EVENTS".to_owned(), None),
            ("other.events.user.created".to_owned(), None),
            ("hubs.redrive.due.a.1".to_owned(), None),
            ("hub.heartbeat.1".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(names.stream_of(&subject), stream, "{subject}");
        }
    }
}
