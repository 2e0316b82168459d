//! `hub subscription match` and `hub subscription test`: what a sample event would lead to.

use std::collections::HashSet;

use clap::Args;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{find, id, list};
use crate::cli::error::{Answer, CliError};
use crate::cli::output::{Printer, warn};
use crate::cli::{categories, connect, key_and_value};
use crate::domain::envelope::envelope_id;
use crate::domain::event::{Event, Publication, Rejection};
use crate::domain::index::{Entry, SubscriptionIndex};
use crate::domain::key::{EventKey, KeyPattern};
use crate::domain::outcome::{Decision, decide, disables};
use crate::domain::subscription::{Auth, Delivery, SubscriptionId};
use crate::http_delivery::{Attempt, EnvelopeView, HttpDelivery, Sent, Target};
use crate::serve::{http_config, opener, retry_policy};
use crate::settings::Settings;

/// Where the sample of `test` comes from.
const SOURCE: &str = "hub-subscription-test";

#[derive(Debug, Args)]
pub struct MatchOptions {
    /// The event key, such as user.created
    key: EventKey,
    /// The event's tenant
    #[arg(long, default_value = "default")]
    tenant: String,
    /// The event's source
    #[arg(long, default_value = "nats")]
    source: String,
    /// A further attribute of the event that filters may ask for, such as subject=u1; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = key_and_value)]
    attribute: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub struct TestOptions {
    #[arg(value_parser = id)]
    id: SubscriptionId,
    /// The sample's event key; one that the subscription wants where not given
    #[arg(long, value_name = "KEY")]
    event: Option<EventKey>,
}

/// Says who would get such an event: the index and the filters of the fan-out itself.
pub(super) async fn matching(
    options: MatchOptions,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    let MatchOptions { key, tenant, source, attribute } = options;
    let event = sample(&key, &tenant, &source, &attribute)?;
    if categories(settings).domain_of(&key).is_none() {
        return Err(CliError::EventRejected(Rejection::no_domain(&key).detail));
    }
    let stored = connect(settings).await?.subscriptions().await?;
    let mut index = SubscriptionIndex::new();
    for one in &stored {
        match Entry::new(one.subscription.clone(), one.revision) {
            Ok(entry) => drop(index.insert(entry)),
            Err(error) => warn(&format!("{}: {error}", one.subscription.id)),
        }
    }
    let wanting: HashSet<SubscriptionId> =
        index.matching(&event).iter().map(|entry| entry.subscription.id.clone()).collect();
    let found: Vec<Value> = stored
        .iter()
        .filter(|one| wanting.contains(&one.subscription.id))
        .map(|one| one.subscription.hidden_json())
        .collect();
    if found.is_empty() && !printer.is_json() {
        printer.line(&format!("no active subscription of tenant {tenant} wants this {key}"))?;
    } else {
        list(&found, printer)?;
    }
    Ok(if found.is_empty() { Answer::No } else { Answer::Yes })
}

/// Sends one sample event to the endpoint, past the streams, and shows what was sent and what came
/// back. Nothing is retried, dead-lettered, or disabled.
pub(super) async fn test(
    options: TestOptions,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    let js = connect(settings).await?;
    let (_, subscription) = find(&js, &options.id).await?;
    let wanted = |key: &EventKey| subscription.events.iter().any(|pattern| pattern.matches(key));
    let key = match (options.event, subscription.events.first()) {
        (Some(key), _) => key,
        (None, Some(pattern)) => sample_key(pattern)?,
        (None, None) => return Err(CliError::Usage("it wants no events: name one with --event".to_owned())),
    };
    if !wanted(&key) {
        warn(&format!("{} does not want {key}; it is sent all the same", subscription.id));
    }
    let event = sample(&key, &subscription.tenant, SOURCE, &[])?;
    let delivery = &subscription.delivery;
    let opener = opener(settings)?;
    let (sent, attempt) = match Target::prepare(subscription.id.as_str(), delivery, &*opener) {
        Ok(target) => {
            let envelope = envelope_id(&event, &subscription.id);
            let body = event.to_cloudevent().get().to_owned().into();
            let view = EnvelopeView { id: &envelope, event: body, traceparent: None };
            HttpDelivery::new(http_config(settings)).attempt_and_tell(&target, &view, 1).await
        }
        Err(failure) => (None, Attempt::failed(failure)),
    };
    let decision = decide(&attempt.outcome, 1, &retry_policy(settings), &delivery.statuses, 0.5);
    let failed = decision != Decision::Ack;
    let shown = json!({
        "subscription": subscription.id,
        "event_key": key,
        "request": sent.map(|sent| request(delivery, sent)),
        "answer": {
            "status": attempt.outcome.status(),
            "latency_ms": u64::try_from(attempt.latency.as_millis()).unwrap_or(u64::MAX),
            "error": failed.then(|| attempt.error_text()),
            "fault": failed.then(|| attempt.outcome.fault().as_str()),
            "body": attempt.answer_excerpt,
        },
        "a_delivery_would": match decision {
            Decision::Ack => "be done",
            Decision::Retry { .. } => "be tried again",
            Decision::DeadLetter { .. } if disables(&attempt.outcome, &delivery.statuses) =>
                "be dead-lettered, and the subscription disabled",
            Decision::DeadLetter { .. } => "be dead-lettered",
        },
    });
    if printer.is_json() {
        printer.json(&shown)?
    } else {
        printer.fields(&shown)?
    }
    Ok(if failed { Answer::No } else { Answer::Yes })
}

fn sample(
    key: &EventKey,
    tenant: &str,
    source: &str,
    attributes: &[(String, String)],
) -> Result<Event, CliError> {
    let unique = format!("test-{:016x}", rand::random::<u64>());
    let mut headers: Vec<(String, String)> = [
        ("ce-specversion", "1.0"),
        ("ce-id", &unique),
        ("ce-source", source),
        ("ce-type", key.as_str()),
        ("ce-tenant", tenant),
        ("content-type", "application/json"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    for (name, value) in attributes {
        let header = format!("ce-{name}");
        // The last of two headers of one name would be refused as a second one.
        headers.retain(|(known, _)| *known != header);
        headers.push((header, value.clone()));
    }
    let headers: Vec<(&str, &str)> =
        headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let publication = Publication {
        subject_tail: key.as_str(),
        headers: &headers,
        body: br#"{"test":true}"#,
        stream: "",
        sequence: 0,
        time: OffsetDateTime::now_utc(),
        max_size: usize::MAX,
    };
    publication.decode().map_err(|rejection| CliError::Usage(rejection.detail))
}

/// A key that a pattern matches: `user.*` gives `user.test`.
fn sample_key(pattern: &KeyPattern) -> Result<EventKey, CliError> {
    let tokens: Vec<&str> =
        pattern.tokens().map(|token| if matches!(token, "*" | ">") { "test" } else { token }).collect();
    let mut text = tokens.join(".");
    if tokens.len() < 2 {
        text.push_str(".test");
    }
    text.parse().map_err(|error| CliError::Usage(format!("{error}; name an event key with --event")))
}

/// What was sent, without its secrets.
fn request(delivery: &Delivery, sent: Sent) -> Value {
    let mut url = delivery.url.clone();
    if let Auth::ApiKey { query: Some(name), .. } = &delivery.auth {
        url.query_pairs_mut().append_pair(name, "***");
    }
    let headers: serde_json::Map<String, Value> =
        sent.headers.into_iter().map(|(name, value)| (name, Value::String(value))).collect();
    json!({
        "method": "POST",
        "url": url,
        "headers": headers,
        "body": String::from_utf8_lossy(&sent.body),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_key_is_one_that_the_pattern_matches() {
        for text in ["user.created", "user.*", "policy.>", "*.created", ">"] {
            let pattern: KeyPattern = text.parse().unwrap();
            let key = sample_key(&pattern).unwrap();
            assert!(pattern.matches(&key), "{text}: {key}");
        }
    }
}
