//! `hub dlt show`

use std::collections::HashSet;

use serde_json::{Value, json};

use super::select::{PAGE, Pages};
use crate::cli::connect;
use crate::cli::error::{Answer, CliError};
use crate::cli::output::Printer;
use crate::domain::envelope::Envelope;
use crate::domain::subscription::Subscription;
use crate::nats::{DeadLetterEntry, DeadLetterQuery, JetStream};
use crate::settings::Settings;

/// Most that is shown of a body that is no envelope.
const BODY_CHARACTERS: usize = 4096;

pub async fn run(id: &str, settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    let js = connect(settings).await?;
    let query = DeadLetterQuery { ids: HashSet::from([id.to_owned()]), ..DeadLetterQuery::default() };
    let domains = settings.domains.iter().map(|domain| domain.name.clone()).collect();
    let mut pages = Pages::new(&js, query, domains);
    // While a redrive fails again, its successor stands beside it for a moment: the newer one counts.
    let mut found = None;
    while let Some(page) = pages.next(PAGE).await? {
        found = page.into_iter().next_back();
    }
    let nothing = || {
        CliError::NothingMatched(format!(
            "there is no dead letter {id:?}: it was never there, was delivered, or was discarded; `hub dlt list` shows those that are there"
        ))
    };
    let entry = found.ok_or_else(nothing)?;
    let shown = describe(&js, &entry).await?.ok_or_else(nothing)?;
    if printer.is_json() {
        printer.json(&shown)?;
        return Ok(Answer::Yes);
    }
    let mut fields = shown;
    let event = fields.as_object_mut().and_then(|fields| fields.remove("event"));
    printer.fields(&fields)?;
    if let Some(event) = event.filter(|event| !event.is_null()) {
        printer.line("\nEVENT")?;
        printer.json(&event)?;
    }
    Ok(Answer::Yes)
}

/// The dead letter with its event and its delivery; `None` if it is gone by now.
async fn describe(js: &JetStream, entry: &DeadLetterEntry) -> Result<Option<Value>, CliError> {
    let letter = &entry.letter;
    let stream = js.names().dlt_stream(&letter.domain);
    let Some(message) = js.get(&stream, entry.sequence).await? else { return Ok(None) };
    let last_attempt = js.last_words(&letter.domain, &letter.subscription, &letter.id).await?;
    let mut shown = serde_json::to_value(entry).map_err(|error| CliError::Output(error.into()))?;
    shown["stream"] = json!(stream);
    shown["last_attempt"] = json!(last_attempt);
    match Envelope::read(&message.payload) {
        Ok(envelope) => {
            shown["traceparent"] = json!(envelope.traceparent);
            shown["event"] = serde_json::from_str(envelope.event.get()).unwrap_or(Value::Null);
            shown["delivery"] = hidden_delivery(&envelope);
        }
        Err(error) => {
            shown["event"] = Value::Null;
            shown["delivery"] = Value::Null;
            shown["undecodable"] = json!(error.to_string());
            let text = String::from_utf8_lossy(&message.payload);
            shown["body"] = json!(text.chars().take(BODY_CHARACTERS).collect::<String>());
        }
    }
    Ok(Some(shown))
}

/// The delivery as it was at the fan-out, with its secrets hidden; null if it cannot be read, for
/// then nothing can tell what in it is secret.
fn hidden_delivery(envelope: &Envelope<'_>) -> Value {
    let Ok(delivery) = serde_json::from_str::<Value>(envelope.delivery.get()) else { return Value::Null };
    let subscription = json!({"id": envelope.subscription, "events": [], "delivery": delivery});
    match serde_json::from_value::<Subscription>(subscription) {
        Ok(subscription) => subscription.hidden_json()["delivery"].take(),
        Err(_) => Value::Null,
    }
}
