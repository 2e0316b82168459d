//! `hub dlt show`

use super::select::explain;
use crate::cli::error::{Answer, CliError};
use crate::cli::manage;
use crate::cli::output::Printer;
use crate::settings::Settings;

pub(super) async fn run(id: &str, settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    let details = manage(settings).await?.show_dead_letter(id, None).await.map_err(explain)?;
    let mut fields = serde_json::to_value(&details).map_err(|error| CliError::Output(error.into()))?;
    if printer.is_json() {
        printer.json(&fields)?;
        return Ok(Answer::Yes);
    }
    let event = fields.as_object_mut().and_then(|fields| fields.remove("event"));
    printer.fields(&fields)?;
    if let Some(event) = event.filter(|event| !event.is_null()) {
        printer.lines("\nEVENT")?;
        printer.json(&event)?;
    }
    Ok(Answer::Yes)
}
