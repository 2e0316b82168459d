//! What a person reads, and the checks behind it: each is awaited with a deadline, and one that does
//! not hold says what was expected and what was seen.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Interval of polling the broker, which does not report changes of a stream's count.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A check that did not hold in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}; seen: {seen}")]
pub struct Unmet {
    pub expected: String,
    /// What the last look saw.
    pub seen: String,
}

impl Unmet {
    pub fn new(expected: impl Into<String>, seen: impl Into<String>) -> Self {
        Self { expected: expected.into(), seen: seen.into() }
    }
}

/// Looks until it sees what was expected: `look` gives it, or says what it saw instead.
///
/// # Errors
///
/// After `limit`, with what was seen last; a look that hangs ends then as well.
pub async fn until<T>(
    limit: Duration,
    expected: &str,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, Unmet> {
    let deadline = tokio::time::Instant::now() + limit;
    let mut last = None;
    loop {
        match tokio::time::timeout_at(deadline, look()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(seen)) => last = Some(seen),
            Err(_) => {
                let seen = last.map(|last| format!("{last}, then ")).unwrap_or_default();
                return Err(Unmet::new(expected, format!("{seen}no answer within {limit:?}")));
            }
        }
        if tokio::time::Instant::now() + LOOK_AGAIN >= deadline {
            let seen = last.unwrap_or_default();
            return Err(Unmet::new(expected, format!("{seen} (after {limit:?})")));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// A check of what is known already.
pub fn holds(condition: bool, expected: &str, seen: impl Display) -> Result<(), Unmet> {
    if condition { Ok(()) } else { Err(Unmet::new(expected, seen.to_string())) }
}

/// Writes for people, each line with the time since the start.
pub struct Teller {
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

impl Teller {
    /// On standard output; in colour on a terminal, unless `NO_COLOR` (no-color.org) is set.
    pub fn on_stdout() -> Self {
        let colour =
            std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
        Self::new(Box::new(crate::queued_writer::stdout().clone()), colour)
    }

    pub fn new(out: Box<dyn Write + Send>, colour: bool) -> Self {
        Self { started: Instant::now(), out, colour }
    }

    /// The headline of what comes next.
    pub fn heading(&mut self, text: &str) {
        let text = self.paint(Colour::Bold, text);
        self.write(&format!("\n{text}\n"));
    }

    /// Something that happens or was seen on the way.
    pub fn tell(&mut self, text: &str) {
        let time = self.time();
        self.write(&format!("{time}        {text}\n"));
    }

    /// A step that was seen to hold.
    pub fn held(&mut self, text: &str) {
        let (time, mark) = (self.time(), self.paint(Colour::Green, "ok"));
        self.write(&format!("{time}  {mark}    {text}\n"));
    }

    pub fn failed(&mut self, unmet: &Unmet) {
        let (time, mark) = (self.time(), self.paint(Colour::Red, "FAILED"));
        let (expected, seen) = (&unmet.expected, &unmet.seen);
        self.write(&format!(
            "{time}  {mark}\n              expected: {expected}\n              seen:     {seen}\n"
        ));
    }

    /// Text, unchanged.
    pub fn text(&mut self, text: &str) {
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

    /// Who closed the pipe does not want to read on; the steps are carried out all the same.
    fn write(&mut self, text: &str) {
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn a_look_that_sees_it_late_is_met() {
        let mut looks = 0;
        let found = until(Duration::from_secs(5), "three", async || {
            looks += 1;
            if looks == 3 { Ok("it") } else { Err(format!("{looks}")) }
        })
        .await;
        assert_eq!((found, looks), (Ok("it"), 3));
    }

    #[tokio::test]
    async fn what_never_holds_says_what_was_expected_and_seen() {
        let error = until(SHORT, "one dead letter", async || Err::<(), _>("0 dead letters".to_owned())).await;
        let error = error.unwrap_err();
        assert_eq!(error.expected, "one dead letter");
        assert!(error.seen.starts_with("0 dead letters (after"), "{error}");
    }

    #[tokio::test]
    async fn a_look_that_hangs_ends_at_the_deadline_with_what_was_seen_before() {
        let mut first = true;
        let error = until(SHORT, "an answer", async || {
            if !std::mem::take(&mut first) {
                std::future::pending::<()>().await;
            }
            Err::<(), _>("2 messages".to_owned())
        })
        .await
        .unwrap_err();
        assert_eq!(error.seen, "2 messages, then no answer within 200ms");
    }

    #[test]
    fn a_check_of_what_is_known_fails_where_it_does_not_hold() {
        assert_eq!(holds(true, "4 attempts", 4), Ok(()));
        assert_eq!(holds(false, "4 attempts", 3), Err(Unmet::new("4 attempts", "3")));
    }
}
