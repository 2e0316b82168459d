//! `hub dlt replay --drain`: replays dead letters at the pace at which there is room, until none is left.

use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::cli::error::{Answer, CliError};
use crate::cli::manage;
use crate::cli::output::{Printer, spinner};
use crate::domain::words::counted;
use crate::management::dead_letter_drain::{DrainEnd, Drained, LeftLetters, Patience};
use crate::management::dead_letters::DeadLetterQuery;
use crate::serve::ServeError;
use crate::settings::Settings;
use crate::signals::Signals;

pub(super) async fn run(
    filter: &DeadLetterQuery,
    patience: Duration,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    let hub = manage(settings).await?;
    let mut signals = Signals::new().map_err(ServeError::Signals)?;
    let (stop, bar) = (CancellationToken::new(), spinner("replaying"));
    let so_far = Mutex::new(Drained::default());
    let report = |now: Drained| {
        bar.set_message(if now.is_waiting { "waiting for room" } else { "replaying" });
        bar.set_position(now.replayed);
        *so_far.lock().unwrap_or_else(PoisonError::into_inner) = now;
    };
    let ended = {
        let mut draining = pin!(hub.drain_dead_letters(filter, Patience(patience), &stop, report));
        tokio::select! {
            ended = &mut draining => Some(ended),
            () = signals.next() => {
                stop.cancel();
                // A second signal ends the process at once.
                tokio::select! {
                    ended = draining => Some(ended),
                    () = signals.next() => None,
                }
            }
        }
    };
    bar.finish_and_clear();
    let DrainEnd { drained, error } = match ended {
        Some(ended) => ended?,
        None => {
            let so_far = *so_far.lock().unwrap_or_else(PoisonError::into_inner);
            DrainEnd { drained: Drained { more_left: true, ..so_far }, error: None }
        }
    };
    // An error with which nothing was done and counted says it all.
    if error.is_none() || drained.replayed > 0 || drained.left != LeftLetters::default() {
        if printer.is_json() {
            printer.json(&json!(drained))?;
        } else {
            for line in summary(&drained).lines() {
                printer.line(line)?;
            }
        }
    }
    match error {
        Some(error) => Err(error.into()),
        None => Ok(if drained.can_continue() { Answer::No } else { Answer::Yes }),
    }
}

/// What was replayed, and what is left for which reason.
fn summary(drained: &Drained) -> String {
    let LeftLetters {
        already_replaying,
        removed,
        undecodable,
        failed_since,
        new_since,
        no_room,
        outbox_full,
        behind_untaken,
        interrupted,
    } = drained.left;
    let outbox_is_full = if drained.used_up > 0 {
        "without room, because envelopes that wait for room in the dead letters fill the outbox (raise limits.outbox or limits.dlt \
         with `hub provision`, or run `hub dlt discard`, and run the same command again)"
    } else {
        "without room, because the outbox is full (repair the endpoints with the largest backlogs, and run the same command again)"
    };
    let started = counted(usize::try_from(drained.replayed).unwrap_or(usize::MAX), "replay");
    let left: Vec<String> = [
        (failed_since, "failed after the start of the command (their endpoints still fail)"),
        (already_replaying, "already in progress (use --force without --drain if their envelopes are lost)"),
        (removed, "of removed subscriptions (use `hub dlt discard --reason removed`)"),
        (undecodable, "cannot be read (use `hub dlt discard --reason undecodable`)"),
        (no_room, "without room, because their endpoints do not keep up (repair them, and run the same command again)"),
        (outbox_full, outbox_is_full),
        (behind_untaken, "behind replays that are not yet taken (run the same command again)"),
        (new_since, "new: they had no room when they were published after the start (run the same command again)"),
        (interrupted, "not reached before the interruption (run the same command again)"),
        (
            drained.used_up,
            "envelopes that have used up their attempts and wait in the outbox for room in the dead letters (when there is room, \
             run the same command again)",
        ),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, why)| format!("\n  {count} {why}"))
    .chain(drained.more_left.then(|| "\n  others that were not counted (run the same command again)".to_owned()))
    .collect();
    let started = match drained.not_taken {
        0 => format!("{started} started"),
        count => format!(
            "{started} started, {count} of them not yet taken (check that a process has the role dlt-processor)"
        ),
    };
    if left.is_empty() {
        format!("{started}; no other dead letter is left")
    } else {
        format!("{started}; left:{}", left.concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_what_is_left_and_why() {
        let done = Drained { replayed: 1, ..Drained::default() };
        assert_eq!(summary(&done), "1 replay started; no other dead letter is left");
        let left = LeftLetters { removed: 2, no_room: 3, ..LeftLetters::default() };
        let text = summary(&Drained { replayed: 12, left, ..Drained::default() });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0] == "12 replays started; left:" && lines[1].starts_with("  2 of removed"), "{text}");
        assert!(lines[2].contains("run the same command again"), "{text}");
        let full = LeftLetters { outbox_full: 3, behind_untaken: 2, ..LeftLetters::default() };
        let text = summary(&Drained { left: full, ..Drained::default() });
        assert!(
            text.contains("\n  3 without room, because the outbox is full") && text.contains("\n  2 behind"),
            "{text}"
        );
        let filled = Drained { left: full, used_up: 7, ..Drained::default() };
        let text = summary(&filled);
        assert!(text.contains("\n  3 without room, because envelopes that wait for room"), "{text}");
        assert!(
            text.contains("\n  7 envelopes that have used up their attempts") && filled.can_continue(),
            "{text}"
        );
        let cut = Drained { replayed: 2, more_left: true, ..Drained::default() };
        assert!(summary(&cut).ends_with("others that were not counted (run the same command again)"));
        assert!(cut.can_continue() && !done.can_continue());
    }
}
