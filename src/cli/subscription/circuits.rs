//! `hub subscription show`: the circuits and the hold.

use serde_json::{Value, json};

use crate::cli::error::CliError;
use crate::cli::output::{Printer, cell, time};
use crate::management::circuits::{CircuitRow, CircuitState};

/// Prints only the circuits.
pub(super) fn print(rows: &[CircuitRow], printer: Printer) -> Result<(), CliError> {
    if printer.is_json() {
        return printer.json(&rows);
    }
    let shown = |at: Option<_>| at.map_or_else(|| "-".to_owned(), time);
    let cells = rows.iter().map(|row| {
        vec![
            row.domain.clone(),
            row.state.as_str().to_owned(),
            shown(row.since),
            shown(row.next_probe),
            shown(row.hold.as_ref().map(|hold| hold.until)),
            row.waiting.to_string(),
            cell(reason(row).unwrap_or("-"), 80),
        ]
    });
    printer.table(&["DOMAIN", "CIRCUIT", "SINCE", "NEXT PROBE", "HELD UNTIL", "WAITING", "LAST ERROR"], cells)
}

/// Why nothing, or only a probe, is sent.
fn reason(row: &CircuitRow) -> Option<&str> {
    let held = row.hold.as_ref().map(|hold| hold.reason.as_str());
    row.last_error.as_deref().or(held)
}

/// Adds the circuits that are not closed, and the hold, to the fields of a subscription.
pub(super) fn add(shown: &mut Value, rows: &[CircuitRow]) {
    for row in rows.iter().filter(|row| row.state != CircuitState::Closed) {
        shown["circuit"][&row.domain] = json!({
            "state": row.state,
            "since": row.since.map(time),
            "next_probe": row.next_probe.map(time),
            "last_error": row.last_error,
            "waiting": row.waiting,
        });
    }
    if let Some(hold) = rows.first().and_then(|row| row.hold.as_ref()) {
        shown["hold"] = json!({
            "since": time(hold.since),
            "until": time(hold.until),
            "reason": hold.reason,
        });
    }
}
