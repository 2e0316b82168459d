//! Escapes untrusted text for terminals. Ids, event keys and endpoints' answers come from outside, and some characters
//! change what a terminal shows. Tables, lines, JSON and the log show them as escapes. Lines of the log are also cut.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io;

use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter};
use tracing_subscriber::fmt::MakeWriter;

use crate::bounded;

/// True if a character controls the terminal or is invisible: C0 and C1 controls (ECMA-48), bidirectional formatting
/// (UAX #9), zero-width and other invisible format characters, line and paragraph separators, and noncharacters.
pub(crate) fn is_unprintable(c: char) -> bool {
    matches!(c,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}'
        | '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}' | '\u{fdd0}'..='\u{fdef}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}'
    ) || u32::from(c) & 0xfffe == 0xfffe
}

/// Escapes every unprintable character, including line ends (`\n`, `\u{202e}`), so that the text stays one line.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    escaped(text, is_unprintable)
}

/// Escapes every unprintable character except line ends, for text that the hub composed.
pub(crate) fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c != '\n' && is_unprintable(c))
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// Writes JSON whose strings hold no unprintable character: each becomes `\uXXXX`, or a surrogate pair outside the basic
/// plane. Any JSON parser returns the original text.
pub(crate) struct PrintableJson<F>(F);

impl PrintableJson<CompactFormatter> {
    pub(crate) fn compact() -> Self {
        Self(CompactFormatter)
    }
}

impl PrintableJson<PrettyFormatter<'static>> {
    pub(crate) fn pretty() -> Self {
        Self(PrettyFormatter::new())
    }
}

impl<F: Formatter> Formatter for PrintableJson<F> {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        writer.write_all(json_escaped(fragment).as_bytes())
    }

    // The inner formatter decides the layout.
    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_array(writer)
    }
    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array(writer)
    }
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(writer, first)
    }
    fn end_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array_value(writer)
    }
    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }
    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }
    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }
    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }
    fn end_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
    /// Writes a [`RawValue`](serde_json::value::RawValue): outside its strings it is ASCII, and its white space stays.
    fn write_raw_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        writer.write_all(json_text(fragment).as_bytes())
    }
}

/// Escapes the content of a JSON string that is valid JSON already.
fn json_escaped(text: &str) -> Cow<'_, str> {
    escape_for_json(text, is_unprintable)
}

/// Escapes a whole JSON text; white space between its tokens stays.
pub(crate) fn json_text(text: &str) -> Cow<'_, str> {
    escape_for_json(text, |c| !matches!(c, '\n' | '\r' | '\t') && is_unprintable(c))
}

fn escape_for_json(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(safe, "\\u{unit:04x}").expect("writing to memory does not fail");
            }
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// The format of log lines, which decides how they are escaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogText {
    /// For people. The formatter's colours (SGR, `ESC [ … m`) stay; the formatter escapes ESC in values.
    Text,
    Json,
}

impl LogText {
    /// Escapes and cuts one record from the log's formatter; its final line end stays.
    pub(crate) fn escape(self, record: &str) -> Cow<'_, str> {
        let (body, end) = record.strip_suffix('\n').map_or((record, ""), |body| (body, "\n"));
        let safe = match self {
            Self::Json => bounded::json_line(json_text(body)),
            Self::Text => bounded::text_line(without_colours(body)),
        };
        match safe {
            Cow::Borrowed(_) => Cow::Borrowed(record),
            Cow::Owned(safe) => Cow::Owned(safe + end),
        }
    }
}

/// Escapes everything except colours.
fn without_colours(text: &str) -> Cow<'_, str> {
    if !text.contains('\u{1b}') {
        return line(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(at) = rest.find('\u{1b}') {
        safe.push_str(&line(&rest[..at]));
        let length = colour(&rest[at..]);
        if length == 0 {
            safe.push_str("\\u{1b}");
            rest = &rest[at + 1..];
        } else {
            safe.push_str(&rest[at..at + length]);
            rest = &rest[at + length..];
        }
    }
    safe.push_str(&line(rest));
    Cow::Owned(safe)
}

/// The length of the colour sequence at the beginning of a text; 0 if there is none.
fn colour(text: &str) -> usize {
    let Some(parameters) = text.strip_prefix("\u{1b}[") else { return 0 };
    let digits = parameters.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b';').count();
    if digits <= 16 && parameters.as_bytes().get(digits) == Some(&b'm') { digits + 3 } else { 0 }
}

/// Wraps the log's writers so that they escape and cut each record.
#[derive(Debug, Clone)]
pub(crate) struct EscapedLog<M> {
    inner: M,
    text: LogText,
}

impl<M> EscapedLog<M> {
    pub(crate) fn new(inner: M, text: LogText) -> Self {
        Self { inner, text }
    }
}

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for EscapedLog<M> {
    type Writer = EscapedWriter<M::Writer>;
    fn make_writer(&'a self) -> Self::Writer {
        EscapedWriter { inner: self.inner.make_writer(), text: self.text }
    }
    fn make_writer_for(&'a self, meta: &tracing::Metadata<'_>) -> Self::Writer {
        EscapedWriter { inner: self.inner.make_writer_for(meta), text: self.text }
    }
}

/// Escapes and cuts each record. The log's formatter passes a whole record with each write.
#[derive(Debug)]
pub(crate) struct EscapedWriter<W> {
    inner: W,
    text: LogText,
}

impl<W: io::Write> io::Write for EscapedWriter<W> {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(record);
        self.inner.write_all(self.text.escape(&text).as_bytes())?;
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
pub(crate) mod kept;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Serialize as _;

    use super::*;

    /// One character of each kind that changes what a terminal shows.
    const HOSTILE: [char; 20] = [
        '\0',
        '\u{7}',
        '\u{8}',
        '\t',
        '\n',
        '\r',
        '\u{1b}',
        '\u{7f}',
        '\u{85}',
        '\u{9b}',
        '\u{ad}',
        '\u{61c}',
        '\u{200b}',
        '\u{200f}',
        '\u{2028}',
        '\u{202e}',
        '\u{2066}',
        '\u{feff}',
        '\u{e0041}',
        '\u{10ffff}',
    ];

    fn pretty(value: &serde_json::Value) -> String {
        let mut out = Vec::new();
        value
            .serialize(&mut serde_json::Serializer::with_formatter(&mut out, PrintableJson::pretty()))
            .expect("to memory");
        String::from_utf8(out).expect("JSON is UTF-8")
    }

    #[test]
    fn each_hostile_character_is_escaped_and_common_text_is_not() {
        for c in HOSTILE {
            let text = format!("a{c}b");
            assert!(!line(&text).contains(c), "{c:?}");
            assert!(!pretty(&serde_json::json!({ &text: [&text] })).contains(&text), "{c:?}");
            if c != '\n' {
                assert!(!lines(&text).contains(c), "{c:?}");
            }
            let record = format!("{text}\n");
            for kind in [LogText::Text, LogText::Json] {
                // White space between JSON tokens is outside strings.
                if kind == LogText::Text || !matches!(c, '\n' | '\r' | '\t') {
                    assert!(!kind.escape(&record).trim_end_matches('\n').contains(c), "{c:?} {kind:?}");
                }
            }
        }
        let common = "Zoë, 日本語, עברית, العربية, 👍, \"q\" \\ '";
        assert_eq!(line(common), common);
        assert_eq!(LogText::Text.escape(common), common);
    }

    #[test]
    fn colours_of_the_log_stay_and_other_sequences_do_not() {
        let record = "\u{1b}[2m12:00\u{1b}[0m \u{1b}[33m WARN\u{1b}[0m id=\u{1b}]0;owned\u{7} \u{1b}[2Jx\n";
        assert_eq!(
            LogText::Text.escape(record),
            "\u{1b}[2m12:00\u{1b}[0m \u{1b}[33m WARN\u{1b}[0m id=\\u{1b}]0;owned\\u{7} \\u{1b}[2Jx\n"
        );
        assert_eq!(LogText::Text.escape("a\nb\n"), "a\\nb\n", "one record is one line");
    }

    proptest! {
        #[test]
        fn json_reads_back_as_it_was(text in any::<String>(), hostile in prop::sample::select(&HOSTILE[..])) {
            let value = serde_json::json!({"key": format!("{text}{hostile}"), &text: [1.5, null, {}, []]});
            let written = pretty(&value);
            prop_assert!(!written.chars().any(|c| c != '\n' && is_unprintable(c)));
            prop_assert_eq!(&serde_json::from_str::<serde_json::Value>(&written).unwrap(), &value);
            let compact = serde_json::to_string(&value).unwrap();
            let logged = LogText::Json.escape(&compact);
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&logged).unwrap(), value);
        }

        #[test]
        fn a_line_holds_nothing_unprintable(text in any::<String>()) {
            prop_assert!(!line(&text).chars().any(is_unprintable));
        }
    }
}
