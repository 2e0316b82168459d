//! `hub subscription rotate-secret`: a new signing secret, and an overlap in which both sign.

use std::time::Duration;

use secrecy::ExposeSecret as _;
use serde_json::json;
use time::OffsetDateTime;

use super::{conflict, find};
use crate::cli::connect;
use crate::cli::error::{Answer, CliError};
use crate::cli::output::{Printer, time};
use crate::domain::subscription::{Secret, Signing, SubscriptionId};
use crate::http_delivery::signature::{Algorithm, NewSecret};
use crate::seal::{Sealer, open_subscription, seal_subscription};
use crate::settings::Settings;

const LONGEST_OVERLAP: Duration = Duration::from_secs(365 * 24 * 3600);

/// `--algorithm`
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// HMAC-SHA256: the receiver has the same secret (whsec_)
    Hmac,
    /// ed25519: the receiver has the public key (whpk_)
    Ed25519,
}

/// `--overlap`
pub(super) fn overlap(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(overlap) if overlap <= LONGEST_OVERLAP => Ok(overlap),
        _ => Err("write a number and a unit up to 365d, such as 24h".to_owned()),
    }
}

pub(super) async fn run(
    id: &SubscriptionId,
    overlap: Duration,
    kind: Option<Kind>,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    let no_key = || CliError::NoMasterKey { subscriptions: id.to_string(), hint: String::new() };
    let sealer = Sealer::from_settings(&settings.secrets)?.ok_or_else(no_key)?;
    let js = connect(settings).await?;
    let (revision, mut subscription) = find(&js, id).await?;

    let algorithm = match kind {
        Some(Kind::Hmac) => Algorithm::HmacSha256,
        Some(Kind::Ed25519) => Algorithm::Ed25519,
        None => {
            let mut opened = subscription.clone();
            open_subscription(&sealer, &mut opened)
                .map_err(|source| CliError::Sealed { id: id.to_string(), source })?;
            let before = opened.delivery.signing.map(|signing| signing.secret);
            match before {
                Some(Secret::Plain(secret)) => Algorithm::of(&secret).unwrap_or(Algorithm::HmacSha256),
                _ => Algorithm::HmacSha256,
            }
        }
    };
    let made = NewSecret::generate(algorithm);
    let new = Secret::Plain(made.secret.clone());
    let until = (!overlap.is_zero()).then(|| OffsetDateTime::now_utc() + overlap);
    let signing = match subscription.delivery.signing.take() {
        Some(signing) => signing.rotate(new, until),
        None => Signing { secret: new, previous: None },
    };
    let previous_until = signing.previous.as_ref().map(|previous| time(previous.until));
    subscription.delivery.signing = Some(signing);
    seal_subscription(&sealer, &mut subscription);
    js.put_subscription(&subscription, Some(revision)).await.map_err(|error| conflict(id, error))?;

    // Of an asymmetric pair the receiver needs the public key; the private one leaves no more.
    let (field, value) = match &made.public_key {
        Some(public) => ("public_key", public.as_str()),
        None => ("secret", made.secret.expose_secret()),
    };
    if printer.is_json() {
        printer.json(&json!({"id": id, field: value, "previous_until": previous_until}))?;
    } else {
        let before = match previous_until {
            Some(until) => format!("; the one before signs beside it until {until}"),
            None => String::new(),
        };
        printer.line(&format!("{id}: signs with a new secret{before}. It is shown only now:"))?;
        printer.line(value)?;
    }
    Ok(Answer::Yes)
}
