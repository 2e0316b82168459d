//! Finds out why a command failed, so that its error has the right remedy: a stream without a leader is as silent as one that
//! does not exist, and a lost registry is not created by `hub provision`.

use super::connect;
use super::error::CliError;
use crate::from_settings::shared_settings;
use crate::management::ManagementError;
use crate::nats::provision::join::{Joinable, check_joining};
use crate::nats::subjects::described;
use crate::nats::{JetStream, NatsError};
use crate::seal::open_settings;
use crate::settings::{SecretName, Settings};

/// What is not known about a failure.
enum Question {
    /// Why nobody answered the request.
    NoResponders { subject: String },
    /// Why no answer came, where the server did not say so.
    Silence { subject: String },
    /// Whether the registry is lost, or the hub was never provisioned.
    NoRegistry { subject: String },
    /// Whether a subscription does not exist, or its server does not know it.
    NotFound,
    /// The same for a dead letter.
    NoLetter,
}

impl Question {
    fn of(error: &CliError) -> Option<Self> {
        let error = match error {
            CliError::NoSubscription { .. } => return Some(Self::NotFound),
            CliError::NotFound { source: ManagementError::NoDeadLetter { .. }, .. } => {
                return Some(Self::NoLetter);
            }
            CliError::Management(error) => error,
            _ => return None,
        };
        match error {
            ManagementError::NotProvisioned { subject } if described(subject).is_registry() => {
                Some(Self::NoRegistry { subject: subject.clone() })
            }
            ManagementError::Nats(source) | ManagementError::PartlyDone { source, .. } => match source {
                NatsError::NoResponders { subject } => Some(Self::NoResponders { subject: subject.clone() }),
                NatsError::Timeout { subject, reported: None, .. } => {
                    Some(Self::Silence { subject: subject.clone() })
                }
                NatsError::RegistryMissing { bucket } => Some(Self::NoRegistry { subject: bucket.clone() }),
                _ => None,
            },
            _ => None,
        }
    }

    /// The error with its cause, or as it is if that is not known.
    async fn answer(self, error: CliError, js: &JetStream, settings: &Settings) -> CliError {
        let found = match self {
            Self::NoResponders { subject } => {
                Some(js.why_no_responders(NatsError::NoResponders { subject }).await)
            }
            Self::Silence { subject } => js.why_silent(&subject).await,
            Self::NotFound => js.confirm_registry_leader().await.err(),
            Self::NoLetter => {
                let mut found = None;
                for domain in &settings.domains {
                    found = js.confirm_leader_of(&js.names().dlt_stream(&domain.name)).await.err();
                    if found.is_some() {
                        break;
                    }
                }
                found
            }
            Self::NoRegistry { subject } => {
                return match check_joining(js, &shared_settings(settings)).await {
                    Ok(Joinable { registry: Some(lost), .. }) => lost.into(),
                    Ok(_) => CliError::Management(ManagementError::NotProvisioned { subject }),
                    Err(_) => error,
                };
            }
        };
        match (error, found) {
            (error, None) => error,
            (
                CliError::Management(error @ (ManagementError::Nats(_) | ManagementError::PartlyDone { .. })),
                Some(found),
            ) => CliError::Management(error.with_source(found)),
            (_, Some(found)) => found.into(),
        }
    }
}

/// The error with its cause, if that can be found out.
pub(super) async fn explained(error: CliError, settings: &Settings) -> CliError {
    let Some(question) = Question::of(&error) else { return error };
    // Commands about settings keep them sealed.
    let Ok(settings) = &open_settings(settings, SecretName::is_to_connect) else { return error };
    let Ok(js) = connect(settings).await else { return error };
    let error = question.answer(error, &js, settings).await;
    // What has no responders may be the registry.
    match Question::of(&error) {
        Some(question @ Question::NoRegistry { .. }) => question.answer(error, &js, settings).await,
        _ => error,
    }
}
