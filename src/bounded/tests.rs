use std::io;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::printable::kept::KeptLog;
use crate::printable::{EscapedLog, LogText};

/// The lines that the log writes in a format.
fn logged(text: LogText, ansi: bool, log: impl FnOnce()) -> Vec<String> {
    let kept = KeptLog::default();
    let builder = tracing_subscriber::fmt()
        .fmt_fields(BoundedFields)
        .with_max_level(tracing::Level::TRACE)
        .with_writer(EscapedLog::new(kept.clone(), text));
    match text {
        LogText::Json => tracing::subscriber::with_default(builder.json().flatten_event(true).finish(), log),
        LogText::Text => tracing::subscriber::with_default(builder.with_ansi(ansi).finish(), log),
    }
    kept.records()
}

/// Every way in which a log line gets a value, with a value that a publisher chose.
fn log_every_kind(value: &str) {
    let error = io::Error::other(value.to_owned());
    let dynamic: &(dyn Error + 'static) = &error;
    tracing::warn!(value, "a text");
    tracing::warn!(value = Some(value), "an optional text");
    tracing::warn!(%value, "a displayed value");
    tracing::warn!(?value, "a debugged value");
    tracing::warn!(value = ?[value, value], "a list");
    tracing::warn!(%error, "a displayed error");
    tracing::warn!(error = dynamic, "an error");
    tracing::warn!("a message: {value}");
    let (a, b, c, d, e) = (value, value, value, value, value);
    tracing::warn!(a, b, c, d, e, %error, f = a, g = b, h = c, i = d, j = e, k = a, "many");
    tracing::warn_span!("of a library", value).in_scope(|| tracing::warn!(value, "in a span"));
}

fn hostile() -> Vec<String> {
    let mut values = Vec::new();
    for unit in
        ["x", "\"", "\\", "\u{1b}[31m", "\n", "\0", "é", "日", "👍", "\u{202e}", "\u{10ffff}", "\\u00"]
    {
        for size in [100, 1_999, 2_000, 2_001, 17_000, 100_000] {
            values.push(unit.repeat(size / unit.len()));
        }
    }
    values
}

fn assert_bounded(line: &str, most: usize) {
    let body = line.strip_suffix('\n').expect("a line ends");
    assert!(line.len() <= most, "{} bytes: {}", line.len(), &body[..200.min(body.len())]);
    let colours = |c: char| c == '\u{1b}';
    assert!(!body.chars().any(|c| is_unprintable(c) && !colours(c)), "{}", body.escape_debug());
}

#[test]
fn no_line_of_the_log_is_longer_than_its_limit() {
    for value in hostile() {
        for ansi in [false, true] {
            let lines = logged(LogText::Text, ansi, || log_every_kind(&value));
            assert_eq!(lines.len(), 10);
            for line in &lines {
                assert_bounded(line, MAX_LINE_BYTES);
            }
            // One value, and what the formatter adds; of the list, both are one value.
            for line in &lines[..7] {
                assert_bounded(line, MAX_VALUE_BYTES + 300);
            }
        }
        let lines = logged(LogText::Json, false, || log_every_kind(&value));
        assert_eq!(lines.len(), 10);
        for line in &lines {
            assert_bounded(line, MAX_LINE_BYTES);
            let fields: Value = serde_json::from_str(line).expect("a cut line is JSON");
            assert!(fields["level"] == "WARN" && fields["message"].is_string(), "{line}");
        }
        for line in &lines[..7] {
            assert_bounded(line, MAX_VALUE_BYTES + 300);
        }
    }
}

#[test]
fn what_is_cut_says_how_much_is_left_out_and_a_short_value_stays() {
    let value = "x".repeat(5_000);
    let text = logged(LogText::Text, false, || tracing::warn!(value, "a text"));
    let kept = "x".repeat(MAX_VALUE_BYTES - 1);
    assert!(text[0].ends_with(&format!("value=\"{kept}… (3001 bytes left out)\"\n")), "{}", text[0]);
    let json = logged(LogText::Json, false, || tracing::warn!(value, "a text"));
    let fields: Value = serde_json::from_str(&json[0]).expect("JSON");
    assert_eq!(fields["value"], format!("{}… (3000 bytes left out)", "x".repeat(MAX_VALUE_BYTES)));
    for format in [LogText::Text, LogText::Json] {
        let lines = logged(format, false, || tracing::warn!(value = "short", count = 7, "a text"));
        assert!(lines[0].contains("short") && lines[0].contains('7') && !lines[0].contains("left out"));
    }
}

#[test]
fn a_backtrace_has_more_room() {
    let backtrace = "b".repeat(9_000);
    for format in [LogText::Text, LogText::Json] {
        let lines = logged(format, false, || tracing::error!(%backtrace, "panicked"));
        assert!(lines[0].contains(&backtrace));
    }
}

/// The facts whose values outsiders choose.
#[test]
fn facts_with_foreign_text_fit_into_their_lines() {
    use crate::domain::subscription::SubscriptionRef;
    use crate::facts::{
        AdvisoryUnreadable, EventRejected, Metrics, RegistryEntryUnreadable, RegistryKeySkipped, Row,
        RowAbandoned, RowsRefused, ThreadPanicked, limit_repeated_lines,
    };
    limit_repeated_lines(std::time::Duration::ZERO);
    let subscription = SubscriptionRef::of("acme", "crm").expect("valid names");
    let metrics = Metrics::new();
    let text = "x\u{1b}]0;owned\u{7}\"".repeat(100_000);
    let error = io::Error::other(text.clone());
    for format in [LogText::Text, LogText::Json] {
        let lines = logged(format, true, || {
            let broker = metrics.of_broker("internal");
            let row = || Row { position: 1, id: &text, event_type: &text, stream: &text, attempts: 1 };
            EventRejected { subject: &text, sequence: 1, reason: "invalid", detail: &text }.emit(&metrics);
            let unreadable = RegistryEntryUnreadable {
                subscription: &subscription,
                revision: 1,
                reason: &text,
                in_force: None,
            };
            unreadable.emit();
            RegistryKeySkipped { key: &text }.emit();
            AdvisoryUnreadable { subject: &text }.emit();
            RowAbandoned { row: row(), reason: &error }.emit(&broker);
            RowsRefused { written: 1, rows: 1, position: 1, error: &text }.emit(&broker);
            ThreadPanicked { message: &text, location: &text, thread: &text, backtrace: Some(&text) }.emit();
        });
        assert_eq!(lines.len(), 7);
        for line in &lines {
            assert_bounded(line, MAX_LINE_BYTES);
        }
    }
}

#[test]
fn an_error_keeps_its_beginning_and_its_remedy() {
    let error = format!("unknown domain {:?}; configured domains: a, b", "é".repeat(500_000));
    let cut = middle(&error, MAX_ERROR_BYTES);
    assert!(cut.len() <= MAX_ERROR_BYTES, "{}", cut.len());
    assert!(cut.starts_with("unknown domain \"éé") && cut.ends_with("éé\"; configured domains: a, b"));
    assert!(cut.contains(" bytes left out) …"));
    assert_eq!(middle("short", 5), "short");
}

proptest! {
    #[test]
    fn cut_json_is_json(text in any::<String>(), repeated in 1_usize..300) {
        let value = serde_json::json!({"message": text.repeat(repeated), &text: [text.repeat(repeated), 1.5, null]});
        let record = value.to_string();
        let cut = LogText::Json.escape(&record);
        let read: Value = serde_json::from_str(&cut).expect("JSON");
        if record.len() <= MAX_VALUE_BYTES {
            prop_assert_eq!(read, value);
        }
    }
}
