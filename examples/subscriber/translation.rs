//! The anti-corruption layer: translates events of the accounts service to commands. The only file that depends on
//! their format.

use serde::Deserialize;
use thiserror::Error;

use crate::customers::RegisterCustomer;
use crate::event::Event;

/// `user.created`, version 1, in the format of the accounts service.
#[derive(Debug, Deserialize)]
struct UserCreated {
    user_id: String,
    email: String,
    display_name: Option<String>,
}

/// The reason why an event cannot be translated.
#[derive(Debug, Error)]
pub(crate) enum Untranslatable {
    #[error("{kind}: data: {error}")]
    Data { kind: String, error: serde_json::Error },
    #[error("{kind}: version {version} is not supported; the latest supported version is {known}")]
    Version { kind: String, version: u32, known: u32 },
    #[error("{kind}: data.{field} is empty")]
    Empty { kind: String, field: &'static str },
}

/// Translates the event; `None` if this service ignores its type.
pub(crate) fn translate(event: &Event<'_>) -> Result<Option<RegisterCustomer>, Untranslatable> {
    let kind = &event.metadata.headers.kind;
    if kind != "user.created" {
        return Ok(None);
    }
    let version = event.metadata.domain.version.unwrap_or(1);
    if version > 1 {
        return Err(Untranslatable::Version { kind: kind.clone(), version, known: 1 });
    }
    let user: UserCreated = serde_json::from_str(event.data.get())
        .map_err(|error| Untranslatable::Data { kind: kind.clone(), error })?;
    for (field, text) in [("user_id", &user.user_id), ("email", &user.email)] {
        if text.trim().is_empty() {
            return Err(Untranslatable::Empty { kind: kind.clone(), field });
        }
    }
    Ok(Some(RegisterCustomer {
        name: user.display_name.unwrap_or_else(|| user.email.clone()),
        customer_id: user.user_id,
        email: user.email,
    }))
}
