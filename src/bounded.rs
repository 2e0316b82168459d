//! Cuts text for the log and for errors. Publishers, endpoints and databases choose much of that text, and may choose
//! megabytes of it.
//!
//! One value has at most [`MAX_VALUE_BYTES`], and a whole line at most [`MAX_LINE_BYTES`], whichever library writes it.
//! What is cut ends with `… (<n> bytes left out)`.

use std::borrow::Cow;
use std::error::Error;
use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::{RecordFields, VisitOutput as _};
use tracing_subscriber::fmt::format::{DefaultVisitor, FormatFields, Writer};

use crate::printable::is_unprintable;

/// Maximum size of one value of a log line, in bytes.
pub(crate) const MAX_VALUE_BYTES: usize = 2_000;
/// Maximum size of a log line, in bytes, with its line end.
pub(crate) const MAX_LINE_BYTES: usize = 16 * 1024;
/// Maximum size of an error that a command or the API shows, in bytes.
pub(crate) const MAX_ERROR_BYTES: usize = 8_000;
/// The one field that may have [`BACKTRACE_FACTOR`] times as many bytes: the hub itself composes it.
const BACKTRACE: &str = "backtrace";
const BACKTRACE_FACTOR: usize = 5;
/// Size of values at which a JSON line is not cut further. A line has at most 32 fields.
const LEAST_VALUE_BYTES: usize = 64;
/// Room for the note about what was left out.
const NOTE_BYTES: usize = 48;

fn most_bytes(field: &str) -> usize {
    if field == BACKTRACE { BACKTRACE_FACTOR * MAX_VALUE_BYTES } else { MAX_VALUE_BYTES }
}

/// A text whose middle is left out if it is longer than `most` bytes: an error begins with what failed, and ends with
/// the remedy.
pub(crate) fn middle(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let room = most.saturating_sub(NOTE_BYTES);
    let head = &text[..text.floor_char_boundary(room - room / 4)];
    let tail = &text[text.ceil_char_boundary(text.len() - room / 4)..];
    let left_out = text.len() - head.len() - tail.len();
    Cow::Owned(format!("{head}… ({left_out} bytes left out) …{tail}"))
}

/// Writes the fields of text lines as [`DefaultVisitor`] does, each value cut and escaped. A value is never in memory as
/// a whole.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BoundedFields;

impl<'writer> FormatFields<'writer> for BoundedFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = BoundedVisitor(DefaultVisitor::new(writer, true));
        fields.record(&mut visitor);
        visitor.0.finish()
    }
}

struct BoundedVisitor<'a>(DefaultVisitor<'a>);

impl Visit for BoundedVisitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.record_debug(field, &format_args!("{value}"));
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.record_debug(field, &Bounded { value, most: most_bytes(field.name()) });
    }
}

/// A value that is cut when it is formatted with `{:?}`.
struct Bounded<'a> {
    value: &'a dyn fmt::Debug,
    most: usize,
}

impl fmt::Debug for Bounded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cutter = Cutter { out: f, room: self.most, left_out: 0, first: None, last: None };
        write!(cutter, "{:?}", self.value)?;
        cutter.finish()
    }
}

/// Writes text until its room is used up, and then counts.
struct Cutter<'a, W> {
    out: &'a mut W,
    room: usize,
    left_out: usize,
    first: Option<char>,
    last: Option<char>,
}

impl<W: fmt::Write> fmt::Write for Cutter<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.first = self.first.or_else(|| text.chars().next());
        self.last = text.chars().next_back().or(self.last);
        if self.left_out > 0 {
            self.left_out += text.len();
            return Ok(());
        }
        let mut from = 0;
        for (at, c) in text.char_indices() {
            let is_escaped = is_unprintable(c);
            let size = if is_escaped { c.escape_default().len() } else { c.len_utf8() };
            if size > self.room {
                self.left_out = text.len() - at;
                return self.out.write_str(&text[from..at]);
            }
            self.room -= size;
            if is_escaped {
                self.out.write_str(&text[from..at])?;
                write!(self.out, "{}", c.escape_default())?;
                from = at + c.len_utf8();
            }
        }
        self.out.write_str(&text[from..])
    }
}

impl<W: fmt::Write> Cutter<'_, W> {
    fn finish(self) -> fmt::Result {
        if self.left_out == 0 {
            return Ok(());
        }
        // A quoted text keeps its closing quote.
        let quote = if self.first == Some('"') && self.last == Some('"') { "\"" } else { "" };
        match self.left_out - quote.len() {
            0 => self.out.write_str(quote),
            left_out => write!(self.out, "… ({left_out} bytes left out){quote}"),
        }
    }
}

/// A text line without its line end, cut at the end.
pub(crate) fn text_line(line: Cow<'_, str>) -> Cow<'_, str> {
    if line.len() < MAX_LINE_BYTES {
        return line;
    }
    let mut end = line.floor_char_boundary(MAX_LINE_BYTES - NOTE_BYTES);
    // Not in the middle of a colour.
    if let Some(at) = line[..end].rfind('\u{1b}')
        && !line[at..end].contains('m')
    {
        end = at;
    }
    let reset = if line[..end].contains('\u{1b}') { "\u{1b}[0m" } else { "" };
    Cow::Owned(format!("{}{reset}… ({} bytes left out)", &line[..end], line.len() - end))
}

/// A JSON line without its line end: each of its strings is cut, and all of them further if the line is still too long.
/// Its numbers of bytes count the text as it is in JSON, with escapes.
pub(crate) fn json_line(line: Cow<'_, str>) -> Cow<'_, str> {
    if line.len() <= MAX_VALUE_BYTES {
        return line;
    }
    let mut most = MAX_VALUE_BYTES;
    loop {
        let cut = with_strings_cut(&line, most);
        if cut.len() < MAX_LINE_BYTES || most <= LEAST_VALUE_BYTES {
            return Cow::Owned(cut);
        }
        most /= 2;
    }
}

fn with_strings_cut(json: &str, most: usize) -> String {
    let mut cut = String::with_capacity(json.len().min(MAX_LINE_BYTES));
    let (mut rest, mut key) = (json, "");
    while let Some(at) = rest.find('"') {
        let (before, string) = rest.split_at(at + 1);
        cut.push_str(before);
        let (text, after) = string.split_at(up_to(string, usize::MAX));
        let most = if key == BACKTRACE { BACKTRACE_FACTOR * most } else { most };
        let kept = &text[..up_to(text, most)];
        cut.push_str(kept);
        if kept.len() < text.len() {
            let left_out = text.len() - kept.len();
            write!(cut, "… ({left_out} bytes left out)").expect("writing to memory does not fail");
        }
        rest = after;
        if let Some(after) = rest.strip_prefix('"') {
            cut.push('"');
            rest = after;
        }
        key = if rest.starts_with(':') { text } else { "" };
    }
    cut.push_str(rest);
    cut
}

/// Length of the part of a JSON string's content that ends before its closing quote, and with a whole character at or
/// before `most` bytes.
fn up_to(content: &str, most: usize) -> usize {
    let mut end = 0;
    while let Some(c) = content[end..].chars().next().filter(|c| *c != '"') {
        let size = match c {
            '\\' => escape(&content[end..]),
            c => c.len_utf8(),
        };
        if end + size > most {
            break;
        }
        end += size;
    }
    end
}

/// Length of the escape that a text begins with; the two halves of a surrogate pair are one.
fn escape(text: &str) -> usize {
    let is_high =
        |hex: &str| matches!(hex.as_bytes(), [b'd' | b'D', b'8' | b'9' | b'a' | b'b' | b'A' | b'B']);
    let size = match text.as_bytes().get(1) {
        Some(b'u') if text.get(2..4).is_some_and(is_high) && text.get(6..8) == Some("\\u") => 12,
        Some(b'u') => 6,
        _ => 2,
    };
    // Only a text that is not JSON ends before; it must not cause a panic.
    text.floor_char_boundary(size)
}

#[cfg(test)]
mod tests;
