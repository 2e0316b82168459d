//! `hub subscription rotate-secret`: creates a new signing secret, with an overlap in which both secrets sign.

use std::time::Duration;

use secrecy::ExposeSecret as _;
use serde_json::json;

use super::{Name, find, shown};
use crate::cli::error::{Answer, CliError};
use crate::cli::manage_sealed;
use crate::cli::output::{Printer, time, warn};
use crate::http_delivery::signature::Algorithm;
use crate::management::{LONGEST_OVERLAP, PreviousSecret, VerificationKey};
use crate::settings::Settings;

/// The value of `--algorithm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum AlgorithmName {
    /// HMAC-SHA256: the receiver has the same secret (whsec_)
    Hmac,
    /// ed25519: the receiver has the public key (whpk_)
    Ed25519,
}

/// Parses `--overlap`.
pub(super) fn overlap(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(overlap) if overlap <= LONGEST_OVERLAP => Ok(overlap),
        _ => Err("must be a duration up to 365d, such as 24h".to_owned()),
    }
}

pub(super) async fn run(
    name: &Name,
    secrets: PreviousSecret,
    kind: Option<AlgorithmName>,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    let management = manage_sealed(settings).await?;
    let stored = find(&management, name).await?;
    let (id, tenant) = (stored.subscription.id.clone(), stored.subscription.tenant.clone());
    let shown = shown(&stored);
    let algorithm = kind.map(|kind| match kind {
        AlgorithmName::Hmac => Algorithm::HmacSha256,
        AlgorithmName::Ed25519 => Algorithm::Ed25519,
    });
    let rotated = management.rotate_secret(stored, secrets, algorithm).await?;
    let previous_until = rotated.previous_until.map(time);
    if let Some(until) = rotated.ended_before.map(time) {
        warn(&format!(
            "{shown}: second rotation within an overlap. The oldest secret would have signed until {until}, and has stopped \
             signing: a receiver that still verifies with it now refuses deliveries. If the new secret was lost, rotate with \
             --replace"
        ));
    }
    let (field, value) = match &rotated.verify_with {
        VerificationKey::PublicKey(public) => ("public_key", public.as_str()),
        VerificationKey::Secret(secret) => ("secret", secret.expose_secret()),
    };
    if printer.is_json() {
        let mut shown = json!({"id": id, "tenant": tenant, field: value, "previous_until": previous_until});
        if let Some(until) = rotated.ended_before {
            shown["ended_before"] = time(until).into();
        }
        printer.json(&shown)?;
    } else {
        let before = match previous_until {
            Some(until) => format!("; the previous secret also signs until {until}"),
            None => String::new(),
        };
        printer.line(&format!("{shown}: signs with a new secret{before}. It is shown only once:"))?;
        printer.line(value)?;
    }
    Ok(Answer::Yes)
}
