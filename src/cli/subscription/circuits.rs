//! `hub subscription show`: the circuits.

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
            row.waiting.to_string(),
            cell(row.last_error.as_deref().unwrap_or("-"), 80),
        ]
    });
    printer.table(&["DOMAIN", "CIRCUIT", "SINCE", "NEXT PROBE", "WAITING", "LAST ERROR"], cells)
}

/// Adds the circuits that are not closed to the fields of a subscription.
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
}
