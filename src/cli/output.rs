//! Output of commands on standard output: tables for people, JSON for programs.

use std::io::{self, BufWriter, IsTerminal as _, StdoutLock, Write};
use std::time::Duration;

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::error::CliError;
use crate::bounded;
use crate::printable::{self, PrintableJson};
use crate::queued_writer;

/// The value of `--output`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// Tables and sentences, for people
    #[default]
    Table,
    /// JSON, for programs
    Json,
}

/// Prints the result of a command in the selected format.
#[derive(Debug, Clone, Copy)]
pub(super) struct Printer {
    format: Format,
}

impl Printer {
    pub(super) fn new(format: Format) -> Self {
        Self { format }
    }

    pub(super) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Prints one line; line ends in quoted text are escaped.
    pub(super) fn line(self, text: &str) -> Result<(), CliError> {
        unless_closed(writeln!(io::stdout().lock(), "{}", printable::line(text)))
    }

    /// Prints several lines.
    pub(super) fn lines(self, text: &str) -> Result<(), CliError> {
        unless_closed(writeln!(io::stdout().lock(), "{}", printable::lines(text)))
    }

    pub(super) fn json(self, value: &impl Serialize) -> Result<(), CliError> {
        let mut out = BufWriter::new(io::stdout().lock());
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, PrintableJson::pretty());
        let written = value.serialize(&mut serializer).map_err(io::Error::from);
        unless_closed(written.and_then(|()| writeln!(out)).and_then(|()| out.flush()))
    }

    /// Prints aligned columns without borders. Rows are not wrapped, so that `grep` and `awk` work.
    pub(super) fn table(
        self,
        head: &[&str],
        rows: impl IntoIterator<Item = Vec<String>>,
    ) -> Result<(), CliError> {
        unless_closed(write_table(head, rows))
    }

    /// Prints one page of many. A closed pipe is an error here, so that no further page is read.
    pub(super) fn page(
        self,
        head: &[&str],
        rows: impl IntoIterator<Item = Vec<String>>,
    ) -> Result<(), CliError> {
        write_table(head, rows).map_err(CliError::Output)
    }

    /// Prints all fields of a value, such as `delivery.auth.type  bearer`.
    pub(super) fn fields(self, value: &Value) -> Result<(), CliError> {
        let mut rows = Vec::new();
        flatten(String::new(), value, &mut rows);
        self.table(&["FIELD", "VALUE"], rows)
    }
}

/// Ignores a closed pipe: the reader has read enough (`hub domain list | head -1`). The command still finishes, with its
/// normal exit code.
fn unless_closed(written: io::Result<()>) -> Result<(), CliError> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(CliError::Output),
    }
}

fn write_table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> io::Result<()> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(head.to_vec());
    table.add_rows(
        rows.into_iter()
            .map(|row| row.into_iter().map(|cell| printable::line(&cell).into_owned()).collect::<Vec<_>>()),
    );
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut out = BufWriter::new(io::stdout().lock());
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    out.flush()
}

fn flatten(path: String, value: &Value, rows: &mut Vec<Vec<String>>) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, inner) in members {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(path, inner, rows);
            }
        }
        Value::Null => rows.push(vec![path, "-".to_owned()]),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            let texts: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            rows.push(vec![path, texts.join(" ")]);
        }
        Value::String(text) => rows.push(vec![path, text.clone()]),
        other => rows.push(vec![path, other.to_string()]),
    }
}

/// Writes a JSON array element by element, one per line. If an error ends it, standard output has nothing, or the array of
/// the elements before.
pub(super) struct JsonArray {
    out: BufWriter<StdoutLock<'static>>,
    empty: bool,
}

impl Drop for JsonArray {
    fn drop(&mut self) {
        if !self.empty {
            // The reader may be gone.
            let _ = self.out.write_all(b"\n]\n").and_then(|()| self.out.flush());
        }
    }
}

impl JsonArray {
    pub(super) fn begin() -> Self {
        Self { out: BufWriter::new(io::stdout().lock()), empty: true }
    }

    pub(super) fn push(&mut self, element: &impl Serialize) -> Result<(), CliError> {
        let separator: &[u8] = if self.empty { b"[\n" } else { b",\n" };
        self.empty = false;
        self.out.write_all(separator).map_err(CliError::Output)?;
        let mut serializer = serde_json::Serializer::with_formatter(&mut self.out, PrintableJson::compact());
        element.serialize(&mut serializer).map_err(|error| CliError::Output(error.into()))
    }

    pub(super) fn end(mut self) -> Result<(), CliError> {
        let end: &[u8] = if self.empty { b"[]\n" } else { b"\n]\n" };
        self.empty = true;
        self.out.write_all(end).and_then(|()| self.out.flush()).map_err(CliError::Output)
    }
}

/// Prints a warning to standard error.
pub(super) fn warn(text: &str) {
    note(&format!("warning: {text}"));
}

/// Prints a line to standard error, in order with the lines of the log.
pub(super) fn note(text: &str) {
    queued_writer::stderr().put(format!("{}\n", printable::lines(text)));
}

/// Prints a question to standard error, and waits until it is written.
pub(super) fn prompt(text: &str) {
    queued_writer::stderr().put(printable::lines(text).into_owned());
    queued_writer::stderr().flush(queued_writer::FLUSH_LIMIT);
}

/// Prints the parser's usage error, cut, with characters that control a terminal escaped.
pub(super) fn usage_error(text: &str) {
    let text = bounded::middle(text, bounded::MAX_ERROR_BYTES);
    queued_writer::stderr().put(printable::lines(&text).into_owned());
    queued_writer::stderr().flush(queued_writer::FLUSH_LIMIT);
}

/// A progress bar on standard error, if it is a terminal.
pub(super) fn progress(total: usize, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(total as u64).with_message(what);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {per_sec}")
        .expect("the template is constant and names known keys");
    bar.set_style(style);
    bar
}

/// A progress display for an unknown total.
pub(super) fn spinner(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(what);
    let style = ProgressStyle::with_template("{spinner} {msg} {human_pos}")
        .expect("the template is constant and names known keys");
    bar.set_style(style);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Asks for confirmation before a change that cannot be undone. Without a terminal, `--yes` is required.
pub(super) fn confirm(question: &str, yes: bool) -> Result<bool, CliError> {
    if yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(CliError::Usage(format!("{question} This cannot be undone; confirm with --yes")));
    }
    prompt(&format!("{question} [y/N] "));
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(CliError::Stdin)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Formats a text for a table cell: one line, cut to `width` characters if standard output is a terminal.
pub(super) fn cell(text: &str, width: usize) -> String {
    let line: String = text.chars().map(|c| if c.is_ascii_whitespace() { ' ' } else { c }).collect();
    let line = printable::line(&line);
    if line.chars().count() <= width || !io::stdout().is_terminal() {
        return line.into_owned();
    }
    line.chars().take(width.saturating_sub(1)).chain(std::iter::once('…')).collect()
}

/// A text for a table cell; `-` for an empty one, so that the columns remain countable.
pub(super) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// Formats a time by RFC 3339, to the second, in UTC.
pub(super) fn time(at: OffsetDateTime) -> String {
    let at = at.checked_to_offset(time::UtcOffset::UTC).unwrap_or(at).replace_nanosecond(0).unwrap_or(at);
    at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}
