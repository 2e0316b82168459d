//! The output of the demo: headings, events and results, each with the time since the start.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use super::expectation::Unmet;

/// Writes readable lines, each with the time since the start.
pub(super) struct Narrator {
    started: Instant,
    out: Box<dyn Write + Send>,
    colour: bool,
}

#[derive(Clone, Copy)]
enum Colour {
    Green,
    Red,
    Bold,
    Dim,
}

impl Narrator {
    /// Writes to standard output, in colour on a terminal unless `NO_COLOR` (no-color.org) is set.
    pub(super) fn on_stdout() -> Self {
        let colour =
            std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
        Self::new(Box::new(crate::queued_writer::stdout().clone()), colour)
    }

    pub(super) fn new(out: Box<dyn Write + Send>, colour: bool) -> Self {
        Self { started: Instant::now(), out, colour }
    }

    /// The heading of the next step.
    pub(super) fn heading(&mut self, text: &str) {
        let text = self.paint(Colour::Bold, text);
        self.write(&format!("\n{text}\n"));
    }

    /// Something that happens during a step.
    pub(super) fn report(&mut self, text: &str) {
        let time = self.time();
        self.write(&format!("{time}        {text}\n"));
    }

    /// A check that holds.
    pub(super) fn confirm(&mut self, text: &str) {
        let (time, mark) = (self.time(), self.paint(Colour::Green, "ok"));
        self.write(&format!("{time}  {mark}    {text}\n"));
    }

    /// A check that does not hold.
    pub(super) fn failed(&mut self, unmet: &Unmet) {
        let (time, mark) = (self.time(), self.paint(Colour::Red, "FAILED"));
        let (expected, seen) = (&unmet.expected, &unmet.seen);
        self.write(&format!(
            "{time}  {mark}\n              expected: {expected}\n              seen:     {seen}\n"
        ));
    }

    /// Text, unchanged and without the time.
    pub(super) fn text(&mut self, text: &str) {
        self.write(&format!("{text}\n"));
    }

    fn time(&self) -> String {
        let text = format!("[{:7.3} s]", self.started.elapsed().as_secs_f64());
        self.paint(Colour::Dim, &text)
    }

    fn paint(&self, colour: Colour, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        // ECMA-48, "select graphic rendition".
        let code = match colour {
            Colour::Green => 32,
            Colour::Red => 31,
            Colour::Bold => 1,
            Colour::Dim => 2,
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    /// Ignores errors: the steps go on if the reader has closed the pipe.
    fn write(&mut self, text: &str) {
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }
}
