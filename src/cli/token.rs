//! `hub token`: manages tokens of the HTTP API.

use std::time::Duration;

use clap::{Args, Subcommand};
use rand::RngCore as _;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::error::{Answer, CliError};
use super::output::{Printer, confirm, time, warn};
use super::{connect, tenant};
use crate::domain::access::{PresentedToken, SECRET_BYTES, Scope, StoredToken, TokenId};
use crate::domain::duration;
use crate::nats::TokenEntry;
use crate::settings::Settings;

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Create a token and print it, only once; the hub stores only its hash
    #[command(
        after_help = "Example:\n  hub token create ci --scope publish,read --tenant acme --expires-in 90d"
    )]
    Create(CreateOptions),
    /// List tokens with their scopes, tenants and expiry
    List,
    /// Revoke a token; a running API refuses it within a second
    Revoke {
        /// Name of the token
        name: TokenId,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct CreateOptions {
    /// Name in lists and logs, for example ci or acme-portal
    name: TokenId,
    /// Scopes: publish (events), read, manage (subscriptions), operate (dead letters, domains); repeatable, or separated by
    /// commas
    #[arg(long = "scope", required = true, value_name = "SCOPE", value_delimiter = ',')]
    scopes: Vec<Scope>,
    /// Tenant that the token is bound to [default: none, all tenants]
    #[arg(long, value_parser = tenant)]
    tenant: Option<String>,
    /// Lifetime, for example 90d [default: unlimited]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    expires_in: Option<Duration>,
}

pub(super) async fn run(
    command: TokenCommand,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    match command {
        TokenCommand::Create(options) => create(options, settings, printer).await,
        TokenCommand::List => list(settings, printer).await,
        TokenCommand::Revoke { name, yes } => revoke(&name, yes, settings, printer).await,
    }
}

async fn create(options: CreateOptions, settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    let CreateOptions { name, mut scopes, tenant, expires_in } = options;
    scopes.sort_unstable();
    scopes.dedup();
    if expires_in.is_some_and(|lifetime| lifetime.is_zero()) {
        return Err(CliError::Usage("--expires-in: must be longer than 0s; use for example 90d".to_owned()));
    }
    // An error of the options needs no connection.
    expires_in.map(|lifetime| after(OffsetDateTime::now_utc(), lifetime)).transpose()?;
    let js = connect(settings).await?;
    // The processes that check the token follow the clock of the server.
    let now = js.read_now().await?;
    let expires_at = expires_in.map(|lifetime| after(now, lifetime)).transpose()?;
    let mut secret = [0; SECRET_BYTES];
    rand::rng().fill_bytes(&mut secret);
    let token = PresentedToken::new(name.clone(), &secret);
    let stored =
        StoredToken { id: name.clone(), hash: token.hash(), scopes, tenant, created_at: now, expires_at };
    js.add_token(&stored).await.map_err(|error| {
        if error.is_wrong_last_sequence() {
            CliError::TokenExists { name: name.to_string() }
        } else {
            error.into()
        }
    })?;
    let text = token.text();
    if printer.is_json() {
        let mut value = shown(&stored);
        value["token"] = json!(text.expose_secret());
        printer.json(&value)?;
    } else {
        printer.line(&format!("{name}: send it as `authorization: Bearer …`. It is shown only once:"))?;
        printer.line(text.expose_secret())?;
    }
    Ok(Answer::Yes)
}

fn after(now: OffsetDateTime, lifetime: Duration) -> Result<OffsetDateTime, CliError> {
    // RFC 3339 has no year after 9999.
    time::Duration::try_from(lifetime).ok().and_then(|lifetime| now.checked_add(lifetime)).ok_or_else(|| {
        CliError::Usage("--expires-in: ends after the year 9999; use a shorter lifetime".to_owned())
    })
}

/// A token without its hash.
fn shown(token: &StoredToken) -> Value {
    json!({
        "name": token.id,
        "scopes": token.scopes,
        "tenant": token.tenant,
        "created_at": time(token.created_at),
        "expires_at": token.expires_at.map(time),
    })
}

async fn list(settings: &Settings, printer: Printer) -> Result<Answer, CliError> {
    let js = connect(settings).await?;
    let tokens = js.tokens().await?;
    // Without a leader, some may be missing.
    match js.confirm_leader_of(&js.names().tokens_stream()).await {
        Err(error) if tokens.is_empty() => return Err(error.into()),
        Err(error) => warn(&format!("the latest changes may be missing: {error}")),
        Ok(()) => {}
    }
    if printer.is_json() {
        let shown = tokens.iter().map(|token| match token {
            TokenEntry::Readable(token) => shown(token),
            TokenEntry::Unreadable { id, reason } => {
                json!({"name": id, "unreadable": reason.to_string()})
            }
        });
        printer.json(&shown.collect::<Vec<_>>())?;
        return Ok(Answer::Yes);
    }
    let now = OffsetDateTime::now_utc();
    let rows = tokens.iter().map(|token| {
        let token = match token {
            TokenEntry::Readable(token) => token,
            TokenEntry::Unreadable { id, reason } => {
                let problem = format!("UNREADABLE, not accepted; revoke it ({reason})");
                return vec![id.to_string(), problem, String::new(), String::new(), String::new()];
            }
        };
        let scopes: Vec<&str> = token.scopes.iter().map(|scope| scope.as_str()).collect();
        vec![
            token.id.to_string(),
            scopes.join(" "),
            token.tenant.clone().unwrap_or_else(|| "every".to_owned()),
            time(token.created_at),
            match token.expires_at {
                None => "never".to_owned(),
                Some(at) if at <= now => format!("expired {}", time(at)),
                Some(at) => time(at),
            },
        ]
    });
    printer.table(&["NAME", "SCOPES", "TENANT", "CREATED", "EXPIRES"], rows)?;
    Ok(Answer::Yes)
}

async fn revoke(
    name: &TokenId,
    yes: bool,
    settings: &Settings,
    printer: Printer,
) -> Result<Answer, CliError> {
    let js = connect(settings).await?;
    if js.token_entry(name).await?.is_none() {
        return Err(CliError::NothingMatched(format!(
            "no token {:?}; list the tokens with `hub token list`",
            name.as_str()
        )));
    }
    if !confirm(&format!("Revoke the token {name}?"), yes)? {
        printer.line(&format!("{name}: not revoked"))?;
        return Ok(Answer::No);
    }
    let revoked = js.revoke_token(name).await?;
    if printer.is_json() {
        printer.json(&json!({"name": name, "revoked": revoked}))?;
    } else {
        printer.line(&format!("{name}: revoked"))?;
    }
    Ok(Answer::Yes)
}
