//! The process: its start, its servers, and its end.

use std::net::SocketAddr;
use std::time::Duration;

use super::limited::{About, limited};
use super::{Cause, Shown};
use crate::domain::backlog::size::exact;
use crate::domain::words::rounded;
use crate::nats::provision::ProvisionError;

/// The server accepts no message as large as the largest event of the settings.
pub struct EventsLargerThanServer {
    pub max_size: u64,
    pub max_payload: u64,
}

impl EventsLargerThanServer {
    pub fn emit(self) {
        let Self { max_size, max_payload } = self;
        let (max_size, max_payload) = (exact(max_size), exact(max_payload));
        tracing::warn!(
            max_size,
            max_payload,
            "events.max_size is larger than the server's max_payload, raise max_payload"
        );
    }
}

/// The whole process was suspended, or got no processor time, for most of an `ack_wait`.
pub struct ProcessStoodStill {
    pub stood: Duration,
}

impl ProcessStoodStill {
    pub fn emit(self) {
        let Self { stood } = self;
        tracing::warn!(
            stood_still = %rounded(stood),
            "the process stood still, messages read before are left to others"
        );
    }
}

/// A signal has changed the level of the log.
pub struct LogLevelChanged<'a> {
    pub filter: &'a str,
}

impl LogLevelChanged<'_> {
    pub fn emit(self) {
        let Self { filter } = self;
        tracing::info!(filter, "log level changed");
    }
}

/// A missing stream, bucket or consumer was created.
pub struct DefinitionCreated<'a> {
    pub what: &'a str,
}

impl DefinitionCreated<'_> {
    pub fn emit(self) {
        let Self { what } = self;
        tracing::info!(what, "created");
    }
}

/// A stream, bucket or consumer was changed.
pub struct DefinitionApplied<'a> {
    pub drift: Shown<'a>,
}

impl DefinitionApplied<'_> {
    pub fn emit(self) {
        let Self { drift } = self;
        tracing::info!(%drift, "updated to the definition");
    }
}

/// A stream, bucket or consumer differs, and changing it would lose messages.
pub struct DefinitionNotApplied<'a> {
    pub drift: Shown<'a>,
}

impl DefinitionNotApplied<'_> {
    pub fn emit(self) {
        let Self { drift } = self;
        tracing::warn!(%drift, "differs from the definition, not changed");
    }
}

/// A connection to the starting server failed.
pub struct NotConnectedYet<'a> {
    pub error: Cause<'a>,
}

impl NotConnectedYet<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        limited!(WARN "not connected yet, will retry", About::default().cause(error); %error);
    }
}

/// JetStream of the starting server, or of a cluster without a quorum, did not do what the start needs.
pub struct NotProvisionedYet<'a> {
    pub error: &'a ProvisionError,
}

impl NotProvisionedYet<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        // Each answer of the server is a reason of its own.
        let (cause, code): (Cause<'_>, _) = match error {
            ProvisionError::Nats(error) => (error, error.api().map(|error| error.err_code)),
            other => (other, None),
        };
        let code = code.map(|code| code.to_string()).unwrap_or_default();
        limited!(WARN "not provisioned yet, will retry", About::detail(&code).cause(cause); %error);
    }
}

/// The subscription resolver accepts connections.
pub struct ResolverListening {
    pub address: Option<SocketAddr>,
}

impl ResolverListening {
    pub fn emit(self) {
        let address = self.address.map(tracing::field::display);
        tracing::info!(address, "subscription resolver is listening");
    }
}

/// The process runs its roles.
pub struct Serving<'a> {
    pub nats: &'a str,
    pub health: Option<String>,
    pub api: Option<String>,
    /// Separated by commas.
    pub roles: &'a str,
}

impl Serving<'_> {
    pub fn emit(self) {
        let Self { nats, health, api, roles } = self;
        tracing::info!(version = env!("CARGO_PKG_VERSION"), nats, health, api, roles, "serving");
    }
}

/// A signal stops the process.
pub struct Stopping;

impl Stopping {
    pub fn emit(self) {
        tracing::info!("stopping, finishing deliveries in flight");
    }
}

/// The connections to the outbox database did not close in time.
pub struct StoreNotClosed;

impl StoreNotClosed {
    pub fn emit(self) {
        tracing::debug!("closing the connections to the outbox database timed out");
    }
}

/// The connection was lost before the last acknowledgements were sent.
pub struct LastAcknowledgementsLost<'a> {
    pub error: Cause<'a>,
}

impl LastAcknowledgementsLost<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::debug!(%error, "the last acknowledgements may be lost, their messages are delivered again");
    }
}

/// The limit of open files could not be raised.
pub struct OpenFilesNotRaised<'a> {
    pub error: Cause<'a>,
}

impl OpenFilesNotRaised<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// A step of the search for a nats-server of `hub serve --dev`.
pub struct PrivateServerSearched<'a> {
    pub text: &'a str,
}

impl PrivateServerSearched<'_> {
    pub fn emit(self) {
        let Self { text } = self;
        tracing::info!("{text}");
    }
}

/// The nats-server of `hub serve --dev` accepts connections.
pub struct PrivateServerStarted<'a> {
    pub url: &'a str,
    pub data: Shown<'a>,
}

impl PrivateServerStarted<'_> {
    pub fn emit(self) {
        let Self { url, data } = self;
        tracing::info!(url, %data, "started a private nats-server");
    }
}

/// The nats-server of `hub serve --dev` had to be killed.
pub struct PrivateServerNotStopped<'a> {
    pub error: Cause<'a>,
}

impl PrivateServerNotStopped<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::warn!(%error, "the private nats-server did not stop in time");
    }
}

/// A thread panicked.
pub struct ThreadPanicked<'a> {
    pub message: &'a str,
    pub location: &'a str,
    pub thread: &'a str,
    pub backtrace: Option<Shown<'a>>,
}

impl ThreadPanicked<'_> {
    pub fn emit(self) {
        let Self { message, location, thread, backtrace } = self;
        match backtrace {
            Some(backtrace) => limited!(
                ERROR "panicked", About::detail(location);
                message, location, thread, %backtrace
            ),
            None => limited!(ERROR "panicked", About::detail(location); message, location, thread),
        }
    }
}
