//! `hub secrets seal`: seals a secret for the settings file.

use std::io::{IsTerminal as _, Read as _};

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

use crate::cli::error::{Answer, CliError};
use crate::cli::output::{Printer, prompt, warn};
use crate::dev::key_hint;
use crate::seal::{PREFIX, Sealer};
use crate::settings::{SecretName, Settings};

/// Maximum length of a secret, in bytes.
const LONGEST: usize = 64 * 1024;

pub(super) fn run(name: &SecretName, settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    let sealer = Sealer::from_settings(&settings.secrets)?
        .ok_or_else(|| CliError::NoKeyToSeal { hint: key_hint() })?;
    if let Some(broker) = name.broker()
        && !settings.external_brokers.iter().any(|entry| entry.name == broker)
    {
        warn(&format!(
            "external broker {broker:?}: not configured; the sealed value is only valid for a broker of this name"
        ));
    }
    let sealed = sealer.seal_setting(name, &read(name)?);
    if printer.is_json() {
        printer.json(&json!({"setting": name.to_string(), "key_id": sealer.key_id(), "sealed": sealed}))?;
    } else {
        printer.line(&sealed)?;
    }
    Ok(Answer::Yes)
}

/// Reads a secret: a line without echo from a terminal, otherwise all input without one final line break.
fn read(name: &SecretName) -> Result<SecretString, CliError> {
    let text = if std::io::stdin().is_terminal() {
        prompt(&format!("{name}: "));
        console::Term::stderr().read_secure_line().map_err(CliError::Stdin)?
    } else {
        let mut text = String::new();
        let mut input = std::io::stdin().lock().take(LONGEST as u64 + 1);
        input.read_to_string(&mut text).map_err(CliError::Stdin)?;
        text
    };
    let text = SecretString::from(text);
    let line = text.expose_secret();
    let line = line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
    let problem = if line.is_empty() {
        "it is empty".to_owned()
    } else if line.len() > LONGEST {
        format!("it is longer than {LONGEST} bytes")
    } else if line.contains(['\n', '\r', '\0']) {
        "it has more than one line; pass only the secret".to_owned()
    } else if line.starts_with(PREFIX) {
        format!("it begins with {PREFIX:?} and is already sealed; pass the plain secret")
    } else {
        return Ok(SecretString::from(line));
    };
    Err(CliError::NotASecret { problem })
}
