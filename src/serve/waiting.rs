//! The wait of a starting process for what passes: no NATS server yet, or JetStream without a quorum. Meanwhile, health is
//! served, `/readyz` names the reason, and a signal ends the process at once. What no wait mends ends it with its error.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::message_id::MessageIds;
use crate::facts::{NotConnectedYet, NotProvisionedYet};
use crate::from_settings::message_ids;
use crate::health::{Readiness, ReadyFlag};
use crate::nats::provision::ProvisionError;
use crate::nats::{ConnectOptions, JetStream, NatsError};
use crate::seal::Sealer;

/// Wait between two tries.
const BETWEEN_TRIES: Duration = Duration::from_secs(1);
/// The part at `/readyz` that is not ready while JetStream has no leader, and the subject of its note.
pub(super) const JETSTREAM: &str = "JetStream";
/// The subject of the note about the connection.
const CONNECTION: &str = "connection to the NATS server";

/// The connection to the NATS server, once there is one. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Link(Arc<OnceLock<JetStream>>);

impl Link {
    /// Whether there is a connection, and the server answers on it.
    pub(super) fn is_answering(&self) -> bool {
        self.0.get().is_some_and(JetStream::is_answering)
    }

    /// The connections after the first.
    pub(super) fn reconnects(&self) -> u64 {
        self.0.get().map_or(0, |js| js.connections().saturating_sub(1))
    }
}

/// What a starting process waits for, and how long.
pub(super) struct Waiting {
    readiness: Readiness,
    jetstream: ReadyFlag,
    /// `None`: without limit.
    deadline: Option<Instant>,
}

impl Waiting {
    /// `patience`: how long the process waits in all; `None` if a signal alone ends the wait. `/readyz` has a reason from now on,
    /// also before the first try has failed.
    pub(super) fn new(readiness: &Readiness, jetstream: ReadyFlag, patience: Option<Duration>) -> Self {
        readiness.note(CONNECTION, Some("starting: waiting for the NATS server".to_owned()));
        let deadline = patience.map(|patience| Instant::now() + patience);
        Self { readiness: readiness.clone(), jetstream, deadline }
    }

    /// Whether the process goes on waiting.
    pub(super) fn has_time(&self) -> bool {
        self.deadline.is_none_or(|deadline| Instant::now() < deadline)
    }

    /// Connects. The link has the connection afterwards.
    pub(super) async fn connect(
        &self,
        options: &ConnectOptions,
        link: &Link,
    ) -> Result<JetStream, NatsError> {
        loop {
            match JetStream::connect(options).await {
                Ok(js) => {
                    self.readiness.note(JETSTREAM, Some("starting: waiting for JetStream".to_owned()));
                    self.readiness.note(CONNECTION, None);
                    return Ok(link.0.get_or_init(|| js).clone());
                }
                Err(error) if error.may_pass() && self.has_time() => {
                    NotConnectedYet { error: &error }.emit();
                    self.readiness.note(CONNECTION, Some(format!("waiting for the server: {error}")));
                    tokio::time::sleep(BETWEEN_TRIES).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes note that JetStream did not do what the start needs, which may pass.
    pub(super) fn not_yet(&self, error: &ProvisionError) {
        NotProvisionedYet { error }.emit();
        self.readiness.note(JETSTREAM, Some(format!("waiting for JetStream: {error}")));
        self.jetstream.set(false);
    }

    /// Takes note that JetStream answers.
    pub(super) fn answered(&self) {
        self.readiness.note(JETSTREAM, None);
        self.jetstream.set(true);
    }

    /// The message ids of a process that publishes events.
    pub(super) async fn message_ids(
        &self,
        js: &JetStream,
        sealer: Option<&Sealer>,
    ) -> Result<MessageIds, ProvisionError> {
        loop {
            let error = match message_ids(js, sealer).await {
                Ok(ids) => {
                    self.answered();
                    return Ok(ids);
                }
                Err(error) => ProvisionError::from(js.why_no_responders(error).await),
            };
            if !error.may_pass() || !self.has_time() {
                return Err(error);
            }
            self.not_yet(&error);
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
    }
}
