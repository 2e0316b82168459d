//! Finds out why nobody answered a command: a stream without a leader is as silent as one that does not exist.

use super::connect;
use super::error::CliError;
use crate::management::ManagementError;
use crate::nats::NatsError;
use crate::settings::Settings;

/// The error with its cause, if that can be found out.
pub(super) async fn explained(error: CliError, settings: &Settings) -> CliError {
    let CliError::Management(error) = error else { return error };
    let (ManagementError::Nats(NatsError::NoResponders { subject })
    | ManagementError::PartlyDone { source: NatsError::NoResponders { subject }, .. }) = &error
    else {
        return CliError::Management(error);
    };
    let source = NatsError::NoResponders { subject: subject.clone() };
    match connect(settings).await {
        Ok(js) => CliError::Management(error.with_source(js.why_no_responders(source).await)),
        Err(_) => CliError::Management(error),
    }
}
