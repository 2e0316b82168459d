//! Names for people of what a request is about.

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described<'a> {
    /// `stream HUB_EVENTS`, `bucket hub-subscriptions`, `consumer HUB_EVENTS/event-processor`; a subject of events or envelopes
    /// as it is.
    pub what: String,
    /// The stream, if the request names one.
    pub stream: Option<&'a str>,
    /// The request changes nothing.
    pub is_read: bool,
}

impl Described<'_> {
    /// Whether it is the bucket of the subscription registry.
    pub fn is_registry(&self) -> bool {
        self.stream.is_some_and(|stream| stream.starts_with("KV_") && stream.ends_with("-subscriptions"))
    }
}

/// Describes a request by its subject: one of the JetStream API, with or without `$JS.API.`, of a bucket, or any other.
pub fn described(subject: &str) -> Described<'_> {
    if let Some((bucket, key)) = subject.strip_prefix("$KV.").and_then(|rest| rest.split_once('.')) {
        return Described { what: format!("key {key} of bucket {bucket}"), stream: None, is_read: false };
    }
    let api = subject.strip_prefix("$JS.API.").unwrap_or(subject);
    let parts: Vec<&str> = api.split('.').collect();
    let (what, stream, is_read) = match parts.as_slice() {
        ["INFO"] => ("JetStream".to_owned(), None, true),
        ["STREAM", "NAMES" | "LIST"] => ("the streams".to_owned(), None, true),
        ["STREAM", "MSG", verb, stream] => (of_stream(stream), Some(*stream), *verb == "GET"),
        ["STREAM", verb, stream] => (of_stream(stream), Some(*stream), *verb == "INFO"),
        ["DIRECT", "GET", stream, ..] => (of_stream(stream), Some(*stream), true),
        ["CONSUMER", "NAMES" | "LIST", stream] => {
            (format!("the consumers of {}", of_stream(stream)), Some(*stream), true)
        }
        ["CONSUMER", "MSG", "NEXT", stream, consumer] => of_consumer(stream, consumer, false),
        ["CONSUMER", "CREATE", stream] => {
            (format!("a consumer of {}", of_stream(stream)), Some(*stream), false)
        }
        ["CONSUMER", verb, stream, consumer, ..] => of_consumer(stream, consumer, *verb == "INFO"),
        // The bare name of a stream.
        [stream] if is_stream(stream) => (of_stream(stream), Some(*stream), true),
        _ => (subject.to_owned(), None, false),
    };
    Described { what, stream, is_read }
}

/// Whether a text without dots is the name of a stream: of a bucket, or in upper case.
fn is_stream(text: &str) -> bool {
    let is_upper =
        |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    text.starts_with("KV_") || (!text.is_empty() && text.bytes().all(is_upper))
}

fn of_stream(stream: &str) -> String {
    match stream.strip_prefix("KV_") {
        Some(bucket) => format!("bucket {bucket}"),
        None => format!("stream {stream}"),
    }
}

fn of_consumer<'a>(stream: &'a str, consumer: &str, is_read: bool) -> (String, Option<&'a str>, bool) {
    let what = match stream.strip_prefix("KV_") {
        Some(bucket) => format!("a consumer of bucket {bucket}"),
        None => format!("consumer {stream}/{consumer}"),
    };
    (what, Some(stream), is_read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_has_a_name_for_people() {
        for (subject, what, stream, is_read) in [
            ("INFO", "JetStream", None, true),
            ("$JS.API.INFO", "JetStream", None, true),
            ("$JS.API.STREAM.INFO.HUB_EVENTS", "stream HUB_EVENTS", Some("HUB_EVENTS"), true),
            ("STREAM.CREATE.KV_hub-keys", "bucket hub-keys", Some("KV_hub-keys"), false),
            ("STREAM.MSG.DELETE.HUB_EVENTS", "stream HUB_EVENTS", Some("HUB_EVENTS"), false),
            ("STREAM.MSG.GET.HUB_EVENTS", "stream HUB_EVENTS", Some("HUB_EVENTS"), true),
            ("$JS.API.DIRECT.GET.A.$KV.hub.crm", "stream A", Some("A"), true),
            ("CONSUMER.NAMES.A", "the consumers of stream A", Some("A"), true),
            ("CONSUMER.INFO.A.b", "consumer A/b", Some("A"), true),
            ("CONSUMER.CREATE.A.b.hub.outbox.a.*.*", "consumer A/b", Some("A"), false),
            (
                "CONSUMER.CREATE.KV_hub-subscriptions.scan-1.$KV.hub-subscriptions.>",
                "a consumer of bucket hub-subscriptions",
                Some("KV_hub-subscriptions"),
                false,
            ),
            ("$JS.API.CONSUMER.MSG.NEXT.A.b", "consumer A/b", Some("A"), false),
            ("CONSUMER.PAUSE.A.b", "consumer A/b", Some("A"), false),
            ("$KV.hub-tokens.one", "key one of bucket hub-tokens", None, false),
            ("KV_hub-subscriptions", "bucket hub-subscriptions", Some("KV_hub-subscriptions"), true),
            ("HUB_OUTBOX_A_DLT", "stream HUB_OUTBOX_A_DLT", Some("HUB_OUTBOX_A_DLT"), true),
            ("hub.events.user.created", "hub.events.user.created", None, false),
            ("flush", "flush", None, false),
            ("", "", None, false),
        ] {
            let described = described(subject);
            assert_eq!((described.what.as_str(), described.stream), (what, stream), "{subject}");
            assert_eq!(described.is_read, is_read, "{subject}");
            assert_eq!(described.is_registry(), stream == Some("KV_hub-subscriptions"), "{subject}");
            // Nobody is sent to the API's subjects.
            assert!(!described.what.contains("$JS.API"), "{subject}");
        }
    }
}
